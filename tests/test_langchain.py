"""The store for LangChain: its standard suite, and the recall of the index itself."""

from __future__ import annotations

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from compressae_index.connectors.langchain import CompresSAEVectorStore


class TestStandard(VectorStoreIntegrationTests):  # type: ignore[misc]
    """Every check of LangChain's suite, sync and async."""

    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return CompresSAEVectorStore(self.get_embeddings())
