"""Types of arrays that all rooms share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


FloatArray: TypeAlias = npt.NDArray[np.float32]


IdArray: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]


RowArray: TypeAlias = npt.NDArray[np.int64]


Bitmap: TypeAlias = npt.NDArray[np.uint8]


Hits: TypeAlias = tuple[FloatArray, RowArray]
