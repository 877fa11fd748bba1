"""An index measured on its user's own vectors, once: for a terminal, JSON or a page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy.typing as npt

from compressae_index.checks import check_choice, check_vectors
from compressae_index.environment import environment
from compressae_index.errors import DimensionError
from compressae_index.evaluation import (
    Measurement,
    Sweep,
    evaluate,
    evaluate_exact,
    evaluate_quantisers,
    exact_neighbours,
    import_faiss,
    sweep,
)
from compressae_index.index import CompressedIndex, IndexStats
from compressae_index.metric import METRICS, Metric
from compressae_index.queries import Scoring
from compressae_index.report import ModelReport, model_report
from compressae_index.sources import Vectors

PACKAGES = ("compressae-index", "numpy", "faiss-cpu", "faiss-gpu")
# The k of each recall@k, as far as there are vectors.
KS = (10, 100)


class Standing(NamedTuple):
    """How a mode of the index stands against everything else that was measured."""

    mode: Measurement
    finds_more: Measurement | None
    """What finds most of all that take no more bytes, if that is more than the mode finds."""
    faster: Measurement | None
    """The fastest of all that find as much, whatever their bytes, if it is faster than the mode."""


class EvaluationReport(NamedTuple):
    """An index measured against exact search and Faiss, on queries that it does not hold."""

    made_at: str
    """Date and time, ISO 8601."""
    queries: int
    metric: Metric
    """What the true neighbours are by."""
    stats: IndexStats
    exact: Measurement
    modes: list[Measurement]
    rivals: dict[str, list[Measurement]]
    """By family; empty without Faiss."""
    sweeps: list[Sweep]
    model: ModelReport
    """Of a sample of the vectors."""
    environment: dict[str, Any]

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
        for mode in self.modes:
            small = [one for one in others if one.bytes_per_vector <= mode.bytes_per_vector]
            good = [one for one in others if one.recall[self.k] >= mode.recall[self.k]]
            best = max(small, key=lambda one: one.recall[self.k], default=mode)
            fastest = min(good, key=lambda one: one.ms_per_query, default=mode)
            standings.append(
                Standing(
                    mode,
                    best if best.recall[self.k] > mode.recall[self.k] else None,
                    fastest if fastest.ms_per_query < mode.ms_per_query else None,
                )
            )
        return standings

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "made_at": self.made_at,
            "queries": self.queries,
            "metric": self.metric,
            "stats": self.stats._asdict(),
            "measurements": [one.as_dict() for one in self.measurements],
            "standings": [
                {name: one and one.name for name, one in standing._asdict().items()}
                for standing in self.standings()
            ],
            "sweeps": [
                {
                    **each._asdict(),
                    "measurements": {value: one.as_dict() for value, one in each.measurements.items()},
                }
                for each in self.sweeps
            ],
            "model": self.model._asdict(),
            "environment": self.environment,
        }


def evaluation_report(
    index: CompressedIndex,
    vectors: Vectors,
    queries: npt.ArrayLike,
    *,
    metric: Metric | None = None,
    scoring: Scoring = "asymmetric",
    candidates: int = 1000,
    query_nnz: int | None = None,
    faiss: bool = True,
    progress: bool = False,
) -> EvaluationReport:
    """Measures all modes of an index, and exact search and Faiss's quantisers over what it was built from.

    Args:
        index: what to measure.
        vectors: (n, d), those of the index in its order. Rivals keep all of them in memory.
        queries: (n_queries, d), which should not be among the vectors.
        metric: what the true neighbours are by; the index's by default.
        scoring: as for `CompressedIndex.search`.
        candidates: as for `CompressedIndex.search`.
        query_nnz: as for `CompressedIndex.search`.
        faiss: compare with quantisers at the bytes of each mode.
        progress: show progress bars.

    Raises:
        DimensionError: another number of vectors than the index has, or queries of another dimension.
        InputError: bad rows, or too few vectors for Faiss.
        MissingExtraError: Faiss is to be compared with and is not installed.
    """
    if vectors.shape[0] != len(index):
        msg = f"embeddings hold {vectors.shape[0]} vectors, the index {len(index)}"
        raise DimensionError(msg)
    rows = check_vectors(queries, dim=index.model.dim, name="queries")
    by: Metric = index.metric if metric is None else check_choice(metric, "metric", METRICS)
    ks = [k for k in KS if k <= len(index)] or [len(index)]
    if faiss:
        import_faiss(len(index))
    stats = index.stats()
    truth = exact_neighbours(vectors, rows, ks[-1], metric=by, progress=progress)
    ids = index.ids[truth]
    rivals = {}
    if faiss:
        # Each one more takes k-means up to half a minute; `sparse` is compared with what fits it of these.
        budgets = [stats.bytes_by_mode[mode] for mode in ("dense", "two_stage")]
        rivals = evaluate_quantisers(vectors, rows, truth, budgets, ks=ks, metric=by, progress=progress)
    return EvaluationReport(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        queries=len(rows),
        metric=by,
        stats=stats,
        exact=evaluate_exact(vectors, rows, truth, ks=ks, metric=by),
        modes=evaluate(index, rows, ids, ks=ks, scoring=scoring, query_nnz=query_nnz, candidates=candidates),
        rivals=rivals,
        sweeps=sweep(index, rows, ids, ks=ks, scoring=scoring, query_nnz=query_nnz, progress=progress),
        model=model_report(index.model, vectors, rows, ks=(), progress=progress),
        environment=environment(PACKAGES),
    )
