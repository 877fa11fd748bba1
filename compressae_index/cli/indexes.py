"""Indexes on disk, of any kind that a command can search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressae_index.arrays import IdArray
from compressae_index.checks import as_path
from compressae_index.index import CompressedIndex
from compressae_index.persistence import kind_of
from compressae_index.remote import Place
from compressae_index.search.index import Index

if TYPE_CHECKING:
    from compressae_index.connectors.faiss import FaissIndex


def load_index(path: Place, originals: str | None = None) -> CompressedIndex | FaissIndex:
    """Maps the index at a path: a `CompressedIndex` or a `FaissIndex`, by the kind in its manifest.

    A progress bar shows while its files are checked, which takes seconds for gigabytes.

    Args:
        path: the directory.
        originals: the value of `--originals`.

    Raises:
        FormatError: there is no index, it is damaged, or its original vectors are gone or changed.
        InputError: originals are given, and the index refers to none.
        MissingExtraError: a Faiss index, and Faiss is not installed.
    """
    if kind_of(path) == "faiss index":
        from compressae_index.connectors.faiss import FaissIndex

        return FaissIndex.load(path, mmap=True, originals=moved(originals), progress=True)
    return CompressedIndex.load(path, mmap=True, originals=moved(originals), progress=True)


def moved(originals: str | None) -> Any:
    """The value of `--originals`, as `CompressedIndex.load` takes it."""
    if originals is None:
        return None
    return False if originals == "none" else as_path(originals)


def ids_of(index: Index, given: IdArray) -> Any:
    """Ids from a file, as strings if the index has strings: a text file of digits may mean either."""
    if len(index) and index.documents.are_strings:
        return [str(one) for one in given.tolist()]
    return given
