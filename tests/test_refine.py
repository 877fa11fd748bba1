"""Original vectors as the last stage: exact scores, in step with every change, and clear errors."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from folders import assert_nothing_stray, content_of
from fuzzing import fit_checksums
from oracles import assert_same

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    DimensionError,
    FormatError,
    InputError,
    StorageError,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.metric import Metric, row_norms
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.embedded.originals import Originals
from compressae_index.testing import Float64, sampled_model, term_scores

DIM = 40
METRICS: tuple[Metric, ...] = ("cosine", "inner_product")


class Kept(NamedTuple):
    """A way to keep original vectors."""

    place: str
    """Copies of the index's own, a file that it refers to, or an array."""
    dtype: str

    def given(self, rows: FloatArray, folder: Path) -> Any:
        """What `build` takes as originals."""
        if self.place == "own":
            return self.dtype
        rows = rows.astype(self.dtype)
        if self.place == "array":
            return rows
        file = folder / f"{self.dtype}.npy"
        np.save(file, rows)
        return file

    def stored(self, rows: FloatArray, metric: Metric, unit: float, *, added: bool) -> Float64:
        """The vectors that an index keeps for rows, (n, d), in the units of the rows."""
        if self.place == "own" or added:
            scaled = normalize_rows(rows)
            if metric == "inner_product":
                scaled = scaled * (row_norms(rows) / unit).astype(np.float32)[:, None]
            return scaled.astype(self.dtype).astype(np.float64) * (1 if metric == "cosine" else unit)
        return rows.astype(self.dtype).astype(np.float64)


KEPT = [Kept(place, dtype) for place in ("own", "file", "array") for dtype in ("float32", "float16")]
each_kept = pytest.mark.parametrize("kept", KEPT, ids="-".join)
each_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """4,000 real embeddings of fewer dimensions, whose norms differ."""
    norms = np.random.default_rng(0).uniform(5, 200, (4000, 1))
    return (normalize_rows(np.ascontiguousarray(vectors[:, :DIM])) * norms).astype(np.float32)


@pytest.fixture(scope="module")
def asked(queries: FloatArray) -> FloatArray:
    return np.ascontiguousarray(queries[:4, :DIM]) * np.array([[1], [3], [0.01], [100]], np.float32)


@pytest.fixture(scope="module")
def models(rows: FloatArray) -> dict[Metric, CompresSAE]:
    """One with a mean for cosine, one without for inner products."""
    return {
        "cosine": sampled_model(rows, normalize_rows(rows).mean(axis=0)),
        "inner_product": sampled_model(rows, None),
    }


@pytest.fixture
def file(rows: FloatArray, tmp_path: Path) -> Path:
    """A file of 120 rows."""
    np.save(tmp_path / "rows.npy", rows[:120])
    return tmp_path / "rows.npy"


@pytest.fixture
def build(models: dict[Metric, CompresSAE]) -> Callable[..., CompressedIndex]:
    def made(rows: Any, metric: Metric = "cosine", **options: Any) -> CompressedIndex:
        fixed: dict[str, Any] = {"k": 8, "num_threads": 1, "progress": False}
        return CompressedIndex.build(rows, metric=metric, model=models[metric], **(fixed | options))

    return made


def assert_exact(
    index: CompressedIndex, true: dict[Any, Float64], queries: FloatArray, **options: Any
) -> None:
    """Checks that a search that refines all documents gives the products with their true vectors."""
    assert sorted(index.ids.tolist()) == sorted(true)
    n = len(true)
    settings: dict[str, Any] = {"mode": "dense", "refine": max(n, 1)}
    found = index.search(queries, max(n, 1), **(settings | options))
    wide, ids = queries.astype(np.float64), sorted(true)
    vectors = np.array([true[id_] for id_ in ids]).reshape(n, queries.shape[1])
    if index.metric == "cosine":
        wide, vectors = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (wide, vectors))
    exact = wide @ vectors.T
    for scores, got, expected in zip(found.scores[:, :n], found.ids[:, :n], exact, strict=True):
        atol = 1e-6 * np.abs(expected).max(initial=1)
        np.testing.assert_allclose(scores, np.sort(expected)[::-1], rtol=0, atol=atol)
        np.testing.assert_allclose(scores, expected[np.searchsorted(ids, got)], rtol=0, atol=atol)
        assert len(set(got.tolist())) == n


# Scores


@each_metric
@each_kept
def test_scores_are_products_with_the_stored_vectors(
    kept: Kept, metric: Metric, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    index = build(rows[:120], metric, originals=kept.given(rows[:120], tmp_path))
    true = dict(enumerate(kept.stored(rows[:120], metric, index.unit, added=False)))
    assert_exact(index, true, asked)
    assert_exact(index, true, asked, mode="two_stage", candidates=120, query_nnz=512)
    assert_exact(index, true, asked, num_threads=2)
    assert_exact(index, true, np.concatenate([asked] * 20))
    index.save(tmp_path / "i")
    for mmap in (False, True):
        assert_exact(CompressedIndex.load(tmp_path / "i", mmap=mmap), true, asked)


@pytest.mark.parametrize("size", [1e-15, 1e-8, 1e15, 1e36])
@pytest.mark.parametrize("place", ["file", "array"])
def test_cosines_of_very_long_and_short_vectors(
    size: float, place: str, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    far = (normalize_rows(rows[:60]) * size).astype(np.float32)
    index = build(far, originals=Kept(place, "float32").given(far, tmp_path))
    assert_exact(index, dict(enumerate(far.astype(np.float64))), asked)
    held = index.documents.vectors(np.arange(60), index.model)
    np.testing.assert_allclose(np.linalg.norm(held, axis=1), 1, rtol=1e-6)


def test_norms_at_the_ends_of_what_an_index_keeps(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    norms = np.repeat([2.0**-9, 1, 2.0**11], [20, 40, 20])[:, None] * 2.0**20
    far = (normalize_rows(rows[:80]) * norms).astype(np.float32)
    for originals in ("float32", far):
        index = build(far, "inner_product", originals=originals)
        assert_exact(index, dict(enumerate(far.astype(np.float64))), asked)


def test_only_the_best_by_codes_are_refined(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    index = build(rows[:500], originals="float32")
    by_codes = index.search(asked, 30, mode="dense", refine=0)
    assert_same(by_codes, build(rows[:500]).search(asked, 30, mode="dense"))
    again = index.search(asked, 30, mode="dense", refine=30)
    np.testing.assert_array_equal(np.sort(again.ids, axis=1), np.sort(by_codes.ids, axis=1))
    assert (again.ids != by_codes.ids).any()
    best = index.search(asked, 5, mode="dense", refine=30)
    np.testing.assert_array_equal(best.ids, again.ids[:, :5])


def test_codes_choose_what_is_refined_and_score_the_rest(
    rows: FloatArray, asked: FloatArray, build: Any
) -> None:
    index = build(rows, originals="float16")
    settings: dict[str, Any] = {"candidates": 1000, "query_nnz": 256}
    by_codes = index.search(asked, 100, refine=0, **settings)
    refined = index.search(asked, 100, refine=100, **settings)
    # Where codes choose documents and score none, queries are rounded to bytes.
    shared = [len({*a} & {*b}) for a, b in zip(by_codes.ids.tolist(), refined.ids.tolist(), strict=True)]
    assert np.mean(shared) >= 97
    exact = term_scores(index, asked)
    expected = np.take_along_axis(exact, np.searchsorted(index.ids, by_codes.ids), axis=1)
    np.testing.assert_allclose(by_codes.scores, expected, rtol=0, atol=2e-6)


def test_filters_hold_in_the_last_stage(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    index = build(rows[:300], originals="float32")
    index.remove(np.arange(50))
    allowed = np.arange(60, 300, 7)
    found = index.search(asked, 50, filter=allowed, refine=300)
    assert set(found.ids[found.ids >= 0].tolist()) == set(allowed.tolist())
    assert np.isneginf(found.scores[found.ids < 0]).all()
    assert (found.ids < 0).any()


@each_metric
def test_explanations_give_the_scores_of_searches(
    metric: Metric, rows: FloatArray, asked: FloatArray, build: Any
) -> None:
    index = build(rows[:100], metric, originals=rows[:100].copy())
    found = index.search(asked[1], 100, mode="dense", refine=100)
    for id_, score in zip(found.ids[0, ::9].tolist(), found.scores[0, ::9].tolist(), strict=True):
        told = index.explain(asked[1], id_)
        assert told.score == pytest.approx(score, rel=1e-5, abs=1e-5)
        assert told.score == pytest.approx(told.mean + told.contributions.sum() + told.residual, rel=1e-5)


def test_vectors_are_on_disk_and_codes_in_memory(
    rows: FloatArray, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plain = build(rows[:300])
    index = build(rows[:300], originals="float16")
    assert not list(tmp_path.iterdir())  # a temporary file without a name
    assert index.stats().bytes_per_vector == plain.stats().bytes_per_vector | {"originals": 0}
    kept = index.documents.backend.originals
    assert kept is not None
    assert kept.disk_bytes == 300 * DIM * 2
    assert len(kept) == 300
    np.testing.assert_array_equal(index.reconstruct(index.ids), plain.reconstruct(plain.ids))


# Changes


@each_metric
@each_kept
def test_changes_keep_vectors_with_their_documents(
    kept: Kept, metric: Metric, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng([KEPT.index(kept), METRICS.index(metric)])
    index = build(rows[:120], metric, originals=kept.given(rows[:120], tmp_path))
    true = dict(enumerate(kept.stored(rows[:120], metric, index.unit, added=False)))
    place = tmp_path / "i"
    copies: list[Any] = [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))]
    steps = ["add", "upsert", "remove", "save", "add", "compact", "copy", "remove all", "upsert"]
    for step, kind in enumerate([*steps, *rng.choice(steps, 25)]):
        n, ids = int(rng.integers(1, 40)), index.ids
        some, new = rng.permutation(ids)[:n], rows[rng.permutation(4000)[:n]]
        if kind == "add":
            names = 1000 * (step + 1) + np.arange(n)
            index.add(new, names, num_threads=1)
        elif kind == "upsert":
            names = np.concatenate([some, 1000 * (step + 1) + np.arange(n - len(some))])
            index.upsert(new, names, num_threads=1)
        elif kind.startswith("remove"):
            gone = ids if kind == "remove all" and step % 2 == 0 else some
            index.remove(gone)
            true = {id_: vector for id_, vector in true.items() if id_ not in set(gone.tolist())}
        elif kind == "save":
            index.save(place)
            index = CompressedIndex.load(place, mmap=step % 2 == 0)
        elif kind == "copy":
            index = copies[step % 3](index)
        else:
            index.compact(num_threads=1)
        if kind in ("add", "upsert"):
            stored = kept.stored(new, metric, index.unit, added=True)
            true |= dict(zip(names.tolist(), stored, strict=True))
        assert_exact(index, true, asked)


@each_kept
def test_an_index_without_documents(
    kept: Kept, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    index = build(rows[:50], originals=kept.given(rows[:50], tmp_path))
    index.remove(index.ids)
    for compact in (False, True):
        if compact:
            index.compact()
        index.save(tmp_path / "i")
        again = CompressedIndex.load(tmp_path / "i")
        assert_exact(again, {}, asked)
        again.add(rows[:3], [7, 8, 9])
        true = dict(zip((7, 8, 9), kept.stored(rows[:3], "cosine", 1, added=True), strict=True))
        assert_exact(again, true, asked)


def test_a_file_that_no_document_needs_is_let_go(
    rows: FloatArray, asked: FloatArray, build: Any, file: Path, tmp_path: Path
) -> None:
    index = build(rows[:120], originals=file)
    index.upsert(rows[200:320], np.arange(120))
    index.compact()
    file.unlink()
    index.save(tmp_path / "i")
    true = dict(enumerate(Kept("file", "float32").stored(rows[200:320], "cosine", 1, added=True)))
    assert_exact(CompressedIndex.load(tmp_path / "i"), true, asked)


def test_compact_gives_disk_back(rows: FloatArray, build: Any) -> None:
    index = build(rows[:200], originals="float32")
    for step in range(12):
        index.upsert(rows[200 + 100 * step : 300 + 100 * step], np.arange(100))
        index.compact()
        kept = index.documents.backend.originals
        assert kept is not None
        assert kept.disk_bytes <= 2 * 200 * DIM * 4


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")


@needs_proc
def test_many_single_adds_keep_few_files_open(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    index = build(rows[:1], originals="float32")
    before = len(os.listdir("/proc/self/fd"))
    for i in range(1, 200):
        index.add(rows[i : i + 1], num_threads=1)
        index.search(asked, 1)
    assert len(os.listdir("/proc/self/fd")) < before + 10
    assert_exact(index, dict(enumerate(normalize_rows(rows[:200]).astype(np.float64))), asked)
    del index
    assert len(os.listdir("/proc/self/fd")) < before


def test_failed_changes_change_nothing(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    index = build(rows[:100], originals="float32")
    true = dict(enumerate(normalize_rows(rows[:100]).astype(np.float64)))
    bad = rows[100:110].copy()
    bad[5] = np.nan
    with pytest.raises(InputError, match="embeddings row 5 holds NaN"):
        index.add(bad)
    with pytest.raises(InputError, match="already in the index"):
        index.add(rows[100:110], np.arange(10))
    assert_exact(index, true, asked)
    index.add(bad, on_bad_rows="skip")
    true |= {
        100 + i: normalize_rows(rows[100 + i : 101 + i])[0].astype(np.float64) for i in range(10) if i != 5
    }
    assert_exact(index, true, asked)


@each_metric
def test_bad_rows_of_a_file_are_skipped(
    metric: Metric, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    bad = rows[:100].copy()
    bad[3], bad[50], bad[99] = np.nan, 0, np.inf
    np.save(tmp_path / "bad.npy", bad)
    index = build(tmp_path / "bad.npy", metric, originals=tmp_path / "bad.npy", on_bad_rows="skip")
    good = [i for i in range(100) if i not in (3, 50, 99)]
    assert index.skipped.tolist() == [3, 50, 99]
    true = {i: rows[i].astype(np.float64) for i in good}
    assert_exact(index, true, asked)
    index.save(tmp_path / "i")
    assert_exact(CompressedIndex.load(tmp_path / "i"), true, asked)
    with pytest.raises(InputError, match=r"embeddings row 3 holds NaN .*on_bad_rows='skip'"):
        build(bad, metric, originals=tmp_path / "bad.npy")
    # Originals that have no bad rows are rows of the source, too.
    index = build(bad, metric, originals=rows[:100], on_bad_rows="skip")
    assert_exact(index, true, asked)


# Other processes and threads


def test_pickles_of_mapped_indexes_find_the_same_vectors(
    rows: FloatArray, asked: FloatArray, build: Any, file: Path, tmp_path: Path
) -> None:
    build(rows[:120], originals=file).save(tmp_path / "i")
    moved = file.rename(tmp_path / "moved.npy")
    for given in (moved, rows[:120].copy()):
        index = CompressedIndex.load(tmp_path / "i", mmap=True, originals=given)
        again = pickle.loads(pickle.dumps(index))
        assert_exact(again, dict(enumerate(rows[:120].astype(np.float64))), asked)
    build(rows[:120], originals="float32").save(tmp_path / "own")
    for folder in ("i", "own"):
        index = CompressedIndex.load(tmp_path / folder, mmap=True, originals=False)
        again = pickle.loads(pickle.dumps(index))
        assert not again.documents.refines
        assert_same(again.search(asked, 5), index.search(asked, 5))


def _search_in_child(index: CompressedIndex, queries: FloatArray, answers: Any) -> None:
    answers.put(index.search(queries, 20, mode="dense", refine=len(index)).scores)


@each_kept
def test_forked_children_refine(
    kept: Kept, rows: FloatArray, asked: FloatArray, build: Any, tmp_path: Path
) -> None:
    index = build(rows[:120], originals=kept.given(rows[:120], tmp_path))
    expected = index.search(asked, 20, mode="dense", refine=120).scores
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork.Process(target=_search_in_child, args=(index, asked, answers))
        child.start()
    np.testing.assert_array_equal(answers.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("options", [{"originals": "float16"}, {"originals": "file"}, {"residual_bits": 3}])
def test_threads_search_while_another_changes(
    options: dict[str, Any], rows: FloatArray, build: Any, file: Path
) -> None:
    if options.get("originals") == "file":
        options = {"originals": file}
    index, stop = build(rows[:120], **options), threading.Event()
    queries = rows[:10]

    def search() -> int:
        count = 0
        while not stop.is_set() or not count:
            found = index.search(queries, 1, refine=50, num_threads=2)
            # The first rows are never changed.
            assert found.ids[:, 0].tolist() == list(range(10))
            assert found.scores.min() > 0.9
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(2)]
        try:
            for step in range(25):
                index.add(rows[200 + 10 * step : 210 + 10 * step], num_threads=1)
                index.remove(index.ids[-5:])
                if step % 5 == 0:
                    index.compact(num_threads=1)
        finally:
            stop.set()
        assert all(each.result(60) for each in searches)


# What is refused


def unaligned(shape: tuple[int, int]) -> FloatArray:
    """An array that begins at an odd address."""
    return np.frombuffer(bytes(4 * shape[0] * shape[1] + 1), np.float32, offset=1).reshape(shape)


@pytest.mark.parametrize(
    ("originals", "error", "message"),
    [
        (
            "float64",
            FormatError,
            r"originals must be 'float16' or 'float32', or a \.npy file .* got .*float64",
        ),
        ("rows.csv", FormatError, r"or a \.npy file .* got .*rows\.csv"),
        ("none.npy", FormatError, r"none\.npy is missing"),
        ("folder.npy", FormatError, r"folder\.npy is not a file"),
        ("text.npy", FormatError, r"text\.npy is damaged, or no \.npy file"),
        ("double.npy", FormatError, r"must hold float32 or float16 rows .* got float64 \(120, 40\)"),
        ("whole.npy", FormatError, r"must hold float32 or float16 rows .* got int32 \(120, 40\)"),
        ("swapped.npy", FormatError, r"must hold float32 or float16 rows .* got >f4 \(120, 40\)"),
        ("fortran.npy", FormatError, r"must hold float32 or float16 rows \(n, d\) in C order"),
        ("flat.npy", FormatError, r"must hold float32 or float16 rows .* got float32 \(4800,\)"),
        ("short.npy", FormatError, r"short\.npy holds 1000 bytes, its header says \d+"),
        ("fewer.npy", DimensionError, r"shape \(119, 40\), but the embeddings \(120, 40\)"),
        ("narrow.npy", DimensionError, r"shape \(120, 39\), but the embeddings \(120, 40\)"),
        ("others.npy", InputError, r"row 0 of originals is not that of the embeddings: they are 1\."),
        ("last.npy", InputError, r"row 119 of originals is not that of the embeddings"),
        ("nan.npy", InputError, r"row 7 of originals is not that of the embeddings: they are nan"),
        ("", InputError, "originals must be a path, got ''"),
        (3, InputError, "originals must be .* the path of a file or a numpy array, got int"),
        (True, InputError, "originals must be .* the path of a file or a numpy array, got bool"),
        ([[1.0]], InputError, "originals must be .* the path of a file or a numpy array, got list"),
        (
            np.zeros((120, DIM)),
            InputError,
            "C-contiguous array .* of float32 or float16, .* got ndarray of float64",
        ),
        (np.zeros((DIM, 120), np.float32).T, InputError, "originals must be a C-contiguous array"),
        (np.zeros((120, DIM), ">f4"), InputError, r"got ndarray of >f4 \(120, 40\)"),
        (unaligned((120, DIM)), InputError, "aligned in memory"),
        (np.ma.masked_less(np.zeros((120, DIM), np.float32), 0), InputError, "got MaskedArray of float32"),
        (np.zeros(120, np.float32), InputError, r"of float32 \(120,\)"),
        (np.zeros((119, DIM), np.float32), DimensionError, r"\(119, 40\), but the embeddings"),
        (np.zeros((120, DIM), np.float32), InputError, "row 0 of originals is not that of"),
    ],
)
def test_originals_that_cannot_be_used(
    originals: Any,
    error: type[Exception],
    message: str,
    rows: FloatArray,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, folder = rows[:120], file.parent
    changed = [held.copy(), held.copy()]
    changed[0][-1], changed[1][7] = held[0], np.nan
    for name, array in {
        "double": held.astype(float),
        "whole": held.astype(np.int32),
        "swapped": held.astype(">f4"),
        "fortran": np.asfortranarray(held),
        "flat": held.ravel(),
        "fewer": held[1:],
        "narrow": np.ascontiguousarray(held[:, 1:]),
        "others": held[::-1].copy(),
        "last": changed[0],
        "nan": changed[1],
    }.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "folder.npy").mkdir()
    (folder / "text.npy").write_text("words")
    (folder / "short.npy").write_bytes(file.read_bytes()[:1000])
    is_name = isinstance(originals, str) and originals.endswith((".npy", ".csv"))

    def train(*_: object, **__: object) -> None:
        raise AssertionError

    given = folder / originals if is_name else originals
    monkeypatch.setattr("compressae_index.building.training.ModelSource.model_for", train)
    with pytest.raises(error, match=message):
        CompressedIndex.build(held, originals=given, progress=False)


def test_vectors_of_other_norms_do_for_cosine_alone(rows: FloatArray, asked: FloatArray, build: Any) -> None:
    others = normalize_rows(rows[:100])
    assert_exact(build(rows[:100], originals=others), dict(enumerate(others.astype(np.float64))), asked)
    with pytest.raises(InputError, match="row 0 of originals is not that of the embeddings"):
        build(rows[:100], "inner_product", originals=others)


def test_residuals_and_originals_exclude_each_other(rows: FloatArray, build: Any) -> None:
    with pytest.raises(InputError, match="residual_bits cannot be given with originals"):
        build(rows[:50], residual_bits=2, originals="float16")


@pytest.mark.parametrize("options", [{}, {"residual_bits": 2}, {"originals": "float16"}], ids=str)
def test_what_refine_takes(options: dict[str, Any], rows: FloatArray, asked: FloatArray, build: Any) -> None:
    index = build(rows[:100], **options)
    assert index.documents.refines == bool(options)
    for mode in ("two_stage", "dense"):
        for wrong, message in ((-1, "refine must be at least 0, got -1"), (1.5, "refine must be an integer")):
            with pytest.raises(InputError, match=message):
                index.search(asked, 5, mode=mode, refine=wrong)
        if not options:
            with pytest.raises(InputError, match="refine is 50, but there is no stage that scores again"):
                index.search(asked, 5, mode=mode, refine=50)
            continue
        with pytest.raises(InputError, match="refine must be at least k = 5, or 0, got 4"):
            index.search(asked, 5, mode=mode, refine=4)
        every = index.search(asked, 5, mode=mode, refine=100)
        for more in (101, 10**9, 2**62, 2**64, 10**30):
            assert_same(index.search(asked, 5, mode=mode, refine=more), every)
    with pytest.raises(InputError, match="refine is 50, but there is no stage that scores again"):
        index.search(asked, 5, mode="sparse", refine=50)
    index.search(asked, 5, mode="sparse", refine=0)


# Files that went away or changed


def test_a_file_that_moved(
    rows: FloatArray, asked: FloatArray, build: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, place = dict(enumerate(rows[:120].astype(np.float64))), file.parent / "i"
    monkeypatch.chdir(file.parent)
    index = build(rows[:120], originals=file.name)  # a relative path
    index.save(place)
    monkeypatch.chdir("/")
    assert_exact(CompressedIndex.load(place), true, asked)
    moved = file.rename(file.parent / "moved.npy")
    assert_exact(index, true, asked)  # the file is still mapped
    with pytest.raises(
        FormatError, match=r"rows\.npy is missing; load it with originals=.* or with"
    ) as caught:
        CompressedIndex.load(place)
    assert "damaged" not in str(caught.value)
    for given in (moved, str(moved), rows[:120], np.load(moved, mmap_mode="r")):
        again = CompressedIndex.load(place, originals=given)
        assert_exact(again, true, asked)
        again.save(file.parent / "again")
        assert_exact(CompressedIndex.load(file.parent / "again"), true, asked)
    odd = os.fsdecode(bytes(file.parent) + b"/\xff.npy")
    shutil.copy(moved, odd)
    build(rows[:120], originals=odd).save(file.parent / "odd")
    assert_exact(CompressedIndex.load(file.parent / "odd"), true, asked)
    without = CompressedIndex.load(place, originals=False)
    assert_same(without.search(asked, 9), index.search(asked, 9, refine=0))
    without.save(file.parent / "without")
    assert not CompressedIndex.load(file.parent / "without").documents.refines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[::-1], "holds other vectors than when the index was built"),
        (lambda rows: rows[:-1], "holds 119 rows of 40 dimensions, expected 120 of 40"),
        (lambda rows: rows[:, :-1], "holds 120 rows of 39 dimensions, expected 120 of 40"),
        (lambda rows: rows.astype(np.float16), "holds other vectors than when the index was built"),
        (lambda rows: rows.astype(np.float64), "must hold float32 or float16 rows"),
    ],
)
def test_a_file_that_changed_before_it_is_loaded(
    change: Callable[[FloatArray], Any], message: str, rows: FloatArray, build: Any, file: Path
) -> None:
    build(rows[:120], originals=file).save(file.parent / "i")
    np.save(file, np.ascontiguousarray(change(rows[:120])))
    with pytest.raises(FormatError, match=f"original vectors of this index cannot be used: .*{message}"):
        CompressedIndex.load(file.parent / "i")
    assert len(CompressedIndex.load(file.parent / "i", originals=False)) == 120


@pytest.mark.parametrize("kind", [CompressedIndex, FaissIndex])
def test_what_load_takes_as_originals(kind: Any, rows: FloatArray, build: Any, file: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "refers": {"originals": file},
        "own": {"originals": "float16"},
        "plain": {},
        "residuals": {"residual_bits": 2},
    }
    for name, options in kinds.items():
        place = file.parent / name
        index = build(rows[:120], **options)
        (index if kind is CompressedIndex else kind.from_index(index, progress=False)).save(place)
        assert not kind.load(place, originals=False).documents.refines or name == "residuals"
        for wrong in (3, True, "", [1]):
            with pytest.raises(InputError, match=r"originals must be .*path"):
                kind.load(place, originals=wrong)
        for array in (rows[:120].astype(float), np.asfortranarray(rows[:120])):
            with pytest.raises(InputError, match="originals must be a C-contiguous array"):
                kind.load(place, originals=array)
        if name == "refers":
            with pytest.raises(FormatError, match="the array given holds 119 rows"):
                kind.load(place, originals=rows[:119])
            with pytest.raises(FormatError, match="the array given holds other vectors"):
                kind.load(place, originals=rows[1:121])
            continue
        for given in (rows[:120], file, "none.npy"):
            with pytest.raises(InputError, match="but this index refers to no file of original vectors"):
                kind.load(place, originals=given)


@pytest.mark.parametrize("change", ["write", "grow", "cut", "move and cut"])
def test_a_file_that_changes_while_the_index_is_open(
    change: str, rows: FloatArray, asked: FloatArray, build: Any, file: Path
) -> None:
    index = build(rows[:120], originals=file)
    index.save(file.parent / "i")
    by_codes = index.search(asked, 9, refine=0)
    if change == "write":
        np.save(file, rows[1:121])
    elif change == "grow":
        np.save(file, rows[:4000])
    else:
        os.truncate(file.rename(file.parent / "moved") if change == "move and cut" else file, 100)
    calls: list[Callable[[], Any]] = [
        lambda: index.search(asked, 9),
        lambda: index.search(asked, 9, mode="dense"),
        lambda: index.documents.vectors(np.arange(5), index.model),
        lambda: index.explain(asked[0], 0),
    ]
    for call in calls:
        with pytest.raises(
            StorageError, match=r"original vectors.*(was changed|was cut off) since the index opened"
        ):
            call()
    assert_same(index.search(asked, 9, refine=0), by_codes)
    assert index.search(asked, 9, mode="sparse").ids.shape == (4, 9)
    index.add(rows[200:210])
    with pytest.raises(StorageError, match="since the index opened"):
        index.search(asked, 9)
    index.upsert(rows[200:320], np.arange(120))
    index.compact()  # now nobody needs the file
    assert index.search(rows[200:201], 1).ids[0, 0] in (0, 120)


@pytest.mark.parametrize("place", ["own", "array"])
def test_a_file_that_is_cut_off_while_the_index_is_open(
    place: str, rows: FloatArray, asked: FloatArray, build: Any, file: Path
) -> None:
    if place == "own":
        build(rows[:120], originals="float32").save(file.parent / "i")
        index = CompressedIndex.load(file.parent / "i")
        (cut,) = (file.parent / "i").rglob("originals.npy")
    else:
        index, cut = build(rows[:120], originals=np.load(file, mmap_mode="r")), file
    os.truncate(cut, 200)
    for call in (
        lambda: index.search(asked, 9),
        lambda: index.documents.vectors(np.arange(5), index.model),
        lambda: index.save(file.parent / "again"),
        lambda: pickle.dumps(index),
    ):
        with pytest.raises(StorageError, match="was cut off since the index opened it"):
            call()
    assert not (file.parent / "again").exists()
    assert index.search(asked, 9, refine=0).ids.shape == (4, 9)


def test_the_users_file_is_never_written_to(rows: FloatArray, build: Any, file: Path) -> None:
    before, changed_at = file.read_bytes(), file.stat().st_mtime_ns
    index = build(rows[:120], originals=file)
    index.add(rows[200:300])
    index.remove(np.arange(50))
    for path in (file.parent / "i", file.parent / "i"):
        index.save(path)
        assert_nothing_stray(path)
        index = CompressedIndex.load(path)
        index.compact()
    for path in (file, file.parent):
        with pytest.raises((FormatError, StorageError)):
            index.save(path)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, changed_at)


# Full disks

FULL = """
import resource, sys, tempfile
import numpy as np
from pathlib import Path
from compressae_index import CompresSAE, CompressedIndex, StorageError

place = Path(sys.argv[1])
tempfile.tempdir = str(place / "tmp")
model, rows = CompresSAE.load(place / "model"), np.load(place / "rows.npy")
fixed = {"model": model, "num_threads": 1, "progress": False}
own = CompressedIndex.load(place / "own")
refers = CompressedIndex.build(rows[:120], originals=place / "rows.npy", **fixed)
own.add(rows[:5])
refers.add(rows[:5])
work = [
    lambda: CompressedIndex.build(rows, originals="float32", **fixed),
    lambda: own.add(rows),
    lambda: own.upsert(rows[:100], np.arange(100)),
    lambda: refers.add(rows),
    lambda: own.save(place / "own"),
    lambda: own.save(place / "new"),
    lambda: refers.save(place / "own"),
]
queries, limits = rows[:3], resource.getrlimit(resource.RLIMIT_FSIZE)
before = [index.search(queries, 9) for index in (own, refers)]
small = [lambda: own.add(rows[:5]), lambda: refers.add(rows[:5])]  # less than a buffer
for calls, limit in ((work, 0), (work, 5000), (small, 0)):
    for call in calls:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            call()
        except StorageError as error:
            assert "cannot be written: File too large; make room" in str(error), error
            print("refused")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
for index, expected in zip((own, refers), before):
    found = index.search(queries, 9)
    assert (found.ids == expected.ids).all() and (found.scores == expected.scores).all()
    index.add(rows)
"""


def test_a_full_disk(rows: FloatArray, build: Any, models: Any, tmp_path: Path) -> None:
    models["cosine"].save(tmp_path / "model")
    build(rows[:120], originals="float32").save(tmp_path / "own")
    np.save(tmp_path / "rows.npy", rows[:120])
    (tmp_path / "tmp").mkdir()
    before = content_of(tmp_path)
    command = [sys.executable, "-P", "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused"] * 16
    assert content_of(tmp_path) == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "own", "rows.npy", "tmp"}


def test_no_folder_for_temporary_files(
    rows: FloatArray, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"none.* cannot be written: No such file or directory") as caught:
        build(rows[:100], originals="float32")
    assert caught.value.errno == errno.ENOENT
    assert not (tmp_path / "none").exists()


def test_what_a_manifest_says_of_originals(rows: FloatArray, build: Any, file: Path) -> None:
    index = build(rows[:120], originals=file)
    index.add(rows[200:230])
    index.save(file.parent / "i")
    meta = json.loads((file.parent / "i" / "manifest.json").read_bytes())["meta"]["originals"]
    assert meta.keys() == {"dtype", "own", "references"}
    assert (meta["dtype"], meta["own"]) == ("float32", 30)
    assert [(each["path"], each["n"]) for each in meta["references"]] == [(str(file), 120)]
    (own,) = (file.parent / "i").rglob("originals.npy")
    stored: npt.NDArray[np.float32] = np.load(own)
    np.testing.assert_array_equal(stored, normalize_rows(rows[200:230]))
    assert isinstance(index.documents.backend.originals, Originals)


# Damaged files


@pytest.fixture
def damaged(rows: FloatArray, build: Any, file: Path) -> Callable[..., CompressedIndex]:
    """Saves an index of 120 rows of a file and 30 of its own, changes it and loads it."""

    def made(
        array: str = "", change: Callable[[Any], Any] | None = None, metric: Metric = "cosine", **meta: Any
    ) -> CompressedIndex:
        index = build(rows[:120], metric, originals=file)
        index.upsert(rows[200:230], np.arange(10, 40), num_threads=1)
        index.compact()
        index.save(file.parent / "i")
        if change is not None:
            (path,) = (file.parent / "i").rglob(f"{array}.npy")
            changed = change(np.load(path))
            np.save(path, changed) if changed is not None else path.unlink()

        def update(manifest: dict[str, Any]) -> None:
            kept = manifest["meta"]["originals"]
            for name, value in meta.items():
                holder = kept["references"][0] if name.startswith("reference_") else kept
                holder[name.removeprefix("reference_")] = value

        fit_checksums(file.parent / "i", update)
        return CompressedIndex.load(file.parent / "i")

    return made


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("originals", lambda array: array[:-1], r"must hold float32 \(30, 40\), got float32 \(29, 40\)"),
        ("originals", lambda array: array.astype(np.float64), r"must hold float32 \(30, 40\), got float64"),
        ("originals", lambda array: array.astype(np.float16), r"must hold float32 \(30, 40\), got float16"),
        ("originals", lambda array: array.astype(">f4"), r"must hold float32 \(30, 40\), got >f4"),
        ("originals", np.asfortranarray, r"must hold float32 \(30, 40\)"),
        ("originals", lambda array: array.ravel(), r"must hold float32 \(30, 40\), got float32 \(1200,\)"),
        ("originals", lambda _: None, r"originals\.npy is missing"),
        ("original_places", lambda array: array + 31, "original_places must be int64 numbers of 150 vectors"),
        ("original_places", lambda array: array - 1, "original_places must be int64 numbers of 150 vectors"),
        ("original_places", lambda array: array.astype(np.int32), "original_places must be int64 numbers"),
        ("original_places", lambda array: array[:, None], "original_places must be int64 numbers"),
        ("original_places", lambda array: array[:-1], "expected 120 original vectors, got 119"),
        ("original_places", lambda _: None, "expected 120 original vectors, got 150"),
    ],
)
def test_damaged_arrays_are_refused(
    array: str, change: Callable[[Any], Any], message: str, damaged: Callable[..., CompressedIndex]
) -> None:
    with pytest.raises(FormatError, match=message):
        damaged(array, change)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"reference_path": "/"}, r"cannot be used: originals must be .* got /"),
        ({"reference_path": "none.npy"}, r"cannot be used: .*none\.npy is missing"),
        ({"reference_path": "a\0b"}, "damaged"),
        ({"reference_path": 3}, "path in its manifest must be of type str, got 3"),
        ({"reference_n": 119}, "cannot be used: .* holds 120 rows of 40 dimensions, expected 119"),
        ({"reference_n": 2**70}, "cannot be used: .* expected 1180591620717411303424 of 40"),
        ({"reference_n": -1}, "n must be at least 1"),
        ({"reference_n": None}, "n must be an integer"),
        ({"reference_digest": "0" * 32}, "cannot be used: .* holds other vectors than when"),
        ({"reference_digest": None}, "digest in its manifest must be of type str"),
        ({"dtype": "float64"}, "the dtype of originals must be one of"),
        ({"dtype": "float16"}, r"must hold float16 \(30, 40\), got float32"),
        ({"dtype": ">f4"}, "the dtype of originals must be one of"),
        ({"dtype": "words"}, "the dtype of originals must be one of"),
        ({"own": 29}, r"must hold float32 \(29, 40\), got float32 \(30, 40\)"),
        ({"own": -1}, "own must be at least 0"),
        ({"references": []}, "original_places must be int64 numbers of 30 vectors"),
        ({"references": {}}, "references in its manifest must be of type list"),
        ({"references": [3]}, "damaged"),
    ],
    ids=str,
)
def test_damaged_manifests_are_refused(
    meta: dict[str, Any], message: str, damaged: Callable[..., CompressedIndex]
) -> None:
    with pytest.raises(FormatError, match=message):
        damaged(**meta)


def test_a_manifest_that_names_another_file_has_it_read_alone(
    rows: FloatArray, damaged: Callable[..., CompressedIndex], file: Path
) -> None:
    other = file.parent / "other.npy"
    np.save(other, rows[:120])
    before = other.read_bytes()
    index = damaged(reference_path=str(other))
    index.add(rows[300:310], num_threads=1)
    index.remove(np.arange(5))
    index.compact()
    index.save(file.parent / "again")
    assert other.read_bytes() == before
    assert_nothing_stray(file.parent / "again")


@each_metric
@pytest.mark.parametrize("number", [np.nan, np.inf, 0, 1e30, -3e38])
def test_damaged_vectors_get_finite_scores(
    number: float, metric: Metric, rows: FloatArray, damaged: Callable[..., CompressedIndex]
) -> None:
    def change(array: FloatArray) -> FloatArray:
        array[7] = number
        return array

    index = damaged("originals", change, metric)
    for factor in (1, 1e25):
        found = index.search(rows[:4] * np.float32(factor), 120, mode="dense", refine=120)
        assert np.isfinite(found.scores).all()
        assert (np.sort(found.ids, axis=1) == np.arange(120)).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
    is_never_kept = number == 0 if metric == "cosine" else abs(number) > 1e4
    if is_never_kept or not np.isfinite(number):
        (bad,) = index.documents.all_ids.of(np.array([97])).tolist()
        for call in (
            lambda: index.documents.vectors(np.array([bad]), index.model),
            lambda: index.explain(rows[0], bad),
        ):
            with pytest.raises(StorageError, match="the original vector of row 97 is damaged"):
                call()
