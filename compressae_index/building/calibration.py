"""Measures which settings of a search reach which recall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.building.neighbourhoods import Neighbourhoods
from compressae_index.checks import check_threads
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.progress import track
from compressae_index.search.frontier import NEIGHBOURS, Frontier, Point
from compressae_index.search.index import Index
from compressae_index.search.queries import Settings
from compressae_index.search.stages import strongest_terms

# Fewer rows are searched as fast with the settings that all indexes have.
CALIBRATED_ROWS = 8192
# Settings to measure.
QUERY_NNZ = (32, 64, 128, 256, 512)
CANDIDATES = (300, 1000, 3000, 10_000)
REFINE = (20, 50, 100, 200)
# Stage one estimates what it does not read, unless so many candidates hold that much more without.
DAMPED_CANDIDATES, CLEARLY_MORE = 1000, 0.005
# Nanoseconds of a posting, of a code and of a vector of the last stage, from profiles on one machine: only
# their proportions matter.
POSTING_COST, CODE_COST, REFINE_COST = 0.9, 41.0, 150.0


def calibrate(
    index: Index,
    near: Neighbourhoods,
    ids: IdArray,
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
        ids: (n,) the ids of these rows.
        lengths: (n_latents,) lengths of the posting lists.
        target: the recall that the index was built for, if any.
        num_threads: threads to search with.
        progress: show a progress bar.
    """
    measure = _Measure(index, near, ids, np.asarray(lengths), num_threads)
    settings = list(_settings(index, measure.top))
    points: list[Point] = []
    with track(len(settings), "calibrating", enabled=progress, unit="settings") as advance:
        for nnz, candidates in settings:
            points.append(measure.point(candidates, nnz, min(measure.most_refined, candidates)))
            advance(1)
        if measure.most_refined:
            for point in Frontier.of(points).points:
                for refine in REFINE[:-1]:
                    if measure.top <= refine < point.refine:
                        points.append(measure.point(point.candidates, point.query_nnz, refine))
    return Frontier.of(points, target, measure.damped_to)


def _settings(index: Index, top: int) -> Iterator[tuple[int, int]]:
    """query_nnz and candidates to try; more than there are are tried once."""
    n, n_latents = len(index), index.model.n_latents
    for nnz in sorted({min(nnz, n_latents) for nnz in QUERY_NNZ}):
        for candidates in sorted({min(max(candidates, top), n) for candidates in CANDIDATES}):
            yield nnz, candidates


def _postings_read(index: Index, queries: FloatArray, lengths: Any) -> dict[int, float]:
    """Postings that a query reads, on average, by query_nnz."""
    projections, _ = index.model.seen(queries, check_threads(None))
    return {
        nnz: float(lengths[strongest_terms(projections, nnz).latents.astype(np.int64)].sum(axis=1).mean())
        for nnz in {min(nnz, index.model.n_latents) for nnz in QUERY_NNZ}
    }


class _Measure:
    """Recall of settings."""

    def __init__(
        self, index: Index, near: Neighbourhoods, ids: IdArray, lengths: Any, num_threads: int
    ) -> None:
        self.index, self.queries, self.threads = index, near.points, num_threads
        if index.model.center is not None:
            self.queries = self.queries + index.model.center
        self.top = min(NEIGHBOURS, near.width)
        self.most_refined = min(REFINE[-1], len(index)) if index.documents.refines else 0
        self.own = ids[near.rows][:, None]
        self.truth = ids[near.nearest[:, : self.top]]
        self.postings = _postings_read(index, near.queries, lengths)
        self._recalls: dict[Settings, float] = {}
        self.damped_to = self._damped_to()

    def _damped_to(self) -> int:
        """See `Frontier`."""
        most = 0
        for nnz in sorted(self.postings):
            candidates = min(DAMPED_CANDIDATES, len(self.index))
            settings = candidates, nnz, min(self.most_refined, candidates)
            if self._recall(*settings, damped=False) > self._recall(*settings, damped=True) + CLEARLY_MORE:
                return most
            most = nnz
        return MAX_LATENTS

    def point(self, candidates: int, query_nnz: int, refine: int) -> Point:
        """Recall and cost of settings."""
        recall = self._recall(candidates, query_nnz, refine, damped=query_nnz <= self.damped_to)
        cost = POSTING_COST * self.postings[query_nnz] + CODE_COST * candidates + REFINE_COST * refine
        return Point(candidates, query_nnz, refine, round(recall, 4), round(cost))

    def _recall(self, candidates: int, query_nnz: int, refine: int, *, damped: bool) -> float:
        """That of a search with these settings, which leaves each query's own row out."""
        k = min(self.top + 1, len(self.index))
        settings = Settings(
            candidates=max(candidates, k),
            query_nnz=query_nnz,
            refine=max(refine, k) if refine else 0,
            num_threads=self.threads,
            damped=damped,
        )
        if settings not in self._recalls:
            self._recalls[settings] = self._measured(k, settings)
        return self._recalls[settings]

    def _measured(self, k: int, settings: Settings) -> float:
        index = self.index
        ids = index.documents.answer(index.asked(self.queries, k, settings)).ids
        others = np.where(ids == self.own, np.inf, np.arange(k)).argsort(axis=1, kind="stable")
        found = np.take_along_axis(ids, others[:, : self.top], axis=1)
        return float((found[:, :, None] == self.truth[:, None, :]).any(axis=1).mean())
