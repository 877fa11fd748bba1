"""A budget instead of knobs: chooses nonzeros, bits and postings by the recall of held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_number
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Packed
from compressae_index.embedded.sizes import POSTING_BYTES, list_overhead
from compressae_index.errors import InputError
from compressae_index.progress import track
from compressae_index.search.recall import recall
from compressae_index.sources import Vectors
from compressae_index.sources.sample import unit_sample

SAMPLE_ROWS, QUERIES = 12_000, 300
# Settings to try: all postings with the first bits, then the other bits with the best postings.
POSTINGS = (4, 6, 8, 12, 16, 24)
VALUE_BITS = (5, 4, 6)
# Budgets to search for a target recall.
BUDGETS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 512)
# Candidates per neighbour: 10, like 1,000 candidates for recall@100.
CANDIDATES_PER_NEIGHBOUR = 10


class Plan(NamedTuple):
    """What to store of each vector, and the recall to expect."""

    k: int
    """Nonzeros a code."""
    value_bits: int
    """Bits of a packed value."""
    postings: int
    """Nonzeros of a code in the posting lists."""
    bytes_per_vector: float
    """Bytes of all that `two_stage` keeps resident: packed codes, posting lists, ids."""
    recall: float
    """Expected recall@100 of `two_stage` with 1,000 candidates, measured on held-out rows of a sample."""
    dense_recall: float
    """Expected recall@100 of `dense`."""


@dataclass(frozen=True)
class Budget:
    """Resident bytes a vector for `two_stage`, ids included, or a recall@100 to reach with the fewest.

    Raises:
        InputError: neither or both are given, or one is out of range.
    """

    bytes_per_vector: float | None = None
    target_recall: float | None = None

    def __post_init__(self) -> None:
        size, recall = self.bytes_per_vector, self.target_recall
        if (size is None) == (recall is None):
            msg = "give bytes_per_vector or target_recall" + (", not both" if size is not None else "")
            raise InputError(msg)
        if size is not None and not 0 < check_number(size, "bytes_per_vector") < math.inf:
            msg = f"bytes_per_vector must be positive and finite, got {size}"
            raise InputError(msg)
        if recall is not None and not 0 < check_number(recall, "target_recall") < 1:
            msg = f"target_recall must be between 0 and 1, got {recall}"
            raise InputError(msg)

    @classmethod
    def of(
        cls, bytes_per_vector: float | None, target_recall: float | None, forward: str, **decided: int | None
    ) -> Budget | None:
        """The budget that a caller gives, or None.

        Args:
            bytes_per_vector: see the class.
            target_recall: see the class.
            forward: the codec; a budget takes the packed one.
            decided: settings that a budget decides, which must be None then.

        Raises:
            InputError: as for the class, or a setting is given that the budget decides.
        """
        if bytes_per_vector is None and target_recall is None:
            return None
        budget = cls(bytes_per_vector, target_recall)
        for name, value in decided.items():
            if value is not None:
                msg = f"{name} = {value} cannot be given with a budget, which decides it"
                raise InputError(msg)
        if forward != "packed":
            msg = f"forward = {forward!r} cannot be given with a budget, which packs codes"
            raise InputError(msg)
        return budget

    @property
    def training_k(self) -> int:
        """Nonzeros to train a model with, before a plan: about as many as the budget will hold."""
        return 48 if self.bytes_per_vector is None else int(min(max(self.bytes_per_vector / 3, 1), 64))

    def check_room(self, n_latents: int, n: int, id_bytes: float) -> None:
        """Checks that the smallest code fits.

        Args:
            n_latents: size of the dictionary.
            n: vectors, which share the overhead of the posting lists.
            id_bytes: bytes of ids a vector.

        Raises:
            InputError: with the smallest budget that would do.
        """
        overhead = list_overhead(n_latents, n) + id_bytes
        code = Packed(min(VALUE_BITS)).row_bytes(n_latents, 1) + POSTING_BYTES
        if self.bytes_per_vector is not None and self.bytes_per_vector < overhead + code:
            least = math.ceil(10 * (overhead + code)) / 10
            msg = (
                f"bytes_per_vector = {self.bytes_per_vector:g} holds no code: posting lists and ids alone "
                f"take {overhead:.1f} bytes a vector here, codes at least {code} more; the least is {least:g}"
            )
            raise InputError(msg)


def choose(
    model: CompresSAE,
    vectors: Vectors,
    budget: Budget,
    *,
    id_bytes: float = 0.0,
    encoder: Encoder = "pursuit",
    num_threads: int = 1,
    progress: bool = False,
) -> Plan:
    """The plan with the best recall within a budget, or with the smallest budget that reaches a recall.

    Args:
        model: the model that encodes.
        vectors: (n, d); a sample of them is read.
        budget: the bytes, or the recall.
        id_bytes: bytes of ids a vector.
        encoder: how vectors become codes.
        num_threads: threads to encode and search with.
        progress: show a progress bar.

    Raises:
        InputError: the budget is too small for any code (with the smallest that would do), or no budget
            reaches the recall (with the highest recall reached).
    """
    budget.check_room(model.n_latents, vectors.shape[0], id_bytes)
    trial = _Trial(model, vectors, id_bytes, encoder, num_threads)
    if budget.bytes_per_vector is None:
        return trial.smallest_reaching(budget.target_recall or 0.0, progress)
    n_trials = len(POSTINGS) + len(VALUE_BITS) - 1
    with track(n_trials, "planning", enabled=progress, unit="trials") as advance:
        plan = trial.best_within(budget.bytes_per_vector, advance)
    assert plan is not None, "there is room for a code"
    return plan


def measured(
    model: CompresSAE,
    vectors: Vectors,
    k: int,
    value_bits: int,
    postings: int,
    *,
    id_bytes: float = 0.0,
    encoder: Encoder = "pursuit",
    num_threads: int = 1,
) -> Plan:
    """A given plan with its expected recall; arguments as for `choose`."""
    return _Trial(model, vectors, id_bytes, encoder, num_threads).plan(k, value_bits, postings)


class _Trial:
    """Measures plans on a sample: some rows are queries, the others are searched."""

    def __init__(
        self, model: CompresSAE, vectors: Vectors, id_bytes: float, encoder: Encoder, num_threads: int
    ) -> None:
        n = vectors.shape[0]
        sample = unit_sample(vectors, SAMPLE_ROWS + QUERIES, np.random.default_rng(0))
        held_out = np.random.default_rng(1).permutation(len(sample))[
            : min(QUERIES, max(len(sample) // 10, 1))
        ]
        self.queries = sample[held_out]
        # With a single row, the query is that row.
        self.rows = np.delete(sample, held_out, axis=0) if len(sample) > 1 else sample
        self.model, self.encoder, self.threads = model, encoder, num_threads
        # Neighbours to count in the sample: the last is about as far away as the 100th among n.
        share = len(self.rows) / n
        self.top = min(max(round(100 * share), 10), len(self.rows))
        order = np.argsort(-(self.queries @ self.rows.T), axis=1, kind="stable")
        self.truth = order[:, : self.top]
        self.projections: FloatArray = model.project(self.queries)
        self.overhead = list_overhead(model.n_latents, n) + id_bytes
        self._codes: dict[int, SparseCodes] = {}

    def best_within(self, budget: float, advance: object = None) -> Plan | None:
        """The plan with the best recall, or None if not even one nonzero fits."""
        best: Plan | None = None
        tried: set[tuple[int, int]] = set()
        for bits in VALUE_BITS:
            for postings in POSTINGS if best is None else (best.postings,):
                if (bits, postings) in tried:
                    continue
                tried.add((bits, postings))
                plan = self._fitting(budget, bits, postings)
                if plan is not None and (best is None or plan.recall > best.recall):
                    best = plan
                if callable(advance):
                    advance(1)
        return best

    def smallest_reaching(self, target: float, progress: bool) -> Plan:
        """The plan of the smallest of BUDGETS that reaches the target."""
        plans: dict[float, Plan | None] = {}
        # With few vectors or long ids, the overhead of lists and ids alone exceeds some of BUDGETS.
        shared = self.overhead if self.overhead > BUDGETS[0] else 0
        budgets = [budget + shared for budget in BUDGETS]

        def reaches(budget: float) -> bool:
            plans[budget] = self.best_within(budget)
            plan = plans[budget]
            return plan is not None and plan.recall >= target

        low, high = 0, len(budgets)
        with track(
            math.ceil(math.log2(len(budgets))) + 1, "planning", enabled=progress, unit="budgets"
        ) as advance:
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if reaches(budgets[middle]) else (middle + 1, high)
                advance(1)
        if low == len(budgets):
            reached = max((plan.recall for plan in plans.values() if plan is not None), default=0.0)
            msg = (
                f"target_recall = {target} is out of reach: {budgets[-1]:.0f} bytes a vector reach "
                f"{reached:.3f}; a larger n_latents or a longer training may reach more"
            )
            raise InputError(msg)
        plan = plans[budgets[low]]
        assert plan is not None
        return plan

    def _fitting(self, budget: float, bits: int, postings: int) -> Plan | None:
        """The most nonzeros that fit, measured."""
        codec, h, k = Packed(bits), self.model.n_latents, 0
        # With more nonzeros than half the dimension, a code is larger than plain scalar quantisation.
        while k < min(h, max(self.model.dim // 2, 1)):
            kept = min(postings, k + 1)
            if codec.row_bytes(h, k + 1) + POSTING_BYTES * kept + self.overhead > budget:
                break
            k += 1
        if k == 0 or (k < postings and postings > min(POSTINGS)):
            return None
        return self.plan(k, bits, min(postings, k))

    def plan(self, k: int, bits: int, postings: int) -> Plan:
        """A plan of these settings, with its measured recall."""
        size = Packed(bits).row_bytes(self.model.n_latents, k) + POSTING_BYTES * postings + self.overhead
        return Plan(k, bits, postings, size, *self._measure(k, bits, postings))

    def _measure(self, k: int, bits: int, postings: int) -> tuple[float, float]:
        """Recall of `two_stage` and `dense` on the sample."""
        if k not in self._codes:
            codes = self.model.encode(self.rows, k, encoder=self.encoder, num_threads=self.threads)
            self._codes[k] = self.model.fold(codes, num_threads=self.threads)
        empty = EmbeddedBackend(self.model.n_latents, k, Packed(bits), postings=postings)
        backend = empty.added([Encoded(self._codes[k])], self.threads, self.model)
        candidates = min(CANDIDATES_PER_NEIGHBOUR * self.top, len(self.rows))
        u = self.projections
        _, found = backend.two_stage(u, u, backend.query_nnz, candidates, self.top, None, self.threads)
        _, dense = backend.dense(u, self.top, None, self.threads)
        return recall(found, self.truth, self.top), recall(dense, self.truth, self.top)
