"""Encoding inside of other people's pipelines: a batch of a table in, the same batch with codes out."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import (
    as_floats,
    as_place,
    bad_rows,
    check_choice,
    check_text,
    check_threads,
    flaw,
)
from compressae_index.coding.chunks import Encoded, encoded_chunks
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.columns import (
    LATENTS,
    SCALE,
    VALUES,
    check_made_by,
    check_metadata,
    codes_of_columns,
    metadata_of,
)
from compressae_index.coding.metric import RowScale, row_norms
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder
from compressae_index.conversion import as_array, column_vectors
from compressae_index.embedded.backend import pack_chunk
from compressae_index.embedded.codecs import Arrays, Codec, WithResiduals
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.index import CompressedIndex
from compressae_index.persistence import reading
from compressae_index.remote import Place
from compressae_index.sources import BAD_ROWS, BadRows

LatentType: TypeAlias = Literal["uint16", "uint32", "int32"]
LATENT_TYPES: tuple[LatentType, ...] = ("uint16", "uint32", "int32")
ValueType: TypeAlias = Literal["float32", "float16"]
VALUE_TYPES: tuple[ValueType, ...] = ("float32", "float16")

CODE = "code"
"""The column of packed codes."""
# Key of what a packed code was packed by, in the metadata of an Arrow schema.
_CODEC = b"compressae_index.codec"
# Describes columns that are no longer there.
_STALE = b"huggingface"
# Other columns whose values name a bad row, and characters of each.
_NAMED, _SHOWN = 5, 100

# Models that this process has loaded, by path and fingerprint: engines unpickle an encoder again and again.
_loaded: dict[tuple[Place, str], CompresSAE] = {}


class BatchEncoder:
    """Encodes a column of vectors, batch by batch: a function for Ray Data, datasets, Daft or Spark.

    A call takes a dict of columns (arrays or lists), or an Arrow Table or RecordBatch, and gives the same
    kind. The column of vectors is left out, as codes are there to save its bytes; the other columns stay in
    their order, and behind them come

        latents  lists of k, ascending; (n, k) in a dict
        values   lists of k float32, folded: of the direction of the row alone
        scale    float32, the norm of the row from the model's center, for inner products and distances

    Codes do not depend on the batches that rows come in; by "topk", which multiplies matrices by BLAS, the
    last bits may. Arrow schemas get the fingerprint of the model as b"compressae_index.fingerprint".

    Attributes:
        skipped: rows that this object has left out by on_bad_rows="skip", in this process.
    """

    def __init__(
        self,
        model: CompresSAE | str | os.PathLike[str],
        *,
        k: int | None = None,
        encoder: Encoder = "pursuit",
        column: str = "embedding",
        on_bad_rows: BadRows = "error",
        latents: LatentType = "uint16",
        values: ValueType = "float32",
        num_threads: int | None = 1,
    ) -> None:
        """An encoder that can be pickled.

        Args:
            model: a model, which is pickled with the encoder; or the path of a saved one, which then must be
                there in every process. A process loads it once, and refuses another in its place.
            k: nonzeros a code; the model's own by default.
            encoder: "pursuit", or "topk" for the paper's single pass.
            column: the column of vectors.
            on_bad_rows: what to do with vectors that are missing, zero, of another length, or hold NaN or
                infinite values. "error" raises; "skip" leaves out these rows, of all columns, with one
                warning a batch.
            latents: type of latents; "int32" for engines without unsigned numbers, such as Spark.
            values: type of values; "float16" rounds them.
            num_threads: threads in each process, as engines start as many processes as there are processors;
                None for all.

        Raises:
            InputError: an argument is of another type or out of range.
            FormatError: there is no model at the path.
        """
        self._path = None if isinstance(model, CompresSAE) else as_place(model, "model").absolute()
        loaded = model if isinstance(model, CompresSAE) else CompresSAE.load(model)
        self._given = loaded if self._path is None else None
        self._fingerprint = loaded.fingerprint
        if self._path is not None:
            _loaded[self._path, self._fingerprint] = loaded
        self.encoder: Encoder = check_choice(encoder, "encoder", ENCODERS)
        self.k = loaded.nonzeros(k, encoder)
        self.column = check_text(column, "column")
        self.on_bad_rows: BadRows = check_choice(on_bad_rows, "on_bad_rows", BAD_ROWS)
        self._latents = np.dtype(check_choice(latents, "latents", LATENT_TYPES))
        self._values = np.dtype(check_choice(values, "values", VALUE_TYPES))
        self.num_threads = num_threads if num_threads is None else check_threads(num_threads)
        self.skipped = 0
        self._packing: _Packing | None = None

    @classmethod
    def of_index(
        cls,
        index: CompressedIndex,
        *,
        column: str = "embedding",
        on_bad_rows: BadRows = "error",
        num_threads: int | None = 1,
    ) -> Self:
        """An encoder that packs codes to the bytes that an index would keep, residual codes too.

        In place of latents and values, rows get

            code     binary of fixed size; (n, bytes) uint8 in a dict

        Codes of an index for inner products hold the norms of their rows, which must be in its range.

        Args:
            index: an index that holds vectors, from which its codec has learned. It is not kept.
            column: as for `BatchEncoder`.
            on_bad_rows: as for `BatchEncoder`.
            num_threads: as for `BatchEncoder`.

        Raises:
            InputError: the index is empty, or an argument is of another type or out of range.
        """
        given: Any = index  # may be anything
        if not isinstance(given, CompressedIndex) or not len(given.documents.all_ids):
            msg = f"codes are packed as in an index that holds vectors, got {index!r:.100}"
            raise InputError(msg)
        backend = index.documents.backend
        encoder = cls(
            index.model,
            k=backend.k,
            encoder=index.encoder,
            column=column,
            on_bad_rows=on_bad_rows,
            num_threads=num_threads,
        )
        encoder._packing = _Packing(
            backend.codec, RowScale(index.metric, index.documents.unit, unit_rows=not backend.keeps_norms)
        )
        return encoder

    def __repr__(self) -> str:
        where = self._given if self._path is None else str(self._path)
        return f"BatchEncoder({where!r}, k={self.k}, encoder={self.encoder!r}, column={self.column!r})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"skipped": 0}

    @property
    def model(self) -> CompresSAE:
        """The model, which is loaded when it is first asked for.

        Raises:
            FormatError: it is gone from its path, or another is there.
        """
        if self._path is None:
            assert self._given is not None
            return self._given
        key = self._path, self._fingerprint
        if key not in _loaded:
            model = CompresSAE.load(self._path)
            if model.fingerprint != self._fingerprint:
                msg = f"{self._path} holds another model than when this encoder was made: make it again"
                raise FormatError(msg)
            _loaded[key] = model
        return _loaded[key]

    def __call__(self, batch: Any) -> Any:
        """The batch with codes in place of its vectors.

        Args:
            batch: a mapping of names to columns, or a pyarrow Table or RecordBatch. The column of vectors is
                an array (n, dim), a list or array of rows, or an Arrow list column of any kind; numbers are
                floating point or integers.

        Returns:
            A dict, Table or RecordBatch.

        Raises:
            InputError: no such column, no vectors in it, or one with the name of a column of codes; a bad
                row, with its number in the batch and the values of other columns, such as ids or paths.
        """
        columns = _columns_of(batch)
        vectors = _column(columns, self.column)
        del columns[self.column]
        rows, bad = self._checked(vectors, columns)
        added = self._encoded(np.delete(rows, bad, axis=0) if bad.size else rows)
        for name in added.keys() & columns.keys():
            msg = f"the batch already has a column {name!r}, where codes are to go: rename it"
            raise InputError(msg)
        if _is_arrow(batch):
            return _arrow_batch(batch, columns, added, bad, self._metadata())
        if bad.size:
            kept = np.delete(np.arange(len(rows)), bad)
            columns = {name: _taken(column, kept) for name, column in columns.items()}
        return columns | added

    def codes(self, batch: Any) -> SparseCodes:
        """The codes of a batch that an encoder with the same settings gave, or that was stored since.

        Args:
            batch: what a call gave: a mapping, or a pyarrow Table or RecordBatch.

        Returns:
            The codes of all rows; packed ones as the index reads them.

        Raises:
            InputError: the columns of codes are missing, or hold no such codes.
            FormatError: another model or codec made them.
        """
        columns = _columns_of(batch)
        metadata = batch.schema.metadata if _is_arrow(batch) else None
        check_metadata(metadata, self.model, "the batch")
        if self._packing is not None:
            return self._packing.codes(_column(columns, CODE), self.model, self.k, metadata)
        codes = codes_of_columns(
            _column(columns, LATENTS), _column(columns, VALUES), self.model.n_latents, self.k
        )
        check_made_by(self.model, codes, "the batch")
        return codes

    def _checked(self, vectors: Any, others: Mapping[str, Any]) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """All rows, and the numbers of those to leave out.

        Raises:
            InputError: there are bad rows that must not be left out.
        """
        name, dim = f"column {self.column!r}", self.model.dim
        raw, lengths = column_vectors(vectors, dim, name)
        # Integers too: lists of Python have lost that they were uint8 or int8.
        rows = as_floats(raw, dim=dim, name=name, may_be_empty=True, integers=True)
        bad = bad_rows(rows, zeros=self._zeros)
        if not bad.size:
            return rows, bad
        row, length = int(bad[0]), int(lengths[bad[0]])
        uneven = length not in (-1, dim)
        if uneven:
            what = f"holds {length} numbers, the model takes {dim}"
        else:
            what = "is missing" if length < 0 else flaw(raw, rows, row)
        msg = f"row {row} of the batch{_values_at(others, row)}: {self.column!r} {what}"
        if self.on_bad_rows == "error":
            msg += f" (bad rows: {bad.size} of {len(rows)}); on_bad_rows='skip' leaves such rows out"
            raise (DimensionError if uneven else InputError)(msg)
        self.skipped += bad.size
        warnings.warn(f"left out {bad.size} of {len(rows)} rows: {msg}", stacklevel=3)
        return rows, bad

    @property
    def _zeros(self) -> bool:
        """Whether a row of zeros is a point like any other."""
        if self._packing is not None and self._packing.scale.metric == "l2":
            return self._packing.scale.keeps_norms
        return self.model.center is not None

    def _encoded(self, rows: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """The columns of codes of good rows."""
        with np.errstate(over="ignore"):  # the norm of finite numbers may be beyond float32
            scale = row_norms(self.model.seen_from_center(rows)).astype(np.float32)
        packing = self._packing
        chunks = encoded_chunks(
            self.model,
            rows,
            self.k,
            self.encoder,
            self.num_threads,
            residual_bits=0 if packing is None else packing.residual_bits,
            scale=None if packing is None else packing.scale,
        )
        if packing is not None:
            threads = check_threads(self.num_threads)
            return {CODE: packing.packed(chunks, self.model, self.k, threads), SCALE: scale}
        parts = [SparseCodes.empty(self.k, self.model.n_latents), *(chunk.codes for chunk in chunks)]
        codes = SparseCodes.concatenate(parts)
        return {
            LATENTS: codes.latents.astype(self._latents, copy=False),
            VALUES: codes.values.astype(self._values, copy=False),
            SCALE: scale,
        }

    def _metadata(self) -> dict[bytes, bytes]:
        metadata = metadata_of(self.model, self.encoder)
        return metadata if self._packing is None else metadata | {_CODEC: self._packing.fingerprint}


class _Packing:
    """How an index packs codes, into one row of bytes."""

    def __init__(self, codec: Codec, scale: RowScale) -> None:
        self._codec = codec
        self.scale = scale
        self.residual_bits = codec.residual_bits if isinstance(codec, WithResiduals) else 0

    @property
    def fingerprint(self) -> bytes:
        """A digest of all that unpacking depends on beside the model."""
        learned = {name: array.tobytes() for name, array in sorted(self._codec.learned().items())}
        said = repr((self._codec.manifest(), self.scale.metric, self.scale.unit, learned))
        return hashlib.sha256(said.encode()).hexdigest()[:32].encode()

    def packed(
        self, chunks: Iterable[Encoded], model: CompresSAE, k: int, num_threads: int
    ) -> npt.NDArray[np.uint8]:
        """Rows of bytes (n, row_bytes)."""
        parts = [self._nothing(model, k)]
        parts += [pack_chunk(self._codec, chunk, model, num_threads) for chunk in chunks]
        arrays = self._codec.stacked(parts)
        return np.concatenate([_bytes_of(arrays[name]) for name in self._codec.array_names], axis=1)

    def codes(
        self, column: Any, model: CompresSAE, k: int, metadata: Mapping[bytes, bytes] | None
    ) -> SparseCodes:
        """Codes from a column of packed ones.

        Raises:
            InputError: rows of another length.
            FormatError: another codec packed them, or they are damaged.
        """
        if (metadata or {}).get(_CODEC, self.fingerprint) != self.fingerprint:
            msg = "the batch was packed by the codec of another index"
            raise FormatError(msg)
        rows, first = _byte_rows(column, self._codec.row_bytes(model.n_latents, k)), 0
        arrays = {}
        for name, like in self._nothing(model, k).items():
            end = first + _bytes_of(like).shape[1]
            part = np.ascontiguousarray(rows[:, first:end]).view(like.dtype)
            arrays[name], first = part.reshape(len(rows), *like.shape[1:]), end
        with reading("the column 'code'"):
            return self._codec.unpack(arrays, model.n_latents, k)

    def _nothing(self, model: CompresSAE, k: int) -> Arrays:
        """The codec's arrays of no rows."""
        none = Encoded(SparseCodes.empty(k, model.n_latents), np.empty((0, model.dim), np.float32))
        return pack_chunk(self._codec, none, model, 1)


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The rows of an array as bytes, (n, bytes)."""
    rows = np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))
    return rows.view(np.uint8)


def _byte_rows(column: Any, size: int) -> npt.NDArray[np.uint8]:
    """Rows (n, size) of an array of bytes, or of an Arrow column of binaries."""
    if _is_arrow(column):
        values = column.to_pylist()
        if any(value is None or len(value) != size for value in values):
            msg = f"packed codes must be of {size} bytes"
            raise InputError(msg)
        return np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)
    rows = as_array(column, CODE)
    if not len(rows):
        return np.empty((0, size), np.uint8)
    if rows.ndim != 2 or rows.shape[1] != size or rows.dtype.kind not in "iu":
        msg = f"packed codes must be (n, {size}) uint8, got {rows.dtype} {rows.shape}"
        raise InputError(msg)
    return rows.astype(np.uint8, copy=False)


def _is_arrow(batch: Any) -> bool:
    return type(batch).__module__.partition(".")[0] == "pyarrow"


def _columns_of(batch: Any) -> dict[str, Any]:
    """The columns of a batch by name, in their order.

    Raises:
        InputError: it is no batch, or two columns have one name.
    """
    if isinstance(batch, Mapping):
        return {name: batch[name] for name in batch}
    if not (_is_arrow(batch) and hasattr(batch, "columns")):
        kind = type(batch)
        msg = (
            "a batch must be a dict of columns, or a pyarrow Table or RecordBatch, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )
        raise InputError(msg)
    names = batch.schema.names
    if len(set(names)) < len(names):
        msg = f"columns of a batch must have different names, got {', '.join(names)}"
        raise InputError(msg)
    return dict(zip(names, batch.columns, strict=True))


def _column(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        msg = f"the batch has no column {name!r}, only: {', '.join(map(str, columns)) or 'none'}"
        raise InputError(msg)
    return columns[name]


def _values_at(columns: Mapping[str, Any], row: int) -> str:
    """What tells a row from others: its text and numbers in the first other columns."""
    shown = []
    for name, column in columns.items():
        value = column[row]
        value = value.as_py() if hasattr(value, "as_py") else value
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, bytes, int, float)):
            text = repr(value)
            # Paths differ at their ends.
            shown.append(f"{name}={text if len(text) <= _SHOWN else text[:30] + '...' + text[33 - _SHOWN :]}")
    return f" ({', '.join(shown[:_NAMED])})" if shown else ""


def _taken(column: Any, rows: npt.NDArray[np.int64]) -> Any:
    """Some rows of a column of a dict."""
    if isinstance(column, (list, tuple)):
        return [column[row] for row in rows.tolist()]
    if _is_arrow(column):
        return column.take(rows)
    return column.iloc[rows] if hasattr(column, "iloc") else column[rows]


def _arrow_batch(
    batch: Any,
    columns: Mapping[str, Any],
    added: Mapping[str, npt.NDArray[Any]],
    bad: npt.NDArray[np.int64],
    metadata: Mapping[bytes, bytes],
) -> Any:
    """A Table or RecordBatch of the columns that are kept, and of those that are added."""
    import pyarrow as pa

    fields = [batch.schema.field(name) for name in columns]
    arrays = list(columns.values())
    if bad.size:
        kept = pa.array(np.delete(np.arange(batch.num_rows), bad))
        arrays = [array.take(kept) for array in arrays]
    for name, values in added.items():
        arrays.append(_arrow_column(name, values))
        fields.append(pa.field(name, arrays[-1].type))
    known = {key: value for key, value in (batch.schema.metadata or {}).items() if key != _STALE}
    return type(batch).from_arrays(arrays, schema=pa.schema(fields, known | dict(metadata)))


def _arrow_column(name: str, values: npt.NDArray[Any]) -> Any:
    """Numbers (n,), lists of equal length, or binaries of fixed size.

    Not lists of fixed size: Spark does not take them.
    """
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    n, width = values.shape
    if name == CODE:
        return pa.Array.from_buffers(pa.binary(width), n, [None, pa.py_buffer(values.tobytes())])
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(width)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))
