"""Plots of measurements: recall against bytes, speed against recall; and plots as SVG that stands in HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.errors import MissingExtraError
from compressae_index.evaluation import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation

Point: TypeAlias = tuple[float, float]
Place: TypeAlias = tuple[int, int, str, str]

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


def recall_against_bytes(axes: Axes, series: Sequence[Series], at: int) -> None:
    """recall@at over bytes per vector, which are on a logarithmic scale; up and to the left is better."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("bytes per vector")
    axes.set_ylabel(f"recall@{at}")
    _draw(axes, series, lambda one: (one.bytes_per_vector, one.recall[at]))


def speed_against_recall(axes: Axes, series: Sequence[Series], at: int) -> None:
    """Queries a second, on a logarithmic scale, over recall@at; up and to the right is better."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"recall@{at}")
    axes.set_ylabel("queries per second, one thread")
    _draw(axes, series, lambda one: (one.recall[at], one.queries_per_second))


def _draw(axes: Axes, series: Sequence[Series], place: Callable[[Measurement], Point]) -> None:
    texts: dict[Point, str] = {}
    for one in series:
        points = [place(measurement) for measurement in one.measurements]
        style = "-" if one.joined else "none"
        axes.plot(*zip(*points, strict=True), linestyle=style, marker="o", markersize=4.5, label=one.name)
        texts |= {point: text for point, text in zip(points, one.labels, strict=False) if text}
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(0.1)
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    axes.figure.canvas.figure.draw_without_rendering()  # the layout decides where points are
    _write(axes, texts)


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
