"""A compressed collection kept in step with its source."""

from __future__ import annotations

import logging
from typing import NamedTuple

from compressae_index.checks import check_threads
from compressae_index.connectors.milvus.importer import check_ids, check_source, copier_of
from compressae_index.connectors.milvus.index import MilvusIndex
from compressae_index.connectors.milvus.source import MilvusSource
from compressae_index.errors import InputError
from compressae_index.progress import track

_log = logging.getLogger(__name__)


class SyncReport(NamedTuple):
    """Numbers of rows that a sync changed."""

    added: int
    changed: int
    """Rows whose vector or fields were replaced under the same id."""
    removed: int
    vectors: int
    """In the compressed collection now."""


def sync(
    index: MilvusIndex, *, compare: bool | None = None, num_threads: int | None = None, progress: bool = True
) -> SyncReport:
    """Takes over rows that were inserted into the source, replaced in it, or deleted from it.

    The source is read page by page, partition by partition if there are several, and its rows are compared
    with the digests that are kept with their codes; what differs is encoded and written. If it is stopped at
    any point, run it again.

    Args:
        index: a collection that was made by `from_milvus`.
        compare: whether to read the whole source; False to list and compare ids alone, which do not show
            rows whose vector or fields were replaced. By default True where there are digests. Collections
            that version 0.1 imported have none: with True, the whole source is encoded to compare it. With
            codes in place, the whole source is read in any case.
        num_threads: threads to encode with; all by default.
        progress: show a progress bar.

    Returns:
        Numbers of rows.

    Raises:
        InputError: the index was not imported, or its source is gone or has the id -1.
        BackendError: Milvus does not answer or refuses. Run again, it goes on.
    """
    index.follow()
    if not index.manifest.source:
        msg = f"collection {index.collection!r} was not imported, so there is no source to sync with"
        raise InputError(msg)
    backend, threads = index.documents, check_threads(num_threads)
    source = MilvusSource.again(index.client, index.manifest.source, backend.collection.timeout)
    (check_ids if index.manifest.in_place else check_source)(source)
    copier = copier_of(source, backend, index.model, threads)
    with track(len(source), "syncing", enabled=progress) as advance:
        changes = copier.take_over(index.manifest.digests if compare is None else compare, advance)
    if changes.added or changes.changed:
        index.flush()
    _log.info("synced %s: %s", index.collection, changes)
    return SyncReport(changes.added, changes.changed, changes.removed, len(index))
