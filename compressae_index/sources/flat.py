"""Files of consecutive rows of one size: .npy, .fvecs, .bvecs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError
from compressae_index.npy import read_header
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import bounds, floating, reading

ReadAt: TypeAlias = Callable[[int, memoryview], int]
"""Reads bytes from a place in a file on; returns how many."""

# Bytes a read: some systems read no more than 2 GiB.
_READ_BYTES = 1 << 30


class FlatFile:
    """Rows of a file, opened for each read.

    Not memory-mapped: pages of a map count as this process's memory, and a file truncated under a map kills
    the process instead of raising an error.
    """

    def __init__(
        self,
        path: Place,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        head: bytes = b"",
        prefixed: bool = False,
        by_column: bool = False,
    ) -> None:
        """From the file's header and the layout of its numbers.

        Args:
            path: the file.
            shape: (n, d).
            dtype: dtype of the numbers.
            head: the bytes before the first row, which must not change.
            prefixed: an int32, the dimension, precedes each row.
            by_column: the numbers are in Fortran order.
        """
        self.shape = shape
        self._path = path
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._head = head
        self._prefix = 4 if prefixed else 0
        self._by_column = by_column

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d) of the file's dtype, or float32 for uint8.

        Raises:
            FormatError: the file is gone, truncated, or has another header, or a row has another dimension.
            StorageError: the system refuses.
        """
        start, stop = bounds(rows, self.shape[0])
        with reading(self._path), self._opened() as file:
            # An object has a version, which tells more than its header.
            if self._head and not isinstance(self._path, RemotePath):
                self._check_head(file)
            read = self._columns if self._by_column else self._rows
            return floating(read(file, start, stop))

    def _check_head(self, read: ReadAt) -> None:
        head = bytearray(len(self._head))
        if read(0, memoryview(head)) < len(head) or head != self._head:
            msg = f"{self._path} changed since it was opened: its header is another one"
            raise FormatError(msg)

    def _rows(self, read_at: ReadAt, start: int, stop: int) -> npt.NDArray[Any]:
        dim = self.shape[1]
        row_bytes = self._prefix + dim * self.dtype.itemsize
        content = np.empty((stop - start, row_bytes), dtype=np.uint8)
        read = read_at(len(self._head) + start * row_bytes, content.data.cast("B")) if content.size else 0
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
        return content[:, self._prefix :].view(self.dtype)

    def _columns(self, read_at: ReadAt, start: int, stop: int) -> npt.NDArray[Any]:
        n, dim = self.shape
        size = self.dtype.itemsize
        content = np.empty((dim, (stop - start) * size), dtype=np.uint8)
        for number, column in enumerate(content if content.size else ()):
            begin = len(self._head) + (number * n + start) * size
            if read_at(begin, column.data) != column.nbytes:
                msg = f"{self._path} ends within column {number} of {dim}"
                raise FormatError(msg)
        return content.view(self.dtype).T

    @contextmanager
    def _opened(self) -> Iterator[ReadAt]:
        """Opens the file for one read."""
        if isinstance(self._path, RemotePath):
            yield self._path.read_at
            return
        with self._path.open("rb") as file:
            yield partial(read_at, file.fileno())


def read_at(descriptor: int, begin: int, into: memoryview) -> int:
    """Reads bytes of a file from `begin` on; returns how many it read.

    Does not move the file position, which threads and forked processes may share.
    """
    read = 0
    while piece := os.pread(descriptor, min(len(into) - read, _READ_BYTES), begin + read):
        into[read : read + len(piece)] = piece
        read += len(piece)
    return read


def open_npy(path: Place, _dataset: str = "") -> FlatFile:
    """A .npy file of two dimensions."""
    if isinstance(path, RemotePath):
        with path.open("rb") as file:
            stored = read_header(file, path)
            file.seek(0)
            start = file.read(stored.offset)
        by_column = len(stored.shape) == 2 and stored.fortran_order
        return FlatFile(path, stored.shape, stored.dtype, head=start, by_column=by_column)
    header = np.lib.format.open_memmap(path, mode="r")  # no page of the map is touched
    by_column = header.ndim == 2 and not header.flags.c_contiguous
    with path.open("rb") as file:
        head = file.read(header.offset)
    return FlatFile(path, header.shape, header.dtype, head=head, by_column=by_column)


def open_fvecs(path: Place, _dataset: str) -> FlatFile:
    """Each row is an int32 d, the same in every row, followed by d float32, little-endian."""
    return _open_vecs(path, "<f4")


def open_bvecs(path: Place, _dataset: str) -> FlatFile:
    """Each row is a little-endian int32 d, the same in every row, followed by d uint8."""
    return _open_vecs(path, "u1")


def _open_vecs(path: Place, dtype: str) -> FlatFile:
    with path.open("rb") as file:
        first, size = file.read(4), file.seek(0, os.SEEK_END)
    dim = int.from_bytes(first, "little", signed=True) if size >= 4 else 0
    row_bytes = 4 + dim * np.dtype(dtype).itemsize
    if dim < 1 or size % row_bytes:
        msg = (
            f"{path} is not a whole number of {path.suffix[1:]} rows: {size} bytes, first dimension {dim}; "
            "it is truncated, or its rows differ in dimension"
        )
        raise FormatError(msg)
    vectors = FlatFile(path, (size // row_bytes, dim), dtype, prefixed=True)
    # Every row is checked when it is read; this is a cheap check up front.
    last = vectors.shape[0] - 1
    vectors[last : last + 1]
    return vectors
