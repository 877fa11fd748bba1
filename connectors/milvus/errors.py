"""Errors of pymilvus and gRPC as this package's own, with what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from pymilvus.exceptions import MilvusException

from compressae_index.errors import BackendError, InputError

# Codes of Milvus, which are the same on Lite where Lite has them.
_NOT_CONNECTED, _NOT_FOUND, _NOT_LOADED = 2, 100, 101
_OVER_QUOTA = (8, 9)  # rate limit; writes denied for memory or disk

_translating: ContextVar[bool] = ContextVar("_translating", default=False)


class _NotWhileTranslating(logging.Filter):
    """Keeps pymilvus from printing a traceback of an error that is raised here with its reason."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _translating.get()


logging.getLogger("pymilvus.decorators").addFilter(_NotWhileTranslating())


@contextmanager
def translated(action: str, *, expression: str = "") -> Iterator[None]:
    """Raises what pymilvus and gRPC raise inside as a BackendError that says what was being done.

    Args:
        action: what is being done, as in "reading collection 'items'".
        expression: a filter of the caller's, which is at fault where the server cannot parse it.

    Raises:
        InputError: the server could not parse the expression.
        BackendError: everything else.
    """
    token = _translating.set(True)
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        reason = _reason(error)
        if expression and _is_about_expression(reason):
            msg = f"Milvus cannot evaluate the filter {expression!r}: {reason}"
            raise InputError(msg) from error
        msg = f"{action} failed: {reason}{_advice(error, reason)}"
        raise BackendError(msg) from error
    finally:
        _translating.reset(token)


def status_of(error: BaseException) -> grpc.StatusCode | None:
    """The gRPC status behind an error, also where pymilvus made another error of it."""
    cause: BaseException | None = error
    seen: set[int] = set()  # pymilvus raises errors from themselves
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, grpc.RpcError) and hasattr(cause, "code"):
            return cause.code()
        seen.add(id(cause))
        cause = cause.__context__ if cause.__cause__ in (None, cause) else cause.__cause__
    return None


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
        return "; one process at a time can open a file of Milvus Lite, and its folder must exist"
    if code in _OVER_QUOTA or status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "; the server is over a quota: wait, or raise its limits, and run it again"
    if code == _NOT_LOADED:
        return "; load the collection first"
    if code == _NOT_FOUND:
        return "; was it dropped or renamed meanwhile?"
    if status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or "auth" in reason:
        return "; check the token (user:password, or an API key) and what it may do"
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return "; this server does not know the request: Milvus 2.5 or newer, or Lite 3.2.2, is needed"
    if status == grpc.StatusCode.DEADLINE_EXCEEDED or "timeout" in reason.lower():
        return "; the server did not answer in time: see whether it runs, or allow more with `timeout`"
    if status == grpc.StatusCode.UNAVAILABLE or code == _NOT_CONNECTED:
        return "; see whether the server runs at this address, then run it again"
    return ""
