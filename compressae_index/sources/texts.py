"""Texts or tags of documents from files: a line for each, or a column of a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

from compressae_index.checks import as_place
from compressae_index.errors import FormatError
from compressae_index.sources.base import opened, reading
from compressae_index.sources.paths import PathLike, files_of
from compressae_index.sources.tables import open_table


def read_texts(
    source: PathLike | Sequence[PathLike], column: str | None = None
) -> list[str | list[str] | None]:
    """Texts of documents, in their order.

    Args:
        source: a UTF-8 text file of one text a line; a blank line is a document without text. With a column:
            Parquet files or Lance datasets, as `open_vectors` takes them.
        column: their column of strings or lists of strings.

    Raises:
        FormatError: a file is missing or damaged, or lacks the column.
        StorageError: the system refuses.
    """
    if column is not None:
        files = files_of(source)
        texts: list[str | list[str] | None] = []
        for path in files if isinstance(files, list) else [files]:
            with reading(path):
                texts += open_table(path, [column]).read([column]).column(0).to_pylist()
        return texts
    path = as_place(source)
    with reading(path):
        if not path.is_file():
            msg = f"{path} cannot be read: there is no such file"
            raise FormatError(msg)
        with opened(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig") as file:
            return [line.strip() or None for line in file]
