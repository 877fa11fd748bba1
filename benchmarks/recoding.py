"""Recoding while searches go on: seconds, peak memory, searches answered meanwhile and how long they took.

    python benchmarks/recoding.py million.npy
    python benchmarks/recoding.py million.npy --rows 100000 --kept residuals --threads 1

The last 2,000 rows of the file are the queries. An index is built of the others, saved and mapped; one thread
searches it, a query at a time, while it is idle, while another dictionary is trained from its own, and while
its vectors are coded anew by that, in memory and to an output. All answers are checked to be those of the old
index or of the new one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown, print_load
from data_sets import QUERIES

from compressae_index import CompressedIndex, train
from compressae_index.arrays import FloatArray
from compressae_index.sources import open_vectors
from compressae_index.sources.base import Run
from compressae_index.training import TrainConfig

# What is kept beside codes of 16 nonzeros, and how the index is searched.
KEPT: dict[str, dict[str, Any]] = {
    "originals": {"originals": "float16", "postings": 8},
    "residuals": {"residual_bits": 3, "postings": 8},
    "codes": {"postings": 8},
}
SEARCH: dict[str, Any] = {"candidates": 1000, "query_nnz": 128, "num_threads": 1}
IDLE_SECONDS = 10.0


class Phase(NamedTuple):
    """What went on beside the searches, and how these fared."""

    name: str
    seconds: float
    private_mb: float
    """The most memory beyond that of before that no file backs."""
    resident_mb: float
    """The most resident memory, with pages of mapped files that the system may take back."""
    searches: int
    median_ms: float
    longest_ms: float


def memory(name: str) -> float:
    """MB of this process: VmRSS, or RssAnon of what no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


class Searching:
    """One thread that searches while others work; it notes what it got, and the memory."""

    def __init__(self, index: CompressedIndex, queries: FloatArray) -> None:
        self.index, self.queries = index, queries
        self.answers: list[tuple[int, Any]] = []

    def during(self, name: str, work: Callable[[], object]) -> Phase:
        """Searches until some work is done."""
        done, taken, most = threading.Event(), list[float](), [memory("RssAnon"), memory("VmRSS")]
        before = most[0]

        def search() -> None:
            number = 0
            while not done.is_set():
                query = number % len(self.queries)
                began = time.perf_counter()
                found = self.index.search(self.queries[query], 10, **SEARCH)
                taken.append(time.perf_counter() - began)
                if number % 10 == 0:
                    self.answers.append((query, found.scores))
                    most[:] = (max(a, memory(b)) for a, b in zip(most, ("RssAnon", "VmRSS"), strict=True))
                number += 1

        thread = threading.Thread(target=search)
        thread.start()
        began = time.perf_counter()
        try:
            work()
        finally:
            seconds = time.perf_counter() - began
            done.set()
            thread.join()
        median, longest = 1e3 * statistics.median(taken), 1e3 * max(taken)
        return Phase(name, seconds, most[0] - before, most[1], len(taken), median, longest)

    def check(self, *states: CompressedIndex) -> None:
        """Checks that every answer is one of some state of the index.

        Raises:
            AssertionError: one is of none.
        """
        for query, scores in self.answers:
            found = (state.search(self.queries[query], 10, **SEARCH).scores for state in states)
            if not any(np.array_equal(scores, each) for each in found):
                msg = f"an answer to query {query} is of no state of the index"
                raise AssertionError(msg)
        self.answers.clear()


def measured(source: Path, folder: Path, kept: str, rows: int, threads: int) -> list[Phase]:
    """The phases of an index in a process of its own."""
    vectors = open_vectors(source)
    n = vectors.shape[0] - QUERIES
    queries = np.asarray(vectors[n : n + QUERIES], np.float32)
    CompressedIndex.build(
        Run(vectors, 0, min(rows, n)), k=16, num_threads=threads, progress=False, **KEPT[kept]
    ).save(folder / "index")
    index = CompressedIndex.load(folder / "index", mmap=True)
    searching, models, phases = Searching(index, queries), [index.model], list[Phase]()
    config = TrainConfig(k=16, refine_rounds=40, round_rows=4096, steps=0)
    old = index.now()
    phases.append(searching.during("idle", lambda: time.sleep(IDLE_SECONDS)))
    phases.append(
        searching.during(
            "training", lambda: models.append(train(index.vectors, config, start=index.model).model)
        )
    )
    searching.check(old)
    phases.append(searching.during("recode", lambda: index.recode(models[1], num_threads=threads)))
    new = index.now()
    searching.check(old, new)
    index = searching.index = CompressedIndex.load(folder / "index", mmap=True)
    output = folder / "recoded"
    phases.append(
        searching.during(
            "recode to an output", lambda: index.recode(models[1], output=output, num_threads=threads)
        )
    )
    searching.check(old, new)
    phases.append(searching.during("idle, recoded", lambda: time.sleep(IDLE_SECONDS)))
    return phases


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", type=int, default=1 << 40, help="Rows of the index.  [default: all but the queries]")
@click.option(
    "--kept", type=click.Choice(list(KEPT)), multiple=True, help="Beside codes.  [default: each of them]"
)
@click.option("--threads", type=int, default=2, show_default=True, help="Threads to build and recode with.")
@click.option("--alone", type=click.Path(path_type=Path), hidden=True, help="Measure here, in this folder.")
def main(source: Path, rows: int, kept: tuple[str, ...], threads: int, alone: Path | None) -> None:
    """Recode an index that is searched."""
    if alone is not None:
        click.echo(json.dumps(measured(source, alone, kept[0], rows, threads)))
        return
    print_load(threads + 1)
    lines = []
    for each in kept or KEPT:
        with tempfile.TemporaryDirectory(prefix="recoding-", dir=source.parent) as folder:
            command = [sys.executable, "-P", __file__, source, "--kept", each, "--rows", rows]
            command += ["--threads", threads, "--alone", folder]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
        for phase in (Phase(*values) for values in json.loads(done.stdout.splitlines()[-1])):
            figures = [f"{phase.seconds:.1f}", f"{phase.private_mb:.0f}", f"{phase.resident_mb:.0f}"]
            figures += [str(phase.searches), f"{phase.median_ms:.2f}", f"{phase.longest_ms:.1f}"]
            lines.append([each, phase.name, *figures])
    heads = ["kept", "meanwhile", "seconds", "MB more", "MB resident"]
    click.echo(markdown([*heads, "searches", "median ms", "longest ms"], lines))


if __name__ == "__main__":
    main()
