"""The files that a source names: one, a folder, a pattern, or a list."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from compressae_index.checks import as_place
from compressae_index.errors import FormatError
from compressae_index.remote import Place, RemotePath
from compressae_index.sources.base import reading
from compressae_index.sources.lance import SUFFIX

PathLike: TypeAlias = str | os.PathLike[str]

KINDS = (".npy", ".fvecs", ".bvecs", ".hdf5", ".h5", ".parquet", SUFFIX)
# Other suffixes of embeddings, which are not skipped as sidecar files are.
_OTHER_KINDS = frozenset((".npz", ".fbin", ".u8bin", ".i8bin"))
# Suffixes of sidecar files, such as "shard-1.npy.sha256".
_NOTES = frozenset((".crc", ".md5", ".sha1", ".sha256", ".sha512", ".asc", ".json", ".yaml", ".txt", ".dvc"))


def names_files(source: Any) -> bool:
    """Whether a source is a path, or a list of paths."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(isinstance(path, (str, os.PathLike)) for path in source)
    return isinstance(source, (str, os.PathLike))


def files_of(source: PathLike | Sequence[PathLike]) -> Place | list[Place]:
    """The file that a source names, or a list of files for a folder, a pattern or a list.

    Files of folders and patterns are in natural order, those of a list in its own.

    Raises:
        FormatError: a folder or pattern holds no files of embeddings, or some that cannot be read.
        StorageError: the system refuses to list a folder.
    """
    if isinstance(source, (list, tuple)):
        return [file for path in source for file in _matched(as_place(path))]
    path = as_place(source)
    with reading(path):
        if path.is_dir() and not is_dataset(path):
            return _chosen(path.iterdir(), str(path))
        return path if not has_magic(path) or path.exists() else _matched(path)


def _matched(path: Place) -> list[Place]:
    with reading(path):
        if not has_magic(path) or path.exists():
            return [path]
        found = _glob(path)
        if not found:
            msg = f"{path} does not exist, and as a pattern it matches no file"
            raise FormatError(msg)
        return _chosen(found, str(path))


def is_dataset(path: Place) -> bool:
    """Whether a path is a Lance dataset: a folder that is read as one file is."""
    return path.suffix.lower() == SUFFIX and path.is_dir()


def has_magic(path: Place) -> bool:
    """Whether a path may be a pattern."""
    return path.has_magic if isinstance(path, RemotePath) else glob.has_magic(str(path))


def _glob(path: Place) -> list[Place]:
    """What matches a pattern; folders that do are searched only for "**"."""
    if isinstance(path, RemotePath):
        return [*path.glob()]
    return [Path(match) for match in glob.glob(str(path), recursive=True)]


def _chosen(paths: Iterable[Place], where: str) -> list[Place]:
    """Files of embeddings among paths; anything else that looks like embeddings is an error.

    Skips files that writers such as Spark leave, such as _SUCCESS or .part-0.parquet.crc.
    """
    paths = [path for path in paths if not _is_hidden(path) and not _is_in_dataset(path)]
    files = [
        path
        for path in paths
        if path.suffix.lower() in KINDS and path.is_dir() == (path.suffix.lower() == SUFFIX)
    ]
    for path in sorted(set(paths) - set(files), key=os.fspath):
        if path.is_dir():
            _check_folder(path, set(files), where)
        elif _looks_like_vectors(path):
            msg = (
                f"{where} holds {path.name}, which would be passed over: unpack or convert it to one of "
                f"{', '.join(KINDS)}, move it elsewhere, or give a pattern such as '*.npy'"
            )
            raise FormatError(msg)
    if not files:
        msg = f"{where} holds no file of a known kind: {', '.join(KINDS)}"
        raise FormatError(msg)
    return sorted(files, key=natural_order)


def _check_folder(folder: Place, taken: set[Place], where: str) -> None:
    datasets = tuple(f"{os.fspath(path)}/" for path in taken if path.suffix.lower() == SUFFIX)
    for path in _files_below(folder):
        is_taken = path in taken or os.fspath(path).startswith(datasets)
        if not is_taken and not _is_hidden(path) and _looks_like_vectors(path):
            msg = (
                f"{where} holds a folder with {path}, which would be passed over: move it elsewhere, or "
                "give a pattern such as '**/*.npy' that names the files of all folders"
            )
            raise FormatError(msg)


def _files_below(folder: Place) -> Iterator[Place]:
    """The files in a folder and all folders in it that are not hidden."""
    if isinstance(folder, RemotePath):
        above = len(folder.parts)
        for path in folder.files():
            if not any(name.startswith((".", "_")) for name in path.parts[above:-1]):
                yield path
        return
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (Path(place, name) for name in names)


def _is_hidden(path: Place) -> bool:
    return path.name.startswith((".", "_"))


def _is_in_dataset(path: Place) -> bool:
    """Whether a pattern found a piece of a Lance dataset, whose name ends as the dataset's."""
    return any(part.lower().endswith(SUFFIX) for part in path.parts[:-1])


def _looks_like_vectors(path: Place) -> bool:
    """Whether a file looks like embeddings, perhaps compressed or unfinished, such as a.npy.gz."""
    last = path.suffix.lower()
    if last in KINDS or last in _OTHER_KINDS:
        return True
    return last not in _NOTES and any(suffix.lower() in KINDS for suffix in path.suffixes[:-1])


def natural_order(path: Place) -> list[tuple[list[str | int], str]]:
    """A sort key for paths that orders numbers within names by value."""
    # Every second piece is a number, so strings and numbers are never compared.
    pieces = [(re.split(r"([0-9]+)", part), part) for part in path.parts]
    return [([int(x) if place % 2 else x for place, x in enumerate(each)], part) for each, part in pieces]
