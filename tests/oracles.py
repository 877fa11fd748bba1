"""Exact answers by slow, obvious numpy in float64, and comparisons with them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index import CompressedIndex, SparseCodes
from compressae_index._engine import DAMPING, InvertedLists
from compressae_index.arrays import FloatArray
from compressae_index.coding.metric import Metric
from compressae_index.embedded.sizes import WINDOW
from compressae_index.search.queries import Scoring
from compressae_index.testing import (
    Float64,
    Mask,
    dense_codes,
    mean_of,
    query_codes,
    query_terms,
    strongest_entries,
)


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


def damping_of(u: npt.NDArray[Any], query_nnz: int) -> Float64:
    """The share of squares that candidates lose, (n_queries, 1), by what is not read of a query."""
    read = np.square(strongest_entries(u, query_nnz)).sum(axis=1, keepdims=True)
    unread = 1 - read / np.square(u.astype(np.float64)).sum(axis=1, keepdims=True)
    return np.where(unread > 1e-3, DAMPING * unread, 0.0)


def damped_sums(u: npt.NDArray[Any], query_nnz: int, values: Float64) -> Float64:
    """What ranks candidates, (n_queries, n), of values (n, n_latents): sums less a share of squares."""
    terms = strongest_entries(u, query_nnz)
    sums: Float64 = terms @ values.T - damping_of(u, query_nnz) * (terms != 0) @ np.square(values).T
    return sums


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
