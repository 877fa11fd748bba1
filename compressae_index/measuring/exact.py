"""Exact search: the true neighbours of queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int, check_vectors, normalize_rows
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows
from compressae_index.sources.centred import Centred


def exact_neighbours(
    vectors: Vectors,
    queries: npt.ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    progress: bool = False,
) -> npt.NDArray[Any]:
    """Rows of the k most similar vectors by the metric, best first, ties to the lower row: (n_queries, k).

    Vectors are read in batches and compared in float32, squared distances ("l2") in float64.
    """
    check_choice(metric, "metric", METRICS)
    if metric == "l2":
        return _nearest(vectors, check_vectors(queries, name="queries", zeros=True), k, progress=progress)
    # The norm of a query does not change the order.
    unit = normalize_rows(check_vectors(queries, name="queries"))

    def scores_of(chunk: FloatArray) -> FloatArray:
        return unit @ _comparable(chunk, metric).T

    return _largest(vectors, unit.shape, k, scores_of, progress=progress)


def _nearest(vectors: Vectors, queries: FloatArray, k: int, *, progress: bool) -> npt.NDArray[Any]:
    """`exact_neighbours` by Euclidean distances, for which rows and queries may be zero."""
    seen, asked = Centred(vectors, None), queries.astype(np.float64)
    squares = np.einsum("qd,qd->q", asked, asked)[:, None]

    def scores_of(chunk: FloatArray) -> npt.NDArray[np.float64]:
        rows = chunk.astype(np.float64)
        scores: npt.NDArray[np.float64] = 2 * (asked @ rows.T) - squares
        scores -= np.einsum("nd,nd->n", rows, rows)
        return scores

    return _largest(seen, queries.shape, k, scores_of, progress=progress)


def _largest(
    vectors: Vectors,
    shape: tuple[int, ...],
    k: int,
    scores_of: Callable[[FloatArray], npt.NDArray[Any]],
    *,
    progress: bool,
) -> npt.NDArray[Any]:
    """Rows of the k largest scores of queries (n_queries, d), best first, ties to the lower row."""
    n_queries, dim = shape
    k = check_int(k, "k", 1, vectors.shape[0], "vectors")
    scores: npt.NDArray[Any] = np.empty((n_queries, 0), dtype=np.float32)
    rows = np.empty((n_queries, 0), dtype=np.int64)
    with track(vectors.shape[0], "exact search", enabled=progress) as advance:
        for begin in range(0, vectors.shape[0], CHUNK_ROWS):
            chunk = checked_rows(vectors, begin, begin + CHUNK_ROWS, dim=dim)
            scores = np.concatenate([scores, scores_of(chunk)], axis=1)
            here = np.broadcast_to(np.arange(begin, begin + len(chunk)), (n_queries, len(chunk)))
            rows = np.concatenate([rows, here], axis=1)
            if scores.shape[1] > k:
                best = _best(scores, k)
                scores, rows = (
                    np.take_along_axis(scores, best, axis=1),
                    np.take_along_axis(rows, best, axis=1),
                )
            advance(len(chunk))
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


def _comparable(rows: FloatArray, metric: Metric) -> FloatArray:
    """Rows whose inner products with a query have the order of the metric."""
    return normalize_rows(rows) if metric == "cosine" else rows


def _best(scores: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Columns of the k largest of each row, ascending; of equal ones the lower columns."""
    least = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    chosen = scores >= least
    for row in np.flatnonzero(chosen.sum(axis=1) > k):
        ties = np.flatnonzero(scores[row] == least[row])
        chosen[row, ties[k - chosen[row].sum() :]] = False
    return np.nonzero(chosen)[1].reshape(len(scores), k)
