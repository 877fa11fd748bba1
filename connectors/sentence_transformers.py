"""A module of sentence-transformers that makes codes of the embeddings of the modules before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int, check_vectors
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder, check_is_model, check_model
from compressae_index.errors import FormatError, MissingExtraError
from compressae_index.persistence import entry, reading
from compressae_index.search.queries import QUERY_NNZ
from compressae_index.search.stages import strongest_terms

try:
    import torch
    from sentence_transformers.base.modules import Module
except ImportError as error:
    raise MissingExtraError(
        "sentence-transformers", "sentence-transformers", "the module for sentence-transformers"
    ) from error

_TENSORS = "model.safetensors"


class SparseCoder(Module):  # type: ignore[misc]
    """Codes of sentence embeddings; the last module of a `SparseEncoder`.

    `encode` and `encode_document` give folded codes of k nonzeros, `encode_query` the query_nnz strongest
    entries of a query's projection on the dictionary. The dot product of both is the score of mode "sparse":
    with all entries the cosine of the query and the reconstructed document, less the share of the model's
    mean, which is the same for every document of a query. An embedding of zeros gets a code of zeros.

    The model is not trained here: no gradients pass through.
    """

    forward_kwargs = {"task", "max_active_dims"}  # noqa: RUF012

    def __init__(
        self,
        model: CompresSAE,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        query_nnz: int = QUERY_NNZ,
    ) -> None:
        """A module of a trained model.

        Args:
            model: a model of the dimension of the embeddings.
            k: nonzeros a code; the model's by default.
            encoder: "pursuit", or "topk" for the paper's single pass.
            query_nnz: nonzeros a query.

        Raises:
            InputError: an argument is of another type or out of range, or the model has a center.
        """
        super().__init__()
        self.model = check_is_model(model)
        check_model(model, "cosine")
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.k = model.nonzeros(k, encoder)
        self.query_nnz = check_int(query_nnz, "query_nnz", 1)

    def forward(
        self, features: dict[str, Any], task: str | None = None, max_active_dims: int | None = None
    ) -> dict[str, Any]:
        """Replaces the sentence embeddings (b, dim) by codes (b, n_latents) float32, as a dense tensor.

        Args:
            features: what the modules before this one gave.
            task: "query" for queries; anything else is encoded as a document.
            max_active_dims: nonzeros, in place of k or query_nnz.

        Raises:
            InputError: NaN or infinite values, another dimension, max_active_dims out of range.
        """
        embeddings = features["sentence_embedding"]
        rows: FloatArray = embeddings.detach().float().cpu().numpy()
        kept = rows.any(axis=1)
        codes = np.zeros((len(rows), self.model.n_latents), dtype=np.float32)
        if kept.any():
            made = self._codes(rows[kept], task == "query", max_active_dims, str(embeddings.device))
            codes[kept] = made.to_dense()
        return features | {"sentence_embedding": torch.from_numpy(codes).to(embeddings.device)}

    def _codes(self, rows: FloatArray, is_query: bool, nonzeros: int | None, device: str) -> SparseCodes:
        rows = check_vectors(rows, dim=self.model.dim, name="sentence embeddings")
        if is_query:
            wanted = self.query_nnz if nonzeros is None else check_int(nonzeros, "max_active_dims", 1)
            return strongest_terms(self.model.project(rows), wanted)
        k = self.k if nonzeros is None else self.model.nonzeros(nonzeros, self.encoder)
        return self.model.fold(self.model.encode(rows, k, encoder=self.encoder, device=device))

    def get_embedding_dimension(self) -> int:
        """Latents of the dictionary."""
        return self.model.n_latents

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, and a description of the model by which `load` checks it."""
        settings = {"k": self.k, "encoder": self.encoder, "query_nnz": self.query_nnz}
        return settings | {"model": self.model.manifest()}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        """Writes config.json and model.safetensors to a folder; never a pickle."""
        from safetensors.numpy import save_file

        self.save_config(output_path)
        save_file(dict(self.model.tensors()), Path(output_path) / _TENSORS)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Self:
        """Reads what `save` wrote, from a folder or the Hub, and checks it.

        Raises:
            FormatError: it is missing, damaged, or the tensors are not those that config.json describes.
        """
        taken = ("token", "cache_folder", "revision", "local_files_only")
        place: Mapping[str, Any] = {name: value for name, value in options.items() if name in taken}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **place)
        file = cls.load_file_path(model_name_or_path, _TENSORS, subfolder=subfolder, **place)
        where = f"{model_name_or_path}/{subfolder}"
        if not config or file is None:
            msg = f"{where} lacks config.json or {_TENSORS}"
            raise FormatError(msg)
        with reading(where):
            from safetensors.numpy import load_file

            model = CompresSAE.from_stored(entry(config, "model", dict), load_file(file))
            settings = {name: config[name] for name in ("k", "encoder", "query_nnz")}
            return cls(model, **settings)
