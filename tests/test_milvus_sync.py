"""Syncs: what changed in a source is told apart by digests, and only that is encoded and written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from milvus_collections import fill, name, put, rows_of
from pymilvus import MilvusClient

from compressae_index import CompresSAE
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.connectors.milvus import connect, from_milvus, sync
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.manifest import Manifest

pytestmark = pytest.mark.usefixtures("quick_imports")


def test_only_what_changed_is_written(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = name()
    fill(client, collection, vectors[:300])
    index = from_milvus(client, collection, model=model, progress=False).compressed
    written: list[Any] = []
    store = MilvusBackend.put

    def noted(self: MilvusBackend, codes: Any, ids: Any, *arguments: Any, **options: Any) -> None:
        written.extend(ids.tolist())
        store(self, codes, ids, *arguments, **options)

    monkeypatch.setattr(MilvusBackend, "put", noted)
    assert sync(index, progress=False) == (0, 0, 0, 300)
    assert written == []
    row = {"tags": [], "price": 1.0}
    client.upsert(collection, [{"key": 70, "embedding": vectors[900], **row}])  # another vector
    client.upsert(collection, [{"key": 80, "embedding": vectors[8], **row}])  # other fields
    # A change of the vector that rounds to the same code.
    client.upsert(collection, [{"key": 90, "embedding": vectors[9] * 1.0001, **row}])
    client.delete(collection, ids=[0, 10])
    put(client, collection, vectors[300:304], 300)
    assert sync(index, progress=False) == (4, 3, 2, 302)
    assert sorted(written) == [70, 80, 90, 3000, 3010, 3020, 3030]
    assert rows_of(client, index.collection) == rows_of(client, collection)
    assert index.search(vectors[900], 1).ids.tolist() == [[70]]
    assert sync(index, progress=False) == (0, 0, 0, 302)
    index.upsert(vectors[50:51], [100], fields={"tags": [["other"]]})  # not from the source
    index.remove([110])
    assert sync(index, progress=False) == (1, 1, 0, 302)
    assert rows_of(client, index.collection) == rows_of(client, collection)
    index.drop()


def test_collections_without_digests(
    client: MilvusClient, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, made = name(), Manifest.of
    fill(client, collection, vectors[:40])
    monkeypatch.setattr(
        Manifest, "of", lambda *given, **options: replace(made(*given, **options), digests=False)
    )
    index = from_milvus(client, collection, model=model, progress=False).compressed
    assert "compressae_digest" not in index.documents.collection.schema().fields
    client.upsert(collection, [{"key": 70, "embedding": vectors[900], "tags": [], "price": 1.0}])
    client.delete(collection, ids=[0])
    assert sync(index, progress=False) == (0, 0, 1, 39)
    assert sync(index, compare=True, progress=False) == (0, 1, 0, 39)
    assert rows_of(client, index.collection) == rows_of(client, collection)
    index.drop()


def test_watching(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, naps = str(tmp_path / "watched.db"), list[float]()
    client = connect(uri)
    fill(client, "items", vectors[:60])
    from_milvus(client, "items", model=model, progress=False)

    def change(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt
        put(client, "items", vectors[60:63], 60)

    monkeypatch.setattr(sys.modules["compressae_index.cli.milvus"], "time", SimpleNamespace(sleep=change))
    arguments = ["milvus", "sync", "--uri", uri, "--collection", "items_compressed", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--watch", "7"])
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert reports == [
        {"added": 0, "changed": 0, "removed": 0, "vectors": 60},
        {"added": 3, "changed": 0, "removed": 0, "vectors": 63},
    ]
    assert (done.exit_code, naps) == (130, [7, 7])
    refused = CliRunner().invoke(main, [*arguments, "--watch", "0"])
    assert "must be a positive number of seconds" in refused.stderr
    client.close()
