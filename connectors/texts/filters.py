"""Conditions on the metadata of texts, as SQL that `Records` runs."""

from __future__ import annotations

import json
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from compressae_index.errors import InputError

Operator: TypeAlias = Literal["==", "!=", ">", ">=", "<", "<=", "in", "not in"]

_NUMBERS = "('integer', 'real', 'true', 'false')"


class Condition(NamedTuple):
    """What documents must meet: an SQL expression, which is 0 or 1 for each, and its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()


def compare(path: Sequence[str], operator: Operator, value: Any) -> Condition:
    """Compares an entry of the metadata with a value.

    Texts are compared with texts and numbers with numbers, of which True is 1. A missing entry is None: it
    meets "!=" and "not in", and no order.

    Args:
        path: the key of the entry, and further keys if it lies in nested dictionaries.
        operator: how to compare.
        value: a text, number, bool or None; a list of these for "in" and "not in".

    Raises:
        InputError: a value of another type, or a key with a quote or backslash.
    """
    where = _path_of(path)
    if operator in ("in", "not in"):
        found = _among(where, _as_values(value, operator))
    elif operator in ("==", "!="):
        found = _among(where, [value])
    else:
        return _in_order(where, operator, value)
    return negated(found) if operator in ("!=", "not in") else found


def contains(path: Sequence[str], value: Any) -> Condition:
    """A list in the metadata that has a value, or a text that holds it; errors as for `compare`."""
    where, (kind, given) = _path_of(path), _kind_of(value)
    listed = Condition(
        "(ifnull(json_type(metadata, ?), '') = 'array' "
        f"AND EXISTS (SELECT 1 FROM json_each(metadata, ?) WHERE type IN {_types(kind)} AND value IS ?))",
        (where, where, given),
    )
    return either([listed, holds_text(path, given)]) if kind == "text" else listed


def holds_text(path: Sequence[str], value: str, *, any_case: bool = False) -> Condition:
    """A text in the metadata that holds another, in any case if wanted; errors as for `compare`."""
    where, (kind, text) = _path_of(path), _kind_of(value)
    if kind != "text":
        msg = f"a text is searched for in texts, got {value!r:.100}"
        raise InputError(msg)
    if any_case:
        return _of_kind(
            where, kind, "instr(lowered(json_extract(metadata, ?)), ?) > 0", (where, text.lower())
        )
    return _of_kind(where, kind, "instr(json_extract(metadata, ?), ?) > 0", (where, text))


def is_empty(path: Sequence[str]) -> Condition:
    """An entry that is missing, None, an empty text or an empty list."""
    where = _path_of(path)
    no_list = Condition(
        "(ifnull(json_type(metadata, ?), '') = 'array' AND json_array_length(metadata, ?) = 0)", (where,) * 2
    )
    return either([compare(path, "in", [None, ""]), no_list])


def has_id(ids: Iterable[str]) -> Condition:
    """Documents of these ids."""
    return Condition("id IN (SELECT value FROM json_each(?))", (_json(list(ids)),))


def every(conditions: Sequence[Condition]) -> Condition:
    """All of the conditions; met by all documents if there are none."""
    return _joined(conditions, " AND ", Condition("1"))


def either(conditions: Sequence[Condition]) -> Condition:
    """At least one of the conditions; met by no document if there are none."""
    return _joined(conditions, " OR ", NOTHING)


def negated(condition: Condition) -> Condition:
    """The documents that do not meet a condition."""
    return Condition(f"NOT {condition.sql}", condition.parameters)


NOTHING = Condition("0")
"""No document meets it."""


def _joined(conditions: Sequence[Condition], word: str, none: Condition) -> Condition:
    if not conditions:
        return none
    sql = word.join(each.sql for each in conditions)
    return Condition(f"({sql})", tuple(value for each in conditions for value in each.parameters))


def _path_of(path: Sequence[str]) -> str:
    """SQLite's path of an entry; it has no way to write a quote in a key."""
    keys: Sequence[Any] = path
    for key in keys:
        if not isinstance(key, str) or '"' in key or "\\" in key or not key.isprintable():
            msg = f"metadata cannot be filtered by the key {key!r:.100}: use a function as filter"
            raise InputError(msg)
    return "$" + "".join(f'."{key}"' for key in keys)


def _kind_of(value: Any) -> tuple[str, Any]:
    """The kind of a value, and the value as SQLite takes it."""
    if value is None:
        return "null", None
    if isinstance(value, str):
        return "text", str(value)
    if isinstance(value, numbers.Integral):
        return "number", int(value)
    if isinstance(value, numbers.Real):
        return "number", float(value)
    msg = f"metadata are compared with texts, numbers, bools or None, got {value!r:.100}"
    raise InputError(msg)


def _types(kind: str) -> str:
    return {"null": "('null')", "text": "('text')"}.get(kind, _NUMBERS)


def _of_kind(where: str, kind: str, sql: str, parameters: tuple[Any, ...]) -> Condition:
    """A comparison of entries of one kind, which is 0 for all others."""
    return Condition(
        f"(ifnull(json_type(metadata, ?), '') IN {_types(kind)} AND {sql})", (where, *parameters)
    )


def _as_values(value: Any, operator: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        msg = f"{operator!r} takes a list of values, got {value!r:.100}"
        raise InputError(msg)
    return list(value)


def _in_order(where: str, operator: str, value: Any) -> Condition:
    kind, value = _kind_of(value)
    if kind == "null":
        msg = f"{operator} compares texts or numbers, got None"
        raise InputError(msg)
    entry = "json_extract(metadata, ?)"
    if kind == "text":
        return _of_kind(where, kind, f"{entry} {operator} ?", (where, value))
    if operator in ("<", "<="):
        return Condition(f"ifnull({entry} {operator} ?, 0)", (where, value))
    # To SQLite every text is above all numbers.
    least = Condition(f"ifnull({entry} BETWEEN ? AND 9e999, 0)", (where, value))
    return least if operator == ">=" else every([least, negated(_among(where, [value]))])


def _among(where: str, values: list[Any]) -> Condition:
    """Entries that are one of the values. To SQLite no text is equal to a number."""
    kinds: dict[str, list[Any]] = {}
    for kind, value in map(_kind_of, values):
        kinds.setdefault(kind, []).append(value)
    parts = []
    if kinds.pop("null", None):
        parts.append(Condition("json_extract(metadata, ?) IS NULL", (where,)))
    for kind, alike in kinds.items():
        if len(alike) == 1:
            sql, value = "json_extract(metadata, ?) = ?", alike[0]
        else:
            sql, value = "json_extract(metadata, ?) IN (SELECT value FROM json_each(?))", _json(alike)
        if kind == "text" and any(each[:1] in ("[", "{") for each in alike):  # so begin lists, as texts
            parts.append(_of_kind(where, kind, sql, (where, value)))
        else:
            parts.append(Condition(f"ifnull({sql}, 0)", (where, value)))
    return either(parts)


def _json(values: list[Any]) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        msg = f"a filter cannot compare with NaN or infinity: {error}"
        raise InputError(msg) from error
