"""Rows and queries of an index for a store by its name, and files of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import IdArray
from compressae_index.checks import as_path, check_choice, check_int, check_text
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import raised
from compressae_index.connectors.stores.lucene import Elasticsearch, OpenSearch
from compressae_index.connectors.stores.pgvector import Pgvector
from compressae_index.connectors.stores.qdrant import Qdrant
from compressae_index.connectors.stores.seismic import Seismic
from compressae_index.connectors.stores.store import Batch, Shape, Store, listed
from compressae_index.connectors.stores.vespa import Vespa
from compressae_index.connectors.stores.vsag import Vsag
from compressae_index.errors import InputError
from compressae_index.progress import track
from compressae_index.search.index import Index
from compressae_index.search.queries import MAX_K, Settings
from compressae_index.search.stages import terms_of
from compressae_index.storage import folder_aside

StoreName: TypeAlias = Literal[
    "elasticsearch", "opensearch", "pgvector", "qdrant", "seismic", "vespa", "vsag"
]
STORES: dict[StoreName, Store] = {
    "elasticsearch": Elasticsearch(),
    "opensearch": OpenSearch(),
    "pgvector": Pgvector(),
    "qdrant": Qdrant(),
    "seismic": Seismic(),
    "vespa": Vespa(),
    "vsag": Vsag(),
}
"""The stores by name."""

# A name that every store takes, unquoted.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
# Rows in memory at a time.
_BATCH_ROWS = 8192
LIMIT = 100
"""Documents that a query asks for, where a call does not say."""


def creation(index: Index, store: StoreName, *, name: str = "documents") -> dict[str, str]:
    """Contents of the files that make the place for rows, by name: requests, statements or parameters.

    Args:
        index: any index.
        store: a name of `STORES`.
        name: of the collection, index, table or schema.

    Raises:
        InputError: another store, or a name that not every store takes.
    """
    return _store(store).creation(_shape(index, store, name, len(index)))


def documents(index: Index, store: StoreName, *, name: str = "documents") -> Iterator[Any]:
    """The codes of all documents, one after the other, as the client of a store takes them.

    Args:
        index: any index; its codes are read some thousand at a time.
        store: a name of `STORES`.
        name: of the collection, index, table or schema.

    Raises:
        InputError: another store, or a name that not every store takes.
    """
    of_store, ids = _store(store), index.ids
    shape = _shape(index, store, name, len(ids))
    return (row for batch in _batches(index, of_store, ids) for row in of_store.rows(shape, batch))


def queries(
    index: Index,
    rows: Any,
    store: StoreName,
    *,
    limit: int = LIMIT,
    query_nnz: int | None = None,
    name: str = "documents",
) -> list[Any]:
    """Queries for a store, as its client takes them.

    Args:
        index: the index that was exported.
        rows: (n_queries, d), or (d,) for one.
        store: a name of `STORES`.
        limit: documents that a query asks for, which `Index.rescore` then ranks.
        query_nnz: latents of a query, of largest magnitude; 64 by default.
        name: of the collection, index, table or schema.

    Raises:
        InputError: another store or name, bad queries, or a limit or query_nnz below 1.
    """
    of_store, shape = _store(store), _shape(index, store, name, 0)
    return [
        of_store.query(shape, *pairs, limit) for pairs in listed(_terms(index, rows, store, limit, query_nnz))
    ]


def export(
    index: Index,
    store: StoreName,
    output: str | os.PathLike[str],
    *,
    name: str = "documents",
    queries: Any = None,
    limit: int = LIMIT,
    query_nnz: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Writes the files that a store reads: what makes the place for rows, the rows, and queries.

    Args:
        index: any index; its codes are read some thousand at a time.
        store: a name of `STORES`.
        output: a directory, new or empty; it is there when all files are.
        name: of the collection, index, table or schema.
        queries: as `rows` of `queries`; none by default.
        limit: as for `queries`.
        query_nnz: as for `queries`.
        progress: show a progress bar.

    Returns:
        The files.

    Raises:
        InputError: an empty index, another store, a name that not every store takes, or queries or settings
            that `queries` refuses.
        FormatError: the directory is not empty.
        StorageError: the disk is full or refuses.
    """
    path, of_store, ids = as_path(output, "output"), _store(store), index.ids
    shape = _shape(index, store, name, len(ids))
    if not len(ids):
        msg = "the index holds no vectors to export"
        raise InputError(msg)
    terms = None if queries is None else _terms(index, queries, store, limit, query_nnz)
    with folder_aside(path) as aside, track(len(ids), "writing", enabled=progress) as advance:
        for file, content in of_store.creation(shape).items():
            (aside / file).write_text(content, encoding="utf-8")
        of_store.write(aside, shape, _counted(_batches(index, of_store, ids), advance))
        if terms is not None:
            of_store.write_queries(aside, shape, terms, limit)
    return sorted(path.iterdir())


def _store(name: StoreName) -> Store:
    return STORES[check_choice(name, "store", tuple(STORES))]


def _shape(index: Index, store: StoreName, name: str, n: int) -> Shape:
    if not _NAME.fullmatch(check_text(name, "name")):
        msg = f"name must be up to 48 lower-case letters, digits and _, a letter first, got {name!r:.100}"
        raise InputError(msg)
    held = index.documents
    return Shape(name, held.n_latents * (2 if _store(store).splits else 1), held.k, n, held.are_strings)


def _keeps_norms(index: Index) -> bool:
    return index.documents.n_latents > index.model.n_latents


def _batches(index: Index, store: Store, ids: IdArray) -> Iterator[Batch]:
    height = _height(index, ids) if store.raises_norms and _keeps_norms(index) else None
    for some, codes in _coded(index, ids):
        yield Batch(some, store.pairs(codes if height is None else raised(codes, height)))


def _coded(index: Index, ids: IdArray) -> Iterator[tuple[IdArray, SparseCodes]]:
    """Ids and codes, some thousand at a time; those beside norms in the unit of these, as in `terms_of`."""
    unit = np.float32(index.documents.unit or 1.0)
    for first in range(0, len(ids), _BATCH_ROWS):
        some = ids[first : first + _BATCH_ROWS]
        codes = index.codes(some)
        if _keeps_norms(index) and unit != 1:
            values = codes.values / unit
            values[:, -1] /= unit
            codes = SparseCodes(codes.latents, values, codes.n_latents)
        yield some, codes


def _height(index: Index, ids: IdArray) -> float:
    """Half the square of the largest norm: what it is more than that of a row is positive, and nearer."""
    return max((float(codes.values[:, -1].max()) for _, codes in _coded(index, ids)), default=0.0)


def _counted(batches: Iterator[Batch], advance: Any) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(len(batch.ids))


def _terms(
    index: Index, rows: Any, store: StoreName, limit: int, query_nnz: int | None
) -> npt.NDArray[np.void]:
    """Pairs of queries."""
    limit = check_int(limit, "limit", 1, MAX_K)
    asked = index.asked(rows, limit, Settings("sparse", query_nnz=query_nnz))
    terms, of_store = terms_of(asked), _store(store)
    # Rows of these hold what a height is more than half the square of their norm.
    return of_store.terms(raised(terms, 0.0) if of_store.raises_norms and _keeps_norms(index) else terms)
