"""Checked rows of a source: bad ones are reported by file and row, or skipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.checks import as_floats, bad_rows, complaint
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids
from compressae_index.sources.base import CHUNK_ROWS, Vectors, bounds


def checked_rows(
    vectors: Vectors, begin: int, end: int, *, dim: int | None = None, zeros: bool = False
) -> FloatArray:
    """Rows begin .. end of a source, checked as by `checks.check_vectors`.

    Raises:
        InputError: a row that is zero, but for `zeros`, or not finite, with its number and file.
        DimensionError: rows of another dimension.
        FormatError: a file that is damaged or has changed.
    """
    raw, array = _read(vectors, begin, end, dim)
    bad = bad_rows(array, zeros=zeros)
    if bad.size:
        row, message = complaint(raw, array, bad, "embeddings", begin)
        place = getattr(vectors, "place", None)
        where = f", {place(begin + row)}" if place else ""
        msg = f"{message}{where}; on_bad_rows='skip' leaves such rows out"
        raise InputError(msg)
    return array


def _read(vectors: Vectors, begin: int, end: int, dim: int | None) -> tuple[npt.NDArray[Any], FloatArray]:
    raw = as_array(vectors[begin:end], "embeddings")
    return raw, as_floats(raw, dim=dim)


def check_no_rows(vectors: Vectors, dim: int) -> None:
    """Checks the dimension of a source without rows.

    Raises:
        DimensionError: it is not `dim`.
    """
    if vectors.shape[1] not in (0, dim):
        msg = f"embeddings have dimension {vectors.shape[1]}, expected {dim}"
        raise DimensionError(msg)


class GoodRows:
    """The rows of a source that are finite and, unless zeros are good, not zero; the others are skipped."""

    def __init__(self, vectors: Vectors, *, zeros: bool = False, may_be_empty: bool = False) -> None:
        """Reads all rows once, to find the bad ones; with `zeros`, rows of zeros are good.

        Raises:
            InputError: all rows are bad, and that is not allowed.
        """
        self._vectors = vectors
        n = vectors.shape[0]
        found = [
            begin + bad_rows(_read(vectors, begin, begin + CHUNK_ROWS, None)[1], zeros=zeros)
            for begin in range(0, n, CHUNK_ROWS)
        ]
        self.skipped: RowArray = np.concatenate([np.empty(0, dtype=np.int64), *found])
        """Rows of the source that are skipped, ascending."""
        if self.skipped.size == n and not may_be_empty:
            are = "hold" if zeros else "are zero or hold"
            msg = f"all {n} rows of the embeddings {are} NaN or infinite values: none is left"
            raise InputError(msg)
        self.n_rows = n
        """Rows of the source."""
        self.shape: tuple[int, ...] = (n - self.skipped.size, vectors.shape[1])
        # Good rows before each bad one.
        self._before = self.skipped - np.arange(self.skipped.size)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Good rows (m, d)."""
        start, stop = bounds(rows, self.shape[0])
        if start == stop:
            return np.empty((0, self.shape[1]), dtype=np.float32)
        first, last = self.row(start), self.row(stop - 1)
        # Piece by piece: many bad rows may lie between the good ones.
        pieces = [
            self._piece(begin, min(begin + CHUNK_ROWS, last + 1))
            for begin in range(first, last + 1, CHUNK_ROWS)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _piece(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Good rows among begin .. end of the source."""
        content = as_array(self._vectors[begin:end], "embeddings")
        inside = self.skipped[np.searchsorted(self.skipped, begin) : np.searchsorted(self.skipped, end)]
        return np.delete(content, inside - begin, axis=0) if inside.size else content

    def row(self, number: int) -> int:
        """The row of the source of a good row."""
        return number + int(np.searchsorted(self._before, number, side="right"))

    @property
    def kept(self) -> RowArray:
        """The rows of the source of all good rows."""
        return np.delete(np.arange(self.n_rows), self.skipped)

    def place(self, row: int) -> str:
        """File and row number of a row, for messages."""
        place = getattr(self._vectors, "place", None)
        return place(self.row(row)) if place else f"row {self.row(row)} of the source"


def ids_of_rows(ids: Any, vectors: Vectors) -> tuple[Ids, IdArray]:
    """Ids of the rows of a source, and of the rows that a `GoodRows` skips.

    Args:
        ids: as a caller gives them, one for each row of the source.
        vectors: the result of `open_vectors`.

    Raises:
        InputError: as `Ids.from_user`.
    """
    if not isinstance(vectors, GoodRows):
        return Ids.from_user(ids, vectors.shape[0]), np.empty(0, dtype=np.int64)
    whole = Ids.from_user(ids, vectors.n_rows)
    return (whole.subset(vectors.kept) if vectors.skipped.size else whole), whole.of(vectors.skipped)
