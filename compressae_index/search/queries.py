"""Queries and answers as every index has them: modes, scorings, projections, results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import BoolArray, FloatArray, IdArray
from compressae_index.checks import check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.errors import InputError

Mode: TypeAlias = Literal["sparse", "dense", "two_stage"]
MODES: tuple[Mode, ...] = ("sparse", "dense", "two_stage")
Scoring: TypeAlias = Literal["asymmetric", "symmetric"]
SCORINGS: tuple[Scoring, ...] = ("asymmetric", "symmetric")

# Neighbours that one may ask for, and places of an answer where there are not as many documents.
MAX_K = 2**31 - 1
MAX_PLACES = 2**24
# Documents that stage one hands to stage two, where a call does not say.
CANDIDATES = 1000


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


class SearchResult(NamedTuple):
    """Neighbours of a batch of queries, best first."""

    scores: FloatArray
    """(n_queries, k) float32; -inf where fewer than k documents match."""
    ids: IdArray
    """(n_queries, k) int64, or str objects; -1, or None, where fewer than k documents match. A collection of
    Milvus may hold the id -1: the score of a document is never -inf."""


class Explanation(NamedTuple):
    """How the parts of a document's code add up to its `dense` score, largest contribution first."""

    score: float
    """Cosine, or inner product, of the query and the document's reconstruction."""
    latents: npt.NDArray[np.int64]
    """(k,) the document's latents."""
    contributions: FloatArray
    """(k,) projection[latent] * value; with `mean`, they add up to the score."""
    projections: FloatArray
    """(k,) the query's projection on each latent; of the normalised query for cosine."""
    values: FloatArray
    """(k,) the document's folded values."""
    mean: float = 0.0
    """What the model's mean adds to the score of every document."""


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


def projections(
    model: CompresSAE,
    queries: FloatArray,
    mode: str,
    scoring: Scoring,
    k: int,
    encoder: Encoder,
    num_threads: int,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """What stage one and stage two score checked queries (n_queries, d) with.

    Returns:
        Two arrays (n_queries, n_latents), and what the model's mean adds to all scores of a query:
        (n_queries, 1), or None for nothing.
    """
    if scoring == "asymmetric":
        u, mean_scores = model.seen(queries, num_threads)
        return u, u, mean_scores
    codes = model.encode(queries, k, encoder=encoder, num_threads=num_threads)
    codes = model.fold(codes, num_threads=num_threads)
    sparse_u = codes.to_dense()
    if mode == "sparse":
        return sparse_u, sparse_u, None
    decoded = model.decode(codes)
    return sparse_u, decoded @ model.decoder_w.T, model.mean_scores(decoded)


def explained(projection: FloatArray, code: SparseCodes, mean_scores: FloatArray | None) -> Explanation:
    """How one code adds up to its score by a query's projection (n_latents,), and what the mean adds."""
    latents, values = code.latents[0].astype(np.int64), code.values[0]
    of_latents = projection[latents]
    contributions = of_latents * values
    order = np.argsort(-np.abs(contributions), kind="stable")
    mean = 0.0 if mean_scores is None else float(mean_scores[0, 0])
    score = float(contributions.sum(dtype=np.float64)) + mean
    return Explanation(score, latents[order], contributions[order], of_latents[order], values[order], mean)


# Latents of a query that `sparse` search keeps where the posting lists hold all nonzeros.
QUERY_NNZ = 64


# Queries answered at a time: the codes of all their candidates are held at once.
QUERY_BLOCK = 16


class BackedResult(SearchResult):
    """Neighbours of a batch of queries, with what is known of their exactness."""

    certified: BoolArray
    """(n_queries,) whether the k best by the query's query_nnz terms are provably among the candidates: in
    mode "sparse", the result is then exact; in "two_stage", none of them was left out of the re-scoring."""

    def __new__(cls, scores: FloatArray, ids: IdArray, certified: BoolArray) -> BackedResult:
        """A pair of scores and ids that carries the certificate as an attribute."""
        result = super().__new__(cls, scores, ids)
        result.certified = certified
        return result

    def __getnewargs__(self) -> tuple[Any, ...]:
        return *self, self.certified


@dataclass(frozen=True)
class Asked:
    """A batch of checked queries, as stage one and stage two see them."""

    terms: SparseCodes
    """The query_nnz strongest latents of each query."""
    projections: FloatArray | None
    """(n_queries, n_latents) what stage two scores with; None where there is no stage two."""
    factors: FloatArray | None
    """(n_queries, 1) what turns scores into the metric's; None for cosine."""
    mean_scores: FloatArray | None
    """(n_queries, 1) what the model's mean adds to all scores; None for nothing."""

    def __len__(self) -> int:
        return len(self.terms)

    def block(self, first: int) -> Asked:
        """The QUERY_BLOCK queries from `first` on."""
        rows = slice(first, first + QUERY_BLOCK)
        others = (self.projections, self.factors, self.mean_scores)
        return Asked(self.terms[rows], *(None if each is None else each[rows] for each in others))

    def in_metric(self, sums: FloatArray) -> FloatArray:
        """Scores by the metric, of sums over codes: (n_queries, c) both."""
        scores = sums if self.factors is None else sums * self.factors
        return scores if self.mean_scores is None else scores + self.mean_scores
