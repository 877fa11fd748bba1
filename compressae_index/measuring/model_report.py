"""What a model makes of vectors: use of its latents, quality of reconstructions, recall against nonzeros."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int, check_threads, check_vectors, normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.errors import InputError
from compressae_index.measuring.plots import COLOURS, figure_class, look
from compressae_index.measuring.recall import exact_neighbours, recall
from compressae_index.progress import track
from compressae_index.sources import Vectors, VectorSource, checked_rows, open_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Nonzeros that recall is measured at, where a call names none.
KS = (8, 16, 32, 64, 128)
# The k of each recall@k.
RECALL_AT = (10, 100)
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Rows held out as queries: at most this many, and at most one in HOLD_OUT_ONE_IN.
HELD_OUT, HOLD_OUT_ONE_IN = 500, 10
# A latent over-fires when more than this share of the rows use it: scoring its list is a tenth of scoring
# everything, and what so many rows share tells few of them apart. Small dictionaries use each latent that
# often without harm, so that it also takes OVER_FIRING_RATIO times the mean.
OVER_FIRING_SHARE, OVER_FIRING_RATIO = 0.1, 4
# Runs of rows that a sample consists of, spread evenly over all rows.
SAMPLE_RUNS = 64
HISTOGRAM_BINS = 40


class ModelReport(NamedTuple):
    """Latents, reconstructions and recall of a model on a sample of vectors; `_asdict()` is JSON-able."""

    rows: int
    """Vectors encoded, held-out ones not included."""
    queries: int
    dim: int
    n_latents: int
    k: int
    """Nonzeros a code: the model's own, of all that follows but recall."""
    list_lengths: list[int]
    """Rows that use each latent with a value other than zero."""
    dead_latents: list[int]
    """Latents that no row uses."""
    over_firing_latents: list[int]
    """Latents that more than over_firing_share of the rows use, most used first."""
    over_firing_share: float
    """0.1, or four times the mean share k / n_latents where that is more. Such a list costs a search as much
    as that share of all vectors, and hardly tells them apart."""
    list_skew: float
    """Longest list over the mean list, dead latents included."""
    list_gini: float
    """Gini coefficient of the list lengths: 0 where all are equal, near 1 where few latents hold all."""
    longest_lists_share: float
    """Share of all postings in the longest 1 % of the lists."""
    cosine: dict[int, float]
    """Cosine of a vector and its reconstruction, by percentile of the rows."""
    cosine_edges: list[float]
    """Borders of the bins of the cosines' histogram, ascending."""
    cosine_counts: list[int]
    """Rows in each of those bins."""
    mean_squared_error: float
    """Mean over rows of |x - x_hat|^2, summed over the components, for x of unit norm."""
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
        # Figure.savefig draws by Agg for PNG, whatever back end a program has chosen.
        figure.savefig(path, format="png")

    def plot_lists(self, axes: Axes) -> None:
        """Rows of each latent, most used first."""
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
        """Histogram of the cosines of vectors and their reconstructions."""
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
        queries: (n_queries, dim); by default the last min(500, n / 10) rows of the sample, which are not
            encoded then.
        max_rows: vectors to look at; of more, runs of rows spread evenly over all.
        ks: nonzeros to measure recall at, beside the model's own; by default 8, 16, 32, 64 and 128, as far as
            the model has latents and dimensions.
        num_threads: threads of the engine; all by default.
        progress: show a progress bar.

    Raises:
        InputError: bad rows, another dimension, k out of range, or a single row and no queries.
    """
    threads = check_threads(num_threads)
    check_int(max_rows, "max_rows", 1)
    wanted = [k for k in KS if k <= min(model.n_latents, model.dim)] if ks is None else list(ks)
    wanted = sorted({model.nonzeros(k, "pursuit") for k in wanted} | {model.k})
    # Queries first: reading the sample may take long.
    asked = None if queries is None else check_vectors(queries, dim=model.dim, name="queries")
    rows = _sample(open_vectors(vectors), max_rows, model.dim)
    if asked is None:
        held_out = min(HELD_OUT, max(len(rows) // HOLD_OUT_ONE_IN, 1))
        if held_out == len(rows):
            msg = "a single row is left to look at, so queries are needed"
            raise InputError(msg)
        rows, asked = rows[:-held_out], rows[-held_out:]
    unit, ats = normalize_rows(rows), [at for at in RECALL_AT if at <= len(rows)] or [len(rows)]
    truth, projections = exact_neighbours(unit, asked, ats[-1]), model.project(asked)
    recalls: dict[int, dict[int, float]] = {}
    with track(len(unit) * len(wanted), "encoding", enabled=progress) as advance:
        for k in wanted:
            codes = model.encode(unit, k, num_threads=threads)
            if k == model.k:
                own = codes
            backend = EmbeddedBackend(model.n_latents, k).added([model.fold(codes)], threads, model.decoder_w)
            _, found = backend.dense(projections, ats[-1], None, threads)
            recalls[k] = {at: recall(found, truth, at) for at in ats}
            advance(len(unit))
    cosines, error = _reconstructed(model, unit, own)
    counts, edges = np.histogram(cosines, HISTOGRAM_BINS)
    lengths = np.bincount(own.latents[own.values != 0], minlength=model.n_latents)
    over = max(OVER_FIRING_SHARE, OVER_FIRING_RATIO * model.k / model.n_latents)
    by_length = np.argsort(-lengths, kind="stable")
    longest = lengths[by_length[: -(-model.n_latents // 100)]]
    postings = max(int(lengths.sum()), 1)
    return ModelReport(
        rows=len(unit),
        queries=len(asked),
        dim=model.dim,
        n_latents=model.n_latents,
        k=model.k,
        list_lengths=lengths.tolist(),
        dead_latents=np.flatnonzero(lengths == 0).tolist(),
        over_firing_latents=by_length[lengths[by_length] > over * len(unit)].tolist(),
        over_firing_share=over,
        list_skew=float(lengths.max() * model.n_latents / postings),
        list_gini=_gini(lengths),
        longest_lists_share=float(longest.sum() / postings),
        cosine=dict(zip(PERCENTILES, np.percentile(cosines, PERCENTILES).tolist(), strict=True)),
        cosine_edges=edges.tolist(),
        cosine_counts=counts.tolist(),
        mean_squared_error=error,
        recall=recalls,
    )


def _sample(vectors: Vectors, max_rows: int, dim: int) -> FloatArray:
    """At most max_rows rows: (m, dim) float32."""
    n = vectors.shape[0]
    m = min(n, max_rows)
    runs = min(SAMPLE_RUNS, m) if m < n else 1
    ends = [m * run // runs for run in range(runs + 1)]
    parts = []
    for run, (begin, end) in enumerate(pairwise(ends)):
        first = begin + (n - m) * run // runs  # the rows left out stand evenly between the runs
        parts.append(checked_rows(vectors, first, first + end - begin, dim=dim))
    return np.concatenate(parts)


def _reconstructed(model: CompresSAE, unit: FloatArray, codes: SparseCodes) -> tuple[FloatArray, float]:
    """Cosines of unit rows (n, dim) and their reconstructions, (n,) float32, and the mean squared error."""
    reconstructions = model.decode(codes)
    norms = np.linalg.norm(reconstructions, axis=1)
    products = np.einsum("nd,nd->n", unit, reconstructions)
    # A reconstruction of zero has no direction; it counts as the cosine 0.
    cosines: FloatArray = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return cosines, float(np.square(unit - reconstructions).sum(axis=1).mean())


def _gini(lengths: npt.NDArray[np.int64]) -> float:
    n, total = len(lengths), int(lengths.sum())
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks * np.sort(lengths)).sum() / (n * max(total, 1)) - (n + 1) / n) if total else 0.0


def _some(latents: list[int], shown: int = 8) -> str:
    """How many, and the first of them."""
    if not latents:
        return "0"
    names = ", ".join(map(str, latents[:shown]))
    return f"{len(latents):,} ({names}{', …' if len(latents) > shown else ''})"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]
