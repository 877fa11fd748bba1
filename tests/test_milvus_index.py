"""The index over a compressed collection of Milvus: codes as it holds them, searches, and what it answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_collections import name
from pymilvus import MilvusClient, WeightedRanker
from pymilvus.client.entity_helper import sparse_rows_to_proto
from pymilvus.exceptions import MilvusException

from compressae_index import BackendError, CompresSAE, DimensionError, InputError, SparseCodes, UnknownIdError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.milvus import AsyncMilvusIndex, MilvusIndex, connect, wire
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.errors import translated

pytestmark = pytest.mark.usefixtures("quick_imports")


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
    backend = imported.documents
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
        imported.documents.put(codes, np.array([7, 8]))
    assert len(imported) == 600


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
    flags = np.arange(600) % 2
    for mask in (flags, flags.tolist(), flags.astype(np.uint8)):
        with pytest.raises(InputError, match="the filter holds a 0 or 1 for each of the 600 vectors"):
            imported.search(queries[:1], filter=mask)
    assert set(imported.search(queries[:1], 5, filter=flags[:599]).ids[0].tolist()) <= {0, -1}
    with pytest.raises(InputError, match="ids of this collection are integers"):
        imported.search(queries[:1], filter=["a"])
    with pytest.raises(InputError, match="has no partition 'p'"):
        imported.search(queries[:1], partitions=["p"])
    with pytest.raises(InputError, match="consistency_level must be one of"):
        imported.search(queries[:1], consistency_level="strong")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="candidates must be at most 16384"):
        imported.search(queries[:1], candidates=20_000)


def test_dense_mode_searches_the_reconstructions(imported: MilvusIndex, queries: FloatArray) -> None:
    found = imported.search(queries, 5, mode="dense")
    ids = np.arange(0, 6000, 10)
    exact = normalize_rows(queries).astype(np.float64) @ imported.reconstruct(ids).T.astype(np.float64)
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, found.ids // 10, axis=1), atol=1e-5)
    # Milvus chooses the index of the field, which may be a graph and miss a few.
    best = ids[np.argsort(-exact, axis=1)[:, :5]]
    assert np.mean([np.isin(*rows).mean() for rows in zip(best, found.ids, strict=True)]) > 0.98
    assert found.certified is not None
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


# Where no Milvus is, or one that refuses.


def test_addresses_where_no_milvus_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"uri must be a path ending in \.db"):
        connect("items")
    with pytest.raises(BackendError, match="check whether the server runs"):
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
