"""A sample of rows, spread over a source."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.sources.base import Vectors
from compressae_index.sources.rows import checked_rows

# Rows in a run: reading single rows would take as long as reading the whole file.
_RUN = 4096


def unit_sample(vectors: Vectors, max_rows: int, rng: np.random.Generator) -> FloatArray:
    """Normalised float32 rows (m, d), m <= max_rows, in order: all, or runs of rows at random places.

    Raises:
        InputError: a sampled row is zero or not finite.
    """
    n = vectors.shape[0]
    run = min(_RUN, max(max_rows // 16, 1))
    starts: npt.NDArray[np.int64] = np.arange(0, n, run)
    if n > max_rows:
        starts = np.sort(rng.permutation(starts)[: -(-max_rows // run)])
    parts = [normalize_rows(checked_rows(vectors, int(start), int(start) + run)) for start in starts]
    return np.concatenate(parts)[:max_rows]
