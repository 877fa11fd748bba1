"""Queries and answers of every index: modes, settings, projections, results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.checks import check_int, normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import Distances
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.processes import cached_property
from compressae_index.progress import Clock

if TYPE_CHECKING:
    import pyarrow as pa

Mode: TypeAlias = Literal["sparse", "dense", "two_stage"]
MODES: tuple[Mode, ...] = ("sparse", "dense", "two_stage")
# Modes whose documents a last stage may score again.
REFINED_MODES: tuple[Mode, ...] = ("dense", "two_stage")
Scoring: TypeAlias = Literal["asymmetric", "symmetric"]
SCORINGS: tuple[Scoring, ...] = ("asymmetric", "symmetric")

# Neighbours that one may ask for, and places of an answer that has more of them than there are documents.
MAX_K = 2**31 - 1
MAX_PLACES = 2**24
# Documents that stage one hands to stage two, where a call does not say.
CANDIDATES = 1000
# Documents of each query that the last stage scores again, where a call does not say: this, or REFINE_PER_K
# for each neighbour.
REFINE, REFINE_PER_K = 100, 4
# Latents of a query that posting lists are read for, where a call does not say and lists hold all nonzeros.
QUERY_NNZ = 64
# Of the product with a document as near as a neighbour, the strongest latents see about this share, so that
# stage one counts as much of its norm. Of image descriptors, 0.7 to 0.9 gave the same candidates within 0.01;
# the whole norm lost 0.02 to 0.03 of the neighbours, none lost half.
LISTED_SHARE = 0.85


class _Neighbours(NamedTuple):
    scores: FloatArray
    ids: IdArray


class SearchStats(NamedTuple):
    """What a search of a batch of queries did, all queries together."""

    queries: int
    milliseconds: dict[str, float]
    """By stage: "project" the queries, "find" documents, and "re-score" and "refine" them where these are
    stages of their own; an index in this process does all three in one call of the engine, "find". "total"
    also has what is done to the answer."""
    candidates: int
    """Documents that stage one handed on, at most; all documents in "dense"."""
    rescored: int
    """Documents that were scored by their codes, at most."""
    refined: int
    """Documents that the last stage scored again, at most."""
    postings: int | None
    """Postings in the lists of the queries' latents; None if the index does not count them."""
    bytes_read: int | None
    """Bytes of these postings, codes, and residual codes or original vectors; None if they are not known."""


class Reads(NamedTuple):
    """What documents read for a batch of queries; None where they do not count it."""

    postings: int | None = None
    bytes: int | None = None


class SearchResult(_Neighbours):
    """Neighbours of a batch of queries, best first: a pair of scores and ids.

    Attributes:
        scores: (n_queries, k) float32; -inf where fewer than k documents match. With metric "l2", squared
            distances, ascending; +inf where fewer match.
        ids: (n_queries, k) int64, or str objects; -1, or None, where fewer than k documents match. Milvus may
            hold the id -1: the score of a document is never infinite.
        certified: (n_queries,) whether the k best documents by the query's query_nnz strongest latents are
            provably among the candidates: "sparse" is then exact, and "two_stage" re-scored all of them. None
            where the index does not tell.
        lost: shards that did not answer, of an index that may answer without them.
        stats: what the search did, if it was asked to say so.
    """

    certified: BoolArray | None
    lost: tuple[str, ...]
    stats: SearchStats | None

    def __new__(
        cls,
        scores: FloatArray,
        ids: IdArray,
        certified: BoolArray | None = None,
        lost: tuple[str, ...] = (),
        stats: SearchStats | None = None,
    ) -> SearchResult:
        """A pair that carries the certificate, the lost shards and the statistics as attributes."""
        result = super().__new__(cls, scores, ids)
        result.certified, result.lost, result.stats = certified, lost, stats
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return *self, self.certified, self.lost, self.stats

    @property
    def found(self) -> BoolArray:
        """(n_queries, k) whether a place holds a document: its score is finite."""
        return np.isfinite(self.scores)

    def to_arrow(self) -> pa.Table:
        """The documents found, a row each, as a table of Arrow; empty places are left out.

        Its columns are `query`, the number of the query (int64); `rank`, from 0 for the best (int64); `id`
        (int64, or string); and `score` (float32).

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingExtraError("pyarrow", "files", "a table of Arrow") from error
        found = self.found
        query, rank = np.nonzero(found)
        ids = pa.array(self.ids[found], pa.string() if self.ids.dtype == object else pa.int64())
        return pa.table({"query": query, "rank": rank, "id": ids, "score": self.scores[found]})


class Settings(NamedTuple):
    """How to search; see `Index.search`."""

    mode: str = "two_stage"
    candidates: int | None = None
    query_nnz: int | None = None
    scoring: Scoring = "asymmetric"
    refine: int | None = None
    filter: Any = None
    num_threads: int | None = None
    damped: bool = True
    """Whether "two_stage" estimates what latents that are not read would add, where that can be; see
    `Frontier.damped_to`."""
    rough: bool = False
    """Whether projections are those of rounded queries; see `Asked.let_be_rough`."""

    # Not by `_replace`, which takes six times as long: these are part of every search.

    def settled(
        self, candidates: int | None, query_nnz: int | None, refine: int | None, *, damped: bool
    ) -> Settings:
        """The same with numbers that a caller may have left open."""
        return Settings(
            self.mode, candidates, query_nnz, self.scoring, refine, self.filter, self.num_threads, damped
        )

    def roughly(self) -> Settings:
        """The same with projections of rounded queries."""
        return Settings(*self[:-1], rough=True)


class CodeShape(Protocol):
    """The shape of codes."""

    @property
    def k(self) -> int:
        """Nonzeros a code, and one more where norms are kept."""
        ...

    @property
    def n_latents(self) -> int:
        """Size of the dictionary, and one more where norms are kept."""
        ...


def nonzeros(codes: CodeShape, model: CompresSAE) -> int:
    """Nonzeros a code of a model, without that of norms."""
    return codes.k - (codes.n_latents > model.n_latents)


class Coder(NamedTuple):
    """The model and settings that an index encodes with."""

    model: CompresSAE
    encoder: Encoder
    documents: CodeShape
    """What holds the codes."""

    @property
    def k(self) -> int:
        """Nonzeros a code."""
        return nonzeros(self.documents, self.model)


@dataclass(eq=False)  # neither frozen nor compared: a search makes one, and waits for it
class Asked:
    """A batch of checked queries, as the stages of a search see it.

    Projections are made when a stage first asks for them.
    """

    rows: FloatArray
    """(n_queries, d) the queries, from the model's center."""
    factors: FloatArray | None
    """(n_queries, 1) factors from sums over stored codes to scores of the metric; None for cosine."""
    k: int
    """Neighbours of each query."""
    candidates: int
    """Documents that stage one finds, where there is a stage two; at least k."""
    refine: int
    """Documents that the last stage scores again: at least k, or 0 where there is no such stage."""
    num_threads: int
    settings: Settings
    coder: Coder
    distances: Distances | None = None
    """How sums become squared distances, below 0; None for other metrics."""
    given: FloatArray | None = None
    """(n_queries, d) the queries as they were given; None where `rows` are these."""
    clock: Clock | None = None
    """Measures the stages, if they are to be measured."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mode(self) -> str:
        """The mode asked for."""
        return self.settings.mode

    def blocks(self, size: int) -> Iterator[Asked]:
        """The same, `size` queries at a time."""
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            factors = None if self.factors is None else self.factors[rows]
            distances = None if self.distances is None else self.distances.rows(rows)
            given = None if self.given is None else self.given[rows]
            yield replace(self, rows=self.rows[rows], factors=factors, distances=distances, given=given)

    def let_be_rough(self, *, by_originals: bool) -> None:
        """Has queries projected roughly where that only chooses documents, which originals score."""
        if by_originals and self.refine and self.mode == "two_stage":
            self.settings = self.settings.roughly()

    def by_terms(self, k: int) -> Asked:
        """The same for stage one alone, which finds the k best by the terms of each query."""
        return replace(
            self,
            k=k,
            candidates=max(k, self.candidates),
            refine=0,
            settings=self.settings._replace(mode="sparse"),
        )

    @cached_property
    def vectors(self) -> FloatArray:
        """(n_queries, d) the queries with unit norm; with symmetric scoring, their reconstructions."""
        if self.settings.scoring == "asymmetric":
            return normalize_rows(self.rows)
        return self.coder.model.decode(self._codes)

    @property
    def stage_one(self) -> FloatArray:
        """(n_queries, n_latents) projections, whose strongest entries find candidates.

        With `weights`, the last column is LISTED_SHARE of these: it belongs to the norms beside the codes.
        """
        return self._projections[0]

    @property
    def stage_two(self) -> FloatArray:
        """(n_queries, n_latents) projections that score whole codes, with a column of `weights`, if any."""
        return self._projections[1]

    @property
    def weights(self) -> FloatArray | None:
        """(n_queries, 1) of half the squared norms that are kept beside codes; None where none are."""
        return None if self.distances is None else self.distances.weights

    @property
    def is_damped(self) -> bool:
        """Whether the engine finds candidates by sums less a share of the squares of values.

        Sums by unread latents are then estimated, not left out. Sums that are answers stay what they are, and
        so do those over values that hold norms.
        """
        of_directions = self.factors is None or self.distances is not None
        return self.mode == "two_stage" and self.settings.damped and of_directions

    @property
    def mean_scores(self) -> FloatArray | None:
        """(n_queries, 1) the share of the model's mean in every score; None for zero."""
        return self._projections[2]

    @property
    def may_tie(self) -> bool:
        """Whether different sums may give the same score."""
        return self.distances is not None or self.mean_scores is not None

    def in_metric(self, sums: FloatArray) -> FloatArray:
        """Scores by the metric of sums over stored codes, (n_queries, c) both; larger is better.

        Squared distances are below 0, and may be above where codes lack some of a document; `Index` turns
        them.
        """
        mean_scores = self.mean_scores
        if self.distances is not None:
            return self.distances.of_sums(sums if mean_scores is None else sums + mean_scores)
        scores = self.times_factors(sums)
        return scores if mean_scores is None else scores + mean_scores

    def times_factors(self, sums: FloatArray) -> FloatArray:
        """What the normalised queries' products with vectors are or add in scores, (n_queries, c) both."""
        factors = self.factors if self.distances is None else self.distances.factors
        return sums if factors is None else sums * factors

    @cached_property
    def _codes(self) -> SparseCodes:
        """Folded codes of the queries."""
        coder, threads = self.coder, self.num_threads
        codes = coder.model.encode_unit(normalize_rows(self.rows), coder.k, coder.encoder, threads)
        return coder.model.fold(codes, num_threads=threads)

    @cached_property
    def _projections(self) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """`stage_one`, `stage_two` and `mean_scores`."""
        one, two, mean_scores = self._projected()
        if (weights := self.weights) is None:
            return one, two, mean_scores
        listed = np.concatenate([one, np.float32(LISTED_SHARE) * weights], axis=1)
        return listed, np.concatenate([two, weights], axis=1), mean_scores

    def _projected(self) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """The same without columns of weights."""
        model = self.coder.model
        if self.settings.scoring == "asymmetric":
            projected, mean_scores = model.seen(self.rows, self.num_threads, rough=self.settings.rough)
            return projected, projected, mean_scores
        terms = self._codes.to_dense()
        if self.mode == "sparse":
            return terms, terms, None
        return terms, *model.seen(self.vectors, self.num_threads, rough=self.settings.rough)


def check_candidates(candidates: int | None, k: int) -> int:
    """How many documents stage one hands to stage two; None for the default.

    Raises:
        InputError: they are fewer than k, the neighbours that are asked for.
    """
    if candidates is None:
        return max(CANDIDATES, k)
    candidates = check_int(candidates, "candidates", 1)
    if candidates < k:
        msg = f"candidates must be at least k = {k}, got {candidates}"
        raise InputError(msg)
    return candidates


def check_refine(refine: int | None, k: int, *, can_refine: bool) -> int:
    """How many documents the last stage scores again; None for the default, 0 for no such stage.

    Raises:
        InputError: they are fewer than k but not 0, or there is nothing to score by.
    """
    if refine is None:
        return max(REFINE, REFINE_PER_K * k) if can_refine else 0
    refine = check_int(refine, "refine", 0)
    if refine and not can_refine:
        msg = (
            f"refine is {refine}, but there is no stage that scores again: it needs an index built with "
            "residual_bits or originals, and mode 'two_stage' or 'dense'"
        )
        raise InputError(msg)
    if 0 < refine < k:
        msg = f"refine must be at least k = {k}, or 0, got {refine}"
        raise InputError(msg)
    return refine


def check_k(k: Any, n_documents: int, n_queries: int) -> int:
    """A number of neighbours; more than there are documents only as long as the answer stays small.

    Raises:
        InputError: with the value and the bound it breaks.
    """
    number = check_int(k, "k", 1, MAX_K)
    most = max(n_documents, MAX_PLACES // max(n_queries, 1))
    if n_queries and number > most:
        msg = (
            f"k must be at most {most} for {n_queries} queries of {n_documents} vectors, "
            f"as an answer has k places a query, got {number}"
        )
        raise InputError(msg)
    return number
