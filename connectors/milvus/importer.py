"""A compressed collection made of a dense one, and kept in step with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pymilvus import MilvusClient

from compressae_index.arrays import BoolArray, IdArray
from compressae_index.building.training import ModelSource
from compressae_index.checks import check_threads
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import Metric, RowScale
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.connectors.milvus import wire
from compressae_index.connectors.milvus.backend import REQUEST_ROWS, MilvusBackend, check_codes
from compressae_index.connectors.milvus.client import (
    TIMEOUT,
    describe,
    ensure_loaded,
    listed_ids,
    reading_client,
)
from compressae_index.connectors.milvus.collection import (
    BUILDING_SUFFIX,
    CODE_FIELD,
    DENSE_FIELD,
    MODEL_SUFFIX,
    Dense,
    Manifest,
    Opened,
    check_dense,
    check_name,
    check_schema,
    copied_fields,
    create_collection,
    is_whole,
    load_manifest,
    load_model,
    made_meanwhile,
    max_length_of,
    publish,
    save_model,
)
from compressae_index.connectors.milvus.errors import translated
from compressae_index.connectors.milvus.index import MilvusIndex, manifest_of
from compressae_index.connectors.milvus.source import MilvusSource, Page
from compressae_index.errors import BackendError, DimensionError, FormatError, InputError
from compressae_index.progress import track

if TYPE_CHECKING:
    from compressae_index.training import TrainConfig

SUFFIX = "_compressed"
# Rows whose stored codes are compared with new ones, and rows that serve as queries.
SAMPLE_ROWS = 100
# How often an import looks again for what changed in the source while it read it.
_ROUNDS = 3
# Share of a code's largest value by which rounding may change another when vectors are encoded again.
_ROUNDING = 1e-5


class ImportReport(NamedTuple):
    """What an import did and what came of it."""

    collection: str
    vectors: int
    resumed: int
    """Vectors that were there already, from an import that was stopped, or a finished one."""
    left_out: list[str]
    """Fields of the source that were not copied: its vectors."""
    seconds: dict[str, float]
    """By phase: list, train, write, flush, verify, measure."""
    bytes_before: int
    """Of the dense vectors, 4 bytes a number, without their index."""
    bytes_after: int
    """Of codes as postings, 8 bytes a nonzero, and of the reconstructed field."""
    recall: dict[int, float]
    """recall@k of "two_stage" against the source's own search, over rows as queries, themselves left out."""


class Imported(NamedTuple):
    """A compressed collection, and how it was made."""

    compressed: MilvusIndex
    report: ImportReport


class SyncReport(NamedTuple):
    """What was taken over from the source."""

    added: int
    removed: int
    vectors: int
    """In the compressed collection now."""


def from_milvus(
    client: MilvusClient | str | os.PathLike[str],
    collection: str,
    *,
    target: str | None = None,
    vector_field: str | None = None,
    filter: str = "",  # noqa: A002
    model: CompresSAE | str | Path | None = None,
    k: int | None = None,
    n_latents: int | None = None,
    encoder: Encoder = "pursuit",
    metric: Metric | None = None,
    config: TrainConfig | None = None,
    dense: Dense | None = None,
    algorithm: str | None = None,
    token: str = "",
    db_name: str = "",
    num_threads: int | None = None,
    timeout: float = TIMEOUT,
    progress: bool = True,
) -> Imported:
    """Makes a compressed collection of a dense one: same ids, scalar and dynamic fields, and partitions.

    It is built under the name target + "_building", verified, and then renamed, so that the target is whole
    or not there. Stopped and run again with the same arguments, it goes on: it reads the source anew and
    writes what is missing or differs, so that rows that were deleted, changed or inserted since are taken
    over too. Where it was finished, it only verifies and measures. The source is loaded if it was not, and
    otherwise not changed. Rows that are written to it meanwhile are taken over by `sync`. Of several imports
    to one target at the same time, those that began together end with an error but one; later ones help.

    Args:
        client: what `connect` gives, or a uri as it takes; a database is not made.
        collection: the dense collection.
        target: name of the compressed one; with "_compressed" after the source's by default.
        vector_field: the dense field; may be left out where there is one only.
        filter: a Milvus expression; only rows that satisfy it.
        model: a trained model or its directory; trained on the vectors by default, which needs torch.
        k: nonzeros a code; the model's, or 32, by default.
        n_latents: as for `CompressedIndex.build`.
        encoder: as for `CompressedIndex.build`.
        metric: "cosine" or "inner_product"; by default as the source's index has it.
        config: settings of the training.
        dense: type of a field for the reconstructed vectors, which modes "dense" and "hybrid" need; none by
            default. Milvus Lite has float32 only.
        algorithm: inverted_index_algo of Milvus; the server's own choice by default.
        token: for a uri: "user:password" or an API key.
        db_name: for a uri: the database.
        num_threads: threads to encode with; all by default.
        timeout: seconds for each request, retries included.
        progress: show progress bars.

    Returns:
        The index and the report.

    Raises:
        InputError: no such collection or field, a taken or bad name, bad rows, options out of range, a
            primary key that no expression can hold, the id -1.
        FormatError: an import to this target was begun with other settings.
        BackendError: Milvus does not answer or refuses, or what was stored is not what was sent.
    """
    target = check_name(f"{collection}{SUFFIX}" if target is None else target)
    threads = check_threads(num_threads)
    client = reading_client(client, collection, token=token, db_name=db_name, timeout=timeout)
    check_dense(client, dense)
    source = MilvusSource(client, collection, vector_field=vector_field, filter=filter, timeout=timeout)
    origin = {"collection": collection, "vector_field": source.field, "filter": filter}
    metric = _metric_of(source) if metric is None else metric
    given = CompresSAE.load(model) if isinstance(model, (str, os.PathLike)) else model
    if given is not None:
        ModelSource.checked(given, k=k, n_latents=n_latents, config=config, metric=metric)
        if given.dim != source.dim:
            msg = f"field {source.field!r} has dimension {source.dim}, the model {given.dim}"
            raise DimensionError(msg)
    clock = _Clock()
    begun, finished = _begun(client, target, origin, source.dim, timeout)
    with clock("list"):
        if not len(source):
            msg = f"collection {collection!r} has no rows to import"
            raise InputError(msg)
    _check_source(source)
    if begun is None:
        with clock("train"):
            chosen = ModelSource.checked(given, k=k, n_latents=n_latents, config=config, metric=metric)
            trained = chosen.model_for(source, k, progress=progress)
        manifest = manifest_of(trained, k=k, encoder=encoder, metric=metric, dense=dense, source=origin)
    else:
        manifest = begun
        wanted = {"k": k, "n_latents": n_latents, "encoder": encoder, "metric": metric, "dense": dense}
        _check_same(target, manifest, wanted)
        trained = load_model(client, target, manifest, given, timeout)
    name = target if finished else target + BUILDING_SUFFIX
    longest = max_length_of(describe(client, collection, timeout))
    opened = Opened(name, manifest, source.primary, source.are_strings, longest)
    backend = MilvusBackend(client, opened, trained, timeout=timeout)
    copier = _Copier(source, backend, trained, threads)
    if begun is None:
        copier.check_first()
        save_model(client, target, trained, manifest, timeout)
    if finished:
        ensure_loaded(client, name, timeout)
        resumed = len(backend)
    else:
        copier.create(target, algorithm)
        with clock("write"):
            resumed = copier.fill(progress)
        with clock("flush"), translated(f"flushing collection {name!r}"):
            client.flush(name, timeout=timeout)
    with clock("verify"):
        sample = copier.check()
    if not finished:
        publish(client, target, manifest, timeout)
    index = MilvusIndex.open(client, target, model=trained, timeout=timeout)
    with clock("measure"):
        measured = _measured(source, index, sample)
    size = index.backend.nbytes
    report = ImportReport(
        collection=target,
        vectors=len(index),
        resumed=resumed,
        left_out=copier.left_out,
        seconds=clock.seconds,
        bytes_before=len(source) * source.dim * 4,
        bytes_after=size["postings"] + size.get("dense", 0),
        recall=measured,
    )
    return Imported(index, report)


def sync(
    index: MilvusIndex, *, compare: bool = False, num_threads: int | None = None, progress: bool = True
) -> SyncReport:
    """Takes over rows that were inserted into the source, or deleted, since the import.

    Ids of both collections are listed and compared, by partitions where there are several. Stopped at any
    point, it can be run again.

    Args:
        index: a collection that was made by `from_milvus`.
        compare: also read and encode the whole source, and take over rows whose vector or fields were
            replaced under the same id, which their ids do not show.
        num_threads: threads to encode with; all by default.
        progress: show a progress bar.

    Returns:
        Counts of rows; those that were replaced count as added.

    Raises:
        InputError: the index was not imported, or its source is gone, or has the id -1.
        BackendError: Milvus does not answer or refuses. Run again, it goes on.
    """
    origin = index.manifest.source
    if not origin:
        msg = (
            f"collection {index.collection!r} was not imported from another, so there is nothing to sync with"
        )
        raise InputError(msg)
    backend, threads = index.backend, check_threads(num_threads)
    source = MilvusSource(
        index.client,
        origin["collection"],
        vector_field=origin["vector_field"],
        filter=origin["filter"],
        timeout=backend.timeout,
    )
    _check_source(source)
    copier = _Copier(source, backend, index.model, threads)
    with track(len(source), "syncing", enabled=progress) as advance:
        changes = copier.take_over(compare, advance)
    if changes.written:
        index.flush()
    return SyncReport(changes.written, changes.removed, len(index))


def _check_source(source: MilvusSource) -> None:
    """Refuses what a compressed collection cannot hold, before anything is written.

    Raises:
        InputError: the id -1, by which results say that there is no neighbour; names that are used here.
    """
    if not source.are_strings and (source.ids == -1).any():
        msg = (
            f"collection {source.collection!r} has the id -1, which marks a missing neighbour in results: "
            f"give this row another id, or leave it out by filter='{source.primary} != -1'"
        )
        raise InputError(msg)
    check_schema(*copied_fields(describe(source.client, source.collection, source.timeout))[:2])


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


class _Changes(NamedTuple):
    """What a copy took over, in rows."""

    removed: int
    written: int
    kept: int


class _Copier:
    """Rows of a dense collection to rows of a compressed one."""

    def __init__(self, source: MilvusSource, backend: MilvusBackend, model: CompresSAE, threads: int) -> None:
        described = describe(source.client, source.collection, source.timeout)
        self._primary, self._scalars, self.left_out = copied_fields(described)
        self._dropped = {source.primary, source.field, *self.left_out}
        self._dynamic = bool(described.get("enable_dynamic_field"))
        self._keyed = any(field.get("is_partition_key") for field in described["fields"])
        self.source = source
        self.backend = backend
        self._model = model
        self._threads = threads
        # Fields beyond the schema come with all fields only.
        self.fields = ["*"] if self._dynamic else [field.name for field in self._scalars]

    def create(self, target: str, algorithm: str | None) -> None:
        """Creates the compressed collection, or what is missing of it after a stop.

        Raises:
            BackendError: another import of this target ended meanwhile; or Milvus refused.
        """
        client, name, timeout = self.source.client, self.backend.collection, self.source.timeout
        with translated(f"looking for collection {name!r}"):
            there = client.has_collection(name, timeout=timeout)
            finished = client.has_collection(target, timeout=timeout)
        if finished:
            raise BackendError(made_meanwhile(target))
        if there and not self._can_go_on():
            with translated(f"dropping collection {name!r}"):
                client.drop_collection(name, timeout=timeout)
            there = False
        if not there:
            create_collection(
                client,
                name,
                self.backend.manifest,
                primary=self._primary,
                fields=self._scalars,
                dynamic=self._dynamic,
                algorithm=algorithm,
                timeout=timeout,
            )
        ensure_loaded(client, name, timeout)

    def check_first(self) -> None:
        """Refuses a source whose first rows cannot be copied, before anything is made for them.

        Raises:
            InputError: bad rows, or codes that Milvus does not store.
        """
        for page in self.source.stream():
            check_codes(self.codes(page), page.ids)
            return

    def _can_go_on(self) -> bool:
        """Whether the collection has its indexes and the fields that the source has now."""
        client, name, timeout = self.source.client, self.backend.collection, self.source.timeout
        described = describe(client, name, timeout)
        primary, scalars, _ = copied_fields(described)
        same = {(each.name, each.dtype) for each in [primary, *scalars]} == {
            (each.name, each.dtype) for each in [self._primary, *self._scalars]
        }
        return (
            same
            and bool(described.get("enable_dynamic_field")) == self._dynamic
            and max_length_of(described) == self.backend.max_length
            and is_whole(client, name, self.backend.manifest, timeout)
        )

    def fill(self, progress: bool) -> int:
        """Makes the copy what the source is; gives the number of rows that were right already.

        Raises:
            BackendError: it is not so in the end, as something else writes to the copy.
        """
        resumed = 0
        for number in range(_ROUNDS):
            with track(len(self.source), "importing", enabled=progress) as advance:
                changes = self.take_over(True, advance)
            resumed = changes.kept if number == 0 else resumed
            if (there := len(self.backend)) == changes.kept + changes.written:
                return resumed
        name, sent = self.backend.collection, changes.kept + changes.written
        msg = (
            f"collection {name!r} holds {there} rows after {sent} were sent, {_ROUNDS} times: something else "
            "writes to it; stop that and run the import again"
        )
        raise BackendError(msg)

    def take_over(self, compare: bool, advance: Callable[[int], object]) -> _Changes:
        """Removes rows that the source does not hold, and writes those that are missing here.

        Args:
            compare: read the whole source, and also write rows that differ from it.
            advance: called with numbers of rows.
        """
        removed = written = kept = 0
        parts = self._parts()
        # All removals come first: a row may have gone from one partition to another.
        for name, source in parts:
            own = _ids(self.backend, name)
            surplus = np.setdiff1d(own, source.ids if source is not None and len(own) else own[:0])
            self.backend.remove(surplus, partition=name)
            removed += len(surplus)
        for name, source in parts:
            if source is None:
                continue
            part = (self._compared if compare else self._filled_up)(source, name, advance)
            removed, written, kept = removed + part.removed, written + part.written, kept + part.kept
        return _Changes(removed, written, kept)

    def _filled_up(self, source: MilvusSource, partition: str, advance: Callable[[int], object]) -> _Changes:
        """Writes the rows of a partition that are missing, as their ids say."""
        own = _ids(self.backend, partition)
        missing, written = np.setdiff1d(source.ids, own), 0
        advance(len(own))
        for first in range(0, len(missing), REQUEST_ROWS):
            pages = list(source.select(missing[first : first + REQUEST_ROWS], self.fields))
            if pages:
                page = Page.joined(pages)
                self._store(page, self.codes(page), partition)
                written += len(page.ids)
                advance(len(page.ids))
        return _Changes(0, written, len(own))

    def _compared(self, source: MilvusSource, partition: str, advance: Callable[[int], object]) -> _Changes:
        """Reads all rows of a partition, and writes those that are missing or differ."""
        own, seen = _ids(self.backend, partition), 0
        removed = written = kept = 0
        for page in source.stream(self.fields):
            end = int(np.searchsorted(own, page.ids[-1], side="right"))
            gone = np.setdiff1d(own[seen:end], page.ids)  # deleted since the removals of `take_over`
            self.backend.remove(gone, partition=partition)
            new = self._level(page, own[seen:end], partition)
            removed, written, kept = removed + len(gone), written + new, kept + len(page.ids) - new
            seen = end
            advance(len(page.ids))
        self.backend.remove(own[seen:], partition=partition)
        return _Changes(removed + len(own) - seen, written, kept)

    def _level(self, page: Page, held: IdArray, partition: str) -> int:
        """Writes the rows of a page that are not held, or not as the source has them; gives their number."""
        codes, wanted = self.codes(page), ~np.isin(page.ids, held)
        both = np.flatnonzero(~wanted)
        if len(both):
            fields = ["*"] if self._dynamic else [*self.fields, CODE_FIELD]
            stored = self.backend.rows_held(page.ids[both], fields)
            wanted[both] = self._differs(page, codes, both, stored)
        rows = np.flatnonzero(wanted)
        if len(rows):
            some = Page(page.ids[rows], page.vectors[rows], [page.rows[row] for row in rows.tolist()])
            self._store(some, codes[rows], partition)
        return len(rows)

    def _differs(
        self, page: Page, codes: SparseCodes, rows: Any, stored: Mapping[int | str, dict[str, Any]]
    ) -> BoolArray:
        """Which of some rows of a page are stored otherwise, or not any more."""
        ids = page.ids.tolist()
        differs = np.array([ids[row] not in stored for row in rows.tolist()], dtype=bool)
        there = rows[~differs]
        if not len(there):
            return differs
        own = {self.source.primary, CODE_FIELD, DENSE_FIELD}
        others = [stored[ids[row]] for row in there.tolist()]
        fields = [
            {name: row[name] for name in row.keys() - own} != self._others(page.rows[number])
            for row, number in zip(others, there.tolist(), strict=True)
        ]
        backend = self.backend
        held = wire.from_rows([row[CODE_FIELD] for row in others], backend.n_latents, backend.k)
        largest = np.abs(codes.values[there]).max(axis=1)
        change = abs(codes[there].to_csr() - held.to_csr()).max(axis=1).toarray().ravel()
        differs[~differs] = np.array(fields, dtype=bool) | (change > _ROUNDING * largest)
        return differs

    def _parts(self) -> list[tuple[str, MilvusSource | None]]:
        """Partitions to copy one by one, with the source of each; None where the source has it no more.

        One part that has no name where there is one partition, or where Milvus assigns rows by a key.
        Partitions that are missing in the copy are made.
        """
        client, timeout, backend = self.source.client, self.source.timeout, self.backend
        if self._keyed:
            return [("", self._part(""))]
        names = []
        for collection in (self.source.collection, backend.collection):
            with translated(f"listing partitions of {collection!r}"):
                names.append(list(client.list_partitions(collection, timeout=timeout)))
        theirs, own = names
        if len({*theirs, *own}) == 1:
            return [("", self._part(""))]
        for name in theirs:
            if name not in own:
                with translated(f"creating partition {name!r} of {backend.collection!r}"):
                    client.create_partition(backend.collection, name, timeout=timeout)
        return [(name, self._part(name) if name in theirs else None) for name in sorted({*theirs, *own})]

    def _part(self, partition: str) -> MilvusSource:
        source = self.source
        return MilvusSource(
            source.client,
            source.collection,
            vector_field=source.field,
            filter=source.filter,
            partition=partition,
            timeout=source.timeout,
        )

    def codes(self, page: Page) -> SparseCodes:
        """Folded codes of a page, times the norms that the metric keeps."""
        manifest = self.backend.manifest
        try:
            chunks = encoded_chunks(
                self._model,
                page.vectors,
                manifest.k,
                manifest.encoder,
                self._threads,
                scale=RowScale(manifest.metric, 1.0),
            )
            return SparseCodes.concatenate(chunks)
        except InputError as error:
            first, last = page.ids.tolist()[0], page.ids.tolist()[-1]
            msg = f"collection {self.source.collection!r}, rows of ids {first!r} to {last!r}: {error}"
            raise InputError(msg) from error

    def _store(self, page: Page, codes: SparseCodes, partition: str) -> None:
        self.backend.put(codes, page.ids, [self._others(row) for row in page.rows], partition=partition)

    def _others(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row of the source that are copied.

        Raises:
            InputError: a dynamic field has a name that is used here.
        """
        others = {name: row[name] for name in row.keys() - self._dropped}
        if taken := others.keys() & {CODE_FIELD, DENSE_FIELD}:
            msg = (
                f"the row of id {row[self.source.primary]!r} has a field {min(taken)!r}, which "
                "compressae-index uses itself; rename it in the source"
            )
            raise InputError(msg)
        return others

    def check(self) -> IdArray:
        """Compares a sample of stored codes with new ones; gives the ids of the sample.

        Raises:
            BackendError: more than a few differ; rounding may turn a tie the other way.
        """
        rng = np.random.default_rng(0)
        ids = self.source.ids[np.sort(rng.permutation(len(self.source))[:SAMPLE_ROWS])]
        ids = ids[self.backend.held(ids)]  # others were inserted since
        for page in self.source.select(ids):
            fresh, stored = self.codes(page), self.backend.codes(page.ids)
            differ = (np.abs(fresh.to_dense() - stored.to_dense()) > 1e-3).any(axis=1)
            if differ.mean() > 0.05:
                msg = (
                    f"codes in collection {self.backend.collection!r} are not those of their vectors "
                    f"({int(differ.sum())} of {len(differ)}, as id {page.ids[differ].tolist()[0]!r}): "
                    "rows of the source were replaced, or something else wrote; `sync` with compare=True "
                    "takes them over"
                )
                raise BackendError(msg)
        return ids


def _ids(backend: MilvusBackend, partition: str = "") -> IdArray:
    """All ids of a compressed collection, ascending."""
    return listed_ids(
        backend.client,
        backend.collection,
        backend.primary,
        backend.are_strings,
        partition=partition,
        timeout=backend.timeout,
    )


def _begun(
    client: MilvusClient, target: str, origin: dict[str, Any], dim: int, timeout: float
) -> tuple[Manifest | None, bool]:
    """The manifest of an import to this target that was begun, and whether it was finished.

    What is of no use any more is dropped: a copy of vectors of another dimension, or beside a finished one.
    """
    with translated(f"looking for collection {target!r}"):
        finished = client.has_collection(target, timeout=timeout)
        building = client.has_collection(target + BUILDING_SUFFIX, timeout=timeout)
    manifest = load_manifest(client, target, timeout)
    taken = target if finished else target + BUILDING_SUFFIX
    if manifest is None and (finished or building):
        msg = (
            f"there is a collection {taken!r} already, not from an import: choose another target, or drop it"
        )
        raise InputError(msg)
    if manifest is not None and manifest.source != origin:
        msg = (
            f"{target!r} was made, or begun, from {manifest.source or 'nothing'}, not from {origin}: "
            f"choose another target, or drop {taken!r} and {target + MODEL_SUFFIX!r}"
        )
        raise FormatError(msg)
    outdated = manifest is not None and not finished and manifest.dim != dim
    if building and (finished or outdated):
        with translated(f"dropping collection {target + BUILDING_SUFFIX!r}"):
            if CODE_FIELD in client.list_indexes(target + BUILDING_SUFFIX, timeout=timeout):
                client.drop_collection(target + BUILDING_SUFFIX, timeout=timeout)
    if outdated:
        with translated(f"dropping collection {target + MODEL_SUFFIX!r}"):
            client.drop_collection(target + MODEL_SUFFIX, timeout=timeout)
        manifest = None
    return manifest, finished


def _check_same(target: str, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if value is not None and value != getattr(manifest, name):
            msg = (
                f"the import to {target!r} was begun with {name} = {getattr(manifest, name)!r}, now it is "
                f"{value!r}: use the same settings, or another target"
            )
            raise FormatError(msg)


def _metric_of(source: MilvusSource) -> Metric:
    """The metric that the dense field is searched by."""
    with translated(f"reading the index of {source.collection!r}"):
        index = source.client.describe_index(source.collection, source.field, timeout=source.timeout) or {}
    name = str(index.get("metric_type", "COSINE"))
    if name not in ("COSINE", "IP"):
        msg = (
            f"field {source.field!r} of {source.collection!r} is searched by {name}, not given by codes: "
            "for vectors of unit norm metric='cosine' gives the same order"
        )
        raise InputError(msg)
    return "cosine" if name == "COSINE" else "inner_product"


def _measured(source: MilvusSource, index: MilvusIndex, sample: IdArray) -> dict[int, float]:
    """recall@k against the source's own search, with rows of some ids as queries, themselves left out."""
    deepest = min(100, len(index) - 1)
    pages = list(source.select(sample))
    if not pages or deepest < 1:
        return {}
    queries, names = (
        np.concatenate([page.vectors for page in pages]),
        np.concatenate([page.ids for page in pages]),
    )
    ks = sorted({k for k in (10, 100, deepest) if k <= deepest})
    with translated(f"searching collection {source.collection!r}"):
        hits = source.client.search(
            source.collection,
            data=list(queries),
            anns_field=source.field,
            limit=deepest + 1,
            filter=source.filter,
            consistency_level="Strong",
            timeout=source.timeout,
        )
    found = index.search(queries, deepest + 1)
    shared = dict.fromkeys(ks, 0)
    for name, of_query, ids in zip(names.tolist(), hits, found.ids.tolist(), strict=True):
        wanted, given = ([id_ for id_ in row if id_ != name] for row in (of_query.ids, ids))
        for k in ks:
            shared[k] += len(set(wanted[:k]) & set(given[:k]))
    return {k: count / (k * len(queries)) for k, count in shared.items()}
