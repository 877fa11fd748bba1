"""What a score means: cosine, or inner product, for which an index keeps the norms of its rows."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice
from compressae_index.errors import InputError

Metric: TypeAlias = Literal["cosine", "inner_product"]
METRICS: tuple[Metric, ...] = ("cosine", "inner_product")

# Norms that an index keeps, in its own unit, which is near the median of its first rows. A row's scale is in
# half precision: above, it could overflow; below, it runs out of digits, and norms would be wrong by 1 % and
# more with the aligned codec.
SMALLEST_NORM, LARGEST_NORM = 2.0**-10, 2.0**12


# Medians of norms that rows of float32 can have, as powers of two.
SMALLEST_UNIT, LARGEST_UNIT = 2.0**-150, 2.0**127


class RowScale:
    """Factors that give codes of unit norm what the metric keeps of their rows: 1, or the norm of the row.

    Norms are counted in a unit, a power of two, so that nothing is rounded by it. It is chosen by the first
    rows and stays as it is.
    """

    def __init__(self, metric: Metric, unit: float | None = None) -> None:
        """From a metric, and a unit where one was chosen before.

        Raises:
            InputError: another metric, or a unit that none could have chosen.
        """
        self.metric: Metric = check_choice(metric, "metric", METRICS)
        unit = None if unit is None else check_unit(unit)
        self.unit = 1.0 if metric == "cosine" else unit

    def copy(self) -> RowScale:
        """The same, of which the unit may be chosen without changing this one."""
        return RowScale(self.metric, self.unit)

    def of_rows(self, rows: FloatArray, first_row: int = 0) -> FloatArray | None:
        """Factors of codes of rows (n, d), which were checked: (n,) float32, or None for cosine.

        Raises:
            InputError: a norm is out of range; rows are named by their number, which starts at `first_row`.
        """
        if self.metric == "cosine":
            return None
        norms = row_norms(rows)
        if self.unit is None:
            self.unit = 2.0 ** round(math.log2(float(np.median(norms))))
        # Half of what float32 holds is left to what is made of codes.
        largest = float(np.finfo(np.float32).max) / 2
        low, high = SMALLEST_NORM * self.unit, min(LARGEST_NORM * self.unit, largest)
        bad = np.flatnonzero((norms < low) | (norms > high))
        if bad.size:
            msg = (
                f"embeddings row {first_row + bad[0]} has norm {norms[bad[0]]:.4g} ({bad.size} such rows); "
                f"for inner products, this index keeps norms from {low:.4g} to {high:.4g}, by its first rows"
            )
            raise InputError(msg)
        return (norms / self.unit).astype(np.float32)

    def of_queries(self, queries: FloatArray) -> FloatArray | None:
        """What turns scores of the stored codes into the metric's: (n_queries, 1) float32, or None.

        Raises:
            InputError: scores would be beyond float32.
        """
        if self.metric == "cosine":
            return None
        factors = row_norms(queries) * (self.unit or 1.0)
        # Half of what float32 holds is left to the norms of the rows.
        far = np.flatnonzero(factors * LARGEST_NORM > np.finfo(np.float32).max / 2)
        if far.size:
            msg = f"queries row {far[0]} is so long that its inner products exceed float32"
            raise InputError(msg)
        return factors.astype(np.float32)[:, None]


def check_unit(unit: Any) -> float:
    """A unit that norms of float32 rows may be counted in.

    Raises:
        InputError: it is no power of two, or float32 holds no such norms.
    """
    is_number = isinstance(unit, (int, float)) and not isinstance(unit, bool)
    if not (is_number and SMALLEST_UNIT <= unit <= LARGEST_UNIT and math.frexp(unit)[0] == 0.5):
        msg = (
            f"the unit of norms must be a power of two from {SMALLEST_UNIT} to {LARGEST_UNIT}, "
            f"got {unit!r:.100}"
        )
        raise InputError(msg)
    return float(unit)


def row_norms(rows: FloatArray) -> npt.NDArray[np.float64]:
    """Euclidean norms of rows (n, d): (n,) float64, in which squares of float32 never overflow."""
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return norms
