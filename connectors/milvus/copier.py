"""Rows of a dense collection copied to a compressed one, and kept the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import BoolArray, IdArray, RowArray
from compressae_index.coding.chunks import Encoded, encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.backend import REQUEST_ROWS, MilvusBackend, check_codes
from compressae_index.connectors.milvus.collection import LISTED_ROWS, Collection
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    DIGEST_FIELD,
    OWN_FIELDS,
    Layout,
    create_rows,
    is_whole,
    vectors_of,
)
from compressae_index.connectors.milvus.manifest import made_meanwhile
from compressae_index.connectors.milvus.source import MilvusSource, Page
from compressae_index.errors import BackendError, InputError
from compressae_index.progress import track
from compressae_index.search.backend import with_norms

# Rows whose stored codes are compared with new ones.
SAMPLE_ROWS = 100
# Share of rows of the sample whose codes may differ: rounding can break a tie of two latents otherwise.
_DIFFERING = 0.05
# How often an import reads the source, as long as it changes.
_ROUNDS = 3
# Share of a code's largest value by which rounding may change another when vectors are encoded again.
_ROUNDING = 1e-5


class Changes(NamedTuple):
    """Numbers of rows."""

    removed: int = 0
    added: int = 0
    changed: int = 0
    kept: int = 0

    @property
    def written(self) -> int:
        """Those that were not right."""
        return self.removed + self.added + self.changed

    def plus(self, other: Changes) -> Changes:
        """Both together."""
        return Changes(*(one + another for one, another in zip(self, other, strict=True)))


class Listed(NamedTuple):
    """Rows of a copy in the order of their ids."""

    ids: IdArray
    digests: npt.NDArray[np.int64] | None
    """0 for rows that are not from the source; None if the copy has no digests."""

    def part(self, start: int, stop: int) -> Listed:
        """Some of them."""
        return Listed(self.ids[start:stop], None if self.digests is None else self.digests[start:stop])


class Copier:
    """Copies rows of a dense collection to a compressed one."""

    def __init__(self, source: MilvusSource, backend: MilvusBackend, model: CompresSAE, threads: int) -> None:
        """From parts that belong together; the fields to copy are those that the source has now."""
        schema = source.schema()
        self._layout = Layout.copied(schema)
        self.left_out = vectors_of(schema)
        self._dropped = {source.key.name, source.field, *self.left_out}
        # Fields beyond the schema come with all fields only.
        self._fields = ["*"] if self._layout.is_dynamic else [field.name for field in self._layout.scalars]
        self._source = source
        self.backend = backend
        self.model = model
        self._threads = threads

    def create(self, target: Collection, algorithm: str | None) -> None:
        """Creates the compressed collection, or what is missing of it after a stop.

        Args:
            target: the name that it gets at the end.
            algorithm: inverted_index_algo of Milvus; the server's own choice by default.

        Raises:
            BackendError: another import to this target ended meanwhile; or Milvus refused.
        """
        copy, manifest = self.backend.collection, self.backend.manifest
        exists = copy.exists()
        if target.exists():
            raise made_meanwhile(target.name)
        if exists and not (self._layout.fits(copy.schema()) and is_whole(copy, manifest)):
            copy.drop()
            exists = False
        if not exists:
            create_rows(copy, manifest, self._layout, algorithm=algorithm)
        copy.load()

    def check_first(self) -> None:
        """Checks that the first rows can be copied, before anything is made for them.

        Raises:
            InputError: bad rows, or codes that Milvus does not store.
        """
        for page in self._source.stream():
            check_codes(self.backend.to_wire(self._encoded(page).codes), page.ids)
            return

    def fill(self, progress: bool, *, settle: bool = True) -> int:
        """Makes the copy equal to the source; returns the number of rows that were right already.

        Args:
            progress: show progress bars.
            settle: pass over the source again until nothing has changed since it was read, a few times at
                most; what changes still is left to `sync`.

        Raises:
            BackendError: it has other rows in the end, as something else writes to it.
        """
        resumed = sent = held = 0
        for number in range(_ROUNDS):
            what = "checking" if number else "importing"
            with track(len(self._source), what, enabled=progress) as advance:
                changes = self.take_over(True, advance)
            resumed = resumed if number else changes.kept
            sent = changes.kept + changes.added + changes.changed
            held = len(self.backend)
            if held == sent and not (settle and changes.written):
                return resumed
        if held == sent:
            return resumed
        msg = (
            f"collection {self.backend.collection.name!r} holds {held} rows after {sent} were sent, "
            f"{_ROUNDS} times: something else writes to it; stop that and run the import again"
        )
        raise BackendError(msg)

    def take_over(self, compare: bool, advance: Callable[[int], object]) -> Changes:
        """Removes rows that the source does not hold, and writes those that the copy lacks.

        Args:
            compare: read the whole source, and also write rows that differ.
            advance: called with numbers of rows.
        """
        total, parts = Changes(), self._parts()
        # All removals come first: a row may have gone from one partition to another. Of one partition, those
        # that read all rows find them on their way, without more lists of ids.
        for name, source in parts if len(parts) > 1 or not compare else []:
            own = self._held(name)
            surplus = np.setdiff1d(own, source.ids if source is not None and len(own) else own[:0])
            self.backend.remove(surplus, partition=name)
            total = total.plus(Changes(removed=len(surplus)))
        for name, source in parts:
            if source is not None:
                part = (self._compared if compare else self._filled_up)(source, name, advance)
                total = total.plus(part)
        return total

    def _held(self, partition: str) -> IdArray:
        """Ids of the copy, ascending."""
        return self.backend.collection.ids(self.backend.key, partition=partition)

    def _listed(self, partition: str) -> Listed:
        """Ids of the copy, ascending, with digests where there are any."""
        if not self.backend.manifest.digests:
            return Listed(self._held(partition), None)
        key, collection = self.backend.key, self.backend.collection
        pages = collection.pages(key, [DIGEST_FIELD], partition=partition, page_rows=LISTED_ROWS)
        ids, digests = [key.array([])], [np.empty(0, np.int64)]
        for page in pages:
            ids.append(key.array([row[key.name] for row in page]))
            digests.append(np.array([row[DIGEST_FIELD] or 0 for row in page], np.int64))
        listed: Any = np.concatenate(ids)
        return Listed(listed, np.concatenate(digests))

    def _filled_up(self, source: MilvusSource, partition: str, advance: Callable[[int], object]) -> Changes:
        """Writes the rows of a partition whose ids the copy lacks."""
        own = self._held(partition)
        missing, written = np.setdiff1d(source.ids, own), 0
        advance(len(own))
        for first in range(0, len(missing), REQUEST_ROWS):
            pages = list(source.select(missing[first : first + REQUEST_ROWS], self._fields))
            if pages:
                page = Page.joined(pages)
                self._store(page, self._encoded(page), partition)
                written += len(page.ids)
                advance(len(page.ids))
        return Changes(added=written, kept=len(own))

    def _compared(self, source: MilvusSource, partition: str, advance: Callable[[int], object]) -> Changes:
        """Reads all rows of a partition, and writes those that are missing or differ."""
        own, seen, total = self._listed(partition), 0, Changes()
        for page in source.stream(self._fields):
            end = int(np.searchsorted(own.ids, page.ids[-1], side="right"))
            held = own.part(seen, end)
            gone = np.setdiff1d(held.ids, page.ids)  # deleted since the removals of `take_over`
            self.backend.remove(gone, partition=partition)
            total = total.plus(self._level(page, held, partition)._replace(removed=len(gone)))
            seen = end
            advance(len(page.ids))
        self.backend.remove(own.ids[seen:], partition=partition)
        return total.plus(Changes(removed=len(own.ids) - seen))

    def _level(self, page: Page, held: Listed, partition: str) -> Changes:
        """Writes the rows of a page that the copy lacks or that differ in it."""
        is_new = ~np.isin(page.ids, held.ids)
        wanted, both = is_new.copy(), np.flatnonzero(~is_new)
        encoded = None if held.digests is not None else self._encoded(page)
        if held.digests is not None:
            old = held.digests[np.searchsorted(held.ids, page.ids[both])]
            wanted[both] = old != self._digests(page)[both]
        elif len(both) and encoded is not None:
            fields = ["*"] if self._layout.is_dynamic else [*self._fields, CODE_FIELD]
            stored = self.backend.rows_held(page.ids[both], fields)
            wanted[both] = self._differs(page, encoded.codes, both, stored)
        rows = np.flatnonzero(wanted)
        if len(rows):
            some = Page(page.ids[rows], page.vectors[rows], [page.rows[row] for row in rows.tolist()])
            self._store(some, self._encoded(some) if encoded is None else _rows_of(encoded, rows), partition)
        added = int(is_new.sum())
        return Changes(added=added, changed=len(rows) - added, kept=len(page.ids) - len(rows))

    def _digests(self, page: Page) -> npt.NDArray[np.int64]:
        """Digests (m,) of the vectors and copied fields of a page's rows; none is 0."""
        digests = np.empty(len(page.ids), np.int64)
        for number, (vector, row) in enumerate(zip(page.vectors, page.rows, strict=True)):
            fields = json.dumps(self._others(row), sort_keys=True, default=str)
            digest = hashlib.blake2b(vector.tobytes() + fields.encode(), digest_size=8).digest()
            digests[number] = int.from_bytes(digest, "little", signed=True) or 1
        return digests

    def _differs(
        self, page: Page, codes: SparseCodes, rows: Any, stored: Mapping[int | str, dict[str, Any]]
    ) -> BoolArray:
        """Which of the rows of a page are stored with other values, or not any more.

        Of what is made of a vector, codes are compared alone: they change with it.
        """
        ids = page.ids.tolist()
        differs = np.array([ids[row] not in stored for row in rows.tolist()], dtype=bool)
        held = rows[~differs]
        if not len(held):
            return differs
        own = {self._source.key.name, *OWN_FIELDS}
        others = [stored[ids[row]] for row in held.tolist()]
        fields = [
            {name: row[name] for name in row.keys() - own} != self._others(page.rows[number])
            for row, number in zip(others, held.tolist(), strict=True)
        ]
        backend = self.backend
        old = backend.codes_of(others)
        largest = np.abs(codes.values[held]).max(axis=1)
        change = abs(codes[held].to_csr() - old.to_csr()).max(axis=1).toarray().ravel()
        differs[~differs] = np.array(fields, dtype=bool) | (change > _ROUNDING * largest)
        return differs

    def _parts(self) -> list[tuple[str, MilvusSource | None]]:
        """Partitions to copy one by one, with the source of each; None if the source has lost it.

        One part without a name if there is one partition only, or if Milvus assigns rows by a key. Creates
        partitions that the copy lacks.
        """
        if self._layout.has_partition_key:
            return [("", self._source.part(""))]
        copy = self.backend.collection
        theirs, own = self._source.partitions(), copy.partitions()
        if len({*theirs, *own}) == 1:
            return [("", self._source.part(""))]
        for name in theirs:
            if name not in own:
                copy.create_partition(name)
        return [
            (name, self._source.part(name) if name in theirs else None) for name in sorted({*theirs, *own})
        ]

    def _encoded(self, page: Page) -> Encoded:
        """Codes and rows of a page, times the norms that the metric keeps."""
        manifest = self.backend.manifest
        try:
            chunks: Iterable[Encoded] = encoded_chunks(
                self.model,
                page.vectors,
                manifest.k,
                manifest.encoder,
                self._threads,
                scale=manifest.scale(),
                residual_bits=manifest.residual_bits,
            )
            if manifest.norms:
                chunks = with_norms(chunks)
            codes, rows = zip(*chunks, strict=True)
            return Encoded(SparseCodes.concatenate(codes), np.concatenate(rows))
        except InputError as error:
            first, last = page.ids.tolist()[0], page.ids.tolist()[-1]
            msg = f"collection {self._source.collection!r}, rows of ids {first!r} to {last!r}: {error}"
            raise InputError(msg) from error

    def _store(self, page: Page, encoded: Encoded, partition: str) -> None:
        others = [self._others(row) for row in page.rows]
        digests = self._digests(page) if self.backend.manifest.digests else None
        self.backend.put(
            encoded.codes, page.ids, others, vectors=encoded.rows, digests=digests, partition=partition
        )

    def _others(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row of the source to copy.

        Raises:
            InputError: a dynamic field has a name that is used here.
        """
        others = {name: row[name] for name in row.keys() - self._dropped}
        if taken := others.keys() & OWN_FIELDS.keys():
            msg = (
                f"the row of id {row[self._source.key.name]!r} has a field {min(taken)!r}, which "
                "compressae-index uses itself; rename it in the source"
            )
            raise InputError(msg)
        return others

    def check(self) -> IdArray:
        """Compares a sample of stored codes with new ones; returns the ids of the sample.

        Raises:
            BackendError: more than a few differ.
        """
        rng = np.random.default_rng(0)
        ids = self._source.ids[np.sort(rng.permutation(len(self._source))[:SAMPLE_ROWS])]
        ids = ids[self.backend.held(ids)]  # others were inserted after they were copied
        for page in self._source.select(ids):
            fresh, stored = self._encoded(page).codes, self.backend.codes(page.ids)
            largest = np.maximum(np.abs(fresh.values).max(axis=1, keepdims=True), 1)
            differ = (np.abs(fresh.to_dense() - stored.to_dense()) > 1e-3 * largest).any(axis=1)
            if differ.mean() > _DIFFERING:
                msg = (
                    f"codes in collection {self.backend.collection.name!r} are not those of their vectors "
                    f"({int(differ.sum())} of {len(differ)}, such as id {page.ids[differ].tolist()[0]!r}): "
                    "rows of the source were replaced, or something else wrote to the copy; `sync` with "
                    "compare=True takes them over"
                )
                raise BackendError(msg)
        return ids


def _rows_of(encoded: Encoded, rows: RowArray) -> Encoded:
    assert encoded.rows is not None
    return Encoded(encoded.codes[rows], encoded.rows[rows])
