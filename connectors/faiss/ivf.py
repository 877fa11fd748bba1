"""A plain Faiss IVF whose coarse centroids are the rows of the dictionary and their negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, Hits
from compressae_index.checks import check_int, check_threads, check_vectors, normalize_rows
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
from compressae_index.sources.centred import less

# The payload is trained on about this many vectors, spread evenly.
TRAINING_ROWS = 65_536
# How far vectors reach along their centroids is the mean of about so many.
REACHING_ROWS = 1024
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

    Of a model with a center, it is one of Euclidean distances: a CenteringTransform subtracts the center,
    vectors keep their norms, and centroids are as long as vectors reach along them on average.

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
        IndexIDMap2 unless the ids are 0 .. n-1; `faiss.ParameterSpace` sets its nprobe. Of a model with a
        center, the index is within an IndexPreTransform, of which `faiss.extract_index_ivf` gives it.

    Raises:
        InputError: bad rows or ids, string ids, a payload that Faiss does not know, or one with FastScan or
            Refine and more than one assignment, which Faiss would store wrongly.
        DimensionError: the vectors do not have the model's dimension.
    """
    check_is_model(model)
    vectors = open_vectors(embeddings, zeros=model.center is not None)
    row_ids, _ = ids_of_rows(ids, vectors)
    if row_ids.are_strings:
        msg = "Faiss's ids are integers, got strings"
        raise InputError(msg)
    if vectors.shape[1] != model.dim:
        msg = f"embeddings have dimension {vectors.shape[1]}, expected {model.dim}"
        raise DimensionError(msg)
    check_int(assignments, "assignments", 1, model.n_latents, "n_latents")
    inner = _empty(model, payload)
    if assignments > 1:
        _check_takes_several(inner, payload, assignments)
    _train(inner, vectors, model)
    index = inner if model.center is None else faiss.IndexPreTransform(_centering(model.center), inner)
    if isinstance(inner, faiss.IndexRefine) and row_ids.to_arrays():
        index = faiss.IndexIDMap2(index)
    with track(vectors.shape[0], "filing vectors", enabled=progress) as advance:
        for first in range(0, vectors.shape[0], CHUNK_ROWS):
            rows = _seen(vectors, model, first)
            names = row_ids.of(np.arange(first, first + len(rows)))
            if assignments == 1:
                _add(index, rows if model.center is None else rows + model.center, names)
            else:
                _file(inner, rows, names, _strongest_lists(model, rows, assignments))
                index.ntotal = inner.ntotal
            advance(len(rows))
    return index


def _centering(center: FloatArray) -> Any:
    """What subtracts a center (d,)."""
    transform: Any = faiss.CenteringTransform(len(center))
    faiss.copy_array_to_vector(center, transform.mean)
    transform.is_trained = True
    return transform


def _empty(model: CompresSAE, payload: str) -> Any:
    lists = SIGNS * model.n_latents
    metric = faiss.METRIC_INNER_PRODUCT if model.center is None else faiss.METRIC_L2
    try:
        index = faiss.index_factory(model.dim, f"IVF{lists},{payload}", metric)
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


def _train(index: Any, vectors: Any, model: CompresSAE) -> None:
    """Sets the centroids, which Faiss keeps, and trains the payload."""
    n = vectors.shape[0]
    batches = range(0, n, CHUNK_ROWS)
    atoms, length = model.decoder_w, np.float32(1)
    if model.center is not None:
        # Of centroids as long as each other, the nearest is that of the largest product.
        some = np.concatenate([_seen(vectors, model, first)[:: -(-n // REACHING_ROWS)] for first in batches])
        length = np.abs(some @ atoms.T).max(axis=1).mean()
    ivf = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    ivf.quantizer.add(np.concatenate([length * atoms, -length * atoms]))
    if index.is_trained:
        return
    step = -(-n // TRAINING_ROWS)
    rows = [_seen(vectors, model, first)[::step] for first in batches]
    try:
        index.train(np.concatenate(rows))
    except RuntimeError as error:
        msg = f"Faiss cannot train the payload on {n} vectors: {error}"
        raise InputError(msg) from error


def _seen(vectors: Vectors, model: CompresSAE, first: int) -> FloatArray:
    """Rows as the index keeps them: of unit norm, or from the model's center."""
    by_distance = model.center is not None
    rows = checked_rows(vectors, first, first + CHUNK_ROWS, dim=model.dim, zeros=by_distance)
    return less(rows, model.center) if by_distance else normalize_rows(rows)


def _strongest_lists(model: CompresSAE, rows: FloatArray, assignments: int) -> npt.NDArray[np.int64]:
    """The lists of each row of `_seen`: the signed latents of its code, (n, assignments)."""
    codes = model.encode_unit(normalize_rows(rows), assignments, "pursuit", check_threads(None))
    return codes.latents.astype(np.int64) + model.n_latents * (codes.values < 0)


def _add(index: Any, vectors: FloatArray, ids: npt.NDArray[Any]) -> None:
    """Adds vectors to the list that Faiss chooses."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if isinstance(inner, faiss.IndexRefine):  # whose ids count from 0, and which takes no others
        index.add(vectors)
    else:
        index.add_with_ids(vectors, ids)


def _file(index: Any, vectors: FloatArray, ids: npt.NDArray[Any], file_under: npt.NDArray[np.int64]) -> None:
    """Adds vectors to the lists `file_under`, (n, assignments)."""
    for column in file_under.T:
        numbers = np.ascontiguousarray(column)
        index.add_core(
            len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(numbers), None
        )


def search_once(index: Any, queries: npt.ArrayLike, k: int, assignments: int) -> Hits:
    """Searches an IVF that holds each vector `assignments` times, and returns each id once.

    Args:
        index: an index from `dictionary_ivf`; set its `nprobe` before.
        queries: (n_queries, dim); they are normalised, unless distances count.
        k: neighbours of each query.
        assignments: the value that the index was made with.

    Returns:
        Scores and ids, (n_queries, k) each; -inf, or +inf for squared distances, and -1 where fewer were
        found.
    """
    by_distance = index.metric_type == faiss.METRIC_L2
    asked = check_vectors(queries, dim=index.d, name="queries", may_be_empty=True, zeros=by_distance)
    asked = asked if by_distance else normalize_rows(asked)
    check_int(assignments, "assignments", 1, SIGNS * int(faiss.extract_index_ivf(index).nlist), "lists")
    k = check_k(k, int(index.ntotal), len(asked))
    if not len(asked):
        return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
    scores, ids = index.search(asked, k * assignments)
    # Hits are sorted by score, so later hits of an id are copies.
    by_id = np.argsort(ids, axis=1, kind="stable")
    in_order = np.take_along_axis(ids, by_id, axis=1)
    again = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(again, by_id[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    missing = again | (ids < 0)
    kept = np.argsort(missing, axis=1, kind="stable")[:, :k]
    found = ~np.take_along_axis(missing, kept, axis=1)
    scores, ids = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(ids, kept, axis=1)
    worst = np.float32(np.inf if by_distance else -np.inf)
    return np.where(found, scores, worst), np.where(found, ids, -1)
