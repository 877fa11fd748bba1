"""Training runs: the dictionary against pursuit codes, then the encoder by the paper's loss."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import as_path, check_choice, check_threads
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.coding.model import CompresSAE, check_is_model, from_mean
from compressae_index.coding.points import points_of
from compressae_index.errors import DimensionError, InputError, TrainingError
from compressae_index.sources import Vectors, open_vectors
from compressae_index.sources.sample import unit_sample
from compressae_index.training.checkpoint import check_place
from compressae_index.training.config import TrainConfig
from compressae_index.training.course import Check, Course, Round
from compressae_index.training.learning import first_atoms, learned

# Rounds that go on from a dictionary, and their rows, where a call does not say. Measured at 40,000 rows of
# package summaries (d = 256, k = 16), from a dictionary of these and WordNet's glosses, recall@100 0.832: 42
# rounds of 4,096 rows reach 0.862, as a whole training does in 2.7 times their time; 21 of 8,192 rows 0.853.
CONTINUED: dict[str, Any] = {"refine_rounds": 40, "round_rows": 4096, "steps": 0}
# The longest mean to subtract from unit rows. The mean of identical rows has their length, and would leave
# nothing of them to code.
LONGEST_MEAN = 1 - 2**-23


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
    num_threads: int | None = None,
    progress: bool = False,
) -> TrainResult:
    """Trains a model on embeddings. Its dictionary is `CompresSAE.rounded` at the end.

    Only steps, which train the encoder, need torch. They neither use nor change its global settings and
    random state, except for its number of threads, which affects the last digits.

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
        num_threads: threads of dictionary learning; all by default.
        progress: show progress bars.

    Raises:
        InputError: bad rows, another metric, more than 65,536 dimensions, k above the dimension, more latents
            than rows to initialise them from, or, beside norms, than 65,535, a missing device, a checkpoint
            of other settings; `start` has another dimension or n_latents, or there are no rounds to improve
            its dictionary in.
        FormatError: the checkpoint is damaged, or something else is there.
        StorageError: the checkpoint cannot be read or written.
        TrainingError: training diverged or collapsed, with the reason.
        MissingExtraError: there are steps, and torch is not installed.
    """
    config = checked_config(config) if start is None else continued(start, config)
    check_choice(metric, "metric", METRICS)
    path = None if checkpoint is None else as_path(checkpoint, "checkpoint")
    started = time.perf_counter()
    if path is not None:
        check_place(path)
    check_can_train(config)
    threads = check_threads(num_threads)
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
    course = Course(config, rows, held_out, sizes, start, path, progress=progress)
    model = _fitted(course, start, threads)
    if config.refine_rounds or config.steps:
        _check_alive(model, held_out if len(held_out) else rows[:1024])
    model = CompresSAE(model.encoder_w, model.encoder_b, model.decoder_w, model.k, mean).rounded()
    return TrainResult(
        model if center is None else model.centred_at(center),
        course.rounds,
        np.array(course.losses, np.float32),
        course.checks,
        time.perf_counter() - started,
        kept,
    )


def _fitted(course: Course, start: CompresSAE | None, num_threads: int) -> CompresSAE:
    """A model of rows less their mean, by rounds of dictionary learning and steps of the encoder."""
    config = course.config
    atoms = first_atoms(course) if start is None else start.decoder_w
    if config.refine_rounds:
        atoms = learned(course, atoms, num_threads)
    if not config.steps:
        return CompresSAE.of_dictionary(atoms, course.k)
    from compressae_index.training import steps

    is_random = not config.refine_rounds and config.initialization == "random"
    return steps.trained(course, None if is_random else atoms)


def check_can_train(config: TrainConfig) -> None:
    """Checks that what settings ask for can be done here.

    Raises:
        InputError: the device of the steps is unknown, or missing here.
        MissingExtraError: there are steps, and torch is not installed.
    """
    if config.steps:
        from compressae_index.training import steps

        steps.check_device(config.device)


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
    """Rows to train on and rows to check on; no row is held out if the dictionary needs all of them.

    `rows` are put in another order.
    """
    n = min(config.validation_rows, len(rows) // 10)
    if len(rows) - n < 2 * n_latents:
        n = 0
    held = np.sort(np.random.default_rng([config.seed, 1]).permutation(len(rows))[:n])
    held_out = rows[held]
    # The last rows take the places of those held out: the others need no copy.
    kept = len(rows) - n
    inside = held[held < kept]
    rows[inside] = np.delete(rows[kept:], held[len(inside) :] - kept, axis=0)
    return rows[:kept], held_out


def _check_alive(model: CompresSAE, rows: FloatArray) -> None:
    values = model.encode(rows).values
    if not np.abs(values).max(axis=1).all():
        msg = "training collapsed: some rows have no code at all; try a smaller learning_rate, or more rows"
        raise TrainingError(msg)
