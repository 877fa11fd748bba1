"""Results of a search as files: an .npz of plain arrays, or a Parquet table."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.checks import as_path
from compressae_index.errors import FormatError
from compressae_index.ids import pack_strings
from compressae_index.search.queries import SearchResult


def write_results(path: str | Path, scores: FloatArray, ids: IdArray) -> None:
    """Writes what a search found.

    Integer ids are the array `ids`, (n_queries, k), -1 where nothing was found. Of strings, each is written
    once: `ids` holds their numbers, or -1, and string i is `id_text[id_ends[i]:id_ends[i + 1]]` in UTF-8.

    Args:
        path: a file to write or to replace.
        scores: (n_queries, k) float32.
        ids: (n_queries, k) int64, or strings and None.
    """
    arrays: dict[str, Any] = {"scores": scores, "ids": ids}
    if ids.dtype == object:
        number_of: dict[Any, int] = {}
        names: Iterable[Any] = ids.flat
        numbers = [-1 if name is None else number_of.setdefault(name, len(number_of)) for name in names]
        arrays["ids"] = np.array(numbers, dtype=np.int64).reshape(ids.shape)
        arrays |= pack_strings(np.array([*number_of, None], dtype=object)[:-1])
    with Path(path).open("wb") as file:
        np.savez(file, **arrays)  # none holds objects, which would be pickled


def write_table(path: str | Path, table: Any) -> None:
    """Writes `SearchResult.to_arrow`, perhaps with more columns, as a Parquet file, which is replaced."""
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def read_results(path: str | Path) -> SearchResult:
    """Reads what `search -o` and `write_results` wrote, ids as `CompressedIndex.search` gives them.

    Raises:
        FormatError: the file is missing, damaged or of another kind.
    """
    path = as_path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            scores, ids = stored["scores"], stored["ids"]
            names = _names(stored["id_text"], stored["id_ends"]) if "id_ends" in stored else None
        if names is not None:
            ids = names[ids]  # the last name is that of -1
    except (OSError, ValueError, KeyError, IndexError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{path} holds no results of a search: {error}"
        raise FormatError(msg) from error
    return SearchResult(scores, ids)


def _names(text: npt.NDArray[np.uint8], ends: RowArray) -> npt.NDArray[np.object_]:
    """The strings, and None after them."""
    whole = text.tobytes()
    names = [whole[begin:end].decode() for begin, end in pairwise(ends.tolist())]
    return np.array([*names, None], dtype=object)
