"""The command line, `compressae-index`: thin over the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from compressae_index.cli.data import build, cluster, encode, estimate, info, train
from compressae_index.cli.milvus import milvus
from compressae_index.cli.report import report
from compressae_index.cli.search import demo, evaluate, search
from compressae_index.errors import CompressaeError


class _OneLineErrors(click.Group):
    """User errors end as one line on standard error and exit code 2, never as a traceback."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        try:
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
            _fail(str(error))
        sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str) -> None:
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(2)


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compressae-index")
def main() -> None:
    """Search dense embeddings from sparse dictionary codes.

    EMBEDDINGS are .npy, .fvecs, .bvecs, .hdf5 in the ann-benchmarks layout, .parquet with a list column, or
    a folder of such files, which are read in pieces.

    \b
    Example:
      compressae-index build embeddings.npy -o items.index
      compressae-index search items.index queries.npy -k 10
    """  # noqa: D301


for command in (train, encode, build, cluster, estimate, search, evaluate, report, info, milvus, demo):
    main.add_command(command)
