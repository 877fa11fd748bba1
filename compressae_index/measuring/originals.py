"""Which rows of a file an index was built from: what is measured is compared by ids, whatever the order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, IdArray, RowArray
from compressae_index.checks import check_vectors, normalize_rows
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, as_id_array
from compressae_index.index import CompressedIndex
from compressae_index.search.index import Index
from compressae_index.sources import CHUNK_ROWS, Vectors, VectorSource, open_vectors

# Documents that are compared with what their codes stand for: so many, in so many runs of neighbouring rows.
SAMPLE_ROWS, SAMPLE_RUNS = 256, 16
# Reconstructions that are nearer to each other than this tell no document from another.
ALIKE = 1e-4
# Rows that no mean of theirs says much of.
FEW = 16
# Standard errors by which a code must fit its own row better than other rows; right files reach ten and more.
LEAST_ERRORS = 3


class Originals(NamedTuple):
    """The vectors that the documents of an index were made of."""

    vectors: Vectors
    """(n, d), one for each document that a search can find, in the order of their source."""
    ids: IdArray
    """(n,) the ids of these rows."""
    left_out: int
    """Rows of the source that the index does not hold, or holds no longer."""


def originals_of(index: CompressedIndex, vectors: VectorSource, ids: Any = None) -> Originals:
    """The vectors of an index's documents, found by their ids.

    Args:
        index: whose documents; in any order, some removed, some added again.
        vectors: (m, d), among them one for each document.
        ids: one id a row of `vectors`; by default the numbers of the rows.

    Raises:
        DimensionError: vectors of another dimension, or fewer than the index holds; another number of ids.
        InputError: the index is empty; ids that repeat; ids of the index that are those of no row; rows that
            are clearly not what the codes of their ids were made of.
    """
    vectors = open_vectors(vectors)
    held = index.documents.live_ids
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
    given = Ids.from_user(ids, n)
    rows = np.sort(_rows_of(held, given, by_number=ids is None))
    chosen = vectors if len(rows) == n else _Chosen(vectors, rows)
    found = Originals(chosen, given.of(rows), n - len(rows))
    _check_contents(index, found)
    return found


def check_held(index: Index, ids: npt.NDArray[Any]) -> None:
    """Refuses ids that an index does not hold: a neighbour that cannot be found is no miss of the index.

    Args:
        index: any index.
        ids: of any shape; -1 and None, which mark what is missing, are passed over.

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


def _check_contents(index: CompressedIndex, found: Originals) -> None:
    """Refuses rows that have nothing to do with the codes of their ids.

    A code fits its own row better than it fits the others, in the mean of a sample. That also tells rows in
    another order, whose cosines may be high where all embeddings are alike.
    """
    sampled = _sample(len(found.ids))
    parts = [check_vectors(found.vectors[run.start : run.stop], first_row=run.start) for run in sampled]
    rows = normalize_rows(np.concatenate(parts))
    stored = index.reconstruct(np.concatenate([found.ids[run.start : run.stop] for run in sampled]))
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
    """Whether each reconstruction is nearer to its own row than to the others, in the mean.

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

    def __init__(self, vectors: Vectors, rows: RowArray) -> None:
        self._vectors = vectors
        self._rows = rows
        self.shape: tuple[int, ...] = (len(rows), vectors.shape[1])

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        wanted = self._rows[rows]
        parts = [np.empty((0, self.shape[1]), dtype=np.float32)]
        # Few of many rows are not read at once.
        for first in range(int(wanted[0]), int(wanted[-1]) + 1, CHUNK_ROWS) if len(wanted) else ():
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + CHUNK_ROWS)]
            if len(here):
                last = int(here[-1]) + 1
                part = np.asarray(self._vectors[first:last])[here - first]
                bad = np.flatnonzero(~np.isfinite(part).all(axis=1) | ~part.any(axis=1))
                if bad.size:  # named here, as callers do not know the numbers of rows in the source
                    check_vectors(part[bad[:1]], first_row=int(here[bad[0]]))
                parts.append(part)
        return np.concatenate(parts)
