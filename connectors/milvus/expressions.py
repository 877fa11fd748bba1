"""Texts of Milvus's filter expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from compressae_index.errors import InputError

# Ids in one expression: at most so many, and so many bytes, a fraction of what a server takes in a request.
EXPRESSION_IDS = 1000
_EXPRESSION_BYTES = 8 << 20

# Milvus cannot quote names, so a primary key with one of these names cannot be part of an expression.
_RESERVED = frozenset(
    ("and", "or", "not", "in", "like", "is", "null", "exists", "true", "false", "iso", "interval")
)
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def check_primary(name: str, where: str) -> str:
    """The name of a primary key, if expressions can use it.

    Raises:
        InputError: they cannot.
    """
    if not _IDENTIFIER.fullmatch(name) or name.casefold() in _RESERVED:
        msg = (
            f"the primary key of {where} is called {name!r}, which no Milvus expression can hold, so rows "
            "cannot be found by their ids: use a name of letters, digits and _ that is not a keyword, such "
            "as 'id'"
        )
        raise InputError(msg)
    return name


def literal(id: int | str) -> str:  # noqa: A002
    """An id as an expression writes it; pymilvus does not escape strings itself.

    Escapes as little as possible: every version of Milvus takes the other characters as they are, and Milvus
    Lite knows no numeric escapes.

    Raises:
        InputError: a string with a lone surrogate, which cannot be encoded, so that no row has it.
    """
    if not isinstance(id, str):
        return str(id)
    if not id.isascii():
        try:
            id.encode()
        except UnicodeEncodeError:
            msg = f"id {id!r} holds a lone surrogate, which Milvus cannot store"
            raise InputError(msg) from None
    return '"' + id.translate(_ESCAPED) + '"'


def among(field: str, ids: Iterable[int | str]) -> str:
    """The expression for rows whose field is one of the ids."""
    return f"{field} in [{', '.join(map(literal, ids))}]"


def both(*expressions: str) -> str:
    """The expression for rows that satisfy all of the expressions; empty ones are ignored."""
    given = [expression for expression in expressions if expression]
    return given[0] if len(given) == 1 else " and ".join(f"({expression})" for expression in given)


def portions(ids: list[Any]) -> Iterator[list[Any]]:
    """Splits ids into lists that fit in one expression each."""
    first = size = 0
    for number, id_ in enumerate(ids):
        own = len(id_.encode(errors="replace")) if isinstance(id_, str) else 8
        if number > first and (number - first == EXPRESSION_IDS or size + own > _EXPRESSION_BYTES):
            yield ids[first:number]
            first, size = number, 0
        size += own
    if first < len(ids):
        yield ids[first:]
