"""The command that describes a model by what it makes of vectors."""

from __future__ import annotations

import json
from pathlib import Path

import click

from compressae_index.cli.options import (
    PATH,
    PLACE,
    bad_rows_option,
    check_file,
    dataset_option,
    json_option,
    threads_option,
)
from compressae_index.coding.model import CompresSAE
from compressae_index.measuring.model_report import model_report
from compressae_index.measuring.plots import figure_class
from compressae_index.remote import Place
from compressae_index.sources import BadRows, open_vectors
from compressae_index.storage import written_aside


@click.command("report")
@click.argument("model", type=PLACE)
@click.argument("embeddings", type=PLACE)
@click.option("--plot", type=PATH, help="Write a picture to this .png file (needs matplotlib).")
@click.option("--max-rows", type=int, default=20_000, show_default=True, help="Vectors to look at.")
@bad_rows_option
@dataset_option
@threads_option
@json_option
def report_model(
    model: Place,
    embeddings: Place,
    plot: Path | None,
    max_rows: int,
    on_bad_rows: BadRows,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Report what MODEL makes of EMBEDDINGS.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Prints dead and
    over-firing latents, the skew of posting lists, the quality of reconstructions, and recall against
    nonzeros. The last rows are held out as queries.

    \b
    Example:
      compressae-index report items.model embeddings.npy --plot report.png
    """  # noqa: D301
    if plot is not None:
        check_file(plot, ".png", "pictures")
        figure_class()  # fails before the work if matplotlib is missing
    trained = CompresSAE.load(model)
    zeros = trained.center is not None
    vectors = open_vectors(embeddings, dataset=dataset, on_bad_rows=on_bad_rows, zeros=zeros)
    result = model_report(trained, vectors, max_rows=max_rows, num_threads=threads, progress=True)
    if plot is not None:
        with written_aside(plot) as aside:
            result.plot(aside)
    if as_json:
        click.echo(json.dumps({"model": str(model), **result._asdict()}))
    else:
        click.echo(result.as_text())
