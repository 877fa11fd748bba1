"""Plots of measurements: recall against bytes, speed against recall; and plots as SVG that stands in HTML.

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
# One more than there are colours, so that a colour that comes again has another marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
DASHES = ("-", "--", "-.", ":")
# Area of a mark in square points, at this many bytes a vector; it grows with the logarithm.
MARK_AREA, MARK_BYTES = 30.0, 64

# Inches of a plot in HTML: narrow, so that its text can still be read where a phone shrinks it.
SVG_SIZE = (4.8, 3.7)
# Where the text of a point may stand, best first: points to the right and up, and how it is aligned.
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
    """A text beside each point, which may be empty."""
    joined: bool = False
    """Whether a line joins the points in their order."""


class Look(NamedTuple):
    """What a line looks like."""

    color: str
    marker: str
    linestyle: str


def look(number: int) -> Look:
    """The look of a plot's line by its number."""
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])


def figure_class() -> type[Figure]:
    """The figure of matplotlib, for callers that want to know before they compute.

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
    """recall@at over bytes per vector, which are on a logarithmic scale; up and to the left is better.

    `budgets` are the bytes to be marked on the axis; by default powers of two.
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
    """Budgets, and powers of two where there are none; with one between each two, where these are few."""
    powers = [2.0**i for i in range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)]
    if budgets:
        outside = [power for power in powers if power < min(budgets) / 1.2 or power > max(budgets) * 1.2]
        return sorted({*map(float, budgets), *outside})
    return powers if len(powers) > 4 else sorted({*powers, *(1.5 * power for power in powers)})


def speed_against_recall(axes: Axes, series: Sequence[Series], at: int) -> None:
    """Queries a second, on a logarithmic scale, over recall@at; up and to the right is better.

    What takes more bytes has larger marks, and the legend has the bytes.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"recall@{at}")
    axes.set_ylabel("queries per second, one thread")
    _draw(axes, series, lambda one: (one.recall[at], one.queries_per_second), with_bytes=True)


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
        areas = [_area(size) if with_bytes else MARK_AREA for size in sizes]
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
    _write(axes, texts)


def _area(size: float) -> float:
    """Square points of a mark; a number of bytes that is not known has the usual ones."""
    if not size > 0:
        return MARK_AREA
    return MARK_AREA * max(0.5, 1 + 0.5 * math.log2(size / MARK_BYTES))


def _bytes_range(sizes: Sequence[float]) -> str:
    low, high = round(min(sizes)), round(max(sizes))
    return f"{low:,} B" if low == high else f"{low:,}–{high:,} B"


def _write(axes: Axes, texts: Mapping[Point, str]) -> None:
    """Texts beside their points, where they cover neither lines nor each other if there is such a place."""
    from matplotlib.transforms import Bbox

    written: list[Bbox] = []
    inside = axes.get_window_extent()
    marks = [Bbox.from_extents(x - 3, y - 3, x + 3, y + 3) for line in axes.lines for x, y in _pixels(line)]
    for point, text in texts.items():
        notes = [_note(axes, text, point, place) for place in PLACES]
        boxes = [note.get_window_extent().padded(2) for note in notes]
        # A text over another can be read no more, one over lines can.
        faults = [
            10 * box.count_overlaps(written)
            + box.count_overlaps(marks)
            + int(Bbox.union([box, inside]).bounds != inside.bounds)
            for box in boxes
        ]
        best = faults.index(min(faults))
        written.append(boxes[best])
        for note in notes[:best] + notes[best + 1 :]:
            note.remove()


def _pixels(line: Line2D) -> npt.NDArray[np.float64]:
    """Where a line's points are drawn, and ten steps from each to the next if they are joined: (n, 2)."""
    points = line.get_transform().transform(line.get_xydata())
    if line.get_linestyle() == "None":
        return points
    at = np.arange(len(points))
    steps = np.linspace(0, at[-1], 10 * at[-1] + 1)
    return np.column_stack([np.interp(steps, at, column) for column in points.T])


def _note(axes: Axes, text: str, point: Point, place: Place) -> Annotation:
    right, up, horizontal, vertical = place
    return axes.annotate(
        text,
        point,
        (right, up),
        textcoords="offset points",
        fontsize="small",
        horizontalalignment=horizontal,
        verticalalignment=vertical,
    )


def as_svg(draw: Callable[[Axes], None], name: str, description: str) -> str:
    """An SVG element for an HTML page: text is text, and nothing in it clashes with another such element.

    Args:
        draw: draws on the axes that it is given.
        name: letters and hyphens, unique within the page; its ids begin so.
        description: what is read out where the picture cannot be seen.

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
    # The style is what matplotlib would else set for every element of the page.
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}" '
        f'style="stroke-linejoin: round; stroke-linecap: butt">{body.strip()}'
    )
