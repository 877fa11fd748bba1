"""Text for people: control and confusing characters are escaped, credentials are hidden."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_HIDDEN = "***"
# user:password@ or token@ in an address (a Path drops one of its slashes), not an @ after the host.
_CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/?#\"']*@")
# A whole address; text may directly precede its scheme.
_ADDRESS = re.compile(r"(\w:/{1,2})([^\s'\"<>]+)")


def printable(text: str) -> str:
    r"""A text with control characters, line ends, direction overrides and lone surrogates as \uXXXX."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def quoted(value: object) -> str:
    """An id or a field as one word: as a JSON string if it needs quotes."""
    text = str(value)
    plain = text.isprintable() and not re.search(r'[\s"\\]', text)
    if text and plain:
        return text
    return printable(json.dumps(text, ensure_ascii=False))


def redacted(text: str, secrets: Sequence[str] = (), *, whole: bool = False) -> str:
    """A text with *** in place of credentials in addresses, and of given secrets.

    Args:
        text: the text to show.
        secrets: strings that must not appear in it.
        whole: for texts of other programs, which repeat the addresses of servers: hide query strings too, and
        everything before the last @. In our own texts an address may be an id, which must stay readable.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    if whole:
        return _ADDRESS.sub(lambda found: found[1] + _without_credentials(found[2]), text)
    return _CREDENTIALS.sub(rf"\1{_HIDDEN}@", text)


def shown(uri: str) -> str:
    """An address, or text meant as one, without possible credentials."""
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + _without_credentials(rest) if separator else _without_credentials(uri)


def _without_credentials(rest: str) -> str:
    """The rest of an address after its scheme; *** for all of it if the credentials have no clear end."""
    credentials, at, place = rest.rpartition("@")
    if "?" in credentials or "#" in credentials:
        return _HIDDEN
    place, *query = re.split(r"[?#]", place, maxsplit=1)
    return (_HIDDEN + at if at else "") + place + ("?" + _HIDDEN if query else "")
