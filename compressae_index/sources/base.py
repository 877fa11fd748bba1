"""Shared by all sources: the protocol, slices, dtypes, and concatenation."""

from __future__ import annotations

import bisect
import errno
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from compressae_index.errors import CompressaeError, FormatError, InputError
from compressae_index.remote import Place, RemotePath
from compressae_index.storage import in_words

# Errors of the system that say nothing about the file's contents.
_REFUSED = frozenset((errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))

# Rows read, checked and encoded at a time.
CHUNK_ROWS = 16384


@runtime_checkable
class Vectors(Protocol):
    """Embeddings: an array, a memory map, or anything that slices like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows as an array (m, d)."""
        ...


class TypedVectors(Vectors, Protocol):
    """Vectors that know the dtype of their file."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in the file; slices of uint8 are float32."""
        ...


class Concatenated:
    """The rows of several pieces of one width; only the piece used last stays open."""

    def __init__(
        self,
        lengths: Sequence[int],
        dim: int,
        open_piece: Callable[[int], Vectors],
        names: Sequence[Place] = (),
    ) -> None:
        """From the number of rows of each piece, a function that opens piece i, and the pieces' files."""
        self._starts = [0, *itertools.accumulate(lengths)]
        self._open_piece = open_piece
        self._names = names
        # One attribute, so that concurrent readers never see a piece with the number of another.
        self._last: tuple[int, Vectors] | None = None
        self.shape: tuple[int, ...] = (self._starts[-1], dim)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d), of the dtype of their pieces."""
        start, stop = bounds(rows, self.shape[0])
        parts = []
        while start < stop:
            number = bisect.bisect_right(self._starts, start) - 1
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            parts.append(np.asarray(self._piece(number)[start - first : end - first]))
            start = end
        if not parts:
            return np.empty((0, self.shape[1]), dtype=np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def place(self, row: int) -> str:
        """File and row number of a row, for messages."""
        number = bisect.bisect_right(self._starts, row) - 1
        return f"row {row - self._starts[number]} of {self._names[number]}"

    def _piece(self, number: int) -> Vectors:
        last = self._last
        if last is None or last[0] != number:
            self._last = last = None  # closed before the next one is opened
            self._last = last = (number, self._open_piece(number))
        return last[1]


class Run:
    """Rows first .. end of a source."""

    def __init__(self, vectors: Vectors, first: int, end: int) -> None:
        self._vectors, self._first = vectors, first
        self.shape: tuple[int, ...] = (end - first, vectors.shape[1])

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d)."""
        start, stop = bounds(rows, self.shape[0])
        taken: npt.NDArray[Any] = self._vectors[self._first + start : self._first + stop]
        return taken

    def place(self, row: int) -> str:
        """File and row number of a row, for messages."""
        place = getattr(self._vectors, "place", None)
        return place(self._first + row) if place else f"row {self._first + row} of the source"


def opened(path: Place) -> BinaryIO:
    """A file to read from its start; one in a store is read into memory."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path.open("rb")


@contextmanager
def reading(path: Place) -> Iterator[None]:
    """Names the file in errors raised while reading it.

    Raises:
        StorageError: the system refuses.
        FormatError: the file is gone, or its contents cannot be read.
    """
    try:
        yield
    except CompressaeError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise in_words(error, path, "read") from error
        if isinstance(error, FileNotFoundError):
            msg = f"{path} is gone: it was moved or deleted since it was opened"
            raise FormatError(msg) from error
        msg = f"{path} cannot be read: {error}"
        raise FormatError(msg) from error


def bounds(rows: slice, n: int) -> tuple[int, int]:
    """Start and stop of a slice of n rows, with start <= stop.

    Raises:
        InputError: the slice has a step.
    """
    if rows.step not in (None, 1):
        msg = f"embeddings are read by slices of step 1, got {rows!r}"
        raise InputError(msg)
    start, stop, _ = rows.indices(n)
    return start, max(start, stop)


def floating(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows, converted to float32 if they are uint8."""
    return rows.astype(np.float32) if rows.dtype == np.uint8 else rows
