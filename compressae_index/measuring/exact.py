"""Exact search: the true neighbours of queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int, check_vectors, normalize_rows
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows


def exact_neighbours(
    vectors: Vectors,
    queries: npt.ArrayLike,
    k: int,
    *,
    metric: Metric = "cosine",
    progress: bool = False,
) -> npt.NDArray[Any]:
    """Rows of the k most similar vectors by the metric, best first, ties to the lower row: (n_queries, k).

    Vectors are read in batches and compared in float32.
    """
    # The norm of a query does not change the order.
    unit = normalize_rows(check_vectors(queries, name="queries"))
    check_choice(metric, "metric", METRICS)
    k = check_int(k, "k", 1, vectors.shape[0], "vectors")
    scores = np.empty((len(unit), 0), dtype=np.float32)
    rows = np.empty((len(unit), 0), dtype=np.int64)
    with track(vectors.shape[0], "exact search", enabled=progress) as advance:
        for begin in range(0, vectors.shape[0], CHUNK_ROWS):
            chunk = _comparable(checked_rows(vectors, begin, begin + CHUNK_ROWS, dim=unit.shape[1]), metric)
            scores = np.concatenate([scores, unit @ chunk.T], axis=1)
            here = np.broadcast_to(np.arange(begin, begin + len(chunk)), (len(unit), len(chunk)))
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


def _best(scores: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Columns of the k largest of each row, ascending; of equal ones the lower columns."""
    least = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    chosen = scores >= least
    for row in np.flatnonzero(chosen.sum(axis=1) > k):
        ties = np.flatnonzero(scores[row] == least[row])
        chosen[row, ties[k - chosen[row].sum() :]] = False
    return np.nonzero(chosen)[1].reshape(len(scores), k)
