"""Settings of training. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from compressae_index.checks import check_bool, check_choice, check_int, check_number, check_text
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.coding.model import MAX_DIM
from compressae_index.errors import InputError

DEFAULT_K, DEFAULT_LATENTS = 32, 4096
# Lists of an inverted file grow like this, too.
LATENTS_PER_ROOT = 8
# The loss also uses codes of this many times k nonzeros.
LATENTS_PER_NONZERO = 4
# Rounds of more rows take longer, and those of a larger share of all rows learn less.
ROUND_ROWS, ROUND_SHARE = 8192, 0.25
# The range that torch takes.
MAX_SEED = 2**64 - 1

Preset: TypeAlias = Literal["fast", "default", "best"]
PRESETS: dict[str, dict[str, int]] = {
    "fast": {"refine_rounds": 20, "steps": 30},
    "default": {"refine_rounds": 64, "steps": 60},
    "best": {"refine_rounds": 200, "steps": 400},
}
"""The settings of each preset. On two cores, with 115,659 rows of 384 dimensions, 4,096 latents and 16
nonzeros, "fast" took 5 seconds, "default" 10 and "best" 40; without steps, 3, 8 and 23."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training.

    First the dictionary is learned from pursuit codes (`refine_rounds`), then the encoder is trained with the
    paper's loss and that dictionary (`steps`). With refine_rounds=0, the loss trains both encoder and
    decoder, as in the paper: `topk` codes gain, `pursuit` codes lose.

    Raises:
        InputError: a setting is of another type or out of range, k > n_latents, or 4k > n_latents.
    """

    k: int | None = None
    """Nonzeros a code; 32 by default, less for fewer than 256 rows or 32 dimensions."""
    n_latents: int | None = None
    """Size of the dictionary. By default 4,096, less for fewer than 8,192 rows, and above 524,288 rows the
    power of two next to 8 sqrt(n): 8,192 for a million. With twice as many, codes of as many bytes find more
    neighbours, but training and encoding take twice as long, and training four times above 16,384."""
    initialization: str = "data"
    """"data": dictionary rows are training vectors, less their mean; "random": as in the paper's code."""
    center: bool = True
    """Whether to subtract the mean of the unit rows before coding. Indexes for inner products need False; the
    paper subtracts none."""
    refine_rounds: int = PRESETS["default"]["refine_rounds"]
    """Rounds of dictionary learning from pursuit codes. `build` without a `config` takes 128 for more than
    4,096 latents whose codes alone give the scores."""
    round_rows: int | None = None
    """Rows a round. By default a quarter of the rows to train on, but no more than 8,192 or half as many as
    there are latents, whichever is more: by fewer, a large dictionary learns less, and some of its latents
    are in many times as many codes as others."""
    steps: int = PRESETS["default"]["steps"]
    """Optimiser steps by the paper's loss."""
    batch_size: int = 1024
    """Rows a step."""
    learning_rate: float | None = None
    """Peak of Adam's rate, which warms up over the first twentieth of the steps and then falls as a cosine to
    a tenth. By default 0.08 / sqrt(d), or twice that if only the encoder is trained: entries of a unit vector
    are about 1 / sqrt(d), and Adam's step does not scale with them."""
    max_rows: int = 262_144
    """Rows to train on, a random sample if there are more."""
    validation_rows: int = 1024
    """Rows held out, at most a tenth, to keep the best weights and to stop early; 0 for neither."""
    patience: int = 4
    """The steps stop after this many checks of the held-out rows (ten a stage) without a better loss."""
    device: str = "auto"
    """Device of the steps: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first GPU, if any."""
    precision: str = "auto"
    """"float32", "bfloat16", or "auto": bfloat16 products if the processor or GPU has them."""
    seed: int = 0
    """Seed of the sample, the initialisation and the order of rows."""

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {}
        if self.k is not None:
            checked["k"] = check_int(self.k, "k", 1)
        if self.n_latents is not None:
            checked["n_latents"] = check_int(self.n_latents, "n_latents", 1, MAX_LATENTS)
            check_multi_k(checked.get("k", 1), checked["n_latents"])
        if self.round_rows is not None:
            checked["round_rows"] = check_int(self.round_rows, "round_rows", 1)
        for name in ("batch_size", "max_rows", "patience"):
            checked[name] = check_int(getattr(self, name), name, 1)
        for name in ("refine_rounds", "steps", "validation_rows"):
            checked[name] = check_int(getattr(self, name), name, 0)
        checked["seed"] = check_int(self.seed, "seed", 0, MAX_SEED)
        checked["center"] = check_bool(self.center, "center")
        check_choice(self.initialization, "initialization", ("data", "random"))
        check_choice(self.precision, "precision", ("auto", "float32", "bfloat16"))
        check_text(self.device, "device")
        if self.learning_rate is not None:
            rate = checked["learning_rate"] = check_number(self.learning_rate, "learning_rate")
            if not (rate > 0 and math.isfinite(rate)):
                msg = f"learning_rate must be positive and finite, got {rate}"
                raise InputError(msg)
        for name, value in checked.items():  # Python's numbers, which a checkpoint can hold
            object.__setattr__(self, name, value)

    @classmethod
    def preset(cls, name: Preset, **settings: Any) -> TrainConfig:
        """The settings of a preset ("fast", "default", "best"), some of them changed by name.

        Raises:
            InputError: an unknown preset, or a setting out of range.
        """
        check_choice(name, "preset", tuple(PRESETS))
        return cls(**{**PRESETS[name], **settings})

    def with_codes(self, k: int | None, n_latents: int | None) -> TrainConfig:
        """These settings with another k and dictionary size; None keeps the present one.

        Raises:
            InputError: out of range, or the settings already name another.
        """
        given: dict[str, Any] = {name: v for name, v in (("k", k), ("n_latents", n_latents)) if v is not None}
        for name, value in given.items():
            own = getattr(self, name)
            if own not in (None, value):
                msg = f"{name} is {value!r}, but config has {name} = {own}: name it once"
                raise InputError(msg)
        return replace(self, **given)

    def rows_a_round(self, n_latents: int, n: int) -> int:
        """Rows of a round that so many latents learn from, of n to train on."""
        if self.round_rows is not None:
            return self.round_rows
        return max(min(int(ROUND_SHARE * n), max(ROUND_ROWS, n_latents // 2)), 1)

    def sizes(self, n: int, dim: int, wanted: int | None = None) -> tuple[int, int]:
        """K and n_latents for n vectors of dim dimensions.

        If k is None, it is `wanted`, 32 by default, or less if the vectors do not allow as many.

        Raises:
            InputError: more than 65,536 dimensions, fewer dimensions than k, or too few vectors.
        """
        check_int(dim, "dim", 1, MAX_DIM)
        rows, n_latents = min(n, self.max_rows), self.n_latents
        if n_latents is None:
            n_latents = max(min(latents_for(n), rows // 2), LATENTS_PER_NONZERO)
        elif self.initialization == "data" and n_latents > rows:
            msg = f"n_latents = {n_latents} needs at least as many vectors to start from, got {rows}"
            raise InputError(msg if rows == n else f"{msg} by max_rows")
        if self.k is None:
            wanted = DEFAULT_K if wanted is None else wanted
            return min(wanted, dim, n_latents // LATENTS_PER_NONZERO), n_latents
        check_int(self.k, "k", 1, dim, "dim")
        if LATENTS_PER_NONZERO * self.k > n_latents:
            msg = (
                f"{rows} vectors are too few to learn a dictionary for k = {self.k}: "
                f"at least {2 * LATENTS_PER_NONZERO * self.k} are needed, or a smaller k"
            )
            raise InputError(msg)
        return self.k, n_latents


def latents_for(n: int) -> int:
    """Latents for n rows. A larger dictionary tells more rows apart, and takes fewer bytes of each."""
    wanted = 1 << round(math.log2(LATENTS_PER_ROOT * math.sqrt(n)))
    return min(max(wanted, DEFAULT_LATENTS), MAX_LATENTS)


def check_multi_k(k: int, n_latents: int) -> None:
    """Checks that the loss can be computed.

    Raises:
        InputError: k > n_latents, or 4k > n_latents.
    """
    check_int(k, "k", 1, n_latents, "n_latents")
    if LATENTS_PER_NONZERO * k > n_latents:
        msg = f"the loss needs 4k <= n_latents, got 4k = {4 * k} and n_latents = {n_latents}"
        raise InputError(msg)
