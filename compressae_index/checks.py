"""Checks of what callers pass in; each raises InputError before anything is changed."""

from __future__ import annotations

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index._engine import directions, first_without_direction
from compressae_index.errors import DimensionError, InputError

FloatArray: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T", bound=str)

MAX_THREADS = 4096

# A row whose squares all underflow has no direction that float32 can tell.
_SMALLEST = 1e-18


def as_array(values: Any, name: str) -> npt.NDArray[Any]:
    """Values as an array.

    Raises:
        InputError: they are ragged, or otherwise no array.
    """
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        msg = f"{name} cannot be read as an array: {error}"
        raise InputError(msg) from error


def check_vectors(
    vectors: npt.ArrayLike, *, dim: int | None = None, name: str = "embeddings", first_row: int = 0
) -> FloatArray:
    """Vectors as a C-contiguous float32 array (n, d) of finite, nonzero rows.

    Args:
        vectors: (n, d), or (d,) for a single vector; any real floating dtype.
        dim: the d that is expected, where one is.
        name: what to call the argument in messages.
        first_row: number of the first row in messages, for callers that check batch by batch.

    Raises:
        DimensionError: the array is not (n, d), or d is not `dim`.
        InputError: not a real floating dtype, no rows, NaN, infinite values or zero rows.
    """
    array = as_array(vectors, name)
    if array.ndim == 1 and array.dtype.kind == "f":
        array = array[None, :]
    if array.ndim != 2:
        msg = f"{name} must have shape (n, d), got shape {array.shape}"
        raise DimensionError(msg)
    if array.dtype.kind != "f":
        msg = f"{name} must be floating point (float16, float32 or float64), got dtype {array.dtype}"
        raise InputError(msg)
    if array.shape[0] == 0 or array.shape[1] == 0:
        msg = f"{name} must not be empty, got shape {array.shape}"
        raise InputError(msg)
    if dim is not None and array.shape[1] != dim:
        msg = f"{name} have dimension {array.shape[1]}, expected {dim}"
        raise DimensionError(msg)
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is named below
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    _check_rows(array, name, first_row)
    return array


def _check_rows(array: FloatArray, name: str, first_row: int) -> None:
    if first_without_direction(array, _SMALLEST) == len(array):
        return
    largest = np.abs(array).max(axis=1)  # NaN where a row holds NaN
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        what = "NaN" if np.isnan(array[bad[0]]).any() else "values infinite in float32"
        msg = f"{name} row {first_row + bad[0]} holds {what} ({bad.size} such rows)"
        raise InputError(msg)
    zero = np.flatnonzero(largest < _SMALLEST)
    msg = f"{name} row {first_row + zero[0]} is zero, so it has no direction ({zero.size} such rows)"
    raise InputError(msg)


def normalize_rows(vectors: FloatArray) -> FloatArray:
    """Rows (n, d) divided by their Euclidean norm; none must be zero."""
    return directions(np.ascontiguousarray(vectors))


def check_int(value: Any, name: str, low: int, high: int | None = None, high_name: str = "") -> int:
    """An integer in [low, high]; bool is not one.

    Raises:
        InputError: with the value and the bound it breaks.
    """
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
        InputError: anything else, whatever it would be taken for.
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
    given: Any = value  # an array, for one, cannot be looked for
    if not isinstance(given, str) or given not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        raise InputError(msg)
    return value


def as_path(value: Any, name: str = "path") -> Path:
    """A path as callers give it: a string or an `os.PathLike`, of which a leading ~ is the home directory.

    Raises:
        InputError: it is neither, is empty, or holds a NUL.
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
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~ of a user that does not exist
        msg = f"{name} {text!r} cannot be expanded: {error}"
        raise InputError(msg) from error


def check_threads(num_threads: int | None) -> int:
    """A number of threads; None means every processor that this process may use."""
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return check_int(num_threads, "num_threads", 1, MAX_THREADS)
