"""Commands that search and measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from compressae_index.checks import FloatArray, check_int
from compressae_index.cli.options import (
    PATH,
    check_file,
    dataset_option,
    json_option,
    mode_option,
    query_dataset_option,
    search_options,
    threads_option,
    written_aside,
)
from compressae_index.errors import InputError
from compressae_index.evaluation import as_table
from compressae_index.evaluation_page import as_page
from compressae_index.evaluation_report import evaluation_report
from compressae_index.ids import IdArray
from compressae_index.index import CompressedIndex
from compressae_index.metric import METRICS, Metric
from compressae_index.plots import figure_class
from compressae_index.queries import CANDIDATES, Mode, Scoring
from compressae_index.sources import open_vectors


@click.command()
@click.argument("index", type=PATH)
@click.argument("queries", type=PATH)
@click.option("-k", "k", type=int, default=10, show_default=True, help="Neighbours of each query.")
@mode_option
@search_options
@click.option("--nprobe", type=int, help="Clusters to scan, of an index that `cluster` made.  [default: all]")
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

    Prints a line a query: its number, then id:score pairs.

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
        # Strings as fixed-width text: an array of objects would have to be pickled.
        plain = np.where(ids == None, "", ids).astype(str) if ids.dtype == object else ids  # noqa: E711
        with written_aside(output) as aside, aside.open("wb") as file:
            np.savez(file, scores=scores, ids=plain)
        click.echo(
            json.dumps({"results": str(output)}) if as_json else f"{len(ids)} x {k} results in {output}"
        )
    elif as_json:
        click.echo(json.dumps(neighbours(scores, ids)))
    else:
        print_neighbours(scores, ids)


def neighbours(scores: FloatArray, ids: IdArray) -> dict[str, Any]:
    """A result for JSON."""
    return {"ids": ids.tolist(), "scores": [[_finite(s) for s in row] for row in scores.tolist()]}


def print_neighbours(scores: FloatArray, ids: IdArray) -> None:
    """A line a query: its number, then id:score pairs."""
    for number, (row_ids, row_scores) in enumerate(zip(ids, scores, strict=True)):
        found = (
            f"{name}:{score:.4f}" for name, score in zip(row_ids, row_scores, strict=True) if score > -np.inf
        )
        click.echo(f"{number}\t" + " ".join(found))


def _finite(score: float) -> float | None:
    """JSON knows no -inf; a missing result has score null."""
    return score if np.isfinite(score) else None


@click.command("eval")
@click.argument("index", type=PATH)
@click.argument("embeddings", type=PATH)
@click.argument("queries", type=PATH, required=False)
@search_options
@click.option(
    "--metric", type=click.Choice(METRICS), help="What the truth is by.  [default: the index's metric]"
)
@click.option("--max-queries", type=int, default=1000, show_default=True, help="Queries to measure with.")
@click.option(
    "--faiss/--no-faiss",
    default=True,
    help="Compare with Faiss's quantisers at the same bytes (needs faiss).",
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
    """Measure INDEX against exact search over the EMBEDDINGS it was built from.

    QUERIES may be left out where EMBEDDINGS is an HDF5 file that holds them. They should be vectors that are
    not in the index. Prints recall, bytes and time of each mode, of exact search and of Faiss's quantisers,
    then what other settings of the modes give.

    \b
    Example:
      compressae-index eval items.index embeddings.npy queries.npy --report eval.html
    """  # noqa: D301
    check_int(max_queries, "max-queries", 1)
    if report is not None:
        check_file(report, ".html", "reports")
        figure_class()
    loaded, vectors = CompressedIndex.load(index, mmap=True), open_vectors(embeddings, dataset=dataset)
    if queries is None and embeddings.suffix.lower() not in (".hdf5", ".h5"):
        msg = "QUERIES is needed, unless EMBEDDINGS is an HDF5 file"
        raise InputError(msg)
    asked_in = embeddings if queries is None else queries
    asked = open_vectors(asked_in, dataset=query_dataset)
    result = evaluation_report(
        loaded,
        vectors,
        asked[0:max_queries],
        metric=metric,
        scoring=scoring,
        candidates=CANDIDATES if candidates is None else candidates,
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


@click.command()
@click.option(
    "--output", "-o", type=PATH, help="Directory to keep the index in.  [default: none, it is temporary]"
)
@json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Run the main job on data that are shipped: train, build, save, load, search, measure.

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
