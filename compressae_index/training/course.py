"""What the stages of a training share: rows, what was done so far, and the checkpoint that keeps it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import InputError, TrainingError
from compressae_index.training.checkpoint import Checkpoint, saved_like
from compressae_index.training.config import TrainConfig

Stage: TypeAlias = Literal["refine", "steps"]
# Checks of the held-out rows in each stage.
CHECKS = 10
# Training has diverged when the held-out loss exceeds DIVERGED times the first one, plus SLACK.
DIVERGED, SLACK = 1.25, 0.1


class Round(NamedTuple):
    """One round of dictionary learning."""

    nonzeros: int
    """Nonzeros a code in this round."""
    error: float
    """Squared error of the batch over its squared norm, before the round's step."""
    revived: int
    """Unused atoms that were set to badly reconstructed rows."""


class Check(NamedTuple):
    """A check of the held-out rows."""

    stage: str
    """"refine" or "steps"."""
    after: int
    """Rounds or steps done."""
    loss: float
    """Squared error of pursuit codes after rounds, the paper's loss after steps."""


class Batches:
    """Batches of rows, each row once per epoch; batch i depends only on the seed and i."""

    def __init__(self, rows: FloatArray, size: int, seed: tuple[int, ...]) -> None:
        self.rows, self.size, self.seed = rows, min(size, len(rows)), seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> FloatArray:
        epoch, position = divmod(number, len(self.rows) // self.size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.rows))
        batch = self._order[position * self.size : (position + 1) * self.size]
        return self.rows[batch]


class Course:
    """A training: settings, rows, and what its stages have done."""

    def __init__(
        self,
        config: TrainConfig,
        rows: FloatArray,
        held_out: FloatArray,
        sizes: tuple[int, int],
        start: CompresSAE | None,
        checkpoint: Path | None,
        *,
        progress: bool,
    ) -> None:
        """Begins, or goes on from what a checkpoint holds.

        Args:
            config: settings.
            rows: (n, d) to train on, of unit norm or less the mean.
            held_out: (m, d) to check on.
            sizes: k and n_latents.
            start: the model that is improved, if any.
            checkpoint: directory for the state.
            progress: show progress bars.

        Raises:
            InputError, FormatError, StorageError: as for the checkpoint of `train`.
        """
        self.config, self.rows, self.held_out = config, rows, held_out
        self.k, self.n_latents = sizes
        self.progress = progress
        self.rounds: list[Round] = []
        self.losses: list[float] = []
        self.checks: list[Check] = []
        self.best: dict[str, npt.NDArray[Any]] = {}
        """The weights of the best check in the present stage, by name."""
        self._stage: Stage | None = None  # that the checkpoint was saved in
        self._arrays: Mapping[str, npt.NDArray[Any]] = {}
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint, self._identity(start))
        saved = self._checkpoint.load() if self._checkpoint else None
        if self._checkpoint is not None and saved is not None:
            with self._checkpoint.reading():
                self._take(saved)

    @property
    def at_steps(self) -> bool:
        """Whether the checkpoint was saved by steps, which keep the dictionary that rounds learned."""
        return self._stage == "steps"

    def saved(self, stage: Stage, like: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]] | None:
        """The state that a stage saved, of the shapes and dtypes of `like`; None if there is none.

        Raises:
            FormatError: the checkpoint holds others.
        """
        if self._checkpoint is None or self._stage != stage:
            return None
        with self._checkpoint.reading():
            return {name: saved_like(self._arrays, name, array) for name, array in like.items()}

    def save(self, stage: Stage, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Saves the state of a stage, if there is a checkpoint.

        Raises:
            StorageError: the disk is full or refuses; what was saved before is untouched.
        """
        if self._checkpoint is None:
            return
        meta = {"stage": stage, "rounds": self.rounds, "losses": self.losses, "checks": self.checks}
        best = {f"best.{name}": array for name, array in self.best.items()}
        self._checkpoint.save(meta, {**arrays, **best})

    def look(self, stage: Stage, after: int, loss: float, weights: Mapping[str, FloatArray]) -> None:
        """Notes the loss of the held-out rows; keeps the weights if they are the best of their stage.

        Raises:
            TrainingError: the loss says that training diverged.
        """
        earlier = self.losses_of(stage)
        self.checks.append(Check(stage, after, loss))
        if not math.isfinite(loss) or (earlier and loss > DIVERGED * earlier[0] + SLACK):
            msg = (
                f"training diverged: the held-out loss is {loss:.4g} after {after} {stage}, and was "
                f"{earlier[0] if earlier else math.nan:.4g} at first; try a smaller learning_rate"
            )
            raise TrainingError(msg)
        if not earlier or loss < min(earlier):
            self.best = {name: array.copy() for name, array in weights.items()}

    def losses_of(self, stage: Stage) -> list[float]:
        """The losses of the held-out rows in a stage."""
        return [check.loss for check in self.checks if check.stage == stage]

    def _take(self, saved: persistence.Stored) -> None:
        """Takes up what a checkpoint holds; the stages take their own state.

        Raises:
            InputError: a run of these settings does not save such entries.
            KeyError: an entry is missing.
        """
        meta, arrays = saved.meta, saved.arrays
        totals: dict[Stage, int] = {"refine": self.config.refine_rounds, "steps": self.config.steps}
        stage = check_choice(meta["stage"], "stage", tuple(name for name, total in totals.items() if total))
        self.rounds = [
            Round(*_numbers(each, "iri", "rounds")) for each in persistence.entry(meta, "rounds", list)
        ]
        losses = persistence.entry(meta, "losses", list)
        self.losses = list(_numbers(losses, "r" * len(losses), "losses"))
        self.checks = [
            Check(*_numbers(each, "sir", "checks")) for each in persistence.entry(meta, "checks", list)
        ]
        done = len(self.rounds) if stage == "refine" else len(self.losses)
        counted = saved_like(arrays, "round" if stage == "refine" else "schedule", np.array(0))
        if not counted == done <= totals[stage] or len(self.rounds) > totals["refine"]:
            msg = f"{done} of {totals[stage]} {stage} are noted, and {counted} are done"
            raise InputError(msg)
        dim = self.rows.shape[1]
        atoms = np.empty((self.n_latents, dim), np.float32)
        weights = {"encoder_w": atoms.T, "encoder_b": atoms[:, 0], "decoder_w": atoms}
        named = [name.removeprefix("best.") for name in arrays if name.startswith("best.")]
        if set(named) not in (set(), {"dictionary"}, set(weights)):
            msg = f"the best weights are named {', '.join(sorted(named))}"
            raise InputError(msg)
        weights["dictionary"] = atoms
        self.best = {name: saved_like(arrays, f"best.{name}", weights[name]) for name in named}
        self._stage, self._arrays = stage, arrays

    def _identity(self, start: CompresSAE | None) -> dict[str, Any]:
        """Settings and rows, which a checkpoint must share with this run."""
        digest = hashlib.sha256(self.rows.tobytes()).hexdigest()[:32]
        improved = {} if start is None else {"start": start.fingerprint}
        round_rows = self.config.rows_a_round(self.n_latents, len(self.rows))
        sizes = {"k": self.k, "n_latents": self.n_latents, "round_rows": round_rows}
        return {**asdict(self.config), **sizes, "rows": digest, **improved}


def is_check(done: int, total: int) -> bool:
    """Whether one of the CHECKS checks is due after `done` of `total`."""
    return done * CHECKS // total > (done - 1) * CHECKS // total


def _numbers(entry: Any, kinds: str, name: str) -> list[Any]:
    """The entry of a checkpoint, a list of integers (i), finite numbers (r) and strings (s).

    Raises:
        InputError: it has other kinds or another length.
    """
    types: dict[str, tuple[type, ...]] = {"i": (int,), "r": (int, float), "s": (str,)}

    def fits(value: Any, kind: str) -> bool:
        known = isinstance(value, types[kind]) and not isinstance(value, bool)
        return known and (kind == "s" or math.isfinite(value))

    if not isinstance(entry, list) or len(entry) != len(kinds) or not all(map(fits, entry, kinds)):
        msg = f"{name} hold {entry!r:.100}"
        raise InputError(msg)
    return entry
