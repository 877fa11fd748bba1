"""Neighbours of stored documents, without their vectors: of some of them, or a graph of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.coding.model import CompresSAE
from compressae_index.ids import Ids, pack_strings
from compressae_index.progress import track
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import SearchResult, Settings

if TYPE_CHECKING:
    import scipy.sparse as sp

# Answers queries (n_queries, d) with so many documents each.
Search: TypeAlias = Callable[[FloatArray, int, Settings], SearchResult]

# Documents whose neighbours are searched at a time: their vectors and projections are in memory.
BLOCK = 1024


def neighbours_of(
    ids: IdArray,
    k: int,
    settings: Settings,
    documents: Documents,
    model: CompresSAE,
    search: Search,
    *,
    progress: bool,
) -> Iterator[SearchResult]:
    """The k nearest other documents of ids, a block of ids at a time.

    Args:
        ids: ids that are held, which may repeat.
        k: neighbours of each.
        settings: how to search, checked for k neighbours.
        documents: the documents that `search` searches.
        model: the model of their codes.
        search: finds neighbours of vectors.
        progress: show a progress bar.

    Raises:
        UnknownIdError: an id is not held, or not any more.
    """
    settings, unit = _with_room_for_itself(settings, k), np.float32(documents.unit or 1.0)
    with track(len(ids), "neighbours", enabled=progress) as advance:
        for first in range(0, len(ids), BLOCK):
            block = ids[first : first + BLOCK]
            vectors = documents.vectors(block, model) * unit
            if model.center is not None:
                vectors = vectors + model.center
            are_points = documents.n_latents > model.n_latents
            found = search if are_points else partial(_found, search)
            yield _without_itself(found(vectors, k + 1, settings), block)
            advance(len(block))


def graph_of(ids: IdArray, k: int, blocks: Iterable[SearchResult]) -> sp.csr_array[Any, tuple[int, int]]:
    """Neighbours of all documents as a sparse matrix (n, n) of scores; each row has its best first.

    Args:
        ids: (n,) the documents of rows and columns.
        k: the most neighbours of a document.
        blocks: the neighbours of ids in their order.
    """
    import scipy.sparse as sp

    n, filled = len(ids), 0
    number = np.int32 if max(n * k, n) <= np.iinfo(np.int32).max else np.int64
    scores, columns = np.empty(n * k, dtype=np.float32), np.empty(n * k, dtype=number)
    counts = np.zeros(n + 1, dtype=number)
    columns_of, row = Ids(n, pack_strings(ids) if ids.dtype == object else {"ids": ids}), 1
    for block in blocks:
        found = columns_of.find(block.ids.ravel()).reshape(block.ids.shape)
        # Another process may have added documents meanwhile.
        held = block.found & (found >= 0)
        counts[row : row + len(held)] = held.sum(axis=1)
        row, end = row + len(held), filled + int(held.sum())
        scores[filled:end], columns[filled:end] = block.scores[held], found[held]
        filled = end
    if filled < n * k:
        scores, columns = scores[:filled].copy(), columns[:filled].copy()
    return sp.csr_array((scores, columns, np.cumsum(counts, dtype=number)), shape=(n, n))


def _with_room_for_itself(settings: Settings, k: int) -> Settings:
    """Settings for k + 1 documents, one of which is the query itself."""
    candidates, refine = settings.candidates, settings.refine
    return settings._replace(
        candidates=None if candidates is None else max(candidates, k + 1),
        refine=max(refine, k + 1) if refine else refine,
    )


def _found(search: Search, vectors: FloatArray, k: int, settings: Settings) -> SearchResult:
    """The documents nearest to vectors; none to a vector of zeros, as an empty code gives one."""
    given = vectors.any(axis=1)
    if given.all():
        return search(vectors, k, settings)
    some = search(vectors[given], k, settings)
    missing: Any = None if some.ids.dtype == object else -1
    scores = np.full((len(vectors), k), -np.inf, dtype=np.float32)
    ids: Any = np.full((len(vectors), k), missing, dtype=some.ids.dtype)
    scores[given], ids[given] = some.scores, some.ids
    if some.certified is None:
        return SearchResult(scores, ids)
    certified = np.zeros(len(vectors), dtype=bool)
    certified[given] = some.certified
    return SearchResult(scores, ids, certified)


def _without_itself(found: SearchResult, ids: IdArray) -> SearchResult:
    """Results (n, k + 1) without the document of each row, or else without the last one: (n, k)."""
    n, places = found.ids.shape
    # An id may be -1 in Milvus, like an empty place.
    itself = (found.ids == ids[:, None]) & found.found
    left_out = np.where(itself.any(axis=1), itself.argmax(axis=1), places - 1)
    kept = np.arange(places) != left_out[:, None]
    shape = n, places - 1
    return SearchResult(found.scores[kept].reshape(shape), found.ids[kept].reshape(shape), found.certified)
