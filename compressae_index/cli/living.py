"""Commands for an index whose vectors change with time."""

from __future__ import annotations

import time
from pathlib import Path

import click

from compressae_index.building.drift import Drift
from compressae_index.cli.data import save_or_keep
from compressae_index.cli.indexes import load_index, moved
from compressae_index.cli.options import (
    PATH,
    PLACE,
    bad_rows_option,
    check_file,
    check_folder,
    dataset_option,
    holds_something,
    json_option,
    originals_option,
    print_json,
    print_result,
    say_replaced,
    threads_option,
)
from compressae_index.coding.model import CompresSAE
from compressae_index.index import CompressedIndex
from compressae_index.measuring.evaluation import aligned
from compressae_index.measuring.plots import drift_picture, figure_class
from compressae_index.persistence import check_target
from compressae_index.remote import Place
from compressae_index.sources import BadRows, open_vectors
from compressae_index.storage import written_aside


@click.command()
@click.argument("index", type=PLACE)
@click.argument("vectors", type=PLACE, required=False)
@click.option("--plot", type=PATH, help="Write a picture to this .png file (needs matplotlib).")
@originals_option
@bad_rows_option
@dataset_option
@threads_option
@json_option
def drift(
    index: Place,
    vectors: Place | None,
    plot: Path | None,
    originals: str | None,
    on_bad_rows: BadRows,
    dataset: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Tell whether INDEX still suits new VECTORS.

    VECTORS is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files; without it, those
    that were added since INDEX was built are compared. Prints a verdict, fine, watch or recode, its reasons,
    and the cosines of vectors with their reconstructions beside those of the vectors INDEX was built from.

    \b
    Example:
      compressae-index drift items.index new.npy --json
    """  # noqa: D301
    if plot is not None:
        check_file(plot, ".png", "pictures")
        figure_class()  # fails before the work if matplotlib is missing
    loaded = CompressedIndex.load(index, mmap=True, originals=moved(originals), progress=True)
    new = None
    if vectors is not None:
        zeros = loaded.documents.backend.keeps_norms
        new = open_vectors(vectors, dataset=dataset, on_bad_rows=on_bad_rows, zeros=zeros)
    found = loaded.drift(new, num_threads=threads)
    if plot is not None:
        with written_aside(plot) as aside:
            drift_picture(found, aside)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)


def _print(found: Drift) -> None:
    facts = found.as_dict()
    cosines = facts.pop("cosines")
    print_result(facts | {"reasons": "; ".join(found.reasons) or "none"}, as_json=False)
    rows = ([str(at), f"{cosines['probe'][at]:.3f}", f"{cosines['new'][at]:.3f}"] for at in cosines["probe"])
    click.echo("\n" + aligned(["percentile", "cosine when built", "cosine now"], rows))


@click.command()
@click.argument("index", type=PLACE)
@click.option("--output", "-o", type=PLACE, required=True, help="Directory to write the new index to.")
@click.option(
    "--model", type=PLACE, help="Directory that `train` wrote.  [default: train from the model of INDEX]"
)
@originals_option
@threads_option
@json_option
def recode(
    index: Place,
    output: Place,
    model: Place | None,
    originals: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Code the vectors of INDEX anew.

    They are coded by another model: by --model, or one that is trained on them from the present one. They
    are the original vectors where INDEX has them, else what its codes and residual codes say. INDEX stays as
    it is, unless --output names it. A stopped command goes on where it was when it is run again: what is done
    is kept in <output>.recoding until the new index is saved.

    \b
    Example:
      compressae-index recode items.index -o recoded.index
    """  # noqa: D301
    check_folder(output, "indexes")
    loaded = load_index(index, originals)
    check_target(output, loaded.KIND)
    replaced = holds_something(output)
    trained = None if model is None else CompresSAE.load(model)
    started = time.perf_counter()
    if isinstance(output, Path):
        loaded.recode(trained, output=output, num_threads=threads, progress=True)
    else:  # where nothing is kept of what is done
        loaded.recode(trained, num_threads=threads, progress=True)
        save_or_keep(loaded, output)
    print_result(
        {"index": str(output), "seconds": time.perf_counter() - started, **loaded.stats()._asdict()}, as_json
    )
    if replaced:
        say_replaced(output)
