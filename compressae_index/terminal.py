"""Text for people: what a terminal would obey, or a reader could mistake, is escaped."""

from __future__ import annotations

import json
import re

# user:password@ or token@ of an address, which as a path has lost a slash; an @ behind the host is none.
_CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/?#\"']*@")


def printable(text: str) -> str:
    r"""A text whose control characters, line ends, overrides of direction and lone surrogates are \uXXXX."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def quoted(value: object) -> str:
    """An id or a field as one word: a string that would not be one is written as JSON writes it."""
    text = str(value)
    plain = text.isprintable() and not re.search(r'[\s"\\]', text)
    if text and plain:
        return text
    return printable(json.dumps(text, ensure_ascii=False))


def redacted(text: str) -> str:
    """A text without the credentials of its addresses: what stood before the @ is ***."""
    return _CREDENTIALS.sub(r"\1***@", text)
