"""The store for Haystack: its own test classes, and the recall of the index itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    DeleteAllTest,
    DeleteByFilterTest,
    DocumentStoreBaseTests,
)

from compressae_index.connectors.haystack import CompresSAEDocumentStore


class TestStandard(DocumentStoreBaseTests, DeleteAllTest, DeleteByFilterTest, CountDocumentsByFilterTest):  # type: ignore[misc]
    """Haystack's checks, but those of `update_by_filter` and of statistics on metadata, which the store lacks."""

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
        with pytest.raises(Exception, match="in the store already"):
            document_store.write_documents([document], DuplicatePolicy.NONE)
