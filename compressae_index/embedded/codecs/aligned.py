"""The aligned codec: whole bytes, fastest to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compressae_index._engine import AlignedCodes
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.codecs.base import Arrays, Codec
from compressae_index.embedded.codecs.norms import norm_keeping_scales


@dataclass(frozen=True)
class Aligned(Codec):
    """16-bit latents, 8-bit values and a half-precision scale: 3k + 2 bytes a row, fastest to read.

    A row's scale is its largest magnitude / 127. Rounding changes a value by at most half the scale.
    """

    name: ClassVar = "aligned"
    array_names: ClassVar = ("latents", "values", "scales")

    def row_bytes(self, n_latents: int, k: int) -> int:  # noqa: ARG002
        """3k + 2."""
        return 3 * k + 2

    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,
        dictionary: FloatArray | None = None,
        targets: FloatArray | None = None,  # noqa: ARG002
    ) -> Arrays:
        """Arrays: latents (n, k) uint16, values (n, k) int8, scales (n,) half precision as uint16.

        With a dictionary (n_latents, dim), scales are set so that reconstructions keep their norms.
        """
        # A little more, so that the largest value fits in 127 steps after rounding to half precision.
        scales = (np.abs(codes.values).max(axis=1) / 127 * 1.001).astype(np.float16)
        steps = codes.values / np.maximum(scales.astype(np.float32), 1e-12)[:, None]
        values = np.clip(np.rint(steps), -127, 127).astype(np.int8)
        if dictionary is not None:
            rounded = values * scales.astype(np.float32)[:, None]
            scales = norm_keeping_scales(scales, codes, rounded, dictionary, num_threads)
        return {"latents": codes.latents, "values": values, "scales": scales.view(np.uint16)}

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:  # noqa: ARG002
        """The codes that `pack` stored, rounded."""
        scales = arrays["scales"].view(np.float16).astype(np.float32)
        values = arrays["values"].astype(np.float32) * scales[:, None]
        return SparseCodes(np.ascontiguousarray(arrays["latents"]), values, n_latents)

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> AlignedCodes:
        """The engine's view of the arrays, which must outlive it.

        Raises:
            ValueError: the arrays do not fit together.
        """
        forward = AlignedCodes(arrays, n_latents)
        if forward.k != k:
            msg = f"codes have {forward.k} nonzeros, expected {k}"
            raise ValueError(msg)
        return forward
