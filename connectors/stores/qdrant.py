"""Qdrant: points with a named sparse vector, which may be negative."""

from __future__ import annotations

import json
import uuid
from typing import Any

from compressae_index.connectors.stores.store import CODE, Shape, Store

# Qdrant takes integers and UUIDs: a string becomes its UUID in this namespace, and stays in the payload.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "compressae-index")


class Qdrant(Store):
    """Rows are fields of `PointStruct`, queries of `QueryRequest`."""

    rows_file = "points.jsonl"

    def creation(self, shape: Shape) -> dict[str, str]:  # noqa: ARG002
        """The body of PUT /collections/NAME."""
        return {"collection.json": json.dumps({"vectors": {}, "sparse_vectors": {CODE: {}}})}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> dict[str, Any]:  # noqa: A002
        """A point."""
        vector = {CODE: {"indices": indices, "values": values}}
        if not shape.are_strings:
            return {"id": id, "vector": vector}
        return {"id": str(uuid.uuid5(NAMESPACE, str(id))), "vector": vector, "payload": {"id": id}}

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> dict[str, Any]:
        """The body of POST /collections/NAME/points/query."""
        query = {"query": {"indices": indices, "values": values}, "using": CODE, "limit": limit}
        return query | {"with_payload": True} if shape.are_strings else query
