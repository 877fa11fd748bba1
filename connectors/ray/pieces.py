"""A job in pieces: runs of rows, each written to a file or folder of its own, and published together.

    output/
      manifest.json          the pieces and what they share, once all are finished; replaced at once
      pieces/<name>          what a piece wrote, complete from the moment that it has this name, which is
                             <stem>-000012-<digest><suffix>
      records/<name>.json    rows, skipped rows, sizes and checksums of a finished piece

The digest is of the rows, their ids and all settings. So a finished piece stays when a job is run again, rows
that changed give a new piece beside the old one, and the manifest names pieces of one run alone. What no
manifest names is removed after it was replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from compressae_index import persistence
from compressae_index.arrays import IdArray
from compressae_index.embedded.merging import PIECES
from compressae_index.errors import FormatError
from compressae_index.ids import pack_strings
from compressae_index.sources import CHUNK_ROWS, BadRows, GoodRows, Vectors, checked_rows, open_vectors
from compressae_index.sources.base import Run
from compressae_index.storage import (
    FolderLock,
    accessing,
    check_writable,
    make_folders,
    new_file,
    sync,
    sync_folder,
)

_RECORDS = "records"
_ASIDE = ".writing-"
_DIGITS = 16


class Work(Protocol):
    """What a job does with the rows of a piece. It is pickled, and sent to every worker."""

    kind: str
    """Of the published folder, in its manifest."""
    stem: str
    """What names of pieces begin with."""
    suffix: str
    """And end with."""

    def settings(self) -> dict[str, Any]:
        """All that decides what is written, as JSON; the manifest holds it."""
        ...

    def write(self, vectors: Vectors, ids: IdArray, target: Path) -> None:
        """Writes the rows (n, d) and their ids (n,) to a path that does not exist."""
        ...


class Piece(NamedTuple):
    """A run of rows."""

    number: int
    first: int
    end: int
    ids: IdArray | None
    """(end - first,) ids of its rows; None for their numbers in the source."""


class Finished(NamedTuple):
    """A piece that was written, or has nothing to write."""

    name: str | None
    """None where all rows are bad."""
    rows: int
    skipped: int
    """Bad rows that were left out."""
    is_new: bool
    """Whether this run wrote it."""


@dataclass(frozen=True)
class Job:
    """Rows of a source, what to do with them, and where to.

    Attributes:
        source: paths that every worker can open, as `open_vectors` takes them.
        dataset: the data set or column of a file.
        on_bad_rows: "error", or "skip".
        work: what to do.
        output: a folder that every worker can write to.
    """

    source: Any
    dataset: str
    on_bad_rows: BadRows
    work: Work
    output: Path

    def finish(self, piece: Piece) -> Finished:
        """Writes a piece, unless it is there already.

        Raises:
            InputError: bad rows, with their file.
        """
        vectors, ids, skipped = self._rows(piece)
        if not len(ids):
            return Finished(None, 0, skipped, is_new=False)
        work = self.work
        name = f"{work.stem}-{piece.number:06d}-{_digest(work.settings(), vectors, ids)}{work.suffix}"
        finished = Finished(name, len(ids), skipped, is_new=False)
        with accessing(self.output, "written"):
            if self._is_intact(name):
                return finished
            aside = self.output / f"{_ASIDE}{secrets.token_hex(4)}-{name}"
            try:
                work.write(vectors, ids, aside)
                self._put(aside, name)
            finally:
                _remove(aside)
            self._record(name, finished)
        return finished._replace(is_new=True)

    def _rows(self, piece: Piece) -> tuple[Vectors, IdArray, int]:
        opened = open_vectors(self.source, dataset=self.dataset)
        run: Vectors = Run(opened, piece.first, piece.end)
        ids = np.arange(piece.first, piece.end) if piece.ids is None else piece.ids
        if self.on_bad_rows == "error":
            return run, ids, 0
        good = GoodRows(run, may_be_empty=True)
        return Run(good, 0, good.shape[0]), ids[good.kept], len(good.skipped)

    def _put(self, aside: Path, name: str) -> None:
        """Gives a piece its name; one that a killed worker left without a record goes."""
        target = self.output / PIECES / name
        if target.exists():
            _remove(target)
        os.replace(aside, target)
        sync_folder(target.parent)

    def _record(self, name: str, finished: Finished) -> None:
        content = {
            "rows": finished.rows,
            "skipped": finished.skipped,
            "files": {
                str(file.relative_to(self.output)): persistence.describe(file) for file in self._files(name)
            },
        }
        file = self._record_of(name)
        aside = file.with_name(f"{_ASIDE}{secrets.token_hex(4)}-{file.name}")
        try:
            with new_file(aside) as handle:
                handle.write(json.dumps(content, indent=1).encode())
                sync(handle)
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(file.parent)

    def _record_of(self, name: str) -> Path:
        return self.output / _RECORDS / f"{name}.json"

    def _files(self, name: str) -> list[Path]:
        """The files of a piece, in order."""
        path = self.output / PIECES / name
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    def _is_intact(self, name: str) -> bool:
        """Whether a piece was finished, and its files are as they were written."""
        try:
            expected = json.loads(self._record_of(name).read_bytes())["files"]
            files = self._files(name)
            if {str(file.relative_to(self.output)) for file in files} != set(expected):
                return False
            for file in files:
                persistence.verify(file, expected[str(file.relative_to(self.output))])
        except (FormatError, OSError, ValueError, LookupError, TypeError):
            return False
        return True


def _digest(settings: Mapping[str, Any], vectors: Vectors, ids: IdArray) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for first in range(0, vectors.shape[0], CHUNK_ROWS):
        digest.update(checked_rows(vectors, first, min(first + CHUNK_ROWS, vectors.shape[0])).data)
    for array in pack_strings(ids).values() if ids.dtype == object else (ids,):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:_DIGITS]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def output_of(path: Path, kind: str) -> Iterator[None]:
    """Makes the folder of a job that publishes this kind, and keeps other drivers out of it.

    Raises:
        FormatError: something else is there, or another driver works on it.
        StorageError: there is no permission to write it.
    """
    check_writable(path)
    with accessing(path, "written"):
        if path.exists() and not _is_fresh(path):
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


def _is_fresh(path: Path) -> bool:
    """Whether a folder is empty, or holds the pieces of a first run that did not end."""
    if not path.is_dir() or (path / "manifest.json").exists():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or _RECORDS in names


def publish(job: Job, pieces: list[Finished]) -> None:
    """Replaces the manifest by one of these pieces, and removes pieces that it does not name."""
    content = {
        "meta": job.work.settings(),
        "pieces": [{"name": each.name, "rows": each.rows, "skipped": each.skipped} for each in pieces],
    }
    with accessing(job.output, "written"):
        aside = job.output / f"{_ASIDE}{secrets.token_hex(4)}-manifest.json"
        try:
            persistence.write_manifest(job.output, job.work.kind, content, aside=aside)
        finally:
            aside.unlink(missing_ok=True)
        kept = {each.name for each in pieces}
        ours = re.compile(
            rf"{re.escape(job.work.stem)}-\d{{6}}-[0-9a-f]{{{_DIGITS}}}{re.escape(job.work.suffix)}"
        )
        for entry in list((job.output / PIECES).iterdir()):
            if ours.fullmatch(entry.name) and entry.name not in kept:
                with suppress(OSError):
                    _remove(entry)
                    (job.output / _RECORDS / f"{entry.name}.json").unlink(missing_ok=True)
