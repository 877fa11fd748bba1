"""An index is compared with its vectors by ids: in any order, after any change, or not at all."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import nearest

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError, UnknownIdError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.measuring.evaluation import evaluate, sweep
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.index_report import IndexReport, index_report
from compressae_index.measuring.matching import fits, matched
from compressae_index.search.recall import recall
from compressae_index.search.stages import Found, places_of, ranked

Change = Callable[[CompressedIndex, FloatArray, Any], object]

ROWS = 1500
NAMES = [f"item {row}" for row in range(ROWS)]
SHUFFLED = np.random.default_rng(1).permutation(ROWS)


def upsert(index: CompressedIndex, rows: FloatArray, ids: Any) -> None:
    index.upsert(rows[[700, 3]], [ids[700], ids[3]])


def add_again(index: CompressedIndex, rows: FloatArray, ids: Any) -> None:
    index.remove([ids[5], ids[90]])
    index.add(rows[[90, 5]], [ids[90], ids[5]])


def compact(index: CompressedIndex, rows: FloatArray, ids: Any) -> None:
    add_again(index, rows, ids)
    upsert(index, rows, ids)
    index.compact()


def remove(index: CompressedIndex, rows: FloatArray, ids: Any) -> None:  # noqa: ARG001
    index.remove([ids[row] for row in range(0, ROWS, 7)])


def recalls(report: IndexReport) -> list[dict[int, float]]:
    return [one.recall for one in report.modes]


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        *((change, "cosine") for change in (upsert, add_again, compact, remove)),
        (compact, "inner_product"),
    ],
)
@pytest.mark.parametrize("ids", [None, NAMES, SHUFFLED], ids=["numbers", "strings", "shuffled"])
def test_recall_is_that_of_a_search_by_ids(
    uncentred_model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    change: Change,
    ids: Any,
    metric: Metric,
) -> None:
    scale = np.random.default_rng(0).uniform(0.5, 2, (ROWS, 1)).astype(np.float32)
    rows, asked = vectors[:ROWS] * scale, queries[:10]
    index = CompressedIndex.build(rows, ids, model=uncentred_model, metric=metric, progress=False)
    change(index, rows, range(ROWS) if ids is None else ids)
    report = index_report(index, rows, asked, ids=ids)
    assert report.left_out == ROWS - len(index)

    names = np.arange(ROWS) if ids is None else np.array(ids, dtype=object if ids is NAMES else None)
    held = np.isin(names, index.ids)
    truth = names[held][nearest(rows[held], asked, 100, metric)]
    for measured in report.modes:
        found = index.search(asked, 100, mode=measured.name).ids
        assert measured.recall[100] == pytest.approx(recall(found, truth, 100), abs=0.002)
        assert measured.recall[100] > 0.3
    assert report.exact.recall[100] > 0.999
    swept = report.sweeps[1].measurements[1000]
    assert swept.recall == report.modes[2].recall


def test_a_file_in_another_order(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    rows = vectors[:ROWS]
    index = CompressedIndex.build(rows, model=model, k=4, progress=False)
    before = recalls(index_report(index, rows, queries[:3]))
    assert before[1][100] > 0.2
    order = np.random.default_rng(0).permutation(ROWS)
    again = recalls(index_report(index, rows[order], queries[:3], ids=order))
    # Ties of equal scores may be broken another way.
    assert [one[100] for one in again] == pytest.approx([one[100] for one in before], abs=0.02)


def test_rows_that_are_not_in_the_index_are_left_out(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[100:400], NAMES[100:400], model=model, progress=False)
    whole = index_report(index, vectors[:ROWS], queries[:5], ids=NAMES)
    own = index_report(index, vectors[100:400], queries[:5], ids=NAMES[100:400])
    assert (whole.left_out, own.left_out) == (ROWS - 300, 0)
    assert recalls(whole) == recalls(own)
    found = matched(index, vectors[:ROWS], NAMES)
    assert found.ids.tolist() == NAMES[100:400]
    assert found.vectors.shape == (300, 384)
    np.testing.assert_array_equal(found.vectors[20:31], vectors[120:131])
    assert found.vectors[40:40].shape == (0, 384)


def test_a_mismatch_is_an_error(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    rows = vectors[:300]
    numbered = CompressedIndex.build(rows, np.arange(300) + 7, model=model, progress=False)
    named = CompressedIndex.build(rows, NAMES[:300], model=model, progress=False)

    def refused(index: CompressedIndex, vectors: Any, ids: Any = None) -> str:
        with pytest.raises(InputError) as caught:
            index_report(index, vectors, queries[:2], ids=ids)
        return str(caught.value)

    assert "7 of 300 ids of the index are not row numbers of the 300 embeddings, as 300" in refused(
        numbered, rows
    )
    assert "the ids of the index are strings, as 'item 0', so the ids" in refused(named, rows)
    assert "299 ids for 300 vectors" in refused(named, rows, NAMES[:299])
    assert "the ids of the index are strings, those of the embeddings integers" in refused(
        named, rows, np.arange(300)
    )
    assert "1 of 300 ids of the index are not among those of the 300 embeddings, as 'item 9'" in refused(
        named, rows, [*NAMES[:9], "other", *NAMES[10:300]]
    )
    assert "300 of 300 ids" in refused(named, rows, NAMES[300:600])
    assert "duplicate id 'item 0'" in refused(named, rows, NAMES[:299] + NAMES[:1])
    assert "the index holds no vectors" in refused(CompressedIndex(model), rows)
    with pytest.raises(DimensionError, match="embeddings hold 299 vectors, the index 300"):
        index_report(named, rows[:299], queries, ids=NAMES[:299])
    with pytest.raises(DimensionError, match="embeddings have dimension 383, expected 384"):
        index_report(named, rows[:, 1:], queries, ids=NAMES[:300])


def test_bad_rows_are_named_as_in_the_file(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:ROWS], model=model, progress=False)
    index.remove([0, 1, 40])
    rows = vectors[:ROWS].copy()
    rows[[1, 40]] = 0  # of removed documents
    assert index_report(index, rows, queries[:2]).left_out == 3
    rows[700] = np.nan
    with pytest.raises(InputError, match="embeddings row 700 holds NaN"):
        index_report(index, rows, queries[:2])


def test_other_embeddings_are_refused(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:ROWS], model=model, progress=False)
    rng = np.random.default_rng(0)
    foreign = rng.standard_normal((ROWS, 384), dtype=np.float32)
    # All alike, so that cosines are high whatever the order.
    narrow = normalize_rows(vectors[:ROWS]) + 3 * normalize_rows(vectors[:1])
    alike = CompressedIndex.build(narrow, model=model, progress=False)
    for one, rows in ((index, foreign), (index, vectors[ROWS - 1 :: -1]), (alike, narrow[SHUFFLED])):
        with pytest.raises(InputError, match="not those that the index was built from, or their ids are in"):
            index_report(one, rows, queries[:2])
    index_report(alike, narrow, queries[:2])


def test_what_tells_nothing_apart_is_not_refused(uncentred_model: CompresSAE, vectors: FloatArray) -> None:
    twice = np.tile(vectors[:100], (2, 1))
    for rows in (vectors[:1], vectors[:2], twice, np.tile(vectors[:1], (40, 1)), -vectors[:50]):
        index = CompressedIndex.build(rows, model=uncentred_model, k=1, progress=False)
        assert matched(index, rows).left_out == 0
    rng = np.random.default_rng(0)
    rows = normalize_rows((1 + 1e-3 * rng.standard_normal((64, 8))).astype(np.float32))
    mean = normalize_rows(rows.mean(axis=0, keepdims=True))
    assert fits(np.repeat(mean, 64, axis=0), rows)
    assert fits(np.zeros_like(rows), rows)


def test_truth_that_an_index_does_not_hold_is_refused(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    named = CompressedIndex.build(vectors[:300], NAMES[:300], model=model, progress=False)
    rows = exact_neighbours(vectors[:300], queries[:5], 100)
    filed = FaissIndex.from_index(named, progress=False)
    for index in (named, filed):
        for measure in (evaluate, sweep):
            with pytest.raises(UnknownIdError, match="the truth holds id 0, which is not in the index"):
                measure(index, queries[:5], np.zeros_like(rows))
    with pytest.raises(InputError, match="ids of one kind"):
        recall(rows, named.ids[rows], 10)
    named.remove([NAMES[rows[0, 0]]])
    with pytest.raises(InputError, match="1 of "):
        evaluate(named, queries[:5], np.array(NAMES, dtype=object)[rows])


def test_an_index_in_faiss_is_measured(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:300], NAMES[:300], model=model, progress=False)
    filed = FaissIndex.from_index(index, progress=False)
    truth = index.ids[exact_neighbours(vectors[:300], queries[:5], 100)]
    own = evaluate(index, queries[:5], truth)
    measured = evaluate(filed, queries[:5], truth)
    assert [one.name for one in measured] == ["sparse", "two_stage"]
    assert measured[1].recall[10] == pytest.approx(own[2].recall[10], abs=0.02)
    assert measured[1].bytes_per_vector == filed.stats().bytes_per_vector["total"]
    assert [each.option for each in sweep(filed, queries[:5], truth)] == ["query_nnz", "candidates"]


def test_missing_results_are_no_hits() -> None:
    truth = np.array([["a", "b"]], dtype=object)
    assert recall(np.array([["a", None]], dtype=object), truth, 2) == 0.5
    assert recall(np.array([[None, None]], dtype=object), np.array([["a", None]], dtype=object), 2) == 0
    assert recall(np.array([[7, -1]]), np.array([[7, -1]]), 2) == 0.5


def test_ties_of_strings_go_to_the_lower_one_whatever_its_length() -> None:
    """In ids that ascend. Fixed-width text would lose a NUL at the end, and one long id would cost all."""
    ids = np.array([["b", "a\0", "x" * 200_000, "a", None]] * 200, dtype=object)
    scores = np.zeros(ids.shape, dtype=np.float32)
    scores[:, 4] = -np.inf
    tracemalloc.start()
    try:
        found = ranked(Found(scores, ids, places_of(ids)), 5, are_strings=True).ids
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.tolist() == [["a", "a\0", "b", "x" * 200_000, None]] * 200
    assert peak < 10 << 20


def test_ties_in_faiss_go_to_the_document_that_was_added_first(
    model: CompresSAE, vectors: FloatArray
) -> None:
    ids = ["b", "a\0", "x", "a"]
    filed = FaissIndex(model, string_ids=True)
    filed.add(np.repeat(vectors[:1], 4, axis=0), ids)
    for mode in ("sparse", "two_stage"):
        assert filed.search(np.repeat(vectors[:1], 20, axis=0), 4, mode=mode).ids.tolist() == [ids] * 20
