"""Bytes, time and recall of an index, estimated from a sample before any long work."""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.building.latents import weighed
from compressae_index.building.neighbourhoods import neighbourhoods
from compressae_index.building.planning import Intent, Knobs, Plan, Shared, Trial, choose
from compressae_index.building.training import ModelSource, rounds_for_codes, training_settings
from compressae_index.checks import check_choice, check_threads
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.coding.model import CompresSAE
from compressae_index.coding.points import points_of
from compressae_index.embedded.codecs.lengths import NORM_BYTES
from compressae_index.embedded.sizes import dictionary_bytes
from compressae_index.sources import VectorSource, open_vectors
from compressae_index.sources.sample import unit_sample
from compressae_index.training import TrainConfig

SAMPLE_ROWS = 49_152
TIMED_ROWS = 4096


class Estimate(NamedTuple):
    """Sizes in bytes and durations in seconds, on this machine."""

    vectors: int
    dim: int
    n_latents: int
    plan: Plan
    """How each vector would be stored. Its recall is on the low side, as real training takes longer."""
    float32_bytes: int
    index_bytes: int
    """Resident for `two_stage`, without the model."""
    model_bytes: int
    """Resident for searches: a byte an entry of the dictionary; encoding takes more."""
    train_seconds: float
    """With the default preset."""
    encode_seconds: float


def estimate(
    embeddings: VectorSource,
    *,
    k: int | None = None,
    n_latents: int | None = None,
    metric: Metric = "cosine",
    value_bits: int | None = None,
    postings: int | None = None,
    residual_bits: int | None = None,
    bytes_per_vector: float | None = None,
    target_recall: float | None = None,
    num_threads: int | None = None,
    progress: bool = False,
) -> Estimate:
    """Trains briefly on a sample of the embeddings and extrapolates.

    Takes less than a minute, and the time to read all vectors once.

    Args:
        embeddings: as for `CompressedIndex.build`, like all other arguments.
        k: nonzeros a code.
        n_latents: size of the dictionary.
        metric: what scores are.
        value_bits: bits of a packed value.
        postings: nonzeros of a code that the posting lists keep, on average.
        residual_bits: bits a dimension of residual codes.
        bytes_per_vector: a budget, in place of these four.
        target_recall: a recall@10 to reach, in place of these four.
        num_threads: threads to train and encode with; all by default.
        progress: show progress bars.

    Raises:
        InputError: before any training, a setting of another type or out of range, or a budget too small for
            any code; bad rows.
    """
    knobs = Knobs.checked("packed", k, value_bits, postings, residual_bits, originals=False)
    budget = knobs.budget(bytes_per_vector, target_recall)
    threads = check_threads(num_threads)
    check_choice(metric, "metric", METRICS)
    config = TrainConfig.preset("fast", k=k, n_latents=n_latents, steps=0)
    source = ModelSource(None, training_settings(None, None, config, metric, "pursuit"), k)
    opened = open_vectors(embeddings, zeros=metric == "l2")
    (n, dim), sizes = opened.shape, partial(source.sizes, opened, "pursuit")
    sizes()  # before rows are read
    vectors, _, order = points_of(opened, metric, None, centers=source.centers, progress=progress)
    norm_bytes = 0
    if order == "l2":
        check_room_for_norms(sizes()[1])
        source, norm_bytes = source.without_center(), NORM_BYTES
    shared = Shared(n, dim, id_bytes=0.0, counts_dictionary=True, norm_bytes=norm_bytes)
    knobs, budget, weighs_latents = Intent.of(knobs, budget, shared, sizes, latents_open=source.latents_open)
    near = neighbourhoods(vectors, order, progress=progress)
    trial_of = partial(Trial, near=near, shared=shared, encoder="pursuit", num_threads=threads)
    if budget is not None and weighs_latents:
        source, k = weighed(
            source, vectors, budget, shared, "pursuit", trial_of, num_threads=threads, progress=progress
        )
        knobs = knobs.with_nonzeros(k)
    _, latents = source.sizes(vectors, "pursuit", knobs.k)
    sample = unit_sample(vectors, max(SAMPLE_ROWS, 2 * latents), np.random.default_rng(config.seed))
    started = time.perf_counter()
    model = (
        source.with_latents(latents).model_for(sample, knobs.k, num_threads=threads, progress=progress).model
    )
    round_seconds = (time.perf_counter() - started) / config.refine_rounds
    trial = trial_of(model)
    plan = trial.of_knobs(knobs) if budget is None else choose(trial, budget, progress=progress)
    rounds = TrainConfig().refine_rounds if plan.residual_bits else rounds_for_codes(latents)
    train_seconds = round_seconds * rounds
    return _extrapolated(model, plan, n, train_seconds, _seconds_a_row(model, plan.k, sample, threads))


def _seconds_a_row(model: CompresSAE, k: int, rows: FloatArray, threads: int) -> float:
    """Seconds to encode a row."""
    rows = rows[:TIMED_ROWS]
    started = time.perf_counter()
    model.encode(rows, k, num_threads=threads)
    return (time.perf_counter() - started) / len(rows)


def _extrapolated(
    model: CompresSAE, plan: Plan, n: int, train_seconds: float, seconds_a_row: float
) -> Estimate:
    """The estimate for n vectors."""
    return Estimate(
        vectors=n,
        dim=model.dim,
        n_latents=model.n_latents,
        plan=plan,
        float32_bytes=4 * n * model.dim,
        index_bytes=round(n * plan.bytes_per_vector) - dictionary_bytes(model.n_latents, model.dim),
        model_bytes=model.nbytes,
        train_seconds=train_seconds,
        encode_seconds=n * seconds_a_row,
    )
