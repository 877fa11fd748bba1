"""Ids from files: a line or an entry per row, or a column of the embeddings' own tables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import IdArray
from compressae_index.errors import FormatError, InputError
from compressae_index.ids import as_id_array, check_unique
from compressae_index.remote import Place
from compressae_index.sources.base import opened, reading
from compressae_index.sources.paths import PathLike, files_of, is_dataset
from compressae_index.sources.tables import is_table, open_table

# Only numbers as they would be printed: "007" is a string, or it would come back as 7.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def read_ids(source: PathLike | Sequence[PathLike], column: str | None = None) -> IdArray:
    """Ids of rows, in their order.

    Args:
        source: a .npy file of integers or strings, or a UTF-8 text file of one id a line. A byte order mark
            and blanks around an id are ignored. Ids are integers if every line is one, as it would be
            printed. With a column: Parquet files or Lance datasets, as `open_vectors` takes them.
        column: their column of ids.

    Returns:
        (n,) int64, or str objects.

    Raises:
        FormatError: a file is missing or damaged, a line is blank, or an entry of the column is null.
        InputError: a repeated or negative id, or ids that are neither integers nor strings, with the row or
            line.
        StorageError: the system refuses.
    """
    files = files_of(source)
    paths = files if isinstance(files, list) else [files]
    for path in paths:
        with reading(path):
            if not path.is_file() and not is_dataset(path):
                msg = f"{path} cannot be read: there is no such file"
                raise FormatError(msg)
    if column is not None:
        return _of_columns(paths, column)
    if len(paths) > 1 or is_table(paths[0]):
        msg = f"which column of {paths[0]} holds the ids must be said: column=..., or --id-column"
        raise InputError(msg)
    path = paths[0]
    with reading(path), _naming(str(path)):
        if path.suffix.lower() == ".npy":
            ids, place, first = as_id_array(_array(path)), "row", 0
        else:
            ids, place, first = as_id_array(_lines(path)), "line", 1
        check_unique(ids, place, first)
    return ids


def _array(path: Place) -> npt.NDArray[Any]:
    with opened(path) as file:
        array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        return array


def _lines(path: Place) -> list[int] | list[str]:
    with opened(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig") as file:
        lines = [line.strip() for line in file]
    if "" in lines:
        msg = f"{path}: line {lines.index('') + 1} is blank ({lines.count('')} such lines)"
        raise FormatError(msg)
    numbers = [int(line) for line in lines if _INTEGER.fullmatch(line)]
    fit = len(numbers) == len(lines) and all(-(2**63) <= number < 2**63 for number in numbers)
    return numbers if fit else lines


def _of_columns(paths: Sequence[Place], column: str) -> IdArray:
    others = [path for path in paths if not is_table(path)]
    if others:
        msg = f"columns of ids are read from Parquet files and Lance datasets, got {others[0]}"
        raise InputError(msg)
    parts = [_of_column(path, column) for path in paths]
    if len({part.dtype for part in parts if len(part)}) > 1:
        msg = f"column {column!r} holds integers in some of the files in {paths[0].parent}, strings in others"
        raise InputError(msg)
    ids: IdArray = as_id_array(np.concatenate([part for part in parts if len(part)] or parts))
    with _naming(f"column {column!r} of {paths[0] if len(paths) == 1 else paths[0].parent}"):
        check_unique(ids)
    return ids


def _of_column(path: Place, column: str) -> IdArray:
    with reading(path), _naming(f"{path}: column {column!r}"):
        values = open_table(path, [column]).read([column]).column(0)
        if values.null_count:
            row = int(np.flatnonzero(np.asarray(values.is_null()))[0])
            msg = f"{path}: row {row} of column {column!r} is null ({values.null_count} such rows)"
            raise FormatError(msg)
        return as_id_array(values)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        msg = f"{name}: {error}"
        raise InputError(msg) from error
