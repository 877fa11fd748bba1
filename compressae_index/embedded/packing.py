"""How the forward part stores a code: in few bits, or aligned to whole bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index._engine import ForwardCodes, PackedCodes, code_norms, pack_rows, quantize, unpack_rows
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.levels import SAMPLE, SMALLEST_SAMPLE, learn_levels, usual_levels

Form: TypeAlias = Literal["packed", "aligned"]
FORMS: tuple[Form, ...] = ("packed", "aligned")
# Arrays of the forward part by name; each has one row a document.
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

# The fewest bits of a value that lose less than 0.003 of recall@100 at 32 nonzeros.
VALUE_BITS = 6


@dataclass(frozen=True)
class Aligned:
    """16-bit latents, 8-bit values and a half-precision scale: 3k + 2 bytes a row, the fastest to read.

    A value is rounded by at most half of the row's scale, which is the row's largest magnitude / 127.
    """

    array_names: ClassVar = ("latents", "values", "scales")

    def fitted(self, codes: SparseCodes) -> Aligned:  # noqa: ARG002
        """This packing, which learns nothing from codes."""
        return self

    def pack(self, codes: SparseCodes, num_threads: int = 1, dictionary: FloatArray | None = None) -> Arrays:
        """Arrays: latents (n, k) uint16, values (n, k) int8, scales (n,) half precision as uint16.

        With a dictionary (n_latents, dim), scales are set so that reconstructions keep their norms.
        """
        # Rounded up, so that the largest value still fits 127 steps.
        scales = (np.abs(codes.values).max(axis=1) / 127 * 1.001).astype(np.float16)
        steps = codes.values / np.maximum(scales.astype(np.float32), 1e-12)[:, None]
        values = np.clip(np.rint(steps), -127, 127).astype(np.int8)
        if dictionary is not None:
            rounded = values * scales.astype(np.float32)[:, None]
            scales = _rescaled(scales, codes, rounded, dictionary, num_threads)
        return {"latents": codes.latents, "values": values, "scales": scales.view(np.uint16)}

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:  # noqa: ARG002
        """The codes that `pack` stored, rounded."""
        scales = arrays["scales"].view(np.float16).astype(np.float32)
        values = arrays["values"].astype(np.float32) * scales[:, None]
        return SparseCodes(np.ascontiguousarray(arrays["latents"]), values, n_latents)

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> ForwardCodes:
        """The engine's view of the arrays, which it borrows.

        Raises:
            ValueError: the arrays do not fit together.
        """
        forward = ForwardCodes(arrays, n_latents)
        if forward.k != k:
            msg = f"codes have {forward.k} nonzeros, expected {k}"
            raise ValueError(msg)
        return forward

    def manifest(self) -> dict[str, Any]:
        """What `packing_of` takes."""
        return {"forward": "aligned"}


@dataclass(frozen=True, eq=False)
class Packed:
    """A half-precision scale, Elias-Fano latents and codebook values, without bits in between.

    A row takes 16 + k + ((h - 1) >> l) + k * l + k * value_bits bits, rounded up to bytes, where l takes the
    fewest. The scale is the row's largest magnitude. A value is a sign and the nearest of
    2 ** (value_bits - 1) levels, times the scale. The sign bit of the scale marks short rows, which hold
    values of 0: there, and only there, the first level stands for exactly 0. So zeros survive in every row,
    also in rows that come after the codebook was learned, and cost other rows nothing.

    Attributes:
        value_bits: bits of a value, 4 to 8.
        levels: (2 ** (value_bits - 1),) float32, ascending in [0, 1]; None until codes were seen.
    """

    array_names: ClassVar = ("rows",)

    value_bits: int = VALUE_BITS
    levels: FloatArray | None = None

    def __post_init__(self) -> None:
        check_int(self.value_bits, "value_bits", 4, 8)

    def fitted(self, codes: SparseCodes) -> Packed:
        """With levels: its own, or those learned from codes."""
        if self.levels is not None:
            return self
        step = max(-(-codes.values.size // SAMPLE), 1)
        values = np.abs(codes.values[::step])
        scales = _largest(values).astype(np.float32)[:, None]
        sample = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)[values > 0]
        if len(sample) < SMALLEST_SAMPLE:
            # The levels stay as they are when more codes come, so a few odd ones must not make them.
            return replace(self, levels=usual_levels(self.value_bits))
        return replace(self, levels=learn_levels(sample, self.value_bits))

    def pack(self, codes: SparseCodes, num_threads: int = 1, dictionary: FloatArray | None = None) -> Arrays:
        """Arrays: rows (n, row_bytes) uint8. The packing must be fitted.

        With a dictionary (n_latents, dim), reconstructions suffer less from rounding, at no byte: values are
        rounded one after the other, from the largest on, and each makes up for what those before it did to
        the reconstruction (Babai, 1986); scales are then set so that reconstructions keep their norms.
        """
        short = (codes.values == 0).any(axis=1).astype(np.uint16) << 15
        scales = _largest(np.abs(codes.values)).view(np.uint16) | short
        indices = quantize(codes.latents, codes.values, scales, self._levels, dictionary, num_threads)
        if dictionary is not None:
            rounded = self._values(indices, scales)
            rescaled = _rescaled(_magnitudes(scales), codes, rounded, dictionary, num_threads)
            scales = rescaled.view(np.uint16) | short
        rows = pack_rows(codes.latents, indices, scales, codes.n_latents, self.value_bits, num_threads)
        return {"rows": rows}

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:
        """The codes that `pack` stored, rounded.

        Raises:
            ValueError: the rows have another size or are damaged.
        """
        rows = np.ascontiguousarray(arrays["rows"])
        latents, indices, scales = unpack_rows(rows, n_latents, k, self.value_bits, num_threads)
        return SparseCodes(latents, self._values(indices, scales), n_latents)

    def _values(self, indices: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]) -> FloatArray:
        values = np.concatenate([self._levels, -self._levels])[indices]
        short = np.flatnonzero(scales >> 15)
        values[short] *= indices[short] % len(self._levels) > 0
        values *= _magnitudes(scales).astype(np.float32)[:, None]
        return values

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> PackedCodes:
        """The engine's view of the arrays, which it borrows.

        Raises:
            ValueError: the rows have another size.
        """
        return PackedCodes(arrays, self._levels, n_latents, k)

    def manifest(self) -> dict[str, Any]:
        """What `packing_of` takes."""
        return {"forward": "packed", "value_bits": self.value_bits}

    @property
    def _levels(self) -> FloatArray:
        if self.levels is None:
            msg = "this packing is not fitted"
            raise ValueError(msg)
        return self.levels


Packing: TypeAlias = Aligned | Packed


def packing_of(
    forward: Form = "packed", value_bits: int = VALUE_BITS, levels: FloatArray | None = None
) -> Packing:
    """The packing of a name; value_bits and levels are the packed form's.

    Raises:
        InputError: another form, or value_bits outside of 4 to 8.
        ValueError: levels of another dtype or length, or that do not ascend within [0, 1].
    """
    if check_choice(forward, "forward", FORMS) == "aligned":
        return Aligned()
    if levels is not None:
        n_levels = 1 << (check_int(value_bits, "value_bits", 4, 8) - 1)
        if levels.shape != (n_levels,) or levels.dtype != np.float32:
            msg = f"levels must be float32 ({n_levels},), got {levels.dtype} {levels.shape}"
            raise ValueError(msg)
        if not (np.isfinite(levels).all() and (np.diff(levels, prepend=0, append=1) >= 0).all()):
            msg = "levels must ascend within [0, 1]"
            raise ValueError(msg)
    return Packed(value_bits, levels)


def _largest(magnitudes: FloatArray) -> npt.NDArray[np.float16]:
    """The largest of each row in half precision, rounded up."""
    largest = np.minimum(magnitudes.max(axis=1), np.finfo(np.float16).max)
    rounded: npt.NDArray[np.float16] = largest.astype(np.float16)
    np.nextafter(rounded, np.float16(np.inf), out=rounded, where=rounded < largest)
    return rounded


def _magnitudes(scales: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
    """Scales without the mark of short rows."""
    return (scales & 0x7FFF).view(np.float16)


def _rescaled(
    scales: npt.NDArray[np.float16],
    codes: SparseCodes,
    rounded: FloatArray,
    dictionary: FloatArray,
    num_threads: int,
) -> npt.NDArray[np.float16]:
    """Scales with which reconstructions of the rounded values have the norms of those of the codes."""
    wanted, given = (
        code_norms(codes.latents, values, dictionary, num_threads) for values in (codes.values, rounded)
    )
    factors = np.divide(wanted, given, out=np.ones_like(given), where=given > 0)
    largest = float(np.finfo(np.float16).max)
    return np.minimum(scales.astype(np.float32) * factors, largest).astype(np.float16)
