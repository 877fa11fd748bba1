"""Columns of fields, in the forms that callers have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressae_index.errors import InputError


def as_columns(fields: Any) -> dict[str, list[Any]]:
    """Columns by name as lists of plain Python values, with None for null.

    Args:
        fields: a mapping of names to columns (lists, tuples, arrays, series), a data frame of pandas or
            polars, or an Arrow table. Missing values of pandas are null.

    Raises:
        InputError: fields or a column are of another type.
    """
    if hasattr(fields, "to_pydict"):  # Arrow
        columns: Any = fields.to_pydict()
    elif isinstance(fields, Mapping):
        columns = fields
    elif hasattr(fields, "columns") and hasattr(fields, "__getitem__"):  # pandas, polars
        columns = {name: fields[name] for name in fields.columns}
    else:
        msg = (
            "fields must be a mapping of names to columns, a data frame or an Arrow table, "
            f"got {type(fields).__name__}"
        )
        raise InputError(msg)
    for name in columns:
        if not isinstance(name, str) or not name:
            msg = f"names of fields must be strings, got {name!r}"
            raise InputError(msg)
    return {str(name): _column(values, name) for name, values in columns.items()}


def _column(values: Any, name: str) -> list[Any]:
    if hasattr(values, "isna") and hasattr(values, "astype"):  # a series of pandas
        values = values.astype(object).where(~values.isna(), None)
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        msg = f"field {name!r} must be a column of values, one a vector, got {type(values).__name__}"
        raise InputError(msg)
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """A value without numpy's types, which pymilvus does not accept everywhere."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value
