"""Codes as Parquet files for Milvus's bulk import."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import IdArray
from compressae_index.checks import as_path, check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.connectors.milvus.compressed import CODE_FIELD, DENSE_FIELD
from compressae_index.connectors.milvus.expressions import check_primary
from compressae_index.connectors.milvus.manifest import DENSE, Dense
from compressae_index.connectors.milvus.wire import to_dicts
from compressae_index.errors import FormatError, InputError, MissingExtraError
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.storage import check_writable

# Rows a file by default; one worker imports a file.
FILE_ROWS = 262_144
# Rows turned to text at a time.
_GROUP_ROWS = 16_384


class Exported(NamedTuple):
    """Files that were written."""

    files: list[Path]
    rows: int
    bytes: int


def export_parquet(
    index: CompressedIndex,
    output: str | os.PathLike[str],
    *,
    dense: Dense | None = None,
    primary: str = "id",
    file_rows: int = FILE_ROWS,
    progress: bool = False,
) -> Exported:
    """Writes the codes of an index in the layout of pymilvus's own bulk writer.

    `do_bulk_insert`, `bulk_import` and the web interface import the files into an existing collection. Make
    it by `MilvusIndex.create` with the same model, k, metric, dense and kind of ids.

    Args:
        index: an index in this process.
        output: a directory, new or empty.
        dense: type of the reconstructed field, if the collection has one.
        primary: name of the primary key.
        file_rows: rows a file.
        progress: show a progress bar.

    Raises:
        InputError: an empty index, an option out of range, or a name that a primary key cannot have.
        FormatError: the directory is not empty.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", "writing Parquet files") from error
    path = as_path(output, "output")
    check_int(file_rows, "file_rows", 1)
    export = _Export(index, index.ids, primary, dense)
    export.check()
    _check_output(path)
    aside = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    aside.mkdir(parents=True)
    try:
        with track(len(export.ids), "writing", enabled=progress) as advance:
            names = export.write(aside, file_rows, advance)
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    files = [path / name for name in names]
    return Exported(files, len(export.ids), sum(file.stat().st_size for file in files))


def _check_output(path: Path) -> None:
    """Checks that a directory can be written, and is new or empty.

    Raises:
        FormatError: it is not empty.
        StorageError: there is no permission to write it.
    """
    check_writable(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path} exists and is not an empty directory"
        raise FormatError(msg)


@dataclass(frozen=True)
class _Export:
    """Tables of an index's codes."""

    index: CompressedIndex
    ids: IdArray
    primary: str
    dense: Dense | None

    def check(self) -> None:
        """Checks the index and the options.

        Raises:
            InputError: an empty index, or an option out of range.
        """
        if check_primary(self.primary, "these files") in (CODE_FIELD, DENSE_FIELD):
            msg = f"the primary key cannot be called {self.primary!r}, which is the name of another field"
            raise InputError(msg)
        if self.dense not in (None, *DENSE):
            msg = f"dense must be one of {', '.join(map(repr, DENSE))}, got {self.dense!r}"
            raise InputError(msg)
        if not len(self.ids):
            msg = "the index holds no vectors to export"
            raise InputError(msg)

    def write(self, folder: Path, file_rows: int, advance: Callable[[int], object]) -> list[str]:
        """Writes files of at most `file_rows` rows, and returns their names."""
        import pyarrow.parquet as pq

        names, schema = [], self._schema()
        for number, first in enumerate(range(0, len(self.ids), file_rows), 1):
            names.append(f"{number}.parquet")
            with pq.ParquetWriter(folder / names[-1], schema) as writer:
                ids = self.ids[first : first + file_rows]
                for begin in range(0, len(ids), _GROUP_ROWS):
                    some = ids[begin : begin + _GROUP_ROWS]
                    writer.write_table(self._table(schema, some))
                    advance(len(some))
        return names

    def _schema(self) -> Any:
        import pyarrow as pa

        key = pa.string() if self.ids.dtype == object else pa.int64()
        fields = [(self.primary, key), (CODE_FIELD, pa.string())]
        if self.dense:
            # Numbers of float16 go as their bytes.
            fields.append((DENSE_FIELD, pa.list_(pa.float32() if self.dense == "float32" else pa.uint8())))
        return pa.schema(fields)

    def _table(self, schema: Any, ids: IdArray) -> Any:
        import pyarrow as pa

        codes = self.index.codes(ids)
        columns = {self.primary: ids.tolist(), CODE_FIELD: _texts(codes)}
        if self.dense:
            rows = self.index.model.decode(codes).astype(self.dense)
            numbers = rows if self.dense == "float32" else rows.view(np.uint8)
            ends = np.arange(len(ids) + 1, dtype=np.int32) * numbers.shape[1]
            columns[DENSE_FIELD] = pa.ListArray.from_arrays(ends, numbers.ravel())
        return pa.table(columns, schema=schema)


def _texts(codes: SparseCodes) -> list[str]:
    """Sparse rows as JSON, as Milvus reads them."""
    return [json.dumps(row) for row in to_dicts(codes)]
