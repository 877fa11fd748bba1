"""What a recoding has made so far, kept beside its output until the new index is saved."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressae_index.building.training import Trained, improved
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.embedded.sizes import RUN_ROWS
from compressae_index.errors import FormatError
from compressae_index.sources import Vectors
from compressae_index.storage import FolderLock, accessing, check_writable, make_folders
from compressae_index.training.checkpoint import OtherRunError

# Rows a piece of the codes: the most coding that a stop can cost.
PIECE_ROWS = RUN_ROWS

_TRAINING, _CODES = "training", "codes"
_OURS = re.compile(rf"{_TRAINING}|{_CODES}-[0-9a-f]{{16}}")


class Unfinished:
    """The training and the codes of a recoding, in a folder that goes once the new index is saved.

    <output>.recoding/
      training/          the state of training, as `train(checkpoint=)` keeps it
      codes-<digest>/    the codes, as `encode_to_directory` writes them; a digest of the model and settings

    What is there is used if it is of the same rows, model and settings and matches its checksums. What is not
    is made again, with a warning.
    """

    def __init__(self, folder: Path) -> None:
        """In a folder that exists, and that nobody else works in."""
        self._folder = folder

    def trained(
        self, start: CompresSAE, vectors: Vectors, k: int, *, num_threads: int, progress: bool
    ) -> Trained:
        """A model trained on vectors (n, d) from another one, by a training that goes on after a stop."""
        state = self._folder / _TRAINING
        try:
            return improved(start, vectors, k, checkpoint=state, num_threads=num_threads, progress=progress)
        except (OtherRunError, FormatError) as error:
            warnings.warn(f"{error}; the training starts over", stacklevel=2)
            self.remove_training()
            return improved(start, vectors, k, checkpoint=state, num_threads=num_threads, progress=progress)

    def remove_training(self) -> None:
        """Removes the state of the training."""
        shutil.rmtree(self._folder / _TRAINING, ignore_errors=True)

    def coded(
        self,
        model: CompresSAE,
        vectors: Vectors,
        k: int,
        encoder: Encoder,
        residual_bits: int,
        num_threads: int,
        *,
        progress: bool,
    ) -> CodeStore:
        """The codes of vectors (n, d), of which those that a stopped run has made are taken over."""
        settings = [model.fingerprint, vectors.shape, k, encoder, residual_bits]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        path = self._folder / f"{_CODES}-{digest}"
        for left in self._folder.glob(f"{_CODES}-*"):
            if left != path:
                msg = f"{left} holds codes of other vectors, of another model or form; coding starts over"
                warnings.warn(msg, stacklevel=2)
                shutil.rmtree(left)

        def encode() -> CodeStore:
            return encode_to_directory(
                model,
                vectors,
                path,
                k=k,
                encoder=encoder,
                shard_rows=PIECE_ROWS,
                residual_bits=residual_bits,
                num_threads=num_threads,
                progress=progress,
            )

        try:
            return encode()
        except FormatError as error:  # beyond what it mends itself
            warnings.warn(f"{error}; coding starts over", stacklevel=2)
            shutil.rmtree(path, ignore_errors=True)
            return encode()


@contextmanager
def unfinished(output: Path) -> Iterator[Unfinished]:
    """What a stopped recoding to an output has made, or nothing yet; removed if nothing fails.

    Raises:
        FormatError: something else is in its place, or another process is recoding to the output.
        StorageError: the disk is full or refuses.
    """
    folder = output.absolute()
    folder = folder.with_name(f"{folder.name}.recoding")
    check_writable(folder)
    with accessing(folder, "written"):
        _check_ours(folder)
        make_folders(folder)
        try:
            lock = FolderLock(folder)
        except (BlockingIOError, FileNotFoundError):
            raise _busy(output) from None
    with lock:
        if not lock.folder_is_there():  # that process ended, and removed it
            raise _busy(output)
        try:
            yield Unfinished(folder)
        except BaseException:
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _busy(output: Path) -> FormatError:
    return FormatError(f"another process is recoding to {output}: wait for it, or use another output")


def _check_ours(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        msg = f"{folder} is not a directory, and the pieces of a recoding are kept there: move it away"
        raise FormatError(msg)
    for entry in folder.iterdir() if folder.exists() else ():
        if not _OURS.fullmatch(entry.name) or entry.is_symlink():
            msg = f"{entry} is no part of a recoding, whose pieces are kept in its folder: move it away"
            raise FormatError(msg)
