"""Ids: what goes in comes out, whatever the strings hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressae_index import DimensionError, InputError, UnknownIdError
from compressae_index.ids import Ids, as_id_array

INTEGERS = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 20), unique=True, max_size=12)
# Characters of every length in UTF-8, NUL among them; text() leaves out surrogates, which UTF-8 lacks.
STRINGS = st.lists(st.text(max_size=5) | st.text("a\0é€😀", max_size=3), unique=True, max_size=12)
EITHER = INTEGERS | STRINGS | st.integers(0, 12).map(lambda n: list(range(n)))


def stored_again(ids: Ids) -> Ids:
    return Ids(len(ids), {name: array.copy() for name, array in ids.to_arrays().items()})


@settings(deadline=None)
@given(EITHER)
def test_round_trip(names: list[Any]) -> None:
    ids = Ids.from_user(names, len(names))
    assert len(ids) == len(names)
    for each in (ids, stored_again(ids)):
        assert each.all().tolist() == names
        assert each.find(as_id_array(names)).tolist() == list(range(len(names)))
        assert each.rows_of(names[::-1]).tolist() == list(range(len(names)))[::-1]
        assert each.nbytes == sum(array.nbytes for array in each.to_arrays().values())
    assert ids.are_strings == any(isinstance(name, str) for name in names)


@settings(deadline=None)
@given(EITHER, st.data())
def test_ids_of_rows_of_any_shape(names: list[Any], data: st.DataObject) -> None:
    ids = Ids.from_user(names, len(names))
    rows = np.array(data.draw(st.lists(st.integers(-1, len(names) - 1), min_size=6, max_size=6)))
    nothing = None if ids.are_strings else -1
    expected = [nothing if row < 0 else names[row] for row in rows]
    assert ids.of(rows).tolist() == expected
    assert ids.of(rows.reshape(2, 3)).tolist() == [expected[:3], expected[3:]]


@settings(deadline=None)
@given(st.one_of(st.tuples(INTEGERS, INTEGERS), st.tuples(STRINGS, STRINGS)), st.data())
def test_extended_and_subset(both: tuple[list[Any], list[Any]], data: st.DataObject) -> None:
    first, second = both[0], [name for name in both[1] if name not in both[0]]
    if not first or not second:
        return
    ids = Ids.from_user(first, len(first)).extended(Ids.from_user(second, len(second)))
    assert ids.all().tolist() == first + second
    assert ids.rows_of(second).tolist() == list(range(len(first), len(ids)))
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True))
    subset = ids.subset(np.array(rows, dtype=np.int64))
    assert subset.all().tolist() == [ids.all()[row] for row in rows]
    assert subset.are_strings == ids.are_strings
    others = [name for name in first + second if name not in subset.all().tolist()]
    assert (subset.find(as_id_array(others)) == -1).all()


def test_ids_that_count_up_take_no_memory() -> None:
    counted = Ids.from_user(np.arange(5), 5)
    assert counted.nbytes == 0
    assert counted.extended(Ids.from_user([5, 6], 2)).nbytes == 0
    assert counted.subset(np.arange(3)).nbytes == 0
    assert counted.subset(np.array([1, 0])).all().tolist() == [1, 0]


@settings(deadline=None)
@given(EITHER)
def test_unknown_ids(names: list[Any]) -> None:
    ids = Ids.from_user(names, len(names))
    for unknown in ("not there", 2**62 + 12345, -1):
        assert ids.find(as_id_array([unknown])).tolist() == [-1]
        with pytest.raises(UnknownIdError) as caught:
            ids.rows_of([unknown, unknown])
        assert str(caught.value) == f"unknown id {unknown!r} (2 of 2 ids are unknown)"
    assert ids.rows_of([]).tolist() == []


@pytest.mark.parametrize(
    ("given_ids", "n", "error", "message"),
    [
        ([1, 2], 3, DimensionError, "2 ids for 3 vectors"),
        ([], 1, DimensionError, "0 ids for 1 vectors"),
        ([[1, 2]], 1, InputError, r"ids must be one-dimensional, got shape \(1, 2\)"),
        ("ab", 2, InputError, r"ids must be one-dimensional, got shape \(\)"),
        ({1, 2}, 2, InputError, r"ids must be one-dimensional, got shape \(\)"),
        ([[1], [2, 3]], 2, InputError, "ids cannot be read as an array"),
        ([1, "a"], 2, InputError, "ids must be integers or strings, got a mix of types"),
        (["a", None], 2, InputError, "ids must be integers or strings, got a mix of types"),
        ([1, 2.5], 2, InputError, "ids must be integers or strings, got float64"),
        ([True, False], 2, InputError, "ids must be integers or strings, got bool"),
        ([b"a", b"b"], 2, InputError, r"ids must be integers or strings, got \|S1"),
        ([2**63, 2**63 + 1], 2, InputError, "ids must fit int64, got 9223372036854775809"),
        ([3, -2], 2, InputError, "ids must not be negative .* got -2"),
        ([3, 5, 3, 5, 3], 5, InputError, r"duplicate id 3 \(2 ids repeat\)"),
        (["x", "é", "é"], 3, InputError, r"duplicate id 'é' \(1 ids repeat\)"),
        (["a", "\udcff"], 2, InputError, r"id '\\udcff' holds a lone surrogate"),
    ],
)
def test_bad_ids(given_ids: Any, n: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Ids.from_user(given_ids, n)
    assert type(caught.value) is error


def test_strings_that_fixed_width_arrays_confuse() -> None:
    names = ["a", "a\0", "a\0\0", "", "\0"]
    assert Ids.from_user(names, 5).rows_of(names[::-1]).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("length", [2, 4])
def test_stored_arrays_of_another_length(length: int) -> None:
    with pytest.raises(DimensionError, match=f"3 rows need 3 entries of ids, got {length}"):
        Ids(3, {"ids": np.arange(length)})
    packed = Ids.from_user([str(i) for i in range(length)], length).to_arrays()
    with pytest.raises(DimensionError, match=f"3 rows need 4 entries of id_ends, got {length + 1}"):
        Ids(3, packed)


@pytest.mark.parametrize(("largest", "size"), [(2**32 - 1, 4), (2**32, 8), (2**63 - 1, 8)])
def test_integers_take_four_bytes_where_they_fit(largest: int, size: int) -> None:
    ids = Ids.from_user([largest, 0, 7], 3)
    assert ids.nbytes == 3 * size
    assert ids.all().dtype == np.int64
    assert ids.all().tolist() == [largest, 0, 7]
    assert ids.of(np.array([0, -1])).tolist() == [largest, -1]
    assert ids.rows_of([7, largest]).tolist() == [2, 0]
    assert ids.find(np.array([1, 2**31])).tolist() == [-1, -1]
    grown = ids.extended(Ids.from_user([5, 2**40], 2))
    assert grown.all().tolist() == [largest, 0, 7, 5, 2**40]
    assert grown.nbytes == 5 * 8
