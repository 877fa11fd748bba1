"""The stages of a search: the first finds documents, the others score them again. A mode is a list of stages.

The tie rule, the k best, the certificate and padding are defined here, once for every index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, Hits, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import with_lengths
from compressae_index.errors import UnknownIdError
from compressae_index.search.queries import QUERY_NNZ, Asked, CodeShape, SearchResult

# How often to fetch codes of candidates, which others may remove or replace meanwhile.
ATTEMPTS = 10


class Found(NamedTuple):
    """Documents that stages found for a batch of queries, in any order; missing ones have score -inf."""

    scores: FloatArray
    """(n_queries, c) by the metric."""
    ids: IdArray
    """(n_queries, c) int64, or str objects; -1 or None where fewer were found."""
    places: RowArray
    """(n_queries, c) positions in the order of `Documents.ids`, which breaks ties."""
    certified: BoolArray | None = None
    """(n_queries,) as in `SearchResult`."""
    codes: SparseCodes | None = None
    """Their codes, n_queries * c rows, where a later stage may need them."""
    ordered: bool = False
    """Whether they are in the order of the tie rule already."""


class Finder(Protocol):
    """Stage one of a mode."""

    def __call__(self, asked: Asked, /) -> Found:
        """The documents that it finds, in any order."""
        ...


class Rescorer(Protocol):
    """A later stage of a mode."""

    def __call__(self, asked: Asked, found: Found, /) -> Found:
        """The documents that were found, with scores of its own; it may leave some out."""
        ...


class Stages(NamedTuple):
    """The stages of a mode."""

    first: Finder
    then: tuple[Rescorer, ...] = ()

    def run(self, asked: Asked) -> Found:
        """The documents that the last stage gives."""
        clock = asked.clock
        if clock is None:
            found = self.first(asked)
            for stage in self.then:
                found = stage(asked, found)
            return found
        with clock("project"):
            _ = asked.stage_one
        with clock("find"):
            found = self.first(asked)
        for stage in self.then:
            with clock("refine" if isinstance(stage, Refined) else "re-score"):
                found = stage(asked, found)
        return found


def answered(stages: Stages, asked: Asked, block: int, *, are_strings: bool) -> SearchResult:
    """The `asked.k` best documents that a mode's stages find; they see `block` queries at a time."""
    parts = [ranked(stages.run(part), asked.k, are_strings=are_strings) for part in asked.blocks(block)]
    return joined(parts, asked.k, are_strings=are_strings)


class Candidates(NamedTuple):
    """The documents that a back end found for a batch of queries."""

    ids: IdArray
    """(n_queries, c) int64, or str objects; -1, or None, where fewer were found, after all others."""
    scores: FloatArray
    """(n_queries, c) sums over the query's terms, or upper bounds of them; -inf where fewer were found."""
    bounds: FloatArray
    """(n_queries,) no document that was not found has a sum over the query's terms above this."""
    codes: SparseCodes | None = None
    """Codes of the candidates, n_queries * c rows, of value 0 where fewer were found; None to have them
    fetched by `codes`."""
    places: RowArray | None = None
    """(n_queries, c) positions in the order of `Documents.ids`; None where ids ascend."""


class Coded(CodeShape, Protocol):
    """The part of `Documents` that gives codes by id."""

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        ...

    def held(self, ids: IdArray) -> BoolArray:
        """Which of the ids are held."""
        ...

    def codes(self, ids: IdArray) -> SparseCodes:
        """The stored codes of ids."""
        ...


class Source(Coded, Protocol):
    """The part of `SparseBackend` that stages use."""

    is_exact: bool

    def candidates(self, terms: SparseCodes, n: int, filter: Any) -> Candidates:  # noqa: A002
        """The n best documents by the terms of each query."""
        ...


class ByTerms:
    """Stage one: candidates by the strongest latents of each query, with exact sums and a certificate."""

    def __init__(self, backend: Source) -> None:
        self._backend = backend

    def __call__(self, asked: Asked, /) -> Found:
        """The candidates of a batch of queries."""
        settings, backend = asked.settings, self._backend
        terms = terms_of(asked)
        n = asked.k if asked.mode == "sparse" and backend.is_exact else asked.candidates
        return self.scored(asked, terms, backend.candidates(terms, n, settings.filter))

    def scored(self, asked: Asked, terms: SparseCodes, got: Candidates) -> Found:
        """Candidates that the back end gave, by their exact sums over the terms."""
        codes = got.codes
        sums = got.scores
        if not self._backend.is_exact:
            if codes is None:
                got, codes = with_codes(self._backend, got)
            sums = np.where(np.isneginf(got.scores), -np.inf, code_scores(terms.to_dense(), codes))
        return Found(
            asked.in_metric(sums),
            got.ids,
            places_of(got.ids) if got.places is None else got.places,
            holds_best(sums, got.bounds, asked.k),
            codes,
        )


class ByCodes:
    """Stage two: scores of candidates by whole projections and whole codes."""

    def __init__(self, backend: Coded) -> None:
        self._backend = backend

    def __call__(self, asked: Asked, found: Found, /) -> Found:
        """The candidates with the scores of their reconstructions."""
        codes = found.codes
        if codes is None:
            got = Candidates(found.ids, found.scores, np.empty(0, np.float32), places=found.places)
            got, codes = with_codes(self._backend, got)
            found = found._replace(ids=got.ids, scores=got.scores)
        sums = code_scores(asked.stage_two, codes)
        scores = np.where(np.isneginf(found.scores), -np.inf, asked.in_metric(sums))
        return found._replace(scores=scores, codes=codes, ordered=False)


class Refined:
    """Stage three: scores of the best documents by what their codes leave out; the others are left out."""

    def __init__(self, scored: Callable[[Asked, Found], FloatArray]) -> None:
        """With a function from documents to their scores (n_queries, c) by the metric.

        These may be any numbers where the given ones are -inf. The function is not called without documents.
        """
        self._scored = scored

    def __call__(self, asked: Asked, found: Found, /) -> Found:
        """The best `asked.refine` documents of each query; all as they are if that is 0."""
        if not asked.refine or not found.scores.shape[1]:
            return found
        found = best_of(found, asked.refine)
        scores = np.where(np.isneginf(found.scores), np.float32(-np.inf), self._scored(asked, found))
        return found._replace(scores=scores, ordered=False)


def best_of(found: Found, n: int) -> Found:
    """The n best documents of each query by the tie rule, without their codes; all if they are no more."""
    if found.scores.shape[1] <= n:
        return found
    order = best(found.scores, found.places, n)
    ids: Any = found.ids
    return Found(
        np.take_along_axis(found.scores, order, axis=1),
        np.take_along_axis(ids, order, axis=1),
        np.take_along_axis(found.places, order, axis=1),
        found.certified,
        ordered=True,
    )


def strongest_terms(projections: FloatArray, query_nnz: int) -> SparseCodes:
    """The query_nnz largest entries of each projection (n_queries, n_latents) by magnitude.

    Of equal ones, those of the first latents are taken, as the engine does.
    """
    n_queries, n_latents = projections.shape
    query_nnz = min(query_nnz, n_latents)
    magnitudes = np.abs(projections)
    least = np.partition(magnitudes, n_latents - query_nnz, axis=1)[:, n_latents - query_nnz, None]
    larger, equal = magnitudes > least, magnitudes == least
    ties = query_nnz - larger.sum(axis=1, keepdims=True)
    chosen = np.nonzero(larger | (equal & (np.cumsum(equal, axis=1) <= ties)))[1]
    latents = chosen.reshape(n_queries, query_nnz)
    values = np.take_along_axis(projections, latents, axis=1)
    return SparseCodes(latents.astype(np.uint16), values, n_latents)


def terms_of(asked: Asked) -> SparseCodes:
    """The latents of each query that stage one looks for; that of norms is always among them."""
    return strongest_of(asked, asked.settings.query_nnz or QUERY_NNZ)


def strongest_of(asked: Asked, query_nnz: int) -> SparseCodes:
    """The query_nnz strongest latents of each query, and that of norms where these are kept."""
    if asked.weights is None:
        return strongest_terms(asked.stage_one, query_nnz)
    terms = strongest_terms(np.ascontiguousarray(asked.stage_one[:, :-1]), query_nnz)
    return with_lengths(terms, asked.stage_one[:, -1])


def code_scores(projections: FloatArray, codes: SparseCodes) -> FloatArray:
    """Sums of projection[latent] * value of the codes of each query's candidates: (n_queries, c).

    Args:
        projections: (n_queries, n_latents).
        codes: n_queries * c rows, those of the first query first.
    """
    n_queries = len(projections)
    latents = codes.latents.reshape(n_queries, -1)
    values = codes.values.reshape(n_queries, -1, codes.k)
    taken = np.take_along_axis(projections, latents.astype(np.int64), axis=1).reshape(values.shape)
    scores: FloatArray = np.einsum("qck,qck->qc", taken, values)
    return scores


def holds_best(sums: FloatArray, bounds: FloatArray, k: int) -> BoolArray:
    """The certificate: whether the k best documents by a query's terms are provably among its candidates.

    They are if the k-th best sum of the candidates is at least the bound of all other documents.

    Args:
        sums: (n_queries, c) exact sums of the candidates; -inf where there is none.
        bounds: (n_queries,) no other document has a sum above this.
        k: neighbours; if there are fewer candidates, all of them.
    """
    found = np.isfinite(sums).sum(axis=1)
    if sums.shape[1] == 0:
        return bounds <= 0
    by_sum = -np.sort(-sums, axis=1)
    last = by_sum[np.arange(len(by_sum)), np.maximum(np.minimum(found, k) - 1, 0)]
    return np.where(found == 0, 0, last) >= bounds


def best(scores: FloatArray, places: RowArray, k: int) -> RowArray:
    """Columns of the k best of each query by the tie rule, best first: (n_queries, at most k).

    The higher score comes first; of equal scores, that of the document that is first in `ids`.

    Args:
        scores: (n_queries, c); -inf where nothing was found.
        places: (n_queries, c) numbers in the order of `ids`.
        k: documents of each query.
    """
    return np.lexsort((places, -scores), axis=1)[:, :k]


def in_order(scores: FloatArray, rows: RowArray) -> Hits:
    """Rows and their scores (n_queries, c) by the tie rule; rows of -1 come last, with score -inf."""
    if (scores[:, 1:] < scores[:, :-1]).all() and (rows >= 0).all():
        return scores, rows
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = best(scores, rows, scores.shape[1])
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def ranked(found: Found, k: int, *, are_strings: bool) -> SearchResult:
    """The k best documents that were found, as a result."""
    scores = found.scores[:, :k]
    ids: Any = found.ids[:, :k]
    if not found.ordered:
        order = best(found.scores, found.places, k)
        scores = np.take_along_axis(found.scores, order, axis=1)
        ids = np.take_along_axis(found.ids, order, axis=1)
    return padded(scores, ids, k, are_strings=are_strings, certified=found.certified)


def padded(
    scores: FloatArray, ids: IdArray, k: int, *, are_strings: bool, certified: BoolArray | None = None
) -> SearchResult:
    """Documents in order as a result of k places a query; empty places hold -inf and -1 or None."""
    if short := k - scores.shape[1]:
        nothing: Any = None if are_strings else -1
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
        ids = np.pad(
            ids.astype(object) if are_strings else ids, ((0, 0), (0, short)), constant_values=nothing
        )
    return SearchResult(scores.astype(np.float32, copy=False), ids, certified)


def joined(results: Sequence[SearchResult], k: int, *, are_strings: bool) -> SearchResult:
    """Results of blocks of queries, one below the other; there may be none."""
    if not results:
        none = np.empty((0, 0), dtype=np.float32)
        ids: Any = np.empty((0, 0), dtype=object if are_strings else np.int64)
        return padded(none, ids, k, are_strings=are_strings, certified=np.empty(0, dtype=bool))
    marks = [result.certified for result in results if result.certified is not None]
    return SearchResult(
        np.concatenate([result.scores for result in results]),
        np.concatenate([result.ids for result in results]),
        np.concatenate(marks) if len(marks) == len(results) else None,
    )


def places_of(ids: IdArray) -> RowArray:
    """Numbers in the order of ids, (n_queries, c): of the integers themselves, or of strings and None."""
    if ids.dtype != object:
        return ids.astype(np.int64, copy=False)
    place_of = {name: place for place, name in enumerate(sorted({*ids.flat} - {None}))}
    return np.array([place_of.get(name, -1) for name in ids.flat], dtype=np.int64).reshape(ids.shape)


def with_codes(backend: Coded, got: Candidates) -> tuple[Candidates, SparseCodes]:
    """Candidates and their codes, each fetched once, without those that were removed meanwhile."""
    present = ~np.isneginf(got.scores)
    wanted: Any
    wanted, place = np.unique(got.ids[present], return_inverse=True)
    held, codes = _held_codes(backend, wanted)
    nothing: Any = None if backend.are_strings else -1
    gone = present.copy()
    gone[present] = ~held[place]
    got = got._replace(
        ids=np.where(gone, nothing, got.ids), scores=np.where(gone, np.float32(-np.inf), got.scores)
    )
    n, width = got.scores.size, backend.k
    latents = np.broadcast_to(np.arange(width, dtype=np.uint16), (n, width)).copy()
    values = np.zeros((n, width), dtype=np.float32)
    of_held = (np.cumsum(held) - 1)[place][held[place]]
    left = (present & ~gone).ravel()
    latents[left], values[left] = codes.latents[of_held], codes.values[of_held]
    return got, SparseCodes(latents, values, backend.n_latents)


def _held_codes(backend: Coded, ids: IdArray) -> tuple[BoolArray, SparseCodes]:
    """Which ids are still held, while others may remove them, and the codes of these."""
    held = np.ones(len(ids), dtype=bool)
    for attempt in range(ATTEMPTS):
        if not held.any():
            break
        try:
            return held, backend.codes(ids[held])
        except UnknownIdError:
            if attempt == ATTEMPTS - 1:
                raise
            held = backend.held(ids)
    return held, SparseCodes.empty(backend.k, backend.n_latents)
