"""User ids and their row numbers."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressae_index._engine import first_repeated
from compressae_index.arrays import Bitmap, IdArray, RowArray
from compressae_index.conversion import as_array, is_missing
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.processes import cached_property, lasting_state


class Ids:
    """The ids of rows 0 .. n-1: unique int64 or strings; immutable.

    Ids 0 .. n-1 take no memory, other integers 4 bytes if all are below 2^32, else 8. Strings are one UTF-8
    buffer with offsets.
    """

    def __init__(self, n: int, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """From the arrays of `to_arrays`; none for the ids 0 .. n-1."""
        self._n = n
        self._arrays = arrays
        for name, expected in (("ids", n), ("id_ends", n + 1)):
            if name in arrays and len(arrays[name]) != expected:
                msg = f"{n} rows need {expected} entries of {name}, got {len(arrays[name])}"
                raise DimensionError(msg)

    @classmethod
    def from_user(cls, ids: Any, n: int) -> Ids:
        """From a caller's argument: None, a sequence of integers, or one of strings.

        Raises:
            InputError: not n ids, duplicates, negative numbers, mixed or other types.
        """
        if ids is None:
            return cls(n, {})
        array = as_id_array(ids)
        if len(array) != n:
            msg = f"{len(array)} ids for {n} vectors"
            raise DimensionError(msg)
        check_unique(array)
        return cls(n, pack_strings(array)) if array.dtype == object else cls._of_integers(array)

    @classmethod
    def from_stored(
        cls, n: int, arrays: dict[str, npt.NDArray[Any]], alive: npt.NDArray[np.bool_] | None = None
    ) -> Ids:
        """From loaded arrays of `to_arrays`; checks all of their contents.

        Args:
            n: rows.
            arrays: the arrays by name.
            alive: (n,) which rows were not removed, None for all; ids of removed rows may repeat.

        Raises:
            InputError: other arrays, another dtype or length, or ids that are negative, repeat, or are not
                UTF-8.
        """
        if set(arrays) == {"ids"}:
            _check_stored_integers(n, arrays["ids"], alive)
        elif set(arrays) == {"id_text", "id_ends"}:
            _check_stored_strings(n, arrays["id_text"], arrays["id_ends"], alive)
        elif arrays:
            msg = f"ids must be integers (ids) or strings (id_text, id_ends), got {', '.join(sorted(arrays))}"
            raise InputError(msg)
        return cls(n, arrays)

    @classmethod
    def _of_integers(cls, array: IdArray) -> Ids:
        if np.array_equal(array, np.arange(len(array))):
            return cls(len(array), {})
        small = array.max() <= np.iinfo(np.uint32).max
        return cls(len(array), {"ids": array.astype(np.uint32 if small else np.int64)})

    def __len__(self) -> int:
        return self._n

    def __getstate__(self) -> dict[str, Any]:
        # Plain views of mapped arrays.
        arrays = {name: np.asarray(array) for name, array in self._arrays.items()}
        return lasting_state(self) | {"_arrays": arrays}

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        return "id_text" in self._arrays

    @property
    def nbytes(self) -> int:
        """Bytes of the ids."""
        return sum(array.nbytes for array in self._arrays.values())

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store."""
        return self._arrays

    def all(self) -> IdArray:
        """Every id, by row."""
        return self.of(np.arange(self._n))

    def of(self, rows: RowArray) -> IdArray:
        """Ids of rows of any shape; row -1 gives -1, or None where ids are strings.

        If row numbers are the ids, returns `rows` itself.
        """
        if not self._arrays:
            return rows
        if self.are_strings:
            text, ends = self._arrays["id_text"], self._arrays["id_ends"]
            wanted = rows.ravel().tolist()
            # Decode each once: every query may find the same long string.
            names = {row: bytes(text[ends[row] : ends[row + 1]]).decode() for row in {*wanted} if row >= 0}
            result = np.empty(rows.size, dtype=object)
            result[:] = [names.get(row) for row in wanted]
            return result.reshape(rows.shape)
        if self._n == 0:
            return np.full(rows.shape, -1, dtype=np.int64)
        return np.where(rows < 0, np.int64(-1), self._arrays["ids"][rows])

    def rows_of(self, ids: Any) -> RowArray:
        """Row of each id.

        Raises:
            UnknownIdError: an id is not held, or is of the other kind.
        """
        array = as_id_array(ids)
        rows = self.find(array)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            first = array[missing].tolist()[0]
            msg = f"unknown id {first!r:.100} ({missing.size} of {len(array)} ids are unknown)"
            raise UnknownIdError(msg)
        return rows

    def find(self, array: IdArray) -> RowArray:
        """Row of each id, or -1."""
        if not len(array) or not self._n or (array.dtype == object) != self.are_strings:
            return np.full(len(array), -1, dtype=np.int64)
        if self.are_strings:
            return np.array([self._row_of_string.get(name, -1) for name in array], dtype=np.int64)
        if "ids" not in self._arrays:
            return np.where((array >= 0) & (array < self._n), array, -1).astype(np.int64)
        order, in_order = self._sorted
        place = np.minimum(np.searchsorted(in_order, array), self._n - 1)
        return np.where(in_order[place] == array, order[place], -1)

    def extended(self, *more: Ids) -> Ids:
        """These ids followed by others of the same kind."""
        everything = (self, *more)
        if not all(each.are_strings for each in everything):
            return self._of_integers(np.concatenate([each.all() for each in everything]))
        ends = [each._arrays["id_ends"] for each in everything]
        before = np.cumsum([0, *(each[-1] for each in ends)])
        moved = [each[1:] + first for each, first in zip(ends, before, strict=False)]
        return Ids(
            sum(map(len, everything)),
            {
                "id_text": np.concatenate([each._arrays["id_text"] for each in everything]),
                "id_ends": np.concatenate([ends[0][:1], *moved]),
            },
        )

    def subset(self, rows: RowArray) -> Ids:
        """The ids of some rows, in their order."""
        if self.are_strings:
            return Ids(len(rows), pack_strings(self.of(rows)))
        return self._of_integers(self.of(rows))

    @cached_property
    def _sorted(self) -> tuple[RowArray, RowArray]:
        ids = self._arrays["ids"].astype(np.int64)
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    @cached_property
    def _row_of_string(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.all())}


def as_id_array(ids: Any) -> IdArray:
    """A caller's ids as an array of int64, or of str objects.

    Raises:
        InputError: not one-dimensional, or neither integers nor strings.
    """
    array = as_array(ids, "ids")
    if array.ndim != 1:
        msg = f"ids must be one-dimensional, got shape {array.shape}"
        if array.ndim == 0:
            msg += f": {_scalar_advice(ids)}"
        raise InputError(msg)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    kinds = set(map(type, array)) if array.dtype == object else set()
    if array.dtype.kind in "UT" or (kinds and all(issubclass(kind, str) for kind in kinds)):
        strings = np.empty(array.size, dtype=object)
        strings[:] = [str.__str__(name) for name in array]  # str() of numpy.str_ would lose trailing NULs
        return strings
    if array.dtype.kind in "iu" or (
        kinds and bool not in kinds and all(issubclass(kind, int) for kind in kinds)
    ):
        return _as_int64(array)
    raise InputError(_not_ids(array, kinds))


def _check_stored_integers(n: int, ids: npt.NDArray[Any], alive: npt.NDArray[np.bool_] | None) -> None:
    if ids.dtype not in (np.uint32, np.int64) or ids.shape != (n,):
        msg = f"ids must be uint32 or int64 {(n,)}, got {ids.dtype} {ids.shape}"
        raise InputError(msg)
    if ids.min(initial=0) < 0:
        msg = f"ids must not be negative, got {ids.min()}"
        raise InputError(msg)
    living = ids if alive is None else ids[alive]
    if (living[1:] > living[:-1]).all():
        return
    ordered = np.sort(living)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        msg = f"duplicate id {ordered[1:][twice][0]} ({int(twice.sum())} ids repeat others)"
        raise InputError(msg)


def _check_stored_strings(
    n: int, text: npt.NDArray[Any], ends: npt.NDArray[Any], alive: npt.NDArray[np.bool_] | None
) -> None:
    if text.dtype != np.uint8 or text.ndim != 1 or ends.dtype != np.int64 or ends.shape != (n + 1,):
        msg = (
            f"string ids must be uint8 (bytes,) and int64 {(n + 1,)}, "
            f"got {text.dtype} {text.shape} and {ends.dtype} {ends.shape}"
        )
        raise InputError(msg)
    if ends[0] != 0 or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
        msg = f"the ends of string ids must ascend from 0 to {len(text)}, the length of their text"
        raise InputError(msg)
    # The whole text is UTF-8, and no id begins within a character.
    try:
        codecs.utf_8_decode(text.data, "strict", True)
    except UnicodeDecodeError as error:
        row = int(np.searchsorted(ends, error.start, side="right")) - 1
        msg = f"the id of row {row} is not UTF-8"
        raise InputError(msg) from error
    begins = ends[:-1][ends[:-1] < len(text)]
    within = np.flatnonzero(text[begins] & 0xC0 == 0x80)
    if within.size:
        msg = f"the id of row {within[0]} is not UTF-8"
        raise InputError(msg)
    repeated = first_repeated(text, ends, alive)
    if repeated < n:
        name = bytes(text[ends[repeated] : ends[repeated + 1]]).decode()
        msg = f"duplicate id {name!r:.100} at row {repeated}"
        raise InputError(msg)


def _as_int64(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    low, high = int(array.min()), int(array.max())
    if high > np.iinfo(np.int64).max or low < np.iinfo(np.int64).min:
        msg = f"ids must fit int64, got {high if high > -low else low}"
        raise InputError(msg)
    return array.astype(np.int64)


def _scalar_advice(ids: Any) -> str:
    if isinstance(ids, (set, frozenset)):
        return "a set has no order, pass a list"
    return (
        f"pass a list, for one id [{ids!r}]" if isinstance(ids, (int, str)) else f"got {type(ids).__name__}"
    )


def _not_ids(array: npt.NDArray[Any], kinds: set[type]) -> str:
    """A message about ids that are neither integers nor strings, with what to call."""
    missing = [row for row, value in enumerate(array) if is_missing(value)]
    names = sorted(kind.__name__ for kind in kinds)
    got = str(array.dtype) if not names else names[0] if len(names) == 1 else "a mix of types"
    if len(names) > 1:
        got += f" ({', '.join(names)})"
    msg = f"ids must be integers or strings, got {got}"
    if missing:
        return f"{msg}: row {missing[0]} is missing ({len(missing)} such rows)"
    if array.dtype.kind == "f":
        return f"{msg}: where they are whole numbers, pass ids.astype(numpy.int64)"
    if array.dtype.kind == "b":
        return f"{msg}: a mask is for filters; index.ids[mask] are the ids"
    if array.dtype.kind == "S" or names == ["bytes"]:
        return f"{msg}: pass [i.decode() for i in ids], or [i.hex() for i in ids]"
    return f"{msg}: pass [str(i) for i in ids]"


def check_kind(ids: IdArray, *, are_strings: bool) -> None:
    """Checks that new ids are of the kind of an index.

    Raises:
        InputError: the index has strings and these are integers, or the other way round.
    """
    if (ids.dtype == object) != are_strings:
        kinds = ("strings", "integers") if are_strings else ("integers", "strings")
        msg = f"the ids of this index are {kinds[0]}, the new ones are {kinds[1]}"
        raise InputError(msg)


def check_unique(array: IdArray, place: str = "row", first: int = 0) -> None:
    """Checks that ids are unique and not negative.

    Args:
        array: the result of `as_id_array`.
        place: the word for an id's place in messages: a row, or a line of a file.
        first: number of the first place.

    Raises:
        InputError: an id repeats, or is negative.
    """
    values, starts, counts = np.unique(array, return_index=True, return_counts=True)
    if len(values) < len(array):
        twice = counts > 1
        begin = int(starts[twice][0])
        again = begin + 1 + int(np.flatnonzero(array[begin + 1 :] == array[begin])[0])
        msg = (
            f"duplicate id {array[begin : begin + 1].tolist()[0]!r:.100} ({int(twice.sum())} ids repeat), "
            f"in {place}s {first + begin} and {first + again}"
        )
        raise InputError(msg)
    if array.dtype != object and array.min(initial=0) < 0:
        msg = (
            f"ids must not be negative (-1 marks a missing result), got {array.min()} "
            f"in {place} {first + int(array.argmin())}"
        )
        raise InputError(msg)


def pack_strings(array: IdArray) -> dict[str, npt.NDArray[Any]]:
    """Strings as one UTF-8 buffer, with offsets (n + 1,).

    Raises:
        InputError: a string holds a lone surrogate.
    """
    try:
        encoded = [name.encode() for name in array]
    except UnicodeEncodeError as error:
        msg = f"id {error.object!r} holds a lone surrogate, which UTF-8 cannot store"
        raise InputError(msg) from error
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {"id_text": np.frombuffer(b"".join(encoded), dtype=np.uint8), "id_ends": ends}


# Stored arrays of ids and removals.
STORED_ROWS = ("ids", "id_text", "id_ends", "alive")


class Rows:
    """The ids of rows 0 .. n-1, with marks of removed rows; immutable.

    Attributes:
        all_ids: the ids of all rows.
        alive: (n,) which rows were not removed; None for all.
        n_alive: the number of rows that were not removed.
        mark_bytes: bytes of the marks.
    """

    def __init__(self, ids: Ids, alive: npt.NDArray[np.bool_] | None = None) -> None:
        """From the ids of the rows, and which of them were not removed (None: all)."""
        self.all_ids = ids
        self.alive = alive
        self.n_alive = len(ids) if alive is None else int(alive.sum())
        self._bitmap: Bitmap | None = None if alive is None else np.packbits(alive, bitorder="little")
        self.mark_bytes = 0 if alive is None or self._bitmap is None else alive.nbytes + self._bitmap.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return lasting_state(self)

    def alive_rows(self) -> RowArray:
        """Rows that were not removed, in order."""
        return np.arange(len(self.all_ids)) if self.alive is None else np.flatnonzero(self.alive)

    def rows_of(self, ids: Any) -> RowArray:
        """Rows of ids that are held and not removed."""
        return self.alive_rows()[self.live_ids.rows_of(ids)]

    @cached_property
    def live_ids(self) -> Ids:
        """The ids of `alive_rows`."""
        # A removed id may have been added again: only the live row counts.
        return self.all_ids if self.alive is None else self.all_ids.subset(self.alive_rows())

    def allowed(self, wanted: Any) -> tuple[Bitmap | None, int]:
        """The engine's bitmap of a filter, and the number of documents it allows.

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
        mask = np.zeros(len(self.all_ids), dtype=bool)
        if array.dtype == bool:
            if array.shape != (self.n_alive,):
                msg = f"a boolean filter must have shape ({self.n_alive},), got {array.shape}"
                raise DimensionError(msg)
            mask[self.alive_rows()] = array
        else:
            refuse_mask_of_integers(array, self.n_alive, len(self.all_ids))
            mask[self.rows_of(array)] = True
        return np.packbits(mask, bitorder="little"), int(mask.sum())

    def extended(self, ids: Ids) -> Rows:
        """These rows with others appended, whose ids are new or were removed."""
        if not len(self.all_ids):
            return Rows(ids)
        alive = None if self.alive is None else np.concatenate([self.alive, np.ones(len(ids), dtype=bool)])
        return Rows(self.all_ids.extended(ids), alive)

    def without(self, rows: RowArray) -> Rows:
        """These rows with some removed."""
        alive = np.ones(len(self.all_ids), dtype=bool) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return Rows(self.all_ids, alive)


def stored_rows(n: int, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Ids, npt.NDArray[np.bool_] | None]:
    """The ids of n rows, and which of them were not removed, from loaded arrays (see STORED_ROWS).

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
    """Refuses a filter of 0 and one other value, such as 1 or 255, for each document: it is meant as a mask.

    Args:
        array: a filter.
        lengths: the possible lengths of a mask, such as with and without removed documents.

    Raises:
        InputError: it is such a filter.
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
