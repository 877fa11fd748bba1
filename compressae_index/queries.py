"""Queries and answers as every index has them: modes, scorings, projections, results."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.checks import FloatArray, check_int
from compressae_index.codes import SparseCodes
from compressae_index.errors import InputError
from compressae_index.ids import IdArray
from compressae_index.model import CompresSAE, Encoder

Mode: TypeAlias = Literal["sparse", "dense", "two_stage"]
MODES: tuple[Mode, ...] = ("sparse", "dense", "two_stage")
Scoring: TypeAlias = Literal["asymmetric", "symmetric"]
SCORINGS: tuple[Scoring, ...] = ("asymmetric", "symmetric")

# Neighbours that one may ask for, and places of an answer where there are not as many documents.
MAX_K = 2**31 - 1
MAX_PLACES = 2**24


class SearchResult(NamedTuple):
    """Neighbours of a batch of queries, best first."""

    scores: FloatArray
    """(n_queries, k) float32; -inf where fewer than k documents match."""
    ids: IdArray
    """(n_queries, k) int64, or str objects; -1, or None, where fewer than k documents match."""


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
    if number > most:
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
