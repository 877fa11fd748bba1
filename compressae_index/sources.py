"""Embeddings from arrays and files, read slice by slice."""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from compressae_index.checks import as_array
from compressae_index.errors import FormatError, InputError, MissingExtraError


@runtime_checkable
class Vectors(Protocol):
    """What embeddings are read from: an array, a memory map, or anything that slices like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows as an array (m, d)."""
        ...


def open_vectors(source: Vectors | str | Path | Any, *, dataset: str = "train") -> Vectors:
    """Embeddings of an array or a file, as something to slice.

    Args:
        source: an array (n, d), nested lists of numbers, or a path: .npy (memory-mapped), .fvecs
            (memory-mapped), .hdf5 or .h5 in the ann-benchmarks layout, .parquet with a list column.
        dataset: of an HDF5 file, the data set; of a Parquet file, the column (the only list column, where
            there is none of that name).

    Raises:
        FormatError: the file is missing, truncated or of another format.
        InputError: not two-dimensional, empty, or a file of numbers that are not floating point.
        MissingExtraError: reading the format needs an extra.
    """
    if isinstance(source, (str, Path)):
        vectors = _open_file(Path(source), dataset)
    else:
        vectors = source if isinstance(source, Vectors) else as_array(source, "embeddings")
        _check_shape(vectors, "embeddings")
    return vectors


def _check_shape(vectors: Vectors, name: str) -> None:
    if len(vectors.shape) != 2 or 0 in vectors.shape:
        msg = f"{name} must have shape (n, d) and not be empty, got shape {tuple(vectors.shape)}"
        raise InputError(msg)


def _open_file(path: Path, dataset: str) -> Vectors:
    readers = {
        ".npy": _open_npy,
        ".fvecs": _open_fvecs,
        ".hdf5": _open_hdf5,
        ".h5": _open_hdf5,
        ".parquet": _open_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        msg = f"{path}: unknown kind of file; expected {', '.join(readers)}"
        raise FormatError(msg)
    if not path.is_file():
        msg = f"{path} does not exist" if not path.exists() else f"{path} is not a file"
        raise FormatError(msg)
    try:
        vectors = reader(path, dataset)
        _check_shape(vectors, f"{path}: embeddings")
        dtype = vectors[0:1].dtype
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, (FormatError, InputError)):
            raise
        msg = f"{path} cannot be read: {error}"
        raise FormatError(msg) from error
    if dtype.kind != "f":
        msg = f"{path}: embeddings must be floating point (float16, float32 or float64), got dtype {dtype}"
        raise InputError(msg)
    return vectors


def _open_npy(path: Path, _dataset: str) -> Vectors:
    return np.lib.format.open_memmap(path, mode="r")


def _open_fvecs(path: Path, _dataset: str) -> Vectors:
    """Each row is an int32 d, the same in every row, followed by d float32, little-endian."""
    size = path.stat().st_size
    dim = int(np.fromfile(path, dtype="<i4", count=1)[0]) if size >= 4 else 0
    if dim < 1 or size % (4 * (dim + 1)):
        msg = f"{path} is not a whole number of fvecs rows: {size} bytes, first dimension {dim}"
        raise FormatError(msg)
    words = np.memmap(path, dtype="<i4", mode="r").reshape(-1, dim + 1)
    if not (words[:, 0] == dim).all():
        msg = f"{path}: rows differ in dimension, the first has {dim}"
        raise FormatError(msg)
    return words[:, 1:].view("<f4")


def _open_hdf5(path: Path, dataset: str) -> Vectors:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "files", f"reading {path.name}") from error
    file = h5py.File(path, "r")
    if dataset not in file:
        msg = f"{path} holds no data set {dataset!r}, only: {', '.join(file) or 'none'}"
        raise FormatError(msg)
    vectors = file[dataset]
    if not isinstance(vectors, h5py.Dataset) or vectors.shape is None:
        msg = f"{path}: {dataset!r} is not a data set of embeddings"
        raise FormatError(msg)
    return vectors  # type: ignore[no-any-return]


def _open_parquet(path: Path, dataset: str) -> Vectors:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "files", f"reading {path.name}") from error
    return ParquetVectors(pq.ParquetFile(path), path, dataset)


class ParquetVectors:
    """A list column of a Parquet file, read one row group at a time."""

    def __init__(self, file: Any, path: Path, column: str) -> None:
        import pyarrow.types as types

        lists = [
            field.name
            for field in file.schema_arrow
            if types.is_list(field.type)
            or types.is_large_list(field.type)
            or types.is_fixed_size_list(field.type)
        ]
        if column not in lists:
            if len(lists) != 1:
                found = ", ".join(lists) or "none"
                msg = f"{path}: expected one list column, or one named {column!r}; list columns: {found}"
                raise FormatError(msg)
            column = lists[0]
        self._file, self._path, self._column = file, path, column
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._loaded = -1
        self._group: npt.NDArray[Any] = np.empty((0, 0), dtype=np.float32)
        self._dim: int | None = None
        if self._starts[-1]:
            self._dim = self._read_group(self._group_of(0)).shape[1]
        self.shape: tuple[int, ...] = (self._starts[-1], self._dim or 0)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        pieces = []
        while start < stop:
            group = self._group_of(start)
            first, end = self._starts[group], min(stop, self._starts[group + 1])
            pieces.append(self._read_group(group)[start - first : end - first])
            start = end
        return np.concatenate(pieces) if pieces else np.empty((0, self.shape[1]), dtype=np.float32)

    def _group_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1

    def _read_group(self, group: int) -> npt.NDArray[Any]:
        if group != self._loaded:
            try:
                column = self._file.read_row_group(group, columns=[self._column]).column(0).combine_chunks()
            except (OSError, ValueError) as error:
                msg = f"{self._path} cannot be read: {error}"
                raise FormatError(msg) from error
            n, values = len(column), column.flatten().to_numpy(zero_copy_only=False)
            dim = len(values) // n if self._dim is None else self._dim
            if column.null_count or not _all_as_long(column, dim):
                msg = f"{self._path}: rows of column {self._column!r} differ in length or are null"
                raise FormatError(msg)
            self._group, self._loaded = values.reshape(n, -1), group
        return self._group


def _all_as_long(column: Any, length: int) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.equal(pc.list_value_length(column), length)).as_py())
