"""Collections that the tests of the Milvus connector make, and what these hold."""

from __future__ import annotations

import secrets
from typing import Any

from pymilvus import DataType, MilvusClient

from compressae_index.arrays import FloatArray
from compressae_index.connectors.milvus.compressed import OWN_FIELDS


def name() -> str:
    return f"c_{secrets.token_hex(4)}"


def fill(
    client: MilvusClient,
    collection: str,
    vectors: FloatArray,
    *,
    string_ids: bool = False,
    metric: str = "COSINE",
) -> None:
    """A dense collection as users have them: scalar and dynamic fields, nulls, a default."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    if string_ids:
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=40)
    else:
        schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    schema.add_field("price", DataType.FLOAT, nullable=True)
    schema.add_field("kind", DataType.VARCHAR, max_length=20, default_value="plain")
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4, max_length=9)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type=metric)
    client.create_collection(collection, schema=schema, index_params=params)
    put(client, collection, vectors, 0, string_ids=string_ids)
    client.flush(collection)


def put(
    client: MilvusClient,
    collection: str,
    vectors: FloatArray,
    first: int,
    *,
    string_ids: bool = False,
    **options: Any,
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "key": key(number) if string_ids else number * 10,
            "embedding": vector,
            "price": None if number == 3 else float(number),
            "tags": ["a", str(number % 3)],
            **({"colour": "red"} if number % 2 else {"size": number}),
            **({"kind": "special"} if number % 5 == 0 else {}),
        }
        for number, vector in enumerate(vectors, first)
    ]
    for begin in range(0, len(rows), 2000):
        client.insert(collection, rows[begin : begin + 2000], **options)


def key(number: int) -> str:
    """Ascending strings with what pymilvus does not escape."""
    return f'"key" \\{number:06d}'


def rows_of(client: MilvusClient, collection: str) -> dict[Any, dict[str, Any]]:
    """All rows by id, without vectors."""
    rows = client.query(collection, filter="", limit=16384, output_fields=["*"])
    vectors = {"embedding", *OWN_FIELDS}
    return {row["key"]: {name: row[name] for name in row.keys() - vectors} for row in rows}
