"""Arrays and memory maps that the caller made."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.sources.base import TypedVectors, floating


def wrapped(array: Any) -> Any:
    """The array itself, or a `CopiedRows` of it if it holds uint8 or is a memory map."""
    mapping = _mapping_of(array)
    if mapping is None and getattr(array, "dtype", None) != np.uint8:
        return array
    return CopiedRows(array, mapping)


class CopiedRows:
    """An array whose slices are copies: uint8 becomes float32, and pages of a map are dropped after a read.

    Pages touched through a map count as this process's memory until the system runs short of it. Dropped
    pages stay in the file cache, where another reader of the map finds them.
    """

    def __init__(self, array: TypedVectors, mapping: mmap.mmap | None) -> None:
        self._array = array
        self._mapping = mapping
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = array.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d)."""
        copy = floating(np.array(self._array[rows]))
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return copy


def _mapping_of(array: Any) -> mmap.mmap | None:
    # In mode "c" the pages hold changes that are in no file, so they must stay.
    if not (isinstance(array, np.memmap) and array.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED")):
        return None
    mapping = getattr(array, "_mmap", None)
    return mapping if isinstance(mapping, mmap.mmap) else None
