"""The packed codec: the fewest bytes a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compressae_index._engine import PackedCodes, pack_rows, quantize, unpack_rows
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.codecs.base import BYTE_ROWS, Arrays, Codec
from compressae_index.embedded.codecs.levels import SAMPLE, SMALLEST_SAMPLE, learn_levels, usual_levels
from compressae_index.embedded.codecs.norms import norm_keeping_scales

# The fewest bits of a value that cost less than 0.003 of recall@100 at 32 nonzeros.
VALUE_BITS = 6


@dataclass(frozen=True, eq=False)
class Packed(Codec):
    """A half-precision scale, Elias-Fano latents and codebook values, without padding between them.

    A row takes 16 + k + ((h - 1) >> l) + k * l + k * value_bits bits, rounded up to bytes, where h is the
    number of latents and l, the low bits of a latent, is chosen to take the fewest. The scale is the row's
    largest magnitude. A value is a sign and the nearest of 2 ** (value_bits - 1) levels, times the scale.
    The sign bit of the scale marks short rows, those with values of 0; only in these rows, the first level
    means exactly 0. So zeros are kept in every row, also in rows added after the codebook was learned, at no
    cost to other rows.

    Attributes:
        value_bits: bits of a value, 4 to 8.
        levels: (2 ** (value_bits - 1),) float32, ascending in [0, 1]; None before the codec is fitted.
    """

    name: ClassVar = "packed"
    array_names: ClassVar = (BYTE_ROWS,)
    learned_names: ClassVar = ("levels",)
    settings: ClassVar = ("value_bits",)

    value_bits: int = VALUE_BITS
    levels: FloatArray | None = None

    def __post_init__(self) -> None:
        check_int(self.value_bits, "value_bits", 4, 8)

    def fitted(self, codes: SparseCodes) -> Packed:
        """This codec if it has levels; otherwise one with levels learned from codes."""
        if self.levels is not None:
            return self
        step = max(-(-codes.values.size // SAMPLE), 1)
        values = np.abs(codes.values[::step])
        scales = _largest(values).astype(np.float32)[:, None]
        sample = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)[values > 0]
        if len(sample) < SMALLEST_SAMPLE:
            # Levels are never learned again, so do not learn them from a few odd codes.
            return replace(self, levels=usual_levels(self.value_bits))
        return replace(self, levels=learn_levels(sample, self.value_bits))

    def learned(self) -> Arrays:
        """The levels."""
        return {} if self.levels is None else {"levels": self.levels}

    def with_learned(self, learned: Arrays) -> Packed:
        """This codec with stored levels.

        Raises:
            ValueError: levels of the wrong dtype or length, or that do not ascend within [0, 1].
        """
        levels, n_levels = learned["levels"], 1 << (self.value_bits - 1)
        if levels.shape != (n_levels,) or levels.dtype != np.float32:
            msg = f"levels must be float32 ({n_levels},), got {levels.dtype} {levels.shape}"
            raise ValueError(msg)
        if not (np.isfinite(levels).all() and (np.diff(levels, prepend=0, append=1) >= 0).all()):
            msg = "levels must ascend within [0, 1]"
            raise ValueError(msg)
        return replace(self, levels=levels)

    def row_bytes(self, n_latents: int, k: int) -> int:
        """Bytes of a row; see the class for the formula."""
        latent_bits = min(k + ((n_latents - 1) >> low) + k * low for low in range(17))
        return (16 + latent_bits + k * self.value_bits + 7) // 8

    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,
        dictionary: FloatArray | None = None,
        targets: FloatArray | None = None,  # noqa: ARG002
    ) -> Arrays:
        """Arrays: rows (n, row_bytes) uint8. The codec must be fitted.

        With a dictionary (n_latents, dim), rounding costs less accuracy in the same bytes: values are rounded
        in turn, largest first, each correcting the error of the previous ones in the reconstruction (Babai,
        1986); scales then keep the norms of reconstructions.
        """
        short = (codes.values == 0).any(axis=1).astype(np.uint16) << 15
        scales = _largest(np.abs(codes.values)).view(np.uint16) | short
        indices = quantize(codes.latents, codes.values, scales, self._levels, dictionary, num_threads)
        if dictionary is not None:
            rounded = self._values(indices, scales)
            kept = norm_keeping_scales(_magnitudes(scales), codes, rounded, dictionary, num_threads)
            scales = kept.view(np.uint16) | short
        rows = pack_rows(codes.latents, indices, scales, codes.n_latents, self.value_bits, num_threads)
        return {BYTE_ROWS: rows}

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:
        """The codes that `pack` stored, rounded.

        Raises:
            ValueError: the rows have the wrong size or are damaged.
        """
        rows = np.ascontiguousarray(arrays[BYTE_ROWS])
        latents, indices, scales = unpack_rows(rows, n_latents, k, self.value_bits, num_threads)
        return SparseCodes(latents, self._values(indices, scales), n_latents)

    def _values(self, indices: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]) -> FloatArray:
        values = np.concatenate([self._levels, -self._levels])[indices]
        short = np.flatnonzero(scales >> 15)
        values[short] *= indices[short] % len(self._levels) > 0
        values *= _magnitudes(scales).astype(np.float32)[:, None]
        return values

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> PackedCodes:
        """The engine's view of the arrays, which must outlive it.

        Raises:
            ValueError: the rows have the wrong size.
        """
        return PackedCodes(arrays, self._levels, n_latents, k)

    @property
    def _levels(self) -> FloatArray:
        if self.levels is None:
            msg = "this codec is not fitted"
            raise ValueError(msg)
        return self.levels


def _largest(magnitudes: FloatArray) -> npt.NDArray[np.float16]:
    """The largest magnitude of each row, rounded up to half precision."""
    largest = np.minimum(magnitudes.max(axis=1), np.finfo(np.float16).max)
    rounded: npt.NDArray[np.float16] = largest.astype(np.float16)
    np.nextafter(rounded, np.float16(np.inf), out=rounded, where=rounded < largest)
    return rounded


def _magnitudes(scales: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
    """Scales without the sign bit that marks short rows."""
    return (scales & 0x7FFF).view(np.float16)
