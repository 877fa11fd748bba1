"""`InvertedFile`, the sparse back end with codes in Faiss's inverted lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import BorrowedLists
from compressae_index.arrays import Bitmap, FloatArray, Hits, IdArray, RowArray
from compressae_index.checks import check_int, check_threads
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import check_unit
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.faiss import lists
from compressae_index.embedded.codecs import Codec, Packed, from_arrays
from compressae_index.embedded.codecs.base import BYTE_ROWS, PREFIX
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.ids import STORED_ROWS, Ids, Rows, stored_rows
from compressae_index.persistence import entry
from compressae_index.processes import ForkSafeLock
from compressae_index.search.backend import SparseBackend
from compressae_index.search.queries import Asked
from compressae_index.search.stages import ByTerms, Candidates, Found, Stages, terms_of
from compressae_index.sources import CHUNK_ROWS

# Value bits of packed rows: two more than usual, which is little next to the 10 bytes of a posting.
VALUE_BITS = 8
# The name of the packed rows in files.
STORED_CODES = PREFIX + BYTE_ROWS
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass
class _Held:
    """Codes, ids and marks of removal as one search sees them. Every change replaces it."""

    rows: Rows
    packed: tuple[npt.NDArray[np.uint8], ...]
    codec: Codec

    def all_packed(self) -> npt.NDArray[np.uint8]:
        """The packed rows as one array, (n, row_bytes) uint8; joins the pieces once."""
        if len(self.packed) != 1:
            self.packed = (np.concatenate(self.packed),)
        return self.packed[0]


class InvertedFile(SparseBackend):
    """A back end that keeps codes in Faiss's inverted lists.

    The lists hold row numbers in the order of adding, not ids, because the engine adds up scores by row. Ids
    are kept in a separate array, which takes no memory if they count up from 0. Codes are stored a second
    time as packed rows, in a fifth of the bytes of their postings; otherwise, reading one code would take a
    pass over all lists. The lists hold the packed values in half precision, so each term of a sum is within
    1/2048 of the code's.

    A filter is an array of ids, or a boolean mask over the documents in the order of adding.

    Attributes:
        model: the model that made the codes.
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
        unit: float = 1.0,
        string_ids: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """Makes an empty back end.

        Args:
            model: the model of the codes.
            k: nonzeros a code; the model's by default.
            codec: packs the rows; must have byte rows. By default `Packed` with VALUE_BITS, fitted to the
                first codes.
            unit: codes are divided by it before packing; a power of two.
            string_ids: whether ids will be strings.
            num_threads: threads of the engine; all by default.
        """
        k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        super().__init__(model.n_latents, k, are_strings=string_ids)
        self.model = model
        check_threads(num_threads)
        self.num_threads = num_threads
        self._unit = unit
        self._faiss = lists.empty_lists(model.n_latents)
        self._held = self._nothing(Packed(VALUE_BITS) if codec is None else codec)
        self._view: BorrowedLists | None = None
        # The engine reads the lists in place, so nobody may change them during a search.
        self._lock = ForkSafeLock()
        # The id of the process that is changing the lists; until it is done, they may not match _held.
        self._changing: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        held = self._held
        settings = {
            "codec": held.codec,
            "unit": self._unit,
            "string_ids": self.are_strings,
            "num_threads": self.num_threads,
        }
        packed = np.asarray(held.all_packed())  # copies a mapped file into the pickle
        return _remade, (self.model, self.k, settings, held.rows, packed)

    def _nothing(self, codec: Codec) -> _Held:
        rows = np.empty((0, codec.row_bytes(self.n_latents, self.k)), dtype=np.uint8)
        return _Held(Rows(Ids(0, {})), (rows,), codec)

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
        for first in range(0, len(held.rows.all_ids), CHUNK_ROWS):
            packed = held.all_packed()[first : first + CHUNK_ROWS]
            lists.append(self._faiss, self._for_lists(packed, held.codec), first)
        self._changing = None

    @property
    def _row_bytes(self) -> int:
        return self._held.codec.row_bytes(self.n_latents, self.k)

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
        """Bytes of the posting lists, of the packed rows, and of ids and marks of removal."""
        rows = self._held.rows
        return {
            "inverted": self._faiss.ntotal * lists.POSTING_BYTES,
            "forward": self._held.all_packed().nbytes,
            "ids": rows.all_ids.nbytes + rows.mark_bytes,
        }

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
                precision.
        """
        if (codes.k, codes.n_latents) != (self.k, self.n_latents):
            msg = (
                f"codes have (k, n_latents) {(codes.k, codes.n_latents)}, expected {(self.k, self.n_latents)}"
            )
            raise DimensionError(msg)
        if len(codes):
            packed, codec = self.pack(codes)
            self.put_packed(packed, codec, ids)

    def pack(self, codes: SparseCodes) -> tuple[npt.NDArray[np.uint8], Codec]:
        """Packs codes. Returns the rows and the codec, fitted to these codes if it was not fitted before."""
        in_unit = codes.scaled(1 / self._unit)
        codec = self._held.codec.fitted(in_unit)
        arrays = codec.pack(in_unit, check_threads(self.num_threads), self.model.decoder_w)
        return arrays[BYTE_ROWS], codec

    def put_packed(self, packed: npt.NDArray[np.uint8], codec: Codec, ids: IdArray) -> None:
        """Stores packed rows of codes in this back end's unit, without rounding them again.

        All rows of a back end must have the same codec, which also packs codes that are put later.

        Raises:
            InputError: as for `put`.
        """
        with self._in_turn():
            self._check_writable()
            codes = self._for_lists(packed, codec)
            held, new = self._held, Ids.from_user(ids, len(ids))
            rows, replaced = held.rows, ids[self.held(ids)]
            if len(replaced):
                rows = rows.without(rows.rows_of(replaced))
            pieces = held.packed if len(held.rows.all_ids) else ()
            changed = _Held(rows.extended(new), (*pieces, packed), codec)
            self._changing = os.getpid()
            self._view = None  # growing lists move in memory
            lists.append(self._faiss, codes, len(rows.all_ids))
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
        return self._unpacked(held.all_packed()[rows], held.codec)

    def _unpacked(self, packed: npt.NDArray[np.uint8], codec: Codec) -> SparseCodes:
        codes = codec.unpack({BYTE_ROWS: packed}, self.n_latents, self.k, check_threads(self.num_threads))
        return codes if self._unit == 1 else codes.scaled(self._unit)

    def _for_lists(self, packed: npt.NDArray[np.uint8], codec: Codec) -> SparseCodes:
        codes = self._unpacked(packed, codec)
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

    def stages(self, mode: str) -> Stages:
        """The stages of a mode. All see the same documents, even if another thread changes them."""
        search = _Search(self)
        return Stages(search.by_terms, () if mode == "sparse" else (search.by_rows,))

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
        threads = self._threads(num_threads)
        try:
            return self._view.search(terms.latents, terms.values, top, allowed, threads)
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
        forward = held.codec.engine({BYTE_ROWS: held.all_packed()}, self.n_latents, self.k)
        scores, found = forward.rescore(projections, rows, top, self._threads(num_threads))
        return scores * np.float32(self._unit), found

    def _threads(self, num_threads: int | None) -> int:
        return check_threads(self.num_threads if num_threads is None else num_threads)

    def _check_writable(self) -> None:
        if lists.are_mapped(self._faiss):
            msg = (
                "the lists are mapped from a file and cannot be changed: load without mmap, or compact first"
            )
            raise InputError(msg)

    def take(self, other: InvertedFile) -> None:
        """Adds all documents of another back end, with new ids; rounds again only if the codecs differ."""
        theirs = other._held
        if not len(self._held.rows.all_ids):
            self._held, self._unit = self._nothing(theirs.codec), other._unit
        as_they_are = self._held.codec.agrees_with(theirs.codec) and self._unit == other._unit
        alive = theirs.rows.alive_rows()
        for first in range(0, len(alive), CHUNK_ROWS):
            part = alive[first : first + CHUNK_ROWS]
            packed, ids = theirs.all_packed()[part], theirs.rows.all_ids.of(part)
            if as_they_are:
                self.put_packed(packed, theirs.codec, ids)
            else:
                self.put(other._unpacked(packed, theirs.codec), ids)

    def compacted(self) -> InvertedFile:
        """A copy in memory, without removed rows."""
        copy = InvertedFile(self.model, self.k, string_ids=self.are_strings, num_threads=self.num_threads)
        copy.take(self)
        return copy

    def manifest(self) -> dict[str, Any]:
        """The manifest of a saved index."""
        return {
            "n": len(self._held.rows.all_ids),
            "k": self.k,
            "string_ids": self.are_strings,
            "packing": self._held.codec.manifest(),
            "unit": self._unit,
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store next to the lists."""
        held = self._held
        arrays = held.codec.to_arrays({BYTE_ROWS: held.all_packed()}) | held.rows.all_ids.to_arrays()
        if held.rows.alive is not None:
            arrays["alive"] = np.packbits(held.rows.alive, bitorder="little")
        return arrays

    def without_holding(
        self, ids: Ids, parts: Iterable[npt.NDArray[np.uint8]], lists_name: str
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], dict[str, Callable[[Path], None]]]:
        """The manifest, arrays and file writers to save documents that do not fit in memory.

        Args:
            ids: the ids of all documents.
            parts: their rows, packed by this back end's codec, batch by batch; read once.
            lists_name: the file name of the lists.

        Returns:
            The same as `manifest` and `to_arrays`, except that a writer makes the file of packed rows. Call
            the writers in order, in one folder; they raise InputError as `put` does.
        """
        n, width, codec = len(ids), self._row_bytes, self._held.codec
        rows_name = f"{STORED_CODES}.npy"

        def write_rows(path: Path) -> None:
            with path.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, width)}
                np.lib.format.write_array_header_1_0(file, header)
                for packed in parts:
                    file.write(packed.data)

        def codes(path: Path) -> Iterator[SparseCodes]:
            with path.open("rb") as file:
                file.seek(-n * width, os.SEEK_END)
                while len(part := np.fromfile(file, np.uint8, CHUNK_ROWS * width)):
                    yield self._for_lists(part.reshape(-1, width), codec)

        def write_lists(path: Path) -> None:
            lists.write_codes(path, self.n_latents, lambda: codes(path.parent / rows_name))

        arrays = ids.to_arrays() | codec.to_arrays({})
        return self.manifest() | {"n": n}, arrays, {rows_name: write_rows, lists_name: write_lists}

    @classmethod
    def from_stored(
        cls,
        model: CompresSAE,
        faiss_index: Any,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> InvertedFile:
        """Loads a back end from its lists, `manifest` and `to_arrays`; arrays may be memory-mapped.

        Raises:
            ValueError: the parts do not fit together, or have wrong contents.
            KeyError: a part is missing.
        """
        n = check_int(meta["n"], "n", 0)
        codec, of_codec = from_arrays(entry(meta, "packing", dict), arrays)
        if not codec.has_byte_rows:
            msg = f"expected packed rows, got {meta['packing']}"
            raise InputError(msg)
        k, unit = check_int(meta["k"], "k", 1, model.n_latents, "n_latents"), check_unit(meta["unit"])
        strings = entry(meta, "string_ids", bool)
        backend = cls(model, k, codec=codec, unit=unit, string_ids=strings)
        packed = arrays[STORED_CODES]
        width = backend._row_bytes
        if packed.dtype != np.uint8 or packed.shape != (n, width):
            msg = f"expected packed rows {(n, width)}, got {packed.dtype} {packed.shape}"
            raise DimensionError(msg)
        if faiss_index.nlist != model.n_latents:
            msg = f"the Faiss index has {faiss_index.nlist} lists, the model {model.n_latents} latents"
            raise DimensionError(msg)
        if foreign := set(arrays).difference(*codec.stored_names(), STORED_ROWS):
            msg = f"a Faiss index has no array {min(foreign)!r:.100}"
            raise InputError(msg)
        if n:
            codec.engine(of_codec, model.n_latents, k).validate(check_threads(None))
        ids, alive = stored_rows(n, {name: arrays[name] for name in STORED_ROWS if name in arrays})
        if n and ids.are_strings != strings:
            msg = f"string_ids is {strings}, but the ids are {'strings' if ids.are_strings else 'integers'}"
            raise InputError(msg)
        backend._faiss = faiss_index
        backend._held = _Held(Rows(ids, alive), (packed,), codec)
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
        """Scores the candidates again by their packed rows."""
        assert self._held is not None
        if not found.places.shape[1]:
            return found
        sums, rows = self._backend.rescored(
            asked.stage_two, found.places, self._held, asked.k, asked.settings.num_threads
        )
        ids = self._backend.ids_of(self._held, rows)
        return Found(asked.in_metric(sums), ids, rows, found.certified)


def _remade(
    model: CompresSAE, k: int, settings: dict[str, Any], rows: Rows, packed: npt.NDArray[np.uint8]
) -> InvertedFile:
    """Restores a pickled back end, building the lists from the packed rows."""
    made = InvertedFile(model, k, **settings)
    made._held = _Held(rows, (packed,), settings["codec"])
    if len(packed):
        made._rebuild()
    return made
