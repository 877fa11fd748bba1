"""A connection to Milvus: checked when it is made, with requests that end in this package's errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index.connectors.milvus.errors import status_of, translated
from compressae_index.errors import BackendError, InputError
from compressae_index.ids import IdArray

# Of one request, retries included.
TIMEOUT = 60.0
# What a server takes: results of a query, offset and limit together.
MAX_RESULTS = 16384
# Rows a page of reads, as wide vectors are slower in larger ones; ids in one expression.
PAGE_ROWS = 1000
# Rows a page where only ids are read.
_LISTED_ROWS = 10_000

ConsistencyLevel: TypeAlias = Literal["Strong", "Session", "Bounded", "Eventually"]
CONSISTENCY_LEVELS: tuple[ConsistencyLevel, ...] = ("Strong", "Session", "Bounded", "Eventually")

# Of trying to connect to a server that is down.
_CONNECT_SECONDS = 6.0

_LITE = "milvus_lite-"
_OLDEST_LITE = (3, 2, 2)


def connect(uri: str, *, token: str = "", db_name: str = "", timeout: float = TIMEOUT) -> MilvusClient:
    """A client of a Milvus Lite file, a server or Zilliz Cloud.

    Args:
        uri: a path that ends in .db, or an address as http://localhost:19530 or https://host.
        token: "user:password" or an API key.
        db_name: the database; the default one if empty.
        timeout: seconds to wait for the connection.

    Raises:
        InputError: the uri is neither.
        BackendError: nothing answers, the token is refused, or Milvus Lite is too old: before 3.2.2 it gives
            wrong scores.
    """
    if not (uri.endswith(".db") or re.match(r"(https?|tcp|unix)://?.+", uri)):
        msg = (
            f"uri must be a path ending in .db (Milvus Lite) or an address as http://host:19530, got {uri!r}"
        )
        raise InputError(msg)
    with translated(f"connecting to {uri}"):
        client, version = _reached(uri, token, db_name, timeout)
    if version.startswith(_LITE):
        numbers = tuple(int(part) for part in re.findall(r"\d+", version.removeprefix(_LITE))[:3])
        if numbers < _OLDEST_LITE:
            client.close()
            msg = f"{uri} is served by {version}, whose sparse scores are wrong: install milvus-lite>=3.2.2"
            raise BackendError(msg)
    return client


def _reached(uri: str, token: str, db_name: str, timeout: float) -> tuple[MilvusClient, str]:
    """A client and the server's version; tried for a while, as clients remember that a server was down."""
    give_up, wait = time.monotonic() + min(timeout, _CONNECT_SECONDS), 0.1
    while True:
        try:
            client = MilvusClient(uri, token=token, db_name=db_name, timeout=timeout)
            return client, str(client.get_server_version(timeout=timeout))
        except (MilvusException, grpc.RpcError) as error:
            if status_of(error) != grpc.StatusCode.UNAVAILABLE or time.monotonic() + wait > give_up:
                raise
        time.sleep(wait)
        wait *= 2


def is_lite(client: MilvusClient) -> bool:
    """Whether this is Milvus Lite."""
    with translated("asking for the version"):
        return str(client.get_server_version()).startswith(_LITE)


def describe(client: MilvusClient, collection: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """What Milvus tells of a collection that exists.

    Raises:
        InputError: there is no such collection.
    """
    with translated(f"looking for collection {collection!r}"):
        if not client.has_collection(collection, timeout=timeout):
            held = ", ".join(sorted(client.list_collections(timeout=timeout))) or "none"
            msg = f"there is no collection {collection!r}; there are: {held}"
            raise InputError(msg)
        described: dict[str, Any] = client.describe_collection(collection, timeout=timeout)
        return described


def primary_field(described: dict[str, Any]) -> tuple[str, bool]:
    """Name of the primary key, and whether it is a string."""
    field = next(field for field in described["fields"] if field.get("is_primary"))
    return field["name"], field["type"] == DataType.VARCHAR


def ensure_loaded(client: MilvusClient, collection: str, timeout: float = TIMEOUT) -> None:
    """Loads a collection that is not loaded, which searching and reading need."""
    with translated(f"loading collection {collection!r}"):
        if "Loaded" not in str(client.get_load_state(collection, timeout=timeout).get("state")):
            client.load_collection(collection, timeout=timeout)


def literal(id: int | str) -> str:  # noqa: A002
    """An id as it stands in an expression; pymilvus does not escape strings itself."""
    return json.dumps(id, ensure_ascii=False)


def among(field: str, ids: Iterable[int | str]) -> str:
    """The expression for rows whose field is one of some ids."""
    return f"{field} in [{', '.join(map(literal, ids))}]"


def both(*expressions: str) -> str:
    """The expression for rows that satisfy all of them; empty ones say nothing."""
    said = [expression for expression in expressions if expression]
    return said[0] if len(said) == 1 else " and ".join(f"({expression})" for expression in said)


def pages(
    client: MilvusClient,
    collection: str,
    primary: str,
    fields: Sequence[str],
    *,
    after: int | str | None = None,
    filter: str = "",  # noqa: A002
    partition: str = "",
    page_rows: int = PAGE_ROWS,
    timeout: float = TIMEOUT,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of a collection in the order of their primary key, page by page.

    By primary keys, like pymilvus's own iterator, which does not escape strings. Rows that are written
    meanwhile are seen where their key is still to come. What was written in the last seconds may be missing,
    unless the collection's consistency level is "Strong".

    Args:
        client: a connection.
        collection: its name; it must be loaded.
        primary: the primary key.
        fields: to read beside the primary key.
        after: the key to go on after.
        filter: an expression; only rows that satisfy it.
        partition: only this one; all if empty.
        page_rows: rows a request.
        timeout: seconds for each request.

    Raises:
        InputError: Milvus cannot evaluate the filter.
        BackendError: a request failed.
    """
    while True:
        begin = "" if after is None else f"{primary} > {literal(after)}"
        with translated(f"reading collection {collection!r}", expression=filter):
            rows = client.query(
                collection,
                filter=both(begin, filter),
                output_fields=[primary, *fields],
                limit=page_rows,
                partition_names=[partition] if partition else None,
                timeout=timeout,
                # As pymilvus's own iterator asks for the smallest keys, not for the first that are found. The
                # consistency level is then that of the collection.
                iterator="True",
                reduce_stop_for_best="True",
                strict_float32=True,
            )
        if not rows:
            return
        keys = [row[primary] for row in rows]
        if keys != sorted(keys) or (after is not None and keys[0] <= after):
            msg = f"collection {collection!r} was not read in the order of {primary!r}; nothing was concluded"
            raise BackendError(msg)
        yield list(rows)
        after = keys[-1]
        if len(rows) < page_rows:
            return


def listed_ids(
    client: MilvusClient,
    collection: str,
    primary: str,
    are_strings: bool,
    *,
    filter: str = "",  # noqa: A002
    partition: str = "",
    timeout: float = TIMEOUT,
) -> IdArray:
    """All ids of a loaded collection, ascending: int64 or str objects."""
    read = pages(
        client,
        collection,
        primary,
        [],
        filter=filter,
        partition=partition,
        page_rows=_LISTED_ROWS,
        timeout=timeout,
    )
    return as_ids([row[primary] for page in read for row in page], are_strings)


def as_ids(values: list[Any], are_strings: bool) -> IdArray:
    """Primary keys as an array of ids."""
    ids: IdArray = (
        np.empty(len(values), dtype=object) if are_strings else np.empty(len(values), dtype=np.int64)
    )
    ids[:] = values
    return ids


def rows_of(
    client: MilvusClient,
    collection: str,
    primary: str,
    ids: IdArray,
    fields: Sequence[str],
    *,
    filter: str = "",  # noqa: A002
    partition: str = "",
    consistency_level: ConsistencyLevel = "Strong",
    timeout: float = TIMEOUT,
) -> dict[int | str, dict[str, Any]]:
    """Rows by id, of the ids that are held."""
    found: dict[int | str, dict[str, Any]] = {}
    wanted = ids.tolist()
    for first in range(0, len(wanted), PAGE_ROWS):
        with translated(f"reading rows of collection {collection!r}", expression=filter):
            rows = client.query(
                collection,
                filter=both(among(primary, wanted[first : first + PAGE_ROWS]), filter),
                output_fields=[primary, *fields],
                partition_names=[partition] if partition else None,
                consistency_level=consistency_level,
                timeout=timeout,
                strict_float32=True,
            )
        found.update((row[primary], row) for row in rows)
    return found


def count(client: MilvusClient, collection: str, *, filter: str = "", timeout: float = TIMEOUT) -> int:  # noqa: A002
    """Rows that are visible now, in a loaded collection."""
    with translated(f"counting collection {collection!r}", expression=filter):
        rows = client.query(
            collection,
            filter=filter,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=timeout,
        )
    return int(rows[0]["count(*)"])
