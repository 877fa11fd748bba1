"""Vespa: a mapped tensor, which may be negative, and a profile that ranks by its product with the query."""

from __future__ import annotations

from typing import Any

from compressae_index.connectors.stores.store import CODE, Shape, Store, mapping

_TENSOR = "tensor<float>(latent{})"


class Vespa(Store):
    """Rows are what pyvespa's `feed_iterable` takes, queries bodies of a search."""

    def creation(self, shape: Shape) -> dict[str, str]:
        """A schema of an application package."""
        schema = f"""schema {shape.name} {{
    document {shape.name} {{
        field id type {"string" if shape.are_strings else "long"} {{
            indexing: summary | attribute
        }}
        field {CODE} type {_TENSOR} {{
            indexing: attribute
        }}
    }}
    rank-profile {CODE} {{
        inputs {{
            query({CODE}) {_TENSOR}
        }}
        first-phase {{
            expression {{
                sum(query({CODE}) * attribute({CODE}))
            }}
        }}
    }}
}}
"""
        return {f"{shape.name}.sd": schema}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> dict[str, Any]:  # noqa: A002, ARG002
        """A document."""
        return {"id": str(id), "fields": {"id": id, CODE: mapping(indices, values)}}

    def line(self, shape: Shape, row: Any) -> str:
        """An operation that `vespa feed` takes."""
        operation = {"put": f"id:{shape.name}:{shape.name}::{row['id']}", "fields": row["fields"]}
        return super().line(shape, operation)

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> dict[str, Any]:
        """The body of POST /search/: all documents are ranked."""
        return {
            "yql": f"select id from {shape.name} where true",
            "ranking": CODE,
            f"input.query({CODE})": mapping(indices, values),
            "hits": limit,
        }
