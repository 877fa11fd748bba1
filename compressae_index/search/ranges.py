"""Range search: all documents that score above a radius."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.checks import check_number
from compressae_index.errors import InputError
from compressae_index.search.neighbours import BLOCK, Search
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import CANDIDATES, Settings

# Documents of a query that are searched for first, and how many times as many next, if all are in the range.
FIRST, GROWTH = 64, 4
# Candidates for each of these documents. On real ranges of 12 to 1,600 documents, "two_stage" left out up to
# 20 % of the documents with 4, and up to 3 % with 16.
CANDIDATES_PER_K = 16
# Places of an answer at a time.
PLACES = 2**22


class RangeResult(NamedTuple):
    """The documents above a radius, in the shapes of Faiss: those of query i are lims[i] to lims[i + 1]."""

    lims: npt.NDArray[np.int64]
    """(n_queries + 1,) where the documents of each query begin, and the end of the last."""
    scores: FloatArray
    """(lims[-1],) best first within a query."""
    ids: IdArray
    """(lims[-1],) int64, or str objects."""


def check_radius(radius: Any) -> float:
    """A radius as a score, which may be infinite.

    Raises:
        InputError: no number, or NaN.
    """
    number = check_number(radius, "radius")
    if np.isnan(number):
        msg = "radius must be a number, got NaN"
        raise InputError(msg)
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def within(
    queries: FloatArray, radius: float, settings: Settings, documents: Documents, search: Search
) -> RangeResult:
    """Searches with growing k, until the last document that is found is not in the range.

    Args:
        queries: (n_queries, d), checked.
        radius: a float32 score, which documents in the range exceed.
        settings: how to search, checked. `candidates` (but in "dense") and `refine`, where they are given,
            are the most documents of a query.
        documents: the documents that `search` searches.
        search: finds neighbours of queries.
    """
    nothing = np.empty(0, np.float32), np.empty(0, object if documents.are_strings else np.int64)
    parts: list[tuple[FloatArray, Any]] = [nothing] * len(queries)
    n = len(documents)
    settings = _exact_if_dense(settings, documents, n)
    most = min(n, settings.candidates or n, settings.refine or n)
    # What stage three scores is the same for each k, if `refine` is given.
    k = most if settings.refine else min(FIRST, most)
    pending: RowArray = np.arange(len(queries) if k else 0)
    while len(pending):
        wider = _wider(settings, k, n)
        unfinished = []
        for some in _blocks(pending, max(k, wider.refine or 0)):
            found = search(queries[some], k, wider)
            counts = (found.scores > radius).sum(axis=1)
            unfinished.append(some[(counts == k) & (k < most)])
            for row, (query, count) in enumerate(zip(some.tolist(), counts.tolist(), strict=True)):
                parts[query] = found.scores[row, :count].copy(), found.ids[row, :count].copy()
        pending, k = np.concatenate(unfinished), min(GROWTH * k, most)
    lims = np.cumsum([0, *(len(scores) for scores, _ in parts)], dtype=np.int64)
    scores, ids = (np.concatenate(one) for one in zip(nothing, *parts, strict=True))
    return RangeResult(lims, scores, ids)


def _exact_if_dense(settings: Settings, documents: Documents, n: int) -> Settings:
    """Settings by which "dense" gives all documents their last scores, unless `refine` says otherwise."""
    if settings.mode != "dense":
        return settings
    refine = n if documents.refines and settings.refine is None else settings.refine
    return settings._replace(candidates=None, refine=refine)


def _wider(settings: Settings, k: int, n: int) -> Settings:
    """Settings for k documents, with many more candidates unless their number is given."""
    if settings.candidates is not None:
        return settings
    return settings._replace(candidates=min(max(CANDIDATES, CANDIDATES_PER_K * k), max(n, k)))


def _blocks(rows: RowArray, width: int) -> Iterator[RowArray]:
    """Rows in blocks, of few rows where each has a wide answer."""
    size = min(max(PLACES // width, 1), BLOCK)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
