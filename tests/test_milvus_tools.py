"""Tools for an index in Milvus: files for bulk import, the hook for pymilvus.model, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from milvus_collections import fill, name
from pymilvus import DataType, MilvusClient

from compressae_index import CompresSAE, CompressedIndex, FormatError
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.connectors.milvus import connect, export_parquet, wire
from compressae_index.connectors.milvus.hooks.pymilvus_model import CompresSAEEmbeddingFunction

pytestmark = pytest.mark.usefixtures("quick_imports")


# Files for bulk import.


def test_parquet_files_hold_the_codes(built: CompressedIndex, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    written = export_parquet(built, tmp_path / "out", dense="float16", primary="key", file_rows=3000)
    assert [file.name for file in written.files] == ["1.parquet", "2.parquet"]
    assert written.rows == 4000
    tables = [pq.read_table(file) for file in written.files]
    assert [str(kind) for kind in tables[0].schema.types] == ["int64", "string", "list<element: uint8>"]
    ids = [id_ for table in tables for id_ in table["key"].to_pylist()]
    assert ids == list(range(4000))
    rows = [json.loads(text) for table in tables for text in table["compressae_code"].to_pylist()]
    codes = wire.from_rows([{int(index): value for index, value in row.items()} for row in rows], 512, 16)
    expected = built.codes(ids)
    np.testing.assert_array_equal(codes.latents, expected.latents)
    np.testing.assert_array_equal(codes.values, expected.values)
    vector = np.array(tables[0]["compressae_dense"][5].as_py(), dtype=np.uint8).view(np.float16)
    np.testing.assert_array_equal(vector, built.reconstruct([5])[0].astype(np.float16))
    with pytest.raises(FormatError, match="not an empty directory"):
        export_parquet(built, tmp_path / "out")


@pytest.mark.parametrize("string_ids", [False, True])
def test_parquet_files_are_those_of_pymilvus(
    model: CompresSAE, vectors: FloatArray, client: MilvusClient, tmp_path: Path, string_ids: bool
) -> None:
    import pyarrow.parquet as pq
    from pymilvus.bulk_writer import BulkFileType, LocalBulkWriter

    ids = [str(i) for i in range(50)] if string_ids else None
    index = CompressedIndex.build(vectors[:50], ids, model=model, progress=False)
    schema = client.create_schema(auto_id=False)
    if string_ids:
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=20)
    else:
        schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("compressae_code", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("compressae_dense", DataType.FLOAT_VECTOR, dim=384)
    writer = LocalBulkWriter(schema, str(tmp_path / "theirs"), file_type=BulkFileType.PARQUET)
    for id_, pairs, row in zip(
        index.ids.tolist(), wire.to_dicts(index.codes(index.ids)), index.reconstruct(index.ids), strict=True
    ):
        writer.append_row({"id": id_, "compressae_code": pairs, "compressae_dense": row})
    writer.commit()
    ((theirs,),) = writer.batch_files
    (ours,) = export_parquet(index, tmp_path / "ours", dense="float32").files
    expected, table = pq.read_table(theirs), pq.read_table(ours)
    assert table.schema.names == expected.schema.names
    assert [str(kind) for kind in table.schema.types] == [str(kind) for kind in expected.schema.types]
    assert table["id"].to_pylist() == expected["id"].to_pylist()
    assert table["compressae_dense"].to_pylist() == expected["compressae_dense"].to_pylist()
    for a, b in zip(
        table["compressae_code"].to_pylist(), expected["compressae_code"].to_pylist(), strict=True
    ):
        assert json.loads(a) == json.loads(b)


# The hook for pymilvus.model.


class Embedder:
    """Texts are numbers of rows."""

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = vectors

    def encode_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vectors[int(text)].tolist() for text in texts]

    encode_queries = encode_documents


TEXTS = [str(number) for number in range(40)]


def test_the_hook_for_pymilvus_model(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> None:
    function = CompresSAEEmbeddingFunction(Embedder(vectors), model)
    documents, asked = function(TEXTS), function.encode_queries(TEXTS[:5])
    assert documents.shape == (40, function.dim) == (40, 1024)
    assert (documents.data > 0).all()
    collection = name()
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    params = client.prepare_index_params()
    params.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection(collection, schema=schema, index_params=params)
    client.insert(collection, [{"id": i, "sparse": documents[[i]]} for i in range(40)])
    hits = client.search(
        collection,
        data=[asked[[i]] for i in range(5)],
        anns_field="sparse",
        limit=1,
        consistency_level="Strong",
    )
    assert [found.ids for found in hits] == [[0], [1], [2], [3], [4]]
    client.drop_collection(collection)


# The command line.


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["milvus", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line(
    tmp_path: Path,
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    client = connect("items.db")
    fill(client, "items", vectors[:150])
    client.close()
    np.save("q.npy", queries[:3])
    model.save("m")
    where = ["--uri", "items.db", "--collection"]
    made = json.loads(run("import", *where, "items", "--model", "m", "--dense", "float32", "--json"))
    assert (made["vectors"], made["collection"]) == (150, "items_compressed")
    assert "left out" in run("import", *where, "items", "--model", "m")
    where.append("items_compressed")
    told = json.loads(run("info", *where, "--json"))
    assert told["fingerprint"] == model.fingerprint
    assert told["vectors"] == 150
    assert "items" in run("info", *where)
    options = ["-k", 2, "--filter", "price < 50", "--output-field", "price"]
    for mode in ("sparse", "two_stage", "dense", "hybrid"):
        found = json.loads(run("search", "q.npy", *where, *options, "--mode", mode, "--json"))
        assert len(found["ids"]) == len(found["certified"]) == 3
        assert all(id_ < 500 for row in found["ids"] for id_ in row)
        assert found["fields"]["price"][0][0] == found["ids"][0][0] / 10
    lines = run("search", "q.npy", *where, *options).splitlines()
    assert len(lines) == 6
    client = connect("items.db")
    client.load_collection("items")
    client.delete("items", ids=[0, 10])
    client.close()
    assert json.loads(run("sync", *where, "--json")) == {
        "added": 0,
        "changed": 0,
        "removed": 2,
        "vectors": 148,
    }
    CompressedIndex.build(vectors[:100], model=model, progress=False).save("i")
    assert json.loads(run("export-parquet", "i", "-o", "p", "--json"))["rows"] == 100
    assert Path("p/1.parquet").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--uri", "items", "--collection", "x"], "uri must be a path ending in .db"),
        (["info", "--uri", "here.db", "--collection", "x"], "there is no collection 'x'; there are: none"),
        (["import", "--uri", "http://127.0.0.1:1", "--collection", "x", "--timeout", "0.5"], "server runs"),
        (["export-parquet", "none", "-o", "p"], "none does not exist"),
        (
            ["import", "--uri", "a.db", "--collection", "x", "--model", "m", "--seed", "1"],
            "cannot be used with --model",
        ),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["milvus", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("command", ["import", "sync", "search", "info", "export-parquet"])
def test_help_of_the_commands(command: str) -> None:
    lines = run(command, "--help").splitlines()
    assert lines[lines.index("  Example:") + 1].startswith(f"    compressae-index milvus {command} ")
