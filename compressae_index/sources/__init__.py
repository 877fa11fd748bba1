"""Embeddings from arrays, files, folders of shards and iterators, read slice by slice.

Whatever the source, the memory of this process grows with the slices that are read and not with n: files are
read with plain reads, a map that the caller made gives its pages back, iterators go to a temporary file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index.checks import as_array
from compressae_index.errors import FormatError, InputError
from compressae_index.sources.arrays import wrapped
from compressae_index.sources.base import CHUNK_ROWS, TypedVectors, Vectors
from compressae_index.sources.flat import open_bvecs, open_fvecs, open_npy
from compressae_index.sources.hdf5 import open_hdf5
from compressae_index.sources.parquet import open_parquet
from compressae_index.sources.shards import natural_order, open_shards
from compressae_index.sources.spool import spooled

__all__ = ["CHUNK_ROWS", "VectorSource", "Vectors", "open_vectors"]

VectorSource: TypeAlias = Vectors | str | Path | Sequence[str | Path] | Iterator[npt.ArrayLike]
"""What `open_vectors` opens."""

_READERS = {
    ".npy": open_npy,
    ".fvecs": open_fvecs,
    ".bvecs": open_bvecs,
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".parquet": open_parquet,
}


def open_vectors(source: VectorSource | Any, *, dataset: str = "train") -> Vectors:
    """Embeddings of any source, as something to slice.

    Args:
        source: one of
            an array (n, d), a memory map, or nested lists of numbers;
            a file: .npy, .fvecs, .bvecs, .hdf5 or .h5 in the ann-benchmarks layout, .parquet with a list
            column;
            a folder of such files, all of one kind and dimension, taken in natural order of their names
            (shard-2 before shard-10); files of other kinds and hidden ones are passed over;
            a list or tuple of paths of such files, taken in this order;
            an iterator of batches (m, d). It can be read only once, so it is read to its end here, into a
            float32 file in the folder for temporary files (TMPDIR chooses it). The file has no name, so the
            system removes it when the result is no longer used, however the process ends.
            Rows are float16, float32, float64, or uint8, which are converted to float32.
        dataset: of an HDF5 file, the data set; of a Parquet file, the column (the only list column, where
            there is none of that name).

    Raises:
        FormatError: a file is missing, truncated or of another format; shards differ in kind or dimension.
        InputError: not two-dimensional, empty, or a file of numbers of another dtype; a bad batch of an
            iterator.
        MissingExtraError: reading the format needs an extra.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        vectors = _open_shards(_shards_of(path), dataset) if path.is_dir() else _open_file(path, dataset)
    elif isinstance(source, (list, tuple)) and source and all(isinstance(i, (str, Path)) for i in source):
        vectors = _open_shards([Path(path) for path in source], dataset)
    elif isinstance(source, Iterator):
        vectors = spooled(source)
    else:
        vectors = wrapped(source if isinstance(source, Vectors) else as_array(source, "embeddings"))
        _check_shape(vectors, "embeddings")
    return vectors


def _check_shape(vectors: Vectors, name: str, *, may_be_empty: bool = False) -> None:
    if len(vectors.shape) != 2 or (0 in vectors.shape and not may_be_empty):
        msg = f"{name} must have shape (n, d) and not be empty, got shape {tuple(vectors.shape)}"
        raise InputError(msg)


def _open_file(path: Path, dataset: str, *, may_be_empty: bool = False) -> TypedVectors:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        msg = f"{path}: unknown kind of file; expected {', '.join(_READERS)}, or a folder of such files"
        raise FormatError(msg)
    if not path.is_file():
        msg = f"{path} does not exist" if not path.exists() else f"{path} is not a file"
        raise FormatError(msg)
    try:
        vectors: TypedVectors = reader(path, dataset)
        _check_shape(vectors, f"{path}: embeddings", may_be_empty=may_be_empty)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, (FormatError, InputError)):
            raise
        msg = f"{path} cannot be read: {error}"
        raise FormatError(msg) from error
    if vectors.dtype.kind != "f" and vectors.dtype != np.uint8:
        msg = (
            f"{path}: embeddings must be floating point (float16, float32 or float64) or uint8, "
            f"got dtype {vectors.dtype}"
        )
        raise InputError(msg)
    return vectors


def _shards_of(folder: Path) -> list[Path]:
    paths = [
        path
        for path in folder.iterdir()
        # Writers such as Spark leave marks beside the data, named _SUCCESS or .part-0.parquet.crc.
        if path.suffix.lower() in _READERS and not path.name.startswith((".", "_")) and path.is_file()
    ]
    if not paths:
        msg = f"{folder} holds no file of a known kind: {', '.join(_READERS)}"
        raise FormatError(msg)
    return sorted(paths, key=natural_order)


def _open_shards(paths: Sequence[Path], dataset: str) -> Vectors:
    vectors = open_shards(paths, lambda path: _open_file(path, dataset, may_be_empty=True))
    _check_shape(vectors, f"{paths[0].parent}: embeddings")
    return vectors
