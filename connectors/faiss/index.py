"""The index over Faiss's inverted lists: made, merged, saved and loaded."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index.arrays import RowArray
from compressae_index.checks import as_path
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model
from compressae_index.connectors.faiss import lists
from compressae_index.connectors.faiss.inverted import STORED_CODES, VALUE_BITS, InvertedFile
from compressae_index.embedded.codecs import Codec, Packed
from compressae_index.embedded.codecs.base import BYTE_ROWS
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.search.index import Index
from compressae_index.sources import CHUNK_ROWS

_KIND = "faiss index"
_LISTS = "lists.faiss"


class FaissIndex(Index):
    """Codes in Faiss's inverted lists, one list a latent, searched by the engine in Faiss's memory.

    `faiss_index` is an ordinary Faiss index: `faiss.write_index` writes it, and `from_lists` takes what
    `faiss.read_index` reads. It holds the codes and nothing else; `save` also keeps the model and the ids.
    Search by this class: `faiss_index.search` compares single postings, and its answers mean nothing.
    Searches may run in several threads, one after the other.
    """

    _documents: InvertedFile

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
        string_ids: bool = False,
        num_threads: int | None = None,
        documents: InvertedFile | None = None,
    ) -> None:
        """Without vectors, unless a back end is given.

        Args:
            model: encodes what is added.
            k: nonzeros a code; the model's by default.
            encoder: how vectors become codes.
            metric: what scores are, as for `CompressedIndex.build`.
            string_ids: whether ids will be strings.
            num_threads: threads that search; all by default.
            documents: the lists and rows of another index; k, string_ids and num_threads are theirs.
        """
        check_is_model(model)
        if documents is None:
            documents = InvertedFile(model, k, string_ids=string_ids, num_threads=num_threads)
        super().__init__(model, documents, encoder=encoder, metric=metric)
        # The files that a back end is mapped from.
        self._mapped: tuple[InvertedFile, persistence.Mapped] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles packed rows and ids, or where they are mapped from, as `CompressedIndex` does."""
        if self._mapped is not None and self._mapped[0] is self.documents:
            return type(self)._mapped_again, (self._mapped[1], self.documents.alive)
        return copyreg.__newobj__, (type(self),), vars(self) | {"_mapped": None}  # type: ignore[attr-defined]

    @classmethod
    def _mapped_again(cls, mapped: persistence.Mapped, alive: npt.NDArray[np.bool_] | None) -> FaissIndex:
        """Maps the files of a pickled index again.

        Raises:
            FormatError: its files are gone, damaged, or others.
        """
        index = cls.load(mapped.path, mmap=True)
        mapped.check(index._mapped and index._mapped[1])
        index.documents.mark(alive)
        return index

    @classmethod
    def from_index(
        cls, index: CompressedIndex, path: str | os.PathLike[str] | None = None, *, progress: bool = True
    ) -> FaissIndex:
        """With the codes of an index; nothing is encoded again.

        Packed codes stay what they are, bit for bit; those of other codecs are packed.

        Args:
            index: whose codes; it may be mapped.
            path: a directory to write as `save` does. The lists are then built on disk, in the memory of
                one batch of codes and 8 bytes a row, and mapped from there, as by `load(path, mmap=True)`.
            progress: show a progress bar.

        Raises:
            InputError: a value is beyond half precision.
            FormatError: something other than such an index is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        if path is not None:
            persistence.check_target(path, _KIND)
        documents = index.documents
        rows = documents.alive_rows()
        codec = _codec_for_lists(index, rows)
        backend = InvertedFile(
            index.model, index.k, codec=codec, unit=index.unit, string_ids=documents.are_strings
        )
        made = cls(index.model, encoder=index.encoder, metric=index.metric, documents=backend)

        def batches() -> Iterator[RowArray]:
            with track(len(rows), "filing codes", enabled=progress) as advance:
                for first in range(0, len(rows), CHUNK_ROWS):
                    yield (batch := rows[first : first + CHUNK_ROWS])
                    advance(len(batch))

        def packed(batch: RowArray) -> npt.NDArray[np.uint8]:
            if codec is documents.backend.codec:
                return documents.backend.forward_rows(batch)[BYTE_ROWS]
            return backend.pack(index.codes(documents.all_ids.of(batch)))[0]

        if path is None:
            for batch in batches():
                backend.put_packed(packed(batch), codec, documents.all_ids.of(batch))
            return made
        made._save_parts(path, *backend.without_holding(documents.live_ids, map(packed, batches()), _LISTS))
        return cls.load(path, mmap=True)

    @classmethod
    def from_lists(
        cls,
        faiss_index: Any,
        model: CompresSAE,
        ids: Any = None,
        *,
        encoder: Encoder = "pursuit",
        metric: Metric = "cosine",
    ) -> FaissIndex:
        """From posting lists alone, as `faiss_index` or `to_faiss(index, "inverted")` give them.

        Args:
            faiss_index: what `faiss.read_index` gave. It is copied, and its rows are put in order.
            model: the model that encoded.
            ids: the ids of rows 0 .. n-1; by default the row numbers, up to the largest that is there.
            encoder: as for the class.
            metric: as for the class.

        Raises:
            FormatError: another kind of Faiss index, or one that holds no codes of this model.
            InputError: another number of ids.
        """
        lists.check_lists(faiss_index)
        if faiss_index.nlist != model.n_latents:
            msg = f"the Faiss index has {faiss_index.nlist} lists, the model {model.n_latents} latents"
            raise FormatError(msg)
        codes = lists.read_codes(faiss_index)
        made = cls(model, k=codes.k, encoder=encoder, metric=metric)
        made_ids = Ids.from_user(ids, len(codes))
        made._documents = InvertedFile(model, codes.k, string_ids=made_ids.are_strings)
        if len(codes):
            made.documents.put(codes, made_ids.all())
        return made

    @property
    def documents(self) -> InvertedFile:
        """The lists and rows that hold the codes."""
        return self._documents

    @property
    def faiss_index(self) -> Any:
        """The Faiss index of the posting lists, with row numbers for ids; not to be changed.

        Nor to be searched by Faiss, which does not add up postings: its answers mean nothing.
        """
        return self.documents.faiss_index

    def merge(self, other: FaissIndex) -> None:
        """Adds the documents of another index, which stays as it is.

        Raises:
            InputError: another model, metric, k or kind of ids, or an id that both hold. Nothing was added.
        """
        mine = (self.model.fingerprint, self.metric, self.documents.k)
        theirs = (other.model.fingerprint, other.metric, other.documents.k)
        if mine != theirs:
            msg = f"indexes to merge must agree in (model, metric, k), got {mine} and {theirs}"
            raise InputError(msg)
        ids = other.ids
        if len(ids):
            self.documents.check_ids(ids)
        if (held := self.holds(ids)).any():
            msg = f"id {ids[held].tolist()[0]!r:.100} is in both indexes ({int(held.sum())} such ids)"
            raise InputError(msg)
        self.documents.take(other.documents)

    def compact(self) -> None:
        """Reclaims the memory of removed vectors; lists that were mapped from a file are then in memory."""
        self._documents = self._documents.compacted()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a directory in one step, with the lists as `lists.faiss`.

        Faiss reads that file, but its own search of it means nothing; see `faiss_index`.

        Raises:
            FormatError: something other than such an index is at `path`.
            StorageError: the disk is full or refuses; what was there before is untouched.
        """
        files = {_LISTS: lambda file: lists.write_lists(self.faiss_index, file)}
        self._save_parts(path, self.documents.manifest(), self.documents.to_arrays(), files)

    def _save_parts(
        self,
        path: str | os.PathLike[str],
        held: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        files: Mapping[str, Callable[[Path], None]],
    ) -> None:
        """Writes the directory, of what the back end holds or of what is never held."""
        meta = {"encoder": self.encoder, "metric": self.metric, "model": self.model.manifest(), **held}
        persistence.write(path, _KIND, meta, arrays=arrays, tensors=self.model.tensors(), files=files)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> FaissIndex:
        """Reads what `save` wrote, and checks all of it.

        Args:
            path: the directory.
            mmap: map lists and codes instead of reading them. Nothing can be added then, until `compact`.

        Raises:
            FormatError: the directory is missing, foreign, damaged or of a newer format.
            StorageError: there is no permission to read it.
        """
        where = as_path(path)
        # Faiss opens its file itself, which a writer may have removed by then.
        return persistence.unless_replaced(where, lambda: cls._load(where, mmap))

    @classmethod
    def _load(cls, path: Path, mmap: bool) -> FaissIndex:
        stored = persistence.read(path, _KIND, mmap=mmap)
        with persistence.reading(str(path)):
            model = CompresSAE.from_stored(persistence.entry(stored.meta, "model", dict), stored.tensors)
            n_rows = len(stored.arrays[STORED_CODES])
            faiss_index = lists.read_lists(stored.files[_LISTS], mmap=mmap, n_rows=n_rows)
            backend = InvertedFile.from_stored(model, faiss_index, stored.meta, stored.arrays)
            metric = stored.meta["metric"]
            if metric == "cosine" and stored.meta["unit"] != 1:
                msg = f"unit must be 1 where the metric is cosine, got {stored.meta['unit']!r}"
                raise InputError(msg)
            loaded = cls(model, encoder=stored.meta["encoder"], metric=metric, documents=backend)
        if mmap:
            loaded._mapped = backend, persistence.Mapped.of(path, stored)
        persistence.release_pages(stored.arrays)
        return loaded


def _codec_for_lists(index: CompressedIndex, rows: RowArray) -> Codec:
    """The index's codec if it has byte rows, otherwise `Packed`, fitted to the first of its codes."""
    documents = index.documents
    if documents.backend.codec.has_byte_rows:
        return documents.backend.codec
    codec = Packed(VALUE_BITS)
    if not len(rows):
        return codec
    return codec.fitted(index.codes(documents.all_ids.of(rows[:CHUNK_ROWS])).scaled(1 / index.unit))
