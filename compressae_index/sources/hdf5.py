"""HDF5 files in the ann-benchmarks layout."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.errors import FormatError, MissingExtraError
from compressae_index.processes import ForkSafeLock
from compressae_index.remote import Place, RemotePath


def open_hdf5(path: Place, dataset: str) -> Any:
    """A data set of an HDF5 file."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "files", f"reading {path.name}") from error
    if isinstance(path, RemotePath):
        with _no_collection(path):
            vectors = _dataset(h5py.File(path.open("rb"), "r"), path, dataset)
        return RemoteDataset(vectors, path)
    return _dataset(h5py.File(path, "r"), path, dataset)


def _dataset(file: Any, path: Place, dataset: str) -> Any:
    import h5py

    if dataset not in file:
        msg = f"{path} holds no data set {dataset!r}, only: {', '.join(file) or 'none'}"
        raise FormatError(msg)
    vectors = file[dataset]
    if not isinstance(vectors, h5py.Dataset) or vectors.shape is None:
        msg = f"{path}: {dataset!r} is not a data set of embeddings"
        raise FormatError(msg)
    return vectors


class RemoteDataset:
    """A data set of an object in a store."""

    def __init__(self, dataset: Any, path: RemotePath) -> None:
        self._dataset, self._path = dataset, path
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Rows (m, d)."""
        with _no_collection(self._path):
            return np.asarray(self._dataset[rows])


_reading = ForkSafeLock()


@contextmanager
def _no_collection(path: RemotePath) -> Iterator[None]:
    """No garbage is collected meanwhile.

    h5py holds a lock of its own while it waits for bytes. A collection in the thread that fetches them would
    wait for this lock, if it finds objects of h5py.
    """
    with _reading.lock:
        collects = gc.isenabled()
        gc.disable()
        try:
            path.size()  # once this is answered, no collection that had begun is left in that thread
            yield
        finally:
            if collects:
                gc.enable()
