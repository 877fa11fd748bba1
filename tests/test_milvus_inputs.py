"""Arguments of the Milvus connector, and secrets that its errors never repeat."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_collections import fill, name
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, FieldSchema, MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index import (
    BackendError,
    CompresSAE,
    CompressaeError,
    CompressedIndex,
    DimensionError,
    InputError,
    MissingExtraError,
    UnknownIdError,
)
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.connectors.milvus import (
    AsyncMilvusIndex,
    MilvusIndex,
    MilvusSource,
    connect,
    export_parquet,
    from_milvus,
)
from compressae_index.connectors.milvus import client as connections
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.errors import secrets_of, translated
from compressae_index.connectors.milvus.expressions import portions
from compressae_index.connectors.milvus.hooks.encoder import SplitEncoder
from compressae_index.connectors.milvus.hooks.pymilvus_model import CompresSAEEmbeddingFunction
from compressae_index.terminal import redacted, shown

ml_dtypes, pd = pytest.importorskip("ml_dtypes"), pytest.importorskip("pandas")
pytestmark = pytest.mark.usefixtures("quick_imports")


# Credentials.

SECRET = "s3cr3t"
WITH_CREDENTIALS = [
    f"http://user:{SECRET}@127.0.0.1:1",
    f"http://{SECRET}@127.0.0.1:1",
    f"http://:{SECRET}@127.0.0.1:1",
    f"https://user:{SECRET}@[::1]:1",
    f"http://user:a@b/{SECRET}?x#y@127.0.0.1:1",
    f"http://user:{SECRET}/more@127.0.0.1:1",
    f"http://user:%40{SECRET}%2F@127.0.0.1:1/db",
    f"http://127.0.0.1:1?token={SECRET}",
    f"http://127.0.0.1:1/?password=a@{SECRET}",
    f"http://127.0.0.1:1/db?a=b&api_key={SECRET}#x",
    f"http://127.0.0.1:{SECRET}@x",
    f"http://user:{SECRET}@127.0.0.1:99999999",
    f"http://user:{SECRET}@[::1",
    f"http://user:{SECRET}@127.0.0.1/items.db",
    f"tcp://user:{SECRET}@127.0.0.1:1",
    f"HTTP://user:{SECRET}@127.0.0.1:1",
    f"http:/user:{SECRET}@127.0.0.1:1",
    f"ftp://user:{SECRET}@127.0.0.1/items.db",
    Path(f"http://user:{SECRET}@127.0.0.1:1"),
    Path(f"http://user:{SECRET}@127.0.0.1/items.db"),
    f"ftp://user:{SECRET}@127.0.0.1:1",
    f"user:{SECRET}@127.0.0.1:1",
    f"127.0.0.1:1?token={SECRET}",
    f"http://user:{SECRET}@ℯxample／.com:1",
]


def all_of(error: BaseException) -> str:
    """Everything that an error and its causes say, however they are printed."""
    chain: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        if each is not None and each not in chain:
            chain.append(each)
            ahead += [each.__cause__, each.__context__]
    texts = [f"{each} {each!r} {each.args} {getattr(each, '__notes__', '')}" for each in chain]
    return "\n".join([*texts, "".join(traceback.format_exception_only(error))])


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_no_credential_is_repeated(
    uri: str | Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    calls: list[Callable[[], Any]] = [
        lambda: connect(uri, timeout=0.1),
        lambda: MilvusIndex.open(uri, "x", token=f"root:{SECRET}", timeout=0.1),
        lambda: asyncio.run(AsyncMilvusIndex.open(uri, "x", timeout=0.1)),
        lambda: from_milvus(uri, "x", timeout=0.1),
    ]
    for call in calls:
        with pytest.raises(CompressaeError) as caught:
            call()
        assert SECRET not in all_of(caught.value)
    np.save(tmp_path / "q.npy", np.ones((1, 384), np.float32))
    where = ["--uri", str(uri), "--collection", "x", "--timeout", "0.1"]
    result = CliRunner().invoke(main, ["milvus", "search", str(tmp_path / "q.npy"), *where, "--json"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert SECRET not in result.output + caplog.text + "".join(capfd.readouterr())


_PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="@", exclude_categories=("Z", "C")), min_size=1
)


@settings(deadline=None, max_examples=200)
@given(
    scheme=st.sampled_from(["http://", "https://", "tcp://", ""]),
    user=_PASSWORDS,
    password=_PASSWORDS,
    host=st.sampled_from(["host", "host:19530", "[::1]:19530", "10.0.0.1", "host/db"]),
    query=st.sampled_from(["", "?", "#"]),
)
def test_addresses_are_shown_without_credentials(
    scheme: str, user: str, password: str, host: str, query: str
) -> None:
    hidden = query + "token=q1w2e3" if query else ""
    for uri in (f"{scheme}{user}:{password}@{host}{hidden}", f"{scheme}{password}@{host}{hidden}"):
        seen = shown(uri)
        assert re.fullmatch(re.escape(scheme) + r"\*\*\*(@" + re.escape(host) + r"(\?\*\*\*)?)?", seen), seen
    assert shown(f"{scheme}{host}") == scheme + host


def test_texts_of_others_are_redacted() -> None:
    text = f"no route to 'http://user:{SECRET}@host:1/x?token={SECRET}', see https://milvus.io/docs"
    assert redacted(text, whole=True) == "no route to 'http://***@host:1/x?***', see https://milvus.io/docs"
    for of_others in (False, True):
        assert redacted(text, whole=of_others).count(SECRET) == (not of_others)
    an_id = "duplicate id 'https://host/@user/post?page=2'"
    assert redacted(an_id) == an_id
    assert redacted(f"user root, password {SECRET}", [SECRET]) == "user root, password ***"
    assert "u" not in secrets_of(f"http://u:{SECRET}@host:1", "")
    with pytest.raises(BackendError) as caught, translated("reading"):
        raise MilvusException(1, f"no http://a:{SECRET}@b") from ValueError(SECRET)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(BackendError) as caught, translated("reading"):
        raise MilvusException(1, "no such thing")
    assert isinstance(caught.value.__cause__, MilvusException)


# Databases of Milvus Lite.


def test_reading_makes_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: CompresSAE
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("q.npy", np.ones((1, 384), np.float32))
    model.save("m")
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "empty.db").mkdir()
    where = ["--uri", "no.db", "--collection", "x"]
    for arguments in (["info"], ["sync"], ["search", "q.npy"], ["import", "--model", "m"]):
        result = CliRunner().invoke(main, ["milvus", *arguments, *where])
        assert result.exit_code == 2
        assert (
            result.stderr == "Error: there is no collection 'x'; there are: none, as no.db does not exist\n"
        )
    for open_ in (MilvusIndex.open, from_milvus):
        for uri in ("no.db", Path("no.db")):
            with pytest.raises(InputError, match="there is no collection 'x'"):
                open_(uri, "x")
        with pytest.raises(InputError, match=r"there is no database empty\.db"):
            open_("empty.db", "x")
    with pytest.raises(InputError, match=r"there is no database no\.db"):
        connect("no.db", create=False)
    assert not list((tmp_path / "empty.db").iterdir())
    (tmp_path / "empty.db").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_paths_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "file.db").write_text("SQLite format 3")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "mine.txt").write_text("mine")
    (tmp_path / "plain").mkdir()
    for path, message in (
        ("file.db", "is a file, and databases of Milvus Lite 3 are folders"),
        ("folder.db", "is a folder, but not a database"),
        ("plain", r"uri must be a path ending in \.db"),
        ("a\0.db", "uri must be a path"),
    ):
        for uri in (f"{tmp_path}/{path}", tmp_path / path):
            with pytest.raises(InputError, match=message):
                connect(uri)
    assert [path.name for path in (tmp_path / "folder.db").iterdir()] == ["mine.txt"]
    for wrong in (None, 3, b"\xff", ["a.db"]):
        with pytest.raises(InputError, match=r"(uri|client) must be"):
            MilvusIndex.open(wrong, "x")
    for timeout in (0, -1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InputError, match="timeout must be a positive number"):
            connect(tmp_path / "new.db", timeout=timeout)  # type: ignore[arg-type]
    assert not (tmp_path / "new.db").exists()


def test_paths_as_people_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: CompresSAE, vectors: FloatArray
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    index = MilvusIndex.create("~/home.db", "items", model)
    index.add(vectors[:5], np.arange(5))
    index.close()
    index = MilvusIndex.open(tmp_path / "home.db", "items")
    assert len(index) == 5
    index.close()
    assert [path.name for path in tmp_path.iterdir()] == ["home.db"]
    server_manager_instance.release_server(str(tmp_path / "home.db"))


@pytest.mark.parametrize(
    ("version", "fault"),
    [("2.5.1", "lacks requests that are needed"), ("3.2.1", "gives wrong sparse scores")],
)
def test_milvus_lite_that_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, fault: str
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(
        BackendError, match=rf"milvus-lite {version}, which {fault}: install milvus-lite>=3\.2"
    ):
        connect(tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()
    monkeypatch.undo()
    monkeypatch.setattr(MilvusClient, "get_server_version", lambda *_, **__: f"milvus_lite-{version}")
    with pytest.raises(BackendError, match=f"is served by milvus_lite-{version}, which {fault}"):
        connect(tmp_path / "a.db")
    server_manager_instance.release_server(str(tmp_path / "a.db"))
    monkeypatch.setattr(connections, "find_spec", lambda _: None)
    with pytest.raises(
        MissingExtraError, match=r"needs milvus-lite, .* pip install 'compressae-index\[milvus\]'"
    ):
        connect(tmp_path / "b.db")


# Names of fields and partitions.


@pytest.fixture(scope="module")
def strict(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> MilvusIndex:
    """A compressed collection that has no dynamic fields. Not to be changed."""
    collection = name()
    schema = client.create_schema(auto_id=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=10)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=384)
    schema.add_field("price", DataType.FLOAT, nullable=True)
    schema.add_field("kind", DataType.VARCHAR, max_length=20)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    client.create_collection(collection, schema=schema, index_params=params)
    rows = [{"key": f"k{i}", "embedding": vectors[i], "price": float(i), "kind": "a"} for i in range(30)]
    client.insert(collection, rows)
    return from_milvus(client, collection, model=model, progress=False).compressed


def test_fields_to_fetch(strict: MilvusIndex, imported: MilvusIndex, queries: FloatArray) -> None:
    found = strict.search(queries[:2], 40, output_fields=["*"], query_nnz=512)
    assert set(found.fields) == {"key", "price", "kind", "compressae_code", "compressae_digest"}
    here = found.ids != None  # noqa: E711
    assert found.fields["key"][here].tolist() == found.ids[here].tolist()
    assert found.fields["price"][here].tolist() == [float(id_[1:]) for id_ in found.ids[here]]
    assert found.fields["price"][~here].tolist() == [None] * int((~here).sum())
    assert strict.search(queries[:1], 2, output_fields=("price",)).fields.keys() == {"price"}
    assert strict.rows(["k1"], ["price"]) == [{"key": "k1", "price": 1.0}]
    for every_field in (None, ("*",)):
        row = strict.rows(["k1"], every_field)[0]
        assert row.keys() == {"key", "price", "kind", "compressae_code", "compressae_digest"}
    nothing = strict.search(queries[:1], 2, output_fields=None, partitions=None)
    assert (nothing.fields, nothing.ids.shape) == ({}, (1, 2))
    for names, message in (
        (["prcie"], "has no field 'prcie'; it has: key, price, kind, compressae_code"),
        (["price", "*", "prcie"], "has no field 'prcie'"),
        ("price", r"must be a list of names, got the string 'price'; write \['price'\]"),
        ("*", "got the string"),
        ([1], "must be a list of names"),
        ([""], "must be a list of names"),
        (7, "must be a list of names"),
    ):
        for mode in ("sparse", "dense"):
            with pytest.raises(InputError, match=message):
                strict.search(queries[:1], mode=mode, output_fields=names)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            strict.rows(["k1"], names)  # type: ignore[arg-type]
    # Unknown names may be dynamic fields, if the collection has any.
    some = imported.search(queries[:1], 3, output_fields=["colour", "nowhere"]).fields
    assert set(some["nowhere"].ravel().tolist()) == {None}
    every = imported.search(queries[:1], 30, output_fields=["*"]).fields
    assert {"key", "price", "kind", "tags", "colour", "size", "compressae_dense"} <= every.keys()
    assert (every["colour"] == "red").sum() + (every["size"] != None).sum() == 30  # noqa: E711


def test_fields_to_fetch_with_asyncio(strict: MilvusIndex, queries: FloatArray, client: MilvusClient) -> None:
    async def session() -> Any:
        index = await AsyncMilvusIndex.open(client._config.uri, strict.collection)
        for names, message in ((["prcie"], "has no field 'prcie'"), ("price", "got the string 'price'")):
            with pytest.raises(InputError, match=message):
                await index.search(queries[:1], output_fields=names)
        found = await index.search(queries[:2], 3, output_fields=["*"])
        await index._client.close()
        return found

    found, expected = asyncio.run(session()), strict.search(queries[:2], 3, output_fields=["*"])
    assert found.fields.keys() == expected.fields.keys()
    assert found.fields["price"].tolist() == expected.fields["price"].tolist()


def test_a_document_that_is_removed_while_its_fields_are_fetched(
    strict: MilvusIndex, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = strict.search(queries[:1], 3)
    read = Collection.rows_of
    gone = found.ids[0, 1]

    def without(*arguments: Any, **options: Any) -> Any:
        return {id_: row for id_, row in read(*arguments, **options).items() if id_ != gone}

    monkeypatch.setattr(Collection, "rows_of", without)
    again = strict.search(queries[:1], 3, output_fields=["price"])
    assert again.ids.tolist() == found.ids.tolist()
    assert [value is None for value in again.fields["price"][0]] == [False, True, False]
    with pytest.raises(UnknownIdError, match=f"unknown id '{gone}'"):
        strict.codes([gone])


def test_partitions_are_a_list_of_names(imported: MilvusIndex, queries: FloatArray) -> None:
    for partitions in ("_default", [None], 3):
        with pytest.raises(InputError, match="partitions must be a list of names"):
            imported.search(queries[:1], partitions=partitions)  # type: ignore[arg-type]
    assert imported.search(queries[:1], 1, partitions=["_default"]).ids[0, 0] >= 0
    with pytest.raises(InputError, match="has no partition 'p'; it has: _default"):
        MilvusSource(imported.client, imported.manifest.source["collection"], partition="p")


def test_fields_of_a_new_collection(client: MilvusClient, model: CompresSAE) -> None:
    held = client.list_collections()
    cases: list[tuple[Any, str]] = [
        ([FieldSchema("compressae_code", DataType.INT64)], "which compressae-index uses itself"),
        ([FieldSchema("id", DataType.INT64)], "there are two fields 'id'"),
        ([FieldSchema("v", DataType.FLOAT_VECTOR, dim=4)], "fields can be neither vectors nor primary keys"),
        (["price"], "must be a list of pymilvus.FieldSchema, got a str"),
    ]
    for fields, message in cases:
        with pytest.raises(InputError, match=message):
            MilvusIndex.create(client, name(), model, fields=fields)
    for wrong in ("1a", "a-b", "", None, "x" * 232):
        with pytest.raises(InputError, match="collection names are letters"):
            MilvusIndex.create(client, wrong, model)  # type: ignore[arg-type]
    assert client.list_collections() == held


# Values that are given.


def columns(n: int) -> dict[str, Any]:
    return {"price": np.arange(n, dtype=np.float32) / 2, "kind": [f"kind {i}" for i in range(n)]}


@pytest.mark.parametrize(
    "made",
    [
        columns,
        lambda n: pd.DataFrame(columns(n), index=np.arange(n) * 0.5),
        lambda n: pd.DataFrame(columns(n)).astype({"price": "Float32", "kind": "string"}),
        lambda n: pa.table(columns(n)),
        lambda n: {name: pd.Series(values, index=range(7, 7 + n)) for name, values in columns(n).items()},
        lambda n: {name: pa.chunked_array([values]) for name, values in columns(n).items()},
        lambda n: {name: tuple(values) for name, values in columns(n).items()},
    ],
)
def test_fields_may_be_tables(strict: MilvusIndex, vectors: FloatArray, made: Any) -> None:
    ids = [f"n{i}" for i in range(4)]
    strict.add(vectors[100:104], ids, fields=made(4))
    assert [row["price"] for row in strict.rows(ids)] == [0.0, 0.5, 1.0, 1.5]
    assert [row["kind"] for row in strict.rows(ids)] == ["kind 0", "kind 1", "kind 2", "kind 3"]
    strict.remove(ids)


def test_missing_values_are_null(strict: MilvusIndex, vectors: FloatArray) -> None:
    frame = pd.DataFrame({"price": [None, 1.5], "kind": ["a", "b"]})
    strict.add(vectors[100:102], ["n0", "n1"], fields=frame)
    assert [row["price"] for row in strict.rows(["n0", "n1"])] == [None, 1.5]
    strict.remove(["n0", "n1"])


def test_fields_that_cannot_be_stored(strict: MilvusIndex, vectors: FloatArray) -> None:
    cases: list[tuple[Any, str]] = [
        ([{"price": 1.0}, {"price": 2.0}], "must be a mapping of names to columns, .* got list"),
        ({"price": "ab", "kind": ["a", "b"]}, "field 'price' must be a column of values, .* got str"),
        ({"price": 1.0, "kind": ["a", "b"]}, "got float"),
        ({"price": iter([1.0, 2.0]), "kind": ["a", "b"]}, "must be a column of values"),
        ({1: [1, 2]}, "names of fields must be strings, got 1"),
        ({"price": [1.0], "kind": ["a", "b"]}, "field 'price' has 1 values for 2 vectors"),
        ({"prcie": [1.0, 2.0], "kind": ["a", "b"]}, "has no field 'prcie'"),
        ({"price": [1.0, 2.0]}, "needs a value of field 'kind'"),
        (None, "needs a value of field 'kind'"),
        (
            {"key": ["a", "b"], "kind": ["a", "b"]},
            "field 'key' cannot be set: pass its values as",
        ),
        ({"compressae_code": [1, 2], "kind": ["a", "b"]}, "it holds the code"),
    ]
    n = len(strict)
    for fields, message in cases:
        with pytest.raises(InputError, match=message):
            strict.add(vectors[100:102], ["n0", "n1"], fields=fields)
    assert len(strict) == n


def test_ids_that_cannot_be_stored(strict: MilvusIndex, imported: MilvusIndex, vectors: FloatArray) -> None:
    fields, n = {"kind": ["a", "b"]}, len(strict)
    with pytest.raises(
        InputError, match=r"id 'žžžžžž' has 12 bytes, but the primary key 'key' .* at most 10"
    ):
        strict.upsert(vectors[:2], ["ok", "ž" * 6], fields=fields)
    with pytest.raises(InputError, match=r"id 'xxxx.*\.\.\.' has 200000 bytes"):
        strict.add(vectors[:2], ["ok", "x" * 200_000], fields=fields)
    with pytest.raises(InputError, match="lone surrogate"):
        strict.add(vectors[:2], ["ok", "\ud800"], fields=fields)
    with pytest.raises(InputError, match="lone surrogate"):
        strict.rows(["\ud800"])
    with pytest.raises(UnknownIdError, match="unknown id 3"):
        strict.rows([3])
    with pytest.raises(UnknownIdError, match="unknown id 'k1'"):
        imported.rows(["k1"])
    with pytest.raises(InputError, match="must not be negative"):
        imported.add(vectors[:1], [-1], fields={"tags": [[]]})
    assert len(strict) == n
    strict.add(vectors[:2], np.array(["a", ""], dtype=np.str_), fields=fields)
    assert [row["key"] for row in strict.rows(["", "a"])] == ["", "a"]
    strict.remove(["", "a"])


def test_many_long_ids_are_asked_for_in_portions() -> None:
    ids = ["x" * 65_535] * 300 + ["short"] * 2500
    parts = list(portions(ids))
    assert [id_ for some in parts for id_ in some] == ids
    assert max(sum(map(len, some)) for some in parts) <= 8 << 20
    assert max(map(len, parts)) <= 1000
    assert list(portions([])) == []


def test_primary_keys_of_files(built: CompressedIndex, tmp_path: Path) -> None:
    for primary in ("in", "a b", "", "compressae_code"):
        with pytest.raises(InputError, match="primary key"):
            export_parquet(built, tmp_path / "out", primary=primary)
    assert not (tmp_path / "out").exists()


# Results of embedders.


class Giving:
    """An embedder of any interface that returns what it was made with."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def embed_documents(self, texts: Any) -> Any:  # noqa: ARG002
        return self._given() if callable(self._given) else self._given

    embed_query = encode_documents = encode_queries = embed_documents


def test_rows_of_any_kind(model: CompresSAE, vectors: FloatArray) -> None:
    rows = vectors[:3]
    codes = SplitEncoder(model).documents(rows, 3).to_dense()
    given: list[Any] = [
        rows.tolist(),
        tuple(map(tuple, rows.tolist())),
        list(rows),
        [row[None] for row in rows],
        lambda: iter(rows),
        (row.tolist() for row in rows),
        [torch.tensor(row) for row in rows],
        torch.tensor(rows),
        rows.astype(np.float64),
        np.asfortranarray(rows),
    ]
    for each in given:
        found = SplitEncoder(model).documents(Giving(each).encode_documents(None), 3)
        np.testing.assert_allclose(found.to_dense(), codes, atol=1e-5)
    whole = np.round(rows * 100).astype(np.int64)
    np.testing.assert_array_equal(
        CompresSAEEmbeddingFunction(Giving(whole.tolist()), model)(["a"] * 3).toarray(),
        CompresSAEEmbeddingFunction(Giving(whole.astype(np.float32)), model)(["a"] * 3).toarray(),
    )
    for one in (rows[0], rows[:1], rows[0].tolist(), [rows[0]], torch.tensor(rows[0])):
        query = CompresSAEEmbeddingFunction(Giving(one), model).encode_queries(["a"])
        expected = CompresSAEEmbeddingFunction(Giving(rows[:1]), model).encode_queries(["a"]).toarray()
        np.testing.assert_array_equal(query.toarray(), expected)


def test_what_is_no_model_and_no_texts(model: CompresSAE, client: MilvusClient, tmp_path: Path) -> None:
    wrong: Any
    for wrong in (None, str(tmp_path), 3):
        makers: tuple[Callable[[Any], Any], ...] = (
            lambda model: CompresSAEEmbeddingFunction(None, model),
            lambda model: MilvusIndex.create(client, "no_model", model),
        )
        for make in makers:
            with pytest.raises(InputError, match="model must be a CompresSAE, got"):
                make(wrong)
    assert "no_model" not in client.list_collections()
    hook = CompresSAEEmbeddingFunction(None, model)
    for wrong in ("abc", "", b"abc", None, 5):
        for call in (hook.encode_documents, hook.encode_queries, hook):
            with pytest.raises(InputError, match="texts must be a list of strings, got"):
                call(wrong)
    wrong = np.array([])
    assert hook.encode_documents(wrong).shape == (0, hook.dim)


def test_what_is_no_embedding(model: CompresSAE, vectors: FloatArray) -> None:
    rows = vectors[:2]
    cases: list[tuple[Any, type[Exception], str]] = [
        (None, InputError, "NoneType"),
        ([None, None], InputError, "."),
        ([rows[0].tolist(), rows[1].tolist()[:-1]], InputError, "."),
        ([rows[0], rows[1][:-1]], InputError, "row 1 holds 383 numbers"),
        (rows[:, :10], DimensionError, "expected 384"),
        (rows[:1], DimensionError, "returned 1 vectors for 2 texts"),
        (np.vstack([rows, rows]), DimensionError, "returned 4 vectors for 2 texts"),
        ([], InputError, "."),
        ("ab", InputError, "."),
        (rows * np.nan, InputError, "NaN"),
        (rows * 0, InputError, "zero"),
        (rows.astype(np.complex64), InputError, "floating point"),
        ({"dense": rows}, InputError, "."),
        (object(), InputError, "."),
    ]
    for embedded, kind, message in cases:
        embedder = Giving(embedded)
        with pytest.raises(kind, match=message):
            CompresSAEEmbeddingFunction(embedder, model).encode_documents(["a", "b"])
        with pytest.raises(kind, match=message):
            CompresSAEEmbeddingFunction(embedder, model).encode_queries(["a", "b"])
    # Refused, or widened.
    for half in (rows.astype(ml_dtypes.bfloat16), torch.tensor(rows).bfloat16()):
        try:
            found = CompresSAEEmbeddingFunction(Giving(half), model)(["a", "b"])
        except InputError:
            continue
        assert found.shape == (2, 1024)
    with pytest.raises(InputError, match="encoder must be one of"):
        SplitEncoder(model, encoder="none")  # type: ignore[arg-type]


def test_no_texts(model: CompresSAE) -> None:
    def never() -> Any:
        raise AssertionError

    function = CompresSAEEmbeddingFunction(Giving(never), model)
    for rows in (function([]), function.encode_queries([]), function.encode_documents([])):
        assert rows.shape == (0, 1024)


# The command line.


def test_the_command_line_names_a_wrong_field(
    tmp_path: Path,
    vectors: FloatArray,
    queries: FloatArray,
    model: CompresSAE,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("q.npy", queries[:1])
    client = connect("items.db")
    fill(client, "items", vectors[:20])
    from_milvus(client, "items", model=model, progress=False)
    client.upsert("items", [{"key": 50, "embedding": vectors[5], "tags": [], "colour": "changed"}])

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["milvus", *arguments, "--uri", "items.db"])

    compressed = ("--collection", "items_compressed")
    found = run("search", "q.npy", *compressed, "--output-field", "*", "--json")
    assert {"price", "colour", "kind"} <= json.loads(found.stdout)["fields"].keys()
    for arguments, message in (
        (["search", "q.npy", *compressed, "--partition", "p"], "has no partition 'p'"),
        (["search", "q.npy", *compressed, "--filter", "price <"], "cannot evaluate the filter"),
        (["search", "q.npy", *compressed, "--timeout", "-1"], "timeout must be a positive number"),
        (["info", "--collection", "items"], "was not made by compressae-index"),
        (["import", "--collection", "items", "--target", "a b"], "collection names are letters"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    nothing = {"added": 0, "changed": 0, "removed": 0, "vectors": 20}
    assert json.loads(run("sync", *compressed, "--ids-only", "--json").stdout) == nothing
    assert json.loads(run("sync", *compressed, "--json").stdout) == nothing | {"changed": 1}
    client.close()
    server_manager_instance.release_server("items.db")


def test_the_compose_file_has_no_secrets_and_no_open_ports() -> None:
    text = (Path(__file__).parents[1] / "docker-compose.milvus.yml").read_text()
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value), variable
    assert services["minio"]["healthcheck"]["test"] == ["CMD", "mc", "ready", "local"]
    assert services["milvus"]["environment"]["COMMON_SECURITY_AUTHORIZATIONENABLED"] == "true"
    assert "minioadmin" not in text
