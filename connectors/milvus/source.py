"""Dense vectors of a Milvus collection, read in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient

from compressae_index.arrays import IdArray
from compressae_index.coding.metric import Metric
from compressae_index.connectors.milvus.client import TIMEOUT, ConsistencyLevel
from compressae_index.connectors.milvus.collection import PAGE_ROWS, Collection
from compressae_index.connectors.milvus.expressions import both, literal
from compressae_index.connectors.milvus.schema import Schema
from compressae_index.errors import BackendError, InputError
from compressae_index.sources.base import bounds

# By Milvus's names.
METRICS_OF: dict[str, Metric] = {"COSINE": "cosine", "IP": "inner_product", "L2": "l2"}

_DENSE = (DataType.FLOAT_VECTOR, DataType.FLOAT16_VECTOR, DataType.BFLOAT16_VECTOR)


class Page(NamedTuple):
    """Some rows of a collection, in the order of their ids."""

    ids: IdArray
    vectors: npt.NDArray[Any]
    """(m, d) float32."""
    rows: list[dict[str, Any]]
    """The rows as Milvus returned them, with the requested fields."""

    @classmethod
    def joined(cls, pages: Sequence[Page]) -> Page:
        """Joins at least one page to one."""
        return cls(
            np.concatenate([page.ids for page in pages]),
            np.concatenate([page.vectors for page in pages]),
            [row for page in pages for row in page.rows],
        )


class MilvusSource:
    """The dense vectors of a collection in the order of their ids, to slice like an array.

    It is a source for `CompressedIndex.build` and `train`: `CompressedIndex.build(source, source.ids)`. Ids
    are listed once, when they are first needed, and slices are read by them. So rows that are written later
    are not seen, and a row that is deleted later is an error. Memory holds the ids and one slice at a time.
    The collection is loaded if it was not, and otherwise never changed.
    """

    is_searched = True
    """Whether Milvus can search these vectors themselves."""

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
        """Checks the collection; nothing is read yet.

        Args:
            client: a client made by `connect`.
            collection: its name.
            vector_field: the dense field; needed if there are several.
            filter: a Milvus expression; only rows that satisfy it.
            partition: only this partition; all if empty.
            timeout: seconds for each request.

        Raises:
            InputError: no such collection, field or partition, several dense fields and none named, a field
                that is not dense and floating point, or a primary key that no expression can hold.
        """
        self._collection = Collection(client, collection, timeout)
        schema = self.schema()
        self.filter = filter
        self.partition = partition
        self.field = _dense_field(schema, vector_field)
        self._read = [self.field]
        self.key = schema.key()
        self.dim = schema.dim(self.field)
        self._kind = schema.kind(self.field)
        self._collection.check_partitions([partition] if partition else [])
        self._collection.load()

    @classmethod
    def again(cls, client: MilvusClient, origin: Mapping[str, str], timeout: float) -> MilvusSource:
        """The source of an `origin`; errors as for a new one."""
        field, expression = origin["vector_field"], origin["filter"]
        return cls(client, origin["collection"], vector_field=field, filter=expression, timeout=timeout)

    @property
    def client(self) -> MilvusClient:
        """The client that reads it."""
        return self._collection.client

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self._collection.name

    @property
    def origin(self) -> dict[str, str]:
        """The rows, as the manifest of what is made of them says."""
        return {"collection": self.collection, "vector_field": self.field, "filter": self.filter}

    def schema(self) -> Schema:
        """The fields that the collection has now.

        Raises:
            InputError: there is no such collection.
        """
        return self._collection.schema()

    def metric(self) -> Metric:
        """The metric by which the dense field is searched.

        Raises:
            InputError: it is neither cosine, the inner product nor the Euclidean distance.
        """
        client, timeout = self.client, self._collection.timeout
        with self._collection.doing("reading the index of"):
            index = client.describe_index(self.collection, self.field, timeout=timeout) or {}
        name = str(index.get("metric_type", "COSINE"))
        if name not in METRICS_OF:
            msg = f"field {self.field!r} of {self.collection!r} is searched by {name}, unlike any codes"
            raise InputError(msg)
        return METRICS_OF[name]

    def partitions(self) -> list[str]:
        """Names of the partitions that the collection has now."""
        return self._collection.partitions()

    def part(self, partition: str) -> MilvusSource:
        """The same rows, but of one partition only, or of all if empty; their ids are listed anew."""
        return MilvusSource(
            self._collection.client,
            self.collection,
            vector_field=self.field,
            filter=self.filter,
            partition=partition,
            timeout=self._collection.timeout,
        )

    @cached_property
    def ids(self) -> IdArray:
        """Ids of the rows, ascending: int64 or str objects.

        Raises:
            BackendError: reading failed.
        """
        return self._collection.ids(self.key, filter=self.filter, partition=self.partition)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return (len(self.ids), self.dim)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Vectors (m, d) float32 of a slice of rows with step 1.

        Raises:
            InputError: the slice has a step.
            BackendError: reading failed, or rows were deleted since their ids were listed.
        """
        start, stop = bounds(rows, len(self))
        if start == stop:
            return np.empty((0, self.dim), dtype=np.float32)
        wanted = self.ids[start:stop]
        low, high = (
            f"{self.key.name} {sign} {literal(id_)}"
            for sign, id_ in ((">=", wanted.tolist()[0]), ("<=", wanted.tolist()[-1]))
        )
        read = [self._page(page) for page in self._pages(self._read, only=both(low, high))]
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
        """All rows, page by page, with more fields; those after an id if it is given."""
        return (self._page(page) for page in self._pages([*self._read, *fields], after=after))

    def select(
        self, ids: IdArray, fields: Sequence[str] = (), *, consistency_level: ConsistencyLevel = "Strong"
    ) -> Iterator[Page]:
        """The rows of ids that are held, page by page and in no order, with more fields."""
        for first in range(0, len(ids), PAGE_ROWS):
            found = self._collection.rows_of(
                self.key,
                ids[first : first + PAGE_ROWS],
                [*self._read, *fields],
                filter=self.filter,
                partition=self.partition,
                consistency_level=consistency_level,
            )
            if found:
                yield self._page(list(found.values()))

    def nearest(self, queries: npt.NDArray[Any], k: int) -> Sequence[Any]:
        """Hits of pymilvus: the k nearest rows of each query by the collection's own index."""
        with self._collection.doing("searching"):
            hits: Sequence[Any] = self._collection.client.search(
                self.collection,
                data=list(queries),
                anns_field=self.field,
                limit=k,
                filter=self.filter,
                consistency_level="Strong",
                timeout=self._collection.timeout,
            )
        return hits

    def _pages(
        self, fields: Sequence[str], *, after: int | str | None = None, only: str = ""
    ) -> Iterator[list[dict[str, Any]]]:
        return self._collection.pages(
            self.key, fields, after=after, filter=both(only, self.filter), partition=self.partition
        )

    def _page(self, rows: list[dict[str, Any]]) -> Page:
        ids = self.key.array([row[self.key.name] for row in rows])
        return Page(ids, self._vectors([row[self.field] for row in rows]), rows)

    def _vectors(self, values: list[Any]) -> npt.NDArray[np.float32]:
        if self._kind == DataType.FLOAT_VECTOR:
            self._check_size(sum(map(len, values)), len(values) * self.dim)
            return np.array(values, dtype=np.float32)
        # One bytes object, or a list of one, by version of pymilvus.
        raw = b"".join(value[0] if isinstance(value, list) else value for value in values)
        shape = (len(values), self.dim)
        self._check_size(len(raw), 2 * len(values) * self.dim)
        if self._kind == DataType.FLOAT16_VECTOR:
            return np.frombuffer(raw, dtype=np.float16).reshape(shape).astype(np.float32)
        # bfloat16 is the upper half of float32.
        upper = np.frombuffer(raw, dtype=np.uint16).reshape(shape).astype(np.uint32)
        return (upper << 16).view(np.float32)

    def _check_size(self, size: int, expected: int) -> None:
        if size != expected:
            msg = (
                f"field {self.field!r} of {self.collection!r} no longer has dimension {self.dim}: the "
                "collection was made anew"
            )
            raise BackendError(msg)


def _dense_field(schema: Schema, wanted: str | None) -> str:
    name = schema.collection
    dense = [field for field in schema.fields if schema.kind(field) in _DENSE]
    if wanted is None:
        if len(dense) != 1:
            msg = f"collection {name!r} has {len(dense)} dense fields ({', '.join(dense)}); name one"
            raise InputError(msg)
        return dense[0]
    if wanted not in schema.fields:
        msg = f"collection {name!r} has no field {wanted!r}; its dense fields: {', '.join(dense) or 'none'}"
        raise InputError(msg)
    if wanted not in dense:
        kind = schema.kind(wanted).name
        msg = f"field {wanted!r} of {name!r} is {kind}, not a dense vector of floating point"
        raise InputError(msg)
    return wanted
