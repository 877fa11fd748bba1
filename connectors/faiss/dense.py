"""Scores an index's reconstructions with a Faiss flat index, on the processor or on GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_choice, check_int, check_threads
from compressae_index.coding.metric import Metric, RowScale, row_norms
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.faiss.flat import STORAGES, CpuFlat, Storage
from compressae_index.connectors.faiss.gpu import LONGEST, SPREADS, GpuFlat, Spread
from compressae_index.connectors.faiss.library import find_gpus
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, Rows, as_id_array
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.search.index import Index
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import (
    MAX_K,
    MODES,
    Asked,
    Coder,
    Reads,
    SearchResult,
    Settings,
    check_candidates,
    check_refine,
)
from compressae_index.search.stages import Found, Stages, answered
from compressae_index.sources import CHUNK_ROWS, VectorSource

# CUDA queries with norms in this range are searched without a copy; half precision needs others normalised.
SHORTEST_NORM, LONGEST_NORM = 1 / 16, 16.0


class _Held(NamedTuple):
    """The state that one search sees: ids, marks of removal, vectors in Faiss. Every change replaces it.

    `scan` and `rescore` are stages of a search.
    """

    rows: Rows
    flat: CpuFlat | GpuFlat
    unit: float
    """The power of two that the vectors were divided by."""
    metric: Metric
    model: CompresSAE
    """That of the index whose vectors they are."""

    def can_scan(self, k: int, wanted: Any) -> bool:
        """Whether Faiss can find k neighbours under a filter (`wanted`, None for no filter)."""
        removed = self.rows.alive is not None
        return isinstance(self.flat, CpuFlat) or (wanted is None and not removed and k <= LONGEST)

    def scan(self, asked: Asked) -> Found:
        """Scores all vectors and finds the k best."""
        vectors, factors = self._comparable(asked)
        allowed, n_allowed = self.rows.allowed(asked.settings.filter)
        k = min(asked.k, n_allowed)
        if k == 0:
            scores, rows = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
        elif isinstance(self.flat, GpuFlat):
            scores, rows = self.flat.search(vectors, k)
        else:
            scores, rows = self.flat.search(vectors, k, allowed)
        scores = np.where(rows < 0, np.float32(-np.inf), self._in_metric(asked, scores, factors))
        return Found(scores, self.rows.all_ids.of(rows), rows)

    def rescore(self, asked: Asked, found: Found) -> Found:
        """Scores the candidates again by their vectors in Faiss."""
        vectors, factors = self._comparable(asked)
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
            held = self.flat.vectors(rows[i, inside])
            if self.flat.distances:
                scores[i, inside] = -np.square(held - query).sum(axis=1)
            else:
                scores[i, inside] = held @ query
        scores = np.where(present, self._in_metric(asked, scores, factors), np.float32(-np.inf))
        return found._replace(scores=scores, places=rows, ordered=False)

    def _in_metric(self, asked: Asked, scores: FloatArray, factors: FloatArray) -> FloatArray:
        """Scores by the metric of Faiss's; distances are in the unit of the vectors."""
        if self.flat.distances or asked.distances is None:
            return scores * factors
        return asked.distances.of_sums(scores)

    def _comparable(self, asked: Asked) -> tuple[Any, FloatArray]:
        """Query rows to compare with vectors, and factors (n_queries, 1) of Faiss's scores."""
        if self.flat.distances:
            symmetric = asked.settings.scoring == "symmetric"
            lengths = row_norms(asked.rows).astype(np.float32)[:, None]
            rows = asked.vectors * lengths if symmetric else asked.rows
            unit = np.float32(self.unit)
            return np.ascontiguousarray(rows / unit), np.full((len(asked), 1), unit**2, dtype=np.float32)
        if asked.distances is not None:  # from unit rows, whose products Faiss has
            return asked.vectors, np.ones((len(asked), 1), dtype=np.float32)
        cosine = self.metric == "cosine"
        if _is_cuda(asked.rows):
            return _of_tensor(asked.rows, None if cosine else self.unit)
        factors = RowScale(self.metric, self.unit).of_queries(asked.rows)
        return asked.vectors, np.ones((len(asked), 1), dtype=np.float32) if factors is None else factors


class _Rescored:
    """The documents of an index, whose "dense" and "two_stage" modes score vectors in Faiss."""

    modes: tuple[str, ...] = MODES

    refines: bool = False  # the vectors in Faiss are all that scores

    def __init__(self, inner: Documents, store: _Held) -> None:
        self._inner = inner
        self.store = store
        self.filters = inner.filters
        self.n_latents, self.k, self.are_strings = inner.n_latents, inner.k, inner.are_strings
        self.unit = inner.unit
        self.residual_bits = inner.residual_bits
        self.held, self.check_ids, self.codes = inner.held, inner.check_ids, inner.codes
        # Reconstructions are what is in Faiss, also if the index keeps original vectors.
        self.vectors = self.reconstructed = inner.reconstructed
        self.added, self.removed = inner.added, inner.removed

    def __len__(self) -> int:
        return self.store.rows.n_alive

    @property
    def ids(self) -> IdArray:
        """The ids that a search can find, in the order of their vectors."""
        return self.store.rows.live_ids.all()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the index's parts and of the vectors in Faiss."""
        return self._inner.nbytes | {"vectors": self.store.flat.nbytes}

    def reads(self, asked: Asked) -> Reads:  # noqa: ARG002
        """Nothing: what is read in Faiss is not counted."""
        return Reads()

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query."""
        if asked.mode == "sparse":
            return self._inner.answer(asked)
        stages = Stages(self._candidates, (self.store.rescore,))
        if asked.mode == "dense":
            if not self.store.can_scan(asked.k, asked.settings.filter):
                return self._scanned_by_index(asked)
            stages = Stages(self.store.scan)
        return answered(stages, asked, max(len(asked), 1), are_strings=self.are_strings)

    def _scanned_by_index(self, asked: Asked) -> SearchResult:
        if "dense" in self._inner.modes:
            # Residual codes are in the vectors of Faiss, original vectors are not.
            refine = check_refine(None, asked.k, can_refine=self.residual_bits > 0)
            return self._inner.answer(replace(asked, refine=refine))
        msg = f"on a GPU, dense takes no filter and k up to {LONGEST}, and this index has no dense mode"
        raise InputError(msg)

    def _candidates(self, asked: Asked) -> Found:
        """Stage one: the candidates that the index's "sparse" finds."""
        n = max(min(asked.candidates, len(self)), 1)
        result = self._inner.answer(asked.by_terms(n))
        return Found(result.scores, result.ids, np.zeros(result.scores.shape, np.int64), result.certified)


class DenseStore(Index):
    """An index that takes its `dense` scores from a Faiss flat index of its reconstructions.

    Reconstructions include residual codes, but not original vectors. Scores equal those of the index's own
    `dense` mode, with refine=0 if it keeps original vectors, up to the rounding of `storage`. A vector takes
    d numbers, and queries are not projected. "dense" scores all vectors in Faiss; "two_stage" finds
    candidates by the index's "sparse" and re-scores them by vectors read from Faiss; "sparse" is the index's
    own mode. None has a last stage, so searches take no `refine`.

    Change the index through this object's `add`, `upsert` and `remove`. After a change made elsewhere, and
    after `recode` of the index, searches raise InputError until you call `refresh`. Searches may run in
    several threads, also while another thread removes, but not while one runs `add` or `upsert`.
    `num_threads` applies to the index; Faiss takes its number of threads from OpenMP.

    On a GPU, Faiss cannot filter and returns at most 2,048 neighbours. A "dense" search
    beyond that, or after `remove`, runs in the index's own "dense" mode. With asymmetric scoring, "dense"
    reads a float32 CUDA tensor of queries with norms near 1 without copying it.
    """

    def __init__(
        self,
        index: Index,
        *,
        ids: Any = None,
        storage: Storage = "float16",
        device: str = "auto",
        spread: Spread = "replicated",
        progress: bool = True,
    ) -> None:
        """Reconstructs all vectors of an index into Faiss.

        Args:
            index: the index to score, with codes in this process or in any back end. It can still be used
                directly.
            ids: the ids to reconstruct; all by default. Required if the back end cannot list its ids.
            storage: the type of stored numbers: "float32", "float16" or, on the processor only, "bfloat16".
            device: "cpu"; "cuda" for all GPUs; "cuda:1" for one; "auto" for all GPUs, or the processor if
                there are none. Without a GPU, "cuda" warns and uses the processor. The attribute `device`
                tells where the vectors are.
            spread: with several GPUs, "replicated" keeps all vectors on each (more queries a second),
                "sharded" a share on each (more vectors).
            progress: show a progress bar.

        Raises:
            InputError: an argument is not one of its choices, or the vectors do not fit on a GPU.
            UnknownIdError: an id is not in the index.
        """
        super().__init__(index.model, index.documents, encoder=index.encoder, metric=index.metric)
        self.index = index
        self._storage: Storage = check_choice(storage, "storage", STORAGES)
        self._gpus = find_gpus(device)
        self._spread: Spread = check_choice(spread, "spread", SPREADS)
        self._device = device
        self._removing = False
        self.refresh(ids, progress=progress)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the index. Unpickling reconstructs the vectors, on the devices of that machine."""
        ids = self._held.rows.live_ids.all()
        return DenseStore._again, (self.index, ids, self._storage, self._device, self._spread)

    @classmethod
    def _again(cls, index: Index, ids: IdArray, storage: Storage, device: str, spread: Spread) -> DenseStore:
        return cls(index, ids=ids, storage=storage, device=device, spread=spread, progress=False)

    def __repr__(self) -> str:
        per_vector = self.nbytes / max(len(self._held.rows.all_ids), 1)
        return (
            f"DenseStore({len(self)} vectors, dim={self.index.model.dim}, {self._storage} on {self.device}, "
            f"{per_vector:.1f} bytes a vector)"
        )

    @property
    def documents(self) -> Documents:
        """The documents as a search sees them now.

        Raises:
            InputError: the index was changed elsewhere.
        """
        return _Rescored(self.index.documents, self._current())

    @property
    def _flat(self) -> CpuFlat | GpuFlat:
        return self._held.flat

    @property
    def device(self) -> str:
        """The device of the vectors: "cpu", or GPUs such as "cuda:0, cuda:1"."""
        return self._flat.device

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors in Faiss, including removed ones and all replicas."""
        return self._flat.nbytes

    def __len__(self) -> int:
        return self._held.rows.n_alive

    def refresh(self, ids: Any = None, *, progress: bool = False) -> None:
        """Reconstructs all vectors again, without the removed ones; `ids` as for the class."""
        with self._writer.lock:
            self._refresh(ids, progress=progress)

    def now(self) -> DenseStore:
        """What stays as this store is now, whatever changes meanwhile; it is not to be changed."""
        return self._snapshot()

    def _refresh(self, ids: Any, *, progress: bool) -> None:
        model = self.index.model
        held = self.index.ids if ids is None else as_id_array(ids)
        flat, unit = self._empty(), self._choose_unit(held)
        with track(len(held), "reconstructing", enabled=progress) as advance:
            for part in _chunks(held):
                flat.add(self._seen(part) / np.float32(unit))
                advance(len(part))
        rows = Rows(Ids.from_user(held, len(held)) if len(held) else Ids(0, {}))
        vars(self).update(model=model, _held=_Held(rows, flat, unit, self.metric, model))

    def _seen(self, ids: IdArray) -> FloatArray:
        """Reconstructions of ids, from the model's center."""
        vectors, center = self.index.reconstruct(ids), self.model.center
        return vectors if center is None else vectors - center

    @property
    def _keeps_norms(self) -> bool:
        return self.metric != "cosine" and not (
            self.metric == "l2" and self.index.documents.n_latents == self.model.n_latents
        )

    def _empty(self) -> CpuFlat | GpuFlat:
        dim, distances = self.index.model.dim, self.metric == "l2" and self._keeps_norms
        return (
            GpuFlat(dim, self._storage, self._gpus, self._spread, distances=distances)
            if self._gpus
            else CpuFlat(dim, self._storage, distances=distances)
        )

    def _choose_unit(self, ids: IdArray) -> float:
        """A power of two near the norms. Vectors are divided by it, so that half precision can hold them."""
        if not self._keeps_norms or not len(ids):
            return 1.0
        norm = float(np.median(row_norms(self._seen(ids[:CHUNK_ROWS]))))
        return 2.0 ** round(math.log2(norm)) if norm > 0 else 1.0

    def add(
        self,
        embeddings: VectorSource,
        ids: Any = None,
        *,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Adds vectors to the index, as its own `add` does, and their reconstructions to Faiss.

        Raises:
            InputError: as for the index's `add`, or the index was changed elsewhere; nothing was added. Or a
                GPU is out of memory: the index then has the vectors, so free memory and call `refresh`.
        """
        with self._writer.lock:
            held = self._current()
            self.index.add(embeddings, ids, num_threads=num_threads, progress=progress)
            self._append(held, self.index.ids[len(self) :] if ids is None else as_id_array(ids))

    def upsert(
        self, embeddings: VectorSource, ids: Any, *, num_threads: int | None = None, progress: bool = False
    ) -> None:
        """Adds vectors, replacing those whose ids are in the index; arguments and errors as for `add`."""
        with self._writer.lock:
            held, ids = self._current(), as_id_array(ids)
            self._removing = True
            try:
                self.index.upsert(embeddings, ids, num_threads=num_threads, progress=progress)
                replaced = held.rows.live_ids.find(ids)
                rows = held.rows.alive_rows()[replaced[replaced >= 0]]
                self._append(held._replace(rows=held.rows.without(rows)) if len(rows) else held, ids)
            finally:
                self._removing = False

    def _append(self, held: _Held, ids: IdArray) -> None:
        """Reconstructs vectors that were added to the index, and appends them to `held`."""
        if not len(ids):
            return
        if not held.rows.n_alive:
            self._refresh(ids, progress=False)
            return
        for part in _chunks(ids):
            held.flat.add(self._seen(part) / np.float32(held.unit))
        self._held = held._replace(rows=held.rows.extended(Ids.from_user(ids, len(ids))))

    def remove(self, ids: Any) -> None:
        """Removes vectors from the index; Faiss keeps them, ignored by searches, until `refresh`.

        Raises:
            UnknownIdError: an id is not in the index. Nothing was removed.
            InputError: an id is given twice.
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

    def asked(self, queries: Any, k: int, settings: Settings, documents: Documents | None = None) -> Asked:
        """Checked queries; a CUDA tensor that Faiss can read stays on its GPU.

        Faiss reads one for `dense` with `asymmetric` scoring, if the vectors are on a GPU as well.
        """
        seen = self.documents if documents is None else documents
        is_read = _is_cuda(queries) and self.metric != "l2"
        if is_read and isinstance(seen, _Rescored) and isinstance(seen.store.flat, GpuFlat):
            k = check_int(k, "k", 1, MAX_K)
            stays = (settings.mode, settings.scoring) == ("dense", "asymmetric")
            if stays and seen.store.can_scan(k, settings.filter):
                rows = _checked_tensor(queries, self.model.dim)
                threads, coder = check_threads(settings.num_threads), Coder(self.model, self.encoder, seen)
                candidates = check_candidates(settings.candidates, k)
                refine = check_refine(settings.refine, k, can_refine=False)
                return Asked(rows, None, k, candidates, refine, threads, settings, coder)
        return super().asked(queries, k, settings, seen)

    def _current(self) -> _Held:
        """The state for a search.

        Raises:
            InputError: the index was changed elsewhere.
        """
        while True:
            held = self._held
            if held.model is not self.index.model:
                msg = "the index was coded anew by another model than the vectors in Faiss: call refresh()"
                raise InputError(msg)
            known, stored = len(held.rows.all_ids), len(held.flat)
            # The length of another back end may take a request to a server.
            embedded = isinstance(self.index, CompressedIndex)
            expected = known + len(self.index) - held.rows.n_alive if embedded else known
            # During a removal, the index may or may not have dropped an id yet.
            if known == stored and (expected == known or self._removing):
                return held
            if self._held is held:
                break
        msg = (
            f"the Faiss store has {stored} vectors for {known} ids, expected {expected} from the index: "
            "the index was changed elsewhere, or an add failed; call refresh()"
        )
        raise InputError(msg)


def _is_cuda(queries: Any) -> bool:
    return bool(getattr(queries, "is_cuda", False))


def _chunks(ids: IdArray) -> Iterator[IdArray]:
    for first in range(0, len(ids), CHUNK_ROWS):
        yield ids[first : first + CHUNK_ROWS]


def _checked_tensor(queries: Any, dim: int) -> Any:
    """A CUDA tensor as contiguous float32 rows, (n_queries, dim), on its device.

    Raises:
        DimensionError: another shape.
        InputError: not floating point.
    """
    tensor = queries.detach()
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if tensor.ndim != 2 or tensor.shape[1] != dim:
        msg = f"queries have shape {tuple(tensor.shape)}, expected (n_queries, {dim})"
        raise DimensionError(msg)
    if not tensor.is_floating_point():
        msg = f"queries must be floating point, got {tensor.dtype}"
        raise InputError(msg)
    return tensor.float().contiguous()


def _of_tensor(tensor: Any, unit: float | None) -> tuple[Any, FloatArray]:
    """Rows of a checked tensor to multiply with vectors, and factors (n_queries, 1) for the products.

    If all norms are near 1, the rows are the tensor itself, not a copy. `unit` is None for cosine.

    Raises:
        InputError: NaN, infinite or zero rows.
    """
    lengths = tensor.norm(dim=1, keepdim=True)
    norms: FloatArray = lengths.cpu().numpy()
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        msg = f"queries row {bad[0]} is zero or holds NaN or infinite values ({bad.size} such rows)"
        raise InputError(msg)
    if norms.min(initial=1) >= SHORTEST_NORM and norms.max(initial=1) <= LONGEST_NORM:
        return tensor, np.reciprocal(norms) if unit is None else np.full_like(norms, unit)
    return tensor / lengths, np.ones_like(norms) if unit is None else norms * np.float32(unit)
