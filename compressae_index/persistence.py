"""Directories on disk: a manifest, arrays that can be memory-mapped, and a model's tensors.

    path/
      manifest.json          format version, shapes, checksums; replaced in one step
      data-<token>/          the files that the manifest names
        model.safetensors
        <array>.npy

New data are written beside the old ones, then the manifest is replaced atomically, then the old data are
removed: a crash at any point leaves the old directory or the new one.
"""

from __future__ import annotations

import hashlib
import json
import mmap as mmap_module
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from compressae_index.errors import CompressaeError, FormatError, InputError, NewerFormatError
from compressae_index.npy import read_header

T = TypeVar("T")

FORMAT = "compressae-index"
FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
_TENSOR_FILE = "model.safetensors"
_DATA = re.compile(r"data-[0-9a-f]{8}")


class Stored(NamedTuple):
    """What a directory holds."""

    meta: dict[str, Any]
    """The caller's own entry of the manifest."""
    arrays: dict[str, npt.NDArray[Any]]
    """Arrays by name."""
    tensors: dict[str, npt.NDArray[np.float32]]
    """The model's parameters by name."""
    files: dict[str, Path]
    """Files of another form, by name."""


def write(
    path: str | Path,
    kind: str,
    meta: Mapping[str, Any],
    *,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    files: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Writes a directory of the given kind, replacing an older one of ours.

    Args:
        path: the directory.
        kind: what it holds.
        meta: the caller's own entry of the manifest.
        arrays: arrays by name.
        tensors: the model's parameters by name.
        files: files of another form by name, and what writes them to a path.

    Raises:
        FormatError: something that this package did not write is at `path`.
        OSError: the disk is full or refuses; what was there before is untouched.
    """
    path = Path(path)
    existed = path.exists()
    previous = _previous_data(path)
    data = f"data-{secrets.token_hex(4)}"
    try:
        (path / data).mkdir(parents=True)
        for name, write_file in (files or {}).items():
            write_file(path / data / name)
        _write_files(path / data, arrays or {}, tensors)
        described = {file.name: describe(file) for file in sorted((path / data).iterdir())}
        content = {"meta": dict(meta), "data": data, "files": described}
        write_manifest(path, kind, content, aside=path / data / _MANIFEST)
    except BaseException:
        shutil.rmtree(path / data if existed else path, ignore_errors=True)
        raise
    if previous is not None:
        shutil.rmtree(path / previous, ignore_errors=True)


def write_manifest(path: Path, kind: str, content: Mapping[str, Any], *, aside: Path) -> None:
    """Replaces the manifest of a directory in one step, by way of a file `aside` on the same disk."""
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, **content}
    manifest["checksum"] = _manifest_checksum(manifest)
    _write_durably(aside, json.dumps(manifest, indent=1).encode())
    os.replace(aside, path / _MANIFEST)


def check_target(path: str | Path) -> None:
    """Refuses what `write` would refuse, for callers whose work before it takes a while.

    Raises:
        FormatError: something that this package did not write is at `path`.
    """
    _previous_data(Path(path))


def check_parents(path: Path) -> None:
    """Refuses a path that lies below a file.

    Raises:
        FormatError: with the parent that is not a directory.
    """
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            msg = f"{path} cannot be written, as {parent} is not a directory"
            raise FormatError(msg)


def read(path: str | Path, kind: str, *, mmap: bool = False) -> Stored:
    """Reads a directory of the given kind and checks all of it.

    Args:
        path: the directory.
        kind: what it must hold: "index" or "model".
        mmap: map the arrays instead of reading them into memory. Their checksums are still verified, by
            reading the files once; the pages stay the operating system's.

    Raises:
        FormatError: with the file that is missing, truncated, foreign or tampered with.
        NewerFormatError: a newer version of this package wrote it.
    """
    path = Path(path)
    manifest = read_manifest(path, kind)
    arrays: dict[str, npt.NDArray[Any]] = {}
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    files: dict[str, Path] = {}
    with reading(str(path)):
        for name, expected in manifest["files"].items():
            file = path / manifest["data"] / Path(name).name
            verify(file, expected)
            if name == _TENSOR_FILE:
                from safetensors.numpy import load_file

                tensors = load_file(file)
            elif file.suffix == ".npy":
                arrays[file.stem] = _read_array(file, mmap)
            else:
                files[name] = file
        return Stored(entry(manifest, "meta", dict), arrays, tensors, files)


def _read_array(file: Path, mmap: bool) -> npt.NDArray[Any]:
    """Not by np.load, which would also take archives, and only what the file is long enough for."""
    read_header(file)
    if mmap:
        return np.lib.format.open_memmap(file, mode="r")
    with file.open("rb") as handle:
        array: npt.NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
        return array


def entry(content: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """An entry of a manifest, of the type that it must have.

    Raises:
        InputError: it is missing or of another type.
    """
    value = content.get(name)
    if not isinstance(value, kind):
        msg = f"{name} in its manifest must be of type {kind.__name__}, got {value!r:.100}"
        raise InputError(msg)
    return value


def release_pages(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Lets the system take back what was read of mapped arrays; it is read again where it is needed."""
    for array in arrays.values():
        base: Any = array.base
        if isinstance(base, mmap_module.mmap) and hasattr(mmap_module, "MADV_DONTNEED"):
            base.madvise(mmap_module.MADV_DONTNEED)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever damaged content makes the code inside raise into a FormatError about `what`."""
    try:
        yield
    except (FormatError, OSError, MemoryError):
        raise
    except KeyError as error:
        msg = f"{what} is damaged: it lacks {error}"
        raise FormatError(msg) from error
    except Exception as error:
        # Errors of checks are sentences; others need their name.
        name = "" if isinstance(error, (CompressaeError, ValueError)) else f"{type(error).__name__}: "
        msg = f"{what} is damaged: {name}{error}"
        raise FormatError(msg) from error


def _write_files(
    folder: Path, arrays: Mapping[str, npt.NDArray[Any]], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), folder / _TENSOR_FILE)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    for file in folder.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def _write_durably(file: Path, content: bytes) -> None:
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def describe(file: Path) -> dict[str, Any]:
    """What a manifest holds of a file: its size and checksum."""
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def verify(file: Path, expected: Mapping[str, Any]) -> None:
    """Compares a file with what `describe` gave.

    Raises:
        FormatError: it is missing, of another size or does not match its checksum.
    """
    if not os.path.isfile(file):  # also where the name is one that no file may have
        msg = f"{file} is missing"
        raise FormatError(msg)
    size = file.stat().st_size
    if size != expected["bytes"]:
        msg = f"{file} holds {size} bytes, its manifest says {expected['bytes']}"
        raise FormatError(msg)
    if describe(file)["sha256"] != expected["sha256"]:
        msg = f"{file} does not match its checksum"
        raise FormatError(msg)


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """The manifest of a directory of the given kind, its own checksum verified.

    Raises:
        FormatError: there is none, or it is foreign, damaged, or of another kind.
        NewerFormatError: a newer version of this package wrote it.
    """
    if not path.is_dir():
        msg = f"{path} is not a directory" if path.exists() else f"{path} does not exist"
        raise FormatError(msg)
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        msg = f"{path} holds no {_MANIFEST}, so it is not a compressae-index directory"
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
    if manifest.get("kind") != kind:
        msg = f"{path} holds: {manifest.get('kind')}; expected: {kind}"
        raise FormatError(msg)
    return manifest


def _previous_data(path: Path) -> str | None:
    """The data folder that a write to `path` replaces, or None where there is nothing yet."""
    check_parents(path)
    if not path.exists():
        return None
    # Empty, or left by a first write that was killed.
    if path.is_dir() and all(_DATA.fullmatch(entry.name) for entry in path.iterdir()):
        return None
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        data: str = manifest["data"]
        # The name decides what is deleted, so it must be one that this module gives.
        ours = manifest["format"] == FORMAT and _DATA.fullmatch(data) is not None
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        msg = f"{path} exists and was not written by compressae-index; it is left as it is"
        raise FormatError(msg)
    return data
