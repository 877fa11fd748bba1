"""The Faiss connectors against the embedded engine, on one model and its codes.

    python benchmarks/faiss_connectors.py [DATA]

Milliseconds are those of
single queries on one thread: the median over queries of each round, then that of the rounds, which are
interleaved.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import faiss
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex, train
from compressae_index._engine import simd
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_threads, normalize_rows
from compressae_index.connectors.faiss import DenseStore, FaissIndex, dictionary_ivf, search_once
from compressae_index.connectors.faiss.flat import STORAGES
from compressae_index.connectors.faiss.lists import POSTING_BYTES
from compressae_index.embedded.sizes import POSTING_BYTES as EMBEDDED_POSTING_BYTES
from compressae_index.search.recall import recall
from compressae_index.training.config import PRESETS, Preset, TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown, print_load, timed, write_report
from data_sets import DataSet, data_set_argument, load

KS = (10, 100)
PROBES = (4, 16, 64, 256)
ASSIGNMENTS = (1, 2, 4)
TIMED_QUERIES = 100

Search = Callable[[FloatArray], Any]


def milliseconds(searches: Mapping[str, Search], queries: FloatArray, rounds: int) -> dict[str, float]:
    """Median milliseconds of a query, of searches that take turns."""
    medians: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            taken = []
            for query in queries[:TIMED_QUERIES]:
                started = time.perf_counter()
                search(query[None])
                taken.append(1000 * (time.perf_counter() - started))
            medians[name].append(statistics.median(taken))
    return {name: statistics.median(values) for name, values in medians.items()}


def recalls(ids: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[int, float]:
    """recall@k by k."""
    return {k: recall(ids, truth, k) for k in KS}


def inverted_file(
    index: CompressedIndex, queries: FloatArray, truth: npt.NDArray[Any], rounds: int
) -> list[dict[str, Any]]:
    """The embedded posting lists, and Faiss's in memory and mapped."""
    filed = FaissIndex.from_index(index, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        filed.save(Path(folder) / "index")
        mapped = FaissIndex.load(Path(folder) / "index", mmap=True)
        rows = []
        for mode in ("sparse", "two_stage"):
            indexes: dict[str, Any] = {"embedded": index, "Faiss": filed, "Faiss, mapped": mapped}
            for one in (filed, mapped):
                one.documents.num_threads = 1
            searches = {
                name: partial(one.search, k=KS[-1], mode=mode, num_threads=1) for name, one in indexes.items()
            }
            taken = milliseconds(searches, queries, rounds)
            expected = index.search(queries, KS[-1], mode=mode)
            for name, one in indexes.items():
                found = one.search(queries, KS[-1], mode=mode)
                parts = one.stats().bytes_per_vector
                reads_codes = mode == "two_stage" or name == "embedded"
                rows.append(
                    {
                        "mode": mode,
                        "lists": name,
                        "recall": recalls(found.ids, truth),
                        "same": {k: recall(found.ids, expected.ids, k) for k in KS},
                        "ms": taken[name],
                        "bytes_a_posting": EMBEDDED_POSTING_BYTES if name == "embedded" else POSTING_BYTES,
                        "bytes_a_vector": parts["total"] if reads_codes else parts["inverted"],
                    }
                )
        return rows


def probed(index: Any, queries: FloatArray) -> float:
    """Vectors that a query is compared with, the mean."""
    sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
    _, lists = index.quantizer.search(queries, index.nprobe)
    return float(sizes[lists].sum(axis=1).mean())


def ivf_by_k_means(vectors: FloatArray, lists: int) -> Any:
    """Faiss's own IVF of flat vectors."""
    made: Any = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    made.cp.min_points_per_centroid = 1  # no warning
    made.train(vectors)
    made.add(vectors)
    return made


def inverted_files_of_vectors(
    data: DataSet, model: CompresSAE, truth: npt.NDArray[Any]
) -> list[dict[str, Any]]:
    """IVFs over the dictionary, and one by k-means with as many lists."""
    vectors, queries = normalize_rows(data.vectors), normalize_rows(data.queries)
    lists = 2 * model.n_latents
    makers: dict[str, tuple[int, Callable[[], Any]]] = {
        f"dictionary, {n} assignment{'s' * (n > 1)}": (
            n,
            partial(dictionary_ivf, vectors, model, assignments=n, progress=False),
        )
        for n in ASSIGNMENTS
    }
    makers["k-means"] = (1, partial(ivf_by_k_means, vectors, lists))
    rows = []
    for name, (assignments, make) in makers.items():
        index, seconds = timed(make)
        sizes = [index.invlists.list_size(number) for number in range(lists)]
        for nprobe in PROBES:
            index.nprobe = nprobe
            _, found = search_once(index, queries, KS[-1], assignments)
            rows.append(
                {
                    "lists": name,
                    "seconds": seconds,
                    "empty": sizes.count(0),
                    "nprobe": nprobe,
                    "probed": probed(index, queries),
                    "recall": recalls(found, truth),
                    "bytes_a_vector": assignments * (4 * data.dim + 8),
                }
            )
    return rows


def dense_scores(
    index: CompressedIndex, data: DataSet, truth: npt.NDArray[Any], rounds: int
) -> list[dict[str, Any]]:
    """Packed codes, and flat indexes of their reconstructions, and the original vectors."""
    stores = {
        f"Faiss, {storage}": DenseStore(index, storage=storage, device="cpu", progress=False)
        for storage in STORAGES
    }
    exact = faiss.IndexFlatIP(data.dim)
    exact.add(normalize_rows(data.vectors))
    searches: dict[str, Search] = {
        "packed codes": partial(index.search, k=KS[-1], mode="dense", num_threads=1)
    }
    searches |= {name: partial(store.search, k=KS[-1], mode="dense") for name, store in stores.items()}
    searches["original vectors, float32"] = lambda query: exact.search(normalize_rows(query), KS[-1])
    size = {name: store.nbytes / len(store) for name, store in stores.items()}
    size |= {"packed codes": index.stats().bytes_by_mode["dense"], "original vectors, float32": 4 * data.dim}
    taken = milliseconds(searches, data.queries, rounds)
    rows = []
    for name, search in searches.items():
        found, seconds = timed(partial(search, data.queries))
        rows.append(
            {
                "scores from": name,
                "recall": recalls(found[1], truth),
                "bytes_a_vector": size[name],
                "ms": taken[name],
                "ms_in_a_batch": 1000 * seconds / len(data.queries),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one shape as Markdown."""

    def cells(row: dict[str, Any]) -> dict[str, str]:
        shown: dict[str, str] = {}
        for name, value in row.items():
            if name in ("recall", "same"):
                shown |= {
                    f"{name.replace('same', 'as embedded')}@{k}": f"{share:.3f}" for k, share in value.items()
                }
            else:
                shown[name.replace("_", " ")] = _number(name, value)
        return shown

    shown = [cells(row) for row in rows]
    return markdown(list(shown[0]), [list(row.values()) for row in shown])


def _number(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if name.startswith("ms") else f"{value:,.0f}"


@click.command()
@data_set_argument
@click.option("--rows", type=int, help="Vectors of the database; all by default.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
@click.option("--k", default=32, show_default=True, help="Nonzeros a code.")
@click.option("--n-latents", type=int, help="Size of the dictionary.")
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds.")
@click.option("--threads", type=int, help="Threads that train; all by default. Searches have one.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.pass_context
def main(
    context: click.Context,
    source: str,
    rows: int | None,
    preset: str,
    k: int,
    n_latents: int | None,
    rounds: int,
    threads: int | None,
    output: Path | None,
) -> None:
    """Equal answers, milliseconds and bytes of the Faiss connectors."""
    threads = check_threads(threads)
    torch.set_num_threads(threads)
    data = load(source, rows=rows)
    truth = data.neighbours(KS[-1])
    trained, seconds = timed(
        partial(train, data.vectors, TrainConfig.preset(cast("Preset", preset), k=k, n_latents=n_latents))
    )
    model = trained.model
    click.echo(f"{data}; {model.n_latents:,} latents, k={k}, preset {preset}, {seconds:.0f} s; {simd()}")
    print_load(1)
    index = CompressedIndex.build(data.vectors, model=model, k=k, num_threads=threads, progress=False)
    results: dict[str, list[dict[str, Any]]] = {}
    faiss.omp_set_num_threads(threads)
    results["IVF of vectors"] = inverted_files_of_vectors(data, model, truth)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        results["posting lists"] = inverted_file(index, data.queries, truth, rounds)
        results["dense scores"] = dense_scores(index, data, truth, rounds)
    for name, measured in results.items():
        click.echo(f"\n{name}:\n\n{table(measured)}")
    write_report(output, 1, context.params, {"train_seconds": seconds, **results})


if __name__ == "__main__":
    main()
