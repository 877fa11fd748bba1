"""The codecs, one a module, and their list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from compressae_index.checks import check_bool, check_choice, check_int
from compressae_index.coding.residual import check_residual_bits
from compressae_index.embedded.codecs.aligned import Aligned
from compressae_index.embedded.codecs.base import PREFIX, Arrays, Codec
from compressae_index.embedded.codecs.lengths import NORMS, WithNorms
from compressae_index.embedded.codecs.packed import Packed
from compressae_index.embedded.codecs.residual import WithResiduals

__all__ = [
    "CODECS",
    "Aligned",
    "Arrays",
    "Codec",
    "CodecName",
    "Packed",
    "WithNorms",
    "WithResiduals",
    "codec_of",
    "from_arrays",
]

CodecName: TypeAlias = Literal["packed", "aligned"]
CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Packed, Aligned)}


def codec_of(
    forward: CodecName = "packed",
    *,
    dim: int = 0,
    residual_bits: int = 0,
    norms: bool = False,
    **settings: Any,
) -> Codec:
    """Makes the codec of a name, not fitted. Settings that it does not have are ignored.

    With norms, those of vectors are kept beside its codes; with residual_bits, residual codes of vectors of
    `dim` dimensions.

    Raises:
        InputError: an unknown name, or a setting of the wrong type or out of range.
    """
    kind = _kind(forward)
    codec = kind.of({name: value for name, value in settings.items() if name in kind.settings})
    codec = WithNorms(codec) if norms else codec
    return WithResiduals(codec, dim, residual_bits) if residual_bits else codec


def from_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Codec, Arrays]:
    """Restores a codec, and picks its arrays with one row a document from the stored ones.

    Args:
        manifest: the result of `Codec.manifest`.
        arrays: the stored arrays, from `Codec.to_arrays`; others are ignored, and missing ones left out.

    Raises:
        InputError: an unknown codec, or a setting of the wrong type or out of range.
        TypeError: an unknown setting.
        ValueError: learned arrays of the wrong dtype or shape, or with impossible contents.
    """
    settings = dict(manifest)
    dim, residual_bits = settings.pop("dim", 0), settings.pop("residual_bits", 0)
    keeps_norms = check_bool(settings.pop(NORMS, False), NORMS)
    kind = _kind(settings.pop("forward", "packed"))
    held = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    learned = {name: held.pop(name) for name in kind.learned_names if name in held}
    codec = kind.of(settings)
    if learned:
        codec = codec.with_learned(learned)
    codec = WithNorms(codec) if keeps_norms else codec
    if check_residual_bits(residual_bits):
        codec = WithResiduals(codec, check_int(dim, "dim", 1), residual_bits)
    return codec, {name: held[name] for name in codec.array_names if name in held}


def _kind(name: str) -> type[Codec]:
    return CODECS[check_choice(name, "forward", tuple(CODECS))]
