"""Recoding: an index codes its vectors anew, as if built by another model, while it is searched."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.demo import DemoData
from compressae_index.embedded.originals import Originals
from compressae_index.errors import FormatError

FORMS: tuple[dict[str, Any], ...] = (
    {"originals": "float32"},
    {"originals": "float16", "postings": 4, "value_bits": 5},
    {"residual_bits": 6, "postings": 8},
    {"forward": "aligned", "originals": "float32"},
)


@pytest.fixture(scope="module")
def other(vectors: FloatArray) -> CompresSAE:
    """Another model, of another size."""
    config = TrainConfig(k=12, n_latents=256, steps=0, refine_rounds=10)
    return train(vectors[::2], config).model


def alike(one: CompressedIndex, another: CompressedIndex, queries: FloatArray) -> None:
    """Both give the same answers, bit for bit, in every mode."""
    for mode in one.modes:
        for mine, theirs in zip(
            one.search(queries, 8, mode=mode), another.search(queries, 8, mode=mode), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("form", FORMS[:2] + FORMS[3:], ids=str)
def test_with_originals_it_is_as_if_built_anew(
    form: dict[str, Any], model: CompresSAE, other: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    names = [f"row {number}" for number in range(700)]
    index = CompressedIndex.build(vectors[:700], names, model=model, k=10, progress=False, **form)
    index.remove(names[100:150])
    index.upsert(vectors[900:910], names[:10])
    index.add(vectors[950:960], [f"new {number}" for number in range(10)])
    kept = np.r_[10:100, 150:700, 900:910, 950:960]
    if form["originals"] == "float16":
        half = vectors.astype(np.float16).astype(np.float32)
        expected = CompressedIndex.build(half[kept], index.ids, model=other, k=10, progress=False, **form)
    else:
        expected = CompressedIndex.build(vectors[kept], index.ids, model=other, k=10, progress=False, **form)
    index.recode(other)
    assert index.model.fingerprint == other.fingerprint
    assert index.ids.tolist() == expected.ids.tolist()
    for part in ("forward", "inverted"):
        assert index.stats().bytes_per_vector[part] == expected.stats().bytes_per_vector[part]
    alike(index, expected, queries)
    index.add(vectors[1000:1010], [f"newer {number}" for number in range(10)])
    assert index.search(vectors[1005], 1).ids.tolist() == [["newer 5"]]


def test_inner_products_keep_their_norms(
    uncentred_model: CompresSAE, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    rows = vectors[:500] * np.linspace(3, 40, 500, dtype=np.float32)[:, None]
    form: dict[str, Any] = {"metric": "inner_product", "k": 12, "originals": "float32", "progress": False}
    index = CompressedIndex.build(rows, model=uncentred_model, **form)
    with pytest.raises(InputError, match="leaves out their mean"):
        index.recode(model)
    better = train(
        vectors[:2000], TrainConfig(k=16, refine_rounds=8, steps=0, center=False, n_latents=300)
    ).model
    expected = CompressedIndex.build(rows, model=better, **form)
    index.recode(better)
    assert index.documents.unit == expected.documents.unit
    np.testing.assert_allclose(index.search(queries, 5).scores, expected.search(queries, 5).scores, rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(index.reconstruct(index.ids), axis=1), np.linalg.norm(rows, axis=1), rtol=0.01
    )


@pytest.mark.parametrize("originals", [None, "float32"])
def test_distances(vectors: FloatArray, queries: FloatArray, originals: Any) -> None:
    rows = vectors[:2500] * np.linspace(1, 4, 2500, dtype=np.float32)[:, None] + np.float32(0.5)
    asked = queries * 2 + np.float32(0.5)
    form: dict[str, Any] = {"metric": "l2", "k": 12, "residual_bits": 0 if originals else 4}
    form |= {"originals": originals, "progress": False}
    config = TrainConfig(k=12, refine_rounds=4, steps=0, n_latents=256)
    index = CompressedIndex.build(rows, config=config, **form)
    assert index.model.center is not None
    assert index.drift(rows[:1500]).verdict == "fine"
    assert index.drift(vectors[3000:4500] * -3).verdict == "recode"
    known = index.vectors[0:2500]
    np.testing.assert_allclose(known, rows if originals else index.reconstruct(index.ids), atol=2e-3)
    with pytest.raises(InputError, match="another center"):
        index.recode(index.model.centred_at(None))
    better = train(index.vectors, replace(config, refine_rounds=8), start=index.model).model
    np.testing.assert_array_equal(better.center, index.model.center)
    expected = CompressedIndex.build(known, model=better, **form)
    index.recode(better)
    found, hoped = (each.search(asked, 5, mode="dense").scores for each in (index, expected))
    np.testing.assert_allclose(found, hoped, rtol=1e-4)
    assert index.search(asked, 5, stats=True).stats is not None


def test_without_originals_it_codes_what_is_stored(
    model: CompresSAE, other: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:800], model=model, k=16, residual_bits=4, progress=False)
    stored = index.reconstruct(index.ids)
    np.testing.assert_allclose(index.vectors[100:120], stored[100:120], atol=1e-6)
    expected = CompressedIndex.build(stored, model=other, k=16, residual_bits=4, progress=False)
    index.recode(other)
    alike(index, expected, queries)


@pytest.mark.parametrize("residual_bits", [0, 2])
def test_distances_of_unit_rows_are_coded_as_cosines(
    model: CompresSAE, other: CompresSAE, vectors: FloatArray, residual_bits: int
) -> None:
    form: dict[str, Any] = {"k": 8, "residual_bits": residual_bits, "progress": False}
    by_distance = CompressedIndex.build(vectors[:600], model=model, metric="l2", **form)
    by_cosine = CompressedIndex.build(vectors[:600], model=model, **form)
    in_faiss = FaissIndex.from_index(by_distance)
    for index in (by_distance, by_cosine, in_faiss):
        index.recode(other)
    every: dict[str, Any] = {"candidates": 600, "query_nnz": other.n_latents}
    expected = by_cosine.search(vectors[:5], 6, **every)
    for index in (by_distance, in_faiss):
        found = index.search(vectors[:5], 6, **every)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, 2 - 2 * expected.scores, atol=1e-3)


def test_searches_see_the_old_or_the_new(
    model: CompresSAE, other: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:1500], model=model, k=8, originals="float32", progress=False)
    states = [copy.copy(index)]
    for each in (other, model):
        states.append(copy.copy(states[0]))
        states[-1].recode(each)
    expected = [state.search(queries[:4], 5, mode="sparse") for state in states]
    explained = [state.explain(queries[0], 7).score for state in states]
    seen: list[int] = []
    wrong: list[str] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            found = index.search(queries[:4], 5, mode="sparse")
            matches = [np.array_equal(found.scores, each.scores) for each in expected]
            if not any(matches) or index.explain(queries[0], 7).score not in explained:
                wrong.append("an answer of neither")
            seen.append(matches.index(True) if any(matches) else -1)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        index.recode(other)
        index.recode(model)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(seen) > 10


def test_a_failure_leaves_the_index_as_it_was(
    model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = CompressedIndex.build(vectors[:300], model=model, k=16, originals="float32", progress=False)
    before = copy.copy(index)
    with pytest.raises(InputError, match="must be a CompresSAE"):
        index.recode("m")  # type: ignore[arg-type]
    narrow = train(
        np.ascontiguousarray(vectors[:300, :24]), TrainConfig(k=4, n_latents=64, refine_rounds=1, steps=0)
    ).model
    with pytest.raises(DimensionError, match="dimension 24"):
        index.recode(narrow)
    monkeypatch.setattr(Originals, "subset", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.recode(other)
    alike(index, before, queries)
    monkeypatch.undo()
    index.add(vectors[300:301])  # the lock is free
    with pytest.raises(InputError, match="no vectors to code anew"):
        CompressedIndex(model).recode(other)


def test_another_kind_is_learned(demo_data: DemoData, tmp_path: Path) -> None:
    rows = demo_data.embeddings
    centred = rows - rows.mean(axis=0)
    side = centred @ np.linalg.svd(centred[:3000], full_matrices=False)[2][0]
    side *= -np.sign(np.median(side))
    first, second = rows[side < np.percentile(side, 50)][:6000], rows[side > np.percentile(side, 80)]
    config = TrainConfig(k=16, n_latents=1024, steps=0, refine_rounds=16)
    index = CompressedIndex.build(first, k=16, config=config, originals="float16", progress=False)
    index.remove(np.arange(5000))
    index.add(second[:3200])
    assert index.drift(second[3200:]).verdict == "recode"
    before = index.drift(second[3200:]).recall
    index.save(tmp_path / "old")
    model = train(second[:3200], TrainConfig(k=16, steps=0, refine_rounds=12), start=index.model).model
    assert model.n_latents == 1024
    index.recode(model)
    again = CompressedIndex.load(tmp_path / "old")
    again.recode()
    for each in (index, again):
        found = each.drift(second[3200:])
        assert found.recall is not None
        assert before is not None
        assert found.recall > before + 0.05
        assert each.probe is not None
        assert each.probe.added.n == 0
        assert each.probe.built.n == 4200


def test_training_goes_on(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    config = TrainConfig(k=16, steps=0, refine_rounds=10, round_rows=1024)
    done = train(vectors, config, start=model, checkpoint=tmp_path / "state")
    assert done.model.n_latents == model.n_latents
    assert done.rounds[0].error < train(vectors, config.with_codes(None, 512)).rounds[0].error
    again = train(vectors, config, start=model, checkpoint=tmp_path / "state")
    np.testing.assert_array_equal(again.model.decoder_w, done.model.decoder_w)
    with pytest.raises(InputError, match="was made with start"):
        train(vectors, config, start=done.model, checkpoint=tmp_path / "state")
    with pytest.raises(InputError, match="n_latents"):
        train(vectors, TrainConfig(n_latents=300), start=model)
    with pytest.raises(InputError, match="refine_rounds = 0"):
        train(vectors, TrainConfig(refine_rounds=0), start=model)
    with pytest.raises(DimensionError, match="dimension 20"):
        train(np.ascontiguousarray(vectors[:, :20]), start=model)


def test_the_command(
    tmp_path: Path, model: CompresSAE, other: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:400], model=model, k=8, originals="float32", progress=False)
    index.save(tmp_path / "index")
    other.save(tmp_path / "model")
    folder = str(tmp_path)
    arguments = ["recode", f"{folder}/index", "-o", f"{folder}/new", "--model", f"{folder}/model"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    index.recode(other)
    alike(CompressedIndex.load(tmp_path / "new"), index, queries)
    assert CompressedIndex.load(tmp_path / "index").model.fingerprint == model.fingerprint
    with pytest.raises(FormatError):
        CompressedIndex.load(tmp_path / "model")
