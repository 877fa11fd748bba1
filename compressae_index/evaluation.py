"""Recall, bytes and latency, measured against exact search and against Faiss's quantisers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from compressae_index.backend import BackedIndex
from compressae_index.checks import FloatArray, check_choice, check_int, check_vectors, normalize_rows
from compressae_index.errors import DimensionError, InputError, MissingExtraError
from compressae_index.index import CompressedIndex
from compressae_index.metric import METRICS, Metric
from compressae_index.originals import check_held
from compressae_index.progress import track
from compressae_index.queries import MODES, Mode, Scoring
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows

# Latency is the median over this many queries, asked one by one.
TIMED_QUERIES = 200
# Of each sub-vector in product quantisation: 8 bits.
PQ_CENTROIDS = 256
# Vectors that each of them is learned from, at most, and rounds of k-means. Faiss's own 256 and 25 would take
# eight times as long: minutes, where a sub-vector has 3 dimensions.
PQ_POINTS_PER_CENTROID, PQ_ROUNDS = 80, 10
RABITQ_BITS = range(1, 9)
# What `sweep` varies: a mode, one of its options, and the values of that.
SWEPT: tuple[tuple[Mode, str, tuple[int, ...]], ...] = (
    ("sparse", "query_nnz", (8, 16, 32, 64, 128, 256)),
    ("two_stage", "candidates", (100, 300, 1000, 3000)),
    ("two_stage", "nprobe", (8, 16, 32, 64, 128, 256)),
)


class Measurement(NamedTuple):
    """One way to search, measured."""

    name: str
    bytes_per_vector: float
    """Of all that must be resident to serve it, ids included; the model or codebook is not."""
    recall: dict[int, float]
    """recall@k by k."""
    ms_per_query: float
    """Median of queries asked one by one with one thread, encoding of the query included."""

    @property
    def queries_per_second(self) -> float:
        """What one thread answers that asks one by one."""
        return 1000 / self.ms_per_query

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**self._asdict(), "queries_per_second": self.queries_per_second}


class Sweep(NamedTuple):
    """One mode at several values of one of its options."""

    mode: Mode
    option: str
    measurements: dict[int, Measurement]
    """By the value of the option."""


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
    # The norm of a query changes no order.
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
    """Rows whose inner products with queries order them by the metric."""
    return normalize_rows(rows) if metric == "cosine" else rows


def _best(scores: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Columns of the k largest of each row, ascending; of equal ones the lower columns."""
    least = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    chosen = scores >= least
    for row in np.flatnonzero(chosen.sum(axis=1) > k):
        ties = np.flatnonzero(scores[row] == least[row])
        chosen[row, ties[k - chosen[row].sum() :]] = False
    return np.nonzero(chosen)[1].reshape(len(scores), k)


def recall(found: npt.NDArray[Any], truth: npt.NDArray[Any], k: int) -> float:
    """recall@k: the share of the k true neighbours that are among the first k found, over all queries.

    Args:
        found: ids or rows, best first, (n_queries, at least k); -1 or None where nothing was found.
        truth: those of the true neighbours, of the same kind.
        k: how many of each count.

    Raises:
        DimensionError: fewer than k columns, or another number of queries.
        InputError: one holds strings and the other integers, which are never the same.
    """
    if len(found) != len(truth) or min(found.shape[1], truth.shape[1]) < k:
        msg = f"recall@{k} needs the same queries and k columns, got {found.shape} and {truth.shape}"
        raise DimensionError(msg)
    kinds = [array.dtype.kind in "iu" for array in (found, truth)]
    if kinds[0] != kinds[1]:
        msg = f"recall compares ids of one kind, got {found.dtype} and {truth.dtype}"
        raise InputError(msg)
    missing = {-1, None}
    shared = sum(
        len({*a[:k].tolist()} & {*b[:k].tolist()} - missing) for a, b in zip(found, truth, strict=True)
    )
    return shared / (len(truth) * k)


def evaluate(
    index: CompressedIndex | BackedIndex,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    scoring: Scoring = "asymmetric",
    **options: Any,
) -> list[Measurement]:
    """Every mode of an index; of one over a back end, such as a `FaissIndex`, `sparse` and `two_stage`.

    Args:
        index: what to measure.
        queries: (n_queries, d).
        truth: ids of the true neighbours, best first, (n_queries, at least max(ks)). They are the ids of the
            index's documents, which are row numbers only where nobody gave others; `originals_of` finds the
            vectors of an index's documents, whose `ids[exact_neighbours(vectors, queries, k)]` these are.
        ks: the k of each recall@k.
        scoring: as for `CompressedIndex.search`.
        options: candidates, query_nnz as for `CompressedIndex.search`.

    Raises:
        UnknownIdError: the truth holds ids that the index does not.
    """
    check_held(index, truth)
    return [_evaluate_mode(index, mode, queries, truth, ks, scoring, options) for mode in _modes(index)]


def _modes(index: CompressedIndex | BackedIndex) -> tuple[Mode, ...]:
    return MODES if isinstance(index, CompressedIndex) else cast("tuple[Mode, ...]", BackedIndex.modes)


def _bytes_of(index: CompressedIndex | BackedIndex, mode: Mode) -> float:
    """Bytes a vector that a mode reads; NaN where a back end does not tell."""
    if isinstance(index, CompressedIndex):
        return index.stats().bytes_by_mode[mode]
    return index.stats().bytes_per_vector.get("total", np.nan)


def sweep(
    index: CompressedIndex | BackedIndex,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    scoring: Scoring = "asymmetric",
    query_nnz: int | None = None,
    progress: bool = False,
) -> list[Sweep]:
    """How recall and time trade: in `sparse` by its query_nnz, in `two_stage` by its candidates.

    Of an index with clusters, also in `two_stage` by nprobe.

    Args:
        index: as for `evaluate`.
        queries: as for `evaluate`.
        truth: as for `evaluate`.
        ks: as for `evaluate`.
        scoring: as for `CompressedIndex.search`.
        query_nnz: of `two_stage`, as for `CompressedIndex.search`.
        progress: show a progress bar.

    Raises:
        UnknownIdError: the truth holds ids that the index does not.
    """
    check_held(index, truth)
    swept = settings_of(index)
    sweeps = []
    total = sum(len(values) for _, _, values in swept)
    with track(total, "sweep", enabled=progress, unit="settings") as advance:
        for mode, option, values in swept:
            measurements = {}
            for value in values:
                options = {"query_nnz": query_nnz, option: value}
                one = _evaluate_mode(index, mode, queries, truth, ks, scoring, options)
                measurements[value] = one._replace(name=f"{one.name}, {option}={value}")
                advance(1)
            sweeps.append(Sweep(mode, option, measurements))
    return sweeps


def settings_of(index: CompressedIndex | BackedIndex) -> list[tuple[Mode, str, list[int]]]:
    """What `sweep` varies of an index: the values of SWEPT that it is large enough for."""
    most = {
        "query_nnz": index.model.n_latents,
        "candidates": len(index),
        "nprobe": index.stats().clusters if isinstance(index, CompressedIndex) else 0,
    }
    return [
        (mode, option, [value for value in values if value <= most[option]] or [most[option]])
        for mode, option, values in SWEPT
        if most[option]
    ]


def _evaluate_mode(
    index: CompressedIndex | BackedIndex,
    mode: Mode,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
    scoring: Scoring,
    options: Mapping[str, Any],
) -> Measurement:
    ask: Any = index.search  # an index over a back end has fewer modes and options

    def search(rows: FloatArray, k: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = ask(rows, k, mode=mode, scoring=scoring, num_threads=1, **options).ids
        return found

    name = mode if scoring == "asymmetric" else f"{mode} ({scoring})"
    return measure(name, _bytes_of(index, mode), search, queries, truth, ks)


def evaluate_exact(
    vectors: Vectors,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    metric: Metric = "cosine",
    id_bytes: float = 0.0,
) -> Measurement:
    """Exact search over the float32 vectors, by numpy, which take `id_bytes` more each for their ids."""
    rows = _comparable(check_vectors(vectors[0 : vectors.shape[0]]), metric)

    def search(query: FloatArray, k: int) -> npt.NDArray[Any]:
        scores = normalize_rows(query) @ rows.T
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
    """Faiss product quantisation (8 bits a sub-vector) at the most bytes that do not exceed the given ones.

    Raises:
        MissingExtraError: Faiss is not installed.
        InputError: fewer vectors than a sub-vector has centroids.
    """
    faiss = import_faiss(vectors.shape[0])
    rows = _comparable(check_vectors(vectors[0 : vectors.shape[0]]), metric)
    return _evaluate_faiss(faiss, _pq(rows.shape[1], bytes_per_vector), rows, queries, truth, ks)


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
    """Quantisers of Faiss, whose codes are scanned one and all, by family.

    "Faiss SQ" stores each number in half precision, or in 8 bits. "Faiss PQ" (8 bits a sub-vector) and
    "Faiss RaBitQ" (1 to 8 bits a number, after a random rotation) have, for each budget, the most bytes that
    do not exceed it. Rotations and k-means start from fixed seeds of Faiss.

    Args:
        vectors: (n, d); all of them are kept in memory.
        queries: (n_queries, d).
        truth: rows of the true neighbours, best first, (n_queries, at least max(ks)).
        budgets: bytes of a vector.
        ks: the k of each recall@k.
        metric: what neighbours are by.
        id_bytes: what an id takes, which Faiss's codes are without: it counts with them, in the budgets too.
        progress: show a progress bar.

    Raises:
        MissingExtraError: Faiss is not installed.
        InputError: fewer vectors than a sub-vector has centroids.
    """
    faiss = import_faiss(vectors.shape[0])
    rows = _comparable(check_vectors(vectors[0 : vectors.shape[0]]), metric)
    families = _quantisers(faiss, rows.shape[1], [budget - id_bytes for budget in sorted(budgets)])
    measured: dict[str, list[Measurement]] = {family: [] for family in families}
    with track(sum(map(len, families.values())), "Faiss", enabled=progress, unit="indexes") as advance:
        for family, keys in families.items():
            for key in keys:
                one = _evaluate_faiss(faiss, key, rows, queries, truth, ks)
                measured[family].append(one._replace(bytes_per_vector=one.bytes_per_vector + id_bytes))
                advance(1)
    return measured


def _quantisers(faiss: Any, dim: int, budgets: list[float]) -> dict[str, list[str]]:
    """Keys of Faiss's factory by family, fewest bytes first."""
    sizes = {bits: faiss.index_factory(dim, f"RaBitQ{bits}").sa_code_size() for bits in RABITQ_BITS}
    fitting = [[bits for bits, size in sizes.items() if size <= budget] for budget in budgets]
    families = {
        "Faiss SQ": ["SQ8", "SQfp16"],
        "Faiss PQ": [_pq(dim, budget) for budget in budgets],
        "Faiss RaBitQ": [f"RR{dim},RaBitQ{bits[-1]}" for bits in fitting if bits],
    }
    # Budgets that are nearly equal are met by the same one.
    return {family: list(dict.fromkeys(keys)) for family, keys in families.items() if keys}


def import_faiss(n: int) -> Any:
    """The library, which is to quantise n vectors; for callers that want to know before they compute.

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
    """Faiss's key of a product quantiser of at most so many bytes, and of at least one."""
    parts = max(m for m in range(1, dim + 1) if dim % m == 0 and m <= max(budget, 1))
    return f"PQ{parts}x8np"  # not polysemous: that takes minutes, and changes no distance


def _evaluate_faiss(
    faiss: Any,
    key: str,
    rows: FloatArray,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
) -> Measurement:
    """An index of Faiss by its factory's key."""
    index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexPQ):
        index.pq.cp.max_points_per_centroid = PQ_POINTS_PER_CENTROID
        index.pq.cp.niter = PQ_ROUNDS
        # Faiss would print a warning for each sub-vector where there are fewer than 39.
        index.pq.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)

    def search(query: FloatArray, k: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = index.search(normalize_rows(query), k)[1]
        return found

    name = "Faiss " + key.split(",")[-1].removesuffix("np")
    return measure(name, float(index.sa_code_size()), search, queries, truth, ks)


def measure(
    name: str,
    bytes_per_vector: float,
    search: Callable[[FloatArray, int], npt.NDArray[Any]],
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
) -> Measurement:
    """Recall of the batch, and the median time of single queries with one thread."""
    ks = sorted(ks)
    found = search(queries, ks[-1])
    seconds = []
    with threadpool_limits(1):
        for query in queries[:TIMED_QUERIES]:
            started = time.perf_counter()
            search(query[None], ks[-1])
            seconds.append(time.perf_counter() - started)
    return Measurement(
        name, bytes_per_vector, {k: recall(found, truth, k) for k in ks}, 1000 * statistics.median(seconds)
    )


def as_table(measurements: Iterable[Measurement]) -> str:
    """A Markdown table, columns aligned for a terminal."""
    measurements = list(measurements)
    ks = list(measurements[0].recall)
    rows = [["", *(f"recall@{k}" for k in ks), "bytes/vector", "ms/query"]]
    rows += [
        [m.name, *(f"{m.recall[k]:.3f}" for k in ks), f"{m.bytes_per_vector:.0f}", f"{m.ms_per_query:.2f}"]
        for m in measurements
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in rows
    )
