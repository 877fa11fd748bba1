"""Tables and the picture of `run.py frontier`, made from its raw results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from common import markdown
from summaries import Line, draw

from compressae_index.measuring.plots import COLOURS, MARKERS, mark_area, write_texts

LEVELS = (0.8, 0.9, 0.95, 0.98, 0.99)
# Recall at which the picture compares memory, and the least that it shows.
COMPARED, SHOWN = 0.95, 0.7
# Rivals of the picture: more of them cannot be told apart.
PICTURED = (
    *("hnswlib", "Faiss HNSW, SQ8", "ScaNN, int8", "usearch, int8", "Faiss IVF-PQ + SQ8"),
    *("SVS Vamana, float16", "SVS Vamana, LVQ4x8", "turbovec, 4 bits", "flat, float16"),
)
OUR_COLOUR = COLOURS[0]
# Marks are larger than usual, so that their area is seen, and texts are further from them.
LARGER, AWAY = 2.0, 1.5
# A step of a front is drawn if it leaves out at most this share of what the one before missed.
WORTH = 0.9
Texts: TypeAlias = dict[tuple[float, float], tuple[str, str]]
"""Texts of points, and their colours."""
TICKS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)


def front(lines: Iterable[Line]) -> list[Line]:
    """Those that no faster one equals in recall, the fastest first."""
    kept: list[Line] = []
    for line in sorted(lines, key=lambda line: (line["ms"], -line["recall"])):
        if not kept or line["recall"] > kept[-1]["recall"]:
            kept.append(line)
    return kept


def fronts(report: dict[str, Any], at: int) -> dict[str, list[Line]]:
    """The front of each family, those of the fewest bytes first."""
    families = sorted(report["contestants"], key=lambda one: one["row_bytes"])
    lines = [line for line in report["lines"] if line["at"] == at]
    return {
        one["family"]: front(line for line in lines if line["family"] == one["family"]) for one in families
    }


def fastest(lines: Sequence[Line], level: float) -> Line | None:
    """The fastest that reaches a recall; None if none does."""
    return next((line for line in lines if line["recall"] >= level), None)


def contestants_table(report: dict[str, Any]) -> str:
    """Bytes and seconds to build; an asterisk where bytes a vector were measured."""
    header = ["", "bytes/vector", "on disk", "models, MB", "measured, MB", "train s", "fill s", "details"]
    return markdown(
        header,
        [
            [
                one["family"],
                f"{one['row_bytes']:.0f}" + ("\\*" if one["is_measured"] else ""),
                f"{one['disk_bytes']:.0f}" if one["disk_bytes"] else "",
                f"{one['model_bytes'] / 1e6:.1f}",
                f"{one['resident_bytes'] / 1e6:.1f}",
                f"{one['train_seconds']:.0f}",
                f"{one['fill_seconds']:.0f}",
                one["details"],
            ]
            for one in sorted(report["contestants"], key=lambda one: one["row_bytes"])
        ],
    )


def times_table(report: dict[str, Any], at: int) -> str:
    """Milliseconds of the fastest setting that reaches a recall, in bold where nothing smaller is as fast."""
    facts = {one["family"]: one for one in report["contestants"]}
    rows, best = [], dict.fromkeys(LEVELS, float("inf"))
    for family, lines in fronts(report, at).items():
        cells = []
        for level in LEVELS:
            line = fastest(lines, level)
            text = "" if line is None else f"{line['ms']:.3f}"
            if line is not None and line["ms"] < best[level]:
                best[level], text = line["ms"], f"**{text}**"
            cells.append(text)
        one = facts[family]
        disk = f"{one['disk_bytes']:.0f}" if one["disk_bytes"] else ""
        highest = f"{max(line['recall'] for line in lines):.3f}"
        rows.append([family, f"{one['row_bytes']:.0f}", disk, *cells, highest])
    levels = [f"{level:.2f}" for level in LEVELS]
    return markdown([f"ms at recall@{at} of", "bytes/vector", "on disk", *levels, "highest"], rows)


def fronts_table(report: dict[str, Any], at: int) -> str:
    """The settings of all fronts."""
    return markdown(
        ["", "setting", f"recall@{at}", "ms, median", "ms, mean", "ms, cold"],
        [
            [
                family,
                line["setting"],
                f"{line['recall']:.4f}",
                f"{line['ms']:.3f}",
                f"{line['ms_mean']:.3f}",
                "" if line["ms_cold"] is None else f"{line['ms_cold']:.1f}",
            ]
            for family, lines in fronts(report, at).items()
            for line in lines
        ],
    )


class Style(NamedTuple):
    """The look of a family: ours in one colour, thick and filled, others thin and hollow."""

    text: str
    colour: str
    marker: str
    is_ours: bool


def styles(report: dict[str, Any]) -> dict[str, Style]:
    """The families of the picture."""
    families = {one["family"]: one for one in report["contestants"]}
    ours = [name for name, one in families.items() if one["is_ours"]]
    looks = {name: Style(name, OUR_COLOUR, MARKERS[i], True) for i, name in enumerate(ours)}
    others = [name for name in PICTURED if name in families]
    colours = itertools.cycle(COLOURS[1:])
    looks |= {
        name: Style(name, colour, MARKERS[i], False)
        for i, (name, colour) in enumerate(zip(others, colours, strict=False))
    }
    return looks


def picture(report: dict[str, Any], at: int, path: Path) -> None:
    """Writes two panels with one axis of time: against recall, and against bytes at one recall."""
    from matplotlib.patheffects import withStroke

    low, high = _times_shown(report, at)

    def panel(drawn: Callable[[dict[str, Any], int, Any], Texts], axes: Any) -> None:
        texts = drawn(report, at, axes)
        _time_axis(axes, low, high)
        axes.figure.canvas.figure.draw_without_rendering()  # the layout decides where points are
        names = {point: text for point, (text, _) in texts.items()}
        colours = {point: colour for point, (_, colour) in texts.items()}
        write_texts(axes, names, colours, AWAY)
        for text in axes.texts:
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # readable over lines

    draw(path, (13, 6.5), [partial(panel, against_recall), partial(panel, against_bytes)])


def against_recall(report: dict[str, Any], at: int, axes: Any) -> Texts:
    """The front of each family; marks grow with the bytes."""
    sizes = {one["family"]: one["row_bytes"] for one in report["contestants"]}
    drawn, texts = fronts(report, at), {}
    for family, style in styles(report).items():
        points = [(line["recall"], line["ms"]) for line in _worthwhile(drawn[family])]
        if points:
            _line(axes, points, style, LARGER * mark_area(sizes[family]))
            texts[points[-1]] = (style.text, _darker(style.colour))
    axes.set_xscale("function", functions=(_spread, _gathered))
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlim(SHOWN - 0.02, 1.0065)
    axes.set_xlabel(f"recall@{at}: the share of the true {at} nearest that is found")
    axes.set_title("speed against recall: right and down is better; large marks take more memory")
    return texts


def against_bytes(report: dict[str, Any], at: int, axes: Any) -> Texts:
    """What one recall takes: a mark a family."""
    facts, drawn, texts = {one["family"]: one for one in report["contestants"]}, fronts(report, at), {}
    for family, style in styles(report).items():
        line = fastest(drawn[family], COMPARED)
        if line is not None:
            point = (facts[family]["row_bytes"], line["ms"])
            _line(axes, [point], style, LARGER * 40)
            disk = facts[family]["disk_bytes"]
            texts[point] = (style.text + (f" ({disk:.0f} on disk)" if disk else ""), _darker(style.colour))
    sizes = [size for size, _ in texts] or [1.0]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(min(sizes) / 1.4, max(sizes) * 2.2)
    axes.set_xlabel("bytes of memory a vector")
    axes.set_title(f"memory and time at recall@{at} of {COMPARED:g}: left and down is better")
    return texts


def _times_shown(report: dict[str, Any], at: int) -> tuple[float, float]:
    """The range of times of all that is drawn."""
    drawn = fronts(report, at)
    times = [line["ms"] for family in styles(report) for line in _worthwhile(drawn[family])] or [1.0]
    return min(times) / 1.3, max(times) * 1.3


def _worthwhile(lines: Sequence[Line]) -> list[Line]:
    """A front from the least recall that is shown, without steps that find hardly more."""
    kept: list[Line] = []
    for line in lines:
        missed = 1 - line["recall"]
        if line["recall"] >= SHOWN and (not kept or missed < WORTH * (1 - kept[-1]["recall"])):
            kept.append(line)
    return kept


def _spread(share: Any) -> Any:
    """Recall with more room where it is high."""
    return -np.log10(1.01 - np.minimum(share, 1.0095))


def _gathered(place: Any) -> Any:
    return 1.01 - 10 ** -np.asarray(place)


def _darker(colour: str) -> str:
    """A colour that is readable as text."""
    return "#" + "".join(f"{int(0.65 * int(colour[i : i + 2], 16)):02x}" for i in (1, 3, 5))


def _line(axes: Any, points: list[tuple[float, float]], style: Style, area: float) -> None:
    xs, ys = zip(*points, strict=True)
    width, dashes = (2.2, "-") if style.is_ours else (1.1, "--")
    axes.plot(xs, ys, color=style.colour, linewidth=width, linestyle=dashes, zorder=3 if style.is_ours else 2)
    axes.scatter(
        xs,
        ys,
        s=area,
        marker=style.marker,
        facecolors=style.colour if style.is_ours else "white",
        edgecolors="white" if style.is_ours else style.colour,
        linewidths=0.5 if style.is_ours else 1.2,
        zorder=4,
    )


def _time_axis(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("milliseconds of a query, one thread")
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
