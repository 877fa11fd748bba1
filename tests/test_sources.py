"""Files of embeddings: slices equal the array, and every fault is named with its file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.sources import open_vectors

Rows = npt.NDArray[np.floating[Any]]
GROUP = 30


def write_npy(path: Path, rows: Rows) -> None:
    np.save(path, rows)


def write_fvecs(path: Path, rows: Rows) -> None:
    dims = np.full((len(rows), 1), rows.shape[1], dtype="<i4")
    np.hstack([dims, rows.astype("<f4").view("<i4")]).tofile(path)


def write_hdf5(path: Path, rows: Rows) -> None:
    """As ann-benchmarks has it."""
    with h5py.File(path, "w") as file:
        file["train"] = rows
        file["test"] = rows[:2]
        file["neighbors"] = np.zeros((2, 10), dtype=np.int32)


def write_parquet(path: Path, column: object, name: str = "emb", **others: object) -> None:
    pq.write_table(pa.table({"id": range(len(column)), name: column, **others}), path, row_group_size=GROUP)  # type: ignore[arg-type]


def write_lists(path: Path, rows: Rows) -> None:
    write_parquet(path, pa.array(list(rows)))


def write_large_lists(path: Path, rows: Rows) -> None:
    write_parquet(path, pa.array(list(rows), type=pa.large_list(pa.from_numpy_dtype(rows.dtype))))


def write_fixed_size_lists(path: Path, rows: Rows) -> None:
    write_parquet(path, pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1]))


WRITERS: list[tuple[str, Callable[[Path, Rows], None]]] = [
    ("a.npy", write_npy),
    ("a.fvecs", write_fvecs),
    ("a.hdf5", write_hdf5),
    ("a.H5", write_hdf5),
    ("a.parquet", write_lists),
    ("a.parquet", write_large_lists),
    ("a.parquet", write_fixed_size_lists),
]
each_writer = pytest.mark.parametrize(("name", "write"), WRITERS)


@pytest.fixture(scope="session")
def rows(vectors: FloatArray) -> Rows:
    """100 rows: three whole row groups and a part of one."""
    return vectors[:100, :24].copy()


@each_writer
def test_slices_equal_the_array(
    tmp_path: Path, rows: Rows, name: str, write: Callable[[Path, Rows], None]
) -> None:
    write(tmp_path / name, rows)
    for path in (tmp_path / name, str(tmp_path / name)):
        opened = open_vectors(path)
        assert tuple(opened.shape) == rows.shape
        for begin, end in ((0, 100), (0, 1), (29, 31), (60, 90), (5, 95), (95, 200), (50, 50), (10, 20)):
            np.testing.assert_array_equal(np.asarray(opened[begin:end]), rows[begin:end])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats(tmp_path: Path, rows: Rows, dtype: npt.DTypeLike) -> None:
    converted = rows.astype(dtype)
    for name, write in (("a.npy", write_npy), ("a.npy", lambda p, r: np.save(p, np.asfortranarray(r)))):
        write(tmp_path / name, converted)
        np.testing.assert_array_equal(open_vectors(tmp_path / name)[3:50], converted[3:50])
    if converted.dtype.isnative:
        for name, write in WRITERS[2:]:
            write(tmp_path / name, converted)
            np.testing.assert_array_equal(open_vectors(tmp_path / name)[3:50], converted[3:50])


def test_arrays_pass_as_they_are(rows: Rows) -> None:
    assert open_vectors(rows) is rows
    np.testing.assert_array_equal(np.asarray(open_vectors(rows.tolist())[0:100]), rows)


def test_data_sets_and_columns_are_chosen_by_name(tmp_path: Path, rows: Rows) -> None:
    write_hdf5(tmp_path / "a.hdf5", rows)
    assert open_vectors(tmp_path / "a.hdf5", dataset="test").shape == (2, 24)
    write_parquet(tmp_path / "a.parquet", list(rows), "one", two=list(2 * rows))
    for column, factor in (("one", 1), ("two", 2)):
        opened = open_vectors(tmp_path / "a.parquet", dataset=column)
        np.testing.assert_array_equal(opened[0:100], factor * rows)


def test_empty_row_groups(tmp_path: Path, rows: Rows) -> None:
    table = pa.table({"emb": list(rows)})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for piece in (table[:0], table[:40], table[:0], table[40:]):
            writer.write_table(piece)
    opened = open_vectors(tmp_path / "a.parquet")
    np.testing.assert_array_equal(opened[0:100], rows)
    np.testing.assert_array_equal(opened[39:41], rows[39:41])


def test_an_index_of_a_file_is_that_of_its_array(
    tmp_path: Path, vectors: FloatArray, model: CompresSAE
) -> None:
    expected = CompressedIndex.build(vectors[:90], model=model, k=16, progress=False).codes(range(90))
    for name, write in WRITERS:
        write(tmp_path / name, vectors[:50])
        index = CompressedIndex.build(tmp_path / name, model=model, k=16, progress=False)
        write(tmp_path / ("more " + name), vectors[50:90])
        index.add(str(tmp_path / ("more " + name)))
        np.testing.assert_array_equal(index.codes(range(90)).latents, expected.latents)


@each_writer
@pytest.mark.parametrize("keep", [0.0, 0.305, 0.999])
def test_truncated(
    tmp_path: Path, rows: Rows, name: str, write: Callable[[Path, Rows], None], keep: float
) -> None:
    path = tmp_path / name
    write(path, rows)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(FormatError) as caught:
        open_vectors(path)
    assert str(path) in str(caught.value)


@each_writer
def test_of_another_format(
    tmp_path: Path, rows: Rows, name: str, write: Callable[[Path, Rows], None]
) -> None:
    write(tmp_path / name, rows)
    foreign = io.BytesIO()
    np.savez(foreign, rows=rows)
    for content in (foreign.getvalue(), b"\xff" * 2000, b"id,vector\n1,2\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError) as caught:
            open_vectors(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.fvecs", "a.hdf5", "a.parquet"])
def test_missing_or_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=rf"{name} does not exist"):
        open_vectors(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(FormatError, match=rf"{name} holds no file of a known kind"):
        open_vectors(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.csv", "a", "npy"])
def test_wrong_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FormatError, match=rf"/{name}: unknown kind of file; expected \.npy, \.fvecs"):
        open_vectors(tmp_path / name)


def write_ragged_fvecs(path: Path, rows: Rows) -> None:
    # A row of 7 numbers and one of 15 fill as many words as three of 7.
    for dim, part in ((7, rows[0, :7]), (15, rows[1, :15])):
        with path.open("ab") as file:
            file.write(np.int32(dim).tobytes() + part.astype("<f4").tobytes())


def write_group(path: Path, rows: Rows) -> None:
    with h5py.File(path, "w") as file:
        file["train/rows"] = rows


def write_null_hdf5(path: Path, _rows: Rows) -> None:
    with h5py.File(path, "w") as file:
        file["train"] = h5py.Empty("f4")


def with_null(rows: Rows) -> list[Rows | None]:
    return [*rows[:50], None, *rows[51:]]


FAULTS: list[tuple[str, Callable[[Path, Rows], object], type[Exception], str]] = [
    ("a.npy", lambda p, r: np.save(p, r.astype(object)), FormatError, "Python objects"),
    ("a.npy", lambda p, r: np.save(p, r.astype(np.int8)), InputError, "floating point.*got dtype int8"),
    ("a.npy", lambda p, r: np.save(p, r.astype("U4")), InputError, "floating point.*got dtype <U4"),
    ("a.npy", lambda p, r: np.save(p, r[0]), InputError, r"shape \(n, d\).*got shape \(24,\)"),
    ("a.npy", lambda p, r: np.save(p, r[None]), InputError, r"shape \(n, d\).*got shape \(1, 100, 24\)"),
    ("a.npy", lambda p, r: np.save(p, r[:0]), InputError, r"not be empty, got shape \(0, 24\)"),
    ("a.fvecs", write_ragged_fvecs, FormatError, "rows differ in dimension, the first has 7"),
    ("a.fvecs", lambda p, _: p.touch(), FormatError, "not a whole number of fvecs rows: 0 bytes"),
    ("a.hdf5", lambda p, r: write_hdf5(p, r.astype(np.int32)), InputError, "got dtype int32"),
    ("a.hdf5", lambda p, r: write_hdf5(p, r[:, 0]), InputError, r"got shape \(100,\)"),
    ("a.hdf5", write_group, FormatError, "'train' is not a data set of embeddings"),
    ("a.hdf5", write_null_hdf5, FormatError, "'train' is not a data set of embeddings"),
    ("a.parquet", lambda p, r: write_lists(p, r.astype(np.int64)), InputError, "got dtype int64"),
    ("a.parquet", lambda p, r: write_parquet(p, r.astype(str).tolist()), InputError, "got dtype object"),
    ("a.parquet", lambda p, r: write_parquet(p, r[:, 0]), FormatError, "list columns: none"),
    ("a.parquet", lambda p, r: write_parquet(p, list(r), b=list(r)), FormatError, "columns: emb, b"),
    ("a.parquet", lambda p, r: write_lists(p, r[:, :0]), InputError, r"not be empty, got shape \(100, 0\)"),
    ("a.parquet", lambda p, r: write_large_lists(p, r[:0]), InputError, r"not be empty, got shape \(0, 0\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "error", "message"), FAULTS)
def test_faults_found_on_opening(
    tmp_path: Path,
    rows: Rows,
    name: str,
    write: Callable[[Path, Rows], object],
    error: type[Exception],
    message: str,
) -> None:
    write(tmp_path / name, rows)
    with pytest.raises(error, match=message) as caught:
        open_vectors(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_missing_data_set(tmp_path: Path, rows: Rows) -> None:
    write_hdf5(tmp_path / "a.hdf5", rows)
    with pytest.raises(FormatError, match=r"a\.hdf5 holds no data set 'valid', only: neighbors, test, train"):
        open_vectors(tmp_path / "a.hdf5", dataset="valid")


@pytest.mark.parametrize(
    "column",
    [
        lambda rows: [*rows[:50], rows[50][:-1], *rows[51:]],
        # As many numbers as in equal rows.
        lambda rows: [*rows[:50], rows[50][:-1], np.append(rows[51], np.float32(1)), *rows[52:]],
        with_null,
        lambda rows: pa.array(with_null(rows), type=pa.list_(pa.float32(), rows.shape[1])),
        # Row groups differ, each alone is even.
        lambda rows: [*rows[:GROUP], *rows[GROUP:, :-1]],
    ],
)
def test_ragged_and_null_rows(tmp_path: Path, rows: Rows, column: Callable[[Rows], object]) -> None:
    write_parquet(tmp_path / "a.parquet", column(rows))
    opened = open_vectors(tmp_path / "a.parquet")
    np.testing.assert_array_equal(opened[0:GROUP], rows[:GROUP])
    with pytest.raises(FormatError, match=r"a\.parquet: rows of column 'emb' differ in length or are null"):
        opened[0:100]


def test_null_numbers_are_found_by_their_row(tmp_path: Path, rows: Rows, model: CompresSAE) -> None:
    column = np.tile(rows, 16).tolist()
    column[77][3] = None
    write_parquet(tmp_path / "a.parquet", column)
    with pytest.raises(InputError, match="row 77 holds NaN"):
        CompressedIndex.build(tmp_path / "a.parquet", model=model, progress=False)


def test_a_damaged_row_group(tmp_path: Path, rows: Rows) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"emb": list(rows)}), path, row_group_size=GROUP, compression="snappy")
    content, chunk = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(2).column(0)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content[begin : begin + chunk.total_compressed_size] = b"\0" * chunk.total_compressed_size
    path.write_bytes(content)
    opened = open_vectors(path)
    np.testing.assert_array_equal(opened[0:60], rows[:60])
    with pytest.raises(FormatError, match=r"a\.parquet cannot be read"):
        opened[60:90]
