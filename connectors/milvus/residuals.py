"""Residual codes as Milvus holds them: rows of the engine as text, as Milvus Lite has no field of bytes."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index._engine import residual_row_bytes
from compressae_index.connectors.milvus.manifest import Manifest
from compressae_index.errors import BackendError, InputError

# Residual rows (n, row_bytes) of the engine, each with a scale in half precision first.
ResidualRows: TypeAlias = npt.NDArray[np.uint8]


def text_bytes(manifest: Manifest) -> int:
    """Bytes of the text of a residual row: 4 for every 3 of the row."""
    return -(-residual_row_bytes(manifest.dim, manifest.residual_bits) // 3) * 4


def to_texts(rows: ResidualRows) -> list[str]:
    """Residual rows in base64."""
    return [b64encode(row.tobytes()).decode("ascii") for row in rows]


def from_texts(texts: Sequence[str], manifest: Manifest) -> ResidualRows:
    """Residual rows of what `to_texts` made.

    Raises:
        BackendError: a text is none of theirs.
    """
    size = residual_row_bytes(manifest.dim, manifest.residual_bits)
    try:
        rows = [b64decode(text, validate=True) for text in texts]
    except (TypeError, ValueError) as error:
        msg = f"the collection holds a residual code that is not base64: {error}"
        raise BackendError(msg) from error
    wrong = [len(row) for row in rows if len(row) != size]
    if wrong:
        msg = f"the collection holds a residual code of {wrong[0]} bytes, expected {size}"
        raise BackendError(msg)
    found = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size)
    if not np.isfinite(_scales(found)).all():
        msg = "the collection holds a residual code without a finite scale"
        raise BackendError(msg)
    return found


def scaled(rows: ResidualRows, factor: float) -> ResidualRows:
    """Residual rows of vectors that are multiplied by a power of two.

    Raises:
        InputError: a scale would exceed half precision.
    """
    if factor == 1.0:
        return rows
    with np.errstate(over="ignore"):
        scales = (_scales(rows).astype(np.float32) * np.float32(factor)).astype("<f2")
    if not np.isfinite(scales).all():
        msg = f"residual codes in a unit of {factor} exceed half precision, in which Milvus would hold them"
        raise InputError(msg)
    changed = rows.copy()
    changed[:, :2] = scales.view(np.uint8)
    return changed


def _scales(rows: ResidualRows) -> npt.NDArray[np.float16]:
    """(n, 1)."""
    return np.ascontiguousarray(rows[:, :2]).view("<f2")
