"""Seismic: lines of JSON that its builder reads; it looks for large values, so rows are split by sign."""

from __future__ import annotations

from typing import Any

from compressae_index.connectors.stores.store import Shape, Store, mapping


class Seismic(Store):
    """Rows and queries have an id, a text, which is empty, and a vector by token."""

    splits = True
    raises_norms = True

    def creation(self, shape: Shape) -> dict[str, str]:  # noqa: ARG002
        """Nothing: the builder reads the documents alone."""
        return {}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> dict[str, Any]:  # noqa: A002, ARG002
        """A document."""
        return {"id": str(id), "content": "", "vector": mapping(indices, values)}

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> dict[str, Any]:  # noqa: ARG002
        """A query; its limit is an argument of the search."""
        return {"id": "", "content": "", "vector": mapping(indices, values)}
