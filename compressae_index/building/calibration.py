"""Measures which settings of a search reach which recall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compressae_index.arrays import RowArray
from compressae_index.building.neighbourhoods import Neighbourhoods
from compressae_index.checks import check_threads
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.ids import Ids
from compressae_index.progress import track
from compressae_index.search.frontier import NEIGHBOURS, Frontier, Point
from compressae_index.search.index import Index
from compressae_index.search.queries import Settings

# Settings to measure.
QUERY_NNZ = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
CANDIDATES = (100, 170, 300, 550, 1000, 1700, 3000, 5500, 10_000)
REFINE = (20, 50, 100, 200)
# Less recall than this is chance, and no reason for settings that cost more.
CLEAR = 0.001
# Stage one estimates what it does not read, unless so many candidates hold that much more without. Both are
# tried with these latents of a query.
DAMPED_CANDIDATES, CLEARLY_MORE = 1000, 0.005
DAMPED_NNZ = (32, 64, 128, 256, 512)
# Nanoseconds of a posting, of a code, and of a document of the last stage, by its original vector or its
# residual code: fitted to searches of a million vectors of 256 dimensions, where most codes wait for memory.
# Only their proportions matter.
POSTING_COST, CODE_COST, ORIGINAL_COST, RESIDUAL_COST = 1.0, 80.0, 270.0, 120.0


def calibrate(
    index: Index,
    near: Neighbourhoods,
    ids: Ids,
    lengths: Any,
    *,
    target: float | None,
    num_threads: int,
    progress: bool,
) -> Frontier:
    """The frontier of an index's settings.

    Args:
        index: the index of all rows that `near` was taken from, which keeps documents in this process.
        near: queries, and their true neighbours.
        ids: the ids of these rows.
        lengths: (n_latents,) lengths of the posting lists.
        target: the recall that the index was built for, if any.
        num_threads: threads to search with.
        progress: show a progress bar.
    """
    measure = _Measure(index, near, ids, np.asarray(lengths), num_threads)
    steps = len(measure.candidates) + len(measure.query_nnz) - 2
    with track(steps, "calibrating", enabled=progress, unit="steps") as advance:
        points = _climbed(measure, advance)
    if index.documents.refines:
        best = Frontier.of(points).points
        with track(len(best), "calibrating the last stage", enabled=progress, unit="settings") as advance:
            for point in best:
                points += measure.refined_less(point)
                advance(1)
    return Frontier.of(_clear(Frontier.of(points).points), target, measure.damped_to, len(index))


def _climbed(measure: _Measure, advance: Callable[[int], object]) -> list[Point]:
    """Points on the way from the fewest candidates and latents to the most, and beside it, refined fully.

    Each step takes more of that which gains more recall for its cost: of all settings, those that others do
    not beat are near this way. A few more latents may gain nothing by chance, so still more are tried, too.
    """
    candidates, query_nnz = measure.candidates, measure.query_nnz
    i, j, here = 0, 0, measure.point(candidates[0], query_nnz[0])
    points = [here]
    while here.recall < 1 and (i + 1 < len(candidates) or j + 1 < len(query_nnz)):
        following = {
            (more, latents): measure.point(candidates[more], query_nnz[latents])
            for more, latents in ((i + 1, j), (i, j + 1), (i, j + 2))
            if more < len(candidates) and latents < len(query_nnz)
        }
        points += following.values()
        (i, j), here = max(following.items(), key=lambda step: _gain(here, step[1]))
        advance(1)
    return points


def _gain(point: Point, other: Point) -> float:
    """Recall that another point has more, for what it costs more."""
    return (other.recall - point.recall) / max(other.cost - point.cost, 1.0)


def _clear(points: tuple[Point, ...]) -> list[Point]:
    """Those of a frontier that gain more than chance on the one before, and the best of all."""
    clear = list(points[:1])
    for point in points[1:]:
        if point is points[-1] or point.recall >= clear[-1].recall + CLEAR:
            clear.append(point)
    return clear


class _Measure:
    """Recall and cost of settings."""

    def __init__(self, index: Index, near: Neighbourhoods, ids: Ids, lengths: Any, num_threads: int) -> None:
        self.index, self.ids, self.queries, self.threads = index, ids, near.points, num_threads
        if index.model.center is not None:
            self.queries = self.queries + index.model.center
        self.top = min(NEIGHBOURS, near.width)
        n, n_latents = len(index), index.model.n_latents
        self.candidates = sorted({min(max(candidates, self.top), n) for candidates in CANDIDATES})
        self.query_nnz = sorted({min(nnz, n_latents) for nnz in QUERY_NNZ})
        self._refine_cost = RESIDUAL_COST if index.documents.residual_bits else ORIGINAL_COST
        self._by_originals = index.documents.refines and not index.documents.residual_bits
        self.own = near.rows[:, None]
        self.truth = near.nearest[:, : self.top]
        projections, _ = index.model.seen(near.queries, check_threads(None))
        strongest = np.argsort(-np.abs(projections), axis=1)[:, : self.query_nnz[-1]]
        self._postings = lengths[strongest].cumsum(axis=1).mean(axis=0)
        self._ordered: dict[tuple[int, int, bool], RowArray] = {}
        self.damped_to = self._damped_to()

    def _damped_to(self) -> int:
        """See `Frontier`."""
        most = 0
        for nnz in sorted({min(nnz, self.index.model.n_latents) for nnz in DAMPED_NNZ}):
            candidates = min(DAMPED_CANDIDATES, len(self.index))
            without, damped = (self._recall(self._refined(candidates, nnz, each)) for each in (False, True))
            if without > damped + CLEARLY_MORE:
                return most
            most = nnz
        return MAX_LATENTS

    def point(self, candidates: int, query_nnz: int) -> Point:
        """Recall and cost of settings, with the most documents in the last stage if there is one."""
        ordered = self._refined(candidates, query_nnz, query_nnz <= self.damped_to)
        return self._point(candidates, query_nnz, self._most_refined(candidates), self._recall(ordered))

    def refined_less(self, point: Point) -> list[Point]:
        """The same settings as a `point`, with fewer documents in the last stage."""
        settings = point.candidates, point.query_nnz, point.query_nnz <= self.damped_to
        # The last stage puts the documents that are best by their codes in another order: that of many says
        # what it makes of fewer.
        ordered = self._refined(*settings)
        by_codes = self._found(*settings, ordered.shape[1], refine=0)
        # Tell the rows of one query from those of others, and -1, too.
        queries = (len(self.ids) + 1) * np.arange(len(ordered))[:, None]
        return [
            self._point(*settings[:2], refine, self._recall(np.where(taken, ordered, -1)))
            for refine in REFINE
            if self.top <= refine < point.refine
            for taken in [np.isin(queries + ordered, queries + by_codes[:, :refine]) & (ordered >= 0)]
        ]

    def _point(self, candidates: int, query_nnz: int, refine: int, recall: float) -> Point:
        cost = POSTING_COST * self._postings[query_nnz - 1] + CODE_COST * candidates
        cost += self._refine_cost * refine
        return Point(candidates, query_nnz, refine, round(recall, 4), round(cost))

    def _most_refined(self, candidates: int) -> int:
        return min(REFINE[-1], candidates) if self.index.documents.refines else 0

    def _refined(self, candidates: int, query_nnz: int, damped: bool) -> RowArray:
        """What a search finds that scores as many as it may by the last stage."""
        key = candidates, query_nnz, damped
        if key not in self._ordered:
            refine = self._most_refined(candidates)
            self._ordered[key] = self._found(*key, max(self.top + 1, refine), refine)
        return self._ordered[key]

    def _found(self, candidates: int, query_nnz: int, damped: bool, k: int, refine: int) -> RowArray:
        """Numbers of the rows that a search finds for each query, best first; -1 where there are fewer."""
        index, k = self.index, min(k, len(self.index))
        settings = Settings(
            candidates=max(candidates, k),
            query_nnz=query_nnz,
            refine=max(refine, k) if refine else 0,
            num_threads=self.threads,
            damped=damped,
            rough=self._by_originals,  # also to find, without them, what they would score
        )
        ids = index.documents.answer(index.asked(self.queries, k, settings)).ids
        return self.ids.find(ids.ravel()).reshape(ids.shape)

    def _recall(self, found: RowArray) -> float:
        """recall@10 of rows that are found for each query, best first, without its own; -1 is none."""
        k = found.shape[1]
        others = np.where((found >= 0) & (found != self.own), np.arange(k), k)
        best = others.argsort(axis=1, kind="stable")[:, : self.top]
        rows = np.take_along_axis(np.where(others < k, found, -1), best, axis=1)
        return float((rows[:, :, None] == self.truth[:, None, :]).any(axis=1).mean())
