"""Where a job in pieces writes to: a folder that all workers see, or a store.

    output/
      manifest.json          the pieces and what they share, once all are finished; replaced at once
      pieces/<name>          what a piece wrote, complete once there is a record of it
      records/<name>.json    rows and skipped rows of a finished piece, and what tells its files from others:
                             sizes and checksums, or what the store says of its objects

What no manifest names is removed after it was replaced.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from compressae_index import persistence
from compressae_index.embedded.merging import PIECES
from compressae_index.errors import FormatError
from compressae_index.remote import Place, RemotePath
from compressae_index.storage import (
    FolderLock,
    TemporaryFolder,
    accessing,
    check_writable,
    make_folders,
    new_file,
    sync,
    sync_folder,
)

_RECORDS = "records"
_ASIDE = ".writing-"


class Finished(NamedTuple):
    """A piece that was written, or has nothing to write."""

    name: str | None
    """None where all rows are bad."""
    rows: int
    skipped: int
    """Bad rows that were left out."""
    is_new: bool
    """Whether this run wrote it."""


class Output(Protocol):
    """Where pieces go. It is pickled, and sent to every worker."""

    @property
    def path(self) -> Place:
        """The folder."""
        ...

    def opened(self, kind: str) -> AbstractContextManager[None]:
        """A context in which this driver works on a job that publishes this kind.

        Raises:
            FormatError: something else is there, or another driver works on it.
            StorageError: there is no permission to write it.
        """
        ...

    def holds(self, name: str) -> bool:
        """Whether a piece was finished, and is as it was written."""
        ...

    def put(self, finished: Finished, write: Callable[[Path], object]) -> None:
        """Writes a piece by a function that gets a path which does not exist, then its record."""
        ...

    def publish(self, kind: str, content: Mapping[str, Any], is_ours: Callable[[str], object]) -> None:
        """Replaces the manifest, and removes pieces of ours that it does not name."""
        ...


def output_at(path: Place) -> Output:
    """The output at a path."""
    return InStore(path) if isinstance(path, RemotePath) else InFolder(path)


def _record(finished: Finished, **identity: Any) -> bytes:
    content = {"rows": finished.rows, "skipped": finished.skipped, **identity}
    return json.dumps(content, indent=1).encode()


def _unnamed(content: Mapping[str, Any], names: list[str], is_ours: Callable[[str], object]) -> list[str]:
    kept = {each["name"] for each in content["pieces"]}
    return [name for name in names if is_ours(name) and name not in kept]


class InFolder:
    """In a folder of a file system that all workers see."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self, kind: str) -> Iterator[None]:
        """Makes the folder, and keeps other drivers out of it."""
        path = self.path
        check_writable(path)
        with accessing(path, "written"):
            if path.exists() and not self._is_fresh():
                persistence.read_manifest(path, kind)
            make_folders(path / _RECORDS)
            make_folders(path / PIECES)
            try:
                lock = FolderLock(path.resolve())
            except BlockingIOError:
                msg = f"another process is writing to {path}: wait for it, or use another folder"
                raise FormatError(msg) from None
            with lock:
                for left in path.glob(f"{_ASIDE}*"):  # of workers that were killed
                    _remove(left)
                yield

    def _is_fresh(self) -> bool:
        """Whether the folder is empty, or holds the pieces of a first run that did not end."""
        if not self.path.is_dir() or persistence.was_written(self.path):
            return False
        names = {entry.name for entry in self.path.iterdir()}
        return not names or _RECORDS in names

    def holds(self, name: str) -> bool:
        """Reads the files of the piece, and compares them with their checksums."""
        try:
            expected = json.loads(self._record_of(name).read_bytes())["files"]
            files = self._files(name)
            if {str(file.relative_to(self.path)) for file in files} != set(expected):
                return False
            for file in files:
                persistence.verify(file, expected[str(file.relative_to(self.path))])
        except (FormatError, OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def put(self, finished: Finished, write: Callable[[Path], object]) -> None:
        """Writes a piece aside, and gives it its name when it is complete."""
        name = str(finished.name)
        with accessing(self.path, "written"), self._aside(name) as aside:
            write(aside)
            target = self.path / PIECES / name
            if target.exists():  # a killed worker left it without a record
                _remove(target)
            os.replace(aside, target)
            sync_folder(target.parent)
            files = {
                str(file.relative_to(self.path)): persistence.describe(file) for file in self._files(name)
            }
            self._write_record(name, _record(finished, files=files))

    def _write_record(self, name: str, content: bytes) -> None:
        file = self._record_of(name)
        with self._aside(file.name) as aside:
            with new_file(aside) as handle:
                handle.write(content)
                sync(handle)
            os.replace(aside, file)
        sync_folder(file.parent)

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        """A path for what is not complete; nothing is left there."""
        aside = self.path / f"{_ASIDE}{secrets.token_hex(4)}-{name}"
        try:
            yield aside
        finally:
            _remove(aside)

    def _record_of(self, name: str) -> Path:
        return self.path / _RECORDS / f"{name}.json"

    def _files(self, name: str) -> list[Path]:
        """The files of a piece, in order."""
        path = self.path / PIECES / name
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    def publish(self, kind: str, content: Mapping[str, Any], is_ours: Callable[[str], object]) -> None:
        """Replaces the manifest atomically."""
        with accessing(self.path, "written"):
            with self._aside("manifest.json") as aside:
                persistence.write_manifest(self.path, kind, content, aside=aside)
            names = [entry.name for entry in (self.path / PIECES).iterdir()]
            for name in _unnamed(content, names, is_ours):
                with suppress(OSError):
                    _remove(self.path / PIECES / name)
                    self._record_of(name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class InStore:
    """In a store such as S3; a worker makes a piece in its temporary folder, and uploads it.

    Stores have no locks: nobody but the user keeps two drivers from working on one output.
    """

    def __init__(self, path: RemotePath) -> None:
        self.path = path

    @contextmanager
    def opened(self, kind: str) -> Iterator[None]:
        """Checks what is there."""
        check_writable(self.path)
        with accessing(self.path, "written"):
            names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
            is_fresh = not self.path.is_file() and (not names or _RECORDS in names or PIECES in names)
            if not is_fresh or persistence.was_written(self.path):
                persistence.read_manifest(self.path, kind)
        yield

    def holds(self, name: str) -> bool:
        """Compares what the store says of the piece's objects with what it said when they were written."""
        try:
            return bool(json.loads(self._record_of(name).read_bytes())["objects"] == self._identity(name))
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def put(self, finished: Finished, write: Callable[[Path], object]) -> None:
        """Writes a piece to the temporary folder, and uploads it."""
        name = str(finished.name)
        made = TemporaryFolder()
        try:
            write(made.path / name)
            with accessing(self.path, "written"):
                self._upload(made.path / name, self.path / PIECES / name)
                self._record_of(name).write_bytes(_record(finished, objects=self._identity(name)))
        finally:
            made.remove()

    def _upload(self, source: Path, target: RemotePath) -> None:
        if target.exists():  # a killed worker left it without a record
            target.remove()
        if not source.is_dir():
            target.upload(source)
            return
        for file in sorted(each for each in source.rglob("*") if each.is_file()):
            (target / file.relative_to(source).as_posix()).upload(file)

    def _identity(self, name: str) -> list[Any]:
        return [*json.loads(json.dumps((self.path / PIECES / name).identity()))]

    def _record_of(self, name: str) -> RemotePath:
        return self.path / _RECORDS / f"{name}.json"

    def publish(self, kind: str, content: Mapping[str, Any], is_ours: Callable[[str], object]) -> None:
        """Replaces the manifest, one object."""
        with accessing(self.path, "written"):
            persistence.put_manifest(self.path, kind, content)
            names = [entry.name for entry in (self.path / PIECES).iterdir()]
            for name in _unnamed(content, names, is_ours):
                with suppress(OSError):
                    (self.path / PIECES / name).remove()
                    self._record_of(name).remove()
