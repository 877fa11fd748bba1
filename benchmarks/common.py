"""Shared by benchmarks: threads, timing and reports.

Scripts put their own folder on the path, so that they run with python -P and without. The sources of the
package are one folder up, so they cannot hide the installed package either way.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from compressae_index.measuring import environment as machine

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"

PACKAGES = (
    *("compressae-index", "numpy", "scipy", "torch", "faiss-cpu", "turbovec", "scalable-vs"),
    *("compresso-pytorch", "wordllama", "pyvsag", "pyseismic-lsr", "kannolo", "bmp", "sparse_dot_mkl", "mkl"),
    *("hnswlib", "scann", "usearch", "voyager", "milvus-lite", "pymilvus"),
)


def print_load(threads: int) -> None:
    """Prints a warning if other work takes the processors, as times are worth little then.

    Threads of OpenMP that spin while they wait suffer most; OMP_WAIT_POLICY=PASSIVE keeps them from it.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load + threads > processors + 1:
        click.echo(f"(other work runs here, load average {load:.1f}: do not trust the times)\n")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and the seconds it took."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call over rounds of one call each, so that all meet the same disturbances.

    Before each of them the call is made once untimed: the one before it left its own data in the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            taken[name].append(timed(call)[1])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, aligned for a terminal; numbers to the right."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    left = [not all(row[i].lstrip("*")[:1] in "0123456789+-." for row in rows) for i in range(len(header))]
    rule = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    lines = [
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        ]
        for row in [list(header), *rows]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def environment(threads: int) -> dict[str, Any]:
    """Versions and the machine, for the report."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_"))}
    today = datetime.now(UTC).date().isoformat()
    return {"date": today, **machine.environment(PACKAGES), "threads": threads, "variables": variables}


def results_path(stem: str, name: str) -> Path:
    """The file of raw results of a data set."""
    folder = RESULTS / stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace(' ', '-')}.json"


def write_report(
    output: Path | None, threads: int, settings: dict[str, Any], results: dict[str, Any]
) -> None:
    """Writes a JSON file, if one is asked for."""
    if output is not None:
        report = {"environment": environment(threads), "settings": settings, **results}
        output.write_text(json.dumps(report, indent=1, default=str) + "\n")
