"""What all hooks share: dense embeddings to split codes and split queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressae_index.backend import strongest_terms
from compressae_index.checks import FloatArray, as_array, check_choice, check_int, check_vectors
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
        name = "embeddings of the embedder"
        array = _as_rows(embeddings, name)
        if array.dtype.kind in "iu":  # lists of Python numbers, all of which are whole
            array = array.astype(np.float32)
        if array.ndim == 3 and 1 in array.shape[:2]:  # each text was embedded as a batch of its own
            array = array.reshape(-1, array.shape[2])
        rows = check_vectors(array, dim=self.model.dim, name=name)
        if len(rows) != n:
            msg = f"the embedder gave {len(rows)} vectors for {n} texts"
            raise DimensionError(msg)
        return rows


def _as_rows(embeddings: Any, name: str) -> Any:
    """Embeddings as one array, also where each is an array or a tensor of its own.

    Raises:
        InputError: rows of different lengths, or no numbers.
    """
    if embeddings is None:
        msg = f"{name} are None, not vectors"
        raise InputError(msg)
    if isinstance(embeddings, Iterator):
        embeddings = list(embeddings)
    if isinstance(embeddings, (list, tuple)) and not all(
        isinstance(row, (list, tuple)) for row in embeddings
    ):
        # A plain number stays one.
        rows = [as_array(row, name) for row in embeddings]
        if len({row.shape for row in rows}) > 1:
            shapes = sorted({row.shape for row in rows})
            msg = f"{name} have different shapes: {', '.join(map(str, shapes[:5]))}"
            raise DimensionError(msg)
        embeddings = np.stack(rows)
    return as_array(embeddings, name)
