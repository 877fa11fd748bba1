"""A full scan of the forward part, aligned and packed, against Faiss's exact index, on one thread.

python benchmarks/forward.py
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

from compressae_index import SparseCodes
from compressae_index._engine import simd
from compressae_index.arrays import FloatArray
from compressae_index.embedded.codecs import Aligned, Codec, Packed

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import interleaved


def random_codes(n: int, n_latents: int, k: int) -> SparseCodes:
    """Latents drawn from each k-th of the dictionary, so that they ascend, and Laplacian values."""
    rng = np.random.default_rng(0)
    edges = np.linspace(0, n_latents, k + 1).astype(np.int64)
    latents = rng.integers(edges[:-1], edges[1:], size=(n, k)).astype(np.uint16)
    return SparseCodes(latents, rng.laplace(size=(n, k)).astype(np.float32), n_latents)


class Contender(NamedTuple):
    """A scan for one query, by its number, and the bytes of a row."""

    search: Callable[[int], object]
    row_bytes: float


def scans(codes: SparseCodes, u: FloatArray, top: int) -> Iterator[tuple[str, Contender]]:
    """Every codec's rows of the codes, by name, and its scan for the queries (n_queries, n_latents)."""
    codecs: dict[str, Codec] = {"aligned": Aligned()}
    codecs |= {f"packed, {value_bits} bits": Packed(value_bits) for value_bits in (4, 5, 6, 8)}

    def scan(engine: Any, query: int) -> None:
        engine.search(u[query : query + 1], top, None, 1)

    for name, codec in codecs.items():
        fitted = codec.fitted(codes)
        arrays = fitted.pack(codes, 2)
        row_bytes = sum(array.nbytes for array in arrays.values()) / len(codes)
        yield name, Contender(partial(scan, fitted.engine(arrays, codes.n_latents, codes.k)), row_bytes)


def exact_scan(rng: np.random.Generator, documents: int, queries: int, dim: int, top: int) -> Contender:
    """Faiss's exact index of random vectors."""
    exact = faiss.IndexFlatIP(dim)
    for begin in range(0, documents, 100_000):
        exact.add(rng.standard_normal((min(100_000, documents - begin), dim), dtype=np.float32))
    asked = rng.standard_normal((queries, dim), dtype=np.float32)
    return Contender(lambda query: exact.search(asked[query : query + 1], top), 4 * dim)


@click.command()
@click.option("--documents", default=1_000_000, show_default=True, help="Documents to scan.")
@click.option("--n-latents", default=4096, show_default=True, help="Size of the dictionary.")
@click.option("--k", default=32, show_default=True, help="Nonzeros a code.")
@click.option("--dim", default=384, show_default=True, help="Dimension of Faiss's vectors.")
@click.option("--top", default=100, show_default=True, help="Results of a query.")
@click.option("--queries", default=3, show_default=True, help="Queries a round, one at a time.")
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds, whose medians are printed.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    documents: int,
    n_latents: int,
    k: int,
    dim: int,
    top: int,
    queries: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Milliseconds a query of `dense` search over all documents, and bytes a row."""
    rng = np.random.default_rng(1)
    codes = random_codes(documents, n_latents, k)
    u = rng.standard_normal((queries, n_latents)).astype(np.float32)
    contenders = dict(scans(codes, u, top))
    contenders["faiss.IndexFlatIP"] = exact_scan(rng, documents, queries, dim, top)
    faiss.omp_set_num_threads(1)

    def round_of(call: Callable[[int], object]) -> None:
        for query in range(queries):
            call(query)

    with threadpool_limits(1):
        seconds = interleaved(
            {name: partial(round_of, each.search) for name, each in contenders.items()}, rounds
        )
    row_bytes = {name: each.row_bytes for name, each in contenders.items()}
    medians = {name: 1000 * taken / queries for name, taken in seconds.items()}
    click.echo(f"{documents:,} rows, h={n_latents}, k={k}, d={dim}, top {top}, one thread, {simd()}")
    for name, median in medians.items():
        click.echo(
            f"{name:20} {row_bytes[name]:7.0f} bytes {median:9.2f} ms   {median / medians['aligned']:6.2f} x"
        )
    if output is not None:
        report = {"documents": documents, "simd": simd(), "ms": medians, "row_bytes": row_bytes}
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
