"""The documents that hold a latent, with either sign: who they are, and which hold it most strongly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray, IdArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.search.protocol import Documents

Sign: TypeAlias = Literal["+", "-"]
SIGNS: tuple[Sign, ...] = ("+", "-")

# Documents whose codes are unpacked at a time.
BLOCK = 65536


class Strongest(NamedTuple):
    """The documents that hold each side most strongly: side after side, the strongest first."""

    sides: RowArray
    """(m,) twice the latent, plus 1 for the sign -."""
    strengths: FloatArray
    """(m,) magnitudes of values."""
    places: RowArray
    """(m,) the document's number in `Documents.ids`."""

    def of(self, which: RowArray | BoolArray) -> Strongest:
        """Some of them, by number or mask."""
        return Strongest(self.sides[which], self.strengths[which], self.places[which])


def side(latent: int, sign: str | float) -> str:
    """A latent with a sign as one word, such as 12+ or 12-; a value stands for its sign."""
    if not isinstance(sign, str):
        sign = "-" if sign < 0 else "+"
    return f"{latent}{sign}"


def holding(documents: Documents, latent: int, sign: Sign | None, at_least: float) -> BoolArray:
    """Which documents have a value of a latent in their code, (n,) in the order of their ids.

    Args:
        documents: the documents, which must list their ids.
        latent: the latent.
        sign: the sign of the value; None for either.
        at_least: the least magnitude of the value, which is never 0.
    """
    marks = []
    for _, codes in coded(documents, documents.ids):
        values = np.where(codes.latents == latent, codes.values, np.float32(0))
        if sign is not None:
            values = np.maximum(values if sign == "+" else -values, np.float32(0))
        magnitudes = np.abs(values).max(axis=1)
        marks.append((magnitudes > 0) & (magnitudes >= at_least))
    return np.concatenate(marks) if marks else np.empty(0, dtype=bool)


def coded(documents: Documents, ids: IdArray) -> Iterator[tuple[int, SparseCodes]]:
    """The codes of ids, a block at a time, with the number of the block's first id."""
    for first in range(0, len(ids), BLOCK):
        yield first, documents.codes(ids[first : first + BLOCK])


def strongest(blocks: Iterator[tuple[int, SparseCodes]], n: int) -> Strongest:
    """The n documents that hold each latent most strongly, with each sign; of equal ones, the first."""
    best = Strongest(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    for first, codes in blocks:
        rows, pairs = np.nonzero(codes.values)
        values = codes.values[rows, pairs]
        sides = codes.latents[rows, pairs].astype(np.int64) * 2 + (values < 0)
        every = Strongest(
            np.concatenate([best.sides, sides]),
            np.concatenate([best.strengths, np.abs(values)]),
            np.concatenate([best.places, rows + first]),
        )
        every = every.of(np.lexsort((-every.strengths, every.sides)))  # stable: documents are in their order
        best = every.of(places_in_runs(every.sides) < n)
    return best


def places_in_runs(values: RowArray) -> RowArray:
    """The place of each value in its run of equal ones, from 0 on, (n,)."""
    begins = np.flatnonzero(np.diff(values, prepend=-1))
    lengths = np.diff(begins, append=len(values))
    return np.arange(len(values)) - np.repeat(begins, lengths)
