"""Headers of .npy files: read and checked against the file's size, or written before the rows."""

from __future__ import annotations

import math
import os
from io import BufferedReader
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError
from compressae_index.remote import Place

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyHeader(NamedTuple):
    """dtype, shape and layout of a .npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    offset: int
    """Bytes before the first entry."""


def read_header(handle: BufferedReader, file: Place) -> NpyHeader:
    """The header of a file, checked against its size, so that a false shape allocates no memory.

    Args:
        handle: the file, opened at its start.
        file: its name in messages.

    Raises:
        FormatError: not a .npy file, one of Python objects, or shorter or longer than its header says.
    """
    shape, fortran_order, dtype = _parsed(handle, file)
    offset = handle.tell()
    size = handle.seek(0, os.SEEK_END)
    handle.seek(offset)
    is_plain = dtype.itemsize > 0 and not dtype.hasobject
    if not is_plain or min(shape, default=1) < 0 or any(isinstance(length, bool) for length in shape):
        msg = f"{file} is damaged: its header says shape {shape} and dtype {dtype}"
        raise FormatError(msg)
    expected = offset + math.prod(shape) * dtype.itemsize
    if size != expected:
        msg = f"{file} holds {size} bytes, its header says {expected}: shape {shape}, dtype {dtype}"
        raise FormatError(msg)
    return NpyHeader(shape, dtype, fortran_order, offset)


def write_header(handle: IO[bytes], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Writes the header of an array in C order, whose entries the caller writes next, some at a time."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)


def _parsed(handle: BufferedReader, file: Place) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(handle)
        if version not in _READERS:
            msg = f"version {version} of the format"
            raise ValueError(msg)
        parsed: tuple[tuple[int, ...], bool, np.dtype[Any]] = _READERS[version](handle)
    except OSError:
        raise
    # A header is Python text; parsing it may fail in many ways, even by a stack overflow.
    except Exception as error:
        msg = f"{file} is damaged, or no .npy file: {error}"
        raise FormatError(msg) from error
    return parsed
