"""Errors of pymilvus and gRPC as this package's own, with advice and without credentials."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc
from pymilvus.exceptions import MilvusException

from compressae_index.errors import BackendError, InputError
from compressae_index.terminal import redacted

# Codes of Milvus; those that Milvus Lite has are the same.
_NOT_CONNECTED, _NOT_FOUND, _NOT_LOADED = 2, 100, 101
_OVER_QUOTA = (8, 9)  # rate limit; writes denied for memory or disk

_translating: ContextVar[bool] = ContextVar("_translating", default=False)
# Requests of all threads that are within `translated`, as Milvus Lite answers in threads of its own.
_requests: set[object] = set()


class _NotWhileTranslating(logging.Filter):
    """Drops logged tracebacks of errors that `translated` raises anyway."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _translating.get()


class _NotWhileAnswering(logging.Filter):
    """Drops tracebacks that Milvus Lite, in this process, logs of errors that it also answers with."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _requests


logging.getLogger("milvus_lite.adapter.grpc.servicer").addFilter(_NotWhileAnswering())
for _name in (
    "pymilvus.decorators",
    "pymilvus.client.connection_manager",
    "pymilvus.client.global_topology",
    "pymilvus.client.grpc_handler",
    "milvus_lite.server_manager",
):
    logging.getLogger(_name).addFilter(_NotWhileTranslating())


@contextmanager
def translated(action: str, *, expression: str = "", secrets: Sequence[str] = ()) -> Iterator[None]:
    """Turns errors of pymilvus and gRPC into a BackendError that begins with the action.

    The error of pymilvus is the cause of the new one, unless it holds credentials.

    Args:
        action: such as "reading collection 'items'".
        expression: the caller's filter, which is to blame if the server cannot parse an expression.
        secrets: texts that must not be repeated, as must the credentials of addresses.

    Raises:
        InputError: the server could not parse the expression.
        BackendError: everything else.
    """
    token, request = _translating.set(True), object()
    _requests.add(request)
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        reason = _reason(error)
        seen = redacted(reason, secrets, whole=True)
        new: InputError | BackendError
        if expression and _is_about_expression(reason):
            new = InputError(f"Milvus cannot evaluate the filter {expression!r}: {seen}")
        else:
            new = BackendError(f"{action} failed: {seen}{_advice(error, reason)}")
        clean = all(text == redacted(text, secrets, whole=True) for text in map(_all_text, _chain(error)))
        try:
            raise new from (error if clean else None)
        finally:
            if not clean:
                new.__context__ = None
    finally:
        _requests.discard(request)
        _translating.reset(token)


def secrets_of(uri: str, token: str) -> list[str]:
    """Secret parts of an address and a token that messages of others may repeat."""
    rest = uri.partition("://")[2] or uri
    credentials, query = rest.rpartition("@")[0], re.split(r"[?#]", rest, maxsplit=1)[1:]
    given = [token, token.partition(":")[2], credentials, credentials.split(":", 1)[-1], *query]
    given += [part.partition("=")[2] for part in "".join(query).split("&")]
    return [*given, *map(unquote, given)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that it was raised from or after."""
    seen: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        # pymilvus raises errors from themselves.
        if each is not None and not any(each is other for other in seen):
            seen.append(each)
            ahead += [each.__context__, each.__cause__]
            yield each


def _all_text(error: BaseException) -> str:
    return f"{error} {error!r} {error.args!r}"


def status_of(error: BaseException) -> grpc.StatusCode | None:
    """The gRPC status behind an error, also if pymilvus wrapped it; None if there is none."""
    calls = (each for each in _chain(error) if isinstance(each, grpc.RpcError) and hasattr(each, "code"))
    return next((call.code() for call in calls), None)


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, MilvusException) else _details(error)
    return " ".join(str(text or error).split())


def _details(error: Any) -> str:
    return f"{error.code().name}: {error.details()}" if hasattr(error, "code") else str(error)


def _is_about_expression(reason: str) -> bool:
    words = ("expression", "expr", "unexpected token", "unexpected character", "expected literal", "column ")
    return any(word in reason for word in words)


def _advice(error: Exception, reason: str) -> str:
    code, status = getattr(error, "code", None), status_of(error)
    if "Open local milvus failed" in reason:
        return (
            "; only one process at a time can open a database of Milvus Lite, its folder must exist, "
            "and this user must be allowed to write to it"
        )
    if code in _OVER_QUOTA or status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "; the server is over a quota: wait, or raise its limits, and try again"
    if code == _NOT_LOADED:
        return "; load the collection first"
    if code == _NOT_FOUND:
        return "; was it dropped or renamed meanwhile?"
    if status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or "auth" in reason:
        return "; check the token (user:password, or an API key) and what it may do"
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return (
            "; this server does not know the request: use Milvus 2.5 or newer, or milvus-lite>=3.2.2, as the "
            "older Milvus Lite lacks such requests"
        )
    if "already exist" in reason or "File exists" in reason:
        return (
            "; something else made it meanwhile: check whether an import is running, and try again after it"
        )
    if status == grpc.StatusCode.DEADLINE_EXCEEDED or "timeout" in reason.lower():
        return "; the server did not answer in time: check whether it runs, or raise `timeout`"
    if status == grpc.StatusCode.UNAVAILABLE or code == _NOT_CONNECTED:
        return "; check whether the server runs at this address, then try again"
    return ""
