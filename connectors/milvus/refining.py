"""The third stage: the best documents by their codes, scored again by what Milvus holds of their vectors.

These are read by id, for the best `refine` documents alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from compressae_index import _engine
from compressae_index.arrays import BoolArray, FloatArray, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.connectors.milvus.residuals import ResidualRows
from compressae_index.embedded.originals import Score
from compressae_index.search.queries import Asked
from compressae_index.search.stages import Found, best, code_scores


class Coded(NamedTuple):
    """Documents with codes and residual codes, read at once, so that both are of the same vector."""

    ids: list[Any]
    codes: SparseCodes
    residuals: ResidualRows


# Ids, and the original vectors (n, d) of those that are held, by id.
ReadOriginals: TypeAlias = Callable[[IdArray], dict[Any, FloatArray]]
ReadCoded: TypeAlias = Callable[[IdArray], Coded]


class ByOriginals:
    """Scores by original vectors."""

    def __init__(self, read: ReadOriginals, score: Score, *, may_lack: bool) -> None:
        """From a way to read vectors.

        Args:
            read: the vectors of ids, from the model's center; others may have removed some meanwhile.
            score: what they are compared with queries for.
            may_lack: whether documents without a vector keep the score of their code; otherwise, they were
                removed, and are left out.
        """
        self._read = read
        self._score = score
        self._may_lack = may_lack

    def __call__(self, asked: Asked, found: Found, /) -> Found:
        """The best documents that were found, with the scores of their vectors."""
        if not asked.refine:
            return found
        found = _strongest(found, asked.refine)
        vectors = self._read(_distinct(found))
        scores, rows = found.scores, _rows_among(found, vectors)
        if vectors:
            held = np.array(list(vectors.values()), dtype=np.float32)
            distances, by_direction = self._score == "distance", self._score == "cosine"
            engine = _engine.Originals([(held, 1.0)], held.shape[1], None, by_direction, distances=distances)
            queries = asked.rows if distances else asked.vectors
            sums = engine.rescore(queries, scores, rows, asked.num_threads)
            if asked.distances is not None:
                sums = asked.distances.of_vectors(sums)
            else:
                sums = asked.times_factors(sums)
            scores = np.where(rows < 0, scores, sums)
        found = found._replace(scores=scores)
        return found if self._may_lack else _without(found, rows < 0)


class ByResiduals:
    """Scores by codes and residual codes."""

    def __init__(self, read: ReadCoded, residual_bits: int) -> None:
        """From a way to read codes and residual codes of ids, of which others may have removed some."""
        self._read = read
        self._residual_bits = residual_bits

    def __call__(self, asked: Asked, found: Found, /) -> Found:
        """The best documents that were found, with the scores of their codes and residual codes."""
        if not asked.refine:
            return found
        found = _strongest(found, asked.refine)
        read = self._read(_distinct(found))
        rows = _rows_among(found, read.ids)
        if read.ids:
            sums = code_scores(asked.stage_two, read.codes[np.maximum(rows, 0).ravel()])
            engine = _engine.Residuals([read.residuals], asked.vectors.shape[1], self._residual_bits)
            sums = engine.rescore(asked.vectors, np.ascontiguousarray(sums), rows, asked.num_threads)
            found = found._replace(scores=asked.in_metric(sums))
        return _without(found, rows < 0)


def _strongest(found: Found, n: int) -> Found:
    """The n best documents of each query."""
    order = best(found.scores, found.places, n)
    scores = np.take_along_axis(found.scores, order, axis=1)
    ids: Any = np.take_along_axis(found.ids, order, axis=1)
    places = np.take_along_axis(found.places, order, axis=1)
    return Found(np.ascontiguousarray(scores), ids, places, found.certified)


def _distinct(found: Found) -> IdArray:
    """The ids of documents, each once."""
    ids: Any = found.ids[~np.isneginf(found.scores)]
    return np.unique(ids)


def _rows_among(found: Found, ids: Iterable[Any]) -> RowArray:
    """Where the documents (n_queries, c) are among ids; -1 for those that are not."""
    row_of = {id_: row for row, id_ in enumerate(ids)}
    rows = [row_of.get(id_, -1) for id_ in found.ids.ravel().tolist()]
    placed: RowArray = np.array(rows, dtype=np.int64).reshape(found.ids.shape)
    return np.where(np.isneginf(found.scores), -1, placed)


def _without(found: Found, gone: BoolArray) -> Found:
    """What was found, without some documents (n_queries, c)."""
    nothing: Any = None if found.ids.dtype == object else -1
    return found._replace(
        scores=np.where(gone, np.float32(-np.inf), found.scores), ids=np.where(gone, nothing, found.ids)
    )
