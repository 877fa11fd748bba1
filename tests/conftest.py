"""Real data, and small models and indexes that many tests share."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.demo import DemoData, load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser
    from pymilvus import MilvusClient

    from compressae_index.arrays import FloatArray
    from compressae_index.connectors.milvus import MilvusIndex


# A variable of the environment: the path of `model`, for a process that a test starts.
MODEL_OF_TEST = "COMPRESSAE_TEST_MODEL"

# A failed assertion in these files shows its values, as one in a test does.
pytest.register_assert_rewrite("compressae_index.testing", "folders", "oracles")


def pytest_collection_finish() -> None:
    """What test files import stays: no garbage collection has to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_data() -> DemoData:
    """The shipped embeddings: 19,000 and 1,000 held out."""
    return load_data()


@pytest.fixture(scope="session")
def vectors(demo_data: DemoData) -> FloatArray:
    """4,000 real embeddings."""
    return demo_data.embeddings[:4000]


@pytest.fixture(scope="session")
def queries(demo_data: DemoData) -> FloatArray:
    """50 held-out embeddings."""
    return demo_data.queries[:50]


@pytest.fixture(scope="session")
def model(vectors: FloatArray) -> CompresSAE:
    """A briefly trained model of 512 latents, 16 nonzeros."""
    if MODEL_OF_TEST in os.environ:
        return CompresSAE.load(os.environ[MODEL_OF_TEST])
    from compressae_index.training import TrainConfig, train

    return train(vectors, TrainConfig(k=16, n_latents=512, steps=30, batch_size=256)).model


@pytest.fixture(scope="session")
def uncentred_model(vectors: FloatArray) -> CompresSAE:
    """A model without a mean, as indexes for inner products need it."""
    from compressae_index.training import TrainConfig, train

    config = TrainConfig(k=16, n_latents=512, center=False, refine_rounds=40, steps=10, batch_size=256)
    return train(vectors, config).model


@pytest.fixture(scope="session")
def built(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """An index of the 4,000 embeddings. Not to be changed."""
    return CompressedIndex.build(vectors, model=model, k=16, progress=False)


@pytest.fixture
def index(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """An index of 300 embeddings with ids 1000 .. 1299, for tests that change it."""
    return CompressedIndex.build(vectors[:300], np.arange(1000, 1300), model=model, k=16, progress=False)


@pytest.fixture(scope="session")
def refined(model: CompresSAE, demo_data: DemoData) -> CompressedIndex:
    """An index of 5,000 embeddings with residual codes. Not to be changed."""
    rows = demo_data.embeddings[:5000]
    return CompressedIndex.build(rows, model=model, residual_bits=2, progress=False)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were not installed, for what trains."""
    from compressae_index import training

    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("module", "steps"):
        monkeypatch.delitem(sys.modules, f"{training.__name__}.{name}", raising=False)
        monkeypatch.delattr(training, name, raising=False)


@pytest.fixture(scope="session")
def no_naps() -> Iterator[None]:
    """pymilvus sleeps for half a second before it asks whether an index is there: it asks at once here."""
    from pymilvus.client import grpc_handler

    def sleep(seconds: float) -> None:
        time.sleep(seconds if seconds > 0.5 else 0.005)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grpc_handler, "time", SimpleNamespace(**vars(time) | {"sleep": sleep}))
        yield


@pytest.fixture(scope="module")
def quick_imports(no_naps: None) -> Iterator[None]:  # noqa: ARG001
    """Milvus Lite searches slowly, and imports measure; small requests are resumed closely."""
    from compressae_index.connectors.milvus import copier

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copier, "SAMPLE_ROWS", 20)
        patched.setattr(copier, "REQUEST_ROWS", 500)
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusClient]:
    """A client of a Milvus Lite without collections."""
    from compressae_index.connectors.milvus import connect

    client = connect(str(tmp_path_factory.mktemp("milvus") / "test.db"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def dense(client: MilvusClient, vectors: FloatArray) -> str:
    """A dense collection in Milvus of 600 vectors with ids 0, 10, .. . Not to be changed."""
    from milvus_collections import fill, name

    collection = name()
    fill(client, collection, vectors[:600])
    return collection


@pytest.fixture(scope="module")
def imported(client: MilvusClient, dense: str, model: CompresSAE) -> MilvusIndex:
    """An import of `dense` with reconstructed vectors. Not to be changed."""
    from compressae_index.connectors.milvus import from_milvus

    return from_milvus(client, dense, model=model, dense="float32", progress=False).compressed


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, while the tests of a file run: its event loop would be in the way of others."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("neither chromium nor google-chrome is there")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
