"""Sizes set by the engine, and the bytes of posting lists."""

from __future__ import annotations

from compressae_index import _engine

# Documents in a window of the inverted part.
WINDOW = _engine.WINDOW

# Rows to pack or invert at once, in whole windows. This takes several times the memory of the result.
RUN_ROWS = 2 * WINDOW

# `two_stage` scores all allowed documents by their codes where they are no more than one in so many.
LISTED_PER_CODE = _engine.LISTED_PER_CODE

# Bytes of a posting: a 16-bit document and an 8-bit value.
POSTING_BYTES = _engine.POSTING_BYTES

# `sparse` takes this many extra candidates, and one more for every this many asked for.
SPARE_CANDIDATES = 16


def sparse_candidates(top: int) -> int:
    """Candidates of a `sparse` search for `top` results: rounding in the lists should hide no result."""
    return top + top // SPARE_CANDIDATES + SPARE_CANDIDATES


def list_overhead(n_latents: int, n: int) -> float:
    """Bytes a document of the inverted part's offsets and scales, in addition to its postings."""
    windows = -(-n // WINDOW)
    return ((n_latents + 1) * 8 + n_latents * (4 * (windows + 1) + 2 * windows) + 4) / n


def dictionary_bytes(n_latents: int, dim: int, *, by_originals: bool = False) -> int:
    """Bytes of a dictionary as searches need it: a byte an entry, and a float32 scale a latent.

    Half a byte an entry more of a large one where original vectors give the scores: see `CompresSAE.seen`.
    """
    entries = n_latents * dim
    halves = entries // 2 if by_originals and entries > _engine.NEAR_BYTES else 0
    return entries + 4 * n_latents + halves
