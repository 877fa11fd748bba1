"""compressae-index in ann-benchmarks; belongs in ann_benchmarks/algorithms/compressae/ there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ann_benchmarks.algorithms.base.module import BaseANN
from threadpoolctl import threadpool_limits

from compressae_index import CompressedIndex
from compressae_index.checks import FloatArray, check_threads
from compressae_index.embedded import WINDOW


class Compressae(BaseANN):  # type: ignore[misc]
    """One index, which answers at several points of recall and speed.

    Queries come as they are, so that their projection on the dictionary is part of what is timed.
    """

    def __init__(self, metric: str, dimension: int, build_options: Mapping[str, Any]) -> None:
        """From the data set's metric and dimension, and arguments of `CompressedIndex.build`.

        With `cluster` true, the index is then clustered.

        Raises:
            ValueError: the metric is not angular.
        """
        if metric != "angular":
            msg = f"compressae-index searches angular data sets here, got metric {metric!r}"
            raise ValueError(msg)
        self._build_options = dict(build_options)
        if "k" in self._build_options:
            # Of few dimensions, more nonzeros than half of them only repeat each other.
            self._build_options["k"] = min(self._build_options["k"], max(1, dimension // 2))
        self._query_options: dict[str, Any] = {}
        self._index: CompressedIndex | None = None

    def fit(self, X: npt.ArrayLike) -> None:  # noqa: N803
        """Trains a dictionary on the vectors (n, dimension) and encodes them, with all threads."""
        vectors = np.asarray(X, dtype=np.float32)
        # Vectors without a direction have no angular distance, and are in some data sets.
        rows = np.flatnonzero(vectors.any(axis=1))
        options = dict(self._build_options)
        is_clustered = options.pop("cluster", False)
        self._index = CompressedIndex.build(vectors[rows], rows, progress=False, **options)
        if is_clustered and len(rows) >= WINDOW:
            self._index.cluster()
        # Until `done`: set for each query, it would take longer than the query.
        self._limits = threadpool_limits(1)

    def set_query_arguments(self, query_options: Mapping[str, Any]) -> None:
        """Takes arguments of `CompressedIndex.search`."""
        self._query_options = dict(query_options)

    def query(self, v: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
        """Rows of the n nearest vectors of v (dimension,), fewer where fewer are found; on one thread."""
        return _found(self._search(np.asarray(v)[None], n, 1)[0])

    def batch_query(self, X: npt.ArrayLike, n: int) -> None:  # noqa: N803
        """Searches for all queries (n_queries, dimension) at once, with all threads."""
        threads = check_threads(None)
        with threadpool_limits(threads):
            self._batch = self._search(np.asarray(X), n, threads)

    def get_batch_results(self) -> list[npt.NDArray[np.int64]]:
        """What the last batch found, as `query` would."""
        return [_found(ids) for ids in self._batch]

    def _search(self, queries: npt.NDArray[Any], n: int, threads: int) -> npt.NDArray[Any]:
        assert self._index is not None, "fit comes first"
        # To a query without a direction all vectors are as near, so any answer is as good.
        directed: FloatArray = np.where(queries.any(axis=1, keepdims=True), queries, 1).astype(np.float32)
        options = self._query_options
        if self._index.documents.backend.clusters is None:  # too few vectors
            options = {name: value for name, value in options.items() if name != "nprobe"}
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


def _found(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Without the padding of searches that find too few."""
    return ids[ids >= 0]
