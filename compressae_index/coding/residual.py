"""Residuals: what codes leave out of their vectors, kept in a few bits a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE, Encoder
from compressae_index.errors import InputError

# Bits a dimension; 0 for no residual codes.
RESIDUAL_BITS = (0, 1, 2, 3, 4, 6)

# The share of a residual's squared norm that rounding to the best levels leaves out, for normal entries
# (Max, 1960).
_DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.0346, 4: 0.0095, 6: 0.0007}


def check_residual_bits(bits: Any) -> int:
    """Checks bits of residual codes.

    Raises:
        InputError: not one of RESIDUAL_BITS.
    """
    number = check_int(bits, "residual_bits", 0)
    if number not in RESIDUAL_BITS:
        msg = f"residual_bits must be one of {', '.join(map(str, RESIDUAL_BITS))}, got {number}"
        raise InputError(msg)
    return number


def make_room(
    model: CompresSAE,
    codes: SparseCodes,
    targets: FloatArray,
    encoder: Encoder,
    residual_bits: int,
    num_threads: int,
) -> SparseCodes:
    """Scales codes so that reconstructions get the norm of their rows with a residual, not without.

    The residual r of a code of least squared error, as pursuit finds it, is orthogonal to s W_dec. The
    residual code keeps a share 1 - D of |r|^2, and the factor solves
    g^2 (|s W_dec|^2 + (1 - D) |r|^2) = |t|^2.

    Args:
        model: the model that encoded.
        codes: n codes that are not folded.
        targets: (n, d) the rows t that they approximate, without the model's mean.
        encoder: how they were encoded.
        residual_bits: bits a dimension, more than 0.
        num_threads: threads of the engine.
    """
    squares = np.einsum("nd,nd->n", targets, targets)
    norms = model.norms(codes, num_threads=num_threads)
    if encoder != "pursuit":
        sums = codes.to_csr() @ model.decoder_w
        fits = np.einsum("nd,nd->n", sums, targets) / np.maximum(norms, np.float32(1e-12)) ** 2
        codes, norms = codes.scaled(fits), norms * np.abs(fits)
    left_out = np.maximum(squares - norms**2, 0)
    lost = _DISTORTION[residual_bits] * left_out / np.maximum(squares, np.float32(1e-30))
    factors: FloatArray = (1 / np.sqrt(1 - lost)).astype(np.float32)
    return codes.scaled(factors)
