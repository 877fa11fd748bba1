"""`FaissIndex`, an index with its codes in Faiss's inverted lists: build, merge, save, load."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index.building.recoding import RecodableIndex, Recoding, StoredVectors, scale_of_stored
from compressae_index.checks import as_path, as_place
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model
from compressae_index.connectors.faiss import lists
from compressae_index.connectors.faiss.inverted import InvertedFile
from compressae_index.embedded.codecs import Arrays
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.embedded.originals import FILE, check_moved, score_of
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import Ids
from compressae_index.index import CompressedIndex
from compressae_index.persistence import NewFile
from compressae_index.progress import track
from compressae_index.remote import Place
from compressae_index.search.frontier import Frontier
from compressae_index.search.index import IndexStats, counted, of_one_moment
from compressae_index.search.labels import labels_file, stored_labels
from compressae_index.sources import CHUNK_ROWS

_LISTS = "lists.faiss"


class FaissIndex(RecodableIndex):
    """An index with its codes in Faiss's inverted lists, one list a latent.

    The engine searches the lists in Faiss's memory. `faiss_index` is an ordinary Faiss index: you can write
    it with `faiss.write_index`, and pass what `faiss.read_index` returns to `from_lists`. It holds only the
    codes; `save` also stores the model and the ids. Do not call `faiss_index.search`: it compares single
    postings, so its answers are meaningless. Threads may share an index; their searches run one after the
    other.
    """

    KIND = "faiss index"
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
        """Makes an empty index, or one over given documents.

        Args:
            model: encodes added vectors.
            k: nonzeros a code; the model's by default.
            encoder: how vectors become codes.
            metric: the meaning of scores, as for `CompressedIndex.build`.
            string_ids: whether ids will be strings.
            num_threads: threads of a search; all by default.
            documents: existing lists and rows; k, string_ids and num_threads are then ignored.
        """
        check_is_model(model)
        if documents is None:
            norms = metric == "l2" and model.mean is None
            documents = InvertedFile(model, k, norms=norms, string_ids=string_ids, num_threads=num_threads)
        super().__init__(model, documents, encoder=encoder, metric=metric)
        # A mapped back end and its files, which a pickle refers to.
        self._mapped: tuple[InvertedFile, persistence.Mapped] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles packed rows and ids, or the path of a mapped index, as `CompressedIndex` does."""
        if self._mapped is not None and self._mapped[0] is self.documents:
            kept = {"frontier": self.frontier, "_labels": self.labels}
            return type(self)._mapped_again, (self._mapped[1], self.documents.alive, kept)
        return copyreg.__newobj__, (type(self),), vars(self) | {"_mapped": None}  # type: ignore[attr-defined]

    @classmethod
    def _mapped_again(
        cls, mapped: persistence.Mapped, alive: npt.NDArray[np.bool_] | None, kept: Mapping[str, Any]
    ) -> FaissIndex:
        """Maps the files of a pickled index again, and takes other attributes from the pickle.

        Raises:
            FormatError: the files are gone, damaged or were replaced.
        """
        index = cls.load(mapped.path, mmap=True)
        mapped.check(index._mapped and index._mapped[1])
        index.documents.mark(alive)
        vars(index).update(kept)
        return index

    @classmethod
    def from_index(
        cls, index: CompressedIndex, path: str | os.PathLike[str] | None = None, *, progress: bool = True
    ) -> FaissIndex:
        """Makes a Faiss index of another index's codes, without encoding again.

        Codes and residual codes are copied bit for bit. Original vectors stay in the files where they are.
        Settings of a search and their recall (`frontier`) are those that were measured of the other index,
        and so are `labels`.

        Args:
            index: the index to copy; it may be mapped.
            path: a directory to write, as `save` does. The lists are then built on disk, which takes memory
                for one batch of codes and 8 bytes a row, and mapped, as by `load(path, mmap=True)`.
            progress: show a progress bar.

        Raises:
            InputError: it is no CompressedIndex, or a value is too large for half precision.
            FormatError: `path` exists and is not a Faiss index of this package.
            StorageError: the disk is full or denies access; an index at `path` stays as it was.
        """
        given: object = index
        if not isinstance(given, CompressedIndex):
            msg = f"index must be a CompressedIndex, got {type(given).__name__}"
            raise InputError(msg)
        if path is not None:
            persistence.check_target(path, cls.KIND)
        index = index.now()
        documents, held = index.documents, index.documents.backend
        rows, originals = documents.alive_rows(), held.originals
        if originals is not None and documents.alive is not None:
            originals = originals.subset(rows)
        backend = InvertedFile(
            index.model,
            index.k,
            codec=held.codec,
            originals=originals,
            unit=index.unit,
            string_ids=documents.are_strings,
        )
        made = cls(index.model, encoder=index.encoder, metric=index.metric, documents=backend)
        made.frontier, made.labels = index.frontier, index.labels
        if path is None:
            if len(rows):
                ids = documents.live_ids.all()
                backend.put_packed(held.forward_rows(rows), held.codec, ids, originals, progress=progress)
            return made
        with track(len(held.codec.array_names) * len(rows), "filing codes", enabled=progress) as advance:

            def parts() -> Iterator[Arrays]:
                for first in range(0, len(rows), CHUNK_ROWS):
                    batch = rows[first : first + CHUNK_ROWS]
                    yield held.forward_rows(batch)
                    advance(len(batch))

            made._save_parts(path, *backend.without_holding(documents.live_ids, parts, _LISTS))
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
        """Makes an index of posting lists, as from `faiss_index` or `to_faiss(index, "inverted")`.

        Args:
            faiss_index: the lists, as `faiss.read_index` returns them. They are copied, rows in order.
            model: the model that made the codes.
            ids: the ids of rows 0 .. n-1; the row numbers by default, up to the largest one in the lists.
            encoder: as for the class.
            metric: as for the class.

        Raises:
            FormatError: another kind of Faiss index, or its lists cannot be codes of this model.
            InputError: the number of ids differs from that of rows.
        """
        lists.check_lists(faiss_index)
        norms = metric == "l2" and model.mean is None
        if faiss_index.nlist != model.n_latents + norms:
            more = ", and one is for norms" if norms else ""
            msg = f"the Faiss index has {faiss_index.nlist} lists, the model {model.n_latents} latents{more}"
            raise FormatError(msg)
        codes = lists.read_codes(faiss_index)
        made_ids, nonzeros = Ids.from_user(ids, len(codes)), codes.k - norms
        backend = InvertedFile(model, nonzeros, norms=norms, string_ids=made_ids.are_strings)
        made = cls(model, encoder=encoder, metric=metric, documents=backend)
        if len(codes):
            made.documents.put(codes, made_ids.all())
        return made

    @property
    def documents(self) -> InvertedFile:
        """The back end: the lists, packed rows and ids."""
        return self._documents

    @property
    def faiss_index(self) -> Any:
        """The Faiss index of the posting lists, with row numbers as ids. Do not change it.

        Do not search it with Faiss either: Faiss does not add up postings, so its answers are meaningless.
        """
        return self.documents.faiss_index

    @property
    def vectors(self) -> StoredVectors:
        """The vectors as the index knows them, in the order of `ids`: a source for `train` and others.

        They are the original ones where it keeps them, else reconstructions by codes and residual codes.
        """
        index = self.now()
        return index.documents.stored_vectors(index.model)

    def _recoded(self, recoding: Recoding, *, progress: bool) -> FaissIndex:
        model, old, threads = recoding.model, self.documents, recoding.num_threads
        recoding = replace(recoding, scale=scale_of_stored(self, old.unit_of_rows))
        with track(len(self), recoding.label, enabled=progress) as advance:
            made = old.recoded(model, counted(recoding.chunks(), advance), threads, progress=progress)
        new = type(self)(model, encoder=self.encoder, metric=self.metric, documents=made)
        new.frontier = recoding.frontier_of(new, self.frontier, progress=progress)
        model.release()
        return new

    def _list_lengths(self) -> Any:
        return self.documents.list_lengths()

    @of_one_moment
    def stats(self) -> IndexStats:
        """The contents of the index, and their costs."""
        stats, kept = super().stats(), self.documents.originals
        disk_bytes = 0 if kept is None else kept.disk_bytes
        return stats._replace(disk_bytes_per_vector=disk_bytes / max(stats.vectors, 1))

    def merge(self, other: FaissIndex) -> None:
        """Adds the documents of another index, which is not changed.

        Raises:
            InputError: the indexes differ in model, metric, k, residual codes, kind of ids or in whether they
                have original vectors, or share an id. Nothing was added.
        """
        other = other.now()
        with self._writer.lock:
            self._check_merges(other)
            self.documents.take(other.documents)

    def _check_merges(self, other: FaissIndex) -> None:
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

    def compact(self) -> None:
        """Reclaims the memory of removed vectors, and reads mapped lists into memory."""
        with self._writer.lock:
            self._documents = self._documents.compacted()

    @of_one_moment
    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Writes a directory in one step, with the lists in `lists.faiss`.

        Faiss can read that file, but not search it; see `faiss_index`.

        Args:
            path: the directory, or its address in a store, as for `CompressedIndex.save`.
            progress: show a progress bar.

        Raises:
            FormatError: `path` exists and is not a Faiss index of this package.
            StorageError: the disk is full or denies access; an index at `path` stays as it was.
        """
        files = {_LISTS: lists.lists_file(self.faiss_index)} | self.documents.originals_file()
        self._save_parts(
            path, self.documents.manifest(), self.documents.to_arrays(), files, progress=progress
        )

    def _save_parts(
        self,
        path: str | os.PathLike[str],
        held: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        files: Mapping[str, NewFile],
        *,
        progress: bool = False,
    ) -> None:
        """Writes the directory: the manifest, arrays held in memory, and files."""
        meta = {"encoder": self.encoder, "metric": self.metric, "model": self.model.manifest(), **held}
        if self.frontier is not None:
            meta["frontier"] = self.frontier.manifest()
        persistence.write(
            path,
            self.KIND,
            meta,
            arrays=arrays,
            tensors=self.model.tensors(),
            files={**files, **labels_file(self.labels)},
            progress=progress,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        mmap: bool = False,
        originals: Any = None,
        progress: bool = False,
    ) -> FaissIndex:
        """Loads a saved index, and checks all of its contents.

        Args:
            path: the directory.
            mmap: map lists and codes instead of reading them. Call `compact` before adding to a mapped index.
                Original vectors are always mapped.
            originals: as for `CompressedIndex.load`: the path or array of the original vectors that the index
                refers to, if they were moved; False to go on without original vectors.
            progress: show a progress bar.

        Raises:
            FormatError: the directory is missing, not a Faiss index, damaged or of a newer format; or the
                file of the original vectors is gone, changed or short.
            InputError: originals are neither a path nor an array of float32 or float16 rows, or they are
                given, but the index refers to none.
            StorageError: no permission to read it.
        """
        where = as_place(path)
        # Faiss opens its file by name, and a writer may have replaced it by then.
        return persistence.unless_replaced(where, lambda: cls._load(where, mmap, originals, progress))

    @classmethod
    def _load(cls, path: Place, mmap: bool, originals: Any, progress: bool) -> FaissIndex:
        mapped = (as_path(FILE).stem,)
        stored = persistence.read(path, cls.KIND, mmap=mmap, always_mapped=mapped, progress=progress)
        check_moved(stored.meta, originals)
        with persistence.reading(str(path)):
            model = CompresSAE.from_stored(persistence.entry(stored.meta, "model", dict), stored.tensors)
            metric, packing = stored.meta["metric"], persistence.entry(stored.meta, "packing", dict)
            backend = InvertedFile.from_stored(
                model,
                lambda n: lists.read_lists(stored.files[_LISTS], mmap=mmap, n_rows=n),
                stored.meta,
                stored.arrays,
                score=score_of(metric, keeps_norms=packing.get(NORMS, False)),
                originals=originals,
            )
            if not (metric == "inner_product" or backend.keeps_norms) and stored.meta["unit"] != 1:
                msg = f"unit must be 1 where no norms are kept, got {stored.meta['unit']!r}"
                raise InputError(msg)
            loaded = cls(model, encoder=stored.meta["encoder"], metric=metric, documents=backend)
            if "frontier" in stored.meta and originals is not False:  # it was measured with all stages
                loaded.frontier = Frontier.from_stored(persistence.entry(stored.meta, "frontier", dict))
            loaded.labels = stored_labels(stored.files, model.n_latents)
        if mmap and originals is None:  # a pickle could not say where originals are
            loaded._mapped = backend, persistence.Mapped.of(path, stored)
        persistence.release_pages(stored.arrays)
        return loaded
