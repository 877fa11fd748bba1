"""Text for people: what a terminal would obey or a reader mistake is escaped, credentials are hidden."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_HIDDEN = "***"
# user:password@ or token@ of an address, which as a path has lost a slash; an @ behind the host is none.
_CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/?#\"']*@")
# A whole address, whose scheme may follow other text at once.
_ADDRESS = re.compile(r"(\w:/{1,2})([^\s'\"<>]+)")


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


def redacted(text: str, secrets: Sequence[str] = (), *, whole: bool = False) -> str:
    """A text without the credentials of its addresses, and without some secrets: *** is in their place.

    Args:
        text: what is shown.
        secrets: what must not be in it anywhere.
        whole: whether the text is of others, who repeat addresses by which they are reached: then queries are
            hidden too, and all before the last @. In our own texts addresses may be ids, which must be found.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    if whole:
        return _ADDRESS.sub(lambda found: found[1] + _without_credentials(found[2]), text)
    return _CREDENTIALS.sub(rf"\1{_HIDDEN}@", text)


def shown(uri: str) -> str:
    """An address, or what was meant as one, without what may be credentials."""
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + _without_credentials(rest) if separator else _without_credentials(uri)


def _without_credentials(rest: str) -> str:
    """What follows the scheme of an address; all of it is hidden where the credentials have no clear end."""
    credentials, at, place = rest.rpartition("@")
    if "?" in credentials or "#" in credentials:
        return _HIDDEN
    place, *query = re.split(r"[?#]", place, maxsplit=1)
    return (_HIDDEN + at if at else "") + place + ("?" + _HIDDEN if query else "")
