"""A list column of an Arrow table as rows, wherever the table comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.conversion import arrow_lengths, arrow_rows, is_arrow_list, width_of
from compressae_index.errors import FormatError, InputError
from compressae_index.remote import Place
from compressae_index.sources.base import floating


class ListColumn:
    """The list column of a table that holds the vectors."""

    def __init__(self, schema: Any, path: Place, column: str, *, nan_rows: bool) -> None:
        """Takes the only list column of a schema, or the one of this name.

        Args:
            schema: an Arrow schema.
            path: where the table is, for messages.
            column: the name.
            nan_rows: null and uneven rows are rows of NaN instead of errors.

        Raises:
            FormatError: there is no such column.
        """
        self._path, self._nan_rows = path, nan_rows
        lists = [field.name for field in schema if is_arrow_list(field.type)]
        if column not in lists and len(lists) != 1:
            found = ", ".join(lists) or "none"
            msg = f"{path}: expected one list column, or one named {column!r}; list columns: {found}"
            raise FormatError(msg)
        self.name = column if column in lists else str(lists[0])

    def width_and_dtype(self, heads: Iterable[Any]) -> tuple[int, np.dtype[Any]]:
        """Dimension and dtype of the rows, from the first Arrow array that is not all null."""
        head = next((head for head in heads if head.null_count < len(head)), None)
        first = np.empty((0, 0), dtype=np.float32)
        if head is not None:
            row = int(np.flatnonzero(arrow_lengths(head) >= 0)[0])
            first = arrow_rows(head[row : row + 1], width_of(arrow_lengths(head)), "")
        return first.shape[1], first.dtype

    def rows(self, column: Any, dim: int, first_row: int) -> npt.NDArray[Any]:
        """Rows (m, dim) of a chunked array, whose first row has this number in messages.

        Raises:
            FormatError: a row is null or of another length.
        """
        parts = [np.empty((0, dim), dtype=np.float32)] if not column.num_chunks else []
        for chunk in column.chunks:
            parts.append(self._chunk(chunk, dim, first_row))
            first_row += len(chunk)
        return floating(np.concatenate(parts))

    def _chunk(self, column: Any, dim: int, first_row: int) -> npt.NDArray[Any]:
        name = f"{self._path}: rows of column {self.name!r} differ in length or are null"
        try:
            return arrow_rows(column, dim, name, first_row, nan_rows=self._nan_rows)
        except InputError as error:
            raise FormatError(str(error)) from error
