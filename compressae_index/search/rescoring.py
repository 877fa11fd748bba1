"""Scores of documents that something else found for each query, such as another store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.coding.metric import Metric, RowScale
from compressae_index.coding.model import CompresSAE
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Rows, as_id_array
from compressae_index.search.protocol import Documents
from compressae_index.search.queries import Asked, SearchResult
from compressae_index.search.stages import ByCodes, Found, Refined, Stages, joined, places_of, ranked

# Queries answered at a time: the codes and vectors of all their documents are held at once.
QUERY_BLOCK = 16


def check_found(found: Any, n_queries: int, *, are_strings: bool) -> list[IdArray]:
    """The ids of each query, each once and without places that are empty.

    Args:
        found: an array (n_queries, c), or a sequence of ids for each query; -1 or None is no id.
        n_queries: the number of queries.
        are_strings: whether the ids of the index are strings.

    Raises:
        DimensionError: not one row a query.
        InputError: ids of the other kind, or neither integers nor strings.
    """
    rows = [as_array(row, "ids") for row in found]
    if len(rows) != n_queries or any(row.ndim != 1 for row in rows):
        msg = f"ids must be a row for each of {n_queries} queries, got {_shape_of(rows)}"
        raise DimensionError(msg)
    of_queries = [
        as_id_array([id_ for id_ in dict.fromkeys(row.tolist()) if id_ is not None and id_ != -1])
        for row in rows
    ]
    for ids in of_queries:
        if len(ids) and (ids.dtype == object) != are_strings:
            kind = "strings" if are_strings else "integers"
            msg = f"the ids of this index are {kind}, those to score hold {ids.tolist()[0]!r:.100}"
            raise InputError(msg)
    return of_queries


def _shape_of(rows: list[npt.NDArray[Any]]) -> str:
    return f"{len(rows)} rows" if all(row.ndim == 1 for row in rows) else "other shapes"


def rescored(
    asked: Asked, found: Iterable[IdArray], documents: Documents, model: CompresSAE, metric: Metric
) -> SearchResult:
    """The `asked.k` best of the documents that were found for each query; unknown ids are left out."""
    # Codes come times the unit of norms here, unlike in a search.
    factors = RowScale(metric, 1.0).of_queries(asked.rows)
    then = (ByCodes(documents), Refined(lambda part, of_part: _by_vectors(part, of_part, documents, model)))
    remaining, results = iter(found), []
    for part in replace(asked, factors=factors).blocks(QUERY_BLOCK):
        given = _given(list(islice(remaining, len(part))), documents)
        stages = Stages(lambda _, given=given: given, then)
        results.append(ranked(stages.run(part), asked.k, are_strings=documents.are_strings))
    return joined(results, asked.k, are_strings=documents.are_strings)


def _given(rows: list[IdArray], documents: Documents) -> Found:
    """Documents of a block of queries, not scored yet."""
    shape = len(rows), max(map(len, rows), default=0)
    nothing: Any = None if documents.are_strings else -1
    ids: Any = np.full(shape, nothing, dtype=object if documents.are_strings else np.int64)
    scores = np.full(shape, -np.inf, dtype=np.float32)
    for row, some in enumerate(rows):
        ids[row, : len(some)], scores[row, : len(some)] = some, 0
    return Found(scores, ids, _places(ids, documents))


def _places(ids: IdArray, documents: Documents) -> RowArray:
    if not isinstance(documents, Rows):
        return places_of(ids)
    # An empty place is like an id that is not held.
    return documents.live_ids.find(ids.ravel()).reshape(ids.shape)


def _by_vectors(asked: Asked, found: Found, documents: Documents, model: CompresSAE) -> FloatArray:
    """Scores by the vectors that the last stage of the index knows."""
    present = ~np.isneginf(found.scores)
    wanted: Any
    wanted, place = np.unique(found.ids[present], return_inverse=True)
    sums = np.zeros(found.scores.shape, dtype=np.float32)
    if len(wanted):
        vectors = documents.vectors(wanted, model) * np.float32(documents.unit or 1.0)
        queries = asked.vectors[np.nonzero(present)[0]]
        sums[present] = np.einsum("nd,nd->n", queries, vectors[place])
    return asked.times_factors(sums)
