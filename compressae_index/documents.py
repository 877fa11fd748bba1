"""Codes with their ids and marks of removal, as one search sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.checks import FloatArray
from compressae_index.codes import SparseCodes
from compressae_index.conversion import as_array
from compressae_index.embedded import Bitmap, EmbeddedBackend
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids, RowArray
from compressae_index.processes import cached_property, lasting_state

# Arrays that a directory holds of ids and removals.
STORED_ROWS = ("ids", "id_text", "id_ends", "alive")


class Rows:
    """The ids of rows 0 .. n-1, some of which may have been removed; immutable."""

    def __init__(self, ids: Ids, alive: npt.NDArray[np.bool_] | None = None) -> None:
        """From the ids of the rows, and which of these were not removed (None: all)."""
        self.ids = ids
        self.alive = alive
        self.n_alive = len(ids) if alive is None else int(alive.sum())
        self._bitmap: Bitmap | None = None if alive is None else np.packbits(alive, bitorder="little")
        self.mark_bytes = 0 if alive is None or self._bitmap is None else alive.nbytes + self._bitmap.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return lasting_state(self)

    def alive_rows(self) -> RowArray:
        """Rows that were not removed, in order."""
        return np.arange(len(self.ids)) if self.alive is None else np.flatnonzero(self.alive)

    def rows_of(self, ids: Any) -> RowArray:
        """Rows of ids that are held and not removed."""
        return self.alive_rows()[self.live_ids.rows_of(ids)]

    @cached_property
    def live_ids(self) -> Ids:
        """The ids of `alive_rows`."""
        # An id may have been removed and added again: only the living one counts.
        return self.ids if self.alive is None else self.ids.subset(self.alive_rows())

    def allowed(self, wanted: Any) -> tuple[Bitmap | None, int]:
        """The bitmap that the engine filters by, and how many documents it allows.

        Args:
            wanted: ids, in which repeats count once, or a boolean mask of the documents that were not
                removed; None allows all.

        Raises:
            UnknownIdError: an id is not held.
            InputError: a mask of another length, or integers that may be meant as one.
        """
        if wanted is None:
            return self._bitmap, self.n_alive
        if isinstance(wanted, (set, frozenset)):
            wanted = list(wanted)
        array = as_array(wanted, "filter")
        mask = np.zeros(len(self.ids), dtype=bool)
        if array.dtype == bool:
            if array.shape != (self.n_alive,):
                msg = f"a boolean filter must have shape ({self.n_alive},), got {array.shape}"
                raise DimensionError(msg)
            mask[self.alive_rows()] = array
        else:
            refuse_mask_of_integers(array, self.n_alive, len(self.ids))
            mask[self.rows_of(array)] = True
        return np.packbits(mask, bitorder="little"), int(mask.sum())

    def extended(self, ids: Ids) -> Rows:
        """With rows appended, whose ids are new or were removed."""
        if not len(self.ids):
            return Rows(ids)
        alive = None if self.alive is None else np.concatenate([self.alive, np.ones(len(ids), dtype=bool)])
        return Rows(self.ids.extended(ids), alive)

    def without(self, rows: RowArray) -> Rows:
        """With some rows removed."""
        alive = np.ones(len(self.ids), dtype=bool) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return Rows(self.ids, alive)


def stored_rows(n: int, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Ids, npt.NDArray[np.bool_] | None]:
    """The ids of n rows, and which of these were not removed, of arrays that were loaded: see STORED_ROWS.

    Raises:
        InputError: arrays of another kind or length, ids that are negative, repeat among rows that were not
            removed, or are not UTF-8.
    """
    alive = None
    if (marks := arrays.get("alive")) is not None:
        if marks.dtype != np.uint8 or marks.shape != ((n + 7) // 8,):
            msg = f"alive must be uint8 {((n + 7) // 8,)} for {n} rows, got {marks.dtype} {marks.shape}"
            raise DimensionError(msg)
        alive = np.unpackbits(marks, count=n, bitorder="little").astype(bool)
    held = {name: array for name, array in arrays.items() if name != "alive"}
    return Ids.from_stored(n, held, alive), alive


def refuse_mask_of_integers(array: npt.NDArray[Any], *lengths: int) -> None:
    """Refuses a filter of 0 and one other value, as 1 or 255, for each document: ids would not repeat.

    Args:
        array: a filter.
        lengths: how many documents a mask may be for, as with those that were removed and without.

    Raises:
        InputError: it is so.
    """
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) not in lengths:
        return
    values = np.unique(array)
    if len(values) < len(array) and len(values) <= 2 and (values[0] == 0 or values.tolist() == [1]):
        msg = (
            f"the filter holds a 0 or {max(values[-1], 1)} for each of the {len(array)} vectors: pass "
            "numpy.asarray(filter, dtype=bool) if it is a mask, or numpy.unique(filter) if these are ids"
        )
        raise InputError(msg)


class Documents(Rows):
    """What an index holds: immutable, replaced as a whole by each change."""

    def __init__(self, backend: EmbeddedBackend, ids: Ids, alive: npt.NDArray[np.bool_] | None) -> None:
        """From codes, the ids of their rows, and which of them were not removed (None: all)."""
        if len(backend) != len(ids) or (alive is not None and len(alive) != len(ids)):
            msg = f"{len(backend)} codes, but {len(ids)} ids"
            raise DimensionError(msg)
        super().__init__(ids, alive)
        self.backend = backend

    def next_ids(self, n: int) -> RowArray:
        """Integers above the largest id so far, removed ones included."""
        if self.ids.are_strings:
            msg = "this index has string ids, so new vectors need ids"
            raise InputError(msg)
        largest = int(self.ids.all().max())
        if largest + n > np.iinfo(np.int64).max:
            msg = f"no {n} integers are left above the largest id {largest}, so new vectors need ids"
            raise InputError(msg)
        return np.arange(largest + 1, largest + 1 + n)

    def check_new(self, ids: Ids) -> None:
        """Refuses ids that cannot be added.

        Raises:
            InputError: ids of the other kind, or ids that are held already.
        """
        if self.n_alive and self.ids.are_strings != ids.are_strings:
            kinds = ("strings", "integers") if self.ids.are_strings else ("integers", "strings")
            msg = f"the ids of this index are {kinds[0]}, the new ones are {kinds[1]}"
            raise InputError(msg)
        held = np.flatnonzero(self.live_ids.find(ids.all()) >= 0)
        if held.size:
            first = ids.of(held[:1]).tolist()[0]
            msg = f"id {first!r:.100} is already in the index ({held.size} such ids); remove it first"
            raise InputError(msg)

    def added(
        self, runs: Iterable[SparseCodes], ids: Ids, num_threads: int, dictionary: FloatArray
    ) -> Documents:
        """With documents appended, run after run, so that only one run is held as it came."""
        backend = self.backend if self.n_alive else self.compacted(num_threads).backend
        backend = backend.added(runs, num_threads, dictionary)
        if not self.n_alive:
            return Documents(backend, ids, None)
        rows = self.extended(ids)
        return Documents(backend, rows.ids, rows.alive)

    def removed(self, ids: Any) -> Documents:
        """Without some ids.

        Raises:
            UnknownIdError: an id is not held.
            InputError: an id stands twice.
        """
        rows = self.rows_of(ids)
        if len(np.unique(rows)) < len(rows):
            msg = f"{len(rows) - len(np.unique(rows))} of {len(rows)} ids to remove stand more than once"
            raise InputError(msg)
        return self._marked(rows)

    def without_ids(self, ids: Ids) -> Documents:
        """Without those of some ids that are held."""
        found = self.live_ids.find(ids.all())
        return self._marked(self.alive_rows()[found[found >= 0]])

    def _marked(self, rows: RowArray) -> Documents:
        """With rows marked as removed."""
        if not len(rows):
            return self
        return Documents(self.backend, self.ids, self.without(rows).alive)

    def compacted(self, num_threads: int) -> Documents:
        """Without the rows of removed ids."""
        if self.alive is None:
            return self
        rows = self.alive_rows()
        # What is left of clusters makes up new ones.
        return self._of(rows, num_threads, int(np.searchsorted(rows, self.backend.n_clustered)))

    def clustered(self, order: RowArray, num_threads: int) -> Documents:
        """The documents that were not removed in another order, where similar ones are near each other."""
        return self._of(self.alive_rows()[order], num_threads, len(order))

    def _of(self, rows: RowArray, num_threads: int, n_clustered: int) -> Documents:
        ids = self.ids.subset(rows) if len(rows) else Ids(0, {})
        return Documents(self.backend.subset(rows, num_threads, n_clustered), ids, None)
