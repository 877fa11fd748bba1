"""Posting lists in a Faiss index: one list a latent, each entry a row number and a value.

The index is an IndexIVFScalarQuantizer of one dimension, which `faiss.write_index` and `faiss.read_index`
handle: a value is a "vector" of one half-precision number. An entry takes 10 bytes, 8 for Faiss's id and 2
for the value. Faiss's own search does not add up values over lists; the engine does, in Faiss's memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index._engine import BorrowedLists
from compressae_index.checks import check_threads
from compressae_index.coding.codes import MAX_LATENTS, SparseCodes
from compressae_index.connectors.faiss.library import faiss
from compressae_index.errors import FormatError, InstallationError
from compressae_index.persistence import NewFile
from compressae_index.storage import accessing

ROW_BYTES = 8
VALUE_BYTES = 2  # half precision
POSTING_BYTES = ROW_BYTES + VALUE_BYTES

# Lists may have SPARSEST rows a posting plus FEW_ROWS. More mean damage, and must not be allocated.
SPARSEST = 16
FEW_ROWS = 1 << 20
# Bytes of lists to check at once.
CHECKED_BYTES = 1 << 20

# The first four bytes of Faiss's files, for some kinds of index.
_MARKS = {b"IxFI": "IndexFlatIP", b"IxF2": "IndexFlatL2", b"IwSq": "IndexIVFScalarQuantizer"}
# The first bytes of a file of lists: mark, dimension, ntotal, 16 bytes, is_trained, metric, nlist, nprobe.
_FIRST = struct.Struct("<4siq16s?iQQ")


class ListStats(NamedTuple):
    """Statistics of posting lists."""

    vectors: int
    """Rows from 0 to the largest one with a posting."""
    n_latents: int
    k: int
    """Postings of the fullest row."""
    bytes_per_vector: dict[str, float]
    """Bytes a vector by part, as for other indexes: the lists are the only part."""
    dead_latents: int
    """Latents without a posting."""
    list_skew: float
    """Longest posting list over the mean list."""


def empty_lists(n_latents: int) -> Any:
    """An index without postings."""
    # Faiss requires a centroid a list, though nothing is assigned by them.
    quantizer = faiss.IndexFlat(1, faiss.METRIC_INNER_PRODUCT)
    quantizer.add(np.zeros((n_latents, 1), dtype=np.float32))
    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, 1, n_latents, half, faiss.METRIC_INNER_PRODUCT, False)
    quantizer.this.disown()
    index.own_fields = True
    index.is_trained = True  # half precision learns nothing
    return index


def append(index: Any, codes: SparseCodes, first_row: int) -> None:
    """Appends the nonzeros of codes to their lists; the codes get rows from first_row on."""
    rows, values, counts = _by_latent(codes, first_row)
    for latent, run in _runs(counts):
        row_address, value_address = faiss.swig_ptr(rows[run]), faiss.swig_ptr(values[run].view(np.uint8))
        index.invlists.add_entries(latent, run.stop - run.start, row_address, value_address)
    index.ntotal += len(rows)


def _by_latent(
    codes: SparseCodes, first_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """The postings of codes, list after list: rows, values, and the count of each latent, (n_latents,)."""
    latents, values = codes.latents.ravel(), codes.values.ravel().astype(np.float16)
    nonzero = np.flatnonzero(values)
    # Stable, so that rows ascend within a list.
    order = nonzero[np.argsort(latents[nonzero], kind="stable")]
    counts = np.bincount(latents[order], minlength=codes.n_latents)
    return first_row + order // codes.k, values[order], counts


def _runs(counts: npt.NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Each latent with postings, and the slice of its postings in the output of `_by_latent`."""
    ends = np.cumsum(counts).tolist()
    for latent in np.flatnonzero(counts).tolist():
        yield latent, slice(ends[latent] - int(counts[latent]), ends[latent])


def concrete_lists(index: Any) -> Any:
    """The lists of an index, cast to their class: in memory, or mapped from a file."""
    return faiss.downcast_InvertedLists(index.invlists)


def are_mapped(index: Any) -> bool:
    """Whether the lists are mapped from a file, and so read-only."""
    return isinstance(concrete_lists(index), faiss.OnDiskInvertedLists)


def list_lengths(index: Any) -> npt.NDArray[np.int64]:
    """Postings of each latent, (n_latents,)."""
    lists = index.invlists
    return np.array([lists.list_size(latent) for latent in range(index.nlist)], dtype=np.int64)


def borrowed(index: Any, n_rows: int) -> BorrowedLists:
    """The engine's view of the lists, valid until they are changed or the index is freed."""
    lists, counts = concrete_lists(index), list_lengths(index)
    addresses = np.zeros((2, index.nlist), dtype=np.uint64)
    for latent in np.flatnonzero(counts).tolist():
        addresses[:, latent] = int(lists.get_ids(latent)), int(lists.get_codes(latent))
    return BorrowedLists(addresses[0], addresses[1], counts, n_rows)


def stats(index: Any) -> ListStats:
    """Statistics of an index's lists, read one list at a time.

    Raises:
        FormatError: a row is negative, or too large for so few postings.
    """
    lists, lengths = concrete_lists(index), list_lengths(index)
    used = np.flatnonzero(lengths).tolist()
    most, n_rows = _most_rows(lengths), 0
    for latent in used:
        rows = faiss.rev_swig_ptr(lists.get_ids(latent), int(lengths[latent]))
        _check_rows(rows, most)
        n_rows = max(n_rows, int(rows.max()) + 1)
    per_row = np.zeros(n_rows, dtype=np.uint32)
    for latent in used:
        per_row[faiss.rev_swig_ptr(lists.get_ids(latent), int(lengths[latent]))] += 1
    total = float(lengths.sum() * POSTING_BYTES / max(n_rows, 1))
    return ListStats(
        vectors=n_rows,
        n_latents=index.nlist,
        k=int(per_row.max(initial=0)),
        bytes_per_vector={"inverted": total, "total": total},
        dead_latents=index.nlist - len(used),
        list_skew=float(lengths.max() / max(lengths.mean(), 1e-12)),
    )


def _most_rows(lengths: npt.NDArray[np.int64]) -> int:
    """The most rows that lists of these lengths may have. A larger row number is taken for damage."""
    return SPARSEST * int(lengths.sum()) + FEW_ROWS


def _check_rows(rows: npt.NDArray[np.int64], most: int) -> None:
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= most:
        row = rows.min() if rows.min() < 0 else rows.max()
        msg = f"posting lists hold the row {row}, expected 0 <= row < {most} for so few postings"
        raise FormatError(msg)


def read_codes(index: Any) -> SparseCodes:
    """The codes in the lists, for rows 0 to the largest one; k is the fullest row's count of postings.

    Raises:
        FormatError: a row is negative, too large for so few postings, or twice in a list.
    """
    import scipy.sparse as sp

    lists, counts = concrete_lists(index), list_lengths(index)
    ends = np.cumsum(counts)
    rows, values = np.empty(int(counts.sum()), np.int64), np.empty(int(counts.sum()), np.float16)
    for latent in np.flatnonzero(counts).tolist():
        held = slice(int(ends[latent] - counts[latent]), int(ends[latent]))
        rows[held] = faiss.rev_swig_ptr(lists.get_ids(latent), int(counts[latent]))
        halves = faiss.rev_swig_ptr(lists.get_codes(latent), 2 * int(counts[latent]))
        values[held].view(np.uint8)[:] = halves
    _check_rows(rows, _most_rows(counts))
    n_rows = int(rows.max(initial=-1)) + 1
    fullest = int(np.bincount(rows, minlength=1).max())
    if n_rows * fullest > _most_rows(counts):
        msg = f"{len(rows)} postings are too few for {n_rows} rows of {fullest}, as the fullest row has"
        raise FormatError(msg)
    indptr = np.concatenate([[0], ends])
    by_latent = sp.csc_array((values.astype(np.float32), rows, indptr), shape=(n_rows, index.nlist))
    try:
        return SparseCodes.from_csr(by_latent.tocsr())
    except ValueError as error:
        msg = f"posting lists are no valid codes: {error}"
        raise FormatError(msg) from error


def lists_file(index: Any) -> NewFile:
    """The file of an index with all its postings, as `persistence.write` takes it."""
    nbytes = POSTING_BYTES * int(list_lengths(index).sum())

    def write(path: Path, advance: Callable[[int], object]) -> None:
        write_lists(index, path)
        advance(nbytes)

    return NewFile(write, nbytes)


def write_lists(index: Any, path: Path) -> None:
    """Writes an index with all its postings to one file, also if its lists are mapped.

    Raises:
        OSError: the disk is full or denies access.
    """
    if are_mapped(index):
        _write_mapped(index, path)
        return
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        msg = f"{path} cannot be written: {error}"
        raise OSError(msg) from error


def _write_mapped(index: Any, path: Path) -> None:
    """Writes mapped lists one by one. Faiss would only write the name of their file."""
    lists, lengths = concrete_lists(index), list_lengths(index)
    with path.open("wb") as file:
        file.write(_head(lengths))
        for latent in np.flatnonzero(lengths).tolist():
            n = int(lengths[latent])
            file.write(faiss.rev_swig_ptr(lists.get_codes(latent), VALUE_BYTES * n).data)
            file.write(faiss.rev_swig_ptr(lists.get_ids(latent), n).tobytes())


def write_codes(path: Path, n_latents: int, parts: Callable[[], Iterable[SparseCodes]]) -> None:
    """Writes the lists that `append` would build to a file, holding one part of the codes at a time.

    The first pass over the parts counts the postings of each list, the second writes them in place.

    Args:
        path: the file, for `read_lists`.
        n_latents: the number of lists.
        parts: returns the codes in the order of their rows. It is called twice.

    Raises:
        OSError: the disk is full or denies access.
    """
    lengths = np.zeros(n_latents, dtype=np.int64)
    for codes in parts():
        lengths += _by_latent(codes, 0)[2]
    head = _head(lengths)
    ends = len(head) + np.cumsum(lengths * POSTING_BYTES)
    # File offsets of the next value and the next row of each list. Its values precede its rows.
    value_at = ends - lengths * POSTING_BYTES
    row_at = value_at + lengths * VALUE_BYTES
    with path.open("wb") as file:
        file.write(head)
        first_row = 0
        for codes in parts():
            rows, values, counts = _by_latent(codes, first_row)
            for latent, run in _runs(counts):
                file.seek(value_at[latent])
                file.write(values[run].data)
                file.seek(row_at[latent])
                file.write(rows[run].data)
            value_at += counts * VALUE_BYTES
            row_at += counts * ROW_BYTES
            first_row += len(codes)


def _head(lengths: npt.NDArray[np.int64]) -> bytes:
    """The bytes that `faiss.write_index` writes before the postings of lists of these lengths.

    They end in the mark "full", the number of lists and their lengths. Then follow the values and the rows of
    each list in turn.
    """
    before = _before_lengths(len(lengths), int(lengths.sum()), 1)
    return before + b"full" + len(lengths).to_bytes(8, "little") + lengths.astype("<i8").tobytes()


def _before_lengths(n_latents: int, n_postings: int, nprobe: int) -> bytes:
    """The bytes that `faiss.write_index` writes before the lengths of lists."""
    index = empty_lists(n_latents)
    index.ntotal, index.nprobe = n_postings, nprobe
    written: bytes = faiss.serialize_index(index).tobytes()
    # An index without postings ends in the mark "sprs" and a count of 0.
    before = written.removesuffix(b"sprs" + bytes(8))
    if len(before) == len(written):
        msg = f"Faiss {faiss.__version__} writes inverted lists in an unknown format"
        raise InstallationError(msg)
    return before


def read_lists(path: Path, *, mmap: bool = False, n_rows: int | None = None) -> Any:
    """Reads or maps a file of `write_lists`. Checks it first, because Faiss trusts what a file says.

    Args:
        path: the file.
        mmap: map the file instead of reading it.
        n_rows: check that rows ascend below n_rows within each list, and that values are finite; None for
            neither check.

    Raises:
        FormatError: the file is missing, damaged, or another kind of index.
        StorageError: no permission to read it.
    """
    if not path.is_file():
        msg = f"{path} is missing"
        raise FormatError(msg)
    try:
        with accessing(path, "read"), path.open("rb") as file:
            lengths = _read_lengths(file, path)
            if n_rows is not None:
                _check_postings(file, lengths, n_rows)
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mmap else 0)
    except (RuntimeError, ValueError) as error:
        msg = f"{path} cannot be read by Faiss: {error}"
        raise FormatError(msg) from error
    check_lists(index)
    return index


def _read_lengths(file: BinaryIO, path: Path) -> npt.NDArray[np.int64]:
    """Reads a file up to its first posting, checks its size, and returns the lengths of its lists.

    Raises:
        FormatError: another kind of index.
        ValueError: the file is shorter or longer than its header says.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(_FIRST.size).ljust(_FIRST.size, b"\0")
    mark, dim, n_postings, _, _, _, n_latents, nprobe = _FIRST.unpack(first)
    kind = _MARKS.get(mark, f"an index marked {mark!r}")
    if size < (8 if kind != _MARKS[b"IwSq"] else _FIRST.size):
        msg = f"it holds {size} bytes"
        raise ValueError(msg)
    if kind != _MARKS[b"IwSq"] or not 1 <= n_latents <= MAX_LATENTS or not 1 <= nprobe <= n_latents:
        raise FormatError(_not_lists(f"{kind} of {dim} dimensions", path))
    if not 0 <= n_postings <= size:
        msg = f"it holds {size} bytes, too few for its {n_postings} postings"
        raise ValueError(msg)
    before = _before_lengths(n_latents, n_postings, nprobe)
    file.seek(0)
    head = file.read(len(before))
    if head != before:
        if before.startswith(head):
            msg = f"it ends after {size} bytes, before its lists"
            raise ValueError(msg)
        raise FormatError(_not_lists(f"another {kind} of {dim} dimensions, or lists in another file", path))
    lengths = _lengths_of(file, n_latents, size)
    expected = file.tell() + POSTING_BYTES * int(lengths.sum())
    if size != expected or n_postings != lengths.sum():
        msg = f"it holds {size} bytes, and its {n_postings} postings end after {expected}"
        raise ValueError(msg)
    return lengths


def _lengths_of(file: BinaryIO, n_latents: int, size: int) -> npt.NDArray[np.int64]:
    """Reads lengths: of all lists ("full"), or pairs of a list's number and length ("sprs")."""
    mark, count = file.read(4), int.from_bytes(file.read(8), "little")
    width = {b"full": 1, b"sprs": 2}.get(mark)
    if width is None or count > n_latents * width or count % width or (width == 1 and count < n_latents):
        msg = f"its lists are marked {mark!r} and have {count} lengths, for {n_latents} latents"
        raise ValueError(msg)
    held = np.frombuffer(file.read(8 * count), dtype="<u8")
    if len(held) < count or held.max(initial=0) > size:
        msg = f"its lists are longer than its {size} bytes"
        raise ValueError(msg)
    stored = held.astype(np.int64)
    if width == 1:
        return stored
    numbers, few = stored[::2], stored[1::2]
    if (np.diff(numbers) <= 0).any() or numbers.max(initial=0) >= n_latents:
        msg = f"the numbers of its lists do not ascend below {n_latents}"
        raise ValueError(msg)
    lengths = np.zeros(n_latents, dtype=np.int64)
    lengths[numbers] = few
    return lengths


def _check_postings(file: BinaryIO, lengths: npt.NDArray[np.int64], n_rows: int) -> None:
    """Checks that rows ascend below n_rows within each list, and that values are finite.

    Raises:
        ValueError: they do not; the message names the row.
    """
    ends, first = np.cumsum(lengths) * POSTING_BYTES, 0
    while first < len(lengths):
        begin = int(ends[first] - lengths[first] * POSTING_BYTES)
        last = max(int(np.searchsorted(ends, begin + CHECKED_BYTES, side="right")), first + 1)
        content = np.fromfile(file, np.uint8, int(ends[last - 1]) - begin)
        if len(content) < ends[last - 1] - begin:
            msg = "it was truncated while being read"
            raise ValueError(msg)
        counts = lengths[first:last]
        values = content.ctypes.data + ends[first:last] - counts * POSTING_BYTES - begin
        rows = values + counts * VALUE_BYTES
        BorrowedLists(rows.astype(np.uint64), values.astype(np.uint64), counts, n_rows).validate(
            check_threads(None)
        )
        first = last


def _not_lists(found: str, path: Path | None = None) -> str:
    prefix = "" if path is None else f"{path}: "
    return (
        f"{prefix}expected an IndexIVFScalarQuantizer of 1 dimension and half precision, one list a latent, "
        f"got {found}"
    )


def check_lists(index: Any) -> None:
    """Checks that an index holds posting lists.

    Raises:
        FormatError: it is of another kind, which the message names.
    """
    is_ours = (
        isinstance(index, faiss.IndexIVFScalarQuantizer)
        and index.d == 1
        and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and 1 <= index.nlist <= MAX_LATENTS
        and (index.invlists.nlist, index.invlists.code_size) == (index.nlist, VALUE_BYTES)
    )
    if not is_ours:
        raise FormatError(_not_lists(f"{type(index).__name__} of {index.d} dimensions"))
    kinds = (faiss.ArrayInvertedLists, faiss.OnDiskInvertedLists)
    if not isinstance(concrete_lists(index), kinds):
        msg = f"posting lists must be in memory or a mapped file, got {type(concrete_lists(index)).__name__}"
        raise FormatError(msg)
    check_mapped(index)


def check_mapped(index: Any) -> None:
    """Checks that mapped lists are within their file, as reading beyond it would kill the process.

    Raises:
        FormatError: a list is not; the message names it.
    """
    lists = concrete_lists(index)
    if not are_mapped(index):
        return
    # Lists in the index's own file have no filename and a true totsize. Lists in another file may state any.
    path, size = Path(lists.filename), lists.totsize
    if lists.filename:
        size = min(size, path.stat().st_size if path.is_file() else 0)
    for number in range(lists.nlist):
        place = lists.lists.at(number)
        rows_at = place.offset + place.capacity * lists.code_size
        # The offset of an empty list does not matter.
        if place.size and (place.size > place.capacity or rows_at + place.size * ROW_BYTES > size):
            msg = f"list {number} is not within the {size} bytes of {path}"
            raise FormatError(msg)
