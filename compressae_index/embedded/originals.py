"""Original vectors on disk, one row a document, for the last stage of a search."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import _engine
from compressae_index.arrays import FloatArray, RowArray
from compressae_index.checks import as_path, check_int, normalize_rows
from compressae_index.errors import DimensionError, FormatError, InputError, StorageError
from compressae_index.npy import read_header
from compressae_index.persistence import entry
from compressae_index.processes import cached_property
from compressae_index.sources import CHUNK_ROWS, Vectors
from compressae_index.storage import accessing, new_file, open_file, sync

Precision: TypeAlias = Literal["float16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
# Rows of a mapped file: float16 or float32, (n, d).
Stored: TypeAlias = npt.NDArray[Any]

# Names in files of an index.
FILE, PLACES = "originals.npy", "original_places"
# Rows that the digest of a file is taken of.
_DIGEST_ROWS = 64
# Rows to compare with those an index is built from, and the least cosine between the two.
_COMPARED_ROWS, _LEAST_COSINE = 256, 0.999


class Reference(NamedTuple):
    """A file that belongs to the user, as it was when it was opened."""

    path: Path
    digest: str
    """Of sampled rows."""
    size: int
    changed_at: int
    """In nanoseconds, as the file system has it."""

    def check(self) -> None:
        """Checks that the file was not written to since; that it was moved or deleted does no harm.

        Raises:
            StorageError: it was: scores would be wrong, and beyond a new end reads would kill the process.
        """
        try:
            now = self.path.stat()
        except OSError:
            return
        if (now.st_size, now.st_mtime_ns) != (self.size, self.changed_at):
            msg = (
                f"{self.path}, which holds the original vectors, was changed since the index opened it: "
                "build or load the index again, or search with refine=0"
            )
            raise StorageError(msg)


class Segment(NamedTuple):
    """Vectors that lie one behind the other."""

    rows: Stored
    """(n, d), mapped."""
    reference: Reference | None = None
    """The user's file; None for a file of the index's own, or an array."""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reference is not None:
            return _opened_again, (self.reference.path, self.rows.shape, self.reference.digest)
        return _spooled_again, (np.array(self.rows),)


@dataclass(frozen=True, eq=False)
class Originals:
    """The vectors of documents 0 .. n-1. It is immutable; a change makes another one.

    Attributes:
        dim: d.
        dtype: of vectors that are added.
        by_direction: whether scores are cosines.
        segments: where the vectors lie.
        places: (n,) int64, the place of each document's vector in all segments; None if these are the same.
        unit: the unit of norms, which vectors of references are divided by to compare with codes; the index's
            own were divided before they were stored.
    """

    dim: int
    dtype: np.dtype[Any]
    by_direction: bool
    segments: tuple[Segment, ...] = ()
    places: RowArray | None = None
    unit: float = 1.0

    @classmethod
    def own(cls, dim: int, precision: Precision, *, by_direction: bool) -> Originals:
        """Of an index without documents that keeps copies of its own."""
        return cls(dim, np.dtype(precision), by_direction)

    @classmethod
    def referring(cls, source: Any, vectors: Vectors, *, by_direction: bool) -> Originals:
        """The rows that an index is built from, where the user keeps them.

        Args:
            source: the path of a .npy file, or an array, float32 or float16 (m, d) in C order.
            vectors: (n, d) what the index is built from; from open_vectors(..., on_bad_rows="skip") it has
                fewer rows than the source.
            by_direction: whether scores are cosines.

        Raises:
            FormatError: the file is missing or not such a .npy file.
            InputError: an array of another kind.
            DimensionError: another number of rows or dimensions.
        """
        segment = Segment(_as_rows(source)) if _is_array(source) else _opened(as_path(source))
        n, dim = vectors.shape
        n_given = getattr(vectors, "n_rows", n)
        if segment.rows.shape != (n_given, dim):
            msg = f"originals have shape {segment.rows.shape}, but the embeddings {(n_given, dim)}"
            raise DimensionError(msg)
        places = None
        if n_given != n:
            places = np.delete(np.arange(n_given), vectors.skipped)  # type: ignore[attr-defined]
        originals = cls(dim, segment.rows.dtype, by_direction, (segment,), places)
        _compare(originals, vectors)
        return originals

    def __len__(self) -> int:
        return sum(len(each.rows) for each in self.segments) if self.places is None else len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "refiner"}

    @cached_property
    def refiner(self) -> _engine.Originals:
        """The engine's last stage."""
        segments = [
            (_bits(each.rows), 1.0 if each.reference is None else 1.0 / self.unit) for each in self.segments
        ]
        return _engine.Originals(segments, self.dim, self.places, self.by_direction)

    @property
    def nbytes(self) -> int:
        """Resident bytes; the vectors themselves are on disk."""
        return 0 if self.places is None else self.places.nbytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the vectors."""
        return sum(each.rows.nbytes for each in self.segments)

    def check(self) -> None:
        """Checks that nobody wrote to the user's files.

        Raises:
            StorageError: someone did.
        """
        for each in self.segments:
            if each.reference is not None:
                each.reference.check()

    def vectors(self, rows: RowArray) -> FloatArray:
        """The vectors of documents, (len(rows), d): of unit norm for cosine, else in the unit of norms.

        Raises:
            StorageError: a file of the user was changed.
        """
        self.check()
        places = rows if self.places is None else self.places[rows]
        vectors, first = np.empty((len(rows), self.dim), np.float32), 0
        for each in self.segments:
            inside = (places >= first) & (places < first + len(each.rows))
            vectors[inside] = each.rows[places[inside] - first]
            if each.reference is not None and self.unit != 1.0:
                vectors[inside] /= np.float32(self.unit)
            first += len(each.rows)
        return normalize_rows(vectors) if self.by_direction else vectors

    def extended(self, segment: Segment) -> Originals:
        """With the vectors of new documents, from `Spool.segment`."""
        held, placed = len(self), sum(len(each.rows) for each in self.segments)
        places = None
        if self.places is not None:
            places = np.concatenate([self.places, np.arange(placed, placed + len(segment.rows))])
        assert held <= placed or self.places is not None
        return replace(self, segments=_joined((*self.segments, segment)), places=places)

    def subset(self, rows: RowArray) -> Originals:
        """Of only some documents, in the order of `rows`; their vectors stay where they are."""
        places = rows if self.places is None else self.places[rows]
        return replace(self, places=np.ascontiguousarray(places, dtype=np.int64))

    def in_unit(self, unit: float) -> Originals:
        """The same for codes in another unit of norms."""
        return replace(self, unit=unit)

    def manifest(self) -> dict[str, Any]:
        """The entry of an index's manifest."""
        return {
            "dtype": self.dtype.name,
            "own": len(self._own_places),
            "references": [
                {"path": str(each.reference.path), "n": len(each.rows), "digest": each.reference.digest}
                for each in self.segments
                if each.reference is not None
            ],
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The places of documents once `write` has put the index's own vectors behind the references."""
        if not any(each.reference is not None for each in self.segments):
            return {}
        places, first, before = np.empty(len(self), np.int64), 0, 0
        held = np.arange(len(self)) if self.places is None else self.places
        for each in self.segments:
            inside = (held >= first) & (held < first + len(each.rows))
            if each.reference is not None:
                places[inside] = held[inside] - first + before
                before += len(each.rows)
            first += len(each.rows)
        own = self._own_places
        places[own] = before + np.arange(len(own))
        return {} if np.array_equal(places, np.arange(before + len(own))) else {PLACES: places}

    @property
    def _own_places(self) -> RowArray:
        """The documents whose vectors are in no reference."""
        if not any(each.reference is not None for each in self.segments):
            return np.arange(len(self))
        held = np.arange(len(self)) if self.places is None else self.places
        own, first = np.zeros(len(self), dtype=bool), 0
        for each in self.segments:
            if each.reference is None:
                own |= (held >= first) & (held < first + len(each.rows))
            first += len(each.rows)
        return np.flatnonzero(own)

    def write(self, path: Path) -> None:
        """Writes the index's own vectors as a .npy file, in the order of their documents."""
        own = self._own_places
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (len(own), self.dim)}
        with new_file(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, len(own), CHUNK_ROWS):
                rows = own[first : first + CHUNK_ROWS]
                file.write(self._stored(rows).astype(self.dtype, copy=False).tobytes())
            sync(file)

    def _stored(self, rows: RowArray) -> Stored:
        """The stored vectors of documents that are in no reference."""
        places = rows if self.places is None else self.places[rows]
        taken, first = np.empty((len(rows), self.dim), self.dtype), 0
        for each in self.segments:
            inside = (places >= first) & (places < first + len(each.rows))
            taken[inside] = each.rows[places[inside] - first]
            first += len(each.rows)
        return taken

    @classmethod
    def of_index(
        cls,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        dim: int,
        *,
        by_direction: bool,
        unit: float,
        given: Any,
    ) -> Originals | None:
        """The original vectors of a saved index; None if it has none.

        Args:
            meta: the index's manifest, with the result of `manifest` under "originals".
            arrays: the index's arrays, among them what `write` wrote, mapped, and `to_arrays`.
            dim: d.
            by_direction: whether scores are cosines.
            unit: the unit of norms.
            given: False to leave the vectors out; the path or array of a file that was moved; None for what
                the manifest says.

        Raises:
            FormatError, ValueError: as for `from_stored`.
            InputError: a path or array is given, but the index has no original vectors.
        """
        if "originals" in meta and given is not False:
            return cls.from_stored(
                entry(meta, "originals", dict),
                arrays.get(Path(FILE).stem),
                arrays.get(PLACES),
                dim,
                by_direction=by_direction,
                unit=unit,
                moved=given,
            )
        if given is None or given is False:
            return None
        msg = "this index keeps no original vectors, so originals cannot be given"
        raise InputError(msg)

    @classmethod
    def from_stored(
        cls,
        meta: Mapping[str, Any],
        own: Stored | None,
        places: RowArray | None,
        dim: int,
        *,
        by_direction: bool,
        unit: float,
        moved: Any = None,
    ) -> Originals:
        """Reads `manifest`, what `write` wrote and `to_arrays`.

        Args:
            meta: the manifest's entry.
            own: the mapped file of the index's own vectors.
            places: the stored places.
            dim: d.
            by_direction: whether scores are cosines.
            unit: the unit of norms.
            moved: the path or array of the only reference, if not where it was.

        Raises:
            FormatError: a file of the user is gone, changed or short, with what to do.
            ValueError: the parts do not fit together.
        """
        dtype = np.dtype(entry(meta, "dtype", str))
        references = entry(meta, "references", list)
        if dtype.name not in PRECISIONS:
            msg = f"originals of dtype {dtype.name}"
            raise ValueError(msg)
        if moved is not None and len(references) != 1:
            msg = f"originals are given, but this index refers to {len(references)} files of original vectors"
            raise InputError(msg)
        segments = [
            _referred(moved if moved is not None else Path(entry(each, "path", str)), each, dim)
            for each in references
        ]
        n_own = check_int(meta["own"], "own", 0)
        if own is not None:
            if own.shape != (n_own, dim) or own.dtype != dtype or not own.flags.c_contiguous:
                msg = f"{FILE} must hold {dtype.name} {(n_own, dim)}, got {own.dtype} {own.shape}"
                raise ValueError(msg)
            segments.append(Segment(_random_reads(own)))
        held = sum(len(each.rows) for each in segments)
        if places is not None and not _are_places(places, held):
            msg = f"{PLACES} must be int64 numbers of {held} vectors"
            raise ValueError(msg)
        if n_own and own is None:
            msg = f"{FILE} is missing"
            raise ValueError(msg)
        return cls(dim, dtype, by_direction, tuple(segments), places, unit)


class Spool:
    """Writes vectors to a temporary file, which the system removes once nothing maps it."""

    def __init__(self, dim: int, dtype: np.dtype[Any]) -> None:
        self._dim, self._dtype, self._n = dim, dtype, 0
        # It never has a name, so that it goes away even if this process is killed.
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="compressae-index-")  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Stored) -> None:
        """Appends rows (n, d).

        Raises:
            StorageError: the disk is full or refuses.
        """
        where = Path(tempfile.gettempdir()) / "the temporary file of original vectors"
        with accessing(where, "written"):
            self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._n += len(rows)

    def segment(self) -> Segment:
        """The rows, mapped."""
        self._file.flush()
        if not self._n:
            return Segment(np.empty((0, self._dim), self._dtype))
        return Segment(_random_reads(np.memmap(self._file, self._dtype, "r", shape=(self._n, self._dim))))


def _joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same, with the last ones of similar size in one file, so that their number stays logarithmic."""
    first = len(segments) - 1
    n = len(segments[first].rows)
    while first and segments[first - 1].reference is None and len(segments[first - 1].rows) < 2 * n:
        first -= 1
        n += len(segments[first].rows)
    if first == len(segments) - 1:
        return tuple(segments)
    with Spool(segments[first].rows.shape[1], segments[first].rows.dtype) as spool:
        for each in segments[first:]:
            for begin in range(0, len(each.rows), CHUNK_ROWS):
                spool.add(each.rows[begin : begin + CHUNK_ROWS])
        return (*segments[:first], spool.segment())


def _spooled_again(rows: Stored) -> Segment:
    with Spool(rows.shape[1], rows.dtype) as spool:
        spool.add(rows)
        return spool.segment()


def _is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray)


def _as_rows(source: Stored) -> Stored:
    if source.ndim != 2 or source.dtype.name not in PRECISIONS or not source.flags.c_contiguous:
        msg = (
            f"originals must be a C-contiguous array (n, d) of float32 or float16, got {source.dtype} "
            f"{source.shape}"
        )
        raise InputError(msg)
    return source


def _opened(path: Path) -> Segment:
    """Maps a .npy file of the user.

    Raises:
        FormatError: it is missing, or not a .npy file of float32 or float16 rows in C order.
    """
    path = path.resolve()
    if path.suffix.lower() != ".npy":
        msg = f"{path}: originals are a .npy file of float32 or float16 rows, {' or '.join(PRECISIONS)}"
        raise FormatError(msg)
    with accessing(path, "read"), open_file(path) as handle:
        header, found = read_header(handle, path), os.fstat(handle.fileno())
        fits = len(header.shape) == 2 and 0 not in header.shape and header.dtype.name in PRECISIONS
        if not fits or header.fortran_order or not header.dtype.isnative or header.offset % 4:
            msg = (
                f"{path} must hold float32 or float16 rows (n, d) in C order, "
                f"got {header.dtype} {header.shape}"
            )
            raise FormatError(msg)
        rows = np.memmap(handle, header.dtype, "r", header.offset, header.shape)
    reference = Reference(path, _digest(rows), found.st_size, found.st_mtime_ns)
    return Segment(_random_reads(rows), reference)


def _opened_again(path: Path, shape: tuple[int, ...], digest: str) -> Segment:
    segment = _opened(path)
    _check_same(segment, path, shape, digest)
    return segment


def _referred(source: Any, meta: Mapping[str, Any], dim: int) -> Segment:
    """A file that an index refers to, checked to be the same."""
    shape, digest = (check_int(meta["n"], "n", 1), dim), entry(meta, "digest", str)
    if _is_array(source):
        segment = Segment(_as_rows(source))
        _check_same(segment, "the array given", shape, digest)
        return segment
    try:
        return _opened_again(as_path(source), shape, digest)
    except (FormatError, StorageError) as error:
        msg = (
            f"the original vectors of this index cannot be used: {error}; load it with originals=... if the "
            "file was moved, or with originals=False to search without them"
        )
        raise FormatError(msg) from error


def _check_same(segment: Segment, name: object, shape: tuple[int, ...], digest: str) -> None:
    if segment.rows.shape != shape:
        n, dim = segment.rows.shape
        msg = f"{name} holds {n} rows of {dim} dimensions, expected {shape[0]} of {shape[1]}"
        raise FormatError(msg)
    if _digest(segment.rows) != digest:
        msg = f"{name} holds other vectors than when the index was built"
        raise FormatError(msg)


def _are_places(places: npt.NDArray[Any], n: int) -> bool:
    """Whether a stored array holds places among n vectors."""
    if places.dtype != np.int64 or places.ndim != 1:
        return False
    return not places.size or bool(0 <= places.min() <= places.max() < n)


def _digest(rows: Stored) -> str:
    """A digest of rows that lie evenly in a file, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, _DIGEST_ROWS).astype(np.int64))
    digest = hashlib.sha256(f"{rows.dtype.name} {rows.shape}".encode())
    digest.update(np.ascontiguousarray(rows[chosen]).tobytes())
    return digest.hexdigest()[:32]


def _compare(originals: Originals, vectors: Vectors) -> None:
    """Checks that originals are the rows that an index is built from.

    Raises:
        InputError: they are others.
    """
    for first in np.unique(np.linspace(0, max(len(originals) - _COMPARED_ROWS, 0), 4).astype(np.int64)):
        given = np.asarray(vectors[first : first + _COMPARED_ROWS], dtype=np.float32)
        held = replace(originals, by_direction=True).vectors(np.arange(first, first + len(given)))
        cosines = np.einsum("nd,nd->n", normalize_rows(given), held)
        wrong = np.flatnonzero(~(cosines >= _LEAST_COSINE))
        if wrong.size:
            msg = (
                f"row {first + wrong[0]} of originals is not that of the embeddings: the cosine between them "
                f"is {cosines[wrong[0]]:.3f}"
            )
            raise InputError(msg)


def _bits(rows: Stored) -> Stored:
    """Half-precision numbers as the integers that the engine takes them for."""
    return rows.view(np.uint16) if rows.dtype == np.float16 else np.asarray(rows)


def _random_reads(rows: Stored) -> Stored:
    """The same rows; a map is told that reads will be of single rows, so that the system reads no more."""
    base: Any = rows.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        base.madvise(mmap.MADV_RANDOM)
    return rows
