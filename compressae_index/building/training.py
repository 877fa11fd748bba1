"""Where the model of an index comes from: one that is given, or training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model, check_model
from compressae_index.errors import DimensionError, InputError
from compressae_index.sources import Vectors
from compressae_index.training import TrainConfig, train
from compressae_index.training.run import check_can_train, checked_config, continued

# Where codes alone give the scores, a dictionary of more latents than these learns for more rounds: of a
# round's rows, each latent sees fewer. Among a million vectors, 8,192 latents found 0.01 more of the
# neighbours in twice as many rounds, 16,384 found 0.017, and 4,096 among 115,659 found 0.004. Other stages
# make up for it.
MODEST_LATENTS, MORE_ROUNDS = 4096, 2


class Trained(NamedTuple):
    """A model, and what it was not trained on."""

    model: CompresSAE
    held_out: FloatArray | None = None
    """(m, d) unit rows that were held out of its training, maybe none; None of a model that was given."""


@dataclass(frozen=True)
class ModelSource:
    """A model that is given, or the settings that one is trained with."""

    given: CompresSAE | None
    settings: TrainConfig | None
    """Of training; None where a model is given."""
    k: int | None
    """Nonzeros a code, where the caller said so."""
    by_default: bool = False
    """Whether the settings of training are those of a build without any, which suit what it stores."""

    @classmethod
    def checked(
        cls,
        model: CompresSAE | None,
        *,
        k: int | None,
        n_latents: int | None,
        config: TrainConfig | None,
        metric: Metric,
        encoder: Encoder = "pursuit",
    ) -> ModelSource:
        """Of what a caller passes.

        Raises:
            InputError: out of range, a model that does not fit the metric, settings of training next to a
                model, or a `config` that has another k or n_latents.
            MissingExtraError: there is an encoder to train, and torch is not installed.
        """
        if model is None:
            return cls(None, training_settings(k, n_latents, config, metric, encoder), k, config is None)
        check_is_model(model)
        if n_latents is not None and check_int(n_latents, "n_latents", 1) != model.n_latents:
            msg = f"n_latents is {n_latents}, but the model has {model.n_latents}"
            raise DimensionError(msg)
        if config is not None:
            msg = "config cannot be given with a model"
            raise InputError(msg)
        check_model(model, metric)
        return cls(model, None, k)

    @property
    def is_open(self) -> bool:
        """Whether there is a model to train, and nobody says for how many nonzeros."""
        return self.settings is not None and self.settings.k is None

    @property
    def latents_open(self) -> bool:
        """Whether there is a dictionary to learn from codes, and nobody says how large."""
        return (
            self.settings is not None and self.settings.n_latents is None and self.settings.refine_rounds > 0
        )

    @property
    def centers(self) -> bool:
        """Whether rows are to be coded less their mean, by a model that is to be trained."""
        return self.settings is not None and self.settings.center

    def without_center(self) -> ModelSource:
        """The same, for a model of rows as they are."""
        return self if self.settings is None else replace(self, settings=replace(self.settings, center=False))

    def with_latents(self, n_latents: int) -> ModelSource:
        """The same, for a dictionary of this size."""
        return replace(self, settings=self._settings.with_codes(None, n_latents))

    def for_codes_alone(self, n_latents: int) -> ModelSource:
        """The same, for codes over n_latents that no other stage scores again."""
        if not self.by_default:
            return self
        return replace(self, settings=replace(self._settings, refine_rounds=rounds_for_codes(n_latents)))

    def sizes(self, vectors: Vectors, encoder: Encoder, wanted: int | None = None) -> tuple[int, int]:
        """Nonzeros and latents of the codes of vectors (n, d); `wanted` is the k to train for.

        Raises:
            InputError: k or n_latents do not fit the vectors or the model.
        """
        n, dim = vectors.shape
        if self.given is None:
            return self._settings.sizes(n, dim, wanted)
        if dim != self.given.dim:
            msg = f"embeddings have dimension {dim}, expected {self.given.dim}"
            raise DimensionError(msg)
        return self.given.nonzeros(self.k, encoder), self.given.n_latents

    def model_for(
        self, vectors: Vectors, k: int | None, *, num_threads: int | None, progress: bool
    ) -> Trained:
        """The model that is given, or one trained on the vectors, for codes of k nonzeros if given."""
        if self.given is not None:
            return Trained(self.given)
        settings = self._settings.with_codes(k, None)
        result = train(vectors, settings, num_threads=num_threads, progress=progress)
        return Trained(result.model, result.held_out)

    def brief(self, rounds: int, n: int) -> tuple[ModelSource, int]:
        """The same, trained for so many rounds and its dictionary alone, and the rows of n that these read.

        A round reads as many for all sizes.
        """
        rounds, rows = min(rounds, self._settings.refine_rounds), self._settings.rows_a_round(0, n)
        brief = replace(self._settings, refine_rounds=rounds, steps=0, round_rows=rows)
        return replace(self, settings=brief), rounds * rows

    @property
    def _settings(self) -> TrainConfig:
        if self.settings is None:
            msg = "there is neither a model nor settings to train one with"
            raise ValueError(msg)
        return self.settings


def rounds_for_codes(n_latents: int) -> int:
    """Rounds of learning a dictionary for codes that no other stage scores again."""
    return TrainConfig().refine_rounds * (MORE_ROUNDS if n_latents > MODEST_LATENTS else 1)


def improved(
    start: CompresSAE,
    vectors: Vectors,
    k: int,
    *,
    checkpoint: Path | None = None,
    num_threads: int,
    progress: bool,
) -> Trained:
    """A model trained on vectors from another one, for codes of k nonzeros.

    Raises:
        InputError, FormatError, StorageError: as for the checkpoint of `train`.
    """
    config = replace(continued(start), k=k)
    result = train(
        vectors, config, start=start, checkpoint=checkpoint, num_threads=num_threads, progress=progress
    )
    return Trained(result.model, result.held_out)


def training_settings(
    k: int | None, n_latents: int | None, config: TrainConfig | None, metric: Metric, encoder: Encoder
) -> TrainConfig:
    """The settings to train with.

    Without a `config`, the encoder is trained only for codes that it makes.

    Raises:
        InputError: out of range, or `config` has another k or n_latents.
        MissingExtraError: there is an encoder to train, and torch is not installed.
    """
    settings = checked_config(config).with_codes(k, n_latents)
    if config is None and encoder == "pursuit":
        settings = replace(settings, steps=0)
    check_can_train(settings)
    # Of rows whose distances count, the mean is subtracted before (`coding.points`), or that of directions
    # is if they are of unit norm.
    return replace(settings, center=False) if metric == "inner_product" else settings
