"""Texts and metadata beside an index: one state of both at any time, whatever fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import content_of

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    DimensionError,
    FormatError,
    InputError,
    MissingExtraError,
    StorageError,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.texts import Record, TextStore, filters
from compressae_index.connectors.texts.filters import Condition
from compressae_index.connectors.texts.records import Records
from compressae_index.demo import DemoData


def record(number: int) -> Record:
    return Record(f"id {number}", f"text {number}", {"n": number, "even": number % 2 == 0}, f"p{number}")


def filled(vectors: FloatArray, **options: Any) -> TextStore:
    store = TextStore(**options)
    store.write([record(number) for number in range(len(vectors))], vectors)
    return store


def found(store: TextStore, query: Any, k: int = 5, **more: Any) -> list[tuple[str, Any]]:
    return [(hit.record.id, round(hit.score, 4)) for hit in store.search(query, k, **more)]


def nearest(vectors: FloatArray, query: FloatArray, k: int) -> list[tuple[str, Any]]:
    """By exact search."""
    scores = normalize_rows(vectors) @ normalize_rows(query[None])[0]
    order = np.argsort(-scores, kind="stable")[:k]
    return [(f"id {row}", pytest.approx(scores[row], abs=2e-4)) for row in order.tolist()]


# Few vectors.


def test_few_vectors_are_compared_exactly(vectors: FloatArray, queries: FloatArray) -> None:
    store = TextStore()
    assert store.search(queries[0], 3) == []
    for first in range(0, 60, 20):
        rows = range(first, first + 20)
        store.write([record(number) for number in rows], vectors[first : first + 20])
        for query in queries[:5]:
            assert found(store, query) == nearest(vectors[: first + 20], query, 5)
    assert store.is_exact
    assert len(found(store, queries[0], 100)) == len(store) == 60
    assert store.search(queries[0], 0) == []
    with pytest.raises(DimensionError, match="one query"):
        store.search(queries[:2], 3)
    with pytest.raises(DimensionError, match="dimension 5, expected 384"):
        store.write([record(99)], [[1.0] * 5])


def test_many_vectors_become_an_index(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    options: dict[str, Any] = {"model": model, "residual_bits": 2}
    store = filled(vectors[:250], build_at=300, build=options)
    exact = [store.is_exact]
    store.delete(["id 0", "id 1"])
    store.write([record(number) for number in range(250, 300)], vectors[250:300])
    exact.append(store.is_exact)  # 298 vectors
    store.write([record(number) for number in (0, 1)], vectors[:2])
    assert [*exact, store.is_exact] == [True, True, False]
    order = [*range(2, 300), 0, 1]
    expected = CompressedIndex.build(vectors[order], progress=False, **options)
    for query in queries[:10]:
        rows = expected.search(query, 5).ids[0].tolist()
        assert [id_ for id_, _ in found(store, query)] == [f"id {order[row]}" for row in rows]
    assert store.search(vectors[7], 1)[0].record == record(7)
    with pytest.raises(InputError, match="it has an index"):
        store.build()
    at_once = filled(vectors[:300], build_at=300, build=options)
    assert not at_once.is_exact
    later = filled(vectors[:100], build_at=None, build=options)
    later.build(k=8)
    assert later.index is not None
    assert later.index.documents.k == 8


def test_inner_products_of_few_vectors(vectors: FloatArray, queries: FloatArray) -> None:
    rows = vectors[:50] * np.linspace(0.5, 2, 50, dtype=np.float32)[:, None]
    store = filled(rows, build={"metric": "inner_product"})
    products = rows @ queries[0]
    hits = store.search(queries[0], 5)
    assert [hit.record.metadata["n"] for hit in hits] == np.argsort(-products)[:5].tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(products)[::-1][:5], abs=1e-3)


@pytest.mark.usefixtures("without_torch")
def test_without_torch_no_encoder_is_begun(vectors: FloatArray) -> None:
    store = filled(vectors[:10], build_at=12, build={"encoder": "topk"})
    store.check_room(["id 3", "id 10"])
    for attempt in (
        lambda: store.check_room(["id 10", "id 11"]),
        lambda: store.write([record(10), record(11)], vectors[10:12]),
    ):
        with pytest.raises(MissingExtraError, match=r"training an encoder .* needs torch"):
            attempt()
    assert len(store) == 10


# Changes.


def test_documents_are_replaced_and_removed(vectors: FloatArray) -> None:
    store = filled(vectors[:20])
    assert store.write([record(3)._replace(text="new"), record(30)], [vectors[40], None]) == 2
    assert store.search(vectors[40], 1)[0].record.text == "new"
    assert found(store, vectors[3], 1)[0][0] != "id 3"
    assert [each.id for each in store.get(["id 30", "none", "id 0"])] == ["id 30", "id 0"]
    assert "id 30" not in {id_ for id_, _ in found(store, vectors[3], 50)}
    store.write([record(30)], [vectors[30]])
    assert found(store, vectors[30], 1)[0][0] == "id 30"
    store.write([record(30)], [None])
    assert "id 30" not in {id_ for id_, _ in found(store, vectors[30], 50)}
    assert store.write([record(0)._replace(text="kept"), record(31)], vectors[50:52], replace=False) == 1
    assert store.get(["id 0"]) == [record(0)]
    assert found(store, vectors[51], 1)[0][0] == "id 31"
    assert store.delete(["id 5", "id 5", "none"]) == 1
    assert store.delete_where(filters.compare(["n"], ">=", 10)) == 12
    assert [each.id for each in store.records()] == [f"id {n}" for n in range(10) if n != 5]
    assert store.delete_where(lambda each: each.text == "text 0") == 1
    assert store.delete_where(None) == 8
    assert len(store) == 0
    store.write([record(1)], vectors[1:2])
    assert found(store, vectors[1]) == [("id 1", 1.0)]


WRONG: Any = 7
REFUSED: list[tuple[Callable[[Record], Record], Any, str]] = [
    (lambda each: each, [np.nan] * 384, "holds NaN"),
    (lambda each: each, [0.0] * 384, "is zero"),
    (lambda each: each._replace(id="id 1"), None, "duplicate id 'id 1'"),
    (lambda each: each._replace(id=WRONG), None, "ids must be strings"),
    (lambda each: each._replace(id="\ud800"), None, "lone surrogate"),
    (lambda each: each._replace(text="\ud800"), None, "the text of 'id 2' holds a lone surrogate"),
    (lambda each: each._replace(text=WRONG), None, "must be a string, got int"),
    (lambda each: each._replace(metadata={"a": {1, 2}}), None, "cannot be stored as JSON"),
    (lambda each: each._replace(metadata={"a": float("nan")}), None, "cannot be stored as JSON"),
]


@pytest.mark.parametrize(("change", "vector", "message"), REFUSED, ids=[each[2] for each in REFUSED])
def test_what_is_refused_changes_nothing(
    vectors: FloatArray, change: Callable[[Record], Record], vector: Any, message: str
) -> None:
    store = filled(vectors[:5])
    before = found(store, vectors[9]), store.records()
    new = [record(1)._replace(text="new"), change(record(2)._replace(text="new"))]
    with pytest.raises(InputError, match=message):
        store.write(new, [vectors[9], vectors[8] if vector is None else vector])
    assert (found(store, vectors[9]), store.records()) == before


@pytest.mark.parametrize("kind", ["exact", "index", "faiss"])
def test_texts_that_cannot_be_written_leave_the_vectors(
    model: CompresSAE, vectors: FloatArray, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = None if kind == "exact" else CompressedIndex(model) if kind == "index" else FaissIndex(model)
    store = filled(vectors[:5], index=index)
    before = found(store, vectors[9]), store.records()

    def full(*_: object) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "change", full)
        with pytest.raises(StorageError, match="full"):
            store.write([record(7)], vectors[9:10])
        with pytest.raises(StorageError, match="full"):
            store.delete(["id 1"])
    if kind == "faiss":  # changed in place: what texts lack is not found, and writing again repairs it
        assert {id_ for id_, _ in found(store, vectors[9])} <= {each.id for each in store.records()}
        store.write([record(1), record(7)], vectors[[1, 9]])
        assert found(store, vectors[9], 1) == [("id 7", pytest.approx(1, abs=0.5))]
        return
    assert (found(store, vectors[9]), store.records()) == before


def test_threads_see_vectors_and_texts_of_one_state(vectors: FloatArray) -> None:
    store = filled(vectors[:30])
    failures: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for which in (40, 41):
                best = store.search(vectors[which], 1, filter=filters.has_id(["x"]))
                if best and (best[0].score > 0.999) != (best[0].record.text == str(which)):
                    failures.append(best)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        which = 40 + turn % 2
        store.write([Record("x", str(which), {})], [vectors[which]])
        if turn % 7 == 0:
            store.delete(["x"])
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_goes_on_by_itself(vectors: FloatArray) -> None:
    store = filled(vectors[:20])
    child = os.fork()
    if not child:
        try:
            good = found(store, vectors[3], 1)[0][0] == "id 3"
            store.write([Record("child", "", {})], [vectors[30]])
            good = good and found(store, vectors[30], 1)[0][0] == "child"
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    store.write([Record("parent", "", {})], [vectors[30]])
    assert [hit.record.id for hit in store.search(vectors[30], 1)] == ["parent"]
    assert len(store) == 21


# Filters, against Python.

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2.5,
    -3,
    "",
    "1",
    "abc",
    "b",
    "É",
    "[1]",
    [1],
    [],
    ["abc", 2],
    {"x": 1},
]
METADATA = [{"a": value} for value in VALUES] + [{}, {"a.b": 1}, {"a": {"b": "abc", "c": 3}}, {"é ü": "x"}]
MISSING = object()


def entry(metadata: Any, *path: str) -> Any:
    for key in path:
        metadata = metadata.get(key) if isinstance(metadata, dict) else None
    return metadata


def matching(condition: Condition) -> list[int]:
    store = TextStore()
    store.write([Record(str(n), None, each) for n, each in enumerate(METADATA)], [None] * len(METADATA))
    return [int(each.id) for each in store.records(condition)]


def by_python(test: Callable[[Any], bool]) -> list[int]:
    return [number for number, each in enumerate(METADATA) if test(each)]


def equal(value: Any, other: Any) -> bool:
    return isinstance(value, str) == isinstance(other, str) and bool(value == other)


@pytest.mark.parametrize("value", [None, True, 0, 1, 2.5, "", "1", "abc", "[1]", '{"x":1}'])
def test_equality(value: Any) -> None:
    expected = by_python(lambda each: equal(entry(each, "a"), value))
    assert matching(filters.compare(["a"], "==", value)) == expected
    unlike = [number for number in range(len(METADATA)) if number not in expected]
    assert matching(filters.compare(["a"], "!=", value)) == unlike


@pytest.mark.parametrize("values", [[], [None], [1, "abc"], [None, True, "", "[1]"], [2.5, -3, "b", "É"]])
def test_membership(values: list[Any]) -> None:
    expected = by_python(lambda each: any(equal(entry(each, "a"), value) for value in values))
    assert matching(filters.compare(["a"], "in", values)) == expected
    unlike = [number for number in range(len(METADATA)) if number not in expected]
    assert matching(filters.compare(["a"], "not in", values)) == unlike


@pytest.mark.parametrize("value", [0, 1, 2.5, -3, "", "1", "abc", "[1]", "É"])
def test_order(value: Any) -> None:
    orders: dict[Any, Callable[[Any], bool]] = {
        "<": lambda each: each < value,
        "<=": lambda each: each <= value,
        ">": lambda each: each > value,
        ">=": lambda each: each >= value,
    }
    kinds = str if isinstance(value, str) else (int, float)
    for operator, test in orders.items():

        def meets(each: Any, test: Callable[[Any], bool] = test) -> bool:
            return isinstance(entry(each, "a"), kinds) and test(entry(each, "a"))

        assert matching(filters.compare(["a"], operator, value)) == by_python(meets)


def test_other_conditions() -> None:
    def listed(each: Any) -> list[Any]:
        value = entry(each, "a")
        return value if isinstance(value, list) else []

    values: list[Any] = [1, 2, "abc"]
    for value in values:

        def holds(each: Any, value: Any = value) -> bool:
            in_text = isinstance(value, str) and entry(each, "a") == value
            return in_text or any(equal(one, value) for one in listed(each))

        assert matching(filters.contains(["a"], value)) == by_python(holds)
    assert matching(filters.holds_text(["a"], "b")) == [VALUES.index("abc"), VALUES.index("b")]
    assert matching(filters.holds_text(["a"], "é", any_case=True)) == [VALUES.index("É")]
    assert matching(filters.is_empty(["a"])) == by_python(lambda each: entry(each, "a") in (None, "", []))
    assert matching(filters.compare(["a", "b"], "==", "abc")) == [len(VALUES) + 2]
    assert matching(filters.compare(["a.b"], "==", 1)) == [len(VALUES) + 1]
    assert matching(filters.compare(["é ü"], "==", "x")) == [len(VALUES) + 3]
    one, two = filters.compare(["a"], "==", 1), filters.compare(["a"], ">", 2)
    assert matching(filters.either([one, two])) == sorted(matching(one) + matching(two))
    assert matching(filters.every([one, two])) == matching(filters.NOTHING) == []
    assert matching(filters.every([])) == list(range(len(METADATA)))
    unlike = set(range(len(METADATA))) - set(matching(one))
    assert matching(filters.negated(one)) == sorted(unlike)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: filters.compare(["a"], ">", None), "got None"),
        (lambda: filters.compare(["a"], "==", [1]), "compared with texts, numbers, bools or None"),
        (lambda: filters.compare(["a"], "in", "abc"), "takes a list"),
        (lambda: filters.compare(["a"], "in", [float("nan"), 1]), "NaN"),
        (lambda: filters.compare(['a"b'], "==", 1), "use a function as filter"),
        (lambda: filters.holds_text(["a"], 3), "a text is searched for"),  # type: ignore[arg-type]
    ],
)
def test_filters_that_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_filtered_answers_are_full(refined: CompressedIndex, demo_data: DemoData) -> None:
    texts = demo_data.texts[:5000]
    store = TextStore.of(refined, texts, [{"n": n, "part": n % 50} for n in range(5000)])
    for query in demo_data.queries[:20]:
        for _ in range(2):  # the second by what the first has kept
            hits = store.search(query, 100, filter=filters.compare(["part"], "==", 7))
            expected = refined.search(query, 100, filter=np.arange(7, 5000, 50))
            assert [int(hit.record.id) for hit in hits] == expected.ids[0].tolist()
        hits = store.search(query, 10, filter=lambda each: each.metadata["n"] in (4, 9))
        assert {hit.record.id for hit in hits} == {"4", "9"}
    assert store.search(demo_data.queries[0], 5, filter=filters.compare(["part"], "==", 99)) == []
    assert {hit.record.text for hit in hits} == {texts[4], texts[9]}


def test_filters_see_changes(vectors: FloatArray) -> None:
    store, even = filled(vectors[:10]), filters.compare(["even"], "==", True)
    assert len(store.search(vectors[0], 10, filter=even)) == 5
    store.write([record(12)], vectors[12:13])
    assert len(store.search(vectors[0], 10, filter=even)) == 6
    store.delete(["id 0", "id 2"])
    assert len(store.search(vectors[0], 10, filter=even)) == 4


# Files.


@pytest.mark.parametrize("kind", ["exact", "index", "no vectors", "nothing", "emptied"])
def test_what_was_saved_comes_back(model: CompresSAE, vectors: FloatArray, tmp_path: Path, kind: str) -> None:
    store = TextStore(CompressedIndex(model) if kind == "index" else None)
    if kind != "nothing":
        records = [record(number) for number in range(40)]
        store.write(records, [None] * 40 if kind == "no vectors" else vectors[:40])
    if kind == "emptied":
        store.delete_where(None)
    store.save(tmp_path / "a")
    before = content_of(tmp_path / "a")
    loaded = TextStore.load(tmp_path / "a")
    assert (loaded.records(), loaded.is_exact) == (store.records(), store.is_exact)
    assert found(loaded, vectors[50]) == found(store, vectors[50])
    for each in (store, loaded):  # both go on, and the directory does not change
        each.delete(["id 3"])
        each.write([record(41), record(4)._replace(text="new")], vectors[41:43])
    assert content_of(tmp_path / "a") == before
    assert loaded.records() == store.records()
    assert found(loaded, vectors[42]) == found(store, vectors[42])
    loaded.save(tmp_path / "a")
    assert TextStore.load(tmp_path / "a", mmap=True).records() == store.records()


def test_texts_of_an_index_elsewhere(refined: CompressedIndex, demo_data: DemoData, tmp_path: Path) -> None:
    index = FaissIndex.from_index(refined, progress=False)
    store = TextStore.of(index, demo_data.texts[:5000])
    for query in demo_data.queries[:5]:
        ids = refined.search(query, 5).ids[0].tolist()
        assert [int(hit.record.id) for hit in store.search(query, 5)] == ids
    store.save(tmp_path / "a")
    loaded = TextStore.load(tmp_path / "a", index)
    assert found(loaded, demo_data.queries[0]) == found(store, demo_data.queries[0])
    with pytest.raises(InputError, match="texts alone: pass their index"):
        TextStore.load(tmp_path / "a")
    index.remove([17])
    with pytest.raises(FormatError, match="are not those of the index"):
        TextStore.load(tmp_path / "a", index)
    filled(demo_data.embeddings[:3]).save(tmp_path / "b")
    with pytest.raises(InputError, match="an index of its own"):
        TextStore.load(tmp_path / "b", index)


def test_ids_of_an_index_are_those_of_the_documents(model: CompresSAE, vectors: FloatArray) -> None:
    names = [f"name {n}" for n in range(30)]
    index = CompressedIndex.build(vectors[:30], names, model=model, progress=False)
    store = TextStore.of(index, names)
    assert store.search(vectors[3], 1)[0].record == Record("name 3", "name 3", {})
    store.write([record(3)], vectors[50:51])
    store.delete(["name 4"])
    assert store.index is not None
    assert store.index.ids.tolist() == [*names[:4], *names[5:], "id 3"]
    assert found(store, vectors[50], 1, filter=filters.has_id(["id 3", "name 5"]))[0][0] == "id 3"
    with pytest.raises(DimensionError, match="29 texts for 30 documents"):
        TextStore.of(index, names[1:])
    with pytest.raises(InputError, match="30 documents without texts"):
        TextStore(index)


def test_damaged_texts(vectors: FloatArray, tmp_path: Path, model: CompresSAE) -> None:
    filled(vectors[:5]).save(tmp_path / "a")
    (file,) = (tmp_path / "a").glob("data-*/texts.sqlite")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="does not match its checksum"):
        TextStore.load(tmp_path / "a")
    model.save(tmp_path / "m")
    with pytest.raises(FormatError, match="holds: model; expected: texts"):
        TextStore.load(tmp_path / "m")
    (tmp_path / "other.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(FormatError, match="is no database of texts"):
        Records.saved(tmp_path / "other.sqlite")
