"""The third stage: codes with residual codes or original vectors against HNSW, by recall, time and bytes.

HNSW is hnswlib's, if that is installed, else Faiss's; M=16, efConstruction=200, float32.
"""

from __future__ import annotations

import importlib
import mmap
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import normalize_rows
from compressae_index.search.recall import recall
from compressae_index.training import TrainConfig, train

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown, timed
from data_sets import DataSet

TOP, TIMED_QUERIES, ROUNDS, COLD_QUERIES = 10, 400, 5, 50
EF = (100, 200, 400, 800, 1600)
M, EF_CONSTRUCTION = 16, 200
# Nonzeros, residual bits (0: original vectors, half precision) and settings of searches: candidates, latents
# of the query, documents of the last stage.
FORMS: dict[str, tuple[dict[str, Any], tuple[tuple[int, int, int], ...]]] = {
    "k=8, originals": (
        {"k": 8, "postings": 8, "value_bits": 5, "originals": "float16"},
        ((1000, 128, 50), (3000, 128, 50), (3000, 256, 100), (3000, 512, 100)),
    ),
    "k=16, originals": (
        {"k": 16, "postings": 8, "value_bits": 5, "originals": "float16"},
        ((1000, 128, 50), (3000, 128, 50), (3000, 256, 100), (3000, 512, 100)),
    ),
    **{
        f"{budget} bytes": (
            {"bytes_per_vector": budget},
            ((1000, 128, 50), (3000, 256, 100), (3000, 512, 100), (6000, 512, 100)),
        )
        for budget in (128, 170, 200)
    },
}


class Line(NamedTuple):
    """A form with settings, or HNSW with an ef."""

    name: str
    setting: str
    bytes_per_vector: float
    """Resident, without the model."""
    model_bytes: float
    """The dictionary as serving needs it, a byte an entry, a vector."""
    disk_bytes: float
    recall: float
    milliseconds: float = 0.0
    cold_milliseconds: float | None = None


class Contestant(NamedTuple):
    """A line that is to be timed."""

    line: Line
    search: Callable[[FloatArray], Any]
    cool: Callable[[], None] | None = None
    """Drops what a search reads from disk out of the system's cache."""


def lines_of(data: DataSet, model: CompresSAE, threads: int, forms: tuple[str, ...]) -> list[Line]:
    """All lines, timed in one run, query by query on one thread."""
    truth = data.neighbours(TOP)
    queries = normalize_rows(data.queries)
    contestants = [*hnsw(data, truth, threads)]
    folder = tempfile.TemporaryDirectory(prefix="compressae-stages-")
    with folder as scratch:
        for name in forms:
            contestants += ours(name, data, model, truth, threads, Path(scratch) / name.replace(" ", ""))
        with threadpool_limits(1):
            taken = _interleaved([each.search for each in contestants], queries)
            lines = [
                each.line._replace(milliseconds=1000 * seconds, cold_milliseconds=_cold(each, queries))
                for each, seconds in zip(contestants, taken, strict=True)
            ]
    return lines


def hnsw(data: DataSet, truth: IdArray, threads: int) -> Iterator[Contestant]:
    """HNSW over the unit vectors."""
    unit, queries = normalize_rows(data.vectors), normalize_rows(data.queries)
    size = 4 * data.dim + 8 * M + 8  # vectors, links of the lowest layer and a label
    search, seconds = timed(partial(_hnsw_search, unit, threads))
    click.echo(f"HNSW built in {seconds:.0f} s")
    for ef in EF:
        found = search(queries, ef)
        line = Line("HNSW", f"ef={ef}", size, 0.0, 0.0, recall(found, truth, TOP))
        yield Contestant(line, partial(search, ef=ef))


def _hnsw_search(unit: FloatArray, threads: int) -> Callable[..., IdArray]:
    try:
        hnswlib = importlib.import_module("hnswlib")
    except ImportError:
        return _faiss_search(unit)
    index = hnswlib.Index("ip", unit.shape[1])
    index.init_index(len(unit), M=M, ef_construction=EF_CONSTRUCTION)
    index.set_num_threads(threads)
    index.add_items(unit)
    index.set_num_threads(1)

    def search(queries: FloatArray, ef: int) -> IdArray:
        index.set_ef(ef)
        found: IdArray = index.knn_query(queries, TOP)[0].astype(np.int64)
        return found

    return search


def _faiss_search(unit: FloatArray) -> Callable[..., IdArray]:
    import faiss

    index = faiss.IndexHNSWFlat(unit.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(unit)
    faiss.omp_set_num_threads(1)
    parameters: Any = faiss.SearchParametersHNSW  # type: ignore[attr-defined]

    def search(queries: FloatArray, ef: int) -> IdArray:
        found: IdArray = index.search(queries, TOP, params=parameters(efSearch=ef))[1]
        return found

    return search


def ours(
    name: str, data: DataSet, model: CompresSAE, truth: IdArray, threads: int, path: Path
) -> Iterator[Contestant]:
    """A form, saved and loaded again, so that original vectors are a file, with each of its settings."""
    options, settings = FORMS[name]
    build = partial(CompressedIndex.build, data.vectors, model=model, num_threads=threads, progress=False)
    built, seconds = timed(partial(build, **options))
    built.save(path)
    index = CompressedIndex.load(path)
    originals = index.documents.backend.originals
    n, disk = len(index), 0 if originals is None else originals.disk_bytes
    click.echo(f"{name}: built in {seconds:.0f} s, {built.plan or options}")
    for candidates, query_nnz, refine in settings:
        search = partial(
            index.search, k=TOP, candidates=candidates, query_nnz=query_nnz, refine=refine, num_threads=1
        )
        found = index.search(
            data.queries, TOP, candidates=candidates, query_nnz=query_nnz, refine=refine, num_threads=threads
        )
        line = Line(
            name,
            f"{candidates:,} candidates, {query_nnz} latents, {refine} refined",
            index.stats().bytes_per_vector["total"],
            model.n_latents * model.dim / n,
            disk / n,
            recall(found.ids, truth, TOP),
        )
        cool = None if originals is None else partial(_drop, originals.segments[0].rows, path)
        yield Contestant(line, search, cool)


def _drop(rows: Any, path: Path) -> None:
    """Drops a mapped file out of this process and the system's cache."""
    rows.base.madvise(mmap.MADV_DONTNEED)
    (file,) = path.glob("data-*/originals.npy")
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _interleaved(searches: list[Callable[[FloatArray], Any]], queries: FloatArray) -> list[float]:
    """Median over rounds of the mean seconds of a query; all contestants take part in each round."""
    taken: list[list[float]] = [[] for _ in searches]
    share = min(TIMED_QUERIES, len(queries)) // ROUNDS
    for number in range(ROUNDS):
        some = queries[number * share : (number + 1) * share]
        for search, seconds in zip(searches, taken, strict=True):
            search(some[:1])
            seconds.append(timed(partial(_each, search, some))[1] / share)
    return [statistics.median(each) for each in taken]


def _each(search: Callable[[FloatArray], Any], queries: FloatArray) -> None:
    for query in queries:
        search(query[None])


def _cold(contestant: Contestant, queries: FloatArray) -> float | None:
    """Median milliseconds of queries whose original vectors must be read from disk."""
    if contestant.cool is None:
        return None
    seconds = []
    for query in queries[:COLD_QUERIES]:
        contestant.cool()
        seconds.append(timed(partial(contestant.search, query[None]))[1])
    return 1000 * statistics.median(seconds)


def trained(data: DataSet, n_latents: int | None) -> CompresSAE:
    """The model of all forms."""
    result, seconds = timed(partial(train, data.vectors, TrainConfig(n_latents=n_latents, k=16, steps=0)))
    click.echo(f"{result.model}: trained in {seconds:.0f} s")
    return result.model


def table(lines: list[Line]) -> str:
    """The lines as a table, and what the best HNSW of each recall takes."""
    header = ["", "settings", "bytes", "+ model", "+ disk", "recall@10", "ms", "ms cold"]
    rows = [
        [
            line.name,
            line.setting,
            f"{line.bytes_per_vector:.1f}",
            f"{line.model_bytes:.1f}",
            f"{line.disk_bytes:.0f}",
            f"{line.recall:.4f}",
            f"{line.milliseconds:.3f}",
            "-" if line.cold_milliseconds is None else f"{line.cold_milliseconds:.1f}",
        ]
        for line in lines
    ]
    return markdown(header, rows)
