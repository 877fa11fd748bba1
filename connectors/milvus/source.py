"""Dense vectors of a Milvus collection, read in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient

from compressae_index.arrays import IdArray
from compressae_index.connectors.milvus.client import (
    PAGE_ROWS,
    TIMEOUT,
    as_ids,
    both,
    check_partitions,
    describe,
    ensure_loaded,
    listed_ids,
    literal,
    pages,
    primary_field,
    rows_of,
)
from compressae_index.errors import BackendError, InputError
from compressae_index.sources.base import bounds

_DENSE = (DataType.FLOAT_VECTOR, DataType.FLOAT16_VECTOR, DataType.BFLOAT16_VECTOR)


class Page(NamedTuple):
    """Some rows of a collection, in the order of their ids."""

    ids: IdArray
    vectors: npt.NDArray[Any]
    """(m, d) float32."""
    rows: list[dict[str, Any]]
    """The rows as Milvus gave them, with the fields that were asked for."""

    @classmethod
    def joined(cls, pages: Sequence[Page]) -> Page:
        """Some pages, at least one, as one."""
        return cls(
            np.concatenate([page.ids for page in pages]),
            np.concatenate([page.vectors for page in pages]),
            [row for page in pages for row in page.rows],
        )


class MilvusSource:
    """The dense vectors of a collection in the order of their ids, to slice like an array.

    It is a source for `CompressedIndex.build` and `train`: `CompressedIndex.build(source, source.ids)`. Ids
    are listed once, when they are first needed, and slices are read by them; so rows that are written later
    are not seen, and a row that is deleted later is an error. Only ids and one slice at a time take memory.
    The collection is loaded if it was not, and otherwise never changed.
    """

    def __init__(
        self,
        client: MilvusClient,
        collection: str,
        *,
        vector_field: str | None = None,
        filter: str = "",  # noqa: A002
        partition: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        """Looks at the collection; nothing is read yet.

        Args:
            client: what `connect` gives.
            collection: its name.
            vector_field: the dense field; may be left out where there is one only.
            filter: a Milvus expression; only rows that satisfy it.
            partition: only this partition; all if empty.
            timeout: seconds for each request.

        Raises:
            InputError: no such collection, field or partition, several dense fields and none named, a field
                that is not dense and floating point, or a primary key that no expression can hold.
        """
        described = describe(client, collection, timeout)
        self.client = client
        self.collection = collection
        self.filter = filter
        self.partition = partition
        self.timeout = timeout
        self.field = _dense_field(described, vector_field)
        self.primary, self.are_strings = primary_field(described)
        fields = {field["name"]: field for field in described["fields"]}
        self._type = fields[self.field]["type"]
        self.dim = int(fields[self.field]["params"]["dim"])
        if partition:
            check_partitions(client, collection, [partition], timeout)
        ensure_loaded(client, collection, timeout)

    @cached_property
    def ids(self) -> IdArray:
        """Ids of the rows, ascending: int64 or str objects.

        Raises:
            BackendError: reading failed.
        """
        return listed_ids(
            self.client,
            self.collection,
            self.primary,
            self.are_strings,
            filter=self.filter,
            partition=self.partition,
            timeout=self.timeout,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return (len(self.ids), self.dim)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Vectors (m, d) float32 of a slice of rows, of step 1.

        Raises:
            InputError: the slice has a step.
            BackendError: reading failed, or rows were deleted since their ids were listed.
        """
        start, stop = bounds(rows, len(self))
        if start == stop:
            return np.empty((0, self.dim), dtype=np.float32)
        wanted = self.ids[start:stop]
        low, high = (
            f"{self.primary} {sign} {literal(id_)}"
            for sign, id_ in ((">=", wanted.tolist()[0]), ("<=", wanted.tolist()[-1]))
        )
        read = [self._page(page) for page in self._pages([self.field], only=both(low, high))]
        ids = np.concatenate([page.ids for page in read]) if read else wanted[:0]
        vectors = np.concatenate([page.vectors for page in read]) if read else np.empty((0, self.dim))
        kept = np.isin(ids, wanted)
        if kept.sum() != len(wanted):
            msg = (
                f"{len(wanted) - int(kept.sum())} rows of {self.collection!r} were deleted while it was read"
            )
            raise BackendError(msg)
        return vectors[kept]

    def stream(self, fields: Sequence[str] = (), after: int | str | None = None) -> Iterator[Page]:
        """All rows from the one after an id on, page by page, with more fields."""
        return (self._page(page) for page in self._pages([self.field, *fields], after=after))

    def select(self, ids: IdArray, fields: Sequence[str] = ()) -> Iterator[Page]:
        """The rows of some ids that are held, page by page and in no order, with more fields."""
        for first in range(0, len(ids), PAGE_ROWS):
            found = rows_of(
                self.client,
                self.collection,
                self.primary,
                ids[first : first + PAGE_ROWS],
                [self.field, *fields],
                filter=self.filter,
                partition=self.partition,
                timeout=self.timeout,
            )
            if found:
                yield self._page(list(found.values()))

    def _pages(
        self, fields: Sequence[str], *, after: int | str | None = None, only: str = ""
    ) -> Iterator[list[dict[str, Any]]]:
        return pages(
            self.client,
            self.collection,
            self.primary,
            fields,
            after=after,
            filter=both(only, self.filter),
            partition=self.partition,
            timeout=self.timeout,
        )

    def _page(self, rows: list[dict[str, Any]]) -> Page:
        ids = as_ids([row[self.primary] for row in rows], self.are_strings)
        return Page(ids, self._vectors([row[self.field] for row in rows]), rows)

    def _vectors(self, values: list[Any]) -> npt.NDArray[np.float32]:
        if self._type == DataType.FLOAT_VECTOR:
            return np.array(values, dtype=np.float32)
        # One bytes object, or a list of one, by version of pymilvus.
        raw = b"".join(value[0] if isinstance(value, list) else value for value in values)
        shape = (len(values), self.dim)
        if self._type == DataType.FLOAT16_VECTOR:
            return np.frombuffer(raw, dtype=np.float16).reshape(shape).astype(np.float32)
        # bfloat16 is the upper half of float32.
        upper = np.frombuffer(raw, dtype=np.uint16).reshape(shape).astype(np.uint32)
        return (upper << 16).view(np.float32)


def _dense_field(described: dict[str, Any], wanted: str | None) -> str:
    name = described["collection_name"]
    types: dict[str, int] = {field["name"]: field["type"] for field in described["fields"]}
    dense = [field for field, kind in types.items() if kind in _DENSE]
    if wanted is None:
        if len(dense) != 1:
            msg = f"collection {name!r} has {len(dense)} dense fields ({', '.join(dense)}); name one"
            raise InputError(msg)
        return dense[0]
    if wanted not in types:
        msg = f"collection {name!r} has no field {wanted!r}; its dense fields: {', '.join(dense) or 'none'}"
        raise InputError(msg)
    if wanted not in dense:
        kind = DataType(types[wanted]).name
        msg = f"field {wanted!r} of {name!r} is {kind}, not a dense vector of floating point"
        raise InputError(msg)
    return wanted
