"""Files of rows of one size, one after the other: .npy, .fvecs, .bvecs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError
from compressae_index.sources.arrays import wrapped
from compressae_index.sources.base import TypedVectors, bounds, floating


class FlatFile:
    """Rows of a file, opened for each read.

    It is not memory-mapped: pages of a map count as this process's memory, and a file that is cut short
    under a map ends the process instead of raising an error.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: npt.DTypeLike,
        *,
        offset: int = 0,
        prefixed: bool = False,
    ) -> None:
        """From where the first row begins, and whether an int32 with its dimension is before each row."""
        self.shape: tuple[int, ...] = shape
        self._path = path
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._offset = offset
        self._prefix = 4 if prefixed else 0

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d) of the file's dtype, of float32 where that is uint8.

        Raises:
            FormatError: the file is shorter than it was, or a row is of another dimension.
        """
        start, stop = bounds(rows, self.shape[0])
        dim = self.shape[1]
        row_bytes = self._prefix + dim * self.dtype.itemsize
        content = np.empty((stop - start, row_bytes), dtype=np.uint8)
        read = self._read(self._offset + start * row_bytes, content.data.cast("B")) if content.size else 0
        if read != content.nbytes:
            msg = f"{self._path} ends within row {start + read // row_bytes} of {self.shape[0]}"
            raise FormatError(msg)
        if self._prefix:
            dims = content[:, :4].copy().view("<i4")[:, 0]
            other = np.flatnonzero(dims != dim)
            if other.size:
                row = start + other[0]
                msg = f"{self._path}: rows differ in dimension, the first has {dim}, row {row} not"
                raise FormatError(msg)
        return floating(content[:, self._prefix :].view(self.dtype))

    def _read(self, begin: int, into: memoryview) -> int:
        """Bytes of the file from `begin` on; gives how many there were."""
        with self._path.open("rb") as file:
            file.seek(begin)
            return file.readinto(into)


def open_npy(path: Path, _dataset: str = "") -> TypedVectors:
    """A .npy file of two dimensions."""
    header = np.lib.format.open_memmap(path, mode="r")  # a map of which no page is touched
    if header.ndim == 2 and header.flags.c_contiguous:
        return FlatFile(path, header.shape, header.dtype, offset=header.offset)
    vectors: TypedVectors = wrapped(header)
    return vectors


def open_fvecs(path: Path, _dataset: str) -> TypedVectors:
    """Each row is an int32 d, the same in every row, followed by d float32, little-endian."""
    return _open_vecs(path, "<f4")


def open_bvecs(path: Path, _dataset: str) -> TypedVectors:
    """Each row is a little-endian int32 d, the same in every row, followed by d uint8."""
    return _open_vecs(path, "u1")


def _open_vecs(path: Path, dtype: str) -> TypedVectors:
    size = path.stat().st_size
    dim = int(np.fromfile(path, dtype="<i4", count=1)[0]) if size >= 4 else 0
    row_bytes = 4 + dim * np.dtype(dtype).itemsize
    if dim < 1 or size % row_bytes:
        msg = (
            f"{path} is not a whole number of {path.suffix[1:]} rows: {size} bytes, first dimension {dim}; "
            "it is truncated, or its rows differ in dimension"
        )
        raise FormatError(msg)
    vectors = FlatFile(path, (size // row_bytes, dim), dtype, prefixed=True)
    # Every row is checked when it is read; here, what one look can find.
    last = vectors.shape[0] - 1
    vectors[last : last + 1]
    return vectors
