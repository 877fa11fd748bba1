"""The probe of an index, and drift: how far new vectors are from those that it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_bool, check_int, check_number, check_threads, normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.errors import DimensionError, InputError
from compressae_index.search.recall import recall
from compressae_index.sources import Vectors
from compressae_index.sources.sample import spread_sample

# Rows whose cosines are kept, rows among which recall is measured, and rows that `drift` reads at most.
PROBE_ROWS, RECALL_ROWS, DRIFT_ROWS = 1000, 500, 20_000
NEIGHBOURS = 10
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
# The latents that fire least, with this share of all uses, are rare.
RARE = 0.05

Verdict: TypeAlias = Literal["fine", "watch", "recode"]
# Rules, by the error of codes: the mean of 1 - cosine, over that of the probe, less NOISE standard errors.
# Measured with 40,000 and 19,000 rows, k = 16: 0.75 to 1.06 for samples of the same kind, of any size; 1.17
# to 1.41 where a fifth are of another kind; 1.75 to 2.9 where all are, and recall@100 falls by 0.19. Small
# dictionaries tell kinds apart less: 3,000 to 8,000 rows and 1,024 latents give 1.49 to 1.64 for another.
WATCH_ERROR, RECODE_ERROR, NOISE = 1.15, 1.35, 3.0
# By the use of latents, where errors say nothing: bits of Jensen-Shannon divergence above what a sample of
# the probe's frequencies has. Measured: at most 0.007 for the same kind, 0.06 to 0.11 for another, but as
# much for neighbours of one row, such as a batch of one category of goods.
WATCH_DIVERGENCE = 0.03
# Rows that a dictionary was learned from have smaller errors than others of their kind: 0.69 to 0.73 times
# with ten rows a latent, 0.33 times with 2.4. A probe of rows that may be such ones allows for the former;
# with fewer rows a latent than this, its errors say nothing.
LEARNED, ROWS_PER_LATENT = 1.6, 8
# Errors below this are not worth comparing.
LEAST_ERROR = 1e-3
# Samples of the probe's frequencies to learn how much chance does.
_SIMULATIONS = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """What the codes of some vectors were like."""

    n: int
    """Vectors."""
    cosines: FloatArray
    """(m,) of vectors and their reconstructions: all, or those of a sample of PROBE_ROWS."""
    uses: npt.NDArray[np.uint32]
    """(n_latents,) vectors whose code has the latent."""

    @classmethod
    def nothing(cls, n_latents: int) -> Seen:
        """Of no vectors."""
        return cls(0, np.empty(0, np.float32), np.zeros(n_latents, np.uint32))

    @property
    def errors(self) -> npt.NDArray[np.float64]:
        """(m,) 1 - cosine."""
        return 1 - self.cosines.astype(np.float64)

    def percentiles(self) -> dict[int, float]:
        """Cosines by percentile."""
        return dict(zip(PERCENTILES, np.percentile(self.cosines, PERCENTILES).tolist(), strict=True))


class Tally:
    """Counts codes as they pass by, and keeps the cosines of a random sample of their rows."""

    def __init__(self, model: CompresSAE, before: Seen | None = None) -> None:
        """Goes on from what was seen before."""
        self.seen = Seen.nothing(model.n_latents) if before is None else before
        self._model = model

    def note(self, chunk: Encoded) -> None:
        """Counts codes and their rows, of any scale."""
        codes, rows, seen = chunk.codes, chunk.rows, self.seen
        uses = np.bincount(codes.latents[codes.values != 0], minlength=codes.n_latents)
        cosines = seen.cosines
        if rows is not None:
            chosen, places = _chosen(seen.n, len(codes))
            kept = np.empty(max(len(cosines), int(places.max(initial=-1)) + 1), np.float32)
            kept[: len(cosines)], cosines = cosines, kept
            if len(chosen):
                cosines[places] = cosines_of(self._model, codes[chosen], rows[chosen])
        self.seen = Seen(seen.n + len(codes), cosines, (seen.uses + uses).astype(np.uint32))


def _chosen(before: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of n rows to keep after `before` others, and their places in the sample: algorithm R."""
    numbers = np.arange(before, before + n)
    places = np.where(
        numbers < PROBE_ROWS, numbers, np.random.default_rng([before, n]).integers(0, numbers + 1)
    )
    chosen = np.flatnonzero(places < PROBE_ROWS)
    # Of several rows for one place, the last stays.
    places, last = np.unique(places[chosen][::-1], return_index=True)
    return chosen[::-1][last], places


def cosines_of(model: CompresSAE, codes: SparseCodes, rows: FloatArray) -> FloatArray:
    """Cosines (n,) of rows, of any norm, with the reconstructions of their codes, of any scale."""
    made = normalize_rows(model.decode(model.fold(codes)))
    cosines: FloatArray = np.einsum("nd,nd->n", made, normalize_rows(rows)).clip(-1, 1)
    return cosines


def recall_among(model: CompresSAE, codes: SparseCodes, rows: FloatArray) -> float | None:
    """recall@10 by codes alone of RECALL_ROWS unit rows among each other; None of fewer."""
    if len(rows) < RECALL_ROWS:
        return None
    rows, codes = rows[:RECALL_ROWS], codes[slice(RECALL_ROWS)]
    by_codes = (model.fold(codes).to_csr() @ model.seen(rows, check_threads(None))[0].T).T
    return recall(_nearest(by_codes), _nearest(rows @ rows.T), NEIGHBOURS)


def _nearest(scores: FloatArray) -> npt.NDArray[np.int64]:
    """The NEIGHBOURS best columns of each row but its own."""
    others = scores.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :NEIGHBOURS]


@dataclass(frozen=True, eq=False)
class Probe:
    """What an index knows of the vectors that it was built from, to compare others with."""

    built: Seen
    """Use of latents by all vectors; cosines of those that were held out of training, or of a sample."""
    recall: float | None
    """recall@10 of RECALL_ROWS of these among each other, by codes alone; None of fewer."""
    held_out: bool
    """Whether the cosines are of vectors that the dictionary was surely not learned from."""
    added: Seen
    """What was added since."""

    @classmethod
    def of(
        cls,
        model: CompresSAE,
        built: Seen,
        held_out: FloatArray | None,
        k: int,
        encoder: Encoder,
        threads: int,
    ) -> Probe:
        """The probe of a new index.

        Args:
            model: its model.
            built: what was seen of its vectors.
            held_out: (m, d) unit rows that were held out of training, if any.
            k: nonzeros a code.
            encoder: how vectors become codes.
            threads: threads to encode with.
        """
        nothing = Seen.nothing(model.n_latents)
        if held_out is None or not len(held_out):
            return cls(built, None, held_out=False, added=nothing)
        rows = held_out[:PROBE_ROWS]
        codes = model.encode_unit(rows, k, encoder, threads)
        built = replace(built, cosines=cosines_of(model, codes, rows))
        return cls(built, recall_among(model, codes, rows), held_out=True, added=nothing)

    def manifest(self) -> dict[str, Any]:
        """The entry of an index's manifest."""
        return {
            "n": self.built.n,
            "added": self.added.n,
            "recall": self.recall,
            "held_out": self.held_out,
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store: a row each of what was built, and of what was added, filled up with NaN."""
        parts = (self.built, self.added)
        cosines = np.full((2, PROBE_ROWS), np.nan, np.float32)
        for row, each in zip(cosines, parts, strict=True):
            row[: len(each.cosines)] = each.cosines
        return {_COSINES: cosines, _USES: np.stack([each.uses for each in parts])}

    @classmethod
    def from_stored(
        cls, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], n_latents: int
    ) -> Probe:
        """Reads `manifest` and `to_arrays`.

        Raises:
            InputError: an entry or an array of another type, shape or range.
            KeyError: one is missing.
        """
        measured, cosines, uses = meta["recall"], np.array(arrays[_COSINES]), np.array(arrays[_USES])
        for array, dtype, shape in (
            (cosines, np.float32, (2, PROBE_ROWS)),
            (uses, np.uint32, (2, n_latents)),
        ):
            if array.dtype != dtype or array.shape != shape:
                msg = f"a probe holds {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
                raise InputError(msg)
        counts = check_int(meta["n"], "n", 1), check_int(meta["added"], "added", 0)
        return cls(
            _stored(counts[0], cosines[0], uses[0]),
            None if measured is None else float(check_number(measured, "recall")),
            held_out=check_bool(meta["held_out"], "held_out"),
            added=_stored(counts[1], cosines[1], uses[1]),
        )


_COSINES, _USES = "probe_cosines", "probe_uses"
PROBE_ARRAYS = frozenset((_COSINES, _USES))


def _stored(n: int, cosines: FloatArray, uses: npt.NDArray[np.uint32]) -> Seen:
    """What was seen, from stored rows.

    Raises:
        InputError: the cosines are none.
    """
    cosines = cosines[~np.isnan(cosines)]
    if bool(cosines.size) != bool(n) or not (np.abs(cosines) <= 1).all():
        msg = (
            f"a probe of {n} vectors holds {cosines.size} cosines, of which some are out of range or missing"
        )
        raise InputError(msg)
    return Seen(n, cosines, uses)


class Cosines(NamedTuple):
    """Cosines of vectors with their reconstructions."""

    probe: dict[int, float]
    """By percentile, of the vectors that the index was built from."""
    new: dict[int, float]
    """The same of the new ones."""


@dataclass(frozen=True)
class Drift:
    """New vectors beside those that an index was built from."""

    verdict: Verdict
    """"fine"; "watch": codes are worse; "recode": codes are much worse."""
    reasons: list[str]
    """What made the verdict, in words; none if it is "fine"."""
    vectors: int
    """New vectors that were looked at."""
    cosines: Cosines
    error_ratio: float
    """The mean of 1 - cosine of the new vectors over that of the probe; 1 is no drift."""
    error_noise: float
    """Its standard error."""
    divergence: float
    """Jensen-Shannon divergence of the use of latents, in bits, less what chance gives so many vectors."""
    divergence_noise: float
    """Its standard deviation."""
    rare_share: float
    """Share of the uses that fall on the latents that had 0.05 of them when the index was built."""
    recall: float | None
    """recall@10 of 500 of the vectors among each other, by codes alone; None of fewer."""
    probe_recall: float | None
    """The same when the index was built."""
    held_out: bool
    """Whether the probe's vectors were held out of training. If not, errors must be 1.6 times larger to
    count, and do not count where the index was built from fewer than 8 vectors a latent."""

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self) | {"cosines": self.cosines._asdict()}


def drift_of(
    probe: Probe, model: CompresSAE, vectors: Vectors, k: int, encoder: Encoder, threads: int
) -> Drift:
    """Encodes vectors (n, d) as codes see them, at most DRIFT_ROWS of them, and compares them with a probe.

    Raises:
        InputError: bad rows, or another dimension.
    """
    if vectors.shape[1] != model.dim:
        msg = f"embeddings have dimension {vectors.shape[1]}, expected {model.dim}"
        raise DimensionError(msg)
    unit = normalize_rows(spread_sample(vectors, DRIFT_ROWS, np.random.default_rng(0)))
    codes = model.encode_unit(unit, k, encoder, threads)
    tally = Tally(model)
    tally.note(Encoded(codes, unit))
    spread = np.arange(0, len(unit), max(len(unit) // RECALL_ROWS, 1))
    return compared(probe, tally.seen, recall_among(model, codes[spread], unit[spread]))


def compared(probe: Probe, new: Seen, measured: float | None = None) -> Drift:
    """New vectors beside a probe; `measured` is their recall."""
    ratio, noise = _error_ratio(probe.built.errors, new.errors)
    divergence, spread = _divergence(probe.built.uses, new.uses)
    allowed = 1.0
    if not probe.held_out:
        allowed = LEARNED if probe.built.n >= ROWS_PER_LATENT * len(probe.built.uses) else np.inf
    least, apart = (ratio - NOISE * noise) / allowed, divergence - NOISE * spread
    reasons = []
    if least > WATCH_ERROR:
        reasons.append(f"errors of codes are {ratio:.2f} times those of the probe")
    if apart > WATCH_DIVERGENCE and (reasons or np.isinf(allowed)):
        reasons.append(f"other latents are used: the divergence is {divergence:.3f} bits above chance")
    verdict: Verdict = "watch" if reasons else "fine"
    return Drift(
        "recode" if least > RECODE_ERROR else verdict,
        reasons,
        new.n,
        Cosines(probe.built.percentiles(), new.percentiles()),
        ratio,
        noise,
        divergence,
        spread,
        _rare_share(probe.built.uses, new.uses),
        measured,
        probe.recall,
        probe.held_out,
    )


def _error_ratio(old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean new error over the mean old one, and the standard error of that."""
    base = old.mean() + LEAST_ERROR
    # Few vectors may be alike by chance: their spread is at least that of the probe. And a few errors are
    # skewed, so that one of them is far from the mean more often than normal ones are.
    spread = max(new.std(), old.std()) / np.sqrt(len(new)) * (1 + 1 / len(new))
    ratio = (new.mean() + LEAST_ERROR) / base
    relative = ratio * old.std() / np.sqrt(len(old))
    return float(ratio), float(np.hypot(spread, relative) / base)


def _divergence(old: npt.NDArray[np.uint32], new: npt.NDArray[np.uint32]) -> tuple[float, float]:
    """The divergence of uses above that of as many drawn from the old ones, and its deviation."""
    expected, drawn = old / max(old.sum(), 1), int(new.sum())
    if not drawn or not expected.any():
        return 0.0, 0.0
    rng = np.random.default_rng(0)
    chance = [_bits(expected, rng.multinomial(drawn, expected) / drawn) for _ in range(_SIMULATIONS)]
    return _bits(expected, new / drawn) - float(np.mean(chance)), float(np.std(chance))


def _bits(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of two distributions."""
    middle = (p + q) / 2
    parts = [(each[each > 0] * np.log2(each[each > 0] / middle[each > 0])).sum() for each in (p, q)]
    return float(sum(parts)) / 2


def _rare_share(old: npt.NDArray[np.uint32], new: npt.NDArray[np.uint32]) -> float:
    """The share of new uses on the latents that were used least."""
    order = np.argsort(old, kind="stable")
    rare = order[np.cumsum(old[order], dtype=np.float64) <= RARE * old.sum(dtype=np.float64)]
    return float(new[rare].sum(dtype=np.float64) / max(new.sum(dtype=np.float64), 1))
