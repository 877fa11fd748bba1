"""The command line, `compressae-index`: a thin layer over the library."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from compressae_index.cli.data import build, encode, estimate, info, merge, train
from compressae_index.cli.explain import explain, label
from compressae_index.cli.export import export
from compressae_index.cli.living import drift, recode
from compressae_index.cli.milvus import milvus
from compressae_index.cli.model import report_model
from compressae_index.cli.ray import ray
from compressae_index.cli.search import demo, evaluate, search, stored_neighbours
from compressae_index.errors import CompressaeError
from compressae_index.terminal import printable, redacted


class _OneLineErrors(click.Group):
    """Prints a user's error as one line on standard error and exits with code 2, without a traceback."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            # Escape what the encoding lacks: a file name must not fail a command that has done its work.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("always", category=UserWarning, module=r"compressae_index\.")
                warnings.showwarning = _warn
                result = super().main(args, *more, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        except click.Abort:
            click.echo("Aborted.", err=True)
            sys.exit(130)
        except click.ClickException as error:
            _fail(error.format_message())
        except (CompressaeError, OSError, MemoryError) as error:
            _fail(_in_words(error))
        sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str) -> None:
    click.echo("Error: " + _line(message), err=True)
    sys.exit(2)


def _in_words(error: BaseException) -> str:
    """The message of an error, without errno but with the file's name."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    name = None if error.filename is None else os.fsdecode(error.filename)
    return error.strerror if name is None or name in error.strerror else f"{name}: {error.strerror}"


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    click.echo("Warning: " + _line(str(message)), err=True)


def _line(message: str) -> str:
    return printable(redacted(" ".join(message.split())))


@click.group(
    cls=_OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Completion of commands and options, in bash: "
    'eval "$(_COMPRESSAE_INDEX_COMPLETE=bash_source compressae-index)", or zsh_source, fish_source.',
)
@click.version_option(package_name="compressae-index")
def main() -> None:
    """Search dense embeddings from sparse dictionary codes.

    EMBEDDINGS is a .npy, .fvecs, .bvecs, .hdf5 (ann-benchmarks layout) or .parquet (list column) file, a
    Lance dataset, or a folder of such files. They are read in pieces. Paths may be addresses, such as
    s3://bucket/items.index.

    \b
    Example:
      compressae-index build embeddings.npy -o items.index
      compressae-index search items.index queries.npy -k 10
    """  # noqa: D301


for command in (
    *(train, encode, build, merge, estimate, search, stored_neighbours, explain, label, evaluate),
    *(report_model, drift, recode, info, export, milvus, ray, demo),
):
    main.add_command(command)
