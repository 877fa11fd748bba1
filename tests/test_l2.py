"""Euclidean distances: as Faiss gives them, by codes and norms, over all that an index does."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from oracles import assert_same, overlap

from compressae_index import (
    BatchEncoder,
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    TrainConfig,
)
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.coding.lengths import from_bits, half_squares, to_bits
from compressae_index.coding.metric import Metric, are_unit, row_norms
from compressae_index.connectors.faiss import FaissIndex, from_faiss, to_faiss
from compressae_index.embedded.codecs.lengths import NORMS
from compressae_index.measuring.evaluation import evaluate
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.index_report import index_report
from compressae_index.measuring.rivals import evaluate_exact, evaluate_pq
from compressae_index.search.queries import MODES
from compressae_index.sources.centred import Centred
from compressae_index.testing import distances_by_codes, sampled_model

N, DIM = 3000, 48
CONFIG = TrainConfig.preset("fast", k=12, n_latents=256, steps=0, refine_rounds=8)


@pytest.fixture(scope="module")
def points() -> FloatArray:
    """3,000 points of varied norms, in clusters and far from 0; one is 0, and two are the same."""
    rng = np.random.default_rng(0)
    bases = rng.standard_normal((40, 6, DIM))
    within = rng.standard_normal((N, 6)) * np.geomspace(3, 0.5, 6)
    rows = np.einsum("nk,nkd->nd", within, bases[rng.integers(40, size=N)])
    rows = 40 * (rows * rng.lognormal(0, 0.4, (N, 1)) + 0.2 * rng.standard_normal((N, DIM)) + 4)
    rows[5], rows[700] = 0, rows[20]
    found: FloatArray = rows.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def asked(points: FloatArray) -> FloatArray:
    """30 points near others, and 0."""
    near = points[:31] + 20 * np.random.default_rng(1).standard_normal((31, DIM))
    near[30] = 0
    queries: FloatArray = near.astype(np.float32)
    return queries


@pytest.fixture(scope="module")
def truth(points: FloatArray, asked: FloatArray) -> tuple[FloatArray, Any]:
    """Squared distances and rows by Faiss, (31, 10) both."""
    flat = faiss.IndexFlatL2(DIM)
    flat.add(points)
    return flat.search(asked, 10)


def built(rows: Any, ids: Any = None, **options: Any) -> CompressedIndex:
    options = {"k": 12, "config": CONFIG, **options}
    return CompressedIndex.build(rows, ids, metric="l2", progress=False, **options)


def center_of(index: CompressedIndex) -> FloatArray:
    """The center of an index's model, which has one."""
    assert index.model.center is not None
    return index.model.center


@pytest.fixture(scope="module")
def whole(points: FloatArray) -> CompressedIndex:
    """Codes alone, of all points. Not to be changed."""
    return built(points, postings=6)


@pytest.fixture(scope="module")
def kept(points: FloatArray, whole: CompressedIndex) -> CompressedIndex:
    """With original vectors. Not to be changed."""
    return built(points, model=whole.model, config=None, originals="float32")


@pytest.fixture(scope="module")
def by_form(points: FloatArray, whole: CompressedIndex) -> dict[str, CompressedIndex]:
    """Codes in all forms. Not to be changed."""
    again = {"model": whole.model, "config": None}
    return {
        "packed": whole,
        "aligned": built(points, forward="aligned", **again),
        "residual": built(points, residual_bits=3, **again),
    }


def test_the_oracle_is_that_of_faiss(points: FloatArray, asked: FloatArray, truth: Any) -> None:
    found = exact_neighbours(points, asked, 10, metric="l2")
    distances = np.square(points[found].astype(np.float64) - asked[:, None]).sum(axis=2)
    np.testing.assert_allclose(distances, truth[0], rtol=2e-4, atol=1)
    assert overlap(found, truth[1]) > 0.99
    assert (np.diff(distances, axis=1) >= -1e-6).all()


@pytest.mark.parametrize("form", ["packed", "aligned", "residual"])
def test_dense_equals_brute_force_by_codes(
    by_form: dict[str, CompressedIndex], asked: FloatArray, form: str
) -> None:
    index = by_form[form]
    exact = distances_by_codes(index, asked)
    scores, ids = index.search(asked, 15, mode="dense", refine=0)
    expected = np.argsort(exact, axis=1, kind="stable")[:, :15]
    np.testing.assert_allclose(
        scores, np.maximum(np.take_along_axis(exact, expected, axis=1), 0), rtol=1e-4, atol=1
    )
    assert (ids == expected).mean() > 0.99
    assert (np.diff(scores, axis=1) >= 0).all()
    ties = (np.diff(scores, axis=1) == 0) & (scores[:, 1:] > 0)
    assert (np.diff(ids, axis=1)[ties] > 0).all()


def test_codes_and_residuals_come_near_the_distances(
    by_form: dict[str, CompressedIndex], asked: FloatArray, truth: Any
) -> None:
    for form, least in (("packed", 0.75), ("aligned", 0.75), ("residual", 0.9)):
        found = by_form[form].search(asked, 10, mode="dense")
        assert overlap(found.ids, truth[1]) > least, form
        assert np.abs(found.scores - truth[0]).mean() < 0.3 * truth[0].mean(), form


@pytest.mark.parametrize("form", ["packed", "aligned", "residual"])
def test_norms_are_those_of_rows(by_form: dict[str, CompressedIndex], points: FloatArray, form: str) -> None:
    index = by_form[form]
    seen = (points - center_of(index)).astype(np.float32)
    halves = index.codes(np.arange(N)).values[:, -1]
    np.testing.assert_allclose(halves, row_norms(seen) ** 2 / 2, rtol=5e-4)


def test_originals_give_the_distances_of_faiss(kept: CompressedIndex, asked: FloatArray, truth: Any) -> None:
    found = kept.search(asked, 10, mode="dense", refine=N)
    np.testing.assert_allclose(found.scores, truth[0], rtol=1e-4, atol=2)
    assert (found.ids == truth[1]).mean() > 0.98
    assert found.ids[5, 0] == found.ids[30, 0] == 5  # the point and the query at 0
    assert found.scores[30, 0] < 1e-6
    few = kept.search(asked, 10, candidates=300, query_nnz=128, refine=100)
    assert overlap(few.ids, truth[1]) > 0.9


def test_a_first_stage_without_norms_would_miss_neighbours(
    kept: CompressedIndex, asked: FloatArray, truth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = {"candidates": 100, "query_nnz": 128, "refine": 100}
    found = kept.search(asked, 10, **settings)
    monkeypatch.setattr("compressae_index.search.queries.LISTED_SHARE", 0.0)
    assert overlap(found.ids, truth[1]) > overlap(kept.search(asked, 10, **settings).ids, truth[1]) + 0.1


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
def test_the_first_stage_estimates_what_it_does_not_read(metric: Metric) -> None:
    """A near document most of whose latents are not read comes before a far one all of which is read."""
    dim = 32
    atoms = np.eye(dim, dtype=np.float32)
    model = CompresSAE(atoms, np.zeros(dim, np.float32), atoms, dim)
    near = np.full(dim, 0.176, np.float32)
    near[0] = 0.2
    far = 1.001 * atoms[0]
    index = CompressedIndex.build(np.stack([far, near]), metric=metric, model=model, progress=False)
    found = index.search(near[None], 1, candidates=1, query_nnz=1)
    assert found.ids.tolist() == [[0 if metric == "inner_product" else 1]]
    assert index.search(near[None], 1, mode="sparse", query_nnz=1).ids.tolist() == [[0]]


def test_originals_of_all_kinds_give_the_same(
    points: FloatArray, kept: CompressedIndex, asked: FloatArray, tmp_path: Path
) -> None:
    path = tmp_path / "points.npy"
    np.save(path, points)
    expected = kept.search(asked, 5, mode="dense", refine=N)
    for originals in (points, path, "float16"):
        index = built(points, model=kept.model, config=None, originals=originals)
        found = index.search(asked, 5, mode="dense", refine=N)
        rtol, atol = (5e-3, 40) if isinstance(originals, str) else (1e-6, 0.1)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=rtol, atol=atol)
        index.save(tmp_path / "kept.index")
        assert_same(CompressedIndex.load(tmp_path / "kept.index").search(asked, 5), index.search(asked, 5))
    wrong = points.copy()
    wrong[7] *= 1.5
    with pytest.raises(InputError, match="row 7 of originals is not that of the embeddings"):
        built(points, model=kept.model, config=None, originals=wrong)


@pytest.mark.parametrize("form", ["packed", "aligned", "residual"])
def test_all_modes_live_on_disk_and_in_pickles(
    by_form: dict[str, CompressedIndex], asked: FloatArray, tmp_path: Path, form: str
) -> None:
    index = by_form[form]
    index.save(tmp_path / "points.index")
    for other in (
        CompressedIndex.load(tmp_path / "points.index"),
        CompressedIndex.load(tmp_path / "points.index", mmap=True),
        pickle.loads(pickle.dumps(index)),
    ):
        assert other.metric == "l2"
        for mode, scoring in itertools.product(MODES, ("asymmetric", "symmetric")):
            options: Any = {"mode": mode, "scoring": scoring}
            assert_same(other.search(asked, 7, **options), index.search(asked, 7, **options))


def test_symmetric_scores_are_distances_between_reconstructions(
    whole: CompressedIndex, asked: FloatArray
) -> None:
    found = whole.search(asked, 5, mode="dense", scoring="symmetric")
    model, seen = whole.model, (asked - center_of(whole)).astype(np.float32)
    lengths = row_norms(seen)[:, None]
    decoded = model.decode(model.fold(model.encode(asked, 12))) * lengths + center_of(whole)
    exact = distances_by_codes(whole, decoded.astype(np.float32))
    np.testing.assert_allclose(found.scores, np.maximum(np.sort(exact, axis=1)[:, :5], 0), rtol=2e-3, atol=5)


def test_changes_keep_the_norms(points: FloatArray, asked: FloatArray, whole: CompressedIndex) -> None:
    again = {"model": whole.model, "config": None, "postings": 6}
    names = [f"p{i}" for i in range(N)]
    index = built(points[:1000], names[:1000], **again)
    index.add(points[1000:2500], names[1000:2500])
    index.upsert(points[2490:], names[2490:])
    index.remove(names[:10])
    index.compact()
    order = [*names[10:2490], *names[2490:]]
    assert index.ids.tolist() == order
    exact = distances_by_codes(index, asked)
    found = index.search(asked, 9, mode="dense")
    np.testing.assert_allclose(found.scores, np.maximum(np.sort(exact, axis=1)[:, :9], 0), rtol=1e-4, atol=1)
    np.testing.assert_allclose(
        row_norms((index.reconstruct(names[10:]) - center_of(whole)).astype(np.float32))[50:],
        row_norms((points[10:] - center_of(whole)).astype(np.float32))[50:],
        rtol=5e-3,
    )
    allowed = np.zeros(len(index), dtype=bool)
    allowed[:7] = True
    few = index.search(asked[:2], 9, filter=allowed)
    assert {*few.ids[:, :7].ravel().tolist()} <= {*order[:7]}
    assert few.ids[0, 8] is None
    assert few.scores[0, 8] == np.inf


def test_shards_merge_to_the_same(
    points: FloatArray, asked: FloatArray, whole: CompressedIndex, tmp_path: Path
) -> None:
    shards = []
    for number, part in enumerate(np.array_split(np.arange(N), 3)):
        shard = whole.empty_like()
        shard.add(points[part], part)
        shard.save(tmp_path / str(number))
        shards.append(tmp_path / str(number))
    merged = CompressedIndex.merge(shards)
    for mode in ("dense", "two_stage"):
        options: Any = {"mode": mode, "candidates": N, "query_nnz": 256}
        np.testing.assert_allclose(
            merged.search(asked, 8, **options).scores, whole.search(asked, 8, **options).scores, rtol=1e-6
        )
    other = built(points[:300], model=whole.model, config=None, residual_bits=2)
    with pytest.raises(InputError, match="differs"):
        CompressedIndex.merge([whole, other])


def test_ranges_neighbours_and_graphs_hold_distances(
    kept: CompressedIndex, points: FloatArray, asked: FloatArray
) -> None:
    distances = np.square(asked.astype(np.float64)[:, None] - points.astype(np.float64)).sum(axis=2)
    radius = float(np.sort(distances, axis=1)[:, 12].mean())
    found = kept.range_search(asked, radius, mode="dense")
    for query, (begin, end) in enumerate(itertools.pairwise(found.lims)):
        inside = found.ids[begin:end]
        assert set(inside.tolist()) == set(np.flatnonzero(distances[query] < radius).tolist())
        np.testing.assert_allclose(found.scores[begin:end], distances[query, inside], rtol=1e-4, atol=1)
    flat = faiss.IndexFlatL2(DIM)
    flat.add(points)
    lims, squares, _ = flat.range_search(asked, radius)
    assert lims.tolist() == found.lims.tolist()
    np.testing.assert_allclose(np.sort(squares), np.sort(found.scores), rtol=1e-3, atol=2)
    near = kept.neighbours([20, 5, 20], 4, mode="dense", refine=N)
    assert near.ids[0, 0] == 700
    assert near.scores[0, 0] < 1
    assert_same(kept.neighbours([20], 4, mode="dense", refine=N), type(near)(near.scores[:1], near.ids[:1]))
    small = built(points[:60], model=kept.model, config=None, originals="float32")
    graph = small.neighbour_graph(3, mode="dense", refine=60)
    wanted = np.square(points[:60, None] - points[None, :60]).sum(axis=2)
    np.testing.assert_allclose(
        graph.data, wanted[np.repeat(np.arange(60), 3), graph.indices], rtol=1e-3, atol=2
    )


@pytest.mark.parametrize("which", ["packed", "residual", "kept"])
def test_explanations_have_a_line_for_norms(
    by_form: dict[str, CompressedIndex], kept: CompressedIndex, asked: FloatArray, which: str
) -> None:
    index = kept if which == "kept" else by_form[which]
    found = index.search(asked[:4], 1, mode="dense")
    for query, score, id_ in zip(asked, found.scores[:, 0], found.ids[:, 0].tolist(), strict=False):
        why = index.explain(query, id_)
        assert max(why.score, 0) == pytest.approx(score, rel=2e-2, abs=0.002 * why.bias)
        parts = why.contributions.sum(dtype=np.float64) + why.mean + why.residual + why.bias
        assert parts == pytest.approx(why.score, rel=1e-4, abs=1)
        norm = 2 * index.codes([id_]).values[0, -1]
        seen = (query - center_of(index)).astype(np.float64)
        assert why.bias == pytest.approx(float(seen @ seen) + norm, rel=1e-6)
        assert why.contributions.sum() < 0


def test_norms_of_16_bits() -> None:
    norms = np.concatenate([[0, 2.0**-10, 1, 4096], np.random.default_rng(0).lognormal(size=1000)])
    bits = to_bits(norms)
    np.testing.assert_allclose(from_bits(bits)[1:], norms[1:], rtol=2.0**-12)
    assert from_bits(bits)[0] <= 2.0**-16
    assert from_bits(bits)[2] == 1
    np.testing.assert_array_equal(half_squares(bits), from_bits(bits) ** 2 / 2)


def test_unit_rows_are_stored_as_for_cosine(
    vectors: FloatArray, queries: FloatArray, model: CompresSAE
) -> None:
    unit = vectors[:2000] / np.linalg.norm(vectors[:2000], axis=1, keepdims=True)
    options: Any = {"model": model, "k": 16, "progress": False}
    index = CompressedIndex.build(unit, metric="l2", **options)
    cosine = CompressedIndex.build(unit, **options)
    assert index.stats().bytes_per_vector == cosine.stats().bytes_per_vector
    lengths = np.linalg.norm(3 * queries, axis=1)[:, None]
    for mode in MODES:
        (squares, ids), (cosines, same) = (
            each.search(3 * queries, 10, mode=mode) for each in (index, cosine)
        )
        np.testing.assert_allclose(squares, 1 + lengths**2 - 2 * lengths * cosines, rtol=1e-4)
        assert (ids == same).mean() > 0.99
    with pytest.raises(InputError, match=r"row 1 has norm 0\.5 .* made for unit rows"):
        index.add(np.stack([unit[0], unit[1] / 2]))
    with pytest.raises(InputError, match=r"row 3 has norm .* made for unit rows"):
        CompressedIndex.build(
            unit * np.where(np.arange(2000) == 3, 2, 1)[:, None].astype("f4"), metric="l2", **options
        )
    config = TrainConfig(n_latents=64, refine_rounds=2, steps=0)
    trained = CompressedIndex.build(unit, metric="l2", k=8, config=config, progress=False)
    assert trained.model.mean is not None
    assert trained.model.center is None
    assert NORMS not in trained.documents.backend.codec.array_names


def test_norms_that_are_all_the_same_order_by_directions(points: FloatArray, whole: CompressedIndex) -> None:
    plain = sampled_model(points[10:], None)
    rows = 5 * points[:500] / np.maximum(row_norms(points[:500]), 1e-9)[:, None]
    rows[5] = rows[6]
    index = built(rows.astype(np.float32), model=plain, config=None)
    asked = rows[:9].astype(np.float32)
    assert not are_unit(row_norms(asked)).any()
    exact = distances_by_codes(index, asked)
    found = index.search(asked, 6, candidates=500, query_nnz=512)
    np.testing.assert_allclose(found.scores, np.maximum(np.sort(exact, axis=1)[:, :6], 0), atol=2e-3)
    assert whole.unit > index.unit


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**30])
def test_units_do_not_matter(
    points: FloatArray, asked: FloatArray, whole: CompressedIndex, factor: float
) -> None:
    moved = whole.model.centred_at((center_of(whole) * np.float32(factor)).astype(np.float32))
    index = built(points * np.float32(factor), model=moved, config=None, postings=6)
    for mode in MODES:
        a, b = index.search(asked * np.float32(factor), 5, mode=mode), whole.search(asked, 5, mode=mode)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores * np.float32(factor**2))
    ids = [[1, 2, 3]] * len(asked)
    given, wanted = index.rescore(asked * np.float32(factor), ids, 3), whole.rescore(asked, ids, 3)
    np.testing.assert_array_equal(given.ids, wanted.ids)
    np.testing.assert_allclose(given.scores, wanted.scores * factor**2, rtol=1e-5)


def test_bad_arguments(points: FloatArray, whole: CompressedIndex, model: CompresSAE, tmp_path: Path) -> None:
    before = len(whole)
    with pytest.raises(InputError, match=r"row 0 has norm .* keeps norms from 0 to"):
        whole.add(points[:1] * 1e6, [N])
    with pytest.raises(InputError, match="row 1 holds NaN"):
        whole.add(np.where(np.arange(2)[:, None] == 1, np.nan, points[:2]), [N, N + 1])
    with pytest.raises(InputError, match="so long that its distances exceed float32"):
        whole.search(np.full((1, DIM), 1e19, np.float32))
    assert len(whole) == before
    for metric in ("cosine", "inner_product"):
        with pytest.raises(InputError, match='this model encodes vectors less a center, for metric="l2"'):
            CompressedIndex(whole.model, metric=metric)
    with pytest.raises(InputError, match="a model leaves out the mean of directions or a point, not both"):
        model.centred_at(np.zeros(model.dim, np.float32))
    with pytest.raises(InputError, match=r"metric must be one of 'cosine', 'inner_product', 'l2'"):
        CompressedIndex.build(points, metric="euclidean", progress=False)  # type: ignore[arg-type]
    whole.save(tmp_path / "whole.index")
    manifest = tmp_path / "whole.index" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"norms": true', '"norms": 1'))
    with pytest.raises(FormatError):
        CompressedIndex.load(tmp_path / "whole.index")


def test_the_model_keeps_its_center(whole: CompressedIndex, points: FloatArray, tmp_path: Path) -> None:
    model = whole.model
    assert model.center is not None
    np.testing.assert_allclose(model.center, points.mean(axis=0), rtol=1e-4)
    model.save(tmp_path / "points.model")
    again = CompresSAE.load(tmp_path / "points.model")
    assert again.fingerprint == model.fingerprint == pickle.loads(pickle.dumps(model)).fingerprint
    assert again.fingerprint != model.centred_at(None).fingerprint
    np.testing.assert_array_equal(again.center, model.center)
    np.testing.assert_array_equal(
        model.encode(points[:50]).values, model.centred_at(None).encode(points[:50] - model.center).values
    )
    uncentred = built(
        points, config=TrainConfig.preset("fast", k=12, n_latents=256, center=False, steps=0, refine_rounds=8)
    )
    assert uncentred.model.center is None


def test_a_source_less_a_point() -> None:
    rows = np.array([[1, 2], [3, 4], [np.nan, 0]], np.float32)
    seen = Centred(rows, np.array([3, 4], np.float32))[0:3]
    np.testing.assert_array_equal(seen[0], [-2, -2])
    assert 0 < seen[1, 0] < 1e-12
    assert seen[1, 1] == 0
    assert np.isnan(seen[2, 0])


def test_a_budget_and_a_frontier(points: FloatArray, asked: FloatArray) -> None:
    rng = np.random.default_rng(3)
    rows = np.concatenate([points, points + 15 * rng.standard_normal((3, N, DIM)).reshape(-1, N, DIM)[0]])
    rows = np.concatenate([rows, rows[:2300] + 15 * rng.standard_normal((2300, DIM))]).astype(np.float32)
    index = CompressedIndex.build(
        rows,
        metric="l2",
        bytes_per_vector=70,
        config=TrainConfig(n_latents=256, refine_rounds=4, steps=0),
        progress=False,
    )
    assert index.plan is not None
    assert index.stats().bytes_per_vector["total"] <= 70
    assert index.frontier is not None
    wanted = exact_neighbours(rows, asked, 10, metric="l2")
    point = index.frontier.points[-1]
    assert overlap(index.search(asked, 10, target_recall=point.recall).ids, wanted) > point.recall - 0.15


def test_evaluation_compares_with_exact_distances(
    kept: CompressedIndex, points: FloatArray, asked: FloatArray
) -> None:
    wanted = exact_neighbours(points, asked, 10, metric="l2")
    assert evaluate_exact(points, asked, wanted, ks=[10], metric="l2").recall[10] > 0.99
    assert 0.3 < evaluate_pq(points, asked, wanted, 12, ks=[10], metric="l2").recall[10] < 1
    measured = evaluate(kept, asked, wanted, ks=[10])
    assert measured[-1].recall[10] > 0.9
    report = index_report(
        kept,
        points,
        asked,
    )
    assert report.metric == "l2"


def test_on_the_command_line(points: FloatArray, asked: FloatArray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", points[:600])
    np.save(tmp_path / "queries.npy", asked[:3])
    run = CliRunner().invoke
    target = str(tmp_path / "rows.index")
    made = run(
        main,
        [
            *("build", str(tmp_path / "rows.npy"), "-o", target, "--metric", "l2", "--preset", "fast"),
            *("--n-latents", "64", "--k", "8", "--steps", "0", "--originals", "float32"),
        ],
        catch_exceptions=False,
    )
    assert made.exit_code == 0, made.output
    found = run(
        main,
        [*("search", target, str(tmp_path / "queries.npy"), "-k", "3"), "--json"],
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    index = CompressedIndex.load(target)
    assert index.metric == "l2"
    assert str(index.search(asked[:1], 3).ids[0, 0]) in found.output
    assert "l2" in run(main, ["info", target], catch_exceptions=False).output
    explained = run(
        main,
        [*("search", target, str(tmp_path / "queries.npy"), "-k", "3"), "--explain", "--json"],
        catch_exceptions=False,
    )
    assert len(json.loads(explained.output)["hits"]) == 9


@pytest.mark.parametrize("kind", ["float32", "SQ8", "inverted"])
def test_faiss_takes_and_gives_distances(
    by_form: dict[str, CompressedIndex], points: FloatArray, asked: FloatArray, truth: Any, kind: Any
) -> None:
    index = by_form["packed"]
    exported = to_faiss(index, kind, progress=False)
    if kind == "inverted":
        lists = FaissIndex.from_lists(exported, index.model, metric="l2")
        a, b = (each.search(asked, 5, candidates=N, query_nnz=256) for each in (lists, index))
        np.testing.assert_allclose(a.scores, b.scores, rtol=0.05, atol=0.01 * b.scores.max())
        assert overlap(a.ids, b.ids) > 0.9
        with pytest.raises(FormatError, match="the model 256 latents"):
            FaissIndex.from_lists(exported, index.model.centred_at(None), metric="inner_product")
        return
    assert exported.metric_type == faiss.METRIC_L2
    distances, ids = exported.search(asked, 10)
    assert overlap(ids, index.search(asked, 10, mode="dense").ids) > (0.9 if kind == "float32" else 0.8)
    assert (np.diff(distances, axis=1) >= 0).all()
    if kind == "float32":
        flat = faiss.IndexFlatL2(DIM)
        flat.add(points)
        taken = from_faiss(flat, model=index.model, k=12, originals="float32", progress=False)
        assert taken.metric == "l2"
        np.testing.assert_allclose(
            taken.search(asked, 10, mode="dense", refine=N).scores, truth[0], rtol=1e-4, atol=2
        )


def test_a_faiss_index_of_points_is_saved(
    by_form: dict[str, CompressedIndex], kept: CompressedIndex, asked: FloatArray, tmp_path: Path
) -> None:
    for number, index in enumerate([by_form["residual"], kept]):
        made = FaissIndex.from_index(index, tmp_path / str(number), progress=False)
        expected = index.search(asked, 5, candidates=N, query_nnz=256)
        found = made.search(asked, 5, candidates=N, query_nnz=256)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=2)
        made.compact()
        assert_same(made.search(asked, 5), FaissIndex.load(tmp_path / str(number)).search(asked, 5))
        other = FaissIndex.from_index(index, progress=False)
        other.remove(other.ids[:1000])
        made.remove(made.ids[1000:])
        made.merge(other)
        after = made.search(asked, 5, candidates=N, query_nnz=256)
        np.testing.assert_allclose(after.scores, expected.scores, rtol=1e-3, atol=2)


def test_packed_batches_hold_norms(by_form: dict[str, CompressedIndex], points: FloatArray) -> None:
    for form in ("packed", "residual"):
        index = by_form[form]
        encoder = BatchEncoder.of_index(index)
        batch = encoder({"embedding": points[:20]})
        np.testing.assert_array_equal(
            encoder.codes(batch).values, index.codes(np.arange(20)).values[:, :-1] / index.unit
        )
        norms = np.linalg.norm(points[:20] - center_of(index), axis=1)
        np.testing.assert_allclose(batch["scale"], norms, rtol=1e-5)


def test_ids_of_others_get_distances(points: FloatArray, whole: CompressedIndex) -> None:
    found = whole.rescore(points[:3], [[0, 1, 2, -1]] * 3, 4)
    assert (np.diff(found.scores[:, :3], axis=1) >= 0).all()
    assert (found.scores[:, 3] == np.inf).all()


def test_empty_places_are_left_out_of_tables_and_pages(
    points: FloatArray, whole: CompressedIndex, tmp_path: Path
) -> None:
    found = whole.search(points[:3], 4, filter=[7, 20], mode="dense")
    np.testing.assert_array_equal(found.found, [[True, True, False, False]] * 3)
    table = found.to_arrow()
    assert table.column("rank").to_pylist() == [0, 1] * 3
    assert set(table.column("id").to_pylist()) == {7, 20}
    whole.save(tmp_path / "rows.index")
    np.save(tmp_path / "query.npy", points[3:4])
    latent = int(whole.codes([3]).latents[0, 0])
    asked = ["search", str(tmp_path / "rows.index"), str(tmp_path / "query.npy"), "-k", str(N), "--explain"]
    held = CliRunner().invoke(main, [*asked, "--holding", str(latent), "--json"], catch_exceptions=False)
    hits = json.loads(held.output)["hits"]
    assert sorted(hit["id"] for hit in hits) == np.flatnonzero(whole.holding(latent)).tolist()


def test_latents_are_named_and_steer(whole: CompressedIndex, asked: FloatArray) -> None:
    index = copy.copy(whole)
    words = ["even" if number % 2 else "odd" for number in range(N)]
    labels = index.label_latents(words)
    assert all(name in ("", "even", "odd") for name in labels.values())
    latent = int(index.codes([7]).latents[0, 0])
    mask = index.holding(latent)
    assert mask[7]
    assert mask.sum() == (index.codes(index.ids).latents[:, :-1] == latent).sum()
    moved = index.steer(asked[:1], {latent: 0.5})
    along = (moved - asked[:1]) @ index.model.decoder_w[latent]
    assert along[0] == pytest.approx(0.5 * np.linalg.norm(asked[0] - center_of(index)), rel=1e-4)
