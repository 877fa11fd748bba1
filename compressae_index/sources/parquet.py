"""Parquet files with a list column."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from compressae_index.errors import MissingExtraError
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import Concatenated, TypedVectors
from compressae_index.sources.columns import ListColumn

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
        self._file = file
        self._column = ListColumn(file.schema_arrow, path, column, nan_rows=nan_rows)
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        # Read only the first rows, not a row group: a folder may hold thousands of files.
        batches = file.iter_batches(batch_size=16, columns=[self._column.name])
        dim, self.dtype = self._column.width_and_dtype(batch.column(0) for batch in batches)
        super().__init__(lengths, dim, self._read_group)

    def _read_group(self, group: int) -> npt.NDArray[Any]:
        table = self._file.read_row_group(group, columns=[self._column.name])
        return self._column.rows(table.column(0), self.shape[1], self._starts[group])
