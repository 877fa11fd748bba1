"""CompresSAE as a transformer of scikit-learn: rows to sparse codes, and back."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from compressae_index.arrays import BoolArray, FloatArray
from compressae_index.building.training import ModelSource
from compressae_index.checks import bad_rows, check_choice, check_threads
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.sources import open_vectors
from compressae_index.training import TrainConfig

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn", "the transformer for scikit-learn") from error


class CompresSAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Dense rows to k signed nonzeros over n_latents columns, as a scipy CSR array, and back.

    Codes are of the direction of a row alone: its norm is dropped, and a row of zeros, which has no
    direction, gets a code without nonzeros. `fit` trains a model, or takes the one that is given.

    Attributes:
        model_: the CompresSAE.
        n_features_in_: dimension of the rows.
        feature_names_in_: names of the columns, if the rows that it was fitted to had any.
    """

    def __init__(
        self,
        n_latents: int | None = None,
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        config: TrainConfig | None = None,
        model: CompresSAE | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Keeps its arguments, which `fit` checks.

        Args:
            n_latents: columns of the codes; by default 4,096, less for fewer than 8,192 rows.
            k: nonzeros a code; by default the model's, or 32, less for fewer than 256 rows or 32 dimensions.
            encoder: "pursuit", or "topk" for the paper's single pass.
            config: settings of training, and its seed; k and n_latents may be named there or here.
            model: a trained model to use as it is.
            num_threads: threads to encode with; all by default.
        """
        self.n_latents = n_latents
        self.k = k
        self.encoder = encoder
        self.config = config
        self.model = model
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Trains a model on rows (n, d) of floating point, without those of zeros.

        Args:
            X: the rows: an array, or a table with columns of numbers.
            y: not used.

        Raises:
            InputError: a setting is out of range or does not fit the rows, or all rows are zeros.
            ValueError: the rows hold NaN or infinite values, are sparse, or are no numbers.
            MissingExtraError: there is an encoder to train, and torch is not installed.
        """
        check_choice(self.encoder, "encoder", ENCODERS)
        check_threads(self.num_threads)
        source = ModelSource.checked(
            self.model,
            k=self.k,
            n_latents=self.n_latents,
            config=self.config,
            metric="cosine",
            encoder=self.encoder,
        )
        rows = self._rows(X, reset=True)
        rows = rows[_with_direction(rows)]
        if not len(rows):
            msg = "all rows are zeros, which have no direction to learn"
            raise InputError(msg)
        vectors = open_vectors(rows)
        k, _ = source.sizes(vectors, self.encoder)
        self.model_, self._k = (
            source.model_for(vectors, None, num_threads=self.num_threads, progress=False).model,
            k,
        )
        return self

    def transform(self, X: Any) -> sp.csr_array:  # noqa: N803
        """Codes of rows (n, d): a CSR array (n, n_latents) of float32, of at most k nonzeros a row.

        Raises:
            ValueError: another number of columns than `fit` had, NaN or infinite values.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        kept = _with_direction(rows)
        threads = self.num_threads
        codes = self.model_.encode(rows[kept], self._k, encoder=self.encoder, num_threads=threads)
        indptr = np.concatenate([[0], np.cumsum(kept) * codes.k])
        # 32 bits where they suffice, as some estimators take no others.
        places = [each.astype(sp.get_index_dtype(maxval=indptr[-1])) for each in (codes.latents, indptr)]
        matrix = sp.csr_array(
            (codes.values.ravel(), places[0].ravel(), places[1]), shape=(len(rows), codes.n_latents)
        )
        matrix.eliminate_zeros()
        return matrix

    def inverse_transform(self, X: Any) -> FloatArray:  # noqa: N803
        """Reconstructions (n, d) float32 of codes, which approximate rows of unit norm.

        Args:
            X: codes (n, n_latents), sparse or dense, of any number of nonzeros.

        Raises:
            ValueError: another number of columns, NaN or infinite values.
        """
        check_is_fitted(self)
        codes = check_array(X, accept_sparse="csr", dtype=np.float32, input_name="X")
        if codes.shape[1] != self.model_.n_latents:
            msg = f"codes have {codes.shape[1]} columns, the model has {self.model_.n_latents} latents"
            raise InputError(msg)
        rows: FloatArray = codes @ self.model_.decoder_w
        if self.model_.mean is not None:
            rows += self.model_.mean
        return rows

    def _rows(self, rows: Any, *, reset: bool) -> FloatArray:
        checked: FloatArray = validate_data(self, rows, reset=reset, dtype=np.float32, order="C")
        return checked

    @property
    def _n_features_out(self) -> int:
        return self.model_.n_latents

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _with_direction(rows: FloatArray) -> BoolArray:
    """Which rows are not zeros: (n,)."""
    kept = np.ones(len(rows), dtype=bool)
    kept[bad_rows(rows)] = False
    return kept
