"""How many latents to spend a budget on: more tell vectors apart by fewer nonzeros, but take bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compressae_index.building.planning import (
    BUDGETS,
    FEWEST_LATENTS,
    PLANNING_STEPS,
    Budget,
    Plan,
    Shared,
    Trial,
    smallest_code,
)
from compressae_index.building.training import ModelSource
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.progress import track
from compressae_index.sources import Vectors
from compressae_index.sources.sample import unit_sample

# Rounds of training before sizes are compared. Of twice as many latents, each learns from half as many rows:
# much shorter trainings favour small dictionaries.
ROUNDS = 16
# Sizes are left for better ones: less is chance among the neighbours of a trial, and briefly trained small
# dictionaries look better than they will be beside large ones.
GAIN = 0.01
# The first size takes at most this share of a budget; of the smallest, where a recall is to be reached.
FIRST_SHARE = 0.25


def weighed(
    source: ModelSource,
    vectors: Vectors,
    budget: Budget,
    shared: Shared,
    encoder: Encoder,
    trial_of: Callable[[CompresSAE], Trial],
    *,
    num_threads: int,
    progress: bool,
) -> tuple[ModelSource, int]:
    """The same source, for as many latents as find the most neighbours within the budget, and its nonzeros.

    Starts near the size that the number of vectors suggests, and halves or doubles it for as long as a brief
    training of the next size is clearly better with as many bytes in the same form. Sizes are powers of two.

    Args:
        source: settings of training, which leave the size open.
        vectors: (n, d), to train on a sample of.
        budget: bytes, or a recall to reach.
        shared: what vectors share.
        encoder: how vectors become codes.
        trial_of: measures the plans of a model.
        num_threads: threads to train with.
        progress: show progress bars.
    """
    brief, n_read = source.brief(ROUNDS, vectors.shape[0])
    largest = 2 * brief.sizes(vectors, encoder, budget.training_k)[1]
    # As many as the rounds read, and enough to start the largest dictionary from.
    rows = unit_sample(vectors, max(n_read, 2 * largest), np.random.default_rng(0))

    def briefly_trained(n_latents: int) -> Trial:
        sized = brief.with_latents(n_latents)
        k, _ = sized.sizes(vectors, encoder, budget.training_k)
        return trial_of(sized.model_for(rows, k, num_threads=num_threads, progress=progress).model)

    first = _first(largest // 2, shared, budget.bytes_per_vector or BUDGETS[0])
    trial = briefly_trained(first)
    plan = _planned(trial, budget, progress)

    def worth(trial: Trial) -> float:
        alike = None if plan is None else trial.alike(plan)
        return 0.0 if alike is None else trial.worth(alike)

    most = min(largest, len(rows) // 2)
    best = _climbed(first, worth(trial), lambda n_latents: worth(briefly_trained(n_latents)), most)
    source = source.with_latents(best)
    if plan is not None and not plan.residual_bits and not trial.by_originals:
        source = source.for_codes_alone(best)
    return source, source.sizes(vectors, encoder, budget.training_k)[0]


def _planned(trial: Trial, budget: Budget, progress: bool) -> Plan | None:
    """The plan within a budget, or near a recall."""
    size = budget.bytes_per_vector
    if size is None:
        plan, _ = trial.nearest_to(budget.target_recall or 0.0, progress)
        size = BUDGETS[-1] if plan is None else plan.bytes_per_vector
    label = f"planning for {trial.model.n_latents:,} latents"
    with track(PLANNING_STEPS, label, enabled=progress, unit="steps") as advance:
        return trial.best_within(size, advance)


def _first(n_latents: int, shared: Shared, size: float) -> int:
    """The largest power of two, up to n_latents, that leaves most of a budget to the codes."""

    def leaves_most(n_latents: int) -> bool:
        overhead, left = shared.overhead(n_latents), size - shared.id_bytes
        fits = overhead + smallest_code(n_latents) <= size
        return fits and overhead - shared.id_bytes <= FIRST_SHARE * left

    power = 1 << n_latents.bit_length() - 1
    while power > FEWEST_LATENTS and not leaves_most(power):
        power //= 2
    return power


def _climbed(first: int, worth: float, worth_of: Callable[[int], float], most: int) -> int:
    """The best of sizes in one direction from the first, as far as each is better than the one before."""
    best = first
    for factor in (0.5, 2.0):
        while FEWEST_LATENTS <= (following := int(factor * best)) <= most:
            other = worth_of(following)
            if other <= worth + GAIN:
                break
            best, worth = following, other
        if best != first:
            break
    return best
