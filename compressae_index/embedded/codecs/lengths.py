"""Codes of another codec, and beside them the norms of their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from compressae_index._engine import Forward, code_norms
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import to_bits
from compressae_index.coding.metric import row_norms
from compressae_index.embedded.codecs.base import Arrays
from compressae_index.embedded.codecs.beside import Beside
from compressae_index.errors import DimensionError, InputError

NORMS = "norms"
NORM_BYTES = 2


@dataclass(frozen=True, eq=False)
class WithNorms(Beside):
    """A codec, and the norm of each vector in 2 bytes (`coding.lengths`), for Euclidean distances.

    Attributes:
        inner: the codec of the codes.
    """

    name: ClassVar = "norms"
    beside: ClassVar = NORMS

    def manifest(self) -> dict[str, Any]:
        """That of the codec of the codes, which says that there are norms."""
        return self.inner.manifest() | {NORMS: True}

    def row_bytes(self, n_latents: int, k: int) -> int:
        """Bytes of a document's code and norm."""
        return self.inner.row_bytes(n_latents, k) + NORM_BYTES

    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,
        dictionary: FloatArray | None = None,
        targets: FloatArray | None = None,
    ) -> Arrays:
        """The arrays of the codes' codec, and norms (n,) uint16.

        Args:
            codes: the codes.
            num_threads: threads of the engine.
            dictionary: (n_latents, dim); needed.
            targets: (n, dim) the vectors that codes approximate; where they are not known, the norms are
                those of reconstructions.
        """
        if dictionary is None:
            msg = "norms are those of vectors or reconstructions, and neither can be had"
            raise ValueError(msg)
        norms: npt.NDArray[np.floating[Any]]
        if targets is None:
            norms = code_norms(codes.latents, codes.values, dictionary, num_threads)
        else:
            norms = row_norms(targets)
        return self.inner.pack(codes, num_threads, dictionary, targets) | {NORMS: to_bits(norms)}

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> Forward:
        """The engine's view of codes and norms, whose projections have one entry more."""
        forward = self.inner.engine(arrays, n_latents, k)
        if arrays[NORMS].shape != (forward.n_documents,):
            msg = f"norms must have shape {(forward.n_documents,)}, got {arrays[NORMS].shape}"
            raise DimensionError(msg)
        if forward.n_entries != n_latents + 1:
            msg = f"the codec {self.inner.name!r} gives the engine no norms, which Euclidean distances need"
            raise InputError(msg)
        return forward
