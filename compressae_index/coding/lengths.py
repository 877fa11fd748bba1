"""Norms of vectors beside their codes, for Euclidean distances.

|q - x|^2 = |q|^2 - 2 (q.x - |x|^2 / 2), and a code gives q.x alone. So a norm counts as one more pair of a
code: its latent comes after those of the dictionary, its value is half the square of the norm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import MAX_LATENTS, SparseCodes
from compressae_index.errors import InputError

# Norms as 16 bits: 5 of the exponent and 11 of the mantissa of a float32, from 2^-16, which is 0 too, to
# 2^16.
Norms = npt.NDArray[np.uint16]
_LEAST, _SHIFT = (127 - 16) << 23, 12


def to_bits(norms: npt.NDArray[np.floating]) -> Norms:
    """Norms (n,) as the nearest of 16 bits, within 2^-12 of their size."""
    bits = np.asarray(norms, np.float32).view(np.int32).astype(np.int64)
    rounded = (bits - _LEAST + (1 << (_SHIFT - 1))) >> _SHIFT
    kept: Norms = np.clip(rounded, 0, np.iinfo(np.uint16).max).astype(np.uint16)
    return kept


def from_bits(bits: Norms) -> FloatArray:
    """The norms that `to_bits` kept, (n,) float32."""
    return ((bits.astype(np.int32) << _SHIFT) + _LEAST).view(np.float32)


def half_squares(bits: Norms) -> FloatArray:
    """Half the squares of kept norms, (n,) float32, as the engine has them."""
    norms = from_bits(bits)
    return np.float32(0.5) * norms * norms


def inverses(bits: Norms) -> FloatArray:
    """Factors that make directions of vectors of kept norms, (n,) float32; 0 for those of no norm."""
    inverse = np.float32(1) / from_bits(bits)
    return np.where(bits > 0, inverse, np.float32(0)).astype(np.float32)


def check_room_for_norms(n_latents: int) -> None:
    """Checks that a latent is left for norms.

    Raises:
        InputError: the dictionary has as many latents as there can be.
    """
    if n_latents >= MAX_LATENTS:
        msg = f"Euclidean distances take one latent for norms, so n_latents must be below {MAX_LATENTS}"
        raise InputError(msg)


def with_lengths(codes: SparseCodes, halves: FloatArray) -> SparseCodes:
    """Codes with one more pair, whose value is half the square of a norm, (n,)."""
    latents = np.full((len(codes), 1), codes.n_latents, np.uint16)
    return SparseCodes(
        np.concatenate([codes.latents, latents], axis=1),
        np.concatenate([codes.values, halves.astype(np.float32)[:, None]], axis=1),
        codes.n_latents + 1,
    )


def without_lengths(codes: SparseCodes, n_latents: int) -> SparseCodes:
    """Codes over the n_latents of a dictionary, without the pair of a norm if they have one."""
    if codes.n_latents == n_latents:
        return codes
    return SparseCodes(
        np.ascontiguousarray(codes.latents[:, :-1]), np.ascontiguousarray(codes.values[:, :-1]), n_latents
    )


def raised(codes: SparseCodes, height: float) -> SparseCodes:
    """Codes with a height less the last value of each, or back."""
    values = codes.values.copy()
    values[:, -1] = np.float32(height) - values[:, -1]
    return SparseCodes(codes.latents, values, codes.n_latents)
