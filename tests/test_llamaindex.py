"""The store for LlamaIndex: inside of its own index, and the answers of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from compressae_index import CompressedIndex, InputError
from compressae_index.connectors.llamaindex import CompresSAEVectorStore
from compressae_index.demo import DemoData


class Known(BaseEmbedding):  # type: ignore[misc]
    """Looks vectors up."""

    _rows: dict[str, Any] = PrivateAttr()

    def __init__(self, data: DemoData) -> None:
        super().__init__()
        self._rows = dict(zip(data.texts, data.embeddings, strict=True))
        self._rows |= dict(zip(data.query_texts, data.queries, strict=True))

    def _get_text_embedding(self, text: str) -> list[float]:
        row: list[float] = self._rows[text].tolist()
        return row

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def nodes_of(data: DemoData, n: int) -> list[TextNode]:
    """Nodes of documents "d0" .. "d9", with embeddings."""
    return [
        TextNode(
            id_=str(number),
            text=data.texts[number],
            embedding=data.embeddings[number].tolist(),
            metadata={
                "n": number,
                "part": number % 20,
                "tags": ["a", f"t{number % 3}"],
                "name": f"Name {number}",
            },
            excluded_embed_metadata_keys=["n", "part", "tags", "name"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{number % 10}")},
        )
        for number in range(n)
    ]


@pytest.fixture(scope="module")
def nodes(demo_data: DemoData) -> list[TextNode]:
    return nodes_of(demo_data, 5000)


@pytest.fixture(scope="module")
def store(refined: CompressedIndex, nodes: list[TextNode]) -> CompresSAEVectorStore:
    """5,000 nodes, coded as those of `refined`. Not to be changed."""
    made = CompresSAEVectorStore(refined.empty_like())
    made.add(nodes)
    return made


def ids(store: CompresSAEVectorStore, query: Any, k: int, **more: Any) -> list[int]:
    asked = VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=k, **more)
    return [*map(int, store.query(asked).ids or [])]


def test_answers_are_those_of_the_index(
    store: CompresSAEVectorStore, refined: CompressedIndex, demo_data: DemoData
) -> None:
    # By the settings of an index that was not measured, as that of the store.
    expected = refined.search(demo_data.queries[:200], 10, candidates=1000, query_nnz=64, refine=100)
    found = [ids(store, query, 10) for query in demo_data.queries[:200]]
    same = [len({*mine} & {*theirs}) / 10 for mine, theirs in zip(found, expected.ids.tolist(), strict=True)]
    assert np.mean(same) > 0.995  # rows that were added round as those that were built, up to ties
    asked = VectorStoreQuery(query_embedding=demo_data.queries[0].tolist(), similarity_top_k=10)
    result = store.query(asked)
    assert result.similarities == pytest.approx(expected.scores[0], abs=1e-3)
    assert [node.get_content() for node in result.nodes or []] == [demo_data.texts[n] for n in found[0]]
    fewer = store.query(asked, candidates=20, refine=0)
    assert [*map(int, fewer.ids or [])] == refined.search(
        demo_data.queries[0], 10, candidates=20, refine=0
    ).ids[0].tolist()


FILTERS = [
    [("part", "==", 3)],
    [("part", "!=", 3), ("n", "<", 30)],
    [("n", ">=", 4990)],
    [("n", ">", 4990), ("n", "<=", 4995)],
    [("part", "in", [1, 2]), ("n", "<", 90)],
    [("part", "nin", [*range(18)])],
    [("tags", "contains", "t2"), ("n", "<", 40)],
    [("tags", "any", ["t0", "none"]), ("n", "<", 40)],
    [("tags", "all", ["a", "t1"]), ("n", "<", 40)],
    [("name", "text_match", "Name 77")],
    [("name", "text_match_insensitive", "nAME 77")],
    [("none", "is_empty", None), ("n", "<", 20)],
]


@pytest.mark.parametrize("condition", ["and", "or", "not"])
@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_filters_are_those_of_llama_index(
    store: CompresSAEVectorStore,
    nodes: list[TextNode],
    demo_data: DemoData,
    wanted: list[Any],
    condition: str,
) -> None:
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key=key, value=value, operator=FilterOperator(operator))
            for key, operator, value in wanted
        ],
        condition=FilterCondition(condition),
    )
    simple = SimpleVectorStore()
    simple.add(nodes[:200])
    asked = VectorStoreQuery(
        query_embedding=demo_data.queries[0].tolist(), similarity_top_k=200, filters=filters
    )
    few = MetadataFilter(key="n", value=200, operator=FilterOperator.LT)
    nested = MetadataFilters(filters=[filters, few])
    expected = {*map(int, simple.query(asked).ids or [])}
    assert {*ids(store, demo_data.queries[0], 200, filters=nested)} == expected
    assert {int(node.node_id) for node in store.get_nodes(filters=nested)} == expected


def test_marginal_relevance(
    store: CompresSAEVectorStore, refined: CompressedIndex, demo_data: DemoData
) -> None:
    """LangChain's: LlamaIndex's own function compares with the last that was taken, not with all of them."""
    for query in demo_data.queries[:5]:
        near = ids(store, query, 20)
        chosen = maximal_marginal_relevance(query, list(refined.reconstruct(near)), 0.4, 5)
        mode = {"mode": VectorStoreQueryMode.MMR, "mmr_threshold": 0.4}
        assert ids(store, query, 5, **mode) == [near[place] for place in chosen]
    with pytest.raises(InputError, match="mode must be 'default' or 'mmr', got 'sparse'"):
        ids(store, query, 5, mode=VectorStoreQueryMode.SPARSE)


def test_inside_of_an_index(demo_data: DemoData, tmp_path: Path) -> None:
    known, made = Known(demo_data), CompresSAEVectorStore()
    context = StorageContext.from_defaults(vector_store=made)
    index = VectorStoreIndex(nodes_of(demo_data, 100), storage_context=context, embed_model=known)
    found = index.as_retriever(similarity_top_k=3).retrieve(demo_data.texts[5])
    assert (found[0].node.get_content(), found[0].score) == (demo_data.texts[5], pytest.approx(1))
    index.insert_nodes(nodes_of(demo_data, 120)[100:])
    diverse = index.as_retriever(vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.2})
    assert len(diverse.retrieve(demo_data.texts[5])) == 2
    index.delete_ref_doc("d7")
    context.persist(str(tmp_path / "storage"))
    loaded = CompresSAEVectorStore.from_persist_dir(str(tmp_path / "storage"))
    again = load_index_from_storage(
        StorageContext.from_defaults(vector_store=loaded, persist_dir=str(tmp_path / "storage")),
        embed_model=known,
    )
    for text in (demo_data.texts[7], demo_data.texts[110]):
        pairs = [which.as_retriever(similarity_top_k=4).retrieve(text) for which in (index, again)]
        assert [each.node_id for each in pairs[0]] == [each.node_id for each in pairs[1]]
        assert all(int(each.node_id) % 10 != 7 for each in pairs[0])
    assert len(loaded.get_nodes()) == 108


def test_nodes_come_back_whole(demo_data: DemoData) -> None:
    made, nodes = CompresSAEVectorStore(), nodes_of(demo_data, 20)
    assert made.add(nodes) == [node.node_id for node in nodes]
    expected = [node.model_copy(update={"embedding": None}) for node in nodes]
    assert made.get_nodes() == expected
    assert made.get_nodes(["3", "5"]) == [expected[3], expected[5]]
    assert ids(made, demo_data.embeddings[3], 9, doc_ids=["d3", "d4"])[0] == 3
    assert sorted(ids(made, demo_data.embeddings[3], 9, doc_ids=["d3", "d4"])) == [3, 4, 13, 14]
    assert sorted(ids(made, demo_data.embeddings[3], 9, node_ids=["3", "4"])) == [3, 4]
    made.delete("d3")
    assert len(made.get_nodes()) == 18
    made.delete_nodes(["0"], MetadataFilters(filters=[MetadataFilter(key="n", value=1)]))
    made.delete_nodes(["0"])
    assert [node.node_id for node in made.get_nodes()][:2] == ["1", "2"]
    with pytest.raises(InputError, match="`clear` removes all"):
        made.delete_nodes()
    with pytest.raises(InputError, match="pass an address"):
        made.persist("somewhere", fs=object())
    with pytest.raises(InputError, match="needs an embedding"):
        made.query(VectorStoreQuery())
    made.clear()
    assert made.get_nodes() == []
