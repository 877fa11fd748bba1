"""Recall, bytes and latency, measured against exact search and against Faiss's quantisers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from compressae_index.arrays import FloatArray
from compressae_index.measuring.matching import check_held
from compressae_index.progress import track
from compressae_index.search.frontier import NEIGHBOURS, Point
from compressae_index.search.index import Index
from compressae_index.search.queries import MODES, Mode, Scoring
from compressae_index.search.recall import recall

# Latency is the median of this many single queries.
TIMED_QUERIES = 200
# The settings of `sweep`: a mode, one of its options, and the option's values.
SWEPT: tuple[tuple[Mode, str, tuple[int, ...]], ...] = (
    ("sparse", "query_nnz", (8, 16, 32, 64, 128, 256)),
    ("two_stage", "candidates", (100, 300, 1000, 3000)),
    ("two_stage", "refine", (0, 100, 200, 400, 800)),
)


class Measurement(NamedTuple):
    """One way to search, measured."""

    name: str
    bytes_per_vector: float
    """Bytes of all that must be resident to serve it, ids included, without the model or codebook. Original
    vectors on disk are not."""
    recall: dict[int, float]
    """recall@k by k."""
    ms_per_query: float
    """Median of single queries on one thread, with the encoding of the query."""

    @property
    def queries_per_second(self) -> float:
        """Throughput of single queries on one thread."""
        return 1000 / self.ms_per_query

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**self._asdict(), "queries_per_second": self.queries_per_second}


class Sweep(NamedTuple):
    """One mode at several values of one of its options."""

    mode: Mode
    option: str
    measurements: dict[int, Measurement]
    """Measurements by the option's value."""


class Reached(NamedTuple):
    """Settings of an index's frontier, on given queries."""

    point: Point
    """As searches take it by now, with the recall@10 that was measured when the index was built."""
    measurement: Measurement

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        expected = {"expected_recall": self.point.recall}
        return {**self.point._asdict(), **expected, **self.measurement.as_dict()}


def evaluate(
    index: Index,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    scoring: Scoring = "asymmetric",
    **options: Any,
) -> list[Measurement]:
    """Measures every mode that an index has, of "sparse", "dense" and "two_stage".

    Args:
        index: the index to measure.
        queries: (n_queries, d).
        truth: ids of the true neighbours, best first, (n_queries, at least max(ks)). Ids are row numbers only
            if the index was built without others. In general, let o = matched(index, vectors, ids); then
            truth is o.ids[exact_neighbours(o.vectors, queries, k)].
        ks: the k of each recall@k.
        scoring: as for `Index.search`.
        options: candidates, query_nnz as for `Index.search`.

    Raises:
        UnknownIdError: the truth holds ids that the index does not.
    """
    check_held(index, truth)
    return [
        _evaluate_mode(index, mode, queries, truth, ks, scoring, options)
        for mode in MODES
        if mode in index.modes
    ]


def _bytes_of(index: Index, mode: str) -> float:
    """Bytes a vector that a mode reads; NaN where they are not known."""
    return index.stats().bytes_by_mode.get(mode, np.nan)


def sweep(
    index: Index,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    *,
    ks: Iterable[int] = (10, 100),
    scoring: Scoring = "asymmetric",
    query_nnz: int | None = None,
    progress: bool = False,
) -> list[Sweep]:
    """Measures recall against time: `sparse` by query_nnz, `two_stage` by candidates.

    If the index has a last stage, also `two_stage` by refine.

    Args:
        index: as for `evaluate`.
        queries: as for `evaluate`.
        truth: as for `evaluate`.
        ks: as for `evaluate`.
        scoring: as for `Index.search`.
        query_nnz: for `two_stage`, as for `Index.search`.
        progress: show a progress bar.

    Raises:
        UnknownIdError: the truth holds ids that the index does not.
    """
    check_held(index, truth)
    swept = settings_of(index)
    sweeps = []
    total = sum(len(values) for _, _, values in swept)
    with track(total, "sweep", enabled=progress, unit="settings") as advance:
        for mode, option, values in swept:
            measurements = {}
            for value in values:
                options = {"query_nnz": query_nnz, option: value}
                one = _evaluate_mode(index, mode, queries, truth, ks, scoring, options)
                measurements[value] = one._replace(name=f"{one.name}, {option}={value}")
                advance(1)
            sweeps.append(Sweep(mode, option, measurements))
    return sweeps


def evaluate_frontier(
    index: Index, queries: FloatArray, truth: npt.NDArray[Any], *, progress: bool = False
) -> list[Reached]:
    """Measures an index's frontier, with its settings of today, by recall@10; nothing without a frontier.

    Args:
        index: as for `evaluate`.
        queries: as for `evaluate`.
        truth: as for `evaluate`, at least 10 a query if there are as many documents.
        progress: show a progress bar.

    Raises:
        UnknownIdError: the truth holds ids that the index does not.
    """
    check_held(index, truth)
    frontier = index.frontier
    points = [] if frontier is None else [frontier.grown(each, len(index)) for each in frontier.points]
    k = min(NEIGHBOURS, len(index))
    reached = []
    with track(len(points), "frontier", enabled=progress, unit="settings") as advance:
        for point in points:
            refine = max(point.refine, k) if point.refine and index.documents.refines else 0
            options = {"candidates": max(point.candidates, k), "query_nnz": point.query_nnz, "refine": refine}
            one = _evaluate_mode(index, "two_stage", queries, truth, [k], "asymmetric", options)
            reached.append(Reached(point, one._replace(name=settings_text(point))))
            advance(1)
    return reached


def settings_text(point: Point) -> str:
    """The settings of a point, as `Index.search` takes them."""
    return f"candidates={point.candidates}, query_nnz={point.query_nnz}, refine={point.refine}"


def settings_of(index: Index) -> list[tuple[Mode, str, list[int]]]:
    """The settings of `sweep` for an index: the values of SWEPT that it is large enough for."""
    most = {
        "query_nnz": index.model.n_latents,
        "candidates": len(index),
        "refine": len(index) if index.documents.refines else 0,
    }
    return [
        (mode, option, [value for value in values if value <= most[option]] or [most[option]])
        for mode, option, values in SWEPT
        if most[option] and mode in index.modes
    ]


def _evaluate_mode(
    index: Index,
    mode: Mode,
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
    scoring: Scoring,
    options: Mapping[str, Any],
) -> Measurement:

    def search(rows: FloatArray, k: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = index.search(
            rows, k, mode=mode, scoring=scoring, num_threads=1, **options
        ).ids
        return found

    name = mode if scoring == "asymmetric" else f"{mode} ({scoring})"
    return measure(name, _bytes_of(index, mode), search, queries, truth, ks)


def measure(
    name: str,
    bytes_per_vector: float,
    search: Callable[[FloatArray, int], npt.NDArray[Any]],
    queries: FloatArray,
    truth: npt.NDArray[Any],
    ks: Iterable[int],
) -> Measurement:
    """Measures the recall of the batch, and the median time of single queries on one thread."""
    ks = sorted(ks)
    found = search(queries, ks[-1])
    seconds = []
    with threadpool_limits(1):
        for query in queries[:TIMED_QUERIES]:
            started = time.perf_counter()
            search(query[None], ks[-1])
            seconds.append(time.perf_counter() - started)
    return Measurement(
        name, bytes_per_vector, {k: recall(found, truth, k) for k in ks}, 1000 * statistics.median(seconds)
    )


def as_table(measurements: Iterable[Measurement]) -> str:
    """A Markdown table, columns aligned for a terminal."""
    measurements = list(measurements)
    ks = list(measurements[0].recall)
    return aligned(
        ["search", *(f"recall@{k}" for k in ks), "bytes/vector", "ms/query"],
        (
            [
                m.name,
                *(f"{m.recall[k]:.3f}" for k in ks),
                f"{m.bytes_per_vector:.0f}",
                f"{m.ms_per_query:.2f}",
            ]
            for m in measurements
        ),
    )


def frontier_table(reached: Iterable[Reached]) -> str:
    """A Markdown table of the settings of a frontier, with the recall that was expected."""
    return aligned(
        ["two_stage with", "recall@10", "at build time", "ms/query"],
        (
            [
                one.name,
                *(f"{found:.3f}" for found in one.recall.values()),
                f"{point.recall:.3f}",
                f"{one.ms_per_query:.2f}",
            ]
            for point, one in reached
        ),
    )


def aligned(header: list[str], body: Iterable[list[str]]) -> str:
    """A Markdown table, with the first column to the left and the others to the right."""
    rows = [header, *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in rows
    )
