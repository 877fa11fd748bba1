"""Codes as pairs of index and value: signed, or split by sign for stores of sparse vectors without negatives.

Split, a positive value of latent j stays at index j; of a negative one, the magnitude goes to index
n_latents + j. The inner product of two split rows, their agreement, is the sum of the terms whose signs are
equal, which is never below the signed sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressae_index.coding.codes import SparseCodes

# A nonzero: uint32 index and float32 value, little-endian.
PAIR = np.dtype([("index", "<u4"), ("value", "<f4")])


def signed(codes: SparseCodes) -> npt.NDArray[np.void]:
    """Pairs of each row as they are, (n, k) of PAIR, in ascending order of index."""
    pairs: npt.NDArray[np.void] = np.empty(codes.latents.shape, dtype=PAIR)
    pairs["index"], pairs["value"] = codes.latents, codes.values
    return pairs


def split(codes: SparseCodes) -> npt.NDArray[np.void]:
    """Pairs of each row, (n, k) of PAIR, in ascending order of index; values are not negative."""
    negative = codes.values < 0
    indices = codes.latents.astype(np.uint64) + negative * np.uint64(codes.n_latents)
    # Sorted as one integer, index above value: several times faster than by argsort.
    keys = indices << np.uint64(32) | np.abs(codes.values).view(np.uint32)
    keys.sort(axis=1)
    pairs: npt.NDArray[np.void] = np.empty(keys.shape, dtype=PAIR)
    pairs["index"] = keys >> np.uint64(32)
    pairs["value"] = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    return pairs
