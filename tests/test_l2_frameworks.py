"""Stores of texts by Euclidean distances: what each framework takes for near, and rows of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compressae_index import TrainConfig
from compressae_index.arrays import FloatArray
from compressae_index.connectors.texts import Record, TextStore

DIM, N = 12, 90
BUILD: dict[str, Any] = {
    "metric": "l2",
    "originals": "float32",
    "config": TrainConfig.preset("fast", k=4, n_latents=16, steps=0, refine_rounds=3),
}


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    """90 points of norms that vary; the first is 0."""
    rng = np.random.default_rng(2)
    found = (rng.standard_normal((N, DIM)) * rng.lognormal(0, 0.5, (N, 1)) + 1).astype(np.float32)
    found[0] = 0
    return found


@pytest.fixture(scope="module")
def asked() -> FloatArray:
    made: FloatArray = np.random.default_rng(3).standard_normal(DIM).astype(np.float32) + 1
    return made


@pytest.fixture(params=[None, 60], ids=["exact", "built"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of stores that compare all vectors, and of those that build an index."""
    return {"build_at": request.param, "build": BUILD}


def distances(asked: FloatArray, rows: FloatArray) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.square(rows.astype(np.float64) - asked).sum(axis=1)
    return found


def records(first: int = 0, end: int = N) -> list[Record]:
    return [Record(f"d{i}", f"text {i}", {"even": i % 2 == 0}) for i in range(first, end)]


def test_rows_of_zeros_are_found(rows: FloatArray, options: dict[str, Any]) -> None:
    store = TextStore(**options)
    store.write(records(0, 1), rows[:1])  # by which the unit of norms is chosen
    store.write(records(1), rows[1:])
    assert store.is_exact == (options["build_at"] is None)
    store.write([Record("zero", None, {})], [[0] * DIM])
    best = store.search([0.0] * DIM, 2)
    assert {hit.record.id for hit in best} == {"d0", "zero"}
    assert [hit.similarity for hit in best] == pytest.approx([1, 1], abs=1e-6)
    assert {hit.record.id for hit in store.diverse([0.0] * DIM, 2, fetch_k=2, weight=1)} == {"d0", "zero"}


def test_maximal_marginal_relevance_is_by_distances(
    rows: FloatArray, asked: FloatArray, options: dict[str, Any]
) -> None:
    store = TextStore(**options)
    store.write(records(), rows)
    near = np.argsort(distances(asked, rows))[:20]
    apart = np.square(rows[near, None].astype(np.float64) - rows[near]).sum(axis=2)
    for weight in (0.3, 0.7, 1.0):
        chosen: list[int] = []
        for _ in range(6):
            gains = -weight * distances(asked, rows[near])
            if chosen:
                gains += (1 - weight) * apart[:, chosen].min(axis=1)
            gains[chosen] = -np.inf
            chosen.append(int(np.argmax(gains)))
        hits = store.diverse(asked, 6, fetch_k=20, weight=weight, mode="dense")
        assert [hit.record.id for hit in hits] == [f"d{i}" for i in near[chosen]]


def test_of_unit_vectors_they_are_the_same_as_by_cosines(rows: FloatArray, asked: FloatArray) -> None:
    unit = rows[1:] / np.linalg.norm(rows[1:], axis=1, keepdims=True)
    picked = []
    for metric in ("l2", "cosine"):
        store = TextStore(build_at=None, build={"metric": metric})
        store.write(records(1), unit)
        hits = store.diverse(asked / np.linalg.norm(asked), 8, fetch_k=30, weight=0.5)
        picked.append([hit.record.id for hit in hits])
    assert picked[0] == picked[1]


def test_langchain_gives_distances_and_relevance(
    rows: FloatArray, asked: FloatArray, options: dict[str, Any]
) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import Embeddings

    from compressae_index.connectors.langchain import CompresSAEVectorStore

    class Given(Embeddings):  # type: ignore[misc]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [rows[int(text.split()[1])].tolist() for text in texts]

        def embed_query(self, text: str) -> list[float]:  # noqa: ARG002
            return list(map(float, asked))

    store = CompresSAEVectorStore.from_texts([f"text {i}" for i in range(N)], Given(), **options)
    exact = np.sort(distances(asked, rows))
    found = store.similarity_search_with_score("query", k=5, mode="dense", refine=N)
    np.testing.assert_allclose([score for _, score in found], exact[:5], rtol=1e-4)
    relevant = store.similarity_search_with_relevance_scores("query", k=5, mode="dense", refine=N)
    np.testing.assert_allclose([score for _, score in relevant], 1 / (1 + exact[:5]), rtol=1e-4)
    threshold = float(1 / (1 + exact[2:4].mean()))
    search = {"k": 10, "score_threshold": threshold, "mode": "dense", "refine": N}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=search)
    assert [document.page_content for document in retriever.invoke("query")] == [
        f"text {i}" for i in np.argsort(distances(asked, rows))[:3]
    ]


def test_llamaindex_cuts_what_is_far(rows: FloatArray, asked: FloatArray, options: dict[str, Any]) -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    from llama_index.core.postprocessor import SimilarityPostprocessor
    from llama_index.core.vector_stores import VectorStoreQuery

    from compressae_index.connectors.llamaindex import CompresSAEVectorStore

    store = CompresSAEVectorStore(**options)
    store.add([schema.TextNode(id_=f"d{i}", text="t", embedding=row.tolist()) for i, row in enumerate(rows)])
    query = VectorStoreQuery(query_embedding=asked.tolist(), similarity_top_k=6)
    result = store.query(query, mode="dense", refine=N)
    nearest, exact = np.argsort(distances(asked, rows))[:6], np.sort(distances(asked, rows))[:6]
    assert result.ids == [f"d{i}" for i in nearest]
    np.testing.assert_allclose(result.similarities, 1 / (1 + exact), rtol=1e-4)
    scored = [
        schema.NodeWithScore(node=node, score=score)
        for node, score in zip(result.nodes, result.similarities, strict=True)
    ]
    cut = SimilarityPostprocessor(similarity_cutoff=float(1 / (1 + exact[2:4].mean())))
    assert [each.node.node_id for each in cut.postprocess_nodes(scored)] == result.ids[:3]


def test_haystack_joins_the_nearest_first(
    rows: FloatArray, asked: FloatArray, options: dict[str, Any]
) -> None:
    haystack = pytest.importorskip("haystack")
    from haystack.components.joiners import DocumentJoiner

    from compressae_index.connectors.haystack import CompresSAEDocumentStore

    store = CompresSAEDocumentStore(**options)
    store.write_documents(
        [
            haystack.Document(id=f"d{i}", content="t", meta={"even": i % 2 == 0}, embedding=row.tolist())
            for i, row in enumerate(rows)
        ]
    )
    parts = [
        store.embedding_retrieval(
            asked.tolist(), {"field": "meta.even", "operator": "==", "value": even}, top_k=N, mode="dense"
        )
        for even in (True, False)
    ]
    joined = DocumentJoiner(join_mode="concatenate", top_k=7).run(documents=parts)["documents"]
    assert [each.id for each in joined] == [f"d{i}" for i in np.argsort(distances(asked, rows))[:7]]
