"""`InvertedFile`, the sparse back end with codes in Faiss's inverted lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import BorrowedLists, Refiner
from compressae_index.arrays import Bitmap, FloatArray, Hits, IdArray, RowArray
from compressae_index.building.recoding import StoredVectors
from compressae_index.checks import check_int, check_threads
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import half_squares, with_lengths, without_lengths
from compressae_index.coding.metric import RowScale, check_unit, row_norms, unit_from_center
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.faiss import lists
from compressae_index.embedded.codecs import Arrays, Codec, WithResiduals, codec_of, from_arrays
from compressae_index.embedded.codecs.base import PREFIX
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.embedded.codecs.residual import RESIDUAL_ROWS
from compressae_index.embedded.originals import FILE, PLACES, Originals, Score, Spool
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.ids import STORED_ROWS, Ids, Rows, stored_rows
from compressae_index.npy import write_header
from compressae_index.persistence import NewFile, entry, release_pages
from compressae_index.processes import ForkSafeLock
from compressae_index.progress import track
from compressae_index.search.backend import SparseBackend
from compressae_index.search.queries import Asked, SearchResult
from compressae_index.search.stages import ByTerms, Candidates, Found, Refined, Stages, terms_of
from compressae_index.sources import CHUNK_ROWS

# Value bits of packed rows: two more than usual, which is little next to the 10 bytes of a posting.
VALUE_BITS = 8
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass
class _Held:
    """Codes, ids and marks of removal as one search sees them. Every change replaces it."""

    rows: Rows
    packed: tuple[Arrays, ...]
    """The codec's arrays, piece by piece."""
    codec: Codec
    originals: Originals | None = None
    """The original vectors of all rows, if they are kept."""

    def all_packed(self) -> Arrays:
        """The codec's arrays of all rows; joins the pieces once. Empty if there are no rows."""
        if len(self.packed) > 1:
            self.packed = (self.codec.stacked(self.packed),)
        return self.packed[0] if self.packed else {}

    def gathered(self, rows: RowArray) -> Arrays:
        """Copies of the codec's arrays for rows, of which there is at least one."""
        return self.codec.gathered([self.all_packed()], rows)

    @property
    def refiner(self) -> Refiner | None:
        """The engine's last stage: by original vectors, by residual codes, or none."""
        if self.originals is not None:
            return self.originals.refiner
        if isinstance(self.codec, WithResiduals) and self.packed:
            return self.codec.refiner([self.all_packed()])
        return None


class InvertedFile(SparseBackend):
    """A back end that keeps codes in Faiss's inverted lists.

    The lists hold row numbers in the order of adding, not ids, because the engine adds up scores by row. Ids
    are kept in a separate array, which takes no memory if they count up from 0. Codes are stored a second
    time as packed rows, in a fifth of the bytes of their postings; otherwise, reading one code would take a
    pass over all lists. The lists hold the packed values in half precision, so each term of a sum is within
    1/2048 of the code's. Residual codes are kept beside the packed rows, original vectors on disk.

    A filter is an array of ids, or a boolean mask over the documents in the order of adding.

    Attributes:
        model: the model that made the codes.
        nonzeros: of a code, without its norm.
        keeps_norms: whether codes have one pair more, of half the square of their norm.
        num_threads: threads of the engine; None for all.
    """

    filters = ("ids", "mask")
    is_exact = True

    def __init__(
        self,
        model: CompresSAE,
        k: int | None = None,
        *,
        codec: Codec | None = None,
        norms: bool = False,
        originals: Originals | None = None,
        unit: float = 1.0,
        string_ids: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """Makes an empty back end.

        Args:
            model: the model of the codes.
            k: nonzeros a code; the model's by default.
            codec: packs the rows, with norms and residual codes or without. By default `Packed` with
                VALUE_BITS, fitted to the first codes.
            norms: whether the default codec keeps norms, for Euclidean distances. They are one list more, of
                all documents.
            originals: keeps the original vectors of rows, of which it has none so far.
            unit: codes are divided by it before packing; a power of two.
            string_ids: whether ids will be strings.
            num_threads: threads of the engine; all by default.
        """
        k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        codec = codec_of("packed", value_bits=VALUE_BITS, norms=norms) if codec is None else codec
        norms = NORMS in codec.array_names
        super().__init__(model.n_latents + norms, k + norms, are_strings=string_ids)
        self.keeps_norms = norms
        self.model = model
        self.nonzeros = k
        check_threads(num_threads)
        self.num_threads = num_threads
        self._unit = unit
        self._faiss = lists.empty_lists(self.n_latents)
        self._held = _Held(Rows(Ids(0, {})), (), codec, originals)
        self._view: BorrowedLists | None = None
        # The engine reads the lists in place, so nobody may change them during a search.
        self._lock = ForkSafeLock()
        # The id of the process that is changing the lists; until it is done, they may not match _held.
        self._changing: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        held = self._held
        settings = {"unit": self._unit, "string_ids": self.are_strings, "num_threads": self.num_threads}
        settings["norms"] = self.keeps_norms
        # Copies mapped files into the pickle.
        packed = {name: np.asarray(array) for name, array in held.all_packed().items()}
        return _remade, (
            self.model,
            self.nonzeros,
            settings,
            replace(held, packed=(packed,) if packed else ()),
        )

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Locks the lists for a search or a change, after repairing an interrupted change."""
        with self._lock.lock:
            if self._changing is not None:
                self._rebuild()
            yield

    def _rebuild(self) -> None:
        """Builds the lists again from packed rows, after an interrupt or a fork during a change."""
        self._view, held = None, self._held
        if self._changing != os.getpid():
            self._faiss.this.disown()  # forked in mid-change: freeing its memory is unsafe
        self._changing = os.getpid()
        self._faiss = lists.empty_lists(self.n_latents)
        self._file(held.all_packed(), held.codec, range(len(held.rows.all_ids)))
        self._changing = None

    def _file(self, packed: Arrays, codec: Codec, rows: range, *, progress: bool = False) -> None:
        """Appends packed rows to the lists, a batch at a time, under row numbers."""
        with track(len(rows), "filing codes", enabled=progress) as advance:
            for first in range(0, len(rows), CHUNK_ROWS):
                codes = self._for_lists(codec.cut(packed, slice(first, first + CHUNK_ROWS)), codec)
                lists.append(self._faiss, codes, rows.start + first)
                advance(len(codes))

    @property
    def faiss_index(self) -> Any:
        """The Faiss index of the lists, for `faiss.write_index`. Do not change it."""
        with self._in_turn():
            return self._faiss

    @property
    def ids(self) -> IdArray:
        """The ids in the order of adding, without removed ones."""
        return self._held.rows.live_ids.all()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of posting lists, codes, residual codes, ids and marks, and places of originals."""
        held = self._held
        packed = dict(held.all_packed())
        residuals = {} if RESIDUAL_ROWS not in packed else {"residuals": packed.pop(RESIDUAL_ROWS).nbytes}
        originals = {} if held.originals is None else {"originals": held.originals.nbytes}
        return {
            "inverted": self._faiss.ntotal * lists.POSTING_BYTES,
            "forward": sum(array.nbytes for array in packed.values()),
            "ids": held.rows.all_ids.nbytes + held.rows.mark_bytes,
        } | (residuals | originals)

    @property
    def residual_bits(self) -> int:  # type: ignore[override]
        """Bits a dimension of residual codes; 0 for none."""
        codec = self._held.codec
        return codec.residual_bits if isinstance(codec, WithResiduals) else 0

    @property
    def originals(self) -> Originals | None:
        """The original vectors of all rows, if they are kept."""
        return self._held.originals

    @property
    def refines(self) -> bool:  # type: ignore[override]
        """Whether there are residual codes or original vectors."""
        return self.originals is not None or self.residual_bits > 0

    def __len__(self) -> int:
        return self._held.rows.n_alive

    def held(self, ids: IdArray) -> npt.NDArray[np.bool_]:
        """Which of the ids are held."""
        return self._held.rows.live_ids.find(ids) >= 0

    def put(self, codes: SparseCodes, ids: IdArray) -> None:
        """Stores codes (n, k), one unique id a row; replaces the codes of ids that are held.

        Raises:
            DimensionError: the codes have another k or number of latents.
            InputError: the lists are mapped from a file and so read-only, or a value is too large for half
                precision. Or there are residual codes or original vectors, which codes alone do not give.
        """
        if (codes.k, codes.n_latents) != (self.k, self.n_latents):
            msg = (
                f"codes have (k, n_latents) {(codes.k, codes.n_latents)}, expected {(self.k, self.n_latents)}"
            )
            raise DimensionError(msg)
        if self.refines:
            msg = "this index keeps residual codes or original vectors, so add vectors instead of codes"
            raise InputError(msg)
        if self.keeps_norms:  # which folded codes have by themselves
            codes = without_lengths(codes, self.model.n_latents)
        if len(codes):
            self.put_packed(*self._packed([Encoded(codes)], check_threads(self.num_threads)), ids)

    def added(
        self,
        chunks: Iterable[Encoded],
        ids: Ids,
        *,
        scale: RowScale,  # noqa: ARG002
        model: CompresSAE,  # noqa: ARG002
        num_threads: int,
        progress: bool,
    ) -> InvertedFile:
        """This back end, with all codes stored in one step; they are packed as they are made.

        Raises:
            InputError: as for `put`.
            StorageError: the disk has no room for original vectors.
        """
        self._check_writable()
        originals = self._held.originals
        with ExitStack() as opened:
            spool = None
            if originals is not None:
                spool = opened.enter_context(Spool(originals.dim, originals.dtype))
            packed, codec = self._packed(chunks, num_threads, spool)
            if originals is not None and spool is not None:
                originals = originals.extended(spool.segment())
        self.put_packed(packed, codec, ids.all(), originals, progress=progress)
        return self

    def _packed(
        self,
        chunks: Iterable[Encoded],
        num_threads: int,
        spool: Spool | None = None,
        *,
        in_unit: bool = False,
    ) -> tuple[Arrays, Codec]:
        """Packs codes and residuals, at least one row of them, and writes the rows to a spool.

        Chunks that are `in_unit` were divided by the unit before.

        Returns:
            The codec's arrays, and the codec, which is fitted to the first codes if it was not fitted.
        """
        held = self._held
        codec, pieces = held.codec, list[Arrays]()
        has_unit = not self.keeps_norms or held.originals is not None or len(held.rows.all_ids) > 0
        for codes, rows in chunks:
            if not (has_unit or in_unit):  # squares of norms must fit half precision
                norms = row_norms(rows) if rows is not None else self.model.norms(codes)
                self._unit, has_unit = unit_from_center(norms, self.model.center_norm), True
            if self._unit != 1 and not in_unit:
                codes = codes.scaled(1 / self._unit)
                rows = None if rows is None else rows / np.float32(self._unit)
            codec = codec.fitted(codes)
            targets = rows if rows is None or self.model.mean is None else rows - self.model.mean
            pieces.append(codec.pack(codes, num_threads, self.model.decoder_w, targets))
            if spool is not None:
                assert rows is not None, "codes alone have no original vectors"
                spool.add(rows if held.originals is None else held.originals.from_center(rows))
        return codec.stacked(pieces), codec

    def put_packed(
        self,
        packed: Arrays,
        codec: Codec,
        ids: IdArray,
        originals: Originals | None = None,
        *,
        progress: bool = False,
    ) -> None:
        """Stores packed rows of codes in this back end's unit, without rounding them again.

        Args:
            packed: the codec's arrays.
            codec: that of all rows of a back end; it also packs what is added later.
            ids: one unique id a row; those that are held are replaced.
            originals: the original vectors of the rows that are held and of these.
            progress: show a progress bar.

        Raises:
            InputError: as for `put`.
        """
        with self._in_turn():
            self._check_writable()
            held, new = self._held, Ids.from_user(ids, len(ids))
            rows, replaced = held.rows, ids[self.held(ids)]
            if len(replaced):
                rows = rows.without(rows.rows_of(replaced))
            n = len(rows.all_ids)
            changed = _Held(rows.extended(new), (*held.packed, packed), codec, originals)
            # If this is interrupted or a value is too large, the next call builds the lists again.
            self._changing = os.getpid()
            self._view = None  # growing lists move in memory
            self._file(packed, codec, range(n, n + len(ids)), progress=progress)
            self._held = changed
            self._changing = None

    def remove(self, ids: IdArray) -> None:
        """Removes ids, which must all be held; their memory stays in use until `compacted`."""
        with self._in_turn():
            held = self._held
            self._held = replace(held, rows=held.rows.without(held.rows.rows_of(ids)))

    @property
    def alive(self) -> npt.NDArray[np.bool_] | None:
        """Which rows were not removed, (n,); None for all."""
        return self._held.rows.alive

    def mark(self, alive: npt.NDArray[np.bool_] | None) -> None:
        """Marks rows as removed, by a value of the property `alive` for the same rows."""
        with self._in_turn():
            self._held = replace(self._held, rows=Rows(self._held.rows.all_ids, alive))

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, in their order; ids may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """
        held = self._held
        rows = held.rows.rows_of(ids)
        if not len(rows):
            return SparseCodes.empty(self.k, self.n_latents)
        packed = held.gathered(rows)
        codes = self._unpacked(packed, held.codec)
        if not self.keeps_norms:
            return codes
        return with_lengths(codes, half_squares(packed[NORMS]) * np.float32(self._unit**2))

    def vectors(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """The vectors of ids as the last stage knows them, (len(ids), d).

        These are the original ones where they are kept, else reconstructions with their residuals.

        Raises:
            UnknownIdError: an id is not held.
            StorageError: the file of the original vectors was changed.
        """
        held = self._held
        return self._vectors(held, model, held.rows.rows_of(ids))

    def stored_vectors(self, model: CompresSAE) -> StoredVectors:
        """The vectors of all documents as they are now."""
        return StoredVectors(self._held.rows, partial(self._vectors, self._held, model), model)

    def _vectors(self, held: _Held, model: CompresSAE, rows: RowArray) -> FloatArray:
        if held.originals is None:
            return self._reconstructed(held, rows, model)
        vectors = held.originals.vectors(rows)
        return vectors if self._unit == 1 else vectors * np.float32(self._unit)

    def reconstructed(self, ids: IdArray, model: CompresSAE) -> FloatArray:
        """Reconstructions of ids with their residuals, (len(ids), d).

        Raises:
            UnknownIdError: an id is not held.
        """
        held = self._held
        return self._reconstructed(held, held.rows.rows_of(ids), model)

    def _reconstructed(self, held: _Held, rows: RowArray, model: CompresSAE) -> FloatArray:
        if not len(rows):
            return np.empty((0, model.dim), dtype=np.float32)
        packed = held.gathered(rows)
        vectors = model.decode(self._unpacked(packed, held.codec))
        if isinstance(held.codec, WithResiduals):
            vectors += held.codec.residuals(packed) * np.float32(self._unit)
        return vectors

    def _unpacked(self, packed: Arrays, codec: Codec) -> SparseCodes:
        codes = codec.unpack(packed, self.model.n_latents, self.nonzeros, check_threads(self.num_threads))
        return codes if self._unit == 1 else codes.scaled(self._unit)

    def _for_lists(self, packed: Arrays, codec: Codec) -> SparseCodes:
        """Codes as lists hold them: with halves of squared norms in the square of the unit."""
        codes = self._unpacked(packed, codec)
        if self.keeps_norms:
            codes = with_lengths(codes, half_squares(packed[NORMS]))
        if (largest := float(np.abs(codes.values).max(initial=0))) > LARGEST_HALF:
            msg = f"the value {largest:.4g} is beyond half precision: divide the vectors by a power of two"
            raise InputError(msg)
        return codes

    def candidates(self, terms: SparseCodes, n: int, filter: Any = None) -> Candidates:  # noqa: A002
        """The n best documents of each query by exact sums over its terms.

        Args:
            terms: one row a query; entries of value 0 are ignored.
            n: candidates of each query.
            filter: see the class.

        Raises:
            InputError: the filter has the wrong length or unknown ids.
            FormatError: the lists are damaged.
        """
        return self.found(terms, n, filter)[0]

    def answer(self, asked: Asked) -> SearchResult:
        """The best documents of each query, rounded where an embedded index would round it."""
        asked.let_be_rough(by_originals=self.originals is not None)
        return super().answer(asked)

    def stages(self, mode: str) -> Stages:
        """The stages of a mode. All see the same documents, even if another thread changes them."""
        search = _Search(self)
        then = (search.by_rows, Refined(search.refined))
        return Stages(search.by_terms, () if mode == "sparse" else then)

    def found(
        self,
        terms: SparseCodes,
        n: int,
        filter: Any,  # noqa: A002
        num_threads: int | None = None,
    ) -> tuple[Candidates, _Held]:
        """The candidates, and the state that their rows belong to."""
        with self._in_turn():
            held = self._held
            allowed, n_allowed = held.rows.allowed(filter)
            width = min(n, n_allowed)
            scores = np.empty((len(terms), 0), dtype=np.float32)
            rows = np.empty((len(terms), 0), dtype=np.int64)
            if width:
                scores, rows = self._search(terms, width, allowed, num_threads)
        # If all allowed documents are found, none is left to bound. Documents without a common term score 0.
        bounds = scores[:, -1] if width < n_allowed else np.full(len(terms), -np.inf, dtype=np.float32)
        return Candidates(self.ids_of(held, rows), scores, bounds, places=rows), held

    def ids_of(self, held: _Held, rows: RowArray) -> IdArray:
        """The ids of rows in a state; row -1 becomes -1, or None where ids are strings."""
        ids = held.rows.all_ids.of(rows)
        return ids.astype(object) if self.are_strings else ids  # an empty back end may have int64 ids

    def _search(self, terms: SparseCodes, top: int, allowed: Bitmap | None, num_threads: int | None) -> Hits:
        if self._view is None:
            self._view = lists.borrowed(self._faiss, len(self._held.rows.all_ids))
        threads, weights = self._threads(num_threads), self._in_unit(terms.values, self._unit**2)
        try:
            return self._view.search(terms.latents, weights, top, allowed, threads)
        except ValueError as error:
            msg = f"Faiss's lists are damaged: {error}"
            raise FormatError(msg) from error

    def rescored(
        self, projections: FloatArray, rows: RowArray, held: _Held, top: int, num_threads: int | None
    ) -> Hits:
        """Scores each query's candidates by whole projections, from their packed rows, and takes the best.

        Args:
            projections: (n_queries, n_latents).
            rows: rows of the candidates, (n_queries, c); -1 is none.
            held: the state that found the rows.
            top: documents of each query.
            num_threads: threads of the engine; None for this back end's number.

        Returns:
            scores and rows, (n_queries, top) each; -inf and -1 where there are fewer candidates.
        """
        forward = held.codec.engine(held.all_packed(), self.model.n_latents, self.nonzeros)
        projections = self._in_unit(projections, self._unit)
        scores, found = forward.rescore(projections, rows, top, self._threads(num_threads))
        return scores * np.float32(self._unit), found

    def _in_unit(self, weights: FloatArray, factor: float) -> FloatArray:
        """Weights of latents and norms, with those of norms, in the last column, times a factor."""
        if not self.keeps_norms or factor == 1:
            return weights
        weights = weights.copy()
        weights[:, -1] *= np.float32(factor)
        return weights

    def refined(self, asked: Asked, found: Found, held: _Held) -> FloatArray:
        """Scores of documents by their original vectors, or by their codes and residual codes.

        Raises:
            StorageError: the file of the original vectors was changed.
        """
        if held.originals is not None:
            held.originals.check()
        refiner = held.refiner
        assert refiner is not None
        nothing, queries = np.zeros(found.places.shape, dtype=np.float32), asked.vectors
        by_distances = held.originals is not None and self.keeps_norms
        if by_distances:
            assert held.originals is not None
            queries = held.originals.seen_by_distances(asked.rows)
        sums = refiner.rescore(queries, nothing, found.places, self._threads(asked.settings.num_threads))
        sums = sums * np.float32(self._unit**2 if by_distances else self._unit)
        if held.originals is not None and asked.distances is not None:
            return asked.distances.of_vectors(sums)
        products = asked.times_factors(sums)
        return products if held.originals is not None else found.scores + products

    def _threads(self, num_threads: int | None) -> int:
        return check_threads(self.num_threads if num_threads is None else num_threads)

    def _check_writable(self) -> None:
        if lists.are_mapped(self._faiss):
            msg = (
                "the lists are mapped from a file and cannot be changed: load without mmap, or compact first"
            )
            raise InputError(msg)

    def take(self, other: InvertedFile) -> None:
        """Adds all documents of another back end, with new ids; rounds again only if the codecs differ.

        Residual codes that are rounded again are made of reconstructions with the old ones.

        Raises:
            InputError: one of the two has residual codes, or original vectors, and the other has none.
        """
        theirs = other._held
        if len(self._held.rows.all_ids):
            self._check_refines_like(other)
        alive = theirs.rows.alive_rows()
        originals = theirs.originals
        if originals is not None and theirs.rows.alive is not None:
            originals = originals.subset(alive)
        if not len(self._held.rows.all_ids):
            self._unit = other._unit
            self._held = _Held(self._held.rows, (), theirs.codec, originals if not len(alive) else None)
        elif originals is not None and self._held.originals is not None:
            originals = self._joined(originals, other._unit)
        if not len(alive):
            return
        if self._held.codec.agrees_with(theirs.codec) and self._unit == other._unit:
            packed, codec = theirs.gathered(alive), self._held.codec
        else:
            packed, codec = self._packed(other._encoded(theirs, alive), check_threads(self.num_threads))
        self.put_packed(packed, codec, theirs.rows.all_ids.of(alive), originals)

    def _check_refines_like(self, other: InvertedFile) -> None:
        mine, theirs = ((one.residual_bits, one.originals is not None) for one in (self, other))
        if mine != theirs:
            msg = (
                "indexes to merge must agree in (residual_bits, whether there are original vectors), "
                f"got {mine} and {theirs}"
            )
            raise InputError(msg)

    def _joined(self, others: Originals, unit: float) -> Originals:
        """Own original vectors and copies of others, which are in another unit."""
        own = self._held.originals
        assert own is not None
        with Spool(own.dim, own.dtype) as spool:
            for first in range(0, len(others), CHUNK_ROWS):
                rows = np.arange(first, min(first + CHUNK_ROWS, len(others)))
                spool.add(own.from_center(others.vectors(rows) * np.float32(unit / self._unit)))
            return own.extended(spool.segment())

    def _encoded(self, held: _Held, rows: RowArray) -> Iterator[Encoded]:
        """The codes of rows and their reconstructions, a batch at a time."""
        for first in range(0, len(rows), CHUNK_ROWS):
            batch = rows[first : first + CHUNK_ROWS]
            codes = self._unpacked(held.gathered(batch), held.codec)
            refined = isinstance(held.codec, WithResiduals)
            yield Encoded(codes, self._reconstructed(held, batch, self.model) if refined else None)

    @property
    def unit_of_rows(self) -> float:
        """What codes are divided by before they are packed."""
        return self._unit

    def recoded(
        self, model: CompresSAE, chunks: Iterable[Encoded], num_threads: int, *, progress: bool = False
    ) -> InvertedFile:
        """A copy in memory with codes of another model, in the same form, without removed rows.

        Args:
            model: the model of the new codes.
            chunks: the vectors and codes of all documents, in `unit_of_rows`.
            num_threads: threads of the engine.
            progress: show a progress bar.

        Raises:
            InputError: a value is too large for half precision.
        """
        held = self._held
        codec, _ = from_arrays(held.codec.manifest(), {})  # with levels of the new codes
        new = InvertedFile(
            model,
            self.nonzeros,
            codec=codec,
            unit=self._unit,
            string_ids=self.are_strings,
            num_threads=self.num_threads,
        )
        packed, codec = new._packed(chunks, num_threads, in_unit=True)
        originals = held.originals
        if originals is not None and held.rows.alive is not None:
            originals = originals.subset(held.rows.alive_rows())
        new.put_packed(packed, codec, held.rows.live_ids.all(), originals, progress=progress)
        return new

    def list_lengths(self) -> npt.NDArray[np.int64]:
        """Postings of each latent, (model.n_latents,)."""
        with self._in_turn():
            return lists.list_lengths(self._faiss)[: self.model.n_latents]

    def compacted(self) -> InvertedFile:
        """A copy in memory, without removed rows."""
        copy = InvertedFile(
            self.model,
            self.nonzeros,
            norms=self.keeps_norms,
            string_ids=self.are_strings,
            num_threads=self.num_threads,
        )
        copy.take(self)
        return copy

    def manifest(self) -> dict[str, Any]:
        """The manifest of a saved index."""
        originals = self.originals
        return {
            "n": len(self._held.rows.all_ids),
            "k": self.nonzeros,
            "string_ids": self.are_strings,
            "packing": self._held.codec.manifest(),
            "unit": self._unit,
        } | ({} if originals is None else {"originals": originals.manifest()})

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store next to the lists."""
        held = self._held
        arrays = held.codec.to_arrays(held.all_packed()) | held.rows.all_ids.to_arrays()
        if held.rows.alive is not None:
            arrays["alive"] = np.packbits(held.rows.alive, bitorder="little")
        return arrays | self._places()

    def _places(self) -> dict[str, npt.NDArray[Any]]:
        return {} if self.originals is None else self.originals.to_arrays()

    def originals_file(self) -> dict[str, NewFile]:
        """The file of the original vectors; none if there are none to write."""
        return {} if self.originals is None else {FILE: self.originals.file()}

    def without_holding(
        self, ids: Ids, parts: Callable[[], Iterable[Arrays]], lists_name: str
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], dict[str, NewFile]]:
        """The manifest, arrays and files to save documents that do not fit in memory.

        Args:
            ids: the ids of all documents, whose original vectors this back end keeps.
            parts: gives their rows, packed by this back end's codec, batch by batch; called for each of the
                codec's arrays.
            lists_name: the file name of the lists.

        Returns:
            The same as `manifest` and `to_arrays`, except that packed rows are in files. Write these in
            order, to one folder; that raises InputError as `put` does. It counts no bytes, as `parts` does.
        """
        n, codec = len(ids), self._held.codec
        names = codec.array_names if n else ()

        def rows_file(name: str) -> NewFile:
            return NewFile(lambda path, _: _write_rows(path, n, (packed[name] for packed in parts())), 0)

        def codes(folder: Path) -> Iterator[SparseCodes]:
            mapped = {name: np.load(folder / f"{PREFIX}{name}.npy", mmap_mode="r") for name in names}
            for first in range(0, n, CHUNK_ROWS):
                yield self._for_lists(codec.cut(mapped, slice(first, first + CHUNK_ROWS)), codec)
                release_pages(mapped)

        def write_lists(path: Path, _: Callable[[int], object]) -> None:
            lists.write_codes(path, self.n_latents, lambda: codes(path.parent))

        files = {f"{PREFIX}{name}.npy": rows_file(name) for name in names}
        files[lists_name] = NewFile(write_lists, 0)
        arrays = ids.to_arrays() | codec.to_arrays({}) | self._places()
        return self.manifest() | {"n": n}, arrays, files | self.originals_file()

    @classmethod
    def from_stored(
        cls,
        model: CompresSAE,
        read_lists: Callable[[int], Any],
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        *,
        score: Score = "cosine",
        originals: Any = None,
    ) -> InvertedFile:
        """Loads a back end from its lists, `manifest` and `to_arrays`; arrays may be memory-mapped.

        Args:
            model: the model of the codes.
            read_lists: reads the lists, of a number of rows.
            meta: the manifest.
            arrays: the stored arrays, of which the original vectors are mapped.
            score: what original vectors are compared with queries for.
            originals: as for `FaissIndex.load`.

        Raises:
            ValueError: the parts do not fit together, or have wrong contents.
            KeyError: a part is missing.
        """
        n = check_int(meta["n"], "n", 0)
        codec, of_codec = from_arrays(entry(meta, "packing", dict), arrays)
        k, unit = check_int(meta["k"], "k", 1, model.n_latents, "n_latents"), check_unit(meta["unit"])
        strings = entry(meta, "string_ids", bool)
        backend = cls(model, k, codec=codec, unit=unit, string_ids=strings)
        known = (*STORED_ROWS, PLACES, Path(FILE).stem)
        if foreign := set(arrays).difference(*codec.stored_names(), known):
            msg = f"a Faiss index has no array {min(foreign)!r:.100}"
            raise InputError(msg)
        if n:
            _check_packed(codec, of_codec, n, backend)
        faiss_index = read_lists(n)
        if faiss_index.nlist != backend.n_latents:
            msg = f"the Faiss index has {faiss_index.nlist} lists, expected {backend.n_latents} by its model"
            raise DimensionError(msg)
        kept = Originals.of_index(
            meta, arrays, model.dim, score=score, unit=unit, center=model.center, given=originals
        )
        if kept is not None and len(kept) != n:
            msg = f"expected {n} original vectors, got {len(kept)}"
            raise DimensionError(msg)
        ids, alive = stored_rows(n, {name: arrays[name] for name in STORED_ROWS if name in arrays})
        if n and ids.are_strings != strings:
            msg = f"string_ids is {strings}, but the ids are {'strings' if ids.are_strings else 'integers'}"
            raise InputError(msg)
        backend._faiss = faiss_index
        backend._held = _Held(Rows(ids, alive), (of_codec,) if n else (), codec, kept)
        return backend


class _Search:
    """The stages of one search, which share a state."""

    def __init__(self, backend: InvertedFile) -> None:
        self._backend = backend
        self._held: _Held | None = None

    def by_terms(self, asked: Asked) -> Found:
        """Finds candidates in Faiss's lists, with exact sums."""
        terms = terms_of(asked)
        n = asked.k if asked.mode == "sparse" else asked.candidates
        got, self._held = self._backend.found(terms, n, asked.settings.filter, asked.settings.num_threads)
        return ByTerms(self._backend).scored(asked, terms, got)

    def by_rows(self, asked: Asked, found: Found) -> Found:
        """Scores the candidates again by their packed rows, and keeps the best."""
        assert self._held is not None
        if not found.places.shape[1]:
            return found
        top = max(asked.k, asked.refine)
        sums, rows = self._backend.rescored(
            asked.stage_two, found.places, self._held, top, asked.settings.num_threads
        )
        ids = self._backend.ids_of(self._held, rows)
        return Found(asked.in_metric(sums), ids, rows, found.certified)

    def refined(self, asked: Asked, found: Found) -> FloatArray:
        """Scores by residual codes or original vectors."""
        assert self._held is not None
        return self._backend.refined(asked, found, self._held)


def _check_packed(codec: Codec, packed: Arrays, n: int, backend: InvertedFile) -> None:
    """Checks the loaded arrays of n rows, all contents included.

    Raises:
        ValueError: they do not fit, or are damaged.
    """
    if missing := set(codec.array_names).difference(packed):
        msg = f"a Faiss index of {n} documents lacks the array {PREFIX}{min(missing)}"
        raise InputError(msg)
    threads = check_threads(None)
    forward = codec.engine(packed, backend.model.n_latents, backend.nonzeros)
    counts = [forward.n_documents]
    forward.validate(threads)
    if isinstance(codec, WithResiduals):
        refiner = codec.refiner([packed])
        counts.append(refiner.n_documents)
        refiner.validate(threads)
    if counts != [n] * len(counts):
        msg = f"expected {n} packed rows, got {' and '.join(map(str, counts))}"
        raise DimensionError(msg)


def _write_rows(path: Path, n: int, pieces: Iterable[npt.NDArray[Any]]) -> None:
    """Writes the pieces of an array of n rows to a .npy file, of which there is at least one."""
    with path.open("wb") as file:
        for piece in pieces:
            if not file.tell():
                write_header(file, (n, *piece.shape[1:]), piece.dtype)
            file.write(piece.data)


def _remade(model: CompresSAE, k: int, settings: dict[str, Any], held: _Held) -> InvertedFile:
    """Restores a pickled back end, building the lists from the packed rows."""
    made = InvertedFile(model, k, **settings)
    made._held = held
    if held.packed:
        made._rebuild()
    return made
