"""Files that change, go, are passed over or hold bad rows: each is named, and nothing is read wrongly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError, StorageError, train
from compressae_index.arrays import FloatArray
from compressae_index.sources import GoodRows, open_vectors, read_ids
from compressae_index.training import TrainConfig

Rows = npt.NDArray[Any]
Write = Callable[[Path, Rows], object]


def write_vecs(path: Path, rows: Rows) -> None:
    dims = np.full((len(rows), 1), rows.shape[1], dtype="<i4")
    path.write_bytes(np.hstack([dims, rows.astype("<f4").view("<i4")]).tobytes())


def write_hdf5(path: Path, rows: Rows) -> None:
    with h5py.File(path, "w") as file:
        file["train"] = rows


def write_parquet(path: Path, rows: Any, **columns: Any) -> None:
    pq.write_table(pa.table({"e": pa.array(list(rows)), **columns}), path, row_group_size=20)


WRITERS: dict[str, Write] = {
    ".npy": np.save,
    ".fvecs": write_vecs,
    ".hdf5": write_hdf5,
    ".parquet": write_parquet,
}
each_kind = pytest.mark.parametrize("suffix", WRITERS)


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """60 rows of 8."""
    return vectors[:60, :8].copy()


def replaced(path: Path, write: Write, rows: Rows) -> None:
    """As a program that writes a new file and renames it does."""
    aside = path.with_name("aside" + path.suffix)
    write(aside, rows)
    os.replace(aside, path)


@each_kind
@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_that_is_replaced_is_refused(
    tmp_path: Path, rows: FloatArray, suffix: str, sharded: bool
) -> None:
    path, write = tmp_path / f"a{suffix}", WRITERS[suffix]
    for other in (rows.astype(np.float64), rows[:, :4], rows[:30], rows * 2):
        write(path, rows)
        opened = open_vectors([path] if sharded else path)
        np.testing.assert_array_equal(opened[10:20], rows[10:20])
        replaced(path, write, other)
        with pytest.raises(FormatError, match=rf"/a{suffix} (changed|ends within|cannot be read|: rows)"):
            opened[30:50]
    path.unlink()
    with pytest.raises(FormatError, match=rf"/a{suffix} (is gone: it was moved or deleted|does not exist)"):
        opened[0:5]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_npy_that_is_written_again_in_place(tmp_path: Path, rows: FloatArray, sharded: bool) -> None:
    path = tmp_path / "a.npy"
    # As many bytes, so that with coarse times nothing but the header tells them apart.
    for other in (rows.astype(np.int32), rows.astype(">f4"), rows.reshape(30, 16), np.asfortranarray(rows)):
        np.save(path, rows)
        opened = open_vectors([path] if sharded else path)
        np.save(path, other)
        with pytest.raises((FormatError, InputError), match=r"/a\.npy(: embeddings must be| changed)"):
            opened[0:10]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "u1"])
def test_fortran_files_are_read_by_column(tmp_path: Path, rows: FloatArray, dtype: str) -> None:
    content = np.asfortranarray(np.abs(rows * 100).astype(dtype))
    np.save(tmp_path / "a.npy", content)
    opened = open_vectors(tmp_path / "a.npy")
    for begin, end in ((0, 60), (7, 8), (30, 99), (60, 60)):
        np.testing.assert_array_equal(opened[begin:end], content[begin:end])
    path = tmp_path / "a.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError, match=r"/a\.npy ends within column 7 of 8"):
        opened[50:60]


def test_what_the_system_refuses(tmp_path: Path, rows: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", rows)
    (tmp_path / "ids.txt").write_text("1\n")
    opened = open_vectors(tmp_path / "a.npy")

    def refuse(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    for name, act in (
        ("open", lambda: opened[0:5]),
        ("stat", lambda: open_vectors(tmp_path / "a.npy")),
        ("iterdir", lambda: open_vectors(tmp_path)),
        ("open", lambda: read_ids(tmp_path / "ids.txt")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, refuse)
            with pytest.raises(StorageError, match=r"cannot be read: Permission denied; ask for") as caught:
                act()
        assert caught.value.errno == 13
        assert str(tmp_path) in str(caught.value.filename)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "b.npy.gz").touch(), r"holds b\.npy\.gz, which would be passed over: unpack"),
        (lambda f: (f / "b.NPY.zst").touch(), r"holds b\.NPY\.zst, which"),
        (lambda f: (f / "b.npy.part").touch(), r"holds b\.npy\.part, which"),
        (lambda f: (f / "b.npz").touch(), r"holds b\.npz, which"),
        (lambda f: (f / "b.fbin").touch(), r"holds b\.fbin, which"),
        (lambda f: (f / "b.npy").symlink_to(f / "nowhere"), r"/b\.npy does not exist"),
        (
            lambda f: np.save(made(f / "sub") / "b.npy", np.ones((2, 8))),
            r"a folder with .*/sub/b\.npy, which",
        ),
        (lambda f: (made(f / "x" / "y") / "b.parquet").touch(), r"/x/y/b\.parquet, .*pattern such as '\*\*/"),
    ],
)
def test_what_would_be_passed_over_is_refused(
    tmp_path: Path, rows: FloatArray, change: Callable[[Path], object], message: str
) -> None:
    np.save(tmp_path / "a.npy", rows)
    change(tmp_path)
    for source in (tmp_path, str(tmp_path / "*")):
        with pytest.raises(FormatError, match=message):
            open_vectors(source)
    # Files that a pattern does not match are ignored.
    assert open_vectors(tmp_path / "a*.npy").shape == (60, 8)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_what_is_no_embedding_is_passed_over(tmp_path: Path, rows: FloatArray) -> None:
    np.save(tmp_path / "a.npy", rows)
    for name in (
        "README.md",
        "ids.txt",
        "a.json",
        "a.npy.sha256",
        "a.npy.crc",
        "_SUCCESS",
        ".b.npy",
        "_c.npy",
    ):
        (tmp_path / name).touch()
    for folder in ("empty", ".cache", "_temporary"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / ".cache" / "b.npy", rows)
    np.save(tmp_path / "_temporary" / "b.npy", rows)
    assert open_vectors(tmp_path).shape == (60, 8)


def test_patterns_and_paths_of_every_kind(
    tmp_path: Path, rows: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, part in enumerate(np.split(rows, 6)):
        np.save(made(tmp_path / "shards" / f"day-{number + 8}") / "a.npy", part)
    expected = open_vectors([tmp_path / "shards" / f"day-{number}" / "a.npy" for number in range(8, 14)])[
        0:60
    ]
    np.testing.assert_array_equal(expected, rows)
    for pattern in ("*/a.npy", "**/*.npy", "**", "day-[0-9]*/*"):
        np.testing.assert_array_equal(open_vectors(tmp_path / "shards" / pattern)[0:60], rows)
    two = open_vectors([str(tmp_path / "shards/day-1[0-1]/*.npy"), tmp_path / "shards" / "day-8" / "a.npy"])
    np.testing.assert_array_equal(two[0:30], np.vstack([rows[20:40], rows[:10]]))
    with pytest.raises(FormatError, match=r"/none-\*\.npy does not exist, and as a pattern it matches"):
        open_vectors(tmp_path / "none-*.npy")
    # A name that looks like a pattern is a name if such a file exists.
    np.save(tmp_path / "a[1].npy", rows[:5])
    assert open_vectors(tmp_path / "a[1].npy").shape == (5, 8)

    class Named:
        def __fspath__(self) -> str:
            return str(tmp_path / "a[1].npy")

    assert open_vectors(Named()).shape == open_vectors([Named()]).shape == (5, 8)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_vectors("~/a[1].npy").shape == open_vectors(Path("~/a[1].npy")).shape == (5, 8)
    assert open_vectors("~/shards/**/*.npy").shape == (60, 8)
    for empty in ("", "a\0b"):
        with pytest.raises(InputError, match="path must be a path"):
            open_vectors(empty)


def test_files_of_other_kinds_say_how_to_convert(tmp_path: Path) -> None:
    for name, advice in (("a.csv", r"numpy\.loadtxt\('a\.csv', delimiter=','"), ("a.npz", r"\['name'\]")):
        (tmp_path / name).touch()
        with pytest.raises(FormatError, match=rf"/{name}: unknown kind of file; .*to convert it: .*{advice}"):
            open_vectors(tmp_path / name)
    np.save(tmp_path / "a.npy", np.ones((3, 4), dtype=np.int64))
    with pytest.raises(InputError, match=r"a\.npy: .*got dtype int64: convert them by \.astype"):
        open_vectors(tmp_path / "a.npy")


@each_kind
def test_bad_rows_are_named_by_file_and_row(
    tmp_path: Path, vectors: FloatArray, model: CompresSAE, suffix: str
) -> None:
    rows, write = vectors[:300].copy(), WRITERS[suffix]
    rows[217], rows[40] = 0, rows[40]
    path = tmp_path / f"a{suffix}"
    write(path, rows)
    folder = made(tmp_path / "shards")
    for number, part in enumerate(np.split(rows, 3)):
        write(folder / f"{number}{suffix}", part)
    config = TrainConfig(k=8, n_latents=64, steps=1)
    for source, place in ((path, f"row 217 of {path}"), (folder, f"row 17 of {folder / f'2{suffix}'}")):
        for act in (
            lambda given: CompressedIndex.build(given, model=model, progress=False),
            lambda given: train(given, config),
        ):
            with pytest.raises(InputError, match=r"row 217 is zero.*\(1 such rows\), row") as caught:
                act(source)
            assert place in str(caught.value)
            assert "on_bad_rows='skip'" in str(caught.value)
        index = CompressedIndex.build(source, model=model, k=8, on_bad_rows="skip", progress=False)
        assert index.skipped.tolist() == [217]
        assert index.ids.tolist() == [*range(217), *range(218, 300)]
        opened = open_vectors(source, on_bad_rows="skip")
        assert isinstance(opened, GoodRows)
        assert place.replace("17", "18") in opened.place(217)
        assert (
            train(opened, config).model.fingerprint
            == train(np.delete(rows, 217, 0), config).model.fingerprint
        )


def test_null_and_uneven_rows_of_parquet(tmp_path: Path, rows: FloatArray) -> None:
    for number, bad in ((0, None), (41, None), (59, rows[0, :3])):
        path = tmp_path / f"{number}.parquet"
        write_parquet(path, [*rows[:number], bad, *rows[number + 1 :]])
        what = "is missing" if bad is None else "holds 3 numbers, the first 8"
        with pytest.raises(
            FormatError, match=rf"{number}\.parquet: rows of column 'e' .*: row {number} {what}"
        ):
            open_vectors(path)[0:60]
        opened = open_vectors(path, on_bad_rows="skip")
        assert isinstance(opened, GoodRows)
        assert opened.skipped.tolist() == [number]
        np.testing.assert_array_equal(opened[0:59], np.delete(rows, number, axis=0))
    write_parquet(tmp_path / "n.parquet", [None] * 5)
    with pytest.raises((FormatError, InputError), match=r"n\.parquet"):
        open_vectors(tmp_path / "n.parquet", on_bad_rows="skip")


def test_tensors_in_parquet(tmp_path: Path, rows: FloatArray) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    pq.write_table(pa.table({"e": tensors}), tmp_path / "a.parquet", row_group_size=20)
    np.testing.assert_array_equal(open_vectors(tmp_path / "a.parquet")[15:45], rows[15:45])


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"\xef\xbb\xbf1\n2\n3\n", [1, 2, 3]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"1 \n2\t\n 3", [1, 2, 3]),
        (b"1\r\n2 \r\n", [1, 2]),
        (b"007\n8\n", ["007", "8"]),
        (b"a b \n c\n", ["a b", "c"]),
        (b"9223372036854775807\n0\n", [2**63 - 1, 0]),
        (b"9223372036854775808\n0\n", ["9223372036854775808", "0"]),
        ("é\u2028x\nü\n".encode(), ["é\u2028x", "ü"]),
    ],
)
def test_ids_of_text_files(tmp_path: Path, content: bytes, ids: list[Any]) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    assert read_ids(tmp_path / "ids.txt").tolist() == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.txt", b"a\n\nb\n", r"i\.txt: line 2 is blank \(1 such lines\)"),
        ("i.txt", b"a\nb\n \t\n", r"i\.txt: line 3 is blank"),
        ("i.txt", b"7\n5\n7\n", r"i\.txt: duplicate id 7 \(1 ids .*\), in lines 1 and 3"),
        ("i.txt", b"7\n-5\n", r"i\.txt: ids must not be negative .*got -5 in line 2"),
        ("i.txt", "a\n".encode("utf-16"), r"i\.txt cannot be read: 'utf-8' codec"),
        ("i.npy", np.array([3, 3]), r"i\.npy: duplicate id 3 .* in rows 0 and 1"),
        ("i.npy", np.array([1.5]), r"i\.npy: ids must be integers or strings, got float64"),
        ("i.npy", b"\x93NUMPY", r"i\.npy cannot be read"),
        ("i.parquet", {"id": [1]}, r"which column of .*i\.parquet holds the ids must be said"),
    ],
)
def test_bad_ids_are_named_by_file_and_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        np.save(path, content)
    with pytest.raises((FormatError, InputError), match=message):
        read_ids(path)


def test_ids_of_a_column(tmp_path: Path, vectors: FloatArray, model: CompresSAE) -> None:
    for number in (9, 10):
        names = pa.array([f"{number}-{i}" for i in range(30)]).dictionary_encode()
        write_parquet(
            tmp_path / f"{number}.parquet",
            vectors[30 * number : 30 * number + 30],
            name=names,
            id=range(30 * number, 30 * number + 30),
        )
    numbers, names_ = read_ids(tmp_path, "id"), read_ids(tmp_path / "*.parquet", "name")
    assert numbers.tolist() == list(range(270, 330))
    assert names_.tolist() == [f"{number}-{i}" for number in (9, 10) for i in range(30)]
    index = CompressedIndex.build(tmp_path, names_, model=model, k=8, progress=False)
    assert index.search(vectors[303], 1).ids[0, 0] == "10-3"
    with pytest.raises(FormatError, match=r"9\.parquet holds no column 'ID', only: e, name, id"):
        read_ids(tmp_path, "ID")
    with pytest.raises(InputError, match="column 'e': ids must be one-dimensional"):
        read_ids(tmp_path, "e")
    write_parquet(tmp_path / "11.parquet", vectors[:3], id=[1, None, 3])
    with pytest.raises(FormatError, match=r"11\.parquet: row 1 of column 'id' is null \(1 such rows\)"):
        read_ids(tmp_path, "id")
    write_parquet(tmp_path / "11.parquet", vectors[:2], id=["a", "b"])
    with pytest.raises(InputError, match=r"column 'id' holds integers in some .* strings in others"):
        read_ids(tmp_path, "id")
    write_parquet(tmp_path / "11.parquet", vectors[:1], id=[275])
    with pytest.raises(InputError, match=r"column 'id' of .*: duplicate id 275 .* in rows 5 and 60"):
        read_ids(tmp_path, "id")
    np.save(tmp_path / "a.npy", [1])
    with pytest.raises(
        InputError, match=r"columns of ids are read from Parquet files and Lance datasets, got .*a\.npy"
    ):
        read_ids(tmp_path / "a.npy", "id")
