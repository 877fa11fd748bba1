"""Parquet files with a list column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError, MissingExtraError
from compressae_index.sources.base import Concatenated, TypedVectors, floating

# Bytes read from a column at a time; without it, one row would cost reading its whole row group.
_BUFFER_BYTES = 1 << 20


def open_parquet(path: Path, column: str) -> TypedVectors:
    """A list column of a Parquet file."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", f"reading {path.name}") from error
    return ParquetVectors(pq.ParquetFile(path, buffer_size=_BUFFER_BYTES), path, column)


class ParquetVectors(Concatenated):
    """A list column of a Parquet file, read one row group at a time."""

    def __init__(self, file: Any, path: Path, column: str) -> None:
        self._file, self._path = file, path
        self._column = _list_column(file, path, column)
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        first = np.empty((0, 0), dtype=np.float32)
        if sum(lengths):
            # One row, not a group of them: a folder may hold thousands of files.
            head = next(file.iter_batches(batch_size=1, columns=[self._column])).column(0)
            first = self._as_rows(head, len(head.flatten()))
        self.dtype: np.dtype[Any] = first.dtype
        super().__init__(lengths, first.shape[1], self._read_group)

    def _read_group(self, group: int) -> npt.NDArray[Any]:
        try:
            rows = self._file.read_row_group(group, columns=[self._column]).column(0).combine_chunks()
        except (OSError, ValueError) as error:
            msg = f"{self._path} cannot be read: {error}"
            raise FormatError(msg) from error
        return floating(self._as_rows(rows, self.shape[1]))

    def _as_rows(self, column: Any, dim: int) -> npt.NDArray[Any]:
        if column.null_count or not _all_as_long(column, dim):
            msg = f"{self._path}: rows of column {self._column!r} differ in length or are null"
            raise FormatError(msg)
        values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), dim)


def _list_column(file: Any, path: Path, column: str) -> str:
    import pyarrow.types as types

    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    lists = [field.name for field in file.schema_arrow if any(is_kind(field.type) for is_kind in kinds)]
    if column in lists:
        return column
    if len(lists) != 1:
        found = ", ".join(lists) or "none"
        msg = f"{path}: expected one list column, or one named {column!r}; list columns: {found}"
        raise FormatError(msg)
    return str(lists[0])


def _all_as_long(column: Any, length: int) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.equal(pc.list_value_length(column), length)).as_py())
