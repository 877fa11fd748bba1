"""Codes in the rows of a dense collection itself, next to their vectors.

Milvus 2.6.18 and later add fields to a collection that exists, `compressae_code` and `compressae_digest`,
null in all rows. An import fills them by partial upserts. A row that the user replaces has null there again,
and is not found until the next `sync`. The digest is of the vector and of how it was encoded, so that codes
of another model are replaced. The model is in items_building_model until all rows have codes, and in
items_model then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from pymilvus import DataType

from compressae_index.coding.chunks import Encoded
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.client import check_adds_vectors
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import CODE_FIELD, DIGEST_FIELD, index_of_codes
from compressae_index.connectors.milvus.copier import Changes, Copier
from compressae_index.connectors.milvus.source import MilvusSource, Page
from compressae_index.errors import BackendError, InputError

_FIELDS = {CODE_FIELD: DataType.SPARSE_FLOAT_VECTOR, DIGEST_FIELD: DataType.INT64}
# How often rows are written again without those that were deleted meanwhile.
_TRIES = 3


def check_in_place(source: MilvusSource) -> None:
    """Checks that the source can hold codes of its rows.

    Raises:
        InputError: it has a field of the name but of another type, Milvus cannot add fields, or it gives rows
            ids of its own, and so would give new ones to rows that get codes.
    """
    schema = source.schema()
    if schema.fields[source.key.name].get("auto_id"):
        msg = (
            f"Milvus makes the ids of collection {source.collection!r} (auto_id), and would make new ones "
            "for rows that get codes: leave in_place out"
        )
        raise InputError(msg)
    for name, kind in _FIELDS.items():
        if name in schema.fields and schema.kind(name) != kind:
            msg = f"field {name!r} of {source.collection!r} is {schema.kind(name).name}, not {kind.name}"
            raise InputError(msg)
    if not _FIELDS.keys() <= schema.fields.keys():
        check_adds_vectors(source.client)


def has_codes(source: MilvusSource) -> bool:
    """Whether the source has the fields of codes."""
    return _FIELDS.keys() <= source.schema().fields.keys()


class Filler(Copier):
    """Writes codes into the rows of their vectors."""

    def __init__(self, source: MilvusSource, backend: MilvusBackend, model: CompresSAE, threads: int) -> None:
        """From parts that belong together."""
        self.left_out: list[str] = []
        self._source = source
        self.backend = backend
        self.model = model
        self._threads = threads
        manifest = backend.manifest
        made_by = (manifest.fingerprint, manifest.k, manifest.encoder, manifest.metric, manifest.height)
        self._made_by = repr(made_by).encode()

    def create(self, target: Collection, algorithm: str | None) -> None:
        """Adds the fields of codes and their index, or what is missing of these after a stop.

        Args:
            target: the dense collection.
            algorithm: inverted_index_algo of Milvus; the server's own choice by default.

        Raises:
            BackendError: Milvus refused.
        """
        held = target.schema().fields
        for name, kind in _FIELDS.items():
            if name not in held:
                target.add_field(name, kind)
        if CODE_FIELD not in target.indexed():
            target.index(index_of_codes(target.client, algorithm))
        target.load()

    def take_over(self, compare: bool, advance: Callable[[int], object]) -> Changes:  # noqa: ARG002
        """Writes codes of rows that have none, or of another vector or model. Reads all rows in any case."""
        total = Changes()
        for partition in self._partitions():
            for page in self._source.part(partition).stream([DIGEST_FIELD]):
                total = total.plus(self._filled(page, partition))
                advance(len(page.ids))
        return total

    def _partitions(self) -> list[str]:
        """Partitions to go through one by one; one without a name if there is no choice of them."""
        fields, names = self._source.schema().fields, self._source.partitions()
        if len(names) == 1 or any(field.get("is_partition_key") for field in fields.values()):
            return [""]
        return names

    def _filled(self, page: Page, partition: str) -> Changes:
        old = np.array([row[DIGEST_FIELD] or 0 for row in page.rows], np.int64)
        rows = np.flatnonzero(old != self._digests(page))
        if not len(rows):
            return Changes(kept=len(page.ids))
        some = Page(page.ids[rows], page.vectors[rows], [page.rows[row] for row in rows.tolist()])
        self._store(some, self._encoded(some), partition)
        added = int((old[rows] == 0).sum())
        return Changes(added=added, changed=len(rows) - added, kept=len(page.ids) - len(rows))

    def _digests(self, page: Page) -> npt.NDArray[np.int64]:
        digests = np.empty(len(page.ids), np.int64)
        for number, vector in enumerate(page.vectors):
            digest = hashlib.blake2b(vector.tobytes() + self._made_by, digest_size=8).digest()
            digests[number] = int.from_bytes(digest, "little", signed=True) or 1
        return digests

    def _store(self, page: Page, encoded: Encoded, partition: str) -> None:
        """Writes codes; rows that were deleted since they were read cannot take any, and hold up others."""
        ids, codes, digests = page.ids, encoded.codes, self._digests(page)
        collection, key = self.backend.collection, self.backend.key
        for tries in range(_TRIES):
            try:
                self.backend.put(codes, ids, digests=digests, partition=partition)
            except BackendError:
                there = collection.rows_of(key, ids, [])
                held = np.array([id_ in there for id_ in ids.tolist()], dtype=bool)
                if held.all() or tries == _TRIES - 1:
                    raise
                ids, codes, digests = ids[held], codes[np.flatnonzero(held)], digests[held]
                if len(ids):
                    continue
            return
