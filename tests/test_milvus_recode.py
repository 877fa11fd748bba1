"""Recodes: a collection coded anew beside the old one, while searches by its alias go on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from milvus_collections import fill, name, put, rows_of
from pymilvus import MilvusClient

from compressae_index import CompresSAE, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.connectors.milvus import (
    AsyncMilvusIndex,
    MilvusIndex,
    MilvusResult,
    connect,
    from_milvus,
    importer,
    recoding,
    sync,
)
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.collection import Collection

pytestmark = pytest.mark.usefixtures("quick_imports")

ROWS = 60


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches are slow on Milvus Lite."""
    monkeypatch.setattr(importer, "_measured", lambda *_: {})


@pytest.fixture(scope="module")
def model(vectors: FloatArray) -> CompresSAE:
    """A model whose dictionary is some rows."""
    return CompresSAE.of_dictionary(vectors[3000:3500], 16)


@pytest.fixture(scope="module")
def other(vectors: FloatArray) -> CompresSAE:
    """A model of another dictionary."""
    return CompresSAE.of_dictionary(vectors[1000:1600], 12)


@pytest.fixture
def collection(client: MilvusClient, vectors: FloatArray) -> Iterator[str]:
    """A dense collection; what was made of it is dropped."""
    made = name()
    fill(client, made, vectors[:ROWS])
    yield made
    for each in client.list_collections():
        if each.startswith(made):
            for alias in client.list_aliases(each)["aliases"]:
                client.drop_alias(alias)
            client.drop_collection(each)


def made_by(index: MilvusIndex, model: CompresSAE, ids: list[int], rows: FloatArray) -> None:
    """All codes are those of rows by a model."""
    expected = model.fold(model.encode(rows, index.k, encoder=index.encoder))
    assert index.model.fingerprint == model.fingerprint
    assert sorted(index.ids.tolist()) == sorted(ids)
    np.testing.assert_allclose(index.codes(ids).to_dense(), expected.to_dense(), atol=1e-5)


def test_searches_see_old_or_new_codes(
    client: MilvusClient,
    collection: str,
    model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias, second = name(), name()
    old = from_milvus(client, collection, model=model, progress=False).compressed
    client.create_alias(old.collection, alias)
    client.create_alias(old.collection, second)
    index, elsewhere = MilvusIndex.open(client, alias), MilvusIndex.open(client, second)
    assert (index.alias, index.collection) == (alias, f"{collection}_compressed")
    before = index.search(queries[:3], 5)
    level = recoding._level

    def change_first(run: Any, made: Any) -> None:  # after all was copied and checked
        client.delete(collection, ids=[0])
        put(client, collection, vectors[ROWS : ROWS + 2], ROWS)
        client.upsert(collection, [{"key": 70, "embedding": vectors[900], "price": 1.0, "tags": []}])
        level(run, made)

    monkeypatch.setattr(recoding, "_level", change_first)
    answers, done = [], threading.Event()

    def search() -> None:
        while not done.is_set():
            answers.append(elsewhere.search(queries[:3], 5))

    searching = threading.Thread(target=search)
    searching.start()
    report = index.recode(other, progress=False)
    done.set()
    searching.join()
    new = f"{collection}_compressed_2"
    assert report[:6] == (alias, new, f"{collection}_compressed", ROWS + 1, 0, collection)
    assert (index.collection, index.alias, len(index)) == (new, alias, ROWS + 1)
    ids = [10 * row for row in range(1, ROWS + 2)]
    rows = vectors[1 : ROWS + 2].copy()
    rows[6] = vectors[900]
    made_by(index, other, ids, rows)
    assert rows_of(client, new) == rows_of(client, collection)
    after = index.search(queries[:3], 5)
    assert not np.array_equal(before.scores, after.scores)
    for answer in [*answers, elsewhere.search(queries[:3], 5)]:
        assert any(
            np.array_equal(answer.scores, each.scores) and np.array_equal(answer.ids, each.ids)
            for each in (before, after)
        )
    assert np.array_equal(answers[0].scores, before.scores)
    made_by(elsewhere, other, ids, rows)
    assert client.describe_alias(second)["collection_name"] == new
    held = {each for each in client.list_collections() if each.startswith(collection)}
    assert held == {collection, new, new + "_model"}
    assert index.manifest.replaces == ""
    put(client, collection, vectors[99:100], 99)
    assert sync(index, progress=False) == (1, 0, 0, ROWS + 2)
    with pytest.raises(InputError, match=f"there is no collection '{collection}_compressed'"):
        old.rows([10])
    index.drop()
    assert not client.has_collection(alias)


def test_a_recode_goes_on_after_a_stop(
    client: MilvusClient,
    collection: str,
    model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias, ids = name(), [10 * row for row in range(ROWS)]
    index = from_milvus(client, collection, model=model, progress=False).compressed

    def stop_at(owner: Any, method: str, call: int) -> None:
        inner, calls = getattr(owner, method), []

        def stopped(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return inner(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(owner, method, stopped)
            with pytest.raises(KeyboardInterrupt):
                index.recode(other, alias=alias, progress=False)

    stop_at(MilvusBackend, "put", 1)
    made_by(MilvusIndex.open(client, alias), model, ids, vectors[:ROWS])
    with pytest.raises(FormatError, match="fingerprint"):
        index.recode(CompresSAE.of_dictionary(vectors[2000:2600], 12), alias=alias, progress=False)
    stop_at(Collection, "take_alias", 1)
    made_by(MilvusIndex.open(client, alias), model, ids, vectors[:ROWS])
    stop_at(Collection, "drop", 1)
    again = MilvusIndex.open(client, alias)
    assert again.manifest.replaces == index.collection
    again = MilvusIndex.open(client, index.collection)  # still there
    report = again.recode(other, alias=alias, progress=False)
    assert report[:5] == (alias, f"{collection}_compressed_2", index.collection, ROWS, ROWS)
    made_by(again, other, ids, vectors[:ROWS])
    assert not client.has_collection(index.collection)

    async def waiting() -> MilvusResult:
        opened = await AsyncMilvusIndex.open(client._config.uri, alias)
        report = await asyncio.to_thread(again.recode, model, progress=False)
        assert report.collection == f"{collection}_compressed_3"
        found = await opened.search(vectors[50:53], 5)
        await opened.close()
        return found

    np.testing.assert_array_equal(asyncio.run(waiting()).scores, again.search(vectors[50:53], 5).scores)
    made_by(again, model, ids, vectors[:ROWS])


@pytest.mark.parametrize("kept", [{"residual_bits": 4}, {"metric": "l2"}])
def test_without_a_source(
    client: MilvusClient,
    collection: str,
    model: CompresSAE,
    other: CompresSAE,
    vectors: FloatArray,
    kept: dict[str, Any],
) -> None:
    ids, rows = list(range(40)), vectors[:40]
    if "metric" in kept:
        center = vectors[:40].mean(axis=0)
        model, other = (
            CompresSAE.of_dictionary(each.decoder_w, 12).centred_at(center) for each in (model, other)
        )
        kept = kept | {"longest": 2.0, "originals": "float32"}
    index = MilvusIndex.create(client, f"{collection}_own", model, **kept)
    index.add(rows, ids, fields={"price": [float(row) for row in ids]})
    known, old = index.documents.vectors(index.ids, model), index.now()
    if model.center is not None:
        known = known + model.center
    report = index.recode(other, alias=name(), into=f"{collection}_new", progress=False)
    assert (report.source, report.recall) == (f"{collection}_own", {})
    assert (index.collection, index.manifest.source) == (f"{collection}_new", {})
    assert index.manifest.height == old.manifest.height
    assert index.rows([7], ["price"]) == [{"id": 7, "price": 7.0}]
    fresh = MilvusIndex.create(client, f"{collection}_fresh", other, k=index.k, **kept)
    fresh.add(known, ids)
    np.testing.assert_allclose(index.codes(ids).to_dense(), fresh.codes(ids).to_dense(), atol=1e-4)
    found, expected = (each.search(vectors[40:43], 5) for each in (index, fresh))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    index.upsert(rows[:1], [99])
    index.remove([0])
    assert index.recode(model, progress=False).collection == f"{collection}_new_2"
    assert sorted(index.ids.tolist()) == [*range(1, 40), 99]
    index.drop()


def test_what_is_refused(client: MilvusClient, collection: str, model: CompresSAE, other: CompresSAE) -> None:
    index = from_milvus(client, collection, model=model, progress=False).compressed
    held = client.list_collections()
    narrow = CompresSAE.of_dictionary(np.eye(8, dtype=np.float32), 4)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "opened by its own name"),
        ({"alias": collection}, f"names the collection '{collection}', not"),
        ({"alias": index.collection}, "is the collection's own name"),
        ({"alias": "no name"}, "collection names are letters"),
        ({"alias": "some", "into": index.collection}, "is the name that is searched"),
        ({"alias": "some", "into": collection}, "not from an import"),
        ({"alias": "some", "model": narrow}, "the model has dimension 8"),
    )
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            index.recode(**{"model": other, "progress": False, **options})
    assert client.list_collections() == held
    assert not client.has_collection("some")


def test_on_the_command_line(tmp_path: Path, vectors: FloatArray) -> None:
    uri = str(tmp_path / "recoded.db")
    client = connect(uri)
    fill(client, "items", vectors[:300])
    short = CompresSAE.of_dictionary(vectors[:60], 8)
    from_milvus(client, "items", model=short, progress=False)
    arguments = ["milvus", "recode", "--uri", uri, "--collection", "items_compressed", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--alias", "found"])
    report = json.loads(done.stdout)
    assert (report["alias"], report["collection"], report["vectors"]) == (
        "found",
        "items_compressed_2",
        300,
    )
    client = connect(uri)
    index = MilvusIndex.open(client, "found")
    assert index.model.fingerprint != short.fingerprint
    assert index.model.n_latents == 60
    old, new = (
        np.linalg.norm(each.decode(each.encode(vectors[:300])) - vectors[:300])
        for each in (short, index.model)
    )
    assert new < old
    client.close()
