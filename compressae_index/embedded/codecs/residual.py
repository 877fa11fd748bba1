"""Codes of another codec, and beside them residual codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compressae_index._engine import Forward, Residuals, residual_row_bytes, residual_rows, residual_vectors
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.codecs.base import Arrays
from compressae_index.embedded.codecs.beside import Beside
from compressae_index.errors import DimensionError

RESIDUAL_ROWS = "residuals"


@dataclass(frozen=True, eq=False)
class WithResiduals(Beside):
    """A codec, and a row of `residual_bits` a dimension of what its rounded codes leave out.

    A residual row takes 2 bytes of scale and 2 * residual_bits bytes for every 16 dimensions. Its numbers are
    of the levels of Lloyd (1982) and Max (1960) for normal distributions.

    Attributes:
        inner: the codec of the codes.
        dim: dimensions of the vectors.
        residual_bits: bits a dimension: 1, 2, 3, 4 or 6.
    """

    name: ClassVar = "residual"
    beside: ClassVar = RESIDUAL_ROWS

    dim: int
    residual_bits: int

    def __post_init__(self) -> None:
        residual_row_bytes(self.dim, self.residual_bits)  # checks both

    def manifest(self) -> dict[str, Any]:
        """That of the codec of the codes, with dimension and bits of the residual rows."""
        return self.inner.manifest() | {"dim": self.dim, "residual_bits": self.residual_bits}

    def nbytes(self, arrays: Arrays) -> dict[str, int]:
        """Those of the codes, and apart from them those of the residual rows."""
        return self.inner.nbytes(self.of_codes(arrays)) | {"residuals": arrays[RESIDUAL_ROWS].nbytes}

    def row_bytes(self, n_latents: int, k: int) -> int:
        """Bytes of a document's code and residual row."""
        return self.inner.row_bytes(n_latents, k) + residual_row_bytes(self.dim, self.residual_bits)

    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,
        dictionary: FloatArray | None = None,
        targets: FloatArray | None = None,
    ) -> Arrays:
        """The arrays of the codes' codec, and residuals (n, row_bytes) uint8.

        Args:
            codes: codes that leave room for a residual (`coding.residual.make_room`).
            num_threads: threads of the engine.
            dictionary: (n_latents, dim); needed.
            targets: (n, dim) the vectors that codes approximate; needed.
        """
        if dictionary is None or targets is None:
            msg = "residual codes are made of vectors, and these are not given"
            raise ValueError(msg)
        arrays = self.inner.pack(codes, num_threads, dictionary, targets)
        stored = self.inner.unpack(arrays, codes.n_latents, codes.k, num_threads)
        rows = residual_rows(
            targets, stored.latents, stored.values, dictionary, self.residual_bits, num_threads
        )
        return arrays | {RESIDUAL_ROWS: rows}

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> Forward:
        """The engine's view of the codes."""
        forward, rows = self.inner.engine(self.of_codes(arrays), n_latents, k), arrays[RESIDUAL_ROWS]
        expected = (forward.n_documents, residual_row_bytes(self.dim, self.residual_bits))
        if rows.shape != expected or rows.dtype != np.uint8:
            msg = f"residual rows must be uint8 {expected}, got {rows.dtype} {rows.shape}"
            raise DimensionError(msg)
        return forward

    def refiner(self, pieces: list[Arrays]) -> Residuals:
        """The engine's last stage, of the rows of all pieces; the arrays must outlive it.

        Raises:
            ValueError: rows of another type or length.
        """
        for rows in (piece[RESIDUAL_ROWS] for piece in pieces):
            if rows.dtype != np.uint8 or not rows.flags.c_contiguous:  # the engine would copy all of them
                msg = f"residual rows must be uint8 in C order, got {rows.dtype} {rows.shape}"
                raise ValueError(msg)
        return Residuals([piece[RESIDUAL_ROWS] for piece in pieces], self.dim, self.residual_bits)

    def residuals(self, arrays: Arrays, num_threads: int = 1) -> FloatArray:
        """The residuals that rows stand for, (n, dim)."""
        return residual_vectors(arrays[RESIDUAL_ROWS], self.dim, self.residual_bits, num_threads)
