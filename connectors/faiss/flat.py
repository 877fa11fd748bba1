"""Vectors in a Faiss flat index on the processor, by row number."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from compressae_index.arrays import Bitmap, FloatArray, Hits, RowArray
from compressae_index.checks import check_choice
from compressae_index.connectors.faiss.library import faiss

Storage: TypeAlias = Literal["float32", "float16", "bfloat16"]
STORAGES: tuple[Storage, ...] = ("float32", "float16", "bfloat16")

_QUANTISERS = {"float16": faiss.ScalarQuantizer.QT_fp16, "bfloat16": faiss.ScalarQuantizer.QT_bf16}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def flat_index(dim: int, storage: Storage, *, distances: bool = False) -> Any:
    """An empty flat Faiss index, of inner products or of squared distances, or a quantiser of 16-bit floats.

    Raises:
        InputError: an unknown storage.
    """
    if check_choice(storage, "storage", STORAGES) == "float32":
        return faiss.IndexFlatL2(dim) if distances else faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(dim, _QUANTISERS[storage], faiss_metric(distances=distances))


def faiss_metric(*, distances: bool) -> int:
    """Faiss's number of a metric."""
    metric: int = faiss.METRIC_L2 if distances else faiss.METRIC_INNER_PRODUCT
    return metric


def row_bytes(dim: int, storage: Storage) -> int:
    """Bytes of a stored vector."""
    return dim * _BYTES[storage]


class CpuFlat:
    """Rows 0 .. n-1 in a `flat_index`."""

    device = "cpu"

    def __init__(self, dim: int, storage: Storage, *, distances: bool = False) -> None:
        self._index = flat_index(dim, storage, distances=distances)
        self.distances = distances
        """Whether scores are squared distances, below 0."""
        self._row_bytes = row_bytes(dim, storage)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return len(self) * self._row_bytes

    def add(self, vectors: FloatArray) -> None:
        """Appends rows (m, d)."""
        self._index.add(vectors)

    def search(self, queries: FloatArray, k: int, allowed: Bitmap | None = None) -> Hits:
        """The k largest scores and their rows, (n_queries, k) each; missing rows are -1.

        Args:
            queries: (n_queries, d).
            k: at most the number of allowed rows.
            allowed: one bit a row, lowest bit of each byte first; None allows all rows.
        """
        if allowed is None:
            scores, rows = self._index.search(queries, k)
        else:
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(allowed))
            scores, rows = self._index.search(queries, k, params=parameters)
        return -scores if self.distances else scores, rows

    def vectors(self, rows: RowArray) -> FloatArray:
        """The stored vectors of rows, (m, d)."""
        found: FloatArray = self._index.reconstruct_batch(rows)
        return found
