"""Stores of vectors, those of every library in one form: search, save, open again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray

IntArray: TypeAlias = npt.NDArray[Any]
Opener: TypeAlias = Callable[[], "Store"]


class Store(Protocol):
    """Stored vectors that can be searched."""

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """Rows of the k nearest of each query, best first; it is of unit norm, unless distances count."""
        ...

    def save(self, folder: Path) -> Opener:
        """Writes to an empty folder; the result opens it again, also in another process."""
        ...


@dataclass(frozen=True)
class OurStore:
    """An index of ours, searched in one way."""

    index: CompressedIndex
    options: dict[str, Any] = field(default_factory=dict)
    """Of `CompressedIndex.search`: mode, scoring, candidates, query_nnz, refine."""
    mmap: bool = True
    """Opened again by mapping its files, so that what a mode does not read takes no memory."""
    path: Path | None = None
    """Of its files, if it was opened."""

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        return self.index.search(queries, k, num_threads=threads, **self.options).ids

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.save(folder / "index")
        return partial(OurStore.open, folder / "index", self.options, self.mmap)

    @classmethod
    def open(cls, path: Path, options: dict[str, Any], mmap: bool) -> OurStore:
        """Loads the index."""
        return cls(CompressedIndex.load(path, mmap=mmap), options, mmap, path)


@dataclass(frozen=True)
class FaissStore:
    """An index of Faiss."""

    index: Any
    knobs: tuple[tuple[Any, str, int], ...] = ()
    """Objects of Faiss, and what is set on them before each search."""

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        faiss.omp_set_num_threads(threads)
        for target, name, value in self.knobs:
            setattr(target, name, value)
        found: IntArray = self.index.search(queries, k)[1]
        return found

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        faiss.write_index(self.index, str(folder / "index.faiss"))
        return partial(FaissStore.open, folder / "index.faiss")

    @classmethod
    def open(cls, path: Path) -> FaissStore:
        """Reads the index."""
        return cls(faiss.read_index(str(path)))


@dataclass(frozen=True)
class TurbovecStore:
    """An index of turbovec, whose threads the variable RAYON_NUM_THREADS sets before it is loaded."""

    index: Any

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:  # noqa: ARG002
        """See `Store`."""
        found: IntArray = np.asarray(self.index.search(queries, k)[1]).astype(np.int64)
        return found

    def save(self, folder: Path) -> Opener:
        """See `Store`."""
        self.index.write(str(folder / "index.turbovec"))
        return partial(TurbovecStore.open, folder / "index.turbovec")

    @classmethod
    def open(cls, path: Path) -> TurbovecStore:
        """Reads the index."""
        return cls(importlib.import_module("turbovec").TurboQuantIndex.load(str(path)))


@dataclass(frozen=True)
class SvsStore:
    """A flat index of Intel's Scalable Vector Search over locally adaptive quantisation."""

    index: Any
    vectors: FloatArray
    bits: tuple[int, int]
    """Of a component, and of its residual."""
    by_distance: bool = False
    """Whether Euclidean distances count, or else inner products."""

    def search(self, queries: FloatArray, k: int, threads: int) -> IntArray:
        """See `Store`."""
        self.index.num_threads = threads
        found: IntArray = np.asarray(self.index.search(queries, k)[0]).astype(np.int64)
        return found

    def save(self, folder: Path) -> Opener:
        """See `Store`. The package writes no flat index: vectors are written, and compressed again."""
        path = str(folder / "vectors.fvecs")
        importlib.import_module("svs").write_vecs(self.vectors, path)
        return partial(SvsStore.open, path, self.vectors[:0], self.bits, self.by_distance)

    @classmethod
    def open(
        cls, path: str, vectors: FloatArray, bits: tuple[int, int], by_distance: bool = False
    ) -> SvsStore:
        """Compresses the vectors of a file."""
        svs = importlib.import_module("svs")
        data = svs.VectorDataLoader(path, svs.DataType.float32, dims=vectors.shape[1])
        loader = svs.LVQLoader(data, primary=bits[0], residual=bits[1])
        kind = svs.DistanceType.L2 if by_distance else svs.DistanceType.MIP
        return cls(svs.Flat(loader, kind, num_threads=1), vectors, bits, by_distance)
