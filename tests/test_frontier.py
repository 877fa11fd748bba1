"""Settings that reach a recall: what a build measures, and what a search makes of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import assert_same

from compressae_index import CompresSAE, CompressedIndex, InputError
from compressae_index.arrays import FloatArray
from compressae_index.building.calibration import CLEAR, _clear
from compressae_index.building.neighbourhoods import neighbourhoods
from compressae_index.checks import normalize_rows
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.coding.directory import encode_to_directory
from compressae_index.coding.metric import Metric
from compressae_index.demo import DemoData
from compressae_index.errors import DimensionError
from compressae_index.measuring.evaluation import evaluate_frontier
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.frontier import LOSS, Frontier, Point
from compressae_index.search.queries import Settings
from compressae_index.search.recall import recall


@pytest.fixture(scope="module")
def index(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """With a frontier."""
    return CompressedIndex.build(vectors, model=model, k=16, originals="float16", progress=False)


def test_the_frontier_leaves_out_what_another_point_beats() -> None:
    points = [
        Point(1000, 64, 50, 0.9, 20),
        Point(300, 64, 50, 0.8, 10),
        Point(3000, 64, 50, 0.9, 30),
        Point(3000, 128, 50, 0.95, 40),
        Point(300, 32, 50, 0.7, 15),
    ]
    frontier = Frontier.of(points)
    assert frontier.points == (points[1], points[0], points[3])
    assert frontier.reaching(0.85) == points[0]
    assert frontier.reaching(0.95) == points[3]
    assert Frontier.of([*points, Point(9, 9, 9, 0.95 - LOSS / 2, 35)]).default.candidates == 9
    # Of an index that was built for a recall, the default reaches it, or the most there is.
    targeted = [Frontier.of(points, target).default for target in (0.75, 0.92, 0.99)]
    assert targeted == [points[1], points[3], points[3]]
    for each in (frontier, Frontier.of(points, 0.92)):
        assert Frontier.from_stored(each.manifest()) == each


def test_more_neighbours_take_more_candidates_and_latents(
    index: CompressedIndex, vectors: FloatArray, demo_data: DemoData
) -> None:
    point = Point(300, 64, 20, 0.9, 10)
    assert point.for_neighbours(10) == point
    assert point.for_neighbours(1000) == (10_000, 203, 4000, 0.9, 10)
    assert point._replace(refine=0).for_neighbours(40) == (600, 91, 0, 0.9, 10)
    queries = demo_data.queries[:200]
    truth = exact_neighbours(vectors, queries, 100)
    few, many = (recall(index.search(queries, k).ids, truth, k) for k in (10, 100))
    assert many > few - 0.02


def test_an_index_that_grows_is_searched_for_more(model: CompresSAE, demo_data: DemoData) -> None:
    point, measured = Point(300, 64, 20, 0.9, 10), Frontier.of([Point(300, 64, 20, 0.9, 10)], n_rows=1000)
    assert measured.grown(point, 4000) == (600, 64, 40, 0.9, 10)
    for unknown, n_rows in ((measured, 900), (Frontier.of([point]), 4000)):
        assert unknown.grown(point, n_rows) == point
    rows, queries = demo_data.embeddings, demo_data.queries[:300]
    index = CompressedIndex.build(rows[:2500], model=model, k=16, originals="float16", progress=False)
    index.add(rows[2500:], np.arange(2500, len(rows)))
    frontier, truth = index.frontier, exact_neighbours(rows, queries, 10)
    assert frontier is not None
    found = recall(index.search(queries, 10).ids, truth, 10)
    measured_again = [point for point, _ in evaluate_frontier(index, queries, truth)]
    assert measured_again == [frontier.grown(each, len(rows)) for each in frontier.points]
    index.frontier = frontier._replace(n_rows=0)
    assert found > frontier.default.recall - 0.04 > recall(index.search(queries, 10).ids, truth, 10)


def test_bad_targets() -> None:
    frontier = Frontier.of([Point(300, 64, 50, 0.8, 10)])
    with pytest.raises(InputError, match=r"target_recall must be between 0 and 1, got 1\.5"):
        frontier.reaching(1.5)
    with pytest.raises(InputError, match=r"0\.9 is out of reach: the most that was measured is 0\.800"):
        frontier.reaching(0.9)
    with pytest.raises(InputError, match="without points"):
        Frontier.from_stored({"points": [], "target": None})


def test_what_is_expected_is_what_queries_get(
    index: CompressedIndex, vectors: FloatArray, demo_data: DemoData
) -> None:
    queries = demo_data.queries[:500]
    truth = exact_neighbours(vectors, queries, 10)
    assert index.frontier is not None
    for point in (*index.frontier.points[::4], index.frontier.default):
        settings: Any = {name: getattr(point, name) for name in ("candidates", "query_nnz", "refine")}
        found = recall(index.search(queries, 10, **settings).ids, truth, 10)
        assert found == pytest.approx(point.recall, abs=0.04)
        chosen = index.search(queries, 10, target_recall=point.recall)
        np.testing.assert_array_equal(chosen.ids, index.search(queries, 10, **settings).ids)
    default = {name: getattr(index.frontier.default, name) for name in ("candidates", "query_nnz", "refine")}
    plain = index.search(queries, 10)
    np.testing.assert_array_equal(plain.ids, index.search(queries, 10, **default).ids)
    costs = [point.cost for point in index.frontier.points]
    assert costs == sorted(costs)


def test_what_a_caller_says_wins(index: CompressedIndex, queries: FloatArray) -> None:
    assert index.frontier is not None
    point = index.frontier.default
    few = index.search(queries, 10, candidates=20, query_nnz=8, refine=0)
    without = CompressedIndex(index.model, documents=index.documents)
    np.testing.assert_array_equal(
        few.ids, without.search(queries, 10, candidates=20, query_nnz=8, refine=0).ids
    )
    some = index.search(queries, 10, target_recall=point.recall, candidates=20)
    again = without.search(queries, 10, candidates=20, query_nnz=point.query_nnz, refine=point.refine)
    np.testing.assert_array_equal(some.ids, again.ids)


@pytest.mark.parametrize(("advantage", "damped_to"), [(-1.0, 0), (1.0, MAX_LATENTS)])
def test_damping_is_for_where_it_helps(
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
    advantage: float,
    damped_to: int,
) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 1000)
    monkeypatch.setattr("compressae_index.building.calibration.CLEARLY_MORE", advantage)
    built = CompressedIndex.build(vectors[:1500], model=model, k=16, postings=4, progress=False)
    assert built.frontier is not None
    assert built.frontier.damped_to == damped_to
    settings = Settings(candidates=60, query_nnz=32, damped=damped_to > 0)
    expected = built.documents.answer(built.asked(queries, 60, settings))
    assert_same(built.search(queries, 60, candidates=60, query_nnz=32), expected)
    other = built.documents.answer(built.asked(queries, 60, settings._replace(damped=not settings.damped)))
    assert (other.ids != expected.ids).any()
    # The points were measured in the same way.
    near = neighbourhoods(vectors[:1500], "cosine")
    point = built.frontier.points[0]
    found = built.search(near.queries, 11, candidates=point.candidates, query_nnz=point.query_nnz)
    others = [ids[ids != own][:10] for ids, own in zip(found.ids, near.rows, strict=True)]
    assert recall(np.array(others), near.nearest[:, :10], 10) == pytest.approx(point.recall, abs=1e-4)


def test_damping_stops_where_it_loses(index: CompressedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    frontier = Frontier.of([Point(300, 64, 50, 0.8, 10)], damped_to=64)
    monkeypatch.setattr(index, "frontier", frontier)
    asked = [index._settled(Settings(query_nnz=nnz), 10, index.documents).damped for nnz in (None, 64, 65)]
    assert asked == [True, True, False]
    assert index._settled(Settings(), 1000, index.documents).damped is False  # by 203 latents
    assert Frontier.from_stored(frontier.manifest()) == frontier
    older = {name: value for name, value in frontier.manifest().items() if name != "damped_to"}
    assert Frontier.from_stored(older).damped_to == MAX_LATENTS
    with pytest.raises(InputError, match="damped_to must be at least 0, got -1"):
        Frontier.from_stored(frontier.manifest() | {"damped_to": -1})


def test_where_there_is_no_frontier(index: CompressedIndex, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="target_recall has no use in mode 'dense'"):
        index.search(queries, 10, mode="dense", target_recall=0.5)
    without = CompressedIndex(index.model, documents=index.documents)
    with pytest.raises(InputError, match="target_recall needs the settings that"):
        without.search(queries, 10, target_recall=0.5)


def test_a_frontier_is_saved(index: CompressedIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index")
    assert CompressedIndex.load(tmp_path / "index").frontier == index.frontier


@pytest.fixture
def few_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 1000)
    monkeypatch.setattr("compressae_index.building.recoding.CALIBRATED_ROWS", 1000)


@pytest.mark.usefixtures("few_suffice")
@pytest.mark.parametrize("metric", ["cosine", pytest.param("inner_product", marks=pytest.mark.slow), "l2"])
def test_calibrating_measures_what_building_does(
    uncentred_model: CompresSAE, vectors: FloatArray, metric: Metric
) -> None:
    rows = vectors[:1500] * np.linspace(0.5, 2, 1500, dtype=np.float32)[:, None]
    built = CompressedIndex.build(
        rows, model=uncentred_model, k=8, metric=metric, originals="float32", progress=False
    )
    measured = built.frontier
    assert measured is not None
    targeted = measured._replace(target=0.9)
    built.frontier = Frontier((Point(50, 8, 20, 0.5, 1.0),), target=0.9)
    built.calibrate(rows)
    assert built.frontier == targeted
    built.calibrate()
    of_stored = built.frontier
    built.calibrate(built.vectors)  # which have other last bits than the rows: directions and norms are apart
    assert of_stored == built.frontier
    built.recode(uncentred_model)  # the same codes, but for the rounding of norms
    recoded = built.frontier
    assert recoded is not None
    assert recoded.target == targeted.target
    assert recoded.default.recall == pytest.approx(targeted.default.recall, abs=0.01)


def test_chance_adds_no_settings_but_the_best_is_kept() -> None:
    points = [
        Point(n, 64, 50, recall, n) for n, recall in ((10, 0.9), (20, 0.9005), (30, 0.95), (40, 0.9505))
    ]
    assert _clear(tuple(points)) == [points[0], points[2], points[3]]
    assert _clear(tuple(points[:1])) == points[:1]


def all_settings(measure: Any, advance: Any) -> list[Point]:  # noqa: ARG001
    return [measure.point(n, nnz) for n in measure.candidates for nnz in measure.query_nnz]


@pytest.mark.slow
@pytest.mark.usefixtures("few_suffice")
@pytest.mark.parametrize("kept", [{"originals": "float16"}, {"residual_bits": 2}, {}], ids=str)
def test_few_settings_come_near_the_best_of_all(
    model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any]
) -> None:
    index = CompressedIndex.build(vectors, model=model, k=8, postings=4, progress=False, **kept)
    climbed = index.frontier
    assert climbed is not None
    monkeypatch.setattr("compressae_index.building.calibration._climbed", all_settings)
    index.calibrate(vectors)
    assert index.frontier is not None
    highest = climbed.points[-1].recall
    assert highest >= index.frontier.points[-1].recall - 2 * CLEAR
    for point in index.frontier.points:
        reached = climbed.reaching(min(point.recall - 2 * CLEAR, highest))
        assert reached.cost <= 1.4 * point.cost


@pytest.mark.usefixtures("few_suffice")
def test_merged_shards_are_calibrated(index: CompressedIndex, vectors: FloatArray, tmp_path: Path) -> None:
    paths = []
    for first in range(0, 2000, 500):
        shard = index.empty_like()
        shard.add(vectors[first : first + 500], ids=np.arange(first, first + 500) + 10_000)
        paths.append(tmp_path / f"shard-{first}")
        shard.save(paths[-1])
    merged = CompressedIndex.merge(paths)
    with pytest.raises(InputError, match="target_recall needs the settings that"):
        merged.search(vectors[:3], target_recall=0.5)
    merged.remove(np.arange(10_100, 10_200))
    merged.calibrate()
    near, frontier = neighbourhoods(merged.vectors, "cosine"), merged.frontier
    assert frontier is not None
    for point in (frontier.points[0], frontier.default):
        settings: Any = {name: getattr(point, name) for name in ("candidates", "query_nnz", "refine")}
        found = merged.search(near.queries, 11, **settings).ids
        others = [ids[ids != own][:10] for ids, own in zip(found, merged.ids[near.rows], strict=True)]
        truth = merged.ids[near.nearest[:, :10]]
        assert recall(np.array(others), truth, 10) == pytest.approx(point.recall, abs=1e-4)
    merged.save(tmp_path / "merged")
    mapped = CompressedIndex.load(tmp_path / "merged", mmap=True)
    assert mapped.frontier == frontier
    mapped.frontier = Frontier(frontier.points[:1])
    assert pickle.loads(pickle.dumps(mapped)).frontier == mapped.frontier


@pytest.mark.usefixtures("few_suffice")
def test_codes_are_calibrated_by_their_vectors(
    model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    rows = vectors[:1200]
    codes = encode_to_directory(model, rows, tmp_path / "codes", k=8)
    held = CompressedIndex.from_codes(codes, model, progress=False)
    with pytest.raises(InputError, match="codes alone, which tell too little"):
        held.calibrate()
    with pytest.raises(InputError, match="vectors has 1199 rows, the index 1200"):
        held.calibrate(rows[:-1])
    with pytest.raises(DimensionError, match="vectors has dimension 5, the index"):
        held.calibrate(rows[:, :5])
    held.calibrate(rows)
    built = CompressedIndex.build(rows, model=model, k=8, progress=False)
    assert held.frontier == built.frontier
    held.remove(np.arange(300))
    with pytest.raises(InputError, match="at least 1,000 vectors, and the index has 900"):
        held.calibrate(rows[300:])


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_neighbourhoods_are_exact(vectors: FloatArray, metric: Metric) -> None:
    rows = vectors[:3000] * np.linspace(0.5, 2, 3000, dtype=np.float32)[:, None]
    near = neighbourhoods(rows, metric)
    np.testing.assert_array_equal(near.queries, normalize_rows(rows[near.rows]))
    unit = normalize_rows(rows).astype(np.float64)
    norms = np.ones(3000) if metric == "cosine" else np.linalg.norm(rows.astype(np.float64), axis=1)
    scores = (near.queries.astype(np.float64) @ unit.T) * norms
    np.put_along_axis(scores, near.rows[:, None], -np.inf, axis=1)
    best = -np.sort(-scores, axis=1)[:, : near.width]
    np.testing.assert_allclose(np.take_along_axis(scores, near.nearest, axis=1), best, atol=1e-5)
    np.testing.assert_allclose(near.vectors, unit[near.nearest], atol=1e-6)
    np.testing.assert_allclose(near.norms, norms[near.nearest], rtol=1e-5)
    assert len(near.background) == len(near.background_norms) == 3000
