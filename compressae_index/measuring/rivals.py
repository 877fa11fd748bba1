"""Exact search and Faiss's quantisers, measured like an index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_vectors, normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.measuring.evaluation import Measurement, measure
from compressae_index.measuring.exact import _comparable
from compressae_index.progress import track
from compressae_index.sources import Vectors

# Centroids of a sub-vector in product quantisation: 8 bits.
PQ_CENTROIDS = 256


# At most this many training vectors per centroid, and this many rounds of k-means. Faiss's defaults, 256 and
# 25, take eight times as long: minutes for sub-vectors of 3 dimensions.
PQ_POINTS_PER_CENTROID, PQ_ROUNDS = 80, 10


RABITQ_BITS = range(1, 9)


def evaluate_exact(
    vectors: Vectors,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    metric: Metric = "cosine",
    id_bytes: float = 0.0,
) -> Measurement:
    """Measures exact search over float32 vectors by numpy; each vector takes `id_bytes` more for its id."""
    rows = _rows(vectors, metric)
    halves = np.einsum("nd,nd->n", rows, rows) / 2 if metric == "l2" else None

    def search(query: FloatArray, k: int) -> npt.NDArray[Any]:
        scores = normalize_rows(query) @ rows.T if halves is None else query @ rows.T - halves
        best = np.argpartition(-scores, min(k, len(rows)) - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1)

    return measure("exact float32", rows.shape[1] * 4.0 + id_bytes, search, queries, truth, ks)


def evaluate_pq(
    vectors: Vectors,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    bytes_per_vector: float,
    *,
    ks: Iterable[int] = (10, 100),
    metric: Metric = "cosine",
) -> Measurement:
    """Measures Faiss's product quantisation (8 bits a sub-vector) at the largest size within the given bytes.

    Raises:
        MissingExtraError: Faiss is not installed.
        InputError: fewer vectors than a sub-vector has centroids.
    """
    faiss = import_faiss(vectors.shape[0])
    rows = _rows(vectors, metric)
    return _evaluate_faiss(faiss, _pq(rows.shape[1], bytes_per_vector), rows, queries, truth, ks, metric)


def evaluate_quantisers(
    vectors: Vectors,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    budgets: Iterable[float],
    *,
    ks: Iterable[int] = (10, 100),
    metric: Metric = "cosine",
    id_bytes: float = 0.0,
    progress: bool = False,
) -> dict[str, list[Measurement]]:
    """Measures Faiss's quantisers, with a full scan of their codes, by family.

    "Faiss SQ" stores each number in half precision, or in 8 bits. "Faiss PQ" (8 bits a sub-vector) and
    "Faiss RaBitQ" (1 to 8 bits a number, after a random rotation) have, for each budget, the largest size
    within it. Rotations and k-means start from fixed seeds of Faiss.

    Args:
        vectors: (n, d), all kept in memory.
        queries: (n_queries, d).
        truth: rows of the true neighbours, best first, (n_queries, at least max(ks)).
        budgets: bytes a vector.
        ks: the k of each recall@k.
        metric: metric of the neighbours.
        id_bytes: bytes of an id, added to the size of Faiss's codes, which have none; budgets include it.
        progress: show a progress bar.

    Raises:
        MissingExtraError: Faiss is not installed.
        InputError: fewer vectors than a sub-vector has centroids.
    """
    faiss = import_faiss(vectors.shape[0])
    rows = _rows(vectors, metric)
    families = _quantisers(faiss, rows.shape[1], [budget - id_bytes for budget in sorted(budgets)])
    measured: dict[str, list[Measurement]] = {family: [] for family in families}
    with track(sum(map(len, families.values())), "Faiss", enabled=progress, unit="indexes") as advance:
        for family, keys in families.items():
            for key in keys:
                one = _evaluate_faiss(faiss, key, rows, queries, truth, ks, metric)
                measured[family].append(one._replace(bytes_per_vector=one.bytes_per_vector + id_bytes))
                advance(1)
    return measured


def _rows(vectors: Vectors, metric: Metric) -> FloatArray:
    """All rows, to compare with queries by a metric."""
    every = check_vectors(vectors[0 : vectors.shape[0]], zeros=metric == "l2")
    return _comparable(every, metric)


def _quantisers(faiss: Any, dim: int, budgets: list[float]) -> dict[str, list[str]]:
    """Keys of Faiss's index factory by family, fewest bytes first."""
    sizes = {bits: faiss.index_factory(dim, f"RaBitQ{bits}").sa_code_size() for bits in RABITQ_BITS}
    fitting = [[bits for bits, size in sizes.items() if size <= budget] for budget in budgets]
    families = {
        "Faiss SQ": ["SQ8", "SQfp16"],
        "Faiss PQ": [_pq(dim, budget) for budget in budgets],
        "Faiss RaBitQ": [f"RR{dim},RaBitQ{bits[-1]}" for bits in fitting if bits],
    }
    # Nearly equal budgets give the same key.
    return {family: list(dict.fromkeys(keys)) for family, keys in families.items() if keys}


def import_faiss(n: int) -> Any:
    """Imports Faiss, to quantise n vectors; call it early to fail before any work.

    Raises:
        MissingExtraError: Faiss is not installed.
        InputError: fewer vectors than a sub-vector has centroids.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "faiss", "comparing with product quantisation") from error
    if n < PQ_CENTROIDS:
        msg = f"product quantisation needs at least {PQ_CENTROIDS} vectors, got {n}"
        raise InputError(msg)
    return faiss


def _pq(dim: int, budget: float) -> str:
    """The key of the largest product quantiser within `budget` bytes, at least one."""
    parts = max(m for m in range(1, dim + 1) if dim % m == 0 and m <= max(budget, 1))
    return f"PQ{parts}x8np"  # not polysemous: that takes minutes and changes no distance


def _evaluate_faiss(
    faiss: Any,
    key: str,
    rows: FloatArray,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
    metric: Metric,
) -> Measurement:
    """Measures a Faiss index, given the key of its factory."""
    by_distance = metric == "l2"
    kind = faiss.METRIC_L2 if by_distance else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(rows.shape[1], key, kind)
    if isinstance(index, faiss.IndexPQ):
        index.pq.cp.max_points_per_centroid = PQ_POINTS_PER_CENTROID
        index.pq.cp.niter = PQ_ROUNDS
        # With fewer than 39 per centroid, Faiss would print a warning for each sub-vector.
        index.pq.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)

    def search(query: FloatArray, k: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = index.search(query if by_distance else normalize_rows(query), k)[1]
        return found

    name = "Faiss " + key.split(",")[-1].removesuffix("np")
    return measure(name, float(index.sa_code_size()), search, queries, truth, ks)
