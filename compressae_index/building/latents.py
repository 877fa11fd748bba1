"""How many latents to spend a budget on: more tell vectors apart by fewer nonzeros, but take bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from compressae_index.building.planning import (
    BUDGETS,
    FEWEST_LATENTS,
    PLANNING_STEPS,
    TIE,
    Budget,
    Shared,
    Trial,
)
from compressae_index.building.training import ModelSource
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.sizes import dictionary_bytes
from compressae_index.progress import track
from compressae_index.sources import Vectors
from compressae_index.sources.sample import unit_sample

# Rounds of training before sizes are compared. Of twice as many latents, each learns from half as many rows:
# much shorter trainings favour small dictionaries.
ROUNDS = 16
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
    progress: bool,
) -> tuple[ModelSource, int]:
    """The same source, for as many latents as find the most neighbours within the budget, and its nonzeros.

    Starts near the size that the number of vectors suggests, and halves or doubles it for as long as a brief
    training of the next size gives a better plan. Sizes are powers of two.

    Args:
        source: settings of training, which leave the size open.
        vectors: (n, d), to train on a sample of.
        budget: bytes, or a recall to reach.
        shared: what vectors share.
        encoder: how vectors become codes.
        trial_of: measures the plans of a model.
        progress: show progress bars.
    """
    brief = source.brief(ROUNDS)
    largest = 2 * brief.sizes(vectors, encoder, budget.training_k)[1]
    # As many as the rounds read, and enough to start the largest dictionary from.
    rows = unit_sample(vectors, max(ROUNDS * source.rows_a_round, 2 * largest), np.random.default_rng(0))

    def briefly_trained(n_latents: int) -> Trial:
        sized = brief.with_latents(n_latents)
        k, _ = sized.sizes(vectors, encoder, budget.training_k)
        return trial_of(sized.model_for(rows, k, progress=progress))

    size = budget.bytes_per_vector
    first = _first(largest // 2, shared, BUDGETS[0] if size is None else size)
    trial = briefly_trained(first)
    if size is None:
        plan, _ = trial.nearest_to(budget.target_recall or 0.0, progress)
        size = BUDGETS[-1] if plan is None else plan.bytes_per_vector

    def worth(trial: Trial) -> float:
        label = f"planning for {trial.model.n_latents:,} latents"
        with track(PLANNING_STEPS, label, enabled=progress, unit="steps") as advance:
            plan = trial.best_within(size, advance)
        return 0.0 if plan is None else trial.worth(plan)

    most = min(largest, len(rows) // 2)
    best = _climbed(first, worth(trial), lambda n_latents: worth(briefly_trained(n_latents)), most)
    source = source.with_latents(best)
    return source, source.sizes(vectors, encoder, budget.training_k)[0]


def _first(n_latents: int, shared: Shared, size: float) -> int:
    """The largest power of two, up to n_latents, that leaves most of a budget to the codes."""
    fitting = int(FIRST_SHARE * size * shared.n // dictionary_bytes(1, shared.dim))
    return max(1 << max(min(n_latents, fitting), 1).bit_length() - 1, FEWEST_LATENTS)


def _climbed(first: int, worth: float, worth_of: Callable[[int], float], most: int) -> int:
    """The best of sizes in one direction from the first, as far as each is better than the one before."""
    best = first
    for n_latents in _halved(first):
        if (smaller := worth_of(n_latents)) < worth - TIE:
            break
        best, worth = n_latents, max(worth, smaller)
    if best == first:
        while 2 * best <= most and (larger := worth_of(2 * best)) > worth + TIE:
            best, worth = 2 * best, larger
    return best


def _halved(n_latents: int) -> Iterator[int]:
    while n_latents // 2 >= FEWEST_LATENTS:
        n_latents //= 2
        yield n_latents
