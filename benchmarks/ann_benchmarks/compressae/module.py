"""compressae-index in ann-benchmarks; belongs in ann_benchmarks/algorithms/compressae/ there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ann_benchmarks.algorithms.base.module import BaseANN
from threadpoolctl import threadpool_limits

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.building.planning import POSTINGS, VALUE_BITS
from compressae_index.checks import check_threads
from compressae_index.embedded.codecs import Packed
from compressae_index.embedded.sizes import POSTING_BYTES, list_overhead
from compressae_index.search.index import IndexStats
from compressae_index.training.config import DEFAULT_LATENTS

# The largest settings of config.yml, to which the others are in proportion.
MOST_NONZEROS, MOST_BYTES = 64, 192
# Sizes from which settings are taken as they are: dictionaries, vectors, clusters.
WHOLE_LATENTS, WHOLE_ROWS, WHOLE_CLUSTERS = 512, 20_000, 320
# As `CompressedIndex.search` has it.
DEFAULT_CANDIDATES = 1000
# Vectors from which clusters are so many that several shares of them can be told apart.
CLUSTERED_ROWS = 65_536
# Of so few dimensions, or vectors, that nonzeros cannot differ, bits do; by k, or by bytes_per_vector.
FEW = 4
BITS = {16: 4, 96: 5, 32: 6, 192: 7, 64: 8}


class Compressae(BaseANN):  # type: ignore[misc]
    """One index, which answers at several points of recall and speed.

    Queries come as they are, so that their projection on the dictionary is part of what is timed.
    """

    def __init__(self, metric: str, dimension: int, build_options: Mapping[str, Any]) -> None:
        """From the data set's metric and dimension, and arguments of `CompressedIndex.build`.

        They are for many vectors of many dimensions; `fit` makes them smaller where it is given fewer. With
        `cluster` true, the index is then clustered, or aligned where vectors are too few for that.

        Raises:
            ValueError: the metric is not angular.
        """
        if metric != "angular":
            msg = f"compressae-index searches angular data sets here, got metric {metric!r}"
            raise ValueError(msg)
        self._build_options = dict(build_options)
        self._dimension = dimension
        self._query_options: dict[str, Any] = {}
        self._index: CompressedIndex | None = None

    def fit(self, X: npt.ArrayLike) -> None:  # noqa: N803
        """Trains a dictionary on the vectors (n, dimension) and encodes them, with all threads."""
        vectors = np.asarray(X, dtype=np.float32)
        # Vectors without a direction have no angular distance, and are in some data sets.
        rows = np.flatnonzero(vectors.any(axis=1))
        self._build_options = fitting_build(self._build_options, len(rows), self._dimension)
        options = dict(self._build_options)
        is_clustered = options.pop("cluster", False)
        self._index = CompressedIndex.build(vectors[rows], rows, progress=False, **options)
        if is_clustered:
            self._index.cluster()
        self._stats = self._index.stats()
        # Until `done`: set for each query, it would take longer than the query.
        self._limits = threadpool_limits(1)

    def set_query_arguments(self, query_options: Mapping[str, Any]) -> None:
        """Takes arguments of `CompressedIndex.search`, for many vectors; fewer are searched with less."""
        assert self._index is not None, "fit comes first"
        self._query_options = fitting_query(query_options, self._stats)

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
        directed: FloatArray = np.where(queries.any(axis=1, keepdims=True), queries, 1).astype(np.float32)
        options = self._query_options
        if "candidates" in options:
            options = {**options, "candidates": max(options["candidates"], n)}
        return self._index.search(directed, n, num_threads=threads, **options).ids

    def get_memory_usage(self) -> float:
        """Kilobytes of codes, posting lists, ids and model; the process holds what trained it as well."""
        if self._index is None:
            return 0.0
        stats = self._index.stats()
        return (stats.bytes_per_vector["total"] * stats.vectors + stats.model_bytes) / 1024

    def get_additional(self) -> dict[str, float]:
        """Bytes of what the mode of the last queries reads of a vector, and of the model."""
        assert self._index is not None, "fit comes first"
        stats = self._index.stats()
        mode = self._query_options.get("mode", "two_stage")
        return {"bytes_per_vector": stats.bytes_by_mode[mode], "model_bytes": stats.model_bytes}

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
    """Arguments of `CompressedIndex.build` for n vectors, which differ as those of config.yml do.

    Args:
        options: the arguments for many vectors of many dimensions, and `cluster`.
        n: vectors.
        dimension: of the vectors.
    """
    fitted = dict(options)
    # A code has at most as many nonzeros as dimensions, and a dictionary takes 8 vectors for each.
    most = max(min(dimension, n // 8), 1)
    if "k" in fitted:
        fitted["k"] = _share(options["k"], most, MOST_NONZEROS)
        if most < FEW:
            fitted["value_bits"] = BITS[options["k"]]
    elif "bytes_per_vector" in fitted and most < FEW:
        fitted = {"k": 1, "value_bits": BITS[options["bytes_per_vector"]]}
    elif "bytes_per_vector" in fitted:
        fitted["bytes_per_vector"] = _budget(options["bytes_per_vector"], n, dimension)
    if options.get("cluster") and n < CLUSTERED_ROWS:
        del fitted["cluster"]
        fitted["forward"] = "aligned"
    return fitted


def _budget(budget: int, n: int, dimension: int) -> float:
    """The budget, or its share of what nonzeros of half the dimensions take, where that is less."""
    n_latents, k = min(DEFAULT_LATENTS, n // 2), dimension // 2
    least, largest = (
        Packed(bits).row_bytes(n_latents, nonzeros) + POSTING_BYTES * min(nonzeros, max(POSTINGS))
        for nonzeros, bits in ((1, min(VALUE_BITS)), (k, max(VALUE_BITS)))
    )
    whole = list_overhead(n_latents, n) + least + (largest - least) * budget / MOST_BYTES
    return min(float(budget), math.ceil(10 * whole) / 10)


def fitting_query(options: Mapping[str, Any], stats: IndexStats) -> dict[str, Any]:
    """Arguments of `CompressedIndex.search` for an index, which differ as those of config.yml do."""
    fitted = dict(options)
    if "nprobe" in fitted and not stats.clusters:
        # A search without clusters can leave out latents of the query.
        fitted = {"query_nnz": fitted.pop("nprobe"), "candidates": DEFAULT_CANDIDATES} | fitted
    for name, whole, held in (
        ("nprobe", WHOLE_CLUSTERS, stats.clusters),
        ("query_nnz", WHOLE_LATENTS, stats.n_latents),
        ("candidates", WHOLE_ROWS, stats.vectors),
    ):
        if name in fitted:
            fitted[name] = _share(fitted[name], held, whole)
    return fitted


def _share(setting: int, held: int, whole: int) -> int:
    """A setting for `whole` of something, scaled down to an index that holds fewer."""
    return min(setting, max(-(-setting * held // whole), 1))


def _found(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Without the padding of searches that find too few."""
    return ids[ids >= 0]
