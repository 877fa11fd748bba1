"""The state of a training run on disk, to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index import persistence
from compressae_index.errors import InputError
from compressae_index.persistence import Stored
from compressae_index.storage import check_writable

_KIND = "checkpoint"


def check_place(path: Path) -> None:
    """Checks that a directory can hold a checkpoint: it is empty or holds one, and can be written.

    Raises:
        FormatError, StorageError: it cannot.
    """
    check_writable(path)
    if persistence.was_written(path):
        persistence.read_manifest(path, _KIND)  # explains damage better
    persistence.check_target(path, _KIND)


class OtherRunError(InputError):
    """A checkpoint belongs to a run of other settings or other rows."""


class Checkpoint:
    """The state of a run on disk, replaced in one step."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity

    def load(self) -> Stored | None:
        """The state saved last, or None.

        Raises:
            OtherRunError: it belongs to other settings or other rows.
            FormatError: it is damaged, or something else is there.
        """
        check_place(self._path)
        if not persistence.was_written(self._path):
            return None
        stored = persistence.read(self._path, _KIND)
        with self.reading():
            theirs = persistence.entry(stored.meta, "identity", dict)
        for name, value in self._identity.items():
            if theirs.get(name) != value:
                what = "other rows" if name == "rows" else f"{name} = {theirs.get(name)}, not {value}"
                msg = f"the checkpoint {self._path} was made with {what}; remove it or name another directory"
                raise OtherRunError(msg)
        return stored

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns errors of the code inside into a FormatError about the checkpoint."""
        with persistence.reading(str(self._path)):
            yield

    def save(self, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replaces the saved state.

        Raises:
            StorageError: the disk is full or refuses; what was saved before is untouched.
        """
        persistence.write(self._path, _KIND, {**meta, "identity": self._identity}, arrays=arrays, tensors={})


def saved_like(arrays: Mapping[str, npt.NDArray[Any]], name: str, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A saved array, checked to have the shape and dtype of `own`.

    Raises:
        InputError: it has others, or is not finite.
        KeyError: it is missing.
    """
    array = arrays[name]
    if array.shape != own.shape or array.dtype != own.dtype or not np.isfinite(array).all():
        msg = f"{name} must be finite {own.dtype} {own.shape}, got {array.dtype} {array.shape}"
        raise InputError(msg)
    return array
