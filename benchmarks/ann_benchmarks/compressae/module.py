"""compressae-index in ann-benchmarks and in VIBE; belongs in the folder of algorithms there."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.building.planning import FEWEST_LATENTS, POSTINGS, VALUE_BITS, Shared
from compressae_index.checks import check_threads
from compressae_index.coding.metric import Metric
from compressae_index.coding.residual import RESIDUAL_BITS
from compressae_index.embedded.codecs import Packed
from compressae_index.embedded.sizes import POSTING_BYTES
from compressae_index.search.index import IndexStats
from compressae_index.training.config import DEFAULT_LATENTS

# Of either framework: both keep algorithms side by side in one folder, and their base class among them.
BaseANN: Any = importlib.import_module("..base.module", __package__).BaseANN

METRICS: dict[str, Metric] = {
    "angular": "cosine",
    "cosine": "cosine",
    "normalized": "cosine",
    "ip": "inner_product",
    "euclidean": "l2",
}
# The largest settings of config.yml, to which the others are in proportion.
MOST_NONZEROS, MOST_BYTES = 64, 512
# Sizes from which settings are taken as they are: dictionaries, vectors.
WHOLE_LATENTS, WHOLE_ROWS = 512, 20_000


class Compressae(BaseANN):  # type: ignore[misc]
    """One index, which answers at several points of recall and speed.

    Queries come as they are, so that their projection on the dictionary is part of what is timed.
    """

    def __init__(self, metric: str, dimension: int, build_options: Mapping[str, Any]) -> None:
        """From the data set's metric and dimension, and arguments of `CompressedIndex.build`.

        They are for many vectors of many dimensions; `fit` makes them smaller where it is given fewer.

        Raises:
            ValueError: the metric is of bits or sets.
        """
        if metric not in METRICS:
            msg = f"compressae-index searches by {', '.join(METRICS)} here, got metric {metric!r}"
            raise ValueError(msg)
        self._metric = METRICS[metric]
        self._build_options = dict(build_options)
        self._dimension = dimension
        self._query_options: dict[str, Any] = {}
        self._settled: dict[int, dict[str, Any]] = {}
        self._index: CompressedIndex | None = None

    def fit(self, X: npt.ArrayLike) -> None:  # noqa: N803
        """Trains a dictionary on the vectors (n, dimension) and encodes them, with all threads."""
        vectors = np.asarray(X, dtype=np.float32)
        # Vectors without a direction have no angular distance, and are in some data sets.
        rows = np.flatnonzero(vectors.any(axis=1) | (self._metric == "l2"))
        self._build_options = fitting_build(self._build_options, len(rows), self._dimension)
        self._index = CompressedIndex.build(
            vectors[rows], rows, metric=self._metric, progress=False, **self._build_options
        )
        self._stats = self._index.stats()
        # Until `done`: set for each query, it would take longer than the query.
        self._limits = threadpool_limits(1)

    def set_query_arguments(self, query_options: Mapping[str, Any]) -> None:
        """Takes arguments of `CompressedIndex.search`, for many vectors; fewer are searched with less."""
        self._query_options, self._settled = fitting_query(query_options, self._stats), {}

    def query(self, v: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
        """Rows of the n nearest vectors of v (dimension,), fewer where fewer are found; on one thread."""
        return _found(self._search(np.asarray(v)[None], n, 1)[0])

    def batch_query(self, X: npt.ArrayLike, n: int) -> None:  # noqa: N803
        """Searches for all queries (n_queries, dimension) at once, with all threads."""
        threads = check_threads(None)
        with threadpool_limits(threads):
            self._batch = self._search(np.asarray(X), n, threads)

    def get_batch_results(self) -> list[npt.NDArray[np.int64]]:
        """The results of the last batch, in the form of `query`."""
        return [_found(ids) for ids in self._batch]

    def _search(self, queries: npt.NDArray[Any], n: int, threads: int) -> npt.NDArray[Any]:
        assert self._index is not None, "fit comes first"
        # To a query without a direction all vectors are as near, so any answer is as good.
        has_place = queries.any(axis=1, keepdims=True) | (self._metric == "l2")
        directed: FloatArray = np.where(has_place, queries, 1).astype(np.float32)
        options = self._settled.get(n)
        if options is None:
            options = self._settled[n] = settled(self._query_options, n, self._index)
        return self._index.search(directed, n, num_threads=threads, **options).ids

    def get_memory_usage(self) -> float:
        """Kilobytes of codes, posting lists, ids, model, and original vectors on disk.

        Those are in the system's cache while they are searched; the process holds what trained it as well.
        """
        if self._index is None:
            return 0.0
        stats = self._stats
        row_bytes = stats.bytes_per_vector["total"] + stats.disk_bytes_per_vector
        return (row_bytes * stats.vectors + stats.model_bytes) / 1024

    def get_additional(self) -> dict[str, float]:
        """Bytes that the mode of the last queries reads of a vector, in memory and on disk; of the model."""
        mode = self._query_options.get("mode", "two_stage")
        return {
            "bytes_per_vector": self._stats.bytes_by_mode[mode],
            "disk_bytes_per_vector": self._stats.disk_bytes_per_vector,
            "model_bytes": self._stats.model_bytes,
        }

    def done(self) -> None:
        """Gives back the memory of the index, and the threads that the next one is built with."""
        self._index = None
        self._limits.restore_original_limits()

    def __str__(self) -> str:
        options = ", ".join(
            f"{name}={value}" for name, value in (self._build_options | self._query_options).items()
        )
        return f"compressae({options})"


def fitting_build(options: Mapping[str, Any], n: int, dimension: int) -> dict[str, Any]:
    """Arguments of `CompressedIndex.build` for n vectors, in the proportions of config.yml.

    Args:
        options: the arguments for many vectors of many dimensions.
        n: vectors.
        dimension: of the vectors.
    """
    fitted = dict(options)
    if "k" in fitted:
        # A code has at most as many nonzeros as dimensions, and a dictionary takes 8 vectors for each.
        fitted["k"] = _share(options["k"], max(min(dimension, n // 8), 1), MOST_NONZEROS)
    if "postings" in fitted:
        fitted["postings"] = min(options["postings"], fitted["k"])
    if "bytes_per_vector" in fitted:
        fitted["bytes_per_vector"] = _budget(options["bytes_per_vector"], n, dimension)
    return fitted


def _budget(budget: int, n: int, dimension: int) -> float:
    """The budget, or its share of what half the dimensions as nonzeros and all residuals take, if less."""
    n_latents, k = min(DEFAULT_LATENTS, n // 2), max(dimension // 2, 1)
    least, largest = (
        Packed(bits).row_bytes(n_latents, nonzeros) + POSTING_BYTES * min(nonzeros, max(POSTINGS))
        for nonzeros, bits in ((1, min(VALUE_BITS)), (k, max(VALUE_BITS)))
    )
    residual = dimension * max(RESIDUAL_BITS) / 8
    shared = Shared(n, dimension, id_bytes=0.0, counts_dictionary=True).overhead(
        min(FEWEST_LATENTS, n_latents)
    )
    whole = shared + least + (largest + residual - least) * budget / MOST_BYTES
    return min(float(budget), math.ceil(10 * whole) / 10)


def fitting_query(options: Mapping[str, Any], stats: IndexStats) -> dict[str, Any]:
    """Arguments of `CompressedIndex.search` for an index, in the proportions of config.yml."""
    fitted = dict(options)
    for name, whole, held in (
        ("query_nnz", WHOLE_LATENTS, stats.n_latents),
        ("candidates", WHOLE_ROWS, stats.vectors),
        ("refine", WHOLE_ROWS, stats.vectors),
    ):
        if name in fitted:
            fitted[name] = _share(fitted[name], held, whole)
    return fitted


def settled(options: Mapping[str, Any], n: int, index: CompressedIndex) -> dict[str, Any]:
    """Arguments that the index takes in a search for n neighbours.

    A recall that it does not reach is searched for by the settings that come nearest, or those that a search
    has by itself where none were measured: an error would end the runs that are still to come.
    """
    taken = {
        name: max(value, n) if name in ("candidates", "refine") else value for name, value in options.items()
    }
    if not index.documents.refines:  # codes without a residual, which a small budget may choose
        taken.pop("refine", None)
    if "target_recall" in taken and (
        index.frontier is None or taken["target_recall"] > index.frontier.points[-1].recall
    ):
        del taken["target_recall"]
        if index.frontier is not None:
            point = index.frontier.points[-1].for_neighbours(n)
            names = ("candidates", "query_nnz", *(("refine",) if point.refine else ()))
            taken = {name: getattr(point, name) for name in names} | taken
    return taken


def _share(setting: int, held: int, whole: int) -> int:
    """A setting for `whole` of something, scaled down to an index that holds fewer."""
    return min(setting, max(-(-setting * held // whole), 1))


def _found(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Without the padding of searches that find too few."""
    return ids[ids >= 0]
