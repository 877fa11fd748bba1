"""The nearest rows of some rows, exactly and among all: what plans and settings are measured by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compressae_index.arrays import FloatArray, RowArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.metric import Metric, row_norms
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows

# Rows that serve as queries, from so many places of the source, and the neighbours of each.
QUERIES, PLACES, WIDTH = 200, 20, 256
# Rows that stand for all others.
BACKGROUND = 12_000
# Queries that are nearer to the centre are taken for as long.
_SHORTEST = 1e-30


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Queries, which are rows of a source, and their nearest rows."""

    queries: FloatArray
    """(q, d) of unit norm."""
    rows: RowArray
    """(q,) their numbers."""
    nearest: RowArray
    """(q, w) the numbers of the nearest other rows by the metric, best first."""
    vectors: FloatArray
    """(q, w, d) these rows, of unit norm."""
    norms: FloatArray
    """(q, w) factors of their scores: their norms, or 1 for cosine."""
    background: FloatArray
    """(m, d) other rows, evenly spread over the source, of unit norm."""
    background_norms: FloatArray
    """(m,) factors of their scores."""
    n: int
    """Rows of the source."""
    lengths: FloatArray | None = None
    """(q,) the norms of the queries, where the metric is that of distances; None for others."""
    is_damped: bool = True
    """Whether the first stage counts values less a share of their squares: not for inner products."""

    def in_metric(self, cosines: FloatArray, norms: FloatArray, share: float = 1.0) -> FloatArray:
        """Scores in the order of the metric, (q, c), of cosines with the queries and of norms (q or 1, c).

        For distances, `share` of the squares of norms count.
        """
        return _in_metric(cosines, norms, self.lengths, share)

    @property
    def points(self) -> FloatArray:
        """(q, d) the queries, with their norms where the metric is that of distances."""
        return self.queries if self.lengths is None else self.queries * self.lengths[:, None]

    @property
    def width(self) -> int:
        """Neighbours of each query."""
        return int(self.nearest.shape[1])

    def of_queries(self, count: int) -> Neighbourhoods:
        """Those of `count` queries, spread over all."""
        chosen = slice(None, None, max(len(self.queries) // count, 1))
        return replace(
            self,
            queries=np.ascontiguousarray(self.queries[chosen]),
            rows=np.ascontiguousarray(self.rows[chosen]),
            nearest=np.ascontiguousarray(self.nearest[chosen]),
            vectors=np.ascontiguousarray(self.vectors[chosen]),
            norms=np.ascontiguousarray(self.norms[chosen]),
            lengths=None if self.lengths is None else np.ascontiguousarray(self.lengths[chosen]),
        )


def neighbourhoods(vectors: Vectors, metric: Metric, *, progress: bool = False) -> Neighbourhoods:
    """Reads all rows (n, d) once, and keeps the nearest of each query; n must be at least 2.

    Raises:
        InputError: a row that is zero or not finite.
    """
    n, dim = vectors.shape
    rows = _chosen(n)
    # Neighbouring rows of a source are read together.
    queries = np.concatenate(
        [
            checked_rows(vectors, int(run[0]), int(run[-1]) + 1, dim=dim)
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        ]
    )
    lengths = np.maximum(row_norms(queries), _SHORTEST).astype(np.float32) if metric == "l2" else None
    found = _Nearest(normalize_rows(queries), rows, n, lengths)
    with track(n, "exact neighbours of a sample", enabled=progress) as advance:
        for begin in range(0, n, CHUNK_ROWS):
            chunk = checked_rows(vectors, begin, begin + CHUNK_ROWS, dim=dim)
            found.add(begin, chunk, metric)
            advance(len(chunk))
    return replace(found.sorted(), is_damped=metric != "inner_product")


def _chosen(n: int) -> RowArray:
    """Numbers of the queries, ascending: runs at random places."""
    count = min(QUERIES, n)
    run = max(count // PLACES, 1)
    starts = np.random.default_rng(1).permutation(n // run)[: count // run]
    return (np.sort(starts)[:, None] * run + np.arange(run)).ravel()


class _Nearest:
    """The best rows so far."""

    def __init__(self, queries: FloatArray, rows: RowArray, n: int, lengths: FloatArray | None) -> None:
        (q, dim), width = queries.shape, min(WIDTH, n - 1)
        self.queries, self.rows, self.n, self.lengths = queries, rows, n, lengths
        self.background: list[tuple[FloatArray, FloatArray]] = []
        self.scores = np.full((q, width), -np.inf, dtype=np.float32)
        self.nearest = np.full((q, width), -1, dtype=np.int64)
        self.vectors = np.zeros((q, width, dim), dtype=np.float32)
        self.norms = np.ones((q, width), dtype=np.float32)

    def add(self, begin: int, chunk: FloatArray, metric: Metric) -> None:
        """Takes rows from number `begin` on."""
        unit = normalize_rows(chunk)
        scores = self.queries @ unit.T
        norms = np.ones(len(chunk), np.float32)
        if metric != "cosine":
            norms = row_norms(chunk).astype(np.float32)
            scores = _in_metric(scores, norms, self.lengths)
        step = -(-self.n // BACKGROUND)
        self.background.append((unit[-begin % step :: step], norms[-begin % step :: step]))
        own = (self.rows >= begin) & (self.rows < begin + len(chunk))
        scores[np.flatnonzero(own), self.rows[own] - begin] = -np.inf
        for i, of_query in enumerate(scores):
            # Only the worst of those held are given up.
            better = np.flatnonzero(of_query > self.scores[i].min())
            width = self.scores.shape[1]
            if len(better) > width:
                better = better[np.argpartition(-of_query[better], width - 1)[:width]]
            better = better[np.argsort(-of_query[better])]
            places = np.argsort(self.scores[i], kind="stable")[: len(better)]
            keep = of_query[better] > self.scores[i, places]
            better, places = better[keep], places[keep]
            self.scores[i, places], self.nearest[i, places] = of_query[better], begin + better
            self.vectors[i, places], self.norms[i, places] = unit[better], norms[better]

    def sorted(self) -> Neighbourhoods:
        """The result."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        return Neighbourhoods(
            queries=self.queries,
            rows=self.rows,
            nearest=np.take_along_axis(self.nearest, order, axis=1),
            vectors=np.take_along_axis(self.vectors, order[:, :, None], axis=1),
            norms=np.take_along_axis(self.norms, order, axis=1),
            background=np.concatenate([rows for rows, _ in self.background]),
            background_norms=np.concatenate([norms for _, norms in self.background]),
            n=self.n,
            lengths=self.lengths,
        )


def _in_metric(
    cosines: FloatArray, norms: FloatArray, lengths: FloatArray | None, share: float = 1.0
) -> FloatArray:
    """Scores (q, c) of cosines and norms; with the lengths (q,) of queries, those of distances."""
    scores: FloatArray = cosines * norms
    if lengths is not None:
        scores = scores - np.float32(share / 2) * np.square(norms) / lengths[:, None]
    return scores
