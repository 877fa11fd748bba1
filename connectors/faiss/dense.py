"""A Faiss flat index of an index's reconstructions, on the processor or on GPUs, that scores in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray, Hits, IdArray, RowArray
from compressae_index.checks import check_choice, check_int, check_vectors, normalize_rows
from compressae_index.coding.metric import RowScale, row_norms
from compressae_index.connectors.faiss.flat import STORAGES, CpuFlat, Storage
from compressae_index.connectors.faiss.gpu import LONGEST, SPREADS, GpuFlat, Spread
from compressae_index.connectors.faiss.library import find_gpus
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, Rows, as_id_array
from compressae_index.index import CompressedIndex
from compressae_index.processes import ForkSafeLock
from compressae_index.progress import track
from compressae_index.search.index import BackedIndex
from compressae_index.search.queries import (
    MAX_K,
    MODES,
    SCORINGS,
    Mode,
    Scoring,
    SearchResult,
    check_candidates,
    check_k,
)
from compressae_index.search.stages import in_order
from compressae_index.sources import CHUNK_ROWS, VectorSource

# Norms of CUDA queries that are searched as they are, without a copy; beyond, half precision would suffer.
SHORTEST_NORM, LONGEST_NORM = 1 / 16, 16.0


class _Held(NamedTuple):
    """What one search sees: ids, marks of removal, and vectors in Faiss; replaced by each change."""

    rows: Rows
    flat: CpuFlat | GpuFlat
    unit: float
    """What the vectors were divided by."""

    def can_scan(self, k: int, wanted: Any) -> bool:
        removed = self.rows.alive is not None
        return isinstance(self.flat, CpuFlat) or (wanted is None and not removed and k <= LONGEST)

    def scan(self, vectors: Any, k: int, wanted: Any) -> Hits:
        allowed, n_allowed = self.rows.allowed(wanted)
        k = min(k, n_allowed)
        if k == 0:
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        if isinstance(self.flat, GpuFlat):
            return in_order(*self.flat.search(vectors, k))
        return in_order(*self.flat.search(vectors, k, allowed))

    def rescored(self, vectors: FloatArray, found: SearchResult, k: int) -> Hits:
        """Best of the candidates, whose ids the index gave."""
        rows = np.full(found.ids.shape, -1, dtype=np.int64)
        present = found.scores > -np.inf
        try:
            rows[present] = self.rows.rows_of(found.ids[present])
        except UnknownIdError as error:
            msg = f"a candidate is not in the Faiss store ({error}): call refresh() after other changes"
            raise InputError(msg) from error
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for i, query in enumerate(vectors):
            inside = present[i]
            scores[i, inside] = self.flat.vectors(rows[i, inside]) @ query
        scores, rows = in_order(scores, rows)
        return scores[:, :k], rows[:, :k]

    def result(self, scores: FloatArray, rows: RowArray, k: int) -> SearchResult:
        missing = ((0, 0), (0, k - rows.shape[1]))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        return SearchResult(scores, self.rows.ids.of(np.pad(rows, missing, constant_values=-1)))


class DenseStore:
    """An index with `dense` scores from a Faiss flat index of its reconstructions.

    Scores are those of the index's own `dense` mode, up to the rounding of `storage`, at d numbers a vector
    and without a projection of the query. Change the index through `add` and `remove` here, or call `refresh`
    after it was changed elsewhere. Searches may run in several threads, also while one of them removes;
    `add` may not run beside them.
    """

    def __init__(
        self,
        index: CompressedIndex | BackedIndex,
        *,
        ids: Any = None,
        storage: Storage = "float16",
        device: str = "auto",
        spread: Spread = "replicated",
        progress: bool = True,
    ) -> None:
        """Reconstructs all vectors of an index into Faiss.

        Args:
            index: what to score, with codes in this process or in any back end; it stays usable by itself.
            ids: the ids to reconstruct; by default all. Needed where a back end does not list its own.
            storage: how numbers are kept: "float32", "float16", or "bfloat16", which a GPU does not have.
            device: "cpu"; "cuda" for all GPUs; "cuda:1" for one; "auto" for all GPUs where there are any.
                Without a GPU, "cuda" works on the processor and warns; `device` says where the vectors are.
            spread: with several GPUs, whether each holds all vectors ("replicated": more queries a second)
                or its share of them ("sharded": more vectors).
            progress: show a progress bar.

        Raises:
            InputError: an argument is out of its choices, or the vectors do not fit a GPU.
            UnknownIdError: an id is not in the index.
        """
        self.index = index
        self._storage: Storage = check_choice(storage, "storage", STORAGES)
        self._gpus = find_gpus(device)
        self._spread: Spread = check_choice(spread, "spread", SPREADS)
        self._device = device
        self._writer = ForkSafeLock()
        self._removing = False
        self.refresh(ids, progress=progress)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the index, of which the vectors are made again, on devices that are there then."""
        ids = self._held.rows.live_ids.all()
        return DenseStore._again, (self.index, ids, self._storage, self._device, self._spread)

    @classmethod
    def _again(
        cls, index: CompressedIndex | BackedIndex, ids: IdArray, storage: Storage, device: str, spread: Spread
    ) -> DenseStore:
        return cls(index, ids=ids, storage=storage, device=device, spread=spread, progress=False)

    def __repr__(self) -> str:
        per_vector = self.nbytes / max(len(self._held.rows.ids), 1)
        return (
            f"DenseStore({len(self)} vectors, dim={self.index.model.dim}, {self._storage} on {self.device}, "
            f"{per_vector:.1f} bytes a vector)"
        )

    @property
    def _flat(self) -> CpuFlat | GpuFlat:
        return self._held.flat

    @property
    def device(self) -> str:
        """Where the vectors are: "cpu", or GPUs, as "cuda:0, cuda:1"."""
        return self._flat.device

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors in Faiss, removed ones and all replicas included."""
        return self._flat.nbytes

    def __len__(self) -> int:
        return self._held.rows.n_alive

    def refresh(self, ids: Any = None, *, progress: bool = False) -> None:
        """Reads the index anew, which also reclaims the memory of removed vectors; ids as for the class."""
        with self._writer.lock:
            self._refresh(ids, progress=progress)

    def _refresh(self, ids: Any, *, progress: bool) -> None:
        held = self._ids_of_index() if ids is None else as_id_array(ids)
        flat, unit = self._empty(), self._choose_unit(held)
        with track(len(held), "reconstructing", enabled=progress) as advance:
            for part in _chunks(held):
                flat.add(self.index.reconstruct(part) / np.float32(unit))
                advance(len(part))
        self._held = _Held(Rows(Ids.from_user(held, len(held)) if len(held) else Ids(0, {})), flat, unit)

    def _ids_of_index(self) -> IdArray:
        lister: Any = self.index.backend if isinstance(self.index, BackedIndex) else self.index
        if not hasattr(lister, "ids"):
            msg = f"{type(lister).__name__} does not list its ids, so name them: ids=..."
            raise InputError(msg)
        found: IdArray = lister.ids
        return found

    def _empty(self) -> CpuFlat | GpuFlat:
        dim = self.index.model.dim
        return (
            GpuFlat(dim, self._storage, self._gpus, self._spread)
            if self._gpus
            else CpuFlat(dim, self._storage)
        )

    def _choose_unit(self, ids: IdArray) -> float:
        """A power of two near the norms, by which they are divided, so that half precision holds them."""
        if self.index.metric == "cosine" or not len(ids):
            return 1.0
        norm = float(np.median(row_norms(self.index.reconstruct(ids[:CHUNK_ROWS]))))
        return 2.0 ** round(math.log2(norm)) if norm > 0 else 1.0

    def add(self, embeddings: VectorSource, ids: Any = None, *, num_threads: int | None = None) -> None:
        """Adds vectors to the index, as `CompressedIndex.add` does, and their reconstructions here.

        Raises:
            InputError: as there, or the index was changed elsewhere; nothing was added. Or a GPU has no
                memory left: the index then has the vectors, and `refresh` is needed once there is room.
        """
        with self._writer.lock:
            held = self._current()
            self.index.add(embeddings, ids, num_threads=num_threads)
            added = self._ids_of_index()[len(self) :] if ids is None else as_id_array(ids)
            if not len(added):
                return
            if not len(self):
                self._refresh(added, progress=False)
                return
            for part in _chunks(added):
                held.flat.add(self.index.reconstruct(part) / np.float32(held.unit))
            self._held = held._replace(rows=held.rows.extended(Ids.from_user(added, len(added))))

    def remove(self, ids: Any) -> None:
        """Removes vectors from the index; here they are passed over until `refresh`.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id stands twice.
        """
        with self._writer.lock:
            held, self._removing = self._held, True
            try:
                self.index.remove(ids)
                rows = held.rows.rows_of(ids)
                if len(rows):
                    self._held = held._replace(rows=held.rows.without(rows))
            finally:
                self._removing = False

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode = "two_stage",
        candidates: int | None = None,
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
        n_candidates = check_candidates(candidates, k)
        if not _is_cuda(queries):
            queries = as_array(queries, "queries")
        held = self._current()
        options: dict[str, Any] = {"scoring": scoring, "filter": filter, "num_threads": num_threads}
        if mode == "sparse":
            return self.index.search(queries, k, mode=mode, query_nnz=query_nnz, **options)
        if mode == "dense" and not held.can_scan(k, filter):
            if isinstance(self.index, BackedIndex):
                msg = (
                    f"on a GPU, dense takes no filter and k up to {LONGEST}, and this index has no dense mode"
                )
                raise InputError(msg)
            return self.index.search(queries, k, mode=mode, **options)
        vectors, factors = self._comparable(held, queries, scoring, mode, num_threads)
        check_k(k, held.rows.n_alive, len(vectors))
        if not len(vectors):
            return held.result(factors[:, :0], np.empty((0, 0), dtype=np.int64), k)
        if mode == "dense":
            scores, rows = held.scan(vectors, k, filter)
        else:
            found = self.index.search(
                queries,
                max(min(n_candidates, held.rows.n_alive), 1),
                mode="sparse",
                query_nnz=query_nnz,
                **options,
            )
            scores, rows = held.rescored(vectors, found, k)
        return held.result(scores * factors, rows, k)

    def _comparable(
        self, held: _Held, queries: Any, scoring: Scoring, mode: Mode, num_threads: int | None
    ) -> tuple[Any, FloatArray]:
        """What to multiply vectors with, and what then turns products into scores, (n_queries, 1)."""
        model, cosine = self.index.model, self.index.metric == "cosine"
        if (
            _is_cuda(queries)
            and isinstance(held.flat, GpuFlat)
            and (mode, scoring) == ("dense", "asymmetric")
        ):
            return _of_tensor(queries, model.dim, None if cosine else held.unit)
        rows = check_vectors(queries, dim=model.dim, name="queries", may_be_empty=True)
        factors = RowScale(self.index.metric, held.unit).of_queries(rows)
        unit = normalize_rows(rows)
        if scoring == "symmetric":
            codes = model.encode(rows, self._k, encoder=self.index.encoder, num_threads=num_threads)
            unit = model.decode(model.fold(codes, num_threads=num_threads))
        return unit, np.ones((len(rows), 1), dtype=np.float32) if factors is None else factors

    @property
    def _k(self) -> int:
        return self.index.backend.k if isinstance(self.index, BackedIndex) else self.index.k

    def _current(self) -> _Held:
        """What a search is to see.

        Raises:
            InputError: the index was changed elsewhere.
        """
        while True:
            held = self._held
            known, stored = len(held.rows.ids), len(held.flat)
            # The length of a back end may be a question to a server.
            embedded = isinstance(self.index, CompressedIndex)
            expected = known + len(self.index) - held.rows.n_alive if embedded else known
            # An id that is just being removed from the index may be held or not.
            if known == stored and (expected == known or self._removing):
                return held
            if self._held is held:
                break
        msg = (
            f"the Faiss store holds {stored} vectors and knows {known}, where the index makes "
            f"{expected}: the index was changed elsewhere, or an add failed; call refresh()"
        )
        raise InputError(msg)


def _is_cuda(queries: Any) -> bool:
    return bool(getattr(queries, "is_cuda", False))


def _chunks(ids: IdArray) -> Iterator[IdArray]:
    for first in range(0, len(ids), CHUNK_ROWS):
        yield ids[first : first + CHUNK_ROWS]


def _of_tensor(queries: Any, dim: int, unit: float | None) -> tuple[Any, FloatArray]:
    """What to multiply vectors with, and factors (n_queries, 1), of a CUDA tensor; unit is None for cosine.

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
    if not tensor.is_floating_point():
        msg = f"queries must be floating point, got {tensor.dtype}"
        raise InputError(msg)
    tensor = tensor.float().contiguous()
    lengths = tensor.norm(dim=1, keepdim=True)
    norms: FloatArray = lengths.cpu().numpy()
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        msg = f"queries row {bad[0]} is zero or holds NaN or infinite values ({bad.size} such rows)"
        raise InputError(msg)
    if norms.min(initial=1) >= SHORTEST_NORM and norms.max(initial=1) <= LONGEST_NORM:
        return tensor, np.reciprocal(norms) if unit is None else np.full_like(norms, unit)
    return tensor / lengths, np.ones_like(norms) if unit is None else norms * np.float32(unit)
