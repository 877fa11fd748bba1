"""Training runs: the dictionary against pursuit codes, then the encoder by the paper's loss."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compressae_index import persistence
from compressae_index.arrays import FloatArray
from compressae_index.checks import as_path, check_choice
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.coding.model import CompresSAE, check_is_model, from_mean
from compressae_index.coding.points import points_of
from compressae_index.coding.torch_device import device_of
from compressae_index.coding.torch_settings import own_settings
from compressae_index.errors import DimensionError, InputError, TrainingError
from compressae_index.persistence import Stored
from compressae_index.progress import track
from compressae_index.sources import Vectors, open_vectors
from compressae_index.sources.sample import unit_sample
from compressae_index.training.checkpoint import Checkpoint, ModuleState, check_place, saved_like
from compressae_index.training.config import TrainConfig
from compressae_index.training.learning import DictionaryLearner, Round
from compressae_index.training.module import CompresSAEModule

# The default peak of the learning rate is this times 1 / sqrt(d); twice as much leaves latents dead.
LEARNING_RATE = 0.08
# The same when the decoder is frozen and only the encoder learns.
ENCODER_LEARNING_RATE = 0.16
# Rounds that go on from a dictionary, and their rows, where a call does not say. Measured at 40,000 rows of
# package summaries (d = 256, k = 16), from a dictionary of these and WordNet's glosses, recall@100 0.832: 42
# rounds of 4,096 rows reach 0.862, as a whole training does in 2.7 times their time; 21 of 8,192 rows 0.853.
CONTINUED: dict[str, Any] = {"refine_rounds": 40, "round_rows": 4096, "steps": 0}
# Checks of the held-out rows in each stage.
CHECKS = 10
# Training has diverged when the held-out loss exceeds DIVERGED times the first one, plus SLACK.
DIVERGED, SLACK = 1.25, 0.1
# A first loss below this may not improve, and that is no failure.
GOOD_LOSS = 0.05
# The longest mean to subtract from unit rows. The mean of identical rows has their length, and would leave
# nothing of them to code.
LONGEST_MEAN = 1 - 2**-23
# A latent is dead if it did not fire while latents fired REVIVE_AFTER times on average; none is revived after
# the share REVIVE_UNTIL of the steps.
REVIVE_AFTER, REVIVE_UNTIL = 100, 0.8


class Check(NamedTuple):
    """A check of the held-out rows."""

    stage: str
    """"refine" or "steps"."""
    after: int
    """Rounds or steps done."""
    loss: float
    """Squared error of pursuit codes after rounds, the paper's loss after steps."""


class TrainResult(NamedTuple):
    """A trained model and the course of its training."""

    model: CompresSAE
    rounds: list[Round]
    """Rounds of dictionary learning."""
    losses: FloatArray
    """(steps done,) total loss of each step's batch."""
    checks: list[Check]
    """Losses of the held-out rows."""
    seconds: float
    held_out: FloatArray
    """(m, d) unit rows that were held out; none if the dictionary needed all of them."""


def train(
    embeddings: Vectors | Any,
    config: TrainConfig | None = None,
    *,
    metric: Metric = "cosine",
    start: CompresSAE | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> TrainResult:
    """Trains a model on embeddings. Its dictionary is `CompresSAE.rounded` at the end.

    Neither uses nor changes torch's global settings and random state, except for the number of threads,
    which affects the last digits.

    Args:
        embeddings: (n, d) floating point, array or file path; rows finite and, but for "l2", not zero.
        config: settings; by default those of `TrainConfig`, or with `start` those of `continued`.
        metric: what indexes by the model score by, as `metric` of `CompressedIndex.build`. For
            "inner_product" no mean is left out, whatever `config` says. For "l2" all rows are read once, and
            the model sees rows from their mean, its `center`; unless all are of unit norm, as for cosine.
        start: a model whose dictionary is improved, in place of one from rows: of what is like its rows it
            takes a third of the time. k and n_latents are its own, unless `config` names another k, and so is
            the center.
        checkpoint: directory for the state of training, saved ten times in each stage. If it holds a state
            of the same settings and rows, training resumes from it; on one thread, the result equals that of
            an unbroken run bit for bit. The directory stays when training is done.
        progress: show progress bars.

    Raises:
        InputError: bad rows, another metric, more than 65,536 dimensions, k above the dimension, more latents
            than rows to initialise them from, or, beside norms, than 65,535, a missing device, a checkpoint
            of other settings; `start` has another dimension or n_latents, or there are no rounds to improve
            its dictionary in.
        FormatError: the checkpoint is damaged, or something else is there.
        StorageError: the checkpoint cannot be read or written.
        TrainingError: training diverged or collapsed, with the reason.
    """
    config = checked_config(config) if start is None else continued(start, config)
    check_choice(metric, "metric", METRICS)
    path = None if checkpoint is None else as_path(checkpoint, "checkpoint")
    started = time.perf_counter()
    if path is not None:
        check_place(path)
    with own_settings():
        device = device_of(config.device)
        if start is not None and start.center is not None:
            metric = "l2"
        vectors = open_vectors(embeddings, zeros=metric == "l2")
        if start is not None and vectors.shape[1] != start.dim:
            msg = f"embeddings have dimension {vectors.shape[1]}, the model to start from {start.dim}"
            raise DimensionError(msg)
        vectors, center, order = points_of(vectors, metric, start, centers=config.center, progress=progress)
        if order != "cosine":  # of directions as they are, beside which norms are kept
            config = replace(config, center=False)
        sizes = config.sizes(vectors.shape[0], vectors.shape[1])
        if order == "l2":
            check_room_for_norms(sizes[1])
        rows = unit_sample(vectors, config.max_rows, np.random.default_rng(config.seed))
        rows, kept = _hold_out(rows, config, sizes[1])
        held_out, mean = kept, None
        if config.center:
            mean = _mean_of(rows)
            rows, held_out = (from_mean(each, mean)[0] for each in (rows, held_out))
        run = _Run(config, rows, held_out, sizes, device, path, progress, start)
        module = run.fit()
    if config.refine_rounds or config.steps:
        _check_alive(module.to_model(), held_out if len(held_out) else rows[:1024])
    model = module.to_model(mean)
    if not config.steps:
        model = CompresSAE.of_dictionary(model.decoder_w, model.k, mean)
    model = model.rounded()
    return TrainResult(
        model if center is None else model.centred_at(center),
        run.rounds,
        np.array(run.losses, np.float32),
        run.checks,
        time.perf_counter() - started,
        kept,
    )


def checked_config(config: TrainConfig | None) -> TrainConfig:
    """The settings, or the defaults for None.

    Raises:
        InputError: not a `TrainConfig`.
    """
    given: Any = TrainConfig() if config is None else config
    if not isinstance(given, TrainConfig):
        msg = f"config must be a TrainConfig, such as TrainConfig.preset('fast'), got {given!r:.100}"
        raise InputError(msg)
    return given


def continued(start: CompresSAE, config: TrainConfig | None = None) -> TrainConfig:
    """The settings of a training that goes on from a model: its sizes, and CONTINUED by default.

    Raises:
        InputError: `config` has another n_latents, or no rounds.
    """
    check_is_model(start)
    if config is None:
        centers = start.mean is not None
        config = TrainConfig(**CONTINUED, k=start.k, center=centers)
    config = checked_config(config)
    if not config.refine_rounds:
        msg = "start= goes on from a dictionary, which refine_rounds = 0 does not improve"
        raise InputError(msg)
    return config.with_codes(start.k if config.k is None else None, start.n_latents)


def _mean_of(rows: FloatArray) -> FloatArray:
    """The mean (dim,) of unit rows (n, dim), cut to LONGEST_MEAN."""
    # In float32, the sum of this many rows would be off by a percent.
    mean = rows.mean(axis=0, dtype=np.float64)
    mean *= LONGEST_MEAN / max(float(np.linalg.norm(mean)), LONGEST_MEAN)
    shortened: FloatArray = mean.astype(np.float32)
    return shortened


def _hold_out(rows: FloatArray, config: TrainConfig, n_latents: int) -> tuple[FloatArray, FloatArray]:
    """Rows to train on and rows to check on; no row is held out if the dictionary needs all of them."""
    n = min(config.validation_rows, len(rows) // 10)
    if len(rows) - n < 2 * n_latents:
        n = 0
    held = np.zeros(len(rows), dtype=bool)
    held[np.random.default_rng([config.seed, 1]).permutation(len(rows))[:n]] = True
    return rows[~held], rows[held]


def _check_alive(model: CompresSAE, rows: FloatArray) -> None:
    values = model.encode(rows).values
    if not np.abs(values).max(axis=1).all():
        msg = "training collapsed: some rows have no code at all; try a smaller learning_rate, or more rows"
        raise TrainingError(msg)


class _Batches:
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


class _Run:
    """A training run: settings, rows and progress."""

    def __init__(
        self,
        config: TrainConfig,
        rows: FloatArray,
        held_out: FloatArray,
        sizes: tuple[int, int],
        device: torch.device,
        checkpoint: Path | None,
        progress: bool,
        start: CompresSAE | None,
    ) -> None:
        self.config, self.rows, self.held_out, self.start = config, rows, held_out, start
        self.k, self.n_latents = sizes
        self.device, self.progress = device, progress
        self.rounds: list[Round] = []
        self.losses: list[float] = []
        self.checks: list[Check] = []
        self.best: dict[str, npt.NDArray[Any]] = {}
        self._checkpoint = None if checkpoint is None else Checkpoint(checkpoint, self._identity())

    def fit(self) -> CompresSAEModule:
        """Runs both stages."""
        saved = self._checkpoint.load() if self._checkpoint else None
        module = CompresSAEModule(
            self.rows.shape[1],
            self.n_latents,
            self.k,
            generator=torch.Generator().manual_seed(self.config.seed),
        )
        if self._checkpoint is not None and saved is not None:
            with self._checkpoint.reading():
                self._take(saved, module)
        module.use_bfloat16 = _bfloat16(self.config.precision, self.device)
        if self.start is not None:
            module.set_dictionary(torch.from_numpy(self.start.decoder_w.copy()))
        elif self.config.initialization == "data":
            chosen = np.random.default_rng([self.config.seed, 2]).permutation(len(self.rows))[
                : self.n_latents
            ]
            module.initialize_from(
                torch.from_numpy(self.rows[chosen]), torch.from_numpy(self.rows.mean(axis=0))
            )
        if self.config.refine_rounds:
            self._refine(module, saved)
        if self.config.steps:
            self._fit_module(module.to(self.device), saved)
        return module.cpu()

    def _take(self, saved: Stored, module: CompresSAEModule) -> None:
        """Restores losses and checks from a checkpoint; learners restore their own state later.

        Raises:
            InputError: a run of these settings does not save such entries.
            KeyError: an entry is missing.
        """
        meta, stages = saved.meta, {"refine": self.config.refine_rounds, "steps": self.config.steps}
        stage = check_choice(meta["stage"], "stage", tuple(name for name, total in stages.items() if total))
        self.rounds = [
            Round(*_numbers(each, "iri", "rounds")) for each in persistence.entry(meta, "rounds", list)
        ]
        losses = persistence.entry(meta, "losses", list)
        self.losses = list(_numbers(losses, "r" * len(losses), "losses"))
        self.checks = [
            Check(*_numbers(each, "sir", "checks")) for each in persistence.entry(meta, "checks", list)
        ]
        done = len(self.rounds) if stage == "refine" else len(self.losses)
        counted = saved_like(saved.arrays, "round" if stage == "refine" else "schedule", np.array(0))
        if not counted == done <= stages[stage] or len(self.rounds) > stages["refine"]:
            msg = f"{done} of {stages[stage]} {stage} are noted, and {counted} are done"
            raise InputError(msg)
        weights = module.arrays()
        named = [name.removeprefix("best.") for name in saved.arrays if name.startswith("best.")]
        if set(named) not in (set(), {"dictionary"}, set(weights)):
            msg = f"the best weights are named {', '.join(sorted(named))}"
            raise InputError(msg)
        weights["dictionary"] = weights["decoder_w"]
        self.best = {name: saved_like(saved.arrays, f"best.{name}", weights[name]) for name in named}

    def _refine(self, module: CompresSAEModule, saved: Stored | None) -> None:
        config, total = self.config, self.config.refine_rounds
        learner = DictionaryLearner(
            module.decoder_w.detach().numpy().copy(),
            k=self.k,
            rounds=total,
            num_threads=torch.get_num_threads(),
        )
        if saved is not None and saved.meta["stage"] == "refine":
            assert self._checkpoint is not None
            with self._checkpoint.reading():
                learner.restore(
                    {name: saved_like(saved.arrays, name, own) for name, own in learner.state().items()}
                )
        done = total if saved is not None and saved.meta["stage"] == "steps" else learner.round
        batches = _Batches(self.rows, config.rows_a_round(self.n_latents), (config.seed, 3))
        with track(total, "learning the dictionary", enabled=self.progress, unit="rounds") as advance:
            advance(done)
            for number in range(done, total):
                self.rounds.append(learner.learn(batches[number]))
                advance(1)
                if _is_check(number + 1, total):
                    # Held-out rows are measured at full k, which only the last rounds use.
                    if learner.at_full_k and len(self.held_out):
                        self._look(
                            "refine", number + 1, learner.error(self.held_out), dictionary=learner.dictionary
                        )
                    self._save("refine", learner.state())
        if saved is None or saved.meta["stage"] == "refine":
            module.set_dictionary(torch.from_numpy(self.best.get("dictionary", learner.dictionary)))

    def _fit_module(self, module: CompresSAEModule, saved: Stored | None) -> None:
        """Trains the encoder, and the decoder too unless dictionary learning has made it."""
        config, total = self.config, self.config.steps
        frozen = config.refine_rounds > 0
        optimizer, schedule = self._optimizer(module, frozen)
        state = ModuleState(module, optimizer, schedule)
        fired = torch.zeros(self.n_latents, device=self.device)
        if saved is not None and saved.meta["stage"] == "steps":
            self._restore(state, fired, saved)
        batches = _Batches(self.rows, config.batch_size, (config.seed, 4))
        start = len(self.losses)
        if start == 0:
            self._look_at(module, 0)
        with track(total, "training", enabled=self.progress, unit="steps") as advance:
            advance(start)
            for step in range(start, total):
                if self._out_of_patience():
                    break
                batch = torch.from_numpy(batches[step]).to(self.device)
                self._step(module, optimizer, batch, fired)
                schedule.step()
                advance(1)
                due = step < REVIVE_UNTIL * total and fired.sum() >= REVIVE_AFTER * self.n_latents
                if not frozen and due:
                    module.revive(optimizer, batch, fired)
                    fired.zero_()
                if _is_check(step + 1, total):
                    self._look_at(module, step + 1)
                    self._save("steps", state.arrays() | {"fired": fired.cpu().numpy()})
        if not frozen:
            self._check_progress()
        if "encoder_w" in self.best:
            module.load_state_dict({name: torch.from_numpy(self.best[name]) for name in module.state_dict()})

    def _optimizer(
        self, module: CompresSAEModule, frozen: bool
    ) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
        """Adam with its schedule; a frozen decoder stays as it is."""
        config = self.config
        module.decoder_w.requires_grad_(not frozen)
        rate = (ENCODER_LEARNING_RATE if frozen else LEARNING_RATE) / math.sqrt(self.rows.shape[1])
        optimizer = torch.optim.Adam(
            [p for p in module.parameters() if p.requires_grad],
            lr=rate if config.learning_rate is None else config.learning_rate,
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))

    def _restore(self, state: ModuleState, fired: torch.Tensor, saved: Stored) -> None:
        """Resumes from a checkpoint: sets `state`, and `fired`, (n_latents,) uses, which is zero.

        Raises:
            FormatError: the checkpoint is damaged.
        """
        assert self._checkpoint is not None
        with self._checkpoint.reading():
            state.restore(saved.arrays)
            uses = saved_like(saved.arrays, "fired", fired.cpu().numpy())
            fired += torch.from_numpy(uses).to(self.device)

    def _step(
        self,
        module: CompresSAEModule,
        optimizer: torch.optim.Optimizer,
        batch: torch.Tensor,
        fired: torch.Tensor,
    ) -> None:
        """One step of training, whose loss is noted.

        Raises:
            TrainingError: the loss is not finite.
        """
        losses = module.train_step(optimizer, batch, fired)
        self.losses.append(float(losses.total.detach()))
        if not math.isfinite(self.losses[-1]):
            step = len(self.losses) - 1
            msg = f"the loss is {self.losses[-1]} at step {step}; try a smaller learning_rate"
            raise TrainingError(msg)

    def _check_progress(self) -> None:
        held_out = [check.loss for check in self.checks if check.stage == "steps"]
        if len(held_out) > self.config.patience and min(held_out) == held_out[0] > GOOD_LOSS:
            msg = (
                f"training got nowhere: the held-out loss was {held_out[0]:.4g} at first and "
                f"{held_out[-1]:.4g} after {len(self.losses)} steps; try a smaller learning_rate"
            )
            raise TrainingError(msg)

    def _look_at(self, module: CompresSAEModule, after: int) -> None:
        if len(self.held_out):
            loss = module.held_out_loss(torch.from_numpy(self.held_out).to(self.device))
            self._look("steps", after, loss, **module.arrays())

    def _look(self, stage: str, after: int, loss: float, **weights: FloatArray) -> None:
        """Records the loss of the held-out rows; keeps the weights if they are the best of their stage."""
        earlier = [check.loss for check in self.checks if check.stage == stage]
        self.checks.append(Check(stage, after, loss))
        if not math.isfinite(loss) or (earlier and loss > DIVERGED * earlier[0] + SLACK):
            msg = (
                f"training diverged: the held-out loss is {loss:.4g} after {after} {stage}, and was "
                f"{earlier[0] if earlier else math.nan:.4g} at first; try a smaller learning_rate"
            )
            raise TrainingError(msg)
        if not earlier or loss < min(earlier):
            self.best = {name: array.copy() for name, array in weights.items()}

    def _out_of_patience(self) -> bool:
        losses = [check.loss for check in self.checks if check.stage == "steps"]
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience

    def _identity(self) -> dict[str, Any]:
        """Settings and rows, which a checkpoint must share with this run."""
        digest = hashlib.sha256(self.rows.tobytes()).hexdigest()[:32]
        start = {} if self.start is None else {"start": self.start.fingerprint}
        round_rows = self.config.rows_a_round(self.n_latents)
        sizes = {"k": self.k, "n_latents": self.n_latents, "round_rows": round_rows}
        return {**asdict(self.config), **sizes, "rows": digest, **start}

    def _save(self, stage: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if self._checkpoint is None:
            return
        meta = {"stage": stage, "rounds": self.rounds, "losses": self.losses, "checks": self.checks}
        best = {f"best.{name}": array for name, array in self.best.items()}
        self._checkpoint.save(meta, {**arrays, **best})


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


def _is_check(done: int, total: int) -> bool:
    """Whether one of the CHECKS checks is due after `done` of `total`."""
    return done * CHECKS // total > (done - 1) * CHECKS // total


def _bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
