"""The store for LangChain: its standard suite, and the answers of the index itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests
from pymilvus import MilvusClient

from compressae_index import CompresSAE, CompressedIndex, InputError, MissingExtraError
from compressae_index.connectors.langchain import CompresSAEVectorStore
from compressae_index.connectors.milvus import MilvusIndex
from compressae_index.demo import DemoData


class TestStandard(VectorStoreIntegrationTests):  # type: ignore[misc]
    """Every check of LangChain's suite, sync and async."""

    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return CompresSAEVectorStore(self.get_embeddings())


class TestStandardOverAnIndex(TestStandard):
    """The same over an index from the first text on, of a dictionary that nothing was trained for."""

    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        dictionary = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
        return CompresSAEVectorStore(
            self.get_embeddings(), CompressedIndex(CompresSAE.of_dictionary(dictionary, 4))
        )


class Known(Embeddings):  # type: ignore[misc]
    """Looks vectors up."""

    def __init__(self, data: DemoData) -> None:
        self._rows = dict(zip(data.texts, data.embeddings, strict=True))
        self._rows |= dict(zip(data.query_texts, data.queries, strict=True))
        self.embedded = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += len(texts)
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        row: list[float] = self._rows[text].tolist()
        return row


@pytest.fixture(scope="module")
def known(demo_data: DemoData) -> Known:
    return Known(demo_data)


@pytest.fixture(scope="module")
def store(refined: CompressedIndex, known: Known, demo_data: DemoData) -> CompresSAEVectorStore:
    """5,000 texts. Not to be changed."""
    metadatas = [{"n": n, "part": n % 20, "kind": "even" if n % 2 == 0 else "odd"} for n in range(5000)]
    return CompresSAEVectorStore.from_index(refined, known, demo_data.texts[:5000], metadatas)


def numbers(documents: list[Document]) -> list[int]:
    return [document.metadata["n"] for document in documents]


def recall(found: list[list[int]], data: DemoData) -> float:
    """recall@10 against exact search."""
    scores = data.queries[: len(found)] @ data.embeddings[:5000].T
    near = np.argsort(-scores, axis=1)[:, :10].tolist()
    return float(np.mean([len({*mine} & {*exact}) / 10 for mine, exact in zip(found, near, strict=True)]))


def test_answers_are_those_of_the_index(
    store: CompresSAEVectorStore, refined: CompressedIndex, demo_data: DemoData
) -> None:
    found = [numbers(store.similarity_search(text, 10)) for text in demo_data.query_texts[:200]]
    expected = refined.search(demo_data.queries[:200], 10)
    assert abs(recall(found, demo_data) - recall(expected.ids.tolist(), demo_data)) <= 0.005
    assert recall(found, demo_data) > 0.85
    with_scores = store.similarity_search_with_score(demo_data.query_texts[0], 10)
    assert [score for _, score in with_scores] == pytest.approx(expected.scores[0], abs=1e-6)
    assert [each.page_content for each, _ in with_scores] == [demo_data.texts[n] for n in found[0]]
    assert [int(each.id) for each, _ in with_scores] == found[0]
    by_vector = store.similarity_search_by_vector(demo_data.queries[0].tolist(), 10)
    assert by_vector == [each for each, _ in with_scores]
    settings: dict[str, Any] = {"candidates": 50, "refine": 0}
    fewer = numbers(store.similarity_search(demo_data.query_texts[0], 10, **settings))
    assert fewer == refined.search(demo_data.queries[0], 10, **settings).ids[0].tolist()


FILTERS: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    ({"part": 3}, lambda each: each["part"] == 3),
    ({"part": 3, "n": {"$lt": 2000}}, lambda each: each["part"] == 3 and each["n"] < 2000),
    ({"n": {"$gte": 100, "$lte": 300, "$ne": 200}}, lambda each: 100 <= each["n"] <= 300 != each["n"] + 100),
    ({"n": {"$gt": 4900}}, lambda each: each["n"] > 4900),
    ({"kind": {"$eq": "odd"}, "part": {"$in": [1, 2]}}, lambda each: each["part"] == 1),
    ({"part": {"$nin": [*range(19)]}}, lambda each: each["part"] == 19),
    (
        {"$or": [{"n": 5}, {"$and": [{"part": 4}, {"n": {"$lt": 99}}]}]},
        lambda each: each["n"] in (4, 5, 24, 44, 64, 84),
    ),
    ({"$not": {"n": {"$gte": 30}}}, lambda each: each["n"] < 30),
    (lambda document: document.metadata["n"] % 333 == 1, lambda each: each["n"] % 333 == 1),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_filters(
    store: CompresSAEVectorStore, refined: CompressedIndex, demo_data: DemoData, number: int
) -> None:
    wanted, test = FILTERS[number]
    allowed = [
        n for n in range(5000) if test({"n": n, "part": n % 20, "kind": "even" if n % 2 == 0 else "odd"})
    ]
    for text, query in zip(demo_data.query_texts[:5], demo_data.queries, strict=False):
        found = numbers(store.similarity_search(text, 40, filter=wanted))
        expected = refined.search(query, 40, filter=allowed).ids[0]
        assert found == expected[expected >= 0].tolist()
        assert len(found) == min(40, len(allowed))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"n": {"$near": 3}}, r"there is no operator '\$near'; there are: \$eq"),
        ({"$nor": []}, r"there is no operator '\$nor'"),
        ({"$or": {"n": 1}}, r"\$or takes a list of filters"),
        ({"$not": [1]}, r"\$not takes a filter"),
        ("n > 3", "must be a dictionary or a function"),
        ({"n": [1, 2]}, "compared with texts, numbers"),
    ],
)
def test_filters_that_are_refused(
    store: CompresSAEVectorStore, demo_data: DemoData, wanted: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        store.similarity_search(demo_data.query_texts[0], filter=wanted)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_marginal_relevance_is_langchains(
    store: CompresSAEVectorStore, refined: CompressedIndex, demo_data: DemoData, weight: float
) -> None:
    for text, query in zip(demo_data.query_texts[:10], demo_data.queries, strict=False):
        found = numbers(store.max_marginal_relevance_search(text, 5, 30, weight))
        near = refined.search(query, 30).ids[0]
        chosen = maximal_marginal_relevance(query, list(refined.reconstruct(near)), weight, 5)
        assert found == near[chosen].tolist()
    some = store.max_marginal_relevance_search(text, 5, 30, weight, filter={"part": 7})
    assert {each.metadata["part"] for each in some} == {7}
    with pytest.raises(InputError, match="between 0 and 1"):
        store.max_marginal_relevance_search(text, 5, 30, 1.5)


def test_relevance_and_retrievers(store: CompresSAEVectorStore, demo_data: DemoData) -> None:
    text = demo_data.texts[17]
    for document, relevance in store.similarity_search_with_relevance_scores(text, 200):
        assert 0 <= relevance <= 1, document
    near = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.9, "k": 9}
    )
    assert numbers(near.invoke(text)) == [17]
    assert numbers(store.as_retriever(search_kwargs={"k": 1, "filter": {"part": 17}}).invoke(text)) == [17]
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 9})
    assert len(asyncio.run(diverse.ainvoke(text))) == 3
    assert store.embeddings is not None


def test_relevance_needs_cosines(known: Known, demo_data: DemoData) -> None:
    made = CompresSAEVectorStore.from_texts(demo_data.texts[:5], known, build={"metric": "inner_product"})
    with pytest.raises(InputError, match="inner_product"):
        made.similarity_search_with_relevance_scores(demo_data.texts[0])


def test_save_and_load(known: Known, demo_data: DemoData, tmp_path: Path) -> None:
    texts = demo_data.texts[:30]
    made = CompresSAEVectorStore.from_texts(
        texts, known, [{"n": n} for n in range(30)], ids=[*map(str, range(30))]
    )
    made.save_local(tmp_path / "saved")
    loaded = CompresSAEVectorStore.load_local(tmp_path / "saved", known, build_at=None)
    for text in demo_data.query_texts[:5]:
        assert loaded.similarity_search_with_score(text, 9) == made.similarity_search_with_score(text, 9)
    made.delete()
    assert made.get_by_ids(["3"]) == made.similarity_search(texts[3]) == []


@pytest.mark.usefixtures("without_torch")
def test_what_is_refused_is_not_embedded(known: Known, demo_data: DemoData) -> None:
    made, before = CompresSAEVectorStore(known, build_at=3, build={"encoder": "topk"}), known.embedded
    for arguments, message in (
        (("abc",), "got one string"),
        ((demo_data.texts[:2], [{}]), "1 metadatas for 2 texts"),
    ):
        with pytest.raises(InputError, match=message):
            made.add_texts(*arguments)
    with pytest.raises(InputError, match="3 ids for 2 texts"):
        made.add_texts(demo_data.texts[:2], ids=["a", "b", "c"])
    with pytest.raises(MissingExtraError, match="torch"):
        made.add_texts(demo_data.texts[:3])
    assert known.embedded == before
    assert made.add_texts([]) == []


@pytest.mark.usefixtures("no_naps")
@pytest.mark.parametrize("string_ids", [False, True])
def test_over_milvus(
    client: MilvusClient,
    model: CompresSAE,
    known: Known,
    demo_data: DemoData,
    tmp_path: Path,
    string_ids: bool,
) -> None:
    """All stages of the client, and full answers where few documents match."""
    index = MilvusIndex.create(client, f"texts_{string_ids}", model, residual_bits=2, string_ids=string_ids)
    made = CompresSAEVectorStore(known, index)
    made.add_texts(demo_data.texts[:300], [{"n": n} for n in range(300)])
    for text, query in zip(demo_data.query_texts[:5], demo_data.queries, strict=False):
        expected = index.search(query, 10)
        found = made.similarity_search_with_score(text, 10)
        assert [score for _, score in found] == pytest.approx(expected.scores[0], abs=1e-6)
        few = made.similarity_search_with_score(text, 5, filter={"n": {"$in": [3, 70, 120, 250]}})
        assert sorted(numbers([each for each, _ in few])) == [3, 70, 120, 250]
        for document, score in few:
            id_ = document.id if string_ids else document.metadata["n"]
            assert score == pytest.approx(index.explain(query, id_).score, abs=1e-3)
    made.save_local(tmp_path / "saved")
    loaded = CompresSAEVectorStore.load_local(tmp_path / "saved", known, index)
    assert loaded.similarity_search(text, 3) == made.similarity_search(text, 3)
    made.delete([found[0][0].id])
    assert len(index) == len(made.store) == 299


def test_ids_are_made_where_none_are_given(known: Known, demo_data: DemoData) -> None:
    made = CompresSAEVectorStore(known)
    ids = made.add_texts(demo_data.texts[:3], ids=[None, "mine", None])
    assert ids[1] == "mine"
    assert len({*ids}) == 3
    assert [each.page_content for each in made.get_by_ids(ids)] == demo_data.texts[:3]
    assert all(a != b for a, b in itertools.pairwise(ids))
