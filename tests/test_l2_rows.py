"""Euclidean distances: training for them, and rows of zeros or at the center, which are like others."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import BatchEncoder, CompresSAE, CompressedIndex, InputError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.building.estimation import estimate
from compressae_index.cli import main
from compressae_index.coding.directory import encode_to_directory
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.measuring.model_report import model_report
from compressae_index.sources import GoodRows, open_vectors
from compressae_index.sources.sample import spread_sample

DIM = 24
CONFIG = TrainConfig.preset("fast", k=6, n_latents=64, steps=0, refine_rounds=4)
# Rows that are zero, missing, and at the mean of all others.
ZEROS, MISSING, MIDDLE = (3, 40), 9, 11


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    """400 points around one that is far from 0; two of them are 0, and one is the mean of all."""
    rng = np.random.default_rng(5)
    around = rng.standard_normal((400, 8)) @ rng.standard_normal((8, DIM)) + 6
    found = (around * rng.lognormal(0, 0.3, (400, 1))).astype(np.float32)
    found[list(ZEROS)] = 0
    others = np.delete(found, [MIDDLE], 0).mean(axis=0, dtype=np.float64)
    found[MIDDLE] = others
    return found


@pytest.fixture
def spoiled(rows: FloatArray) -> FloatArray:
    """The same with a row of NaN."""
    bad = rows.copy()
    bad[MISSING] = np.nan
    return bad


@pytest.fixture(scope="module")
def trained(rows: FloatArray) -> CompresSAE:
    return train(rows, CONFIG, metric="l2").model


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_training_makes_the_model_of_build(rows: FloatArray, trained: CompresSAE) -> None:
    index = CompressedIndex.build(rows, metric="l2", config=CONFIG, progress=False)
    assert trained.center is not None
    np.testing.assert_allclose(trained.center, rows.mean(axis=0), rtol=1e-5)
    assert trained.fingerprint == index.model.fingerprint
    again = CompressedIndex.build(rows, metric="l2", model=trained, k=6, progress=False)
    np.testing.assert_array_equal(again.codes(again.ids).values, index.codes(index.ids).values)
    unit = rows[50:] / np.linalg.norm(rows[50:], axis=1, keepdims=True)
    on_sphere = train(unit, CONFIG, metric="l2").model
    assert on_sphere.center is None
    assert on_sphere.fingerprint == train(unit, CONFIG).model.fingerprint
    assert train(unit, CONFIG, metric="inner_product").model.mean is None


def test_training_goes_on_from_the_center(rows: FloatArray, trained: CompresSAE) -> None:
    better = train(rows[:200], CONFIG, start=trained).model  # whatever its config says of a mean
    np.testing.assert_array_equal(better.center, trained.center)
    assert better.mean is None
    with pytest.raises(InputError, match="metric must be one of"):
        train(rows, CONFIG, metric="manhattan")  # type: ignore[arg-type]


def test_room_for_norms_is_checked_before_training() -> None:
    config, many = TrainConfig(k=1, n_latents=65_536), np.ones((65_536, 4), np.float32)
    for act in (
        lambda: train(many, config, metric="l2"),
        lambda: CompressedIndex.build(many, metric="l2", config=config, progress=False),
        lambda: estimate(many, metric="l2", k=1, n_latents=65_536),
    ):
        with pytest.raises(InputError, match="n_latents must be below 65536"):
            act()


def test_estimates_count_norms(rows: FloatArray) -> None:
    known: Any = {"k": 6, "n_latents": 64, "postings": 3, "value_bits": 6}
    found, plain = (estimate(rows[50:], metric=metric, **known) for metric in ("l2", "cosine"))
    assert found.plan.bytes_per_vector == plain.plan.bytes_per_vector + 2
    built = CompressedIndex.build(rows[50:], metric="l2", config=CONFIG, postings=3, progress=False)
    assert found.index_bytes == pytest.approx(350 * built.stats().bytes_per_vector["total"], rel=0.02)
    assert 0 < found.plan.recall <= 1
    assert estimate(rows, metric="l2", **known).plan.recall > 0  # of rows of zeros, too
    # What is far from 0 looks all alike from there.
    assert found.plan.dense_recall > plain.plan.dense_recall - 0.05


def test_training_and_estimates_on_the_command_line(
    spoiled: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", spoiled)
    sizes = ("--k", 6, "--n-latents", 64)
    skip = ("--metric", "l2", "--on-bad-rows", "skip")
    run("train", "rows.npy", "-o", "m", *sizes, "--steps", 0, "--preset", "fast", *skip)
    made = CompresSAE.load("m")
    assert made.center is not None
    np.testing.assert_allclose(made.center, np.nanmean(spoiled, axis=0), rtol=1e-5)
    shown = json.loads(run("build", "rows.npy", "-o", "i", "--model", "m", "--k", 6, *skip, "--json").stdout)
    assert (shown["vectors"], shown["skipped_ids"]) == (399, [MISSING])
    estimated = json.loads(run("estimate", "rows.npy", *sizes, *skip, "--json").stdout)
    assert estimated["vectors"] == 399
    assert "dead latents" in run("report", "m", "rows.npy", "--on-bad-rows", "skip").stdout
    run("drift", "i", "rows.npy", "--on-bad-rows", "skip")
    np.save("queries.npy", spoiled[[*ZEROS, MIDDLE]])
    found = json.loads(run("search", "i", "queries.npy", "-k", 2, "--json").stdout)
    assert [sorted(each) for each in found["ids"][:2]] == [[*ZEROS], [*ZEROS]]
    assert found["ids"][2][0] == MIDDLE
    why = json.loads(run("explain", "i", "queries.npy", MIDDLE, "--json").stdout)
    parts = [why["mean"], why["residual"], why["bias"], *(each["contribution"] for each in why["latents"])]
    assert sum(parts) == pytest.approx(why["score"], rel=1e-4)
    assert "| bias " in run("explain", "i", "queries.npy", MIDDLE).stdout
    ids = np.arange(1000, 1400)
    np.save("ids.npy", ids)
    run("build", "rows.npy", "-o", "named", "--model", "m", "--k", 6, "--ids", "ids.npy", *skip)
    measured = run(
        *("eval", "named", "rows.npy", "queries.npy", "--ids", "ids.npy", "--on-bad-rows", "skip", "--json")
    )
    assert json.loads(measured.stdout)["left_out"] == 1  # the row of NaN


@pytest.mark.parametrize("kept", [{}, {"residual_bits": 2}, {"originals": "float32"}, {"forward": "aligned"}])
def test_rows_of_zeros_and_at_the_center_stay(
    spoiled: FloatArray, trained: CompresSAE, kept: dict[str, Any], tmp_path: Path
) -> None:
    options: Any = {"model": trained, "k": 6, "metric": "l2", "progress": False, **kept}
    names = [f"p{i}" for i in range(400)]
    index = CompressedIndex.build(spoiled[:200], names[:200], on_bad_rows="skip", **options)
    assert index.skipped.tolist() == [names[MISSING]]
    center = trained.center
    assert center is not None
    more = np.stack([center, np.zeros(DIM), np.full(DIM, np.nan)]).astype(np.float32)
    index.add(more, ["center", "zero", "none"], on_bad_rows="skip")
    assert index.skipped.tolist() == ["none"]
    index.upsert(more, ["center", "zero", "none"], on_bad_rows="skip")
    index.save(tmp_path / "i")
    index = CompressedIndex.load(tmp_path / "i")
    assert len(index) == 201
    best = index.search(center, 2, mode="dense")
    assert {*best.ids[0].tolist()} == {"center", names[MIDDLE]}
    assert best.scores.max() <= 1e-3
    zeros = {names[3], names[40], "zero"}
    for mode in index.modes:
        found = index.search(np.zeros(DIM, np.float32), 3, mode=mode, query_nnz=64)
        assert {*found.ids[0].tolist()} == zeros, mode
    np.testing.assert_allclose(index.reconstruct(["center"])[0], center, atol=1e-3)
    why = index.explain(more[1], "center")
    assert why.score == pytest.approx(float(np.square(center.astype(np.float64)).sum()), rel=1e-3)
    assert index.neighbours(["zero"], 2).ids[0].tolist() == [names[3], names[40]]
    near = index.neighbours(["center"], 1)
    assert near.ids[0, 0] == names[MIDDLE]
    index.recode(trained)
    assert "center" in index.search(center, 2, mode="dense").ids
    index.remove(["center", "zero"])
    index.compact()
    assert {*index.search(np.zeros(DIM, np.float32), 2).ids[0].tolist()} == {names[3], names[40]}


def test_originals_of_the_user_have_the_rows_that_are_skipped(
    spoiled: FloatArray, trained: CompresSAE, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", spoiled)
    for originals in (spoiled, tmp_path / "rows.npy"):
        options: Any = {"model": trained, "k": 6, "metric": "l2", "progress": False, "originals": originals}
        index = CompressedIndex.build(tmp_path / "rows.npy", on_bad_rows="skip", **options)
        found = index.search(spoiled[[3, 20, 399]], 1, mode="dense", refine=399)
        assert found.ids.ravel().tolist() == [3, 20, 399]
        np.testing.assert_allclose(found.scores, 0, atol=1e-3)


def test_an_iterator_may_give_zeros(spoiled: FloatArray, rows: FloatArray, trained: CompresSAE) -> None:
    options: Any = {"model": trained, "k": 6, "metric": "l2", "progress": False}
    index = CompressedIndex.build(iter([rows[:100], rows[100:]]), **options)
    index.add(iter([rows[:5]]))
    assert len(index) == 405
    index.add(iter([spoiled[:20]]), on_bad_rows="skip")
    assert index.skipped.tolist() == [405 + MISSING]
    assert train(iter([rows]), CONFIG, metric="l2").model.fingerprint == trained.fingerprint
    with pytest.raises(InputError, match="is zero"):
        CompressedIndex.build(iter([rows]), model=trained.centred_at(None), k=6, progress=False)


def test_indexes_of_unit_rows_have_no_place_for_zeros(rows: FloatArray) -> None:
    unit = rows[50:] / np.linalg.norm(rows[50:], axis=1, keepdims=True)
    index = CompressedIndex.build(unit, metric="l2", config=CONFIG, progress=False)
    with pytest.raises(InputError, match="row 0 is zero"):
        index.add(np.zeros((1, DIM), np.float32))
    index.add(np.stack([unit[0], 0 * unit[0]]), on_bad_rows="skip")
    assert (len(index), index.skipped.tolist()) == (351, [351])


def test_zeros_in_sources(spoiled: FloatArray) -> None:
    assert GoodRows(spoiled).skipped.tolist() == sorted([*ZEROS, MISSING])
    assert GoodRows(spoiled, zeros=True).skipped.tolist() == [MISSING]
    nothing = np.zeros((3, 4), np.float32)
    assert open_vectors(nothing, on_bad_rows="skip", zeros=True).shape == (3, 4)
    with pytest.raises(InputError, match="all 2 rows of the embeddings hold NaN"):
        open_vectors(nothing[:2] + np.nan, on_bad_rows="skip", zeros=True)
    sample = spread_sample(spoiled, 400, np.random.default_rng(0), skip=True, zeros=True)
    assert (len(sample), int((~sample.any(axis=1)).sum())) == (399, 2)


def test_batches_and_reports_take_zeros(rows: FloatArray, trained: CompresSAE) -> None:
    uncentred = trained.centred_at(None)
    index = CompressedIndex.build(rows, model=uncentred, k=6, metric="l2", progress=False)
    batch = BatchEncoder.of_index(index)({"embedding": rows[:5]})
    assert batch["scale"][3] == 0
    assert len(batch["code"]) == 5
    for model in (trained, uncentred):
        made = CompressedIndex.build(rows, model=model, k=6, metric="l2", progress=False)
        assert made.drift(rows).vectors == 400
    assert model_report(trained, rows).rows > 0


def test_codes_of_a_centred_model_are_not_made_twice(
    rows: FloatArray, trained: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained.save("m")
    encode_to_directory(trained, rows, tmp_path / "codes", k=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that rows have changed
        encode_to_directory(trained, rows, tmp_path / "codes", k=6)
    refused = CliRunner().invoke(main, ["build", "--codes", "codes", "--model", "m", "-o", "i"])
    assert "hold no norms, which metric='l2' needs: encode to Parquet" in refused.output
    arrow, parquet = (pytest.importorskip(f"pyarrow{part}") for part in ("", ".parquet"))
    table = BatchEncoder(trained, k=6)(arrow.table({"embedding": list(rows)}))
    parquet.write_table(table, "codes.parquet")
    run("build", "--codes", "codes.parquet", "--model", "m", "-o", "i")
    index = CompressedIndex.load("i")
    assert index.metric == "l2"
    built = CompressedIndex.build(rows, model=trained, k=6, metric="l2", progress=False)
    np.testing.assert_allclose(
        index.search(rows[:9], 5).scores, built.search(rows[:9], 5).scores, rtol=1e-3, atol=1e-2
    )


def test_rows_at_one_place_leave_the_unit_to_others(rows: FloatArray) -> None:
    """What rounding leaves of them says nothing of how long others are."""
    many = rows[50:100] * np.float32(3)
    axes = CompresSAE.of_dictionary(np.eye(DIM, dtype=np.float32), 1)
    for first in (many[:1], np.repeat(many[:1], 20, axis=0), np.zeros((5, DIM), np.float32)):
        center = first.mean(axis=0, dtype=np.float64).astype(np.float32)
        for model in (axes.centred_at(center), axes):
            options: Any = {"model": model, "k": 1, "metric": "l2", "originals": "float32", "progress": False}
            index = CompressedIndex.build(first, **options)
            index.add(many)
            faiss_index = FaissIndex.from_index(index, progress=False)
            exact = np.square(many[:5, None].astype(np.float64) - many).sum(axis=2)
            wanted = len(first) + np.argsort(exact, axis=1)[:, 1]
            for each in (index, faiss_index):
                found = each.search(many[:5], 40, mode="dense" if each is index else "two_stage", refine=70)
                assert all(row in ids for row, ids in zip(wanted.tolist(), found.ids.tolist(), strict=True))


def test_distances_within_float32(rows: FloatArray) -> None:
    scale = np.float32(2.0**56)
    index = CompressedIndex.build(rows * scale, metric="l2", config=CONFIG, progress=False)
    found = index.search(rows[:4] * scale, 2)  # although rows of 4096 times their norm would be too far
    assert np.isfinite(found.scores).all()
    with pytest.raises(InputError, match=r"keeps norms from 0 to 6\.522e\+18"):
        CompressedIndex.build(rows * np.float32(2.0**62), metric="l2", config=CONFIG, progress=False)
    with pytest.raises(InputError, match=r"too short: their largest norm is .*, and below 8\.88e-16"):
        CompressedIndex.build(rows * np.float32(2.0**-60), metric="l2", config=CONFIG, progress=False)
