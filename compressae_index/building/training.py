"""Training of a model by `build`, if none is given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from compressae_index.checks import check_int
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder, check_is_model, check_model
from compressae_index.errors import DimensionError, InputError
from compressae_index.sources import (
    Vectors,
)

if TYPE_CHECKING:
    from compressae_index.training import TrainConfig


def trained_model(
    vectors: Vectors,
    k: int | None,
    n_latents: int | None,
    config: TrainConfig | None,
    metric: Metric,
    *,
    progress: bool,
) -> CompresSAE:
    """Trains a model for indexes of these codes and this metric."""
    from compressae_index.training import train

    return train(vectors, training_settings(k, n_latents, config, metric), progress=progress).model


def training_settings(
    k: int | None, n_latents: int | None, config: TrainConfig | None, metric: Metric
) -> TrainConfig:
    """The settings to train with.

    Raises:
        InputError: out of range, or `config` has another k or n_latents.
        MissingExtraError: torch is not installed.
    """
    from compressae_index.training.run import checked_config

    settings = checked_config(config).with_codes(k, n_latents)
    return settings if metric == "cosine" else replace(settings, center=False)


def code_sizes(
    model: CompresSAE | None,
    settings: TrainConfig | None,
    vectors: Vectors,
    k: int | None,
    encoder: Encoder,
    wanted: int | None,
) -> tuple[int, int]:
    """Nonzeros and latents of codes: the model's, or those that training will choose.

    Raises:
        InputError: k or n_latents do not fit the vectors or the model.
    """
    n, dim = vectors.shape
    if model is None:
        assert settings is not None
        return settings.sizes(n, dim, wanted)
    if dim != model.dim:
        msg = f"embeddings have dimension {dim}, expected {model.dim}"
        raise DimensionError(msg)
    return model.nonzeros(k, encoder), model.n_latents


def check_given(model: CompresSAE, n_latents: int | None, config: TrainConfig | None, metric: Metric) -> None:
    """Checks that a given model can be used, and that no settings of training are given with it."""
    check_is_model(model)
    if n_latents is not None and check_int(n_latents, "n_latents", 1) != model.n_latents:
        msg = f"n_latents is {n_latents}, but the model has {model.n_latents}"
        raise DimensionError(msg)
    if config is not None:
        msg = "config cannot be given with a model"
        raise InputError(msg)
    check_model(model, metric)
