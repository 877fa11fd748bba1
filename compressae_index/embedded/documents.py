"""`EmbeddedDocuments`: codes in this process, with their ids and marks of removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import Bitmap, BoolArray, FloatArray, Hits, IdArray, RowArray
from compressae_index.checks import check_int, check_number
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import with_lengths
from compressae_index.coding.metric import Metric, RowScale
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.backend import EmbeddedBackend, Refinement
from compressae_index.embedded.codecs import WithResiduals
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.embedded.originals import FILE, Originals, score_of
from compressae_index.embedded.sizes import POSTING_BYTES, RUN_ROWS, sparse_candidates
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import STORED_ROWS, Ids, Rows, check_kind, stored_rows
from compressae_index.persistence import entry
from compressae_index.search.protocol import Filter
from compressae_index.search.queries import MODES, Asked, Reads, SearchResult
from compressae_index.search.stages import Found, Stages, in_order, ranked, strongest_terms


class EmbeddedDocuments(Rows):
    """The `Documents` of an index in this process. They are immutable; a change makes new ones.

    Attributes:
        backend: the codes of the rows.
        unit: the unit of norms, which values were divided by; None until the first rows determine it.
    """

    modes: tuple[str, ...] = MODES
    filters: tuple[Filter, ...] = ("ids", "mask")

    def __init__(
        self,
        backend: EmbeddedBackend,
        ids: Ids | None = None,
        alive: BoolArray | None = None,
        unit: float | None = 1.0,
    ) -> None:
        """Takes codes, the ids of their rows (None: 0 .. n-1), and which are not removed (None: all)."""
        ids = Ids(len(backend), {}) if ids is None else ids
        if len(backend) != len(ids) or (alive is not None and len(alive) != len(ids)):
            msg = f"{len(backend)} codes, but {len(ids)} ids"
            raise DimensionError(msg)
        super().__init__(ids, alive)
        self.backend = backend
        self.unit = unit

    def __len__(self) -> int:
        return self.n_alive

    @property
    def n_latents(self) -> int:
        """Size of the dictionary, and one more for norms where they are kept."""
        return self.backend.n_latents + self.backend.keeps_norms

    @property
    def k(self) -> int:
        """Nonzeros a code, and one more where norms are kept."""
        return self.backend.k + self.backend.keeps_norms

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        return self.all_ids.are_strings

    @property
    def ids(self) -> IdArray:
        """The ids in the order of adding, without removed ones."""
        return self.all_ids.of(self.alive_rows())

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the forward and the inverted part, and of ids and marks of removal."""
        return self.backend.nbytes | {"ids": self.all_ids.nbytes + self.mark_bytes}

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids can be found, (n,)."""
        return self.live_ids.find(ids) >= 0

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, multiplied by the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        rows = self.rows_of(ids)
        codes = self.backend.codes(rows)
        codes = codes if self.unit in (None, 1.0) else codes.scaled(self.unit)
        halves = self.backend.halves(rows)
        if halves is None:
            return codes
        return with_lengths(codes, halves * np.float32((self.unit or 1.0) ** 2))

    def stages(self, mode: str) -> Stages:
        """The stages of a mode: a single one, as one call of the engine finds and re-scores documents."""
        if mode == "dense":
            return Stages(self.by_codes)
        return Stages(self.by_terms if mode == "sparse" else self.by_terms_then_codes)

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query.

        Raises:
            InputError: a filter with the wrong length, unknown ids, or integers that may be meant as a mask.
        """
        asked.let_be_rough(by_originals=self.backend.originals is not None)
        return ranked(self.stages(asked.settings.mode).run(asked), asked.k, are_strings=self.are_strings)

    def reads(self, asked: Asked) -> Reads:
        """What `answer` reads for queries: postings of their latents, codes, and what refines."""
        backend, n, postings = self.backend, len(asked), 0
        k, candidates, _ = self._room(asked)
        if k == 0:
            return Reads(0, 0)
        if asked.mode != "dense":
            terms = strongest_terms(asked.stage_one, self._query_nnz(asked))
            latents = terms.latents[terms.values != 0]
            postings = int(
                backend.list_lengths()[latents[latents < backend.n_latents]].sum()
            )  # norms have none
        scored = {"dense": len(self.all_ids), "two_stage": candidates}.get(asked.mode, sparse_candidates(k))
        codec, third, shape = backend.codec, 0, (backend.n_latents, backend.k)
        if isinstance(codec, WithResiduals):
            third = codec.row_bytes(*shape) - codec.inner.row_bytes(*shape)
            codec = codec.inner
        if backend.originals is not None:
            third = backend.originals.dim * backend.originals.dtype.itemsize
        row = codec.row_bytes(*shape)
        read = POSTING_BYTES * postings + n * (scored * row + min(asked.refine, scored) * third)
        return Reads(postings, int(read))

    def by_terms(self, asked: Asked) -> Found:
        """The best documents by the strongest latents of each query."""
        k, _, allowed = self._room(asked)
        if k == 0:
            return self._nothing(asked)
        nnz = self._query_nnz(asked)
        hits = self.backend.sparse(asked.stage_one, nnz, k, allowed, asked.num_threads)
        return self._found(asked, hits)

    def by_codes(self, asked: Asked) -> Found:
        """The best of all documents by their codes, an exact search."""
        k, _, allowed = self._room(asked)
        if k == 0:
            return self._nothing(asked)
        refinement = self._refinement(asked)
        hits = self.backend.dense(asked.stage_two, k, allowed, asked.num_threads, refinement)
        found = self._found(asked, hits, refined=refinement is not None)
        return found._replace(certified=np.ones(len(asked), dtype=bool))

    def by_terms_then_codes(self, asked: Asked) -> Found:
        """Finds candidates by the strongest latents of each query, and takes the best by their codes."""
        nnz = self._query_nnz(asked)
        k, candidates, allowed = self._room(asked)
        if k == 0:
            return self._nothing(asked)
        stages, refinement = (asked.stage_one, asked.stage_two), self._refinement(asked)
        hits = self.backend.two_stage(
            *stages, nnz, candidates, k, allowed, asked.num_threads, refinement, damped=asked.is_damped
        )
        return self._found(asked, hits, refined=refinement is not None)

    def _refinement(self, asked: Asked) -> Refinement | None:
        if not asked.refine:
            return None
        return self.queries_to_refine(asked), min(asked.refine, len(self.all_ids))

    def queries_to_refine(self, asked: Asked) -> FloatArray:
        """Queries as the last stage of the engine takes them, (n_queries, d)."""
        kept = self.backend.originals
        if kept is None or asked.weights is None:
            return asked.vectors
        return kept.seen_by_distances(asked.rows)

    def _in_metric(self, asked: Asked, sums: FloatArray, *, refined: bool) -> FloatArray:
        return in_metric(asked, sums, by_originals=refined and self.backend.originals is not None)

    def _room(self, asked: Asked) -> tuple[int, int, Bitmap | None]:
        """The k and candidates, limited to the number of allowed rows, and the bitmap of allowed rows."""
        allowed, n_allowed = self.allowed(asked.settings.filter)
        if not len(asked.rows):
            return 0, 0, allowed
        return min(asked.k, n_allowed), min(asked.candidates, n_allowed), allowed

    def _found(self, asked: Asked, hits: Hits, *, refined: bool = False) -> Found:
        """The documents of the engine's hits."""
        scores, rows = self._in_metric(asked, hits[0], refined=refined), hits[1]
        if scores is not hits[0] and asked.may_tie:
            # With something added, different sums may round to the same score.
            scores, rows = in_order(scores, rows)
        return Found(scores, self.all_ids.of(rows), rows, ordered=True)

    def _nothing(self, asked: Asked) -> Found:
        rows = np.empty((len(asked), 0), np.int64)
        none, marks = np.empty(rows.shape, np.float32), np.ones(len(asked), dtype=bool)
        certified = marks if asked.settings.mode == "dense" else None
        return Found(none, self.all_ids.of(rows), rows, certified, ordered=True)

    def _query_nnz(self, asked: Asked) -> int:
        query_nnz = asked.settings.query_nnz
        return self.backend.query_nnz if query_nnz is None else min(query_nnz, self.backend.n_latents)

    @property
    def residual_bits(self) -> int:
        """Bits a dimension of residual codes; 0 for none."""
        codec = self.backend.codec
        return codec.residual_bits if isinstance(codec, WithResiduals) else 0

    @property
    def refines(self) -> bool:
        """Whether there are residual codes or original vectors."""
        return self.backend.originals is not None or self.residual_bits > 0

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """The vectors of ids, in the unit of norms, as the last stage knows them, (len(ids), d).

        These are the original ones where they are kept, else reconstructions with their residuals.

        Raises:
            UnknownIdError: an id is not held.
            StorageError: the file of the original vectors was changed.
        """
        rows = self.rows_of(ids)
        if self.backend.originals is not None:
            return self.backend.originals.vectors(rows)
        return self._reconstructed(rows, model)

    def vectors_of(self, rows: RowArray, model: CompresSAE) -> FloatArray:
        """The vectors of rows as `vectors` gives them, but times the unit of norms.

        Raises:
            StorageError: the file of the original vectors was changed.
        """
        kept = self.backend.originals
        vectors = self._reconstructed(rows, model) if kept is None else kept.vectors(rows)
        return vectors if self.unit in (None, 1.0) else vectors * np.float32(self.unit)

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """Reconstructions of ids with their residuals, (len(ids), d), in the unit of norms.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self._reconstructed(self.rows_of(ids), model)

    def _reconstructed(self, rows: RowArray, model: CompresSAE) -> FloatArray:
        vectors, residuals = model.decode(self.backend.codes(rows)), self.backend.residuals(rows)
        return vectors if residuals is None else vectors + residuals

    def with_originals(self, originals: Originals | None) -> EmbeddedDocuments:
        """The same documents with original vectors, one a row, or without any."""
        if originals is not None:
            originals = originals.in_unit(self.unit or 1.0)
        return EmbeddedDocuments(self.backend.with_originals(originals), self.all_ids, self.alive, self.unit)

    def next_ids(self, n: int) -> RowArray:
        """The next n integers above the largest id, removed ones included."""
        if self.are_strings:
            msg = "this index has string ids, so new vectors need ids"
            raise InputError(msg)
        largest = int(self.all_ids.all().max())
        if largest + n > np.iinfo(np.int64).max:
            msg = f"no {n} integers are left above the largest id {largest}, so new vectors need ids"
            raise InputError(msg)
        return np.arange(largest + 1, largest + 1 + n)

    def check_ids(self, ids: IdArray) -> None:
        """Checks that new ids are integers or strings, like the existing ones; an empty index takes both.

        Raises:
            InputError: they are of the other kind.
        """
        if self.n_alive:
            check_kind(ids, are_strings=self.are_strings)

    def added(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        *,
        scale: RowScale,
        model: CompresSAE,
        num_threads: int,
        progress: bool = False,  # noqa: ARG002
    ) -> EmbeddedDocuments:
        """These documents and others, added RUN_ROWS at a time and replacing those with the same ids."""
        replaced = self.live_ids.find(ids.all())
        rest = self._marked(self.alive_rows()[replaced[replaced >= 0]])
        backend = rest.backend if rest.n_alive else rest.compacted(num_threads).backend
        backend = backend.added(_runs(chunks), num_threads, model, scale)
        if not rest.n_alive:
            return EmbeddedDocuments(backend, ids, None, scale.unit)
        rows = rest.extended(ids)
        return EmbeddedDocuments(backend, rows.all_ids, rows.alive, scale.unit)

    def removed(self, ids: IdArray) -> EmbeddedDocuments:
        """These documents without some ids; their memory stays in use until `compacted`."""
        return self._marked(self.rows_of(ids))

    def _marked(self, rows: RowArray) -> EmbeddedDocuments:
        """These documents with rows marked as removed."""
        if not len(rows):
            return self
        return EmbeddedDocuments(self.backend, self.all_ids, self.without(rows).alive, self.unit)

    def compacted(self, num_threads: int) -> EmbeddedDocuments:
        """These documents without the removed rows."""
        if self.alive is None:
            return self
        rows = self.alive_rows()
        ids = self.all_ids.subset(rows) if len(rows) else Ids(0, {})
        return EmbeddedDocuments(self.backend.subset(rows, num_threads), ids, None, self.unit)

    def emptied(self) -> EmbeddedDocuments:
        """No documents, to be stored as these are: with their codec, threshold and unit of norms."""
        none = np.empty(0, np.int64)
        return EmbeddedDocuments(self.backend.subset(none, num_threads=1), Ids(0, {}), None, self.unit)

    def manifest(self) -> dict[str, Any]:
        """The manifest of saved documents."""
        optional = {
            "threshold": self.backend.threshold,
            "originals": None if (originals := self.backend.originals) is None else originals.manifest(),
        }
        return {
            "n": len(self.all_ids),
            "k": self.backend.k,
            "packing": self.backend.codec.manifest(),
            "postings": self.backend.postings,
            "unit": self.unit,
        } | {name: value for name, value in optional.items() if value is not None}

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store."""
        arrays = self.backend.to_arrays() | self.all_ids.to_arrays()
        if self.alive is not None:
            arrays["alive"] = np.packbits(self.alive, bitorder="little")
        return arrays

    @classmethod
    def from_stored(
        cls,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        model: CompresSAE,
        metric: Metric,
        unit: float | None,
        originals: Any = None,
    ) -> EmbeddedDocuments:
        """Loads `manifest` and `to_arrays`. Arrays are not copied, so they may be memory-mapped.

        Args:
            meta: the manifest.
            arrays: the stored arrays; original vectors must be mapped.
            model: the model of the codes.
            metric: the metric of the index.
            unit: the unit of norms.
            originals: False to leave the original vectors out; the path or array of a file that was moved;
                None for what the manifest says.

        Raises:
            ValueError: the parts do not fit together, or have wrong contents.
            KeyError: a part is missing.
        """
        n, n_latents = check_int(meta["n"], "n", 0), model.n_latents
        k = check_int(meta["k"], "k", 1, n_latents, "n_latents")
        postings = check_int(meta["postings"], "postings", 1, k, "k")
        threshold = meta.get("threshold")
        if threshold is not None and not 0 <= check_number(threshold, "threshold") <= 1:
            msg = f"the threshold of posting lists must be between 0 and 1, got {threshold}"
            raise InputError(msg)
        codec = entry(meta, "packing", dict)
        of_rows = {name: array for name, array in arrays.items() if name in STORED_ROWS}
        others = (*STORED_ROWS, Path(FILE).stem)
        of_codes = {name: array for name, array in arrays.items() if name not in others}
        kept = Originals.of_index(
            meta,
            arrays,
            model.dim,
            score=score_of(metric, keeps_norms=codec.get(NORMS, False)),
            unit=unit or 1.0,
            center=model.center,
            given=originals,
        )
        if (dim := codec.get("dim", model.dim)) != model.dim:
            msg = f"residual codes are of {dim!r:.100} dimensions, the model has {model.dim}"
            raise DimensionError(msg)
        backend = EmbeddedBackend.from_arrays(of_codes, n, n_latents, k, codec, postings, threshold, kept)
        ids, alive = stored_rows(n, of_rows)
        if n and unit is None:
            msg = "norms are stored without their unit"
            raise InputError(msg)
        return cls(backend, ids, alive, unit)


def in_metric(asked: Asked, sums: FloatArray, *, by_originals: bool) -> FloatArray:
    """Scores of the engine's sums; those by original vectors hold the share of the model's mean."""
    if not by_originals:
        return asked.in_metric(sums)
    if asked.distances is not None:
        return asked.distances.of_vectors(sums)
    if asked.factors is None:
        return sums  # cosines, each the engine's own
    # Vectors of a damaged file may be of any length, and only places without a document score -inf.
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        scores = np.clip(asked.times_factors(sums), -largest, largest)
    return np.where(np.isneginf(sums), sums, scores)


def _runs(chunks: Iterable[Encoded]) -> Iterator[Encoded]:
    """Joins chunks to runs of at least RUN_ROWS rows; only the last may have fewer."""
    held: list[Encoded] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(len(each.codes) for each in held) >= RUN_ROWS:
            run, held = _joined(held), []
            yield run
    if held:
        yield _joined(held)


def _joined(chunks: Sequence[Encoded]) -> Encoded:
    rows = [each.rows for each in chunks if each.rows is not None]
    codes = SparseCodes.concatenate(each.codes for each in chunks)
    return Encoded(codes, np.concatenate(rows) if len(rows) == len(chunks) else None)
