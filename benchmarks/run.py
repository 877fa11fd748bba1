"""One runner for comparisons with others; raw results are kept as JSON, tables and plots made from them.

    python benchmarks/run.py quality [DATA] [--quick]
    python benchmarks/run.py engines [DATA]
    python benchmarks/run.py paper [DATA]
    python benchmarks/run.py scale [DATA]
    python benchmarks/run.py frontier [DATA] [--quick]
    python benchmarks/run.py report

The data sets are rows of `data_sets.py`, the contestants rows of `dense_contestants.py` and
`sparse_contestants.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from threadpoolctl import threadpool_limits

from compressae_index.checks import check_threads, normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

import engines
import frontier
import frontier_contestants
import paper
import quality
import report
import scale
import summaries
from common import RESULTS, print_load, results_path, write_report
from data_sets import DataSet, data_set_argument, load
from dense_contestants import CONTESTANTS, RECIPE_STEPS, Bench, LeftOut

QUICK_ROWS, QUICK_QUERIES = 20_000, 500
QUICK_BUDGETS = (56, 128)
QUICK_KS = (8, 32)
SEED = 0

Command = Callable[..., Any]


def shared(command: Command) -> Command:
    """Options of commands that train on a data set and search it."""
    for option in (
        click.option("--threads", type=int, help="Threads of building; all by default. Times are of one."),
        click.option("--rows", type=int, help="Vectors of the database; all by default."),
        click.option("--quick", is_flag=True, help="Fewer rows, queries and contestants; preset fast."),
        data_set_argument,
    ):
        command = option(command)
    return command


def prepared(
    source: str,
    quick: bool,
    rows: int | None,
    threads: int | None,
    budgets: tuple[int, ...] = (),
    metrics: tuple[Metric, ...] = ("cosine",),
) -> tuple[DataSet, Bench]:
    """The data set, and the bench that contestants are built from."""
    count = check_threads(threads)
    torch.set_num_threads(count)
    data = load(
        source,
        rows=rows or (QUICK_ROWS if quick else None),
        queries=QUICK_QUERIES if quick else None,
        metrics=metrics,
    )
    click.echo(data)
    print_load(count)
    return data, quality.bench_of(data, budgets, quick, count, SEED)


def target(data: DataSet, quick: bool, name: str) -> Path:
    """The file that raw results go to."""
    return results_path(f"{data.stem}-quick" if quick else data.stem, name)


def earlier(path: Path) -> dict[str, Any]:
    """Lines of a file of results, and where and how they were measured."""
    if not path.exists():
        return {"lines": [], "earlier": []}
    report = json.loads(path.read_text())
    made = {name: report[name] for name in ("environment", "settings")}
    return {"lines": report["lines"], "earlier": [*report.get("earlier", []), made]}


@click.group()
def main() -> None:
    """Compares compressae-index with others."""


main.add_command(engines.command)


@main.command("quality")
@shared
@click.option(
    "--contestant", "names", type=click.Choice(list(CONTESTANTS)), multiple=True, help="All by default."
)
@click.option(
    "--budget", "chosen", type=int, multiple=True, help="Bytes; the file of results keeps other lines."
)
@click.option(
    "--recall-only",
    is_flag=True,
    help="No times and memory: those of the same codes in the file of results stay.",
)
def quality_command(
    source: str,
    quick: bool,
    rows: int | None,
    threads: int | None,
    names: tuple[str, ...],
    chosen: tuple[int, ...],
    recall_only: bool,
) -> None:
    """Recall at equal bytes, milliseconds, seconds of building and resident memory of dense contestants.

    A quick run measures no resident memory.
    """
    budgets = chosen or (QUICK_BUDGETS if quick else quality.BUDGETS)
    data, bench = prepared(source, quick, rows, threads, budgets, ("cosine", "inner_product", "l2"))
    for name in names or [name for name, row in CONTESTANTS.items() if row.quick or not quick]:
        settings = {"contestant": name, "preset": bench.preset, "budgets": budgets, "seed": SEED}
        path, lines = target(data, quick, f"quality-{name}"), []
        before = earlier(path) if chosen or recall_only else {"lines": [], "earlier": []}
        try:
            with threadpool_limits(bench.threads):
                for line in quality.lines_of(
                    name, bench, click.echo, memory=not quick, recall_only=recall_only
                ):
                    lines.append(line)
                    whole = quality.joined(lines, before["lines"], keep=bool(chosen))
                    # After each, so that a run that is stopped keeps what it has measured.
                    results = before | {"data": data.facts(), "lines": whole}
                    write_report(path, bench.threads, settings, results)
        except (ModuleNotFoundError, LeftOut) as error:
            click.echo(f"  ({name} is left out: {error})")


@main.command("paper")
@shared
def paper_command(source: str, quick: bool, rows: int | None, threads: int | None) -> None:
    """The paper's figure redrawn: recall@100 against compression for 8 to 256 nonzeros."""
    data, bench = prepared(source, quick, rows, threads)
    ks = QUICK_KS if quick else paper.KS
    settings = {"preset": bench.preset, "ks": ks, "steps": RECIPE_STEPS, "seed": SEED}
    path, points = target(data, quick, "paper"), []
    with threadpool_limits(bench.threads):
        for point in paper.run(bench, ks, click.echo):
            points.append(point)
            # After each, so that a run that is stopped keeps what it has measured.
            write_report(path, bench.threads, settings, {"data": data.facts(), "points": points})


@main.command("scale")
@shared
def scale_command(source: str, quick: bool, rows: int | None, threads: int | None) -> None:
    """Time and memory at 100,000 to 10,000,000 generated codes, and what more would take."""
    count = check_threads(threads)
    torch.set_num_threads(count)
    data = load(source, rows=rows)
    click.echo(data)
    print_load(count)
    sizes = scale.SIZES[: -1 if quick else None]
    config = TrainConfig.preset("fast" if quick else "default", seed=SEED)
    measured = scale.run(data, sizes, config, count, SEED, click.echo)
    write_report(
        target(data, quick, "scale"),
        count,
        {"sizes": sizes, "seed": SEED},
        {"data": data.facts(), **measured},
    )


@main.command("frontier")
@shared
@click.option("--latents", type=int, help="Size of our dictionary; by default as a build chooses it.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps what was built.")
@click.option("--name", help="Of the folder of results, after frontier-; the name of the file by default.")
@click.option(
    "--contestant",
    "names",
    type=click.Choice(list(frontier_contestants.CONTESTANTS)),
    multiple=True,
    help="All by default.",
)
def frontier_command(
    source: str,
    quick: bool,
    rows: int | None,
    threads: int | None,
    latents: int | None,
    cache: Path | None,
    name: str | None,
    names: tuple[str, ...],
) -> None:
    """Recall against milliseconds and bytes: ours, graphs, inverted files and flat indexes, in one run."""
    count = check_threads(threads)
    torch.set_num_threads(count)
    rows = rows or (QUICK_ROWS if quick else None)
    data = load(source, rows=rows, queries=QUICK_QUERIES if quick else None)
    click.echo(data)
    print_load(count)
    truth = data.neighbours(max(frontier.TOPS))
    task = frontier_contestants.Task.of(normalize_rows(data.vectors), latents, count, SEED)
    facts, queries = data.facts(), normalize_rows(data.queries)
    del data  # contestants need the memory
    effort = frontier.QUICK if quick else frontier.FULL
    taken = names or tuple(frontier_contestants.CONTESTANTS)
    with threadpool_limits(count):
        measured = frontier.run(taken, task, queries, truth, cache, effort, click.echo)
    settings = {"latents": latents, "queries": effort.queries, "rounds": effort.rounds, "seed": SEED}
    stem = f"frontier-{name or Path(str(facts['name'])).stem}" + ("-quick" if quick else "")
    write_report(results_path(stem, "frontier"), count, settings, {"data": facts, **measured})


@main.command("report")
def report_command() -> None:
    """Writes the tables and plots of results/, README.md and docs/benchmarks.md, from the raw results."""
    sections = [report.section(folder) for folder in sorted(RESULTS.iterdir()) if report.is_kept(folder)]
    (RESULTS / "README.md").write_text("\n\n".join([report.HEAD, *sections]) + "\n")
    root = Path(__file__).parents[1]
    for page, name, text in report.parts(RESULTS):
        (root / page).write_text(summaries.replaced((root / page).read_text(), name, text))


if __name__ == "__main__":
    main()
