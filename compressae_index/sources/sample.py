"""A sample of rows, spread over a source."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.errors import InputError
from compressae_index.sources.base import Run, Vectors
from compressae_index.sources.rows import GoodRows, checked_rows

# Rows in a run: reading single rows would take as long as reading the whole file.
_RUN = 4096


def unit_sample(vectors: Vectors, max_rows: int, rng: np.random.Generator) -> FloatArray:
    """Normalised float32 rows (m, d), m <= max_rows, in order: all, or runs of rows at random places.

    Raises:
        InputError: a sampled row is zero or not finite.
    """
    parts = [normalize_rows(checked_rows(vectors, *run)) for run in _runs(vectors.shape[0], max_rows, rng)]
    return np.concatenate(parts)[:max_rows]


def spread_sample(
    vectors: Vectors, max_rows: int, rng: np.random.Generator, *, skip: bool = False, zeros: bool = False
) -> FloatArray:
    """Float32 rows (m, d) as they are, m <= max_rows, in order, chosen as by `unit_sample`.

    Args:
        vectors: the source.
        max_rows: the most rows to take.
        rng: chooses the places.
        skip: leave out rows that are zero or not finite.
        zeros: rows of zeros are as good as others.

    Raises:
        InputError: a sampled row is zero or not finite, or with `skip` all are.
    """
    runs = [Run(vectors, *run) for run in _runs(vectors.shape[0], max_rows, rng)]
    taken: list[Vectors] = list(runs)
    if skip:
        taken = [GoodRows(run, zeros=zeros, may_be_empty=True) for run in runs]
    parts = [checked_rows(rows, 0, rows.shape[0], zeros=zeros) for rows in taken if rows.shape[0]]
    if not parts:
        msg = (
            f"all sampled rows of the embeddings {'' if zeros else 'are zero or '}hold NaN or infinite values"
        )
        raise InputError(msg)
    return np.concatenate(parts)[:max_rows]


def _runs(n: int, max_rows: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """First and last + 1 of runs of rows at random places, or of all."""
    run = min(_RUN, max(max_rows // 16, 1))
    starts: npt.NDArray[np.int64] = np.arange(0, n, run)
    if n > max_rows:
        starts = np.sort(rng.permutation(starts)[: -(-max_rows // run)])
    return [(int(start), min(int(start) + run, n)) for start in starts]
