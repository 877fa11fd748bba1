"""Results as tables, and other columns of the Parquet files that documents come from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from compressae_index import CompressedIndex, FormatError, InputError, SearchResult
from compressae_index.arrays import FloatArray
from compressae_index.search.results import write_table
from compressae_index.sources import read_metadata, read_texts

pd: Any = importlib.import_module("pandas")
pl: Any = importlib.import_module("polars")


def rows_of(found: SearchResult) -> list[dict[str, Any]]:
    return [
        {"query": query, "rank": rank, "id": id_, "score": np.float32(score)}
        for query, (ids, scores) in enumerate(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
        for rank, (id_, score) in enumerate(zip(ids, scores, strict=True))
        if score > -np.inf
    ]


def test_results_as_a_table(built: CompressedIndex, queries: FloatArray) -> None:
    found = built.search(queries[:3], 7, filter=[5, 8, 1, 9], mode="dense")
    table = found.to_arrow()
    assert table.schema == pa.schema(
        {"query": pa.int64(), "rank": pa.int64(), "id": pa.int64(), "score": pa.float32()}
    )
    assert table.to_pylist() == rows_of(found)
    assert table.num_rows == 12
    assert table.to_pandas().equals(pd.DataFrame(rows_of(found)))
    assert pl.from_arrow(table).equals(pl.DataFrame(rows_of(found), schema_overrides={"score": pl.Float32}))
    none = built.search(queries[:0], 7).to_arrow()
    assert none.num_rows == 0
    assert none.schema == table.schema


def test_strings_in_a_table(tmp_path: Path) -> None:
    ids = np.array([["b", "a"], ["a", None], [None, None]], object)
    found = SearchResult(np.array([[2, 1], [0.5, -np.inf], [-np.inf, -np.inf]], np.float32), ids)
    assert found.to_arrow().to_pylist() == rows_of(found)
    write_table(tmp_path / "r.parquet", found.to_arrow())
    assert pq.read_table(tmp_path / "r.parquet") == found.to_arrow()
    empty = SearchResult(found.scores[2:], ids[2:]).to_arrow()
    assert empty.schema == found.to_arrow().schema


def test_results_and_codes_go_to_torch_without_copies(built: CompressedIndex, queries: FloatArray) -> None:
    found = built.search(queries[:3], 4)
    for array in (found.scores, found.ids, built.codes([3, 4]).values, built.reconstruct([5])):
        tensor = torch.from_dlpack(array)  # type: ignore[attr-defined]
        assert tensor.data_ptr() == array.ctypes.data
        assert tensor.tolist() == array.tolist()


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two files of 7 and 5 rows in row groups of 3, whose ids are 0, 10, .. 110, not in order."""
    order = np.random.default_rng(0).permutation(12)
    table = pa.table(
        {
            "key": order * 10,
            "name": [f"d{number}" for number in order],
            "title": [f"title {number}" if number != 4 else None for number in order],
            "price": order / 2,
            "tags": [[f"t{number}"] for number in order],
        }
    )
    paths = [tmp_path / "p-1.parquet", tmp_path / "p-2.parquet"]
    for path, some in zip(paths, (table[:7], table[7:]), strict=True):
        pq.write_table(some, path, row_group_size=3)
    return paths


def test_columns_of_what_was_found(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pd.concat([pd.read_parquet(path) for path in parts], ignore_index=True)
    wanted = np.array([50, 0, 110, 50, 40, 7, 999])
    expected = whole.set_index("key").reindex(wanted)
    read = read_metadata(parts, wanted, ["price", "title"], "key")
    assert read.column_names == ["price", "title"]
    for name in read.column_names:
        values = [None if pd.isna(value) else value for value in expected[name]]
        assert read.column(name).to_pylist() == values
    by_name = read_metadata(parts, np.array(["d5", "x", "d0"], object), ["tags"], "name")
    assert by_name.to_pylist() == [{"tags": ["t5"]}, {"tags": None}, {"tags": ["t0"]}]
    by_row = read_metadata(str(parts[0].parent), np.array([11, 2, -1]), ["name"])
    assert by_row.column("name").to_pylist() == [whole.name[11], whole.name[2], None]
    assert read_metadata(parts, np.empty(0, np.int64), ["name"]).num_rows == 0
    groups: list[int] = []
    read_group = pq.ParquetFile.read_row_group

    def noting(file: Any, group: int, **options: Any) -> Any:
        groups.append(group)
        return read_group(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting)
    read_metadata(parts, np.array([8, 7]), ["name"])
    assert groups == [0]  # the first of the second file


def test_columns_and_texts_of_lance(parts: list[Path], tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    whole = pa.concat_tables([pq.read_table(path) for path in parts])
    for name, some in (("a.lance", whole[:7]), ("b.lance", whole[7:])):
        lance.write_dataset(some, tmp_path / name, max_rows_per_file=3)
    paths = [tmp_path / "a.lance", tmp_path / "b.lance"]
    wanted = np.array([50, 0, 110, 50, 7])
    for id_column in ("key", None):
        read, expected = (
            read_metadata(each, wanted, ["tags", "price"], id_column) for each in (paths, parts)
        )
        assert read.to_pylist() == expected.to_pylist()
    assert read_texts(paths, "title") == read_texts(parts, "title")


def test_mistakes_about_columns(parts: list[Path], tmp_path: Path) -> None:
    ids = np.array([1])
    with pytest.raises(FormatError, match="holds no column 'color', only: key, name, title"):
        read_metadata(parts, ids, ["color"])
    with pytest.raises(FormatError, match="holds no column 'id'"):
        read_metadata(parts, ids, ["title"], "id")
    with pytest.raises(InputError, match="are strings, those to look up are integers"):
        read_metadata(parts, ids, ["title"], "name")
    with pytest.raises(InputError, match="are integers, those to look up are strings"):
        read_metadata(parts, np.array(["1"], object), ["title"])
    with pytest.raises(InputError, match="duplicate id 0 "):
        read_metadata([parts[0], *parts], np.array([50]), ["title"], "key")
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(InputError, match="columns are read from Parquet files and Lance"):
        read_metadata(tmp_path / "a.npy", ids, ["title"])
    with pytest.raises(FormatError, match="gone"):
        read_metadata(tmp_path / "b.parquet", ids, ["title"])


def test_texts_of_files(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeffone  two \r\n\n\u00e9\u2028x\nlast".encode())
    assert read_texts(tmp_path / "t.txt") == ["one  two", None, "\u00e9\u2028x", "last"]
    whole = pa.concat_tables([pq.read_table(path) for path in parts])
    assert read_texts(parts, "title") == whole.column("title").to_pylist()
    assert read_texts(tmp_path, "tags") == whole.column("tags").to_pylist()
    with pytest.raises(FormatError, match="holds no column 'text'"):
        read_texts(parts, "text")
    with pytest.raises(FormatError, match="no such file"):
        read_texts(tmp_path / "u.txt")
    (tmp_path / "l.txt").write_bytes(b"\xff\n")
    with pytest.raises(FormatError, match=r"l\.txt cannot be read"):
        read_texts(tmp_path / "l.txt")
