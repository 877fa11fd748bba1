"""CompressedIndex against float64 brute force over its own codes, through every change and mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from oracles import assert_same, damped_sums, list_rounding, overlap, reconstructed_scores

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    DimensionError,
    InputError,
    TrainConfig,
    UnknownIdError,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.search.queries import MODES, SCORINGS, Mode, Scoring
from compressae_index.testing import assert_best, dense_codes, mean_of, query_terms, term_scores

each_mode = pytest.mark.parametrize("mode", MODES)
each_scoring = pytest.mark.parametrize("scoring", SCORINGS)


@each_scoring
def test_dense_equals_brute_force(built: CompressedIndex, queries: FloatArray, scoring: Scoring) -> None:
    exact = reconstructed_scores(built, queries, scoring)
    for k in (1, 10, 500):
        assert_best(built.search(queries, k, mode="dense", scoring=scoring), exact, k)


@each_scoring
@pytest.mark.parametrize("query_nnz", [1, 8, 64, 10**20])
def test_sparse_equals_brute_force(
    built: CompressedIndex, queries: FloatArray, scoring: Scoring, query_nnz: int
) -> None:
    exact = term_scores(built, queries, query_nnz, scoring)
    tolerance = list_rounding(built, queries, query_nnz, scoring)
    result = built.search(queries, 30, mode="sparse", scoring=scoring, query_nnz=query_nnz)
    assert_best(result, exact, 30, built.ids, tolerance=tolerance)


@each_scoring
def test_two_stage_rescores_what_damped_sums_find(
    built: CompressedIndex, queries: FloatArray, scoring: Scoring
) -> None:
    every = built.search(queries, 40, candidates=40, query_nnz=12, scoring=scoring)
    # The posting lists round, so that their last few may be others than the exact ones.
    sums = damped_sums(query_terms(built, queries, None, scoring), 12, dense_codes(built))
    exact = built.ids[np.argsort(-sums, axis=1, kind="stable")[:, :60]]
    assert overlap(every.ids, exact[:, :40]) > 39 / 40
    assert all(np.isin(found, wanted).all() for found, wanted in zip(every.ids, exact, strict=True))
    is_chosen = np.stack([np.isin(built.ids, row) for row in every.ids])
    scores = np.where(is_chosen, reconstructed_scores(built, queries, scoring), -np.inf)
    assert_best(every, scores, 40, built.ids)
    fewer = built.search(queries, 10, candidates=40, query_nnz=12, scoring=scoring)
    assert_best(fewer, scores, 10, built.ids)
    # Fewer candidates than results are refused; by default there are enough.
    with pytest.raises(InputError, match="candidates must be at least k = 40, got 39"):
        built.search(queries, 40, candidates=39, query_nnz=12, scoring=scoring)
    unmeasured = copy.copy(built)
    unmeasured.frontier = None
    deep = unmeasured.search(queries, 1200, query_nnz=12, scoring=scoring)
    assert_same(built.search(queries, 1200, candidates=1200, query_nnz=12, scoring=scoring), deep)


@each_scoring
def test_two_stage_over_everything_is_dense(
    built: CompressedIndex, queries: FloatArray, scoring: Scoring
) -> None:
    dense = built.search(queries, 20, mode="dense", scoring=scoring)
    assert_same(built.search(queries, 20, candidates=len(built), scoring=scoring), dense)


def test_topk_codes_are_searched_alike(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:500], model=model, k=8, encoder="topk", progress=False)
    assert index.codes([0]).k == 8
    for scoring in SCORINGS:
        result = index.search(queries, 10, mode="dense", scoring=scoring)
        assert_best(result, reconstructed_scores(index, queries, scoring), 10, index.ids)


def test_a_single_query_of_any_length(built: CompressedIndex, queries: FloatArray) -> None:
    expected = built.search(queries[:1], 5)
    assert_same(built.search(queries[0], 5), expected)
    np.testing.assert_array_equal(built.search(1000.0 * queries[0].astype(np.float64), 5).ids, expected.ids)
    np.testing.assert_array_equal(built.search(queries[0].tolist(), 5).ids, expected.ids)


@pytest.mark.parametrize(
    ("ids", "missing"),
    [
        (None, -1),
        (range(100), -1),
        (np.arange(100)[::-1] * 7, -1),
        (np.arange(100, dtype=np.uint8), -1),
        ([f"item {i}" for i in range(100)], None),
        (np.array([f"ü{i}" for i in range(100)]), None),
    ],
)
def test_ids_come_back(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, ids: Any, missing: object
) -> None:
    index = CompressedIndex.build(vectors[:100], ids, model=model, k=16, progress=False)
    expected = list(range(100) if ids is None else ids)
    assert index.ids.tolist() == expected
    found = index.search(queries[:1], 120, mode="dense").ids[0]
    assert found.dtype == (np.int64 if missing == -1 else object)
    order = np.argsort(-(model.project(queries[:1]).astype(np.float64) @ dense_codes(index).T)[0])
    assert found[:100].tolist() == [expected[i] for i in order]
    assert found[100:].tolist() == [missing] * 20
    found = index.search(queries, 100, mode="dense")
    assert_best(found, reconstructed_scores(index, queries), 100, index.ids)


@each_mode
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_filters(built: CompressedIndex, queries: FloatArray, mode: Mode, share: float) -> None:
    mask = np.random.default_rng(5).random(len(built)) < share
    by_mask = built.search(queries, 30, mode=mode, query_nnz=12, filter=mask)
    assert_same(built.search(queries, 30, mode=mode, query_nnz=12, filter=mask.tolist()), by_mask)
    assert_same(built.search(queries, 30, mode=mode, query_nnz=12, filter=built.ids[mask][::-1]), by_mask)
    assert (by_mask.scores > -np.inf).all()
    if mode == "sparse":
        exact, tolerance = (of(built, queries, 12) for of in (term_scores, list_rounding))
        assert_best(by_mask, exact, 30, built.ids, allowed=mask, tolerance=tolerance)
    elif mode == "dense" or mask.sum() < 1000:
        assert_best(by_mask, reconstructed_scores(built, queries), 30, built.ids, allowed=mask)
    else:
        assert mask[by_mask.ids].all()


@each_mode
def test_few_allowed_and_none_allowed(index: CompressedIndex, queries: FloatArray, mode: Mode) -> None:
    result = index.search(queries, 5, mode=mode, filter=[1200, 1007, 1200])
    assert {tuple(sorted(row)) for row in result.ids[:, :2].tolist()} == {(1007, 1200)}
    assert (result.ids[:, 2:] == -1).all()
    assert (result.scores[:, 2:] == -np.inf).all()
    nothing: npt.ArrayLike
    for nothing in ([], np.zeros(300, dtype=bool)):
        result = index.search(queries, 5, mode=mode, filter=nothing)
        assert (result.ids == -1).all()
        assert (result.scores == -np.inf).all()


@each_mode
def test_filters_after_removing(index: CompressedIndex, queries: FloatArray, mode: Mode) -> None:
    index.remove(np.arange(1000, 1299, 2))
    mask = np.arange(150) % 10 == 3
    result = index.search(queries, 15, mode=mode, filter=mask)
    assert {tuple(sorted(row)) for row in result.ids.tolist()} == {tuple(index.ids[mask])}
    assert_same(index.search(queries, 15, mode=mode, filter=index.ids[mask]), result)


def test_string_ids_are_padded_with_none(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:3], ["a", "", "c"], model=model, k=16, progress=False)
    assert index.search(queries[:1], 3, filter=[""]).ids.tolist() == [["", None, None]]
    assert index.search(queries[:1], 2, filter=[]).ids.tolist() == [[None, None]]


def test_an_empty_index(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex(model, k=16)
    assert (len(index), index.ids.tolist(), index.stats().vectors) == (0, [], 0)
    for mode in MODES:
        result = index.search(queries, 2, mode=mode)
        assert (result.ids == -1).all()
        assert (result.scores == -np.inf).all()
    index.compact()
    index.add(vectors[:10], list("abcdefghij"))
    whole = CompressedIndex.build(vectors[:10], list("abcdefghij"), model=model, k=16, progress=False)
    assert_same(index.search(queries, 10), whole.search(queries, 10))


@each_mode
def test_no_queries_no_rows_and_nothing_left(
    index: CompressedIndex, model: CompresSAE, vectors: FloatArray, mode: Mode
) -> None:
    emptied = CompressedIndex.build(vectors[:5], model=model, k=16, progress=False)
    emptied.remove(range(5))
    compacted = CompressedIndex.build(vectors[:5], list("abcde"), model=model, k=16, progress=False)
    compacted.remove(list("abcde"))
    compacted.compact()
    for each in (index, emptied, compacted, CompressedIndex(model, k=16)):
        held = len(each)
        nothing: Any
        for nothing in (vectors[:0], [], np.empty((0, 384), dtype=np.float64)):
            result = each.search(nothing, 2**31 - 1, mode=mode)
            assert result.scores.shape == result.ids.shape == (0, 2**31 - 1)
            assert (str(result.scores.dtype), str(result.ids.dtype)) == ("float32", "int64")
            each.add(nothing)
            each.add(nothing, [])
            each.upsert(nothing, [])
        each.remove([])
        assert len(each) == held
        assert len(each.codes([])) == 0
        assert each.reconstruct([]).shape == (0, 384)
        with pytest.raises(UnknownIdError, match="unknown id 77"):
            each.explain(vectors[0], 77)
        with pytest.raises(InputError, match="not be empty"):
            each.explain(vectors[:0], 1000)
    named = CompressedIndex.build(vectors[:2], ["a", "b"], model=model, k=16, progress=False)
    named.add(vectors[:0])
    assert named.search([], 3, mode=mode).ids.dtype == object
    with pytest.raises(DimensionError, match="dimension 3, expected 384"):
        index.add(np.empty((0, 3)))
    with pytest.raises(InputError, match="not be empty"):
        CompressedIndex.build(vectors[:0], model=model, progress=False)


def test_a_model_takes_no_rows(model: CompresSAE, uncentred_model: CompresSAE) -> None:
    nothing = np.empty((0, 384), dtype=np.float32)
    for each in (model, uncentred_model):
        for encoder in ("pursuit", "topk"):
            codes = each.encode(nothing, encoder=encoder)
            assert (codes.latents.shape, codes.values.shape) == ((0, 16), (0, 16))
            assert each.decode(codes).shape == (0, 384)
            assert len(each.fold(codes)) == 0
        assert each.project(nothing).shape == (0, 512)
    means = model.mean_scores(nothing)
    assert means is not None
    assert means.shape == (0, 1)


@pytest.mark.parametrize("strings", [False, True])
def test_bad_rows_are_skipped_and_named(model: CompresSAE, vectors: FloatArray, strings: bool) -> None:
    rows = vectors[:50].copy()
    rows[[3, 40]] = np.nan
    rows[17] = 0
    good = np.delete(np.arange(50), [3, 17, 40])
    names = [f"n{i}" for i in range(50)] if strings else list(range(100, 150))
    build = partial(CompressedIndex.build, model=model, k=16, on_bad_rows="skip", progress=False)
    plain, index = build(rows), build(rows, names)
    assert (plain.ids.tolist(), plain.skipped.tolist()) == (good.tolist(), [3, 17, 40])
    assert (index.ids.tolist(), index.skipped.tolist()) == (
        [names[i] for i in good],
        [names[i] for i in (3, 17, 40)],
    )
    expected = CompressedIndex.build(vectors[good], model=model, k=16, progress=False)
    np.testing.assert_array_equal(index.codes(index.ids).values, expected.codes(range(47)).values)
    with pytest.raises(DimensionError, match="47 ids for 50 vectors"):
        build(rows, range(47))
    # Row 1 is bad: what its id held stays.
    before = index.codes([names[1]]).values
    index.upsert(rows[2:5], names[:3], on_bad_rows="skip")
    assert index.skipped.tolist() == [names[1]]
    np.testing.assert_array_equal(index.codes([names[1]]).values, before)
    assert len(index) == 47
    plain.add(rows[[3, 4, 17, 5]], on_bad_rows="skip")
    assert plain.ids[-2:].tolist() == [51, 53]
    assert plain.skipped.tolist() == [50, 52]
    plain.add(rows[:1], [99])
    assert plain.skipped.tolist() == []


def test_generated_ids_go_on_above_the_largest(index: CompressedIndex, vectors: FloatArray) -> None:
    index.add(vectors[300:302], [5000, 17])
    index.add(vectors[302:304])
    assert index.ids[-4:].tolist() == [5000, 17, 5001, 5002]
    index.remove([5002])
    index.add(vectors[304:305])
    assert index.ids[-1] == 5003
    index.add(vectors[305:306], [2**63 - 1])
    with pytest.raises(InputError, match="no 1 integers are left above the largest id 9223372036854775807"):
        index.add(vectors[306:307])


def test_a_removed_id_comes_back_with_its_new_vector(
    index: CompressedIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    index.remove([1005, 1001])
    assert len(index) == 298
    assert not {1005, 1001} & set(index.search(queries, 300).ids.ravel().tolist())
    index.add(vectors[400:401], [1005])
    assert index.ids[-1] == 1005
    code = index.model.encode(vectors[400:401], 16)
    expected = normalize_rows(index.model.decode(code))
    assert (index.reconstruct([1005]) * expected).sum() == pytest.approx(1, abs=5e-3)
    found = index.search(queries[:1], 300, mode="dense").ids[0]
    assert (found == 1005).sum() == 1
    index.remove([1005])
    assert len(index) == 298


@pytest.mark.parametrize("ids", [np.arange(1000, 1300), [f"{i}" for i in range(300)]])
def test_everything_removed_then_added(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, ids: Any
) -> None:
    for compacted in (False, True):
        index = CompressedIndex.build(vectors[:300], ids, model=model, k=16, progress=False)
        index.remove(ids)
        if compacted:
            index.compact()
        assert len(index) == 0
        assert (index.search(queries, 3).scores == -np.inf).all()
        with pytest.raises(UnknownIdError):
            index.codes(ids[:1])
        index.add(vectors[:5], [7, 8, 9, 10, 11])
        assert index.ids.tolist() == [7, 8, 9, 10, 11]
        assert index.stats().removed == 0
        found = index.search(queries, 5, mode="dense")
        assert_best(found, reconstructed_scores(index, queries), 5, index.ids)


def test_adding_one_by_one_does_not_change_older_codes(index: CompressedIndex, vectors: FloatArray) -> None:
    """Values are rounded once, and compacting does not change them either."""
    before, ids = index.codes(index.ids), index.ids
    for row in range(300, 340):
        index.add(vectors[row : row + 1])
    index.compact()
    np.testing.assert_array_equal(index.codes(ids).latents, before.latents)
    np.testing.assert_array_equal(index.codes(ids).values, before.values)


def test_explanations_add_up_to_the_dense_score(built: CompressedIndex, queries: FloatArray) -> None:
    scores, ids = built.search(queries[:5], 3, mode="dense")
    for query, score, id_ in zip(queries[:5], scores[:, 2], ids[:, 2], strict=True):
        parts = built.explain(query, int(id_))
        assert parts.score == pytest.approx(score, abs=1e-5)
        assert parts.mean == pytest.approx(float((normalize_rows(query[None]) @ mean_of(built))[0]), abs=1e-6)
        assert parts.contributions.sum() + parts.mean == pytest.approx(parts.score, abs=1e-6)
        np.testing.assert_array_equal(parts.contributions, parts.projections * parts.values)
        assert (np.diff(np.abs(parts.contributions)) <= 0).all()
        code = built.codes([id_])
        order = np.argsort(parts.latents)
        np.testing.assert_array_equal(parts.latents[order], code.latents[0])
        np.testing.assert_array_equal(parts.values[order], code.values[0])
        np.testing.assert_allclose(parts.projections, built.model.project(query)[0, parts.latents], atol=1e-6)


def test_reconstructions(built: CompressedIndex, vectors: FloatArray, queries: FloatArray) -> None:
    reconstructed = built.reconstruct(built.ids[::-1])
    np.testing.assert_allclose(np.linalg.norm(reconstructed, axis=1), 1, atol=0.01)
    scores = normalize_rows(queries).astype(np.float64) @ reconstructed[::-1].T
    np.testing.assert_allclose(scores, reconstructed_scores(built, queries), atol=1e-5)
    cosines = (normalize_rows(vectors[::-1]) * reconstructed).sum(axis=1)
    assert cosines.mean() > 0.6


def stored_bytes(path: Path, prefix: str) -> int:
    return sum(np.load(file).nbytes for file in path.glob(f"data-*/{prefix}*.npy"))


def test_stats(index: CompressedIndex, tmp_path: Path) -> None:
    index.remove([1003, 1004, 1290])
    index.save(tmp_path / "index")
    stats, size = index.stats(), index.stats().bytes_per_vector
    assert (stats.vectors, stats.removed, stats.k, stats.encoder) == (297, 3, 16, "pursuit")
    assert (stats.dim, stats.n_latents) == (index.model.dim, index.model.n_latents)
    assert size["total"] == pytest.approx(size["forward"] + size["inverted"] + size["ids"])
    assert round(300 * size["forward"]) == stored_bytes(tmp_path / "index", "forward_") == 300 * 28 + 4 * 32
    assert round(300 * size["inverted"]) == stored_bytes(tmp_path / "index", "inverted_")
    # Which are alive is kept as bytes and as bits.
    assert round(300 * size["ids"]) == stored_bytes(tmp_path / "index", "ids") + 300 + 38
    assert stats.bytes_by_mode["sparse"] == size["total"]
    assert stats.bytes_by_mode["dense"] == pytest.approx(size["forward"] + size["ids"])
    assert stats.bytes_by_mode["two_stage"] == size["total"]
    # The dictionary in bytes with a scale a row, an encoder that was trained, and the mean.
    assert stats.model_bytes == (384 + 4) * 512 + 4 * ((384 + 1) * 512 + 384)
    index.compact()
    used = (dense_codes(index) != 0).sum(axis=0)
    assert index.stats().dead_latents == (used == 0).sum()
    assert index.stats().list_skew == pytest.approx(used.max() / used.mean())
    assert index.stats().removed == 0


@contextmanager
def unchanged(index: CompressedIndex, queries: FloatArray) -> Iterator[None]:
    ids, results = index.ids, [index.search(queries[:3], 20, mode=mode) for mode in MODES]
    yield
    assert len(index) == len(ids)
    np.testing.assert_array_equal(index.ids, ids)
    for mode, result in zip(MODES, results, strict=True):
        assert_same(index.search(queries[:3], 20, mode=mode), result)


def broken(rows: FloatArray, value: float) -> FloatArray:
    """The rows, where row 3 holds the value (or, for 0, nothing else)."""
    rows = rows[:5].copy()
    rows[3] = np.where(np.arange(rows.shape[1]) == 7, value, rows[3] if value else 0)
    return rows


Act = Callable[[CompressedIndex, FloatArray], object]

# Of any vectors that go in: what is done to five good rows, the error, and what it says.
BAD_ROWS: list[tuple[Callable[[FloatArray], Any], type[Exception], str]] = [
    (lambda rows: rows[None], InputError, r"must have shape \(n, d\).*got shape \(1, "),
    (lambda _: np.float32(1), InputError, r"must have shape \(n, d\).*got shape \(\)"),
    (lambda rows: rows[:, :-1], DimensionError, "have dimension 383, expected 384"),
    (lambda rows: rows.astype(np.int64), InputError, "must be floating point.*got dtype int64"),
    (lambda rows: rows.astype(np.complex64), InputError, "must be floating point.*got dtype complex64"),
    (lambda rows: rows > 0, InputError, "must be floating point.*got dtype bool"),
    (lambda rows: broken(rows, np.nan), InputError, r"row 3 holds NaN \(1 such rows\)"),
    (lambda rows: broken(rows, -np.inf), InputError, r"row 3 holds values infinite in float32"),
    (lambda rows: broken(rows.astype(np.float64), 1e300), InputError, "row 3 holds values infinite in"),
    (lambda rows: broken(rows, 0.0), InputError, r"row 3 is zero, so it has no direction \(1 such rows\)"),
    (lambda rows: rows[:, :0], InputError, "not be empty"),
    (lambda _: [[1.0], [1.0, 2.0]], InputError, "cannot be read as an array"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_ROWS)
def test_bad_rows(
    index: CompressedIndex,
    vectors: FloatArray,
    queries: FloatArray,
    spoil: Callable[[FloatArray], Any],
    error: type[Exception],
    message: str,
) -> None:
    bad = spoil(vectors[300:305])
    with unchanged(index, queries):
        for act in (
            index.search,
            index.add,
            lambda rows: index.upsert(rows, range(1000, 1005)),
            lambda rows: index.explain(rows, 1000),
        ):
            with pytest.raises(error, match=message):
                act(bad)
    with pytest.raises(error, match=message):
        CompressedIndex.build(bad, model=index.model, progress=False)


def test_a_bad_row_is_numbered_across_batches_and_nothing_is_added(
    index: CompressedIndex, vectors: FloatArray, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.coding.chunks.CHUNK_ROWS", 50)
    bad = vectors[300:500].copy()
    bad[[173, 190]] = 0
    for act in (index.add, lambda rows: index.upsert(rows, range(1100, 1300))):
        with unchanged(index, queries), pytest.raises(InputError, match=r"row 173 is zero.*\(2 such"):
            act(bad)


BAD_CALLS: list[tuple[Act, type[Exception], str]] = [
    (lambda i, q: i.search(q, 0), InputError, "k must be at least 1, got 0"),
    (lambda i, q: i.search(q, -1), InputError, "k must be at least 1, got -1"),
    (lambda i, q: i.search(q, True), InputError, "k must be an integer, got True"),
    (lambda i, q: i.search(q, 2.0), InputError, "k must be an integer, got 2.0"),  # type: ignore[arg-type]
    (lambda i, q: i.search(q, 10**20), InputError, "k must be at most 2147483647, got 1000"),
    (lambda i, q: i.search(q, candidates=9), InputError, "candidates must be at least k = 10, got 9"),
    (lambda i, q: i.search(q, candidates=0), InputError, "candidates must be at least 1, got 0"),
    (lambda i, q: i.search(q, query_nnz=0), InputError, "query_nnz must be at least 1, got 0"),
    (lambda i, q: i.search(q, num_threads=0), InputError, "num_threads must be at least 1, got 0"),
    (lambda i, q: i.search(q, mode="magic"), InputError, "mode must be one of 'sparse', .* got 'magic'"),
    (lambda i, q: i.search(q, scoring="magic"), InputError, "scoring must be one of .* got 'magic'"),  # type: ignore[arg-type]
    (lambda i, q: i.search(q, filter=[1000, 7]), UnknownIdError, r"unknown id 7 \(1 of 2 ids"),
    (lambda i, q: i.search(q, filter=["1000"]), UnknownIdError, "unknown id '1000'"),
    (lambda i, q: i.search(q, filter=[1000.0]), InputError, "integers or strings, got float64"),
    (lambda i, q: i.search(q, filter=1000), InputError, r"one-dimensional, got shape \(\)"),
    (lambda i, q: i.search(q, filter=[[1000], [1, 2]]), InputError, "filter cannot be read as an array"),
    (lambda i, q: i.search(q, filter=[True] * 299), DimensionError, r"shape \(300,\), got \(299,\)"),
    (lambda i, q: i.search(q, filter=[[True] * 300]), DimensionError, r"shape \(300,\), got \(1, 300\)"),
    (lambda i, q: i.add(q[:2], [1, 1]), InputError, r"duplicate id 1 \(1 ids repeat\)"),
    (lambda i, q: i.add(q[:2], [1, -2]), InputError, "must not be negative .* got -2"),
    (lambda i, q: i.add(q[:2], [1, "a"]), InputError, "integers or strings, got a mix of types"),
    (lambda i, q: i.add(q[:2], [1.0, 2.0]), InputError, "integers or strings, got float64"),
    (lambda i, q: i.add(q[:2], [True, False]), InputError, "integers or strings, got bool"),
    (lambda i, q: i.add(q[:2], [1, 2, 3]), DimensionError, "3 ids for 2 vectors"),
    (lambda i, q: i.add(q[:2], [[1, 2]]), InputError, r"one-dimensional, got shape \(1, 2\)"),
    (lambda i, q: i.add(q[:2], [[1], [2, 3]]), InputError, "ids cannot be read as an array"),
    (lambda i, q: i.add(q[:2], [1, 2**63]), InputError, "ids must"),
    (lambda i, q: i.add(q[:2], [1, 1250]), InputError, r"id 1250 is already in the index \(1 such"),
    (lambda i, q: i.add(q[:2], ["a", "b"]), InputError, "of this index are integers, the new ones are str"),
    (lambda i, q: i.upsert(q[:2], [1000, 1000]), InputError, r"duplicate id 1000 \(1 ids repeat"),
    (lambda i, q: i.upsert(q[:2], [1000, -2]), InputError, "must not be negative .* got -2"),
    (lambda i, q: i.upsert(q[:2], [1000, 1, 2]), DimensionError, "3 ids for 2 vectors"),
    (lambda i, q: i.upsert(q[:2], None), InputError, r"one-dimensional, got shape \(\)"),
    (lambda i, q: i.upsert(q[:2], ["a", "b"]), InputError, "index are integers, the new ones are str"),
    (lambda i, q: i.upsert(q[:2, :9], [1000, 1]), DimensionError, "dimension 9, expected 384"),
    (lambda i, q: i.upsert(q[:2], [1000, 1], num_threads=0), InputError, "num_threads must be at least 1"),
    (lambda i, q: i.add(q[:2], num_threads=True), InputError, "num_threads must be an integer, got True"),
    (lambda i, _: i.remove([1000, 7, 8]), UnknownIdError, r"unknown id 7 \(2 of 3 ids are unknown\)"),
    (lambda i, _: i.remove([1000, 1000]), InputError, "1 of 2 ids to remove stand more than once"),
    (lambda i, _: i.remove(["1000"]), UnknownIdError, "unknown id '1000'"),
    (lambda i, _: i.remove("1000"), InputError, r"one-dimensional, got shape \(\)"),
    (lambda i, _: i.remove([-1]), UnknownIdError, "unknown id -1"),
    (lambda i, _: i.compact(num_threads=0), InputError, "num_threads must be at least 1, got 0"),
    (lambda i, _: i.codes([999]), UnknownIdError, "unknown id 999"),
    (lambda i, _: i.codes(1000), InputError, r"one-dimensional, got shape \(\)"),
    (lambda i, _: i.reconstruct(["a"]), UnknownIdError, "unknown id 'a'"),
    (lambda i, q: i.explain(q[0], 999), UnknownIdError, "unknown id 999"),
    (lambda i, q: i.explain(q[0], "a"), UnknownIdError, "unknown id 'a'"),
    (lambda i, q: i.explain(q[:2], 1000), DimensionError, "one query, got 2"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "message"), BAD_CALLS)
def test_bad_calls_change_nothing(
    index: CompressedIndex, queries: FloatArray, act: Act, error: type[Exception], message: str
) -> None:
    with unchanged(index, queries), pytest.raises(error, match=message) as caught:
        act(index, queries)
    assert type(caught.value) is error


def test_removing_twice(index: CompressedIndex, queries: FloatArray) -> None:
    index.remove([1000])
    with unchanged(index, queries):
        for act in (index.remove, index.codes, lambda ids: index.search(queries, filter=ids)):
            with pytest.raises(UnknownIdError, match=r"unknown id 1000 \(1 of 2 ids"):
                act([1001, 1000])
        with pytest.raises(DimensionError, match=r"shape \(299,\), got \(300,\)"):
            index.search(queries, filter=np.ones(300, dtype=bool))
    index.remove([])
    assert len(index) == 299


def test_integers_are_unknown_to_string_ids(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:3], ["0", "1", "2"], model=model, k=16, progress=False)
    with unchanged(index, queries):
        with pytest.raises(UnknownIdError, match="unknown id 0"):
            index.remove([0])
        with pytest.raises(InputError, match="of this index are strings, the new ones are integers"):
            index.add(vectors[3:4], [3])
        with pytest.raises(InputError, match="this index has string ids, so new vectors need ids"):
            index.add(vectors[3:4])
        with pytest.raises(InputError, match=r"id '2' is already in the index"):
            index.add(vectors[3:5], ["3", "2"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, InputError, "k must be at least 1, got 0"),
        ({"k": True}, InputError, "k must be an integer, got True"),
        ({"k": 8.0}, InputError, "k must be an integer, got 8.0"),
        ({"k": 513}, InputError, "k must be at most n_latents = 512, got 513"),
        ({"encoder": "magic"}, InputError, "encoder must be one of 'pursuit', 'topk', got 'magic'"),
        ({"n_latents": 99}, DimensionError, "n_latents is 99, but the model has 512"),
        ({"config": TrainConfig()}, InputError, "config cannot be given with a model"),
        ({"num_threads": 0}, InputError, "num_threads must be at least 1, got 0"),
        ({"ids": [0, 0, 1, 2, 3]}, InputError, "duplicate id 0"),
        ({"ids": ["a"] * 5}, InputError, "duplicate id 'a'"),
        ({"ids": [0, 1]}, DimensionError, "2 ids for 5 vectors"),
        ({"ids": [0, 1, 2, 3, -4]}, InputError, "must not be negative"),
        ({"ids": [0, 1, "b", 3, 4]}, InputError, "a mix of types"),
        ({"ids": ["\ud800", "a", "b", "c", "d"]}, InputError, "lone surrogate"),
        ({"ids": []}, DimensionError, "0 ids for 5 vectors"),
    ],
)
def test_bad_builds(
    model: CompresSAE, vectors: FloatArray, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CompressedIndex.build(vectors[:5], **{"model": model, "progress": False, **options})


def test_building_trains_where_no_model_is_given(vectors: FloatArray) -> None:
    config = TrainConfig(steps=2, batch_size=64)
    index = CompressedIndex.build(vectors[:200], k=4, n_latents=64, config=config, progress=False)
    assert (index.k, index.model.k, index.model.n_latents, len(index)) == (4, 4, 64, 200)
    for k, n_latents, message in ((4, 300, "n_latents = 300 needs at least"), (9, 8, "k must be at most")):
        with pytest.raises(InputError, match=message):
            CompressedIndex.build(vectors[:200], k=k, n_latents=n_latents, config=config, progress=False)
