"""Settings of training. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from compressae_index.checks import check_choice, check_int
from compressae_index.codes import MAX_LATENTS
from compressae_index.errors import InputError

Preset: TypeAlias = Literal["fast", "default", "best"]
PRESETS: dict[str, dict[str, int]] = {
    "fast": {"refine_rounds": 20, "steps": 30},
    "default": {"refine_rounds": 64, "steps": 60},
    "best": {"refine_rounds": 200, "steps": 400},
}
"""What each preset sets. On two cores, "fast" took 8 seconds and "default" 18 to 25 for 115,659 rows of 384
dimensions and 4,096 latents; "best" has three times the rounds of "default", and seven times its
steps."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training.

    First the dictionary is learned against pursuit codes (`refine_rounds`), then the encoder by the paper's
    loss with that dictionary (`steps`). With refine_rounds=0, encoder and decoder are both trained by the
    loss, as in the paper: `topk` codes gain by it, `pursuit` codes lose.

    Raises:
        InputError: a setting is out of range, k > n_latents, or 4k > n_latents.
    """

    k: int = 32
    """Nonzeros a code."""
    n_latents: int | None = None
    """Size of the dictionary; 4096 by default, less for fewer than 8,192 rows."""
    initialization: str = "data"
    """"data": dictionary rows are training vectors, less their mean; "random": as in the paper's code."""
    center: bool = True
    """Whether the mean of the unit rows is left out of codes. Indexes for inner products need it in, and the
    paper leaves it in."""
    refine_rounds: int = PRESETS["default"]["refine_rounds"]
    """Rounds of dictionary learning against pursuit codes."""
    round_rows: int = 8192
    """Rows a round."""
    steps: int = PRESETS["default"]["steps"]
    """Optimiser steps by the paper's loss."""
    batch_size: int = 1024
    """Rows a step."""
    learning_rate: float | None = None
    """Peak of Adam's rate, which warms up over the first twentieth and then falls as a cosine to a tenth; by
    default 0.08 / sqrt(d), twice that where only the encoder is trained: an entry of a unit vector is about
    1 / sqrt(d), and Adam's step does not scale."""
    max_rows: int = 262_144
    """Rows to train on; of more, a random sample is drawn."""
    validation_rows: int = 1024
    """Rows held out, at most a tenth, to keep the best weights and to stop early; 0 turns both off."""
    patience: int = 4
    """Looks at the held-out rows (ten a stage) without a better loss after which the steps stop."""
    device: str = "auto"
    """Where the steps run: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first GPU there is."""
    precision: str = "auto"
    """"float32", "bfloat16", or "auto": bfloat16 products where the processor or GPU has them."""
    seed: int = 0
    """Of the sample, the initialisation and the order of rows."""

    def __post_init__(self) -> None:
        check_int(self.k, "k", 1)
        if self.n_latents is not None:
            check_int(self.n_latents, "n_latents", 1, MAX_LATENTS)
            check_multi_k(self.k, self.n_latents)
        for name in ("batch_size", "max_rows", "round_rows", "patience"):
            check_int(getattr(self, name), name, 1)
        for name in ("refine_rounds", "steps", "validation_rows", "seed"):
            check_int(getattr(self, name), name, 0)
        check_choice(self.initialization, "initialization", ("data", "random"))
        check_choice(self.precision, "precision", ("auto", "float32", "bfloat16"))
        rate = self.learning_rate
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            msg = f"learning_rate must be positive and finite, got {rate}"
            raise InputError(msg)

    @classmethod
    def preset(cls, name: Preset, **settings: Any) -> TrainConfig:
        """The settings of a preset ("fast", "default", "best"), with others changed by name.

        Raises:
            InputError: an unknown preset, or a setting out of range.
        """
        check_choice(name, "preset", tuple(PRESETS))
        return cls(**{**PRESETS[name], **settings})

    def with_codes(self, k: int, n_latents: int | None) -> TrainConfig:
        """These settings for codes of another k and dictionary size."""
        return replace(self, k=k, n_latents=n_latents)


def check_multi_k(k: int, n_latents: int) -> None:
    """Refuses what the loss cannot be computed for.

    Raises:
        InputError: k > n_latents, or 4k > n_latents.
    """
    check_int(k, "k", 1, n_latents, "n_latents")
    if 4 * k > n_latents:
        msg = f"the loss needs 4k <= n_latents, got 4k = {4 * k} and n_latents = {n_latents}"
        raise InputError(msg)
