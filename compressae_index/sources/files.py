"""A file of embeddings, which must not change while it is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import TypedVectors, floating, reading
from compressae_index.sources.lance import SUFFIX, VERSIONS


class Mark(NamedTuple):
    """Tells a file from one that replaces it."""

    identity: tuple[object, ...]
    """The file's number, size and time, or an object's version; of a dataset, its newest version."""
    dtype: np.dtype[Any]
    """dtype of the rows; times alone are too coarse for a file rewritten at once."""


class SourceFile:
    """Rows of a file; each read checks that the file has not changed."""

    def __init__(self, path: Place, open_file: Callable[[Place], TypedVectors]) -> None:
        """Opens the file.

        Raises:
            FormatError: it cannot be read.
            StorageError: the system refuses.
        """
        self._path = path
        with reading(path):
            identity = _identity(path)
            self._rows = open_file(path)
        self.shape: tuple[int, ...] = tuple(self._rows.shape)
        self.dtype: np.dtype[Any] = self._rows.dtype
        self.mark = Mark(identity, self.dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d) of the file's dtype, or float32 for uint8.

        Raises:
            FormatError: the file has changed, is gone, or is damaged.
            StorageError: the system refuses.
        """
        with reading(self._path):
            content = floating(np.asarray(self._rows[rows]))
            now = Mark(_identity(self._path), self.dtype)
        self.check_same(now)
        return content

    def check_same(self, mark: Mark) -> None:
        """Checks that the file still has the mark it had when it was opened.

        Raises:
            FormatError: it has another.
        """
        if mark != self.mark:
            msg = f"{self._path} changed since it was opened: open it again, when nothing writes to it"
            raise FormatError(msg)

    def place(self, row: int) -> str:
        """File and row number of a row, for messages."""
        return f"row {row} of {self._path}"


def _identity(path: Place) -> tuple[object, ...]:
    if path.suffix.lower() == SUFFIX:
        path = path / VERSIONS  # which gets a file with every change of the dataset
    if isinstance(path, RemotePath):
        return path.identity()
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
