"""The engine against others: same codes, same queries, one process, one thread, interleaved rounds.

    python benchmarks/run.py engines [DATA]
    python benchmarks/run.py engines documents.csr --sparse-queries queries.csr

The second form searches sparse vectors of big-ann-benchmarks instead of codes of a data set. Real codes are
tiled with noise to the asked numbers of documents. The rivals are optional, of the extra "bench"; one that is
not installed is named and left out. Recall is against exact float32 scores, by the strongest latents of a
query and by its whole projection: an engine aims at one of the two. The projection of a query, which our
engine and sparse rivals need and dense ones do not, is timed on its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from common import interleaved, markdown, print_load, results_path, timed, write_report
from data_sets import data_set_argument, load, sparse_codes, sparse_rows
from sparse_contestants import RIVALS, Bench, Contender, IntArray, available, best
from threadpoolctl import threadpool_limits

from compressae_index import CompresSAE, CompressedIndex, SparseCodes, train
from compressae_index._engine import InvertedLists, search, simd
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.embedded.backend import EmbeddedBackend, Part
from compressae_index.embedded.codecs import Packed
from compressae_index.embedded.codecs.base import Arrays
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.embedded.sizes import sparse_candidates
from compressae_index.measuring.evaluation import Measurement
from compressae_index.measuring.plots import Series
from compressae_index.search.queries import QUERY_NNZ
from compressae_index.training.config import TrainConfig

SPARSE, TWO_STAGE, DENSE = "ours: sparse", "ours: two_stage", "ours: dense"
WIDE_SPARSE = f"{SPARSE}, {QUERY_NNZ} latents"
LISTS = "ours: posting lists alone"
CALL = "ours: index.search, two_stage"
# Lines of the plot.
FAMILIES = (
    SPARSE,
    "VSAG SINDI",
    "Seismic, sign-split",
    "kANNolo HNSW",
    "BMP",
    "Milvus Lite",
    "scipy CSR @ dense query",
    "sparse_dot_mkl CSR @ dense query",
)
SELECTED = (100, 1000)
DOCUMENTS = (20_000, 1_000_000, 4_000_000)
QUICK = (DOCUMENTS[:1], 20, 2)
ALLOWED = (0.1, 0.01, 0.001)
THREADS = (1, 2)
COPY_BYTES = 1 << 28
COPIES = 5


def tiled(codes: SparseCodes, n: int, seed: int) -> SparseCodes:
    """Codes repeated to n rows, values times 1 + noise, so that no two rows are equal."""
    repeats = -(-n // len(codes))
    latents = np.tile(codes.latents, (repeats, 1))[:n]
    values = np.tile(codes.values, (repeats, 1))[:n]
    rng = np.random.default_rng(seed)
    values *= 1 + 0.1 * rng.standard_normal(values.shape, dtype=np.float32)
    return SparseCodes(latents, values, codes.n_latents)


def bandwidth() -> float:
    """Bytes a second that a copy by numpy reads and writes, median."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    seconds = [timed(partial(np.copyto, target, source))[1] for _ in range(COPIES)]
    return 2 * COPY_BYTES / statistics.median(seconds)


class Own(NamedTuple):
    """Our posting lists and forward part, and the seconds that making each of them took."""

    codec: Packed
    arrays: Arrays
    forward: Any
    lists: InvertedLists
    packing_seconds: float
    inverting_seconds: float

    def contender(
        self,
        name: str,
        bench: Bench,
        call: Callable[[FloatArray], Any],
        *,
        codes: int = 1,
        postings: int = 1,
    ) -> Contender:
        """A search by projections that reads the codes, the posting lists, or both: 1 or 0 of each."""
        return Contender(
            name,
            [projection[None] for projection in bench.projections],
            call,
            lambda found: found[1][0, : bench.top],
            self.packing_seconds * codes + self.inverting_seconds * postings,
            (self.forward.nbytes * codes + self.lists.nbytes * postings) / bench.n,
        )


def made(bench: Bench) -> Own:
    """Packed codes, and posting lists of the values that they store."""

    def pack() -> Any:
        codec = Packed().fitted(bench.codes)
        dictionary = None if bench.model is None else bench.model.decoder_w
        arrays = codec.pack(bench.codes, 1, dictionary)
        return codec, arrays, codec.engine(arrays, bench.codes.n_latents, bench.codes.k)

    def invert() -> InvertedLists:
        stored = codec.unpack(arrays, bench.codes.n_latents, bench.codes.k)
        return InvertedLists.build(stored.latents, stored.values, stored.n_latents, 1)

    (codec, arrays, forward), packing_seconds = timed(pack)
    lists, inverting_seconds = timed(invert)
    return Own(codec, arrays, forward, lists, packing_seconds, inverting_seconds)


def ours(bench: Bench, own: Own) -> list[Contender]:
    """The modes of our index, its posting lists alone, and `index.search`."""
    parts, nnz, top = [(own.lists, own.forward)], bench.query_nnz, bench.top

    def sparse(query_nnz: int, u: FloatArray) -> Any:
        return search(parts, u, None, query_nnz, sparse_candidates(top), top, None, 1)

    def two_stage(candidates: int, u: FloatArray) -> Any:
        return search(parts, u, u, QUERY_NNZ, candidates, top, None, 1)

    def dense(u: FloatArray) -> Any:
        return search(parts, None, u, nnz, top, top, None, 1)

    def lists_alone(count: int, u: FloatArray) -> Any:
        return own.lists.search(u, nnz, count, None, 1)

    contender = partial(own.contender, bench=bench)
    return [
        contender(SPARSE, call=partial(sparse, nnz)),
        contender(WIDE_SPARSE, call=partial(sparse, QUERY_NNZ)),
        *(contender(f"{TWO_STAGE}, {n:,} candidates", call=partial(two_stage, n)) for n in SELECTED),
        *(contender(f"{LISTS}, top {n:,}", call=partial(lists_alone, n), codes=0) for n in SELECTED),
        *([] if bench.model is None else [indexed(bench, bench.model, own)]),
        contender(DENSE, call=dense, postings=0),
    ]


def indexed(bench: Bench, model: CompresSAE, own: Own) -> Contender:
    """`index.search`, which projects each query."""
    part = Part(own.arrays, own.forward, own.lists)
    backend = EmbeddedBackend(bench.codes.n_latents, bench.codes.k, own.codec, [part])
    index = CompressedIndex(model, documents=EmbeddedDocuments(backend))
    return Contender(
        CALL,
        [vector[None] for vector in bench.vectors],
        lambda query: index.search(query, bench.top, candidates=SELECTED[-1], num_threads=1),
        lambda found: found.ids[0],
        own.packing_seconds + own.inverting_seconds,
        (own.forward.nbytes + own.lists.nbytes) / bench.n,
    )


def filtered(bench: Bench, own: Own, rounds: int) -> list[dict[str, float]]:
    """Milliseconds of `two_stage` where a random share of the documents is allowed, and how many it finds."""
    parts, rng = [(own.lists, own.forward)], np.random.default_rng(0)

    def call(bitmap: Any) -> list[Any]:
        searched = (projection[None] for projection in bench.projections)
        return [search(parts, u, u, QUERY_NNZ, SELECTED[-1], bench.top, bitmap, 1)[1] for u in searched]

    drawn = rng.random(bench.n)
    bitmaps = {share: np.packbits(drawn < share, bitorder="little") for share in ALLOWED}
    calls = {"all": partial(call, None)} | {
        str(share): partial(call, each) for share, each in bitmaps.items()
    }
    seconds = interleaved(calls, rounds)
    lines = []
    for share, bitmap in bitmaps.items():
        found = np.concatenate(call(bitmap))
        allowed = np.unpackbits(bitmap, count=bench.n, bitorder="little").astype(bool)
        wanted = min(bench.top, int(allowed.sum()))
        lines.append(
            {
                "allowed": share,
                "ms": 1000 * seconds[str(share)] / len(bench.projections),
                "times_unfiltered": seconds[str(share)] / seconds["all"],
                "found": float(((found >= 0) & allowed[found]).sum() / (wanted * len(found))),
            }
        )
    return lines


def threaded(bench: Bench, own: Own, rounds: int) -> list[dict[str, float]]:
    """Milliseconds of `two_stage` on one thread and on two: all queries at once, and one after the other."""
    parts, projections = [(own.lists, own.forward)], bench.projections

    def batch(threads: int) -> Any:
        return search(parts, projections, projections, QUERY_NNZ, SELECTED[-1], bench.top, None, threads)

    def single(threads: int) -> Any:
        searched = (projection[None] for projection in projections)
        return [search(parts, u, u, QUERY_NNZ, SELECTED[-1], bench.top, None, threads) for u in searched]

    seconds = interleaved(
        {
            f"{call.__name__} {threads}": partial(call, threads)
            for call in (batch, single)
            for threads in THREADS
        },
        rounds,
    )
    return [
        {"threads": threads}
        | {name: 1000 * seconds[f"{name} {threads}"] / len(projections) for name in ("batch", "single")}
        for threads in THREADS
    ]


def bound(bench: Bench, lists: InvertedLists, bytes_per_second: float) -> dict[str, float]:
    """Postings and bytes that a query reads, and the least time that memory takes to deliver them."""
    lengths = lists.list_lengths()
    postings = statistics.fmean(float(lengths[query.latents].sum()) for query in bench.queries)
    read = postings * lists.nbytes / float(lengths.sum())
    return {"postings": postings, "bytes": read, "bound_ms": 1000 * read / bytes_per_second}


def contenders_of(bench: Bench, names: tuple[str, ...]) -> Iterator[Contender]:
    """The contenders of the named rivals."""
    for name in names:
        most = RIVALS[name].most
        if most is not None and bench.n > most:
            click.echo(f"({name} is not built beyond {most:,} documents)")
        elif RIVALS[name].dense and bench.model is None:
            click.echo(f"({name} searches vectors, and there are none)")
        else:
            yield from RIVALS[name].contenders(bench)


def every(contender: Contender) -> list[Any]:
    """A contender's answers to all queries, one after the other."""
    return [contender.search(query) for query in contender.queries]


def overlap(found: list[IntArray], truth: list[IntArray], top: int) -> float:
    """Share of the true best rows that were found."""
    shares = (len(np.intersect1d(row, true)) / top for row, true in zip(found, truth, strict=True))
    return statistics.fmean(shares)


def measure(bench: Bench, names: tuple[str, ...], rounds: int, bytes_per_second: float) -> dict[str, Any]:
    """Results of one number of documents."""
    own = made(bench)
    own_contenders = ours(bench, own)
    # Before rivals start threads of their own.
    by_threads = threaded(bench, own, rounds)
    contenders = [*own_contenders, *contenders_of(bench, names)]
    truths = [
        [best(bench.matrix @ query, bench.top) for query in queries]
        for queries in (bench.cut, list(bench.projections))
    ]
    seconds = interleaved({each.name: partial(every, each) for each in contenders}, rounds)
    results = {}
    for each in contenders:
        found = [each.rows(answer) for answer in every(each)]
        results[each.name] = {
            "recall_strongest": overlap(found, truths[0], bench.top),
            "recall_whole": overlap(found, truths[1], bench.top),
            "ms": 1000 * seconds[each.name] / len(each.queries),
            "row_bytes": each.row_bytes,
            "build_seconds": each.build_seconds,
        }
    kernel = results[f"{LISTS}, top {SELECTED[0]:,}"]["ms"]
    lower = bound(bench, own.lists, bytes_per_second)
    return {
        "documents": bench.n,
        "results": results,
        "filters": filtered(bench, own, rounds),
        "threads": by_threads,
        "bound": lower | {"kernel_ms": kernel, "kernel_times_bound": kernel / lower["bound_ms"]},
    }


def table(measured: dict[str, Any], query_nnz: int, top: int) -> str:
    """The tables of one number of documents, and how far the posting lists are from the bound of memory."""
    results, lower = measured["results"], measured["bound"]
    wide = results[WIDE_SPARSE]["ms"]
    whole = measured["projection_ms"] + results[f"{TWO_STAGE}, {SELECTED[-1]:,} candidates"]["ms"]
    call = results.get(CALL)
    called = (
        "" if call is None else f"; `index.search` takes {call['ms']:.3f} ms, {call['ms'] / wide:.2f} times"
    )
    return (
        f"{results_table(measured, query_nnz, top)}\n\n"
        f"{TWO_STAGE} with {SELECTED[-1]:,} candidates, filtered:\n\n{filters_table(measured)}\n\n"
        f"The same unfiltered, by threads, of which the others have one:\n\n{threads_table(measured)}\n\n"
        f"A query reads {lower['postings']:,.0f} postings, {lower['bytes'] / 1e6:.2f} MB: at least "
        f"{lower['bound_ms']:.3f} ms. The posting lists alone take "
        f"{lower['kernel_times_bound']:.1f} times that. Projection and {TWO_STAGE} with "
        f"{SELECTED[-1]:,} candidates take {whole:.3f} ms, {whole / wide:.2f} times {WIDE_SPARSE}{called}."
    )


def results_table(measured: dict[str, Any], query_nnz: int, top: int) -> str:
    """Recall, milliseconds, bytes and seconds of building of every contender."""
    results = measured["results"]
    header = [
        f"{measured['documents']:,} documents",
        f"recall@{top}, {query_nnz} latents",
        f"recall@{top}, whole",
        "ms/query",
        "time / sparse",
        "bytes/vector",
        "build s",
    ]
    rows = [
        [
            name,
            f"{result['recall_strongest']:.4f}",
            f"{result['recall_whole']:.4f}",
            f"{result['ms']:.3f}",
            f"{result['ms'] / results[SPARSE]['ms']:.2f}",
            f"{result['row_bytes']:.0f}",
            f"{result['build_seconds']:.1f}",
        ]
        for name, result in results.items()
    ]
    return markdown(header, rows)


def filters_table(measured: dict[str, Any]) -> str:
    """Milliseconds of `two_stage` by the share of documents that a filter allows."""
    rows = [
        [
            f"{100 * line['allowed']:g} %",
            f"{line['ms']:.3f}",
            f"{line['times_unfiltered']:.2f}",
            f"{line['found']:.4f}",
        ]
        for line in measured["filters"]
    ]
    return markdown(["allowed documents", "ms/query", "time / all allowed", "found of what is wanted"], rows)


def threads_table(measured: dict[str, Any]) -> str:
    """Milliseconds of `two_stage` by the number of threads."""
    rows = [
        [str(each["threads"]), f"{each['batch']:.3f}", f"{each['single']:.3f}"]
        for each in measured["threads"]
    ]
    return markdown(["threads", "ms/query in a batch", "ms/query, one by one"], rows)


def series(measured: dict[str, Any], top: int) -> list[Series]:
    """The lines of a plot for one number of documents: engines that search by a query's strongest latents."""
    found = []
    for family in FAMILIES:
        # Ours by more latents is none of it: this recall is by those of `query_nnz` alone.
        names = [
            name
            for name in measured["results"]
            if name == family or (family != SPARSE and name.startswith(f"{family}, "))
        ]
        results = {name: measured["results"][name] for name in names}
        points = [
            Measurement(name, each["row_bytes"], {top: each["recall_strongest"]}, each["ms"])
            for name, each in results.items()
        ]
        if points:
            found.append(Series(family, points, joined=True, is_ours=family.startswith("ours")))
    return found


def growth_table(reports: list[dict[str, Any]]) -> str:
    """Milliseconds by number of documents, of contenders measured at all of them, and growth at the end."""
    first, before = reports[0], reports[-2]
    header = [
        "milliseconds a query",
        *(f"{report['documents']:,}" for report in reports),
        f"growth from {before['documents']:,}",
    ]
    names = [name for name in first["results"] if all(name in report["results"] for report in reports)]
    rows = {name: [report["results"][name]["ms"] for report in reports] for name in names}
    lines = [
        [name, *(f"{each:.3f}" for each in milliseconds), f"{milliseconds[-1] / milliseconds[-2]:.2f}"]
        for name, milliseconds in rows.items()
    ]
    return markdown(header, lines)


class Searched(NamedTuple):
    """Codes and queries, as `Bench` holds them, before they are tiled."""

    stem: str
    """The stem of the files that results are written to."""
    name: str
    model: CompresSAE | None
    codes: SparseCodes
    vectors: FloatArray
    projections: FloatArray
    projection_ms: float

    def tiled(self, n: int, query_nnz: int, top: int) -> Bench:
        """The codes tiled to n documents, and the queries."""
        codes = tiled(self.codes, n, seed=0)
        return Bench(self.model, codes, self.vectors, self.projections, query_nnz, top)


def encoded(source: str, model_path: Path | None, queries: int) -> Searched:
    """The codes of a data set."""
    data = load(source, queries=queries)
    if model_path is not None:
        model = CompresSAE.load(model_path)
    else:
        model = train(data.vectors, TrainConfig.preset("fast"), progress=True).model
    codes = model.fold(model.encode(data.vectors))
    unit = normalize_rows(data.queries)
    with threadpool_limits(1):
        model.project(unit[:1])  # what later calls need is made now
        projections, seconds = timed(
            lambda: np.concatenate([model.project(query[None], num_threads=1) for query in unit])
        )
    return Searched(data.stem, str(data), model, codes, unit, projections, 1000 * seconds / len(unit))


def stored(source: str, query_path: Path, queries: int) -> Searched:
    """The sparse vectors of a file; a query is looked up by its values, without a projection."""
    documents, asked = sparse_rows(Path(source)), sparse_rows(query_path)[:queries]
    if asked.shape[1] != documents.shape[1]:
        msg = f"{query_path} has {asked.shape[1]} columns, {source} {documents.shape[1]}"
        raise click.ClickException(msg)
    codes = sparse_codes(documents)
    projections = np.zeros((asked.shape[0], codes.n_latents), np.float32)
    projections[:, : asked.shape[1]] = asked.toarray()
    name = f"{source}: {len(codes):,} sparse vectors, {documents.nnz / len(codes):.0f} nonzeros on average"
    return Searched(
        Path(source).stem, name, None, codes, np.empty((len(projections), 0), np.float32), projections, 0.0
    )


def installed(rivals: tuple[str, ...]) -> tuple[str, ...]:
    """The rivals that can be imported; the others are named on standard output."""
    names = available(rivals)
    for name in rivals:
        if name not in names:
            click.echo(f"({RIVALS[name].module} is not installed)")
    return names


def introduced(searched: Searched, top: int) -> float:
    """Prints the codes that are searched and the machine's load; bytes a second of a copy."""
    codes = searched.codes
    click.echo(f"{searched.name}; h={codes.n_latents}, k={codes.k}, top {top}, one thread, {simd()}")
    print_load(1)
    speed = bandwidth()
    click.echo(
        f"A copy moves {speed / 1e9:.1f} GB/s; "
        f"the projection of a query takes {searched.projection_ms:.3f} ms."
    )
    return speed


@click.command("engines")
@data_set_argument
@click.option(
    "--sparse-queries",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Queries, where DATA is a .csr file of big-ann-benchmarks.",
)
@click.option("--model", "model_path", type=click.Path(exists=True, path_type=Path), help="A saved model.")
@click.option(
    "--documents",
    type=click.IntRange(min=max(SELECTED) + 1),
    multiple=True,
    default=DOCUMENTS,
    show_default=True,
    help="Documents to search; may be repeated.",
)
@click.option(
    "--rival",
    "rivals",
    type=click.Choice(list(RIVALS)),
    multiple=True,
    default=tuple(RIVALS),
    show_default=True,
    help="Engines beside ours; may be repeated.",
)
@click.option("--query-nnz", default=32, show_default=True, help="Latents of a query.")
@click.option("--top", default=SELECTED[0], show_default=True, help="Results of a query.")
@click.option("--queries", default=50, show_default=True, help="Queries a round, one at a time.")
@click.option(
    "--quick", is_flag=True, help="20,000 documents, 20 queries and 2 rounds, whatever else is said."
)
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds, whose medians are printed.")
@click.pass_context
def command(
    context: click.Context,
    source: str,
    sparse_queries: Path | None,
    model_path: Path | None,
    documents: tuple[int, ...],
    rivals: tuple[str, ...],
    query_nnz: int,
    top: int,
    queries: int,
    quick: bool,
    rounds: int,
) -> None:
    """Milliseconds a query of our engine and of others, at which recall, bytes and seconds of building."""
    if quick:
        documents, queries, rounds = QUICK
    names = installed(rivals)
    if sparse_queries is not None:
        searched = stored(source, sparse_queries, queries)
    else:
        searched = encoded(source, model_path, queries)
    reports = []
    with threadpool_limits(1):
        speed = introduced(searched, top)
        for n in sorted(documents):
            bench = searched.tiled(n, query_nnz, top)
            reports.append({"projection_ms": searched.projection_ms} | measure(bench, names, rounds, speed))
            click.echo("\n" + table(reports[-1], query_nnz, top))
    if len(reports) > 1:
        click.echo("\n" + growth_table(reports))
    write_report(
        results_path(f"{searched.stem}-quick" if quick else searched.stem, "engines"),
        1,
        context.params | {"documents": documents, "queries": queries, "rounds": rounds},
        {"data": searched.name, "copy_bytes_per_second": speed, "measured": reports},
    )
