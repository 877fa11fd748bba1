"""Tables and plots, made from the raw results in results/*/*.json and nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from common import markdown

from compressae_index.measuring.evaluation import Measurement
from compressae_index.measuring.plots import (
    MARK_AREA,
    Look,
    Series,
    Text,
    darker,
    draw_line,
    figure_class,
    looks,
    write_texts,
)

Line: TypeAlias = dict[str, Any]

OURS = "ours, dense"
# Families that a plot shows; more of them cannot be told apart.
PLOTTED = (
    *("ours, dense", "ours, two_stage", "CompresSAE recipe, symmetric dense", "Faiss PQ", "Faiss RQ"),
    *("Faiss RaBitQ", "Faiss TurboQuant", "Faiss SQ", "SVS LVQ", "PCA, SQ4"),
)
FAST = (
    *("ours, dense", "ours, two_stage", "ours, codes alone, dense", "ours, codes alone, two_stage"),
    *("exact", "Faiss PQ", "Faiss RaBitQ", "Faiss IVF-PQ", "Faiss HNSW", "SVS LVQ"),
)
DPI = 90
# Curves of the paper's figure: those that the paper has, and the best of ours.
CURVES = (
    *("ours: dense, pursuit", "ours: two_stage, pursuit", "ours: dense, topk", "first components, float32"),
    *("principal components, float32", "recipe: sparse", "recipe: reconstructed"),
)
PUBLISHED_LOOKS = tuple(Look("#000000", marker, ":") for marker in "<>h")


def raw(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Raw results of one data set, by the name of their files."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def best_that_fit(lines: Iterable[Line], budgets: Sequence[int], at: int) -> dict[str, dict[int, Line]]:
    """Of each family the line of the highest recall@at at each budget; families of the highest recall first.

    Bytes are rounded, as a level or an offset of an index takes parts of a byte a vector.
    """
    best: dict[str, dict[int, Line]] = {}
    for line in lines:
        for budget in budgets:
            kept = best.setdefault(line["family"], {})
            if round(line["bytes"]) <= budget and _recall(line, at) > _recall(kept.get(budget), at):
                kept[budget] = line
    fitting = {family: kept for family, kept in best.items() if kept}
    return dict(
        sorted(fitting.items(), key=lambda item: [-_recall(item[1].get(budget), at) for budget in budgets])
    )


def _recall(line: Line | None, at: int) -> float:
    return -1.0 if line is None else float(line["recall"][str(at)])


def equal_bytes(lines: Sequence[Line], budgets: Sequence[int], at: int) -> str:
    """recall@at by family and budget, the best of a budget in bold."""
    best = best_that_fit(lines, budgets, at)
    winners = {budget: max(_recall(kept.get(budget), at) for kept in best.values()) for budget in budgets}

    def cell(line: Line | None, budget: int) -> str:
        if line is None:
            return ""
        share = _recall(line, at)
        return f"**{share:.3f}**" if share == winners[budget] else f"{share:.3f}"

    return markdown(
        [f"recall@{at}", *(f"{budget} bytes" for budget in budgets)],
        [[family, *(cell(kept.get(b), b) for b in budgets)] for family, kept in best.items()],
    )


def every_line(lines: Sequence[Line]) -> str:
    """All measurements of every contestant; what was not measured is left blank."""
    header = ["family", "code", "bytes/vector", "resident MB", "recall@10", "recall@100"]
    header += ["ms, single", "ms, batch", "train s", "fill s"]
    return markdown(
        header,
        [
            [
                line["family"],
                line["name"],
                f"{line['bytes']:.0f}",
                _cost(line["resident_bytes"], 1e6, 1),
                f"{_recall(line, 10):.4f}",
                f"{_recall(line, 100):.4f}",
                _cost(line["ms_single"], 1, 2),
                _cost(line["ms_batch"], 1, 2),
                _cost(line["train_seconds"], 1, 1),
                _cost(line["fill_seconds"], 1, 1),
            ]
            for line in lines
        ],
    )


def _cost(amount: float | None, unit: float, digits: int) -> str:
    return "" if amount is None else f"{amount / unit:.{digits}f}"


def growth(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """The exponent e of the best fit amount = c * size^e, by least squares of logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def improving(lines: Iterable[Line], at: int) -> list[Line]:
    """Without those that another of the family beats in recall@at with no more bytes."""
    best: dict[str, float] = {}
    kept = []
    for line in sorted(lines, key=lambda line: (float(line["bytes"]), -_recall(line, at))):
        if _recall(line, at) > best.get(line["family"], -1.0):
            best[line["family"]] = _recall(line, at)
            kept.append(line)
    return kept


def series_of(lines: Iterable[Line], families: Sequence[str], joined: bool) -> list[Series]:
    """The lines of a plot, one a family, by rising bytes."""
    by_family: dict[str, list[Measurement]] = {}
    for line in sorted(lines, key=lambda line: float(line["bytes"])):
        shares = {int(at): share for at, share in line["recall"].items()}
        taken = math.nan if line["ms_single"] is None else line["ms_single"]
        measurement = Measurement(line["name"], line["bytes"], shares, taken)
        by_family.setdefault(line["family"], []).append(measurement)
    return [
        Series(name, by_family[name], joined=joined, is_ours=name.startswith("ours"))
        for name in families
        if name in by_family
    ]


def draw(path: Path, size: tuple[float, float], panels: Sequence[Callable[[Any], None]]) -> None:
    """Writes a PNG of panels side by side."""
    figure = figure_class()(figsize=size, dpi=DPI, layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        panel(axes)
    figure.savefig(path)


def paper_panel(
    points: Sequence[Line], published: dict[str, dict[float, float]], dim: int, axes: Any
) -> None:
    """Recall against compression by the paper's accounting; by stored bytes where none is published."""
    size = "paper_bytes" if published else "bytes"
    curves: dict[str, list[tuple[float, float]]] = {}
    for curve in CURVES:
        own = [point for point in points if point["curve"] == curve]
        curves[curve] = [(4 * dim / point[size], point["recall"]) for point in own]
    styles = looks([curve.startswith("ours") for curve in curves])
    curves |= {curve: list(by_factor.items()) for curve, by_factor in published.items()}
    names = []
    for (curve, places), style in zip(curves.items(), [*styles, *PUBLISHED_LOOKS], strict=False):
        if places:
            draw_line(axes, places, style, MARK_AREA, joined=True)
            names.append(Text(curve, places, darker(style.color)))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("compression, 8 bytes a nonzero" if published else "compression, bytes as stored")
    axes.set_ylabel("recall@100")
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    write_texts(axes, names)


def size_table(measured: dict[str, Any]) -> str:
    """Measurements at each number of documents, and how they grow."""
    sizes = measured["sizes"]
    rows = []
    for name in sizes[0]:
        exponent = measured["exponents"].get(name)
        cells = [f"{one[name]:,.4g}" if name != "documents" else f"{one[name]:,}" for one in sizes]
        rows.append([name.replace("_", " "), *cells, "" if exponent is None else f"{exponent:.2f}"])
    header = ["", *(f"{one['documents']:,} documents" for one in sizes), "exponent"]
    return markdown(header, rows[1:])


def machine(report: dict[str, Any]) -> str:
    """The machine, date and versions of the numbers."""
    place = report["environment"]
    processor = place["processor"].replace("(R)", "")
    return (
        f"{place['date']}, {processor}, {place['simd']}, {place['threads']} threads to build, "
        f"load {place['load_average'][0]:.1f}"
    )


def replaced(text: str, name: str, body: str) -> str:
    """A text with what is between <!-- name --> and <!-- /name --> replaced.

    Raises:
        ValueError: the text has no such marks.
    """
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not marks.search(text):
        msg = f"no marks <!-- {name} --> and <!-- /{name} -->"
        raise ValueError(msg)
    return marks.sub(lambda match: f"{match[1]}{body.rstrip()}\n{match[2]}", text)
