"""Codes as Parquet files for Milvus's bulk import."""

from __future__ import annotations

import json
import os
import secrets
import shutil
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

# Rows a file by default; a file is imported by one worker.
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

    The collection must be there first, as `MilvusIndex.create` makes it with the same model, k, metric, dense
    and kind of ids; then `do_bulk_insert`, `bulk_import` or the web interface takes the files.

    Args:
        index: an index in this process.
        output: a directory, new or empty.
        dense: type of the reconstructed field, where the collection has one.
        primary: name of the primary key.
        file_rows: rows a file.
        progress: show a progress bar.

    Raises:
        InputError: an empty index, an option out of range, or a name that a primary key cannot have.
        FormatError: the directory is not empty.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", "writing Parquet files") from error
    path, ids = as_path(output, "output"), index.ids
    check_int(file_rows, "file_rows", 1)
    if check_primary(primary, "these files") in (CODE_FIELD, DENSE_FIELD):
        msg = f"the primary key cannot be called {primary!r}, as another field is"
        raise InputError(msg)
    if dense not in (None, *DENSE):
        msg = f"dense must be one of {', '.join(map(repr, DENSE))}, got {dense!r}"
        raise InputError(msg)
    if not len(ids):
        msg = "the index holds no vectors to export"
        raise InputError(msg)
    check_writable(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path} exists and is not an empty directory"
        raise FormatError(msg)
    aside = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    aside.mkdir(parents=True)
    try:
        with track(len(ids), "writing", enabled=progress) as advance:
            for number, first in enumerate(range(0, len(ids), file_rows), 1):
                with pq.ParquetWriter(
                    aside / f"{number}.parquet", _schema(pa, ids, primary, dense)
                ) as writer:
                    end = min(first + file_rows, len(ids))
                    for begin in range(first, end, _GROUP_ROWS):
                        some = ids[begin : min(begin + _GROUP_ROWS, end)]
                        writer.write_table(_table(pa, writer.schema, index, some, primary, dense))
                        advance(len(some))
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    files = [path / f"{i}.parquet" for i in range(1, number + 1)]
    return Exported(files, len(ids), sum(file.stat().st_size for file in files))


def _schema(pa: Any, ids: IdArray, primary: str, dense: Dense | None) -> Any:
    fields = [(primary, pa.string() if ids.dtype == object else pa.int64()), (CODE_FIELD, pa.string())]
    if dense:
        fields.append((DENSE_FIELD, pa.list_(pa.float32() if dense == "float32" else pa.uint8())))
    return pa.schema(fields)


def _table(
    pa: Any, schema: Any, index: CompressedIndex, ids: IdArray, primary: str, dense: Dense | None
) -> Any:
    codes = index.codes(ids)
    columns = {primary: ids.tolist(), CODE_FIELD: _texts(codes)}
    if dense:
        rows = index.model.decode(codes).astype(dense)
        numbers = rows if dense == "float32" else rows.view(np.uint8)
        ends = np.arange(len(ids) + 1, dtype=np.int32) * numbers.shape[1]
        columns[DENSE_FIELD] = pa.ListArray.from_arrays(ends, numbers.ravel())
    return pa.table(columns, schema=schema)


def _texts(codes: SparseCodes) -> list[str]:
    """Sparse rows as JSON, as Milvus reads them."""
    return [json.dumps(row) for row in to_dicts(codes)]
