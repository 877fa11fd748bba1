"""Lance datasets with a list column: folders whose name ends in .lance, here or in a store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index.errors import InputError, MissingExtraError
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import TypedVectors, bounds
from compressae_index.sources.columns import ListColumn

T = TypeVar("T")

SUFFIX = ".lance"
# Where a dataset keeps a manifest for each of its versions.
VERSIONS = "_versions"


def open_lance(path: Place, column: str, *, nan_rows: bool = False) -> TypedVectors:
    """A list column of the newest version of a dataset; with nan_rows, null and uneven rows are NaN."""
    return LanceVectors(lance_dataset(path), path, column, nan_rows=nan_rows)


def lance_dataset(path: Place) -> Any:
    """A Lance dataset, at the version that is its newest now.

    Raises:
        MissingExtraError: pylance is not installed.
        InputError: an address with credentials, which Lance takes from the environment only.
        OSError, ValueError: it cannot be opened.
    """
    try:
        import lance
    except ImportError as error:
        raise MissingExtraError("pylance", "lance", f"reading {path.name}") from error
    if isinstance(path, RemotePath) and "@" in os.fspath(path):
        msg = f"{path}: Lance takes credentials from the environment, not from an address"
        raise InputError(msg)
    return _asked(path, lambda: lance.dataset(os.fspath(path)))


def _asked(path: Place, act: Callable[[], T]) -> T:
    """Asks Lance, whose errors hold lines of its source, and may hold requests to a store."""
    try:
        return act()
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).partition(", /")[0]
        if "not found" in text.lower():
            failure: Exception = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        elif isinstance(path, RemotePath):
            failure = path.in_words(error)
        else:
            failure = ValueError(text)
    raise failure  # outside of the block, so that Lance's error is not its context


class LanceVectors:
    """A list column of a Lance dataset, read by offsets."""

    def __init__(self, dataset: Any, path: Place, column: str, *, nan_rows: bool) -> None:
        self._dataset, self._path = dataset, path
        self._column = ListColumn(dataset.schema, path, column, nan_rows=nan_rows)
        scanner = dataset.scanner(columns=[self._column.name], batch_size=16, batch_readahead=1)
        dim, dtype = self._column.width_and_dtype(batch.column(0) for batch in scanner.to_batches())
        self.dtype: np.dtype[Any] = dtype
        self.shape: tuple[int, ...] = (dataset.count_rows(), dim)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d)."""
        start, stop = bounds(rows, self.shape[0])
        if start == stop:
            return np.empty((0, self.shape[1]), dtype=self.dtype)
        scanner = self._dataset.scanner(columns=[self._column.name], offset=start, limit=stop - start)
        table = _asked(self._path, scanner.to_table)
        return self._column.rows(table.column(0), self.shape[1], start)
