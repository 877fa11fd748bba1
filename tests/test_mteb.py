"""Tasks of mteb in memory: by the embedder, by its sparse codes, and by an index of its embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")

import datasets
import mteb
from folders import block_of
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer, SparseEncoder
from word_embedder import word_embedder

from compressae_index import CompresSAE, InputError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.connectors.mteb import IndexBackend, IndexedEncoder
from compressae_index.connectors.sentence_transformers import SparseCoder
from compressae_index.demo import DemoData

N, QUERIES = 300, 40

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fill_missing parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
]


@pytest.fixture(scope="module")
def embedder(demo_data: DemoData) -> SentenceTransformer:
    return word_embedder(demo_data.texts[:N], 64)


class Task(AbsTaskRetrieval):  # type: ignore[misc]
    """Finds texts by their first half of words."""

    metadata = TaskMetadata(
        name="Halves",
        description="Texts by their first half.",
        dataset={"path": "none", "revision": "1"},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    texts: tuple[str, ...] = ()

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        rows = [{"id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(self.texts)]
        halves = [" ".join(text.split()[: len(text.split()) // 2 + 1]) for text in self.texts[:QUERIES]]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": datasets.Dataset.from_list(rows),
                    "queries": datasets.Dataset.from_list(
                        [{"id": f"q{i}", "text": text} for i, text in enumerate(halves)]
                    ),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in range(QUERIES)},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


@pytest.fixture(scope="module")
def task(demo_data: DemoData) -> Task:
    Task.texts = tuple(demo_data.texts[:N])
    return Task()


@pytest.fixture(scope="module")
def coded(embedder: SentenceTransformer, task: Task) -> CompresSAE:
    return train(embedder.encode(list(task.texts)), TrainConfig(k=16, n_latents=128, refine_rounds=10)).model


def main_score(model: Any, task: Task) -> float:
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    return float(result.task_results[0].get_score())


def test_a_task_is_answered_by_all(embedder: SentenceTransformer, coded: CompresSAE, task: Task) -> None:
    base = main_score(embedder, task)
    sparse = SparseEncoder(modules=[*embedder, SparseCoder(coded)], device="cpu")
    encoder = SentenceTransformerEncoderWrapper(embedder)
    settings = {"model": coded, "k": 16}
    whole = settings | {"originals": "float32"}
    exact = IndexedEncoder(encoder, build=whole, search={"mode": "dense", "refine": N})
    assert main_score(exact, task) == pytest.approx(base, abs=1e-3)
    codes = IndexedEncoder(encoder, build=settings, search={"mode": "dense"})
    assert 0.5 < base - 0.2 < main_score(codes, task) <= 1
    assert 0.5 < base - 0.3 < main_score(sparse, task) <= 1
    turned = CompresSAE.of_dictionary(coded.decoder_w[::-1].copy(), 16, coded.mean)
    other = IndexedEncoder(encoder, build=settings | {"model": turned}, search={"mode": "dense"})
    metas = [model.mteb_model_meta.experiment_name for model in (encoder, exact, codes, other)]
    assert len(set(metas)) == 4


def test_the_code_of_the_page_runs(
    embedder: SentenceTransformer,
    task: Task,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [task for _ in tasks])
    monkeypatch.setattr(mteb, "get_model", lambda _: SentenceTransformerEncoderWrapper(embedder))
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    monkeypatch.setattr("compressae_index.building.planning.RANKED", 20)
    exec(block_of("docs/ecosystem.md", "mteb"), {})
    base, codes = map(float, capsys.readouterr().out.split()[-2:])
    assert 0.5 < codes < base + 0.1


@pytest.fixture
def rows() -> FloatArray:
    return np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)


def test_the_backend_answers_as_the_index(rows: FloatArray) -> None:
    backend = IndexBackend({"k": 4, "n_latents": 16}, {"mode": "dense"})
    names = [f"d{i}" for i in range(60)]
    backend.add_documents(rows, names)
    assert backend.index is not None
    expected = backend.index.search(rows[:5], 7, mode="dense")
    scores, places = backend.search(rows[:5], 7)
    assert places == expected.ids.tolist()
    assert scores == expected.scores.tolist()
    assert [len(each) for each in backend.search(rows[:5], 1000)[1]] == [60] * 5
    every = backend.index.search(rows[:2], 60, mode="dense")
    ranked = {"a": ["d7", "d3", "d40"], "b": ["d1"]}
    scores, local = backend.search(rows[:2], 2, None, ranked, {0: "a", 1: "b"})
    wanted = [place for place in every.ids[0].tolist() if place in (7, 3, 40)][:2]
    assert [[7, 3, 40][at] for at in local[0]] == wanted
    assert local[1] == [0]
    np.testing.assert_allclose(scores[1], every.scores[1][every.ids[1] == 1])
    backend.clear()
    with pytest.raises(InputError, match="before it added documents"):
        backend.search(rows[:5], 7)
    backend.add_documents(rows[:30], names[:30])
    backend.add_documents(rows[30:], names[30:])
    assert len(backend.index.ids) == 60


def test_the_nearest_point_is_best(rows: FloatArray) -> None:
    backend = IndexBackend({"k": 4, "n_latents": 16, "metric": "l2"}, {"mode": "dense", "filter": range(40)})
    backend.add_documents(rows, [f"d{i}" for i in range(60)])
    assert backend.index is not None
    expected = backend.index.search(rows[:2], 40, mode="dense")
    scores, places = backend.search(rows[:2], 50)
    assert [len(each) for each in places] == [40, 40]  # of 50 places, ten are empty
    assert np.isfinite(scores).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert [each[0] for each in places] == expected.ids[:, 0].tolist()
    assert backend.search(rows[:1] * 0, 1)[1]  # a point of zeros is a point


def test_rows_of_zeros(rows: FloatArray) -> None:
    rows[3] = 0
    names = [f"d{i}" for i in range(60)]
    with pytest.raises(InputError, match="row 3 is zero"):
        IndexBackend({"k": 4}).add_documents(rows, names)
    backend = IndexBackend({"k": 4, "n_latents": 16, "on_bad_rows": "skip"}, {"mode": "dense"})
    backend.add_documents(rows, names)
    (found,) = backend.search(rows[:1], 60)[1]
    assert sorted(found) == [i for i in range(60) if i != 3]
