"""Measures which settings of a search reach which recall, on a new index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.building.neighbourhoods import Neighbourhoods
from compressae_index.checks import check_threads
from compressae_index.progress import track
from compressae_index.search.frontier import NEIGHBOURS, Frontier, Point
from compressae_index.search.index import Index
from compressae_index.search.stages import strongest_terms

# Fewer rows are searched as fast with the settings that all indexes have.
CALIBRATED_ROWS = 8192
# Settings to measure.
QUERY_NNZ = (32, 64, 128, 256, 512)
CANDIDATES = (300, 1000, 3000, 10_000)
REFINE = (20, 50, 100, 200)
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
        index: the index of all rows that `near` was taken from.
        near: queries, and their true neighbours.
        ids: (n,) the ids of these rows.
        lengths: (n_latents,) lengths of the posting lists.
        target: the recall that the index was built for, if any.
        num_threads: threads to search with.
        progress: show a progress bar.
    """
    top = min(NEIGHBOURS, near.width)
    measure = _Measure(index, near, ids, top, num_threads)
    postings = _postings_read(index, near.queries, np.asarray(lengths))
    most = min(REFINE[-1], len(index)) if index.documents.refines else 0
    points: list[Point] = []
    settings = list(_settings(index, top))
    with track(len(settings), "calibrating", enabled=progress, unit="settings") as advance:
        for nnz, candidates in settings:
            points.append(measure.point(candidates, nnz, min(most, candidates), postings[nnz]))
            advance(1)
        if most:
            for point in Frontier.of(points).points:
                for refine in REFINE[:-1]:
                    if top <= refine < point.refine:
                        points.append(
                            measure.point(
                                point.candidates, point.query_nnz, refine, postings[point.query_nnz]
                            )
                        )
    return Frontier.of(points, target)


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

    def __init__(self, index: Index, near: Neighbourhoods, ids: IdArray, top: int, num_threads: int) -> None:
        self.index, self.queries, self.top, self.threads = index, near.points, top, num_threads
        if index.model.center is not None:
            self.queries = self.queries + index.model.center
        self.own = ids[near.rows][:, None]
        self.truth = ids[near.nearest[:, :top]]

    def point(self, candidates: int, query_nnz: int, refine: int, postings: float) -> Point:
        """Searches with these settings, leaving each query's own row out."""
        k = min(self.top + 1, len(self.index))
        result = self.index.search(
            self.queries,
            k,
            candidates=max(candidates, k),
            query_nnz=query_nnz,
            refine=max(refine, k) if refine else 0,
            num_threads=self.threads,
        )
        others = np.where(result.ids == self.own, np.inf, np.arange(k)).argsort(axis=1, kind="stable")
        found = np.take_along_axis(result.ids, others[:, : self.top], axis=1)
        recall = float((found[:, :, None] == self.truth[:, None, :]).any(axis=1).mean())
        cost = POSTING_COST * postings + CODE_COST * candidates + REFINE_COST * refine
        return Point(candidates, query_nnz, refine, round(recall, 4), round(cost))
