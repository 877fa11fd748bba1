"""Plots of measurements: recall against bytes, speed and expectations against recall; and as SVG for HTML.

No two lines differ by colour alone: each has a marker and dashes of its own, and the colours are those of
Paul Tol's "muted" scheme, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.errors import MissingExtraError
from compressae_index.measuring.evaluation import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation

Point: TypeAlias = tuple[float, float]
Place: TypeAlias = tuple[int, int, str, str]

# Paul Tol, "Colour schemes", SRON/EPS/TN/09-002, version 3.2: muted; and black.
COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933"),
    "#000000",
)
# One more than the colours, so that a repeated colour has another marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
DASHES = ("-", "--", "-.", ":")
# Area of a mark in square points, at this many bytes a vector; it grows with the logarithm.
MARK_AREA, MARK_BYTES = 30.0, 64

# Inches of a plot in HTML: narrow, so that its text is readable when a phone shrinks it.
SVG_SIZE = (4.8, 3.7)
# Places for the text of a point, best first: points to the right and up, and its alignment.
PLACES: tuple[Place, ...] = (
    (6, 0, "left", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (-6, 0, "right", "center"),
    (5, 5, "left", "bottom"),
    (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"),
    (-5, -5, "right", "top"),
)


class Series(NamedTuple):
    """Measurements that share a colour and a line of the legend."""

    name: str
    measurements: Sequence[Measurement]
    labels: Sequence[str] = ()
    """A text for each point, which may be empty."""
    joined: bool = False
    """Whether a line joins the points in their order."""


class Look(NamedTuple):
    """The look of a line."""

    color: str
    marker: str
    linestyle: str


def look(number: int) -> Look:
    """The look of a line by its number."""
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])


def figure_class() -> type[Figure]:
    """Matplotlib's Figure; call it early to fail before any work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "plotting") from error
    return Figure


def recall_against_bytes(
    axes: Axes, series: Sequence[Series], at: int, budgets: Sequence[float] = ()
) -> None:
    """Plots recall@at over bytes per vector on a logarithmic scale; up and to the left is better.

    `budgets` are the bytes to mark on the axis; by default powers of two.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = [one.bytes_per_vector for each in series for one in each.measurements]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_byte_ticks(min(sizes), max(sizes), budgets)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("bytes per vector")
    axes.set_ylabel(f"recall@{at}")
    _draw(axes, series, lambda one: (one.bytes_per_vector, one.recall[at]))


def _byte_ticks(low: float, high: float, budgets: Sequence[float]) -> list[float]:
    """Ticks: budgets, or powers of two if there are none; with one between every two if they are few."""
    powers = [2.0**i for i in range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)]
    if budgets:
        outside = [power for power in powers if power < min(budgets) / 1.2 or power > max(budgets) * 1.2]
        return sorted({*map(float, budgets), *outside})
    return powers if len(powers) > 4 else sorted({*powers, *(1.5 * power for power in powers)})


def speed_against_recall(axes: Axes, series: Sequence[Series], at: int) -> None:
    """Plots queries a second, on a logarithmic scale, over recall@at; up and to the right is better.

    Marks grow with the bytes, which are in the legend.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"recall@{at}")
    axes.set_ylabel("queries per second, one thread")
    _draw(axes, series, lambda one: (one.recall[at], one.queries_per_second), with_bytes=True)


def recall_against_expected(axes: Axes, series: Series, expected: Mapping[str, float], at: int) -> None:
    """Plots recall@at over what was expected, by names of measurements, and a line where both are equal."""
    recalls = [*expected.values(), *(one.recall[at] for one in series.measurements)]
    ends = [min(recalls), max(recalls)]
    axes.plot(ends, ends, linestyle=":", color="#000000", linewidth=1.2)
    axes.set_xlabel(f"recall@{at} expected by build")
    axes.set_ylabel(f"recall@{at} of these queries")
    _draw(axes, [series], lambda one: (expected[one.name], one.recall[at]))


def _draw(
    axes: Axes,
    series: Sequence[Series],
    place: Callable[[Measurement], Point],
    *,
    with_bytes: bool = False,
) -> None:
    from matplotlib.lines import Line2D

    texts: dict[Point, str] = {}
    legend = []
    for number, one in enumerate(series):
        points = [place(measurement) for measurement in one.measurements]
        color, marker, dashes = look(number)
        style: Any = dashes if one.joined else "none"
        axes.plot(*zip(*points, strict=True), linestyle=style, color=color, linewidth=1.2)
        sizes = [measurement.bytes_per_vector for measurement in one.measurements]
        areas = [mark_area(size) if with_bytes else MARK_AREA for size in sizes]
        xs, ys = zip(*points, strict=True)
        axes.scatter(
            xs, ys, s=areas, color=color, marker=marker, edgecolors="white", linewidths=0.4, zorder=3
        )
        name = f"{one.name}, {_bytes_range(sizes)}" if with_bytes else one.name
        legend.append(Line2D([], [], color=color, marker=marker, markersize=5, linestyle=style, label=name))
        texts |= {point: text for point, text in zip(points, one.labels, strict=False) if text}
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(0.1)
    axes.legend(
        handles=legend,
        title="larger marks: more bytes a vector" if with_bytes else None,
        fontsize="small",
        title_fontsize="small",
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=2 if with_bytes else 3,
        frameon=False,
    )
    axes.figure.canvas.figure.draw_without_rendering()  # the layout decides where points are
    write_texts(axes, texts)


def mark_area(size: float) -> float:
    """Area of a mark in square points; an unknown number of bytes gets the default."""
    if not size > 0:
        return MARK_AREA
    return MARK_AREA * max(0.5, 1 + 0.5 * math.log2(size / MARK_BYTES))


def _bytes_range(sizes: Sequence[float]) -> str:
    low, high = round(min(sizes)), round(max(sizes))
    return f"{low:,} B" if low == high else f"{low:,}–{high:,} B"


def write_texts(
    axes: Axes, texts: Mapping[Point, str], colours: Mapping[Point, str] | None = None, away: float = 1.0
) -> None:
    """Writes texts next to their points, at the places that cover the fewest texts and lines.

    Args:
        axes: where the points are drawn.
        texts: those of points.
        colours: of the texts of points; black by default.
        away: how far from a point its text is, by what suits the default area of a mark.
    """
    from matplotlib.transforms import Bbox

    written: list[Bbox] = []
    inside = axes.get_window_extent()
    marks = [Bbox.from_extents(x - 3, y - 3, x + 3, y + 3) for line in axes.lines for x, y in _pixels(line)]
    for point, text in texts.items():
        colour = (colours or {}).get(point, "black")
        notes = [_note(axes, text, point, place, colour, away) for place in PLACES]
        boxes = [note.get_window_extent().padded(2) for note in notes]
        # A text over lines is still readable, one over another text is not.
        faults = [
            100 * box.count_overlaps(written)
            + box.count_overlaps(marks)
            + int(Bbox.union([box, inside]).bounds != inside.bounds)
            for box in boxes
        ]
        best = faults.index(min(faults))
        written.append(boxes[best])
        for note in notes[:best] + notes[best + 1 :]:
            note.remove()


def _pixels(line: Line2D) -> npt.NDArray[np.float64]:
    """Pixels (n, 2) of a line's points, with ten steps from each to the next if they are joined."""
    points = line.get_transform().transform(line.get_xydata())
    if line.get_linestyle() == "None":
        return points
    at = np.arange(len(points))
    steps = np.linspace(0, at[-1], 10 * at[-1] + 1)
    return np.column_stack([np.interp(steps, at, column) for column in points.T])


def _note(axes: Axes, text: str, point: Point, place: Place, colour: str, away: float) -> Annotation:
    right, up, horizontal, vertical = place
    return axes.annotate(
        text,
        point,
        (away * right, away * up),
        textcoords="offset points",
        fontsize="small",
        color=colour,
        horizontalalignment=horizontal,
        verticalalignment=vertical,
    )


def as_svg(draw: Callable[[Axes], None], name: str, description: str) -> str:
    """An SVG element for an HTML page: text stays text, and its ids clash with those of no other plot.

    Args:
        draw: draws on given axes.
        name: letters and hyphens, unique within the page; the prefix of the element's ids.
        description: the text for readers who cannot see the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_class()
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        drawn = figure(figsize=SVG_SIZE, layout="constrained")
        draw(drawn.subplots())
        file = io.StringIO()
        drawn.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = re.sub(r"(?s)^.*?<svg[^>]*>|<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue())
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    width, height = (72 * inches for inches in SVG_SIZE)
    # matplotlib sets this style for all elements of a page; here it is for this one.
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}" '
        f'style="stroke-linejoin: round; stroke-linecap: butt">{body.strip()}'
    )
