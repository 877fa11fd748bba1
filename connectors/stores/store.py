"""The base of a store: how rows of pairs become what its client takes, and files of that."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import IdArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.pairs import signed, split

CODE = "code"
"""Name of the field, column or vector that holds the codes."""


class Shape(NamedTuple):
    """What a store must know of the rows it gets."""

    name: str
    """Of the collection, index, table or schema."""
    size: int
    """All indices are below this: n_latents, one more for norms, or twice that if rows are split by sign."""
    k: int
    """Nonzeros of a row, at most, that of a norm among them."""
    n: int
    """Documents."""
    are_strings: bool
    """Whether the ids are strings."""


class Batch(NamedTuple):
    """Some rows."""

    ids: IdArray
    """(n,) int64, or str objects."""
    pairs: npt.NDArray[np.void]
    """(n, k) of PAIR; values of 0 are no nonzeros."""


class Store(ABC):
    """A store of sparse vectors. A subclass says what a row, a query and the creation of its place are."""

    splits: ClassVar[bool] = False
    """Whether values must not be negative, so that rows are split by sign."""
    takes_negative_queries: ClassVar[bool] = True
    """Whether weights of a query may be negative."""
    raises_norms: ClassVar[bool] = False
    """Whether values or scores should be positive, so that the pair of a norm, for Euclidean distances, holds
    what a height is more than half its square, and has a positive weight in queries."""
    rows_file: ClassVar[str] = "documents.jsonl"
    queries_file: ClassVar[str] = "queries.jsonl"

    @abstractmethod
    def creation(self, shape: Shape) -> dict[str, str]:
        """Contents of the files that make the place for rows, by name."""

    @abstractmethod
    def row(self, shape: Shape, id: int | str, indices: list[int], values: list[float]) -> Any:  # noqa: A002
        """A document as the client of the store takes it."""

    @abstractmethod
    def query(self, shape: Shape, indices: list[int], values: list[float], limit: int) -> Any:
        """A search for the `limit` documents of the largest inner product, as the client takes it."""

    def line(self, shape: Shape, row: Any) -> str:  # noqa: ARG002
        """A row in the file of rows."""
        return json.dumps(row, separators=(",", ":"))

    def query_line(self, query: Any) -> str:
        """A query in the file of queries."""
        return json.dumps(query, separators=(",", ":"))

    def pairs(self, codes: SparseCodes) -> npt.NDArray[np.void]:
        """The pairs of documents."""
        return split(codes) if self.splits else signed(codes)

    def terms(self, codes: SparseCodes) -> npt.NDArray[np.void]:
        """The pairs of queries, whose products with those of documents are scores, or agreements."""
        if not (self.splits and self.takes_negative_queries):
            return self.pairs(codes)
        same, opposite = signed(codes), signed(codes)
        opposite["index"] += np.uint32(codes.n_latents)
        opposite["value"] *= -1
        return np.concatenate([same, opposite], axis=1)

    def rows(self, shape: Shape, batch: Batch) -> Iterator[Any]:
        """The documents of a batch."""
        for id_, (indices, values) in zip(batch.ids.tolist(), listed(batch.pairs), strict=True):
            yield self.row(shape, id_, indices, values)

    def write(self, folder: Path, shape: Shape, batches: Iterable[Batch]) -> None:
        """Writes all documents."""
        with (folder / self.rows_file).open("w", encoding="utf-8", newline="\n") as file:
            for batch in batches:
                file.writelines(self.line(shape, row) + "\n" for row in self.rows(shape, batch))

    def write_queries(self, folder: Path, shape: Shape, pairs: npt.NDArray[np.void], limit: int) -> None:
        """Writes queries."""
        with (folder / self.queries_file).open("w", encoding="utf-8", newline="\n") as file:
            for indices, values in listed(pairs):
                file.write(self.query_line(self.query(shape, indices, values, limit)) + "\n")


def listed(pairs: npt.NDArray[np.void]) -> Iterator[tuple[list[int], list[float]]]:
    """Indices and values of each row, without values of 0; values have few decimals and the same float32."""
    kept = np.abs(pairs["value"]) >= np.finfo(np.float32).tiny  # stores refuse what is smaller
    # numpy writes the fewest decimals that tell a float32 from its neighbours.
    values = pairs["value"].astype("U32").astype(np.float64).tolist()
    rows = zip(pairs["index"].tolist(), values, strict=True)
    if kept.all():
        yield from rows
        return
    for (indices, some), marks in zip(rows, kept.tolist(), strict=True):
        yield (
            [index for index, keep in zip(indices, marks, strict=True) if keep],
            [value for value, keep in zip(some, marks, strict=True) if keep],
        )


def mapping(indices: list[int], values: list[float]) -> dict[str, float]:
    """A row as a mapping, whose keys are strings."""
    return dict(zip(map(str, indices), values, strict=True))
