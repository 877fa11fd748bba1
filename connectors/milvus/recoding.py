"""A compressed collection coded anew by another model, beside the old one, and put in its place by an alias.

items           an alias, by which searches go on
items_codes     the collection it names; coded anew into items_codes_2, from which `replaces` refers to it
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from typing import NamedTuple

from compressae_index.checks import check_threads
from compressae_index.coding.model import CompresSAE
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    check_name,
    drop_compressed,
    open_compressed,
)
from compressae_index.connectors.milvus.copier import Copier
from compressae_index.connectors.milvus.importer import Imported, Options, Run, Settings, imported
from compressae_index.connectors.milvus.index import MilvusIndex
from compressae_index.connectors.milvus.manifest import load_manifest, model_of, rewrite_manifest
from compressae_index.connectors.milvus.source import MilvusSource
from compressae_index.connectors.milvus.stored import StoredVectors
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.progress import track

_log = logging.getLogger(__name__)
_NUMBERED = re.compile(r"(.+)_([1-9][0-9]{0,8})")


class RecodeReport(NamedTuple):
    """Outcome of a recode."""

    alias: str
    """The name to search by."""
    collection: str
    """What it names now."""
    dropped: str
    """What it named before."""
    vectors: int
    resumed: int
    """Vectors that an earlier call, which was stopped, had written already."""
    source: str
    """The collection that vectors were read from."""
    seconds: dict[str, float]
    """By phase, as in `ImportReport`, and of the swap."""
    recall: dict[int, float]
    """As in `ImportReport`; empty where vectors were read from the compressed collection itself."""


def recode(
    index: MilvusIndex,
    model: CompresSAE | None,
    alias: str | None,
    into: str | None,
    num_threads: int | None,
    progress: bool,
) -> tuple[MilvusIndex, RecodeReport]:
    """Codes a collection anew; returns the index of the new one. See `MilvusIndex.recode`."""
    name = index.alias if alias is None else alias
    index = _after_a_swap(index, name) or index
    old, before = index.documents.collection, index.manifest.replaces
    name = _checked_alias(old, name)
    if before and old.named(name).exists():  # the alias has moved already
        _finish(old, before)
        if model is None or model.fingerprint == index.manifest.fingerprint:
            done = _opened(index, name, index.model)
            return done, RecodeReport(name, old.name, before, len(done), len(done), "", {}, {})
    target = old.named(check_name(_next_name(old.name) if into is None else into))
    if target.name in (old.name, name):
        msg = f"into={target.name!r} is the name that is searched: choose another one"
        raise InputError(msg)
    run = _run(index, target, model, Options(_algorithm(index), check_threads(num_threads), progress))
    if is_new := not old.named(name).exists():
        old.create_alias(name)
    try:
        made = imported(run)
    except (InputError, FormatError):
        if is_new:
            old.drop_alias(name)
        raise
    with run.clock("sync"):
        _level(run, made)
    with run.clock("swap"):
        target.take_alias(name)
    _log.info("%s is now %s, coded by the model %s", name, target.name, made.compressed.model.fingerprint)
    _finish(target, old.name)
    new = _opened(index, name, made.compressed.model)
    return new, RecodeReport(
        alias=name,
        collection=target.name,
        dropped=old.name,
        vectors=len(new),
        resumed=made.report.resumed,
        source=run.source.collection,
        seconds=run.clock.seconds,
        recall=made.report.recall,
    )


def _after_a_swap(index: MilvusIndex, alias: str | None) -> MilvusIndex | None:
    """The collection that replaced this one, where the call that did so was stopped before the drop."""
    old = index.documents.collection
    if alias is None or not old.named(check_name(alias)).exists():
        return None
    named = old.named(alias).schema().collection
    if named == old.name:
        return None
    manifest = load_manifest(old.named(named))
    return _opened(index, alias) if manifest is not None and manifest.replaces == old.name else None


def _opened(index: MilvusIndex, name: str, model: CompresSAE | None = None) -> MilvusIndex:
    """The index by a name, opened as another one was."""
    backend = index.documents
    return MilvusIndex.open(
        index.client,
        name,
        model=model,
        originals=backend.uses_originals,
        consistency_level=backend.consistency_level,
        timeout=backend.collection.timeout,
    )


def _checked_alias(old: Collection, alias: str | None) -> str:
    """The name to search by.

    Raises:
        InputError: there is none, or it names something else.
    """
    if alias is None:
        msg = (
            f"{old.name!r} was opened by its own name, which cannot come to mean another collection: give "
            "alias=, the name to search by from now on, or open the index by an alias"
        )
        raise InputError(msg)
    named = old.named(check_name(alias))
    if named.exists() and (other := named.schema().collection) != old.name:
        msg = f"{alias!r} names the collection {other!r}, not {old.name!r}: choose another alias"
        raise InputError(msg)
    if alias == old.name:
        msg = f"alias={alias!r} is the collection's own name: choose another one"
        raise InputError(msg)
    return alias


def _next_name(name: str) -> str:
    """items_2 for items, items_3 for items_2: the same whenever a recode goes on."""
    numbered = _NUMBERED.fullmatch(name)
    return f"{numbered[1]}_{int(numbered[2]) + 1}" if numbered else f"{name}_2"


def _algorithm(index: MilvusIndex) -> str | None:
    """inverted_index_algo of the present collection, if it has one."""
    collection = index.documents.collection
    with collection.doing("reading the index of"):
        described = collection.client.describe_index(collection.name, CODE_FIELD, timeout=collection.timeout)
    found = (described or {}).get("inverted_index_algo")
    return None if found is None else str(found)


def _run(index: MilvusIndex, target: Collection, model: CompresSAE | None, options: Options) -> Run:
    """The import that makes the new collection.

    Raises:
        InputError: the model does not fit, or there are no vectors.
    """
    manifest = index.manifest
    settings = Settings(
        manifest.k,
        None,
        manifest.encoder,
        manifest.metric,
        manifest.dense,
        manifest.originals,
        manifest.residual_bits or None,
    )
    if model is not None and model.dim != manifest.dim:
        msg = f"the model has dimension {model.dim}, collection {index.collection!r} {manifest.dim}"
        raise DimensionError(msg)
    source = _source(index)
    return Run(
        source,
        target,
        settings,
        model,
        None,
        options,
        start=index.model if model is None else None,
        replaces=index.collection,
        # Without a source, somebody said which vectors to expect.
        longest=0.0 if source.origin else math.sqrt(2 * manifest.height),
        settle=False,  # `_level` does that
    )


def _source(index: MilvusIndex) -> MilvusSource:
    """The source of an import, if it is still there; else what the collection knows of its vectors."""
    origin, collection = index.manifest.source, index.documents.collection
    if origin and collection.named(origin["collection"]).exists():
        return MilvusSource.again(index.client, origin, collection.timeout)
    return StoredVectors(index.documents)


def _level(run: Run, made: Imported) -> None:
    """Takes over what changed since the import."""
    new = made.compressed
    copier = Copier(run.source, new.documents, new.model, run.options.threads)
    with track(len(run.source), "syncing", enabled=run.options.progress) as advance:
        changes = copier.take_over(True, advance)
    if changes.added or changes.changed:
        new.flush()


def _finish(new: Collection, old: str) -> None:
    """Drops the collection that was replaced, with its model, and forgets it; its other aliases move, too."""
    replaced = new.named(old)
    manifest = open_compressed(new, originals=False).manifest
    for alias in replaced.aliases() if replaced.exists() else []:
        new.take_alias(alias)
    if model_of(replaced).exists():
        drop_compressed(replaced)
    rewrite_manifest(new, replace(manifest, replaces=""))
