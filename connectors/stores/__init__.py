"""Codes for other stores of sparse vectors: rows, queries, and what creates the place for them.

export(index, "qdrant", "texts.qdrant", queries=queries)
scores, ids = index.rescore(queries, ids_that_the_store_found, k=10)

No client is needed for that: rows are plain Python, in the form that the client of each store takes.
"""

from __future__ import annotations

from compressae_index.connectors.stores.exporting import (
    STORES,
    StoreName,
    creation,
    documents,
    export,
    queries,
)

__all__ = ["STORES", "StoreName", "creation", "documents", "export", "queries"]
