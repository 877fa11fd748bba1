"""Codes like those of two papers, SAQ and ASH, written for these benchmarks: baselines of our own, not tuned.

Both rotate the vectors and round each component by a table of its own, which Lloyd's rule learns. Nothing of
their authors is used, and what their papers add to that is left out: SAQ's adjustment of codes, and factors
that correct the inner products of each vector. Faiss stores and scans what they make: a byte holds several
components, as a product quantiser whose centroids are all combinations of their levels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray

MOST_BITS = 8
LLOYD_ROUNDS, ROTATION_ROUNDS = 20, 10
# Rows that rotations learn from, and as many again that choose the bits.
ROTATED_ROWS, CHOOSING_ROWS = 20_000, 2000
WIDTHS = (1, 2, 4, 8)
KMEANS_ROUNDS = 10


class Rounding(NamedTuple):
    """How vectors become codes."""

    rotation: FloatArray
    """(components, dim), orthonormal rows."""
    bits: npt.NDArray[np.int64]
    """Of each component."""


def saq_like(training: FloatArray, size: int) -> Rounding:
    """Principal components, with the bits of `size` bytes where they lower the error most.

    After SAQ (arXiv 2509.12086, SIGMOD 2026), whose segments of components are single ones here: each further
    bit quarters the error of its component, which is reverse water-filling in whole bits.
    """
    directions, variances = principal(training)
    bits, given = np.zeros(len(variances), np.int64), []
    for _ in range(min(8 * size, MOST_BITS * len(bits))):
        given.append(np.argmax(np.where(bits < MOST_BITS, variances / 4.0**bits, -1.0)))
        bits[given[-1]] += 1
    # Not all bits can be used where components of many bits share no byte.
    while len(shared_bytes(bits)) > size:
        bits[given.pop()] -= 1
    return Rounding(directions[bits > 0], bits[bits > 0])


def ash_like(training: FloatArray, size: int) -> Rounding:
    """Fewer components than there were, rotated so that rounding all of them to as many bits costs least.

    After ASH (arXiv 2606.07870): a learned projection, few bits a component, queries in float. The rotation
    is learned by turns (Gong and Lazebnik, CVPR 2011, with more than one bit): round, then the best rotation
    onto what was rounded. Of 1, 2, 4 and 8 bits, those count that reconstruct other rows best.
    """
    rows, others = training[:ROTATED_ROWS], training[-CHOOSING_ROWS:]
    directions, _ = principal(training)
    choices = [_rotated(rows, directions[: 8 * size // width], width) for width in WIDTHS]
    return max(choices, key=lambda one: _kept(one, rows, others))


def principal(rows: FloatArray) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Principal directions (dim, dim) as rows, the strongest first, and their variances."""
    variances, directions = np.linalg.eigh(np.cov(rows, rowvar=False, dtype=np.float64))
    return np.ascontiguousarray(directions[:, ::-1].T, dtype=np.float32), variances[::-1]


def _rotated(rows: FloatArray, directions: FloatArray, width: int) -> Rounding:
    bits = np.full(len(directions), width)
    components = rows @ directions.T
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((len(bits), len(bits))))[0]
    for _ in range(ROTATION_ROUNDS):
        turned = components @ turn.T.astype(np.float32)
        left, _, right = np.linalg.svd(rounded(turned, tables_of(turned, bits)).T @ components)
        turn = left @ right
    return Rounding((turn @ directions).astype(np.float32), bits)


def _kept(rounding: Rounding, rows: FloatArray, others: FloatArray) -> float:
    """Inner products of rows and their reconstructions, with norms of these of one."""
    components = others @ rounding.rotation.T
    values = rounded(components, tables_of(rows @ rounding.rotation.T, rounding.bits))
    return float(((components * values).sum(axis=1) / np.linalg.norm(values, axis=1)).mean())


def tables_of(components: FloatArray, bits: npt.NDArray[np.int64]) -> list[FloatArray]:
    """The levels of each component, ascending: 2^bits of the least squared error, by Lloyd's rule."""
    return [_levels(column, 2**width) for column, width in zip(components.T, bits.tolist(), strict=True)]


def _levels(values: FloatArray, count: int) -> FloatArray:
    ascending = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    levels = np.quantile(ascending, (np.arange(count) + 0.5) / count)
    for _ in range(LLOYD_ROUNDS):
        inner = np.searchsorted(ascending, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ascending)]])
        held = np.diff(edges)
        levels = np.where(held > 0, np.diff(sums[edges]) / np.maximum(held, 1), levels)
    return levels.astype(np.float32)


def rounded(components: FloatArray, tables: list[FloatArray]) -> FloatArray:
    """Each component's nearest level."""
    values = np.empty_like(components)
    for column, levels in enumerate(tables):
        values[:, column] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, components[:, column])]
    return values


def shared_bytes(bits: npt.NDArray[np.int64]) -> list[list[int]]:
    """Components that share a byte, the most bits first, each in the first byte that has room."""
    found: list[list[int]] = []
    room: list[int] = []
    for one in np.argsort(-bits, kind="stable")[: np.count_nonzero(bits)].tolist():
        width = int(bits[one])
        place = next((i for i, left in enumerate(room) if left >= width), len(found))
        if place == len(found):
            found.append([])
            room.append(MOST_BITS)
        found[place].append(one)
        room[place] -= width
    return found


def inverted_file(rounding: Rounding, training: FloatArray, lists: int) -> Any:
    """An empty IndexIVFPQ of Faiss whose codes are the rounded components, each beside an id of 8 bytes."""
    tables = tables_of(training @ rounding.rotation.T, rounding.bits)
    held = shared_bytes(rounding.bits)
    width = max(map(len, held))
    spread = np.zeros((len(held), width, training.shape[1]), np.float32)
    centroids = np.zeros((len(held), 256, width), np.float32)
    for place, components in enumerate(held):
        shift = 0
        for column, one in enumerate(components):
            spread[place, column] = rounding.rotation[one]
            number = np.arange(256) >> shift & (len(tables[one]) - 1)
            centroids[place, :, column] = tables[one][number]
            shift += int(rounding.bits[one])
    matrix = spread.reshape(-1, training.shape[1])
    transform: Any = faiss.LinearTransform(training.shape[1], len(matrix), False)
    faiss.copy_array_to_vector(matrix.ravel(), transform.A)
    transform.is_trained = True
    means: Any = faiss.Kmeans(
        len(matrix), lists, niter=KMEANS_ROUNDS, spherical=True, seed=1, min_points_per_centroid=1
    )
    means.train(training @ matrix.T)
    coarse: Any = faiss.IndexFlatIP(len(matrix))
    coarse.add(means.centroids)
    index: Any = faiss.IndexIVFPQ(coarse, len(matrix), lists, len(held), 8, faiss.METRIC_INNER_PRODUCT)
    coarse.this.disown()
    index.own_fields = True
    index.by_residual = False
    faiss.copy_array_to_vector(centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    whole: Any = faiss.IndexPreTransform(transform, index)
    transform.this.disown()
    index.this.disown()
    whole.own_fields = True
    return whole
