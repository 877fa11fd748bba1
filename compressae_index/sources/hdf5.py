"""HDF5 files in the ann-benchmarks layout."""

from __future__ import annotations

from typing import Any

from compressae_index.errors import FormatError, MissingExtraError
from compressae_index.remote import Place, RemotePath


def open_hdf5(path: Place, dataset: str) -> Any:
    """A data set of an HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "files", f"reading {path.name}") from error
    file = h5py.File(path.open("rb") if isinstance(path, RemotePath) else path, "r")
    if dataset not in file:
        msg = f"{path} holds no data set {dataset!r}, only: {', '.join(file) or 'none'}"
        raise FormatError(msg)
    vectors = file[dataset]
    if not isinstance(vectors, h5py.Dataset) or vectors.shape is None:
        msg = f"{path}: {dataset!r} is not a data set of embeddings"
        raise FormatError(msg)
    return vectors
