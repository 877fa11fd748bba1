"""A compressed collection made of a dense one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
from pymilvus import MilvusClient

from compressae_index.arrays import IdArray
from compressae_index.building.training import ModelSource, improved
from compressae_index.checks import check_threads
from compressae_index.coding.metric import Metric, row_norms
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.coding.points import points_of
from compressae_index.coding.residual import check_residual_bits
from compressae_index.connectors.milvus.backend import MilvusBackend
from compressae_index.connectors.milvus.client import TIMEOUT, reading_client
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    Layout,
    Opened,
    building_of,
    check_name,
    check_types,
    publish,
)
from compressae_index.connectors.milvus.copier import Copier
from compressae_index.connectors.milvus.in_place import Filler, check_in_place, has_codes
from compressae_index.connectors.milvus.index import MilvusIndex
from compressae_index.connectors.milvus.manifest import (
    Dense,
    Manifest,
    Originals,
    load_manifest,
    load_model,
    model_of,
    save_model,
)
from compressae_index.connectors.milvus.source import MilvusSource, Page
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.progress import Clock
from compressae_index.sources.centred import Centred, less
from compressae_index.sources.sample import spread_sample
from compressae_index.training import TrainConfig

SUFFIX = "_compressed"
# Rows whose norms and mean stand for all, where these matter.
POINTS = 65_536


class ImportReport(NamedTuple):
    """Outcome of an import."""

    collection: str
    vectors: int
    resumed: int
    """Vectors that an earlier import, stopped or finished, had written already."""
    left_out: list[str]
    """Fields of the source that were not copied: its vectors."""
    seconds: dict[str, float]
    """By phase: list, train, write, flush, verify, measure; without those that were not needed."""
    bytes_before: int
    """Of the dense vectors, 4 bytes a number, without their index."""
    bytes_after: int
    """Of the codes as postings, 8 bytes a nonzero, and of the fields of reconstructed vectors, residual codes
    and original vectors."""
    recall: dict[int, float]
    """recall@k of "two_stage" against the source's own search, with rows as queries, each without itself."""


class Imported(NamedTuple):
    """A compressed collection and the report of its import."""

    compressed: MilvusIndex
    report: ImportReport


def from_milvus(
    client: MilvusClient | str | os.PathLike[str],
    collection: str,
    *,
    target: str | None = None,
    vector_field: str | None = None,
    filter: str = "",  # noqa: A002
    model: CompresSAE | str | os.PathLike[str] | None = None,
    k: int | None = None,
    n_latents: int | None = None,
    encoder: Encoder = "pursuit",
    metric: Metric | None = None,
    config: TrainConfig | None = None,
    dense: Dense | None = None,
    originals: Originals | None = None,
    residual_bits: int = 0,
    in_place: bool = False,
    algorithm: str | None = None,
    token: str = "",
    db_name: str = "",
    num_threads: int | None = None,
    timeout: float = TIMEOUT,
    progress: bool = True,
) -> Imported:
    """Makes a compressed collection of a dense one: same ids, scalar and dynamic fields, and partitions.

    The collection is filled under the name target + "_building", verified and then renamed, so that the
    target is either whole or absent. Stopped and run again with the same arguments, the import goes on: it
    reads the source anew and writes what is missing or differs, so that rows that were deleted, changed or
    inserted since are right too. A finished import that is run again only verifies and measures.

    The source is loaded if it was not, and otherwise not changed; `sync` takes over rows that are written to
    it meanwhile. If several imports to one target begin together, all but one end with an error; an import
    that begins later helps to fill the target.

    Args:
        client: a client made by `connect`, or a uri for it; makes no database.
        collection: the dense collection.
        target: name of the compressed one; by default the source's with "_compressed" appended.
        vector_field: the dense field; needed if there are several.
        filter: a Milvus expression; only rows that satisfy it.
        model: a trained model or its directory; by default one is trained on the vectors.
        k: nonzeros a code; the model's, or 32, by default.
        n_latents: as for `CompressedIndex.build`.
        encoder: as for `CompressedIndex.build`.
        metric: as for `CompressedIndex.build`; that of the source's index by default. With "l2", rows of a
            sample tell whether all are of unit norm, and how long others are.
        config: settings of the training.
        dense: type of a field for the reconstructed vectors, which modes "dense" and "hybrid" need; none by
            default. Milvus Lite has float32 only.
        originals: vectors that score the best documents of a search again: "source" for those of the source,
            which must stay then, and where rows are added by `sync` only; "float32" or "float16" for a
            field of copies, in float32 only on Milvus Lite; none by default.
        residual_bits: as for `CompressedIndex.build`, in a field of 4 / 3 of their bytes.
        in_place: write codes into the rows of the dense collection itself, in two fields that are added to
            it, and make no compressed one. The index has its name, and its vectors score the best documents
            again. Needs Milvus 2.6.18; goes with none of target, filter, dense, originals and residual_bits.
        algorithm: inverted_index_algo of Milvus; the server's own choice by default.
        token: for a uri: "user:password" or an API key.
        db_name: for a uri: the database.
        num_threads: threads to encode with; all by default.
        timeout: seconds for each request, retries included.
        progress: show progress bars.

    Returns:
        The index and the report.

    Raises:
        InputError: no such collection or field, a taken or bad name, bad rows, an option out of range, a
            primary key that no expression can hold, or the id -1.
        FormatError: an import to this target was begun with other settings.
        BackendError: Milvus does not answer or refuses, or the stored rows are not those that were sent.
    """
    if in_place:
        if target or filter or dense or residual_bits or originals not in (None, "source"):
            msg = "in_place goes with none of target, filter, dense, originals and residual_bits"
            raise InputError(msg)
        target, originals = collection, "source"
    name = check_name(f"{collection}{SUFFIX}" if target is None else target)
    options = Options(algorithm, check_threads(num_threads), progress)
    client = reading_client(client, collection, token=token, db_name=db_name, timeout=timeout)
    check_types(client, dense, originals)
    source = MilvusSource(client, collection, vector_field=vector_field, filter=filter, timeout=timeout)
    metric = source.metric() if metric is None else metric
    bits = check_residual_bits(residual_bits) or None
    settings = Settings(k, n_latents, encoder, metric, dense, originals, bits, in_place)
    given = CompresSAE.load(model) if isinstance(model, (str, os.PathLike)) else model
    return imported(Run(source, Collection(client, name, timeout), settings, given, config, options))


@dataclass(frozen=True)
class Settings:
    """Options that must be the same when an import goes on; None is the default."""

    k: int | None
    n_latents: int | None
    encoder: Encoder
    metric: Metric
    dense: Dense | None
    originals: Originals | None
    residual_bits: int | None
    in_place: bool = False

    def check_same(self, manifest: Manifest, target: str) -> None:
        """Compares options with those of the first run.

        Raises:
            FormatError: one differs.
        """
        for name, value in asdict(self).items():
            old = getattr(manifest, name)
            if value is not None and value != old:
                msg = (
                    f"the import to {target!r} was begun with {name} = {old!r}, now it is {value!r}: use the "
                    "same settings, or another target"
                )
                raise FormatError(msg)


@dataclass(frozen=True)
class Options:
    """Options that may differ when an import goes on."""

    algorithm: str | None
    threads: int
    progress: bool


@dataclass(frozen=True)
class Run:
    """One call of `from_milvus`."""

    source: MilvusSource
    target: Collection
    settings: Settings
    given: CompresSAE | None
    """The model; None to train one."""
    config: TrainConfig | None
    options: Options
    start: CompresSAE | None = None
    """A model to train from, where none is given."""
    replaces: str = ""
    """The collection that the target is to replace."""
    longest: float = 0.0
    """A norm that vectors may have, where norms are kept, besides those of the source."""
    settle: bool = True
    """Whether to take over what changes while the source is read."""
    clock: Clock = field(default_factory=Clock)

    def model_source(self) -> ModelSource:
        """The given model, or the settings to train one.

        Raises:
            InputError: the model does not fit the options, or the settings are out of range.
            MissingExtraError: there is an encoder to train, and torch is not installed.
        """
        return ModelSource.checked(
            self.given,
            k=self.settings.k,
            n_latents=self.settings.n_latents,
            config=self.config,
            metric=self.settings.metric,
            encoder=self.settings.encoder,
        )


def imported(run: Run) -> Imported:
    """Makes the compressed collection of a run, or what is missing of it; errors as for `from_milvus`."""
    begun = (_open_in_place if run.settings.in_place else _open)(run)
    trained, manifest = _train(run, begun)
    backend = MilvusBackend(Opened(begun.collection, manifest, run.source.key), trained)
    copier = copier_of(run.source, backend, trained, run.options.threads)
    resumed = _fill(run, begun, copier)
    sample = _verify(run, begun, copier)
    target = run.target
    index = MilvusIndex.open(target.client, target.name, model=trained, timeout=target.timeout)
    return Imported(index, _report(run, copier, index, resumed, sample))


def copier_of(source: MilvusSource, backend: MilvusBackend, model: CompresSAE, threads: int) -> Copier:
    """What copies rows of the source, or writes codes into them."""
    return (Filler if backend.manifest.in_place else Copier)(source, backend, model, threads)


class _Begun(NamedTuple):
    """The state in which an earlier run left the target."""

    collection: Collection
    """Where the rows go: the target if it is finished, otherwise the one that is being built."""
    manifest: Manifest | None
    """None if the import begins now."""
    is_finished: bool
    holder: Collection
    """Under whose name the model is."""


def _open(run: Run) -> _Begun:
    """Checks the model, the target and the source, and drops an earlier copy that cannot be used any more.

    Raises:
        InputError: the model does not fit, or the target or the source cannot be used for an import.
        FormatError: the target was imported from something else.
    """
    _check_model(run)
    target, building = run.target, building_of(run.target)
    is_finished, is_building = target.exists(), building.exists()
    rows = target if is_finished else building
    manifest = load_manifest(target)
    if manifest is None and (is_finished or is_building):
        msg = (
            f"there is a collection {rows.name!r} already, not from an import: "
            "choose another target, or drop it"
        )
        raise InputError(msg)
    origin = run.source.origin
    if manifest is not None and (manifest.source, manifest.replaces) != (origin, run.replaces):
        msg = (
            f"{target.name!r} was made, or begun, from {manifest.source or 'nothing'}, not from "
            f"{origin or run.source.collection}: choose another target, or drop {rows.name!r} and "
            f"{model_of(target).name!r}"
        )
        raise FormatError(msg)
    outdated = manifest is not None and not is_finished and manifest.dim != run.source.dim
    if is_building and (is_finished or outdated) and CODE_FIELD in building.indexed():
        building.drop()
    if outdated:
        model_of(target).drop()
        manifest = None
    with run.clock("list"):
        if not len(run.source):
            msg = f"collection {run.source.collection!r} has no rows to import"
            raise InputError(msg)
    check_source(run.source)
    return _Begun(rows, manifest, is_finished, target)


def _open_in_place(run: Run) -> _Begun:
    """Checks the model and the source, and drops a model that cannot be used any more.

    Raises:
        InputError: the model does not fit, or the source cannot hold codes.
        FormatError: the source has codes of another field.
    """
    _check_model(run)
    check_in_place(run.source)
    target, building = run.target, building_of(run.target)
    published = load_manifest(target)
    manifest, holder = (load_manifest(building), building) if published is None else (published, target)
    if manifest is not None and manifest.source != run.source.origin:
        msg = (
            f"{target.name!r} has codes of {manifest.source or 'other vectors'}: drop "
            f"{model_of(holder).name!r} to have codes of {run.source.origin}"
        )
        raise FormatError(msg)
    if manifest is not None and manifest.dim != run.source.dim:
        model_of(holder).drop()
        manifest, holder = None, building
    with run.clock("list"):
        if not len(run.source):
            msg = f"collection {run.source.collection!r} has no rows to encode"
            raise InputError(msg)
    check_ids(run.source)
    return _Begun(target, manifest, holder == target and has_codes(run.source), holder)


def _check_model(run: Run) -> None:
    """Checks that the given model fits the source and the options.

    Raises:
        InputError: it does not.
    """
    if run.given is None:
        return
    run.model_source()
    if run.given.dim != run.source.dim:
        msg = f"field {run.source.field!r} has dimension {run.source.dim}, the model {run.given.dim}"
        raise DimensionError(msg)


def check_source(source: MilvusSource) -> None:
    """Checks that a compressed collection can hold the ids and fields of the source.

    Raises:
        InputError: the id -1, which marks a missing neighbour in results, or a name that is used here.
    """
    check_ids(source)
    Layout.copied(source.schema())


def check_ids(source: MilvusSource) -> None:
    """Checks that results can have the ids of the source.

    Raises:
        InputError: the id -1, which marks a missing neighbour.
    """
    if not source.key.are_strings and (source.ids == -1).any():
        msg = (
            f"collection {source.collection!r} has the id -1, which marks a missing neighbour in results: "
            f"give this row another id, or leave it out by filter='{source.key.name} != -1'"
        )
        raise InputError(msg)


def _train(run: Run, begun: _Begun) -> tuple[CompresSAE, Manifest]:
    """The model, and the manifest of the compressed collection; those of an earlier run if there was one.

    Raises:
        FormatError: the earlier run had other settings or another model.
    """
    settings = run.settings
    if begun.manifest is not None:
        settings.check_same(begun.manifest, run.target.name)
        return load_model(begun.holder, begun.manifest, run.given), begun.manifest
    with run.clock("train"):
        model, longest = _modelled(run)
    manifest = Manifest.of(
        model,
        k=settings.k,
        encoder=settings.encoder,
        metric=settings.metric,
        dense=settings.dense,
        originals=settings.originals,
        residual_bits=settings.residual_bits or 0,
        source=run.source.origin,
        longest=longest,
        replaces=run.replaces,
        in_place=settings.in_place,
    )
    return model, manifest


def _modelled(run: Run) -> tuple[CompresSAE, float | None]:
    """The model, and the norm of the longest rows of a sample, from its center, where these matter."""
    progress, threads = run.options.progress, run.options.threads
    if run.start is None:
        made = run.model_source()
    else:
        k = run.start.nonzeros(run.settings.k, run.settings.encoder)
        made = ModelSource(
            improved(run.start, run.source, k, num_threads=threads, progress=progress).model, None, k
        )
    if run.settings.metric != "l2":
        return made.model_for(run.source, run.settings.k, num_threads=threads, progress=progress).model, None
    sample = spread_sample(Centred(run.source, None), POINTS, np.random.default_rng(0))
    points = points_of(sample, "l2", made.given, centers=made.centers, progress=False)
    if not points.keep_norms:
        return made.model_for(run.source, run.settings.k, num_threads=threads, progress=progress).model, None
    seen = Centred(run.source, points.center)
    model = (
        made.without_center().model_for(seen, run.settings.k, num_threads=threads, progress=progress).model
    )
    if made.given is None:
        model = model.centred_at(points.center)
    longest = max(run.longest, float(row_norms(less(sample, points.center)).max()))
    return model, longest


def _fill(run: Run, begun: _Begun, copier: Copier) -> int:
    """Makes the rows of the compressed collection; returns the number of those that were right already."""
    collection = begun.collection
    if begun.is_finished:
        collection.load()
        return len(copier.backend)
    if begun.manifest is None:
        copier.check_first()
        save_model(begun.holder, copier.model, copier.backend.manifest)
    copier.create(run.target, run.options.algorithm)
    with run.clock("write"):
        resumed = copier.fill(run.options.progress, settle=run.settle)
    with run.clock("flush"):
        collection.flush()
    return resumed


def _verify(run: Run, begun: _Begun, copier: Copier) -> IdArray:
    """Checks a sample of the stored codes and renames the collection; returns the ids of the sample."""
    with run.clock("verify"):
        sample = copier.check()
    if not begun.is_finished and not (run.settings.in_place and begun.holder == run.target):
        publish(run.target, copier.backend.manifest)
    return sample


def _report(run: Run, copier: Copier, index: MilvusIndex, resumed: int, sample: IdArray) -> ImportReport:
    with run.clock("measure"):
        recall = _measured(run.source, index, sample) if run.source.is_searched else {}
    size = index.documents.nbytes
    return ImportReport(
        collection=run.target.name,
        vectors=len(index),
        resumed=resumed,
        left_out=copier.left_out,
        seconds=run.clock.seconds,
        bytes_before=len(run.source) * run.source.dim * 4,
        bytes_after=sum(size.values()) - size["rows"],
        recall=recall,
    )


def _measured(source: MilvusSource, index: MilvusIndex, sample: IdArray) -> dict[int, float]:
    """recall@k against the source's own search, with the sample's rows as queries, each without itself."""
    deepest = min(100, len(index) - 1)
    pages = list(source.select(sample))
    if not pages or deepest < 1:
        return {}
    queries = Page.joined(pages)
    ks = sorted({k for k in (10, 100, deepest) if k <= deepest})
    hits = source.nearest(queries.vectors, deepest + 1)
    found = index.search(queries.vectors, deepest + 1)
    shared = dict.fromkeys(ks, 0)
    for query, of_query, ids in zip(queries.ids.tolist(), hits, found.ids.tolist(), strict=True):
        wanted, given = ([id_ for id_ in row if id_ != query] for row in (of_query.ids, ids))
        for k in ks:
            shared[k] += len(set(wanted[:k]) & set(given[:k]))
    return {k: count / (k * len(queries.ids)) for k, count in shared.items()}
