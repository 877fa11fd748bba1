"""Work on several processes or machines, by Ray: encode, build, recode, search shards, write for Milvus."""

from __future__ import annotations

from compressae_index.connectors.ray.jobs import Input, Published, build_shards, encode, export_milvus
from compressae_index.connectors.ray.recoding import recode_shards
from compressae_index.connectors.ray.sharded import ShardedIndex

__all__ = ["Input", "Published", "ShardedIndex", "build_shards", "encode", "export_milvus", "recode_shards"]
