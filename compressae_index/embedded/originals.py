"""Original vectors on disk, one row a document, for the last stage of a search."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index import _engine
from compressae_index.arrays import BoolArray, FloatArray, RowArray
from compressae_index.checks import as_path, check_choice, check_int, normalize_rows
from compressae_index.coding.metric import LARGEST_NORM, Metric
from compressae_index.errors import DimensionError, FormatError, InputError, StorageError
from compressae_index.npy import read_header, write_header
from compressae_index.persistence import NewFile, entry
from compressae_index.processes import cached_property
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows
from compressae_index.storage import accessing, new_file, open_file, sync

Precision: TypeAlias = Literal["float16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
# What vectors are compared with queries for.
Score: TypeAlias = Literal["cosine", "product", "distance"]
# Rows of a mapped file: float16 or float32, (n, d).
Stored: TypeAlias = npt.NDArray[Any]

# Names in files of an index.
FILE, PLACES = "originals.npy", "original_places"
# Rows that the digest of a file is taken of.
_DIGEST_ROWS = 64
# Rows to compare with those an index is built from, and how far apart the two may be, relative to the norm.
_COMPARED_ROWS, _APART = 256, 0.04


def score_of(metric: Metric, *, keeps_norms: bool) -> Score:
    """The score of original vectors by a metric; distances from unit rows are made of cosines."""
    if metric == "inner_product":
        return "product"
    return "distance" if keeps_norms else "cosine"


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
    is_given: bool = False
    """Whether the rows are as the user has them, not divided by the unit of norms."""

    def check(self) -> None:
        """Checks that the vectors are still there.

        Raises:
            StorageError: their file was written to, or cut off.
        """
        if self.reference is not None:
            self.reference.check()
        mapped = _map_of(self.rows)
        if mapped is None:
            return
        # Maps of numpy begin at whole pages.
        begin = getattr(self.rows, "offset", 0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        if mapped.size() < begin + len(mapped):
            msg = (
                "the file of the original vectors was cut off since the index opened it: load the index again"
            )
            raise StorageError(msg)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reference is not None:
            return _opened_again, (self.reference.path, self.rows.shape, self.reference.digest)
        self.check()
        return _spooled_again, (np.array(self.rows), self.is_given)


@dataclass(frozen=True, eq=False)
class Originals:
    """The vectors of documents 0 .. n-1. It is immutable; a change makes another one.

    Attributes:
        dim: d.
        dtype: of vectors that are added.
        score: what vectors are compared with queries for.
        segments: where the vectors lie.
        places: (n,) int64, the place of each document's vector in all segments; None if these are the same.
        unit: the unit of norms, which vectors of the user are divided by to compare with codes; the index's
            own were divided before they were stored.
        center: (d,) the model's, from which codes see vectors; None for zero.
    """

    dim: int
    dtype: np.dtype[Any]
    score: Score
    segments: tuple[Segment, ...] = ()
    places: RowArray | None = None
    unit: float = 1.0
    center: FloatArray | None = None

    @classmethod
    def own(cls, dim: int, precision: Precision, score: Score) -> Originals:
        """Of an index without documents that keeps copies of its own."""
        return cls(dim, np.dtype(precision), score)

    @classmethod
    def referring(cls, source: Any, vectors: Vectors, score: Score) -> Originals:
        """The rows that an index is built from, where the user keeps them.

        Args:
            source: the path of a .npy file, or an array, float32 or float16 (m, d) in C order.
            vectors: (n, d) what the index is built from; from open_vectors(..., on_bad_rows="skip") it has
                fewer rows than the source.
            score: what vectors are compared with queries for.

        Raises:
            FormatError: the file is missing or not such a .npy file.
            InputError: an array of another kind.
            DimensionError: another number of rows or dimensions.
        """
        segment = _given(source)
        n, dim = vectors.shape
        n_given = getattr(vectors, "n_rows", n)
        if segment.rows.shape != (n_given, dim):
            msg = f"originals have shape {segment.rows.shape}, but the embeddings {(n_given, dim)}"
            raise DimensionError(msg)
        places = None
        if n_given != n:
            places = np.delete(np.arange(n_given), vectors.skipped)  # type: ignore[attr-defined]
        originals = cls(dim, segment.rows.dtype, score, (segment,), places)
        _compare(originals, vectors)
        return originals

    def __len__(self) -> int:
        return sum(len(each.rows) for each in self.segments) if self.places is None else len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "refiner"}

    @cached_property
    def refiner(self) -> _engine.Originals:
        """The engine's last stage."""
        segments = [(_bits(each.rows), 1.0 / self.unit if each.is_given else 1.0) for each in self.segments]
        return _engine.Originals(
            segments, self.dim, self.places, self.by_direction, distances=self.score == "distance"
        )

    @property
    def by_direction(self) -> bool:
        """Whether scores are cosines, so that norms do not matter."""
        return self.score == "cosine"

    def seen_by_distances(self, queries: FloatArray) -> FloatArray:
        """Queries (n, d), given from the center, as the engine compares them with vectors: from 0."""
        if self.center is not None:
            queries = queries + self.center
        return queries if self.unit == 1 else queries / np.float32(self.unit)

    def from_center(self, rows: FloatArray) -> FloatArray:
        """Rows (n, d) in the unit of norms, from the center, as they are stored: from 0.

        Raises:
            InputError: half precision does not hold them.
        """
        if self.center is not None:
            rows = rows + self.center / np.float32(self.unit)
        largest = float(np.abs(rows).max(initial=0)) if self.score == "distance" else 0.0
        if self.dtype == np.float16 and largest > np.finfo(np.float16).max:
            msg = (
                f"vectors are {largest:.3g} times as far from 0 as from each other, more than float16 "
                "holds: keep originals='float32'"
            )
            raise InputError(msg)
        return rows

    @property
    def nbytes(self) -> int:
        """Resident bytes; the vectors themselves are on disk."""
        return 0 if self.places is None else self.places.nbytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the vectors."""
        return sum(each.rows.nbytes for each in self.segments)

    def check(self) -> None:
        """Checks that nobody wrote to the files.

        Raises:
            StorageError: someone did.
        """
        for each in self.segments:
            each.check()

    def vectors(self, rows: RowArray) -> FloatArray:
        """The vectors of documents, (len(rows), d): of unit norm for cosine, else in the unit of norms.

        They are seen from the center, as codes are.

        Raises:
            StorageError: a file was changed, or holds vectors that no index keeps.
        """
        vectors = self._taken(rows, np.float32)
        largest = np.abs(vectors).max(axis=1)
        if self.by_direction:
            damaged = np.flatnonzero(~((largest > 0) & (largest < np.inf)))
        else:
            offset = 0 if self.center is None else np.abs(self.center).max() / self.unit
            damaged = np.flatnonzero(~(largest <= 2 * LARGEST_NORM + offset))
        if damaged.size:
            msg = (
                f"the original vector of row {rows[damaged[0]]} is damaged: its largest entry is "
                f"{largest[damaged[0]]:.4g}; load the index with originals=False to go on without them"
            )
            raise StorageError(msg)
        if self.by_direction:
            return normalize_rows(vectors)
        return vectors if self.center is None else vectors - self.center / np.float32(self.unit)

    def _parts(self, rows: RowArray) -> Iterator[tuple[Segment, BoolArray, RowArray]]:
        """Segments, which of the documents lie in each, and these documents' rows of it."""
        places = rows if self.places is None else self.places[rows]
        first = 0
        for each in self.segments:
            inside = (places >= first) & (places < first + len(each.rows))
            yield each, inside, places[inside] - first
            first += len(each.rows)

    def _taken(self, rows: RowArray, dtype: npt.DTypeLike) -> Stored:
        """The vectors of documents in the unit of norms, where it matters."""
        taken = np.empty((len(rows), self.dim), dtype)
        for each, inside, at in self._parts(rows):
            if not len(at):
                continue
            each.check()
            found = each.rows[at]
            if each.is_given and not self.by_direction:
                found = found.astype(np.float32) / np.float32(self.unit)
            taken[inside] = found
        return taken

    def extended(self, segment: Segment) -> Originals:
        """With the vectors of new documents, from `Spool.segment`."""
        held, placed = len(self), sum(len(each.rows) for each in self.segments)
        places = None
        if self.places is not None:
            places = np.concatenate([self.places, np.arange(placed, placed + len(segment.rows))])
        assert held <= placed or self.places is not None
        return replace(self, segments=_joined((*self.segments, segment)), places=places)

    def subset(self, rows: RowArray) -> Originals:
        """Of only some documents, in the order of `rows`.

        The vectors stay where they are, unless more than half of the index's own are of other documents.
        """
        segments, places, placed = list[Segment](), np.empty(len(rows), np.int64), 0
        for each, inside, at in self._parts(rows):
            if not len(at):
                continue
            if each.is_given or 2 * len(at) >= len(each.rows):
                segments.append(each)
                places[inside] = at + placed
            else:
                segments.append(_copied([(each, at)]))
                places[inside] = np.arange(placed, placed + len(at))
            placed += len(segments[-1].rows)
        in_order = np.array_equal(places, np.arange(placed))
        return replace(self, segments=tuple(segments), places=None if in_order else places)

    @property
    def form(self) -> dict[str, Any]:
        """What the vectors of an index share, and those of others must to be joined to them."""
        return {"dtype": self.dtype.name}

    def joined(self, others: Sequence[Originals]) -> Originals:
        """The vectors of these documents and of others, of the same form and unit; they stay in place."""
        places, before = list[RowArray](), 0
        for each in (self, *others):
            at = np.arange(len(each)) if each.places is None else each.places
            places.append(at + before)
            before += sum(len(segment.rows) for segment in each.segments)
        everywhere = np.concatenate(places)
        segments = tuple(segment for each in (self, *others) for segment in each.segments)
        in_order = np.array_equal(everywhere, np.arange(before))
        return replace(self, segments=segments, places=None if in_order else everywhere)

    def in_unit(self, unit: float) -> Originals:
        """The same for codes in another unit of norms."""
        return replace(self, unit=unit)

    def to_compare(self, score: Score, center: FloatArray | None) -> Originals:
        """The same to compare with queries for a score, beside codes that see vectors from a center."""
        return replace(self, score=score, center=center)

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
        every = np.arange(len(self))
        places, before = np.empty(len(self), np.int64), 0
        for each, inside, at in self._parts(every):
            if each.reference is not None:
                places[inside] = at + before
                before += len(each.rows)
        own = self._own_places
        places[own] = before + np.arange(len(own))
        return {} if np.array_equal(places, np.arange(before + len(own))) else {PLACES: places}

    @property
    def _own_places(self) -> RowArray:
        """The documents whose vectors are in no reference."""
        own = np.zeros(len(self), dtype=bool)
        for each, inside, _ in self._parts(np.arange(len(self))):
            own |= inside & (each.reference is None)
        return np.flatnonzero(own)

    def file(self) -> NewFile:
        """The .npy file of the index's own vectors, as `persistence.write` takes it."""
        return NewFile(self.write, len(self._own_places) * self.dim * self.dtype.itemsize)

    def write(self, path: Path, advance: Callable[[int], object] = lambda _: None) -> None:
        """Writes the index's own vectors as a .npy file, in the order of their documents."""
        own = self._own_places
        with new_file(path) as file:
            write_header(file, (len(own), self.dim), self.dtype)
            for first in range(0, len(own), CHUNK_ROWS):
                rows = self._taken(own[first : first + CHUNK_ROWS], self.dtype)
                advance(file.write(rows.tobytes()))
            sync(file)

    @classmethod
    def of_index(
        cls,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        dim: int,
        *,
        score: Score,
        unit: float,
        center: FloatArray | None,
        given: Any,
    ) -> Originals | None:
        """The original vectors of a saved index; None if it has none.

        Args:
            meta: the index's manifest, with the result of `manifest` under "originals".
            arrays: the index's arrays, among them what `write` wrote, mapped, and `to_arrays`.
            dim: d.
            score: what vectors are compared with queries for.
            unit: the unit of norms.
            center: the model's.
            given: False to leave the vectors out; the path or array of a file that was moved, which
                `check_moved` has seen; None for what the manifest says.

        Raises:
            FormatError, ValueError: as for `from_stored`.
        """
        if "originals" in meta and given is not False:
            return cls.from_stored(
                entry(meta, "originals", dict),
                arrays.get(Path(FILE).stem),
                arrays.get(PLACES),
                dim,
                score=score,
                unit=unit,
                center=center,
                moved=given,
            )
        return None

    @classmethod
    def from_stored(
        cls,
        meta: Mapping[str, Any],
        own: Stored | None,
        places: RowArray | None,
        dim: int,
        *,
        score: Score,
        unit: float,
        center: FloatArray | None = None,
        moved: Any = None,
    ) -> Originals:
        """Reads `manifest`, what `write` wrote and `to_arrays`.

        Args:
            meta: the manifest's entry.
            own: the mapped file of the index's own vectors.
            places: the stored places.
            dim: d.
            score: what vectors are compared with queries for.
            unit: the unit of norms.
            center: the model's.
            moved: the path or array of the only reference, if not where it was.

        Raises:
            FormatError: a file of the user is gone, changed or short, with what to do.
            ValueError: the parts do not fit together.
        """
        dtype = np.dtype(check_choice(entry(meta, "dtype", str), "the dtype of originals", PRECISIONS))
        references = entry(meta, "references", list)
        segments = [
            _referred(moved if moved is not None else Path(entry(each, "path", str)), each, dim)
            for each in references
        ]
        n_own = check_int(meta["own"], "own", 0)
        if n_own and own is None:
            msg = f"{FILE} is missing"
            raise ValueError(msg)
        if own is not None:
            if own.shape != (n_own, dim) or own.dtype != dtype or not own.flags.c_contiguous:
                msg = f"{FILE} must hold {dtype.name} {(n_own, dim)}, got {own.dtype} {own.shape}"
                raise ValueError(msg)
            segments.append(Segment(_random_reads(own)))
        held = sum(len(each.rows) for each in segments)
        if places is not None and not _are_places(places, held):
            msg = f"{PLACES} must be int64 numbers of {held} vectors"
            raise ValueError(msg)
        return cls(dim, dtype, score, tuple(segments), places, unit, center)


class Spool:
    """Writes vectors to a temporary file, which the system removes once nothing maps it.

    All but the end raises StorageError where the disk is full or refuses.
    """

    def __init__(self, dim: int, dtype: np.dtype[Any]) -> None:
        self._dim, self._dtype, self._n = dim, dtype, 0
        # It never has a name, so that it goes away even if this process is killed.
        with self._writing():
            self._file: BinaryIO = tempfile.TemporaryFile(prefix="compressae-index-")  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what `add` could not write is tried again, and nobody needs it
            self._file.close()

    def _writing(self) -> AbstractContextManager[None]:
        # Not gettempdir(), which raises where there is no folder.
        folder = Path(tempfile.tempdir or "TMPDIR")
        return accessing(folder / "the temporary file of original vectors", "written")

    def add(self, rows: Stored) -> None:
        """Appends rows (n, d)."""
        with self._writing():
            self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._n += len(rows)

    def segment(self) -> Segment:
        """The rows, mapped."""
        if not self._n:
            return Segment(np.empty((0, self._dim), self._dtype))
        with self._writing():
            self._file.flush()
            rows = np.memmap(self._file, self._dtype, "r", shape=(self._n, self._dim))
        return Segment(_random_reads(rows))


def _joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same, with the last ones of similar size in one file, so that their number stays logarithmic."""
    first = len(segments) - 1
    n = len(segments[first].rows)
    while first and not segments[first - 1].is_given and len(segments[first - 1].rows) < 2 * n:
        first -= 1
        n += len(segments[first].rows)
    if first == len(segments) - 1:
        return tuple(segments)
    joined = _copied([(each, np.arange(len(each.rows))) for each in segments[first:]])
    return (*segments[:first], joined)


def _copied(parts: Sequence[tuple[Segment, RowArray]]) -> Segment:
    """Some rows of segments of one dtype, one behind the other in a file."""
    of = parts[0][0].rows
    with Spool(of.shape[1], of.dtype) as spool:
        for each, rows in parts:
            each.check()
            for begin in range(0, len(rows), CHUNK_ROWS):
                spool.add(each.rows[rows[begin : begin + CHUNK_ROWS]])
        return spool.segment()


def _spooled_again(rows: Stored, is_given: bool = False) -> Segment:
    with Spool(rows.shape[1], rows.dtype) as spool:
        spool.add(rows)
        return spool.segment()._replace(is_given=is_given)


def check_moved(meta: Mapping[str, Any], source: Any) -> None:
    """Checks what is given in place of the file that a stored index refers to.

    Args:
        meta: the manifest of the index.
        source: a path or array; None or False for none.

    Raises:
        InputError: it is something else, or the index refers to no file.
    """
    if source is None or source is False:
        return
    _as_rows(source) if _is_array(source) else _as_file(source)
    kept = meta.get("originals")
    if not isinstance(kept, dict) or not kept.get("references"):
        msg = "originals are given, but this index refers to no file of original vectors"
        raise InputError(msg)


def _given(source: Any) -> Segment:
    """The path or array of a user."""
    if _is_array(source):
        return Segment(_as_rows(source), is_given=True)
    return _opened(_as_file(source))


def _is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray)


def _as_file(source: Any) -> Path:
    if not isinstance(source, (str, bytes, os.PathLike)):
        words = " or ".join(map(repr, PRECISIONS))
        msg = f"originals must be {words}, the path of a file or a numpy array, got {type(source).__name__}"
        raise InputError(msg)
    return as_path(source, "originals")


def _as_rows(source: Stored) -> Stored:
    plain = source.flags.c_contiguous and source.flags.aligned and source.dtype.isnative
    plain = plain and not isinstance(source, np.ma.MaskedArray)
    if source.ndim != 2 or source.dtype.name not in PRECISIONS or not plain:
        msg = (
            f"originals must be a C-contiguous array (n, d) of float32 or float16, aligned in memory, got "
            f"{type(source).__name__} of {source.dtype} {source.shape}"
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
        msg = (
            f"originals must be {' or '.join(map(repr, PRECISIONS))}, or a .npy file of such rows, got {path}"
        )
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
    return Segment(_random_reads(rows), reference, is_given=True)


def _opened_again(path: Path, shape: tuple[int, ...], digest: str) -> Segment:
    segment = _opened(path)
    _check_same(segment, path, shape, digest)
    return segment


def _referred(source: Any, meta: Mapping[str, Any], dim: int) -> Segment:
    """A file that an index refers to, checked to be the same."""
    shape, digest = (check_int(meta["n"], "n", 1), dim), entry(meta, "digest", str)
    if _is_array(source):
        segment = _given(source)
        _check_same(segment, "the array given", shape, digest)
        return segment
    try:
        return _opened_again(_as_file(source), shape, digest)
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
    """Checks that originals are the rows that an index is built from, by some of them.

    Raises:
        InputError: they are others, or bad rows.
    """
    n = len(originals)
    for first in np.unique(np.linspace(0, max(n - _COMPARED_ROWS, 0), 4).astype(np.int64)).tolist():
        rows = np.arange(first, min(first + _COMPARED_ROWS, n))
        by_distance = originals.score == "distance"
        given = checked_rows(vectors, first, first + len(rows), dim=originals.dim, zeros=by_distance)
        given = given.astype(np.float64)
        held = originals._taken(rows, np.float32).astype(np.float64)
        norms = np.linalg.norm(given, axis=1)
        if by_distance:
            norms = np.maximum(norms, 1e-12)  # a row of zeros is next to nothing
        if originals.by_direction:
            with np.errstate(invalid="ignore", divide="ignore"):  # any row may be among the originals
                held *= (norms / np.linalg.norm(held, axis=1))[:, None]
        apart = np.linalg.norm(held - given, axis=1) / norms
        wrong = np.flatnonzero(~(apart <= _APART))
        if wrong.size:
            msg = (
                f"row {first + wrong[0]} of originals is not that of the embeddings: they are "
                f"{apart[wrong[0]]:.3g} of its norm apart"
            )
            raise InputError(msg)


def _bits(rows: Stored) -> Stored:
    """Half-precision numbers as the integers that the engine takes them for."""
    return rows.view(np.uint16) if rows.dtype == np.float16 else np.asarray(rows)


def _random_reads(rows: Stored) -> Stored:
    """The same rows; a map is told that reads will be of single rows, so that the system reads no more."""
    mapped = _map_of(rows)
    if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return rows


def _map_of(rows: Stored) -> mmap.mmap | None:
    """The map that rows lie in; None if they lie in memory."""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
