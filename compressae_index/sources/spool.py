"""Iterators of batches, which can be read only once."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from compressae_index.checks import check_vectors
from compressae_index.errors import InputError
from compressae_index.sources.base import Vectors, floating
from compressae_index.sources.flat import FlatFile

_READ_BYTES = 1 << 24


def spooled(batches: Iterator[npt.ArrayLike]) -> Vectors:
    """All batches as float32 rows of a temporary file; only one batch is in memory at a time.

    Raises:
        InputError: a batch that is not (m, d), differs in d or holds bad rows, or no rows at all.
        OSError: the disk is full or refuses.
    """
    n, dim = 0, None
    # Without a name from the start, so that it is gone even where this process is killed.
    file = tempfile.TemporaryFile(prefix="compressae-index-")  # noqa: SIM115
    try:
        for number, batch in enumerate(batches):
            array = floating(np.asarray(batch))
            if array.ndim == 2 and not len(array):
                continue
            rows = check_vectors(array, dim=dim, name=f"embeddings (batch {number})", first_row=n)
            n, dim = n + len(rows), rows.shape[1]
            _write(file, rows)
        if dim is None:
            msg = "the iterator of embeddings gave no rows; one that was read before has none left"
            raise InputError(msg)
        file.flush()
    except BaseException:
        file.close()
        raise
    return SpooledFile(file, (n, dim))


def _write(file: BinaryIO, rows: npt.NDArray[np.float32]) -> None:
    try:
        file.write(rows.data)
    except OSError as error:
        error.add_note(
            f"Embeddings from an iterator are written to a temporary file in {tempfile.gettempdir()}; "
            "set TMPDIR to a folder with more room."
        )
        raise


class SpooledFile(FlatFile):
    """Rows of a temporary file, which is removed when this object is."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int]) -> None:
        super().__init__(Path("the temporary file"), shape, np.float32)
        self._file = file
        weakref.finalize(self, file.close)

    def _read(self, begin: int, into: memoryview) -> int:
        # Threads and forked processes share the position in the file, so it is left alone.
        read = 0
        while piece := os.pread(self._file.fileno(), min(len(into) - read, _READ_BYTES), begin + read):
            into[read : read + len(piece)] = piece
            read += len(piece)
        return read
