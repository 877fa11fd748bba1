"""Scales that correct the norms of reconstructions after rounding."""

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
    """Scales that give the reconstruction of rounded values the same norm as that of the codes.

    Args:
        scales: (n,), the scales that values were rounded with.
        codes: (n, k), before rounding.
        rounded: (n, k), the values after rounding, scales included.
        dictionary: (n_latents, dim).
        num_threads: threads of the engine.
    """
    wanted, given = (
        code_norms(codes.latents, values, dictionary, num_threads) for values in (codes.values, rounded)
    )
    factors = np.divide(wanted, given, out=np.ones_like(given), where=given > 0)
    largest = float(np.finfo(np.float16).max)
    return np.minimum(scales.astype(np.float32) * factors, largest).astype(np.float16)
