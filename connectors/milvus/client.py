"""Connections to Milvus, checked when they are made."""

from __future__ import annotations

import math
import os
import re
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from compressae_index.checks import as_path
from compressae_index.connectors.milvus.errors import secrets_of, status_of, translated
from compressae_index.errors import BackendError, InputError, MissingExtraError
from compressae_index.terminal import shown

# Seconds for one request, retries included.
TIMEOUT = 60.0
# Limit of a server on results of a query, offset and limit together.
MAX_RESULTS = 16384

ConsistencyLevel: TypeAlias = Literal["Strong", "Session", "Bounded", "Eventually"]
CONSISTENCY_LEVELS: tuple[ConsistencyLevel, ...] = ("Strong", "Session", "Bounded", "Eventually")

# Seconds to keep trying to connect to a server that is down.
_CONNECT_SECONDS = 6.0

_LITE = "milvus_lite-"
_OLDEST_LITE = (3, 2, 2)
# The first server that adds vector fields to collections.
_ADDS_VECTORS = (2, 6, 18)
# The schemes that are accepted, and any. One slash is enough: a path made of an address has lost the other.
_SCHEME = re.compile(r"(https?|tcp|unix):/", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def connect(
    uri: str | os.PathLike[str],
    *,
    token: str = "",
    db_name: str = "",
    timeout: float = TIMEOUT,
    create: bool = True,
) -> MilvusClient:
    """A client of a Milvus Lite database, a server or Zilliz Cloud.

    No error message repeats a credential, whether it is in the token or in the address.

    Args:
        uri: a path that ends in .db, or an address such as http://localhost:19530 or https://host.
        token: "user:password" or an API key.
        db_name: the database; the default one if empty.
        timeout: seconds to wait for the connection.
        create: whether to make a database of Milvus Lite if the path does not exist.

    Raises:
        InputError: the uri is neither; the path is not a database of Milvus Lite; or it does not exist and
            create is false.
        BackendError: nothing answers, the token is refused, or Milvus Lite is too old: before 3.0 it lacks
            requests, and before 3.2.2 it gives wrong scores.
        MissingExtraError: the uri is a path, and Milvus Lite is not installed.
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
        "uri must be a path ending in .db (Milvus Lite) or an address like http://host:19530, "
        f"got {shown(text)!r}"
    )
    raise InputError(msg)


def _is_address(uri: str) -> bool:
    if uri.startswith("unix:"):
        return len(uri) > len("unix:/")
    try:
        parts = urlsplit(uri)
        # pymilvus takes everything that ends in .db for a path.
        return bool(parts.hostname) and (parts.port is None or parts.port > 0) and not uri.endswith(".db")
    except ValueError:  # not raised on: its text repeats the address
        return False


def _check_lite(path: Path, create: bool) -> None:
    """Checks that Milvus Lite can open, or may make, a database at a path.

    Raises:
        InputError: it cannot, or must not.
        BackendError: the Milvus Lite that is installed is too old.
        MissingExtraError: Milvus Lite is not installed.
    """
    if find_spec("milvus_lite") is None:
        raise MissingExtraError("milvus-lite", "milvus", f"the database {path}")
    try:
        installed = metadata.version("milvus-lite")
    except metadata.PackageNotFoundError:
        installed = ""  # a module without metadata: `connect` checks the version that it answers with
    if installed and _numbers(installed) < _OLDEST_LITE:
        msg = f"{path} cannot be opened by {_too_old(f'milvus-lite {installed}')}"
        raise BackendError(msg)
    if path.is_file():
        msg = (
            f"{path} is a file, and databases of Milvus Lite 3 are folders: if Milvus Lite 2.5 or older made "
            "it, it cannot be read any more, so fill a new database from your data; else use another name"
        )
        raise InputError(msg)
    is_database = (path / "collections").is_dir()
    if path.is_dir() and not is_database and any(path.iterdir()):
        msg = f"{path} is a folder, but not a database of Milvus Lite"
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
    """A time to wait, in seconds.

    Raises:
        InputError: not a positive, finite number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        msg = f"timeout must be a positive number of seconds, got {timeout!r}"
        raise InputError(msg)
    return float(timeout)


def check_client(client: Any) -> MilvusClient:
    """A client of pymilvus.

    Raises:
        InputError: it is something else.
    """
    if not hasattr(client, "describe_collection"):
        msg = f"client must be a client of `connect`, or a uri, got {type(client).__name__}"
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
    """The client given, or one of a uri, to read a collection that exists; makes no database.

    Raises:
        InputError: as for `connect`, or there is no such database.
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
    """A client and the server's version.

    A client remembers that a server was down, so this tries for a while, with a new client each time.
    """
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
    """Whether the client is connected to Milvus Lite."""
    return _version(client).startswith(_LITE)


def check_adds_vectors(client: MilvusClient) -> None:
    """Checks that this Milvus can add a vector field to a collection that exists.

    Raises:
        InputError: it is Milvus Lite, or too old.
    """
    version = _version(client)
    numbers = _numbers(version)
    if version.startswith(_LITE) or (numbers and numbers < _ADDS_VECTORS):
        msg = (
            f"this is {version}, which cannot add a vector field to a collection, as Milvus 2.6.18 or newer "
            "can: leave in_place out, for a compressed collection beside the dense one"
        )
        raise InputError(msg)


def _version(client: MilvusClient) -> str:
    with translated("asking for the version"):
        return str(client.get_server_version())
