"""OpenSearch and Elasticsearch: fields of Lucene's features, whose values and weights are positive.

Lucene keeps 9 significant bits of a value. Without negative weights, a score is the agreement of two codes.
"""

from __future__ import annotations

import json
from typing import Any

from compressae_index.connectors.stores.store import CODE, Shape, Store, mapping


class _Lucene(Store):
    """Rows are actions of `helpers.bulk`, queries bodies of a search."""

    splits = True
    takes_negative_queries = False
    raises_norms = True
    rows_file = "documents.ndjson"
    field: str
    """Type of the field."""

    def creation(self, shape: Shape) -> dict[str, str]:  # noqa: ARG002
        """The body of PUT /NAME."""
        return {"index.json": json.dumps({"mappings": {"properties": {CODE: {"type": self.field}}}})}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> dict[str, Any]:  # noqa: A002
        """An action."""
        return {"_index": shape.name, "_id": str(id), "_source": {CODE: mapping(indices, values)}}

    def line(self, shape: Shape, row: Any) -> str:
        """Two lines of a body of POST /_bulk."""
        action = {"index": {"_index": row["_index"], "_id": row["_id"]}}
        return super().line(shape, action) + "\n" + super().line(shape, row["_source"])


class OpenSearch(_Lucene):
    """A field `rank_features`, asked by linear functions: others, such as saturation, are no products."""

    field = "rank_features"

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> dict[str, Any]:  # noqa: ARG002
        """The body of POST /NAME/_search."""
        clauses = [
            {"rank_feature": {"field": f"{CODE}.{index}", "linear": {}, "boost": value}}
            for index, value in zip(indices, values, strict=True)
        ]
        return {"query": {"bool": {"should": clauses}}, "size": limit, "_source": False}


class Elasticsearch(_Lucene):
    """A field `sparse_vector`; 8.15 and newer."""

    field = "sparse_vector"

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> dict[str, Any]:  # noqa: ARG002
        """The body of POST /NAME/_search. Newer servers would leave out frequent and light latents."""
        query = {"field": CODE, "query_vector": mapping(indices, values), "prune": False}
        return {"query": {"sparse_vector": query}, "size": limit, "_source": False}
