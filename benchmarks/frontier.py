"""Recall against milliseconds and resident bytes: ours, graphs, inverted files and flat indexes, in one run.

Everything is saved and opened again before it is timed. All contestants take part in each round, with every
setting, query by query on one thread; of a query the least of its rounds counts. Original vectors are on
disk: their searches are timed with them in the system's cache, and cold.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import pickle
import re
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from common import timed
from dense_contestants import LeftOut
from frontier_contestants import CONTESTANTS, Built, Contestant, Task, require_time
from memory import opened_bytes
from stores import IntArray, OurStore, Store
from threadpoolctl import threadpool_limits

from compressae_index.arrays import FloatArray
from compressae_index.search.recall import recall

TOPS = (10, 100)
COLD_QUERIES = 50
# Seconds of one search in a round, and the fewest queries that take longer than that.
LONGEST, FEWEST = 1.0, 20
# Memory that building may take, by that of the vectors: a copy of them, and a graph.
HELD = 2.0

Say = Callable[[str], Any]


class Effort(NamedTuple):
    """How much is timed."""

    queries: int
    rounds: int


FULL, QUICK = Effort(200, 5), Effort(50, 2)


class Search(NamedTuple):
    """A contestant with a setting."""

    family: str
    setting: str
    at: int
    """Neighbours asked for."""
    store: Store


class Taken(NamedTuple):
    """What single queries took."""

    seconds: npt.NDArray[np.float64]
    """Of each query, the least of its rounds."""
    threads: float
    """Processor time over time."""


def run(
    names: Sequence[str],
    task: Task,
    queries: FloatArray,
    truth: IntArray,
    cache: Path | None,
    effort: Effort,
    say: Say,
) -> dict[str, Any]:
    """Builds or opens the contestants, searches by all settings and times them.

    Args:
        names: rows of `CONTESTANTS`.
        task: what they are built from.
        queries: of unit norm.
        truth: rows of their 100 nearest.
        cache: a folder that keeps what was built; a temporary one if None.
        effort: how much is timed.
        say: tells how far it is.
    """
    with tempfile.TemporaryDirectory(prefix="compressae-frontier-") as scratch:
        folder = cache or Path(scratch)
        left_out: dict[str, str] = {}
        facts: list[dict[str, Any]] = []
        searches: list[Search] = []
        for name in names:
            try:
                built = opened(name, task, queries, folder, say)
            except Exception as error:
                if CONTESTANTS[name].is_ours:
                    raise
                left_out[name] = str(error)
                say(f"  ({name} is left out: {error})")
                continue
            facts.append(_facts(name, built, len(task.vectors)))
            searches += _searches(name, built.store)
        lines = list(_lines(searches, queries, truth, task.threads, effort, say))
    return {"contestants": facts, "lines": lines, "left_out": left_out}


def opened(name: str, task: Task, queries: FloatArray, folder: Path, say: Say) -> Built:
    """A contestant as it was saved to a folder, after it was built if it is not there yet.

    Raises:
        LeftOut: it cannot be built here; that it takes too long is kept in the folder.
    """
    place = folder / key_of(name, task)
    kept = place / "built.pickle"
    if not kept.exists():
        say(f"  {name}")
        if not CONTESTANTS[name].is_ours:
            _require_memory(task)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            made: Any = _saved(CONTESTANTS[name], task, queries, place / "store")
        except LeftOut as error:
            made = error
        kept.write_bytes(pickle.dumps(made))
        gc.collect()
    held = pickle.loads(kept.read_bytes())
    if isinstance(held, LeftOut):
        raise held
    opener, built = held
    return Built(*built)._replace(store=opener())


def key_of(name: str, task: Task) -> str:
    """The name of a contestant's folder: other data or another size of the dictionary have another one."""
    n, dim = task.vectors.shape
    digest = zlib.crc32(task.vectors[:: max(1, n // 1000)].tobytes())
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    latents = f"-{task.n_latents or 'auto'}" if CONTESTANTS[name].is_ours else ""
    return f"{slug}{latents}-{n}x{dim}-{digest:08x}"


def _saved(contestant: Contestant, task: Task, queries: FloatArray, place: Path) -> tuple[Any, Built]:
    """How a contestant is opened, and what is known of it without its store."""
    importlib.import_module(contestant.package)  # or it is left out
    if contestant.is_ours:
        built = contestant.build(task)
    else:
        started = time.process_time()
        built = contestant.build(task)
        require_time(time.process_time() - started, task.threads)
    place.mkdir(parents=True, exist_ok=True)
    opener = built.store.save(place)
    built = built._replace(store=None)
    return opener, built._replace(resident_bytes=opened_bytes(opener, place, queries, contestant.package))


def _require_memory(task: Task) -> None:
    """Raises LeftOut where building may not fit the machine's memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    needed = HELD * task.vectors.nbytes
    if needed > free:
        msg = f"building may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
        raise LeftOut(msg)


def _facts(name: str, built: Built, n: int) -> dict[str, Any]:
    """What does not depend on settings; bytes a vector are measured where they are not known."""
    row_bytes = built.row_bytes
    if row_bytes is None:
        row_bytes = (built.resident_bytes - built.model_bytes) / n
    known = built._replace(row_bytes=row_bytes)._asdict()
    del known["store"]
    is_ours, is_measured = CONTESTANTS[name].is_ours, built.row_bytes is None
    return {"family": name, "is_ours": is_ours, "is_measured": is_measured, **known}


def _searches(name: str, store: Store) -> Iterator[Search]:
    for at in TOPS:
        for setting, tuned in CONTESTANTS[name].tuned(store, at):
            yield Search(name, setting, at, tuned)


def _lines(
    searches: Sequence[Search], queries: FloatArray, truth: IntArray, threads: int, effort: Effort, say: Say
) -> Iterator[dict[str, Any]]:
    """Recall by all queries, on all threads; milliseconds by some, on one."""
    say(f"  recall of {len(searches)} settings")
    shares = [_recall(one, queries, truth, threads) for one in searches]
    with threadpool_limits(1):
        taken = interleaved(searches, queries[: effort.queries], effort.rounds, say)
        cold = [_cold(one, queries[:COLD_QUERIES]) for one in searches]
    for one, share, times, cold_seconds in zip(searches, shares, taken, cold, strict=True):
        if times.threads > 1.2:
            say(f"  ({one.family}, {one.setting}: {times.threads:.1f} threads)")
        yield {
            "family": one.family,
            "setting": one.setting,
            "at": one.at,
            "recall": share,
            "ms": 1000 * float(np.median(times.seconds)),
            "ms_mean": 1000 * float(np.mean(times.seconds)),
            "ms_cold": None if cold_seconds is None else 1000 * cold_seconds,
            "threads": times.threads,
        }


def _recall(one: Search, queries: FloatArray, truth: IntArray, threads: int) -> float:
    found = one.store.search(queries, one.at, threads)
    missing = max(0, one.at - found.shape[1])  # inverted files may find fewer
    return recall(np.pad(found, [(0, 0), (0, missing)], constant_values=-1), truth, one.at)


def interleaved(searches: Sequence[Search], queries: FloatArray, rounds: int, say: Say) -> list[Taken]:
    """What each query takes in each search. Every search takes part in every round, after a query untimed."""
    asked = [queries[: _enough(one, queries)] for one in searches]
    least = [np.full(len(some), np.inf) for some in asked]
    busy, passed = np.zeros(len(searches)), np.zeros(len(searches))
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}")
        for row, (one, some) in enumerate(zip(searches, asked, strict=True)):
            one.store.search(some[:1], one.at, 1)
            started = time.process_time()
            seconds = [timed(partial(one.store.search, query[None], one.at, 1))[1] for query in some]
            busy[row] += time.process_time() - started
            passed[row] += sum(seconds)
            np.minimum(least[row], seconds, out=least[row])
    return [Taken(*each) for each in zip(least, busy / passed, strict=True)]


def _enough(one: Search, queries: FloatArray) -> int:
    """Queries that take about `LONGEST` seconds: those that scan everything take equally long each."""
    one.store.search(queries[:1], one.at, 1)
    seconds = timed(partial(one.store.search, queries[1:2], one.at, 1))[1]
    return max(FEWEST, int(LONGEST / seconds))


def _cold(one: Search, queries: FloatArray) -> float | None:
    """Median seconds of queries whose original vectors must be read from disk; None without such."""
    if not isinstance(one.store, OurStore) or one.store.path is None:
        return None
    originals = one.store.index.documents.backend.originals
    if originals is None:
        return None
    seconds = []
    for query in queries:
        _drop(originals.segments[0].rows, one.store.path)
        seconds.append(timed(partial(one.store.search, query[None], one.at, 1))[1])
    return statistics.median(seconds)


def _drop(rows: Any, index: Path) -> None:
    """Drops the original vectors of an index out of this process and the system's cache."""
    rows.base.madvise(mmap.MADV_DONTNEED)
    (file,) = index.glob("data-*/originals.npy")
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
