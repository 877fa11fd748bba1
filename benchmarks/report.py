"""The pages of results/: one section a data set, and the parts that README.md and docs/benchmarks.md show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import engines
import frontier_pages
import paper
import scale
import summaries
from common import markdown
from quality import BUDGETS

from compressae_index.measuring.plots import recall_against_bytes, speed_against_recall

HEAD = """# Results

Written by `python benchmarks/run.py report` from the raw results in the folders here: do not edit.
[benchmarks/README.md](../README.md) says how they are measured."""
# The data set whose tables at equal bytes README.md and docs/benchmarks.md show.
MAIN = "wordnet-minilm"
# The one of the first table of README.md, and what that shows of it.
LARGE = "million"
SHOWN = (
    *("ours, k=8 + originals", "ours, k=16 + originals", "ours, 128 bytes", "ours, 200 bytes"),
    *("turbovec, 4 bits", "Faiss IVF-PQ + SQ8", "ScaNN, int8", "usearch, int8", "SVS Vamana, float16"),
    "hnswlib",
)
# The same vectors, on an older processor.
OLDER = "million-avx2"
AT = 100
PLANNED = (10**8, 10**9)


def is_kept(folder: Path) -> bool:
    """Whether a folder holds results to show; quick runs are not shown."""
    return folder.is_dir() and not folder.name.endswith("-quick")


def section(folder: Path) -> str:
    """The section of one data set, whose plots are written into its folder."""
    parts = [f"## {folder.name}"]
    for part in (_frontier, _quality, _paper, _engines, _scale, _milvus):
        parts += part(folder)
    return "\n\n".join(parts)


def summary(results: Path) -> str:
    """The part for README.md: recall at equal bytes of the families that are plotted, and their plot."""
    lines = [line for line in _main_lines(results) if line["family"] in summaries.PLOTTED]
    plot = f"![recall against bytes](benchmarks/results/{MAIN}/recall-bytes.png)"
    return f"{summaries.equal_bytes(lines, BUDGETS, AT)}\n\n{plot}"


def details(results: Path) -> str:
    """The part for docs/benchmarks.md: recall at equal bytes of all families, and two plots."""
    plots = "\n".join(
        f"![{text}](../benchmarks/results/{MAIN}/{name}.png)"
        for name, text in (("recall-bytes", "recall against bytes"), ("speed-recall", "speed against recall"))
    )
    return f"{summaries.equal_bytes(_main_lines(results), BUDGETS, AT)}\n\n{plots}"


def _main_lines(results: Path) -> list[summaries.Line]:
    return _lines(summaries.raw(results / MAIN, "quality-*.json"))


def _lines(reports: list[dict[str, Any]]) -> list[summaries.Line]:
    return [line for report in reports for line in report["lines"]]


def _facts(report: dict[str, Any]) -> str:
    data = report["data"]
    return (
        f"{data['vectors']:,} vectors of {data['dim']} dimensions, {data['queries']:,} queries; "
        f"{summaries.machine(report)}."
    )


def parts(results: Path) -> list[tuple[str, str, str]]:
    """What pages show of the results: the page, the name of the part, its text."""
    way = "benchmarks/results"
    return [
        ("README.md", "benchmarks", summary(results)),
        ("README.md", "frontier", frontier(results, LARGE, way)),
        ("docs/benchmarks.md", "benchmarks", details(results)),
        *(
            ("docs/benchmarks.md", f"frontier-{data}", frontier(results, data, f"../{way}", whole=True))
            for data in (MAIN, LARGE, OLDER)
        ),
    ]


def frontier(results: Path, data: str, way: str, *, whole: bool = False) -> str:
    """The part on time and memory at a recall of a data set, for a page from which `way` leads to results.

    The whole table has all indexes, recall@100 beside recall@10, bytes of models, and seconds to build.
    """
    folder = results / f"frontier-{data}"
    reports = summaries.raw(folder, "frontier.json")
    if not reports:
        return "No run is kept yet."
    plot = f"![time against recall and memory]({way}/{folder.name}/frontier-10.png)"
    table = frontier_pages.times_table(reports[0], 10, SHOWN)
    if whole:
        table = frontier_pages.both_table(reports[0])
    return f"{_facts(reports[0])}\n\n{table}\n\n{plot}"


def _frontier(folder: Path) -> list[str]:
    parts = []
    for report in summaries.raw(folder, "frontier.json"):
        parts.append(f"### Recall, time and memory\n\n{_facts(report)}")
        parts.append(frontier_pages.contestants_table(report))
        parts.append(f"Milliseconds at recall@10 and recall@100:\n\n{frontier_pages.both_table(report)}")
        for at in (10, 100):
            frontier_pages.picture(report, at, folder / f"frontier-{at}.png")
            parts += [
                f"![time against recall@{at} and memory]({folder.name}/frontier-{at}.png)",
                frontier_pages.times_table(report, at),
                frontier_pages.fronts_table(report, at),
            ]
        left_out = "; ".join(f"{name}: {why}" for name, why in report["left_out"].items())
        parts += [f"Left out: {left_out}."] if left_out else []
    return parts


def _quality(folder: Path) -> list[str]:
    reports = summaries.raw(folder, "quality-*.json")
    if not reports:
        return []
    lines = _lines(reports)
    small = summaries.improving((line for line in lines if line["bytes"] <= max(BUDGETS)), AT)
    summaries.draw(
        folder / "recall-bytes.png",
        (7, 5),
        [
            lambda axes: recall_against_bytes(
                axes, summaries.series_of(small, summaries.PLOTTED, joined=True), AT, BUDGETS
            )
        ],
    )
    parts = [
        f"### Recall at equal bytes\n\n{_facts(reports[0])} Of each family the best that fits.",
        summaries.equal_bytes(lines, BUDGETS, AT),
        summaries.equal_bytes(lines, BUDGETS, 10),
        f"![recall against bytes]({folder.name}/recall-bytes.png)",
    ]
    if drawn := summaries.series_of(_timed(lines), summaries.FAST, joined=False):
        summaries.draw(
            folder / "speed-recall.png", (7, 5), [partial(speed_against_recall, series=drawn, at=AT)]
        )
        parts.append(f"![speed against recall]({folder.name}/speed-recall.png)")
    return [*parts, summaries.every_line(lines)]


def _timed(lines: list[summaries.Line]) -> list[summaries.Line]:
    return [line for line in lines if line["ms_single"] is not None]


def _paper(folder: Path) -> list[str]:
    reports = summaries.raw(folder, "paper.json")
    if not reports:
        return []
    points, dim = reports[0]["points"], reports[0]["data"]["dim"]
    panels = [partial(summaries.paper_panel, points, published, dim) for published in (paper.PUBLISHED, {})]
    summaries.draw(folder / "paper.png", (12, 5), panels)
    curves = list(dict.fromkeys(point["curve"] for point in points))
    ks = sorted({point["k"] for point in points})
    cells = {
        (point["curve"], point["k"]): f"{point['recall']:.3f} ({point['bytes']:.0f})" for point in points
    }
    return [
        f"### The paper's figure\n\n{_facts(reports[0])}",
        f"![recall against compression]({folder.name}/paper.png)",
        markdown(
            [f"recall@{AT} (bytes)", *(f"k = {k}" for k in ks)],
            [[curve, *(cells.get((curve, k), "") for k in ks)] for curve in curves],
        ),
    ]


def _engines(folder: Path) -> list[str]:
    parts = []
    for report in summaries.raw(folder, "engines.json"):
        settings, measured = report["settings"], report["measured"]
        parts.append(f"### Sparse engines\n\n{report['data']}; {summaries.machine(report)}.")
        parts += [engines.table(one, settings["query_nnz"], settings["top"]) for one in measured]
        parts += [engines.growth_table(measured)] if len(measured) > 1 else []
        top = settings["top"]
        drawn = [(one["documents"], engines.series(one, top)) for one in measured]
        # The most documents that most families were measured on.
        n, series = max(drawn, key=lambda one: (2 * len(one[1]) > len(engines.FAMILIES), one[0]))
        panel = partial(speed_against_recall, series=series, at=top)
        summaries.draw(folder / "engines.png", (7, 5), [panel])
        parts.append(
            f"Queries a second against recall, {n:,} documents:\n\n"
            f"![speed of engines against recall]({folder.name}/engines.png)"
        )
    return parts


def _scale(folder: Path) -> list[str]:
    parts = []
    for report in summaries.raw(folder, "scale.json"):
        planned = [scale.projected(report, n) for n in PLANNED]
        parts += [
            f"### Scale\n\n{_facts(report)} Codes are generated from real ones.",
            summaries.size_table(report),
            f"Training took {report['train_seconds']:.0f} s. One thread encodes "
            f"{report['encoded_per_second']:,.0f} vectors a second. The projection of a query takes "
            f"{report['projection_ms']:.2f} ms, and a model {report['model_bytes'] / 1e6:.0f} MB.",
            markdown(
                ["one node, one thread", *(f"{plan['documents']:,} documents" for plan in planned)],
                [
                    [name.replace("_", " "), *(f"{plan[name]:,.4g}" for plan in planned)]
                    for name in planned[0]
                ][1:],
            ),
        ]
    return parts


def _milvus(folder: Path) -> list[str]:
    parts = []
    for report in summaries.raw(folder, "milvus.json"):
        taken, n = report["import"], report["settings"]["rows"]
        seconds = {phase: one for phase, one in taken["seconds"].items() if phase != "train"}
        rate = n / sum(seconds.values())
        parts += [
            f"### Milvus\n\n{n:,} vectors on Milvus Lite; {summaries.machine(report)}.",
            f"One thread imports {rate:,.0f} vectors a second, of them seconds in "
            + ", ".join(f"{phase} {one:.1f}" for phase, one in seconds.items())
            + f". A server's posting lists take {taken['bytes_after'] / n:.0f} bytes a vector, float32 "
            f"vectors {taken['bytes_before'] / n:.0f}; Lite's files {report['disk']['codes']:.0f} and "
            f"{report['disk']['dense']:.0f}.",
            markdown(
                ["cluster", *(f"{n_planned:,} vectors" for n_planned in PLANNED)],
                [
                    ["postings, GB", *(f"{m * taken['bytes_after'] / n / 1e9:,.0f}" for m in PLANNED)],
                    ["import, hours of one thread", *(f"{m / rate / 3600:,.0f}" for m in PLANNED)],
                ],
            ),
        ]
    return parts
