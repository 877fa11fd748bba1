"""What all hooks share: dense embeddings to split codes and split queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressae_index.backend import strongest_terms
from compressae_index.checks import FloatArray, check_choice, check_int, check_vectors
from compressae_index.codes import SparseCodes
from compressae_index.embedded import QUERY_NNZ
from compressae_index.errors import DimensionError, InputError
from compressae_index.model import ENCODERS, CompresSAE, Encoder


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
            InputError: k or query_nnz out of range, or another encoder.
        """
        self.model = model
        self.k = model.k if k is None else check_int(k, "k", 1, model.n_latents, "n_latents")
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.query_nnz = check_int(query_nnz, "query_nnz", 1)

    def documents(self, embeddings: Any, n: int) -> SparseCodes:
        """Folded codes of the embeddings of n texts, as an embedder gave them: rows of any kind.

        Raises:
            InputError: another number or dimension of rows, bad rows, or no rows of numbers at all.
        """
        rows = self._rows(embeddings, n)
        return self.model.fold(self.model.encode(rows, self.k, encoder=self.encoder))

    def queries(self, embeddings: Any, n: int) -> SparseCodes:
        """The strongest latents of the embeddings of n texts; errors as for `documents`."""
        return strongest_terms(self.model.project(self._rows(embeddings, n)), self.query_nnz)

    def _rows(self, embeddings: Any, n: int) -> FloatArray:
        name, dim = "embeddings of the embedder", self.model.dim
        if embeddings is None:
            msg = f"{name} are None, not vectors"
            raise InputError(msg)
        if isinstance(embeddings, Iterator):
            embeddings = list(embeddings)
        if _are_arrays(embeddings):
            rows = np.concatenate([check_vectors(row, dim=dim, name=name) for row in embeddings])
        else:
            rows = check_vectors(_floating(embeddings, name), dim=dim, name=name)
        if len(rows) != n:
            msg = f"the embedder gave {len(rows)} vectors for {n} texts"
            raise DimensionError(msg)
        return rows


def _are_arrays(embeddings: Any) -> bool:
    """Whether these are several arrays or tensors, one a text or a batch."""
    return isinstance(embeddings, (list, tuple)) and any(
        hasattr(row, "shape") and row.shape for row in embeddings
    )


def _floating(embeddings: Any, name: str) -> Any:
    """Lists of Python numbers, among which whole ones may be integers, as an array; others as they are.

    Raises:
        InputError: rows of different lengths.
    """
    if not isinstance(embeddings, (list, tuple)):
        return embeddings
    try:
        array = np.asarray(embeddings)
    except (TypeError, ValueError) as error:
        msg = f"{name} cannot be read as an array: {error}"
        raise InputError(msg) from error
    return array.astype(np.float32) if array.dtype.kind in "iu" else array
