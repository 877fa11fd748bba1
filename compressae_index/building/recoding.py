"""The documents of an index coded anew by another model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.coding.chunks import Encoded, encoded_chunks
from compressae_index.coding.metric import Metric, RowScale
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model, check_model
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import from_arrays
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids
from compressae_index.progress import track
from compressae_index.search.index import counted
from compressae_index.sources.base import bounds


class StoredVectors:
    """The vectors of documents as an index knows them, in the order of `ids`, to slice like an array.

    They are the original ones where they are kept, else reconstructions with their residuals; for cosine of
    unit norm, up to rounding.
    """

    def __init__(self, documents: EmbeddedDocuments, model: CompresSAE) -> None:
        """Reads nothing yet; documents that change later do not change what is read."""
        self._documents, self._model = documents, model
        self.shape: tuple[int, ...] = (len(documents), model.dim)

    def __getitem__(self, rows: slice) -> FloatArray:
        """Vectors (m, d) float32 of a slice of rows with step 1.

        Raises:
            InputError: the slice has a step.
            StorageError: the file of the original vectors was changed.
        """
        start, stop = bounds(rows, len(self._documents))
        alive = self._documents.alive
        wanted = np.arange(start, stop) if alive is None else self._documents.alive_rows()[start:stop]
        vectors, center = self._documents.vectors_of(wanted, self._model), self._model.center
        return vectors if center is None else vectors + center


def check_recodes(
    model: CompresSAE, documents: EmbeddedDocuments, old: CompresSAE, metric: Metric
) -> CompresSAE:
    """Checks that a model can code documents anew that an old one has coded.

    Raises:
        InputError: it is no model, of another dimension or center, has fewer latents than a code has
            nonzeros, or does not fit the metric.
    """
    check_is_model(model)
    if (model.dim, model.n_latents >= documents.backend.k) != (old.dim, True):
        msg = (
            f"the model has dimension {model.dim} and {model.n_latents} latents; this index needs dimension "
            f"{old.dim}, and codes have {documents.backend.k} nonzeros"
        )
        raise DimensionError(msg)
    check_model(model, metric)
    was, now = (np.zeros(old.dim) if each.center is None else each.center for each in (old, model))
    if not np.array_equal(was, now):
        msg = (
            "the model sees vectors from another center than this index: train one from its model, by "
            "`train(index.vectors, start=index.model)`"
        )
        raise InputError(msg)
    return model


def recoded(
    documents: EmbeddedDocuments,
    vectors: StoredVectors,
    model: CompresSAE,
    encoder: Encoder,
    metric: Metric,
    num_threads: int,
    note: Callable[[Encoded], object],
    *,
    progress: bool,
) -> EmbeddedDocuments:
    """Documents with new codes, posting lists and residual codes, in the same form; without removed ones.

    Args:
        documents: at least one that was not removed.
        vectors: their vectors, read in pieces.
        model: codes them.
        encoder: how vectors become codes.
        metric: the metric of the index.
        num_threads: threads to encode with.
        note: sees each piece.
        progress: show a progress bar.

    Raises:
        InputError: a stored code is of zeros, and there is no vector to code.
        StorageError: the file of the original vectors was changed.
    """
    old, rows = documents.backend, documents.alive_rows()
    codec, _ = from_arrays(old.codec.manifest(), {})  # with levels of the new codes
    scale = RowScale(metric, documents.unit, unit_rows=not old.keeps_norms)
    chunks = encoded_chunks(
        model,
        vectors,
        documents.backend.k,
        encoder,
        num_threads,
        scale=scale,
        residual_bits=documents.residual_bits,
    )
    new = EmbeddedDocuments(
        EmbeddedBackend(model.n_latents, documents.backend.k, codec, postings=old.postings),
        unit=documents.unit,
    )
    ids: Ids = documents.all_ids if documents.alive is None else documents.all_ids.subset(rows)
    with track(len(rows), "encoding", enabled=progress) as advance:
        new = new.added(
            counted(chunks, advance, note), ids, scale=scale, model=model, num_threads=num_threads
        )
    return new.with_originals(None if old.originals is None else old.originals.subset(rows))
