"""Makes a data set for benchmarks, here and in ann-benchmarks, from texts or any data set that scripts take.

    python benchmarks/make_data.py embed texts.txt texts.hdf5
    python benchmarks/make_data.py convert DATA set.hdf5 --rows 20000

A file .hdf5 has the ann-benchmarks layout, with the 100 exact nearest neighbours of each query by cosine; in
a file .npy, the last 2,000 rows are the queries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import click
import h5py
import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_vectors, normalize_rows
from compressae_index.cli.options import written_aside

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from data_sets import QUERIES, SEED, DataSet, data_set_argument, embedded_by_wordllama, load

NEIGHBOURS = 100
FORMATS = (".hdf5", ".npy")


def _checked(_context: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    """The output, before any long work."""
    if path.suffix not in FORMATS:
        msg = f"{path} must end in {' or '.join(FORMATS)}"
        raise click.BadParameter(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent}"
        raise click.BadParameter(msg)
    return path


output_argument = click.argument("output", type=click.Path(path_type=Path), callback=_checked)


def write(data: DataSet, path: Path) -> None:
    """Writes a data set, in the format that the name of the file asks for."""
    with written_aside(path) as aside:
        if path.suffix == ".npy":
            np.save(aside, np.concatenate([data.vectors, data.queries]))
        else:
            _write_hdf5(data, aside)
    click.echo(f"{path}: {data}")


def _write_hdf5(data: DataSet, path: Path) -> None:
    neighbours = data.neighbours(min(NEIGHBOURS, len(data.vectors)))
    unit = normalize_rows(data.queries)
    cosines = [
        normalize_rows(data.vectors[rows]) @ query for rows, query in zip(neighbours, unit, strict=True)
    ]
    with h5py.File(path, "w") as file:
        file.attrs.update(type="dense", distance="angular", dimension=data.dim, point_type="float")
        file["train"], file["test"] = data.vectors, data.queries
        file["neighbors"] = neighbours.astype(np.int32)
        file["distances"] = 1 - np.stack(cosines)


@click.group()
def main() -> None:
    """Makes a data set, OUTPUT, in the ann-benchmarks layout (.hdf5) or as plain rows (.npy)."""


@main.command()
@data_set_argument
@output_argument
@click.option("--rows", type=int, help="Vectors; all by default, 20,000 of made ones.")
def convert(source: str, output: Path, rows: int | None) -> None:
    """From DATA, as the other scripts take it."""
    data = load(source, rows=rows)
    if output.suffix == ".npy" and len(data.queries) != QUERIES:
        msg = f"{data.name} has {len(data.queries)} queries, and {output.suffix} holds {QUERIES}; write .hdf5"
        raise click.ClickException(msg)
    write(data, output)


def _encoder(model: str) -> Callable[[list[str]], FloatArray]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        msg = "embedding needs sentence-transformers; run: pip install sentence-transformers"
        raise click.ClickException(msg) from error
    return partial(SentenceTransformer(model).encode, show_progress_bar=True)


@main.command()
@click.argument("texts", type=click.File(encoding="utf-8"))
@output_argument
@click.option(
    "--model", default="all-MiniLM-L6-v2", show_default=True, help="A name or folder, or wordllama."
)
def embed(texts: TextIO, output: Path, model: str) -> None:
    """From TEXTS, a text a line, by a model of sentence-transformers, or by WordLlama.

    Empty and repeated lines are left out. The rest are shuffled, and the last 2,000 become the queries.
    """
    lines = list(dict.fromkeys(line.strip() for line in texts if line.strip()))
    if len(lines) <= QUERIES:
        msg = (
            f"{texts.name} holds {len(lines)} different lines; there must be more than the {QUERIES} queries"
        )
        raise click.ClickException(msg)
    encode = embedded_by_wordllama if model == "wordllama" else _encoder(model)
    np.random.default_rng(SEED).shuffle(lines)
    rows = check_vectors(encode(lines))
    write(DataSet(Path(texts.name).stem, rows[:-QUERIES], rows[-QUERIES:]), output)


if __name__ == "__main__":
    main()
