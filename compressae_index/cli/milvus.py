"""Commands for compressed collections in Milvus."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressae_index.cli.data import TRAINING, build_config, refuse
from compressae_index.cli.options import (
    PATH,
    PLACE,
    encoder_option,
    json_option,
    longest_option,
    print_result,
    query_dataset_option,
    search_options,
    threads_option,
    training_options,
)
from compressae_index.cli.search import neighbours, print_neighbours
from compressae_index.coding.metric import METRICS
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import BackendError
from compressae_index.index import CompressedIndex
from compressae_index.remote import Place
from compressae_index.search.queries import Scoring
from compressae_index.sources import open_vectors
from compressae_index.terminal import printable, quoted
from compressae_index.training.config import Preset

if TYPE_CHECKING:
    from compressae_index.connectors.milvus import MilvusIndex

dense_option = click.option(
    "--dense",
    type=click.Choice(["float16", "float32"]),
    help="Keep reconstructed vectors too; Milvus Lite has float32 only.  [default: no]",
)
refine_option = click.option(
    "--refine",
    type=int,
    help="Documents that residual codes or original vectors score again; 0 for none.  "
    "[default: 100, or 4 k if larger]",
)


@dataclass(frozen=True)
class Connection:
    """How to reach Milvus, as options of a command."""

    uri: str
    token: str
    db_name: str
    timeout: float

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the connector's functions that take a uri."""
        return {"token": self.token, "db_name": self.db_name, "timeout": self.timeout}

    def open(self, collection: str, *, originals: bool = False) -> MilvusIndex:
        """The index of a compressed collection; `originals` says whether its original vectors are needed."""
        from compressae_index.connectors.milvus import MilvusIndex

        return MilvusIndex.open(self.uri, collection, originals=originals, **self.options)


def connection_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of a `Connection`, which the command gets as `connection`."""

    @wraps(function)
    def connected(
        *arguments: Any, uri: str, token: str, db_name: str, timeout: float, **options: Any
    ) -> None:
        function(*arguments, connection=Connection(uri, token, db_name, timeout), **options)

    decorated: Callable[..., None] = connected
    for option in reversed(
        (
            click.option(
                "--uri", required=True, help="A path ending in .db (Milvus Lite), or http://host:19530."
            ),
            click.option(
                "--token",
                default="",
                envvar="MILVUS_TOKEN",
                help="user:password or an API key; better in the variable MILVUS_TOKEN.",
            ),
            click.option(
                "--db",
                "db_name",
                default="",
                help="Database of the server.  [default: the server's own default]",
            ),
            click.option(
                "--timeout", type=float, default=60.0, show_default=True, help="Seconds for each request."
            ),
        )
    ):
        decorated = option(decorated)
    return decorated


@click.group()
def milvus() -> None:
    """Make and search compressed collections in Milvus.

    In Milvus Lite, a Milvus server, or Zilliz Cloud. Needs the extra: pip install 'compressae-index[milvus]'.

    \b
    Example:
      compressae-index milvus import --uri items.db --collection items
    """  # noqa: D301


@milvus.command("import")
@connection_options
@click.option("--collection", required=True, help="The dense collection; not changed unless --in-place.")
@click.option("--target", help="Name of the compressed one.  [default: COLLECTION_compressed]")
@click.option("--vector-field", help="The dense field.  [default: the only one]")
@click.option("--filter", "expression", default="", help="Only rows that satisfy a Milvus expression.")
@click.option("--model", type=PLACE, help="Directory that `train` wrote.  [default: train on the vectors]")
@training_options
@encoder_option
@click.option(
    "--metric", type=click.Choice(METRICS), help="Metric of scores.  [default: that of the source's index]"
)
@dense_option
@click.option(
    "--originals",
    type=click.Choice(["float16", "float32", "source"]),
    help="Score the best by original vectors: copies, or those of the source. Milvus Lite has no float16.  "
    "[default: no]",
)
@click.option(
    "--residual-bits",
    type=int,
    default=0,
    show_default=True,
    help="Keep what codes leave out, in 1, 2, 3, 4 or 6 bits a dimension, to score the best by.",
)
@click.option(
    "--in-place",
    is_flag=True,
    help="Write codes into the rows of COLLECTION itself; needs Milvus 2.6.18.",
)
@threads_option
@json_option
@click.pass_context
def import_(
    context: click.Context,
    /,
    connection: Connection,
    collection: str,
    expression: str,
    model: Place | None,
    preset: Preset,
    steps: int | None,
    seed: int,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a compressed collection of a dense one.

    It has the same ids, fields and partitions, and gets its name once all of it is verified. Stopped and run
    again with the same options, the import goes on.

    \b
    Example:
      compressae-index milvus import --uri items.db --collection items --vector-field embedding
    """  # noqa: D301
    if model is not None:
        refuse(context, "--model", TRAINING)
    from compressae_index.connectors.milvus import from_milvus

    made = from_milvus(
        connection.uri,
        collection,
        filter=expression,
        model=model,
        config=None if model is not None else build_config(preset, steps, seed, options["encoder"]),
        num_threads=threads,
        **connection.options,
        **options,
    )
    made.compressed.close()
    content = made.report._asdict()
    content |= {"left_out": ", ".join(content["left_out"]) or "none"} if not as_json else {}
    print_result(content, as_json)


@milvus.command()
@connection_options
@click.option("--collection", required=True, help="The compressed collection.")
@click.option(
    "--compare/--ids-only",
    default=None,
    help="Read the whole source and find replaced rows, or compare ids alone.  [default: --compare, unless "
    "version 0.1 imported it]",
)
@click.option("--watch", type=float, help="Go on, every so many seconds, until it is interrupted.")
@threads_option
@json_option
def sync(
    connection: Connection,
    collection: str,
    compare: bool | None,
    watch: float | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Take over changes of the source since the import.

    These are rows that were inserted, replaced or deleted. With --watch, it prints a report each time, and
    goes on after errors of Milvus.

    \b
    Example:
      compressae-index milvus sync --uri items.db --collection items_compressed --watch 60
    """  # noqa: D301
    from compressae_index.connectors.milvus import sync as sync_index

    if watch is not None and not 0 < watch < math.inf:
        msg = f"--watch must be a positive number of seconds, got {watch}."
        raise click.UsageError(msg)
    index = connection.open(collection)
    while True:
        try:
            report = sync_index(index, compare=compare, num_threads=threads, progress=watch is None)
            print_result(report._asdict(), as_json)
        except BackendError as error:
            if watch is None:
                raise
            click.echo(f"{printable(str(error))}", err=True)
        if watch is None:
            break
        time.sleep(watch)
    index.close()


@milvus.command()
@connection_options
@click.option("--collection", required=True, help="The compressed collection, best by its alias.")
@click.option(
    "--model", type=PLACE, help="Directory that `train` wrote.  [default: train from the present model]"
)
@click.option(
    "--alias", help="Name to search by; made if there is none.  [default: COLLECTION if it is an alias]"
)
@click.option("--into", help="Name of the new collection.  [default: that of the old one with a number]")
@threads_option
@json_option
def recode(
    connection: Connection,
    collection: str,
    model: Place | None,
    alias: str | None,
    into: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Code a compressed collection anew by another model.

    The new codes are in a new collection, which takes over the alias in one step; then the old one is
    dropped. Searches by the alias go on. Stopped and run again with the same options, the recode goes on.

    \b
    Example:
      compressae-index milvus recode --uri items.db --collection items_compressed --alias items_search
    """  # noqa: D301
    index = connection.open(collection)
    loaded = None if model is None else CompresSAE.load(model)
    report = index.recode(loaded, alias=alias, into=into, num_threads=threads)
    index.close()
    print_result(report._asdict(), as_json)


@milvus.command()
@click.argument("queries", type=PLACE)
@connection_options
@click.option("--collection", required=True, help="The compressed collection.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="Neighbours of each query.")
@click.option(
    "--mode",
    type=click.Choice(["sparse", "two_stage", "dense", "hybrid"]),
    default="two_stage",
    show_default=True,
    help="dense and hybrid need a collection that was imported with --dense.",
)
@search_options
@refine_option
@click.option("--filter", "expression", help="A Milvus expression, such as 'price < 10'.")
@click.option("--output-field", "fields", multiple=True, help="A field to fetch; may be repeated.")
@click.option("--partition", "partitions", multiple=True, help="A partition to search in; may be repeated.")
@query_dataset_option
@json_option
def search(
    queries: Place,
    connection: Connection,
    collection: str,
    k: int,
    mode: Any,
    candidates: int | None,
    query_nnz: int | None,
    scoring: Scoring,
    refine: int | None,
    expression: str | None,
    fields: tuple[str, ...],
    partitions: tuple[str, ...],
    query_dataset: str,
    as_json: bool,
) -> None:
    """Search a compressed collection for QUERIES.

    QUERIES is a .npy, .fvecs, .bvecs, .hdf5 or .parquet file, or a folder of such files. Prints a line for
    each query, with its number and the id:score pairs of its neighbours, and then the requested fields.

    \b
    Example:
      compressae-index milvus search queries.npy --uri items.db --collection items_compressed -k 10
    """  # noqa: D301
    vectors = open_vectors(queries, dataset=query_dataset, may_be_empty=True)
    index = connection.open(collection, originals=refine != 0)
    result = index.search(
        vectors[0 : vectors.shape[0]],
        k,
        mode=mode,
        candidates=candidates,
        query_nnz=query_nnz,
        scoring=scoring,
        refine=refine,
        filter=expression,
        output_fields=fields,
        partitions=partitions,
    )
    index.close()
    if as_json:
        content = neighbours(result.scores, result.ids) | {
            "certified": None if result.certified is None else result.certified.tolist()
        }
        content |= {"fields": {name: values.tolist() for name, values in result.fields.items()}}
        click.echo(json.dumps(content, default=str))
        return
    print_neighbours(result.scores, result.ids)
    for name, values in result.fields.items():
        for number, row in enumerate(values.tolist()):
            click.echo(f"{number}\t{name}\t" + " ".join(quoted(value) for value in row if value is not None))


@milvus.command()
@connection_options
@click.option("--collection", required=True, help="The compressed collection.")
@json_option
def info(connection: Connection, collection: str, as_json: bool) -> None:
    """Describe a compressed collection.

    \b
    Example:
      compressae-index milvus info --uri items.db --collection items_compressed
    """  # noqa: D301
    index = connection.open(collection)
    manifest = index.manifest
    content = {
        "collection": index.collection,
        **index.stats()._asdict(),
        "fingerprint": manifest.fingerprint,
        "dense": manifest.dense or "none",
        "originals": manifest.originals or "none",
        "residual_bits": manifest.residual_bits,
        "in_place": manifest.in_place,
        "source": manifest.source if as_json else manifest.source.get("collection", "none"),
    }
    index.close()
    print_result(content, as_json)


@milvus.command("export-parquet")
@click.argument("index", type=PLACE)
@click.option("--output", "-o", type=PATH, required=True, help="Directory to write, new or empty.")
@dense_option
@click.option(
    "--originals",
    type=click.Choice(["float16", "float32"]),
    help="Write the original vectors of INDEX too.  [default: no]",
)
@click.option("--primary", default="id", show_default=True, help="Name of the primary key.")
@longest_option
@json_option
def export_parquet(
    index: Place,
    output: Path,
    dense: Any,
    originals: Any,
    primary: str,
    longest: float | None,
    as_json: bool,
) -> None:
    """Write the codes of INDEX for Milvus's bulk import.

    They are Parquet files in the layout of pymilvus's own bulk writer. Residual codes of INDEX go with them.

    \b
    Example:
      compressae-index milvus export-parquet items.index -o parquet
    """  # noqa: D301
    from compressae_index.connectors.milvus import export_parquet as export

    loaded = CompressedIndex.load(index, mmap=True, progress=True)
    written = export(
        loaded,
        output,
        dense=dense,
        originals=originals,
        primary=primary,
        longest=longest,
        progress=True,
    )
    content = {
        "output": str(output),
        "files": len(written.files),
        "rows": written.rows,
        "bytes": written.bytes,
    }
    print_result(content, as_json)
