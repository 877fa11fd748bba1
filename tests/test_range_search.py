"""Range search against float64 brute force, and against searches for all documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import reconstructed_scores

from compressae_index import CompresSAE, CompressedIndex, InputError
from compressae_index.arrays import FloatArray
from compressae_index.search import ranges
from compressae_index.search.queries import SCORINGS, Scoring
from compressae_index.testing import assert_in_range, names, term_scores

N = 1500


def assert_is_top_of(result: ranges.RangeResult, whole: Any, radius: float) -> None:
    """Checks that a range holds, to the last bit, the part of a search for all documents above the radius."""
    inside = whole.scores > np.float32(radius)
    assert result.lims.dtype == np.int64
    assert np.diff(result.lims).tolist() == inside.sum(axis=1).tolist()
    np.testing.assert_array_equal(result.scores, whole.scores[inside])
    np.testing.assert_array_equal(result.ids, whole.ids[inside])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_dense_gives_all_above_the_radius(
    built: CompressedIndex, queries: FloatArray, scoring: Scoring
) -> None:
    exact = reconstructed_scores(built, queries, scoring)
    whole = built.search(queries, len(built), mode="dense", scoring=scoring)
    for share in (0.5, 0.01, 0.0003):
        inside = round(share * exact.size)
        # Between two scores, so that the count is certain.
        radius = float(np.partition(exact.ravel(), [-inside - 1, -inside])[[-inside - 1, -inside]].mean())
        result = built.range_search(queries, radius, mode="dense", scoring=scoring)
        assert len(result.scores) == pytest.approx(inside, rel=0.01)
        assert_in_range(result, exact, radius)
        assert_is_top_of(result, whole, radius)


def test_ranges_as_large_as_what_is_searched_for_first(built: CompressedIndex, queries: FloatArray) -> None:
    whole = built.search(queries[0], len(built), mode="dense")
    for place in (ranges.FIRST - 1, ranges.FIRST, ranges.GROWTH * ranges.FIRST):
        radius = float(whole.scores[0, place])  # is not above itself
        result = built.range_search(queries[0], radius, mode="dense")
        assert result.lims.tolist() == [0, place]
        assert_is_top_of(result, whole, radius)


@pytest.mark.parametrize("kept", [{"residual_bits": 3}, {"originals": "float16"}], ids=str)
def test_dense_scores_all_by_the_last_stage(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, kept: dict[str, Any]
) -> None:
    index = CompressedIndex.build(vectors[:N], model=model, k=4, progress=False, **kept)
    whole = index.search(queries, N, mode="dense")
    radius = float(np.quantile(whole.scores, 0.98))
    result = index.range_search(queries, radius, mode="dense")
    assert_is_top_of(result, whole, radius)
    if "originals" in kept:
        stored = vectors[:N].astype(np.float16).astype(np.float64)
        unit = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
        assert_in_range(result, unit @ stored.T / np.linalg.norm(stored, axis=1), radius)
    by_codes = index.range_search(queries, radius, mode="dense", refine=0)
    assert_is_top_of(by_codes, index.search(queries, N, mode="dense", refine=0), radius)
    some = index.range_search(queries, radius, mode="dense", refine=40)
    assert_is_top_of(some, index.search(queries, 40, mode="dense", refine=40), radius)
    # Codes of 4 nonzeros are far off, so that many in the range have a lower score by their code.
    two_stage = index.range_search(queries, radius)
    assert 0.9 < len(two_stage.scores) / len(result.scores) <= 1


def test_two_stage_gives_nearly_all(built: CompressedIndex, queries: FloatArray) -> None:
    exact = reconstructed_scores(built, queries)
    radius = float(np.quantile(exact, 0.96))
    result, dense = (built.range_search(queries, radius, mode=mode) for mode in ("two_stage", "dense"))
    given = set(zip(np.repeat(range(50), np.diff(result.lims)), result.ids.tolist(), strict=True))
    true = set(zip(np.repeat(range(50), np.diff(dense.lims)), dense.ids.tolist(), strict=True))
    assert given <= true
    assert len(given) > 0.97 * len(true)
    limited = built.range_search(queries, radius, candidates=100, query_nnz=64)
    assert_is_top_of(limited, built.search(queries, 100, candidates=100, query_nnz=64), radius)


def test_sparse_compares_sums_over_terms(built: CompressedIndex, queries: FloatArray) -> None:
    exact = term_scores(built, queries, 64)
    radius = float(np.quantile(exact, 0.99))
    result = built.range_search(queries, radius, mode="sparse", query_nnz=64)
    whole = built.search(queries, len(built), mode="sparse", query_nnz=64)
    assert_is_top_of(result, whole, radius)
    assert_in_range(result, exact, radius)


def test_inner_products(uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    lengths = np.random.default_rng(0).uniform(50, 200, (N, 1)).astype(np.float32)
    index = CompressedIndex.build(
        vectors[:N] * lengths, model=uncentred_model, k=16, metric="inner_product", progress=False
    )
    exact = term_scores(index, queries * 3)
    radius = float(np.quantile(exact, 0.97))
    assert radius > 10
    result = index.range_search(queries * 3, radius, mode="dense")
    assert_in_range(result, exact, radius, tolerance=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("ids", [None, names(N)], ids=["rows", "names"])
def test_filters_and_ids(model: CompresSAE, vectors: FloatArray, queries: FloatArray, ids: Any) -> None:
    index = CompressedIndex.build(vectors[:N], ids, model=model, k=16, progress=False)
    mask = np.random.default_rng(1).random(N) < 0.3
    exact = np.where(mask, reconstructed_scores(index, queries), -np.inf)
    radius = float(np.quantile(exact[:, mask], 0.7))
    for wanted in (mask, index.ids[mask]):
        result = index.range_search(queries, radius, mode="dense", filter=wanted)
        assert_in_range(result, exact, radius, index.ids)
    assert not len(index.range_search(queries, -np.inf, filter=index.ids[:0]).ids)


@pytest.mark.parametrize("mode", ["sparse", "dense", "two_stage"])
def test_all_and_nothing(index: CompressedIndex, queries: FloatArray, mode: str) -> None:
    # A query of all latents, so that posting lists find every document.
    lims, scores, ids = index.range_search(queries[:3], -np.inf, mode=mode, query_nnz=512)
    assert lims.tolist() == [0, 300, 600, 900]
    assert sorted(ids[300:600].tolist()) == index.ids.tolist()
    assert scores.dtype == np.float32
    for radius in (np.inf, 1e300, 2):
        assert index.range_search(queries[:3], radius, mode=mode).lims.tolist() == [0, 0, 0, 0]
    assert index.range_search(queries[:0], 0.5, mode=mode).lims.tolist() == [0]
    assert index.range_search(queries[0], 0.9, mode=mode).lims.shape == (2,)
    index.remove(index.ids)
    assert index.range_search(queries[:2], -np.inf, mode=mode).lims.tolist() == [0, 0, 0]


def test_few_places_at_a_time_change_nothing(
    built: CompressedIndex, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = built.range_search(queries, 0.3)
    monkeypatch.setattr(ranges, "PLACES", 200)
    for given, wanted in zip(built.range_search(queries, 0.3), expected, strict=True):
        np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize(
    ("radius", "options", "message"),
    [
        (np.nan, {}, "radius must be a number, got NaN"),
        ("0.5", {}, "radius must be a number, got '0.5'"),
        (0.5, {"candidates": 0}, "candidates must be at least 1"),
        (0.5, {"refine": 10}, "there is no stage that scores again"),
        (0.5, {"filter": [10**6]}, "unknown id 1000000"),
    ],
)
def test_mistakes(
    built: CompressedIndex, queries: FloatArray, radius: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        built.range_search(queries, radius, **options)
