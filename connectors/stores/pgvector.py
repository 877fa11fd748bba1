"""PostgreSQL with pgvector: a column `sparsevec`, which may be negative."""

from __future__ import annotations

from typing import Any

from compressae_index.connectors.stores.store import CODE, Shape, Store

_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Pgvector(Store):
    """Rows are pairs of id and text for COPY, queries are statements."""

    rows_file = "rows.tsv"
    queries_file = "queries.sql"

    def creation(self, shape: Shape) -> dict[str, str]:
        """Statements that make the extension and the table."""
        id_type = "text" if shape.are_strings else "bigint"
        columns = f"id {id_type} PRIMARY KEY, {CODE} sparsevec({shape.size}) NOT NULL"
        statements = f"CREATE EXTENSION IF NOT EXISTS vector;\nCREATE TABLE {shape.name} ({columns});\n"
        return {"table.sql": statements}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> tuple[Any, str]:  # noqa: A002
        """The id, and the vector as text."""
        return id, _text(shape, indices, values)

    def line(self, shape: Shape, row: Any) -> str:  # noqa: ARG002
        """A line of COPY in its text format."""
        return f"{str(row[0]).translate(_ESCAPED)}\t{row[1]}"

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> str:
        """A statement; `<#>` is the negative inner product."""
        text = _text(shape, indices, values)
        return f"SELECT id FROM {shape.name} ORDER BY {CODE} <#> '{text}' LIMIT {limit};"

    def query_line(self, query: Any) -> str:
        """The statement."""
        return str(query)


def _text(shape: Shape, indices: list[int], values: list[float]) -> str:
    """A sparsevec, whose indices begin with 1."""
    pairs = ",".join(f"{index + 1}:{value}" for index, value in zip(indices, values, strict=True))
    return f"{{{pairs}}}/{shape.size}"
