"""Vectors in Faiss flat indexes on one or several GPUs, by row number.

Written without a GPU: how Faiss behaves on one was taken from its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from compressae_index.arrays import FloatArray, Hits, RowArray
from compressae_index.connectors.faiss.flat import Storage, row_bytes
from compressae_index.connectors.faiss.library import faiss
from compressae_index.errors import InputError
from compressae_index.search.stages import in_order

Spread: TypeAlias = Literal["replicated", "sharded"]
SPREADS: tuple[Spread, ...] = ("replicated", "sharded")

# The most neighbours that Faiss selects on a GPU.
LONGEST = 2048
# Bytes copied at once: of vectors to a GPU, or of queries with their results.
BATCH_BYTES = 1 << 28

T = TypeVar("T")


class _Device(NamedTuple):
    """One GPU with its index."""

    number: int
    resources: Any
    """Faiss's resources, which must outlive the index and serve one search at a time."""
    index: Any


class GpuFlat:
    """Rows 0 .. n-1 on GPUs: all rows on each (replicated), or a share on each (sharded).

    A search takes no filter, because Faiss's GPU index would silently ignore it.
    """

    def __init__(
        self,
        dim: int,
        storage: Storage,
        gpus: Sequence[int],
        spread: Spread,
        *,
        distances: bool = False,
    ) -> None:
        """Makes an empty index on each GPU, of inner products or of squared distances.

        Raises:
            InputError: Faiss does not have this storage on a GPU.
        """
        if storage == "bfloat16":
            msg = "on a GPU, storage must be 'float16' or 'float32', got 'bfloat16'"
            raise InputError(msg)
        self.device = ", ".join(f"cuda:{number}" for number in gpus)
        self._dim, self._sharded = dim, spread == "sharded" and len(gpus) > 1
        self._row_bytes = row_bytes(dim, storage)
        self.distances = distances
        """Whether scores are squared distances, below 0."""
        self._devices = [_on_device(dim, storage, number, distances=distances) for number in gpus]
        # The global row of each row on a device, ascending; used only if sharded.
        self._rows = [np.empty(0, dtype=np.int64) for _ in gpus]
        self._n = 0
        self._lock = Lock()
        self._workers = ThreadPoolExecutor(len(gpus)) if len(gpus) > 1 else None

    def __len__(self) -> int:
        return self._n

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors on all GPUs."""
        return self._n * self._row_bytes * (1 if self._sharded else len(self._devices))

    def add(self, vectors: FloatArray) -> None:
        """Appends rows (m, d), a batch at a time.

        Raises:
            InputError: a GPU is out of memory.
        """
        batch = max(BATCH_BYTES // (4 * self._dim), 1)
        with self._lock:
            for first in range(0, len(vectors), batch):
                self._add_batch(np.ascontiguousarray(vectors[first : first + batch], dtype=np.float32))

    def _add_batch(self, vectors: FloatArray) -> None:
        rows = np.arange(self._n, self._n + len(vectors))
        self._n += len(vectors)  # even if a GPU fails, because others may have the rows already
        shares = (
            np.array_split(np.arange(len(vectors)), len(self._devices))
            if self._sharded
            else [np.arange(len(vectors))] * len(self._devices)
        )
        for i, (device, share) in enumerate(zip(self._devices, shares, strict=True)):
            if not len(share):
                continue
            part = np.ascontiguousarray(vectors[share[0] : share[-1] + 1])
            try:
                device.index.add_c(len(part), faiss.swig_ptr(part))
            except RuntimeError as error:
                msg = (
                    f"cuda:{device.number} holds {device.index.ntotal} vectors and cannot take {len(part)} "
                    f"more of {self._row_bytes} bytes: {error}; "
                    "use storage='float16', spread='sharded' or device='cpu'"
                )
                raise InputError(msg) from error
            if self._sharded:
                self._rows[i] = np.concatenate([self._rows[i], rows[share]])

    def search(self, queries: Any, k: int) -> Hits:
        """The k largest scores and their rows, (n_queries, k) each; missing rows are -1.

        Args:
            queries: (n_queries, d) contiguous float32: an array, or a CUDA tensor, which is not copied.
            k: at most LONGEST.
        """
        batch = max(BATCH_BYTES // (4 * self._dim + 12 * k), 1)
        pieces = [queries[first : first + batch] for first in range(0, len(queries), batch)]
        with self._lock:
            if self._sharded:
                found = [self._from_shards(piece, k) for piece in pieces]
            else:
                found = self._from_replicas(pieces, k)
        scores, rows = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(rows)

    def _from_shards(self, queries: Any, k: int) -> Hits:
        def of_shard(i: int) -> Hits:
            scores, local = self._search(i, queries, k)
            # A missing row, -1, takes the appended -1.
            return scores, np.append(self._rows[i], -1)[local]

        hits = self._each(of_shard, range(len(self._devices)))
        scores, rows = in_order(*(np.concatenate(parts, axis=1) for parts in zip(*hits, strict=True)))
        return scores[:, :k], rows[:, :k]

    def _from_replicas(self, pieces: Sequence[Any], k: int) -> list[Hits]:
        n = len(self._devices)
        # Each replica answers every n-th piece; if there are fewer than n, cut each into n.
        pieces = [part for piece in pieces for part in _split(piece, n if len(pieces) < n else 1)]

        def of_replica(i: int) -> list[Hits]:
            return [self._search(i, piece, k) for piece in pieces[i::n]]

        answers = self._each(of_replica, range(n))
        return [answers[i % n][i // n] for i in range(len(pieces))]

    def _search(self, i: int, queries: Any, k: int) -> Hits:
        scores, rows = _search(self._devices[i].index, queries, k)
        return -scores if self.distances else scores, rows

    def _each(self, call: Callable[[int], T], numbers: Sequence[int]) -> list[T]:
        return list(map(call, numbers) if self._workers is None else self._workers.map(call, numbers))

    def vectors(self, rows: RowArray) -> FloatArray:
        """The stored vectors of rows, (m, d)."""
        found = np.empty((len(rows), self._dim), dtype=np.float32)
        with self._lock:
            if not self._sharded:
                _read(self._devices[0].index, rows, found)
                return found
            for device, held in zip(self._devices, self._rows, strict=True):
                place = np.minimum(np.searchsorted(held, rows), max(len(held) - 1, 0))
                inside = np.flatnonzero(held[place] == rows) if len(held) else np.empty(0, dtype=np.int64)
                part = np.empty((len(inside), self._dim), dtype=np.float32)
                _read(device.index, place[inside], part)
                found[inside] = part
        return found


def _on_device(dim: int, storage: Storage, number: int, *, distances: bool) -> _Device:
    resources = faiss.StandardGpuResources()
    config = faiss.GpuIndexFlatConfig()
    config.device = number
    config.useFloat16 = storage == "float16"
    kind = faiss.GpuIndexFlatL2 if distances else faiss.GpuIndexFlatIP
    return _Device(number, resources, kind(resources, dim, config))


def _search(index: Any, queries: Any, k: int) -> Hits:
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    # The methods under Faiss's Python wrappers, as they take addresses, also of GPU memory.
    index.search_c(len(queries), _address(queries), k, faiss.swig_ptr(scores), faiss.swig_ptr(rows))
    return scores, rows


def _read(index: Any, rows: RowArray, into: FloatArray) -> None:
    if len(rows):
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        index.reconstruct_batch_c(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(into))


def _address(rows: Any) -> Any:
    if isinstance(rows, np.ndarray):
        return faiss.swig_ptr(rows)
    # faiss.contrib.torch_utils would do this, but patches every Faiss class in the process.
    import torch

    torch.cuda.current_stream(rows.device).synchronize()  # Faiss reads on its own stream
    return faiss.cast_integer_to_float_ptr(rows.data_ptr())


def _split(rows: Any, parts: int) -> list[Any]:
    size = -(-len(rows) // parts)
    return [rows[first : first + size] for first in range(0, len(rows), size)]
