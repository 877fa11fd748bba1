"""Searches by Euclidean distance: ours, and Faiss's flat index, IVF-PQ with a second score, and HNSW.

DATA may be a file of rows, too. All are built from the same rows, and search query by query on one thread, in
turn; of each query the least of its rounds counts. IVF-PQ also comes in about as many bytes as ours, with the
finest second score that leaves it a number for every 16 dimensions, or none. Bytes are those of what
`faiss.write_index` writes, of ours those of `stats` and of the model; original vectors are on disk, in the
system's cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.measuring.environment import environment
from compressae_index.search.recall import recall

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out
from common import timed
from data_sets import DataSet, data_set_argument, load

TOP, ROUNDS = 10, 3
PROBES = (4, 8, 16, 32, 64, 128)
EF = (16, 32, 64, 128, 256, 512)
# Bytes of a vector of IVF-PQ in about as many as ours, an id of 8 included, and bits of its second score.
SMALL_BYTES, ID_BYTES, REFINE_BITS = (128, 208), 8, (8, 6, 4)
# Candidates, latents of the query and documents of the last stage.
OURS = ((300, 64, 50), (1000, 128, 100), (3000, 128, 100), (3000, 256, 200), (10_000, 256, 400))


class Setting(NamedTuple):
    """A way to search a store."""

    store: str
    name: str
    row_bytes: float
    build_seconds: float
    search: Callable[[FloatArray], Any]
    """Ids (n_queries, 10) of queries."""


def ours(data: DataSet, threads: int | None) -> Iterator[Setting]:
    """Codes beside original vectors on disk, and codes with residuals in 128 bytes and by default."""
    forms: dict[str, dict[str, Any]] = {
        "ours, originals": {"originals": "float16"},
        "ours, 128 bytes": {"bytes_per_vector": 128},
        "ours": {},
    }
    for name, options in forms.items():
        build = partial(CompressedIndex.build, data.vectors, metric="l2", progress=False, num_threads=threads)
        index, seconds = timed(partial(build, **options))
        stats = index.stats()
        size = stats.bytes_per_vector["total"] + stats.model_bytes / stats.vectors

        def search(queries: FloatArray, index: Any = index, **settings: Any) -> Any:
            return index.search(queries, TOP, num_threads=1, **settings).ids

        for candidates, nnz, refine in OURS:
            settings: Any = {"candidates": candidates, "query_nnz": nnz}
            if index.documents.refines:  # a budget may choose codes alone
                settings["refine"] = refine
            yield Setting(name, str(settings), size, seconds, partial(search, **settings))
        yield Setting(name, "dense", size, seconds, partial(search, mode="dense"))


def rivals(data: DataSet) -> Iterator[Setting]:
    """Indexes of Faiss, by squared distances."""
    n, dim = data.vectors.shape
    lists = 4 * int(n**0.5)
    keys = {
        "Faiss flat": "Flat",
        "Faiss IVF-PQ + SQ8": f"IVF{lists},PQ{_numbers(dim, dim // 2)},Refine(SQ8)",
        **{f"Faiss IVF-PQ, {size} B": _key_within(size, dim, lists) for size in SMALL_BYTES},
        "Faiss HNSW": "HNSW16,Flat",
    }
    for name, key in keys.items():
        index: Any = faiss.index_factory(dim, key, faiss.METRIC_L2)
        if name == "Faiss HNSW":
            graph: Any = faiss.downcast_index(index)
            graph.hnsw.efConstruction = 200

        def build(index: Any = index) -> None:
            index.train(data.vectors)
            index.add(data.vectors)

        seconds = timed(build)[1]
        size = len(faiss.serialize_index(index)) / n
        if name == "Faiss flat":
            yield Setting(name, "", size, seconds, partial(_found, index))
            continue
        for effort in EF if name == "Faiss HNSW" else PROBES:

            def search(queries: FloatArray, index: Any = index, effort: int = effort) -> Any:
                if isinstance(index, faiss.IndexHNSW):
                    index.hnsw.efSearch = effort
                else:
                    faiss.ParameterSpace().set_index_parameter(index, "nprobe", effort)
                    if isinstance(index, faiss.IndexRefine):
                        index.k_factor = 10
                return index.search(queries, TOP)[1]

            yield Setting(name, f"{effort}", size, seconds, search)


def _numbers(dim: int, most: int) -> int:
    """The most numbers of a product quantiser, which divide the dimensions."""
    return next(m for m in range(min(most, dim), 0, -1) if dim % m == 0)


def _key_within(size: int, dim: int, lists: int) -> str:
    """Faiss's name of an IVF-PQ index of about `size` bytes a vector."""
    for bits in REFINE_BITS:
        left = size - ID_BYTES - -(-dim * bits // 8)
        if left >= dim / 16:
            return f"IVF{lists},PQ{_numbers(dim, left)},Refine(SQ{bits})"
    return f"IVF{lists},PQ{_numbers(dim, size - ID_BYTES)}"


def _found(index: Any, queries: FloatArray) -> Any:
    return index.search(queries, TOP)[1]


def measured(
    settings: list[Setting], queries: FloatArray, truth: Any, asked: int, rounds: int
) -> list[dict[str, Any]]:
    """Recall of all queries, and the median milliseconds of some, one by one; None without rounds."""
    found = [recall(np.asarray(each.search(queries)), truth, TOP) for each in settings]
    least = np.full((len(settings), asked), np.inf)
    with threadpool_limits(1):
        faiss.omp_set_num_threads(1)
        for _ in range(rounds):
            for row, each in enumerate(settings):
                each.search(queries[:1])
                seconds = [timed(partial(each.search, query[None]))[1] for query in queries[:asked]]
                least[row] = np.minimum(least[row], seconds)
    return [
        {
            "store": each.store,
            "setting": each.name,
            "bytes": round(each.row_bytes, 1),
            "recall@10": round(share, 4),
            "ms": round(1000 * float(np.median(times)), 4) if rounds else None,
            "build seconds": round(each.build_seconds, 1),
        }
        for each, share, times in zip(settings, found, least, strict=True)
    ]


@click.command(help=__doc__)
@data_set_argument
@click.option("--rows", type=int, default=200_000, show_default=True, help="Vectors.")
@click.option("--queries", type=int, default=500, show_default=True, help="Queries; 100 of them are timed.")
@click.option("--rounds", type=int, default=ROUNDS, show_default=True, help="Of timing; 0 for recall alone.")
@click.option("--threads", type=int, help="Threads to build ours with.  [default: all]")
@click.option("--output", type=click.Path(path_type=Path), help="A file to write, as JSON.")
def main(source: str, rows: int, queries: int, rounds: int, threads: int | None, output: Path | None) -> None:
    """Measures and prints a table."""
    data = load(source, rows=rows, queries=queries, metrics=("l2",))
    click.echo(str(data))
    truth = data.neighbours(TOP)
    settings = [*rivals(data), *ours(data, threads)]
    lines = measured(settings, data.queries, truth, min(100, len(data.queries)), rounds)
    for line in lines:
        milliseconds = "" if line["ms"] is None else f"{line['ms']:8.3f} ms"
        click.echo(
            f"{line['store']:20} {line['setting']:58} {line['bytes']:8.1f} B {line['recall@10']:.4f} "
            f"{milliseconds}  built in {line['build seconds']:.0f} s"
        )
    if output is not None:
        content = {"data": data.facts(), "lines": lines, "environment": environment(["faiss-cpu", "numpy"])}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
