"""Vectors to folded codes, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from compressae_index.checks import check_choice, check_int, check_threads
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import RowScale
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows


def encoded_chunks(
    model: CompresSAE,
    vectors: Vectors,
    k: int,
    encoder: Encoder,
    num_threads: int | None,
    *,
    device: str = "cpu",
    begin: int = 0,
    end: int | None = None,
    scale: RowScale | None = None,
    note: Callable[[memoryview], object] | None = None,
) -> Iterator[SparseCodes]:
    """Folded codes of rows begin .. end, at most CHUNK_ROWS at a time, times the rows' factors by `scale`.

    Calls `note` with the bytes of the rows before they are encoded.

    Raises:
        InputError: bad rows, by their number in `vectors`.
    """
    check_int(k, "k", 1, model.n_latents, "n_latents")
    check_choice(encoder, "encoder", ENCODERS)
    threads = check_threads(num_threads)
    end = vectors.shape[0] if end is None else end
    for first in range(begin, end, CHUNK_ROWS):
        rows = checked_rows(vectors, first, min(first + CHUNK_ROWS, end), dim=model.dim)
        if note is not None:
            note(rows.data)
        factors = None if scale is None else scale.of_rows(rows, first)
        codes = model.encode_checked(rows, k, encoder, threads, device)
        codes = model.fold(codes, num_threads=threads)
        yield codes if factors is None else codes.scaled(factors)
