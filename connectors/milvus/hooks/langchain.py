"""A sparse embedding for langchain-milvus."""

from __future__ import annotations

from typing import Any

from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.hooks.encoder import SplitEncoder, as_texts
from compressae_index.connectors.milvus.wire import to_dicts
from compressae_index.errors import MissingExtraError

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as error:
    raise MissingExtraError("langchain-milvus", "langchain", "the hook for LangChain") from error


class CompresSAESparseEmbedding(BaseSparseEmbedding):  # type: ignore[misc]
    """Codes split by sign, of the embeddings of a LangChain embedder.

    Pass the store `index_params` and `search_params` with metric IP and without drop_ratio: the defaults of
    langchain-milvus drop part of each query, and Milvus Lite refuses them.
    """

    def __init__(self, embeddings: Any, model: CompresSAE, **options: Any) -> None:
        """Takes a `langchain_core.embeddings.Embeddings`, a model, and options of `SplitEncoder`."""
        self._embeddings = embeddings
        self._encoder = SplitEncoder(model, **options)

    def embed_query(self, query: str) -> dict[int, float]:
        """The nonzeros of a query, index to value."""
        return to_dicts(self._encoder.queries(self._embeddings.embed_query(query), 1))[0]

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """The nonzeros of each document, index to value."""
        texts = as_texts(texts)
        if not texts:
            return []
        return to_dicts(self._encoder.documents(self._embeddings.embed_documents(texts), len(texts)))
