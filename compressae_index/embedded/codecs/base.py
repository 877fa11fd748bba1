"""`Codec`, the base class of codecs: how the forward part stores codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index._engine import Forward
from compressae_index.arrays import FloatArray, RowArray
from compressae_index.coding.codes import SparseCodes

# Arrays by name.
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

# The name of the only array of a codec that stores a document as one row of bytes.
BYTE_ROWS = "rows"
# The prefix of a codec's arrays in files.
PREFIX = "forward_"


class Codec(ABC):
    """How the forward part stores codes.

    A codec packs codes into arrays with one row a document, unpacks them, and gives the engine a view of
    the arrays. It is immutable. A codec that learns from codes, as `Packed` learns its levels, is fitted to
    the first codes of an index and never again, so that stored rows are copied without rounding them again.

    A subclass sets `name` and `array_names` and defines `row_bytes`, `pack`, `unpack` and `engine`. If it has
    settings or learns something, it also sets `settings` or `learned_names`, and defines `fitted`, `learned`
    and `with_learned`. The other methods move
    rows of arrays, whatever their contents.
    """

    name: ClassVar[str]
    """The codec's name in manifests and in `CompressedIndex.build(forward=)`."""
    array_names: ClassVar[tuple[str, ...]]
    """Names of the arrays with one row a document, along the first axis."""
    learned_names: ClassVar[tuple[str, ...]] = ()
    """Names of learned arrays, shared by all documents."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that manifests keep, from attributes of the same names."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Makes a codec with some settings, not fitted.

        Raises:
            InputError: a setting of the wrong type or out of range.
            TypeError: an unknown setting.
        """
        make: Callable[..., Self] = cls
        return make(**settings)

    def manifest(self) -> dict[str, Any]:
        """Name and settings, for `codecs.from_arrays`."""
        return {"forward": self.name} | {name: getattr(self, name) for name in self.settings}

    def fitted(self, codes: SparseCodes) -> Self:  # noqa: ARG002
        """This codec if it is fitted or does not learn; otherwise a codec fitted to the codes."""
        return self

    def learned(self) -> Arrays:
        """The learned arrays; empty before the codec is fitted."""
        return {}

    def with_learned(self, learned: Arrays) -> Self:  # noqa: ARG002
        """This codec with the arrays of `learned`: all of them, or none.

        Raises:
            ValueError: arrays of the wrong dtype or shape, or with impossible contents.
        """
        return self

    def agrees_with(self, other: Codec) -> bool:
        """Whether both unpack any row to the same code, so that rows can be copied between them."""
        ours, theirs = self.learned(), other.learned()
        return (
            self.manifest() == other.manifest()
            and ours.keys() == theirs.keys()
            and all(np.array_equal(array, theirs[name]) for name, array in ours.items())
        )

    @abstractmethod
    def row_bytes(self, n_latents: int, k: int) -> int:
        """Bytes of a document, over all arrays."""

    def nbytes(self, arrays: Arrays) -> dict[str, int]:
        """Bytes of a part's arrays and the learned ones: `forward`, and `residuals` if there are any."""
        return {"forward": sum(array.nbytes for array in (arrays | self.learned()).values())}

    @abstractmethod
    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,
        dictionary: FloatArray | None = None,
        targets: FloatArray | None = None,
    ) -> Arrays:
        """Packs codes (n, k) into arrays. The codec must be fitted.

        Args:
            codes: codes whose latents ascend in each row.
            num_threads: threads of the engine.
            dictionary: (n_latents, dim). If given, rounding keeps the norms of reconstructions.
            targets: (n, dim) the vectors that codes approximate, without the model's mean, where they are
                known; codecs that keep only codes ignore them.
        """

    @abstractmethod
    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:
        """The codes that `pack` stored, rounded. Posting lists are built from these.

        Raises:
            ValueError: the arrays have wrong shapes or are damaged.
        """

    @abstractmethod
    def engine(self, arrays: Arrays, n_latents: int, k: int) -> Forward:
        """The engine's view of arrays, which scores the codes that `unpack` returns.

        The view borrows the arrays, so they must outlive it. A codec without a view of its own may convert
        them to another codec's arrays, which then take memory too.

        Raises:
            ValueError: the arrays do not fit together.
        """

    def cut(self, arrays: Arrays, rows: slice) -> Arrays:
        """Views of consecutive rows."""
        return {name: array[rows] for name, array in arrays.items()}

    def stacked(self, pieces: Sequence[Arrays]) -> Arrays:
        """Concatenates pieces; a single piece is not copied."""
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self.array_names}

    def gathered(self, pieces: Sequence[Arrays], wanted: RowArray) -> Arrays:
        """Copies of the wanted rows, in their order.

        Args:
            pieces: at least one piece.
            wanted: row numbers in the concatenated pieces.
        """
        if len(pieces) == 1:
            return {name: array[wanted] for name, array in pieces[0].items()}
        taken = {
            name: np.empty((len(wanted), *array.shape[1:]), dtype=array.dtype)
            for name, array in pieces[0].items()
        }
        start = 0
        for piece in pieces:
            end = start + len(piece[self.array_names[0]])
            inside = (wanted >= start) & (wanted < end)
            for name, array in piece.items():
                taken[name][inside] = array[wanted[inside] - start]
            start = end
        return taken

    def to_arrays(self, arrays: Arrays) -> Arrays:
        """The arrays to store, under their names in files, including learned ones.

        Args:
            arrays: the arrays of all documents; empty if there are none.
        """
        return {PREFIX + name: array for name, array in (arrays | self.learned()).items()}

    def stored_names(self) -> tuple[set[str], set[str]]:
        """File names of the arrays with one row a document, and of the learned arrays."""
        by_row, learned = (
            {PREFIX + name for name in names} for names in (self.array_names, self.learned_names)
        )
        return by_row, learned
