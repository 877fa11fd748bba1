"""Encodes dense embeddings of documents and queries, for the hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int, check_vectors
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_is_model, check_model
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, InputError
from compressae_index.search.queries import QUERY_NNZ
from compressae_index.search.stages import strongest_terms


def as_texts(texts: Any) -> list[Any]:
    """Texts as a list.

    Raises:
        InputError: not an iterable of strings; or one string, whose characters would be taken for texts.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        msg = f"texts must be a list of strings, got {type(texts).__name__}"
        raise InputError(msg)
    return list(texts)


class SplitEncoder:
    """Encodes documents as folded codes, and queries as their strongest latents."""

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        query_nnz: int = QUERY_NNZ,
    ) -> None:
        """Takes a model of the embedder's dimension.

        Args:
            model: a trained model.
            k: nonzeros a document; the model's by default.
            encoder: as for `CompressedIndex.build`.
            query_nnz: latents kept of a query, those of largest magnitude.

        Raises:
            InputError: k or query_nnz is out of range, the encoder unknown, or model not a `CompresSAE` or
                one with a center.
        """
        self.model = check_is_model(model)
        check_model(model, "cosine")  # directions are compared
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.k = model.nonzeros(k, encoder)
        self.query_nnz = check_int(query_nnz, "query_nnz", 1)

    def documents(self, embeddings: Any, n: int) -> SparseCodes:
        """Folded codes of the embeddings that an embedder returned for n texts.

        Raises:
            InputError: the wrong number or dimension of rows, bad rows, or no array of numbers.
        """
        rows = self._rows(embeddings, n)
        return self.model.fold(self.model.encode(rows, self.k, encoder=self.encoder))

    def queries(self, embeddings: Any, n: int) -> SparseCodes:
        """The strongest latents of the embeddings of n texts; errors as for `documents`."""
        return strongest_terms(self.model.project(self._rows(embeddings, n)), self.query_nnz)

    def _rows(self, embeddings: Any, n: int) -> FloatArray:
        name = "embeddings of the embedder"
        array = as_array(embeddings, name)
        if array.ndim == 3 and array.shape[1] == 1:  # each text as a batch of one
            array = array[:, 0]
        rows = check_vectors(array, dim=self.model.dim, name=name, integers=True)
        if len(rows) != n:
            msg = f"the embedder returned {len(rows)} vectors for {n} texts"
            raise DimensionError(msg)
        return rows
