"""Recall at equal bytes: every way to store dense vectors, measured alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from common import timed
from data_sets import DataSet
from dense_contestants import CONTESTANTS, KS, QUICK_TRAIN_ROWS, TRAIN_ROWS, Bench, Built
from memory import serving_bytes
from stores import Store
from threadpoolctl import threadpool_limits

from compressae_index.checks import normalize_rows

Line: TypeAlias = dict[str, Any]

BUDGETS = (32, 56, 96, 128, 192, 256, 388)
# What a line says besides recall and bytes: unknown where it is not measured.
COSTS = ("resident_bytes", "train_seconds", "fill_seconds", "ms_single", "ms_batch")
SAMPLE_ROWS = 2048
TIMED_QUERIES = 100


def bench_of(data: DataSet, budgets: tuple[int, ...], quick: bool, threads: int, seed: int) -> Bench:
    """The data that contestants are built from; the seed draws the rows that they learn from."""
    vectors = normalize_rows(data.vectors) if data.metric == "cosine" else data.vectors
    shuffled = np.random.default_rng(seed).permutation(len(vectors))
    return Bench(
        vectors,
        data.queries if data.metric == "l2" else normalize_rows(data.queries),
        data.metric,
        data.neighbours(KS[-1]),
        vectors[shuffled[:SAMPLE_ROWS]],
        vectors[shuffled[: QUICK_TRAIN_ROWS if quick else TRAIN_ROWS]],
        budgets,
        "fast" if quick else "default",
        threads,
    )


def milliseconds(store: Store, bench: Bench) -> tuple[float, float]:
    """A query's milliseconds on one thread: the median of single ones, and in a batch."""
    queries = bench.queries[:TIMED_QUERIES]
    with threadpool_limits(1):
        store.search(queries[:1], KS[-1], 1)
        single = [timed(partial(store.search, query[None], KS[-1], 1))[1] for query in queries]
        _, batch = timed(partial(store.search, queries, KS[-1], 1))
    return 1000 * statistics.median(single), 1000 * batch / len(queries)


def recalled(contestant: Built, bench: Bench) -> Line:
    """The line of one contestant, its costs unknown."""
    found = contestant.found
    if found is None:
        found = contestant.store.search(bench.queries, KS[-1], bench.threads)
    facts = {"family": contestant.family, "name": contestant.name, "bytes": contestant.row_bytes}
    return facts | {"recall": bench.recall(found)} | dict.fromkeys(COSTS)


def costs(contestant: Built, bench: Bench, memory: bool) -> Line:
    """What a line says of COSTS."""
    single, batch = milliseconds(contestant.store, bench)
    return {
        "resident_bytes": serving_bytes(contestant.store, bench.queries) if memory else None,
        "train_seconds": contestant.train_seconds,
        "fill_seconds": contestant.fill_seconds,
        "ms_single": single,
        "ms_batch": batch,
    }


def lines_of(
    name: str, bench: Bench, say: Callable[[str], Any], *, memory: bool, recall_only: bool
) -> Iterator[Line]:
    """The lines of one row of the table of contestants."""
    for contestant in CONTESTANTS[name].make(bench):
        line = recalled(contestant, bench)
        if not recall_only:
            line |= costs(contestant, bench, memory)
        taken = "" if line["ms_single"] is None else f", {line['ms_single']:.2f} ms"
        say(
            f"  {line['family']}, {line['name']}: {line['bytes']:.0f} bytes, "
            f"recall@{KS[-1]} {line['recall'][KS[-1]]:.4f}{taken}"
        )
        yield line


def joined(lines: Sequence[Line], earlier: Sequence[Line], *, keep: bool) -> list[Line]:
    """Lines with the costs that earlier ones of the same code have, where their own are unknown.

    With `keep`, earlier lines of other codes come first.
    """
    known = {(line["family"], line["name"]): line for line in earlier}
    whole = []
    for line in lines:
        before = known.pop((line["family"], line["name"]), {})
        whole.append(line | {cost: before.get(cost) for cost in COSTS if line[cost] is None})
    return [*(known.values() if keep else ()), *whole]
