"""The sparse back end that keeps codes in Faiss's inverted lists."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import BorrowedLists
from compressae_index.backend import Candidates
from compressae_index.checks import FloatArray, check_int, check_threads
from compressae_index.codes import SparseCodes
from compressae_index.connectors.faiss import lists
from compressae_index.documents import Rows
from compressae_index.embedded import Bitmap, Hits
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.ids import IdArray, Ids, RowArray
from compressae_index.model import CompresSAE
from compressae_index.packing import Packed, packing_of, row_bytes
from compressae_index.sources import CHUNK_ROWS

# Of the packed rows. The two bits more than usual are nothing beside the bytes of the postings.
VALUE_BITS = 8
LARGEST_HALF = float(np.finfo(np.float16).max)


class InvertedFile:
    """A sparse back end in Faiss: see `backend.SparseBackend`.

    Lists hold row numbers, which count up as codes are added, and not ids: the engine adds up scores by row.
    The ids of the rows are kept beside, and take no memory where they count up from 0 as well. Codes are kept
    a second time as packed rows, a fifth of the bytes of their postings: without them, a code could only be
    put together by a pass over all lists. The lists hold the packed values in half precision: the sums of a
    query are those of the codes within 1/2048 of each term.

    A filter is an array of ids, or a boolean mask over the documents in the order of adding.

    Attributes:
        model: the model whose codes these are.
        k: nonzeros a code.
        num_threads: threads of the engine.
        is_exact: candidates come with their sums, not with bounds of these.
    """

    is_exact = True

    def __init__(
        self,
        model: CompresSAE,
        k: int | None = None,
        *,
        packing: Packed | None = None,
        unit: float = 1.0,
        string_ids: bool = False,
        num_threads: int | None = None,
    ) -> None:
        """Without documents.

        Args:
            model: the model of the codes.
            k: nonzeros a code; the model's by default.
            packing: of the packed rows; by default one of VALUE_BITS that is fitted to the first codes.
            unit: what packed values are counted in, a power of two.
            string_ids: whether ids will be strings.
            num_threads: threads of the engine; all by default.
        """
        self.model = model
        self.k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        self.num_threads = check_threads(num_threads)
        self._packing = Packed(VALUE_BITS) if packing is None else packing
        self._unit = unit
        self._strings = string_ids
        self._faiss = lists.empty_lists(model.n_latents)
        self._rows = Rows(Ids(0, {}))
        self._packed: list[npt.NDArray[np.uint8]] = []
        self._view: BorrowedLists | None = None
        # The lists are searched where they are, so nobody may change them meanwhile.
        self._lock = threading.RLock()

    @property
    def _row_bytes(self) -> int:
        return row_bytes(self.model.n_latents, self.k, self._packing.value_bits)

    @property
    def n_latents(self) -> int:
        """Size of the dictionary."""
        return self.model.n_latents

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        return self._strings

    @property
    def faiss_index(self) -> Any:
        """The Faiss index of the lists, which `faiss.write_index` takes; not to be changed."""
        return self._faiss

    @property
    def ids(self) -> IdArray:
        """The ids in the order of adding, removed ones left out."""
        return self._rows.live_ids.all()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the posting lists, of the packed rows, and of ids and marks of removal."""
        rows = self._rows
        return {
            "inverted": self._faiss.ntotal * lists.POSTING_BYTES,
            "forward": len(rows.ids) * self._row_bytes,
            "ids": rows.ids.nbytes + rows.mark_bytes,
        }

    def __len__(self) -> int:
        return self._rows.n_alive

    def held(self, ids: IdArray) -> npt.NDArray[np.bool_]:
        """Which of the ids are held."""
        return self._rows.live_ids.find(ids) >= 0

    def put(self, codes: SparseCodes, ids: IdArray) -> None:
        """Stores codes (n, k), one id a row and each once; those of ids that are held are replaced.

        Raises:
            DimensionError: codes of another k or number of latents.
            InputError: the lists are mapped from a file, so that nothing can be added, or a value is beyond
                half precision.
        """
        if (codes.k, codes.n_latents) != (self.k, self.n_latents):
            msg = (
                f"codes have (k, n_latents) {(codes.k, codes.n_latents)}, expected {(self.k, self.n_latents)}"
            )
            raise DimensionError(msg)
        if len(codes):
            packed, packing = self.pack(codes)
            self.put_packed(packed, packing, ids)

    def pack(self, codes: SparseCodes) -> tuple[npt.NDArray[np.uint8], Packed]:
        """Packed rows of codes, and their packing: the one of what is held, or one fitted to these codes."""
        in_unit = codes.scaled(1 / self._unit)
        packing = self._packing.fitted(in_unit)
        return packing.pack(in_unit, self.num_threads, self.model.decoder_w)["rows"], packing

    def put_packed(self, packed: npt.NDArray[np.uint8], packing: Packed, ids: IdArray) -> None:
        """Stores rows that a packing made of codes in this back end's unit; they are not rounded again.

        All rows must be of one packing, which becomes that of codes that are put later.

        Raises:
            InputError: as for `put`.
        """
        with self._lock:
            self._check_writable()
            codes = self._for_lists(packed, packing)
            rows, new = self._rows, Ids.from_user(ids, len(ids))
            replaced = ids[self.held(ids)]
            if len(replaced):
                rows = rows.without(rows.rows_of(replaced))
            self._view = None  # lists move as they grow
            lists.append(self._faiss, codes, len(rows.ids))
            self._packed.append(packed)
            self._packing, self._rows = packing, rows.extended(new)

    def remove(self, ids: IdArray) -> None:
        """Removes ids, all of them held; their memory stays in use until `compacted`."""
        with self._lock:
            self._rows = self._rows.without(self._rows.rows_of(ids))

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids, in their order; ids may repeat.

        Raises:
            UnknownIdError: an id is not held.
        """
        return self._codes_of(self._rows.rows_of(ids))

    def _codes_of(self, rows: RowArray) -> SparseCodes:
        if not len(rows):
            return SparseCodes.empty(self.k, self.n_latents)
        return self._unpacked(self._all_packed()[rows], self._packing)

    def _unpacked(self, packed: npt.NDArray[np.uint8], packing: Packed) -> SparseCodes:
        codes = packing.unpack({"rows": packed}, self.n_latents, self.k, self.num_threads)
        return codes if self._unit == 1 else codes.scaled(self._unit)

    def _for_lists(self, packed: npt.NDArray[np.uint8], packing: Packed) -> SparseCodes:
        codes = self._unpacked(packed, packing)
        if (largest := float(np.abs(codes.values).max(initial=0))) > LARGEST_HALF:
            msg = f"a value of {largest:.4g} is beyond half precision: divide the vectors by a power of two"
            raise InputError(msg)
        return codes

    def _all_packed(self) -> npt.NDArray[np.uint8]:
        with self._lock:
            if len(self._packed) != 1:
                nothing = np.empty((0, self._row_bytes), dtype=np.uint8)
                self._packed = [np.concatenate([nothing, *self._packed])]
            return self._packed[0]

    def candidates(self, terms: SparseCodes, n: int, filter: Any = None) -> Candidates:  # noqa: A002
        """The n best documents by the exact sums over the terms of each query.

        Args:
            terms: one row a query; entries of value 0 are no terms.
            n: candidates of each query.
            filter: see the class.

        Raises:
            InputError: a filter of another length, or unknown ids.
            FormatError: the lists are damaged.
        """
        with self._lock:
            rows = self._rows
            allowed, n_allowed = rows.allowed(filter)
            width = min(n, n_allowed)
            scores = np.empty((len(terms), 0), dtype=np.float32)
            found = np.empty((len(terms), 0), dtype=np.int64)
            if width:
                scores, found = self._search(terms, width, allowed)
        # All are found where no more are allowed; one that shares no term with the query counts with its 0.
        bounds = scores[:, -1] if width < n_allowed else np.full(len(terms), -np.inf, dtype=np.float32)
        return Candidates(self._ids_of(found), scores, bounds, None)

    def _ids_of(self, rows: RowArray) -> IdArray:
        ids = self._rows.ids.of(rows)
        return ids.astype(object) if self._strings else ids  # without documents, there is no kind yet

    def _search(self, terms: SparseCodes, top: int, allowed: Bitmap | None) -> Hits:
        if self._view is None:
            self._view = lists.borrowed(self._faiss, len(self._rows.ids))
        try:
            return self._view.search(terms.latents, terms.values, top, allowed, self.num_threads)
        except ValueError as error:
            msg = f"Faiss's lists are damaged: {error}"
            raise FormatError(msg) from error

    def rescored(self, projections: FloatArray, ids: IdArray, top: int) -> tuple[FloatArray, IdArray]:
        """The best of each query's candidates by whole projections, scored by the engine from packed rows.

        Args:
            projections: (n_queries, n_latents).
            ids: (n_queries, c) candidates; -1, or None, where there is none.
            top: documents of each query.

        Returns:
            scores and ids, (n_queries, top) each; -inf and -1, or None, where there are fewer candidates.
        """
        rows = np.full(ids.shape, -1, dtype=np.int64)
        present = ids != (None if self._strings else -1)
        rows[present] = self._rows.rows_of(ids[present])
        forward = self._packing.engine({"rows": self._all_packed()}, self.n_latents, self.k)
        scores, found = forward.rescore(projections, rows, top, self.num_threads)
        return scores * np.float32(self._unit), self._ids_of(found)

    def _check_writable(self) -> None:
        if lists.are_mapped(self._faiss):
            msg = (
                "the lists are mapped from a file and cannot be changed: load without mmap, or compact first"
            )
            raise InputError(msg)

    def take(self, other: InvertedFile) -> None:
        """Adds all documents of another, whose ids must be new; rounded again where their packings differ."""
        if not len(self._rows.ids):
            self._packing, self._unit = other._packing, other._unit
        mine, theirs = self._packing.levels, other._packing.levels
        same_levels = mine is not None and theirs is not None and np.array_equal(mine, theirs)
        for packed, ids in other._live_chunks():
            if same_levels and self._unit == other._unit:
                self.put_packed(packed, other._packing, ids)
            else:
                self.put(other._unpacked(packed, other._packing), ids)

    def compacted(self) -> InvertedFile:
        """A copy in memory, without the rows of removed ids."""
        copy = InvertedFile(self.model, self.k, string_ids=self._strings, num_threads=self.num_threads)
        copy.take(self)
        return copy

    def _live_chunks(self) -> Iterator[tuple[npt.NDArray[np.uint8], IdArray]]:
        alive, everything = self._rows.alive_rows(), self._all_packed()
        for first in range(0, len(alive), CHUNK_ROWS):
            part = alive[first : first + CHUNK_ROWS]
            yield everything[part], self._rows.ids.of(part)

    def manifest(self) -> dict[str, Any]:
        """What is stored beside the arrays and the lists."""
        return {
            "n": len(self._rows.ids),
            "k": self.k,
            "string_ids": self._strings,
            "packing": self._packing.manifest(),
            "unit": self._unit,
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store beside the lists."""
        arrays = {"forward_rows": self._all_packed()} | self._rows.ids.to_arrays() | self._level_arrays()
        if self._rows.alive is not None:
            arrays["alive"] = np.packbits(self._rows.alive, bitorder="little")
        return arrays

    def _level_arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {} if self._packing.levels is None else {"forward_levels": self._packing.levels}

    def without_holding(
        self, ids: Ids, parts: Iterable[npt.NDArray[np.uint8]], lists_name: str
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], dict[str, Callable[[Path], None]]]:
        """What is stored of documents that are not put: the manifest, arrays, and what writes which file.

        Args:
            ids: of all documents.
            parts: their rows, packed by this back end's packing; they are read once, and never held.
            lists_name: the file of the lists.

        Returns:
            as `manifest` and `to_arrays`, where a file makes up for the array of packed rows. The writers are
            to be called in their order, in one folder, and raise InputError as `put`.
        """
        n, width, packing = len(ids), self._row_bytes, self._packing
        rows_name = "forward_rows.npy"

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
                    yield self._for_lists(part.reshape(-1, width), packing)

        def write_lists(path: Path) -> None:
            lists.write_codes(path, self.n_latents, lambda: codes(path.parent / rows_name))

        arrays = ids.to_arrays() | self._level_arrays()
        return self.manifest() | {"n": n}, arrays, {rows_name: write_rows, lists_name: write_lists}

    @classmethod
    def from_stored(
        cls,
        model: CompresSAE,
        faiss_index: Any,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> InvertedFile:
        """From a model, its lists, and what `manifest` and `to_arrays` gave; arrays may be memory-mapped.

        Raises:
            ValueError: the parts do not fit together.
        """
        n, packing = meta["n"], packing_of(**meta["packing"], levels=arrays.get("forward_levels"))
        if not isinstance(packing, Packed):
            msg = f"expected packed rows, got {meta['packing']}"
            raise FormatError(msg)
        backend = cls(model, meta["k"], packing=packing, unit=meta["unit"], string_ids=meta["string_ids"])
        packed = arrays["forward_rows"]
        if packed.dtype != np.uint8 or packed.shape != (n, backend._row_bytes):
            msg = f"expected packed rows {(n, backend._row_bytes)}, got {packed.dtype} {packed.shape}"
            raise DimensionError(msg)
        if faiss_index.nlist != model.n_latents:
            msg = f"the Faiss index has {faiss_index.nlist} lists, the model {model.n_latents} latents"
            raise DimensionError(msg)
        marks = arrays.get("alive")
        alive = None if marks is None else np.unpackbits(marks, count=n, bitorder="little").astype(bool)
        held = {name: array for name, array in arrays.items() if name in ("ids", "id_text", "id_ends")}
        backend._faiss, backend._packed = faiss_index, [packed]
        backend._rows = Rows(Ids(n, held), alive)
        return backend
