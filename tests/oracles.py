"""Exact answers by slow, obvious numpy in float64, and comparisons with them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index import CompressedIndex, SparseCodes
from compressae_index._engine import InvertedLists
from compressae_index.arrays import FloatArray
from compressae_index.coding.metric import Metric
from compressae_index.embedded.sizes import WINDOW
from compressae_index.search.queries import Scoring

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def assert_best(
    result: Any,
    exact: Float64,
    k: int,
    ids: npt.NDArray[Any] | None = None,
    *,
    allowed: Mask | None = None,
    tolerance: float | Float64 = 1e-5,
) -> None:
    """Checks that a result holds the k best documents of every query, best first.

    Each score is that of its document, and the one that exact search has in its place, up to the tolerance.
    Of equal scores, the document that is first in `ids` comes first. No document comes twice. Where there are
    fewer than k documents, the other places have score -inf and id -1, or None among strings.

    Args:
        result: scores and ids, (n_queries, k) each.
        exact: the scores of all documents, (n_queries, n); -inf for documents that must not be found.
        k: neighbours that were asked for.
        ids: (n,) those of the documents; their rows by default.
        allowed: (n,) documents that may be found; all by default.
        tolerance: how far a score may be off: one number, or any shape that broadcasts to `exact`.
    """
    scores, found = result[0], result[1]
    ids = np.arange(exact.shape[1]) if ids is None else ids
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    missing = None if ids.dtype == object else -1
    exact = exact if allowed is None else np.where(allowed, exact, -np.inf)
    tolerance = np.broadcast_to(tolerance, exact.shape)
    assert scores.shape == found.shape == (len(exact), k)
    for q, (wanted, within) in enumerate(zip(exact, tolerance, strict=True)):
        n_found = min(k, int(np.isfinite(wanted).sum()))
        assert (scores[q, n_found:] == -np.inf).all()
        assert found[q, n_found:].tolist() == [missing] * (k - n_found)
        assert set(found[q, :n_found].tolist()) <= row_of.keys()
        rows = np.array([row_of[id_] for id_ in found[q, :n_found].tolist()], dtype=np.int64)
        given = scores[q, :n_found].astype(np.float64)
        assert len(set(rows.tolist())) == n_found
        assert (np.abs(given - wanted[rows]) <= within[rows]).all()
        assert (np.abs(given - -np.sort(-wanted)[:n_found]) <= within.max(initial=0)).all()
        assert np.lexsort((rows, -given)).tolist() == list(range(n_found))


def certified(result: Any) -> Mask:
    """The answers that claim to be exact, (n_queries,): all of a result without certificates."""
    marks: Mask = np.ones(len(result.ids), dtype=bool)
    return marks if result.certified is None else result.certified


def assert_certified_best(result: Any, exact: Float64, k: int, **options: Any) -> None:
    """`assert_best` for the certified answers of a result."""
    claimed = certified(result)
    assert_best((result.scores[claimed], result.ids[claimed]), exact[claimed], k, **options)


def assert_same(found: Any, expected: Any) -> None:
    """Checks that two results hold the same ids and, to the last bit, the same scores."""
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def assert_same_codes(found: SparseCodes, expected: SparseCodes) -> None:
    """Checks that two matrices of codes are equal to the last bit."""
    np.testing.assert_array_equal(found.latents, expected.latents)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.n_latents == expected.n_latents


def overlap(found: Any, true: Any) -> float:
    """Mean share of the true ids of a query that were found, as recall@k is."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))


def nearest(
    vectors: FloatArray, queries: FloatArray, k: int, metric: Metric = "cosine"
) -> npt.NDArray[np.int64]:
    """Rows of the k most similar vectors, ties to the lower row: (n_queries, k)."""
    a, b = (rows.astype(np.float64) for rows in (queries, vectors))
    if metric == "cosine":
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :k]


def strongest_entries(u: npt.NDArray[Any], query_nnz: int) -> Float64:
    """The query_nnz entries of largest magnitude of each row, ties to the lower latent; zero elsewhere."""
    kept = np.argsort(-np.abs(u), axis=1, kind="stable")[:, :query_nnz]
    cut = np.zeros(u.shape)
    np.put_along_axis(cut, kept, np.take_along_axis(u, kept, axis=1).astype(np.float64), axis=1)
    return cut


def dense_codes(index: CompressedIndex) -> Float64:
    """The codes of all documents in the order of `index.ids`: (n, n_latents)."""
    codes: Float64 = index.codes(index.ids).to_dense().astype(np.float64)
    return codes


def query_codes(index: CompressedIndex, queries: FloatArray) -> Float64:
    """Codes of queries, as symmetric scoring encodes them: (n_queries, n_latents)."""
    model = index.model
    return model.fold(model.encode(queries, index.k, encoder=index.encoder)).to_dense().astype(np.float64)


def query_terms(
    index: CompressedIndex, queries: FloatArray, query_nnz: int | None = None, scoring: Scoring = "asymmetric"
) -> Float64:
    """The strongest entries of each query's projection, or of its code where scoring is symmetric.

    Projections are those of the model, in 16 bits; a test of their own bounds how far from exact they are.
    """
    u = index.model.project(queries) if scoring == "asymmetric" else query_codes(index, queries)
    return strongest_entries(u, query_nnz or u.shape[1])


def term_scores(
    index: CompressedIndex, queries: FloatArray, query_nnz: int | None = None, scoring: Scoring = "asymmetric"
) -> Float64:
    """Scores of all documents by the terms of queries and the index's metric: (n_queries, n).

    Args:
        index: its codes, model and metric.
        queries: (n_queries, d).
        query_nnz: how many terms of a query count; all by default.
        scoring: symmetric scores are those of cosine indexes only.
    """
    scores: Float64 = query_terms(index, queries, query_nnz, scoring) @ dense_codes(index).T
    if scoring == "symmetric":
        assert index.metric == "cosine"
        return scores
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    if index.model.mean is not None:
        scores += queries / lengths @ mean_of(index)[:, None]
    return scores * lengths if index.metric == "inner_product" else scores


def list_rounding(
    index: CompressedIndex, queries: FloatArray, query_nnz: int | None = None, scoring: Scoring = "asymmetric"
) -> Float64:
    """How far rounding in the posting lists may move each of `term_scores`: (n_queries, n)."""
    codes = dense_codes(index)
    # A list's values are rounded to half a step of its largest magnitude / 127.
    step = np.abs(codes).max(axis=0) / 127 * 1.01
    terms = np.abs(query_terms(index, queries, query_nnz, scoring))
    rounding: Float64 = terms @ (step / 2 * (codes != 0)).T + 1e-5
    return rounding


def reconstructed_scores(
    index: CompressedIndex, queries: FloatArray, scoring: Scoring = "asymmetric"
) -> Float64:
    """Cosine scores of all documents, (n_queries, n): products with their reconstructions.

    By the dictionary alone, with neither the projections nor the mean's scores of the model.
    """
    dictionary, mean = index.model.decoder_w.astype(np.float64), mean_of(index)
    if scoring == "asymmetric":
        asked = queries / np.linalg.norm(queries, axis=1, keepdims=True).astype(np.float64)
    else:
        asked = mean + query_codes(index, queries) @ dictionary
    scores: Float64 = asked @ (mean + dense_codes(index) @ dictionary).T
    return scores


def mean_of(index: CompressedIndex) -> Float64:
    """The mean of the index's model, which has one: (d,)."""
    assert index.model.mean is not None
    return index.model.mean.astype(np.float64)


def stored_in_lists(lists: InvertedLists, n_latents: int) -> Float64:
    """The value of every posting, as the lists hold it: (n, n_latents)."""
    arrays, dense = lists.arrays(), np.zeros((lists.n_documents, n_latents))
    scales = arrays["scales"].view(np.float16).astype(np.float64)
    for j, start in enumerate(arrays["starts"][:-1].astype(np.int64)):
        for w, (begin, end) in enumerate(itertools.pairwise(start + arrays["offsets"][j].astype(np.int64))):
            rows = w * WINDOW + arrays["ids"][begin:end].astype(np.int64)
            dense[rows, j] = arrays["values"][begin:end] * scales[j, w]
    return dense


def bitmap(mask: Mask) -> npt.NDArray[np.uint8]:
    """A mask as the engine takes it: a bit a document, the lowest first."""
    return np.packbits(mask, bitorder="little")
