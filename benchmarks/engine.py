"""The embedded engine against a scipy CSR product: same codes, same query, one thread, interleaved rounds.

    python benchmarks/engine.py [embeddings.npy]

Real codes are tiled with noise to the asked number of documents.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, SparseCodes, train
from compressae_index._engine import InvertedLists, simd
from compressae_index.checks import FloatArray
from compressae_index.demo import load_data


def tiled(codes: SparseCodes, n: int, seed: int) -> SparseCodes:
    """Codes repeated to n rows, values times 1 + noise, so that no two rows are equal."""
    repeats = -(-n // len(codes))
    latents = np.tile(codes.latents, (repeats, 1))[:n]
    rng = np.random.default_rng(seed)
    noise = 1 + 0.1 * rng.standard_normal((n, codes.k), dtype=np.float32)
    return SparseCodes(latents, np.tile(codes.values, (repeats, 1))[:n] * noise, codes.n_latents)


def strongest(projection: FloatArray, nnz: int) -> FloatArray:
    """A projection (h,) with all but its nnz largest magnitudes set to zero."""
    cut = np.zeros_like(projection)
    kept = np.argsort(-np.abs(projection), kind="stable")[:nnz]
    cut[kept] = projection[kept]
    return cut


def milliseconds(call: Callable[[], Any]) -> float:
    """Duration of one call."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


@click.command()
@click.argument("embeddings", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--documents", default=1_000_000, show_default=True, help="Documents to search.")
@click.option("--query-nnz", default=32, show_default=True, help="Latents of a query.")
@click.option("--top", default=100, show_default=True, help="Results of a query.")
@click.option("--queries", default=20, show_default=True, help="Queries a round.")
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds, whose medians are printed.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    embeddings: Path | None,
    documents: int,
    query_nnz: int,
    top: int,
    queries: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Milliseconds a query of `sparse` search, by our engine and by scipy."""
    data = load_data()
    vectors, asked = data.embeddings, data.queries
    if embeddings is not None:
        everything = np.load(embeddings, mmap_mode="r")
        vectors = np.asarray(everything[:-2000], dtype=np.float32)
        asked = np.asarray(everything[-2000:], dtype=np.float32)
    model: CompresSAE = train(vectors, progress=True).model
    codes = tiled(model.fold(model.encode(vectors)), documents, seed=0)
    projections = model.project(asked[:queries])
    lists = InvertedLists.build(codes.latents, codes.values, codes.n_latents, 1)
    matrix = codes.to_csr()
    cut = [strongest(projection, query_nnz) for projection in projections]
    rows = [sp.csr_array(query[None]) for query in cut]
    columns = sp.csr_array(matrix.T)

    def ours() -> None:
        for projection in projections:
            lists.search(projection[None], query_nnz, top, None, 1)

    def best(scores: FloatArray) -> None:
        np.argpartition(-scores, top)[:top]

    def scipy_product() -> None:
        """Documents times the query, as anybody with codes in CSR would write it."""
        for query in cut:
            best(matrix @ query)

    def scipy_sparse_product() -> None:
        """The sparse query times the transposed codes, which touches only the query's lists."""
        for row in rows:
            best((row @ columns).toarray()[0])

    contenders = {
        "compressae-index": ours,
        "scipy CSR @ dense query": scipy_product,
        "scipy CSR query @ transposed CSR": scipy_sparse_product,
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    with threadpool_limits(1):
        for _ in range(rounds):
            for name, call in contenders.items():
                taken[name].append(milliseconds(call) / queries)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    found = lists.search(projections, query_nnz, top, None, 1)[1]
    overlap = [
        len(np.intersect1d(row, np.argsort(-(matrix @ query))[:top])) / top
        for row, query in zip(found, cut, strict=True)
    ]
    click.echo(
        f"{documents:,} codes, h={codes.n_latents}, k={codes.k}, query m={query_nnz}, top {top}, {simd()}"
    )
    for name, median in medians.items():
        click.echo(f"{name:34} {median:9.3f} ms   {median / medians['compressae-index']:7.1f} x")
    click.echo(f"overlap of the results with scipy's float32 scores: {np.mean(overlap):.4f}")
    if output is not None:
        report = {"documents": documents, "simd": simd(), "ms": medians, "overlap": float(np.mean(overlap))}
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
