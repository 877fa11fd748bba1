"""Stores of packages that `run.py frontier` alone compares, in the form of `stores.py`.

They are imported as they are needed, as they need not be installed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stores import IntArray, Opener

from compressae_index.arrays import FloatArray


@dataclass(frozen=True)
class HnswlibStore:
    """A graph of hnswlib over float32 vectors."""

    index: Any
    dim: int
    ef: int = 100

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        self.index.set_ef(self.ef)
        return _rows(self.index.knn_query(queries, k, num_threads=threads)[0])

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.save_index(str(folder / "index.hnswlib"))
        return partial(HnswlibStore.open, folder / "index.hnswlib", self.dim)

    @classmethod
    def open(cls, path: Path, dim: int) -> HnswlibStore:
        """Reads the index."""
        index = importlib.import_module("hnswlib").Index("ip", dim)
        index.load_index(str(path))
        return cls(index, dim)


@dataclass(frozen=True)
class UsearchStore:
    """A graph of usearch."""

    index: Any
    ef: int = 100

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        self.index.expansion_search = self.ef
        return _rows(self.index.search(queries, k, threads=threads).keys).reshape(len(queries), -1)

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.save(str(folder / "index.usearch"))
        return partial(UsearchStore.open, folder / "index.usearch")

    @classmethod
    def open(cls, path: Path) -> UsearchStore:
        """Reads the index."""
        return cls(importlib.import_module("usearch.index").Index.restore(str(path)))


@dataclass(frozen=True)
class VoyagerStore:
    """A graph of voyager."""

    index: Any
    ef: int = 100

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        return _rows(self.index.query(queries, k, num_threads=threads, query_ef=self.ef)[0])

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.save(str(folder / "index.voyager"))
        return partial(VoyagerStore.open, folder / "index.voyager")

    @classmethod
    def open(cls, path: Path) -> VoyagerStore:
        """Reads the index."""
        return cls(importlib.import_module("voyager").Index.load(str(path)))


@dataclass(frozen=True)
class ScannStore:
    """A searcher of ScaNN. Its batches are for several threads, single queries for one."""

    searcher: Any
    leaves: int = 10
    reordered: int = 100

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:  # noqa: ARG002
        """See `Store`."""
        settings = (k, max(k, self.reordered), self.leaves)
        if len(queries) == 1:
            return _rows(self.searcher.search(queries[0], *settings)[0])[None]
        return _rows(self.searcher.search_batched(queries, *settings)[0])

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.searcher.serialize(str(folder))
        return partial(ScannStore.open, folder)

    @classmethod
    def open(cls, folder: Path) -> ScannStore:
        """Reads the searcher."""
        searcher = importlib.import_module("scann").scann_ops_pybind.load_searcher(str(folder))
        searcher.set_num_threads(1)
        return cls(searcher)


@dataclass(frozen=True)
class VamanaStore:
    """A graph of Intel's Scalable Vector Search."""

    index: Any
    is_lvq: bool
    """Over locally adaptive quantisation; otherwise half precision."""
    window: int = 100

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        if self.index.num_threads != threads:
            self.index.num_threads = threads
        self.index.search_window_size = self.window
        return _rows(self.index.search(queries, k)[0])

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.save(*(str(folder / part) for part in ("config", "graph", "data")))
        return partial(VamanaStore.open, folder, self.is_lvq)

    @classmethod
    def open(cls, folder: Path, is_lvq: bool) -> VamanaStore:
        """Reads the index."""
        svs = importlib.import_module("svs")
        config, graph, data = (str(folder / part) for part in ("config", "graph", "data"))
        vectors = svs.LVQLoader(data) if is_lvq else svs.VectorDataLoader(data, svs.DataType.float16)
        index = svs.Vamana(config, svs.GraphLoader(graph), vectors, svs.DistanceType.MIP, num_threads=1)
        return cls(index, is_lvq)


def _rows(found: Any) -> IntArray:
    rows: IntArray = np.asarray(found).astype(np.int64)
    return rows
