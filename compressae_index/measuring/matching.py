"""The rows of a file that an index was built from, found by ids, in any order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.checks import check_vectors, normalize_rows
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, as_id_array
from compressae_index.search.index import Index
from compressae_index.sources import CHUNK_ROWS, Vectors, VectorSource, ids_of_rows, open_vectors
from compressae_index.sources.centred import less

# Documents to compare with their reconstructions: so many, in so many runs of consecutive rows.
SAMPLE_ROWS, SAMPLE_RUNS = 256, 16
# Reconstructions closer to each other than this do not tell documents apart.
ALIKE = 1e-4
# Fewer rows than this are too few for statistics.
FEW = 16
# Codes must fit their own rows better than others by this many standard errors; right files reach over ten.
LEAST_ERRORS = 3


class Matched(NamedTuple):
    """The original vectors of an index's documents."""

    vectors: Vectors
    """(n, d), one for each document that a search can find, in the order of the source."""
    ids: IdArray
    """(n,) the ids of these rows."""
    left_out: int
    """Rows of the source that the index does not hold, or no longer."""


def matched(index: Index, vectors: VectorSource, ids: Any = None) -> Matched:
    """Finds the vectors of an index's documents by their ids.

    Args:
        index: the index, whose documents may be in any order, some removed, some added again.
        vectors: (m, d), among them one for each document; from open_vectors(..., on_bad_rows="skip") if the
            index was built so.
        ids: one id a row of `vectors`; row numbers by default.

    Raises:
        DimensionError: vectors of another dimension, or fewer than the index holds; another number of ids.
        InputError: the index is empty; ids that repeat; ids of the index that no row has; rows that are
            clearly not the originals of their codes.
    """
    vectors = open_vectors(vectors, zeros=index.metric == "l2")
    held = Ids.from_user(index.ids, len(index)) if len(index) else Ids(0, {})
    n, dim = vectors.shape
    if dim != index.model.dim:
        msg = f"embeddings have dimension {dim}, expected {index.model.dim}"
        raise DimensionError(msg)
    if not len(held):
        msg = "the index holds no vectors, so there is nothing to measure"
        raise InputError(msg)
    if n < len(held):
        msg = f"embeddings hold {n} vectors, the index {len(held)}: those of all its documents are needed"
        raise DimensionError(msg)
    given, skipped = ids_of_rows(ids, vectors)
    rows = np.sort(_rows_of(held, given, by_number=ids is None))
    chosen = vectors if len(rows) == n else _Chosen(vectors, rows, zeros=index.metric == "l2")
    found = Matched(chosen, given.of(rows), n + len(skipped) - len(rows))
    _check_contents(index, found)
    return found


def check_held(index: Index, ids: npt.NDArray[Any]) -> None:
    """Checks that an index holds ids: not finding an absent neighbour is no fault of the index.

    Args:
        index: the index.
        ids: ids of any shape; -1 and None, which mark missing ones, are skipped.

    Raises:
        UnknownIdError: one of them is not held, or is of the other kind.
    """
    present = {*np.asarray(ids).ravel().tolist()} - {-1, None}
    wanted = as_id_array(list(present))
    held = index.holds(wanted)
    if not held.all():
        first = wanted[~held].tolist()[0]
        msg = (
            f"the truth holds id {first!r:.100}, which is not in the index "
            f"({int((~held).sum())} of {len(wanted)} ids): give the ids of the documents, not rows of a file"
        )
        raise UnknownIdError(msg)


def _rows_of(held: Ids, given: Ids, *, by_number: bool) -> RowArray:
    """The row of each id of an index."""
    wanted = held.all()
    if by_number and held.are_strings:
        msg = (
            f"the ids of the index are strings, as {wanted[0]!r:.100}, so the ids of the embeddings are "
            "needed: give one a row, by `ids` or --ids"
        )
        raise InputError(msg)
    if held.are_strings != given.are_strings:
        kinds = ("strings", "integers") if held.are_strings else ("integers", "strings")
        msg = f"the ids of the index are {kinds[0]}, those of the embeddings {kinds[1]}"
        raise InputError(msg)
    rows = given.find(wanted)
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        first = wanted[missing[:1]].tolist()[0]
        count = f"{missing.size} of {len(held)} ids of the index"
        msg = (
            f"{count} are not row numbers of the {len(given)} embeddings, as {first!r:.100}: "
            "give the ids of the embeddings, one a row, by `ids` or --ids"
            if by_number
            else f"{count} are not among those of the {len(given)} embeddings, as {first!r:.100}"
        )
        raise InputError(msg)
    return rows


def _check_contents(index: Index, found: Matched) -> None:
    """Checks that rows are the originals of their codes.

    On average over a sample, a code must fit its own row better than other rows. That also detects rows in
    another order, whose cosines may be high if all embeddings are alike.
    """
    sampled = _sample(len(found.ids))
    zeros, center = index.metric == "l2", index.model.center
    parts = [
        check_vectors(found.vectors[run.start : run.stop], first_row=run.start, zeros=zeros)
        for run in sampled
    ]
    rows = np.concatenate(parts)
    rows = normalize_rows(less(rows, center) if zeros else rows)
    stored = index.reconstruct(np.concatenate([found.ids[run.start : run.stop] for run in sampled]))
    stored = stored if center is None else stored - center
    norms = np.linalg.norm(stored, axis=1, keepdims=True)
    stored = np.divide(stored, norms, out=np.zeros_like(stored), where=norms > 0)
    if fits(stored, rows):
        return
    cosine = float((stored * rows).sum(axis=1).mean())
    msg = (
        "the embeddings are not those that the index was built from, or their ids are in another order: "
        f"codes fit the rows of their ids no better than other rows (mean cosine {cosine:.2f} of {len(rows)})"
    )
    raise InputError(msg)


def fits(stored: FloatArray, rows: FloatArray) -> bool:
    """Whether reconstructions are closer to their own rows than to the others, on average.

    Args:
        stored: (n, d) of unit norm, or zero.
        rows: (n, d) of unit norm.
    """
    n = len(rows)
    if not stored.any():
        return True
    cosines = stored @ rows.T
    own = np.diagonal(cosines).astype(np.float64)
    if n == 1:
        return bool(own[0] > 0)
    others = (cosines.sum(axis=1, dtype=np.float64) - own) / (n - 1)
    alike = stored @ stored.T
    between = (alike.sum(dtype=np.float64) - np.trace(alike)) / (n * (n - 1))
    if between > 1 - ALIKE:
        return True
    better = own - others
    if n < FEW:
        return bool(better.mean() > 0)
    return bool(better.mean() > LEAST_ERRORS * better.std() / np.sqrt(n))


def _sample(n: int) -> list[range]:
    """Runs of rows, spread evenly."""
    if n <= SAMPLE_ROWS:
        return [range(n)]
    length = SAMPLE_ROWS // SAMPLE_RUNS
    firsts = np.linspace(0, n - length, SAMPLE_RUNS).astype(int).tolist()
    return [range(first, first + length) for first in firsts]


class _Chosen:
    """Some rows of vectors, in ascending order, read slice by slice."""

    def __init__(self, vectors: Vectors, rows: RowArray, *, zeros: bool) -> None:
        self._vectors, self._zeros = vectors, zeros
        self._rows = rows
        self.shape: tuple[int, ...] = (len(rows), vectors.shape[1])

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        wanted = self._rows[rows]
        parts = [np.empty((0, self.shape[1]), dtype=np.float32)]
        # In chunks: the chosen rows may be few among many.
        for first in range(int(wanted[0]), int(wanted[-1]) + 1, CHUNK_ROWS) if len(wanted) else ():
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + CHUNK_ROWS)]
            if len(here):
                last = int(here[-1]) + 1
                part = np.asarray(self._vectors[first:last])[here - first]
                bad = np.flatnonzero(~np.isfinite(part).all(axis=1) | ~(part.any(axis=1) | self._zeros))
                if bad.size:  # raised here, where the row number in the source is known
                    check_vectors(part[bad[:1]], first_row=int(here[bad[0]]), zeros=self._zeros)
                parts.append(part)
        return np.concatenate(parts)
