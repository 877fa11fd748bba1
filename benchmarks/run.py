"""One runner for what is compared with others; raw results are kept as JSON, tables and plots made from them.

    python benchmarks/run.py quality [DATA] [--quick]
    python benchmarks/run.py report

The data sets are rows of `datasets.py`, the contestants rows of `dense_contestants.py` and
`sparse_contestants.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import quality
import torch
from common import print_load, write_report
from data_sets import data_set_argument, load
from dense_contestants import CONTESTANTS
from threadpoolctl import threadpool_limits

from compressae_index.checks import check_threads

RESULTS = Path(__file__).parent / "results"
QUICK_ROWS, QUICK_QUERIES = 20_000, 500
QUICK_BUDGETS = (56, 128)


@click.group()
def main() -> None:
    """Compares compressae-index with others."""


@main.command("quality")
@data_set_argument
@click.option("--quick", is_flag=True, help="Fewer rows, contestants and budgets; memory is not measured.")
@click.option("--rows", type=int, help="Vectors of the database; all by default.")
@click.option("--contestant", "names", type=click.Choice(list(CONTESTANTS)), multiple=True, help="All by default.")
@click.option("--budgets", help="Bytes a vector, as in 56,96,128.")
@click.option("--threads", type=int, help="Threads of building; all by default. Times are of one.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; one in results/ by default.")
def quality_command(
    source: str,
    quick: bool,
    rows: int | None,
    names: tuple[str, ...],
    budgets: str | None,
    threads: int | None,
    output: Path | None,
) -> None:
    """Recall at equal bytes, milliseconds, seconds of building and resident memory of dense contestants."""
    threads = check_threads(threads)
    torch.set_num_threads(threads)
    data = load(source, rows=rows or (QUICK_ROWS if quick else None), queries=QUICK_QUERIES if quick else None)
    names = names or tuple(name for name, row in CONTESTANTS.items() if row.quick or not quick)
    sizes = tuple(map(int, budgets.split(","))) if budgets else QUICK_BUDGETS if quick else quality.BUDGETS
    preset: Any = "fast" if quick else "default"
    click.echo(data)
    print_load(threads)
    with threadpool_limits(threads):
        bench = quality.bench_of(data, sizes, preset, None, threads, seed=0)
        lines = quality.run(names, bench, not quick, lambda text: click.echo(text, err=True))
    settings = {"quick": quick, "preset": preset, "budgets": sizes, "contestants": names, "seed": 0}
    path = output or RESULTS / f"quality-{data.stem}.json"
    write_report(path, threads, settings, {"data": data.facts(), "lines": lines})


if __name__ == "__main__":
    main()
