"""One contract for every place that codes are kept in: the same answers, changes and errors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from oracles import assert_certified_best, certified, term_scores

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError, UnknownIdError
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.coding.metric import Metric
from compressae_index.demo import DemoData
from compressae_index.search.index import Index
from compressae_index.search.stages import code_scores, holds_best, strongest_terms

Open = Callable[[CompressedIndex], Index]
"""An index with the codes and ids of an embedded one."""


@pytest.fixture(
    scope="session",
    params=["embedded", "faiss", "milvus-lite", pytest.param("milvus-server", marks=pytest.mark.server)],
)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    if request.param == "embedded":
        yield lambda index: index
        return
    if request.param == "faiss":
        from compressae_index.connectors.faiss import FaissIndex

        yield lambda index: FaissIndex.from_index(index, progress=False)
        return
    uri = str(tmp_path_factory.mktemp("milvus") / "contract.db")
    if request.param == "milvus-server":
        uri = os.environ.get("MILVUS_URI", "")
        if not uri:
            pytest.skip("MILVUS_URI is not set")
    from compressae_index.connectors.milvus import MilvusIndex, connect

    client = connect(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    made: list[MilvusIndex] = []

    def copied(index: CompressedIndex) -> MilvusIndex:
        backed = MilvusIndex.create(
            client,
            f"contract_{secrets.token_hex(4)}",
            index.model,
            k=index.k,
            metric=index.metric,
            string_ids=index.ids.dtype == object,
        )
        made.append(backed)
        backed.backend.put(index.codes(index.ids), index.ids)
        backed.flush()
        return backed

    yield copied
    for index in made:
        index.drop()
    client.close()


@pytest.fixture(scope="session")
def queries(demo_data: DemoData) -> FloatArray:
    """20 held-out embeddings, as Milvus Lite answers slowly."""
    return demo_data.queries[:20]


@pytest.fixture(scope="session")
def whole(opened: Open, built: CompressedIndex) -> Index:
    """4,000 vectors. Not to be changed."""
    return opened(built)


@pytest.fixture
def small(opened: Open, index: CompressedIndex) -> Index:
    """300 vectors with ids 1000 .. 1299, to change."""
    return opened(index)


@pytest.fixture
def named(opened: Open, model: CompresSAE, vectors: FloatArray) -> Index:
    """200 vectors with strings as ids, to change."""
    return opened(CompressedIndex.build(vectors[:200], names(200), model=model, k=16, progress=False))


def names(n: int) -> list[str]:
    """Strings that an expression could stumble over."""
    return [f'item "{i}" 100% \'é\\{i}' for i in range(n)]


def tolerance(index: Index) -> float:
    """Of sparse scores: those of Faiss's lists, which hold half precision, are not taken from the codes."""
    filed = type(index.documents).__name__ == "InvertedFile"
    return 2e-4 if filed else 1e-5


@pytest.mark.parametrize("candidates", [30, 300, 1000])
def test_two_stage_gives_the_best_of_all_where_it_is_certified(
    whole: Index, built: CompressedIndex, queries: FloatArray, candidates: int
) -> None:
    result = whole.search(queries, 10, candidates=candidates, query_nnz=built.model.n_latents)
    assert_certified_best(result, term_scores(built, queries), 10, tolerance=2e-6)
    if candidates == 1000:
        assert certified(result).all()


def test_two_stage_gives_what_the_embedded_engine_gives(
    whole: Index, built: CompressedIndex, queries: FloatArray
) -> None:
    # So many that no document depends on whether sums or upper bounds of them rank the last candidates.
    result, expected = (index.search(queries, 10, candidates=2000) for index in (whole, built))
    assert certified(result).all()
    np.testing.assert_allclose(result.scores, expected.scores, atol=2e-6)
    assert (result.ids == expected.ids).mean() > 0.98  # ties may stand the other way


@pytest.mark.parametrize("candidates", [30, 1000])
def test_sparse_gives_the_best_sums_where_it_is_certified(
    whole: Index, built: CompressedIndex, queries: FloatArray, candidates: int
) -> None:
    result = whole.search(queries, 10, mode="sparse", query_nnz=32, candidates=candidates)
    assert_certified_best(result, term_scores(built, queries, 32), 10, tolerance=tolerance(whole))
    if candidates == 1000:
        assert certified(result).all()


def test_symmetric_scoring_compares_codes(whole: Index, built: CompressedIndex, queries: FloatArray) -> None:
    result = whole.search(queries, 10, mode="sparse", scoring="symmetric")
    exact = term_scores(built, queries, scoring="symmetric")
    assert certified(result).any()
    assert_certified_best(result, exact, 10, tolerance=tolerance(whole))


def test_codes_and_explanations(whole: Index, built: CompressedIndex, queries: FloatArray) -> None:
    ids = [7, 3, 3999, 3]
    codes, expected = whole.codes(ids), built.codes(ids)
    np.testing.assert_array_equal(codes.to_dense(), expected.to_dense())
    np.testing.assert_array_equal(whole.reconstruct(ids), built.reconstruct(ids))
    why = whole.explain(queries[0], 7)
    assert why.score == pytest.approx(term_scores(built, queries[:1])[0, 7], abs=2e-6)
    assert why.contributions.sum() + why.mean == pytest.approx(why.score, abs=1e-6)
    assert len(whole) == whole.stats().vectors == 4000


def test_a_filter_of_ids(whole: Index, built: CompressedIndex, queries: FloatArray) -> None:
    allowed = np.arange(0, 4000, 13)
    result = whole.search(queries, 5, filter=allowed, query_nnz=built.model.n_latents)
    scores = np.full((len(queries), 4000), -np.inf)
    scores[:, allowed] = term_scores(built, queries)[:, allowed]
    assert certified(result).all()
    assert_certified_best(result, scores, 5, tolerance=2e-6)


def test_fewer_documents_than_k_are_padded(small: Index, named: Index, queries: FloatArray) -> None:
    result = small.search(queries[:3], 500, filter=[1001, 1005], query_nnz=512)
    assert result.scores.shape == result.ids.shape == (3, 500)
    for ids, scores in zip(result.ids, result.scores, strict=True):
        found = int(np.isfinite(scores).sum())
        assert found <= 2
        assert (ids[found:] == -1).all()
        assert set(ids[:found]) <= {1001, 1005}
        assert (scores[found:] == -np.inf).all()
    assert set(named.search(queries[:3], 500).ids[:, -1]) == {None}


def test_added_vectors_are_found_and_removed_ones_are_not(
    small: Index, vectors: FloatArray, queries: FloatArray
) -> None:
    small.add(vectors[300:310], ids=np.arange(10))
    assert len(small) == 310
    assert small.search(vectors[300:310], 1).ids[:, 0].tolist() == list(range(10))
    small.remove([3, 1005])
    assert len(small) == 308
    assert not np.isin(small.search(queries, 300, candidates=310).ids, [3, 1005]).any()
    with pytest.raises(UnknownIdError, match="unknown id 3 "):
        small.codes([4, 3])
    small.add(vectors[303:304], ids=[3])
    assert small.search(vectors[303], 1).ids.tolist() == [[3]]


def test_strings_as_ids(named: Index, vectors: FloatArray) -> None:
    assert named.search(vectors[:200], 1).ids[:, 0].tolist() == names(200)
    assert named.search(vectors[:1], 5, filter=names(3)).ids[0, 0] == names(1)[0]
    named.add(vectors[200:202], ids=["a", "b"])
    named.remove(names(2))
    assert len(named) == 200
    assert named.search(vectors[:2], 200).ids.tolist().count(names(1)[0]) == 0
    with pytest.raises(InputError, match="the ids of this index are strings, the new ones are integers"):
        named.add(vectors[:1], ids=[5])
    with pytest.raises(UnknownIdError, match="unknown id 5"):
        named.remove([5])


def test_upsert_replaces(small: Index, vectors: FloatArray) -> None:
    small.upsert(vectors[300:302], ids=[1000, 5])
    assert len(small) == 301
    assert small.search(vectors[300:302], 1).ids[:, 0].tolist() == [1000, 5]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5000, 5000], "duplicate id 5000"),
        ([5000, 3999], "id 3999 is already in the index"),
        ([-1, 2], "negative"),
        ([1], "1 ids for 2 vectors"),
        (["a", "b"], "ids of this index are integers"),
        ([1.5, 2.5], "ids must be"),
    ],
)
def test_bad_ids_change_nothing(whole: Index, vectors: FloatArray, ids: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        whole.add(vectors[300:302], ids=ids)
    assert len(whole) == 4000


def test_a_bad_row_changes_nothing(whole: Index, vectors: FloatArray) -> None:
    rows = vectors[300:303].copy()
    rows[2, 5] = np.nan
    with pytest.raises(InputError, match="row 2 holds NaN"):
        whole.add(rows, ids=[5001, 5002, 5003])
    with pytest.raises(DimensionError, match="dimension 10, expected 384"):
        whole.add(vectors[:1, :10], ids=[5001])
    assert len(whole) == 4000


def test_bad_removals_change_nothing(whole: Index) -> None:
    with pytest.raises(UnknownIdError, match="unknown id 5000 "):
        whole.remove([1000, 5000])
    with pytest.raises(InputError, match="more than once"):
        whole.remove([1000, 1000])
    whole.remove([])
    assert len(whole) == 4000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"mode": "fast"}, "mode must be one of"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"query_nnz": 0}, "query_nnz must be at least 1"),
        ({"scoring": "fast"}, "scoring must be one of"),
        ({"filter": [1.5]}, "ids must be integers or strings"),
    ],
)
def test_bad_options(whole: Index, queries: FloatArray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        whole.search(queries, **options)


def test_bad_queries(whole: Index, queries: FloatArray) -> None:
    with pytest.raises(DimensionError, match="dimension 10, expected 384"):
        whole.search(queries[:, :10])
    with pytest.raises(InputError, match="queries row 0 is zero"):
        whole.search(np.zeros((1, 384), dtype=np.float32))
    with pytest.raises(DimensionError, match="one query, got 2"):
        whole.explain(queries[:2], 1)


def test_inner_products(
    opened: Open, uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    metric: Metric = "inner_product"
    lengths = np.linspace(0.5, 3, 300, dtype=np.float32)[:, None]
    embedded = CompressedIndex.build(
        vectors[:300] * lengths, model=uncentred_model, k=16, metric=metric, progress=False
    )
    index = opened(embedded)
    assert index.metric == metric
    expected = embedded.search(queries * 2, 5, mode="dense")
    np.testing.assert_allclose(index.search(queries * 2, 5, query_nnz=512).scores, expected.scores, rtol=1e-5)
    index.add(vectors[300:301] * 5, ids=[5000])
    # The reconstruction has the norm of the vector, up to the rounding of the embedded index.
    assert np.linalg.norm(index.reconstruct([5000])) == pytest.approx(5, rel=2e-2)


def test_the_certificate_is_refused_where_something_better_may_be_left() -> None:
    sums = np.array([[0.9, 0.8, 0.1], [0.9, -np.inf, -np.inf], [-np.inf] * 3, [-0.1, -0.2, -np.inf]])
    bounds = np.array([0.8, 0.0, 0.0, 0.0], dtype=np.float32)
    holds = [holds_best(sums.astype(np.float32), bounds, k).tolist() for k in (1, 2, 3)]
    assert holds == [[True, True, True, False], [True, True, True, False], [False, True, True, False]]


def test_terms_are_the_largest_entries(built: CompressedIndex, queries: FloatArray) -> None:
    u = built.model.project(queries)
    terms = strongest_terms(u, 20)
    assert isinstance(terms, SparseCodes)
    for row, dense in zip(u, terms.to_dense(), strict=True):
        kept = np.flatnonzero(dense)
        assert len(kept) == 20
        np.testing.assert_array_equal(dense[kept], row[kept])
        assert np.abs(row[kept]).min() >= np.abs(np.delete(row, kept)).max()
    assert strongest_terms(u, 10**6).k == 512


def test_code_scores_are_inner_products(built: CompressedIndex, queries: FloatArray) -> None:
    u = built.model.project(queries[:2])
    codes = built.codes(np.arange(6))
    expected = np.stack([codes[:3].to_dense() @ u[0], codes[3:].to_dense() @ u[1]])
    np.testing.assert_allclose(code_scores(u, codes), expected, atol=1e-6)


def test_no_queries_and_no_rows(small: Index, named: Index, vectors: FloatArray) -> None:
    nothing: Any
    for nothing in (vectors[:0], [], np.empty((0, 0))):
        for index, kind in ((small, "int64"), (named, "object")):
            for mode in ("sparse", "two_stage"):
                for scoring in ("asymmetric", "symmetric"):
                    result = index.search(nothing, 7, mode=mode, scoring=scoring)
                    assert result.scores.shape == result.ids.shape == (0, 7)
                    assert (str(result.scores.dtype), str(result.ids.dtype)) == ("float32", kind)
                    assert certified(result).shape == (0,)
            index.add(nothing, [])
            index.upsert(nothing, [])
            index.remove([])
            codes = index.codes([])
            assert (len(codes), codes.k, codes.n_latents) == (0, 16, 512)
            assert index.reconstruct([]).shape == (0, 384)
    assert (len(small), len(named)) == (300, 200)
    with pytest.raises(DimensionError, match="dimension 9, expected 384"):
        small.search(np.empty((0, 9)))
    with pytest.raises(DimensionError, match="dimension 9, expected 384"):
        small.add(np.empty((0, 9)), [])
    with pytest.raises(DimensionError, match="1 ids for 0 vectors"):
        small.upsert(vectors[:0], [1])
    with pytest.raises(InputError, match="must not be empty"):
        small.explain(vectors[:0], 1000)


def test_candidates_below_k_are_refused(small: Index, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="candidates must be at least k = 10, got 5"):
        small.search(queries[:1], 10, candidates=5)
    assert small.search(queries[:1], 10, candidates=10).ids.shape == (1, 10)
    assert small.search(queries[:1], 1100).ids.shape == (1, 1100)


def test_masked_ids_and_queries_are_refused(small: Index, queries: FloatArray) -> None:
    masked = np.ma.masked_array([1000, 1001], [True, False])
    for act in (small.remove, small.codes, lambda ids: small.search(queries[:1], filter=ids)):
        with pytest.raises(InputError, match="are masked"):
            act(masked)
    with pytest.raises(InputError, match="queries are masked"):
        small.search(np.ma.masked_array(queries[:1]))
    assert len(small) == 300
