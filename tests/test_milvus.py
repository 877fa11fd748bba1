"""The Milvus connector on Milvus Lite: imports, kills, faults, modes, files and hooks."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_lite.server_manager import server_manager_instance
from pymilvus import DataType, MilvusClient, WeightedRanker
from pymilvus.client.entity_helper import sparse_rows_to_proto
from pymilvus.exceptions import MilvusException

from compressae_index import (
    BackendError,
    CompresSAE,
    CompressedIndex,
    DimensionError,
    FormatError,
    InputError,
    SparseCodes,
    UnknownIdError,
)
from compressae_index.checks import FloatArray, normalize_rows
from compressae_index.cli import main
from compressae_index.connectors.milvus import (
    AsyncMilvusIndex,
    MilvusIndex,
    MilvusSource,
    connect,
    export_parquet,
    from_milvus,
    importer,
    sync,
    wire,
)
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.client import count
from compressae_index.connectors.milvus.errors import translated
from compressae_index.connectors.milvus.hooks.pymilvus_model import CompresSAEEmbeddingFunction
from compressae_index.errors import NewerFormatError

ROWS = 2300


def name() -> str:
    return f"c_{secrets.token_hex(4)}"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Milvus Lite searches slowly, and imports measure; small requests are resumed closely."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importer, "SAMPLE_ROWS", 20)
        patched.setattr(importer, "REQUEST_ROWS", 500)
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusClient]:
    client = connect(str(tmp_path_factory.mktemp("milvus") / "test.db"))
    yield client
    client.close()


def fill(
    client: MilvusClient,
    collection: str,
    vectors: FloatArray,
    *,
    string_ids: bool = False,
    metric: str = "COSINE",
) -> None:
    """A dense collection as users have them: scalar and dynamic fields, nulls, a default."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    if string_ids:
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=40)
    else:
        schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    schema.add_field("price", DataType.FLOAT, nullable=True)
    schema.add_field("kind", DataType.VARCHAR, max_length=20, default_value="plain")
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4, max_length=9)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type=metric)
    client.create_collection(collection, schema=schema, index_params=params)
    put(client, collection, vectors, 0, string_ids=string_ids)
    client.flush(collection)


def put(
    client: MilvusClient,
    collection: str,
    vectors: FloatArray,
    first: int,
    *,
    string_ids: bool = False,
    **options: Any,
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "key": key(number) if string_ids else number * 10,
            "embedding": vector,
            "price": None if number == 3 else float(number),
            "tags": ["a", str(number % 3)],
            **({"colour": "red"} if number % 2 else {"size": number}),
            **({"kind": "special"} if number % 5 == 0 else {}),
        }
        for number, vector in enumerate(vectors, first)
    ]
    for begin in range(0, len(rows), 2000):
        client.insert(collection, rows[begin : begin + 2000], **options)


def key(number: int) -> str:
    """Ascending strings with what pymilvus does not escape."""
    return f'"key" \\{number:06d}'


@pytest.fixture(scope="module")
def dense(client: MilvusClient, vectors: FloatArray) -> str:
    """A dense collection of 600 vectors with ids 0, 10, .. . Not to be changed."""
    collection = name()
    fill(client, collection, vectors[:600])
    return collection


@pytest.fixture(scope="module")
def imported(client: MilvusClient, dense: str, model: CompresSAE) -> MilvusIndex:
    """Made of it, with reconstructed vectors. Not to be changed."""
    return from_milvus(client, dense, model=model, dense="float32", progress=False).compressed


def rows_of(client: MilvusClient, collection: str) -> dict[Any, dict[str, Any]]:
    """All rows by id, without vectors."""
    rows = client.query(collection, filter="", limit=16384, output_fields=["*"])
    vectors = {"embedding", "compressae_code", "compressae_dense"}
    return {row["key"]: {name: row[name] for name in row.keys() - vectors} for row in rows}


# Codes as Milvus holds them.


def some_codes(n: int, k: int, n_latents: int, seed: int) -> SparseCodes:
    rng = np.random.default_rng(seed)
    latents = np.sort(np.stack([rng.permutation(n_latents)[:k] for _ in range(n)]), axis=1)
    values = rng.normal(size=(n, k)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = 0
    return SparseCodes(latents.astype(np.uint16), values, n_latents)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(30, 70_000), st.integers(0, 2**32))
def test_split_codes_come_back_and_bound_the_signed_sum(n: int, k: int, n_latents: int, seed: int) -> None:
    codes, others = (some_codes(n, k, min(n_latents, 65536), seed + i) for i in range(2))
    rows = wire.to_bytes(codes)
    back = wire.from_bytes(rows, codes.n_latents, k)
    np.testing.assert_array_equal(back.to_csr().toarray(), codes.to_csr().toarray())
    dicts = wire.to_dicts(codes)
    np.testing.assert_array_equal(
        wire.from_rows(dicts, codes.n_latents, k).to_csr().toarray(), codes.to_csr().toarray()
    )
    for row, pairs in zip(rows, dicts, strict=True):
        assert row == sparse_rows_to_proto([pairs]).contents[0]
        assert all(value > 0 for value in pairs.values())
    signed = (codes.to_csr() @ others.to_csr().T).toarray()
    for i, a in enumerate(dicts):
        for j, b in enumerate(wire.to_dicts(others)):
            agreement = sum(value * b[index] for index, value in a.items() if index in b)
            assert agreement >= signed[i, j] - 1e-4


def test_rows_that_are_no_codes() -> None:
    with pytest.raises(BackendError, match="no code of 2 of 10 latents"):
        wire.from_rows([{25: 1.0}], 10, 2)
    with pytest.raises(BackendError, match="no code of 1 of 10 latents"):
        wire.from_rows([{2: 1.0, 3: 1.0}], 10, 1)


def test_both_ways_of_writing_store_the_same(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = MilvusIndex.create(client, name(), model, dense="float32")
    index.add(vectors[:20], np.arange(20))
    monkeypatch.setattr(MilvusBackend, "_put_packed", lambda *_: False)
    index.add(vectors[:20], np.arange(100, 120))
    packed, rows = index.rows(np.arange(20)), index.rows(np.arange(100, 120))
    for a, b in zip(packed, rows, strict=True):
        assert a["compressae_code"] == b["compressae_code"]
        np.testing.assert_array_equal(a["compressae_dense"], b["compressae_dense"])
    index.drop()


def test_requests_are_bounded_in_bytes_and_rows(imported: MilvusIndex) -> None:
    backend = imported.backend
    runs = list(backend._requests(12_000, None))
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == 12_000
    assert max(run.stop - run.start for run in runs) <= 5000
    wide = list(backend._requests(30, [{"text": "x" * (1 << 20)}] * 30))
    assert max(run.stop - run.start for run in wide) < 16
    assert len(list(backend._requests(3, [{"text": "x" * (20 << 20)}] * 3))) == 3


def test_a_zero_code_is_refused(imported: MilvusIndex) -> None:
    codes = SparseCodes(np.arange(32, dtype=np.uint16).reshape(2, 16), np.zeros((2, 16), np.float32), 512)
    codes.values[0] = 1
    with pytest.raises(InputError, match="the code of id 8 is zero"):
        imported.backend.put(codes, np.array([7, 8]))
    assert len(imported) == 600


# Reading dense collections.


def test_a_source_reads_like_an_array(
    client: MilvusClient, dense: str, vectors: FloatArray, model: CompresSAE
) -> None:
    source = MilvusSource(client, dense)
    assert source.shape == (600, 384)
    assert source.ids.tolist() == list(range(0, 6000, 10))
    np.testing.assert_array_equal(source[590:620], vectors[590:600])
    np.testing.assert_array_equal(source[:], vectors[:600])
    assert source[5:5].shape == (0, 384)
    index = CompressedIndex.build(source, source.ids, model=model, progress=False)
    expected = CompressedIndex.build(vectors[:600], source.ids, model=model, progress=False)
    np.testing.assert_array_equal(index.codes([30, 5990]).values, expected.codes([30, 5990]).values)


def test_a_source_may_be_a_part(client: MilvusClient, dense: str, vectors: FloatArray) -> None:
    source = MilvusSource(client, dense, vector_field="embedding", filter="price < 5 and kind == 'plain'")
    assert source.ids.tolist() == [10, 20, 40]
    np.testing.assert_array_equal(source[1:3], vectors[[2, 4]])
    with pytest.raises(InputError, match="cannot evaluate the filter 'price <<<'"):
        len(MilvusSource(client, dense, filter="price <<<"))


def test_rows_deleted_while_reading(client: MilvusClient, vectors: FloatArray) -> None:
    collection = name()
    fill(client, collection, vectors[:20])
    source = MilvusSource(client, collection)
    assert len(source) == 20
    client.delete(collection, ids=[30])
    with pytest.raises(BackendError, match=r"1 rows of .* were deleted while it was read"):
        source[:]
    client.drop_collection(collection)


# Imports.


def test_an_import_keeps_ids_fields_and_the_source(
    client: MilvusClient, dense: str, imported: MilvusIndex, model: CompresSAE, vectors: FloatArray
) -> None:
    assert imported.collection == dense + "_compressed"
    assert rows_of(client, imported.collection) == rows_of(client, dense)
    expected = model.fold(model.encode(vectors[:600]))
    codes = imported.codes(np.arange(0, 6000, 10))
    np.testing.assert_allclose(codes.to_dense(), expected.to_dense(), atol=1e-5)
    stored = np.array([row["compressae_dense"] for row in imported.rows(np.arange(0, 6000, 10))])
    np.testing.assert_allclose(stored, imported.reconstruct(np.arange(0, 6000, 10)), atol=1e-6)
    assert set(client.list_collections()) >= {dense, dense + "_compressed", dense + "_compressed_model"}
    assert dense + "_compressed_building" not in client.list_collections()


def test_a_second_import_only_verifies(client: MilvusClient, dense: str, imported: MilvusIndex) -> None:
    again, report = from_milvus(client, dense, dense="float32", progress=False)
    assert report.vectors == report.resumed == len(again) == 600
    assert report.left_out == ["embedding"]
    assert report.bytes_before == 600 * 384 * 4
    assert report.bytes_after == 600 * (16 * 8 + 384 * 4)
    assert set(report.recall) == {10, 100}
    assert 0.5 < report.recall[10] <= 1
    assert again.model.fingerprint == imported.model.fingerprint


def test_strings_partitions_and_sync(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> None:
    collection, target = name(), name()
    fill(client, collection, vectors[:100], string_ids=True)
    client.create_partition(collection, "more")
    put(client, collection, vectors[100:150], 100, string_ids=True, partition_name="more")
    index, report = from_milvus(client, collection, target=target, model=model, progress=False)
    assert report.vectors == 150
    assert rows_of(client, target) == rows_of(client, collection)
    found = index.search(vectors[[99, 120]], 1, partitions=["more"], output_fields=["price", "colour"])
    assert found.ids[1].tolist() == [key(120)]
    assert found.ids[0].tolist() != [key(99)]
    assert found.fields["price"][1].tolist() == [120.0]
    client.delete(collection, filter="price < 10")
    put(client, collection, vectors[200:203], 200, string_ids=True, partition_name="more")
    index.remove([key(50)])
    assert sync(index, progress=False) == (4, 9, 144)  # price is null in one of the first ten
    assert sync(index, progress=False) == (0, 0, 144)
    assert rows_of(client, target) == rows_of(client, collection)
    assert index.search(vectors[202], 1, partitions=["more"]).ids.tolist() == [[key(202)]]
    put(client, collection, vectors[300:600], 300, string_ids=True)
    assert from_milvus(client, collection, target=target, model=model, progress=False).report.vectors == 144
    index.upsert(-vectors[10:50], [key(number) for number in range(10, 50)], fields={"tags": [["x"]] * 40})
    with pytest.raises(BackendError, match="are not those of their vectors"):
        from_milvus(client, collection, target=target, model=model, progress=False)
    index.drop()
    assert target not in client.list_collections()
    assert target + "_model" not in client.list_collections()


def test_inner_products_are_taken_from_the_source(
    client: MilvusClient, uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    collection = name()
    fill(client, collection, vectors[:150] * 3, metric="IP")
    index, report = from_milvus(client, collection, model=uncentred_model, progress=False)
    assert index.metric == "inner_product"
    assert report.recall[10] > 0.5
    truth = queries[:5] @ vectors[:150].T * 3
    found = index.search(queries[:5], 5)
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.ids // 10, axis=1), atol=0.6)
    fill(client, collection + "l2", vectors[:10], metric="L2")
    with pytest.raises(InputError, match="is searched by L2"):
        from_milvus(client, collection + "l2", model=uncentred_model)


def test_a_model_is_trained_where_none_is_given(client: MilvusClient, dense: str) -> None:
    from compressae_index import TrainConfig

    target = name()
    config = TrainConfig(steps=4, refine_rounds=2, batch_size=64)
    index, report = from_milvus(
        client, dense, target=target, k=8, n_latents=64, config=config, progress=False
    )
    assert (index.backend.k, index.model.n_latents) == (8, 64)
    assert set(report.seconds) == {"list", "train", "write", "flush", "verify", "measure"}
    assert MilvusIndex.open(client, target).model.fingerprint == index.model.fingerprint
    index.drop()


KILLED = """
import os, signal, sys
from compressae_index import CompresSAE
from compressae_index.connectors.milvus import backend, from_milvus
put = backend.MilvusBackend.put
calls = []
def put_and_die(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, *arguments, **options)
backend.MilvusBackend.put = put_and_die
from_milvus(sys.argv[1], "items", model=sys.argv[2], progress=False)
"""


def test_a_killed_import_goes_on(tmp_path: Path, model: CompresSAE, demo_data: Any) -> None:
    uri = str(tmp_path / "killed.db")
    client = connect(uri)
    fill(client, "items", demo_data.embeddings[:ROWS])
    before = rows_of(client, "items")
    client.close()
    server_manager_instance.release_server(uri)
    model.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, uri, str(tmp_path / "model")], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    client = connect(uri)
    assert sorted(client.list_collections()) == [
        "items",
        "items_compressed_building",
        "items_compressed_model",
    ]
    with pytest.raises(InputError, match="no collection 'items_compressed'"):
        MilvusIndex.open(client, "items_compressed")
    with pytest.raises(FormatError, match="begun with k = 16, now it is 8"):
        from_milvus(client, "items", k=8)
    index, report = from_milvus(client, "items", progress=False)
    assert report.resumed == 2000
    assert report.vectors == ROWS
    client.load_collection("items")
    assert rows_of(client, "items") == before
    assert rows_of(client, "items_compressed") == before
    assert sorted(client.list_collections()) == ["items", "items_compressed", "items_compressed_model"]
    assert index.model.fingerprint == model.fingerprint
    client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], tuple[str, subprocess.Popen[bytes]]]]:
    """Starts Milvus Lite as a server of its own, at the same address and with the same data each time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[str, subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "served")]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}", process
            assert process.poll() is None
            time.sleep(0.05)

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_server_that_is_gone_in_mid_import(
    server: Callable[[], tuple[str, subprocess.Popen[bytes]]],
    model: CompresSAE,
    demo_data: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, process = server()
    client = connect(uri)
    fill(client, "items", demo_data.embeddings[:ROWS])
    store, calls = MilvusBackend.put, []

    def store_until_gone(self: MilvusBackend, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            process.kill()
            process.wait()
        store(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MilvusBackend, "put", store_until_gone)
        with pytest.raises(BackendError, match="writing to collection 'items_compressed_building' failed"):
            from_milvus(client, "items", model=model, timeout=2, progress=False)
    client.close()
    uri, _ = server()
    client = connect(uri)
    assert "items_compressed" not in client.list_collections()
    index, report = from_milvus(client, "items", model=model, progress=False)
    assert report.resumed == 2000
    assert len(index) == ROWS
    client.close()


# Faults.


def test_names_that_are_taken_or_none(client: MilvusClient, dense: str, model: CompresSAE) -> None:
    held = sorted(client.list_collections())
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (InputError, "there is no collection 'none'", lambda: from_milvus(client, "none", model=model)),
        (InputError, "has no field 'x'; its dense fields: embedding",
         lambda: from_milvus(client, dense, vector_field="x", model=model)),
        (InputError, "'price' of .* is FLOAT, not a dense vector",
         lambda: from_milvus(client, dense, vector_field="price", model=model)),
        (InputError, "has no partition 'p'", lambda: MilvusSource(client, dense, partition="p")),
        (InputError, "already, not from an import",
         lambda: from_milvus(client, dense, target=dense, model=model)),
        (InputError, "letters, digits and _", lambda: from_milvus(client, dense, target="a b", model=model)),
        (InputError, "already: choose another name", lambda: MilvusIndex.create(client, dense, model)),
        (InputError, "no FLOAT16_VECTOR", lambda: MilvusIndex.create(client, "new", model, dense="float16")),
        (InputError, "no FLOAT16_VECTOR",
         lambda: from_milvus(client, dense, target="new", model=model, dense="float16")),
        (InputError, "has no rows to import",
         lambda: from_milvus(client, dense, target="new", model=model, filter="price > 1e9")),
        (FormatError, "was not made by compressae-index", lambda: MilvusIndex.open(client, dense)),
        (InputError, "there is no collection 'none'", lambda: MilvusIndex.open(client, "none")),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    assert sorted(client.list_collections()) == held


def test_another_model_or_dimension(
    client: MilvusClient, dense: str, imported: MilvusIndex, model: CompresSAE, tmp_path: Path
) -> None:
    other = CompresSAE(model.encoder_w, model.encoder_b + 1, model.decoder_w, model.k)
    other.save(tmp_path / "other")
    with pytest.raises(FormatError, match=f"by a model of fingerprint {model.fingerprint}, the model given"):
        MilvusIndex.open(client, imported.collection, model=tmp_path / "other")
    narrow = np.ascontiguousarray(model.decoder_w[:, :10])
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    small = CompresSAE(np.ascontiguousarray(narrow.T), model.encoder_b, narrow, 4)
    with pytest.raises(DimensionError, match="has dimension 384, the model 10"):
        from_milvus(client, dense, target="new", model=small)


def test_a_damaged_model(client: MilvusClient, model: CompresSAE) -> None:
    index = MilvusIndex.create(client, name(), model)
    beside = index.collection + "_model"
    (row,) = client.get(beside, ids=[5], output_fields=["*"])
    client.upsert(beside, [row | {"encoder_b": 9.0}])
    with pytest.raises(FormatError, match="does not match its fingerprint"):
        MilvusIndex.open(client, index.collection)
    client.upsert(beside, [row])
    (first,) = client.get(beside, ids=[0], output_fields=["*"])
    client.upsert(beside, [first | {"manifest": first["manifest"].replace('_version": 1', '_version": 2')}])
    with pytest.raises(NewerFormatError, match="has format version 2"):
        MilvusIndex.open(client, index.collection)
    client.upsert(beside, [first | {"manifest": "{}"}])
    with pytest.raises(FormatError, match=r"manifest in collection .* is damaged"):
        MilvusIndex.open(client, index.collection)
    client.upsert(beside, [first])
    index.drop()


def test_a_bad_row_of_the_source_is_named(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray
) -> None:
    collection, rows = name(), vectors[:30].copy()
    rows[7] = 0
    fill(client, collection, rows)
    with pytest.raises(InputError, match="rows of ids 0 to 290: embeddings row 7 is zero"):
        from_milvus(client, collection, model=model, progress=False)
    assert collection + "_compressed" not in client.list_collections()


def test_addresses_where_no_milvus_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"uri must be a path ending in \.db"):
        connect("items")
    with pytest.raises(BackendError, match="see whether the server runs"):
        connect("http://127.0.0.1:1", timeout=0.5)
    with pytest.raises(BackendError, match="its folder must exist"):
        connect(str(tmp_path / "none" / "items.db"))


class _Refusing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that answers everything with one status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._answer = (code, details)

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(*self._answer))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "check the token"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "over a quota"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time"),
        (grpc.StatusCode.UNIMPLEMENTED, "does not know the request"),
    ],
)
def test_a_server_that_refuses(code: grpc.StatusCode, advice: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[_Refusing(code, "no")])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(BackendError, match=advice):
            connect(f"http://127.0.0.1:{port}", token="root:wrong", timeout=2)
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [(8, "rate limit exceeded", "over a quota"), (9, "memory quota exceeded", "over a quota"),
     (100, "collection not found", "dropped or renamed"), (101, "not loaded", "load the collection")],
)  # fmt: skip
def test_codes_of_milvus_come_with_advice(code: int, reason: str, advice: str) -> None:
    with pytest.raises(BackendError, match=rf"reading failed: {reason}; .*{advice}"), translated("reading"):
        raise MilvusException(code, reason)


# Searching.


def test_filters_and_fields(imported: MilvusIndex, queries: FloatArray) -> None:
    everything = imported.search(queries[:8], 300, query_nnz=512)
    some = imported.search(
        queries[:8],
        300,
        query_nnz=512,
        filter="price < 200 and kind == 'special'",
        output_fields=["price", "colour"],
    )
    for all_ids, ids, prices in zip(everything.ids, some.ids, some.fields["price"], strict=True):
        expected = [id_ for id_ in all_ids if id_ < 2000 and id_ % 50 == 0 and id_ >= 0]
        assert ids[: len(expected)].tolist() == expected
        assert [price for price in prices if price is not None] == [id_ / 10 for id_ in ids if id_ >= 0]
    assert set(some.fields["colour"].ravel().tolist()) == {"red", None}
    with pytest.raises(InputError, match="cannot evaluate the filter 'price <'"):
        imported.search(queries[:1], filter="price <")
    with pytest.raises(InputError, match="not a boolean mask"):
        imported.search(queries[:1], filter=np.ones(600, dtype=bool))
    with pytest.raises(InputError, match="ids of this collection are integers"):
        imported.search(queries[:1], filter=["a"])
    with pytest.raises(InputError, match="has no partition 'p'"):
        imported.search(queries[:1], partitions=["p"])
    with pytest.raises(InputError, match="consistency_level must be one of"):
        imported.search(queries[:1], consistency_level="strong")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="candidates must be at most 16384"):
        imported.search(queries[:1], candidates=20_000)


def test_dense_mode_is_a_scan_of_the_reconstructions(imported: MilvusIndex, queries: FloatArray) -> None:
    found = imported.search(queries, 5, mode="dense")
    every = imported.reconstruct(np.arange(0, 6000, 10)).astype(np.float64)
    scores = normalize_rows(queries).astype(np.float64) @ every.T
    np.testing.assert_allclose(found.scores, -np.sort(-scores)[:, :5], atol=1e-5)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.ids // 10, axis=1), atol=1e-5)
    assert not found.certified.any()


def test_hybrid_mode_fuses_both(imported: MilvusIndex, queries: FloatArray) -> None:
    dense = imported.search(queries[:5], 5, mode="dense")
    only_dense = imported.search(queries[:5], 5, mode="hybrid", ranker=WeightedRanker(0.0, 1.0))
    np.testing.assert_array_equal(only_dense.ids, dense.ids)
    fused = imported.search(queries[:5], 5, mode="hybrid", filter="price >= 100")
    assert (fused.ids >= 1000).all()
    assert (np.diff(fused.scores) <= 0).all()
    with pytest.raises(InputError, match="scoring must be 'asymmetric'"):
        imported.search(queries[:5], mode="hybrid", scoring="symmetric")
    with pytest.raises(InputError, match="a ranker is for mode 'hybrid'"):
        imported.search(queries[:5], ranker=WeightedRanker(0.0, 1.0))


def test_modes_that_need_reconstructions(
    client: MilvusClient, model: CompresSAE, queries: FloatArray
) -> None:
    index = MilvusIndex.create(client, name(), model)
    with pytest.raises(InputError, match="'dense' needs a reconstructed field"):
        index.search(queries[:1], mode="dense")
    assert index.search(queries[:2], 3).ids.tolist() == [[-1] * 3] * 2
    index.drop()


def test_fields_that_do_not_fit(imported: MilvusIndex, vectors: FloatArray) -> None:
    with pytest.raises(DimensionError, match="field 'price' has 1 values for 2 vectors"):
        imported.add(vectors[:2], [1, 2], fields={"price": [1.0]})
    with pytest.raises(InputError, match="has no partition 'p'"):
        imported.add(vectors[:2], [1, 2], partition="p")
    with pytest.raises(BackendError, match="writing to collection"):
        imported.add(vectors[:2], [1, 2], fields={"price": ["a", "b"], "tags": [[], []]})
    assert len(imported) == 600


def test_an_alias_opens_the_collection(client: MilvusClient, imported: MilvusIndex) -> None:
    alias = name()
    client.create_alias(imported.collection, alias)
    assert MilvusIndex.open(client, alias).collection == imported.collection
    client.drop_alias(alias)


def test_searching_with_asyncio(
    imported: MilvusIndex, vectors: FloatArray, queries: FloatArray, client: MilvusClient
) -> None:
    uri = client._config.uri

    async def session() -> list[Any]:
        index = await AsyncMilvusIndex.open(uri, imported.collection)
        found = await asyncio.gather(*(index.search(query, 5) for query in queries[:4]))
        await index.add(vectors[700:701], [7], fields={"tags": [["a"]]})
        found.append(await index.search(vectors[700], 1, filter="key < 10"))
        await index.upsert(vectors[701:702], [7], fields={"tags": [["a"]]})
        found.append(await index.search(vectors[701], 1))
        await index.remove([7])
        with pytest.raises(InputError, match="cannot evaluate the filter"):
            await index.search(queries[:1], filter="price <")
        with pytest.raises(InputError, match="has no partition 'p'"):
            await index.search(queries[:1], partitions=["p"])
        with pytest.raises(UnknownIdError):
            await index.remove([7])
        await index._client.close()
        return found

    *found, added, replaced = asyncio.run(session())
    expected = imported.search(queries[:4], 5)
    np.testing.assert_array_equal(np.concatenate([one.ids for one in found]), expected.ids)
    np.testing.assert_allclose(np.concatenate([one.scores for one in found]), expected.scores, atol=1e-6)
    assert [added.ids.tolist(), replaced.ids.tolist()] == [[[7]], [[7]]]


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


# Hooks of others.


class Embedder:
    """Texts are numbers of rows; with the interfaces of all three."""

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vectors[int(text)].tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    encode_documents = encode_queries = get_text_embedding_batch = embed_documents
    get_query_embedding = embed_query


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


def test_the_hook_for_langchain(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    import langchain_milvus

    from compressae_index.connectors.milvus.hooks.langchain import CompresSAESparseEmbedding

    store = langchain_milvus.Milvus(
        embedding_function=CompresSAESparseEmbedding(Embedder(vectors), model),
        connection_args={"uri": str(tmp_path / "langchain.db")},
        index_params={"metric_type": "IP", "index_type": "SPARSE_INVERTED_INDEX", "params": {}},
        search_params={"metric_type": "IP", "params": {}},
        vector_field="sparse",
        auto_id=True,
    )
    store.add_texts(TEXTS)
    assert [found.page_content for found in store.similarity_search("7", k=1)] == ["7"]


def test_the_hook_for_llama_index(model: CompresSAE, vectors: FloatArray) -> None:
    # Not in the extra "dev": as of 1.2 it needs pymilvus < 3, and langchain-milvus pymilvus 3.
    pytest.importorskip("llama_index.vector_stores.milvus", reason="needs the extra llamaindex, pymilvus < 3")
    from compressae_index.connectors.milvus.hooks.llama_index import CompresSAESparseEmbeddingFunction

    function = CompresSAESparseEmbeddingFunction(Embedder(vectors), model)
    documents, asked = function.encode_documents(TEXTS), function.encode_queries(TEXTS)
    for number, query in enumerate(asked):
        scores = [sum(value * row.get(index, 0) for index, value in query.items()) for row in documents]
        assert int(np.argmax(scores)) == number


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("pymilvus", "milvus", "milvus"),
        ("langchain_milvus", "milvus.hooks.langchain", "langchain"),
        ("llama_index", "milvus.hooks.llama_index", "llamaindex"),
    ],
)
def test_a_missing_package_is_named(package: str, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None
from compressae_index import MissingExtraError
try:
    import compressae_index.connectors.{module}
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"run: pip install 'compressae-index[{extra}]'")


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
    assert json.loads(run("sync", *where, "--json")) == {"added": 0, "removed": 2, "vectors": 148}
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
            "no use with --model",
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


# A server, where there is one.


@pytest.mark.server
def test_a_server(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    if not os.environ.get("MILVUS_URI"):
        pytest.skip("MILVUS_URI is not set")
    client = connect(os.environ["MILVUS_URI"], token=os.environ.get("MILVUS_TOKEN", ""))
    collection = name()
    fill(client, collection, vectors[:2000])
    index, report = from_milvus(client, collection, model=model, dense="float16", progress=False)
    assert report.vectors == 2000
    assert report.recall[10] > 0.5
    assert count(client, index.collection) == 2000
    assert rows_of(client, index.collection) == rows_of(client, collection)
    for mode in ("sparse", "two_stage", "dense", "hybrid"):
        assert np.isfinite(index.search(queries, 10, mode=mode).scores).all()
    put(client, collection, vectors[2000:2010], 2000)
    client.flush(collection)
    assert sync(index, progress=False).vectors == 2010
    index.drop()
    client.drop_collection(collection)
    client.close()
