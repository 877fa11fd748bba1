"""The third stage in Milvus: original vectors, in a field or in the source, and residual codes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from click.testing import CliRunner
from milvus_collections import fill, name, put, rows_of
from pymilvus import MilvusClient

from compressae_index import (
    BackendError,
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    UnknownIdError,
)
from compressae_index._engine import residual_rows, residual_vectors
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.cli import main
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.connectors.milvus import (
    AsyncMilvusIndex,
    MilvusIndex,
    connect,
    export_parquet,
    from_milvus,
    residuals,
    sync,
)
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import Opened
from compressae_index.connectors.milvus.manifest import Manifest
from compressae_index.search.index import Index
from compressae_index.search.recall import recall
from compressae_index.sources.centred import less
from compressae_index.testing import (
    Float64,
    IndexContract,
    Open,
    assert_best,
    assert_certified_best,
    assert_in_range,
    certified,
    names,
)

pytestmark = pytest.mark.usefixtures("quick_imports")


def products(queries: FloatArray, vectors: FloatArray) -> Float64:
    """Cosines of queries with vectors, (n_queries, n)."""
    return normalize_rows(queries).astype(np.float64) @ normalize_rows(vectors).astype(np.float64).T


def residual_scores(queries: FloatArray, residuals: FloatArray) -> Float64:
    """Products of queries with residuals, (n_queries, n); the engine rounds queries to 8 bits an entry."""
    unit = normalize_rows(queries)
    largest = np.abs(unit).max(axis=1, keepdims=True)
    entries = np.trunc(unit * (np.float32(127) / largest) + np.copysign(np.float32(0.5), unit))
    exact: Float64 = (entries.astype(np.float64) * largest / 127) @ residuals.astype(np.float64).T
    return exact


def code_scores(index: Index, queries: FloatArray) -> Float64:
    """Scores of all documents of a cosine index by their codes, (n_queries, n)."""
    scores: Float64 = index.model.project(queries).astype(np.float64) @ index.codes(index.ids).to_dense().T
    return scores + normalize_rows(queries) @ mean_of(index.model)[:, None]


def mean_of(model: CompresSAE) -> FloatArray:
    assert model.mean is not None
    return model.mean


def refined(by_codes: Float64, by_vectors: Float64, refine: int) -> Float64:
    """Scores of a third stage: those by vectors, of the `refine` best by codes; -inf for all others."""
    last = -np.sort(-by_codes, axis=1)[:, refine - 1, None]
    return np.where(by_codes >= last, by_vectors, -np.inf)


def ids_of(n: int) -> np.ndarray[Any, Any]:
    """Ids that `fill` gives."""
    return np.arange(n) * 10


# Original vectors.


@pytest.fixture(scope="module", params=["float32", "source"])
def with_originals(
    request: pytest.FixtureRequest, client: MilvusClient, dense: str, model: CompresSAE
) -> Iterator[MilvusIndex]:
    """An import of `dense` that scores the best by original vectors. Not to be changed."""
    index, report = from_milvus(
        client, dense, target=name(), model=model, originals=request.param, progress=False
    )
    assert report.recall[10] > 0.97
    own = 600 * 384 * 4 if request.param == "float32" else 0
    assert report.bytes_after == 600 * 16 * 8 + own
    yield index
    index.drop()


def test_the_best_get_the_scores_of_their_originals(
    with_originals: MilvusIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    queries = queries[:15]
    exact = products(queries, vectors[:600])
    found = with_originals.search(queries, 10, refine=600, candidates=600, query_nnz=512)
    assert_best(found, exact, 10, ids_of(600), tolerance=1e-6)
    by_codes = code_scores(with_originals, queries)
    for refine in (None, 20):
        found = with_originals.search(queries, 10, refine=refine, candidates=600, query_nnz=512)
        assert_best(found, refined(by_codes, exact, refine or 100), 10, ids_of(600), tolerance=1e-6)
    found = with_originals.search(queries, 10, refine=0, candidates=600, query_nnz=512)
    assert_best(found, by_codes, 10, ids_of(600), tolerance=2e-6)
    some = with_originals.search(queries[:5], 10, filter="price < 100", query_nnz=512)
    allowed = np.arange(600) < 100
    allowed[3] = False  # its price is null
    assert_best(some, exact[:5], 10, ids_of(600), allowed=allowed, tolerance=1e-6)


def test_symmetric_scores_compare_reconstructions_of_queries(
    with_originals: MilvusIndex, vectors: FloatArray, queries: FloatArray, model: CompresSAE
) -> None:
    queries = queries[:15]
    seen = model.decode(model.fold(model.encode(queries)))
    found = with_originals.search(queries, 5, scoring="symmetric")
    exact = seen.astype(np.float64) @ normalize_rows(vectors[:600]).astype(np.float64).T
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(exact, found.ids // 10, axis=1), rtol=0, atol=1e-6
    )


def test_originals_explain_a_score(
    with_originals: MilvusIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    why = with_originals.explain(queries[0], 70)
    assert why.score == pytest.approx(products(queries[:1], vectors[7:8])[0, 0], abs=1e-6)
    assert why.contributions.sum() + why.mean + why.residual == pytest.approx(why.score, abs=1e-6)
    documents = with_originals.documents
    known = documents.vectors(np.array([70, 30, 70]), with_originals.model)
    np.testing.assert_allclose(known, normalize_rows(vectors[[7, 3, 7]]), atol=1e-7)
    with pytest.raises(UnknownIdError, match="unknown id 71 "):
        documents.vectors(np.array([70, 71]), with_originals.model)


def test_going_on_without_originals(
    client: MilvusClient, with_originals: MilvusIndex, queries: FloatArray
) -> None:
    queries = queries[:5]
    plain = MilvusIndex.open(client, with_originals.collection, originals=False)
    expected = with_originals.search(queries, 5, refine=0)
    np.testing.assert_array_equal(plain.search(queries, 5).ids, expected.ids)
    with pytest.raises(InputError, match="there is no stage that scores again"):
        plain.search(queries, 5, refine=50)
    with pytest.raises(InputError, match="refine must be at least k = 5, or 0, got 4"):
        with_originals.search(queries, 5, refine=4)


def test_asyncio_has_the_same_answers(
    client: MilvusClient, with_originals: MilvusIndex, queries: FloatArray
) -> None:
    async def search() -> Any:
        index = await AsyncMilvusIndex.open(client._config.uri, with_originals.collection)
        found = await index.search(queries[:4], 5), await index.search(queries[:4], 5, refine=0)
        await index._client.close()
        return found

    for found, refine in zip(asyncio.run(search()), (None, 0), strict=True):
        expected = with_originals.search(queries[:4], 5, refine=refine)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("packed", [True, False])
def test_stored_originals_follow_their_rows(
    client: MilvusClient,
    model: CompresSAE,
    vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
) -> None:
    if not packed:
        monkeypatch.setattr(MilvusBackend, "_put_packed", lambda *_: False)
    index = MilvusIndex.create(client, name(), model, originals="float32", dense="float32")
    index.add(vectors[:100], np.arange(100))
    index.add(vectors[100:101], [100], fields={"price": [3.0]})
    index.upsert(-vectors[:2], [7, 100])
    index.remove([8])
    held = vectors[:101].copy()
    held[[7, 100]] = -vectors[:2]
    exact = products(-vectors[:20], held)
    exact[:, 8] = -np.inf
    assert_best(index.search(-vectors[:20], 5, query_nnz=512), exact, 5, tolerance=1e-6)
    (row,) = index.rows([7], ["compressae_original", "compressae_dense"])
    np.testing.assert_allclose(row["compressae_original"], -normalize_rows(vectors[:1])[0], atol=1e-7)
    np.testing.assert_allclose(row["compressae_dense"], index.reconstruct([7])[0], atol=1e-6)
    assert index.stats().bytes_per_vector["originals"] == 384 * 4
    with pytest.raises(InputError, match="cannot store codes alone"):
        index.documents.put(index.codes([7]), np.array([7]))
    with pytest.raises(InputError, match="cannot be set: it holds the original vector"):
        index.add(vectors[:1], [200], fields={"compressae_original": [1.0]})
    index.drop()


def test_half_precision_is_what_a_server_gets(
    with_originals: MilvusIndex, model: CompresSAE, vectors: FloatArray
) -> None:
    documents = with_originals.documents
    manifest = replace(with_originals.manifest, originals="float16")
    backend = MilvusBackend(Opened(documents.collection, manifest, documents.key), model)
    (encoded,) = encoded_chunks(model, vectors[:5], 16, "pursuit", 1)
    made = backend._made(encoded.codes, encoded.rows)
    request = backend._packed(encoded.codes, np.arange(5), made, "")
    assert backend.nbytes["originals"] == 600 * 384 * 2
    (field,) = (each for each in request.fields_data if each.field_name == "compressae_original")
    sent = np.frombuffer(field.vectors.float16_vector, np.float16).reshape(5, field.vectors.dim)
    np.testing.assert_array_equal(sent, normalize_rows(vectors[:5]).astype(np.float16))


def test_inner_products_with_originals(
    client: MilvusClient, uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    collection, lengths = name(), np.linspace(0.5, 3, 150, dtype=np.float32)[:, None]
    fill(client, collection, vectors[:150] * lengths, metric="IP")
    exact = (queries[:5] * 2).astype(np.float64) @ (vectors[:150] * lengths).astype(np.float64).T
    for originals in ("float32", "source"):
        index, _ = from_milvus(
            client, collection, target=name(), model=uncentred_model, originals=originals, progress=False
        )
        found = index.search(queries[:5] * 2, 5, refine=150, query_nnz=512)
        assert_best(found, exact, 5, ids_of(150), tolerance=2e-6)
        assert index.explain(queries[0] * 2, 70).score == pytest.approx(exact[0, 7], abs=2e-6)
        index.drop()


def test_rows_of_the_source_change(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> None:
    collection = name()
    fill(client, collection, vectors[:100])
    index, _ = from_milvus(client, collection, model=model, originals="source", progress=False)
    for write in (index.add, index.upsert):
        with pytest.raises(InputError, match=f"from its source: write rows to '{collection}', and call"):
            write(vectors[100:101], [1000], fields={"tags": [[]]})
    query = vectors[5]
    by_code = float(index.search(query, 1, refine=0).scores[0, 0])
    client.delete(collection, ids=[50])
    put(client, collection, vectors[100:101], 100)
    # Until the next sync, a row that the source has deleted has the score of its code.
    found = index.search(query, 100, query_nnz=512)
    assert found.scores[found.ids == 50] == pytest.approx(by_code, abs=2e-6)
    assert index.explain(query, 50).score == pytest.approx(by_code, abs=2e-6)
    assert sync(index, progress=False) == (1, 0, 1, 100)
    exact = products(vectors[:20], vectors[:101])
    exact[:, 5] = -np.inf
    assert_best(index.search(vectors[:20], 3, query_nnz=512), exact, 3, ids_of(101), tolerance=1e-6)
    index.remove([1000])
    assert len(index) == 99
    with pytest.raises(UnknownIdError, match="unknown id 1000 "):
        index.documents.vectors(np.array([1000]), model)


def test_a_source_that_is_gone(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    collection = name()
    fill(client, collection, vectors[:100])
    index, _ = from_milvus(client, collection, model=model, originals="source", progress=False)
    expected = index.search(queries[:3], 5, refine=0)
    client.drop_collection(collection)
    with pytest.raises(BackendError, match="search with refine=0 to go on without original vectors"):
        index.search(queries[:3], 5)
    with pytest.raises(BackendError, match="refine=0"):
        index.explain(queries[0], 70)
    np.testing.assert_array_equal(index.search(queries[:3], 5, refine=0).ids, expected.ids)
    with pytest.raises(FormatError, match=f"no collection '{collection}'.*; open it with originals=False"):
        MilvusIndex.open(client, index.collection)
    fill(client, collection, np.ascontiguousarray(vectors[:100, :8]))
    with pytest.raises(FormatError, match="now has dimension 8, and ids are integers; open it with"):
        MilvusIndex.open(client, index.collection)
    with pytest.raises(BackendError, match="no longer has dimension 384"):
        index.search(queries[:3], 5)
    client.drop_collection(collection)
    fill(client, collection, vectors[:100], string_ids=True)
    with pytest.raises(FormatError, match="now has dimension 384, and ids are strings"):
        MilvusIndex.open(client, index.collection)
    MilvusIndex.open(client, index.collection, originals=False).drop()


def test_documents_that_are_removed_while_they_are_scored(
    client: MilvusClient,
    model: CompresSAE,
    vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for options in ({"originals": "float32"}, {"residual_bits": 2}):
        index = MilvusIndex.create(client, name(), model, **options)
        index.add(vectors[:50], np.arange(50))
        query = vectors[:1]
        assert index.search(query, 1).ids.tolist() == [[0]]
        stage = index.documents.stages("two_stage").then[-1]
        read = stage._read  # type: ignore[attr-defined]

        def after_removal(ids: Any, read: Any = read, index: MilvusIndex = index) -> Any:
            index.documents.remove(np.array([0]))
            return read(ids)

        monkeypatch.setattr(stage, "_read", after_removal)
        found = index.search(query, 50, query_nnz=512)
        assert 0 not in found.ids[0].tolist()
        assert np.isfinite(found.scores).sum() == len(index) == 49
        index.drop()


def test_options_that_cannot_be(client: MilvusClient, dense: str, model: CompresSAE) -> None:
    held = sorted(client.list_collections())
    wrong: dict[str, Any] = {"originals": "float64"}
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("no FLOAT16_VECTOR: use originals='float32'",
         lambda: from_milvus(client, dense, target="new", model=model, originals="float16")),
        ("no FLOAT16_VECTOR", lambda: MilvusIndex.create(client, "new", model, originals="float16")),
        ("originals='source' needs a source collection",
         lambda: MilvusIndex.create(client, "new", model, originals="source")),  # type: ignore[arg-type]
        ("originals must be one of", lambda: MilvusIndex.create(client, "new", model, **wrong)),
        ("originals must be one of",
         lambda: from_milvus(client, dense, target="new", model=model, progress=False, **wrong)),
        ("residual_bits must be one of",
         lambda: from_milvus(client, dense, target="new", model=model, residual_bits=5)),
        ("residual_bits cannot be given with originals",
         lambda: MilvusIndex.create(client, "new", model, originals="float32", residual_bits=2)),
        ("residual_bits must be one of", lambda: MilvusIndex.create(client, "new", model, residual_bits=5)),
    ]  # fmt: skip
    for message, call in cases:
        with pytest.raises(InputError, match=message):
            call()
    assert sorted(client.list_collections()) == held


def test_modes_of_milvus_take_no_refine(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = MilvusIndex.create(client, name(), model, dense="float32", residual_bits=3)
    index.add(vectors[:100], np.arange(100))
    queries = queries[:10]
    found = index.search(queries, 5, mode="dense")
    exact = products(queries, index.reconstruct(np.arange(100)))
    assert_best(found, exact, 5, tolerance=1e-5)
    assert (index.search(queries, 5, mode="hybrid").ids >= 0).all()
    for mode in ("dense", "hybrid"):
        with pytest.raises(InputError, match="refine"):
            index.search(queries, 5, mode=mode, refine=50)
    index.drop()


# Residual codes.


@pytest.fixture(scope="module")
def with_residuals(client: MilvusClient, dense: str, model: CompresSAE) -> Iterator[MilvusIndex]:
    """An import of `dense` with residual codes of 3 bits. Not to be changed."""
    index, report = from_milvus(client, dense, target=name(), model=model, residual_bits=3, progress=False)
    assert report.recall[10] > 0.9
    assert report.bytes_after == 600 * (16 * 8 + 196)  # 2 + 6 * 24 bytes, as text
    yield index
    index.drop()


def test_the_best_get_the_scores_of_their_residual_codes(
    client: MilvusClient,
    dense: str,
    with_residuals: MilvusIndex,
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
) -> None:
    queries = queries[:15]
    (encoded,) = encoded_chunks(model, vectors[:600], 16, "pursuit", 1, residual_bits=3)
    codes, targets = encoded.codes, normalize_rows(vectors[:600]) - mean_of(model)
    rows = residual_rows(targets, codes.latents, codes.values, model.decoder_w, 3, 1)
    left_out = residual_vectors(rows, 384, 3, 1)
    known = model.decode(codes) + left_out
    np.testing.assert_allclose(with_residuals.reconstruct(ids_of(600)), known, atol=1e-6)
    by_codes = code_scores(with_residuals, queries)
    exact = by_codes + residual_scores(queries, left_out)
    for refine in (600, 30):
        found = with_residuals.search(queries, 10, refine=refine, candidates=600, query_nnz=512)
        assert_best(found, refined(by_codes, exact, refine), 10, ids_of(600), tolerance=5e-6)
    found = with_residuals.search(queries, 10, refine=0, candidates=600, query_nnz=512)
    assert_best(found, by_codes, 10, ids_of(600), tolerance=2e-6)
    why = with_residuals.explain(queries[0], 70)
    assert why.score == pytest.approx(normalize_rows(queries[:1])[0] @ known[7], abs=2e-6)
    assert why.contributions.sum() + why.mean + why.residual == pytest.approx(why.score, abs=1e-6)
    assert rows_of(client, with_residuals.collection) == rows_of(client, dense)


def test_an_import_with_a_third_stage_goes_on(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    collection, target = name(), name()
    fill(client, collection, vectors[:1200])
    options: dict[str, Any] = {"target": target, "originals": "float32"}
    store, calls = MilvusBackend.put, []

    def stop(self: MilvusBackend, *arguments: Any, **more: Any) -> None:
        store(self, *arguments, **more)
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MilvusBackend, "put", stop)
        patched.setattr(Collection, "pages", partialmethod(Collection.pages, page_rows=1000))
        with pytest.raises(KeyboardInterrupt):
            from_milvus(client, collection, model=model, progress=False, **options)
    for other in ({"originals": "source"}, {"originals": None, "residual_bits": 3}):
        with pytest.raises(FormatError, match="was begun with"):
            from_milvus(client, collection, progress=False, **(options | other))
    index, report = from_milvus(client, collection, target=target, progress=False)
    assert report.resumed == 1000
    exact = products(queries, vectors[:1200])
    found = index.search(queries[:5], 10, refine=1200, candidates=1200, query_nnz=512)
    assert_best(found, exact[:5], 10, ids_of(1200), tolerance=1e-6)
    client.upsert(collection, [{"key": 70, "embedding": vectors[1200], "tags": [], "price": 1.0}])
    assert sync(index, progress=False) == (0, 1, 0, 1200)
    assert index.search(vectors[1200], 1).scores[0, 0] == pytest.approx(1, abs=1e-6)
    index.drop()


def test_damaged_residual_codes(client: MilvusClient, model: CompresSAE, vectors: FloatArray) -> None:
    index = MilvusIndex.create(client, name(), model, residual_bits=1)
    index.add(vectors[:5], np.arange(5))
    (row,) = index.rows([3])
    bad = b"\xff\x7f" + bytes(48)
    for text, message in (
        ("?", "not base64"),
        ("AAAA", "of 3 bytes, expected 50"),
        (b64encode(bad).decode(), "without a finite scale"),
    ):
        client.upsert(index.collection, [row | {"compressae_residual": text}])
        with pytest.raises(BackendError, match=f"the collection holds a residual code.*{message}"):
            index.search(vectors[3], 1)
    index.drop()


# Tools.


def test_parquet_files_hold_the_third_stage(
    model: CompresSAE, uncentred_model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    cosine: dict[str, Any] = {"model": model, "residual_bits": 4}
    products: dict[str, Any] = {"model": uncentred_model, "metric": "inner_product", "residual_bits": 2}
    for number, (options, rows) in enumerate(((cosine, vectors[:50]), (products, vectors[:50] * 64))):
        index = CompressedIndex.build(rows, progress=False, **options)
        written = export_parquet(index, tmp_path / str(number), dense="float32")
        table = pq.read_table(written.files[0])
        manifest = Manifest.of(
            index.model,
            k=16,
            encoder="pursuit",
            metric=index.metric,
            dense=None,
            originals=None,
            residual_bits=index.documents.residual_bits,
        )
        kept = residuals.from_texts(table["compressae_residual"].to_pylist(), manifest)
        known = index.model.decode(index.codes(np.arange(50)))
        known += residual_vectors(kept, 384, manifest.residual_bits, 1)
        np.testing.assert_allclose(known, index.reconstruct(np.arange(50)), rtol=1e-5, atol=1e-6)
        dense = np.array(table["compressae_dense"].to_pylist(), dtype=np.float32)
        np.testing.assert_array_equal(dense, index.reconstruct(np.arange(50)))
        with pytest.raises(InputError, match="keeps no original vectors to export"):
            export_parquet(index, tmp_path / "no", originals="float32")
    kept_whole = CompressedIndex.build(vectors[:50], model=model, originals="float32", progress=False)
    (file,) = export_parquet(kept_whole, tmp_path / "originals", originals="float16").files
    (first, *_) = pq.read_table(file)["compressae_original"].to_pylist()
    sent = np.array(first, dtype=np.uint8).view(np.float16)
    np.testing.assert_array_equal(sent, normalize_rows(vectors[:1])[0].astype(np.float16))


def test_the_command_line_has_a_third_stage(
    tmp_path: Path,
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(main, ["milvus", *map(str, arguments)])

    monkeypatch.chdir(tmp_path)
    client = connect("items.db")
    fill(client, "items", vectors[:100])
    client.close()
    np.save("q.npy", queries[:3])
    model.save("m")
    where = ["--uri", "items.db", "--collection"]
    assert run("import", *where, "items", "--model", "m", "--originals", "source").exit_code == 0
    target = ["--target", "coded", "--residual-bits", 2]
    assert run("import", *where, "items", "--model", "m", *target).exit_code == 0
    told = json.loads(run("info", *where, "coded", "--json").stdout)
    assert (told["originals"], told["residual_bits"]) == ("none", 2)
    search = ["search", "q.npy", *where, "items_compressed", "-k", 2, "--json"]
    found = json.loads(run(*search, "--refine", 100).stdout)
    exact = products(queries[:3], vectors[:100])
    np.testing.assert_allclose(found["scores"], -np.sort(-exact)[:, :2], atol=1e-6)
    client = connect("items.db")
    client.drop_collection("items")
    client.close()
    refused = run(*search)
    assert refused.exit_code == 2
    assert "there is no collection 'items'" in refused.stderr
    assert len(json.loads(run(*search, "--refine", 0).stdout)["ids"]) == 3
    assert "source" in run("info", *where, "items_compressed").stdout


@pytest.mark.server
def test_a_server_has_every_third_stage(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    if not os.environ.get("MILVUS_URI"):
        pytest.skip("MILVUS_URI is not set")
    client = connect(os.environ["MILVUS_URI"], token=os.environ.get("MILVUS_TOKEN", ""))
    collection = name()
    fill(client, collection, vectors[:2000])
    exact = products(queries, vectors[:2000])
    stages: list[dict[str, Any]] = [{"originals": kind} for kind in ("float16", "float32", "source")]
    for options in (*stages, {"residual_bits": 6}):
        index, _ = from_milvus(client, collection, target=name(), model=model, progress=False, **options)
        found = index.search(queries, 10, query_nnz=512)
        scores = np.take_along_axis(exact, found.ids // 10, axis=1)
        np.testing.assert_allclose(found.scores, scores, atol=1e-2 if "residual_bits" in options else 1e-3)
        assert recall(found.ids // 10, np.argsort(-exact, axis=1)[:, :10], 10) > 0.9
        index.drop()
    client.drop_collection(collection)
    client.close()


# The contract of an index, with each of the stages.


class Refined(IndexContract):
    """The contract where the best by codes are scored again."""

    options: ClassVar[dict[str, Any]]
    built: ClassVar[WeakKeyDictionary[CompressedIndex, FloatArray]] = WeakKeyDictionary()

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
        client = connect(str(tmp_path_factory.mktemp("milvus") / "contract.db"))

        def copied(index: CompressedIndex) -> MilvusIndex:
            backed = MilvusIndex.create(
                client,
                f"contract_{secrets.token_hex(4)}",
                index.model,
                k=index.k,
                metric=index.metric,
                longest=3.0 if index.documents.n_latents > index.model.n_latents else None,
                string_ids=index.ids.dtype == object,
                **cls.options,
            )
            backed.documents.put(index.codes(index.ids), index.ids, vectors=cls.built[index])
            backed.flush()
            return backed

        yield copied
        client.close()

    @classmethod
    def built_of(cls, embeddings: FloatArray, ids: Any = None, **settings: Any) -> CompressedIndex:
        """An embedded index with the stage under test, whose vectors `opened` copies."""
        index = CompressedIndex.build(embeddings, ids, k=16, progress=False, **(cls.options | settings))
        of_codes = (
            normalize_rows(embeddings) if index.metric == "cosine" else less(embeddings, index.model.center)
        )
        cls.built[index] = of_codes
        return index

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, embeddings: FloatArray, reference_model: CompresSAE) -> CompressedIndex:
        return cls.built_of(embeddings, model=reference_model)

    @pytest.fixture
    def small(self, opened: Open, reference_model: CompresSAE, embeddings: FloatArray) -> Index:
        return opened(self.built_of(embeddings[:300], np.arange(1000, 1300), model=reference_model))

    @pytest.fixture
    def named(self, opened: Open, reference_model: CompresSAE, embeddings: FloatArray) -> Index:
        return opened(self.built_of(embeddings[:200], names(200), model=reference_model))

    @classmethod
    def exact(cls, reference: CompressedIndex, queries: FloatArray) -> Float64:
        """Scores by the vectors that the last stage knows."""
        left_out = reference.documents.backend.residuals(np.arange(len(reference)))
        if left_out is not None:
            return code_scores(reference, queries) + residual_scores(queries, left_out)
        return products(queries, reference.documents.vectors(reference.ids, reference.model))

    @pytest.mark.parametrize("candidates", [1000])
    def test_two_stage_gives_the_best_of_all_where_it_is_certified(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray, candidates: int
    ) -> None:
        result = whole.search(held_out, 10, candidates=candidates, query_nnz=reference.model.n_latents)
        expected = refined(code_scores(reference, held_out), self.exact(reference, held_out), 100)
        assert certified(result).all()
        assert_certified_best(result, expected, 10, tolerance=5e-6)

    def test_two_stage_gives_what_the_embedded_engine_gives(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        # The engine estimates what latents that it does not read would add; Milvus does not.
        settings: Any = {"candidates": 2000, "query_nnz": reference.model.n_latents, "refine": 100}
        result, expected = (index.search(held_out, 10, **settings) for index in (whole, reference))
        np.testing.assert_allclose(result.scores, expected.scores, atol=2e-6)
        assert (result.ids == expected.ids).mean() > 0.98  # ties may stand the other way

    def test_codes_and_explanations(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        ids = [7, 3, 3999, 3]
        codes, expected = whole.codes(ids), reference.codes(ids)
        np.testing.assert_array_equal(codes.to_dense(), expected.to_dense())
        np.testing.assert_allclose(whole.reconstruct(ids), reference.reconstruct(ids), atol=1e-6)
        why = whole.explain(held_out[0], 7)
        known = reference.documents.vectors(np.array([7]), reference.model)[0]
        assert why.score == pytest.approx(normalize_rows(held_out[:1])[0] @ known, abs=2e-6)
        assert why.contributions.sum() + why.mean + why.residual == pytest.approx(why.score, abs=1e-6)

    def test_a_filter_of_ids(self, whole: Index, reference: CompressedIndex, held_out: FloatArray) -> None:
        allowed = np.isin(np.arange(4000), np.arange(0, 4000, 13))
        result = whole.search(
            held_out, 5, filter=np.flatnonzero(allowed), query_nnz=reference.model.n_latents
        )
        by_codes = np.where(allowed, code_scores(reference, held_out), -np.inf)
        expected = refined(by_codes, self.exact(reference, held_out), 100)
        assert certified(result).all()
        assert_certified_best(result, expected, 5, tolerance=5e-6)

    def test_neighbours_of_stored_documents(self, whole: Index, reference: CompressedIndex) -> None:
        ids = np.array([7, 3, 3999, 3])
        asked = reference.documents.vectors(ids, reference.model)
        expected = refined(code_scores(reference, asked), self.exact(reference, asked), 100)
        expected[np.arange(4), ids] = -np.inf
        result = whole.neighbours(ids, 10, candidates=2000, query_nnz=reference.model.n_latents)
        assert certified(result).all()
        assert_certified_best(result, expected, 10, tolerance=5e-6)

    def test_range_search_gives_all_above_the_radius(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        queries = held_out[:5]
        exact = self.exact(reference, queries)
        radius = float(np.quantile(exact, 0.97))
        n_latents = reference.model.n_latents
        result = whole.range_search(queries, radius, candidates=4000, refine=4000, query_nnz=n_latents)
        assert_in_range(result, exact, radius, tolerance=5e-6)

    def test_the_last_stage_scores_what_codes_leave_out(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        held_out = held_out[:8]
        exact, by_codes = self.exact(reference, held_out), code_scores(reference, held_out)
        many: dict[str, Any] = {"candidates": 2000, "query_nnz": reference.model.n_latents}
        for refine, expected in ((20, refined(by_codes, exact, 20)), (0, by_codes)):
            result = whole.search(held_out, 10, refine=refine, **many)
            assert_certified_best(result, expected, 10, tolerance=5e-6)
            assert certified(result).all()

    def test_inner_products(
        self,
        opened: Open,
        reference_uncentred_model: CompresSAE,
        embeddings: FloatArray,
        held_out: FloatArray,
    ) -> None:
        lengths = np.linspace(0.5, 3, 300, dtype=np.float32)[:, None]
        embedded = self.built_of(
            embeddings[:300] * lengths, model=reference_uncentred_model, metric="inner_product"
        )
        index = opened(embedded)
        expected = embedded.search(held_out * 2, 5, mode="dense")
        found = index.search(held_out * 2, 5, query_nnz=512)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        index.add(embeddings[300:301] * 5, ids=[5000])
        assert np.linalg.norm(index.reconstruct([5000])) == pytest.approx(5, rel=2e-2)


@pytest.mark.slow
class TestMilvusLiteWithOriginals(Refined):
    options: ClassVar = {"originals": "float32"}


class TestMilvusLiteWithResiduals(Refined):
    """Of the contract what a last stage takes part in: the rest is above, and takes a minute."""

    options: ClassVar = {"residual_bits": 2}


PARTS = ("last_stage", "embedded", "explanations", "added", "upsert", "inner", "neighbours_of_stored")
for each in [each for each in vars(IndexContract) if each.startswith("test_")]:
    if not any(part in each for part in PARTS):
        setattr(TestMilvusLiteWithResiduals, each, None)
