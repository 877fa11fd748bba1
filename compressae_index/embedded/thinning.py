"""Which nonzeros of codes posting lists keep."""

from __future__ import annotations

import numpy as np

from compressae_index.arrays import BoolArray, FloatArray
from compressae_index.coding.codes import SparseCodes


def shares(codes: SparseCodes) -> FloatArray:
    """Magnitudes relative to the norm of a code's values, (n, k), so that long rows have no larger ones.

    The largest of each code is infinite, the first of equal ones: posting lists keep one of every document.
    """
    magnitudes = np.abs(codes.values)
    norms = np.sqrt(np.einsum("nk,nk->n", magnitudes, magnitudes, dtype=np.float64)).astype(np.float32)
    relative: FloatArray = magnitudes / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    np.put_along_axis(relative, magnitudes.argmax(axis=1)[:, None], np.inf, axis=1)
    return relative


def threshold_for(codes: SparseCodes, postings: int) -> float:
    """The least share that leaves at most `postings` nonzeros a code on average; 0 if it leaves all."""
    if postings >= codes.k or not len(codes):
        return 0.0
    flat = shares(codes).ravel()
    most = postings * len(codes)
    ordered = np.partition(flat, (flat.size - most - 1, flat.size - most))
    above, least = ordered[flat.size - most - 1], ordered[flat.size - most]
    # Ties stay or leave together; the largest of each code stays whatever the threshold.
    if least == above:
        least = np.nextafter(least, np.float32(np.inf))
    return float(min(least, np.float32(1)))


def above_threshold(codes: SparseCodes, threshold: float) -> BoolArray:
    """Which nonzeros have a share of at least the threshold, or are the largest of their code: (n, k)."""
    kept: BoolArray = shares(codes) >= np.float32(threshold)
    return kept


def strongest(codes: SparseCodes, nonzeros: int) -> BoolArray:
    """Which are the `nonzeros` of largest magnitude of each code, (n, k); ties go to the lower latents."""
    order = np.argsort(-np.abs(codes.values), axis=1, kind="stable")[:, :nonzeros]
    kept = np.zeros(codes.values.shape, dtype=bool)
    np.put_along_axis(kept, order, values=True, axis=1)
    return kept


def thinned(codes: SparseCodes, kept: BoolArray) -> SparseCodes:
    """The codes with zeros in place of what is not kept."""
    return SparseCodes(codes.latents, np.where(kept, codes.values, np.float32(0)), codes.n_latents)
