"""Imports that are stopped, killed or run twice at once, while their source changes; and syncing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_collections import fill, key, name, put
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, MilvusClient

from compressae_index import BackendError, CompresSAE, InputError, TrainConfig
from compressae_index.arrays import FloatArray
from compressae_index.connectors.milvus import MilvusIndex, connect, from_milvus, importer, sync
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import OWN_FIELDS, Layout, create_rows
from compressae_index.connectors.milvus.copier import Copier
from compressae_index.connectors.milvus.schema import Key

pytestmark = pytest.mark.usefixtures("quick_imports")

# More than a page of these tests, so that an import can be stopped between two.
ROWS = 50
PAGE = 20


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pages; and nothing is measured, as searches are slow on Milvus Lite."""
    monkeypatch.setattr(importer, "_measured", lambda *_: {})
    monkeypatch.setattr(Collection, "pages", partialmethod(Collection.pages, page_rows=PAGE))


def rows_of_all(index: MilvusIndex) -> dict[Any, Any]:
    """All rows with their codes, and the partition of each."""
    collection, key = index.documents.collection, index.documents.key
    collection.load()
    return {
        row[key.name]: (partition, row)
        for partition in collection.partitions()
        for page in collection.pages(key, ["*"], partition=partition)
        for row in page
    }


def stopped_import(client: MilvusClient, collection: str, model: CompresSAE, after: int = 1) -> None:
    """An import to the default target that is interrupted after some writes."""
    store, calls = MilvusBackend.put, []

    def store_and_stop(self: MilvusBackend, *arguments: Any, **options: Any) -> None:
        store(self, *arguments, **options)
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MilvusBackend, "put", store_and_stop)
        with pytest.raises(KeyboardInterrupt):
            from_milvus(client, collection, model=model, progress=False)


def check_complete(client: MilvusClient, index: MilvusIndex, collection: str) -> None:
    """The copy holds the rows of the source, their fields, the codes of their vectors, and nothing else."""
    theirs = {
        row["key"]: row
        for page in Collection(client, collection).pages(Key("key"), ["*"], page_rows=1000)
        for row in page
    }
    own = {id_: row for id_, (_, row) in rows_of_all(index).items()}
    left_out = {"embedding", *OWN_FIELDS}
    fields = [
        {id_: {name: row[name] for name in row.keys() - left_out} for id_, row in rows.items()}
        for rows in (theirs, own)
    ]
    assert fields[0] == fields[1]
    expected = index.model.fold(index.model.encode(np.array([row["embedding"] for row in theirs.values()])))
    np.testing.assert_allclose(index.codes(list(theirs)).to_dense(), expected.to_dense(), atol=1e-5)


def replace_a_row(client: MilvusClient, collection: str, vectors: FloatArray) -> None:
    client.delete(collection, ids=[70])
    put(client, collection, vectors[2000:2001], 7)


def replace_fields(client: MilvusClient, collection: str, vectors: FloatArray) -> None:
    row = {"key": 80, "embedding": vectors[8], "price": 0.5, "tags": ["new"], "colour": "blue"}
    client.upsert(collection, [row])


def test_first_rows_that_cannot_be_copied_leave_nothing_behind(
    client: MilvusClient, model: CompresSAE
) -> None:
    short = TrainConfig.preset("fast", steps=2, refine_rounds=2)
    for kind, metric, message in (
        (np.ones((50, 8)), "COSINE", r"code of id 0 is zero.*train with TrainConfig\(center=False\)"),
        (np.ones((1, 8)), "COSINE", "code of id 0 is zero"),
        (np.eye(8) * 1e15, "IP", "keeps norms from"),
    ):
        collection = name()
        fill(client, collection, kind.astype(np.float32), metric=metric)
        with pytest.raises(InputError, match=message):
            from_milvus(client, collection, config=short, progress=False)
        assert [each for each in client.list_collections() if each.startswith(collection)] == [collection]
        if metric == "COSINE":
            plain = replace(short, center=False)
            found = from_milvus(client, collection, config=plain, progress=False).compressed
            assert found.search(np.ones(8, np.float32), 1).ids.tolist() == [[0]]
    wrong: Any = 5
    for options in ({"model": wrong}, {"model": model, "config": short}, {"model": model, "n_latents": 99}):
        with pytest.raises(InputError, match=r"model must be|cannot be given with|the model has"):
            from_milvus(client, collection, progress=False, **options)


def test_a_source_that_changes_while_an_import_is_stopped(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray
) -> None:
    collection = name()
    fill(client, collection, vectors[:ROWS])
    stopped_import(client, collection, model)
    client.delete(collection, ids=[30, 450])
    replace_a_row(client, collection, vectors)
    replace_fields(client, collection, vectors)
    row = {"key": -7, "embedding": vectors[2001], "price": None, "tags": []}
    client.insert(collection, [row, row | {"key": 71}])
    index, report = from_milvus(client, collection, model=model, progress=False)
    assert report.resumed == PAGE - 3
    check_complete(client, index, collection)
    index.drop()


def test_a_source_that_changes_while_an_import_reads_it(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = name()
    fill(client, collection, vectors[:ROWS])
    store, calls = MilvusBackend.put, []

    def store_and_change(self: MilvusBackend, *arguments: Any, **options: Any) -> None:
        store(self, *arguments, **options)
        calls.append(1)
        if len(calls) == 2:  # of the first page, which was read before
            replace_a_row(client, collection, vectors)
            replace_fields(client, collection, vectors)
            client.delete(collection, ids=[30])
            client.insert(collection, [{"key": 71, "embedding": vectors[2001], "price": None, "tags": []}])

    monkeypatch.setattr(MilvusBackend, "put", store_and_change)
    index = from_milvus(client, collection, model=model, progress=False).compressed
    check_complete(client, index, collection)
    assert sync(index, progress=False) == (0, 0, 0, ROWS)
    index.drop()


@pytest.mark.parametrize("deleted", ["key == 30", "key > 300", "key < 200"])
def test_rows_deleted_while_an_import_is_stopped(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, deleted: str
) -> None:
    collection = name()
    fill(client, collection, vectors[:ROWS])
    stopped_import(client, collection, model)
    client.delete(collection, filter=deleted)
    index = from_milvus(client, collection, model=model, progress=False).compressed
    check_complete(client, index, collection)
    index.drop()


def test_partitions_that_change_while_an_import_is_stopped(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray
) -> None:
    collection = name()
    fill(client, collection, vectors[:20], string_ids=True)
    for partition, first in (("a", 20), ("b", 40), ("z", 60)):
        client.create_partition(collection, partition)
        put(client, collection, vectors[first : first + 20], first, string_ids=True, partition_name=partition)
    stopped_import(client, collection, model, after=3)
    client.delete(collection, filter='key like "%000045"')
    put(client, collection, vectors[45:46], 45, string_ids=True, partition_name="z")
    client.drop_partition(collection, "a")
    client.create_partition(collection, "new")
    put(client, collection, vectors[80:90], 80, string_ids=True, partition_name="new")
    index = from_milvus(client, collection, model=model, progress=False).compressed
    held = rows_of_all(index)
    assert {part for part, _ in held.values()} == {"_default", "b", "z", "new"}
    assert held[key(45)][0] == "z"
    assert len(held) == 70
    expected = {id_: row["price"] for id_, (_, row) in held.items()}
    assert expected == {
        row["key"]: row["price"]
        for page in Collection(client, collection).pages(Key("key"), ["price"])
        for row in page
    }
    # And once more after the import, by syncing.
    client.delete(collection, filter='key like "%000046"')
    client.create_partition(collection, "newer")
    put(client, collection, vectors[90:92], 90, string_ids=True, partition_name="newer")
    assert sync(index, progress=False) == (2, 0, 1, 71)
    held = rows_of_all(index)
    assert [held[key(number)][0] for number in (90, 91)] == ["newer", "newer"]
    assert key(46) not in held


def test_syncing_finds_replaced_rows_where_it_compares(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray
) -> None:
    collection = name()
    fill(client, collection, vectors[:40])
    index = from_milvus(client, collection, model=model, dense="float32", progress=False).compressed
    replace_a_row(client, collection, vectors)
    replace_fields(client, collection, vectors)
    client.delete(collection, ids=[0])
    assert sync(index, compare=False, progress=False) == (0, 0, 1, 39)
    assert index.rows([80])[0]["price"] == 8.0
    assert sync(index, progress=False) == (0, 2, 0, 39)
    check_complete(client, index, collection)
    assert sync(index, progress=False) == (0, 0, 0, 39)
    index.upsert(vectors[50:51], [100], fields={"tags": [["other"]]})
    assert sync(index, progress=False) == (0, 1, 0, 39)
    index.drop()


def test_a_source_that_was_made_anew(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> None:
    collection = name()
    fill(client, collection, vectors[:ROWS])
    stopped_import(client, collection, model)
    client.drop_collection(collection)
    fill(client, collection, vectors[:30], string_ids=True)
    index = from_milvus(client, collection, progress=False).compressed
    check_complete(client, index, collection)
    # Of another dimension, the model is of no use either.
    target = name()
    narrow = np.ascontiguousarray(model.decoder_w[:, :10])
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    small = CompresSAE(np.ascontiguousarray(narrow.T), model.encoder_b, narrow, 4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MilvusBackend, "put", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            from_milvus(client, collection, target=target, model=model, progress=False)
    client.drop_collection(collection)
    fill(client, collection, vectors[:30, :10].copy())
    made = from_milvus(client, collection, target=target, model=small, progress=False).compressed
    assert made.model.fingerprint == small.fingerprint
    assert len(made) == 30


def test_what_another_import_left_is_used_or_dropped(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray
) -> None:
    collection = name()
    building = collection + "_compressed_building"
    fill(client, collection, vectors[:30])
    # Stopped before it had its index.
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("compressae_code", DataType.SPARSE_FLOAT_VECTOR)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Copier, "create", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            from_milvus(client, collection, model=model, progress=False)
    client.create_collection(building, schema=schema)
    index = from_milvus(client, collection, progress=False).compressed
    check_complete(client, index, collection)
    # Next to a finished one.
    create_rows(Collection(client, building), index.manifest, Layout.new())
    from_milvus(client, collection, model=model, progress=False)
    assert building not in client.list_collections()


def test_a_copy_that_something_else_writes_to(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = name()
    fill(client, collection, vectors[:30])
    count, calls = MilvusBackend.__len__, []

    def one_more(self: MilvusBackend) -> int:
        calls.append(1)
        return count(self) + 1

    with monkeypatch.context() as patched:
        patched.setattr(MilvusBackend, "__len__", one_more)
        with pytest.raises(BackendError, match="holds 31 rows after 30 were sent, 3 times: something else"):
            from_milvus(client, collection, model=model, progress=False)
    assert len(calls) == 3
    assert collection + "_compressed" not in client.list_collections()
    assert from_milvus(client, collection, model=model, progress=False).report.vectors == 30


# Milvus Lite leaves its log open where a collection is dropped while another thread inserts.
@pytest.mark.filterwarnings("ignore:.*wal_data:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("same_model", [True, False])
def test_two_imports_to_one_target(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, same_model: bool
) -> None:
    collection, target = name(), name()
    fill(client, collection, vectors[:ROWS])
    other = CompresSAE(model.encoder_w, model.encoder_b + 1, model.decoder_w, model.k, model.mean)
    models = [model, model if same_model else other]
    together = threading.Barrier(2)
    errors: list[Exception] = []

    def run(number: int) -> None:
        together.wait()
        try:
            from_milvus(client, collection, target=target, model=models[number], progress=False)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, BackendError) for error in errors), errors
    if target not in client.list_collections():
        from_milvus(client, collection, target=target, progress=False)
    index = MilvusIndex.open(client, target)
    expected = index.model.fold(index.model.encode(vectors[:ROWS]))
    codes = index.codes(np.arange(0, 10 * ROWS, 10))
    np.testing.assert_allclose(codes.to_dense(), expected.to_dense(), atol=1e-5)
    assert len(index) == ROWS


KILLED = """
import os, signal, sys
from dataclasses import replace
from functools import partialmethod
from pymilvus import MilvusClient
import milvus_lite.db
from pymilvus.client.grpc_handler import GrpcHandler
from compressae_index.connectors.milvus import backend, from_milvus, importer
from compressae_index.connectors.milvus.collection import Collection
importer._measured = lambda *_: {}
Collection.pages = partialmethod(Collection.pages, page_rows=20)

def die_in(owner, name, call, *, after=False):
    inner, calls = getattr(owner, name), []
    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **options)
        if len(calls) == call and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, dying)

points = {
    "while a folder of Lite is made": lambda: die_in(milvus_lite.db, "save_schema", 1),
    "while the model is stored": lambda: die_in(MilvusClient, "upsert", 1),
    "before the indexes": lambda: die_in(GrpcHandler, "create_index", 2),
    "after a page": lambda: die_in(backend.MilvusBackend, "put", 1, after=True),
    "while renaming": lambda: die_in(milvus_lite.db, "save_schema", 1),
}
# Each point in a process of its own, which need not import everything again.
for point, prepare in points.items():
    if not (child := os.fork()):
        prepare()
        from_milvus(sys.argv[1], "items", model=sys.argv[2], progress=False)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, (point, status)
"""


def test_an_import_that_is_killed_at_every_step(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray
) -> None:
    uri = str(tmp_path / "killed.db")
    client = connect(uri)
    fill(client, "items", vectors[:ROWS])
    client.close()
    server_manager_instance.release_server(uri)
    model.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, uri, str(tmp_path / "model")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    client = connect(uri)
    index = from_milvus(client, "items", model=model, progress=False).compressed
    check_complete(client, index, "items")
    assert sorted(client.list_collections()) == ["items", "items_compressed", "items_compressed_model"]
    client.close()
    server_manager_instance.release_server(uri)


# What cannot be imported is refused before anything is written.


@pytest.fixture
def odd(client: MilvusClient) -> Iterator[Callable[..., str]]:
    """Makes dense collections of a chosen primary key."""
    made: list[str] = []

    def make(primary: str, ids: list[Any], fields: tuple[str, ...] = (), **values: Any) -> str:
        made.append(collection := name())
        schema = client.create_schema(auto_id=False, enable_dynamic_field=bool(values))
        if isinstance(ids[0], str):
            schema.add_field(primary, DataType.VARCHAR, is_primary=True, max_length=40)
        else:
            schema.add_field(primary, DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=384)
        for field in fields:
            schema.add_field(field, DataType.FLOAT, nullable=True)
        params = client.prepare_index_params()
        params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
        client.create_collection(collection, schema=schema, index_params=params)
        vectors = np.random.default_rng(0).normal(size=(len(ids), 384)).astype(np.float32)
        others = dict.fromkeys(fields, 2.0) | values
        rows = [{primary: id_, "embedding": row, **others} for id_, row in zip(ids, vectors, strict=True)]
        client.insert(collection, rows)
        return collection

    yield make
    for collection in made:
        client.drop_collection(collection)


@pytest.mark.parametrize("primary", ["in", "not", "like", "AND", "or", "exists", "null", "is", "true", "a b"])
def test_primary_keys_that_no_expression_can_hold(
    client: MilvusClient, model: CompresSAE, odd: Callable[..., str], primary: str
) -> None:
    collection = odd(primary, [1, 2])
    held = client.list_collections()
    with pytest.raises(InputError, match=f"is called '{primary}', which no Milvus expression can hold"):
        from_milvus(client, collection, model=model, progress=False)
    assert client.list_collections() == held


def test_names_that_are_used_here(client: MilvusClient, model: CompresSAE, odd: Callable[..., str]) -> None:
    for collection in (odd("compressae_code", [1, 2]), odd("id", [1], ("compressae_dense",))):
        held = client.list_collections()
        with pytest.raises(InputError, match="which compressae-index uses itself"):
            from_milvus(client, collection, model=model, progress=False)
        assert client.list_collections() == held
    collection = odd("id", [1, 2], compressae_code="mine")
    with pytest.raises(InputError, match="row of id 1 has a field 'compressae_code', which compressae-index"):
        from_milvus(client, collection, model=model, progress=False)
    assert collection + "_compressed" not in client.list_collections()


def test_fields_may_have_names_of_expressions(
    client: MilvusClient, model: CompresSAE, odd: Callable[..., str]
) -> None:
    collection = odd("id", [1, 2], ("in", "not", "like"))
    index = from_milvus(client, collection, model=model, progress=False).compressed
    assert {row["in"] for row in index.rows([1, 2])} == {2.0}
    index.drop()


def test_negative_ids(
    client: MilvusClient, model: CompresSAE, queries: FloatArray, odd: Callable[..., str]
) -> None:
    collection = odd("id", [-(2**63), -5, -1, 0, 2**63 - 1])
    held = client.list_collections()
    with pytest.raises(InputError, match="has the id -1, which marks a missing neighbour"):
        from_milvus(client, collection, model=model, progress=False)
    assert client.list_collections() == held
    index = from_milvus(client, collection, model=model, filter="id != -1", progress=False).compressed
    found = index.search(queries[:1], 5, query_nnz=512)
    assert sorted(found.ids[0].tolist()) == [-(2**63), -5, -1, 0, 2**63 - 1]  # -1 where there is no fifth
    assert np.isneginf(found.scores[0, 4])
    assert sync(index, progress=False) == (0, 0, 0, 4)
    client.delete(collection, ids=[-5])
    assert sync(index, progress=False) == (0, 0, 1, 3)
    index.drop()


def test_string_ids_of_any_characters(
    client: MilvusClient, model: CompresSAE, odd: Callable[..., str], vectors: FloatArray
) -> None:
    ids = [chr(code) for code in (*range(128), 0x85, 0x2028, 0xFEFF, 0x10FFFF)]
    ids += ["", "a\0", "\\n", 'a"b\\', "it's", "a\r\nb", "\x1b[31m", "ž", "' or 1 == 1"]
    collection = odd("id", ids)
    index = from_milvus(client, collection, model=model, progress=False).compressed
    assert [row["id"] for row in index.rows(ids)] == ids
    assert index.search(vectors[:1], 1, filter=["a\r\nb"], query_nnz=512).ids.tolist() == [["a\r\nb"]]
    index.upsert(vectors[:2], ["\x07", ""])
    index.remove(["\n", "\x1b[31m"])
    assert len(index) == len(ids) - 2
    assert sync(index, progress=False) == (2, 2, 0, len(ids))
    index.drop()
