"""One shard of an index in a process of its own: the stages of a search, one by one."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, Hits, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.index import CompressedIndex
from compressae_index.search.queries import Asked, Settings
from compressae_index.search.stages import strongest_of


class About(NamedTuple):
    """What all that search a shard need to know of it."""

    form: dict[str, Any]
    """`CompressedIndex.form`."""
    rows: int
    """Rows, removed ones included."""
    alive: int
    """Rows that were not removed."""
    are_strings: bool
    largest_norm: float
    by_originals: bool
    residual_bits: int
    query_nnz: int
    nbytes: dict[str, int]


class Shard:
    """A saved index, mapped; an actor of Ray has one. It keeps nothing of a query, so it may be restarted."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._index = CompressedIndex.load(path, mmap=True)
        self._documents = self._index.documents
        self._stepped: tuple[float, EmbeddedBackend] | None = None

    def about(self) -> About:
        """The form and size of the shard."""
        index, documents, backend = self._index, self._documents, self._documents.backend
        return About(
            index.form,
            len(backend),
            len(documents),
            documents.are_strings,
            backend.largest_norm,
            backend.originals is not None,
            documents.residual_bits,
            backend.query_nnz,
            documents.nbytes,
        )

    def model(self) -> CompresSAE:
        """The model of all shards."""
        return self._index.model

    def find(
        self,
        rows: FloatArray,
        settings: Settings,
        query_nnz: int,
        top: int,
        wanted: Any,
        largest_norm: float,
    ) -> Hits:
        """The best rows by posting lists, and their scores in the steps of all shards."""
        if self._stepped is None or self._stepped[0] != largest_norm:
            self._stepped = largest_norm, self._documents.backend.with_largest_norm(largest_norm)
        asked, (allowed, n_allowed) = self._asked(rows, settings), self._documents.allowed(wanted)
        top = min(top, n_allowed)
        if not top:
            return _nothing(len(rows))
        return self._stepped[1].listed(
            asked.stage_one, query_nnz, top, allowed, asked.num_threads, damped=asked.is_damped
        )

    def scan(
        self, rows: FloatArray, settings: Settings, query_nnz: int | None, top: int, wanted: Any
    ) -> Hits:
        """The best rows of all by their codes and the whole query, or query_nnz latents of it."""
        asked, (allowed, n_allowed) = self._asked(rows, settings), self._documents.allowed(wanted)
        top = min(top, n_allowed)
        if not top:
            return _nothing(len(rows))
        projections = _projections(asked, query_nnz)
        return self._documents.backend.dense(projections, top, allowed, asked.num_threads)

    def score(self, rows: FloatArray, settings: Settings, query_nnz: int | None, found: RowArray) -> Hits:
        """Rows that were found, (n_queries, c), by their codes, best first."""
        asked = self._asked(rows, settings)
        projections = _projections(asked, query_nnz)
        return self._documents.backend.joined().scored(projections, found, asked.num_threads)

    def refine(self, rows: FloatArray, settings: Settings, scores: FloatArray, found: RowArray) -> FloatArray:
        """Scores of rows (n_queries, c) by what their codes leave out."""
        asked = self._asked(rows, settings)
        queries = self._documents.queries_to_refine(asked)
        return self._documents.backend.refined(queries, scores, found, asked.num_threads)

    def _asked(self, rows: FloatArray, settings: Settings) -> Asked:
        return self._index.asked(rows, 1, settings._replace(filter=None, refine=0, candidates=None))

    def names(self, rows: RowArray) -> IdArray:
        """Ids of rows."""
        return self._documents.all_ids.of(rows)

    def ids(self) -> IdArray:
        """The ids that a search can find."""
        return self._documents.ids

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held."""
        return self._index.holds(ids)

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids."""
        return self._documents.codes(ids)

    def vectors(self, ids: IdArray, *, reconstructed: bool) -> FloatArray:
        """Vectors of ids as the last stage knows them, or their reconstructions."""
        documents, model = self._documents, self._index.model
        return documents.reconstructed(ids, model) if reconstructed else documents.vectors(ids, model)


def _projections(asked: Asked, query_nnz: int | None) -> FloatArray:
    if query_nnz is None:
        return asked.stage_two
    return strongest_of(asked, query_nnz).to_dense()


def _nothing(n_queries: int) -> Hits:
    return np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64)
