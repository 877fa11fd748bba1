"""Checks of arguments; each raises InputError before anything is changed."""

from __future__ import annotations

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index._engine import directions, first_without_direction
from compressae_index.arrays import FloatArray
from compressae_index.conversion import as_array, is_float
from compressae_index.errors import DimensionError, InputError
from compressae_index.processes import usable_threads
from compressae_index.remote import Place, RemotePath, is_address, shown

T = TypeVar("T", bound=str)

MAX_THREADS = 4096

# A row whose squares all underflow has no direction in float32.
_SMALLEST = 1e-18


def check_vectors(
    vectors: Any,
    *,
    dim: int | None = None,
    name: str = "embeddings",
    first_row: int = 0,
    may_be_empty: bool = False,
    integers: bool = False,
    zeros: bool = False,
) -> FloatArray:
    """Vectors as a C-contiguous float32 array (n, d) of finite, nonzero rows.

    Args:
        vectors: (n, d), or (d,) for a single vector, as `conversion.as_array` takes them; any real floating
            dtype, or uint8.
        dim: the expected d, or None for any.
        name: what to call the argument in messages.
        first_row: number of the first row in messages, for callers that check batch by batch.
        may_be_empty: accept no rows, also as an empty list.
        integers: accept other integers too, as embedders may return whole numbers.
        zeros: accept rows of zeros.

    Raises:
        DimensionError: the array is not (n, d), or d is not `dim`.
        InputError: not a real floating dtype, no rows, NaN, infinite values or zero rows.
    """
    raw: npt.NDArray[Any] = vectors
    array: FloatArray = vectors
    if not _are_floats(vectors, dim):
        raw = as_array(vectors, name)
        array = as_floats(raw, dim=dim, name=name, may_be_empty=may_be_empty, integers=integers)
    bad = bad_rows(array, zeros=zeros)
    if bad.size:
        raise InputError(complaint(raw, array, bad, name, first_row)[1])
    return array


def _are_floats(vectors: Any, dim: int | None) -> bool:
    """Whether `as_floats` would give rows (n, dim) as they are: at once, as this is part of every search."""
    return (
        type(vectors) is np.ndarray
        and vectors.dtype == np.float32
        and vectors.ndim == 2
        and vectors.shape[1] == dim
        and vectors.shape[0] > 0
        and vectors.flags.c_contiguous
        and vectors.flags.aligned
    )


def as_floats(
    array: npt.NDArray[Any],
    *,
    dim: int | None = None,
    name: str = "embeddings",
    may_be_empty: bool = False,
    integers: bool = False,
) -> FloatArray:
    """Like `check_vectors`, for an array from `as_array`, without checking the rows' values."""
    if not array.size and may_be_empty and array.shape in {(0,), (0, 0)}:
        array = np.empty((0, dim or 0), dtype=np.float32)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        msg = f"{name} must have shape (n, d), got shape {array.shape}{contents_of(array)}"
        raise DimensionError(msg)
    if array.size or not may_be_empty:
        check_float_dtype(array.dtype, name, integers=integers, contents=contents_of(array))
    if array.shape[1] == 0 if array.shape[0] else not may_be_empty:
        msg = f"{name} must not be empty, got shape {array.shape}"
        raise InputError(msg)
    if dim is not None and array.shape[1] != dim:
        msg = f"{name} have dimension {array.shape[1]}, expected {dim}"
        raise DimensionError(msg)
    if array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned:
        return array
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported so
        return np.require(array, np.float32, ["C", "A"])


def check_float_dtype(dtype: np.dtype[Any], name: str, *, integers: bool = False, contents: str = "") -> None:
    """Checks that `check_vectors` takes a dtype.

    Raises:
        InputError: it does not, with how to convert.
    """
    if is_float(dtype) or dtype == np.uint8 or (integers and dtype.kind in "iu"):
        return
    msg = f"{name} must be floating point (float16, float32 or float64) or uint8, got dtype {dtype}{contents}"
    if dtype.kind in "iub":
        msg += ": convert them by .astype(numpy.float32)"
    elif dtype == np.dtype("V2"):
        msg += (
            ": numpy.save has lost that they are bfloat16; convert them by .astype(numpy.float32) before it"
        )
    raise InputError(msg)


def contents_of(array: npt.NDArray[Any]) -> str:
    """The contents of an array of objects or records, for messages."""
    if array.dtype.names:
        return ": numpy.lib.recfunctions.structured_to_unstructured makes rows of records"
    if array.dtype != object or not array.size:
        return ""
    names = sorted({type(value).__name__ for value in array.ravel()[:1000]})
    return f" ({', '.join(names)})"


def bad_rows(array: FloatArray, *, zeros: bool = False) -> npt.NDArray[np.int64]:
    """Rows of an array (n, d) that are not finite or, unless `zeros` are good, have no direction."""
    first = first_without_direction(array, _SMALLEST)
    if first == len(array):
        return np.empty(0, dtype=np.int64)
    largest = np.abs(array[first:]).max(axis=1)  # NaN where a row holds NaN
    least = 0.0 if zeros else _SMALLEST
    return first + np.flatnonzero(~(np.isfinite(largest) & (largest >= least)))


def complaint(
    raw: npt.NDArray[Any], array: FloatArray, bad: npt.NDArray[np.int64], name: str, first_row: int
) -> tuple[int, str]:
    """The bad row to report, the first that is not finite or else the first of zeros, and a message.

    Args:
        raw: the rows as given, (n, d) or (d,).
        array: the rows in float32.
        bad: the result of `bad_rows`.
        name: what to call the rows.
        first_row: number of the first row.
    """
    infinite = bad[~np.isfinite(array[bad]).all(axis=1)]
    alike = infinite if infinite.size else bad
    row = int(alike[0])
    return row, f"{name} row {first_row + row} {flaw(raw, array, row)} ({alike.size} such rows)"


def flaw(raw: npt.NDArray[Any], array: FloatArray, row: int) -> str:
    """What is wrong with a bad row, to follow its name; arguments are those of `complaint`."""
    if not np.isfinite(array[row]).all():
        return f"holds {'NaN' if np.isnan(array[row]).any() else 'values infinite in float32'}"
    largest = np.abs(np.atleast_2d(raw)[row]).max()
    if largest == 0:
        return "is zero, so it has no direction"
    return (
        f"is too short: its largest entry is {float(largest):.3g}, whose square float32 does not hold; "
        "multiply the rows by a power of two"
    )


def normalize_rows(vectors: FloatArray) -> FloatArray:
    """Rows (n, d) divided by their Euclidean norm; none must be zero."""
    return directions(np.ascontiguousarray(vectors))


def check_int(value: Any, name: str, low: int, high: int | None = None, high_name: str = "") -> int:
    """An integer in [low, high]; bool is not one.

    Raises:
        InputError: with the value and the bound it breaks.
    """
    if type(value) is int and low <= value and (high is None or value <= high):
        return value  # at once, as this is part of every search
    try:
        number = operator.index(value)
    except TypeError:
        msg = f"{name} must be an integer, got {value!r}"
        raise InputError(msg) from None
    if isinstance(value, bool):
        msg = f"{name} must be an integer, got {value!r}"
        raise InputError(msg)
    if number < low:
        msg = f"{name} must be at least {low}, got {number}"
        raise InputError(msg)
    if high is not None and number > high:
        msg = f"{name} must be at most {high_name + ' = ' if high_name else ''}{high}, got {number}"
        raise InputError(msg)
    return number


def check_number(value: Any, name: str) -> float:
    """A real number, which may be infinite or NaN; neither bool nor text is one.

    Raises:
        InputError: with the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.floating):
        msg = f"{name} must be a number, got {value!r}"
        raise InputError(msg)
    try:
        return float(value)
    except OverflowError:  # an integer or fraction beyond float64
        return math.copysign(math.inf, value)


def check_bool(value: Any, name: str) -> bool:
    """True or False.

    Raises:
        InputError: anything else, truthy or not.
    """
    if not isinstance(value, (bool, np.bool_)):
        msg = f"{name} must be True or False, got {value!r}"
        raise InputError(msg)
    return bool(value)


def check_text(value: Any, name: str) -> str:
    """A string.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, str):
        msg = f"{name} must be a string, got {value!r}"
        raise InputError(msg)
    return value


def check_choice(value: T, name: str, choices: tuple[T, ...]) -> T:
    """One of the choices.

    Raises:
        InputError: with the value and the choices.
    """
    given: Any = value  # may be anything: `in` fails for arrays
    if not isinstance(given, str) or given not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        raise InputError(msg)
    return value


def as_path(value: Any, name: str = "path") -> Path:
    """A path from a string or an `os.PathLike`; a leading ~ is the home directory.

    Raises:
        InputError: neither of these, empty, with a NUL, or the address of something on another machine.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        msg = f"{name} must be a string or os.PathLike, got {type(value).__name__}"
        raise InputError(msg) from None
    text = os.fsdecode(text)
    if not text or "\0" in text:
        msg = f"{name} must be a path, got {text!r}"
        raise InputError(msg)
    if is_address(value):
        if not text.startswith("file://"):
            msg = f"{name} must be a path on this machine, got {shown(text)}"
            raise InputError(msg)
        return Path(text.removeprefix("file://"))
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~ of a user that does not exist
        msg = f"{name} {text!r} cannot be expanded: {error}"
        raise InputError(msg) from error


def as_place(value: Any, name: str = "path") -> Place:
    """Like `as_path`, and an address such as s3://bucket/name as the path of what it names.

    Raises:
        InputError: as for `as_path`, or an address that names nothing.
    """
    if isinstance(value, RemotePath):
        return value
    if not is_address(value) or os.fspath(value).startswith("file://"):
        return as_path(value, name)
    if not isinstance(value, str):
        msg = f"{name} {shown(os.fspath(value))} has lost a slash in pathlib: pass addresses as strings"
        raise InputError(msg)
    return RemotePath(value)


def check_threads(num_threads: int | None) -> int:
    """A number of threads; None for all of `usable_threads`."""
    if num_threads is None:
        return min(usable_threads(), MAX_THREADS)
    return check_int(num_threads, "num_threads", 1, MAX_THREADS)
