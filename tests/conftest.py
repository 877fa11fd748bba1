"""Real data, and small models and indexes that many tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.demo import DemoData, load_data

if TYPE_CHECKING:
    from compressae_index.checks import FloatArray


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
