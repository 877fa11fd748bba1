"""The vectors of a compressed collection as a source, for one that is coded anew from them."""

from __future__ import annotations

from typing import Any

from compressae_index.coding.metric import Metric
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.compressed import CODE_FIELD, ORIGINAL_FIELD, OWN_FIELDS
from compressae_index.connectors.milvus.schema import Schema
from compressae_index.connectors.milvus.source import MilvusSource, Page


class StoredVectors(MilvusSource):
    """The vectors of a compressed collection as it knows them: original ones, or reconstructions."""

    is_searched = False

    def __init__(self, backend: MilvusBackend, partition: str = "") -> None:
        """Reads nothing yet.

        Args:
            backend: the collection.
            partition: only this one; all if empty.
        """
        self._backend = backend
        self._collection = backend.collection
        self.filter, self.partition = "", partition
        self.key, self.dim = backend.key, backend.manifest.dim
        originals = backend.manifest.own_originals
        self.field = ORIGINAL_FIELD if originals else CODE_FIELD
        self._kind = self._collection.schema().kind(self.field)
        self._read = [ORIGINAL_FIELD] if originals else backend.coded_fields
        self._center = backend.model.center

    @property
    def origin(self) -> dict[str, str]:
        """Nothing: what is made of these vectors stands for itself."""
        return {}

    def schema(self) -> Schema:
        """The fields of the collection, of which the codes are the only own ones."""
        schema = self._collection.schema()
        for name in OWN_FIELDS.keys() - {self.field}:
            schema.fields.pop(name, None)
        return schema

    def metric(self) -> Metric:
        """The metric of the codes."""
        return self._backend.manifest.metric

    def part(self, partition: str) -> StoredVectors:
        """The same, but of one partition only, or of all if empty; ids are listed anew."""
        return StoredVectors(self._backend, partition)

    def _page(self, rows: list[dict[str, Any]]) -> Page:
        if self.field == ORIGINAL_FIELD:
            vectors = self._vectors([row[ORIGINAL_FIELD] for row in rows])
        else:
            vectors = self._backend.reconstructed_of(rows)
        others = [{name: row[name] for name in row.keys() - OWN_FIELDS.keys()} for row in rows]
        ids = self.key.array([row[self.key.name] for row in rows])
        return Page(ids, vectors if self._center is None else vectors + self._center, others)
