"""A file of embeddings that must stay what it was when it was opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError
from compressae_index.sources.base import TypedVectors, floating, reading


class Mark(NamedTuple):
    """What tells a file from another one that takes its place."""

    inode: int
    size: int
    changed_ns: int
    dtype: np.dtype[Any]
    """Of its rows; times are too coarse for what is written at once again."""


class SourceFile:
    """Rows of a file, which is compared with what it was whenever some were read."""

    def __init__(self, path: Path, open_file: Callable[[Path], TypedVectors]) -> None:
        """Opens the file.

        Raises:
            FormatError: it cannot be read.
            StorageError: the system refuses.
        """
        self._path = path
        with reading(path):
            status = path.stat()
            self._rows = open_file(path)
        self.shape: tuple[int, ...] = tuple(self._rows.shape)
        self.dtype: np.dtype[Any] = self._rows.dtype
        self.mark = _mark(status, self.dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d) of the file's dtype, of float32 where that is uint8.

        Raises:
            FormatError: the file is another than it was, gone, or damaged.
            StorageError: the system refuses.
        """
        with reading(self._path):
            content = floating(np.asarray(self._rows[rows]))
            now = _mark(self._path.stat(), self.dtype)
        self.check_same(now)
        return content

    def check_same(self, mark: Mark) -> None:
        """Refuses another mark than that of this file as it was opened.

        Raises:
            FormatError: they differ.
        """
        if mark != self.mark:
            msg = f"{self._path} changed since it was opened: open it again, when nothing writes to it"
            raise FormatError(msg)

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"row {row} of {self._path}"


def _mark(status: Any, dtype: np.dtype[Any]) -> Mark:
    return Mark(status.st_ino, status.st_size, status.st_mtime_ns, dtype)
