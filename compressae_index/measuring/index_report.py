"""An index measured on its user's own vectors: the numbers that a terminal, JSON or a page shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy.typing as npt
from threadpoolctl import threadpool_limits

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_vectors
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.embedded.sizes import WINDOW
from compressae_index.measuring.environment import environment
from compressae_index.measuring.evaluation import (
    TIMED_QUERIES,
    Measurement,
    Reached,
    Sweep,
    evaluate,
    evaluate_frontier,
    settings_of,
    sweep,
)
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.matching import Matched, matched
from compressae_index.measuring.model_report import ModelReport, model_report
from compressae_index.measuring.rivals import (
    PQ_CENTROIDS,
    PQ_POINTS_PER_CENTROID,
    evaluate_exact,
    evaluate_quantisers,
    import_faiss,
)
from compressae_index.progress import say
from compressae_index.search.index import Index, IndexStats
from compressae_index.search.labels import Labels
from compressae_index.search.queries import MODES, Mode, Scoring
from compressae_index.sources import Vectors, VectorSource
from compressae_index.sources.centred import Centred, less

PACKAGES = ("compressae-index", "numpy", "faiss-cpu", "faiss-gpu")
# The k of each recall@k, up to the number of vectors.
KS = (10, 100)
# Queries, and rows of exact search, that the time is guessed from.
PROBED_QUERIES, PROBED_ROWS = 5, 4096
# Seconds on a slow machine: the model's report, and two runs of k-means on MOST_LEARNED_FROM vectors.
SECONDS_OF_THE_MODEL, SECONDS_OF_K_MEANS = 3, 30
# Shorter work is not announced.
SAID_ABOVE = 4
MOST_LEARNED_FROM = PQ_CENTROIDS * PQ_POINTS_PER_CENTROID


class Standing(NamedTuple):
    """A mode of the index compared with exact search and the rivals."""

    mode: Measurement
    finds_more: list[Measurement]
    """Those with a higher recall in no more bytes, the highest first."""
    faster: list[Measurement]
    """Those with at least the recall in less time, whatever their bytes, the fastest first."""
    advice: list[str]
    """What to change, one sentence for each kind of loss; empty if there is none."""


class IndexReport(NamedTuple):
    """An index measured against exact search and Faiss, on queries that it does not hold."""

    made_at: str
    """Date and time, ISO 8601."""
    queries: int
    left_out: int
    """Rows of the embeddings that the index does not hold."""
    metric: Metric
    """Metric of the true neighbours."""
    stats: IndexStats
    exact: Measurement
    measured: tuple[Mode, ...]
    """The modes that the index has, in the order of `modes`."""
    modes: list[Measurement]
    rivals: dict[str, list[Measurement]]
    """By family; empty without Faiss."""
    sweeps: list[Sweep]
    frontier: list[Reached]
    """The settings that `build` measured, by ascending cost; empty if it did not."""
    model: ModelReport
    """Of a sample of the vectors."""
    environment: dict[str, Any]
    labels: Labels | None = None
    """Names of latents by side, as `Index.labels`."""

    @property
    def k(self) -> int:
        """The largest k of recall@k."""
        return max(self.exact.recall)

    @property
    def measurements(self) -> list[Measurement]:
        """Exact search, modes and rivals."""
        return [self.exact, *self.modes, *(one for family in self.rivals.values() for one in family)]

    def standings(self) -> list[Standing]:
        """Each mode against exact search and the rivals, by recall at the largest k."""
        others = [one for one in self.measurements if one not in self.modes]
        standings = []
        for of, mode in zip(self.measured, self.modes, strict=True):
            small = [one for one in others if one.bytes_per_vector <= mode.bytes_per_vector]
            more = [one for one in small if one.recall[self.k] > mode.recall[self.k]]
            good = [one for one in others if one.recall[self.k] >= mode.recall[self.k]]
            faster = [one for one in good if one.ms_per_query < mode.ms_per_query]
            more.sort(key=lambda one: -one.recall[self.k])
            faster.sort(key=lambda one: one.ms_per_query)
            advice = [_to_find_more(self, of, mode, more[0])] if more else []
            advice += [_to_be_faster(self, of)] if faster else []
            standings.append(Standing(mode, more, faster, advice))
        return standings

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "made_at": self.made_at,
            "queries": self.queries,
            "left_out": self.left_out,
            "metric": self.metric,
            "stats": self.stats._asdict(),
            "measurements": [one.as_dict() for one in self.measurements],
            "standings": [
                {
                    "mode": standing.mode.name,
                    "finds_more": [one.name for one in standing.finds_more],
                    "faster": [one.name for one in standing.faster],
                    "advice": standing.advice,
                }
                for standing in self.standings()
            ],
            "sweeps": [
                {
                    **each._asdict(),
                    "measurements": {value: one.as_dict() for value, one in each.measurements.items()},
                }
                for each in self.sweeps
            ],
            "frontier": [one.as_dict() for one in self.frontier],
            "model": self.model._asdict(),
            "environment": self.environment,
        }


def _to_find_more(report: IndexReport, of: Mode, mode: Measurement, rival: Measurement) -> str:
    """Advice on how to reach the recall of a rival of no more bytes."""
    k, stats = report.k, report.stats
    wanted = rival.recall[k]
    if of == "sparse":
        return "Search by two_stage or dense: sparse is for answers that may be rough"
    dense = next((one for by, one in zip(report.measured, report.modes, strict=True) if by == "dense"), None)
    if of == "two_stage":
        for each in report.sweeps:
            good = [value for value, one in each.measurements.items() if one.recall[k] >= wanted]
            if each.mode == of and each.option in ("candidates", "refine") and good:
                return f"Search with {each.option}={min(good)}, which finds as much"
        if dense is not None and dense.recall[k] > mode.recall[k]:
            return (
                f"Use dense, which finds {dense.recall[k]:.3f} in {dense.bytes_per_vector:,.0f} bytes, or "
                "give two_stage more candidates"
            )
    if stats.postings == stats.k and of == "two_stage":
        return "Give build a budget (bytes_per_vector): shorter posting lists leave bytes for larger codes"
    if not stats.residual_bits and not stats.disk_bytes_per_vector:
        return "Build with a budget, residual_bits or originals: a last stage ranks the best again"
    return "Build with more bytes (bytes_per_vector, residual_bits), or train longer (preset best)"


def _to_be_faster(report: IndexReport, of: Mode) -> str:
    """Advice on how to answer sooner."""
    if of == "dense":
        return "Use two_stage or sparse, which read few codes, where dense is too slow"
    todo, n = "Search with fewer candidates or a lower query_nnz", report.stats.vectors
    if n >= WINDOW:
        return todo
    return f"{todo}; {n:,} vectors are few, and posting lists gain on scans with every one more"


def index_report(
    index: Index,
    vectors: VectorSource,
    queries: npt.ArrayLike,
    *,
    ids: Any = None,
    metric: Metric | None = None,
    scoring: Scoring = "asymmetric",
    candidates: int | None = None,
    query_nnz: int | None = None,
    faiss: bool = False,
    progress: bool = False,
) -> IndexReport:
    """Measures all modes of an index, and exact search over the vectors that it was built from.

    Args:
        index: the index to measure.
        vectors: (n, d), those of the index's documents, in any order; other rows are left out. Exact search
            and rivals keep all of them in memory.
        queries: (n_queries, d), which should not be among the vectors.
        ids: one id a row of `vectors`; row numbers by default.
        metric: metric of the true neighbours; the index's by default.
        scoring: as for `Index.search`.
        candidates: as for `Index.search`.
        query_nnz: as for `Index.search`.
        faiss: compare with Faiss's quantisers at the bytes of the modes, which takes several times as long.
        progress: announce the work and its time, and show progress bars, on standard error.

    Raises:
        DimensionError: fewer vectors than the index has, or vectors or queries of another dimension.
        InputError: bad rows; ids of the index that no row has; rows that the index was not built from; too
            few vectors for Faiss.
        MissingExtraError: `faiss` is given, and Faiss is not installed.
    """
    zeros = index.metric == "l2"
    rows = check_vectors(queries, dim=index.model.dim, name="queries", zeros=zeros)
    by: Metric = index.metric if metric is None else check_choice(metric, "metric", METRICS)
    if faiss:
        import_faiss(len(index))
    originals = matched(index, vectors, ids)
    if progress:
        _announce(index, originals, rows, faiss)
    own, ks = originals.vectors, [k for k in KS if k <= len(index)] or [len(index)]
    truth = exact_neighbours(own, rows, ks[-1], metric=by, progress=progress)
    found = originals.ids[truth]
    ours: Any = {"ks": ks, "scoring": scoring, "query_nnz": query_nnz}
    theirs: Any = {"ks": ks, "metric": by, "id_bytes": index.stats().bytes_per_vector.get("ids", 0.0)}
    return IndexReport(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        queries=len(rows),
        left_out=originals.left_out,
        metric=by,
        stats=index.stats(),
        exact=evaluate_exact(own, rows, truth, **theirs),
        measured=tuple(mode for mode in MODES if mode in index.modes),
        modes=evaluate(index, rows, found, candidates=candidates, **ours),
        sweeps=sweep(index, rows, found, progress=progress, **ours),
        frontier=evaluate_frontier(index, rows, found, progress=progress),
        rivals=_quantisers(index, own, rows, truth, progress=progress, **theirs) if faiss else {},
        model=model_report(
            index.model,
            Centred(own, None) if zeros else own,
            less(rows, None) if zeros else rows,
            ks=(),
            progress=progress,
        ),
        environment=environment(PACKAGES),
        labels=index.labels,
    )


def _quantisers(
    index: Index,
    vectors: Vectors,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    **options: Any,
) -> dict[str, list[Measurement]]:
    """Faiss's quantisers at the bytes of `dense` and `two_stage`; truth and options as they take them."""
    # None of the size of `sparse`: each one takes long to train.
    by_mode = index.stats().bytes_by_mode
    budgets = [by_mode[mode] for mode in ("dense", "two_stage") if mode in by_mode]
    return evaluate_quantisers(vectors, queries, truth, budgets, **options)


def _announce(index: Index, originals: Matched, queries: FloatArray, faiss: bool) -> None:
    """Says what will be measured, and about how long it takes."""
    n = len(originals.ids)
    settings = len(index.modes) + sum(len(values) for _, _, values in settings_of(index))
    settings += 0 if index.frontier is None else len(index.frontier.points)
    if originals.left_out:
        say(f"{originals.left_out:,} rows of the embeddings are not in the index and are left out")
    asked = len(queries) + min(len(queries), TIMED_QUERIES)
    # Every setting is guessed to take as long as two_stage, and exact search as a product with all vectors.
    seconds = settings * asked * _seconds_a_query(lambda some: index.search(some, 1, num_threads=1), queries)
    some = check_vectors(originals.vectors[0:PROBED_ROWS], zeros=index.metric == "l2")
    exact = asked * _seconds_a_query(lambda query: query @ some.T, queries) * n / len(some)
    seconds += 2 * exact + SECONDS_OF_THE_MODEL
    rest = ""
    if faiss:
        # SQ, PQ and RaBitQ scan their codes in up to the time of exact search, after some k-means.
        more = 6 * exact + SECONDS_OF_K_MEANS * min(n, MOST_LEARNED_FROM) / MOST_LEARNED_FROM
        rest = f"; then Faiss's quantisers, about {_rounded(more)} s more"
    if faiss or seconds > SAID_ABOVE:
        say(
            f"exact search of {len(queries):,} queries among {n:,} vectors, then {settings} settings of the "
            f"index: about {_rounded(seconds)} s{rest}"
        )


def _seconds_a_query(search: Callable[[FloatArray], object], queries: FloatArray) -> float:
    some = queries[:PROBED_QUERIES]
    with threadpool_limits(1):
        search(some[:1])
        started = time.perf_counter()
        for query in some:
            search(query[None])
    return (time.perf_counter() - started) / len(some)


def _rounded(seconds: float) -> int:
    """Rounds a guess to 5 seconds."""
    return max(5, 5 * round(seconds / 5))
