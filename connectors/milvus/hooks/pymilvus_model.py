"""A sparse embedding with the interface of pymilvus.model."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.coding.pairs import split
from compressae_index.connectors.milvus.hooks.encoder import SplitEncoder, as_texts


class CompresSAEEmbeddingFunction:
    """Codes split by sign, of the embeddings of a dense function of pymilvus.model (not imported).

    Milvus searches them by stage one alone: `MilvusIndex` also re-scores what that finds.
    """

    def __init__(self, dense: Any, model: CompresSAE, **options: Any) -> None:
        """Takes an object with encode_queries and encode_documents, a model, options of `SplitEncoder`."""
        self._dense = dense
        self._encoder = SplitEncoder(model, **options)

    @property
    def dim(self) -> int:
        """Twice n_latents: one dimension for each sign of a latent."""
        return 2 * self._encoder.model.n_latents

    def __call__(self, texts: list[str]) -> sp.csr_array:
        """The same as `encode_documents`."""
        return self.encode_documents(texts)

    def encode_queries(self, queries: list[str]) -> sp.csr_array:
        """One row a query, (n, dim). Pass pymilvus a row as `rows[[i]]`, as `rows[i]` is one-dimensional."""
        queries = as_texts(queries)
        if not queries:
            return self._none()
        return _csr(self._encoder.queries(self._dense.encode_queries(queries), len(queries)))

    def encode_documents(self, documents: list[str]) -> sp.csr_array:
        """One row a document, (n, dim)."""
        documents = as_texts(documents)
        if not documents:
            return self._none()
        return _csr(self._encoder.documents(self._dense.encode_documents(documents), len(documents)))

    def _none(self) -> sp.csr_array:
        nothing = np.empty((0, 1))
        return _csr(SparseCodes(nothing.astype(np.uint16), nothing.astype(np.float32), self.dim // 2))


def _csr(codes: SparseCodes) -> sp.csr_array:
    pairs = split(codes)
    n, k = pairs.shape
    matrix = sp.csr_array(
        (pairs["value"].ravel(), pairs["index"].ravel().astype("int64"), range(0, n * k + 1, k)),
        shape=(n, 2 * codes.n_latents),
    )
    matrix.eliminate_zeros()
    return matrix
