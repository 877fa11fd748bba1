"""A model measured on vectors: use of its latents, quality of reconstructions, recall against nonzeros."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int, check_threads, check_vectors, normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.errors import InputError
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.plots import COLOURS, figure_class, look
from compressae_index.progress import track
from compressae_index.search.recall import recall
from compressae_index.sources import Vectors, VectorSource, checked_rows, open_vectors
from compressae_index.sources.centred import Centred, less

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Default nonzeros to measure recall at.
KS = (8, 16, 32, 64, 128)
# The k of each recall@k.
RECALL_AT = (10, 100)
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Rows held out as queries: at most this many, and at most one in HOLD_OUT_ONE_IN.
HELD_OUT, HOLD_OUT_ONE_IN = 500, 10
# A latent over-fires when more than this share of the rows use it: its list costs a tenth of a full scan and
# hardly tells rows apart. Small dictionaries use every latent that often without harm, so the share must also
# be OVER_FIRING_RATIO times the mean.
OVER_FIRING_SHARE, OVER_FIRING_RATIO = 0.1, 4
# A sample consists of this many runs of rows, spread evenly over all rows.
SAMPLE_RUNS = 64
HISTOGRAM_BINS = 40


class ModelReport(NamedTuple):
    """Latents, reconstructions and recall of a model on a sample of vectors; `_asdict()` is JSON-able."""

    rows: int
    """Vectors encoded, without held-out ones."""
    queries: int
    dim: int
    n_latents: int
    k: int
    """Nonzeros a code: the model's own, used for everything below except recall."""
    list_lengths: list[int]
    """(n_latents,) rows that use each latent with a nonzero value."""
    dead_latents: list[int]
    """Latents that no row uses."""
    over_firing_latents: list[int]
    """Latents that more than over_firing_share of the rows use, most used first."""
    over_firing_share: float
    """0.1, or four times the mean share k / n_latents if that is larger. A longer list costs a search more
    than this share of a full scan, and hardly tells vectors apart."""
    list_skew: float
    """Longest list over the mean list, dead latents included."""
    list_gini: float
    """Gini coefficient of the list lengths: 0 if all are equal, near 1 if few latents hold all postings."""
    longest_lists_share: float
    """Share of all postings in the longest 1 % of the lists."""
    cosine: dict[int, float]
    """Percentiles of the cosine between a vector and its reconstruction."""
    cosine_edges: list[float]
    """Bin edges of the histogram of cosines, ascending."""
    cosine_counts: list[int]
    """Rows in each bin."""
    mean_squared_error: float
    """Mean over rows of |x - x_hat|^2, for x of unit norm."""
    recall: dict[int, dict[int, float]]
    """Recall by nonzeros, then by k of recall@k: `dense` scores of packed codes against exact cosines."""

    def as_text(self) -> str:
        """Tables for a terminal."""
        facts = [
            ("rows, queries", f"{self.rows:,}, {self.queries:,}"),
            ("model", f"{self.n_latents:,} latents, {self.k} nonzeros, {self.dim} dimensions"),
            ("dead latents", _some(self.dead_latents)),
            (f"in over {self.over_firing_share:.1%} of rows", _some(self.over_firing_latents)),
            ("longest list / mean", f"{self.list_skew:.1f}"),
            ("Gini of lists", f"{self.list_gini:.3f}"),
            ("postings in longest 1 %", f"{self.longest_lists_share:.1%}"),
            ("mean squared error", f"{self.mean_squared_error:.4f}"),
        ]
        cosines = [["percentile", *(f"{p} %" for p in self.cosine)]]
        cosines.append(["cosine", *(f"{value:.3f}" for value in self.cosine.values())])
        ats = list(next(iter(self.recall.values())))
        recalls = [["nonzeros", *(f"recall@{at}" for at in ats)]]
        recalls += [[str(k), *(f"{by[at]:.3f}" for at in ats)] for k, by in self.recall.items()]
        width = max(len(name) for name, _ in facts)
        lines = [f"{name:<{width}}  {value}" for name, value in facts]
        return "\n".join([*lines, "", *_aligned(cosines), "", *_aligned(recalls)])

    def plot(self, path: str | Path) -> None:
        """Writes a PNG: list lengths, cosines, and recall against nonzeros.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = figure_class()(figsize=(13, 4), dpi=120, layout="constrained")
        lists, cosines, recalls = figure.subplots(1, 3)
        self.plot_lists(lists)
        self.plot_cosines(cosines)
        self._plot_recall(recalls)
        for axes in (lists, cosines, recalls):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
        # For PNG, Figure.savefig uses Agg, whatever back end the program chose.
        figure.savefig(path, format="png")

    def plot_lists(self, axes: Axes) -> None:
        """Plots the rows of each latent, most used first."""
        lengths = np.sort([length for length in self.list_lengths if length])[::-1]
        axes.plot(np.arange(1, len(lengths) + 1), lengths, color=COLOURS[0])
        mean = self.k / self.n_latents
        for share, name, color, style in (
            (self.over_firing_share, "over-firing", COLOURS[1], "--"),
            (mean, "mean", "black", ":"),
        ):
            axes.axhline(
                share * self.rows, color=color, linestyle=style, label=f"{name}, {share:.1%} of rows"
            )
        axes.set_yscale("log")
        axes.set_ylim(0.8, self.rows * 1.1)
        axes.set_xlabel("latents, most used first")
        axes.set_ylabel("posting list (rows)")
        axes.set_title(f"{len(self.dead_latents):,} dead, {len(self.over_firing_latents):,} over-firing")
        axes.legend(fontsize="small")

    def plot_cosines(self, axes: Axes) -> None:
        """Plots a histogram of the cosines between vectors and their reconstructions."""
        shares = 100 * np.array(self.cosine_counts) / self.rows
        axes.stairs(shares, self.cosine_edges, fill=True, color=COLOURS[3])
        for percentile, style in ((5, ":"), (50, "-"), (95, "--")):
            value = self.cosine[percentile]
            axes.axvline(value, color="black", linestyle=style, label=f"{percentile} %: {value:.3f}")
        axes.locator_params(axis="x", nbins=5)  # more of them touch each other
        axes.set_xlabel("cosine of vector and reconstruction")
        axes.set_ylabel("rows (%)")
        axes.set_title(f"Reconstructions at {self.k} nonzeros")
        axes.legend(title="percentile", fontsize="small", title_fontsize="small")

    def _plot_recall(self, axes: Axes) -> None:
        ks = list(self.recall)
        for number, at in enumerate(next(iter(self.recall.values()))):
            axes.plot(ks, [self.recall[k][at] for k in ks], label=f"recall@{at}", **look(number)._asdict())
        axes.axvline(self.k, color="black", linestyle=":", label="the model's k")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("nonzeros a code")
        axes.set_ylabel("recall of dense scores")
        axes.set_title(f"{self.queries:,} queries among {self.rows:,} rows")
        axes.legend(fontsize="small", loc="lower right")


def model_report(
    model: CompresSAE,
    vectors: VectorSource,
    queries: npt.ArrayLike | None = None,
    *,
    max_rows: int = 20_000,
    ks: Iterable[int] | None = None,
    num_threads: int | None = None,
    progress: bool = False,
) -> ModelReport:
    """Encodes vectors by pursuit at several nonzeros, and measures.

    Args:
        model: the model to describe.
        vectors: (n, dim) floating point, any source of `open_vectors`.
        queries: (n_queries, dim); by default the last min(500, n / 10) rows of the sample, which are then
            held out.
        max_rows: vectors to look at; if there are more, a sample of runs spread evenly over all rows.
        ks: nonzeros to measure recall at, besides the model's own; by default 8, 16, 32, 64 and 128, up to
            the model's latents and dimensions.
        num_threads: threads of the engine; all by default.
        progress: show a progress bar.

    Raises:
        InputError: bad rows, another dimension, k out of range, or a single row and no queries.
    """
    threads = check_threads(num_threads)
    check_int(max_rows, "max_rows", 1)
    wanted = [k for k in KS if k <= min(model.n_latents, model.dim)] if ks is None else list(ks)
    wanted = sorted({model.nonzeros(k, "pursuit") for k in wanted} | {model.k})
    # Check the queries first: reading the sample may take long.
    center = model.center
    source = open_vectors(vectors, zeros=center is not None)
    asked = None
    if queries is not None:
        asked = check_vectors(queries, dim=model.dim, name="queries", zeros=center is not None)
    if center is not None:  # all that follows is seen from there
        source, model = Centred(source, center), model.centred_at(None)
        asked = None if asked is None else less(asked, center)
    rows = _sample(source, max_rows, model.dim)
    if asked is None:
        rows, asked = _held_out(rows)
    unit = normalize_rows(rows)
    recalls, own = _recalls(model, unit, asked, wanted, threads, progress=progress)
    return ModelReport(
        rows=len(unit),
        queries=len(asked),
        dim=model.dim,
        n_latents=model.n_latents,
        k=model.k,
        **_list_statistics(own),
        **_reconstruction_statistics(model, unit, own),
        recall=recalls,
    )


def _held_out(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rows to encode, and the last rows as queries.

    Raises:
        InputError: a single row.
    """
    n = min(HELD_OUT, max(len(rows) // HOLD_OUT_ONE_IN, 1))
    if n == len(rows):
        msg = "the sample is a single row, so queries are needed"
        raise InputError(msg)
    return rows[:-n], rows[-n:]


def _recalls(
    model: CompresSAE, unit: FloatArray, queries: FloatArray, ks: list[int], threads: int, *, progress: bool
) -> tuple[dict[int, dict[int, float]], SparseCodes]:
    """Recall by nonzeros, then by k of recall@k; and the codes of the model's own k, one of `ks`."""
    ats = [at for at in RECALL_AT if at <= len(unit)] or [len(unit)]
    truth, projections = exact_neighbours(unit, queries, ats[-1]), model.project(queries)
    recalls: dict[int, dict[int, float]] = {}
    with track(len(unit) * len(ks), "encoding", enabled=progress) as advance:
        for k in ks:
            codes = model.encode(unit, k, num_threads=threads)
            if k == model.k:
                own = codes
            backend = EmbeddedBackend(model.n_latents, k).added([Encoded(model.fold(codes))], threads, model)
            _, found = backend.dense(projections, ats[-1], None, threads)
            recalls[k] = {at: recall(found, truth, at) for at in ats}
            advance(len(unit))
    return recalls, own


def _list_statistics(codes: SparseCodes) -> dict[str, Any]:
    """The entries of a report about the posting lists of codes."""
    n_latents = codes.n_latents
    lengths = np.bincount(codes.latents[codes.values != 0], minlength=n_latents)
    over = max(OVER_FIRING_SHARE, OVER_FIRING_RATIO * codes.k / n_latents)
    by_length = np.argsort(-lengths, kind="stable")
    longest = lengths[by_length[: -(-n_latents // 100)]]
    postings = max(int(lengths.sum()), 1)
    return {
        "list_lengths": lengths.tolist(),
        "dead_latents": np.flatnonzero(lengths == 0).tolist(),
        "over_firing_latents": by_length[lengths[by_length] > over * len(codes)].tolist(),
        "over_firing_share": over,
        "list_skew": float(lengths.max() * n_latents / postings),
        "list_gini": _gini(lengths),
        "longest_lists_share": float(longest.sum() / postings),
    }


def _reconstruction_statistics(model: CompresSAE, unit: FloatArray, codes: SparseCodes) -> dict[str, Any]:
    """The entries of a report about the reconstructions of unit rows (n, dim)."""
    cosines, error = _reconstructed(model, unit, codes)
    low, high = float(cosines.min()), float(cosines.max())
    # Of rows that are the dictionary's, all cosines are 1 but for rounding, which is too narrow for bins.
    counts, edges = np.histogram(cosines, HISTOGRAM_BINS, (min(low, high - 1e-4), high))
    return {
        "cosine": dict(zip(PERCENTILES, np.percentile(cosines, PERCENTILES).tolist(), strict=True)),
        "cosine_edges": edges.tolist(),
        "cosine_counts": counts.tolist(),
        "mean_squared_error": error,
    }


def _sample(vectors: Vectors, max_rows: int, dim: int) -> FloatArray:
    """At most max_rows rows: (m, dim) float32."""
    n = vectors.shape[0]
    m = min(n, max_rows)
    runs = min(SAMPLE_RUNS, m) if m < n else 1
    ends = [m * run // runs for run in range(runs + 1)]
    parts = []
    for run, (begin, end) in enumerate(pairwise(ends)):
        first = begin + (n - m) * run // runs  # spreads the rows left out evenly between the runs
        parts.append(checked_rows(vectors, first, first + end - begin, dim=dim))
    return np.concatenate(parts)


def _reconstructed(model: CompresSAE, unit: FloatArray, codes: SparseCodes) -> tuple[FloatArray, float]:
    """Cosines of unit rows (n, dim) and their reconstructions, (n,) float32, and the mean squared error."""
    reconstructions = model.decode(codes)
    norms = np.linalg.norm(reconstructions, axis=1)
    products = np.einsum("nd,nd->n", unit, reconstructions)
    # A zero reconstruction has no direction; count its cosine as 0.
    cosines: FloatArray = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return cosines, float(np.square(unit - reconstructions).sum(axis=1).mean())


def _gini(lengths: npt.NDArray[np.int64]) -> float:
    n, total = len(lengths), int(lengths.sum())
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks * np.sort(lengths)).sum() / (n * max(total, 1)) - (n + 1) / n) if total else 0.0


def _some(latents: list[int], shown: int = 8) -> str:
    """The count and the first few."""
    if not latents:
        return "0"
    names = ", ".join(map(str, latents[:shown]))
    return f"{len(latents):,} ({names}{', …' if len(latents) > shown else ''})"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]
