"""A compressed collection made of a dense one, and kept in step with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pymilvus import MilvusClient

from compressae_index.checks import check_threads
from compressae_index.codes import SparseCodes
from compressae_index.connectors.milvus.backend import REQUEST_ROWS, MilvusBackend
from compressae_index.connectors.milvus.client import TIMEOUT, connect, describe, ensure_loaded, listed_ids
from compressae_index.connectors.milvus.collection import (
    BUILDING_SUFFIX,
    MODEL_SUFFIX,
    Dense,
    Manifest,
    Opened,
    check_dense,
    check_name,
    copied_fields,
    create_collection,
    load_manifest,
    load_model,
    publish,
    save_model,
)
from compressae_index.connectors.milvus.errors import translated
from compressae_index.connectors.milvus.index import MilvusIndex, manifest_of
from compressae_index.connectors.milvus.source import MilvusSource, Page
from compressae_index.encoding import encoded_chunks
from compressae_index.errors import BackendError, DimensionError, FormatError, InputError
from compressae_index.ids import IdArray
from compressae_index.index import trained_model
from compressae_index.metric import Metric, RowScale
from compressae_index.model import CompresSAE, Encoder
from compressae_index.progress import track

if TYPE_CHECKING:
    from compressae_index.training import TrainConfig

SUFFIX = "_compressed"
# Rows whose stored codes are compared with new ones, and rows that serve as queries.
SAMPLE_ROWS = 100


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
    client: MilvusClient | str,
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
    or not there. Stopped and run again with the same arguments, it goes on after the last rows that were
    stored; where it was finished, it only verifies and measures. The source is loaded if it was not, and
    otherwise not changed. Rows that are written to it meanwhile are taken over by `sync`.

    Args:
        client: what `connect` gives, or a uri.
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
        InputError: no such collection or field, a taken or bad name, bad rows, options out of range.
        FormatError: an import to this target was begun with other settings.
        BackendError: Milvus does not answer or refuses, or what was stored is not what was sent.
    """
    target = check_name(collection + SUFFIX if target is None else target)
    threads = check_threads(num_threads)
    if isinstance(client, str):
        client = connect(client, token=token, db_name=db_name, timeout=timeout)
    check_dense(client, dense)
    source = MilvusSource(client, collection, vector_field=vector_field, filter=filter, timeout=timeout)
    origin = {"collection": collection, "vector_field": source.field, "filter": filter}
    metric = _metric_of(source) if metric is None else metric
    given = CompresSAE.load(model) if isinstance(model, (str, Path)) else model
    if given is not None and given.dim != source.dim:
        msg = f"field {source.field!r} has dimension {source.dim}, the model {given.dim}"
        raise DimensionError(msg)
    clock = _Clock()
    begun, finished = _begun(client, target, origin, timeout)
    with clock("list"):
        if not len(source):
            msg = f"collection {collection!r} has no rows to import"
            raise InputError(msg)
    if begun is None:
        with clock("train"):
            trained = given or trained_model(source, k, n_latents, config, metric, progress=progress)
        manifest = manifest_of(trained, k=k, encoder=encoder, metric=metric, dense=dense, source=origin)
        save_model(client, target, trained, manifest, timeout)
    else:
        manifest = begun
        wanted = {"k": k, "n_latents": n_latents, "encoder": encoder, "metric": metric, "dense": dense}
        _check_same(target, manifest, wanted)
        trained = load_model(client, target, manifest, given, timeout)
    name = target if finished else target + BUILDING_SUFFIX
    opened = Opened(name, manifest, source.primary, source.are_strings)
    backend = MilvusBackend(client, opened, trained, timeout=timeout)
    copier = _Copier(source, backend, trained, threads)
    if finished:
        ensure_loaded(client, name, timeout)
        resumed = len(backend)
    else:
        copier.create(algorithm)
        with clock("write"):
            resumed = copier.fill(progress)
        with clock("flush"), translated(f"flushing collection {name!r}"):
            client.flush(name, timeout=timeout)
    with clock("verify"):
        sample = copier.check()
    if not finished:
        publish(client, target, timeout)
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


def sync(index: MilvusIndex, *, num_threads: int | None = None, progress: bool = True) -> SyncReport:
    """Takes over rows that were inserted into the source, or deleted, since the import.

    Ids of both collections are listed and compared. What cannot be seen: rows whose vector or fields were
    replaced under the same id; `MilvusIndex.remove` them before, and they are taken over anew.

    Args:
        index: a collection that was made by `from_milvus`.
        num_threads: threads to encode with; all by default.
        progress: show a progress bar.

    Raises:
        InputError: the index was not imported, or its source is gone.
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
    own = _ids(backend)
    surplus, missing = np.setdiff1d(own, source.ids), np.setdiff1d(source.ids, own)
    copier = _Copier(source, backend, index.model, threads)
    with track(len(surplus) + len(missing), "syncing", enabled=progress) as advance:
        for part in copier.parts():
            for page in part.select(missing, copier.fields):
                copier.store(page, part.partition)
                advance(len(page.ids))
        backend.remove(surplus)
        advance(len(surplus))
    if len(missing):
        index.flush()
    return SyncReport(len(missing), len(surplus), len(index))


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


class _Copier:
    """Rows of a dense collection to rows of a compressed one."""

    def __init__(self, source: MilvusSource, backend: MilvusBackend, model: CompresSAE, threads: int) -> None:
        described = describe(source.client, source.collection, source.timeout)
        self._primary, self._scalars, self.left_out = copied_fields(described)
        self._dynamic = bool(described.get("enable_dynamic_field"))
        self._partitions = _partitions(source, described)
        self.source = source
        self.backend = backend
        self._model = model
        self._threads = threads
        # Fields beyond the schema come with all fields only.
        self.fields = ["*"] if self._dynamic else [field.name for field in self._scalars]

    def create(self, algorithm: str | None) -> None:
        """Creates the compressed collection, or what is missing of it after a stop."""
        client, name, timeout = self.source.client, self.backend.collection, self.source.timeout
        with translated(f"looking for collection {name!r}"):
            there = client.has_collection(name, timeout=timeout)
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
        with translated(f"creating partitions of {name!r}"):
            for partition in self._partitions:
                if partition and not client.has_partition(name, partition, timeout=timeout):
                    client.create_partition(name, partition, timeout=timeout)
        ensure_loaded(client, name, timeout)

    def fill(self, progress: bool) -> int:
        """Copies all rows that are not there yet; gives the number of those that were.

        Raises:
            BackendError: not all rows are there in the end.
        """
        resumed = total = 0
        with track(len(self.source), "importing", enabled=progress) as advance:
            for part in self.parts():
                stored = _ids(self.backend, part.partition)
                # The last request may have been stored in part, so it is sent again.
                kept = stored[: max(len(stored) - REQUEST_ROWS, 0)]
                resumed, total = resumed + len(stored), total + len(kept)
                advance(len(kept))
                for page in part.stream(self.fields, after=kept.tolist()[-1] if len(kept) else None):
                    self.store(page, part.partition)
                    total += len(page.ids)
                    advance(len(page.ids))
        if (there := len(self.backend)) != total:
            name = self.backend.collection
            msg = f"collection {name!r} holds {there} rows after {total} were sent; run it again"
            raise BackendError(msg)
        return resumed

    def parts(self) -> Iterator[MilvusSource]:
        """The source, partition by partition where rows belong to named ones."""
        for partition in self._partitions:
            yield MilvusSource(
                self.source.client,
                self.source.collection,
                vector_field=self.source.field,
                filter=self.source.filter,
                partition=partition,
                timeout=self.source.timeout,
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

    def store(self, page: Page, partition: str) -> None:
        """Encodes and writes a page."""
        dropped = {self.source.primary, self.source.field, *self.left_out}
        others = [{name: row[name] for name in row.keys() - dropped} for row in page.rows]
        self.backend.put(self.codes(page), page.ids, others, partition=partition)

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
                    "rows of the source were replaced, or something else wrote; drop it and import again"
                )
                raise BackendError(msg)
        return ids


def _partitions(source: MilvusSource, described: Mapping[str, Any]) -> list[str]:
    """Partitions to copy one by one; [""] where there is one, or where Milvus assigns rows by a key."""
    if any(field.get("is_partition_key") for field in described["fields"]):
        return [""]
    with translated(f"listing partitions of {source.collection!r}"):
        names = list(source.client.list_partitions(source.collection, timeout=source.timeout))
    return names if len(names) > 1 else [""]


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
    client: MilvusClient, target: str, origin: dict[str, Any], timeout: float
) -> tuple[Manifest | None, bool]:
    """The manifest of an import to this target that was begun, and whether it was finished."""
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
