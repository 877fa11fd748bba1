"""Arrays of other libraries: each is read for what it means, or refused with the call that converts it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch

from compressae_index import CompressedIndex, DimensionError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_vectors
from compressae_index.conversion import as_array
from compressae_index.ids import Ids, Rows, as_id_array
from compressae_index.sources import GoodRows, open_vectors

Make = Callable[[FloatArray], Any]


def pandas() -> Any:
    return pytest.importorskip("pandas")


def polars() -> Any:
    return pytest.importorskip("polars")


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    """Six rows of four whole numbers below 4, which every float holds."""
    return np.random.default_rng(0).choice([-3, -2, -1, 1, 2, 3], size=(6, 4)).astype(np.float32)


class Foreign:
    """An array of a library that offers DLPack and nothing else."""

    def __init__(self, held: Any) -> None:
        self.__dlpack__, self.__dlpack_device__ = held.__dlpack__, held.__dlpack_device__


class Convertible:
    """An array of a library that offers `__array__`."""

    def __init__(self, held: FloatArray) -> None:
        self._held = held

    def __array__(self, dtype: Any = None, copy: Any = None) -> FloatArray:
        return self._held


def objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def unaligned(rows: FloatArray) -> Any:
    view: Any = np.ndarray(rows.shape, np.float32, bytearray(rows.nbytes + 1), 1)
    view[:] = rows
    return view


def read_only(rows: FloatArray) -> FloatArray:
    copy = rows.copy()
    copy.flags.writeable = False
    return copy


READ: dict[str, Make] = {
    "Fortran": np.asfortranarray,
    "negative strides": lambda r: r[::-1, ::-1].copy()[::-1, ::-1],
    "every second": lambda r: np.repeat(np.repeat(r, 2, axis=0), 2, axis=1)[::2, ::2],
    "read-only": read_only,
    "big-endian": lambda r: r.astype(">f4"),
    "unaligned": unaligned,
    "float16": lambda r: r.astype(np.float16),
    "longdouble": lambda r: r.astype(np.longdouble),
    "bfloat16": lambda r: r.astype(ml_dtypes.bfloat16),
    "float8": lambda r: r.astype(ml_dtypes.float8_e4m3fn),
    "matrix": np.matrix,
    "object rows": lambda r: objects(list(r)),
    "object numbers": lambda r: r.astype(object),
    "tuples": lambda r: tuple(map(tuple, r.tolist())),
    "iterator": iter,
    "torch": torch.tensor,
    "torch with gradients": lambda r: torch.tensor(r, requires_grad=True) * 1,
    "torch transposed": lambda r: torch.tensor(r.T.copy()).T,
    "torch bfloat16": lambda r: torch.tensor(r).bfloat16(),
    "torch float8": lambda r: torch.tensor(r).to(torch.float8_e4m3fn),
    "list of tensors": lambda r: [torch.tensor(row, requires_grad=True) for row in r],
    "DLPack": Foreign,
    "DLPack of torch": lambda r: Foreign(torch.tensor(r)),
    "__array__": Convertible,
    "Arrow lists": lambda r: pa.array(list(r)),
    "Arrow large lists": lambda r: pa.array(list(r), type=pa.large_list(pa.float32())),
    "Arrow halves": lambda r: pa.array(list(r.astype(np.float16))),
    "Arrow fixed size": lambda r: pa.FixedSizeListArray.from_arrays(r.ravel(), 4),
    "Arrow slice": lambda r: pa.FixedSizeListArray.from_arrays(np.vstack([r, r]).ravel(), 4)[6:],
    "Arrow chunks": lambda r: pa.chunked_array([list(r[:2]), list(r[2:])]),
    "Arrow tensors": pa.FixedShapeTensorArray.from_numpy_ndarray,
    "Arrow table of a column": lambda r: pa.table({"e": list(r)}),
    "Arrow table of numbers": lambda r: pa.table({str(i): r[:, i] for i in range(4)}),
    "pandas, float index": lambda r: pandas().DataFrame(r, index=[0.5, 1, 2.5, 3, 3, -7]),
    "pandas, nullable": lambda r: pandas().DataFrame(r).astype("Float32"),
    "pandas, a column": lambda r: pandas().DataFrame({"e": list(r)}, index=np.arange(6) / 2),
    "pandas Series": lambda r: pandas().Series(list(r), index=[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]),
    "pandas Series of lists": lambda r: pandas().Series(r.tolist()),
    "pandas Series of Arrow": lambda r: pandas().Series(
        list(r), dtype=pandas().ArrowDtype(pa.list_(pa.float32()))
    ),
    "polars": lambda r: polars().DataFrame(r),
    "polars Series": lambda r: polars().Series(r.tolist()),
    "polars arrays": lambda r: polars().Series(r),
    "polars, a column": lambda r: polars().DataFrame({"e": r.tolist()}),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_every_kind_is_read_for_what_it_means(rows: FloatArray, make: Make) -> None:
    checked = check_vectors(make(rows), dim=4)
    np.testing.assert_array_equal(checked, rows)
    assert (str(checked.dtype), checked.flags.c_contiguous, checked.flags.aligned) == ("float32", True, True)
    if make is not iter:  # a source takes batches from iterators
        opened = open_vectors(make(rows))
        assert tuple(opened.shape) == (6, 4)
        for begin, end in ((0, 6), (2, 5), (5, 9)):
            np.testing.assert_array_equal(check_vectors(opened[begin:end]), rows[begin:end])
    np.testing.assert_array_equal(check_vectors(open_vectors(iter([make(rows[:6])]))[0:6]), rows)


def without_a_row(kind: Callable[[list[Any]], Any]) -> Make:
    return lambda r: kind([*r[:4].tolist(), None, r[5].tolist()])


REFUSED: list[tuple[Make, str]] = [
    (np.ma.masked_array, "are masked"),
    (lambda r: [np.ma.masked_array(row, row > 0) for row in r], "are masked"),
    (lambda r: objects([np.ma.masked_array(row) for row in r]), "are masked"),
    (lambda _: [[1.0, 2.0, 3.0, np.ma.masked]] * 6, "are masked"),
    (sp.csr_array, r"are sparse \(csr_array\): call \.toarray\(\)"),
    (sp.coo_matrix, r"are sparse \(coo_matrix\): call \.toarray\(\)"),
    (lambda r: torch.tensor(r).to_sparse(), r"are sparse \(Tensor\): call \.to_dense\(\)"),
    (lambda r: torch.empty(r.shape, device="meta"), "cannot be read as an array: Cannot copy out of meta"),
    (lambda r: torch.nested.as_nested_tensor(list(torch.tensor(r)), layout=torch.jagged), "be read as an"),
    (lambda r: r.astype(np.int64), r"got dtype int64: convert them by \.astype\(numpy\.float32\)"),
    (lambda r: torch.tensor(r).long(), "got dtype int64: convert them"),
    (lambda r: r.astype(np.int64).tolist(), "got dtype int64: convert them"),
    (lambda r: r > 0, "got dtype bool: convert them"),
    (lambda r: r.astype(np.complex64), "got dtype complex64"),
    (lambda r: r.astype(ml_dtypes.bfloat16).view("V2"), "lost that they are bfloat16"),
    (lambda r: r.astype("U4"), "got dtype <U4"),
    (lambda r: [list(map(str, row)) for row in r.tolist()], "floating point .*, got dtype <U"),
    (lambda _: np.array([[uuid.uuid4()] * 4]), r"got dtype object \(UUID\)"),
    (lambda _: np.zeros(6, dtype=[("a", "f4"), ("b", "f4")]), "structured_to_unstructured makes rows"),
    (lambda _: None, r"got shape \(\) \(NoneType\)"),
    (lambda _: {1.0, 2.0}, r"got shape \(\) \(set\)"),
    (lambda r: [r[0].tolist(), r[1, :3].tolist()], "row 1 holds 3 numbers, the first 4"),
    (without_a_row(list), r"row 4 is missing \(1 such rows\)"),
    (without_a_row(pa.array), "row 4 is missing"),
    (without_a_row(lambda r: pandas().Series(r)), "row 4 is missing"),
    (without_a_row(lambda r: polars().Series(r)), "row 4 is missing"),
    (lambda r: pa.chunked_array([list(r[:4]), [[1.0]]]), "row 4 holds 1 numbers, the first 4"),
    (
        lambda r: pandas().DataFrame({"id": list("abcdef"), "e": list(r)}),
        r"table of the columns id, e: pass the column that holds them, as table\['e'\]",
    ),
    (lambda r: polars().DataFrame({"id": list("abcdef"), "e": r.tolist()}), "table of the columns id, e"),
    (lambda r: pa.table({"id": list("abcdef"), "e": list(r)}), "table of the columns id, e"),
    (lambda r: polars().DataFrame(r).lazy(), r"got shape \(\) \(LazyFrame\)"),
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_has_no_meaning_is_refused_in_words(rows: FloatArray, make: Make, message: str) -> None:
    for act in (check_vectors, open_vectors, lambda given: open_vectors(iter([given]))):
        with pytest.raises(InputError, match=message):
            act(make(rows))


def test_what_is_given_reaches_every_call(index: CompressedIndex, vectors: FloatArray) -> None:
    queries = vectors[:3]
    expected = index.search(queries, 5)
    tensor = torch.tensor(queries, requires_grad=True)
    frame = pandas().DataFrame(queries, index=[2.5, 0.5, 1.5])
    for given in (tensor, frame, pa.array(list(queries)), iter(queries), np.asfortranarray(queries)):
        np.testing.assert_array_equal(index.search(given, 5).ids, expected.ids)
    as_bytes = np.random.default_rng(1).integers(0, 256, (2, 384)).astype(np.uint8)
    found, wanted = index.search(as_bytes, 5), index.search(as_bytes.astype(np.float32), 5)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(index.search(as_bytes[0], 5).ids, wanted.ids[:1])
    frame = pandas().DataFrame({"id": [7, 9], "e": list(vectors[300:302])}, index=[0.1, 0.2])
    index.add(frame["e"], frame["id"])
    index.upsert(tensor, pa.array([9, 10, 11]))
    assert index.ids[-4:].tolist() == [7, 9, 10, 11]
    np.testing.assert_array_equal(index.codes(torch.tensor([9])).values, index.codes([1000]).values)
    assert index.search(queries, 2, filter={9, 7}).ids.shape == (3, 2)
    index.remove(frame["id"])
    assert not np.isin([7, 9], index.ids).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-50])
def test_short_rows_are_not_called_zero(rows: FloatArray, scale: float) -> None:
    short = rows.astype(np.float64)
    short[3] *= scale
    with pytest.raises(InputError, match=r"row 3 is too short: its largest entry is [23]e-\d0, whose square"):
        check_vectors(short)
    short[3] = 0
    with pytest.raises(InputError, match=r"row 3 is zero, so it has no direction \(1 such rows\)"):
        check_vectors(short)


def test_no_rows(rows: FloatArray) -> None:
    nothing: Any
    lists = pa.array([], pa.list_(pa.float32()))
    for nothing in ([], rows[:0], np.empty((0, 0)), np.empty((0, 4), int), iter([]), lists):
        assert check_vectors(nothing, dim=4, may_be_empty=True).shape == (0, 4)
    for nothing in ([], rows[:0]):
        with pytest.raises(InputError, match="must not be empty"):
            check_vectors(nothing, dim=4)
    with pytest.raises(DimensionError, match="dimension 5, expected 4"):
        check_vectors(np.empty((0, 5)), dim=4, may_be_empty=True)
    with pytest.raises(InputError, match="must not be empty"):
        check_vectors(rows[:, :0], dim=4, may_be_empty=True)


def test_integers_where_an_embedder_gave_them(rows: FloatArray) -> None:
    whole = rows.astype(int).tolist()
    np.testing.assert_array_equal(check_vectors(whole, integers=True), rows)
    with pytest.raises(InputError, match="got dtype bool"):
        check_vectors(rows > 0, integers=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda: pa.array([3, 1]), [3, 1]),
        (lambda: pa.array(["a", "b\0"]), ["a", "b\0"]),
        (lambda: pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (lambda: pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (lambda: [pa.scalar(1), pa.scalar(2)], [1, 2]),
        (lambda: torch.tensor([1, 2]), [1, 2]),
        (lambda: {5: "x", 3: "y"}.keys(), [5, 3]),
        (lambda: (i for i in range(3)), [0, 1, 2]),
        (lambda: np.array([1, 2], dtype=object), [1, 2]),
        (lambda: [np.str_("a\0")], ["a\0"]),
        (lambda: ["a", "a\0", "a\0\0"], ["a", "a\0", "a\0\0"]),
        (lambda: pandas().Series([4, 2], index=[9.5, 1.5], dtype="Int64"), [4, 2]),
        (lambda: pandas().Series(["a", "b"], dtype="string"), ["a", "b"]),
        (lambda: pandas().Series(["a", "b"]).astype("category"), ["a", "b"]),
        (lambda: pandas().Index(["x", "y"]), ["x", "y"]),
        (lambda: polars().Series(["a", "b"]), ["a", "b"]),
    ],
)
def test_ids_of_every_kind(given: Callable[[], Any], expected: list[Any]) -> None:
    array = as_id_array(given())
    assert array.tolist() == expected
    assert array.dtype == (object if isinstance(expected[0], str) else np.int64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: [uuid.uuid4()], r"got UUID: pass \[str\(i\) for i in ids\]"),
        (lambda: [1, "a"], r"a mix of types \(int, str\): pass \[str\(i\)"),
        (lambda: [True, 0, 1], r"a mix of types \(bool, int\)"),
        (lambda: ["a", None], r"a mix of types \(NoneType, str\): row 1 is missing \(1 such rows\)"),
        (lambda: pa.array([1, None]), "got float64: row 1 is missing"),
        (lambda: pandas().Series(["a", None], dtype="string"), "row 1 is missing"),
        (lambda: [1.0, 2.0], r"got float64: where they are whole numbers, pass ids\.astype\(numpy\.int64\)"),
        (lambda: [True, False], "got bool: a mask is for filters"),
        (lambda: [b"a"], r"got \|S1: pass \[i\.decode\(\) for i in ids\]"),
        (lambda: [2**63, 1, 2], "must fit int64, got 9223372036854775808"),
        (lambda: [-(2**64), 1], "must fit int64, got -18446744073709551616"),
        (lambda: np.array([2**63], dtype=np.uint64), "must fit int64, got 9223372036854775808"),
        (lambda: np.ma.masked_array([1, 2], [False, True]), "ids are masked"),
        (lambda: [1, np.ma.masked], "ids are masked"),
        (lambda: {1, 2}, "one-dimensional, .*: a set has no order, pass a list"),
        (lambda: 5, r"one-dimensional, .*: pass a list, for one id \[5\]"),
        (lambda: "ab", r"one-dimensional, .*: pass a list, for one id \['ab'\]"),
        (lambda: np.array(["2020-01-01"], dtype="M8[D]"), r"got datetime64\[D\]: pass \[str\(i\)"),
    ],
)
def test_ids_that_are_none(given: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_id_array(given())


def test_bad_ids_are_named_by_their_rows() -> None:
    with pytest.raises(InputError, match=r"duplicate id 5 \(2 ids repeat\), in rows 1 and 3"):
        Ids.from_user([7, 5, 7, 5], 4)
    with pytest.raises(InputError, match=r"duplicate id 'b' \(1 ids .*, in rows 1 and 2"):
        Ids.from_user(["a", "b", "b"], 3)
    with pytest.raises(InputError, match="got -2 in row 1"):
        Ids.from_user([3, -2], 2)


def allowed(rows: Rows, wanted: Any) -> list[int]:
    bitmap = rows.allowed(wanted)[0]
    assert bitmap is not None
    return np.flatnonzero(np.unpackbits(bitmap, bitorder="little")).tolist()


@pytest.mark.parametrize("kind", [list, np.array, lambda f: np.array(f, np.uint8), torch.tensor, pa.array])
def test_integers_that_may_be_a_mask_are_refused(kind: Any) -> None:
    rows = Rows(Ids(6, {}))
    for mask in ([0, 1, 0, 1, 1, 1], [1] * 6, [0] * 6):
        with pytest.raises(
            InputError, match=r"0 or 1 for each of the 6 vectors: pass numpy\.asarray\(filter"
        ):
            rows.allowed(kind(mask))
        with pytest.raises(InputError, match="0 or 1 for each of the 3 vectors"):
            Rows(Ids.from_user(["a", "b", "c"], 3)).allowed(kind(mask[:3]))
    # The call that the message names means either; other integers are ids, and repeats count once.
    assert allowed(rows, np.asarray([0, 1, 0, 1, 1, 1], dtype=bool)) == [1, 3, 4, 5]
    assert allowed(rows, np.unique([0, 1, 0, 1, 1, 1])) == [0, 1]
    assert allowed(rows, kind([0, 1, 0, 1, 1])) == [0, 1]
    assert allowed(rows, kind([0, 1, 0, 1, 1, 2])) == [0, 1, 2]
    assert allowed(Rows(Ids(2, {})), kind([1, 0])) == [0, 1]
    assert allowed(Rows(Ids(1, {})), kind([0])) == [0]
    with pytest.raises(InputError, match="0 or 1 for each of the 2 vectors"):
        Rows(Ids(2, {})).allowed(kind([1, 1]))
    # Masks of images hold 255, and one for all rows has those that were removed, too.
    with pytest.raises(InputError, match="0 or 255 for each of the 6 vectors"):
        rows.allowed(np.array([0, 255, 0, 255, 0, 0], dtype=np.uint8))
    with pytest.raises(InputError, match="0 or 1 for each of the 6 vectors"):
        rows.without(np.array([2, 3])).allowed(kind([0, 1, 0, 1, 1, 1]))


def test_a_filter_of_what_is_left_after_removing(index: CompressedIndex, queries: FloatArray) -> None:
    index.remove(range(1003, 1300))
    for filter_ in ([0, 1, 1], np.array([1, 1, 1], dtype=np.uint8)):
        for mode in ("sparse", "dense", "two_stage"):
            with pytest.raises(InputError, match="0 or 1 for each of the 3 vectors"):
                index.search(queries, filter=filter_, mode=mode)
    assert index.search(queries[:1], 3, filter=[1000, 1000, 1002]).ids[0].tolist()[2] == -1
    for masked in (np.ma.masked_array([1000, 1001]), [1000, np.ma.masked]):
        with pytest.raises(InputError, match="filter are masked"):
            index.search(queries, filter=masked)


def test_device_arrays_are_copied_to_the_host(rows: FloatArray) -> None:
    cupy_like = SimpleNamespace(__cuda_array_interface__={}, get=lambda: rows)
    numba_like = SimpleNamespace(__cuda_array_interface__={}, copy_to_host=lambda: rows)
    for given in (cupy_like, numba_like):
        np.testing.assert_array_equal(as_array(given, "embeddings"), rows)


@pytest.mark.parametrize(
    "make",
    [
        lambda r: r,
        lambda r: pa.array([None if np.isnan(row).any() else row for row in r]),
        lambda r: pandas().Series([row[:2] if np.isnan(row).any() else row for row in r]),
        lambda r: iter(np.split(r, [3, 3])),
        lambda r: torch.tensor(r),
    ],
)
@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_bad_rows_are_left_out(
    rows: FloatArray, make: Make, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.sources.rows.CHUNK_ROWS", chunk)
    spoiled = np.vstack([rows] * 3)
    spoiled[[2, 5, 17]] = np.nan
    spoiled[[6, 7]] = 0
    good = np.delete(np.arange(18), [2, 5, 6, 7, 17])
    opened = open_vectors(make(spoiled), on_bad_rows="skip")
    assert isinstance(opened, GoodRows)
    assert opened.skipped.tolist() == [2, 5, 6, 7, 17]
    assert opened.kept.tolist() == good.tolist()
    for begin in range(13):
        for end in range(begin, 15):
            np.testing.assert_array_equal(opened[begin:end], spoiled[good[begin:end]])
    with pytest.raises(InputError, match="all 2 rows of the embeddings are zero or hold NaN"):
        open_vectors(spoiled[6:8], on_bad_rows="skip")
    with pytest.raises(InputError, match="on_bad_rows must be one of 'error', 'skip', got 'drop'"):
        open_vectors(rows, on_bad_rows="drop")  # type: ignore[arg-type]
