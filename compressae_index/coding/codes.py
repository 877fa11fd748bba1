"""Sparse codes: exactly k (latent, value) pairs a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import _engine
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError

if TYPE_CHECKING:
    import scipy.sparse as sp

LatentArray: TypeAlias = npt.NDArray[np.uint16]

# The engine stores a latent in 16 bits.
MAX_LATENTS = _engine.MAX_LATENTS


@dataclass(frozen=True, eq=False, repr=False)
class SparseCodes:
    """n rows of exactly k pairs over `n_latents` latents.

    A row that needs fewer than k pairs holds pairs of value 0, so that every row has the same size.

    Attributes:
        latents: (n, k) uint16, strictly increasing within a row, below `n_latents`.
        values: (n, k) float32, finite, signed.
        n_latents: size of the dictionary, at most 65,536.

    Raises:
        DimensionError: shapes of latents and values differ, or are not (n, k).
        InputError: another dtype, a latent out of range, repeated or unsorted, a value that is not finite.
    """

    latents: LatentArray
    values: FloatArray
    n_latents: int

    def __post_init__(self) -> None:
        check_int(self.n_latents, "n_latents", 1, MAX_LATENTS)
        latents, values = self.latents, self.values
        if latents.ndim != 2 or latents.shape != values.shape:
            msg = f"latents and values must have one shape (n, k), got {latents.shape} and {values.shape}"
            raise DimensionError(msg)
        if latents.dtype != np.uint16 or values.dtype != np.float32:
            msg = f"codes must be uint16 latents and float32 values, got {latents.dtype} and {values.dtype}"
            raise InputError(msg)
        check_int(latents.shape[1], "k", 1, self.n_latents, "n_latents")
        if latents.size and int(latents.max()) >= self.n_latents:
            msg = f"latent {latents.max()} is outside of n_latents = {self.n_latents}"
            raise InputError(msg)
        unsorted = np.flatnonzero((latents[:, 1:] <= latents[:, :-1]).any(axis=1))
        if unsorted.size:
            msg = (
                f"row {unsorted[0]}: latents must be strictly increasing, got {latents[unsorted[0]].tolist()}"
            )
            raise InputError(msg)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            msg = f"row {bad[0]}: values must be finite"
            raise InputError(msg)

    def __len__(self) -> int:
        return int(self.latents.shape[0])

    def __repr__(self) -> str:
        return f"SparseCodes({len(self)} codes, n_latents={self.n_latents}, k={self.k})"

    @property
    def k(self) -> int:
        """Nonzeros a code."""
        return int(self.latents.shape[1])

    def __getitem__(self, rows: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> SparseCodes:
        """The codes of some rows."""
        return SparseCodes(self.latents[rows], self.values[rows], self.n_latents)

    def scaled(self, factors: FloatArray | float) -> SparseCodes:
        """The codes with the values of each row times its factor, (n,), or all times one factor."""
        factors = np.asarray(factors, dtype=np.float32).reshape(-1, 1)
        return SparseCodes(self.latents, self.values * factors, self.n_latents)

    @classmethod
    def empty(cls, k: int, n_latents: int) -> SparseCodes:
        """Zero rows of codes of k pairs."""
        return cls(np.empty((0, k), np.uint16), np.empty((0, k), np.float32), n_latents)

    @classmethod
    def concatenate(cls, parts: Iterable[SparseCodes]) -> SparseCodes:
        """Joins codes of equal k and n_latents, row-wise."""
        parts = list(parts)
        shapes = {(part.k, part.n_latents) for part in parts}
        if len(shapes) != 1:
            msg = f"codes to join must agree in (k, n_latents), got {sorted(shapes)}"
            raise DimensionError(msg)
        latents = np.concatenate([part.latents for part in parts])
        return cls(latents, np.concatenate([part.values for part in parts]), parts[0].n_latents)

    @classmethod
    def from_csr(cls, matrix: sp.csr_array | sp.csr_matrix, k: int | None = None) -> SparseCodes:
        """From a scipy CSR matrix (n, n_latents); stored zeros count as pairs.

        Args:
            matrix: any real CSR matrix or array; it is not changed.
            k: nonzeros a code; by default the count of the fullest row. Shorter rows are filled with pairs of
                value 0.

        Raises:
            InputError: a row holds more than k entries or repeats a latent, or the matrix is not CSR.
        """
        if getattr(matrix, "format", None) != "csr":
            msg = f"expected a scipy CSR matrix, got {type(matrix).__name__}"
            raise InputError(msg)
        n, n_latents = matrix.shape
        check_int(n_latents, "n_latents", 1, MAX_LATENTS)
        counts = np.diff(matrix.indptr)
        fullest = int(counts.max(initial=0))
        k = max(fullest, 1) if k is None else check_int(k, "k", 1, n_latents, "n_latents")
        if fullest > k:
            msg = f"row {int(counts.argmax())} holds {fullest} entries, more than k = {k}"
            raise InputError(msg)
        latents = np.empty((n, k), dtype=np.int64)
        values = np.zeros((n, k), dtype=np.float32)
        row_of = np.repeat(np.arange(n), counts)
        place = np.arange(row_of.size) - np.repeat(matrix.indptr[:-1].astype(np.int64), counts)
        latents[row_of, place] = matrix.indices
        values[row_of, place] = matrix.data
        short = np.flatnonzero(counts < k)
        # A row of fewer than k latents leaves enough of the k lowest ones unused.
        unused = np.ones((len(short), k), dtype=bool)
        number = np.full(n, -1)
        number[short] = np.arange(len(short))
        low = (number[row_of] >= 0) & (matrix.indices < k)
        unused[number[row_of[low]], matrix.indices[low]] = False
        unused &= np.cumsum(unused, axis=1, dtype=np.int32) <= (k - counts[short])[:, None]
        filled_up = latents[short]
        filled_up[np.arange(k) >= counts[short][:, None]] = np.nonzero(unused)[1]
        latents[short] = filled_up
        order = np.argsort(latents, axis=1, kind="stable")
        return cls(
            np.take_along_axis(latents, order, axis=1).astype(np.uint16),
            np.take_along_axis(values, order, axis=1),
            n_latents,
        )

    def to_csr(self) -> sp.csr_array:
        """As a scipy CSR array (n, n_latents) of float32 with k stored entries a row."""
        import scipy.sparse as sp

        indptr = np.arange(len(self) + 1, dtype=np.int64) * self.k
        indices = self.latents.ravel().astype(np.int64)
        return sp.csr_array((self.values.ravel(), indices, indptr), shape=(len(self), self.n_latents))

    @classmethod
    def from_dense(cls, array: npt.ArrayLike, k: int | None = None) -> SparseCodes:
        """From a dense array (n, n_latents), whose nonzeros become the pairs; k as in `from_csr`."""
        import scipy.sparse as sp

        dense = as_array(array, "dense codes")
        if dense.dtype.kind not in "fiub":
            msg = f"dense codes must be real numbers, got dtype {dense.dtype}"
            raise InputError(msg)
        if dense.ndim != 2:
            msg = f"dense codes must have shape (n, n_latents), got {dense.shape}"
            raise DimensionError(msg)
        return cls.from_csr(sp.csr_array(dense.astype(np.float32)), k)

    def to_dense(self) -> FloatArray:
        """As a dense array (n, n_latents) of float32."""
        dense = np.zeros((len(self), self.n_latents), dtype=np.float32)
        np.put_along_axis(dense, self.latents.astype(np.int64), self.values, axis=1)
        return dense

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[int, float]], n_latents: int, k: int | None = None
    ) -> SparseCodes:
        """From one mapping of latent to value a row; k as in `from_csr`."""
        import scipy.sparse as sp

        rows = list(rows)
        indices = np.array([latent for row in rows for latent in row], dtype=np.int64)
        outside = indices[(indices < 0) | (indices >= n_latents)]
        if outside.size:
            msg = f"latent {outside[0]} is outside of n_latents = {n_latents}"
            raise InputError(msg)
        values = np.array([value for row in rows for value in row.values()], dtype=np.float32)
        indptr = np.cumsum([0, *(len(row) for row in rows)])
        return cls.from_csr(sp.csr_array((values, indices, indptr), shape=(len(rows), n_latents)), k)

    def to_rows(self) -> list[dict[int, float]]:
        """One dict of latent to value a row, k entries each."""
        return [
            dict(zip(latents, values, strict=True))
            for latents, values in zip(self.latents.tolist(), self.values.tolist(), strict=True)
        ]
