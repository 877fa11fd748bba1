"""Commands that work on Ray, on one machine or a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from compressae_index.batches import VALUE_TYPES, ValueType
from compressae_index.cli.data import refuse
from compressae_index.cli.options import (
    PLACE,
    Storage,
    bad_rows_option,
    check_folder,
    dataset_option,
    encoder_option,
    gathered,
    json_option,
    longest_option,
    metric_option,
    n_latents_option,
    print_result,
    storage_options,
)
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.originals import PRECISIONS
from compressae_index.index import CompressedIndex
from compressae_index.remote import Place

if TYPE_CHECKING:
    from compressae_index.connectors.ray import Input, Published

id_column_option = click.option(
    "--id-column", help="Column of Parquet EMBEDDINGS with the ids.  [default: an id is the row's number]"
)
piece_option = click.option(
    "--piece-rows", type=int, help="Rows a piece, which is what a killed worker costs.  [default: 262144]"
)
output_option = click.option(
    *("--output", "-o"),
    type=PLACE,
    required=True,
    help="Folder that all machines see, or its address: new, or of a stopped run.",
)
like_option = click.option(
    "--like", type=PLACE, help="Index whose model and form to take, in place of a sample of EMBEDDINGS."
)


def input_options(function: Callable[..., None]) -> Callable[..., None]:
    """The argument and options of an `Input`, which the command gets as `rows`."""

    @wraps(function)
    def opened(*, embeddings: Place, piece_rows: int | None, **options: Any) -> None:
        from compressae_index.connectors.ray import Input

        kept = {name: options.pop(name) for name in ("dataset", "id_column", "on_bad_rows")}
        if piece_rows is not None:
            kept["piece_rows"] = piece_rows
        function(rows=Input(embeddings, **kept), **options)

    decorated: Callable[..., None] = opened
    for option in (bad_rows_option, piece_option, id_column_option, dataset_option):
        decorated = option(decorated)
    return click.argument("embeddings", type=PLACE)(decorated)


def form_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of what shards are like, which the command gets as `form`."""

    @wraps(function)
    def opened(
        *,
        like: Place | None,
        k: int | None,
        n_latents: int | None,
        originals: str | None,
        metric: Metric | None,
        encoder: Encoder,
        storage: Storage,
        **options: Any,
    ) -> None:
        given = {"k": k, "n_latents": n_latents, "originals": originals, **storage._asdict()}
        given |= {"metric": metric, "encoder": encoder}
        if like is not None:
            refuse(click.get_current_context(), "--like", tuple(given))
            given = {"like": CompressedIndex.load(like, mmap=True)}
        function(form={name: value for name, value in given.items() if value is not None}, **options)

    decorated = gathered(storage_options, Storage, "storage")(opened)
    kept = click.option(
        "--originals", type=click.Choice(PRECISIONS), help="Keep original vectors, too.  [default: no]"
    )
    k_option = click.option("--k", type=int, help="Nonzeros a code.  [default: by the budget]")
    for option in (metric_option, encoder_option, kept, n_latents_option, k_option, like_option):
        decorated = option(decorated)
    return decorated


@click.group()
def ray() -> None:
    """Encode, build and recode in pieces on Ray.

    That is on this machine, or on the cluster that RAY_ADDRESS names. Every machine must be able to read
    EMBEDDINGS and to write to the output. A stopped command goes on where it was when it is run again. It
    needs: pip install 'compressae-index[ray]'.

    \b
    Example:
      compressae-index ray build shards/ -o items.shards --originals float16
      compressae-index search items.shards queries.npy -k 10
    """  # noqa: D301


@ray.command("build")
@input_options
@output_option
@form_options
@json_option
def build_on_ray(rows: Input, output: Place, form: dict[str, Any], as_json: bool) -> None:
    """Build an index of EMBEDDINGS in shards.

    The output is searched like an index: `compressae-index search` reads it as one. `merge` makes one index
    of it.

    \b
    Example:
      compressae-index ray build shards/ -o items.shards --originals float16
      compressae-index search items.shards queries.npy -k 10
    """  # noqa: D301
    from compressae_index.connectors.ray import build_shards

    check_folder(output, "shards")
    _print(lambda: build_shards(rows, output, **form), as_json)


@ray.command("recode")
@click.argument("shards", type=PLACE)
@output_option
@click.option(
    "--model", type=PLACE, help="Directory that `train` wrote.  [default: train from the model of SHARDS]"
)
@json_option
def recode_on_ray(shards: Place, output: Place, model: Place | None, as_json: bool) -> None:
    """Code the vectors of SHARDS anew.

    SHARDS is a folder that `ray build` wrote. All are coded by one other model, --model, or one that is
    trained on vectors of all of them, and published at once: --output may be SHARDS, whose readers get the
    old ones or the new ones. `compressae-index recode` makes one index of them instead.

    \b
    Example:
      compressae-index ray recode items.shards -o recoded.shards
    """  # noqa: D301
    from compressae_index.connectors.ray import recode_shards

    check_folder(output, "shards")
    trained = None if model is None else CompresSAE.load(model)
    _print(lambda: recode_shards(shards, output, trained), as_json)


@ray.command("encode")
@input_options
@click.option("--model", type=PLACE, required=True, help="Directory that `train` wrote.")
@output_option
@click.option("--k", type=int, help="Nonzeros a code.  [default: the model's]")
@click.option("--values", type=click.Choice(VALUE_TYPES), default="float32", show_default=True)
@encoder_option
@json_option
def encode_on_ray(
    rows: Input,
    model: Place,
    output: Place,
    k: int | None,
    values: ValueType,
    encoder: Encoder,
    as_json: bool,
) -> None:
    """Encode EMBEDDINGS into Parquet files.

    Their columns are id, latents, values and scale.

    \b
    Example:
      compressae-index ray encode items.parquet --id-column id --model items.model -o codes
    """  # noqa: D301
    from compressae_index.connectors.ray import encode

    check_folder(output, "codes")
    trained = CompresSAE.load(model)
    _print(lambda: encode(rows, output, trained, k=k, encoder=encoder, values=values), as_json)


@ray.command("milvus")
@input_options
@output_option
@click.option("--dense", type=click.Choice(PRECISIONS), help="Write reconstructed vectors, too.")
@click.option("--original-field", type=click.Choice(PRECISIONS), help="Write original vectors, too.")
@click.option("--primary", default="id", show_default=True, help="Name of the primary key.")
@longest_option
@form_options
@json_option
def milvus_on_ray(
    rows: Input,
    output: Place,
    dense: Any,
    original_field: Any,
    primary: str,
    longest: float | None,
    form: dict[str, Any],
    as_json: bool,
) -> None:
    """Write codes of EMBEDDINGS for Milvus's bulk import.

    \b
    Example:
      compressae-index ray milvus vectors/ -o bulk --like sample.index
    """  # noqa: D301
    from compressae_index.connectors.ray import export_milvus

    check_folder(output, "files")
    fields = {
        "dense": dense,
        "original_field": original_field,
        "primary": primary,
        "longest": longest,
    }
    _print(lambda: export_milvus(rows, output, **fields, **form), as_json)


def _print(work: Callable[[], Published], as_json: bool) -> None:
    started = time.perf_counter()
    published = work()
    content = published._asdict() | {
        "path": str(published.path),
        "pieces": len(published.pieces),
        "seconds": time.perf_counter() - started,
    }
    print_result(content, as_json)
