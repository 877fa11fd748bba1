"""What a build decides before it encodes: the model, and what to store of each vector."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from compressae_index.building.latents import weighed
from compressae_index.building.neighbourhoods import Neighbourhoods
from compressae_index.building.planning import Intent, Knobs, Plan, Shared, Trial, choose
from compressae_index.building.training import ModelSource, Trained
from compressae_index.coding.model import Encoder
from compressae_index.sources import Vectors


class Decided(NamedTuple):
    """A model and the settings of its codes."""

    trained: Trained
    knobs: Knobs
    plan: Plan | None
    """What the budget chose; None without one."""


def decide(
    source: ModelSource,
    vectors: Vectors,
    intent: Intent,
    shared: Shared,
    near: Neighbourhoods | None,
    encoder: Encoder,
    *,
    by_originals: bool,
    num_threads: int,
    progress: bool,
) -> Decided:
    """Trains, unless a model is given, and plans, if there is a budget.

    Args:
        source: the model, or settings to train one with.
        vectors: (n, d).
        intent: what is to be decided.
        shared: what vectors share.
        near: the neighbourhoods of some of them; None only without a budget.
        encoder: how vectors become codes.
        by_originals: whether original vectors score the best documents again.
        num_threads: threads to train, encode and search with.
        progress: show progress bars.
    """
    knobs, budget = intent.knobs, intent.budget
    if budget is None or near is None:
        if not by_originals and not knobs.residual_bits:
            source = source.for_codes_alone(source.sizes(vectors, encoder, knobs.k)[1])
        return Decided(
            source.model_for(vectors, knobs.k, num_threads=num_threads, progress=progress), knobs, None
        )
    trial_of = partial(
        Trial, near=near, shared=shared, encoder=encoder, num_threads=num_threads, by_originals=by_originals
    )
    if intent.weighs_latents:
        source, k = weighed(
            source, vectors, budget, shared, encoder, trial_of, num_threads=num_threads, progress=progress
        )
        knobs = knobs.with_nonzeros(k)
    trained = source.model_for(vectors, knobs.k, num_threads=num_threads, progress=progress)
    plan = choose(trial_of(trained.model), budget, progress=progress)
    return Decided(trained, knobs.of_plan(plan), plan)
