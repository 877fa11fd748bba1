"""The rows of a source less a point, for which rows of zeros are as good as others."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import as_floats
from compressae_index.conversion import as_array
from compressae_index.sources.base import Vectors, bounds

# The first entry of a row whose others are zero, and all of whose entries are less, so that it has a
# direction.
NEXT_TO_NOTHING = np.float32(2.0**-50)


class Centred:
    """Rows x - c of a source. One that is zero is replaced by a row that is next to nothing."""

    def __init__(self, vectors: Vectors, center: FloatArray | None) -> None:
        """Of rows x (n, d), and the point c (d,), None for zero."""
        self._vectors, self._center = vectors, center
        self.shape: tuple[int, ...] = vectors.shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Rows (m, d)."""
        start, stop = bounds(rows, self.shape[0])
        return less(
            as_floats(as_array(self._vectors[start:stop], "embeddings"), may_be_empty=True), self._center
        )

    def place(self, row: int) -> str:
        """File and row number of a row, for messages."""
        place: Any = getattr(self._vectors, "place", None)
        return place(row) if place else f"row {row} of the source"


def less(rows: FloatArray, center: FloatArray | None) -> FloatArray:
    """Rows (n, d) less a point, and next to nothing where that is zero; what is not finite stays so."""
    if center is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows - center
    nothing = np.abs(rows).max(axis=1, initial=0) < NEXT_TO_NOTHING
    if nothing.any():
        rows = rows.copy()
        rows[nothing] = 0
        rows[nothing, 0] = NEXT_TO_NOTHING
    return rows
