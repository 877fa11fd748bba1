"""Iterators of batches, which can be read only once."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from compressae_index.checks import as_floats, check_vectors
from compressae_index.conversion import as_array
from compressae_index.errors import InputError
from compressae_index.sources.base import Vectors
from compressae_index.sources.flat import FlatFile, ReadAt, read_at


def spooled(batches: Iterator[npt.ArrayLike], *, nan_rows: bool = False, zeros: bool = False) -> Vectors:
    """All batches as float32 rows of a temporary file; only one batch is in memory at a time.

    With nan_rows, bad rows are written too, and missing ones as NaN. With `zeros`, rows of zeros are good.

    Raises:
        InputError: a batch that is not (m, d), has another d or holds bad rows, or no rows at all.
        OSError: the disk is full or refuses.
    """
    n, dim = 0, None
    # It never has a name, so that it goes away even if this process is killed.
    file = tempfile.TemporaryFile(prefix="compressae-index-")  # noqa: SIM115
    try:
        for number, batch in enumerate(batches):
            name = f"embeddings (batch {number})"
            array = as_array(batch, name, nan_rows=nan_rows)
            if array.ndim == 2 and not len(array):
                continue
            if nan_rows:
                rows = as_floats(array, dim=dim, name=name)
            else:
                rows = check_vectors(array, dim=dim, name=name, first_row=n, zeros=zeros)
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
    """Rows of a temporary file, which goes away with this object."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int]) -> None:
        super().__init__(Path("the temporary file"), shape, np.float32)
        self._file = file
        weakref.finalize(self, file.close)

    @contextmanager
    def _opened(self) -> Iterator[ReadAt]:
        yield partial(read_at, self._file.fileno())
