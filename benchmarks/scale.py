"""Growth with the number of documents, and the needs of more of them, each term measured."""

from __future__ import annotations

import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import timed
from data_sets import DataSet, generated_codes
from summaries import growth
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex, SparseCodes, train
from compressae_index.arrays import FloatArray
from compressae_index.coding.chunks import Encoded
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.search.queries import MODES
from compressae_index.training.config import TrainConfig

SIZES = (100_000, 1_000_000, 10_000_000)
ADDED = 10_000
TOP = 100
TIMED_QUERIES = 30
# Terms that grow, and their part of a plan for more documents.
GROWING = (
    "build_seconds",
    "add_seconds",
    "save_seconds",
    "load_seconds",
    "sparse_ms",
    "two_stage_ms",
    "dense_ms",
)


def filled(
    model: CompresSAE, codes: SparseCodes, n: int, threads: int, seed: int
) -> tuple[EmbeddedBackend, float]:
    """A back end of n generated codes, and the seconds of packing and inverting them."""
    backend, seconds = EmbeddedBackend(model.n_latents, codes.k), 0.0
    for chunk in generated_codes(codes, n, seed):
        folded = model.fold(chunk, num_threads=threads)
        backend, taken = timed(partial(backend.added, [Encoded(folded)], threads, model))
        seconds += taken
    joined, taken = timed(backend.joined)
    return joined, seconds + taken


def single(index: CompressedIndex, queries: FloatArray) -> dict[str, float]:
    """Milliseconds of single queries on one thread, by mode, their projection included."""
    taken = {}
    for mode in MODES:
        search = partial(index.search, k=TOP, mode=mode, num_threads=1)
        search(queries[0])
        taken[f"{mode}_ms"] = 1000 * statistics.median(timed(partial(search, query))[1] for query in queries)
    return taken


def of_size(
    model: CompresSAE, codes: SparseCodes, queries: FloatArray, n: int, threads: int, seed: int
) -> dict[str, Any]:
    """Seconds, milliseconds and bytes at n documents."""
    backend, build_seconds = filled(model, codes, n, threads, seed)
    more = model.fold(next(generated_codes(codes, ADDED, seed + 1)))
    _, add_seconds = timed(partial(backend.added, [Encoded(more)], threads, model))
    index = CompressedIndex(model, documents=EmbeddedDocuments(backend))
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        path = Path(folder) / "index"
        _, save_seconds = timed(partial(index.save, path))
        mapped, load_seconds = timed(partial(CompressedIndex.load, path, mmap=True))
        _, first_seconds = timed(partial(mapped.search, queries[0], TOP, num_threads=1))
        taken = single(index, queries)
        del mapped
    by_part = index.stats().bytes_per_vector
    return {
        "documents": n,
        "forward_bytes": by_part["forward"],
        "inverted_bytes": by_part["inverted"],
        "build_seconds": build_seconds,
        "add_seconds": add_seconds,
        "save_seconds": save_seconds,
        "load_seconds": load_seconds,
        "first_query_ms": 1000 * first_seconds,
        **taken,
        # Sizes ascend, so that the highest so far is this one's.
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def run(
    data: DataSet,
    sizes: Sequence[int],
    config: TrainConfig,
    threads: int,
    seed: int,
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Growth over the sizes, and the terms that do not grow."""
    trained, train_seconds = timed(partial(train, data.vectors, config))
    model = trained.model
    codes, encode_seconds = timed(partial(model.encode, data.vectors, num_threads=1))
    queries = data.queries[:TIMED_QUERIES]
    model.project(queries[:1])  # what later calls need is made now
    _, projecting = timed(lambda: [model.project(query[None], num_threads=1) for query in queries])
    measured = []
    for n in sorted(sizes):
        measured.append(of_size(model, codes, queries, n, threads, seed))
        say("  " + ", ".join(f"{name} {value:,.4g}" for name, value in measured[-1].items()))
    counts = [one["documents"] for one in measured]
    return {
        "train_seconds": train_seconds,
        "encoded_per_second": len(codes) / encode_seconds,
        "projection_ms": 1000 * projecting / len(queries),
        "model_bytes": model.nbytes,
        "sizes": measured,
        "exponents": {name: growth(counts, [one[name] for one in measured]) for name in GROWING},
    }


def projected(measured: dict[str, Any], n: int) -> dict[str, float]:
    """The needs of n documents: bytes and seconds by the largest size that was measured, times the growth.

    Milliseconds are on the line through the two largest sizes, as a part of each query does not grow.
    """
    sizes = measured["sizes"]
    smaller, largest = sizes[-2], sizes[-1]
    times = n / largest["documents"]
    rows = n - largest["documents"]

    def line(name: str) -> float:
        slope = (largest[name] - smaller[name]) / (largest["documents"] - smaller["documents"])
        return float(largest[name] + rows * slope)

    return {
        "documents": n,
        "gigabytes": n * (largest["forward_bytes"] + largest["inverted_bytes"]) / 1e9,
        "encode_hours": n / measured["encoded_per_second"] / 3600,
        "build_hours": times * largest["build_seconds"] / 3600,
        "save_seconds": times * largest["save_seconds"],
        "load_seconds": times * largest["load_seconds"],
        **{f"{mode}_ms": line(f"{mode}_ms") for mode in MODES},
    }
