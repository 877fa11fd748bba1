"""The levels that the packed codec rounds values to, usual or learned."""

from __future__ import annotations

import numpy as np

from compressae_index.arrays import FloatArray

# The most and the fewest values to learn levels from.
SAMPLE = 1 << 20
SMALLEST_SAMPLE = 1 << 13
ITERATIONS = 100


def usual_levels(value_bits: int) -> FloatArray:
    """Levels that roughly fit pursuit codes of most data, (2 ** (value_bits - 1),) float32."""
    n_levels = 1 << (value_bits - 1)
    levels: FloatArray = (((np.arange(n_levels) + 0.5) / n_levels) ** 1.5).astype(np.float32)
    return levels


def learn_levels(sample: FloatArray, value_bits: int) -> FloatArray:
    """Learns ascending levels of least squared error, from the usual ones on (Lloyd, 1982; Max, 1960).

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
        # A level without samples is not moved.
        moved = np.where(counts > 0, np.diff(sums[cells]) / np.maximum(counts, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    # Rounding of the two sums may move a mean out of its cell.
    return np.maximum.accumulate(np.clip(levels, 0, 1)).astype(np.float32)
