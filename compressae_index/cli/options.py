"""Options and output that several commands share."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from compressae_index.checks import as_path
from compressae_index.coding.metric import METRICS
from compressae_index.coding.model import ENCODERS
from compressae_index.errors import FormatError
from compressae_index.search.queries import MODES, SCORINGS
from compressae_index.sources import BAD_ROWS
from compressae_index.storage import accessing, check_writable, own_folder, sweep, sync_folder
from compressae_index.terminal import printable, redacted

# Of files of data and models: a folder of such a name is a mistake.
FILE_SUFFIXES = frozenset(
    (
        *(".arrow", ".avro", ".bin", ".bvecs", ".bz2", ".csv", ".db", ".faiss", ".feather", ".fvecs", ".gz"),
        *(".h5", ".hdf5", ".html", ".ivecs", ".json", ".jsonl", ".mat", ".mtx", ".ndjson", ".npy", ".npz"),
        *(".onnx", ".orc", ".parquet", ".pdf", ".pickle", ".pkl", ".png", ".pq", ".pt", ".pth", ".sqlite"),
        *(".safetensors", ".tar", ".tsv", ".txt", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst"),
    )
)

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    """A path, as the library takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, of which a leading ~ is the home directory."""
        return as_path(super().convert(value, param, ctx))


PATH = _Path(path_type=Path)

# Folders that files are written in until they are whole.
_ASIDE_PREFIX = ".compressae-"
_ASIDE = re.compile(rf"{re.escape(_ASIDE_PREFIX)}[0-9a-f]{{8}}")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
threads_option = click.option(
    "--threads", type=int, help="Threads of the engine.  [default: all that this process may use]"
)
encoder_option = click.option(
    "--encoder",
    type=click.Choice(ENCODERS),
    default="pursuit",
    show_default=True,
    help="How vectors become codes: pursuit is the best, topk the single pass of the paper.",
)
metric_option = click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="cosine",
    show_default=True,
    help="What scores are: inner products keep the norms of vectors.",
)
dataset_option = click.option(
    "--dataset",
    default="train",
    show_default=True,
    help="Data set of an HDF5 file, or column of a Parquet file, that holds the vectors.",
)
id_column_option = click.option("--id-column", help="Column of ids, of Parquet EMBEDDINGS (or --ids).")
bad_rows_option = click.option(
    "--on-bad-rows",
    type=click.Choice(BAD_ROWS),
    default="error",
    show_default=True,
    help="Refuse rows that are zero or hold NaN, or leave them out.",
)
query_dataset_option = click.option(
    "--query-dataset",
    default="test",
    show_default=True,
    help="Data set of an HDF5 file, or column of a Parquet file, that holds the queries.",
)


def training_options(function: F) -> F:
    """What `train` and `build` let one set of training."""
    options = (
        click.option(
            "--k",
            type=int,
            help="Nonzeros a code.  [default: the model's, or 32, less for few rows or dimensions]",
        ),
        click.option(
            "--n-latents", type=int, help="Size of the dictionary.  [default: 4096, less for few rows]"
        ),
        click.option(
            "--preset",
            type=click.Choice(["fast", "default", "best"]),
            default="default",
            show_default=True,
            help="How long to train: fast takes seconds, best minutes.",
        ),
        click.option("--steps", type=int, help="Training steps of the encoder.  [default: the preset's]"),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of all that is random."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def storage_options(function: F) -> F:
    """What `build` and `estimate` store of a vector."""
    options = (
        click.option("--value-bits", type=int, help="Bits of a value, 4 to 8.  [default: 6]"),
        click.option("--postings", type=int, help="Nonzeros a code in the posting lists.  [default: all]"),
        click.option(
            "--bytes-per-vector",
            type=float,
            help="Budget of all that two_stage keeps resident; chooses k, bits and postings.",
        ),
        click.option(
            "--target-recall",
            type=float,
            help="recall@100 to reach with the fewest bytes; chooses k, bits and postings.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def search_options(function: F) -> F:
    """How `search` and `eval` search."""
    options = (
        click.option(
            "--candidates",
            type=int,
            help="Documents that posting lists find for two_stage to score by their codes.  "
            "[default: 1000, or k where that is more]",
        ),
        click.option(
            "--query-nnz",
            type=int,
            help="Latents of a query that are looked up.  [default: 64, more for short posting lists]",
        ),
        click.option(
            "--scoring",
            type=click.Choice(SCORINGS),
            default="asymmetric",
            show_default=True,
            help="asymmetric compares the query itself with codes, symmetric the query's own code.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


mode_option = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="two_stage",
    show_default=True,
    help="sparse reads posting lists, dense all codes, two_stage the codes of what posting lists find.",
)


def print_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object, of ASCII characters."""
    click.echo(redacted(json.dumps(content, default=str)))


def report(content: Mapping[str, Any], as_json: bool) -> None:
    """Prints names and values, as text or JSON."""
    if as_json:
        print_json(content)
        return
    width = max(map(len, content))
    for name, value in content.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{part} {_readable(size)}" for part, size in value.items())
        click.echo(f"{name.replace('_', ' '):<{width}}  {_readable(value)}")


def _readable(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(redacted(str(value)))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def holds_something(path: Path) -> bool:
    """Whether there is a directory that is not empty."""
    return path.is_dir() and any(path.iterdir())


def say_replaced(path: Path) -> None:
    """Says on standard error that something was at an output's path before."""
    click.echo(f"{printable(str(path))}: what was there before was replaced", err=True)


def check_file(path: Path, suffix: str, what: str) -> None:
    """Refuses a file to write that has another suffix, or no folder to stand in, before any work.

    Raises:
        FormatError: it is so, or a folder has that name.
        StorageError: there is no permission to write it.
    """
    if path.suffix.lower() != suffix:
        msg = f"{path}: {what} are written as {suffix}"
        raise FormatError(msg)
    if not path.parent.is_dir():
        msg = f"{path.parent} is not a directory"
        raise FormatError(msg)
    if path.is_dir():
        msg = f"{path} is a directory, and {what} are written to a file"
        raise FormatError(msg)
    check_writable(path.parent)


def check_folder(path: Path, what: str) -> None:
    """Refuses a folder to write whose name is that of a file, before any work.

    Raises:
        FormatError: it is so, and nothing is there yet.
    """
    if path.suffix.lower() in FILE_SUFFIXES and not path.exists():
        msg = f"{path}: {what} are written as a directory, whose name must not end in {path.suffix}"
        raise FormatError(msg)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when all went well.

    Raises:
        StorageError: the disk is full or refuses; what was at `path` is untouched.
    """
    with accessing(path, "written"):
        # What processes that were killed have left, those of version 0.1.0 as files.
        with suppress(OSError):
            sweep(path.parent, _ASIDE.fullmatch, lambda _: False)
            for left in path.parent.glob(f".????????-{glob.escape(path.name)}"):
                if re.match(r"\.[0-9a-f]{8}-", left.name):
                    left.unlink()
        with own_folder(path.parent, _ASIDE_PREFIX) as folder:
            try:
                yield (aside := folder / path.name)
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(aside, path)
                sync_folder(path.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
