"""VSAG: the arrays of compressed sparse rows from which pyvsag builds SINDI, whose values may be negative."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.connectors.stores.store import Batch, Shape, Store
from compressae_index.errors import InputError
from compressae_index.npy import write_header

# Documents that SINDI scores at a time.
_WINDOW = 50_000
_MOST_PAIRS = np.iinfo(np.uint32).max


class Vsag(Store):
    """Files are the arguments of `Index.build` and, with one row, of `Index.knn_search`."""

    raises_norms = True  # SINDI does not find what has a score below 0

    def creation(self, shape: Shape) -> dict[str, str]:
        """The parameters of `Index("sindi", ...)`, in float32 and without pruning."""
        settings = {"term_id_limit": shape.size, "window_size": _WINDOW, "doc_prune_ratio": 0.0}
        parameters = {
            "dtype": "sparse",
            "metric_type": "ip",
            "dim": shape.k,  # the most nonzeros, not the vocabulary
            "index_param": settings | {"use_quantization": False, "use_reorder": False},
        }
        return {"index.json": json.dumps(parameters)}

    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> tuple[Any, ...]:  # noqa: A002, ARG002
        """An id, its indices and its values."""
        return id, indices, values

    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> tuple[Any, ...]:  # noqa: ARG002
        """The first arguments of `Index.knn_search`."""
        pointers = np.array([0, len(indices)], np.uint32)
        return pointers, np.array(indices, np.uint32), np.array(values, np.float32)

    def write(self, folder: Path, shape: Shape, batches: Iterable[Batch]) -> None:
        """Writes the arrays; where ids are strings, places in `index.ids` stand for them."""
        _write_pointers(folder / "index_pointers.npy", shape.n, shape.k)
        with ExitStack() as opened:
            ids, indices, values = (
                opened.enter_context(_Array(folder / f"{name}.npy", n, dtype))
                for name, n, dtype in (
                    ("ids", shape.n, np.int64),
                    ("indices", shape.n * shape.k, np.uint32),
                    ("values", shape.n * shape.k, np.float32),
                )
            )
            first = 0
            for batch in batches:
                places = np.arange(first, first + len(batch.ids))
                ids.add(places if shape.are_strings else batch.ids)
                indices.add(batch.pairs["index"])
                values.add(batch.pairs["value"])
                first += len(batch.ids)

    def write_queries(self, folder: Path, shape: Shape, pairs: npt.NDArray[np.void], limit: int) -> None:  # noqa: ARG002
        """Writes the arrays of all queries."""
        _write_pointers(folder / "query_index_pointers.npy", *pairs.shape)
        np.save(folder / "query_indices.npy", np.ravel(pairs["index"]))
        np.save(folder / "query_values.npy", np.ravel(pairs["value"]))


class _Array:
    """A .npy file that grows to n entries."""

    def __init__(self, path: Path, n: int, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        write_header(self._file, (n,), self._dtype)

    def add(self, entries: npt.NDArray[Any]) -> None:
        """Appends entries."""
        self._file.write(np.ascontiguousarray(entries, dtype=self._dtype).data)

    def __enter__(self) -> _Array:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _write_pointers(path: Path, n: int, k: int) -> None:
    """Where the k pairs of each of n rows begin, and where the last ones end."""
    if n * k > _MOST_PAIRS:
        msg = f"pyvsag takes at most {_MOST_PAIRS} nonzeros, got {n} rows of {k}"
        raise InputError(msg)
    np.save(path, np.arange(n + 1, dtype=np.uint32) * np.uint32(k))
