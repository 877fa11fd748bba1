"""Commands that search and measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import check_int
from compressae_index.cli.data import given_ids
from compressae_index.cli.options import (
    PATH,
    check_file,
    dataset_option,
    id_column_option,
    json_option,
    mode_option,
    print_json,
    query_dataset_option,
    search_options,
    threads_option,
    written_aside,
)
from compressae_index.coding.metric import METRICS, Metric
from compressae_index.errors import InputError
from compressae_index.index import CompressedIndex
from compressae_index.measuring.evaluation import as_table
from compressae_index.measuring.index_report import KS, evaluation_report
from compressae_index.measuring.page import as_page
from compressae_index.measuring.plots import figure_class
from compressae_index.search.queries import Mode, Scoring, check_candidates
from compressae_index.search.results import write_results
from compressae_index.sources import open_vectors
from compressae_index.terminal import printable, quoted


@click.command()
@click.argument("index", type=PATH)
@click.argument("queries", type=PATH)
@click.option("-k", "k", type=int, default=10, show_default=True, help="Neighbours of each query.")
@mode_option
@search_options
@click.option(
    "--nprobe",
    type=int,
    help="Clusters to scan, where `cluster` made some of 32,768 vectors or more.  [default: all]",
)
@click.option(
    "--output", "-o", type=PATH, help="Write scores and ids to this .npz file instead of printing them."
)
@query_dataset_option
@threads_option
@json_option
def search(
    index: Path,
    queries: Path,
    k: int,
    mode: Mode,
    candidates: int | None,
    query_nnz: int | None,
    scoring: Scoring,
    nprobe: int | None,
    output: Path | None,
    query_dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Search INDEX for the neighbours of QUERIES.

    QUERIES is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Prints a line a
    query: its number, a tab, then id:score pairs. Ids with blanks, quotes or characters that cannot be
    printed are written as JSON strings, in quotes.

    With --output, the file holds the arrays scores and ids, a row a query; ids are -1 where nothing was
    found. Where the index has strings for ids, ids holds numbers i, and the string is
    id_text[id_ends[i]:id_ends[i+1]] in UTF-8. In Python,
    compressae_index.search.results.read_results reads it.

    \b
    Example:
      compressae-index search items.index queries.npy -k 10 --mode two_stage
    """  # noqa: D301
    if output is not None:
        check_file(output, ".npz", "results")
    loaded = CompressedIndex.load(index, mmap=True)
    vectors = open_vectors(queries, dataset=query_dataset, may_be_empty=True)
    scores, ids = loaded.search(
        vectors[0 : vectors.shape[0]],
        k,
        mode=mode,
        candidates=candidates,
        query_nnz=query_nnz,
        scoring=scoring,
        nprobe=nprobe,
        num_threads=threads,
    )
    if output is not None:
        with written_aside(output) as aside:
            write_results(aside, scores, ids)
        if as_json:
            print_json({"results": str(output)})
        else:
            click.echo(f"{len(ids)} x {k} results in {printable(str(output))}")
    elif as_json:
        click.echo(json.dumps(neighbours(scores, ids)))
    else:
        print_neighbours(scores, ids)


def neighbours(scores: FloatArray, ids: IdArray) -> dict[str, Any]:
    """A result for JSON."""
    return {"ids": ids.tolist(), "scores": [[_finite(s) for s in row] for row in scores.tolist()]}


def print_neighbours(scores: FloatArray, ids: IdArray) -> None:
    """A line a query: its number, then id:score pairs, of which none can be taken for another."""
    for number, (row_ids, row_scores) in enumerate(zip(ids, scores, strict=True)):
        found = (
            f"{quoted(name)}:{score:.4f}"
            for name, score in zip(row_ids, row_scores, strict=True)
            if score > -np.inf
        )
        click.echo(f"{number}\t" + " ".join(found))


def _finite(score: float) -> float | None:
    """JSON knows no -inf; a missing result has score null."""
    return score if np.isfinite(score) else None


@click.command("eval")
@click.argument("index", type=PATH)
@click.argument("embeddings", type=PATH)
@click.argument("queries", type=PATH, required=False)
@click.option(
    "--ids",
    type=PATH,
    help="Ids of EMBEDDINGS, one a row: .npy, or a text file with one id a line.  [default: 0 to n-1]",
)
@id_column_option
@search_options
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="What the true neighbours are by.  [default: the index's metric]",
)
@click.option("--max-queries", type=int, default=1000, show_default=True, help="Queries to measure with.")
@click.option(
    "--faiss/--no-faiss",
    default=False,
    show_default=True,
    help="Compare with Faiss's quantisers at the same bytes; needs faiss, and takes a minute or more.",
)
@click.option(
    "--report", type=PATH, help="Write a page with tables and plots to this .html file (needs matplotlib)."
)
@dataset_option
@query_dataset_option
@json_option
def evaluate(
    index: Path,
    embeddings: Path,
    queries: Path | None,
    ids: Path | None,
    id_column: str | None,
    candidates: int | None,
    query_nnz: int | None,
    scoring: Scoring,
    metric: Metric | None,
    max_queries: int,
    faiss: bool,
    report: Path | None,
    dataset: str,
    query_dataset: str,
    as_json: bool,
) -> None:
    """Measure INDEX on the EMBEDDINGS it was built from.

    Both are compared with exact search. EMBEDDINGS and QUERIES are .npy, .fvecs, .bvecs, .hdf5 or .parquet
    files, or folders of such files. QUERIES may be left out where EMBEDDINGS is an HDF5 file that holds them.
    They should be vectors that are not in the index. Prints recall, bytes and time of exact search, of each
    mode and, with --faiss, of Faiss's quantisers, then what other settings of the modes give.

    EMBEDDINGS and what the index finds are compared by ids, which are the numbers of the rows unless --ids
    gives others. Rows that are not in the index, or not any more, are left out.

    \b
    Example:
      compressae-index eval items.index embeddings.npy queries.npy --report eval.html
      compressae-index eval items.index embeddings.npy queries.npy --ids ids.txt --faiss
    """  # noqa: D301
    check_int(max_queries, "max-queries", 1)
    candidates = check_candidates(candidates, max(KS))
    if report is not None:
        check_file(report, ".html", "reports")
        figure_class()
    loaded, vectors = CompressedIndex.load(index, mmap=True), open_vectors(embeddings, dataset=dataset)
    named = given_ids(embeddings, ids, id_column)
    if queries is None and embeddings.suffix.lower() not in (".hdf5", ".h5"):
        msg = "QUERIES is needed, unless EMBEDDINGS is an HDF5 file"
        raise InputError(msg)
    asked_in = embeddings if queries is None else queries
    asked = open_vectors(asked_in, dataset=query_dataset)
    result = evaluation_report(
        loaded,
        vectors,
        asked[0:max_queries],
        ids=None if named is None else ids_of(loaded, named),
        metric=metric,
        scoring=scoring,
        candidates=candidates,
        query_nnz=query_nnz,
        faiss=faiss,
        progress=True,
    )
    if report is not None:
        names = {"index": str(index), "embeddings": str(embeddings), "queries": str(asked_in)}
        with written_aside(report) as aside:
            aside.write_text(as_page(result, names), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        click.echo(as_table(result.measurements))
        click.echo("\n" + as_table(one for each in result.sweeps for one in each.measurements.values()))


def ids_of(index: CompressedIndex, given: IdArray) -> Any:
    """Ids that were read from a file, which shows no difference between numbers and strings of digits."""
    if len(index) and index.documents.are_strings:
        return [str(one) for one in given.tolist()]
    return given


@click.command()
@click.option(
    "--output", "-o", type=PATH, help="Directory to keep the index in.  [default: none, it is temporary]"
)
@json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Run the main job on data that are shipped.

    Trains, builds, saves, loads, searches and measures, on 19,000 embeddings of short texts: a minute or two.

    \b
    Example:
      compressae-index demo
    """  # noqa: D301
    from compressae_index.demo import run

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
