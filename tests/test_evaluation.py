"""Measuring: exact search and recall are exact, and measurements are those of the index's own searches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from oracles import nearest

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.measuring.evaluation import (
    Measurement,
    as_table,
    evaluate,
    evaluate_frontier,
    measure,
    sweep,
)
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.rivals import evaluate_exact, evaluate_pq, evaluate_quantisers
from compressae_index.search.recall import recall


def rows_that_tie(n: int, dim: int, seed: int) -> FloatArray:
    """Rows of one or of four entries of 1 or -1, times powers of two: their cosines are exact, and repeat."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, dim), dtype=np.float32)
    for row in rows:
        places = rng.permutation(dim)[: rng.choice([1, 4])]
        row[places] = rng.choice([-1, 1], len(places)) * 2.0 ** rng.integers(-3, 4)
    return rows


@pytest.mark.parametrize("chunk_rows", [1, 16, 77, 1000])
def test_exact_neighbours_with_ties(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setattr("compressae_index.measuring.exact.CHUNK_ROWS", chunk_rows)
    vectors, queries = rows_that_tie(200, 8, 0), rows_that_tie(20, 8, 1)
    for k in (1, 7, 50, 199, 200):
        found = exact_neighbours(vectors, queries, k)
        np.testing.assert_array_equal(found, nearest(vectors, queries, k))


def test_exact_neighbours_of_real_vectors(vectors: FloatArray, queries: FloatArray) -> None:
    found, expected = exact_neighbours(vectors, queries, 100), nearest(vectors, queries, 100)
    scores = normalize_rows(queries).astype(np.float64) @ normalize_rows(vectors).astype(np.float64).T
    np.testing.assert_allclose(
        np.take_along_axis(scores, found, axis=1), np.take_along_axis(scores, expected, axis=1), atol=1e-6
    )
    assert recall(found, expected, 100) > 0.999


def test_exact_neighbours_of_bad_input(vectors: FloatArray, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="k must be at most vectors = 10, got 11"):
        exact_neighbours(vectors[:10], queries, 11)
    with pytest.raises(DimensionError, match="dimension 384, expected 383"):
        exact_neighbours(vectors[:10], queries[:, :-1], 1)


def test_recall_of_hand_made_cases() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth, truth, 4) == 1
    assert recall(truth[:, ::-1], truth, 4) == 1
    assert recall(truth[:, ::-1], truth, 2) == 0
    assert recall(np.array([[2, 9, 1], [-1, -1, 5]]), truth, 3) == 3 / 6
    assert recall(np.array([[2, 9, 1], [-1, -1, 5]]), truth, 2) == 1 / 4
    names = np.array([["a", "b"], ["c", "d"]], dtype=object)
    assert recall(names, np.array([["b", "x"], ["y", "z"]], dtype=object), 2) == 1 / 4
    for found in (truth[:1], truth[:, :2]):
        with pytest.raises(DimensionError, match=r"recall@3 needs .* got \(\d, \d\) and \(2, 4\)"):
            recall(found, truth, 3)


@pytest.mark.parametrize("strings", [False, True])
def test_measured_modes(model: CompresSAE, vectors: FloatArray, queries: FloatArray, strings: bool) -> None:
    ids = np.array([f"id {i}" for i in range(1000)], dtype=object) if strings else np.arange(1000) * 3
    index = CompressedIndex.build(vectors[:1000], ids, model=model, k=16, progress=False)
    truth = ids[exact_neighbours(vectors[:1000], queries, 20)]
    measured = evaluate(index, queries, truth, ks=(20, 5), candidates=50, query_nnz=8)
    assert [each.name for each in measured] == ["sparse", "dense", "two_stage"]
    for each in measured:
        assert each.bytes_per_vector == index.stats().bytes_by_mode[each.name]
        assert list(each.recall) == [5, 20]
        assert each.ms_per_query > 0
        found = index.search(queries, 20, mode=each.name, candidates=50, query_nnz=8).ids
        assert each.recall == {k: recall(found, truth, k) for k in (5, 20)}
    sparse, dense, two_stage = (each.recall[20] for each in measured)
    assert 0.3 < sparse < two_stage <= dense + 0.02 < 1
    (symmetric, *_) = evaluate(index, queries, truth, ks=[20], scoring="symmetric")
    assert symmetric.name == "sparse (symmetric)"
    assert 0.1 < symmetric.recall[20] < 1


def test_baselines(vectors: FloatArray, queries: FloatArray) -> None:
    few, truth = vectors[:600], exact_neighbours(vectors[:600], queries, 10)
    exact = evaluate_exact(few, queries, truth, ks=[10])
    assert (exact.name, exact.bytes_per_vector, exact.recall) == ("exact float32", 4 * 384, {10: 1.0})
    recalls = []
    for given, taken in ((0.5, 1), (7.9, 6), (13.2, 12)):
        product = evaluate_pq(few, queries, truth, given, ks=[10])
        assert (product.name, product.bytes_per_vector) == (f"Faiss PQ{taken}x8", taken)
        recalls.append(product.recall[10])
    assert 0 < recalls[0] < recalls[1] < recalls[2] < 1
    with pytest.raises(InputError, match="needs at least 256 vectors, got 255"):
        evaluate_pq(few[:255], queries, truth, 8, ks=[10])


def test_sweeps_are_searches_with_these_options(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:900], model=model, k=8, progress=False)
    truth = exact_neighbours(vectors[:900], queries, 20)
    sparse, two_stage = sweep(index, queries, truth, ks=[20], query_nnz=5)
    assert (sparse.mode, sparse.option, two_stage.mode, two_stage.option) == (
        *("sparse", "query_nnz"),
        *("two_stage", "candidates"),
    )
    # At most all latents, and at most all documents as candidates.
    assert list(sparse.measurements) == [8, 16, 32, 64, 128, 256]
    assert list(two_stage.measurements) == [100, 300]
    for nnz, one in sparse.measurements.items():
        found = index.search(queries, 20, mode="sparse", query_nnz=nnz).ids
        assert (one.name, one.recall) == (f"sparse, query_nnz={nnz}", {20: recall(found, truth, 20)})
    for candidates, one in two_stage.measurements.items():
        found = index.search(queries, 20, candidates=candidates, query_nnz=5).ids
        assert (one.name, one.recall) == (
            f"two_stage, candidates={candidates}",
            {20: recall(found, truth, 20)},
        )
    assert len({one.recall[20] for one in sparse.measurements.values()}) > 3


def test_the_last_stage_and_the_frontier_are_measured(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
    index = CompressedIndex.build(vectors[:900], model=model, k=8, residual_bits=2, progress=False)
    truth = exact_neighbours(vectors[:900], queries, 20)
    refined = sweep(index, queries, truth, ks=[20])[-1]
    assert (refined.mode, refined.option) == ("two_stage", "refine")
    assert list(refined.measurements) == [0, 100, 200, 400, 800]
    for refine, one in refined.measurements.items():
        found = index.search(queries, 20, refine=refine).ids
        assert one.recall == {20: recall(found, truth, 20)}
    assert refined.measurements[0].recall[20] < refined.measurements[100].recall[20]
    assert index.frontier is not None
    reached = evaluate_frontier(index, queries, truth)
    assert [each.point for each in reached] == list(index.frontier.points)
    for point, one in reached:
        candidates, query_nnz, refine, *_ = point
        found = index.search(queries, 10, candidates=candidates, query_nnz=query_nnz, refine=refine).ids
        assert one.recall == {10: recall(found, truth, 10)}
        # What was expected is the recall of 200 rows of the index.
        assert one.recall[10] == pytest.approx(point.recall, abs=0.06)
    plain = CompressedIndex.build(vectors[:90], model=model, k=8, progress=False)
    assert evaluate_frontier(plain, queries, exact_neighbours(vectors[:90], queries, 10)) == []


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_quantisers(vectors: FloatArray, queries: FloatArray, metric: Metric) -> None:
    scale = np.random.default_rng(0).uniform(0.3, 3, (300, 1)).astype(np.float32)
    rows = vectors[:300] * scale
    truth = exact_neighbours(rows, queries, 10, metric=metric)
    measured = evaluate_quantisers(rows, queries, truth, [13, 60, 13.9, 60.5], ks=[10], metric=metric)
    names = {family: [one.name.removeprefix("Faiss ") for one in ones] for family, ones in measured.items()}
    assert names == {
        "Faiss SQ": ["SQ8", "SQfp16"],
        "Faiss PQ": ["PQ12x8", "PQ48x8"],
        "Faiss RaBitQ": ["RaBitQ1"],
    }
    sizes = {family: [one.bytes_per_vector for one in ones] for family, ones in measured.items()}
    assert sizes == {"Faiss SQ": [384, 768], "Faiss PQ": [12, 48], "Faiss RaBitQ": [56]}
    shares = {family: [one.recall[10] for one in ones] for family, ones in measured.items()}
    assert 0.2 < shares["Faiss PQ"][0] < shares["Faiss PQ"][1] < shares["Faiss SQ"][0]
    assert 0.4 < shares["Faiss RaBitQ"][0] < shares["Faiss SQ"][0]
    halves = (normalize_rows(rows) if metric == "cosine" else rows).astype(np.float16).astype(np.float32)
    oracle = exact_neighbours(halves, queries, 10, metric="inner_product")
    assert shares["Faiss SQ"][1] == pytest.approx(recall(oracle, truth, 10), abs=0.004)
    with pytest.raises(InputError, match="needs at least 256 vectors, got 255"):
        evaluate_quantisers(rows[:255], queries, truth, [60], ks=[10])


def test_each_query_is_asked_once_together_and_once_alone(queries: FloatArray) -> None:
    asked = []

    def search(rows: FloatArray, k: int) -> npt.NDArray[np.int64]:
        asked.append((len(rows), k))
        return np.tile(np.arange(k), (len(rows), 1))

    result = measure("mine", 3.0, search, queries, np.tile(np.arange(4), (50, 1)), [4, 2])
    assert asked == [(50, 4)] + 50 * [(1, 4)]
    assert (result.name, result.bytes_per_vector, result.recall) == ("mine", 3, {2: 1, 4: 1})


def test_table() -> None:
    rows = [
        Measurement("exact", 1536.0, {10: 1.0, 100: 1.0}, 12.345),
        Measurement("b", 98.7, {10: 0.5, 100: 0}, 0),
    ]
    assert as_table(rows).splitlines() == [
        "| search | recall@10 | recall@100 | bytes/vector | ms/query |",
        "| ------ | --------: | ---------: | -----------: | -------: |",
        "| exact  |     1.000 |      1.000 |         1536 |    12.35 |",
        "| b      |     0.500 |      0.000 |           99 |     0.00 |",
    ]
