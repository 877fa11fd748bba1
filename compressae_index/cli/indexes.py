"""Indexes on disk, of any kind that a command can search."""

from __future__ import annotations

from pathlib import Path

from compressae_index.index import CompressedIndex
from compressae_index.persistence import kind_of
from compressae_index.search.index import Index


def load_index(path: Path) -> Index:
    """Maps the index at a path: a `CompressedIndex` or a `FaissIndex`, by the kind in its manifest.

    Raises:
        FormatError: there is no index, or it is damaged.
        MissingExtraError: a Faiss index, and Faiss is not installed.
    """
    if kind_of(path) == "faiss index":
        from compressae_index.connectors.faiss import FaissIndex

        return FaissIndex.load(path, mmap=True)
    return CompressedIndex.load(path, mmap=True)
