"""The last stage in Faiss's lists: residual codes and original vectors, kept in step with the codes."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    StorageError,
    TrainConfig,
    train,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.cli import main
from compressae_index.coding.metric import Metric
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.faiss.inverted import InvertedFile
from compressae_index.demo import DemoData
from compressae_index.search.frontier import Frontier, Point
from compressae_index.testing import assert_best

N = 600
FIRST_ID = 5000
IDS = np.arange(FIRST_ID, FIRST_ID + N)
KINDS: dict[str, dict[str, Any]] = {
    "residuals": {"residual_bits": 3},
    "residuals of aligned codes": {"residual_bits": 4, "forward": "aligned"},
    "float16": {"originals": "float16"},
    "float32": {"originals": "float32"},
}


@pytest.fixture(scope="module")
def queries(demo_data: DemoData) -> FloatArray:
    """15 held-out embeddings."""
    return demo_data.queries[:15]


each_kind = pytest.mark.parametrize("kind", KINDS)


def lengths(n: int) -> FloatArray:
    return np.random.default_rng(5).uniform(20, 60, (n, 1)).astype(np.float32)


def embedded(
    model: CompresSAE, vectors: FloatArray, kind: str, metric: Metric = "cosine", **settings: Any
) -> CompressedIndex:
    """The first N vectors, some of which are removed."""
    settings = KINDS[kind] | settings
    index = CompressedIndex.build(
        vectors[:N], IDS, model=model, k=16, metric=metric, progress=False, **settings
    )
    index.remove(IDS[3:400:7])
    return index


def known(index: Any, ids: Any) -> FloatArray:
    """The vectors of ids as the last stage knows them."""
    unit = index.documents.unit or 1.0
    vectors: FloatArray = index.documents.vectors(np.asarray(ids), index.model) * np.float32(unit)
    return vectors


def assert_alike(index: FaissIndex, expected: CompressedIndex, queries: FloatArray) -> None:
    """Checks that both give the same documents, scores, codes and vectors."""
    ids = np.sort(expected.ids)
    assert np.array_equal(np.sort(index.ids), ids)
    assert index.documents.refines
    assert index.documents.residual_bits == expected.documents.residual_bits
    np.testing.assert_array_equal(index.codes(ids).to_dense(), expected.codes(ids).to_dense())
    np.testing.assert_allclose(index.reconstruct(ids), expected.reconstruct(ids), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(known(index, ids), known(expected, ids), rtol=1e-6, atol=1e-6)
    mask = np.isin(index.ids, ids[::3])
    for settings in ({"refine": 20}, {"refine": 0}, {}, {"refine": 15, "scoring": "symmetric"}):
        found, wanted = (one.search(queries, 10, candidates=4 * N, **settings) for one in (index, expected))
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=2e-6, atol=2e-6)
        assert (found.ids == wanted.ids).mean() > 0.98
    for allowed in (ids[::3], mask):
        found = index.search(queries, 10, candidates=4 * N, filter=allowed)
        wanted = expected.search(queries, 10, candidates=4 * N, filter=ids[::3])
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=2e-6, atol=2e-6)
    why: list[Any] = [one.explain(queries[0], ids[5]) for one in (index, expected)]
    for got, given in zip(*why, strict=True):
        np.testing.assert_allclose(got, given, rtol=1e-5, atol=1e-6)


@each_kind
def test_it_answers_as_the_index_that_it_was_made_of(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str
) -> None:
    index = embedded(model, vectors, kind)
    filed = FaissIndex.from_index(index, progress=False)
    assert_alike(filed, index, queries)
    # By exact products of the best by codes. These are chosen by queries that are rounded to bytes.
    queries = np.rint(queries * (127 / np.abs(queries).max(axis=1, keepdims=True)))
    found, by_codes = filed.search(queries, 10, refine=30), filed.search(queries, 30, refine=0)
    exact = np.full((len(queries), N), -np.inf)
    unit = normalize_rows(queries).astype(np.float64)
    for row, best in enumerate(by_codes.ids):
        exact[row, best - FIRST_ID] = known(filed, best) @ unit[row]
    assert_best(found, exact, 10, IDS, tolerance=1e-3)


@each_kind
@pytest.mark.parametrize("scale", [1.0, 2.0**-9])
def test_inner_products(
    uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str, scale: float
) -> None:
    rows = vectors[:N] * lengths(N) * np.float32(scale)
    index = embedded(uncentred_model, rows, kind, "inner_product")
    filed = FaissIndex.from_index(index, progress=False)
    more = vectors[N : N + 20] * 40 * np.float32(scale)
    for one in (index, filed):
        one.add(more, np.arange(20))
    ids = index.ids
    best = np.abs(known(index, ids)).max()
    np.testing.assert_allclose(known(filed, ids), known(index, ids), rtol=1e-5, atol=1e-3 * best)
    found, wanted = (one.search(queries * 2, 10, candidates=4 * N) for one in (filed, index))
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4)
    assert (found.ids == wanted.ids).mean() > 0.98


@each_kind
def test_changes_keep_it_in_step(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str
) -> None:
    index = embedded(model, vectors, kind)
    filed = FaissIndex.from_index(index, progress=False)
    for one in (index, filed):
        one.add(vectors[N : N + 300], np.arange(300))
        one.remove(np.arange(0, 300, 7))
        one.upsert(vectors[N + 300 : N + 400], [*range(1, 50, 2), *range(FIRST_ID + 5, FIRST_ID + 80)][:100])
    assert_alike(filed, index, queries)
    given = normalize_rows(vectors[N + 300 : N + 302])
    cosines = np.einsum("nd,nd->n", known(filed, [1, 3]), given)
    assert (cosines > (0.97 if "residuals" in kind else 0.9999)).all()
    filed.compact()
    assert_alike(filed, index, queries)
    filed.remove(filed.ids)
    filed.compact()
    filed.add(vectors[:20], np.arange(20))
    assert filed.search(vectors[:20], 1).ids[:, 0].tolist() == list(range(20))
    assert known(filed, [3])[0] @ normalize_rows(vectors[3:4])[0] > 0.97


@each_kind
@pytest.mark.parametrize("mmap", [False, True])
def test_it_is_saved_loaded_and_pickled(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str, mmap: bool, tmp_path: Path
) -> None:
    index = embedded(model, vectors, kind)
    filed = FaissIndex.from_index(index, progress=False)
    for one in (index, filed):
        one.add(vectors[N : N + 50], np.arange(50))
        one.remove([7])
    filed.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index", mmap=mmap)
    assert_alike(loaded, index, queries)
    assert_alike(pickle.loads(pickle.dumps(loaded)), index, queries)
    loaded.compact()
    loaded.save(tmp_path / "index")
    assert_alike(FaissIndex.load(tmp_path / "index"), index, queries)


@each_kind
def test_it_is_built_on_disk_as_in_memory(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str, tmp_path: Path
) -> None:
    index = embedded(model, vectors, kind)
    FaissIndex.from_index(index, progress=False).save(tmp_path / "memory")
    built = FaissIndex.from_index(index, tmp_path / "disk", progress=False)
    assert_alike(built, index, queries)
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).glob("data-*/*")}
        for name in ("memory", "disk")
    ]
    assert contents[0] == contents[1]
    assert ("originals.npy" in contents[0]) is ("originals" in KINDS[kind])
    index.remove(index.ids)
    assert len(FaissIndex.from_index(index, tmp_path / "empty", progress=False)) == 0


@each_kind
def test_shards_are_merged(model: CompresSAE, vectors: FloatArray, queries: FloatArray, kind: str) -> None:
    index = embedded(model, vectors, kind)
    other = CompressedIndex.build(vectors[N : 2 * N], model=model, k=16, progress=False, **KINDS[kind])
    other.remove(np.arange(0, N, 9))
    merged, one = (FaissIndex.from_index(each, progress=False) for each in (index, other))
    expected = {id_: known(one, [id_])[0] for id_ in (1, 500, 598)}
    merged.merge(one)
    assert len(merged) == len(index) + len(other)
    np.testing.assert_array_equal(known(merged, index.ids), known(index, index.ids))
    for id_, vector in expected.items():
        # Residual codes are rounded again, if the levels of codes differ.
        assert known(merged, [id_])[0] @ vector > (0.98 if "residuals" in kind else 0.9999)
    assert merged.search(vectors[N + 1 : N + 30 : 9], 1).ids[:, 0].tolist() == list(range(1, 30, 9))
    empty = FaissIndex(model, k=16)
    empty.merge(FaissIndex.from_index(index, progress=False))
    assert_alike(empty, index, queries)


def test_indexes_of_different_last_stages_are_not_merged(model: CompresSAE, vectors: FloatArray) -> None:
    plain = FaissIndex(model, k=16)
    plain.add(vectors[:50], np.arange(50))
    for kind in ("residuals", "float16"):
        refined = FaissIndex.from_index(embedded(model, vectors, kind), progress=False)
        for one, two in ((plain, refined), (refined, plain)):
            with pytest.raises(
                InputError, match=r"must agree in \(residual_bits, whether there are original"
            ):
                one.merge(two)
        with pytest.raises(InputError, match="add vectors instead of codes"):
            refined.documents.put(plain.codes([1]), np.array([1]))
    assert len(plain) == 50


def test_references_are_checked_and_may_be_moved(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    np.save(tmp_path / "vectors.npy", vectors[:N])
    index = embedded(model, vectors, "float32", originals=tmp_path / "vectors.npy")
    filed = FaissIndex.from_index(index, progress=False)
    for one in (index, filed):
        one.add(vectors[N : N + 50], np.arange(50))
    assert_alike(filed, index, queries)
    filed.save(tmp_path / "index")
    stored = next((tmp_path / "index").glob("data-*/originals.npy"))
    assert np.load(stored).shape == (50, 384)  # the others stay where they are
    assert_alike(FaissIndex.load(tmp_path / "index", mmap=True), index, queries)
    (tmp_path / "vectors.npy").rename(tmp_path / "moved.npy")
    with pytest.raises(FormatError, match="cannot be used"):
        FaissIndex.load(tmp_path / "index")
    moved = FaissIndex.load(tmp_path / "index", mmap=True, originals=tmp_path / "moved.npy")
    assert_alike(moved, index, queries)
    assert_alike(pickle.loads(pickle.dumps(moved)), index, queries)
    without = FaissIndex.load(tmp_path / "index", mmap=True, originals=False)
    np.testing.assert_array_equal(without.search(queries, 10).ids, filed.search(queries, 10, refine=0).ids)
    with pytest.raises(InputError, match="no stage that scores again"):
        without.search(queries, 10, refine=20)
    assert not pickle.loads(pickle.dumps(without)).documents.refines
    with (tmp_path / "moved.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="was changed since"):
        moved.search(queries, 10)
    moved.search(queries, 10, refine=0)


def test_the_frontier_comes_along(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    index = embedded(model, vectors, "float16")
    index.frontier = Frontier((Point(30, 40, 12, 0.8, 1000.0), Point(200, 100, 20, 0.9, 2000.0)))
    filed = FaissIndex.from_index(index, progress=False)
    filed.save(tmp_path / "memory")
    made = [
        filed,
        FaissIndex.load(tmp_path / "memory"),
        FaissIndex.from_index(index, tmp_path / "disk", progress=False),
    ]
    for one in made:
        assert one.frontier == index.frontier
        found = one.search(queries, 10, target_recall=0.75)
        expected = filed.search(queries, 10, candidates=30, query_nnz=40, refine=12)
        np.testing.assert_array_equal(found.ids, expected.ids)
    without = FaissIndex.load(tmp_path / "memory", originals=False)
    assert without.frontier is None


def test_damaged_residuals_are_refused(model: CompresSAE, vectors: FloatArray) -> None:
    from compressae_index.connectors.faiss.inverted import InvertedFile

    documents = FaissIndex.from_index(embedded(model, vectors, "residuals"), progress=False).documents
    meta, arrays = documents.manifest(), documents.to_arrays()
    damaged = np.full_like(arrays["forward_residuals"], 255)
    for change, message in (
        ({"forward_residuals": damaged}, "no finite scale"),
        ({"forward_residuals": arrays["forward_residuals"][:-1]}, "residual rows must be uint8"),
        ({"forward_residuals": arrays["forward_residuals"].view(np.int8)}, "must be uint8"),
        ({"forward_residuals": np.asfortranarray(arrays["forward_residuals"])}, "must be uint8 in C order"),
    ):
        with pytest.raises(ValueError, match=message):
            InvertedFile.from_stored(model, lambda _: documents.faiss_index, meta, arrays | change)
    del arrays["forward_residuals"]
    with pytest.raises(InputError, match="lacks the array forward_residuals"):
        InvertedFile.from_stored(model, lambda _: documents.faiss_index, meta, arrays)


@pytest.fixture(scope="module")
def other(vectors: FloatArray) -> CompresSAE:
    """Another model, without a mean, of another size."""
    config = TrainConfig(k=12, n_latents=256, steps=0, refine_rounds=5, center=False)
    return train(vectors[::2], config).model


@pytest.mark.parametrize("kind", ["residuals", "residuals of aligned codes", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
def test_it_is_recoded_as_the_index_that_it_was_made_of(
    uncentred_model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    kind: str,
    metric: Metric,
) -> None:
    rows = vectors[:N] if metric == "cosine" else vectors[:N] * lengths(N) * np.float32(2.0**-9)
    index = embedded(uncentred_model, rows, kind, metric)
    filed = FaissIndex.from_index(index, progress=False)
    gone = index.ids[5:9]
    for each in (index, filed):
        each.remove(gone)
    np.testing.assert_allclose(filed.vectors[3:99], index.vectors[3:99], rtol=1e-5, atol=1e-6)
    for each in (index, filed):
        each.recode(other)
    expected = FaissIndex.from_index(index, progress=False)
    assert filed.model is other
    assert filed.ids.tolist() == expected.ids.tolist()
    for settings in ({"refine": 30}, {"refine": 0}, {"mode": "sparse"}):
        found, wanted = (each.search(queries, 8, **settings) for each in (filed, expected))
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6)
    filed.add(rows[:3], [1, 2, 3])
    assert filed.search(rows[2], 2).ids.tolist() in ([[3, IDS[2]]], [[IDS[2], 3]])


def test_codes_alone_are_recoded_from_a_map_to_an_output(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    index = CompressedIndex.build(vectors[:N], IDS, model=model, k=16, progress=False)
    filed = FaissIndex.from_index(index, tmp_path / "old", progress=False)
    rows = np.asarray(filed.vectors[0:N])
    np.testing.assert_allclose(rows, index.vectors[0:N], atol=1e-6)
    better = train(filed.vectors, TrainConfig(k=16, steps=0, refine_rounds=3), start=model).model
    better.save(tmp_path / "model")
    arguments = ["recode", str(tmp_path / "old"), "-o", str(tmp_path / "new")]
    done = CliRunner().invoke(main, [*arguments, "--model", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "new", "old"]
    new, expected = FaissIndex.load(tmp_path / "new"), FaissIndex(better, k=16)
    assert (filed.model.fingerprint, new.model.fingerprint) == (model.fingerprint, better.fingerprint)
    expected.add(rows, IDS)
    # The codec of the old index has fewer bits than that of a new FaissIndex.
    found, wanted = (each.search(queries, 5, mode="sparse").scores for each in (new, expected))
    np.testing.assert_allclose(found, wanted, atol=0.02)
    filed.recode(better)
    np.testing.assert_array_equal(filed.search(queries, 5).scores, new.search(queries, 5).scores)
    filed.add(vectors[N : N + 1], [1])  # it is no longer mapped


def test_searches_see_the_old_or_the_new(
    uncentred_model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = FaissIndex.from_index(embedded(uncentred_model, vectors, "float32"), progress=False)
    index.recode(uncentred_model)  # with levels of values that it has each time
    asked = queries[:3]
    expected = [index.search(asked, 5, mode="sparse").scores]
    with monkeypatch.context() as patched:
        patched.setattr(InvertedFile, "put_packed", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.recode(other)
    np.testing.assert_array_equal(index.search(asked, 5, mode="sparse").scores, expected[0])
    index.recode(other)
    expected.append(index.search(asked, 5, mode="sparse").scores)
    assert not np.array_equal(expected[0], expected[1])
    done, answers = threading.Event(), list[FloatArray]()

    def search() -> None:
        while not done.is_set():
            answers.append(index.search(asked, 5, mode="sparse").scores)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for model in (uncentred_model, other) * 2:
        index.recode(model)
    done.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 2
    assert all(any(np.array_equal(each, one) for one in expected) for each in answers)
