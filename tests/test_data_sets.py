"""Data sets of the benchmarks: files are what they hold, made ones repeat, and bad ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import data_sets
import h5py
import numpy as np
import pytest
from data_sets import MADE, load

from compressae_index.checks import FloatArray
from compressae_index.metric import METRICS, row_norms


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
    expected = np.argsort(-(queries[:7] @ vectors[:100].T), axis=1)[:, :10]
    np.testing.assert_array_equal(data.neighbours(10), expected)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": "euclidean"}, "not of unit norm"),
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
        (lambda _: "nonsense", {}, "no file nonsense, nor a data set of that name: shipped, interactions"),
        (write_too_few, {}, "holds 2000 rows, and the last 2000 are the queries"),
        (write_garbage, {}, "cannot be read"),
        (lambda _: "recommendations", {"rows": 500}, "is searched by inner_product; here it must be cosine"),
        (lambda _: "shipped", {"rows": 0}, "rows must be at least 1, got 0"),
    ],
)
def test_refused(tmp_path: Path, source: Callable[[Path], str], options: Any, message: str) -> None:
    with pytest.raises(click.ClickException, match=message):
        load(source(tmp_path), **options)


@pytest.mark.parametrize("name", MADE)
def test_made_sets_are_repeatable(name: str) -> None:
    first, second = (load(name, rows=700, metrics=METRICS) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.queries, second.queries)
    assert first.vectors.shape == (700, first.dim)
    assert first.queries.shape == (data_sets.QUERIES, first.dim)


def test_items_are_found_for_users_by_inner_products() -> None:
    data = load("recommendations", rows=700, queries=30, metrics=METRICS)
    expected = np.argsort(-(data.queries @ data.vectors.T), axis=1)
    np.testing.assert_array_equal(data.neighbours(5), expected[:, :5])
    # Popular items are long, so that cosines would find others.
    norms = row_norms(data.vectors)
    assert norms[expected[:, 0]].mean() > 1.5 * np.median(norms)
