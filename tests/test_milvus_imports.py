"""Imports from dense collections of Milvus: reading, kills, faults, and a server if one is given."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_collections import fill, key, name, put, rows_of
from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient

from compressae_index import (
    BackendError,
    CompresSAE,
    CompressedIndex,
    DimensionError,
    FormatError,
    InputError,
)
from compressae_index.arrays import FloatArray
from compressae_index.connectors.milvus import MilvusIndex, MilvusSource, connect, from_milvus, sync
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.errors import NewerFormatError

pytestmark = pytest.mark.usefixtures("quick_imports")

ROWS = 2300


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
    assert sync(index, progress=False) == (4, 0, 9, 144)  # price is null in one of the first ten
    assert sync(index, progress=False) == (0, 0, 0, 144)
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


@pytest.mark.parametrize("originals", [None, "source", "float32"])
def test_distances_are_taken_from_the_source(
    client: MilvusClient,
    uncentred_model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    originals: Any,
) -> None:
    collection, rows = name(), vectors[:150] * np.linspace(1, 3, 150, dtype=np.float32)[:, None] + 2
    fill(client, collection, rows, metric="L2")
    model = uncentred_model.centred_at(rows.mean(axis=0))
    index, report = from_milvus(
        client, collection, model=model, originals=originals, dense="float32", progress=False
    )
    assert index.metric == "l2"
    assert report.recall[10] > (0.9 if originals else 0.5)
    asked = queries[:5] * 2 + 2
    truth = np.square(asked[:, None] - rows[None]).sum(axis=2)
    found = index.search(asked, 5, query_nnz=512)
    assert (np.diff(found.scores, axis=1) >= 0).all()
    given = np.take_along_axis(truth, found.ids // 10, axis=1)
    rtol, atol = (1e-4, 1e-3) if originals else (0, 1.5)
    np.testing.assert_allclose(found.scores, given, rtol=rtol, atol=atol)
    assert (np.diff(index.search(asked, 5, mode="dense").scores, axis=1) >= 0).all()
    again = from_milvus(client, collection, model=model, originals=originals, dense="float32", progress=False)
    assert again.report.resumed == 150


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**20])
def test_distances_of_any_size(
    client: MilvusClient,
    uncentred_model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    factor: float,
) -> None:
    collection = name()
    rows = vectors[:150] * np.linspace(1, 3, 150, dtype=np.float32)[:, None] * np.float32(factor)
    fill(client, collection, rows, metric="L2")
    model = uncentred_model.centred_at(rows.mean(axis=0))
    index = from_milvus(client, collection, model=model, originals=None, progress=False).compressed
    own = CompressedIndex.build(rows, model=model, metric="l2", forward="aligned", progress=False)
    asked = queries[:5] * np.float32(factor)
    for found, expected in (
        (index.search(asked, 5, query_nnz=512, candidates=150), own.search(asked, 5, mode="dense")),
        (index.rescore(asked, [[0, 10, 20]] * 5, 3), own.rescore(asked, [[0, 1, 2]] * 5, 3)),
    ):
        assert (found.ids // 10 == expected.ids).mean() > 0.9  # scales are in half precision there
        np.testing.assert_allclose(found.scores, expected.scores, rtol=5e-3)
    why = index.explain(asked[0], 10)
    assert why.score == pytest.approx(own.rescore(asked[:1], [[1]], 1).scores[0, 0], rel=5e-3)


def test_distances_from_unit_rows_are_found_by_cosines(client: MilvusClient, vectors: FloatArray) -> None:
    from compressae_index import TrainConfig

    collection, unit = name(), vectors[:300] / np.linalg.norm(vectors[:300], axis=1, keepdims=True)
    fill(client, collection, unit, metric="L2")
    config = TrainConfig(n_latents=64, refine_rounds=2, steps=0)
    index = from_milvus(client, collection, k=8, config=config, progress=False).compressed
    assert (index.metric, index.manifest.norms, index.model.center) == ("l2", False, None)
    scores, ids = index.search(unit[:3], 1)
    assert ids[:, 0].tolist() == [0, 10, 20]
    assert (scores < 1.5).all()
    other = name()
    fill(client, other, vectors[:300] * np.linspace(1, 2, 300, dtype=np.float32)[:, None] + 1, metric="L2")
    index = from_milvus(client, other, k=8, config=config, progress=False).compressed
    assert index.manifest.norms
    assert index.model.center is not None
    assert index.manifest.height > 0


def test_a_model_is_trained_where_none_is_given(client: MilvusClient, dense: str) -> None:
    from compressae_index import TrainConfig

    target = name()
    config = TrainConfig(steps=4, refine_rounds=2, batch_size=64)
    index, report = from_milvus(
        client, dense, target=target, k=8, n_latents=64, config=config, progress=False
    )
    assert (index.documents.k, index.model.n_latents) == (8, 64)
    assert set(report.seconds) == {"list", "train", "write", "flush", "verify", "measure"}
    assert MilvusIndex.open(client, target).model.fingerprint == index.model.fingerprint
    index.drop()


def test_the_encoder_is_trained_for_codes_that_it_makes(client: MilvusClient, dense: str) -> None:
    for encoder in ("topk", "pursuit"):
        target = name()
        made = from_milvus(client, dense, target=target, k=8, n_latents=64, encoder=encoder, progress=False)
        model = made.compressed.model
        assert np.array_equal(model.encoder_w, model.decoder_w.T) == (encoder == "pursuit")
        made.compressed.drop()


KILLED = """
import os, signal, sys
from compressae_index import CompresSAE
from compressae_index.connectors.milvus import backend, from_milvus
put = backend.MilvusBackend.put
calls = []
def put_and_die(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 2:
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
        if len(calls) == 2:
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


# A server, if MILVUS_URI names one.


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
    assert Collection(client, index.collection).count() == 2000
    assert rows_of(client, index.collection) == rows_of(client, collection)
    for mode in ("sparse", "two_stage", "dense", "hybrid"):
        assert np.isfinite(index.search(queries, 10, mode=mode).scores).all()
    put(client, collection, vectors[2000:2010], 2000)
    client.flush(collection)
    assert sync(index, progress=False).vectors == 2010
    index.drop()
    client.drop_collection(collection)
    client.close()
