"""Directories on disk: a manifest, arrays that can be memory-mapped, and a model's tensors.

    path/
      manifest.json          format version, shapes, checksums; replaced in one step
      data-<token>/          the files that the manifest names
        model.safetensors
        <array>.npy

Links are refused: whoever prepared a directory could make us read any file by one.

A writer writes new data next to the old, replaces the manifest atomically, then removes the old data, and
syncs each step before the next: a crash or a power cut at any point leaves the old directory or the new one.
Writers need not know of each other: each writes to its own folder and holds the folder's lock. The last to
replace the manifest wins, and removes folders that the manifest does not name and nobody holds.

A directory in a store, such as s3://bucket/name, has the same files. A writer makes them in a temporary
folder, uploads the data under a new name, then the manifest, one object that the store replaces as a whole,
then removes the data that the old manifest named. A crash leaves the old directory or the new one, too. As
stores have no locks, nobody can tell data that a crash has left from data that are being written: they stay.
A reader copies the data to a temporary folder, and reads them there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap as mmap_module
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index.checks import as_place, check_int
from compressae_index.errors import CompressaeError, FormatError, InputError, NewerFormatError
from compressae_index.npy import read_header
from compressae_index.progress import track
from compressae_index.remote import Place, RemotePath
from compressae_index.storage import (
    TemporaryFolder,
    accessing,
    check_writable,
    download,
    make_folders,
    new_file,
    open_file,
    own_folder,
    remove_empty,
    sweep,
    sync,
    sync_folder,
)

T = TypeVar("T")

FORMAT = "compressae-index"
FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
_TENSOR_FILE = "model.safetensors"
_PREFIX = "data-"
_DATA = re.compile(rf"{_PREFIX}[0-9a-f]{{8}}")


class Stored(NamedTuple):
    """The contents of a directory."""

    meta: dict[str, Any]
    """The caller's own entry of the manifest."""
    arrays: dict[str, npt.NDArray[Any]]
    """Arrays by name."""
    tensors: dict[str, npt.NDArray[Any]]
    """The model's parameters by name."""
    files: dict[str, Path]
    """Other files by name."""
    checksum: str
    """The manifest's checksum, which changes with the contents."""
    copy: TemporaryFolder | None = None
    """What holds copies of `files` from a store; they go with it."""


class NewFile(NamedTuple):
    """A file that `write` makes beside those of arrays and tensors."""

    write: Callable[[Path, Callable[[int], object]], object]
    """Writes it to a path, and calls the function with the bytes of each step."""
    nbytes: int
    """Its size, or about that: the sum of these steps."""


class Contents(NamedTuple):
    """What `write` takes beside the path and the kind."""

    meta: dict[str, Any]
    """The writer's own entry of the manifest."""
    arrays: Mapping[str, npt.NDArray[Any]]
    """Arrays by name."""
    tensors: Mapping[str, npt.NDArray[Any]]
    """The model's parameters by name."""
    files: Mapping[str, NewFile]
    """Other files by name."""

    @property
    def nbytes(self) -> int:
        """About the size of all files."""
        arrays = [*self.arrays.values(), *self.tensors.values()]
        return sum(array.nbytes for array in arrays) + sum(file.nbytes for file in self.files.values())


class Mapped(NamedTuple):
    """Path and checksum of mapped arrays, for another process to map them too."""

    path: Place
    checksum: str

    @classmethod
    def of(cls, path: Place, stored: Stored) -> Mapped:
        """Of a directory that was read, by its absolute path: working directories may differ."""
        return cls(path.absolute(), stored.checksum)

    def check(self, found: Mapped | None) -> None:
        """Checks that another process found the same contents at the path.

        Raises:
            FormatError: the directory was written anew.
        """
        if self != found:
            msg = (
                f"{self.path} was written anew since an index that maps it was pickled: "
                "load and pickle it again"
            )
            raise FormatError(msg)


def write(
    path: str | os.PathLike[str],
    kind: str,
    meta: Mapping[str, Any],
    *,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    tensors: Mapping[str, npt.NDArray[Any]],
    files: Mapping[str, NewFile] | None = None,
    progress: bool = False,
) -> None:
    """Writes a directory of the given kind, replacing an older one of this kind.

    Args:
        path: the directory, or its address in a store.
        kind: the kind of its contents.
        meta: the caller's own entry of the manifest.
        arrays: arrays by name.
        tensors: the model's parameters by name.
        files: other files by name.
        progress: show a progress bar.

    Raises:
        FormatError: another kind is at `path`, or something that this package did not write.
        StorageError: the disk is full or refuses; what was there before is untouched.
    """
    place = as_place(path)
    check_target(place, kind)
    contents = Contents(dict(meta), arrays or {}, tensors, files or {})
    # Written, read for checksums, and uploaded.
    steps = 3 if isinstance(place, RemotePath) else 2
    with track(steps * contents.nbytes, "saving", enabled=progress, unit="B") as advance:
        if isinstance(place, RemotePath):
            _write_remotely(place, kind, contents, advance)
        else:
            _write_here(place, kind, contents, advance)


def _write_here(path: Path, kind: str, contents: Contents, advance: Callable[[int], object]) -> None:
    with accessing(path, "written"):
        with _new_data(path) as folder:
            described = _written(folder, contents, advance)
            sync_folder(folder)
            sync_folder(path)  # the folder's name must be on disk before a manifest names it
            content = {"meta": contents.meta, "data": folder.name, "files": described}
            previous = write_manifest(path, kind, content, aside=folder / _MANIFEST)
        if previous is not None:
            # Nobody writes to a folder that a manifest named, so no lock is needed.
            shutil.rmtree(path / previous, ignore_errors=True)
        with suppress(OSError):  # the save itself is complete
            _sweep(path)


def _write_remotely(
    path: RemotePath, kind: str, contents: Contents, advance: Callable[[int], object]
) -> None:
    made = TemporaryFolder()
    try:
        with accessing(made.path, "written"):
            described = _written(made.path, contents, advance)
        with accessing(path, "written"):
            data = _upload(path, made.path, advance)
            content = {"meta": contents.meta, "data": data.name, "files": described}
            # If this fails, the store may have the manifest, or get it later: the data must stay.
            previous = put_manifest(path, kind, content)
    finally:
        made.remove()
    if previous is not None:
        with suppress(OSError):  # the save itself is complete
            (path / previous).remove()


def _upload(path: RemotePath, folder: Path, advance: Callable[[int], object]) -> RemotePath:
    """Copies files to a new data folder in a store; if that fails, what was written is removed."""
    while (data := path / f"{_PREFIX}{secrets.token_hex(4)}").exists():
        pass
    try:
        for file in sorted(folder.iterdir()):
            (data / file.name).upload(file)
            advance(file.stat().st_size)
    except BaseException:
        with suppress(OSError):
            data.remove()
        raise
    return data


@contextmanager
def _new_data(path: Path) -> Iterator[Path]:
    """A folder for new data; if no manifest names it at the end, it and its new parents are removed."""
    made: list[Path] = []
    folder: Path | None = None
    try:
        with ExitStack() as held:
            while folder is None:
                made += make_folders(path)
                with suppress(FileNotFoundError):  # another writer made it, failed and removed it
                    _sweep(path)  # leftovers may be what fills the disk
                    folder = held.enter_context(own_folder(path, _PREFIX))
            yield folder
    except BaseException:
        if folder is not None and not _is_named(path, folder.name):
            shutil.rmtree(folder, ignore_errors=True)
        remove_empty(made)
        raise


def _sweep(path: Path) -> None:
    sweep(path, _DATA.fullmatch, lambda name: _is_named(path, name))


def write_manifest(path: Path, kind: str, content: Mapping[str, Any], *, aside: Path) -> str | None:
    """Replaces the manifest of a directory atomically, by a new file `aside` on the same disk.

    Returns:
        The data folder that the replaced manifest named, if it named one.

    Raises:
        FormatError: another kind, or something foreign, appeared at `path` since `check_target`.
    """
    with new_file(aside) as handle:
        handle.write(_manifest_of(kind, content))
        sync(handle)
    previous = _replaced_by(path, kind, with_data="data" in content)
    os.replace(aside, path / _MANIFEST)
    sync_folder(path)
    return previous


def put_manifest(path: RemotePath, kind: str, content: Mapping[str, Any]) -> str | None:
    """Replaces the manifest of a directory in a store; returns and raises what `write_manifest` does."""
    previous = _replaced_by(path, kind, with_data="data" in content)
    (path / _MANIFEST).write_bytes(_manifest_of(kind, content))
    return previous


def _manifest_of(kind: str, content: Mapping[str, Any]) -> bytes:
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, **content}
    manifest["checksum"] = _manifest_checksum(manifest)
    return json.dumps(manifest, indent=1).encode()


def check_target(path: str | os.PathLike[str], kind: str) -> None:
    """Checks early that `write` can write to a path, for callers with long work before it.

    Raises:
        FormatError: another kind is at `path`, or something that this package did not write.
        StorageError: no permission to write there.
    """
    path = as_place(path)
    check_writable(path)
    with accessing(path, "read"):
        if isinstance(path, RemotePath) and _replaced_by(path, kind) is not None:
            return
        # Whether it exists is asked first: another first write may make the folder meanwhile.
        exists = path.exists()
        is_folder = path.is_dir()
        foreign = exists and not is_folder
        # Without a manifest: empty, or holds a first write that was killed or is under way. Listed before, as
        # that write may end meanwhile.
        names = [entry.name for entry in path.iterdir()] if is_folder else []
        if is_folder and not was_written(path):
            foreign = not all(_DATA.fullmatch(name) for name in names)
        if foreign:
            raise _foreign(path)
        _replaced_by(path, kind)


def was_written(path: Place) -> bool:
    """Whether a path holds a manifest of any kind; a first write that was killed leaves none."""
    with accessing(path, "read"):
        if isinstance(path, RemotePath):
            return (path / _MANIFEST).exists()
        try:
            (path / _MANIFEST).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _replaced_by(path: Place, kind: str, *, with_data: bool = True) -> str | None:
    """The data folder that the manifest at a path names, or None without a manifest.

    Raises:
        FormatError: the manifest is of another kind, or foreign.
    """
    try:
        manifest = _parsed(path)
        found, data = manifest["kind"], manifest.get("data")
        ours = manifest["format"] == FORMAT and isinstance(found, str)
    except FileNotFoundError:
        return None
    except (FormatError, IsADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if ours and found != kind:
        msg = (
            f"{path} holds: {found}; expected: {kind}, or nothing; use another path, or remove what is there"
        )
        raise FormatError(msg)
    # The named folder will be deleted, so the name must be one that this module gives.
    if not ours or (with_data and not _is_data(data)):
        raise _foreign(path)
    return data if with_data else None


def _foreign(path: Place) -> FormatError:
    return FormatError(f"{path} exists and was not written by compressae-index; it is left as it is")


def _is_named(path: Path, data: str) -> bool:
    """Whether the manifest at a path names a data folder; True in doubt."""
    try:
        return bool(_parsed(path)["data"] == data)
    except FileNotFoundError:
        return False
    except (FormatError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return True


def _is_data(name: object) -> bool:
    return isinstance(name, str) and _DATA.fullmatch(name) is not None


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of a directory: "index", "model", "codes", "checkpoint" or "faiss index".

    Raises:
        FormatError: there is none, or it is foreign or damaged.
        NewerFormatError: a newer version of this package wrote it.
        StorageError: it cannot be read.
    """
    return str(read_manifest(as_place(path), None)["kind"])


def data_files(path: Path, kind: str) -> list[str]:
    """The data of a directory of the given kind, relative to it, as its manifest names them.

    Raises:
        FormatError, NewerFormatError, StorageError: as for `read`, of the manifest; files are not looked at.
    """
    manifest = read_manifest(path, kind)
    with reading(str(path)):
        return [f"{_data_name(manifest)}/{_bare(name)}" for name in entry(manifest, "files", dict)]


def read(
    path: str | os.PathLike[str],
    kind: str,
    *,
    mmap: bool = False,
    always_mapped: Collection[str] = (),
    progress: bool = False,
) -> Stored:
    """Reads a directory of the given kind and checks all of it.

    Args:
        path: the directory, or its address in a store.
        kind: the kind it must have.
        mmap: map the arrays instead of reading them into memory. Checksums are still verified, by reading
            the files once; the pages stay in the system's cache.
        always_mapped: names of arrays to map in any case.
        progress: show a progress bar.

    Raises:
        FormatError: with the file that is missing, truncated, foreign, tampered with or a link.
        NewerFormatError: a newer version of this package wrote it.
        StorageError: there is no permission to read it.
    """
    where = as_place(path)
    return unless_replaced(where, lambda: _read(where, kind, mmap, always_mapped, progress))


def unless_replaced(path: Place, attempt: Callable[[], T]) -> T:
    """Reads a directory by `attempt`, again if that failed and a writer replaced the directory meanwhile."""
    while True:
        before = _manifest_bytes(path)
        try:
            return attempt()
        except (FormatError, OSError):
            if _manifest_bytes(path) == before:
                raise


def _manifest_bytes(path: Place) -> bytes | None:
    try:
        return _content(path / _MANIFEST)
    except (FormatError, OSError):
        return None


def _content(file: Place) -> bytes:
    if isinstance(file, RemotePath):
        return file.read_bytes()
    with open_file(file) as handle:
        return handle.read()


def _read(path: Place, kind: str, mmap: bool, always_mapped: Collection[str], progress: bool) -> Stored:
    manifest = read_manifest(path, kind)
    arrays: dict[str, npt.NDArray[Any]] = {}
    tensors: dict[str, npt.NDArray[Any]] = {}
    files: dict[str, Path] = {}
    with accessing(path, "read"), reading(str(path)), ExitStack() as opened:
        data = path / _data_name(manifest)
        copy = TemporaryFolder() if isinstance(data, RemotePath) else None
        if copy is not None:
            opened.push(lambda kind, *_: copy.remove() if kind else None)
        folder = _at_hand(data, manifest["files"], copy)
        # Open all files before reading any, so that a writer can remove them meanwhile.
        handles = {name: opened.enter_context(open_file(folder / _bare(name))) for name in manifest["files"]}
        size = sum(os.fstat(handle.fileno()).st_size for handle in handles.values())
        advance = opened.enter_context(track(size, "loading", enabled=progress, unit="B"))
        for name, handle in handles.items():
            file = data / name
            _verify(handle, file, manifest["files"][name], advance)
            if name == _TENSOR_FILE:
                from safetensors.numpy import load

                tensors = load(handle.read())
            elif file.suffix == ".npy":
                arrays[file.stem] = _read_array(handle, file, mmap or file.stem in always_mapped)
            else:
                files[name] = folder / name
        return Stored(entry(manifest, "meta", dict), arrays, tensors, files, manifest["checksum"], copy)


def _data_name(manifest: Mapping[str, Any]) -> str:
    name: str = manifest["data"]
    if not _is_data(name):
        msg = f"its manifest names {name!r} as the folder of its data"
        raise ValueError(msg)
    return name


def _at_hand(data: Place, files: Mapping[str, Any], copy: TemporaryFolder | None) -> Path:
    """A local folder with the files of a data folder, which is `copy` for one in a store."""
    if isinstance(data, RemotePath):
        assert copy is not None
        for name, described in files.items():
            download(data / _bare(name), copy.path / name, check_int(described["bytes"], "bytes", 0))
        return copy.path
    if data.is_symlink():
        msg = f"{data} is a link, and links are not followed: put a copy of the folder in its place"
        raise FormatError(msg)
    return data


def _bare(name: str) -> str:
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        msg = f"its manifest names a file {name!r}"
        raise ValueError(msg)
    return name


def _read_array(handle: BufferedReader, file: Place, mmap: bool) -> npt.NDArray[Any]:
    """Reads an array whose size fits the file; np.load would also take archives."""
    header = read_header(handle, file)
    empty = 0 in header.shape
    # After a header of odd length, the numbers are not aligned.
    if mmap and not empty and header.offset % header.dtype.alignment == 0:
        order: Literal["F", "C"] = "F" if header.fortran_order else "C"
        return np.memmap(handle, header.dtype, "r", header.offset, header.shape, order)
    handle.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
    return array


def entry(content: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """An entry of a manifest, checked to have a type.

    Raises:
        InputError: it is missing or of another type.
    """
    value = content.get(name)
    if not isinstance(value, kind):
        msg = f"{name} in its manifest must be of type {kind.__name__}, got {value!r:.100}"
        raise InputError(msg)
    return value


def release_pages(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Gives the pages of mapped arrays back to the system, which reads them again on demand."""
    for array in arrays.values():
        base: Any = array.base
        if isinstance(base, mmap_module.mmap) and hasattr(mmap_module, "MADV_DONTNEED"):
            base.madvise(mmap_module.MADV_DONTNEED)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns errors that damaged contents cause in the code inside into a FormatError about `what`."""
    try:
        yield
    except (FormatError, OSError, MemoryError):
        raise
    except KeyError as error:
        msg = f"{what} is damaged: it lacks {error}"
        raise FormatError(msg) from error
    except Exception as error:
        # Errors of our checks are sentences; others need their type's name.
        name = "" if isinstance(error, (CompressaeError, ValueError)) else f"{type(error).__name__}: "
        msg = f"{what} is damaged: {name}{error}"
        raise FormatError(msg) from error


def _written(folder: Path, contents: Contents, advance: Callable[[int], object]) -> dict[str, Any]:
    """Writes and syncs files in a folder, which the caller syncs; returns their entries in a manifest."""
    from safetensors.numpy import save

    for name, file in contents.files.items():
        file.write(folder / name, advance)
        with (folder / name).open("rb+") as handle:
            os.fsync(handle.fileno())
    with new_file(folder / _TENSOR_FILE) as handle:
        advance(handle.write(save(dict(contents.tensors))))
        sync(handle)
    for name, array in contents.arrays.items():
        with new_file(folder / f"{name}.npy") as handle:
            # If numpy wrote to the file itself, an error would give the bytes written, but not the reason.
            target: Any = SimpleNamespace(write=lambda data, handle=handle: advance(handle.write(data)))
            np.save(target, array, allow_pickle=False)
            sync(handle)
    return {file.name: describe(file, advance) for file in sorted(folder.iterdir())}


def describe(file: Path, advance: Callable[[int], object] | None = None) -> dict[str, Any]:
    """A file's entry in a manifest: its size and checksum; its steps are counted."""
    with file.open("rb") as handle:
        return _described(handle, advance)


def _described(handle: BufferedReader, advance: Callable[[int], object] | None = None) -> dict[str, Any]:
    size, digest, block = os.fstat(handle.fileno()).st_size, hashlib.sha256(), memoryview(bytearray(1 << 20))
    while count := handle.readinto(block):
        digest.update(block[:count])
        if advance is not None:
            advance(count)
    return {"bytes": size, "sha256": digest.hexdigest()}


def verify(file: Path, expected: Mapping[str, Any]) -> None:
    """Compares a file with the result of `describe`.

    Raises:
        FormatError: it is missing, a link, of another size or does not match its checksum.
    """
    with open_file(file) as handle:
        _verify(handle, file, expected)


def _verify(
    handle: BufferedReader,
    file: Place,
    expected: Mapping[str, Any],
    advance: Callable[[int], object] | None = None,
) -> None:
    """Like `verify`, for an open file, whose steps are counted; seeks back to its start."""
    size = os.fstat(handle.fileno()).st_size
    if size != expected["bytes"]:
        msg = f"{file} holds {size} bytes, its manifest says {expected['bytes']}"
        raise FormatError(msg)
    if _described(handle, advance)["sha256"] != expected["sha256"]:
        msg = f"{file} does not match its checksum"
        raise FormatError(msg)
    handle.seek(0)


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Place, kind: str | None) -> dict[str, Any]:
    """The manifest of a directory of the given kind, or of any for None, with its checksum verified.

    Raises:
        FormatError: there is none, or it is foreign, damaged, or of another kind.
        NewerFormatError: a newer version of this package wrote it.
        StorageError: there is no permission to read it.
    """
    with accessing(path, "read"):
        try:
            manifest = _parsed(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if path.is_dir():
                msg = f"{path} holds no {_MANIFEST}, so it is not a compressae-index directory"
            else:
                msg = f"{path} is not a directory" if path.exists() else f"{path} does not exist"
            raise FormatError(msg) from None
        except (ValueError, RecursionError) as error:
            msg = f"{path / _MANIFEST} is truncated or not JSON: {error}"
            raise FormatError(msg) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        msg = f"{path / _MANIFEST} was not written by compressae-index"
        raise FormatError(msg)
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        msg = f"{path / _MANIFEST} is damaged: its format version is {version!r}"
        raise FormatError(msg)
    if version > FORMAT_VERSION:
        msg = f"{path} has format version {version}, but this compressae-index reads up to {FORMAT_VERSION}"
        raise NewerFormatError(msg)
    if manifest.get("checksum") != _manifest_checksum(manifest):
        msg = f"{path / _MANIFEST} does not match its own checksum: it was changed after it was written"
        raise FormatError(msg)
    if not isinstance(manifest.get("kind"), str) or kind not in (None, manifest["kind"]):
        msg = f"{path} holds: {manifest.get('kind')}; expected: {kind or 'a kind'}"
        raise FormatError(msg)
    return manifest


def _parsed(path: Place) -> Any:
    """The parsed JSON of a manifest, unchecked.

    Raises:
        FileNotFoundError, IsADirectoryError: there is none.
        FormatError: it is a link or not a file.
        ValueError, RecursionError: it is not JSON.
    """
    file = path / _MANIFEST
    if isinstance(file, Path) and stat.S_ISDIR(file.lstat().st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    return json.loads(_content(file))
