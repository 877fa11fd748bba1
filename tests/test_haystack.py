"""The store for Haystack: its own test classes, and the recall of the index itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from haystack import Pipeline
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DeleteAllTest,
    DeleteByFilterTest,
    DocumentStoreBaseTests,
)

from compressae_index import CompressedIndex, InputError
from compressae_index.connectors.haystack import CompresSAEDocumentStore, CompresSAEEmbeddingRetriever
from compressae_index.demo import DemoData


class TestStandard(DocumentStoreBaseTests, DeleteAllTest, DeleteByFilterTest, CountDocumentsByFilterTest):  # type: ignore[misc]
    """Haystack's checks, but for `update_by_filter` and statistics on metadata, which the store lacks."""

    @pytest.fixture
    def document_store(self) -> CompresSAEDocumentStore:
        return CompresSAEDocumentStore()

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """The store gives documents back without their embeddings."""
        assert received == [replace(each, embedding=None) for each in expected]

    def test_write_documents(self, document_store: CompresSAEDocumentStore) -> None:
        """Haystack leaves open what is done without a policy: as in its store in memory, repeats fail."""
        document = Document(content="one")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError, match="in the store already"):
            document_store.write_documents([document], DuplicatePolicy.NONE)


@pytest.fixture(scope="module")
def store(refined: CompressedIndex, demo_data: DemoData) -> CompresSAEDocumentStore:
    """5,000 documents, coded as those of `refined`. Not to be changed."""
    made = CompresSAEDocumentStore(index=refined.empty_like())
    made.write_documents([document(demo_data, number) for number in range(5000)])
    return made


def document(data: DemoData, number: int) -> Document:
    return Document(
        id=str(number),
        content=data.texts[number],
        embedding=data.embeddings[number].tolist(),
        meta={"n": number, "part": number % 20},
    )


def test_answers_are_those_of_the_index(
    store: CompresSAEDocumentStore, refined: CompressedIndex, demo_data: DemoData
) -> None:
    retriever = CompresSAEEmbeddingRetriever(store)
    # By the settings of an index that was not measured, as that of the store.
    expected = refined.search(demo_data.queries[:100], 10, candidates=1000, query_nnz=64, refine=100)
    same = []
    for query, theirs, scores in zip(demo_data.queries, expected.ids, expected.scores, strict=False):
        found = retriever.run(query.tolist())["documents"]
        same.append(len({int(each.id) for each in found} & {*theirs.tolist()}) / 10)
        assert [each.score for each in found] == pytest.approx(scores, abs=2e-3)
    assert np.mean(same) > 0.995
    wanted = {"field": "meta.part", "operator": "==", "value": 7}
    found = retriever.run(query.tolist(), filters=wanted, top_k=200)["documents"]
    assert len(found) == 200
    assert {each.meta["part"] for each in found} == {7}


def test_inside_of_a_pipeline(demo_data: DemoData, tmp_path: Path) -> None:
    path = str(tmp_path / "documents")
    made = CompresSAEDocumentStore(path)
    made.write_documents([document(demo_data, number) for number in range(30)])
    made.save()
    pipeline = Pipeline()
    pipeline.add_component("retriever", CompresSAEEmbeddingRetriever(made, top_k=2, filters={}))
    asked = {"retriever": {"query_embedding": demo_data.embeddings[4].tolist()}}
    (first, _) = pipeline.run(asked)["retriever"]["documents"]
    assert first == replace(document(demo_data, 4), embedding=None, score=first.score)
    module = "compressae_index.connectors.haystack.*"
    again = Pipeline.loads(pipeline.dumps(), **_allowed(module))
    assert again.run(asked) == pipeline.run(asked)
    with pytest.raises(InputError, match="has no path"):
        CompresSAEDocumentStore().save()
    with pytest.raises(InputError, match="must be a CompresSAEDocumentStore"):
        CompresSAEEmbeddingRetriever(None)  # type: ignore[arg-type]


def _allowed(module: str) -> dict[str, list[str]]:
    """Haystack 3 loads classes of modules that it is told to trust."""
    taken = inspect.signature(Pipeline.loads).parameters
    return {name: [module] for name in ("allowed_modules", "trusted_modules") if name in taken}


def test_documents_come_back_whole() -> None:
    made = CompresSAEDocumentStore()
    blob = ByteStream(b"\x00\xff", meta={"a": 1}, mime_type="image/png")
    sparse = SparseEmbedding([1, 5], [0.5, 2.0])
    documents = [
        Document(content=None, blob=blob),
        Document(content="x", sparse_embedding=sparse, meta={"é": [1]}),
    ]
    made.write_documents(documents)
    assert made.filter_documents() == documents
    twice = [replace(documents[1], content="first"), replace(documents[1], content="second")]
    with pytest.raises(DuplicateDocumentError, match="stands twice"):
        made.write_documents(twice)
    assert made.write_documents(twice, DuplicatePolicy.SKIP) == 0
    assert made.write_documents(twice, DuplicatePolicy.OVERWRITE) == 1
    assert [each.content for each in made.filter_documents()] == [None, "second"]
