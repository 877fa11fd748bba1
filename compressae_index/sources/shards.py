"""Several files as one source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compressae_index.errors import FormatError
from compressae_index.remote import Place
from compressae_index.sources.base import Concatenated, Vectors
from compressae_index.sources.files import SourceFile


def open_shards(paths: Sequence[Place], open_file: Callable[[Place], SourceFile]) -> Vectors:
    """Files of one kind and dimension as one source.

    Opens each file once here for its shape, and again when its rows are read; one is open at a time.

    Raises:
        FormatError: with the file: its kind or dimension differs from the first's, it cannot be read, or it
            has changed when its rows are read.
    """
    first, dim = paths[0], 0
    lengths, marks = [], []
    for path in paths:
        if path.suffix.lower() != first.suffix.lower():
            msg = f"shards must be of one kind, got {path.suffix} ({path}) and {first.suffix} ({first})"
            raise FormatError(msg)
        opened = open_file(path)
        shape = opened.shape
        marks.append(opened.mark)
        if shape[0]:
            if not dim:
                first, dim = path, shape[1]
            elif shape[1] != dim:
                msg = f"{path} has dimension {shape[1]}, but {first} has {dim}"
                raise FormatError(msg)
        lengths.append(shape[0])

    def open_again(number: int) -> Vectors:
        opened = open_file(paths[number])
        if tuple(opened.shape) != (lengths[number], dim):
            msg = f"{paths[number]} changed: its shape was {(lengths[number], dim)} and is {opened.shape}"
            raise FormatError(msg)
        opened.check_same(marks[number])
        return opened

    return Concatenated(lengths, dim, open_again, paths)
