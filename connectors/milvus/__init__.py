"""Compressed collections in Milvus: Milvus Lite, a server, or Zilliz Cloud.

index, report = from_milvus("items.db", "items", vector_field="embedding")
scores, ids = index.search(queries, k=10, filter="price < 10")
"""

from __future__ import annotations

from compressae_index.errors import MissingExtraError

try:
    import pymilvus as _pymilvus  # noqa: F401
except ImportError as error:
    raise MissingExtraError("pymilvus", "milvus", "the Milvus connector") from error

from compressae_index.connectors.milvus.asynchronous import AsyncMilvusIndex
from compressae_index.connectors.milvus.client import connect
from compressae_index.connectors.milvus.export import Exported, export_parquet
from compressae_index.connectors.milvus.importer import Imported, ImportReport, from_milvus
from compressae_index.connectors.milvus.index import MilvusIndex, MilvusResult
from compressae_index.connectors.milvus.recoding import RecodeReport
from compressae_index.connectors.milvus.source import MilvusSource
from compressae_index.connectors.milvus.syncing import SyncReport, sync

__all__ = [
    "AsyncMilvusIndex",
    "Exported",
    "ImportReport",
    "Imported",
    "MilvusIndex",
    "MilvusResult",
    "MilvusSource",
    "RecodeReport",
    "SyncReport",
    "connect",
    "export_parquet",
    "from_milvus",
    "sync",
]
