"""Other columns of the tables that vectors come from, of rows that are found by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compressae_index.arrays import IdArray, RowArray
from compressae_index.errors import InputError
from compressae_index.ids import Ids
from compressae_index.remote import Place
from compressae_index.sources.base import reading
from compressae_index.sources.ids import read_ids
from compressae_index.sources.paths import PathLike, files_of
from compressae_index.sources.tables import open_table

if TYPE_CHECKING:
    import pyarrow as pa


def read_metadata(
    source: PathLike | Sequence[PathLike], ids: IdArray, columns: Sequence[str], id_column: str | None = None
) -> pa.Table:
    """The values of columns in the rows of ids; of Parquet, only row groups that hold one of them are read.

    Args:
        source: Parquet files or Lance datasets, as `open_vectors` takes them.
        ids: (n,) ids, which may repeat.
        columns: the columns to read.
        id_column: the column that holds the ids; by default they are row numbers.

    Returns:
        n rows of these columns, in the order of the ids; of nulls for ids that the files do not hold.

    Raises:
        FormatError: a file is missing or damaged, or lacks a column.
        InputError: ids in the files repeat, or are strings where those asked for are integers, or the other
            way round; or a file is of another kind.
        MissingExtraError: the package that reads them is not installed.
    """
    files = files_of(source)
    paths = files if isinstance(files, list) else [files]
    names, lengths = list(columns), []
    for path in paths:
        with reading(path):
            lengths.append(len(open_table(path, names)))
    begins = np.cumsum([0, *lengths])
    held = Ids.from_user(None if id_column is None else read_ids(paths, id_column), int(begins[-1]))
    if len(ids) and held.are_strings != (ids.dtype == object):
        kinds = ("strings", "integers") if held.are_strings else ("integers", "strings")
        msg = f"the ids of {paths[0]} are {kinds[0]}, those to look up are {kinds[1]}"
        raise InputError(msg)
    return _taken(paths, begins, held.find(ids), names)


def _taken(paths: Sequence[Place], begins: RowArray, rows: RowArray, columns: list[str]) -> pa.Table:
    """Rows by their number among those of all files; of nulls for -1."""
    import pyarrow as pa

    wanted = np.unique(rows[rows >= 0])
    of_file = np.split(wanted, np.searchsorted(wanted, begins[1:-1]))
    parts: list[pa.Table] = []
    for path, mine, begin in zip(paths, of_file, begins.tolist(), strict=False):
        if len(mine) or not parts:  # one at least says of which types nulls are
            with reading(path):
                parts.append(open_table(path, columns).take(mine - begin, columns))
    places = np.searchsorted(wanted, rows)
    return pa.concat_tables(parts).take(pa.array(places, mask=rows < 0))
