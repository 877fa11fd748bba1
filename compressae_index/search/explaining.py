"""How the parts of a document's code add up to its score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_threads, normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import without_lengths
from compressae_index.coding.metric import Metric, RowScale, row_norms
from compressae_index.coding.model import CompresSAE
from compressae_index.search.protocol import Documents
from compressae_index.sources.centred import less


class Explanation(NamedTuple):
    """How the parts of a document's code add up to its `dense` score, largest contribution first."""

    score: float
    """The score by the last stage: cosine, inner product or squared distance of the query and the document's
    reconstruction, or its original vector."""
    latents: npt.NDArray[np.int64]
    """(k,) the document's latents."""
    contributions: FloatArray
    """(k,) projection[latent] * value; with `mean`, `residual` and `bias`, they add up to the score. With
    metric "l2" they are below 0 where they bring the document nearer."""
    projections: FloatArray
    """(k,) the query's projection on each latent; of the normalised query for cosine."""
    values: FloatArray
    """(k,) the document's folded values."""
    mean: float = 0.0
    """The share of the model's mean in the score, which is the same for every document."""
    residual: float = 0.0
    """The share of the document's residual code, or of what its original vector adds to its code."""
    bias: float = 0.0
    """With metric "l2": the squared norms of query and document, from the model's center, from which nearness
    of directions takes away."""
    names: tuple[str, ...] = ()
    """(k,) names of the latents with the signs of their values, "" for none; empty for an index without
    `labels`."""


def explanation(
    documents: Documents,
    model: CompresSAE,
    metric: Metric,
    query: FloatArray,
    ids: IdArray,
    code: SparseCodes,
) -> Explanation:
    """How the code of one document adds up to its score.

    Args:
        documents: those that hold it.
        model: the model of their codes.
        metric: what scores are.
        query: (1, d), checked.
        ids: (1,) the document's.
        code: its code, as `Index.codes` gives it.
    """
    if metric == "l2":
        return _by_distance(documents, model, query, ids, code)
    projection, factors = model.project(query), RowScale(metric, 1.0).of_queries(query)
    if factors is not None:
        projection *= factors
    score = None
    if documents.refines or documents.residual_bits:
        vector = documents.vectors(ids, model)[0]
        factor = (documents.unit or 1.0) * (1.0 if factors is None else float(factors[0, 0]))
        score = factor * float(normalize_rows(query)[0] @ vector)
    return _summed(projection[0], code, model.mean_scores(query), score)


def _by_distance(
    documents: Documents, model: CompresSAE, query: FloatArray, ids: IdArray, code: SparseCodes
) -> Explanation:
    keeps_norms = code.n_latents > model.n_latents
    rows = less(query, model.center)
    square, length = float(np.square(rows.astype(np.float64)).sum()), row_norms(rows)[0]
    projection, mean_scores = model.seen(rows, check_threads(1))
    projection *= np.float32(-2 * length)
    if mean_scores is not None:
        mean_scores = mean_scores * np.float32(-2 * length)
    bias = square + (2 * float(code.values[0, -1]) if keeps_norms else 1.0)
    score = None
    if documents.refines or documents.residual_bits:
        vector = documents.vectors(ids, model)[0].astype(np.float64) * (documents.unit or 1.0)
        if keeps_norms and not documents.residual_bits:
            score = float(np.square(rows[0] - vector).sum())
        else:
            score = bias - 2 * float(rows[0].astype(np.float64) @ vector)
    return _summed(projection[0], without_lengths(code, model.n_latents), mean_scores, score, bias)


def _summed(
    projection: FloatArray,
    code: SparseCodes,
    mean_scores: FloatArray | None,
    score: float | None = None,
    bias: float = 0.0,
) -> Explanation:
    """The parts of a score.

    Args:
        projection: (n_latents,) of the query.
        code: one code.
        mean_scores: (1, 1) what the model's mean adds.
        score: the score of the last stage, of which the code, the mean and the bias leave the rest to the
            residual; None for no such stage.
        bias: what the norms of query and document add.
    """
    latents, values = code.latents[0].astype(np.int64), code.values[0]
    of_latents = projection[latents]
    contributions = of_latents * values
    order = np.argsort(-np.abs(contributions), kind="stable")
    mean = 0.0 if mean_scores is None else float(mean_scores[0, 0])
    by_code = float(contributions.sum(dtype=np.float64)) + mean + bias
    parts = latents[order], contributions[order], of_latents[order], values[order]
    if score is None:
        return Explanation(by_code, *parts, mean, bias=bias)
    return Explanation(score, *parts, mean, score - by_code, bias)
