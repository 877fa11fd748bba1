"""A budget instead of knobs: chooses what to store of each vector by the recall that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from compressae_index._engine import DAMPING, UNSEEN
from compressae_index.arrays import BoolArray, FloatArray
from compressae_index.building.neighbourhoods import Neighbourhoods
from compressae_index.checks import check_int, check_number, check_threads
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.coding.residual import RESIDUAL_BITS, check_residual_bits, make_room
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Codec, CodecName, codec_of
from compressae_index.embedded.codecs.packed import VALUE_BITS as VALUE_BITS_ALONE
from compressae_index.embedded.sizes import POSTING_BYTES, dictionary_bytes, list_overhead
from compressae_index.embedded.thinning import above_threshold, thinned, threshold_for
from compressae_index.errors import InputError
from compressae_index.progress import track
from compressae_index.search.frontier import NEIGHBOURS
from compressae_index.search.queries import LISTED_SHARE, REFINE, REFINE_PER_K
from compressae_index.search.stages import strongest_terms

# The default budget: so many bytes, or so many for each dimension, an eighth of float32, if that is more.
DEFAULT_BYTES, DEFAULT_BYTES_PER_DIM = 200, 0.5
# Fewer rows than this get fixed settings.
FEWEST_ROWS = 256
# Smaller dictionaries are not tried; one trained on few vectors may still be smaller.
FEWEST_LATENTS = 64
# Queries whose neighbourhoods are ranked by plans.
RANKED = 64
# Steps of a plan that a progress bar shows: forms of codes, then postings.
PLANNING_STEPS = 2
# Neighbours of each that forms of codes are compared by.
MANY_NEIGHBOURS = 50
# Postings of a code to begin with, and others to try with the best codes.
FIRST_POSTINGS, POSTINGS = 8, (4, 6, 12, 16)
# Bits of a value to try; residual codes make up for what the fewest round away.
VALUE_BITS, VALUE_BITS_WITH_RESIDUAL = (5, 4, 6), 4
# The fewest and the most nonzeros to store residual codes beside, and the most without: more take long to
# encode.
FEWEST_NONZEROS, MODEST_NONZEROS, MOST_NONZEROS = 8, 32, 128
# Fewer bits of residuals do not take the place of nonzeros, so that many of these are tried too.
ENOUGH_RESIDUAL_BITS = 3
# Nonzeros next to original vectors, without a budget, and to train for in builds without any settings.
FEW_NONZEROS = 16
# Training for more nonzeros takes longer, and most budgets hold residual codes in their place.
MOST_TRAINED_NONZEROS = 24
# More nonzeros are not encoded to measure posting lists, which hold the strongest.
LISTED_NONZEROS = 32
# Fewer nonzeros, which encode faster, are chosen for a loss of recall that is too small to measure.
TIE = 0.005
# Budgets to search for a target recall.
BUDGETS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 512, 640, 768, 1024)
# Candidates and latents of the query by which plans find neighbours.
FOUND_CANDIDATES, FOUND_BY_LATENTS = 3000, 256


class Plan(NamedTuple):
    """What to store of each vector, and the recall to expect."""

    k: int
    """Nonzeros a code."""
    value_bits: int
    """Bits of a packed value."""
    postings: int
    """Nonzeros of a code in the posting lists."""
    bytes_per_vector: float
    """Resident bytes of `two_stage`: packed codes, residual codes, posting lists, ids, and the share of a
    dictionary that was trained for them."""
    recall: float
    """Expected recall@10 of `two_stage` with 3,000 candidates by 256 latents."""
    dense_recall: float
    """Expected recall@10 of `dense`: among all rows, by the exact neighbours of some of them."""
    residual_bits: int = 0
    """Bits a dimension of residual codes."""
    n_latents: int = 0
    """Size of the dictionary."""


@dataclass(frozen=True)
class Budget:
    """Resident bytes a vector for `two_stage`, or a recall@10 to reach with the fewest.

    Ids count, and a dictionary that is trained for the vectors.

    Raises:
        InputError: neither or both are given, or one is out of range.
    """

    bytes_per_vector: float | None = None
    target_recall: float | None = None

    def __post_init__(self) -> None:
        size, target = self.bytes_per_vector, self.target_recall
        if (size is None) == (target is None):
            msg = "give bytes_per_vector or target_recall" + (", not both" if size is not None else "")
            raise InputError(msg)
        if size is not None and not 0 < check_number(size, "bytes_per_vector") < math.inf:
            msg = f"bytes_per_vector must be positive and finite, got {size}"
            raise InputError(msg)
        if target is not None and not 0 < check_number(target, "target_recall") < 1:
            msg = f"target_recall must be between 0 and 1, got {target}"
            raise InputError(msg)

    @classmethod
    def default(cls, dim: int, overhead: float) -> Budget:
        """The budget of a build without any settings, for vectors of `dim` dimensions.

        Args:
            dim: d.
            overhead: bytes a vector that no setting changes (`Shared`): few vectors share them.
        """
        return cls(max(DEFAULT_BYTES, DEFAULT_BYTES_PER_DIM * dim) + overhead)

    @property
    def training_k(self) -> int:
        """Nonzeros to train a model with, before a plan: about as many as the budget will hold."""
        most = MOST_TRAINED_NONZEROS
        return most if self.bytes_per_vector is None else int(min(max(self.bytes_per_vector / 3, 1), most))

    def check_room(self, n_latents: int, overhead: float) -> None:
        """Checks that the smallest code fits.

        Args:
            n_latents: size of the dictionary.
            overhead: bytes a vector that no setting changes (`Shared`).

        Raises:
            InputError: with the smallest budget that would do.
        """
        code = smallest_code(n_latents)
        if self.bytes_per_vector is not None and self.bytes_per_vector < overhead + code:
            least = math.ceil(10 * (overhead + code)) / 10
            msg = (
                f"bytes_per_vector = {self.bytes_per_vector:g} holds no code: posting lists, ids and a "
                f"dictionary to train take {overhead:.1f} bytes a vector here, codes at least {code} more; "
                f"the least is {least:g}"
            )
            raise InputError(msg)


def smallest_code(n_latents: int) -> int:
    """Bytes of the smallest code and its posting."""
    return codec_of("packed", value_bits=min(VALUE_BITS)).row_bytes(n_latents, 1) + POSTING_BYTES


class Knobs(NamedTuple):
    """What to store of each vector, as far as a caller says so; None is open."""

    forward: CodecName
    k: int | None
    value_bits: int | None
    postings: int | None
    residual_bits: int | None
    originals: bool
    """Whether original vectors are kept, too."""

    @classmethod
    def checked(
        cls,
        forward: CodecName,
        k: int | None,
        value_bits: int | None,
        postings: int | None,
        residual_bits: int | None,
        *,
        originals: bool,
    ) -> Knobs:
        """As `CompressedIndex.build` takes them.

        Raises:
            InputError: one is of another type or out of range, or residual codes next to original vectors.
        """
        codec_of(forward, value_bits=VALUE_BITS_ALONE if value_bits is None else value_bits)
        if postings is not None:
            check_int(postings, "postings", 1)
        if residual_bits is not None and check_residual_bits(residual_bits) and originals:
            msg = "residual_bits cannot be given with originals, which say all that residual codes could"
            raise InputError(msg)
        return cls(forward, k, value_bits, postings, residual_bits, originals)

    @property
    def are_open(self) -> bool:
        """Whether a caller says nothing of codes."""
        return self == Knobs("packed", None, None, None, None, originals=self.originals)

    def few(self) -> Knobs:
        """Few bytes, which are enough where original vectors score the best documents again."""
        return self._replace(k=FEW_NONZEROS, value_bits=VALUE_BITS[0], postings=FIRST_POSTINGS)

    def budget(self, bytes_per_vector: float | None, target_recall: float | None) -> Budget | None:
        """The budget that decides what is open, if there is one.

        Raises:
            InputError: as for `Budget`, or a setting is given that the budget decides.
        """
        if bytes_per_vector is None and target_recall is None:
            return None
        budget = Budget(bytes_per_vector, target_recall)
        for name in ("k", "value_bits", "postings", "residual_bits"):
            if (value := getattr(self, name)) is not None:
                msg = f"{name} = {value} cannot be given with a budget, which decides it"
                raise InputError(msg)
        if self.forward != "packed":
            msg = f"forward = {self.forward!r} cannot be given with a budget, which packs codes"
            raise InputError(msg)
        return budget

    def with_nonzeros(self, k: int) -> Knobs:
        """With the nonzeros of the model.

        Raises:
            InputError: postings are more than these.
        """
        if self.postings is not None and self.k in (None, k):
            check_int(self.postings, "postings", 1, k, "k")
        return self._replace(k=k, postings=None if self.postings is None else min(self.postings, k))

    def of_plan(self, plan: Plan) -> Knobs:
        """Those of a plan."""
        chosen = {name: getattr(plan, name) for name in ("k", "value_bits", "postings", "residual_bits")}
        return self._replace(**chosen)

    @property
    def nonzeros(self) -> int:
        """Nonzeros a code, once they are known."""
        assert self.k is not None
        return self.k

    def codec(self, dim: int, *, norms: bool = False) -> Codec:
        """The codec of these settings, for vectors of `dim` dimensions, whose norms it keeps or not."""
        bits = VALUE_BITS_ALONE if self.value_bits is None else self.value_bits
        residual_bits = self.residual_bits or 0
        return codec_of(self.forward, value_bits=bits, dim=dim, residual_bits=residual_bits, norms=norms)


class Shared(NamedTuple):
    """What vectors share, whatever is stored of each."""

    n: int
    """Vectors."""
    dim: int
    id_bytes: float
    """Bytes of an id."""
    counts_dictionary: bool
    """Whether a dictionary is trained for these vectors alone; one that is given serves others, too."""
    norm_bytes: int = 0
    """Bytes of a norm, where these are kept beside codes."""
    by_originals: bool = False
    """Whether original vectors give the scores."""

    def overhead(self, n_latents: int) -> float:
        """Bytes a vector that no other setting changes: offsets of posting lists, ids, norms, dictionary."""
        vector = list_overhead(n_latents, self.n) + self.id_bytes + self.norm_bytes
        if not self.counts_dictionary:
            return vector
        return vector + dictionary_bytes(n_latents, self.dim, by_originals=self.by_originals) / self.n


class Intent(NamedTuple):
    """What a build is to do."""

    knobs: Knobs
    """With the nonzeros to train for; a plan may change them."""
    budget: Budget | None
    """What a plan is to fit, if one is to be made."""
    weighs_latents: bool
    """Whether the budget is the caller's, who leaves the size of the dictionary to it."""

    @classmethod
    def of(
        cls,
        knobs: Knobs,
        budget: Budget | None,
        shared: Shared,
        sizes: Callable[[int | None], tuple[int, int]],
        *,
        is_open: bool = True,
        latents_open: bool = False,
    ) -> Intent:
        """Settles what a caller leaves open: a plain build has the default budget, or few bytes by originals.

        Args:
            knobs: what the caller says of codes.
            budget: the caller's budget.
            shared: the vectors that are kept.
            sizes: nonzeros and latents to train, for a number of nonzeros that is wanted.
            is_open: whether the caller says nothing of a model.
            latents_open: whether the caller leaves the number of latents open.

        Raises:
            InputError: a budget that holds no code, or settings that do not fit the vectors.
        """
        is_plain = budget is None and is_open and knobs.are_open and shared.n >= FEWEST_ROWS
        if is_plain and knobs.originals:
            knobs = knobs.few()
        k, latents = sizes(FEW_NONZEROS if is_plain else knobs.k if budget is None else budget.training_k)
        weighs_latents = budget is not None and latents_open and latents > FEWEST_LATENTS
        if budget is not None:
            least = FEWEST_LATENTS if weighs_latents else latents
            budget.check_room(least, shared.overhead(least))
        elif is_plain and not knobs.originals:
            budget = Budget.default(shared.dim, shared.overhead(latents))
        return cls(knobs.with_nonzeros(k), budget, weighs_latents)


def choose(trial: Trial, budget: Budget, *, progress: bool = False) -> Plan:
    """The plan with the best recall within a budget, or with the smallest budget that reaches a recall.

    Raises:
        InputError: the budget is too small for any code (with the smallest that would do), or no budget
            reaches the recall (with the highest recall reached).
    """
    budget.check_room(trial.model.n_latents, trial.overhead)
    if budget.bytes_per_vector is None:
        return trial.smallest_reaching(budget.target_recall or 0.0, progress)
    with track(PLANNING_STEPS, "planning", enabled=progress, unit="steps") as advance:
        plan = trial.best_within(budget.bytes_per_vector, advance)
    assert plan is not None, "there is room for a code"
    return plan


class Ranked(NamedTuple):
    """Recall of a full scan."""

    recall: float
    """recall@10."""
    of_many: float
    """recall@50, which the queries of a trial tell better apart."""


class Trial:
    """Measures plans, without an index.

    Codes are made of the neighbourhoods of some queries, whose true neighbours among all rows are known, and
    of rows that stand for the others. A full scan gives the best by their codes in each neighbourhood. The
    first stage finds a neighbour if few enough rows score higher by posting lists: as many in proportion of
    those that stand for all.
    """

    def __init__(
        self,
        model: CompresSAE,
        near: Neighbourhoods,
        shared: Shared,
        encoder: Encoder,
        num_threads: int,
        *,
        by_originals: bool = False,
    ) -> None:
        """Measures with a model's codes.

        Args:
            model: the model that encodes.
            near: the neighbourhoods of some rows.
            shared: what vectors share.
            encoder: how vectors become codes.
            num_threads: threads to encode and search with.
            by_originals: whether original vectors score the best documents again.
        """
        self.model, self.encoder, self.threads = model, encoder, num_threads
        self.near = near.of_queries(RANKED)
        self.by_originals = by_originals
        self.overhead = shared.overhead(model.n_latents)
        self.projections: FloatArray = model.seen(self.near.queries, check_threads(None))[0]
        self._of_neighbours: tuple[int, SparseCodes] | None = None
        self._of_background: dict[int, SparseCodes] = {}
        self._ranked: dict[tuple[int, int, int], Ranked] = {}

    def codec(self, value_bits: int, residual_bits: int) -> Codec:
        """The codec of a plan."""
        return codec_of("packed", value_bits=value_bits, dim=self.model.dim, residual_bits=residual_bits)

    def best_within(self, budget: float, advance: Callable[[int], object] = lambda _: None) -> Plan | None:
        """The plan with the best recall, or None if not even one nonzero fits."""
        measured = [(self.ranked(k, *form).of_many, k, form) for k, form in self._forms(budget)]
        advance(1)
        if not measured:
            return None
        enough = max(measured)[0] - TIE
        _, k, form = min((each for each in measured if each[0] >= enough), key=lambda each: each[1])
        best = self.plan(k, form[0], min(FIRST_POSTINGS, k), form[1])
        for postings in POSTINGS:
            k = self._most_nonzeros(budget, form, postings)
            if k >= postings or (k and postings == min(POSTINGS)):
                plan = self.plan(k, form[0], min(postings, k), form[1])
                # More nonzeros take longer to encode.
                gain = self.worth(plan) - self.worth(best)
                best = plan if gain > (TIE if plan.k > best.k else 0) else best
        advance(1)
        return best

    def _forms(self, budget: float) -> list[tuple[int, tuple[int, int]]]:
        """Nonzeros, and bits of values and residuals, that are worth measuring."""
        forms = [(bits, 0) for bits in VALUE_BITS]
        if not self.by_originals:
            forms += [(VALUE_BITS_WITH_RESIDUAL, bits) for bits in RESIDUAL_BITS if bits]
        fitting = [(self._most_nonzeros(budget, form, FIRST_POSTINGS), form) for form in forms]
        fitting = [(k, form) for k, form in fitting if k >= (FEWEST_NONZEROS if form[1] else 1)]
        if max((form[1] for _, form in fitting), default=0) < ENOUGH_RESIDUAL_BITS:
            return fitting
        modest = [(k, form) for k, form in fitting if k < MODEST_NONZEROS]
        # With room to spare, more residual bits are better, and the last form has the most.
        spare = [(k, form) for k, form in fitting if k == MODEST_NONZEROS and form[1]][-1:]
        return modest + spare or fitting

    def smallest_reaching(self, target: float, progress: bool) -> Plan:
        """The plan of the smallest of BUDGETS that reaches the target.

        Raises:
            InputError: none does.
        """
        plan, reached = self.nearest_to(target, progress)
        if plan is None:
            msg = (
                f"target_recall = {target} is out of reach: {self._budgets()[-1]:.0f} bytes a vector reach "
                f"{reached:.3f}; originals='float16' reach more, and so may a longer training"
            )
            raise InputError(msg)
        return plan

    def nearest_to(self, target: float, progress: bool) -> tuple[Plan | None, float]:
        """The plan of the smallest of BUDGETS that reaches the target, if any; the highest recall seen."""
        plans: dict[float, Plan | None] = {}
        budgets = self._budgets()

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
        reached = max((plan.recall for plan in plans.values() if plan is not None), default=0.0)
        return (None if low == len(budgets) else plans[budgets[low]]), reached

    def _budgets(self) -> list[float]:
        """With few vectors or long ids, the overhead alone exceeds some of BUDGETS."""
        shared = self.overhead if self.overhead > BUDGETS[0] else 0
        return [budget + shared for budget in BUDGETS]

    def _most_nonzeros(self, budget: float, form: tuple[int, int], postings: int) -> int:
        """The most nonzeros that fit; 0 if none do."""
        codec, h = self.codec(*form), self.model.n_latents
        # With more nonzeros than half the dimension, a code is larger than plain scalar quantisation.
        most = min(h, max(self.model.dim // 2, 1), MODEST_NONZEROS if form[1] else MOST_NONZEROS)

        def fits(k: int) -> bool:
            return codec.row_bytes(h, k) + POSTING_BYTES * min(postings, k) + self.overhead <= budget

        return next((k for k in range(most, 0, -1) if fits(k)), 0)

    def plan(self, k: int, value_bits: int, postings: int, residual_bits: int = 0) -> Plan:
        """A plan of these settings, with its measured recall."""
        row_bytes = self.codec(value_bits, residual_bits).row_bytes(self.model.n_latents, k)
        size = row_bytes + POSTING_BYTES * postings + self.overhead
        dense = self.ranked(k, value_bits, residual_bits).recall
        recall = dense * self._found(k, postings)
        return Plan(k, value_bits, postings, size, recall, dense, residual_bits, self.model.n_latents)

    def alike(self, plan: Plan) -> Plan | None:
        """The plan of as many bytes in the same form, with another trial's model; None if no code fits."""
        form = plan.value_bits, plan.residual_bits
        k = self._most_nonzeros(plan.bytes_per_vector, form, plan.postings)
        return self.plan(k, form[0], min(plan.postings, k), form[1]) if k else None

    def worth(self, plan: Plan) -> float:
        """What to compare plans by: the recall to expect, of 50 neighbours."""
        found = plan.recall / max(plan.dense_recall, np.finfo(float).tiny)
        return found * self.ranked(plan.k, plan.value_bits, plan.residual_bits).of_many

    def of_knobs(self, knobs: Knobs) -> Plan:
        """The plan of settings that a caller gives."""
        k, bits = knobs.nonzeros, knobs.value_bits or VALUE_BITS_ALONE
        return self.plan(k, bits, knobs.postings or k, knobs.residual_bits or 0)

    def ranked(self, k: int, value_bits: int, residual_bits: int) -> Ranked:
        """Recall of a full scan, refined as the index would."""
        key = (k, value_bits, residual_bits)
        if key not in self._ranked:
            self._ranked[key] = self._rank(*key)
        return self._ranked[key]

    def _rank(self, k: int, value_bits: int, residual_bits: int) -> Ranked:
        near, model = self.near, self.model
        rows, codes = near.vectors.reshape(-1, model.dim), self._codes(k)
        if residual_bits:
            targets = rows if model.mean is None else rows - model.mean
            codes = make_room(model, codes, targets, self.encoder, residual_bits, self.threads)
        else:
            codes = model.fold(codes, num_threads=self.threads)
        empty = EmbeddedBackend(model.n_latents, k, self.codec(value_bits, residual_bits), postings=1)
        backend = empty.added([Encoded(codes, rows)], self.threads, model)
        held = np.arange(len(rows)).reshape(near.nearest.shape)
        cosines = self._scores(backend.codes(held.ravel()), self.projections)
        scores = refined = near.in_metric(cosines, near.norms)
        if residual_bits:
            assert backend.refiner is not None
            # Back from the metric, as the rounding of scores decides between plans that are as good.
            cosines = cosines if near.lengths is not None else scores / near.norms
            refined = near.in_metric(
                backend.refiner.rescore(near.queries, cosines, held, self.threads), near.norms
            )
        few, many = (self._kept(scores, refined, top) for top in (NEIGHBOURS, MANY_NEIGHBOURS))
        return Ranked(few, many)

    def _kept(self, scores: FloatArray, refined: FloatArray, top: int) -> float:
        """The share of the `top` nearest that a full scan and the last stage of a search keep.

        Args:
            scores: (q, w) by codes.
            refined: (q, w) by codes and residuals.
            top: neighbours of each query.
        """
        best = _among_best(scores, max(REFINE, REFINE_PER_K * top))
        top = min(top, self.near.width)
        if not self.by_originals:
            best = _among_best(np.where(best, refined, np.float32(-np.inf)), top)
        return float(best[:, :top].mean())

    def _found(self, k: int, postings: int) -> float:
        """The share of the true ten neighbours that the first stage finds."""
        near, model = self.near, self.model
        top, query_nnz = min(NEIGHBOURS, near.width), min(FOUND_BY_LATENTS, model.n_latents)
        terms = strongest_terms(self.projections, query_nnz).to_dense()
        squares = np.square(self.projections).sum(axis=1)
        unread = 1 - np.square(terms).sum(axis=1) / np.maximum(squares, np.finfo(np.float32).tiny)
        damping = np.float32(DAMPING * near.is_damped) * np.maximum(unread, 0)
        listed = min(k, LISTED_NONZEROS)
        if listed not in self._of_background:
            codes = model.encode_unit(near.background, listed, self.encoder, self.threads)
            self._of_background[listed] = model.fold(codes, num_threads=self.threads)
        background = self._of_background[listed]
        threshold = threshold_for(background, postings)
        others = self._by_lists(_listed(background, threshold).to_csr(), terms, damping)
        folded = _listed(model.fold(self._codes(k), num_threads=self.threads), threshold).to_csr()
        width = near.width
        found = np.stack(
            [
                self._by_lists(folded[i * width : i * width + top], terms[[i]], damping[[i]])[:, 0]
                for i in range(len(terms))
            ]
        )
        scores = near.in_metric(found, near.norms[:, :top], LISTED_SHARE)
        background_scores = near.in_metric(others.T, near.background_norms[None, :], LISTED_SHARE).T
        higher = background_scores[None, :, :] > scores.T[:, None, :]
        share = min(FOUND_CANDIDATES / near.n, 1.0)
        return float((higher.mean(axis=1) <= share).mean())

    @staticmethod
    def _by_lists(listed: sp.csr_array, terms: FloatArray, damping: FloatArray) -> FloatArray:
        """Sums of the first stage over what lists hold of codes, (n, h), by terms (q, h): (n, q).

        They are those of candidates, which lose the share `damping`, (q,), of squares.
        """
        sums: FloatArray = listed @ terms.T
        lost: FloatArray = listed.multiply(listed) @ ((terms != 0) * damping[:, None]).T
        return sums - lost + np.float32(UNSEEN) * damping

    def _scores(self, codes: SparseCodes, projections: FloatArray) -> FloatArray:
        """Sums of each query's projections over the codes of its neighbourhood, (q, w)."""
        width = self.near.width
        by_row = codes.to_csr()
        return np.stack([by_row[i * width : (i + 1) * width] @ u for i, u in enumerate(projections)])

    def _codes(self, k: int) -> SparseCodes:
        """Codes of the neighbourhoods' rows, not folded."""
        if self._of_neighbours is None or self._of_neighbours[0] != k:
            rows = self.near.vectors.reshape(-1, self.model.dim)
            self._of_neighbours = k, self.model.encode_unit(rows, k, self.encoder, self.threads)
        return self._of_neighbours[1]


def _listed(codes: SparseCodes, threshold: float) -> SparseCodes:
    """What posting lists hold of codes."""
    return thinned(codes, above_threshold(codes, threshold))


def _among_best(scores: FloatArray, top: int) -> BoolArray:
    """Which of each row's scores are among its `top` best."""
    if top >= scores.shape[1]:
        return np.ones(scores.shape, dtype=bool)
    least = -np.partition(-scores, top - 1, axis=1)[:, top - 1 : top]
    return scores >= least
