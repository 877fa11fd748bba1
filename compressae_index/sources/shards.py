"""Several files as one source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from compressae_index.errors import FormatError
from compressae_index.sources.base import Concatenated, Vectors


def open_shards(paths: Sequence[Path], open_file: Callable[[Path], Vectors]) -> Vectors:
    """Files of one kind and dimension, one below the other.

    Each is opened once here for its shape and again when its rows are read; one is open at a time.

    Raises:
        FormatError: with the file that is of another kind or dimension than the first, or unreadable.
    """
    first, lengths, dim = paths[0], [], 0
    for path in paths:
        if path.suffix.lower() != first.suffix.lower():
            msg = f"shards must be of one kind, got {path.suffix} ({path}) beside {first.suffix} ({first})"
            raise FormatError(msg)
        shape = open_file(path).shape
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
        return opened

    return Concatenated(lengths, dim, open_again)


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts numbers within names by their value."""
    # Every second piece is a number, so a string is never compared with one.
    pieces = re.split(r"([0-9]+)", path.name)
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], path.name
