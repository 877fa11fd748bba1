"""A Faiss flat index of an index's reconstructions, on the processor or on GPUs, that scores in its place."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from compressae_index.checks import FloatArray, check_choice, check_int, check_vectors, normalize_rows
from compressae_index.connectors.faiss.flat import CpuFlat, Storage, in_order
from compressae_index.connectors.faiss.gpu import LONGEST, SPREADS, GpuFlat, Spread
from compressae_index.connectors.faiss.library import find_gpus
from compressae_index.embedded import Hits
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids, RowArray
from compressae_index.index import MAX_K, MODES, SCORINGS, CompressedIndex, Mode, Scoring, SearchResult
from compressae_index.metric import row_norms
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, VectorSource

# Norms of CUDA queries that are searched as they are, without a copy; beyond, half precision would suffer.
SHORTEST_NORM, LONGEST_NORM = 1 / 16, 16.0


class DenseStore:
    """An index with `dense` scores from a Faiss flat index of its reconstructions.

    Scores are those of the index's own `dense` mode, up to the rounding of `storage`, at d numbers a vector
    and without a projection of the query. Change the index through `add` and `remove` here, or call `refresh`
    after it was changed elsewhere. Searches may run in several threads; changes may not run beside them.
    """

    def __init__(
        self,
        index: CompressedIndex,
        *,
        storage: Storage = "float16",
        device: str = "auto",
        spread: Spread = "replicated",
        progress: bool = True,
    ) -> None:
        """Reconstructs all vectors of an index into Faiss.

        Args:
            index: what to score; it stays usable by itself.
            storage: how numbers are kept: "float32", "float16", or "bfloat16", which a GPU does not have.
            device: "cpu"; "cuda" for all GPUs; "cuda:1" for one; "auto" for all GPUs where there are any.
                Without a GPU, "cuda" works on the processor and warns; `device` says where the vectors are.
            spread: with several GPUs, whether each holds all vectors ("replicated": more queries a second)
                or its share of them ("sharded": more vectors).
            progress: show a progress bar.

        Raises:
            InputError: an argument is out of its choices, or the vectors do not fit a GPU.
        """
        self.index = index
        self._storage = storage
        self._gpus = find_gpus(device)
        self._spread: Spread = check_choice(spread, "spread", SPREADS)
        self._lock = threading.Lock()
        self._flat = self._empty()
        self._unit = 1.0
        self.refresh(progress=progress)

    @property
    def device(self) -> str:
        """Where the vectors are: "cpu", or GPUs, as "cuda:0, cuda:1"."""
        return self._flat.device

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors in Faiss, removed ones and all replicas included."""
        return self._flat.nbytes

    def __len__(self) -> int:
        return int(self._alive.sum())

    def refresh(self, *, progress: bool = False) -> None:
        """Reads the index anew, which also reclaims the memory of removed vectors."""
        flat, ids = self._empty(), self.index.ids
        unit = self._choose_unit(ids)
        with track(len(ids), "reconstructing", enabled=progress) as advance:
            for first in range(0, len(ids), CHUNK_ROWS):
                part = ids[first : first + CHUNK_ROWS]
                flat.add(self.index.reconstruct(part) / np.float32(unit))
                advance(len(part))
        self._flat, self._unit = flat, unit
        self._ids = Ids.from_user(ids, len(ids)) if len(ids) else Ids(0, {})
        self._alive = np.ones(len(ids), dtype=bool)

    def _empty(self) -> CpuFlat | GpuFlat:
        dim = self.index.model.dim
        return GpuFlat(dim, self._storage, self._gpus, self._spread) if self._gpus else CpuFlat(dim, self._storage)

    def _choose_unit(self, ids: Any) -> float:
        """A power of two near the norms, by which they are divided, so that half precision holds them."""
        if self.index.metric == "cosine" or not len(ids):
            return 1.0
        norms = row_norms(self.index.reconstruct(ids[:CHUNK_ROWS]))
        return float(2.0 ** np.round(np.log2(max(float(np.median(norms)), np.finfo(np.float32).tiny))))

    def add(self, embeddings: VectorSource, ids: Any = None, *, num_threads: int | None = None) -> None:
        """Adds vectors to the index, as `CompressedIndex.add` does, and their reconstructions here.

        Raises:
            InputError: as there; nothing was added.
        """
        before = len(self.index)
        self.index.add(embeddings, ids, num_threads=num_threads)
        if not len(self):
            self.refresh()
            return
        added = self.index.ids[before:]
        self._ids = self._ids.extended(Ids.from_user(added, len(added)))
        self._alive = np.append(self._alive, np.ones(len(added), dtype=bool))
        for first in range(0, len(added), CHUNK_ROWS):
            part = added[first : first + CHUNK_ROWS]
            self._flat.add(self.index.reconstruct(part) / np.float32(self._unit))

    def remove(self, ids: Any) -> None:
        """Removes vectors from the index; here they are passed over until `refresh`.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id stands twice.
        """
        self.index.remove(ids)
        self._alive[self._rows_of(ids)] = False

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode = "two_stage",
        candidates: int = 1000,
        query_nnz: int | None = None,
        scoring: Scoring = "asymmetric",
        filter: Any = None,  # noqa: A002
        num_threads: int | None = None,
    ) -> SearchResult:
        """The k nearest documents of each query, as `CompressedIndex.search` finds them.

        `dense` scores all vectors in Faiss. `two_stage` takes candidates from the index's `sparse` mode and
        scores their vectors, read from Faiss. `sparse` is the index's own.

        Faiss on a GPU neither filters nor gives more than 2,048 neighbours. A `dense` search that needs
        either, as after `remove`, is answered by the index's own `dense` mode.

        Args:
            queries: (n_queries, d) or (d,), array or torch tensor. With a GPU, a float32 CUDA tensor of norms
                near 1 is read where it lies by `dense` with `asymmetric` scoring.
            k: as there, as are mode, candidates, query_nnz, scoring and filter.
            mode: see above.
            candidates: see above.
            query_nnz: see above.
            scoring: see above.
            filter: see above.
            num_threads: threads of the index; those of Faiss are OpenMP's.

        Raises:
            InputError: as there, or the index was changed elsewhere and `refresh` was not called.
        """
        k = check_int(k, "k", 1, MAX_K)
        check_choice(mode, "mode", MODES)
        check_choice(scoring, "scoring", SCORINGS)
        self._check_current()
        options: dict[str, Any] = {"scoring": scoring, "filter": filter, "num_threads": num_threads}
        if mode == "sparse":
            return self.index.search(_on_host(queries), k, mode=mode, query_nnz=query_nnz, **options)
        if mode == "dense" and not self._can_scan(k, filter):
            return self.index.search(_on_host(queries), k, mode=mode, **options)
        vectors, factors = self._comparable(queries, scoring, mode, num_threads)
        width = min(k, len(self))
        if width == 0:
            scores, rows = np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        elif mode == "dense":
            scores, rows = self._scan(vectors, width, filter)
        else:
            found = self.index.search(
                _on_host(queries),
                min(max(check_int(candidates, "candidates", 1), k), len(self)),
                mode="sparse",
                query_nnz=query_nnz,
                **options,
            )
            scores, rows = self._rescored(vectors, found, width)
        return self._result(scores * factors, rows, k)

    def _can_scan(self, k: int, wanted: Any) -> bool:
        return isinstance(self._flat, CpuFlat) or (wanted is None and self._alive.all() and k <= LONGEST)

    def _scan(self, vectors: Any, k: int, wanted: Any) -> Hits:
        if isinstance(self._flat, GpuFlat):
            return in_order(*self._flat.search(vectors, k))
        allowed = self._allowed(wanted)
        if allowed.all():
            return in_order(*self._flat.search(vectors, k))
        return in_order(*self._flat.search(vectors, k, np.packbits(allowed, bitorder="little")))

    def _rescored(self, vectors: FloatArray, found: SearchResult, k: int) -> Hits:
        """Best of the candidates, whose ids the index gave."""
        rows = np.full(found.ids.shape, -1, dtype=np.int64)
        present = found.scores > -np.inf
        rows[present] = self._rows_of(found.ids[present])
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for i, query in enumerate(vectors):
            inside = present[i]
            scores[i, inside] = self._flat.vectors(rows[i, inside]) @ query
        scores, rows = in_order(scores, rows)
        return scores[:, :k], rows[:, :k]

    def _comparable(
        self, queries: Any, scoring: Scoring, mode: Mode, num_threads: int | None
    ) -> tuple[Any, FloatArray]:
        """What to multiply vectors with, and what then turns products into scores, (n_queries, 1)."""
        model, cosine = self.index.model, self.index.metric == "cosine"
        if _is_cuda(queries) and isinstance(self._flat, GpuFlat) and (mode, scoring) == ("dense", "asymmetric"):
            tensor, norms = _checked_tensor(queries, model.dim)
            return tensor, np.reciprocal(norms) if cosine else np.full_like(norms, self._unit)
        rows = check_vectors(_on_host(queries), dim=model.dim, name="queries")
        unit = normalize_rows(rows)
        if scoring == "symmetric":
            codes = model.encode(rows, self.index.k, encoder=self.index.encoder, num_threads=num_threads)
            unit = model.decode(model.fold(codes, num_threads=num_threads))
        factors = np.ones((len(rows), 1)) if cosine else row_norms(rows)[:, None] * self._unit
        return unit, factors.astype(np.float32)

    def _allowed(self, wanted: Any) -> Any:
        """Which rows a filter allows."""
        if wanted is None:
            return self._alive
        mask = np.zeros(len(self._alive), dtype=bool)
        array = np.asarray(wanted)
        if array.dtype != bool:
            mask[self._rows_of(wanted)] = True
        elif array.shape == (len(self),):
            mask[np.flatnonzero(self._alive)] = array
        else:
            msg = f"a boolean filter must have shape ({len(self)},), got {array.shape}"
            raise DimensionError(msg)
        return mask

    def _rows_of(self, ids: Any) -> RowArray:
        alive = np.flatnonzero(self._alive)
        if len(alive) == len(self._alive):
            return self._ids.rows_of(ids)
        return alive[self._ids.subset(alive).rows_of(ids)]

    def _check_current(self) -> None:
        if len(self.index) != len(self):
            msg = (
                f"the index holds {len(self.index)} vectors, its Faiss store {len(self)}: it was changed "
                "elsewhere; call refresh()"
            )
            raise InputError(msg)

    def _result(self, scores: FloatArray, rows: RowArray, k: int) -> SearchResult:
        missing = ((0, 0), (0, k - rows.shape[1]))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        return SearchResult(scores, self._ids.of(np.pad(rows, missing, constant_values=-1)))


def _is_cuda(queries: Any) -> bool:
    return bool(getattr(queries, "is_cuda", False))


def _on_host(queries: Any) -> Any:
    """Queries where numpy reads them."""
    return queries.detach().cpu().numpy() if hasattr(queries, "detach") else queries


def _checked_tensor(queries: Any, dim: int) -> tuple[Any, FloatArray]:
    """A CUDA tensor as contiguous float32 (n_queries, dim), and the norms (n_queries, 1) to divide by.

    It is the caller's own memory where that is float32, contiguous, and of norms near 1.

    Raises:
        DimensionError: another shape.
        InputError: not floating point, NaN, infinite or zero rows.
    """
    tensor = queries.detach()
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if tensor.ndim != 2 or tensor.shape[1] != dim:
        msg = f"queries have shape {tuple(tensor.shape)}, expected (n_queries, {dim})"
        raise DimensionError(msg)
    if not tensor.is_floating_point() or not len(tensor):
        msg = f"queries must be floating point and not empty, got {tensor.dtype} {tuple(tensor.shape)}"
        raise InputError(msg)
    tensor = tensor.float().contiguous()
    norms = np.asarray(tensor.norm(dim=1, keepdim=True).cpu().numpy(), dtype=np.float32)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        msg = f"queries row {bad[0]} is zero or holds NaN or infinite values ({bad.size} such rows)"
        raise InputError(msg)
    if (norms < SHORTEST_NORM).any() or (norms > LONGEST_NORM).any():
        return tensor / tensor.norm(dim=1, keepdim=True), np.ones_like(norms)
    return tensor, norms
