"""Types of arrays that all rooms share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float32]
# User ids: integers, or str objects.
IdArray: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]
# Numbers of rows; -1 is none.
RowArray: TypeAlias = npt.NDArray[np.int64]
# One bit a row, the lowest bit of a byte first.
Bitmap: TypeAlias = npt.NDArray[np.uint8]
# Scores and rows, (n_queries, k) each.
Hits: TypeAlias = tuple[FloatArray, RowArray]
