"""The metric of scores: cosine, or inner product, for which an index keeps the norms of its rows."""

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

# The range of norms that an index keeps, in its unit, which is near the median of its first rows. A row's
# scale is in half precision: above the range it could overflow; below, it loses digits, and norms would be
# off by 1 % and more with the aligned codec.
SMALLEST_NORM, LARGEST_NORM = 2.0**-10, 2.0**12


# Range of the median norm of float32 rows, as powers of two.
SMALLEST_UNIT, LARGEST_UNIT = 2.0**-150, 2.0**127


class RowScale:
    """Factors that codes of unit norm are multiplied by: 1, or the norm of the row.

    Norms are in a unit that the first rows fix: a power of two, so that it rounds nothing.
    """

    def __init__(self, metric: Metric, unit: float | None = None) -> None:
        """From a metric, and the unit if it is already fixed.

        Raises:
            InputError: an unknown metric, or an impossible unit.
        """
        self.metric: Metric = check_choice(metric, "metric", METRICS)
        unit = None if unit is None else check_unit(unit)
        self.unit = 1.0 if metric == "cosine" else unit

    def copy(self) -> RowScale:
        """A copy, whose unit can be fixed without changing this one."""
        return RowScale(self.metric, self.unit)

    def of_rows(self, rows: FloatArray, first_row: int = 0) -> FloatArray | None:
        """Factors of the codes of checked rows (n, d): (n,) float32, or None for cosine.

        Raises:
            InputError: a norm is out of range, with the number of its row, counted from `first_row`.
        """
        return None if self.metric == "cosine" else self.of_norms(row_norms(rows), first_row)

    def of_norms(self, norms: npt.NDArray[np.float64], first_row: int = 0) -> FloatArray:
        """Factors of the codes of rows of these norms (n,), for inner products: (n,) float32.

        Raises:
            InputError: as `of_rows`.
        """
        if self.unit is None:
            self.unit = 2.0 ** round(math.log2(float(np.median(norms))))
        # Leave half of float32's range to sums over codes.
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
        """Factors that turn scores of stored codes into the metric's: (n_queries, 1) float32, or None for 1.

        Raises:
            InputError: scores would exceed float32.
        """
        if self.metric == "cosine":
            return None
        factors = row_norms(queries) * (self.unit or 1.0)
        # Leave half of float32's range to the norms of the rows.
        far = np.flatnonzero(factors * LARGEST_NORM > np.finfo(np.float32).max / 2)
        if far.size:
            msg = f"queries row {far[0]} is so long that its inner products exceed float32"
            raise InputError(msg)
        return factors.astype(np.float32)[:, None]


def check_unit(unit: Any) -> float:
    """Checks a unit of norms of float32 rows.

    Raises:
        InputError: not a power of two, or beyond the norms of float32 rows.
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
    """Euclidean norms of rows (n, d): (n,) float64, as squares may overflow float32."""
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return norms
