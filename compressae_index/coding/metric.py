"""The metric of scores: cosine, or one for which an index keeps the norms of its rows."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice
from compressae_index.errors import InputError

Metric: TypeAlias = Literal["cosine", "inner_product", "l2"]
METRICS: tuple[Metric, ...] = ("cosine", "inner_product", "l2")

# The range of norms that an index keeps, in its unit, which is near the median of its first rows. A row's
# scale is in half precision: above the range it could overflow; below, it loses digits, and norms would be
# off by 1 % and more with the aligned codec.
SMALLEST_NORM, LARGEST_NORM = 2.0**-10, 2.0**12
# The range where norms are in float32 throughout: sums, and squares of them, stay within float32 as well.
_SMALLEST_FLOAT, _LARGEST_FLOAT = 2.0**-40, 2.0**40

# Rows whose norms are no farther from 1 are taken for unit rows, of which Euclidean distances need no norms.
UNIT_WITHIN = 1e-3

# Range of the median norm of float32 rows, as powers of two.
SMALLEST_UNIT, LARGEST_UNIT = 2.0**-150, 2.0**127


_CALLED: dict[str, str] = {"inner_product": "inner products", "l2": "Euclidean distances"}
# Queries as near to the center, in units of norms, are taken for this far: they are divided by their lengths.
# Rows that are not at the center are farther, also where the unit is 1 whatever their norms.
_NEXT_TO_NOTHING = 2.0**-60
# Of rows nearer to the center, in norms of that, there are only rounding errors left; `sources.centred` makes
# rows at the center this long.
_ROUNDING, _NOTHING = 2.0**-20, 2.0**-49
# The longest rows, and queries, of which squared distances are within half of float32's range.
LONGEST = float(np.sqrt(np.finfo(np.float32).max / 2)) / 2


class RowScale:
    """Factors that codes of unit norm are multiplied by: 1, or the norm of the row.

    Norms are in a unit that the first rows fix: a power of two, so that it rounds nothing. Euclidean
    distances from unit rows have the order of cosines, so that no norms need be kept.
    """

    def __init__(
        self,
        metric: Metric,
        unit: float | None = None,
        *,
        unit_rows: bool = False,
        around: float = 0.0,
        in_float32: bool = False,
    ) -> None:
        """From a metric, the unit if it is already fixed, and for "l2" whether all rows are of unit norm.

        `around` is the norm of the center that rows are seen from: the unit where all first rows are there.
        Norms that are kept `in_float32` have a wide range, others that of half precision.

        Raises:
            InputError: an unknown metric, or an impossible unit.
        """
        self.metric: Metric = check_choice(metric, "metric", METRICS)
        self.keeps_norms = metric == "inner_product" or (metric == "l2" and not unit_rows)
        unit = None if unit is None else check_unit(unit)
        self.unit = unit if self.keeps_norms else 1.0
        self._around = around
        self._in_float32 = in_float32
        self._range = (_SMALLEST_FLOAT, _LARGEST_FLOAT) if in_float32 else (SMALLEST_NORM, LARGEST_NORM)

    def copy(self) -> RowScale:
        """A copy, whose unit can be fixed without changing this one."""
        return RowScale(
            self.metric,
            self.unit,
            unit_rows=not self.keeps_norms,
            around=self._around,
            in_float32=self._in_float32,
        )

    def of_rows(self, rows: FloatArray, first_row: int = 0) -> FloatArray | None:
        """Factors of the codes of checked rows (n, d): (n,) float32, or None for 1.

        Raises:
            InputError: a norm is out of range, with the number of its row, counted from `first_row`.
        """
        if self.metric == "cosine":
            return None
        norms = row_norms(rows)
        if self.keeps_norms:
            return self.of_norms(norms, first_row)
        check_unit_norms(norms, first_row)
        return None

    def of_norms(self, norms: npt.NDArray[np.float64], first_row: int = 0) -> FloatArray:
        """Factors of the codes of rows of these norms (n,), where norms are kept: (n,) float32.

        Raises:
            InputError: as `of_rows`.
        """
        if self.unit is None:
            self.unit = unit_of(norms) if self.metric != "l2" else unit_from_center(norms, self._around)
        # Leave half of float32's range to sums over codes.
        largest = float(np.finfo(np.float32).max) / 2
        low, high = self._range[0] * self.unit, min(self._range[1] * self.unit, largest)
        if self.metric == "l2":
            low, high = 0.0, min(high, LONGEST)  # a short row is next to the center, whatever its direction
        bad = np.flatnonzero((norms < low) | (norms > high))
        if bad.size:
            msg = (
                f"embeddings row {first_row + bad[0]} has norm {norms[bad[0]]:.4g} ({bad.size} such rows); "
                f"for {_CALLED[self.metric]}, this index keeps norms from {low:.4g} to {high:.4g}, by its "
                "first rows"
            )
            raise InputError(msg)
        return (norms / self.unit).astype(np.float32)

    def of_queries(self, queries: FloatArray) -> FloatArray | None:
        """Factors from sums over stored codes to inner products: (n_queries, 1) float32, or None for 1.

        Raises:
            InputError: scores would exceed float32.
        """
        if self.metric == "cosine":
            return None
        factors = row_norms(queries) * (self.unit or 1.0)
        # Leave half of float32's range to the norms of the rows.
        far = np.flatnonzero(factors * self._range[1] > np.finfo(np.float32).max / 2)
        if far.size:
            msg = f"queries row {far[0]} is so long that its inner products exceed float32"
            raise InputError(msg)
        return factors.astype(np.float32)[:, None]

    def distances_of(self, queries: FloatArray) -> Distances:
        """How sums over stored codes become squared distances from queries (n_queries, d), for "l2".

        Raises:
            InputError: distances would exceed float32.
        """
        norms, unit = row_norms(queries), self.unit or 1.0
        longest = norms + (min(self._range[1] * unit, LONGEST) if self.keeps_norms else 1.0)
        far = np.flatnonzero(longest**2 > np.finfo(np.float32).max / 2)
        if far.size:
            msg = f"queries row {far[0]} is so long that its distances exceed float32"
            raise InputError(msg)
        lengths = np.maximum(norms, _NEXT_TO_NOTHING * unit)[:, None]
        offsets, weights = -np.square(norms)[:, None], None
        if self.keeps_norms:
            weights = (-unit / lengths).astype(np.float32)
        else:
            offsets = offsets - 1.0
        return Distances((2.0 * unit * lengths).astype(np.float32), offsets.astype(np.float32), weights, unit)


class Distances(NamedTuple):
    """Squared distances, below 0 as larger scores are better.

    A score is factors * (q.s + weights * |x|^2 / 2) + offsets. q is of unit norm, s a code, and norms are in
    the unit of the index.
    """

    factors: FloatArray
    """(n_queries, 1)"""
    offsets: FloatArray
    """(n_queries, 1)"""
    weights: FloatArray | None
    """(n_queries, 1); None where no norms are kept."""
    unit: float

    def rows(self, rows: slice) -> Distances:
        """Of some queries."""
        weights = None if self.weights is None else self.weights[rows]
        return Distances(self.factors[rows], self.offsets[rows], weights, self.unit)

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Of sums over codes and norms, (n_queries, c) both; -inf stays. Near ones may come out above 0."""
        scores: FloatArray = sums * self.factors + self.offsets
        return scores

    def of_vectors(self, scores: FloatArray) -> FloatArray:
        """Of the engine's scores of original vectors: squared distances in the unit of norms, or cosines."""
        if self.weights is None:
            return self.of_sums(scores)
        largest = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            return np.where(
                np.isneginf(scores), scores, np.maximum(scores * np.float32(self.unit**2), -largest)
            )


def check_unit_norms(norms: npt.NDArray[np.float64], first_row: int = 0) -> None:
    """Checks that rows of these norms (n,) are of unit norm.

    Raises:
        InputError: one is not, with the number of its row, counted from `first_row`.
    """
    bad = np.flatnonzero(~are_unit(norms))
    if bad.size:
        msg = (
            f"embeddings row {first_row + bad[0]} has norm {norms[bad[0]]:.6g} ({bad.size} such rows), but "
            "this index was made for unit rows, of which it keeps no norms: build it anew of all rows"
        )
        raise InputError(msg)


def are_unit(norms: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which norms (n,) are those of unit rows, up to rounding."""
    return np.abs(norms - 1) <= UNIT_WITHIN


def unit_of(norms: npt.NDArray[np.floating[Any]]) -> float:
    """A power of two near the median norm; 1 where most are next to nothing."""
    median = float(np.median(norms))
    return 2.0 ** round(math.log2(median)) if median >= SMALLEST_UNIT else 1.0


def unit_from_center(norms: npt.NDArray[np.floating[Any]], around: float) -> float:
    """A power of two near the median norm of rows from a center, without those that are there.

    Where all are, it is one near the norm of the center, `around`, or 1 where that is 0, too.
    """
    apart = norms[norms > max(_NOTHING, _ROUNDING * around)]
    return unit_of(apart if apart.size else np.array([around]))


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


def upright(scores: FloatArray) -> FloatArray:
    """Scores below 0 as squared distances; 0 for those above, which only codes give."""
    distances: FloatArray = np.maximum(np.float32(0) - scores, np.float32(0))
    return distances
