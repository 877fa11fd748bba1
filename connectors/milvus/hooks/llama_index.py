"""A sparse embedding for LlamaIndex's Milvus store."""

from __future__ import annotations

from typing import Any

from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.hooks.encoder import SplitEncoder, as_texts
from compressae_index.connectors.milvus.wire import to_dicts
from compressae_index.errors import MissingExtraError

try:
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction
except ImportError as error:
    raise MissingExtraError(
        "llama-index-vector-stores-milvus", "llamaindex", "the hook for LlamaIndex"
    ) from error


class CompresSAESparseEmbeddingFunction(BaseSparseEmbeddingFunction):  # type: ignore[misc]
    """Codes split by sign, of the embeddings of a LlamaIndex embedder.

    The store searches with drop_ratio_search = 0.2. Milvus Lite refuses that, and on a server it costs some
    recall.
    """

    def __init__(self, embedding: Any, model: CompresSAE, **options: Any) -> None:
        """Takes a `llama_index.core.embeddings.BaseEmbedding`, a model, and options of `SplitEncoder`."""
        self._embedding = embedding
        self._encoder = SplitEncoder(model, **options)

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """The nonzeros of each query, index to value."""
        queries = as_texts(queries)
        if not queries:
            return []
        found = [self._embedding.get_query_embedding(text) for text in queries]
        return to_dicts(self._encoder.queries(found, len(queries)))

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """The nonzeros of each document, index to value."""
        documents = as_texts(documents)
        if not documents:
            return []
        found = self._embedding.get_text_embedding_batch(documents)
        return to_dicts(self._encoder.documents(found, len(documents)))
