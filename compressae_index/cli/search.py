"""Commands that search and measure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_int
from compressae_index.cli.data import given_ids
from compressae_index.cli.explain import (
    SHOWN,
    Latents,
    latent_options,
    share_line,
    shares,
)
from compressae_index.cli.indexes import ids_of, load_index
from compressae_index.cli.options import (
    PATH,
    PLACE,
    F,
    Searching,
    bad_rows_option,
    check_file,
    dataset_option,
    gathered,
    id_column_option,
    json_option,
    mode_option,
    originals_option,
    print_json,
    query_dataset_option,
    search_options,
    threads_option,
)
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.errors import InputError
from compressae_index.ids import as_id_array
from compressae_index.measuring.evaluation import as_table, frontier_table
from compressae_index.measuring.index_report import KS, IndexReport, index_report
from compressae_index.measuring.page import as_page
from compressae_index.measuring.plots import figure_class
from compressae_index.remote import Place
from compressae_index.search.index import Index
from compressae_index.search.queries import Mode, SearchResult, SearchStats, check_candidates
from compressae_index.search.results import write_results, write_table
from compressae_index.sources import BadRows, Vectors, open_vectors, read_ids, read_metadata
from compressae_index.storage import written_aside
from compressae_index.terminal import printable, quoted

output_option = click.option(
    "--output",
    "-o",
    type=PATH,
    help="Write scores and ids to this .npz or .parquet file instead of printing them.",
)


class Metadata(NamedTuple):
    """The values of `metadata_options`."""

    columns: str | None
    source: Place | None
    id_column: str | None

    def names(self) -> list[str]:
        """The columns asked for.

        Raises:
            click.UsageError: columns without a file, or the other way round, or a name of our own columns.
        """
        if (self.columns is None) != (self.source is None):
            raise click.UsageError("--columns and --from need each other.")
        if self.columns is None and self.id_column is not None:
            raise click.UsageError("--id-column needs --columns and --from.")
        names = [] if self.columns is None else [name.strip() for name in self.columns.split(",")]
        if taken := {"query", "rank", "id", "score"}.intersection(names):
            raise click.UsageError(f"Results have a column {min(taken)!r} of their own.")
        return names

    def joined(self, table: Any) -> Any:
        """A table of results with the columns asked for."""
        if self.source is None:
            return table
        read = read_metadata(self.source, as_id_array(table.column("id")), self.names(), self.id_column)
        for name in self.names():
            table = table.append_column(name, read.column(name))
        return table


def metadata_options(function: F) -> F:
    """Adds the options of a search that show other columns of what was found."""
    options = (
        click.option("--columns", help="Columns of --from to show of each document, as title,price."),
        click.option(
            "--from", "source", type=PLACE, help="Parquet files or a Lance dataset of the documents."
        ),
        click.option("--id-column", help="Column of --from that holds the ids.  [default: row numbers]"),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("index", type=PLACE)
@click.argument("queries", type=PLACE)
@click.option("-k", "k", type=int, default=10, show_default=True, help="Neighbours of each query.")
@mode_option
@gathered(search_options, Searching, "searching")
@click.option(
    "--refine",
    type=int,
    help="Documents that residual codes or original vectors score again, or 0 for none, if INDEX has any.  "
    "[default: as measured by `build`, or 100]",
)
@click.option(
    "--target-recall",
    type=float,
    help="recall@10 that two_stage is to reach, by settings that `build` measured. Options that are given "
    "stay as they are.",
)
@gathered(latent_options, Latents, "latents")
@click.option(
    "--explain", "explaining", is_flag=True, help=f"Show the {SHOWN} latents that matter most for each hit."
)
@gathered(metadata_options, Metadata, "metadata")
@click.option(
    "--stats", "counting", is_flag=True, help="Say what the search did: milliseconds and counts by stage."
)
@output_option
@query_dataset_option
@originals_option
@threads_option
@json_option
def search(
    index: Place,
    queries: Place,
    k: int,
    mode: Mode,
    searching: Searching,
    refine: int | None,
    target_recall: float | None,
    latents: Latents,
    explaining: bool,
    metadata: Metadata,
    counting: bool,
    output: Path | None,
    query_dataset: str,
    originals: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Search INDEX for the neighbours of QUERIES.

    QUERIES is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Prints one line per
    query: its number, a tab, then id:score pairs. Ids with blanks, quotes or unprintable characters are
    printed as JSON strings. INDEX may be one of the Faiss connector, which has no dense mode.

    With --output, the file holds the arrays scores and ids, one row per query; ids are -1 where nothing was
    found. If the ids of the index are strings, the file holds numbers i instead, and the string is
    id_text[id_ends[i]:id_ends[i+1]] in UTF-8. In Python, compressae_index.search.results.read_results reads
    the file. As .parquet, it is a table of query, rank, id, score and the --columns, a row for each document.

    With --explain or --columns, a line is one document: the query's number, a tab, id:score, and the columns
    after tabs. Below it are latents with what they add to its score, and their names if `label` gave any.

    With --stats, standard error has a line of what the search did for all queries together; with --json, it
    is the entry "stats" of the object.

    \b
    Example:
      compressae-index search items.index queries.npy -k 10 --target-recall 0.95
      compressae-index search items.index queries.npy --explain --holding 12+ --steer 40=0.3
      compressae-index search items.index queries.npy --columns title,price --from items.parquet
    """  # noqa: D301
    names = metadata.names()
    if output is not None:
        _check_results(output, names, explaining=explaining)
    _refuse_useless(mode, searching)
    if explaining and searching.scoring == "symmetric":
        raise click.UsageError("--explain is of asymmetric scores.")
    loaded = load_index(index, originals)
    vectors = open_vectors(queries, dataset=query_dataset, may_be_empty=True)
    rows = latents.steered(loaded, vectors[0 : vectors.shape[0]])
    found = loaded.search(
        rows,
        k,
        mode=mode,
        target_recall=target_recall,
        refine=refine,
        filter=latents.filter_of(loaded),
        num_threads=threads,
        stats=counting,
        **searching._asdict(),
    )
    table = metadata.joined(found.to_arrow()) if names or _is_table(output) else None
    if output is not None:
        _write(found, output, as_json, table)
    elif explaining or names:
        _show_hits(found, loaded if explaining else None, rows, names, table, as_json)
    elif as_json:
        click.echo(json.dumps(neighbours(found.scores, found.ids) | _stats(found)))
    else:
        print_neighbours(found.scores, found.ids)
    if found.stats is not None and not as_json:
        click.echo(_in_a_line(found.stats), err=True)


def _stats(found: SearchResult) -> dict[str, Any]:
    """What a search did, as an entry of JSON, if that was asked for."""
    return {} if found.stats is None else {"stats": found.stats._asdict()}


def _in_a_line(stats: SearchStats) -> str:
    spent = ", ".join(f"{stage} {value:.3f} ms" for stage, value in stats.milliseconds.items())
    counts = {
        "candidates": stats.candidates,
        "re-scored": stats.rescored,
        "refined": stats.refined,
        "postings": stats.postings,
        "bytes read": stats.bytes_read,
    }
    known = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count is not None)
    return f"{stats.queries:,} queries: {spent}; {known}"


def _check_results(output: Path, names: list[str], *, explaining: bool) -> None:
    """Checks, before any work, that a file can be written, and can hold what is asked for."""
    check_file(output, ".parquet" if _is_table(output) else ".npz", "results")
    if explaining:
        raise click.UsageError("--explain prints, and cannot be used with --output.")
    if names and not _is_table(output):
        raise click.UsageError("--columns are printed, or written to a .parquet file.")


def _is_table(output: Path | None) -> bool:
    return output is not None and output.suffix.lower() == ".parquet"


def _show_hits(
    found: SearchResult, index: Index | None, queries: FloatArray, names: list[str], table: Any, as_json: bool
) -> None:
    """Prints what was found, a document a line, with other columns, and with latents if an index is given."""
    columns = {name: table.column(name).to_pylist() for name in names}
    hits = []
    for number, (query, rank) in enumerate(np.argwhere(found.found).tolist()):
        id_ = found.ids[query, rank : rank + 1].tolist()[0]
        why = [] if index is None else shares(index.explain(queries[query], id_))[:SHOWN]
        fields = {name: _finite(values[number]) for name, values in columns.items()}
        hit = {"query": query, "rank": rank, "id": id_, "score": float(found.scores[query, rank])}
        hits.append(hit | fields | ({} if index is None else {"latents": why}))
        if not as_json:
            shown = [f"{quoted(id_)}:{hit['score']:.4f}", *(quoted(value) for value in fields.values())]
            click.echo("\t".join([str(query), *shown]))
            for share in why:
                click.echo(f"\t{share_line(share)}")
    if as_json:
        print_json({"hits": hits} | _stats(found))


def _refuse_useless(mode: Mode, searching: Searching) -> None:
    """Refuses options that a mode has no use for; the library refuses others."""
    useless: dict[Mode, dict[str, int | None]] = {
        "sparse": {"--candidates": searching.candidates},
        "dense": {"--candidates": searching.candidates, "--query-nnz": searching.query_nnz},
        "two_stage": {},
    }
    for option, value in useless[mode].items():
        if value is not None:
            msg = f"{option} has no use in mode {mode}."
            raise click.UsageError(msg)


def _write(found: SearchResult, output: Path, as_json: bool, table: Any = None) -> None:
    """Writes results to a file, arrays or a table, and says so."""
    with written_aside(output) as aside:
        if table is None:
            write_results(aside, found.scores, found.ids)
        else:
            write_table(aside, table)
    if as_json:
        print_json({"results": str(output)} | _stats(found))
    else:
        n, k = found.ids.shape
        click.echo(f"{n} x {k} results in {printable(str(output))}")


@click.command("neighbours")
@click.argument("index", type=PLACE)
@click.option("--ids", type=PLACE, help="Ids of documents: .npy, or a text file with one id a line.")
@click.option("--all", "every", is_flag=True, help="All documents, in the order of the index.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="Neighbours of each document.")
@mode_option
@output_option
@originals_option
@threads_option
@json_option
def stored_neighbours(
    index: Place,
    ids: Place | None,
    every: bool,
    k: int,
    mode: Mode,
    output: Path | None,
    originals: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the neighbours of documents that INDEX holds.

    Takes no vectors: documents are compared by what the index keeps of them, and a document is not among its
    own neighbours. Prints one line per document: its id, a tab, then id:score pairs. Ids with blanks, quotes
    or unprintable characters are printed as JSON strings. INDEX may be one of the Faiss connector, which has
    no dense mode.

    With --output, the file holds the arrays scores and ids as `search` writes them, one row per document in
    the order of --ids, or of the index.

    \b
    Example:
      compressae-index neighbours items.index --ids some.txt -k 10
      compressae-index neighbours items.index --all -o neighbours.npz
    """  # noqa: D301
    if (ids is None) != every:
        msg = "Give either --ids or --all."
        raise click.UsageError(msg)
    if output is not None:
        _check_results(output, [], explaining=False)
    loaded = load_index(index, originals)
    wanted = loaded.ids if ids is None else as_id_array(ids_of(loaded, read_ids(ids)))
    found = loaded.neighbours(wanted, k, mode=mode, num_threads=threads, progress=True)
    if output is not None:
        _write(found, output, as_json, found.to_arrow() if _is_table(output) else None)
    elif as_json:
        click.echo(json.dumps({"documents": wanted.tolist()} | neighbours(found.scores, found.ids)))
    else:
        print_neighbours(found.scores, found.ids, wanted.tolist())


def neighbours(scores: FloatArray, ids: IdArray) -> dict[str, Any]:
    """The result of a search, for JSON."""
    return {"ids": ids.tolist(), "scores": [[_finite(s) for s in row] for row in scores.tolist()]}


def print_neighbours(scores: FloatArray, ids: IdArray, queries: Iterable[object] | None = None) -> None:
    """Prints one line per query: its number or id, then id:score pairs; ids are quoted where they need it."""
    firsts = range(len(ids)) if queries is None else map(quoted, queries)
    for first, row_ids, row_scores in zip(firsts, ids, scores, strict=True):
        found = (
            f"{quoted(name)}:{score:.4f}"
            for name, score in zip(row_ids, row_scores, strict=True)
            if np.isfinite(score)
        )
        click.echo(f"{first}\t" + " ".join(found))


def _finite(value: Any) -> Any:
    """The value, or None for a number that is infinite or none, which JSON lacks."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


@click.command("eval")
@click.argument("index", type=PLACE)
@click.argument("embeddings", type=PLACE)
@click.argument("queries", type=PLACE, required=False)
@click.option(
    "--ids",
    type=PLACE,
    help="Ids of EMBEDDINGS, one a row: .npy, or a text file with one id a line.  [default: 0 to n-1]",
)
@id_column_option
@gathered(search_options, Searching, "searching")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="Metric of the true neighbours.  [default: the index's]",
)
@click.option("--max-queries", type=int, default=1000, show_default=True, help="Queries to measure with.")
@click.option(
    "--faiss/--no-faiss",
    default=False,
    show_default=True,
    help="Compare with Faiss's quantisers at the same bytes; needs faiss, and takes a minute or more.",
)
@click.option(
    "--report",
    "page",
    type=PATH,
    help="Write a page with tables and plots to this .html file (needs matplotlib).",
)
@bad_rows_option
@dataset_option
@query_dataset_option
@originals_option
@json_option
def evaluate(
    index: Place,
    embeddings: Place,
    queries: Place | None,
    ids: Place | None,
    id_column: str | None,
    searching: Searching,
    metric: Metric | None,
    max_queries: int,
    faiss: bool,
    page: Path | None,
    on_bad_rows: BadRows,
    dataset: str,
    query_dataset: str,
    originals: str | None,
    as_json: bool,
) -> None:
    """Measure INDEX on the EMBEDDINGS it was built from.

    Compares the index with exact search. EMBEDDINGS and QUERIES are .npy, .fvecs, .bvecs, .hdf5 or .parquet
    files, or folders of such files. QUERIES should not be in the index; leave them out if EMBEDDINGS is an
    HDF5 file that holds them. Prints recall, bytes and time of exact search, of each mode and, with --faiss,
    of Faiss's quantisers, then those of other settings of the modes, and the recall@10 of the settings that
    `build` measured beside what it expected. Bytes are resident; those of original vectors on disk are apart.

    Neighbours are compared by id: row numbers of EMBEDDINGS, unless --ids gives others. Rows that the index
    does not hold are left out.

    \b
    Example:
      compressae-index eval items.index embeddings.npy queries.npy --report eval.html
      compressae-index eval items.index embeddings.npy queries.npy --ids ids.txt --faiss
    """  # noqa: D301
    check_int(max_queries, "max-queries", 1)
    if searching.candidates is not None:
        check_candidates(searching.candidates, max(KS))
    if page is not None:
        check_file(page, ".html", "reports")
        figure_class()
    loaded = load_index(index, originals)
    zeros = loaded.metric == "l2"
    vectors = open_vectors(embeddings, dataset=dataset, on_bad_rows=on_bad_rows, zeros=zeros)
    named = given_ids(embeddings, ids, id_column)
    asked_in, asked = _queries_of(embeddings, queries, query_dataset)
    result = index_report(
        loaded,
        vectors,
        asked[0:max_queries],
        ids=None if named is None else ids_of(loaded, named),
        metric=metric,
        faiss=faiss,
        progress=True,
        **searching._asdict(),
    )
    if page is not None:
        names = {"index": str(index), "embeddings": str(embeddings), "queries": str(asked_in)}
        with written_aside(page) as aside:
            aside.write_text(as_page(result, names), encoding="utf-8")
    _print_report(result, as_json)


def _queries_of(embeddings: Place, queries: Place | None, dataset: str) -> tuple[Place, Vectors]:
    """The file of the queries, and the queries.

    Raises:
        InputError: no file is given, and that of the embeddings cannot hold queries.
    """
    if queries is None and embeddings.suffix.lower() not in (".hdf5", ".h5"):
        msg = "QUERIES is needed, unless EMBEDDINGS is an HDF5 file"
        raise InputError(msg)
    file = embeddings if queries is None else queries
    return file, open_vectors(file, dataset=dataset)


def _print_report(result: IndexReport, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        click.echo(as_table(result.measurements))
        if disk := result.stats.disk_bytes_per_vector:
            click.echo(f"\nOriginal vectors take {disk:,.0f} bytes a vector on disk.")
        click.echo("\n" + as_table(one for each in result.sweeps for one in each.measurements.values()))
        if result.frontier:
            click.echo("\n" + frontier_table(result.frontier))


@click.command()
@click.option("--output", "-o", type=PATH, help="Directory to keep the index in.  [default: a temporary one]")
@click.option("--serve", "is_served", is_flag=True, help="Serve a page to search the texts, to this machine.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port of --serve; 0 for a free one.",
)
@json_option
def demo(output: Path | None, is_served: bool, port: int, as_json: bool) -> None:
    """Run the main job on shipped data.

    Trains, builds, saves, loads, searches and measures 19,000 embeddings of short texts, in a minute or two.

    With --serve, a page at http://127.0.0.1:8000 searches them by each mode, and explains what was found,
    until Ctrl-C. An index that is in --output already is taken as it is.

    \b
    Example:
      compressae-index demo
      compressae-index demo --serve
    """  # noqa: D301
    from compressae_index.demo import run

    if is_served:
        from compressae_index.demo.server import serve

        serve(output, port, click.echo)
        return
    result = run(output, (lambda _: None) if as_json else click.echo)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "stats": result.stats._asdict(),
                    "measurements": [measurement.as_dict() for measurement in result.measurements],
                    "seconds": result.seconds,
                }
            )
        )
