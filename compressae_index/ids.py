"""User ids outside, row numbers inside."""

from __future__ import annotations

import codecs
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from compressae_index._engine import first_repeated
from compressae_index.checks import as_array
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.processes import cached_property, lasting_state

IdArray: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.object_]
RowArray: TypeAlias = npt.NDArray[np.int64]


class Ids:
    """The ids of rows 0 .. n-1: int64 or strings, no two the same; immutable.

    Ids that count up from 0 take no memory, other integers 4 bytes where all are below 2^32, else 8. Strings
    are kept as one UTF-8 buffer with offsets.
    """

    def __init__(self, n: int, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """From `arrays` as `to_arrays` gives them; none where the ids are 0 .. n-1."""
        self._n = n
        self._arrays = arrays
        for name, expected in (("ids", n), ("id_ends", n + 1)):
            if name in arrays and len(arrays[name]) != expected:
                msg = f"{n} rows need {expected} entries of {name}, got {len(arrays[name])}"
                raise DimensionError(msg)

    @classmethod
    def from_user(cls, ids: Any, n: int) -> Ids:
        """From what a caller passes: None, a sequence of integers, or one of strings.

        Raises:
            InputError: a number that differs from n, duplicates, negative numbers, mixed or other types.
        """
        if ids is None:
            return cls(n, {})
        array = as_id_array(ids)
        if len(array) != n:
            msg = f"{len(array)} ids for {n} vectors"
            raise DimensionError(msg)
        _refuse_duplicates(array)
        if array.dtype == object:
            return cls(n, _pack_strings(array))
        if array.min(initial=0) < 0:
            msg = f"ids must not be negative (-1 marks a missing result), got {array.min()}"
            raise InputError(msg)
        return cls._of_integers(array)

    @classmethod
    def from_stored(
        cls, n: int, arrays: dict[str, npt.NDArray[Any]], alive: npt.NDArray[np.bool_] | None = None
    ) -> Ids:
        """From arrays that were loaded, as `to_arrays` gave them; all of their contents are checked.

        Args:
            n: rows.
            arrays: see above.
            alive: (n,) which of the rows were not removed; the ids of others may repeat. None: all.

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
        # Of mapped arrays, what they hold.
        arrays = {name: np.asarray(array) for name, array in self._arrays.items()}
        return lasting_state(self) | {"_arrays": arrays}

    @property
    def are_strings(self) -> bool:
        """Whether the ids are strings."""
        return "id_text" in self._arrays

    @property
    def nbytes(self) -> int:
        """Bytes that the ids take."""
        return sum(array.nbytes for array in self._arrays.values())

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to store."""
        return self._arrays

    def all(self) -> IdArray:
        """Every id, by row."""
        return self.of(np.arange(self._n))

    def of(self, rows: RowArray) -> IdArray:
        """Ids of rows of any shape; row -1 gives -1, or None where ids are strings.

        Where row numbers are the ids, these are `rows` themselves.
        """
        if not self._arrays:
            return rows
        if self.are_strings:
            text, ends = self._arrays["id_text"], self._arrays["id_ends"]
            found = [
                None if row < 0 else bytes(text[ends[row] : ends[row + 1]]).decode() for row in rows.ravel()
            ]
            result = np.empty(rows.size, dtype=object)
            result[:] = found
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
            msg = f"unknown id {first!r} ({missing.size} of {len(array)} ids are unknown)"
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

    def extended(self, more: Ids) -> Ids:
        """These ids followed by others, which must be new and of the same kind."""
        if self.are_strings and more.are_strings:
            ends = self._arrays["id_ends"]
            return Ids(
                len(self) + len(more),
                {
                    "id_text": np.concatenate([self._arrays["id_text"], more._arrays["id_text"]]),
                    "id_ends": np.concatenate([ends, more._arrays["id_ends"][1:] + ends[-1]]),
                },
            )
        return self._of_integers(np.concatenate([self.all(), more.all()]))

    def subset(self, rows: RowArray) -> Ids:
        """The ids of some rows, in their order."""
        if self.are_strings:
            return Ids(len(rows), _pack_strings(self.of(rows)))
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
        raise InputError(msg)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind in "iu":
        if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
            msg = f"ids must fit int64, got {array.max()}"
            raise InputError(msg)
        return array.astype(np.int64)
    # A list that mixes numbers and strings becomes an array of strings: look at what was passed.
    if array.dtype.kind in "OU" and all(isinstance(name, str) for name in ids):
        strings = np.empty(array.size, dtype=object)
        strings[:] = [str(name) for name in ids]
        return strings
    kind = "a mix of types" if array.dtype.kind in "OU" else array.dtype
    msg = f"ids must be integers or strings, got {kind}"
    raise InputError(msg)


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
    # The text as a whole is UTF-8, and no id begins within a character.
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


def _refuse_duplicates(array: npt.NDArray[Any]) -> None:
    values, counts = np.unique(array, return_counts=True)
    if len(values) < len(array):
        twice = counts > 1
        msg = f"duplicate id {values[twice].tolist()[0]!r} ({int(twice.sum())} ids stand more than once)"
        raise InputError(msg)


def _pack_strings(array: IdArray) -> dict[str, npt.NDArray[Any]]:
    try:
        encoded = [name.encode() for name in array]
    except UnicodeEncodeError as error:
        msg = f"id {error.object!r} holds a lone surrogate, which UTF-8 cannot store"
        raise InputError(msg) from error
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {"id_text": np.frombuffer(b"".join(encoded), dtype=np.uint8), "id_ends": ends}
