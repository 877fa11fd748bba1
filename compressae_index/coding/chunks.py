"""Vectors to codes, chunk by chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from compressae_index.arrays import FloatArray
from compressae_index.checks import check_choice, check_int, check_threads, normalize_rows
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import RowScale
from compressae_index.coding.model import ENCODERS, CompresSAE, Encoder
from compressae_index.coding.residual import make_room
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows
from compressae_index.sources.centred import Centred


class Codes(Protocol):
    """Codes to slice by rows."""

    def __getitem__(self, rows: slice, /) -> SparseCodes:
        """Codes of a slice of rows."""
        ...


class Encoded(NamedTuple):
    """Rows and their codes."""

    codes: SparseCodes
    """n codes: folded, or with room for a residual, and times the rows' factors."""
    rows: FloatArray | None = None
    """(n, d) the rows themselves, of unit norm times their factors; None where only codes are known."""


def encoded_chunks(
    model: CompresSAE,
    vectors: Vectors,
    k: int,
    encoder: Encoder,
    num_threads: int | None,
    *,
    residual_bits: int = 0,
    device: str = "cpu",
    begin: int = 0,
    end: int | None = None,
    scale: RowScale | None = None,
    note: Callable[[memoryview], object] | None = None,
    made: Codes | None = None,
) -> Iterator[Encoded]:
    """Rows begin .. end and their codes, at most CHUNK_ROWS at a time, times the rows' factors by `scale`.

    If the model has a center, they are those of rows less it. Codes are folded, or leave room for a residual
    code of residual_bits a dimension. Calls `note` with the bytes of the rows before they are encoded. Codes
    of all rows that were `made` before, without factors, are taken as they are. With several threads, a chunk
    is read and encoded while the one before is used.

    Raises:
        InputError: bad rows, by their number in `vectors`.
    """
    check_int(k, "k", 1, model.n_latents, "n_latents")
    check_choice(encoder, "encoder", ENCODERS)
    threads = check_threads(num_threads)
    end = vectors.shape[0] if end is None else end
    vectors = as_coded(model, vectors, scale)

    def encoded(unit: FloatArray, first: int, factors: FloatArray | None) -> Encoded:
        if made is not None:
            codes = made[first : first + len(unit)]
        else:
            codes = _codes(model, unit, k, encoder, threads, residual_bits, device)
        if factors is None:
            return Encoded(codes, unit)
        return Encoded(codes.scaled(factors), unit * factors[:, None])

    def jobs() -> Iterator[Callable[[], Encoded]]:
        for first in range(begin, end, CHUNK_ROWS):
            rows = checked_rows(vectors, first, min(first + CHUNK_ROWS, end), dim=model.dim)
            if note is not None:
                note(rows.data)
            factors = None if scale is None else scale.of_rows(rows, first)
            yield partial(encoded, normalize_rows(rows), first, factors)

    has_next = end - begin > CHUNK_ROWS
    yield from _ahead(jobs()) if has_next and threads > 1 else (job() for job in jobs())


def _ahead(jobs: Iterator[Callable[[], Encoded]]) -> Iterator[Encoded]:
    """What jobs make, each in a thread while what the one before made is used."""
    before: _AtWork | None = None
    for job in jobs:
        made = None if before is None else before.result()
        before = _AtWork(job)
        if made is not None:
            yield made
    if before is not None:
        yield before.result()


class _AtWork(threading.Thread):
    """A job in a thread that no end of the process waits for, unlike those of an executor."""

    def __init__(self, job: Callable[[], Encoded]) -> None:
        super().__init__(daemon=True)
        self._job = job
        self._made: Encoded | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._made = self._job()
        except BaseException as error:
            self._error = error

    def result(self) -> Encoded:
        """What the job makes, once it is done, or its error."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made


def as_coded(model: CompresSAE, vectors: Vectors, scale: RowScale | None = None) -> Vectors:
    """Vectors as the codes of a model see them: less its center, which any row may be equal to."""
    if model.center is not None or (scale is not None and scale.metric == "l2" and scale.keeps_norms):
        return Centred(vectors, model.center)
    return vectors


def _codes(
    model: CompresSAE,
    unit: FloatArray,
    k: int,
    encoder: Encoder,
    threads: int,
    residual_bits: int,
    device: str,
) -> SparseCodes:
    codes = model.encode_unit(unit, k, encoder, threads, device)
    if not residual_bits:
        return model.fold(codes, num_threads=threads)
    targets = unit if model.mean is None else unit - model.mean
    return make_room(model, codes, targets, encoder, residual_bits, threads)
