"""Data sets of the benchmarks: files are read as they are, made sets repeat, and bad ones are refused."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import data_sets
import h5py
import make_data
import numpy as np
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from data_sets import MADE, generated_codes, load, sparse_codes, sparse_rows
from oracles import nearest

from compressae_index import CompresSAE, SparseCodes
from compressae_index.arrays import FloatArray
from compressae_index.coding.metric import METRICS, row_norms


def write_hdf5(path: Path, vectors: FloatArray, queries: FloatArray, **changes: Any) -> str:
    """A file in the ann-benchmarks layout, with exact neighbours by cosine."""
    scores = queries @ (vectors / row_norms(vectors)[:, None]).T
    held: dict[str, Any] = {"train": vectors, "test": queries, "neighbors": np.argsort(-scores)[:, :20]}
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = changes.pop("distance", "angular")
        for name, array in (held | changes).items():
            if array is not None:
                file[name] = array
    return str(path)


def test_ann_benchmarks_file(tmp_path: Path, vectors: FloatArray, queries: FloatArray) -> None:
    lengthened = vectors[:300] * np.linspace(0.5, 2, 300, dtype=np.float32)[:, None]
    source = write_hdf5(tmp_path / "glosses.hdf5", lengthened, queries)
    data = load(source)
    assert (data.name, data.metric) == ("glosses", "cosine")
    np.testing.assert_array_equal(data.vectors, lengthened)
    np.testing.assert_array_equal(data.queries, queries)
    assert data.truth is not None
    np.testing.assert_array_equal(data.neighbours(20), data.truth)
    # The file knows 20; more are searched for, and agree.
    np.testing.assert_array_equal(data.neighbours(30)[:, :20], data.truth)


def test_rows_that_are_left_out_are_nobodys_neighbours(
    tmp_path: Path, vectors: FloatArray, queries: FloatArray
) -> None:
    source = write_hdf5(tmp_path / "set.h5", vectors[:300], queries)
    data = load(source, rows=100, queries=7)
    assert data.vectors.shape[0] == 100
    np.testing.assert_array_equal(data.neighbours(10), nearest(vectors[:100], queries[:7], 10))
    # All rows: what the file says holds, for the queries that are kept.
    whole = load(source, rows=300, queries=7)
    assert whole.truth is not None
    assert len(whole.truth) == 7


def test_euclidean_distances_of_unit_vectors_are_cosines(
    tmp_path: Path, vectors: FloatArray, queries: FloatArray
) -> None:
    unit = (vectors[:300] / row_norms(vectors[:300])[:, None]).astype(np.float32)
    data = load(write_hdf5(tmp_path / "set.hdf5", unit, queries * 3, distance="euclidean"))
    np.testing.assert_array_equal(data.neighbours(20)[:, 0], np.argmax(queries @ unit.T, axis=1))


def test_euclidean_distances_of_others_are_searched_as_such(
    tmp_path: Path, vectors: FloatArray, queries: FloatArray
) -> None:
    rows = vectors[:300] * np.linspace(1, 3, 300, dtype=np.float32)[:, None]
    source = write_hdf5(tmp_path / "set.hdf5", rows, queries, distance="euclidean")
    with pytest.raises(click.ClickException, match="is searched by l2; here it must be cosine"):
        load(source)
    data = load(source, rows=200, metrics=("cosine", "l2"))
    assert data.metric == "l2"
    wanted = np.square(queries[:, None].astype(np.float64) - rows[:200]).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(data.neighbours(3)[:, 0], wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": "hamming"}, "has the distance hamming"),
        ({"distance": "jaccard", "train": np.arange(9), "test": np.arange(3)}, "has the distance jaccard"),
        ({"test": None}, "holds no data set 'test'"),
        ({"test": np.ones((50, 7), np.float32)}, "train has dimension 384, test 7"),
        ({"neighbors": np.zeros((3, 20), np.int32)}, r"neighbors \(3, 20\) do not fit 50 queries"),
        ({"neighbors": np.full((50, 20), 300)}, r"neighbors \(50, 20\) do not fit 50 queries of 300"),
    ],
)
def test_refused_hdf5(
    tmp_path: Path, vectors: FloatArray, queries: FloatArray, changes: dict[str, Any], message: str
) -> None:
    source = write_hdf5(tmp_path / "set.hdf5", 2 * vectors[:300], queries, **changes)
    with pytest.raises(click.ClickException, match=message):
        load(source)


def test_the_last_rows_of_a_file_are_its_queries(tmp_path: Path, vectors: FloatArray) -> None:
    source = tmp_path / "embeddings.npy"
    np.save(source, vectors[:2300].astype(np.float16))
    data = load(str(source), rows=200)
    rounded = vectors[:2300].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(data.vectors, rounded[:200])
    np.testing.assert_array_equal(data.queries, rounded[300:])
    assert data.vectors.dtype == data.queries.dtype == np.float32


def write_too_few(path: Path) -> str:
    np.save(path / "few.npy", np.ones((2000, 4), np.float32))
    return str(path / "few.npy")


def write_garbage(path: Path) -> str:
    (path / "garbage.hdf5").write_bytes(b"no HDF5")
    return str(path / "garbage.hdf5")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda _: "nonsense", {}, "no file nonsense, nor a data set of that name: shipped, wordllama, "),
        (write_too_few, {}, "holds 2000 rows, and the last 2000 are the queries"),
        (write_garbage, {}, "cannot be read"),
        (lambda _: "recommendations", {"rows": 500}, "is searched by inner_product; here it must be cosine"),
        (lambda _: "shipped", {"rows": 0}, "rows must be at least 1, got 0"),
        (lambda _: "recommendations", {"rows": 128}, "rows must be at least 129, got 128"),
    ],
)
def test_refused(tmp_path: Path, source: Callable[[Path], str], options: Any, message: str) -> None:
    with pytest.raises(click.ClickException, match=message):
        load(source(tmp_path), **options)


@pytest.mark.parametrize("name", MADE)
def test_made_sets_are_repeatable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("descriptors", "keypoints"):
        pytest.importorskip("skimage")
        monkeypatch.setattr(data_sets, "IMAGES", ("camera.png",))
    first, second = (load(name, rows=700, metrics=METRICS) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.queries, second.queries)
    assert first.vectors.shape == (700, first.dim)
    assert first.queries.shape == (data_sets.QUERIES, first.dim)


def test_items_are_found_for_users_by_inner_products() -> None:
    data = load("recommendations", rows=700, queries=30, metrics=METRICS)
    expected = nearest(data.vectors, data.queries, 5, "inner_product")
    np.testing.assert_array_equal(data.neighbours(5), expected)
    # Popular items are long, so that cosines would find others.
    norms = row_norms(data.vectors)
    assert norms[expected[:, 0]].mean() > 1.5 * np.median(norms)


def make(*arguments: object) -> str:
    """Standard output of make_data.py."""
    result = CliRunner().invoke(make_data.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_convert_to_ann_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "set.hdf5"
    assert "500 vectors of 384 dimensions, 1,000 queries" in make("convert", "shipped", path, "--rows", 500)
    expected, data = load("shipped", rows=500), load(str(path))
    np.testing.assert_array_equal(data.vectors, expected.vectors)
    np.testing.assert_array_equal(data.queries, expected.queries)
    np.testing.assert_array_equal(data.truth, expected.neighbours(100))
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "type": "dense",
            "distance": "angular",
            "dimension": 384,
            "point_type": "float",
        }
        cosines = expected.queries @ expected.vectors.T
        cosines /= row_norms(expected.queries)[:, None] * row_norms(expected.vectors)
        np.testing.assert_allclose(file["distances"], 1 + np.sort(-cosines)[:, :100], atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_a_file_are_searched_as_the_caller_can(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((data_sets.QUERIES + 300, 8)).astype(np.float32)
    rows[0] = 0
    np.save(tmp_path / "rows.npy", rows)
    data = load(str(tmp_path / "rows.npy"), metrics=("l2",))
    distances = np.linalg.norm(rows[None, :300].astype(np.float64) - rows[300:350, None], axis=2)
    np.testing.assert_array_equal(data.neighbours(5)[:50], distances.argsort(axis=1)[:, :5])
    with pytest.raises(click.ClickException):
        load(str(tmp_path / "rows.npy"))


def test_convert_to_rows(tmp_path: Path) -> None:
    make("convert", "anisotropic", tmp_path / "set.npy", "--rows", 300)
    data, expected = load(str(tmp_path / "set.npy")), load("anisotropic", rows=300)
    np.testing.assert_array_equal(data.vectors, expected.vectors)
    np.testing.assert_array_equal(data.queries, expected.queries)


class Lengths:
    """A stand-in for a model of sentence-transformers: a text becomes its number and 1."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, texts: list[str], show_progress_bar: bool) -> FloatArray:
        assert self.name == "all-MiniLM-L6-v2"
        assert show_progress_bar
        return np.array([[int(text), 1] for text in texts], np.float32)


def test_texts_become_shuffled_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Lengths))
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{number}\n" for number in range(1, 2501)) + "\n7\n 8 \n")
    make("embed", texts, tmp_path / "texts.hdf5")
    data = load(str(tmp_path / "texts.hdf5"))
    numbers = np.concatenate([data.vectors, data.queries])[:, 0]
    assert sorted(numbers) == list(range(1, 2501))
    assert len(data.queries) == data_sets.QUERIES
    # Queries are not simply the last lines.
    assert 1100 < data.queries[:, 0].mean() < 1400


def test_texts_of_several_files_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Lengths))
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(1, 1501))))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(map(str, range(1000, 2501))).encode()))
    make("embed", tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "set.npy")
    assert sorted(np.load(tmp_path / "set.npy")[:, 0]) == list(range(1, 2501))


def word_files(folder: Path, rows: FloatArray) -> list[Path]:
    """The same word vectors in each format, and words that must be left out."""
    folder.mkdir(exist_ok=True)
    glove, fasttext, wink = (folder / name for name in ("glove.txt", "crawl.vec.gz", "wink.json"))
    dim = rows.shape[1]
    lines = [f". . {i} " + " ".join(f"{x:.9g}" for x in row) for i, row in enumerate(rows)]
    lines = ["zero " + "0 " * dim, lines[0].replace(". .", "again"), *lines]
    glove.write_text("\n".join(lines[::-1]))
    fasttext.write_bytes(gzip.compress("\n".join([f"{len(lines)} {dim}", *lines]).encode()))
    vectors = {str(i): [*map(float, row), 7.5, i] for i, row in enumerate([np.zeros(dim), rows[0], *rows])}
    wink.write_text(json.dumps({"dimensions": dim, "vectors": vectors}))
    # The first line tells the dimension, so its word has no spaces.
    glove.write_text("first " + glove.read_text().split(" ", 3)[3])
    return [glove, fasttext, wink]


def test_word_vectors_become_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2100, 5)).astype(np.float32)
    found = []
    for path in word_files(tmp_path / "words", rows):
        make("words", path, tmp_path / "set.npy")
        found.append(np.load(tmp_path / "set.npy"))
    for one in found:
        np.testing.assert_array_equal(np.unique(one, axis=0), np.unique(rows, axis=0))
        np.testing.assert_array_equal(one, found[0])
    # Queries are drawn from all words, which files have by their frequency.
    assert not np.array_equal(found[0], np.unique(rows, axis=0))


def test_factors_are_the_leading_ones() -> None:
    clicks = data_sets._clicks(800, 600, np.random.default_rng(0))
    left, values, right = data_sets._leading(clicks, np.random.default_rng(1))
    exact = np.linalg.svd(clicks.toarray().astype(np.float64))
    np.testing.assert_allclose(values[:100], exact.S[:100], rtol=5e-3)
    for one in (left, right):
        np.testing.assert_allclose(one.T @ one, np.eye(128), atol=1e-4)
    # No matrix of this rank is nearer, and this one hardly less near.
    missed = np.linalg.norm(clicks.toarray() - (left * values) @ right.T)
    assert missed < 1.005 * np.linalg.norm(exact.S[128:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "shipped", "set.txt"], "set.txt must end in .hdf5 or .npy"),
        (["convert", "shipped", "nowhere/set.npy"], "there is no folder nowhere"),
        (["convert", "shipped", "set.npy"], "has 1000 queries, and .npy holds 2000; write .hdf5"),
        (["convert", "recommendations", "set.hdf5", "--rows", "500"], "is searched by inner_product"),
        (["embed", "few.txt", "set.npy"], "few.txt: 3 different lines; there must be more than"),
        (["embed", "many.txt", "set.npy"], "run: pip install sentence-transformers"),
        (["embed", "few.txt", "none.txt", "set.npy"], "File 'none.txt' does not exist"),
        (["embed", "many.txt", "bad.gz", "set.npy"], "bad.gz cannot be read as UTF-8 text"),
        (["words", "few.txt", "set.npy"], "few.txt holds no word vectors"),
        (["words", "many.txt", "set.npy"], "many.txt holds no word vectors"),
    ],
)
def test_nothing_is_written_of_what_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    Path("bad.gz").write_bytes(b"no gzip")
    Path("few.txt").write_text("one\ntwo\nthree\none\n")
    Path("many.txt").write_text("".join(f"{number}\n" for number in range(3000)))
    result = CliRunner().invoke(make_data.main, arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.gz", "few.txt", "many.txt"]


@pytest.fixture(scope="module")
def real(model: CompresSAE, vectors: FloatArray) -> SparseCodes:
    return model.fold(model.encode(vectors[:1000]))


def test_generated_codes_are_made_of_two_real_ones(real: SparseCodes) -> None:
    generated = SparseCodes.concatenate(generated_codes(real, 500, seed=1))
    pattern, made = real.to_dense() != 0, generated.to_dense() != 0
    shared = np.sort(made.astype(np.float32) @ pattern.T.astype(np.float32), axis=1)
    assert (shared[:, -1] + shared[:, -2] >= real.k).all()
    # Most of a code comes from one real code, so that latents which occur together still do.
    assert shared[:, -1].mean() > 0.6 * real.k
    assert len(np.unique(generated.latents, axis=0)) > 400


def test_generated_codes_have_the_measured_distribution(real: SparseCodes) -> None:
    n = 20_000
    generated = SparseCodes.concatenate(generated_codes(real, n, seed=1))
    measured, made = (
        np.bincount(codes.latents.ravel(), minlength=real.n_latents) / len(codes)
        for codes in (real, generated)
    )
    assert np.corrcoef(measured, made)[0, 1] > 0.98
    assert np.square(made).sum() == pytest.approx(np.square(measured).sum(), rel=0.02)
    assert (generated.values < 0).mean() == pytest.approx((real.values < 0).mean(), abs=0.01)
    for quantile in (0.1, 0.5, 0.9):
        expected = np.quantile(np.abs(real.values), quantile)
        assert np.quantile(np.abs(generated.values), quantile) == pytest.approx(expected, rel=0.05)


def test_generated_codes_come_in_chunks_and_repeat(
    real: SparseCodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sets, "CHUNK", 64)
    first, second = (list(generated_codes(real, 150, seed=3)) for _ in range(2))
    assert [len(chunk) for chunk in first] == [64, 64, 22]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(one.values, other.values)
    other = next(generated_codes(real, 150, seed=4))
    assert (other.latents != first[0].latents).any()


def write_csr(path: Path, matrix: sp.csr_array, **changes: Any) -> Path:
    """A file of big-ann-benchmarks."""
    header = [*matrix.shape, matrix.nnz]
    parts = {"header": header, "indptr": matrix.indptr, "indices": matrix.indices, "data": matrix.data}
    dtypes = {"header": "<i8", "indptr": "<i8", "indices": "<i4", "data": "<f4"}
    path.write_bytes(
        b"".join(np.asarray(part, dtypes[name]).tobytes() for name, part in (parts | changes).items())
    )
    return path


@pytest.fixture
def sparse() -> sp.csr_array:
    """Signed rows of 0 to 7 nonzeros in 40 columns."""
    random = np.random.default_rng(0)
    dense = random.standard_normal((30, 40)) * (random.random((30, 40)) < np.linspace(0, 0.15, 30)[:, None])
    matrix = sp.csr_array(dense.astype(np.float32))
    assert set(np.diff(matrix.indptr)) > {0, 3, 7}
    return matrix


def test_sparse_rows_are_what_the_file_holds(tmp_path: Path, sparse: sp.csr_array) -> None:
    rows = sparse_rows(write_csr(tmp_path / "set.csr", sparse))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), sparse.toarray())


def test_sparse_rows_become_codes_of_one_k(sparse: sp.csr_array) -> None:
    codes = sparse_codes(sparse)
    assert codes.k == np.diff(sparse.indptr).max()
    np.testing.assert_array_equal(codes.to_dense()[:, :40], sparse.toarray())
    # Rows are filled up with latents that no query has.
    assert (codes.latents[codes.values == 0] >= 40).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": [30, 40, 7]}, "bytes do not fit 30 rows of 7 nonzeros"),
        ({"data": []}, "is not a .csr file"),
        ({"header": [], "indptr": [], "indices": [], "data": [1]}, "is not a .csr file: its 4 bytes"),
        ({"indptr": np.full(31, 1)}, "rows must begin at 0"),
    ],
)
def test_refused_csr(tmp_path: Path, sparse: sp.csr_array, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(click.ClickException, match=message):
        sparse_rows(write_csr(tmp_path / "set.csr", sparse, **changes))


def test_refused_columns(tmp_path: Path, sparse: sp.csr_array) -> None:
    indices = sparse.indices.copy()
    indices[5] = 40
    path = write_csr(tmp_path / "set.csr", sparse, indices=indices)
    with pytest.raises(click.ClickException, match=r"indices from 0 to 40 in 40 columns"):
        sparse_rows(path)
    with pytest.raises(click.ClickException, match="none is not"):
        sparse_rows(tmp_path / "none")
    wide = sp.csr_array((sparse.data, sparse.indices, sparse.indptr), shape=(30, 65_536))
    with pytest.raises(click.ClickException, match="must be at most 65536"):
        sparse_codes(wide)
