"""Embeddings from arrays, files, folders of shards and iterators, read slice by slice.

Memory grows with the slices that are read, not with n: files are read with plain reads, the pages of a
caller's memory map are given back, and iterators go to a temporary file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.checks import check_choice, check_float_dtype, contents_of
from compressae_index.conversion import as_array, must_be_read_at_once
from compressae_index.errors import DimensionError, FormatError, InputError
from compressae_index.remote import Place
from compressae_index.sources.arrays import wrapped
from compressae_index.sources.base import CHUNK_ROWS, TypedVectors, Vectors, reading
from compressae_index.sources.files import SourceFile
from compressae_index.sources.flat import open_bvecs, open_fvecs, open_npy
from compressae_index.sources.hdf5 import open_hdf5
from compressae_index.sources.ids import read_ids
from compressae_index.sources.lance import open_lance
from compressae_index.sources.metadata import read_metadata
from compressae_index.sources.parquet import open_parquet
from compressae_index.sources.paths import PathLike, files_of, is_dataset, names_files
from compressae_index.sources.rows import GoodRows, check_no_rows, checked_rows, ids_of_rows
from compressae_index.sources.shards import open_shards
from compressae_index.sources.spool import spooled
from compressae_index.sources.texts import read_texts

__all__ = [
    "BAD_ROWS",
    "CHUNK_ROWS",
    "BadRows",
    "GoodRows",
    "VectorSource",
    "Vectors",
    "check_no_rows",
    "checked_rows",
    "ids_of_rows",
    "open_vectors",
    "read_ids",
    "read_metadata",
    "read_texts",
]

VectorSource: TypeAlias = Vectors | PathLike | Sequence[PathLike] | Iterator[npt.ArrayLike]
"""The sources that `open_vectors` opens."""

BadRows: TypeAlias = Literal["error", "skip"]
BAD_ROWS: tuple[BadRows, ...] = ("error", "skip")

_READERS = {
    ".npy": open_npy,
    ".fvecs": open_fvecs,
    ".bvecs": open_bvecs,
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".parquet": open_parquet,
    ".lance": open_lance,
}
# How to convert a file that cannot be read.
_ADVICE = {
    ".csv": "numpy.save('a.npy', numpy.loadtxt('a.csv', delimiter=',', dtype='float32'))",
    ".tsv": "numpy.save('a.npy', numpy.loadtxt('a.tsv', dtype='float32'))",
    ".txt": "numpy.save('a.npy', numpy.loadtxt('a.txt', dtype='float32'))",
    ".npz": "numpy.save('a.npy', numpy.load('a.npz')['name'])",
    ".pt": "numpy.save('a.npy', torch.load('a.pt').float().numpy())",
}


def open_vectors(
    source: VectorSource | Any,
    *,
    dataset: str = "train",
    on_bad_rows: BadRows = "error",
    zeros: bool = False,
    may_be_empty: bool = False,
) -> Vectors:
    """Opens embeddings of any source, to read slice by slice.

    Args:
        source: one of
            an array (n, d) of numpy, torch or any library with `__array__` or DLPack; a memory map; nested
            lists of numbers; a table of numbers or a column of vectors of pandas, polars or Arrow, by
            position, not by its index;
            a file: .npy, .fvecs, .bvecs, .hdf5 or .h5 in the ann-benchmarks layout, .parquet or a .lance
            dataset with a list column;
            a folder of such files, all of one kind and dimension, taken in natural order of their names
            (shard-2 before shard-10). Hidden files and files of other kinds are skipped; anything that
            looks like more embeddings, such as a.npy.gz or a folder of such files, is an error;
            a pattern such as "shards/*.npy", or "shards/**/*.npy" for folders within folders;
            a list or tuple of paths of such files, in this order;
            the address of any of these in a store that fsspec knows, such as s3://bucket/shards/*.npy, read
            by ranges, with the credentials that the store's own client finds;
            an iterator of batches (m, d). It is read to its end here, into a float32 file in the temporary
            folder (TMPDIR). The file has no name, so the system removes it once the result is no longer
            used, however the process ends.
            Rows have a floating dtype (bfloat16 too) or are uint8; they are converted to float32.
        dataset: the data set of an HDF5 file, or the column of a Parquet file or Lance dataset (the only list
            column, if none has that name).
        on_bad_rows: a row is bad if it is zero or holds NaN or infinite values. With "error", reading it
            raises. "skip" reads all rows once and returns the good ones as a `GoodRows`; null rows of tables
            and rows of another length than the first are then bad too.
        zeros: rows of zeros are no bad rows, as where Euclidean distances count.
        may_be_empty: accept a source without rows.

    Raises:
        FormatError: a file is missing, truncated or of another format; shards differ in kind or dimension.
            When rows are read: a file is gone, or has changed since it was opened.
        InputError: not two-dimensional, empty, or of another dtype; a bad batch of an iterator; no good row
            with "skip".
        MissingExtraError: reading the format needs an extra.
        StorageError: the system or the store refuses to read.
    """
    skip = check_choice(on_bad_rows, "on_bad_rows", BAD_ROWS) == "skip"
    if isinstance(source, GoodRows):
        return source
    vectors = _opened(source, dataset, skip, zeros, may_be_empty)
    return GoodRows(vectors, zeros=zeros) if skip and vectors.shape[0] else vectors


def _opened(source: Any, dataset: str, skip: bool, zeros: bool, may_be_empty: bool) -> Vectors:
    if names_files(source):
        files = files_of(source)
        if not isinstance(files, list):
            return _open_file(files, dataset, skip, may_be_empty=may_be_empty)
        vectors = open_shards(files, lambda path: _open_file(path, dataset, skip, may_be_empty=True))
        _check_shape(vectors, f"{files[0].parent}: embeddings", may_be_empty)
        return vectors
    if isinstance(source, Iterator):
        return spooled(source, nan_rows=skip, zeros=zeros)
    if not isinstance(source, Vectors) or must_be_read_at_once(source):
        source = as_array(source, "embeddings", nan_rows=skip)
        if may_be_empty and source.shape == (0,):
            source = np.empty((0, 0), dtype=np.float32)
    _check_shape(source, "embeddings", may_be_empty)
    if source.shape[0] and hasattr(source, "dtype"):
        known = isinstance(source.dtype, np.dtype)
        dtype = source.dtype if known else as_array(source[0:1], "embeddings").dtype
        held = contents_of(source) if isinstance(source, np.ndarray) else ""
        check_float_dtype(dtype, "embeddings", contents=held)
    opened: Vectors = wrapped(source)
    return opened


def _check_shape(vectors: Vectors, name: str, may_be_empty: bool) -> None:
    if len(vectors.shape) != 2 or (0 in vectors.shape and not may_be_empty):
        held = contents_of(vectors) if isinstance(vectors, np.ndarray) else ""
        msg = f"{name} must have shape (n, d) and not be empty, got shape {tuple(vectors.shape)}{held}"
        raise (InputError if len(vectors.shape) == 2 else DimensionError)(msg)


def _open_file(path: Place, dataset: str, skip: bool, *, may_be_empty: bool) -> SourceFile:
    suffix = path.suffix.lower()
    reader: Any = _READERS.get(suffix)
    if reader is None:
        msg = f"{path}: unknown kind of file; expected {', '.join(_READERS)}, or a folder of such files"
        if suffix in _ADVICE:
            msg += f"; to convert it: {_ADVICE[suffix]}"
        raise FormatError(msg)
    with reading(path):
        if not path.is_file() and not is_dataset(path):
            msg = f"{path} does not exist" if not path.exists() else f"{path} is not a file"
            raise FormatError(msg)
    if skip and reader in (open_parquet, open_lance):
        reader = partial(reader, nan_rows=True)
    return SourceFile(path, lambda path: _checked(reader(path, dataset), path, may_be_empty))


def _checked(vectors: TypedVectors, path: Place, may_be_empty: bool) -> TypedVectors:
    _check_shape(vectors, f"{path}: embeddings", may_be_empty)
    if vectors.shape[0]:
        check_float_dtype(vectors.dtype, f"{path}: embeddings")
    return vectors
