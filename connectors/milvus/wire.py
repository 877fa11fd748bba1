"""Signed codes as Milvus holds them: [s+, s-] over twice the latents, as packed bytes or rows.

Milvus refuses negative sparse values, so codes are split by sign (`coding/pairs.py`).

For Euclidean distances, the pair of a norm holds a height less half the square of the norm. So it is
positive, and counts in agreements, where a vector is no longer than the height allows for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.pairs import PAIR, split
from compressae_index.errors import BackendError, InputError


def to_bytes(codes: SparseCodes) -> list[bytes]:
    """Split rows in Milvus's wire format, without pairs of value 0."""
    pairs = split(codes)
    if (pairs["value"] > 0).all():
        whole, size = pairs.tobytes(), pairs.shape[1] * PAIR.itemsize
        return [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    return [row[row["value"] > 0].tobytes() for row in pairs]


def to_rows(codes: SparseCodes) -> list[list[tuple[int, float]]]:
    """Split rows as lists of pairs, which pymilvus accepts everywhere, without pairs of value 0."""
    return [
        [(index, value) for index, value in zip(indices, values, strict=True) if value > 0]
        for indices, values in _lists(codes)
    ]


def to_dicts(codes: SparseCodes) -> list[dict[int, float]]:
    """Split rows as mappings of index to value, without pairs of value 0."""
    return [dict(row) for row in to_rows(codes)]


def _lists(codes: SparseCodes) -> zip[tuple[list[int], list[float]]]:
    pairs = split(codes)
    return zip(pairs["index"].tolist(), pairs["value"].tolist(), strict=True)


def from_bytes(rows: Sequence[bytes], n_latents: int, k: int) -> SparseCodes:
    """Signed codes of rows in Milvus's wire format.

    Raises:
        BackendError: a row holds more than k pairs, or is not a code of n_latents.
    """
    sizes = np.array([len(row) for row in rows], dtype=np.int64) // PAIR.itemsize
    pairs = np.frombuffer(b"".join(rows), dtype=PAIR)
    negative = pairs["index"] >= n_latents
    latents = pairs["index"] - negative * np.uint32(n_latents)
    values = np.where(negative, -pairs["value"], pairs["value"]).astype(np.float32)
    try:
        if (sizes == k).all():
            keys = latents.astype(np.uint64) << np.uint64(32) | values.view(np.uint32)
            keys = np.sort(keys.reshape(len(rows), k), axis=1)
            return SparseCodes(
                (keys >> np.uint64(32)).astype(np.uint16),
                (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32),
                n_latents,
            )
        ends = np.concatenate([[0], np.cumsum(sizes)])
        matrix = sp.csr_array((values, latents.astype(np.int64), ends), shape=(len(rows), n_latents))
        return SparseCodes.from_csr(matrix, k)
    except (InputError, ValueError) as error:
        msg = f"the collection holds a row that is no code of {k} of {n_latents} latents: {error}"
        raise BackendError(msg) from error


def from_rows(rows: Sequence[dict[int, float]], n_latents: int, k: int) -> SparseCodes:
    """Signed codes of rows as pymilvus returns them: mappings of index to value."""
    return from_bytes(
        [np.array(sorted(row.items()), dtype=PAIR).tobytes() for row in rows],
        n_latents,
        k,
    )


def with_last_latent(codes: SparseCodes) -> SparseCodes:
    """Codes whose last pair is that of the last latent, also where its value was 0 and not stored."""
    last = codes.n_latents - 1
    lacking = codes.latents[:, -1] != last
    if not lacking.any():
        return codes
    latents, values = codes.latents.copy(), codes.values.copy()
    for row in np.flatnonzero(lacking):
        filled_up = int(np.flatnonzero(values[row] == 0)[0])
        latents[row] = [*np.delete(latents[row], filled_up), last]
        values[row] = [*np.delete(values[row], filled_up), 0]
    return SparseCodes(latents, values, codes.n_latents)
