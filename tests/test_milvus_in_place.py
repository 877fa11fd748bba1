"""Codes in the rows of a dense collection itself.

Milvus Lite adds no fields to collections. A server over Lite's own stands for one that does: the fields are
there from the start, but hidden until they are added; what the client sends is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import common_pb2, milvus_pb2_grpc, schema_pb2

from compressae_index import CompresSAE, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.milvus import MilvusIndex, connect, from_milvus, importer, sync
from compressae_index.connectors.milvus.backend import MilvusBackend

pytestmark = pytest.mark.usefixtures("quick_imports")

ROWS = 60
OWN = ("compressae_code", "compressae_digest")
# Milvus Lite stores no null in a vector field.
UNCODED = {"compressae_code": {0: 1e-30}, "compressae_digest": None}


class Newer(MilvusServicer):  # type: ignore[misc]
    """Milvus Lite as a server that adds fields."""

    def __init__(self, db: MilvusLite) -> None:
        super().__init__(db)
        self.version = "v2.6.18"
        self.hidden = set[str]()
        self.sent: list[Any] = []

    def GetVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = super().GetVersion(request, context)
        answer.version = self.version
        return answer

    def DescribeCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = super().DescribeCollection(request, context)
        shown = [field for field in answer.schema.fields if field.name not in self.hidden]
        del answer.schema.fields[:]
        answer.schema.fields.extend(shown)
        return answer

    def AddCollectionField(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        field = schema_pb2.FieldSchema.FromString(request.schema)
        self.sent.append(field)
        self.hidden.discard(field.name)
        return common_pb2.Status()

    def CreateIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sent.append(request)
        return super().CreateIndex(request, context)

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sent.append(request)
        return super().Upsert(request, context)

    def taken(self, kind: str) -> list[Any]:
        """What was sent of a kind since the last call."""
        found = [each for each in self.sent if type(each).__name__ == kind]
        self.sent = [each for each in self.sent if type(each).__name__ != kind]
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MilvusClient, Newer]]:
    db = MilvusLite(str(tmp_path_factory.mktemp("in_place") / "newer.db"))
    servicer, server = Newer(db), grpc.server(futures.ThreadPoolExecutor(4))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = connect(f"http://127.0.0.1:{port}")
    yield client, servicer
    client.close()
    server.stop(None)
    db.close()


@pytest.fixture
def newer(
    served: tuple[MilvusClient, Newer], vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[MilvusClient, Newer]]:
    """A client, and its server with a collection "items" of two partitions."""
    monkeypatch.setattr(importer, "_measured", lambda *_: {})
    client, server = served
    for each in client.list_collections():
        client.drop_collection(each)
    fill(client, vectors)
    server.version, server.hidden = "v2.6.18", set(OWN)
    server.sent.clear()
    yield client, server
    server.hidden = set()


def fill(client: MilvusClient, vectors: FloatArray, *, auto_id: bool = False, metric: str = "COSINE") -> None:
    schema = client.create_schema(auto_id=auto_id, enable_dynamic_field=True)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    schema.add_field("compressae_code", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("compressae_digest", DataType.INT64, nullable=True)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type=metric)
    client.create_collection("items", schema=schema, index_params=params)
    if not auto_id:
        client.create_partition("items", "more")
        put(client, vectors[: ROWS - 20], 0)
        put(client, vectors[ROWS - 20 : ROWS], ROWS - 20, partition_name="more")


def put(client: MilvusClient, rows: FloatArray, first: int, **options: Any) -> None:
    client.upsert(
        "items",
        [
            {"key": first + number, "embedding": row, "price": 1.0, **UNCODED}
            for number, row in enumerate(rows)
        ],
        **options,
    )


@pytest.fixture(scope="module")
def model(vectors: FloatArray) -> CompresSAE:
    """A model whose dictionary is some rows."""
    return CompresSAE.of_dictionary(vectors[3000:3500], 16)


def users_rows(client: MilvusClient) -> list[dict[str, Any]]:
    rows = client.query("items", filter="", limit=1000, output_fields=["*"])
    return sorted(
        ({name: row[name] for name in row.keys() - set(OWN)} for row in rows), key=lambda row: row["key"]
    )


def check_codes(index: MilvusIndex, model: CompresSAE, ids: list[int], rows: FloatArray) -> None:
    expected = model.fold(model.encode(rows))
    assert index.ids.tolist() == ids
    assert len(index) == len(ids)
    np.testing.assert_allclose(index.codes(ids).to_dense(), expected.to_dense(), atol=1e-5)


def test_fields_are_added_and_filled(
    newer: tuple[MilvusClient, Newer], model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    client, server = newer
    server.hidden = set()
    before = users_rows(client)
    server.hidden = set(OWN)
    index, report = from_milvus(client, "items", model=model, in_place=True, progress=False)
    added = server.taken("FieldSchema")
    assert [(each.name, each.data_type, each.nullable) for each in added] == [
        ("compressae_code", DataType.SPARSE_FLOAT_VECTOR, True),
        ("compressae_digest", DataType.INT64, True),
    ]
    (made,) = [each for each in server.taken("CreateIndexRequest") if each.collection_name == "items"]
    params = {pair.key: pair.value for pair in made.extra_params}
    assert (made.field_name, params["index_type"], params["metric_type"]) == (
        "compressae_code",
        "SPARSE_INVERTED_INDEX",
        "IP",
    )
    upserts = [each for each in server.taken("UpsertRequest") if each.collection_name == "items"]
    assert {each.partition_name for each in upserts} == {"_default", "more"}
    for each in upserts:
        assert each.partial_update
        assert [field.field_name for field in each.fields_data] == ["key", *OWN]
    assert sum(each.num_rows for each in upserts) == ROWS
    assert users_rows(client) == before
    assert (index.collection, report.vectors, report.resumed) == ("items", ROWS, 0)
    assert sorted(client.list_collections()) == ["items", "items_model"]
    check_codes(index, model, list(range(ROWS)), vectors[:ROWS])
    # The last stage reads the dense field of the same rows.
    index = MilvusIndex.open(client, "items")
    found = index.search(queries[:4], 5, query_nnz=500, refine=ROWS, output_fields=["price"])
    exact = normalize_rows(queries[:4]) @ normalize_rows(vectors[:ROWS]).T
    assert found.ids.tolist() == np.argsort(-exact, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
    assert set(found.fields["price"].ravel()) == {1.0}


def test_changes_are_synced(
    newer: tuple[MilvusClient, Newer], model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    client, server = newer
    index = from_milvus(client, "items", model=model, in_place=True, progress=False).compressed
    server.sent.clear()
    assert sync(index, progress=False) == (0, 0, 0, ROWS)
    assert server.sent == []
    put(client, vectors[100:102], 100)
    put(client, vectors[200:201], 7)  # which leaves it without a code
    client.upsert("items", [{"key": 8, "embedding": vectors[300]}], partial_update=True)
    client.delete("items", ids=[0])
    assert len(index) == ROWS - 2
    assert 7 not in index.ids
    assert sync(index, progress=False) == (3, 1, 0, ROWS + 1)
    rows = vectors[[*range(1, 7), 200, 300, *range(9, ROWS), 100, 101]]
    check_codes(index, model, [*range(1, ROWS), 100, 101], rows)
    for change in (
        lambda: index.upsert(queries[:1], [1]),
        lambda: index.remove([1]),
        lambda: index.recode(model),
    ):
        with pytest.raises(InputError, match=r"write rows to 'items'|your own collection 'items'"):
            change()
    assert len(users_rows(client)) == ROWS + 1
    # Without its model, it is a dense collection again; another one codes all anew.
    index.drop()
    assert client.list_collections() == ["items"]
    other = CompresSAE.of_dictionary(vectors[2000:2500], 12)
    again, report = from_milvus(client, "items", model=other, in_place=True, progress=False)
    assert report.resumed == 0
    check_codes(again, other, [*range(1, ROWS), 100, 101], rows)


def test_an_import_goes_on_and_leaves_out_what_was_deleted(
    newer: tuple[MilvusClient, Newer],
    model: CompresSAE,
    vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, _ = newer
    store, calls = MilvusBackend.put, list[int]()

    def store_and_stop(self: MilvusBackend, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        store(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MilvusBackend, "put", store_and_stop)
        with pytest.raises(KeyboardInterrupt):
            from_milvus(client, "items", model=model, in_place=True, progress=False)
    with pytest.raises(FormatError, match="was not made by compressae-index"):
        MilvusIndex.open(client, "items")

    def change_first(self: MilvusBackend, *arguments: Any, **options: Any) -> None:
        if not calls:
            calls.append(1)
            client.delete("items", ids=[ROWS - 1])
            client.upsert("items", [{"key": 1, "embedding": vectors[200]}], partial_update=True)
        store(self, *arguments, **options)

    calls.clear()
    monkeypatch.setattr(MilvusBackend, "put", change_first)
    index, report = from_milvus(client, "items", in_place=True, progress=False)
    assert (report.resumed, report.vectors) == (ROWS - 20, ROWS - 1)
    rows = vectors[: ROWS - 1].copy()
    rows[1] = vectors[200]
    check_codes(index, model, list(range(ROWS - 1)), rows)
    assert from_milvus(client, "items", in_place=True, progress=False).report.resumed == ROWS - 1


def test_euclidean_distances(
    newer: tuple[MilvusClient, Newer], model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    client, server = newer
    server.hidden = set()
    client.drop_collection("items")
    rows = vectors[:ROWS] * np.linspace(0.5, 2, ROWS, dtype=np.float32)[:, None]
    fill(client, rows, metric="L2")
    server.hidden = set(OWN)
    centred = model.centred_at(rows.mean(axis=0))
    index = from_milvus(client, "items", model=centred, in_place=True, progress=False).compressed
    assert index.manifest.norms
    found = index.search(queries[:4], 5, query_nnz=500, refine=ROWS)
    exact = ((queries[:4, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    assert found.ids.tolist() == np.argsort(exact, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(found.scores, np.sort(exact, axis=1)[:, :5], rtol=1e-4)


def test_what_is_refused(newer: tuple[MilvusClient, Newer], model: CompresSAE, vectors: FloatArray) -> None:
    client, server = newer
    options: dict[str, Any] = {"model": model, "in_place": True, "progress": False}
    more: tuple[dict[str, Any], ...] = (
        {"target": "x"},
        {"filter": "key > 3"},
        {"dense": "float32"},
        {"originals": "float32"},
        {"residual_bits": 2},
    )
    for each in more:
        with pytest.raises(InputError, match="in_place goes with none of target, filter"):
            from_milvus(client, "items", **options, **each)
    for version in ("2.5.27", "v2.6.17", "milvus_lite-3.2.2"):
        server.version = version
        with pytest.raises(InputError, match=f"this is {version}, which cannot add a vector field"):
            from_milvus(client, "items", **options)
    assert client.list_collections() == ["items"]
    assert server.sent == []
    server.hidden = set()
    client.drop_collection("items")
    fill(client, vectors, auto_id=True)
    with pytest.raises(InputError, match="Milvus makes the ids"):
        from_milvus(client, "items", **options)
    client.drop_collection("items")
    schema = client.create_schema()
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    schema.add_field("compressae_code", DataType.FLOAT)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    client.create_collection("items", schema=schema, index_params=params)
    with pytest.raises(InputError, match="field 'compressae_code' of 'items' is FLOAT, not SPARSE"):
        from_milvus(client, "items", **options)


def test_milvus_lite_cannot_add_fields(tmp_path: Path, model: CompresSAE, vectors: FloatArray) -> None:
    client = connect(tmp_path / "lite.db")
    client.create_collection("items", dimension=vectors.shape[1])
    client.insert("items", [{"id": 1, "vector": vectors[0]}])
    with pytest.raises(InputError, match=r"this is milvus_lite-3.*leave in_place out"):
        from_milvus(client, "items", model=model, in_place=True, progress=False)
    client.close()
