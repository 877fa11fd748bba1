"""Scales that undo what rounding did to the norms of reconstructions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressae_index._engine import code_norms
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes


def norm_keeping_scales(
    scales: npt.NDArray[np.float16],
    codes: SparseCodes,
    rounded: FloatArray,
    dictionary: FloatArray,
    num_threads: int,
) -> npt.NDArray[np.float16]:
    """Scales with which rounded values reconstruct vectors of the same norm as the codes do.

    Args:
        scales: (n,), by which the values were rounded.
        codes: (n, k), before rounding.
        rounded: (n, k), their values after rounding.
        dictionary: (n_latents, dim).
        num_threads: threads of the engine.
    """
    wanted, given = (
        code_norms(codes.latents, values, dictionary, num_threads) for values in (codes.values, rounded)
    )
    factors = np.divide(wanted, given, out=np.ones_like(given), where=given > 0)
    largest = float(np.finfo(np.float16).max)
    return np.minimum(scales.astype(np.float32) * factors, largest).astype(np.float16)
