"""Orders documents so that similar ones are adjacent, for clusters."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from compressae_index._engine import Projection
from compressae_index.arrays import FloatArray, RowArray
from compressae_index.coding.model import CompresSAE
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.sizes import CLUSTER
from compressae_index.progress import track

# Centroids of k-means for each cluster. More centroids make the documents of a cluster more alike.
CENTROIDS = 3
MAX_CENTROIDS = 4096
# Documents to learn each centroid from, and the most for all centroids.
SAMPLE = 32
MAX_SAMPLE = 65536
ROUNDS = 8
# Documents to decode at a time.
CHUNK_ROWS = 8192


def similar_order(
    model: CompresSAE, backend: EmbeddedBackend, rows: RowArray, num_threads: int, *, progress: bool
) -> RowArray:
    """An order of rows that puts similar ones near each other: positions in `rows`, (len(rows),).

    Groups the directions of reconstructions by k-means, then chains the groups: each is followed by the
    nearest of those left.
    """
    n_centroids = min(CENTROIDS * len(rows) // CLUSTER, MAX_CENTROIDS)
    if n_centroids < 2:
        return np.arange(len(rows))
    rng = np.random.default_rng(0)
    sampled = rng.choice(len(rows), min(SAMPLE * n_centroids, MAX_SAMPLE, len(rows)), replace=False)
    centroids = _centroids(_directions(model, backend, rows[np.sort(sampled)]), n_centroids, rng, num_threads)
    centroids = centroids[_chain(centroids)]
    nearest = np.empty(len(rows), dtype=np.int64)
    with track(len(rows), "clustering", enabled=progress) as advance:
        for first in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[first : first + CHUNK_ROWS]
            nearest[first : first + len(chunk)] = _nearest(
                _directions(model, backend, chunk), centroids, num_threads
            )
            advance(len(chunk))
    return np.argsort(nearest, kind="stable")


def _directions(model: CompresSAE, backend: EmbeddedBackend, rows: RowArray) -> FloatArray:
    """Reconstructions scaled to unit norm, (len(rows), dim); zeros stay zero."""
    decoded = model.decode(backend.codes(rows))
    decoded /= np.maximum(np.linalg.norm(decoded, axis=1, keepdims=True), np.float32(1e-12))
    return decoded


def _nearest(directions: FloatArray, centroids: FloatArray, num_threads: int) -> RowArray:
    nearest: RowArray = Projection(centroids).project(directions, None, num_threads)[0].argmax(axis=1)
    return nearest


def _centroids(directions: FloatArray, n: int, rng: np.random.Generator, num_threads: int) -> FloatArray:
    """Centroids of spherical k-means, (n, dim), unit norm. Those of empty groups are not moved."""
    centroids = directions[rng.choice(len(directions), n, replace=False)]
    for _ in range(ROUNDS):
        nearest = _nearest(directions, centroids, num_threads)
        of_centroid = (np.ones(len(nearest), np.float32), (nearest, np.arange(len(nearest))))
        sums = sp.csr_array(of_centroid, shape=(n, len(nearest))) @ directions
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(norms > 0, sums / np.maximum(norms, np.float32(1e-12)), centroids)
    return centroids


def _chain(centroids: FloatArray) -> RowArray:
    """An order of the centroids in which each is followed by the nearest of those left."""
    similar = centroids @ centroids.T
    chain = np.zeros(len(centroids), dtype=np.int64)
    for i in range(1, len(chain)):
        similar[:, chain[i - 1]] = -np.inf
        chain[i] = similar[chain[i - 1]].argmax()
    return chain
