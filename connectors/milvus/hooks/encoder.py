"""What all hooks share: dense embeddings to split codes and split queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressae_index.backend import strongest_terms
from compressae_index.checks import check_int
from compressae_index.codes import SparseCodes
from compressae_index.embedded import QUERY_NNZ
from compressae_index.model import CompresSAE, Encoder


class SplitEncoder:
    """Dense embeddings as rows for Milvus: documents as folded codes, queries as their strongest latents."""

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        query_nnz: int = QUERY_NNZ,
    ) -> None:
        """From a model of the embedder's dimension.

        Args:
            model: a trained model.
            k: nonzeros a document; the model's by default.
            encoder: as for `CompressedIndex.build`.
            query_nnz: latents of a query, of largest magnitude.

        Raises:
            InputError: k or query_nnz out of range.
        """
        self.model = model
        self.k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        self.encoder: Encoder = encoder
        self.query_nnz = check_int(query_nnz, "query_nnz", 1)

    def documents(self, embeddings: Any) -> SparseCodes:
        """Folded codes of embeddings (n, d).

        Raises:
            InputError: another dimension, bad rows.
        """
        return self.model.fold(self.model.encode(_floating(embeddings), self.k, encoder=self.encoder))

    def queries(self, embeddings: Any) -> SparseCodes:
        """The strongest latents of embeddings (n, d).

        Raises:
            InputError: another dimension, bad rows.
        """
        return strongest_terms(self.model.project(_floating(embeddings)), self.query_nnz)


def _floating(embeddings: Any) -> Any:
    """Embedders give lists of Python numbers, among which whole ones may be integers."""
    return np.asarray(embeddings, dtype=np.float32)
