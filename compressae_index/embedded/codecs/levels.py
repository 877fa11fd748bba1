"""Levels that the packed codec rounds values to, and how they are learned."""

from __future__ import annotations

import numpy as np

from compressae_index.arrays import FloatArray

# Values that levels are learned from, at most and at least.
SAMPLE = 1 << 20
SMALLEST_SAMPLE = 1 << 13
ITERATIONS = 100


def usual_levels(value_bits: int) -> FloatArray:
    """Levels that fit pursuit codes of most data roughly, (2 ** (value_bits - 1),) float32."""
    n_levels = 1 << (value_bits - 1)
    levels: FloatArray = (((np.arange(n_levels) + 0.5) / n_levels) ** 1.5).astype(np.float32)
    return levels


def learn_levels(sample: FloatArray, value_bits: int) -> FloatArray:
    """Levels of least squared error, started from the usual ones (Lloyd, 1982; Max, 1960), ascending.

    Args:
        sample: magnitudes in (0, 1].
        value_bits: bits of a value, sign included.
    """
    levels = usual_levels(value_bits).astype(np.float64)
    ordered = np.sort(sample.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(ITERATIONS):
        cells = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        cells = np.concatenate([[0], cells, [len(ordered)]])
        counts = np.diff(cells)
        # A level without a sample stays where it is.
        moved = np.where(counts > 0, np.diff(sums[cells]) / np.maximum(counts, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    # The difference of two sums may leave a cell by rounding.
    return np.maximum.accumulate(np.clip(levels, 0, 1)).astype(np.float32)
