"""The embedded back end: codes in this process, searched by the engine. It knows rows, not ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index._engine import Forward, InvertedLists, Refiner, search
from compressae_index.arrays import Bitmap, BoolArray, FloatArray, Hits, RowArray
from compressae_index.checks import check_threads
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import half_squares, inverses
from compressae_index.coding.metric import RowScale
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.codecs import Arrays, Codec, Packed, WithResiduals, from_arrays
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.embedded.originals import PLACES, Originals, Spool
from compressae_index.embedded.sizes import RUN_ROWS, WINDOW, sparse_candidates
from compressae_index.embedded.thinning import above_threshold, strongest, threshold_for
from compressae_index.errors import DimensionError, InputError
from compressae_index.persistence import release_pages
from compressae_index.processes import cached_property
from compressae_index.search.queries import QUERY_NNZ

# Queries (n_queries, d), and how many documents of each the last stage scores.
Refinement: TypeAlias = tuple[FloatArray, int]

# The names of the engine's arrays in files.
_INVERTED = {f"inverted_{name}" for name in ("starts", "offsets", "scales", "ids", "values", "largest_norm")}
# Arrays that earlier versions stored, and that are ignored: where clusters begin, and their means.
_FORMER = {f"clusters_{name}" for name in ("begins", "means", "scales")}


@dataclass(frozen=True)
class Part:
    """A run of documents, stored twice. It is immutable, so searches can run while documents are added."""

    rows: Arrays
    """The codec's arrays."""
    forward: Forward
    """The engine's view of the rows."""
    inverted: InvertedLists
    """The same codes as posting lists."""

    def __len__(self) -> int:
        return self.forward.n_documents


class EmbeddedBackend:
    """Codes of rows 0 .. n-1, searched by posting lists or row by row.

    Methods that change documents return a new back end, which shares the unchanged parts.
    """

    def __init__(
        self,
        n_latents: int,
        k: int,
        codec: Codec | None = None,
        parts: Sequence[Part] = (),
        *,
        postings: int | None = None,
        threshold: float | None = None,
        originals: Originals | None = None,
    ) -> None:
        """Makes an empty back end, or one of given parts.

        Args:
            n_latents: size of the dictionary.
            k: nonzeros a code.
            codec: how the forward part stores codes, `Packed` by default. If it is not fitted, it is fitted
                to the first codes added, and never again.
            parts: runs of documents.
            postings: nonzeros of a code in the posting lists, on average; all by default.
            threshold: the least share of a nonzero in the lists (`thinning.shares`). By default it is chosen
                for the first codes added, and never again; of an index of version 0.1, which has none, each
                code keeps its `postings` strongest.
            originals: the original vectors of all documents, if they are kept.
        """
        self.n_latents = n_latents
        self.k = k
        self.postings = k if postings is None else postings
        self.threshold = threshold
        self.codec = Packed() if codec is None else codec
        self.originals = originals
        self._parts = tuple(parts)
        self._pairs = [(part.inverted, part.forward) for part in self._parts]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def keeps_norms(self) -> bool:
        """Whether norms are kept beside codes, so that projections have a column for them."""
        return NORMS in self.codec.array_names

    def __reduce__(self) -> tuple[Any, ...]:
        # The engine's objects cannot be pickled, but their arrays can; mapped arrays are copied.
        parts = [(_held(part.rows), _held(part.inverted.arrays()), len(part)) for part in self._parts]
        settings = {"postings": self.postings, "threshold": self.threshold, "originals": self.originals}
        return _remade, (self.n_latents, self.k, self.codec, parts, settings)

    @property
    def query_nnz(self) -> int:
        """Default latents of a query: QUERY_NNZ, or more if lists are thinned, for about as many postings."""
        return min(QUERY_NNZ * self.k // self.postings, self.n_latents)

    @cached_property
    def refiner(self) -> Refiner | None:
        """The engine's last stage: by original vectors, by residual codes, or none."""
        if not self._parts:
            return None
        if self.originals is not None:
            return self.originals.refiner
        if isinstance(self.codec, WithResiduals):
            return self.codec.refiner([part.rows for part in self._parts])
        return None

    def added(
        self,
        runs: Iterable[Encoded],
        num_threads: int,
        model: CompresSAE | None = None,
        scale: RowScale | None = None,
    ) -> EmbeddedBackend:
        """A back end with documents appended, run by run, so that only one run is unpacked in memory.

        Only the last part ends within a window, unless parts were merged, so adding makes the same windows as
        building at once. Parts of similar size are joined, which keeps their number logarithmic.

        Args:
            runs: rows and codes in their order, at least one row.
            num_threads: threads of the engine.
            model: the model that encoded, so that rounding keeps the norms of reconstructions.
            scale: the scale of the codes, whose unit is known once the first run is made.
        """
        codec, packed, originals = self.codec, list[Arrays](), self.originals
        with ExitStack() as opened:
            if originals is not None:
                spool = opened.enter_context(Spool(originals.dim, originals.dtype))
            for codes, rows in runs:
                codec = codec.fitted(codes)
                for run in _runs(len(codes)):
                    chunk = Encoded(codes[run], None if rows is None else rows[run])
                    packed.append(pack_chunk(codec, chunk, model, num_threads))
                if originals is not None:
                    assert rows is not None, "codes alone have no original vectors"
                    originals = originals if scale is None else originals.in_unit(scale.unit or 1.0)
                    spool.add(originals.from_center(rows))
            if originals is not None:
                originals = originals.extended(spool.segment())
        arrays = codec.stacked(packed)
        packed.clear()  # Frees memory for the posting lists.
        if self._parts or self.threshold is not None or self.postings >= self.k:
            return self._with(codec, arrays, num_threads, originals)
        threshold = self._threshold(codec, arrays, num_threads)
        return self._of(codec, (), self.originals, threshold)._with(codec, arrays, num_threads, originals)

    def subset(self, rows: RowArray, num_threads: int) -> EmbeddedBackend:
        """A back end of only some documents, in the order of `rows`."""
        originals = None if self.originals is None else self.originals.subset(rows)
        empty = EmbeddedBackend(
            self.n_latents, self.k, self.codec, postings=self.postings, threshold=self.threshold
        )
        if not len(rows):
            return empty.with_originals(originals)
        return empty._with(self.codec, self.forward_rows(rows), num_threads, originals)

    @property
    def form(self) -> dict[str, Any]:
        """What all documents of a back end share, and those of others must to be merged with them."""
        learned = {name: array.tolist() for name, array in self.codec.learned().items()}
        return {
            "k": self.k,
            "codec": self.codec.manifest(),
            "postings": self.postings,
            "originals": None if self.originals is None else self.originals.form,
            "threshold of posting lists": self.threshold,
            "learned levels of values": learned,
        }

    def merged(self, others: Sequence[EmbeddedBackend]) -> EmbeddedBackend:
        """These documents and those of others of the same `form`, whose parts are shared, not copied."""
        parts = [part for each in (self, *others) for part in each._parts]
        kept = self.originals
        if kept is not None:
            kept = kept.joined([each.originals for each in others if each.originals is not None])
        return self._of(self.codec, parts, kept)

    def _with(
        self, codec: Codec, rows: Arrays, num_threads: int, originals: Originals | None
    ) -> EmbeddedBackend:
        """A back end with packed rows appended as they are, since rounding again would change them."""
        parts = list(self._parts)
        if parts and (tail := len(parts[-1]) % WINDOW):
            last = parts.pop()
            if whole := len(last) - tail:
                parts.append(self._head(last, whole))
            rows = codec.stacked([codec.cut(last.rows, slice(whole, None)), rows])
        forward = codec.engine(rows, self.n_latents, self.k)
        parts.append(Part(rows, forward, self._inverted(codec, rows, forward.n_documents, num_threads)))
        # Joins all at once, which takes less memory than pairwise copies.
        first, n = len(parts) - 1, len(parts[-1])
        while first and len(parts[first - 1]) < 2 * n:
            first -= 1
            n += len(parts[first])
        return self._of(codec, [*parts[:first], self._joined(parts[first:], codec, num_threads)], originals)

    def _inverted(self, codec: Codec, rows: Arrays, n: int, num_threads: int) -> InvertedLists:
        """Posting lists of n packed rows, made of the rounded values so that both hold the same codes."""
        lists = []
        for run in _runs(n):
            part = codec.cut(rows, run)
            codes = codec.unpack(part, self.n_latents, self.k, num_threads)
            if NORMS in part:
                # Norms are told apart by more bits than the values of a list, which are relative to its
                # largest.
                codes = codes.scaled(inverses(part[NORMS]))
            kept = self._kept(codes)
            lists.append(InvertedLists.build(codes.latents, codes.values, self.n_latents, num_threads, kept))
        return _concatenated(lists)

    def _kept(self, codes: SparseCodes) -> BoolArray | None:
        """Which nonzeros are in the posting lists, (n, k); None for all."""
        if self.postings >= self.k:
            return None
        if self.threshold is None:
            return strongest(codes, self.postings)
        return above_threshold(codes, self.threshold)

    def _threshold(self, codec: Codec, rows: Arrays, num_threads: int) -> float:
        """The threshold for `postings` of a packed row: by all of them, or RUN_ROWS among more."""
        n = codec.engine(rows, self.n_latents, self.k).n_documents
        if n > RUN_ROWS:
            rows = codec.gathered([rows], np.linspace(0, n - 1, RUN_ROWS).astype(np.int64))
        return threshold_for(codec.unpack(rows, self.n_latents, self.k, num_threads), self.postings)

    def _of(
        self,
        codec: Codec,
        parts: Sequence[Part],
        originals: Originals | None,
        threshold: float | None = None,
    ) -> EmbeddedBackend:
        return EmbeddedBackend(
            self.n_latents,
            self.k,
            codec,
            parts,
            postings=self.postings,
            threshold=self.threshold if threshold is None else threshold,
            originals=originals,
        )

    def with_originals(self, originals: Originals | None) -> EmbeddedBackend:
        """The same documents with other original vectors, or none."""
        return self._of(self.codec, self._parts, originals)

    def codes(self, rows: RowArray) -> SparseCodes:
        """The stored codes of rows: folded, and rounded to the stored precision."""
        if not len(rows):
            return SparseCodes.empty(self.k, self.n_latents)
        return self.codec.unpack(self.forward_rows(rows), self.n_latents, self.k)

    def halves(self, rows: RowArray) -> FloatArray | None:
        """Half the squares of the norms beside the codes of rows, (len(rows),); None where none are kept."""
        if not self.keeps_norms:
            return None
        return half_squares(self.forward_rows(rows)[NORMS]) if len(rows) else np.empty(0, np.float32)

    def forward_rows(self, rows: RowArray) -> Arrays:
        """Copies of the codec's arrays for rows, in their order; the back end must not be empty."""
        return self.codec.gathered([part.rows for part in self._parts], rows)

    def sparse(
        self,
        projections: FloatArray,
        query_nnz: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
    ) -> Hits:
        """The best rows by the query_nnz largest entries of each projection.

        Values in posting lists are rounded, so they find a few more rows than asked for, which are then
        scored exactly by their codes.
        """
        candidates = sparse_candidates(top)
        return self._search(projections, None, query_nnz, candidates, top, allowed, num_threads)

    def dense(
        self,
        projections: FloatArray,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        refinement: Refinement | None = None,
    ) -> Hits:
        """The best rows by whole projections, of which the best are refined."""
        return self._search(None, projections, 1, 1, top, allowed, num_threads, refinement)

    def two_stage(
        self,
        stage_one: FloatArray,
        stage_two: FloatArray,
        query_nnz: int,
        candidates: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        refinement: Refinement | None = None,
        *,
        damped: bool = False,
    ) -> Hits:
        """Finds candidates in posting lists for stage_one, scores them by stage_two, refines the best."""
        return self._search(
            stage_one, stage_two, query_nnz, candidates, top, allowed, num_threads, refinement, damped=damped
        )

    def _search(
        self,
        stage_one: FloatArray | None,
        stage_two: FloatArray | None,
        query_nnz: int,
        candidates: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        refinement: Refinement | None = None,
        *,
        damped: bool = False,
    ) -> Hits:
        refiner, queries, refine = (None, None, 0) if refinement is None else (self.refiner, *refinement)
        if refinement is not None and self.originals is not None:
            self.originals.check()
        return search(
            self._pairs,
            stage_one,
            stage_two,
            query_nnz,
            candidates,
            top,
            allowed,
            num_threads,
            refiner,
            queries,
            refine,
            damped,
        )

    @property
    def largest_norm(self) -> float:
        """The largest norm of the postings of a document, which sets the steps of 16-bit scores."""
        return max((float(part.inverted.arrays()["largest_norm"][0]) for part in self._parts), default=0.0)

    def with_largest_norm(self, largest_norm: float) -> EmbeddedBackend:
        """The same documents in one part, with scores by lists in the steps of a larger collection."""
        parts = []
        for part in self.joined()._parts:
            arrays = _held(part.inverted.arrays()) | {"largest_norm": np.array([largest_norm], np.float32)}
            lists = InvertedLists(arrays, len(part), self.n_latents)
            parts.append(Part(part.rows, part.forward, lists))
        return self._of(self.codec, parts, self.originals)

    def listed(
        self,
        projections: FloatArray,
        query_nnz: int,
        top: int,
        allowed: Bitmap | None,
        num_threads: int,
        *,
        damped: bool,
    ) -> Hits:
        """Stage one alone, of documents in one part: the best rows and their scores, in 16-bit steps."""
        part = self._parts[0]
        return part.inverted.search(projections, query_nnz, top, allowed, num_threads, part.forward, damped)

    def scored(self, projections: FloatArray, rows: RowArray, num_threads: int) -> Hits:
        """Stage two alone, of one part: rows (n_queries, c) by their codes, best first; -1: none."""
        return self._parts[0].forward.rescore(projections, rows, rows.shape[1], num_threads)

    def refined(
        self, queries: FloatArray, scores: FloatArray, rows: RowArray, num_threads: int
    ) -> FloatArray:
        """Stage three alone: scores of rows (n_queries, c), -1: none, with `scores` by their codes."""
        assert self.refiner is not None
        if self.originals is not None:
            self.originals.check()
        found = self.refiner.rescore(queries, scores, np.maximum(rows, 0), num_threads)
        return np.where(rows < 0, np.float32(-np.inf), found)

    def residuals(self, rows: RowArray) -> FloatArray | None:
        """The residuals that the codes of rows leave out, (len(rows), d); None without residual codes."""
        if not isinstance(self.codec, WithResiduals):
            return None
        return self.codec.residuals(self.forward_rows(rows))

    def list_lengths(self) -> npt.NDArray[np.int64]:
        """Postings of each latent, (n_latents,)."""
        return sum(
            (part.inverted.list_lengths() for part in self._parts),
            start=np.zeros(self.n_latents, dtype=np.int64),
        )

    @cached_property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the forward and the inverted part, of residual codes and places of original vectors."""
        held = Counter({"forward": 0, "inverted": 0})
        for part in self._parts:
            held.update(self.codec.nbytes(part.rows) | {"inverted": part.inverted.nbytes})
        return dict(held) | ({} if self.originals is None else {"originals": self.originals.nbytes})

    def joined(self) -> EmbeddedBackend:
        """The same documents in one part, which is faster to search than several."""
        if len(self._parts) <= 1:
            return self
        part = self._joined(self._parts, self.codec, check_threads(None))
        return self._of(self.codec, [part], self.originals)

    def to_arrays(self) -> Arrays:
        """The arrays to store, of all parts joined."""
        parts = self.joined()._parts
        arrays = self.codec.to_arrays(parts[0].rows if parts else {})
        for part in parts:
            arrays |= {f"inverted_{name}": array for name, array in part.inverted.arrays().items()}
        if self.originals is not None:
            arrays |= self.originals.to_arrays()
        return arrays

    @classmethod
    def from_arrays(
        cls,
        arrays: Arrays,
        n: int,
        n_latents: int,
        k: int,
        manifest: Mapping[str, Any],
        postings: int,
        threshold: float | None = None,
        originals: Originals | None = None,
    ) -> EmbeddedBackend:
        """Loads the arrays of `to_arrays`. They are not copied, so they may be memory-mapped.

        Args:
            arrays: the stored arrays.
            n: documents.
            n_latents: size of the dictionary.
            k: nonzeros a code.
            manifest: the manifest of the codec.
            postings: nonzeros of a code in the inverted part, on average.
            threshold: the least share of one, if they were chosen by it.
            originals: the original vectors.

        Raises:
            ValueError: the arrays do not fit together, have wrong names, or are damaged. All of them are read
                to check.
        """
        codec, rows = from_arrays(manifest, arrays)
        _check_names(arrays, codec, n)
        if originals is not None and len(originals) != n:
            msg = f"expected {n} original vectors, got {len(originals)}"
            raise DimensionError(msg)
        if n == 0:
            return cls(n_latents, k, codec, postings=postings, threshold=threshold, originals=originals)
        of_lists = {
            name.removeprefix("inverted_"): array for name, array in arrays.items() if name in _INVERTED
        }
        forward = codec.engine(rows, n_latents, k)
        if forward.n_documents != n:
            msg = f"expected {n} codes, got {forward.n_documents}"
            raise DimensionError(msg)
        part = Part(rows, forward, InvertedLists(of_lists, n, n_latents))
        loaded = cls(
            n_latents,
            k,
            codec,
            [part],
            postings=postings,
            threshold=threshold,
            originals=originals,
        )
        threads = check_threads(None)
        forward.validate(threads)
        if isinstance(codec, WithResiduals):
            codec.refiner([rows]).validate(threads)
        release_pages(rows)
        fewest, most = (postings, postings) if threshold is None else (1, k)
        part.inverted.validate(fewest, most, threads)
        release_pages(of_lists)
        return loaded

    def _joined(self, parts: Sequence[Part], codec: Codec, num_threads: int) -> Part:
        """Joins parts in order. Where others than the last end within a window, lists are made anew."""
        if len(parts) == 1:
            return parts[0]
        rows = codec.stacked([part.rows for part in parts])
        forward = codec.engine(rows, self.n_latents, self.k)
        if any(len(part) % WINDOW for part in parts[:-1]):
            lists = self._inverted(codec, rows, forward.n_documents, num_threads)
        else:
            lists = _concatenated([part.inverted for part in parts])
        return Part(rows, forward, lists)

    def _head(self, part: Part, n: int) -> Part:
        """The first n rows of a part; n must be whole windows."""
        rows = self.codec.cut(part.rows, slice(n))
        lists = InvertedLists.concatenate([(part.inverted, 0, n // WINDOW)])
        return Part(rows, self.codec.engine(rows, self.n_latents, self.k), lists)


def _check_names(arrays: Iterable[str], codec: Codec, n: int) -> None:
    """Refuses missing or foreign arrays of an index of n documents."""
    by_row, learned = codec.stored_names()
    needed, optional = (by_row | _INVERTED, learned | _FORMER | {PLACES}) if n else (set(), learned)
    missing, foreign = needed.difference(arrays), set(arrays) - needed - optional
    if missing or foreign:
        what = f"lacks the array {min(missing)}" if missing else f"has an array {min(foreign)!r:.100}"
        msg = f"an index of {n} documents {what}"
        raise InputError(msg)


def _held(arrays: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(array) for name, array in arrays.items()}


def _remade(
    n_latents: int,
    k: int,
    codec: Codec,
    parts: Sequence[tuple[Arrays, Arrays, int]],
    settings: Mapping[str, Any],
) -> EmbeddedBackend:
    """Restores a back end from the arrays of its pickle."""
    made = [
        Part(rows, codec.engine(rows, n_latents, k), InvertedLists(inverted, n, n_latents))
        for rows, inverted, n in parts
    ]
    return EmbeddedBackend(n_latents, k, codec, made, **settings)


def pack_chunk(codec: Codec, chunk: Encoded, model: CompresSAE | None, num_threads: int) -> Arrays:
    """The codec's arrays of codes and, if it keeps any, of their residuals; with a model, norms are kept."""
    if model is None:
        return codec.pack(chunk.codes, num_threads)
    targets = chunk.rows
    if targets is not None and model.mean is not None:
        targets = targets - model.mean
    return codec.pack(chunk.codes, num_threads, model.decoder_w, targets)


def _runs(n: int) -> list[slice]:
    """Rows 0 .. n-1, RUN_ROWS at a time."""
    return [slice(first, min(first + RUN_ROWS, n)) for first in range(0, n, RUN_ROWS)]


def _concatenated(lists: Sequence[InvertedLists]) -> InvertedLists:
    """Joins posting lists in order; all but the last must have whole windows."""
    if len(lists) == 1:
        return lists[0]
    return InvertedLists.concatenate([(each, 0, -(-each.n_documents // WINDOW)) for each in lists])
