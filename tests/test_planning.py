"""Budgets: the chosen settings fit them, and searches find what the estimate promises."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex, InputError, SparseCodes, TrainConfig
from compressae_index._engine import pack_rows
from compressae_index.arrays import FloatArray
from compressae_index.building import training
from compressae_index.building.estimation import estimate
from compressae_index.building.neighbourhoods import Neighbourhoods, neighbourhoods
from compressae_index.building.planning import RANKED
from compressae_index.demo import DemoData
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Packed, packed
from compressae_index.embedded.codecs.levels import usual_levels
from compressae_index.embedded.sizes import list_overhead
from compressae_index.embedded.thinning import above_threshold, strongest, thinned, threshold_for
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall
from compressae_index.training import TrainResult, train


def test_bytes_of_a_row_are_the_engines() -> None:
    for n_latents, k, bits in [(4096, 32, 6), (1, 1, 4), (65536, 255, 8), (300, 300, 5), (5000, 7, 4)]:
        latents = np.arange(k, dtype=np.uint16)[None]
        rows = pack_rows(latents, np.zeros((1, k), np.uint8), np.zeros(1, np.uint16), n_latents, bits, 1)
        assert rows.shape[1] == Packed(bits).row_bytes(n_latents, k)


def test_strongest_nonzeros() -> None:
    codes = SparseCodes(
        np.array([[1, 4, 6, 9], [0, 2, 3, 5]], np.uint16),
        np.array([[0.1, -3, 2, 0], [1, -1, 1, 1]], np.float32),
        10,
    )
    kept = strongest(codes, 2)
    np.testing.assert_array_equal(kept, np.array([[0, 1, 1, 0], [1, 1, 0, 0]], bool))
    listed = thinned(codes, kept)
    assert listed.latents is codes.latents
    assert listed.values.tolist() == [[0, -3, 2, 0], [1, -1, 0, 0]]
    assert strongest(codes, 4).all()


def test_one_threshold_for_all_codes(built: CompressedIndex) -> None:
    """By float64: what is above a share of its code's norm, or largest; on average as many as asked."""
    codes = built.codes(built.ids)
    values = np.abs(codes.values.astype(np.float64))
    exact = values / np.linalg.norm(values, axis=1, keepdims=True)
    for postings in (1, 3, 8, 15):
        threshold = threshold_for(codes, postings)
        kept = above_threshold(codes, threshold)
        counts = kept.sum(axis=1)
        assert counts.min() >= 1
        assert postings - 0.01 <= counts.mean() <= postings
        assert kept[np.arange(len(codes)), values.argmax(axis=1)].all()
        clear = np.abs(exact - threshold) > 1e-6
        others = np.arange(codes.k) != values.argmax(axis=1)[:, None]
        np.testing.assert_array_equal(kept[clear & others], (exact > threshold)[clear & others])
        # Long rows keep no more than short ones.
        scaled = codes.scaled(np.float32(2.0) ** np.arange(len(codes)).clip(0, 20).astype(np.float32))
        np.testing.assert_array_equal(above_threshold(scaled, threshold), kept)
        assert threshold_for(scaled, postings) == threshold
    assert counts.max() > counts.min()
    assert threshold_for(codes, codes.k) == 0
    assert above_threshold(codes, 0.0).all()


def test_a_threshold_of_codes_that_tie_or_are_empty() -> None:
    latents = np.tile(np.arange(4, dtype=np.uint16), (3, 1))
    ties = SparseCodes(latents, np.array([[1, -1, 1, 1]] * 3, np.float32), 4)
    assert above_threshold(ties, threshold_for(ties, 2)).sum(axis=1).tolist() == [1, 1, 1]
    zeros = SparseCodes(latents, np.array([[0, 0, 0, 0], [3, 1, 0, 0], [1, 2, 0, 0]], np.float32), 4)
    kept = above_threshold(zeros, threshold_for(zeros, 2))
    np.testing.assert_array_equal(kept, np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], bool))


def test_lists_of_nonzeros_above_a_threshold(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    """The kept nonzeros find candidates; scores are by all of them."""
    index = CompressedIndex.build(vectors[:1500], model=model, k=16, postings=4, progress=False)
    codes = index.codes(index.ids)
    kept = above_threshold(codes, threshold_for(codes, 4))
    stored = thinned(codes, kept).to_dense()
    lengths = np.bincount(codes.latents[kept], minlength=model.n_latents)
    np.testing.assert_array_equal(index.documents.backend.list_lengths(), lengths)
    projections = model.project(queries)
    result = index.search(queries, 20, mode="sparse", query_nnz=model.n_latents)
    mean_scores = model.mean_scores(queries)
    assert mean_scores is not None
    whole = projections @ index.codes(index.ids).to_dense().T + mean_scores
    found = result.ids.astype(np.int64)
    np.testing.assert_allclose(result.scores, np.take_along_axis(whole, found, axis=1), atol=1e-5)
    # Documents that the kept nonzeros rank first are found; rounding may cost only the last candidates.
    first = np.argsort(-(projections @ stored.T), axis=1)[:, :10]
    assert (result.scores[:, 0] >= np.take_along_axis(whole, first, axis=1).max(axis=1) - 1e-5).all()
    best = -np.sort(-whole, axis=1)[:, :20]
    np.testing.assert_allclose(index.search(queries, 20, mode="dense").scores, best, atol=1e-4)
    # Queries keep more latents in return, so that as many postings are touched.
    full = CompressedIndex.build(vectors[:1500], model=model, k=16, progress=False)
    assert EmbeddedBackend(model.n_latents, 16, postings=4).query_nnz == 256
    assert index.stats().postings == 4
    size, whole_size = index.stats().bytes_per_vector, full.stats().bytes_per_vector
    assert whole_size["inverted"] - size["inverted"] == pytest.approx(3 * (~kept).sum() / 1500)


def test_postings_survive_saving_and_changes(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Any
) -> None:
    index = CompressedIndex.build(vectors[:500], model=model, k=16, postings=5, progress=False)
    index.save(tmp_path / "index")
    again = CompressedIndex.load(tmp_path / "index", mmap=True)
    threshold = index.documents.backend.threshold
    assert threshold == threshold_for(index.codes(index.ids), 5)
    for each in (index, again):
        each.add(vectors[500:600])
        each.upsert(vectors[600:610], np.arange(10, 20))
        each.remove(np.arange(0, 600, 3))
        each.compact()
        backend, codes = each.documents.backend, each.codes(each.ids)
        assert (backend.postings, backend.threshold, each.stats().postings) == (5, threshold, 5)
        lengths = np.bincount(codes.latents[above_threshold(codes, threshold)], minlength=model.n_latents)
        np.testing.assert_array_equal(backend.list_lengths(), lengths)
    np.testing.assert_array_equal(index.search(queries, 9).ids, again.search(queries, 9).ids)
    with pytest.raises(InputError, match="postings must be at most k = 16, got 17"):
        CompressedIndex.build(vectors[:500], model=model, k=16, postings=17, progress=False)


def recall_of_rows(index: CompressedIndex, near: Neighbourhoods, **options: Any) -> float:
    """recall@10 of searches for the rows of neighbourhoods, which do not count themselves."""
    found = index.search(near.queries, 11, **options).ids
    others = np.stack([ids[ids != row][:10] for ids, row in zip(found, near.rows, strict=True)])
    return recall(others, near.nearest[:, :10], 10)


@pytest.mark.parametrize("budget", [40, pytest.param(100, marks=pytest.mark.slow), 200])
def test_a_budget_is_kept_and_recall_is_as_expected(
    budget: int, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Levels that are learned of the rows of a plan are not quite those of all rows, which changes the order
    # of neighbours that are equally near.
    monkeypatch.setattr(packed, "learn_levels", lambda _, value_bits: usual_levels(value_bits))
    index = CompressedIndex.build(vectors, model=model, bytes_per_vector=budget, progress=False)
    plan, stats = index.plan, index.stats()
    assert plan is not None
    assert budget - 3 < plan.bytes_per_vector <= budget
    # Besides rows and lists, an index holds one codebook.
    codebook = 4 * 2 ** (plan.value_bits - 1) / len(vectors)
    total = stats.bytes_per_vector["total"] - codebook
    assert plan.bytes_per_vector - 0.02 < total < plan.bytes_per_vector + 1e-6  # ties leave lists together
    assert (stats.k, stats.postings) == (plan.k, plan.postings)
    # What the plan expects is what searches find for the rows that it was made by.
    near = neighbourhoods(vectors, "cosine").of_queries(RANKED)
    ours = (
        recall_of_rows(index, near, candidates=3000, query_nnz=256),
        recall_of_rows(index, near, mode="dense"),
    )
    assert ours == pytest.approx((plan.recall, plan.dense_recall), abs=0.002)


def test_a_plain_build_is_good(vectors: FloatArray, demo_data: DemoData) -> None:
    index = CompressedIndex.build(vectors, progress=False)
    overhead = list_overhead(index.model.n_latents, len(vectors))
    assert index.stats().bytes_per_vector["total"] <= 200 + overhead + 0.1
    assert index.plan is not None
    assert index.plan.residual_bits > 0
    queries = demo_data.queries[:300]
    assert recall(index.search(queries, 10).ids, exact_neighbours(vectors, queries, 10), 10) > 0.95


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans rank a third of the neighbourhoods: each has to be encoded anew for most numbers of nonzeros."""
    monkeypatch.setattr("compressae_index.building.planning.RANKED", 20)


@pytest.mark.slow
def test_a_small_budget_takes_nonzeros_in_place_of_few_residual_bits(
    model: CompresSAE, vectors: FloatArray, demo_data: DemoData
) -> None:
    """At 96 bytes of 384 dimensions one bit of residuals leaves room for few nonzeros, and finds less."""
    truth = exact_neighbours(vectors, demo_data.queries, 10)
    index = CompressedIndex.build(vectors, model=model, bytes_per_vector=96, progress=False)
    assert index.plan is not None
    assert (index.plan.residual_bits, index.plan.k > 32) == (0, True)
    other = CompressedIndex.build(
        vectors, model=model, k=14, value_bits=4, postings=4, residual_bits=1, progress=False
    )
    assert other.stats().bytes_per_vector["total"] > 80
    ours, theirs = (
        recall(each.search(demo_data.queries, 10, mode="dense").ids, truth, 10) for each in (index, other)
    )
    assert ours > theirs


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_a_larger_budget_expects_more(model: CompresSAE, vectors: FloatArray) -> None:
    plans = [
        CompressedIndex.build(vectors[:2000], model=model, bytes_per_vector=b, progress=False).plan
        for b in (32, 64, 128)
    ]
    recalls = [plan.recall for plan in plans if plan is not None]
    assert len(recalls) == 3
    assert recalls == sorted(recalls)


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_a_budget_chooses_the_number_of_latents_and_counts_the_dictionary(
    vectors: FloatArray, demo_data: DemoData
) -> None:
    """1,000 latents, the most for 2,000 vectors, would take 194 bytes of each."""
    rows = vectors[:2000]
    index = CompressedIndex.build(rows, bytes_per_vector=96, progress=False)
    plan, stats = index.plan, index.stats()
    assert plan is not None
    assert plan.n_latents == stats.n_latents < 512
    assert 90 < plan.bytes_per_vector <= 96
    held = 2000 * stats.bytes_per_vector["total"] + stats.model_bytes
    beside = 4 * 384 + 128  # a mean, a codebook
    assert held == pytest.approx(2000 * plan.bytes_per_vector, abs=beside)
    truth = exact_neighbours(rows, demo_data.queries, 10)
    other = CompressedIndex.build(rows, n_latents=512, bytes_per_vector=120, progress=False)
    ours, theirs = (
        recall(each.search(demo_data.queries, 10, mode="dense").ids, truth, 10) for each in (index, other)
    )
    assert ours > theirs
    with pytest.raises(InputError, match=r"a dictionary to train take 2\d\d"):
        CompressedIndex.build(rows, n_latents=1000, bytes_per_vector=96, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_short_rounds_leave_enough_rows_to_start_large_dictionaries_from(vectors: FloatArray) -> None:
    config = TrainConfig(refine_rounds=2, steps=0, round_rows=8, k=4)
    index = CompressedIndex.build(
        vectors[:2000], config=config, bytes_per_vector=300, originals="float16", progress=False
    )
    assert index.plan is not None
    assert index.plan.n_latents == index.model.n_latents


@pytest.mark.usefixtures("few_queries")
def test_a_target_recall_weighs_the_number_of_latents(vectors: FloatArray) -> None:
    """500 latents, the most for 1,000 vectors, would take 194 bytes of each."""
    index = CompressedIndex.build(vectors[:1000], target_recall=0.9, originals="float16", progress=False)
    assert index.plan is not None
    assert index.plan.recall >= 0.9
    assert index.plan.bytes_per_vector < 128
    assert index.model.n_latents < 256


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_a_target_recall_is_reached_with_few_bytes(model: CompresSAE, vectors: FloatArray) -> None:
    plans = []
    for target in (0.5, 0.75):
        plan = CompressedIndex.build(vectors[:1000], model=model, target_recall=target, progress=False).plan
        assert plan is not None
        assert plan.recall >= target
        plans.append(plan)
    assert plans[0].bytes_per_vector < plans[1].bytes_per_vector


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_a_target_recall_out_of_reach(model: CompresSAE, vectors: FloatArray) -> None:
    with pytest.raises(InputError, match=r"target_recall = 0.9999 is out of reach: ") as error:
        CompressedIndex.build(vectors[:600], model=model, target_recall=0.9999, progress=False)
    found = re.search(r"(\d+) bytes a vector reach (0\.\d+)", str(error.value))
    assert found is not None
    size, recall = int(found[1]), float(found[2])
    plan = CompressedIndex.build(vectors[:600], model=model, bytes_per_vector=size, progress=False).plan
    assert plan is not None
    assert plan.recall == pytest.approx(recall, abs=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bytes_per_vector": 3}, "bytes_per_vector = 3 holds no code: posting lists, ids and a dictionary"),
        ({"bytes_per_vector": -1}, "bytes_per_vector must be positive and finite, got -1"),
        ({"bytes_per_vector": np.nan}, "bytes_per_vector must be positive and finite, got nan"),
        ({"target_recall": 1.5}, "target_recall must be between 0 and 1, got 1.5"),
        ({"target_recall": 0.5, "bytes_per_vector": 64}, "not both"),
        ({"bytes_per_vector": 64, "k": 16}, "k = 16 cannot be given with a budget"),
        ({"bytes_per_vector": 64, "value_bits": 5}, "value_bits = 5 cannot be given with a budget"),
        ({"bytes_per_vector": 64, "postings": 5}, "postings = 5 cannot be given with a budget"),
        ({"bytes_per_vector": 64, "forward": "aligned"}, "'aligned' cannot be given with a budget"),
    ],
)
def test_bad_budgets(options: dict[str, Any], message: str, model: CompresSAE, vectors: FloatArray) -> None:
    with pytest.raises(InputError, match=message):
        CompressedIndex.build(vectors[:300], model=model, progress=False, **options)


def test_an_estimate_is_what_a_build_gives(vectors: FloatArray) -> None:
    result = estimate(vectors[:2000], k=8, n_latents=128, value_bits=5, postings=4)
    index = CompressedIndex.build(
        vectors[:2000], k=8, n_latents=128, value_bits=5, postings=4, progress=False
    )
    stats = index.stats()
    assert (result.vectors, result.dim, result.n_latents) == (2000, 384, 128)
    assert result.index_bytes == pytest.approx(2000 * stats.bytes_per_vector["total"], rel=0.01)
    assert result.model_bytes == stats.model_bytes
    assert (result.plan.k, result.plan.value_bits, result.plan.postings) == (8, 5, 4)
    assert 0 < result.plan.recall <= result.plan.dense_recall + 0.02
    assert result.train_seconds > 0
    planned = estimate(vectors[:2000], n_latents=128, bytes_per_vector=48)
    assert planned.plan.bytes_per_vector <= 48


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"k": 8}, 128),
        ({"bytes_per_vector": 60, "n_latents": None}, 128),
        ({"k": 8, "n_latents": 32}, 64),
        ({"k": 8, "residual_bits": 2}, 64),
        ({"originals": "float16"}, 64),
        ({}, 64),
        ({"k": 8, "config": TrainConfig(steps=0, refine_rounds=5)}, 5),
    ],
    ids=str,
)
def test_many_latents_learn_longer_where_codes_alone_give_scores(
    options: dict[str, Any], rounds: int, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MODEST_LATENTS", 32)
    asked: list[int] = []

    def briefly(rows: FloatArray, config: TrainConfig, **how: Any) -> TrainResult:
        asked.append(config.refine_rounds)
        return train(rows, replace(config, refine_rounds=2), **how)

    monkeypatch.setattr(training, "train", briefly)
    index = CompressedIndex.build(vectors[:1000], progress=False, **{"n_latents": 128, **options})
    assert asked[-1] == rounds
    assert (index.model.n_latents > 32) == (options.get("n_latents") != 32)
