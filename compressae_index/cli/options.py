"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from compressae_index.checks import as_path, as_place
from compressae_index.coding.metric import METRICS
from compressae_index.coding.model import ENCODERS
from compressae_index.errors import FormatError
from compressae_index.remote import Place, is_address
from compressae_index.search.queries import MODES, SCORINGS, Scoring
from compressae_index.sources import BAD_ROWS
from compressae_index.storage import accessing, check_writable
from compressae_index.terminal import printable, redacted
from compressae_index.training.config import Preset

# Suffixes of data and model files: an output folder with one of them is a mistake.
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
    """A path; a leading ~ is the home directory, as in the library."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expands the path."""
        return as_path(value if is_address(value) else super().convert(value, param, ctx))


class _Place(_Path):
    """A path, or the address of something in a store, such as s3://bucket/name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Makes a `Place`."""
        return as_place(value) if is_address(value) else super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
PLACE = _Place(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
threads_option = click.option(
    "--threads", type=int, help="Threads of the engine.  [default: all this process may use]"
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
    help="Cosines drop the norms of vectors, inner products keep them; l2: squared Euclidean distances.",
)
dataset_option = click.option(
    "--dataset",
    default="train",
    show_default=True,
    help="Data set of an HDF5 file, or column of a Parquet file, that holds the vectors.",
)
id_column_option = click.option(
    "--id-column", help="Column that holds the ids, in Parquet EMBEDDINGS or --ids."
)
longest_option = click.option(
    "--longest",
    type=float,
    help="For metric l2: norm of the longest vectors to expect, from the model's center.",
)
bad_rows_option = click.option(
    "--on-bad-rows",
    type=click.Choice(BAD_ROWS),
    default="error",
    show_default=True,
    help="Stop at rows that are zero or hold NaN, or skip them.",
)
query_dataset_option = click.option(
    "--query-dataset",
    default="test",
    show_default=True,
    help="Data set of an HDF5 file, or column of a Parquet file, that holds the queries.",
)


n_latents_option = click.option(
    "--n-latents",
    type=int,
    help="Size of the dictionary.  [default: 4096, less for few rows, 8192 for a million; a budget chooses]",
)
originals_option = click.option(
    "--originals",
    help="Where the file of original vectors that the index refers to was moved, or none to go on without "
    "original vectors.  [default: where it was]",
)


def training_options(function: F) -> F:
    """Adds the options of training, of `train` and `build`."""
    options = (
        click.option(
            "--k",
            type=int,
            help="Nonzeros a code.  [default: the model's, or 32, less for few rows or dimensions]",
        ),
        n_latents_option,
        click.option(
            "--preset",
            type=click.Choice(["fast", "default", "best"]),
            default="default",
            show_default=True,
            help="How long to train: fast takes seconds, best minutes.",
        ),
        click.option("--steps", type=int, help="Training steps of the encoder.  [default: the preset's]"),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def storage_options(function: F) -> F:
    """Adds the options of what an index stores of a vector, of `build` and `estimate`."""
    options = (
        click.option("--value-bits", type=int, help="Bits of a value, 4 to 8.  [default: 6]"),
        click.option(
            "--postings", type=int, help="Nonzeros a code in the posting lists, on average.  [default: all]"
        ),
        click.option(
            "--residual-bits",
            type=int,
            help="Bits a dimension of residual codes, which score the best documents again: 0, 1, 2, 3, 4 or "
            "6.  [default: 0]",
        ),
        click.option(
            "--bytes-per-vector",
            type=float,
            help="Budget for all that two_stage keeps resident; chooses the options above.  [default: 200, "
            "or half a byte a dimension if that is more, if none of them is given]",
        ),
        click.option(
            "--target-recall",
            type=float,
            help="recall@10 to reach with the fewest bytes; chooses the options above.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def search_options(function: F) -> F:
    """Adds the options of a search, of `search` and `eval`."""
    options = (
        click.option(
            "--candidates",
            type=int,
            help="Documents that two_stage takes from the posting lists and scores by their codes.  "
            "[default: as measured by `build`, or 1000]",
        ),
        click.option(
            "--query-nnz",
            type=int,
            help="Latents of a query to look up.  [default: as measured by `build`, or 64, more for short "
            "posting lists]",
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


class Training(NamedTuple):
    """The values of `training_options`."""

    k: int | None
    n_latents: int | None
    preset: Preset
    steps: int | None
    seed: int


class Storage(NamedTuple):
    """The values of `storage_options`."""

    value_bits: int | None
    postings: int | None
    residual_bits: int | None
    bytes_per_vector: float | None
    target_recall: float | None


class Searching(NamedTuple):
    """The values of `search_options`."""

    candidates: int | None
    query_nnz: int | None
    scoring: Scoring


def gathered(add_options: Callable[[F], F], kind: Any, name: str) -> Callable[[F], F]:
    """Adds options to a command, which gets their values as one argument.

    Args:
        add_options: adds the options, as `training_options` does.
        kind: a named tuple whose fields are the options' names.
        name: the command's argument.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            fields = {field: values.pop(field) for field in kind._fields}
            return function(*args, **values, **{name: kind(**fields)})

        return add_options(cast("F", command))

    return decorate


mode_option = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="two_stage",
    show_default=True,
    help="sparse reads posting lists, dense all codes, two_stage the codes that posting lists find.",
)


def print_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object in ASCII."""
    click.echo(redacted(json.dumps(content, default=str)))


def print_result(content: Mapping[str, Any], as_json: bool) -> None:
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


def holds_something(path: Place) -> bool:
    """Whether a path is a directory that is not empty."""
    with accessing(path, "read"):
        return path.is_dir() and any(path.iterdir())


def say_replaced(path: Place) -> None:
    """Says on standard error that the output replaced what was at its path."""
    click.echo(f"{printable(str(path))}: what was there before was replaced", err=True)


def check_file(path: Path, suffix: str, what: str) -> None:
    """Checks, before any work, that a file can be written to `path`.

    Raises:
        FormatError: another suffix, no such folder, or a folder of that name.
        StorageError: no permission to write it.
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


def check_folder(path: Place, what: str) -> None:
    """Checks, before any work, that the name of a new folder is not that of a file.

    Raises:
        FormatError: the folder does not exist yet, and its name ends in a suffix of files.
    """
    if path.suffix.lower() not in FILE_SUFFIXES:
        return
    with accessing(path, "read"):
        is_new = not path.exists()
    if is_new:
        msg = f"{path}: {what} are written as a directory, whose name must not end in {path.suffix}"
        raise FormatError(msg)
