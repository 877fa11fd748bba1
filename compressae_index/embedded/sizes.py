"""Sizes that the engine fixes, and the bytes of posting lists."""

from __future__ import annotations

from compressae_index import _engine

# Documents of a window of the inverted part, and of a cluster.
WINDOW = _engine.WINDOW
CLUSTER = _engine.CLUSTER

# Rows that are packed or inverted at once, whole windows: the work takes several times the memory of its
# result.
RUN_ROWS = 2 * WINDOW

# Bytes of a posting: a 16-bit document and an 8-bit value.
POSTING_BYTES = _engine.POSTING_BYTES

# Candidates that `sparse` takes in addition: this many, and one for each this many that are asked for.
SPARE_CANDIDATES = 16


def sparse_candidates(top: int) -> int:
    """Documents that posting lists find for `sparse` search: their rounding should hide none of the best."""
    return top + top // SPARE_CANDIDATES + SPARE_CANDIDATES


def list_overhead(n_latents: int, n: int) -> float:
    """Bytes a document that the inverted part takes in addition to its postings: offsets and scales."""
    windows = -(-n // WINDOW)
    return ((n_latents + 1) * 8 + n_latents * (4 * (windows + 1) + 2 * windows) + 4) / n
