"""Sizes that the engine fixes, and the bytes that parts take."""

from __future__ import annotations

from compressae_index import _engine

# Documents of a window of the inverted part, and of a cluster.
WINDOW = _engine.WINDOW


CLUSTER = _engine.CLUSTER


# Rows that are packed or inverted at once, whole windows: what that needs beside its result is several times
# as much.
RUN_ROWS = 2 * WINDOW


# What makes up for the rounding of posting lists: so many more candidates, and one more of so many.
SPARE_CANDIDATES = 16


def sparse_candidates(top: int) -> int:
    """Documents that posting lists find for `sparse` search: their rounding should hide none of the best."""
    return top + top // SPARE_CANDIDATES + SPARE_CANDIDATES


def list_overhead(n_latents: int, n: int) -> float:
    """Bytes a document that the inverted part takes beside its postings: offsets and scales of the lists."""
    windows = -(-n // WINDOW)
    return ((n_latents + 1) * 8 + n_latents * (4 * (windows + 1) + 2 * windows) + 4) / n


# Bytes of a posting: a 16-bit document and an 8-bit value.
POSTING_BYTES = _engine.POSTING_BYTES


def row_bytes(n_latents: int, k: int, value_bits: int) -> int:
    """Bytes of a packed row; see `Packed`."""
    latent_bits = min(k + ((n_latents - 1) >> low) + k * low for low in range(17))
    return (16 + latent_bits + k * value_bits + 7) // 8
