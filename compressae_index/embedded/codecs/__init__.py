"""Codecs, one a module, and the list of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

from compressae_index.checks import check_choice
from compressae_index.embedded.codecs.aligned import Aligned
from compressae_index.embedded.codecs.base import PREFIX, Arrays, Codec
from compressae_index.embedded.codecs.packed import Packed

__all__ = ["CODECS", "Aligned", "Arrays", "Codec", "CodecName", "Packed", "codec_of", "from_arrays"]

CodecName: TypeAlias = Literal["packed", "aligned"]
CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Packed, Aligned)}


def codec_of(forward: CodecName = "packed", **settings: Any) -> Codec:
    """The codec of a name, not fitted. Settings that it does not have are ignored.

    Raises:
        InputError: another name, or a setting of another type or out of range.
    """
    kind = _kind(forward)
    return kind.of({name: value for name, value in settings.items() if name in kind.settings})


def from_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Codec, Arrays]:
    """The codec of a manifest and the arrays with one row a document, of those that `Codec.to_arrays` gave.

    Args:
        manifest: what `Codec.manifest` gave.
        arrays: the stored arrays; others than the codec's are ignored, and missing ones are left out.

    Raises:
        InputError: another name of a codec, or a setting of another type or out of range.
        TypeError: an unknown setting.
        ValueError: learned arrays of another dtype or shape, or that cannot have been learned.
    """
    settings = dict(manifest)
    kind = _kind(settings.pop("forward", "packed"))
    held = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    learned = {name: held.pop(name) for name in kind.learned_names if name in held}
    codec = kind.of(settings)
    if learned:
        codec = codec.with_learned(learned)
    return codec, {name: held[name] for name in kind.array_names if name in held}


def _kind(name: str) -> type[Codec]:
    return CODECS[check_choice(name, "forward", tuple(CODECS))]
