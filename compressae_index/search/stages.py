"""The stages of a search, each written once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import BoolArray, FloatArray, Hits, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.ids import Ids
from compressae_index.search.queries import SearchResult


def strongest_terms(projections: FloatArray, query_nnz: int) -> SparseCodes:
    """The query_nnz largest entries of each projection (n_queries, n_latents) by magnitude."""
    n_latents = projections.shape[1]
    query_nnz = min(query_nnz, n_latents)
    chosen = np.argpartition(-np.abs(projections), query_nnz - 1, axis=1)[:, :query_nnz]
    chosen.sort(axis=1)
    values = np.take_along_axis(projections, chosen, axis=1)
    return SparseCodes(chosen.astype(np.uint16), values, n_latents)


def code_scores(projections: FloatArray, codes: SparseCodes) -> FloatArray:
    """Sums of projection[latent] * value of the codes of each query's candidates: (n_queries, c).

    Args:
        projections: (n_queries, n_latents).
        codes: n_queries * c rows, those of the first query first.
    """
    n_queries = len(projections)
    latents = codes.latents.reshape(n_queries, -1)
    values = codes.values.reshape(n_queries, -1, codes.k)
    taken = np.take_along_axis(projections, latents.astype(np.int64), axis=1).reshape(values.shape)
    scores: FloatArray = np.einsum("qck,qck->qc", taken, values)
    return scores


def holds_best(sums: FloatArray, bounds: FloatArray, k: int) -> BoolArray:
    """Whether the k best documents by the query's terms are provably among its candidates.

    They are where the k-th best sum of the candidates is at least what any other document can reach.

    Args:
        sums: (n_queries, c) exact sums of the candidates; -inf where there is none.
        bounds: (n_queries,) what no other document exceeds.
        k: neighbours; where there are fewer candidates, all of them.
    """
    found = np.isfinite(sums).sum(axis=1)
    if sums.shape[1] == 0:
        return bounds <= 0
    ranked = -np.sort(-sums, axis=1)
    last = ranked[np.arange(len(ranked)), np.maximum(np.minimum(found, k) - 1, 0)]
    return np.where(found == 0, 0, last) >= bounds


def _best(scores: FloatArray, ids: IdArray, k: int) -> npt.NDArray[np.int64]:
    """Columns of the k best of each query, best first, ties to the lower id: (n_queries, at most k)."""
    # lexsort knows no objects; a missing id comes behind all others by its score.
    places: Any = ids
    if ids.dtype == object:
        place_of = {name: place for place, name in enumerate(sorted({*ids.flat} - {None}))}
        places = np.array([place_of.get(name, -1) for name in ids.flat], dtype=np.int64).reshape(ids.shape)
    return np.lexsort((places, -scores), axis=1)[:, :k]


def padded(scores: FloatArray, rows: npt.NDArray[np.int64], k: int, ids: Ids) -> SearchResult:
    """Hits as results of k places a query."""
    missing = k - rows.shape[1]
    if missing:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return SearchResult(scores, ids.of(rows))


def in_order(scores: FloatArray, rows: RowArray) -> Hits:
    """Hits (n_queries, k) by score, ties by row; rows of -1 last, with score -inf."""
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
