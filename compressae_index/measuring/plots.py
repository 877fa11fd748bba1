"""Plots of measurements: recall against bytes, speed and expectations against recall; and as SVG for HTML.

No two lines differ by colour alone: each has a marker of its own, and the colours are those of Paul Tol's
"muted" scheme, which readers with any colour vision can tell apart. What is ours has one colour, thick lines
and filled marks, and everything else thin dashes and hollow ones. A grey band marks the front, which nothing
beats in both directions.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.building.drift import Drift
from compressae_index.errors import MissingExtraError
from compressae_index.measuring.evaluation import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Point: TypeAlias = tuple[float, float]
Place: TypeAlias = tuple[int, int, str, str]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, lower, right and upper end in pixels."""
Pixels: TypeAlias = npt.NDArray[np.float64]
"""(n, 2) places on a figure."""

# Paul Tol, "Colour schemes", SRON/EPS/TN/09-002, version 3.2: muted; and black.
COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933"),
    "#000000",
)
# One more than the colours, so that a repeated colour has another marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
DASHES = ("-", "--", "-.", ":")
FRONT = "#d9d9d9"
# Area of a mark in square points, at this many bytes a vector; it grows with the logarithm.
MARK_AREA, MARK_BYTES = 30.0, 64

# Pixels to a mark of something else, which a text could be taken for.
NEAR = 8
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
    is_ours: bool = False


class Look(NamedTuple):
    """The look of a line."""

    color: str
    marker: str
    linestyle: str


class Text(NamedTuple):
    """A text beside one of some points, whichever has the most room."""

    text: str
    points: Sequence[Point]
    color: str = "black"


def look(number: int) -> Look:
    """The look of a line by its number, where all are of one kind."""
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])


def looks(are_ours: Sequence[bool]) -> list[Look]:
    """The looks of lines of which some are ours."""
    others = itertools.cycle(COLOURS[1:])
    return [
        Look(COLOURS[0], marker, "-") if is_ours else Look(next(others), marker, "--")
        for is_ours, marker in zip(are_ours, itertools.cycle(MARKERS), strict=False)
    ]


def is_ours(look: Look) -> bool:
    """Whether a line is one of ours, by its look."""
    return look.color == COLOURS[0]


def darker(color: str) -> str:
    """A colour that is readable as text."""
    return "#" + "".join(f"{int(0.65 * int(color[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def draw_line(
    axes: Axes, points: Sequence[Point], look: Look, areas: float | Sequence[float], *, joined: bool
) -> None:
    """Draws a line in the style of all plots, or its points alone; areas of marks are in square points."""
    own = is_ours(look)
    xs, ys = zip(*points, strict=True)
    style: Any = look.linestyle if joined else "none"
    # Ours above the rest, and all marks above all lines.
    axes.plot(
        xs, ys, linestyle=style, color=look.color, linewidth=2 if own else 1.1, zorder=3 if own else 2.5
    )
    axes.scatter(
        xs,
        ys,
        s=areas,
        marker=look.marker,
        facecolors=look.color if own else "white",
        edgecolors="white" if own else look.color,
        linewidths=0.5 if own else 1.2,
        zorder=5 if own else 4,
    )


def mark_front(axes: Axes, points: Iterable[Point], *, right: bool, up: bool) -> None:
    """Draws a grey band along the points that no other beats in both directions.

    Args:
        axes: where it is drawn, behind everything else.
        points: of everything that is compared.
        right: whether more is better along the horizontal axis; otherwise less is.
        up: the same along the vertical one.
    """
    kept: list[Point] = []
    for x, y in sorted(points, key=lambda one: (-one[0] if right else one[0], -one[1] if up else one[1])):
        if not kept or (y > kept[-1][1] if up else y < kept[-1][1]):
            kept.append((x, y))
    if kept:
        xs, ys = zip(*kept, strict=True)
        axes.plot(xs, ys, color=FRONT, linewidth=8, alpha=0.7, zorder=1, drawstyle="steps-post")


def key(look: Look, name: str, *, joined: bool) -> Line2D:
    """A line of a legend."""
    from matplotlib.lines import Line2D

    own = is_ours(look)
    style: Any = look.linestyle if joined else "none"
    return Line2D(
        [],
        [],
        color=look.color,
        marker=look.marker,
        markersize=5,
        markerfacecolor=look.color if own else "white",
        linestyle=style,
        linewidth=2 if own else 1.1,
        label=name,
    )


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
    mark_front(
        axes,
        [(one.bytes_per_vector, one.recall[at]) for each in series for one in each.measurements],
        right=False,
        up=True,
    )
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

    Marks grow with the bytes, which are beside the names.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"recall@{at}")
    axes.set_ylabel("queries per second, one thread")
    points = [(one.recall[at], one.queries_per_second) for each in series for one in each.measurements]
    mark_front(axes, points, right=True, up=True)
    _draw(axes, series, lambda one: (one.recall[at], one.queries_per_second), with_bytes=True)


def recall_against_expected(axes: Axes, series: Series, expected: Mapping[str, float], at: int) -> None:
    """Plots recall@at over what was expected, by names of measurements, and a line where both are equal."""
    recalls = [*expected.values(), *(one.recall[at] for one in series.measurements)]
    ends = [min(recalls), max(recalls)]
    axes.plot(ends, ends, linestyle=":", color="#000000", linewidth=1.2)
    axes.set_xlabel(f"recall@{at} expected by build")
    axes.set_ylabel(f"recall@{at} of these queries")
    _draw(axes, [series], lambda one: (expected[one.name], one.recall[at]))


def drift_picture(drift: Drift, path: Path) -> None:
    """Writes a .png file: cosines of vectors and their reconstructions by percentile, when built and now.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=SVG_SIZE, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("percentile of the vectors")
    axes.set_ylabel("cosine with the reconstruction")
    names = (f"new: {drift.verdict}", "when built")
    for name, cosines, look_ in zip(names, drift.cosines[::-1], looks([True, False]), strict=True):
        draw_line(axes, list(cosines.items()), look_, MARK_AREA, joined=True)
        axes.plot([], [], color=look_.color, linestyle=look_.linestyle, marker=look_.marker, label=name)
    axes.legend()
    figure.savefig(path, format="png")


def _draw(
    axes: Axes,
    series: Sequence[Series],
    place: Callable[[Measurement], Point],
    *,
    with_bytes: bool = False,
) -> None:
    """Draws lines, their names beside them; in a legend if their points have texts of their own."""
    names, texts, keys = [], [], []
    for one, style in zip(series, looks([one.is_ours for one in series]), strict=True):
        points = [place(measurement) for measurement in one.measurements]
        sizes = [measurement.bytes_per_vector for measurement in one.measurements]
        areas = [mark_area(size) for size in sizes] if with_bytes else MARK_AREA
        draw_line(axes, points, style, areas, joined=one.joined)
        name = f"{one.name}, {_bytes_range(sizes)}" if with_bytes else one.name
        names.append(Text(name, points, darker(style.color)))
        keys.append(key(style, name, joined=one.joined))
        texts += [Text(text, [point]) for point, text in zip(points, one.labels, strict=False) if text]
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(0.1)
    title = "larger marks: more bytes a vector" if with_bytes else None
    if texts:
        axes.legend(
            handles=keys,
            title=title,
            fontsize="small",
            title_fontsize="small",
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=2 if with_bytes else 3,
            frameon=False,
        )
    elif title:
        axes.set_title(title, fontsize="small")
    write_texts(axes, texts or names)


def mark_area(size: float) -> float:
    """Area of a mark in square points; an unknown number of bytes gets the default."""
    if not size > 0:
        return MARK_AREA
    return MARK_AREA * max(0.5, 1 + 0.5 * math.log2(size / MARK_BYTES))


def _bytes_range(sizes: Sequence[float]) -> str:
    low, high = round(min(sizes)), round(max(sizes))
    return f"{low:,} B" if low == high else f"{low:,}–{high:,} B"


def write_texts(axes: Axes, texts: Iterable[Text], away: float = 1.0) -> None:
    """Writes texts next to their points, at the places that cover the fewest texts, marks and lines.

    Args:
        axes: where the points are drawn.
        texts: those of points.
        away: how far from a point its text is, by what suits the default area of a mark.
    """
    axes.figure.canvas.figure.draw_without_rendering()  # the layout decides where points are
    dots = axes.figure.dpi / 72
    ends = axes.get_window_extent()
    inside = (ends.x0, ends.y0, ends.x1, ends.y1)
    lines = [line for line in axes.lines if line.get_color() != FRONT]
    covered = np.concatenate([np.zeros((0, 2)), *(_pixels(line) for line in lines)])
    marks = np.concatenate(
        [np.zeros((0, 2)), *(axes.transData.transform(line.get_xydata()) for line in lines)]
    )
    written: list[Box] = []
    for one in texts:
        note = axes.annotate(
            one.text,
            one.points[0],
            (0, 0),
            textcoords="offset points",
            fontsize="small",
            color=one.color,
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )
        size = note.get_window_extent()
        own = axes.transData.transform(one.points)
        others = marks[(np.abs(marks[:, None] - own).max(axis=2, initial=0) > 1).all(axis=1)]
        options = [
            (point, place, _box(axes, point, place, (size.width, size.height), away * dots))
            for point in one.points
            for place in PLACES
        ]
        point, place, box = min(
            options, key=lambda option: _faults(option[2], written, covered, others, inside)
        )
        written.append(box)
        right, up, horizontal, vertical = place
        note.xy = point
        note.set_position((away * right, away * up))
        note.set(horizontalalignment=horizontal, verticalalignment=vertical)


def _box(axes: Axes, point: Point, place: Place, size: Point, dots: float) -> Box:
    """Where a text of so many pixels would be."""
    right, up, horizontal, vertical = place
    x, y = axes.transData.transform(point)
    left = x + dots * right - size[0] * {"left": 0.0, "center": 0.5, "right": 1.0}[horizontal]
    low = y + dots * up - size[1] * {"bottom": 0.0, "center": 0.5, "top": 1.0}[vertical]
    return (left - 2, low - 2, left + size[0] + 2, low + size[1] + 2)


def _faults(box: Box, written: Sequence[Box], covered: Pixels, others: Pixels, inside: Box) -> float:
    """How bad a place is: by other texts, what it covers, marks of other texts nearby, and the edge."""
    left, low, right, high = box
    over = sum(
        left < other[2] and other[0] < right and low < other[3] and other[1] < high for other in written
    )
    outside = max(0.0, inside[0] - left, right - inside[2], inside[1] - low, high - inside[3])
    near = (left - NEAR, low - NEAR, right + NEAR, high + NEAR)
    return 100.0 * over + 10 * outside + _held(covered, box) + 6 * _held(others, near)


def _held(pixels: Pixels, box: Box) -> int:
    left, low, right, high = box
    x, y = pixels.T
    return int(((x > left) & (x < right) & (y > low) & (y < high)).sum())


def _pixels(line: Line2D) -> Pixels:
    """Pixels (n, 2) of a line's points, with ten steps from each to the next if they are joined.

    Points count as five, so that texts rather cover lines than marks.
    """
    points = line.get_transform().transform(line.get_xydata())
    repeated = np.repeat(points, 5, axis=0)
    if line.get_linestyle() == "None":
        return repeated
    at = np.arange(len(points))
    steps = np.linspace(0, at[-1], 10 * at[-1] + 1)
    between = np.column_stack([np.interp(steps, at, column) for column in points.T])
    return np.concatenate([repeated, between])


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
