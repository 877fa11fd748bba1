"""Columns of any kind in Parquet files and Lance datasets: ids, texts, metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compressae_index.arrays import RowArray
from compressae_index.errors import FormatError, InputError
from compressae_index.remote import Place
from compressae_index.sources.lance import lance_dataset
from compressae_index.sources.parquet import parquet_file

if TYPE_CHECKING:
    import pyarrow as pa


class Table(Protocol):
    """A table in a file, of which only what is asked for is read."""

    @property
    def schema(self) -> Any:
        """Names and types of the columns, as Arrow has them."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def read(self, columns: list[str]) -> pa.Table:
        """Whole columns."""
        ...

    def take(self, rows: RowArray, columns: list[str]) -> pa.Table:
        """Some rows of columns, by ascending numbers."""
        ...


class _ParquetTable:
    def __init__(self, path: Place) -> None:
        self._file = parquet_file(path)
        self.schema = self._file.schema_arrow

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def read(self, columns: list[str]) -> pa.Table:
        return self._file.read(columns=columns)

    def take(self, rows: RowArray, columns: list[str]) -> pa.Table:
        """Reads the row groups that hold one of the rows."""
        import pyarrow as pa

        metadata = self._file.metadata
        lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        begins = np.cumsum([0, *lengths])
        group_of = np.searchsorted(begins, rows, side="right") - 1
        parts = [self.schema.empty_table().select(columns)]
        for group in np.unique(group_of).tolist():
            table = self._file.read_row_group(group, columns=columns).select(columns)
            parts.append(table.take(rows[group_of == group] - begins[group]))
        return pa.concat_tables(parts)


class _LanceTable:
    def __init__(self, path: Place) -> None:
        self._dataset = lance_dataset(path)
        self.schema = self._dataset.schema

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def read(self, columns: list[str]) -> pa.Table:
        return self._dataset.to_table(columns=columns)

    def take(self, rows: RowArray, columns: list[str]) -> pa.Table:
        return self._dataset.take(rows.tolist(), columns=columns)


_KINDS: dict[str, Callable[[Place], Table]] = {".parquet": _ParquetTable, ".lance": _LanceTable}


def is_table(path: Place) -> bool:
    """Whether a path is named as a table is."""
    return path.suffix.lower() in _KINDS


def open_table(path: Place, columns: Sequence[str]) -> Table:
    """A table that has some columns.

    Raises:
        InputError: the path is not named as a table is.
        FormatError: it has no such column.
        MissingExtraError: the package that reads it is not installed.
    """
    if not is_table(path):
        msg = f"columns are read from Parquet files and Lance datasets, got {path}"
        raise InputError(msg)
    table = _KINDS[path.suffix.lower()](path)
    missing = [name for name in columns if name not in table.schema.names]
    if missing:
        msg = f"{path} holds no column {missing[0]!r}, only: {', '.join(table.schema.names)}"
        raise FormatError(msg)
    return table
