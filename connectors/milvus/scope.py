"""Where a search of Milvus looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressae_index.connectors.milvus.client import ConsistencyLevel


@dataclass(frozen=True)
class Scope:
    """The part of a collection that a search looks at, and how."""

    filter: Any = None
    """A Milvus expression, ids to search among, or None."""
    partitions: Sequence[str] = ()
    consistency_level: ConsistencyLevel | None = None
    """The back end's if None."""
    ranker: Any = None
    """Of pymilvus, for mode "hybrid"; None is `RRFRanker()`."""


def as_scope(filter: Any) -> Scope:  # noqa: A002
    """A scope as it is, or one of the filter of a search."""
    return filter if isinstance(filter, Scope) else Scope(filter)
