"""Codes with their ids and marks of removal, as one search sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index.arrays import FloatArray, RowArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.errors import DimensionError, InputError
from compressae_index.ids import Ids, Rows


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
