"""Inner products: norms are kept, scores are in the units of the vectors, the rest is as for cosine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from oracles import nearest

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError, SearchResult, TrainConfig
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.cli import main
from compressae_index.coding.metric import METRICS, RowScale, row_norms
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.queries import MODES
from compressae_index.search.recall import recall
from compressae_index.testing import assert_best, term_scores

FORMS = ("packed", "aligned")
each_form = pytest.mark.parametrize("forward", FORMS)


@pytest.fixture(scope="module")
def long_rows(vectors: FloatArray) -> FloatArray:
    """2,000 real directions with lognormal norms around 30."""
    norms = 30 * np.random.default_rng(0).lognormal(size=(2000, 1))
    return (normalize_rows(vectors[:2000]) * norms).astype(np.float32)


@pytest.fixture(scope="module")
def asked(queries: FloatArray) -> FloatArray:
    """50 queries of norms from 0.1 to 10."""
    return normalize_rows(queries) * np.geomspace(0.1, 10, 50, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def by_form(uncentred_model: CompresSAE, long_rows: FloatArray) -> dict[str, CompressedIndex]:
    return {form: build(uncentred_model, long_rows, forward=form) for form in FORMS}


def build(uncentred_model: CompresSAE, rows: FloatArray, **options: Any) -> CompressedIndex:
    return CompressedIndex.build(
        rows, model=uncentred_model, k=16, metric="inner_product", progress=False, **options
    )


def rows_of(found: SearchResult) -> npt.NDArray[np.int64]:
    """Ids as rows, of an index whose ids are row numbers."""
    return found.ids.astype(np.int64)


@each_form
def test_norms_are_kept(by_form: dict[str, CompressedIndex], long_rows: FloatArray, forward: str) -> None:
    kept = np.linalg.norm(by_form[forward].reconstruct(np.arange(2000)), axis=1)
    np.testing.assert_allclose(kept, np.linalg.norm(long_rows, axis=1), rtol=0.002)


@each_form
def test_dense_equals_brute_force(
    by_form: dict[str, CompressedIndex], asked: FloatArray, forward: str
) -> None:
    index = by_form[forward]
    exact = term_scores(index, asked)
    tolerance = 1e-5 * np.abs(exact).max(axis=1, keepdims=True)
    assert_best(index.search(asked, 20, mode="dense"), exact, 20, tolerance=tolerance)


def test_neighbours_are_those_of_the_vectors(
    by_form: dict[str, CompressedIndex], uncentred_model: CompresSAE, long_rows: FloatArray, asked: FloatArray
) -> None:
    exact = asked.astype(np.float64) @ long_rows.T.astype(np.float64)
    truth = nearest(long_rows, asked, 100, metric="inner_product")
    np.testing.assert_array_equal(
        exact_neighbours(long_rows, asked, 10, metric="inner_product"), truth[:, :10]
    )
    index = by_form["packed"]
    dense, two_stage = (index.search(asked, 100, mode=mode) for mode in ("dense", "two_stage"))
    assert recall(dense.ids, truth, 100) > 0.8
    assert recall(two_stage.ids, truth, 100) > 0.75
    # By cosine, others would be near.
    cosine = CompressedIndex.build(long_rows, model=uncentred_model, k=16, progress=False)
    assert cosine.metric == "cosine"
    assert recall(cosine.search(asked, 100, mode="dense").ids, truth, 100) < 0.5
    assert recall(exact_neighbours(long_rows, asked, 100), truth, 100) < 0.5
    # Scores estimate the inner products of the vectors themselves.
    error = dense.scores - np.take_along_axis(exact, rows_of(dense), axis=1)
    assert np.abs(error).mean() < 0.25 * dense.scores.mean()
    # And norms cost no byte.
    assert index.stats().bytes_per_vector["forward"] == cosine.stats().bytes_per_vector["forward"]


def test_symmetric_scores(
    by_form: dict[str, CompressedIndex], uncentred_model: CompresSAE, asked: FloatArray
) -> None:
    index = by_form["packed"]
    decoded = normalize_rows(uncentred_model.decode(uncentred_model.encode(asked, 16)))
    exact = term_scores(index, decoded) * row_norms(asked)[:, None]
    found = index.search(asked, 5, mode="dense", scoring="symmetric")
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, rows_of(found), axis=1), rtol=1e-4)


def test_norms_of_one_are_cosine(
    uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    rows, unit = normalize_rows(vectors[:500]), normalize_rows(queries)
    cosine = CompressedIndex.build(rows, model=uncentred_model, k=16, progress=False)
    index = build(uncentred_model, rows)
    for mode in MODES:
        a, b = (each.search(unit, 5, mode=mode) for each in (index, cosine))
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-3)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_units_do_not_matter(
    by_form: dict[str, CompressedIndex],
    uncentred_model: CompresSAE,
    long_rows: FloatArray,
    asked: FloatArray,
    factor: float,
) -> None:
    index = build(uncentred_model, long_rows * np.float32(factor))
    for mode in MODES:
        expected = by_form["packed"].search(asked, 10, mode=mode)
        found = index.search(asked, 10, mode=mode)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores * np.float32(factor))


def test_explanations_add_up(by_form: dict[str, CompressedIndex], asked: FloatArray) -> None:
    index = by_form["packed"]
    result = index.search(asked[-1], 3, mode="dense")
    for score, id_ in zip(result.scores[0], result.ids[0], strict=True):
        explained = index.explain(asked[-1], int(id_))
        assert explained.score == pytest.approx(score, rel=1e-5)
        assert explained.contributions.sum() == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(explained.contributions, explained.projections * explained.values)
        codes = index.codes([id_])
        np.testing.assert_array_equal(np.sort(explained.values), np.sort(codes.values[0]))


@each_form
@pytest.mark.parametrize("mmap", [False, True])
def test_save_load_add(
    uncentred_model: CompresSAE,
    long_rows: FloatArray,
    asked: FloatArray,
    tmp_path: Path,
    forward: str,
    mmap: bool,
) -> None:
    whole = build(uncentred_model, long_rows[:600], forward=forward)
    build(uncentred_model, long_rows[:400], forward=forward).save(tmp_path / "i")
    index = CompressedIndex.load(tmp_path / "i", mmap=mmap)
    assert index.metric == index.stats().metric == "inner_product"
    # The unit stays, whatever the new rows are.
    index.add(long_rows[400:600])
    index.remove([3])
    index.compact()
    whole.remove([3])
    for mode in MODES:
        a, b = (each.search(asked, 10, mode=mode) for each in (index, whole))
        if forward == "aligned":  # the packed codec has learned its levels from other rows
            np.testing.assert_array_equal(a.scores, b.scores)
        assert recall(a.ids, b.ids, 10) > 0.9
    exact = term_scores(index, asked)
    found = index.search(asked, 10, mode="dense").scores
    np.testing.assert_allclose(found, -np.sort(-exact, axis=1)[:, :10], rtol=1e-4)
    kept = np.linalg.norm(index.reconstruct(index.ids), axis=1)
    np.testing.assert_allclose(kept, np.delete(np.linalg.norm(long_rows[:600], axis=1), 3), rtol=0.002)
    index.save(tmp_path / "j")
    again = CompressedIndex.load(tmp_path / "j")
    np.testing.assert_array_equal(again.search(asked, 9).scores, index.search(asked, 9).scores)


def test_an_empty_index_takes_its_unit_later(
    uncentred_model: CompresSAE, long_rows: FloatArray, asked: FloatArray, tmp_path: Path
) -> None:
    CompressedIndex(uncentred_model, metric="inner_product").save(tmp_path / "i")
    index = CompressedIndex.load(tmp_path / "i")
    assert (index.search(asked, 3).ids == -1).all()
    rows = long_rows[:300] * np.float32(1e-9)
    bad = rows.copy()
    bad[299] *= 1e6
    with pytest.raises(InputError, match="row 299 has norm"):
        index.add(bad * np.float32(1e3))
    assert len(index) == 0
    index.add(rows)  # of another unit than the rows that were refused
    np.testing.assert_allclose(
        np.linalg.norm(index.reconstruct([5, 9]), axis=1), np.linalg.norm(rows[[5, 9]], axis=1), rtol=0.002
    )


def test_norms_out_of_range(uncentred_model: CompresSAE, long_rows: FloatArray, asked: FloatArray) -> None:
    rows = normalize_rows(long_rows[:20])
    index = build(uncentred_model, rows)
    before = index.search(asked, 5)
    for factor in (2.0**-11, 2.0**13):
        bad = rows[:10].copy()
        bad[[4, 6]] *= np.float32(factor)
        with pytest.raises(
            InputError, match=r"row 4 has norm .* \(2 such rows\); .* keeps norms from 0.0009766 to 4096"
        ):
            index.add(bad)
        with pytest.raises(InputError, match="row 4 has norm"):
            build(uncentred_model, bad)
    np.testing.assert_array_equal(index.search(asked, 5).scores, before.scores)
    assert len(index) == 20
    index.add(np.concatenate([rows[:1] * 2.0**-9, rows[:1] * 2.0**11]))
    kept = np.linalg.norm(index.reconstruct([20, 21]), axis=1)
    np.testing.assert_allclose(kept, [2.0**-9, 2.0**11], rtol=0.01)
    with pytest.raises(InputError, match="queries row 1 is so long"):
        index.search(np.stack([asked[0], asked[1] * np.float32(1e37)]))


def test_norms_that_float32_does_not_hold(uncentred_model: CompresSAE, long_rows: FloatArray) -> None:
    rows = normalize_rows(long_rows[:20])
    index = build(uncentred_model, rows * np.float32(2.0**126))
    assert np.isfinite(index.reconstruct(np.arange(20))).all()
    beyond = np.sign(rows) * np.float32(3e38)
    with pytest.raises(InputError, match=r"row \d+ has norm .* to 1.701e\+38"):
        build(uncentred_model, beyond)


def test_bad_metric_and_unit(uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    wrong: Any = "euclidean"
    message = "metric must be one of 'cosine', 'inner_product', 'l2', got 'euclidean'"
    with pytest.raises(InputError, match=message):
        CompressedIndex.build(vectors[:100], model=uncentred_model, metric=wrong)
    with pytest.raises(InputError, match=message):
        exact_neighbours(vectors[:10], queries, 1, metric=wrong)
    for unit in (3.0, 0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="power of two"):
            RowScale("inner_product", unit)


def test_indexes_without_a_metric_are_cosine(
    built: CompressedIndex, queries: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compressae_index.persistence as persistence

    write = persistence.write

    def older(path: Any, kind: str, meta: dict[str, Any], **data: Any) -> None:
        kept = {name: value for name, value in meta.items() if name not in dropped}
        write(path, kind, kept | changed, **data)

    monkeypatch.setattr(persistence, "write", older)
    dropped: set[str] = {"metric", "unit"}
    changed: dict[str, Any] = {}
    built.save(tmp_path / "i")
    index = CompressedIndex.load(tmp_path / "i")
    assert index.metric == "cosine"
    np.testing.assert_array_equal(index.search(queries).scores, built.search(queries).scores)
    damages = ({"metric": "inner_product"}, {"metric": "euclidean"}, {"metric": "inner_product", "unit": 3})
    for damage in damages:
        changed = damage
        built.save(tmp_path / "j")
        with pytest.raises(FormatError):
            CompressedIndex.load(tmp_path / "j")


def test_commands(
    uncentred_model: CompresSAE,
    long_rows: FloatArray,
    asked: FloatArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("e.npy", long_rows)
    np.save("q.npy", asked)
    uncentred_model.save("m")

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    options = ("--model", "m", "--k", "16")
    made = run("build", "e.npy", *options, "-o", "i", "--metric", "inner_product")
    assert made["metric"] == run("info", "i")["metric"] == "inner_product"
    for more, low, high in (((), 0.8, 1.0), (("--metric", "cosine"), 0.0, 0.5)):
        measured = run("eval", "i", "e.npy", "q.npy", "--no-faiss", *more)["measurements"]
        by_name = {each["name"]: each["recall"]["100"] for each in measured}
        assert by_name["exact float32"] == 1
        assert low < by_name["dense"] < high
    run("encode", "e.npy", "--model", "m", "-o", "codes")
    refused = CliRunner().invoke(
        main, ["build", "--codes", "codes", "--model", "m", "-o", "n", "--metric", "inner_product"]
    )
    assert (refused.exit_code, refused.stderr) == (2, "Error: --metric cannot be used with --codes.\n")


def test_a_model_with_a_mean_is_refused(vectors: FloatArray, uncentred_model: CompresSAE) -> None:
    given = uncentred_model
    centred = CompresSAE(given.encoder_w, given.encoder_b, given.decoder_w, given.k, vectors.mean(axis=0))
    with pytest.raises(InputError, match="center=False"):
        CompressedIndex.build(vectors[:100], model=centred, metric="inner_product", progress=False)


def test_training_for_inner_products_leaves_the_mean_in(vectors: FloatArray) -> None:
    config = TrainConfig.preset("fast", refine_rounds=1, steps=1)
    for metric in METRICS:
        index = CompressedIndex.build(
            vectors[:600], k=4, n_latents=64, config=config, metric=metric, progress=False
        )
        assert (index.model.mean is not None) == (metric != "inner_product")  # the rows are of unit norm
