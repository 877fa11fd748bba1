"""Codes as Parquet files for Milvus's bulk import."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray, IdArray
from compressae_index.checks import as_path, check_choice, check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.lengths import raised
from compressae_index.connectors.milvus import residuals
from compressae_index.connectors.milvus.compressed import (
    CODE_FIELD,
    DENSE_FIELD,
    ORIGINAL_FIELD,
    OWN_FIELDS,
    RESIDUAL_FIELD,
)
from compressae_index.connectors.milvus.expressions import check_primary
from compressae_index.connectors.milvus.manifest import DENSE, Dense, height_of
from compressae_index.connectors.milvus.wire import to_dicts
from compressae_index.embedded.codecs.residual import RESIDUAL_ROWS
from compressae_index.errors import InputError, MissingExtraError
from compressae_index.index import CompressedIndex
from compressae_index.progress import track
from compressae_index.storage import folder_aside

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
    originals: Dense | None = None,
    primary: str = "id",
    longest: float | None = None,
    file_rows: int = FILE_ROWS,
    progress: bool = False,
) -> Exported:
    """Writes the codes of an index in the layout of pymilvus's own bulk writer.

    `do_bulk_insert`, `bulk_import` and the web interface import the files into an existing collection. Make
    it by `MilvusIndex.create` with the same model, k, metric, residual_bits and kind of ids, and the types of
    fields and the `longest` that are given here.

    Args:
        index: an index in this process.
        output: a directory, new or empty.
        dense: type of the reconstructed field, if the collection has one.
        originals: type of the field of original vectors, if the collection has one; the index must have them.
        primary: name of the primary key.
        longest: as for `MilvusIndex.create`.
        file_rows: rows a file.
        progress: show a progress bar.

    Raises:
        InputError: an empty index, an option out of range, an index without original vectors, or a name that
            a primary key cannot have.
        FormatError: the directory is not empty.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", "writing Parquet files") from error
    path = as_path(output, "output")
    check_int(file_rows, "file_rows", 1)
    export = _Export(index, index.ids, primary, dense, originals, longest)
    export.check()
    with folder_aside(path) as aside, track(len(export.ids), "writing", enabled=progress) as advance:
        names = export.write(aside, file_rows, advance)
    files = [path / name for name in names]
    return Exported(files, len(export.ids), sum(file.stat().st_size for file in files))


def check_fields(primary: str, dense: Dense | None, originals: Dense | None) -> None:
    """Checks the fields of files.

    Raises:
        InputError: a name that a primary key cannot have, or an unknown type.
    """
    if check_primary(primary, "these files") in OWN_FIELDS:
        msg = f"the primary key cannot be called {primary!r}, which is the name of another field"
        raise InputError(msg)
    for name, kind in (("dense", dense), ("originals", originals)):
        if kind is not None:
            check_choice(kind, name, DENSE)


@dataclass(frozen=True)
class _Export:
    """Tables of an index's codes."""

    index: CompressedIndex
    ids: IdArray
    primary: str
    dense: Dense | None
    originals: Dense | None
    longest: float | None = None

    def check(self) -> None:
        """Checks the index and the options.

        Raises:
            InputError: an empty index, or an option out of range.
        """
        check_fields(self.primary, self.dense, self.originals)
        if self.originals and self.index.documents.backend.originals is None:
            msg = "this index keeps no original vectors to export: build it with originals=..."
            raise InputError(msg)
        if not len(self.ids):
            msg = "the index holds no vectors to export"
            raise InputError(msg)
        if self._keeps_norms:
            if self.longest is None:
                msg = "codes for Euclidean distances need longest, as `MilvusIndex.create` has it"
                raise InputError(msg)
            height_of(self.longest)

    @property
    def _keeps_norms(self) -> bool:
        return self.index.documents.n_latents > self.index.model.n_latents

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
        for name, kind in ((DENSE_FIELD, self.dense), (ORIGINAL_FIELD, self.originals)):
            if kind:
                # Numbers of float16 go as their bytes.
                fields.append((name, pa.list_(pa.float32() if kind == "float32" else pa.uint8())))
        if self.index.documents.residual_bits:
            fields.append((RESIDUAL_FIELD, pa.string()))
        return pa.schema(fields)

    def _table(self, schema: Any, ids: IdArray) -> Any:
        import pyarrow as pa

        index, documents = self.index, self.index.documents
        codes, center = index.codes(ids), index.model.center
        if self._keeps_norms:
            codes = raised(codes, height_of(self.longest))
        columns = {self.primary: ids.tolist(), CODE_FIELD: _texts(codes)}
        if self.dense:
            vectors = index.reconstruct(ids)
            columns[DENSE_FIELD] = _vectors(vectors if center is None else vectors - center, self.dense)
        if self.originals:
            columns[ORIGINAL_FIELD] = _vectors(
                documents.vectors(ids, index.model) * np.float32(index.unit), self.originals
            )
        if documents.residual_bits:
            rows = documents.backend.forward_rows(documents.rows_of(ids))[RESIDUAL_ROWS]
            columns[RESIDUAL_FIELD] = residuals.to_texts(residuals.scaled(rows, index.unit))
        return pa.table(columns, schema=schema)


def _vectors(rows: FloatArray, kind: Dense) -> Any:
    """An Arrow column of vectors."""
    import pyarrow as pa

    numbers = rows if kind == "float32" else rows.astype(np.float16).view(np.uint8)
    ends = np.arange(len(rows) + 1, dtype=np.int32) * numbers.shape[1]
    return pa.ListArray.from_arrays(ends, numbers.ravel())


def _texts(codes: SparseCodes) -> list[str]:
    """Sparse rows as JSON, as Milvus reads them."""
    return [json.dumps(row) for row in to_dicts(codes)]
