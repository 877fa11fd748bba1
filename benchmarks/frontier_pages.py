"""Tables and the picture of `run.py frontier`, made from its raw results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown
from summaries import Line, draw

from compressae_index.measuring.plots import (
    Look,
    Text,
    darker,
    draw_line,
    looks,
    mark_area,
    mark_front,
    write_texts,
)

LEVELS = (0.8, 0.9, 0.95, 0.98, 0.99)
BOTH_LEVELS = (0.9, 0.95, 0.98)
# Recall at which the picture compares memory, and the least that it shows.
COMPARED, SHOWN = 0.95, 0.7
# Families of the picture, by how much they tell, each the first of its kind that took part; and the most that
# can be told apart.
PICTURED = (
    *(("ours, codes",), ("ours, 128 bytes",), ("ours, 200 bytes",), ("ours, k=16 + originals",)),
    *(("hnswlib", "Faiss HNSW"), ("SVS Vamana, LVQ4x8", "SVS Vamana, float16"), ("ScaNN, int8",)),
    *(("Faiss HNSW, SQ8",), ("Faiss IVF-PQ + SQ8",), ("ASH-like, by us", "SAQ-like, by us")),
    *(("turbovec, 4 bits",), ("usearch, int8",), ("flat, float16",)),
)
MOST = 10
# Marks are larger than usual, so that their area is seen, and texts are further from them.
LARGER, AWAY = 2.0, 1.5
# A step of a front is drawn if it leaves out at most this share of what the one before missed.
WORTH = 0.9
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
    """Bytes and seconds to build; an asterisk where bytes a vector were measured.

    Those of models and codebooks are a column of their own, by the number of vectors.
    """
    header = ["index", "bytes/vector", "models, bytes/vector", "on disk", "models, MB", "measured, MB"]
    header += ["build s", "of it train", "details"]
    n = report["data"]["vectors"]
    return markdown(
        header,
        [
            [
                one["family"],
                f"{one['row_bytes']:.0f}" + ("\\*" if one["is_measured"] else ""),
                f"{one['model_bytes'] / n:.1f}",
                f"{one['disk_bytes']:.0f}" if one["disk_bytes"] else "",
                f"{one['model_bytes'] / 1e6:.1f}",
                f"{one['resident_bytes'] / 1e6:.1f}",
                f"{one['train_seconds'] + one['fill_seconds']:.0f}",
                f"{one['train_seconds']:.0f}",
                one["details"],
            ]
            for one in sorted(report["contestants"], key=lambda one: one["row_bytes"])
        ],
    )


def times_table(report: dict[str, Any], at: int, shown: Collection[str] = ()) -> str:
    """Milliseconds of the fastest setting that reaches a recall, in bold where nothing smaller is as fast.

    Of those shown, by default all; what is not shown counts, too.
    """
    by_family = fronts(report, at)
    columns = [f"{level:.2f}" for level in LEVELS]
    header = [f"ms at recall@{at} of", "bytes/vector", "on disk", *columns, "highest"]
    times, facts = _times(by_family, LEVELS), {one["family"]: one for one in report["contestants"]}
    return markdown(
        header,
        [
            [
                family,
                f"{facts[family]['row_bytes']:.0f}",
                f"{facts[family]['disk_bytes']:.0f}" if facts[family]["disk_bytes"] else "",
                *times[family],
                _highest(lines),
            ]
            for family, lines in by_family.items()
            if not shown or family in shown
        ],
    )


def both_table(report: dict[str, Any]) -> str:
    """Milliseconds at recall@10 and at recall@100, bytes of vectors and of models, and seconds to build."""
    both = {at: fronts(report, at) for at in (10, 100)}
    times = {at: _times(by_family, BOTH_LEVELS) for at, by_family in both.items()}
    header = ["index", "bytes/vector", "models", "on disk", "build s"]
    for at in both:
        header += [*(f"@{at} {level:.2f}" for level in BOTH_LEVELS), "highest"]
    n, rows = report["data"]["vectors"], []
    for one in sorted(report["contestants"], key=lambda one: one["row_bytes"]):
        family = one["family"]
        cells = [family, f"{one['row_bytes']:.0f}", f"{one['model_bytes'] / n:.1f}"]
        cells += [f"{one['disk_bytes']:.0f}" if one["disk_bytes"] else ""]
        cells += [f"{one['train_seconds'] + one['fill_seconds']:.0f}"]
        for at, by_family in both.items():
            cells += [*times[at][family], _highest(by_family[family])]
        rows.append(cells)
    return markdown(header, rows)


def _times(by_family: dict[str, list[Line]], levels: Sequence[float]) -> dict[str, list[str]]:
    """Milliseconds by family and level, families of the fewest bytes first."""
    best, cells = dict.fromkeys(levels, float("inf")), dict[str, list[str]]()
    for family, lines in by_family.items():
        cells[family] = []
        for level in levels:
            line = fastest(lines, level)
            text = "" if line is None else f"{line['ms']:.3f}"
            if line is not None and line["ms"] < best[level]:
                best[level], text = line["ms"], f"**{text}**"
            cells[family].append(text)
    return cells


def _highest(lines: Sequence[Line]) -> str:
    return f"{max(line['recall'] for line in lines):.3f}"


def fronts_table(report: dict[str, Any], at: int) -> str:
    """The settings of all fronts."""
    return markdown(
        ["index", "setting", f"recall@{at}", "ms, median", "ms, mean", "ms, cold"],
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


def styles(report: dict[str, Any]) -> dict[str, Look]:
    """The families of the picture, at most ten of them, ours first; each looks the same in all pictures."""
    families = {one["family"] for one in report["contestants"]}
    shown: dict[str, Look] = {}
    for kind, style in zip(PICTURED, looks([kind[0].startswith("ours") for kind in PICTURED]), strict=True):
        name = next((name for name in kind if name in families), None)
        if name is not None and len(shown) < MOST:
            shown[name] = style
    return shown


def picture(report: dict[str, Any], at: int, path: Path) -> None:
    """Writes two panels with one axis of time: against recall, and against bytes at one recall."""
    low, high = _times_shown(report, at)

    def panel(drawn: Callable[[dict[str, Any], int, Any], list[Text]], axes: Any) -> None:
        texts = drawn(report, at, axes)
        _time_axis(axes, low, high)
        write_texts(axes, texts, AWAY)

    draw(path, (14, 7), [partial(panel, against_recall), partial(panel, against_bytes)])


def against_recall(report: dict[str, Any], at: int, axes: Any) -> list[Text]:
    """The front of each family; marks grow with the bytes, which are beside the names."""
    facts = {one["family"]: one for one in report["contestants"]}
    drawn, texts, everything = fronts(report, at), [], []
    for lines in drawn.values():
        everything += [(line["recall"], line["ms"]) for line in lines if line["recall"] >= SHOWN]
    axes.set_xscale("function", functions=(_spread, _gathered))
    mark_front(axes, everything, right=True, up=False)
    for family, style in styles(report).items():
        points = [(line["recall"], line["ms"]) for line in _worthwhile(drawn[family])]
        if points:
            area = LARGER * mark_area(facts[family]["row_bytes"])
            draw_line(axes, points, style, area, joined=True)
            texts.append(Text(_named(facts[family]), points[::-1], darker(style.color)))
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlim(SHOWN - 0.02, 1.0065)
    axes.set_xlabel(f"recall@{at}: the share of the true {at} nearest that is found")
    axes.set_title(
        "time against recall: right and down is better\nlarge marks take more memory; grey: nothing is faster"
    )
    return texts


def against_bytes(report: dict[str, Any], at: int, axes: Any) -> list[Text]:
    """What one recall takes: a mark a family, grey and without a name if the other panel has it not."""
    drawn, texts = fronts(report, at), []
    facts = {one["family"]: one for one in report["contestants"]}
    reached = {family: fastest(lines, COMPARED) for family, lines in drawn.items()}
    points = {
        family: (facts[family]["row_bytes"], line["ms"])
        for family, line in reached.items()
        if line is not None
    }
    axes.set_xscale("log", base=2)
    mark_front(axes, points.values(), right=False, up=False)
    looked = styles(report)
    for family, point in points.items():
        if family in looked:
            draw_line(axes, [point], looked[family], LARGER * 40, joined=False)
            texts.append(Text(_named(facts[family]), [point], darker(looked[family].color)))
        else:
            axes.plot(*point, marker=".", color="#999999", zorder=2)
    sizes = [size for size, _ in points.values()] or [1.0]
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(min(sizes) / 1.4, max(sizes) * 2.2)
    axes.set_xlabel("bytes of memory a vector")
    axes.set_title(
        f"memory and time at recall@{at} of {COMPARED:g}: left and down is better\n"
        "grey: nothing is smaller and faster; dots: what is not on the left"
    )
    return texts


def _named(one: dict[str, Any]) -> str:
    """A family with its bytes in memory and on disk."""
    name, disk = one["family"], f" and {one['disk_bytes']:,.0f} on disk" if one["disk_bytes"] else ""
    return name if name.endswith("bytes") else f"{name}, {one['row_bytes']:,.0f} B{disk}"


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
