"""Codes as columns of a table: their names, what the table's metadata say of them, and codes from columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.model import CompresSAE
from compressae_index.conversion import as_array
from compressae_index.errors import DimensionError, FormatError, InputError

LATENTS, VALUES, SCALE = "latents", "values", "scale"
"""Columns of lists of k latents, lists of k values, and norms of the rows."""

FINGERPRINT = b"compressae_index.fingerprint"
"""Key of the model's fingerprint in the metadata of an Arrow schema."""
ENCODER = b"compressae_index.encoder"
"""Key of the encoder's name."""

# Rows of a batch whose norms are compared, and four times what rounding to half precision changes.
_COMPARED, _OFF = 256, 0.002
# Codes of rows near the mean are short, and folding may have left them so.
_SHORT = 0.05


def codes_of_columns(latents: Any, values: Any, n_latents: int, k: int | None = None) -> SparseCodes:
    """Codes from a column of latents and one of values.

    Args:
        latents: (n, k) integers: an array, or a column of lists.
        values: (n, k) floating point.
        n_latents: size of the dictionary.
        k: the expected k, or None for any.

    Raises:
        DimensionError: the columns are not both (n, k).
        InputError: missing or uneven rows, or no codes over so many latents.
    """
    which, what = as_array(latents, LATENTS), as_array(values, VALUES)
    if not len(which) and not len(what):
        return SparseCodes.empty(k or 1, n_latents)
    if which.ndim != 2 or which.shape != what.shape or (k is not None and which.shape[1] != k):
        msg = f"latents and values must be lists of {k or 'k'} numbers, got {which.shape} and {what.shape}"
        raise DimensionError(msg)
    if which.dtype.kind not in "iu" or what.dtype.kind not in "f":
        msg = f"codes must be integer latents and floating point values, got {which.dtype} and {what.dtype}"
        raise InputError(msg)
    low, high = int(which.min()), int(which.max())
    if low < 0 or high >= n_latents:
        msg = f"latent {low if low < 0 else high} is outside of n_latents = {n_latents}"
        raise InputError(msg)
    return SparseCodes(
        np.ascontiguousarray(which, dtype=np.uint16), np.ascontiguousarray(what, np.float32), n_latents
    )


def metadata_of(model: CompresSAE, encoder: str) -> dict[bytes, bytes]:
    """What the metadata of a table of codes say of their model."""
    return {FINGERPRINT: model.fingerprint.encode(), ENCODER: encoder.encode()}


def check_metadata(metadata: Mapping[bytes, bytes] | None, model: CompresSAE, name: str) -> None:
    """Checks that metadata do not name another model; they may have been lost on the way.

    Raises:
        FormatError: they do.
    """
    found = (metadata or {}).get(FINGERPRINT)
    if found is not None and found != model.fingerprint.encode():
        msg = (
            f"{name} was encoded by a model of fingerprint {found.decode(errors='replace')}, "
            f"the model given has {model.fingerprint}"
        )
        raise FormatError(msg)


def check_made_by(model: CompresSAE, codes: SparseCodes, name: str) -> None:
    """Checks that folded codes may be of this model: most of their reconstructions then have unit norm.

    It tells models apart where a fingerprint was lost.

    Raises:
        FormatError: they do not.
    """
    some = np.linspace(0, len(codes) - 1, min(len(codes), _COMPARED)).astype(np.int64)
    some = some[model.norms(codes[some], num_threads=1) > _SHORT]
    if not some.size:
        return
    off = float(np.median(np.abs(np.linalg.norm(model.decode(codes[some]), axis=1) - 1)))
    if off > _OFF:
        msg = (
            f"{name} holds codes of another model, or not as they were encoded: the norms of their "
            f"reconstructions are off 1 by {off:.2g} at the median"
        )
        raise FormatError(msg)
