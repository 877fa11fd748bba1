"""A connection to Milvus: checked when it is made, with requests that end in this package's errors."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index.arrays import IdArray
from compressae_index.checks import as_path
from compressae_index.connectors.milvus.errors import secrets_of, status_of, translated
from compressae_index.errors import BackendError, InputError, MissingExtraError
from compressae_index.terminal import shown

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
# Of addresses that are taken; of what is an address, also where it was made a path and lost a slash.
_SCHEME = re.compile(r"(https?|tcp|unix):/", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)

# A primary key with one of these names cannot stand in an expression, and Milvus knows no quotes for names.
_RESERVED = frozenset(
    ("and", "or", "not", "in", "like", "is", "null", "exists", "true", "false", "iso", "interval")
)
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
# Bytes of ids in one expression: a fraction of what a server takes in a request.
_EXPRESSION_BYTES = 8 << 20


def connect(
    uri: str | os.PathLike[str],
    *,
    token: str = "",
    db_name: str = "",
    timeout: float = TIMEOUT,
    create: bool = True,
) -> MilvusClient:
    """A client of a Milvus Lite database, a server or Zilliz Cloud.

    No message of an error repeats a credential, whether it is in the token or in the address.

    Args:
        uri: a path that ends in .db, or an address as http://localhost:19530 or https://host.
        token: "user:password" or an API key.
        db_name: the database; the default one if empty.
        timeout: seconds to wait for the connection.
        create: whether a database of Milvus Lite that is not there is made.

    Raises:
        InputError: the uri is neither, the path is not a database of Milvus Lite, or there is none and none
            is to be made.
        BackendError: nothing answers, the token is refused, or Milvus Lite is too old: before 3.0 it lacks
            requests, and before 3.2.2 it gives wrong scores.
        MissingExtraError: a path, and Milvus Lite is not installed.
    """
    check_timeout(timeout)
    path = lite_path(uri)
    if path is not None:
        _check_lite(path, create)
    address = str(uri if path is None else path)
    where = shown(address) if path is None else address
    with translated(f"connecting to {where}", secrets=() if path else secrets_of(address, token)):
        client, version = _reached(address, token, db_name, timeout)
    if version.startswith(_LITE) and _numbers(version) < _OLDEST_LITE:
        client.close()
        msg = f"{where} is served by {_too_old(version)}"
        raise BackendError(msg)
    return client


def lite_path(uri: str | os.PathLike[str]) -> Path | None:
    """The path of a Milvus Lite database, with ~ expanded; None for the address of a server.

    Raises:
        InputError: the uri is neither.
    """
    is_path = not isinstance(uri, str)
    text = str(as_path(uri, "uri")) if is_path else str(uri)
    if not _ANY_SCHEME.match(text):
        if text.endswith(".db"):
            return as_path(text, "uri")
    elif not is_path and _SCHEME.match(text) and _is_address(text):
        return None
    msg = (
        "uri must be a path ending in .db (Milvus Lite) or an address as http://host:19530, "
        f"got {shown(text)!r}"
    )
    raise InputError(msg)


def _is_address(uri: str) -> bool:
    if uri.startswith("unix:"):
        return len(uri) > len("unix:/")
    try:
        parts = urlsplit(uri)
        # pymilvus takes all that ends in .db for a path.
        return bool(parts.hostname) and (parts.port is None or parts.port > 0) and not uri.endswith(".db")
    except ValueError:  # its text repeats what it cannot read
        return False


def _check_lite(path: Path, create: bool) -> None:
    """Refuses a path where Milvus Lite cannot open, or must not make, a database.

    Raises:
        InputError: it is so.
        BackendError: the Milvus Lite that is installed is too old.
        MissingExtraError: none is installed.
    """
    if find_spec("milvus_lite") is None:
        raise MissingExtraError("milvus-lite", "milvus", f"the database {path}")
    try:
        installed = metadata.version("milvus-lite")
    except metadata.PackageNotFoundError:
        installed = ""  # a module without metadata: the version that it tells is checked once it answers
    if installed and _numbers(installed) < _OLDEST_LITE:
        msg = f"{path} cannot be opened by {_too_old(f'milvus-lite {installed}')}"
        raise BackendError(msg)
    if path.is_file():
        msg = (
            f"{path} is a file, and databases of Milvus Lite 3 are folders: one of Milvus Lite 2.5 or older "
            "cannot be read any more, so fill a new database from your data; else use another name"
        )
        raise InputError(msg)
    is_database = (path / "collections").is_dir()
    if path.is_dir() and not is_database and any(path.iterdir()):
        msg = f"{path} is a folder that holds other things than a database of Milvus Lite"
        raise InputError(msg)
    if not create and not is_database:
        msg = f"there is no database {path}"
        raise InputError(msg)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _too_old(version: str) -> str:
    fault = "lacks requests that are needed" if _numbers(version) < (3,) else "gives wrong sparse scores"
    return f"{version}, which {fault}: install milvus-lite>=3.2.2"


def check_timeout(timeout: Any) -> float:
    """Seconds that can be waited.

    Raises:
        InputError: not a positive, finite number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        msg = f"timeout must be a positive number of seconds, got {timeout!r}"
        raise InputError(msg)
    return float(timeout)


def check_client(client: Any) -> MilvusClient:
    """What `connect` gave.

    Raises:
        InputError: it is something else.
    """
    if not hasattr(client, "describe_collection"):
        msg = f"client must be what `connect` gives, or a uri, got {type(client).__name__}"
        raise InputError(msg)
    return client


def reading_client(
    client: MilvusClient | str | os.PathLike[str],
    collection: str,
    *,
    token: str = "",
    db_name: str = "",
    timeout: float = TIMEOUT,
) -> MilvusClient:
    """A client by which a collection that exists is read: the one given, or one of a uri; makes no database.

    Raises:
        InputError: there is no such database; as for `connect`.
        BackendError: as for `connect`.
    """
    check_timeout(timeout)
    if not isinstance(client, (str, os.PathLike)):
        return check_client(client)
    path = lite_path(client)
    if path is not None and not path.exists():
        msg = f"there is no collection {collection!r}; there are: none, as {path} does not exist"
        raise InputError(msg)
    return connect(client, token=token, db_name=db_name, timeout=timeout, create=False)


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
    """Name of the primary key, and whether it is a string.

    Raises:
        InputError: no expression can have this name, so that rows cannot be found by their ids.
    """
    field = next(field for field in described["fields"] if field.get("is_primary"))
    check_primary(field["name"], f"collection {described['collection_name']!r}")
    return field["name"], field["type"] == DataType.VARCHAR


def check_primary(name: str, where: str) -> str:
    """A name of a primary key that can stand in an expression.

    Raises:
        InputError: it cannot.
    """
    if not _IDENTIFIER.fullmatch(name) or name.casefold() in _RESERVED:
        msg = (
            f"the primary key of {where} is called {name!r}, which no Milvus expression can hold, so rows "
            "cannot be found by their ids: it needs a name of letters, digits and _ that is no word of "
            "expressions, as 'id'"
        )
        raise InputError(msg)
    return name


def check_fields(
    described: dict[str, Any], names: Sequence[str], what: str = "output_fields"
) -> tuple[str, ...]:
    """Names of fields to read, as pymilvus takes them: "*" is all, unknown ones may be dynamic.

    With "*", the fields of the schema are named beside it.

    Raises:
        InputError: not a sequence of names, or a field that the collection does not have.
    """
    wanted = names_of(names, what)
    held = [field["name"] for field in described["fields"]]
    unknown = [name for name in wanted if name not in held and name != "*"]
    if unknown and not described.get("enable_dynamic_field"):
        name = described["collection_name"]
        msg = f"collection {name!r} has no field {unknown[0]!r}; it has: {', '.join(held)}"
        raise InputError(msg)
    return tuple(dict.fromkeys([*wanted, *held])) if "*" in wanted else wanted


def check_partitions(
    client: MilvusClient, collection: str, names: Sequence[str], timeout: float = TIMEOUT
) -> tuple[str, ...]:
    """Names of partitions that a collection has; asks for nothing where there are no names.

    Raises:
        InputError: not a sequence of names, or an unknown one.
    """
    wanted = names_of(names, "partitions")
    if not wanted:
        return wanted
    with translated(f"listing partitions of {collection!r}"):
        held = client.list_partitions(collection, timeout=timeout)
    unknown = [name for name in wanted if name not in held]
    if unknown:
        msg = f"collection {collection!r} has no partition {unknown[0]!r}; it has: {', '.join(held)}"
        raise InputError(msg)
    return wanted


def names_of(names: Any, what: str) -> tuple[str, ...]:
    """Names as a tuple.

    Raises:
        InputError: one string, or something else that is no sequence of names.
    """
    if isinstance(names, (str, bytes)):
        msg = f"{what} must be a list of names, got the string {names!r}; write [{names!r}]"
        raise InputError(msg)
    listed: tuple[Any, ...] = tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(name, str) and name for name in listed):
        msg = f"{what} must be a list of names, got {names!r}"
        raise InputError(msg)
    return tuple(dict.fromkeys(map(str, listed)))


def ensure_loaded(client: MilvusClient, collection: str, timeout: float = TIMEOUT) -> None:
    """Loads a collection that is not loaded, which searching and reading need."""
    with translated(f"loading collection {collection!r}"):
        if "Loaded" not in str(client.get_load_state(collection, timeout=timeout).get("state")):
            client.load_collection(collection, timeout=timeout)


def literal(id: int | str) -> str:  # noqa: A002
    """An id as it stands in an expression; pymilvus does not escape strings itself.

    Only what must be escaped is: every version of Milvus takes other characters as they are, and Lite knows
    no escapes by number.

    Raises:
        InputError: a string that no text can hold, so that no row has it.
    """
    if isinstance(id, str) and not id.isascii():
        try:
            id.encode()
        except UnicodeEncodeError:
            msg = f"id {id!r} holds a lone surrogate, which Milvus cannot store"
            raise InputError(msg) from None
    return '"' + id.translate(_ESCAPED) + '"' if isinstance(id, str) else str(id)


_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def among(field: str, ids: Iterable[int | str]) -> str:
    """The expression for rows whose field is one of some ids."""
    return f"{field} in [{', '.join(map(literal, ids))}]"


def portions(ids: list[Any]) -> Iterator[list[Any]]:
    """Ids, as many at a time as one expression should hold."""
    first = size = 0
    for number, id_ in enumerate(ids):
        own = len(id_.encode(errors="replace")) if isinstance(id_, str) else 8
        if number > first and (number - first == PAGE_ROWS or size + own > _EXPRESSION_BYTES):
            yield ids[first:number]
            first, size = number, 0
        size += own
    if first < len(ids):
        yield ids[first:]


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
    for some in portions(ids.tolist()):
        with translated(f"reading rows of collection {collection!r}", expression=filter):
            rows = client.query(
                collection,
                filter=both(among(primary, some), filter),
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
