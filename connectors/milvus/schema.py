"""Fields of a collection, as Milvus describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pymilvus import DataType

from compressae_index.arrays import IdArray
from compressae_index.connectors.milvus.expressions import check_primary
from compressae_index.errors import InputError


class Key(NamedTuple):
    """The primary key of a collection."""

    name: str
    are_strings: bool = False
    max_length: int | None = None
    """Largest number of bytes of an id; None for integers."""

    def array(self, values: Sequence[int | str]) -> IdArray:
        """Values of the key as an array of ids: int64 or str objects."""
        ids: IdArray = np.empty(len(values), dtype=object if self.are_strings else np.int64)
        ids[:] = values
        return ids


class Schema:
    """The fields of an existing collection."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        """From pymilvus's description."""
        self.collection: str = described["collection_name"]
        """The collection's own name, also if it was found by an alias."""
        self.fields: dict[str, dict[str, Any]] = {field["name"]: field for field in described["fields"]}
        self.description: str = described.get("description") or ""
        self.is_dynamic = bool(described.get("enable_dynamic_field"))

    def key(self) -> Key:
        """The primary key.

        Raises:
            InputError: no expression can hold its name, so rows cannot be found by their ids.
        """
        field = next(field for field in self.fields.values() if field.get("is_primary"))
        check_primary(field["name"], f"collection {self.collection!r}")
        longest = field["params"].get("max_length")
        are_strings = field["type"] == DataType.VARCHAR
        return Key(field["name"], are_strings, None if longest is None else int(longest))

    def kind(self, name: str) -> DataType:
        """The type of a field."""
        return DataType(self.fields[name]["type"])

    def dim(self, name: str) -> int:
        """The dimension of a vector field."""
        return int(self.fields[name]["params"]["dim"])

    def check_fields(self, names: Sequence[str], what: str = "output_fields") -> tuple[str, ...]:
        """Names of fields to read: "*" adds all fields of the schema, unknown names may be dynamic fields.

        Raises:
            InputError: not a sequence of names, or a field that the collection does not have.
        """
        wanted = names_of(names, what)
        unknown = [name for name in wanted if name not in self.fields and name != "*"]
        if unknown and not self.is_dynamic:
            held = ", ".join(self.fields)
            msg = f"collection {self.collection!r} has no field {unknown[0]!r}; it has: {held}"
            raise InputError(msg)
        return tuple(dict.fromkeys([*wanted, *self.fields])) if "*" in wanted else wanted


def names_of(names: Any, what: str) -> tuple[str, ...]:
    """Names as a tuple, each once.

    Raises:
        InputError: a string, or anything else that is not a sequence of names.
    """
    if isinstance(names, (str, bytes)):
        msg = f"{what} must be a list of names, got the string {names!r}; write [{names!r}]"
        raise InputError(msg)
    listed: tuple[Any, ...] = tuple(names) if isinstance(names, Iterable) else (None,)
    if not all(isinstance(name, str) and name for name in listed):
        msg = f"{what} must be a list of names, got {names!r}"
        raise InputError(msg)
    return tuple(dict.fromkeys(map(str, listed)))
