"""Parquet files with a list column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.conversion import arrow_lengths, arrow_rows, is_arrow_list, width_of
from compressae_index.errors import FormatError, InputError, MissingExtraError
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import Concatenated, TypedVectors, floating

# Bytes to read from a column at a time; without a limit, one row would cost its whole row group.
_BUFFER_BYTES = 1 << 20
# The same from a store, where each read waits for an answer.
_REQUEST_BYTES = 4 << 20


def open_parquet(path: Place, column: str, *, nan_rows: bool = False) -> TypedVectors:
    """A list column of a Parquet file; with nan_rows, null and uneven rows are rows of NaN."""
    return ParquetVectors(parquet_file(path), path, column, nan_rows=nan_rows)


def parquet_file(path: Place) -> Any:
    """A Parquet file, open.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", f"reading {path.name}") from error
    # Buffering ahead, the default, would read the column of all row groups for its first rows.
    if isinstance(path, RemotePath):
        return pq.ParquetFile(path.raw(), buffer_size=_REQUEST_BYTES, pre_buffer=False)
    return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


class ParquetVectors(Concatenated):
    """A list column of a Parquet file, read one row group at a time."""

    def __init__(self, file: Any, path: Place, column: str, *, nan_rows: bool) -> None:
        self._file, self._path, self._nan_rows = file, path, nan_rows
        self._column = _list_column(file, path, column)
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        # Read only the first rows, not a row group: a folder may hold thousands of files.
        heads = (batch.column(0) for batch in file.iter_batches(batch_size=16, columns=[self._column]))
        head = next((head for head in heads if head.null_count < len(head)), None)
        first = np.empty((0, 0), dtype=np.float32)
        if head is not None:
            row = int(np.flatnonzero(arrow_lengths(head) >= 0)[0])
            first = arrow_rows(head[row : row + 1], width_of(arrow_lengths(head)), "")
        self.dtype: np.dtype[Any] = first.dtype
        super().__init__(lengths, first.shape[1], self._read_group)

    def _read_group(self, group: int) -> npt.NDArray[Any]:
        parts, first = [], self._starts[group]
        for rows in self._file.read_row_group(group, columns=[self._column]).column(0).chunks:
            parts.append(self._as_rows(rows, first))
            first += len(rows)
        return floating(np.concatenate(parts))

    def _as_rows(self, column: Any, first_row: int) -> npt.NDArray[Any]:
        name = f"{self._path}: rows of column {self._column!r} differ in length or are null"
        try:
            return arrow_rows(column, self.shape[1], name, first_row, nan_rows=self._nan_rows)
        except InputError as error:
            raise FormatError(str(error)) from error


def _list_column(file: Any, path: Place, column: str) -> str:
    lists = [field.name for field in file.schema_arrow if is_arrow_list(field.type)]
    if column in lists:
        return column
    if len(lists) != 1:
        found = ", ".join(lists) or "none"
        msg = f"{path}: expected one list column, or one named {column!r}; list columns: {found}"
        raise FormatError(msg)
    return str(lists[0])
