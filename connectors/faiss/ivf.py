"""A plain Faiss IVF whose coarse centroids are the rows of the dictionary and their negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, Hits
from compressae_index.checks import check_int, check_vectors, normalize_rows
from compressae_index.coding.model import CompresSAE, check_is_model
from compressae_index.connectors.faiss.library import faiss
from compressae_index.errors import DimensionError, InputError
from compressae_index.progress import track
from compressae_index.search.queries import check_k
from compressae_index.sources import (
    CHUNK_ROWS,
    Vectors,
    VectorSource,
    checked_rows,
    ids_of_rows,
    open_vectors,
)

# The payload is trained on about this many vectors, spread evenly.
TRAINING_ROWS = 65_536
# Documents that an IndexRefine scores again for each neighbour, unless a search says otherwise.
K_FACTOR = 10
SIGNS = 2


def dictionary_ivf(
    embeddings: VectorSource,
    model: CompresSAE,
    *,
    payload: str = "Flat",
    assignments: int = 1,
    ids: Any = None,
    progress: bool = True,
) -> Any:
    """Builds a standard IndexIVF of inner products that files vectors under their strongest signed latents.

    A vector goes to the lists of its pursuit code with `assignments` nonzeros: to list j if the value of
    latent j is positive, to list n_latents + j if it is negative. With one assignment, that is the centroid
    of largest inner product, as Faiss itself would choose. The centroids are an ordinary IndexFlatIP, so the
    index does not depend on this package: `faiss.write_index` writes it, and Faiss in any language can search
    it and add to it. Vectors are normalised, so the scores of unit queries are cosines.

    Args:
        embeddings: (n, dim), any source of `open_vectors`; read in batches.
        model: the model with the dictionary.
        payload: how vectors are stored, as a `faiss.index_factory` string: "Flat", "SQfp16", "SQ8", "PQ48",
            "RaBitQ", "PQ48x4fs", ... "PQ48,Refine(SQfp16)" also keeps the vectors in half precision, for a
            second score of the best 10 k.
        assignments: lists that a vector is filed under, at as many times the bytes. Above 1, Faiss may find a
            vector several times; `search_once` returns it once.
        ids: one int64 a row; 0 .. n-1 by default.
        progress: show a progress bar.

    Returns:
        The index; `nprobe` is 1, Faiss's default. If the payload refines, this is an IndexRefine, in an
        IndexIDMap2 unless the ids are 0 .. n-1; `faiss.ParameterSpace` sets its nprobe.

    Raises:
        InputError: bad rows or ids, string ids, a payload that Faiss does not know, or one with FastScan or
            Refine and more than one assignment, which Faiss would store wrongly.
        DimensionError: the vectors do not have the model's dimension.
    """
    check_is_model(model)
    if model.center is not None:
        msg = "this index takes directions, but the model encodes vectors less a center: train another"
        raise InputError(msg)
    vectors = open_vectors(embeddings)
    row_ids, _ = ids_of_rows(ids, vectors)
    if row_ids.are_strings:
        msg = "Faiss's ids are integers, got strings"
        raise InputError(msg)
    if vectors.shape[1] != model.dim:
        msg = f"embeddings have dimension {vectors.shape[1]}, expected {model.dim}"
        raise DimensionError(msg)
    check_int(assignments, "assignments", 1, model.n_latents, "n_latents")
    index = _empty(model, payload)
    if assignments > 1:
        _check_takes_several(index, payload, assignments)
    _train(index, vectors, model.dim)
    if isinstance(index, faiss.IndexRefine) and row_ids.to_arrays():
        index = faiss.IndexIDMap2(index)
    with track(vectors.shape[0], "filing vectors", enabled=progress) as advance:
        for first in range(0, vectors.shape[0], CHUNK_ROWS):
            unit = _unit(vectors, model.dim, first)
            file_under = None if assignments == 1 else _strongest_lists(model, unit, assignments)
            _add(index, unit, row_ids.of(np.arange(first, first + len(unit))), file_under)
            advance(len(unit))
    return index


def _empty(model: CompresSAE, payload: str) -> Any:
    lists = SIGNS * model.n_latents
    try:
        index = faiss.index_factory(model.dim, f"IVF{lists},{payload}", faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        msg = f"Faiss cannot make an IVF with payload {payload!r}: {error}"
        raise InputError(msg) from error
    ivf = index
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = K_FACTOR
        ivf = faiss.downcast_index(index.base_index)
    if not isinstance(ivf, faiss.IndexIVF):
        msg = f"payload {payload!r} makes a {type(ivf).__name__}, expected a plain IVF"
        raise InputError(msg)
    ivf.quantizer.add(np.concatenate([model.decoder_w, -model.decoder_w]))
    return index


def _check_takes_several(index: Any, payload: str, assignments: int) -> None:
    """Refuses a payload that cannot be filed under several lists."""
    reason = None
    if isinstance(index, faiss.IndexIVFFastScan):
        reason = "FastScan chooses the list itself"
    elif isinstance(index, faiss.IndexRefine):
        reason = "what refines holds each vector once"
    if reason is not None:
        msg = f"payload {payload!r} takes 1 assignment, got {assignments}: {reason}"
        raise InputError(msg)


def _train(index: Any, vectors: Any, dim: int) -> None:
    """Trains the payload. Faiss keeps the centroids, as they are set already."""
    if index.is_trained:
        return
    n = vectors.shape[0]
    batches = range(0, n, CHUNK_ROWS)
    step = -(-n // TRAINING_ROWS)
    rows = [_unit(vectors, dim, first)[::step] for first in batches]
    try:
        index.train(np.concatenate(rows))
    except RuntimeError as error:
        msg = f"Faiss cannot train the payload on {n} vectors: {error}"
        raise InputError(msg) from error


def _unit(vectors: Vectors, dim: int, first: int) -> FloatArray:
    return normalize_rows(checked_rows(vectors, first, first + CHUNK_ROWS, dim=dim))


def _strongest_lists(model: CompresSAE, vectors: FloatArray, assignments: int) -> npt.NDArray[np.int64]:
    """The lists of each vector: the signed latents of its code, (n, assignments)."""
    codes = model.encode(vectors, assignments)
    return codes.latents.astype(np.int64) + model.n_latents * (codes.values < 0)


def _add(
    index: Any, vectors: FloatArray, ids: npt.NDArray[Any], file_under: npt.NDArray[np.int64] | None
) -> None:
    """Adds vectors to the lists `file_under`, (n, assignments), or lets Faiss choose if it is None."""
    if isinstance(index, faiss.IndexRefine):  # whose ids count from 0, and which takes no others
        index.add(vectors)
        return
    if file_under is None:
        index.add_with_ids(vectors, ids)
        return
    for column in file_under.T:
        numbers = np.ascontiguousarray(column)
        index.add_core(
            len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(numbers), None
        )


def search_once(index: Any, queries: npt.ArrayLike, k: int, assignments: int) -> Hits:
    """Searches an IVF that holds each vector `assignments` times, and returns each id once.

    Args:
        index: an index from `dictionary_ivf`; set its `nprobe` before.
        queries: (n_queries, dim); they are normalised.
        k: neighbours of each query.
        assignments: the value that the index was made with.

    Returns:
        Scores and ids, (n_queries, k) each; -inf and -1 where fewer were found.
    """
    unit = normalize_rows(check_vectors(queries, dim=index.d, name="queries", may_be_empty=True))
    check_int(assignments, "assignments", 1, SIGNS * int(index.nlist), "lists")
    k = check_k(k, int(index.ntotal), len(unit))
    if not len(unit):
        return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
    scores, ids = index.search(unit, k * assignments)
    # Hits are sorted by score, so later hits of an id are copies.
    by_id = np.argsort(ids, axis=1, kind="stable")
    in_order = np.take_along_axis(ids, by_id, axis=1)
    again = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(again, by_id[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    missing = again | (ids < 0)
    kept = np.argsort(missing, axis=1, kind="stable")[:, :k]
    found = ~np.take_along_axis(missing, kept, axis=1)
    scores, ids = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(ids, kept, axis=1)
    return np.where(found, scores, np.float32(-np.inf)), np.where(found, ids, -1)
