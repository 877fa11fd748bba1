"""The documents of an index coded anew by another model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from compressae_index.arrays import FloatArray, RowArray
from compressae_index.building.calibration import calibrate
from compressae_index.building.neighbourhoods import neighbourhoods
from compressae_index.building.training import Trained, improved
from compressae_index.building.unfinished import Unfinished, unfinished
from compressae_index.checks import as_place, check_threads
from compressae_index.coding.chunks import Codes, Encoded, as_coded, encoded_chunks
from compressae_index.coding.metric import RowScale
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model, check_model
from compressae_index.coding.points import seen_again
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import from_arrays
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids, Rows
from compressae_index.persistence import check_target
from compressae_index.progress import track
from compressae_index.remote import RemotePath
from compressae_index.search.frontier import CALIBRATED_ROWS, Frontier
from compressae_index.search.index import Index, counted
from compressae_index.sources import VectorSource, open_vectors
from compressae_index.sources.base import Vectors, bounds

_log = logging.getLogger(__name__)


class StoredVectors:
    """The vectors of documents as an index knows them, in the order of `ids`, to slice like an array.

    They are the original ones where they are kept, else reconstructions with their residuals; for cosine of
    unit norm, up to rounding.
    """

    def __init__(self, rows: Rows, read: Callable[[RowArray], FloatArray], model: CompresSAE) -> None:
        """Reads nothing yet; rows that are removed later are still read.

        Args:
            rows: the documents, of which those that were not removed are read.
            read: gives the vectors of rows as the codes see them, from the center of the model.
            model: the model of the codes.
        """
        self._rows, self._read, self._center = rows, read, model.center
        self.shape: tuple[int, ...] = (rows.n_alive, model.dim)

    def __getitem__(self, rows: slice) -> FloatArray:
        """Vectors (m, d) float32 of a slice of rows with step 1.

        Raises:
            InputError: the slice has a step.
            StorageError: the file of the original vectors was changed.
        """
        start, stop = bounds(rows, self.shape[0])
        alive = self._rows.alive
        wanted = np.arange(start, stop) if alive is None else self._rows.alive_rows()[start:stop]
        vectors = self._read(wanted)
        return vectors if self._center is None else vectors + self._center


class RecodableIndex(Index):
    """An index in this process, whose vectors can be coded anew by another model while it is searched."""

    KIND: ClassVar[str]
    """What its manifest calls a saved one."""

    def now(self) -> Self:
        """What stays as this index is now, whatever changes meanwhile; it is not to be changed."""
        return self._snapshot()

    @property
    def vectors(self) -> StoredVectors:
        """The vectors as the index knows them, in the order of `ids`: a source for `train` and others.

        They are the original ones where it keeps them, else reconstructions by codes and residual codes.
        """
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Writes a directory, in one step."""
        raise NotImplementedError

    def _recoded(self, recoding: Recoding, *, progress: bool) -> Self:
        """A new index of the vectors of this one."""
        raise NotImplementedError

    def _list_lengths(self) -> Any:
        """(n_latents,) lengths of the posting lists."""
        raise NotImplementedError

    def calibrate(
        self,
        vectors: VectorSource | None = None,
        *,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Measures the settings of a search and the recall they reach, as `build` does: a new `frontier`.

        For an index that `build` did not make as it is now: one of shards or of codes, or that has grown.
        The vectors are read once. Searches go on meanwhile; changes wait.

        Args:
            vectors: (n, d) floating point, as for `build`: those of the index in the order of `ids`. By
                default the stored ones, where it keeps original vectors or residual codes.
            num_threads: threads to search with; all by default.
            progress: show progress bars.

        Raises:
            InputError: the index has fewer than 2,048 vectors, of which the settings that all indexes have
                take half or more as candidates; the vectors are others than those of the index, or bad; none
                are given, and codes alone tell too little of them.
            StorageError: the file of the original vectors was changed.
        """
        threads = check_threads(num_threads)
        with self._writer.lock:
            index = self.now()
            if len(index) < CALIBRATED_ROWS:
                msg = (
                    f"settings are measured of at least {CALIBRATED_ROWS:,} vectors, and the index has "
                    f"{len(index):,}: it needs none of its own"
                )
                raise InputError(msg)
            self.frontier = _measured(
                index, _vectors_of(index, vectors), self.frontier, threads, progress=progress
            )

    def recode(
        self,
        model: CompresSAE | None = None,
        *,
        output: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Codes all vectors anew by another model, in the same form: k, bits, postings, metric and ids.

        The vectors are the original ones where the index keeps them, else what codes and residual codes say,
        so that what these have lost stays lost: recall then gains next to nothing. They are read in pieces,
        and the new codes are made beside the old ones. Searches go on meanwhile, and see the old model and
        codes or the new ones; changes wait.
        `drift` compares with the new codes from then on. `frontier` is measured again, by neighbours among
        the stored vectors; codes alone tell too little of these, and it becomes None, as do `labels`. Removed
        vectors are left out, as by `compact`. If anything fails, the index stays as it was.

        Args:
            model: a trained model; by default one is trained on `vectors`, from the present one:
                `train(index.vectors, config, start=index.model)` takes settings.
            output: a path or address to save the new index to before this one becomes it. On a local disk,
                what is trained and coded so far is kept beside it, in <output>.recoding, until then: of the
                same vectors and model, `recode` to this output goes on where a stopped one was.
            num_threads: threads to work with; all by default.
            progress: show progress bars.

        Raises:
            InputError: the model is of another dimension, has too few latents or does not fit the metric; the
                index is empty.
            FormatError: something else is at `output`, or another process is recoding to it.
            StorageError: the file of the original vectors was changed; the disk is full or refuses.
        """
        threads = check_threads(num_threads)
        target = None if output is None else as_place(output, "output")
        if target is not None:
            check_target(target, self.KIND)
        with self._writer.lock:
            if not len(self):
                msg = "there are no vectors to code anew"
                raise InputError(msg)
            if model is not None:
                check_recodes(model, self)
            kept = nullcontext() if target is None or isinstance(target, RemotePath) else unfinished(target)
            with kept as stopped:
                new = self._recoded(Recoding.of(self, model, threads, stopped, progress), progress=progress)
                if target is not None:
                    new.save(target, progress=progress)
            # What is replaced must not be freed, which may run other threads, before all of it is.
            replaced = vars(self).copy()
            vars(self).update(vars(new) | self._stays())
            del replaced
            _log.info("coded %d vectors anew by the model %s", len(self), self.model.fingerprint)

    def _stays(self) -> dict[str, Any]:
        """Attributes that recoding does not replace."""
        return {"_writer": self._writer}


@dataclass(frozen=True)
class Recoding:
    """Vectors to code, and what codes them.

    Attributes:
        vectors: of the index, as it knows them.
        trained: the new model.
        k: nonzeros a code.
        encoder: how vectors become codes.
        scale: of the codes.
        residual_bits: bits a dimension of residual codes; 0 for none.
        num_threads: threads to work with.
        made: the codes, where they were made before; None to make them now.
    """

    vectors: StoredVectors
    trained: Trained
    k: int
    encoder: Encoder
    scale: RowScale
    residual_bits: int
    num_threads: int
    made: Codes | None = None

    @classmethod
    def of(
        cls,
        index: RecodableIndex,
        model: CompresSAE | None,
        num_threads: int,
        stopped: Unfinished | None,
        progress: bool,
    ) -> Self:
        """Of an index, by a model that fits it, or that is trained now.

        Args:
            index: the index.
            model: the model; None to train one.
            num_threads: threads to work with.
            stopped: what a stopped run has made, and where to keep what is made now; None to keep nothing.
            progress: show progress bars.
        """
        vectors, k, documents = index.vectors, index.k, index.documents
        if model is not None:
            trained = Trained(model)
        elif stopped is None:
            trained = improved(index.model, vectors, k, num_threads=num_threads, progress=progress)
        else:
            trained = stopped.trained(index.model, vectors, k, num_threads=num_threads, progress=progress)
        scale = scale_of_stored(index, documents.unit)
        made, bits = None, documents.residual_bits
        if stopped is not None:
            seen = vectors if trained.model.center is not None else as_coded(trained.model, vectors, scale)
            made = stopped.coded(trained.model, seen, k, index.encoder, bits, num_threads, progress=progress)
        return cls(vectors, trained, k, index.encoder, scale, bits, num_threads, made)

    @property
    def model(self) -> CompresSAE:
        """The new model."""
        return self.trained.model

    @property
    def label(self) -> str:
        """What a progress bar over `chunks` says."""
        return "encoding" if self.made is None else "indexing"

    def chunks(self) -> Iterator[Encoded]:
        """The vectors and their codes.

        Raises:
            InputError: a stored code is of zeros, and there is no vector to code.
            StorageError: the file of the original vectors was changed.
        """
        return encoded_chunks(
            self.model,
            self.vectors,
            self.k,
            self.encoder,
            self.num_threads,
            scale=self.scale,
            residual_bits=self.residual_bits,
            made=self.made,
        )

    def frontier_of(self, new: RecodableIndex, old: Frontier | None, *, progress: bool) -> Frontier | None:
        """Settings of a search and their recall, of the new index and with the target of the old one.

        None where the vectors tell too little of their neighbours, or are few.
        """
        if not new.documents.refines or len(new) < CALIBRATED_ROWS:
            return None
        return _measured(new, self.vectors, old, self.num_threads, progress=progress)


def _vectors_of(index: RecodableIndex, vectors: VectorSource | None) -> Vectors:
    """The vectors of an index: those that are given, or the stored ones.

    Raises:
        InputError: they are not as many as those of the index, or of another dimension; or none are given,
            and the index keeps codes alone.
    """
    if vectors is None:
        if not index.documents.refines:
            msg = (
                "this index keeps codes alone, which tell too little of what is near: give the vectors in "
                "the order of `ids`"
            )
            raise InputError(msg)
        return index.vectors
    opened = open_vectors(vectors, zeros=_keeps_norms(index))
    if opened.shape[0] != len(index):
        msg = f"vectors has {opened.shape[0]} rows, the index {len(index)}: give all, in the order of `ids`"
        raise InputError(msg)
    if opened.shape[1] != index.model.dim:
        msg = f"vectors has dimension {opened.shape[1]}, the index {index.model.dim}"
        raise DimensionError(msg)
    return opened


def _measured(
    index: RecodableIndex, vectors: Vectors, old: Frontier | None, num_threads: int, *, progress: bool
) -> Frontier:
    """The frontier of an index by its vectors, in the order of `ids`, with the target of an older one."""
    points = seen_again(vectors, index.model.center, index.metric, keep_norms=_keeps_norms(index))
    return calibrate(
        index,
        neighbourhoods(points.vectors, points.order, progress=progress),
        Ids.from_user(index.ids, len(index)),
        index._list_lengths(),
        target=None if old is None else old.target,
        num_threads=num_threads,
        progress=progress,
    )


def _keeps_norms(index: Index) -> bool:
    """Whether norms are kept beside codes, for distances of rows that are not of unit norm."""
    return index.documents.n_latents > index.model.n_latents


def scale_of_stored(index: Index, unit: float | None) -> RowScale:
    """The scale of codes of the vectors that an index knows, in a unit of norms."""
    if index.metric == "l2" and not _keeps_norms(index):
        # No norms are kept, as rows were of unit norm; reconstructions are so only nearly.
        return RowScale("cosine")
    return RowScale(index.metric, unit)


def check_recodes(model: CompresSAE, index: Index) -> None:
    """Checks that a model can code the vectors of an index anew.

    Raises:
        InputError: it is no model, of another dimension or center, has fewer latents than a code has
            nonzeros, or does not fit the metric.
    """
    check_is_model(model)
    old, k = index.model, index.k
    if (model.dim, model.n_latents >= k) != (old.dim, True):
        msg = (
            f"the model has dimension {model.dim} and {model.n_latents} latents; this index needs dimension "
            f"{old.dim}, and codes have {k} nonzeros"
        )
        raise DimensionError(msg)
    check_model(model, index.metric)
    was, now = (np.zeros(old.dim) if each.center is None else each.center for each in (old, model))
    if not np.array_equal(was, now):
        msg = (
            "the model sees vectors from another center than this index: train one from its model, by "
            "`train(index.vectors, start=index.model)`"
        )
        raise InputError(msg)


def emptied_for(documents: EmbeddedDocuments, model: CompresSAE) -> EmbeddedDocuments:
    """No documents yet, to store codes of another model in the form of others, with levels of their own."""
    old = documents.backend
    codec, _ = from_arrays(old.codec.manifest(), {})
    backend = EmbeddedBackend(model.n_latents, old.k, codec, postings=old.postings)
    return EmbeddedDocuments(backend, unit=documents.unit)


def recoded(
    documents: EmbeddedDocuments,
    empty: EmbeddedDocuments,
    recoding: Recoding,
    note: Callable[[Encoded], object] | None = None,
    *,
    progress: bool = False,
) -> EmbeddedDocuments:
    """Documents with new codes, posting lists and residual codes; without removed ones.

    Args:
        documents: at least one that was not removed.
        empty: none, from `emptied_for`, to store the codes as these would.
        recoding: their vectors, and what codes them.
        note: sees each piece.
        progress: show a progress bar.

    Raises:
        InputError, StorageError: as for `Recoding.chunks`.
    """
    rows, originals = documents.alive_rows(), documents.backend.originals
    ids: Ids = documents.all_ids if documents.alive is None else documents.all_ids.subset(rows)
    with track(len(rows), recoding.label, enabled=progress) as advance:
        new = empty.added(
            counted(recoding.chunks(), advance, note),
            ids,
            scale=recoding.scale,
            model=recoding.model,
            num_threads=recoding.num_threads,
        )
    return new.with_originals(None if originals is None else originals.subset(rows))
