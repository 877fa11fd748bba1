"""Conversion of arguments to numpy arrays: the one place that knows pandas, polars, Arrow, torch and DLPack.

None of them is imported here. Their objects are recognised by methods, or by the module of their type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, ValuesView
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.errors import InputError

Array = npt.NDArray[Any]

# Types that numpy reads from a list unchanged.
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
# Errors of other libraries that cannot give an array.
_FOREIGN_ERRORS = (TypeError, ValueError, RuntimeError, BufferError, OverflowError, NotImplementedError)


def as_array(values: Any, name: str, *, nan_rows: bool = False) -> Array:
    """Values as an array.

    Args:
        values: an array of any library, nested lists, a table or a column of one whose entries are lists, or
            an iterator of such rows. Positions count, not labels. Tensors are detached and copied to the
            host; torch's bfloat16 becomes float32. Strings become objects, so that they stay exact.
        name: what to call the values in messages.
        nan_rows: rows that are missing, or of another length than the first, become rows of NaN.

    Raises:
        InputError: they are masked, sparse, ragged or otherwise no array, with what to call.
    """
    try:
        array = _array_of(_plain(values, name, nan_rows))
        return _from_objects(array, name, nan_rows) if array.dtype == object else array
    except InputError:
        raise
    except _FOREIGN_ERRORS as error:
        msg = f"{name} cannot be read as an array: {error}"
        raise InputError(msg) from error


def as_list(values: Iterable[Any]) -> list[Any]:
    """The entries of a list, an array, or a column of any library, by position, as Python has them."""
    for call in ("to_pylist", "to_list", "tolist"):  # of Arrow; of pandas and polars; of numpy
        if hasattr(values, call):
            return list(getattr(values, call)())
    return list(values)


def must_be_read_at_once(values: Any) -> bool:
    """Whether slices of the values may not be rows by position, so that they must be converted as a whole."""
    if isinstance(values, np.ndarray):
        return isinstance(values, np.ma.MaskedArray) or values.dtype == object
    nested = bool(getattr(values, "is_nested", False))  # of torch
    return hasattr(values, "to_numpy") or _library(values) == "pyarrow" or _is_sparse(values) or nested


def is_float(dtype: Any) -> bool:
    """Whether a numpy dtype is floating point, including those of ml_dtypes."""
    small = dtype.kind == "V" and dtype.names is None and dtype.name.startswith(("bfloat", "float"))
    return bool(dtype.kind == "f" or small)


def is_missing(value: Any) -> bool:
    """Whether an entry is None, NaN, masked, or pandas.NA."""
    return value is None or value is np.ma.masked or (np.ndim(value) == 0 and _differs_from_itself(value))


def _differs_from_itself(value: Any) -> bool:
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither
        return True


def _plain(values: Any, name: str, nan_rows: bool) -> Any:
    """Values that numpy can read: an array or lists, with nothing masked or of another library inside."""
    if isinstance(values, np.ndarray):
        if isinstance(values, np.ma.MaskedArray):
            msg = f"{name} are masked, and the mask would be lost: leave masked rows out, or call .filled()"
            raise InputError(msg)
        return np.asarray(values) if values.dtype != object or values.ndim != 1 else _plain_list(values, name)
    if isinstance(values, np.generic):
        return values
    if isinstance(values, (list, tuple)):
        return values if set(map(type, values)) <= _PLAIN else _plain_list(values, name)
    if isinstance(values, (Iterator, KeysView, ValuesView)):
        return _plain(list(values), name, nan_rows)
    if _is_sparse(values):
        call = next(each for each in ("toarray", "to_dense", "todense") if hasattr(values, each))
        msg = f"{name} are sparse ({type(values).__name__}): call .{call}()"
        raise InputError(msg)
    if hasattr(values, "detach"):
        return _of_tensor(values)
    if _library(values) == "pyarrow":
        return _of_arrow(values, name, nan_rows)
    if hasattr(values, "to_numpy"):
        return _of_pandas(values, name)
    if hasattr(values, "__cuda_array_interface__"):
        return values.get() if hasattr(values, "get") else values.copy_to_host()
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        return np.from_dlpack(values)
    return values


def _plain_list(values: Iterable[Any], name: str) -> list[Any]:
    return [value if type(value) in _PLAIN else _plain(value, name, nan_rows=False) for value in values]


def _library(values: Any) -> str:
    return type(values).__module__.partition(".")[0]


def _is_sparse(values: Any) -> bool:
    if hasattr(values, "layout") and hasattr(values, "detach"):
        return str(values.layout) not in ("torch.strided", "torch.jagged")
    return hasattr(values, "nnz") and (hasattr(values, "toarray") or hasattr(values, "todense"))


def _of_tensor(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    if getattr(tensor, "is_quantized", False):
        tensor = tensor.dequantize()
    # numpy lacks these dtypes.
    if str(tensor.dtype).removeprefix("torch.").startswith(("bfloat", "float8", "float4")):
        tensor = tensor.float()
    return tensor.numpy()


def _of_pandas(values: Any, name: str) -> Any:
    """A column or a table of pandas, polars, or any library with their methods."""
    array = np.asarray(values.to_numpy())
    if array.dtype != object:
        return array
    if array.ndim == 2 and array.shape[1] == 1:
        return _plain_list(array[:, 0], name)
    if array.ndim == 2 and not _numbers(array):
        raise InputError(_which_column(name, values.columns))
    return _plain_list(array, name) if array.ndim == 1 else array


def _which_column(name: str, columns: Iterable[Any]) -> str:
    names = [str(column) for column in columns]
    held = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return (
        f"{name} are a table of the columns {held}: pass the column that holds them, as table[{names[-1]!r}]"
    )


def _of_arrow(values: Any, name: str, nan_rows: bool) -> Any:
    if hasattr(values, "as_py"):
        return values.as_py()
    if hasattr(values, "column_names"):
        columns = values.columns
        if len(columns) == 1 and is_arrow_list(columns[0].type):
            return _of_arrow(columns[0], name, nan_rows)
        array = np.asarray(values)
        if array.dtype == object:
            raise InputError(_which_column(name, values.column_names))
        return array
    if not is_arrow_list(values.type):
        array = np.asarray(values)
        return _plain_list(array, name) if array.dtype == object else array
    rows, first, dim = [], 0, None
    for chunk in getattr(values, "chunks", [values]):
        dim = width_of(arrow_lengths(chunk)) if dim is None else dim
        rows.append(arrow_rows(chunk, dim, name, first, nan_rows=nan_rows))
        first += len(chunk)
    return np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.float32)


def is_arrow_list(kind: Any) -> bool:
    """Whether an Arrow type is a list type, or an extension type stored as one."""
    return str(getattr(kind, "storage_type", kind)).partition("<")[0] in {
        "list",
        "large_list",
        "fixed_size_list",
        "list_view",
        "large_list_view",
    }


def arrow_lengths(column: Any) -> npt.NDArray[np.int64]:
    """Lengths of the lists of an Arrow array, -1 for null: (n,)."""
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.list_value_length(_storage(column)), -1), dtype=np.int64)


def _storage(column: Any) -> Any:
    """The lists behind an extension type, such as that of tensors of one shape."""
    return getattr(column, "storage", column)


def width_of(lengths: npt.NDArray[np.int64]) -> int | None:
    """The length of the first row that is not null."""
    there = np.flatnonzero(lengths >= 0)
    return int(lengths[there[0]]) if there.size else None


def arrow_rows(
    column: Any, dim: int | None, name: str, first_row: int = 0, *, nan_rows: bool = False
) -> Array:
    """Lists of an Arrow array as rows (n, dim); null and uneven rows are errors, or rows of NaN.

    Args:
        column: an Array of lists.
        dim: numbers in each row; None if no row is known.
        name: what to call the rows in messages.
        first_row: number of the first row in messages.
        nan_rows: as for `as_array`.

    Raises:
        InputError: a row is null or of another length.
    """
    column = _storage(column)
    lengths, dim = arrow_lengths(column), dim or 0
    good = lengths == dim
    if not good.all():
        if not nan_rows:
            raise InputError(_uneven(lengths, dim, name, first_row))
        import pyarrow as pa

        column = column.filter(pa.array(good))
    values = np.asarray(column.flatten()).reshape(int(good.sum()), dim)
    return values if good.all() else _spread(values, good)


def column_vectors(values: Any, dim: int, name: str) -> tuple[Array, npt.NDArray[np.int64]]:
    """A column of vectors as rows, of which any may be missing or of another length.

    Args:
        values: a column of lists of Arrow, an array (n, dim), an array or a list of rows.
        dim: numbers in a row.
        name: what to call the column in messages.

    Returns:
        (n, dim) rows, NaN where a vector is missing or of another length, and (n,) lengths, -1 if missing.

    Raises:
        InputError: the column does not hold vectors.
    """
    if _library(values) == "pyarrow" and not is_arrow_list(values.type):
        values = values.to_pylist()  # of nulls alone, or no vectors
    if _library(values) == "pyarrow":
        chunks = getattr(values, "chunks", [values])
        parts = [(arrow_rows(each, dim, name, nan_rows=True), arrow_lengths(each)) for each in chunks]
        if not parts:
            return np.empty((0, dim), dtype=np.float32), np.empty(0, dtype=np.int64)
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([lengths for _, lengths in parts])
    try:
        array = as_array(values, name)
    except InputError:  # uneven, unless the rows below say otherwise
        array = np.empty(0, dtype=object)
    if array.dtype != object and array.ndim == 2:
        good = np.full(len(array), array.shape[1] == dim)
        rows = array if good.all() else _spread(np.empty((0, dim), array.dtype), good)
        return rows, np.full(len(array), array.shape[1], dtype=np.int64)
    return _spread_rows([None if is_missing(row) else as_array(row, name) for row in values], dim, name)


def _spread_rows(rows: list[Array | None], dim: int, name: str) -> tuple[Array, npt.NDArray[np.int64]]:
    for number, row in enumerate(rows):
        if row is not None and row.ndim != 1:
            msg = f"{name} must hold vectors, but its row {number} has shape {row.shape}"
            raise InputError(msg)
    lengths = np.array([-1 if row is None else len(row) for row in rows], dtype=np.int64)
    fit = [row for row in rows if row is not None and len(row) == dim]
    return _spread(np.array(fit) if fit else np.empty((0, dim), np.float32), lengths == dim), lengths


def _uneven(lengths: npt.NDArray[np.int64], dim: int, name: str, first_row: int) -> str:
    row = int(np.flatnonzero(lengths != dim)[0])
    what = "is missing" if lengths[row] < 0 else f"holds {lengths[row]} numbers, the first {dim}"
    return f"{name}: row {first_row + row} {what} ({int((lengths != dim).sum())} such rows)"


def _spread(values: Array, good: npt.NDArray[np.bool_]) -> Array:
    """The rows at the good places, NaN at the others."""
    floats = values.dtype if is_float(values.dtype) else np.dtype(np.float32)
    rows = np.full((len(good), values.shape[1]), np.nan, dtype=floats)
    rows[good] = values
    return rows


def _array_of(plain: Any) -> Array:
    """An array from the result of `_plain`; of objects if numpy would change the values."""
    if not isinstance(plain, (list, tuple)):
        return np.asarray(plain)
    types = set(map(type, plain))
    # numpy would turn numbers into text, lose its trailing NULs, and turn booleans into numbers.
    if any(issubclass(kind, str) for kind in types) or (bool in types and len(types) > 1):
        return np.fromiter(plain, dtype=object, count=len(plain))
    try:
        array = np.asarray(plain)
    except (ValueError, TypeError):  # ragged
        if not types & {list, tuple, np.ndarray}:
            raise
        return np.fromiter(plain, dtype=object, count=len(plain))
    if types == {int} and array.dtype.kind == "f":  # beyond int64
        return np.fromiter(plain, dtype=object, count=len(plain))
    return array


def _numbers(array: Array) -> bool:
    return all(
        issubclass(kind, (int, float, np.integer, np.floating, type(None))) and not issubclass(kind, bool)
        for kind in set(map(type, array.ravel()))
    )


def _from_objects(array: Array, name: str, nan_rows: bool) -> Array:
    """Objects converted to their common kind: rows, booleans, integers or numbers; others unchanged."""
    types = set(map(type, array.ravel()))
    if array.ndim == 1 and types & {np.ndarray, list, tuple}:
        return _stacked(list(array), name, nan_rows)
    if types and types <= {bool, np.bool_}:
        return array.astype(bool)
    if types and all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in types):
        try:
            return array.astype(np.int64)
        except OverflowError:
            return array
    if types - {type(None)} and _numbers(array) and (array.ndim == 2 or type(None) not in types):
        return array.astype(np.float64)  # None becomes NaN, which is then reported with its row
    return array


def _stacked(rows: list[Any], name: str, nan_rows: bool) -> Array:
    lengths = np.array([-1 if is_missing(row) else np.size(row) for row in rows], dtype=np.int64)
    dim = width_of(lengths) or 0
    good = lengths == dim
    if not good.all() and not nan_rows:
        msg = f"{name} cannot be read as an array: {_uneven(lengths, dim, 'rows differ', 0)}"
        raise InputError(msg)
    stacked = np.array([np.asarray(row) for row, is_good in zip(rows, good, strict=True) if is_good])
    return stacked if good.all() else _spread(stacked, good)
