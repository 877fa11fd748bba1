"""Commands and options about latents: their names, why documents match, and who holds them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import click
import numpy as np

from compressae_index.arrays import BoolArray, FloatArray
from compressae_index.checks import check_int
from compressae_index.cli.data import given_ids
from compressae_index.cli.indexes import ids_of, load_index
from compressae_index.cli.options import (
    PLACE,
    F,
    check_folder,
    json_option,
    originals_option,
    print_json,
    print_result,
    query_dataset_option,
)
from compressae_index.ids import as_id_array
from compressae_index.index import CompressedIndex
from compressae_index.measuring.evaluation import aligned
from compressae_index.persistence import check_target
from compressae_index.remote import Place
from compressae_index.search.explaining import Explanation
from compressae_index.search.index import Index
from compressae_index.search.sides import SIGNS, Sign, side
from compressae_index.sources import open_vectors, read_texts
from compressae_index.terminal import printable

# Latents shown under each hit.
SHOWN = 3


def _side(value: str) -> tuple[int, Sign | None]:
    """A latent, perhaps with a sign: 12, 12+ or 12-."""
    for sign in SIGNS:
        if value.endswith(sign):
            return _latent(value, value[:-1]), sign
    return _latent(value, value), None


def _weight(value: str) -> tuple[int, float]:
    """A latent and its weight: 12=0.5."""
    latent, _, weight = value.partition("=")
    try:
        return _latent(value, latent), float(weight)
    except ValueError:
        msg = f"{value!r} is no latent with a weight, such as 12=0.5."
        raise click.BadParameter(msg) from None


def _latent(value: str, digits: str) -> int:
    if not re.fullmatch(r"[0-9]+", digits):
        msg = f"{value!r} is no latent such as 12."
        raise click.BadParameter(msg)
    return int(digits)


class Latents(NamedTuple):
    """The values of `latent_options`."""

    holding: tuple[tuple[int, Sign | None], ...]
    lacking: tuple[tuple[int, Sign | None], ...]
    steer: tuple[tuple[int, float], ...]

    def filter_of(self, index: Index) -> BoolArray | None:
        """The documents to search among; None for all."""
        masks = [index.holding(latent, sign=sign) for latent, sign in self.holding]
        masks += [~index.holding(latent, sign=sign) for latent, sign in self.lacking]
        return np.logical_and.reduce(masks) if masks else None

    def steered(self, index: Index, queries: FloatArray) -> FloatArray:
        """The queries to search for."""
        return index.steer(queries, dict(self.steer)) if self.steer else queries


def latent_options(function: F) -> F:
    """Adds the options of a search that are about latents."""
    options = (
        click.option(
            "--holding",
            type=_side,
            metavar="LATENT",
            multiple=True,
            help="Only documents whose code holds this latent: 12, or 12+ or 12- for a sign. Repeatable.",
        ),
        click.option(
            "--lacking",
            type=_side,
            metavar="LATENT",
            multiple=True,
            help="Only documents whose code does not. Repeatable.",
        ),
        click.option(
            "--steer",
            type=_weight,
            metavar="LATENT=WEIGHT",
            multiple=True,
            help="Move queries along a latent, as 12=0.5, relative to their norm. Repeatable.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def shares(why: Explanation) -> list[dict[str, Any]]:
    """The latents of an explanation, by their share in the score, for JSON."""
    names = why.names or ("",) * len(why.latents)
    return [
        {"latent": side(latent, value), "name": name, "contribution": contribution}
        for latent, value, name, contribution in zip(
            why.latents.tolist(), why.values.tolist(), names, why.contributions.tolist(), strict=True
        )
    ]


def share_line(share: dict[str, Any]) -> str:
    """One of `shares` for a terminal."""
    return f"{share['contribution']:+.4f}  {share['latent']}  {printable(share['name'])}".rstrip()


@click.command()
@click.argument("index", type=PLACE)
@click.argument("queries", type=PLACE)
@click.argument("document")
@click.option("--query", "number", type=int, default=0, show_default=True, help="Number of the query.")
@query_dataset_option
@originals_option
@json_option
def explain(
    index: Place,
    queries: Place,
    document: str,
    number: int,
    query_dataset: str,
    originals: str | None,
    as_json: bool,
) -> None:
    """Explain the score of one document of INDEX.

    DOCUMENT is an id. Shows what each latent in its code adds to its score for one of QUERIES, largest first,
    with the latent's name if `label` gave it one. The parts add up to the score in dense and two_stage.

    \b
    Example:
      compressae-index explain items.index queries.npy 17 --query 3
    """  # noqa: D301
    loaded = load_index(index, originals)
    vectors = open_vectors(queries, dataset=query_dataset)
    number = check_int(number, "query", 0, vectors.shape[0] - 1, "the last of QUERIES")
    is_number = document.isdecimal() and not loaded.documents.are_strings
    why = loaded.explain(vectors[number : number + 1], int(document) if is_number else document)
    if as_json:
        parts = {"mean": why.mean, "residual": why.residual, "bias": why.bias}
        print_json({"score": why.score, **parts, "latents": shares(why)})
        return
    rows = [
        [each["latent"], f"{each['contribution']:+.4f}", f"{projection:+.4f}", f"{value:+.4f}", each["name"]]
        for each, projection, value in zip(shares(why), why.projections, why.values, strict=True)
    ]
    rows += [["mean", f"{why.mean:+.4f}", "", "", ""], ["residual", f"{why.residual:+.4f}", "", "", ""]]
    if loaded.metric == "l2":
        rows.append(["bias", f"{why.bias:+.4f}", "", "", ""])
    rows.append(["score", f"{why.score:+.4f}", "", "", ""])
    header = ["latent", "contribution", "projection", "value", "name"]
    click.echo(aligned(header, ([printable(cell) for cell in row] for row in rows)))


@click.command()
@click.argument("index", type=PLACE)
@click.argument("texts", type=PLACE)
@click.option("--text-column", help="Column of texts, or of lists of tags, in TEXTS.")
@click.option(
    "--ids",
    type=PLACE,
    help="Ids of TEXTS, one a text: .npy, or a text file with one id a line.  [default: the order of INDEX]",
)
@click.option("--id-column", help="Column that holds the ids, in TEXTS or --ids.")
@click.option(
    "--output", "-o", type=PLACE, help="Index to write.  [default: INDEX, which is written anew in its place]"
)
@originals_option
@json_option
def label(
    index: Place,
    texts: Place,
    text_column: str | None,
    ids: Place | None,
    id_column: str | None,
    output: Place | None,
    originals: str | None,
    as_json: bool,
) -> None:
    """Name the latents of INDEX by texts of its documents.

    TEXTS is a text file of one document a line, .parquet or .lance, in the order of the ids of INDEX unless
    --ids or --id-column say otherwise. A name is up to three terms that the documents which hold a latent
    most strongly have in common. Names are saved in the index, for `explain`, `search --explain` and `eval`.

    \b
    Example:
      compressae-index label items.index texts.txt
      compressae-index label items.index items.parquet --text-column title --id-column id
    """  # noqa: D301
    output = index if output is None else output
    check_folder(output, "indexes")
    loaded = load_index(index, originals)
    check_target(output, "index" if isinstance(loaded, CompressedIndex) else "faiss index")
    named, read = given_ids(texts, ids, id_column), read_texts(texts, text_column)
    if named is not None:
        keys = as_id_array(ids_of(loaded, named)).tolist()
        if len(keys) != len(read):
            msg = f"{len(keys)} ids for {len(read)} texts"
            raise click.UsageError(msg)
    made = loaded.label_latents(read if named is None else dict(zip(keys, read, strict=True)))
    loaded.save(output, progress=True)
    content = {"index": str(output), "named": len(made), "latents": loaded.model.n_latents}
    print_result(content | ({"labels": made} if as_json else {}), as_json)
