"""Recall at equal bytes: every way to store dense vectors, measured alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from common import timed
from data_sets import DataSet
from dense_contestants import CONTESTANTS, KS, QUICK_TRAIN_ROWS, TRAIN_ROWS, Bench, Built
from memory import serving_bytes
from stores import Store
from threadpoolctl import threadpool_limits

from compressae_index.checks import normalize_rows

BUDGETS = (56, 96, 128, 192, 256)
SAMPLE_ROWS = 2048
TIMED_QUERIES = 100


def bench_of(data: DataSet, budgets: tuple[int, ...], quick: bool, threads: int, seed: int) -> Bench:
    """The data that contestants are built from; the seed draws the rows that they learn from."""
    vectors = normalize_rows(data.vectors) if data.metric == "cosine" else data.vectors
    shuffled = np.random.default_rng(seed).permutation(len(vectors))
    return Bench(
        vectors,
        normalize_rows(data.queries),
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


def measured(contestant: Built, bench: Bench, memory: bool) -> dict[str, Any]:
    """The line of one contestant."""
    found = contestant.found
    if found is None:
        found = contestant.store.search(bench.queries, KS[-1], bench.threads)
    single, batch = milliseconds(contestant.store, bench)
    return {
        "family": contestant.family,
        "name": contestant.name,
        "bytes": contestant.row_bytes,
        "resident_bytes": serving_bytes(contestant.store, bench.queries) if memory else None,
        "recall": bench.recall(found),
        "train_seconds": contestant.train_seconds,
        "fill_seconds": contestant.fill_seconds,
        "ms_single": single,
        "ms_batch": batch,
    }


def lines_of(name: str, bench: Bench, memory: bool, say: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """The lines of one row of the table of contestants."""
    for contestant in CONTESTANTS[name].make(bench):
        line = measured(contestant, bench, memory)
        say(
            f"  {line['family']}, {line['name']}: {line['bytes']:.0f} bytes, "
            f"recall@{KS[-1]} {line['recall'][KS[-1]]:.4f}, {line['ms_single']:.2f} ms"
        )
        yield line
