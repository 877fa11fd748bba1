"""A job in pieces: runs of rows, each written to a file or folder of its own, and published together.

A piece is named <stem>-000012-<digest><suffix>, by a digest of its rows, their ids and all settings. So a
finished piece stays when a job is run again, rows that changed give a new piece beside the old one, and the
manifest names pieces of one run alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from compressae_index.arrays import IdArray
from compressae_index.connectors.ray.output import Finished, Output
from compressae_index.ids import pack_strings
from compressae_index.sources import CHUNK_ROWS, BadRows, GoodRows, Vectors, checked_rows, open_vectors
from compressae_index.sources.base import Run

_DIGITS = 16


class Work(Protocol):
    """What a job does with the rows of a piece. It is pickled, and sent to every worker."""

    kind: str
    """Of the published folder, in its manifest."""
    stem: str
    """What names of pieces begin with."""
    suffix: str
    """And end with."""

    @property
    def zeros(self) -> bool:
        """Whether rows of zeros are good."""
        ...

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


class Source(Protocol):
    """Where the rows of pieces come from. It is pickled, and sent to every worker."""

    def opened(self, piece: Piece, *, zeros: bool) -> tuple[Vectors, IdArray, int]:
        """The rows of a piece, their ids, and how many bad ones were left out; `zeros` may be good.

        Raises:
            InputError: bad rows, with their file.
        """
        ...


@dataclass(frozen=True)
class FileRows:
    """Rows of files.

    Attributes:
        paths: that every worker can open, as `open_vectors` takes them.
        dataset: the data set or column of a file.
        on_bad_rows: "error", or "skip".
    """

    paths: Any
    dataset: str
    on_bad_rows: BadRows

    def opened(self, piece: Piece, *, zeros: bool) -> tuple[Vectors, IdArray, int]:
        """The rows of a piece."""
        vectors = open_vectors(self.paths, dataset=self.dataset)
        run: Vectors = Run(vectors, piece.first, piece.end)
        ids = np.arange(piece.first, piece.end) if piece.ids is None else piece.ids
        if self.on_bad_rows == "error":
            return run, ids, 0
        good = GoodRows(run, zeros=zeros, may_be_empty=True)
        return Run(good, 0, good.shape[0]), ids[good.kept], len(good.skipped)


@dataclass(frozen=True)
class Job:
    """Rows of a source, what to do with them, and where to.

    Attributes:
        source: the rows.
        work: what to do.
        output: where every worker can write to.
    """

    source: Source
    work: Work
    output: Output

    def finish(self, piece: Piece) -> Finished:
        """Writes a piece, unless it is there already.

        Raises:
            InputError: bad rows, with their file.
        """
        vectors, ids, skipped = self.source.opened(piece, zeros=self.work.zeros)
        if not len(ids):
            return Finished(None, 0, skipped, is_new=False)
        work = self.work
        name = f"{work.stem}-{piece.number:06d}-{_digest(work, vectors, ids)}{work.suffix}"
        finished = Finished(name, len(ids), skipped, is_new=False)
        if self.output.holds(name):
            return finished
        self.output.put(finished, lambda target: work.write(vectors, ids, target))
        return finished._replace(is_new=True)

    def publish(self, pieces: list[Finished]) -> None:
        """Replaces the manifest by one of these pieces, and removes pieces that it does not name."""
        work = self.work
        named = [{"name": each.name, "rows": each.rows, "skipped": each.skipped} for each in pieces]
        ours = re.compile(rf"{re.escape(work.stem)}-\d{{6}}-[0-9a-f]{{{_DIGITS}}}{re.escape(work.suffix)}")
        self.output.publish(work.kind, {"meta": work.settings(), "pieces": named}, ours.fullmatch)


def _digest(work: Work, vectors: Vectors, ids: IdArray) -> str:
    digest = hashlib.sha256(json.dumps(work.settings(), sort_keys=True).encode())
    for first in range(0, vectors.shape[0], CHUNK_ROWS):
        end = min(first + CHUNK_ROWS, vectors.shape[0])
        digest.update(checked_rows(vectors, first, end, zeros=work.zeros).data)
    for array in pack_strings(ids).values() if ids.dtype == object else (ids,):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:_DIGITS]
