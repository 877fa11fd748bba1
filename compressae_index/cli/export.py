"""The command that writes files for other stores."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from compressae_index.cli.indexes import load_index
from compressae_index.cli.options import (
    PATH,
    PLACE,
    check_folder,
    json_option,
    originals_option,
    print_result,
    query_dataset_option,
)
from compressae_index.connectors.stores import StoreName
from compressae_index.connectors.stores import export as export_files
from compressae_index.remote import Place
from compressae_index.sources import open_vectors


@click.command()
@click.argument("index", type=PLACE)
@click.option("--to", "store", type=click.Choice(get_args(StoreName)), required=True, help="The store.")
@click.option("--output", "-o", type=PATH, required=True, help="Directory to write, new or empty.")
@click.option(
    "--name", default="documents", show_default=True, help="Name of the collection, index, table or schema."
)
@click.option("--queries", type=PLACE, help="Write these as queries of the store too.")
@click.option("--limit", type=int, default=100, show_default=True, help="Documents that a query asks for.")
@click.option("--query-nnz", type=int, help="Latents of a query, of largest magnitude.  [default: 64]")
@query_dataset_option
@originals_option
@json_option
def export(
    index: Place,
    store: StoreName,
    output: Path,
    name: str,
    queries: Place | None,
    limit: int,
    query_nnz: int | None,
    query_dataset: str,
    originals: str | None,
    as_json: bool,
) -> None:
    """Write the codes of INDEX for another store.

    Files make the place for rows in the store, and hold rows and queries in the form that it reads; no client
    is needed. In Python, `Index.rescore` ranks the documents that the store then finds.

    \b
    Example:
      compressae-index export items.index --to qdrant -o items.qdrant --queries queries.npy
    """  # noqa: D301
    check_folder(output, "files")
    rows = None
    if queries is not None:
        vectors = open_vectors(queries, dataset=query_dataset, may_be_empty=True)
        rows = vectors[0 : vectors.shape[0]]
    loaded = load_index(index, originals)
    files = export_files(
        loaded, store, output, name=name, queries=rows, limit=limit, query_nnz=query_nnz, progress=True
    )
    content = {
        "output": str(output),
        "files": [file.name for file in files] if as_json else ", ".join(file.name for file in files),
        "rows": len(loaded),
        "bytes": sum(file.stat().st_size for file in files),
    }
    print_result(content, as_json)
