"""Lance datasets as sources: rows, bad rows, ids, changes, folders; test_remote has those in stores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.sources import GoodRows, open_vectors, read_ids

lance = pytest.importorskip("lance")


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """60 rows of 8."""
    return vectors[:60, :8].copy()


def write(path: Path | str, rows: Any, mode: str = "create", **columns: Any) -> None:
    """In files of 20 rows."""
    table = pa.table({"e": pa.array(list(rows)), **columns})
    lance.write_dataset(table, path, mode=mode, max_rows_per_file=20)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", [-1, 8])
def test_rows_of_every_slice(tmp_path: Path, rows: FloatArray, dtype: str, width: int) -> None:
    content = rows.astype(dtype)
    lists = pa.list_(pa.from_numpy_dtype(content.dtype), width)
    table = pa.table({"n": range(60), "e": pa.array(list(content), lists)})
    lance.write_dataset(table, tmp_path / "a.lance", max_rows_per_file=25)
    opened: Any = open_vectors(tmp_path / "a.lance")
    assert opened.shape == (60, 8)
    assert opened.dtype == dtype
    for begin, end in ((0, 60), (7, 8), (20, 51), (59, 99), (60, 60), (5, 5)):
        np.testing.assert_array_equal(opened[begin:end], content[begin:end])


def test_deleted_rows_are_no_rows(tmp_path: Path, rows: FloatArray) -> None:
    write(tmp_path / "a.lance", rows, id=range(60))
    lance.dataset(tmp_path / "a.lance").delete("id % 7 = 3")
    left = np.flatnonzero(np.arange(60) % 7 != 3)
    opened = open_vectors(tmp_path / "a.lance")
    np.testing.assert_array_equal(opened[0:60], rows[left])
    np.testing.assert_array_equal(opened[15:30], rows[left[15:30]])
    np.testing.assert_array_equal(read_ids(tmp_path / "a.lance", "id"), left)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_dataset_that_changes_is_refused(tmp_path: Path, rows: FloatArray, sharded: bool) -> None:
    path = tmp_path / "a.lance"
    for mode in ("append", "overwrite"):
        write(path, rows)
        opened = open_vectors([path] if sharded else path)
        np.testing.assert_array_equal(opened[10:20], rows[10:20])
        write(path, rows, mode)
        with pytest.raises(FormatError, match=r"/a\.lance changed"):
            opened[30:50]
        shutil.rmtree(path)
    with pytest.raises(FormatError, match=r"/a\.lance (is gone: it was moved or deleted|does not exist)"):
        opened[0:5]


def test_bad_rows(tmp_path: Path, rows: FloatArray) -> None:
    write(tmp_path / "a.lance", [*rows[:25], None, *rows[26:40], rows[40][:5], *rows[41:]])
    with pytest.raises(FormatError, match=r"a\.lance: rows of column 'e' .*: row 25 "):
        open_vectors(tmp_path / "a.lance")[0:60]
    good = open_vectors(tmp_path / "a.lance", on_bad_rows="skip")
    assert isinstance(good, GoodRows)
    assert good.skipped.tolist() == [25, 40]
    np.testing.assert_array_equal(good[20:30], np.vstack([rows[20:25], rows[26:31]]))


def test_columns(tmp_path: Path, rows: FloatArray) -> None:
    write(tmp_path / "a.lance", rows, other=list(rows[:, :4]))
    assert open_vectors(tmp_path / "a.lance", dataset="other").shape == (60, 4)
    with pytest.raises(FormatError, match=r"one named 'train'; list columns: e, other"):
        open_vectors(tmp_path / "a.lance")
    with pytest.raises(FormatError, match=r"holds no column 'id', only: e, other"):
        read_ids(tmp_path / "a.lance", "id")
    with pytest.raises(InputError, match=r"which column of .*a\.lance holds the ids"):
        read_ids(tmp_path / "a.lance")


def test_folders_and_patterns(tmp_path: Path, rows: FloatArray) -> None:
    for number, part in enumerate(np.split(rows, 3)):
        write(tmp_path / f"day-{number + 9}.lance", part, id=[f"{number}-{i}" for i in range(20)])
    for source in (tmp_path, tmp_path / "day*", tmp_path / "**/*.lance", tmp_path / "**"):
        np.testing.assert_array_equal(open_vectors(source)[0:60], rows)
    assert read_ids(tmp_path, "id")[[0, 20, 59]].tolist() == ["0-0", "1-0", "2-19"]
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.lance", rows)
    with pytest.raises(FormatError, match=r"holds a folder with .*/sub/b\.lance"):
        open_vectors(tmp_path)
    for name in ("nothing.lance", "file.lance", "empty.lance"):
        (tmp_path / "file.lance").touch()
        (tmp_path / "empty.lance").mkdir(exist_ok=True)
        with pytest.raises(FormatError, match=name):
            open_vectors(tmp_path / name)


def test_an_index_of_a_dataset(tmp_path: Path, vectors: FloatArray, model: CompresSAE) -> None:
    write(tmp_path / "a.lance", vectors[:500], id=range(7, 507))
    ids = read_ids(tmp_path / "a.lance", "id")
    index = CompressedIndex.build(tmp_path / "a.lance", ids, model=model, k=8, residual_bits=0)
    expected = CompressedIndex.build(vectors[:500], ids, model=model, k=8, residual_bits=0)
    for ours, theirs in zip(index.search(vectors[:9]), expected.search(vectors[:9]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
