"""Tests that every index passes.

Subclass `IndexContract` to run them on a back end of your own:

    from compressae_index.testing import IndexContract

    class TestMine(IndexContract):
        @pytest.fixture(scope="class")
        @classmethod
        def opened(cls):
            return lambda index: Index(index.model, MyBackend.of(index), metric=index.metric)

They run under pytest, on embeddings that are shipped with this package, and need no torch. The oracles are
slow, obvious numpy in float64. With `pytest.register_assert_rewrite("compressae_index.testing")` in your
conftest.py, an assertion that fails shows its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.metric import Metric
from compressae_index.coding.model import CompresSAE
from compressae_index.demo import load_data
from compressae_index.errors import DimensionError, InputError, UnknownIdError
from compressae_index.index import CompressedIndex
from compressae_index.search.index import Index
from compressae_index.search.queries import Scoring

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Open = Callable[[CompressedIndex], Index]
"""Gives an index with the model, metric, codes and ids of an embedded one."""


def names(n: int) -> list[str]:
    """Strings as ids, over which an expression could stumble."""
    return [f'item "{i}" 100% \'é\\{i}' for i in range(n)]


class IndexContract:
    """The behaviour that all indexes share: answers, changes, errors.

    A subclass defines the fixture `opened`. It may replace the others: `embeddings` (4,000 rows), `held_out`,
    `reference_model`, `reference_uncentred_model`, `reference`.
    """

    tolerance: ClassVar[float] = 1e-5
    """Of scores of "sparse"; more where a back end rounds what it adds up."""
    residual_bits: ClassVar[int] = 0
    """Bits of the residual codes that the index keeps; 0 if it is tested without."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Open | Iterator[Open]:
        """Makes the index under test of an embedded one."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def embeddings(cls) -> FloatArray:
        """4,000 real embeddings."""
        return load_data().embeddings[:4000]

    @pytest.fixture(scope="class")
    @classmethod
    def held_out(cls) -> FloatArray:
        """20 held-out embeddings."""
        return load_data().queries[:20]

    @pytest.fixture(scope="class")
    @classmethod
    def reference_model(cls, embeddings: FloatArray) -> CompresSAE:
        """A model of 512 latents and 16 nonzeros, whose atoms are embeddings less their mean."""
        return sampled_model(embeddings, normalize_rows(embeddings).mean(axis=0))

    @pytest.fixture(scope="class")
    @classmethod
    def reference_uncentred_model(cls, embeddings: FloatArray) -> CompresSAE:
        """A model without a mean, as inner products need it."""
        return sampled_model(embeddings, None)

    @classmethod
    def built_of(cls, embeddings: FloatArray, ids: Any = None, **settings: Any) -> CompressedIndex:
        """An embedded index, with residual codes if the index under test keeps them."""
        return CompressedIndex.build(
            embeddings, ids, k=16, residual_bits=cls.residual_bits, progress=False, **settings
        )

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, reference_model: CompresSAE, embeddings: FloatArray) -> CompressedIndex:
        """An embedded index of the 4,000 embeddings. Not to be changed."""
        return cls.built_of(embeddings, model=reference_model)

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, opened: Open, reference: CompressedIndex) -> Index:
        """4,000 embeddings. Not to be changed."""
        return opened(reference)

    @pytest.fixture
    def small(self, opened: Open, reference_model: CompresSAE, embeddings: FloatArray) -> Index:
        """300 embeddings with ids 1000 .. 1299, to change."""
        return opened(self.built_of(embeddings[:300], np.arange(1000, 1300), model=reference_model))

    @pytest.fixture
    def named(self, opened: Open, reference_model: CompresSAE, embeddings: FloatArray) -> Index:
        """200 embeddings with strings as ids, to change."""
        return opened(self.built_of(embeddings[:200], names(200), model=reference_model))

    @pytest.mark.parametrize("candidates", [30, 300, 1000])
    def test_two_stage_gives_the_best_of_all_where_it_is_certified(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray, candidates: int
    ) -> None:
        n_latents = reference.model.n_latents
        result = whole.search(held_out, 10, candidates=candidates, query_nnz=n_latents, refine=0)
        assert_certified_best(result, term_scores(reference, held_out), 10, tolerance=2e-6)
        if candidates == 1000:
            assert certified(result).all()

    def test_two_stage_gives_what_the_embedded_engine_gives(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        # So many that no document depends on whether sums or upper bounds of them rank the last candidates.
        result, expected = (index.search(held_out, 10, candidates=2000) for index in (whole, reference))
        assert certified(result).all()
        np.testing.assert_allclose(result.scores, expected.scores, atol=2e-6)
        assert (result.ids == expected.ids).mean() > 0.98  # ties may stand the other way

    def test_the_last_stage_scores_what_codes_leave_out(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        if not self.residual_bits:
            with pytest.raises(InputError, match="refine is 20, but there is no stage that scores again"):
                whole.search(held_out, 10, refine=20)
            return
        by_codes = whole.search(held_out, 20, candidates=2000, refine=0)
        result, expected = (
            index.search(held_out, 10, candidates=2000, refine=20) for index in (whole, reference)
        )
        np.testing.assert_allclose(result.scores, expected.scores, atol=2e-6)
        assert (result.ids == expected.ids).mean() > 0.98
        unit = normalize_rows(held_out).astype(np.float64)
        for row, query in enumerate(unit):
            assert set(result.ids[row].tolist()) <= set(by_codes.ids[row].tolist())
            exact = whole.reconstruct(by_codes.ids[row]) @ query
            # The engine rounds queries to bytes for residual codes.
            np.testing.assert_allclose(result.scores[row], np.sort(exact)[::-1][:10], atol=1e-3)
        why = whole.explain(held_out[0], result.ids[0].tolist()[0])
        assert why.score == pytest.approx(result.scores[0, 0], abs=1e-3)
        assert why.contributions.sum() + why.mean + why.residual == pytest.approx(why.score, abs=1e-6)
        assert abs(why.residual) > 1e-3

    def test_rescore_gives_the_best_of_what_was_found(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        found = reference.search(held_out, 40, mode="sparse").ids
        # Repeats, empty places and unknown ids.
        given = [[*row[:3], -1, *row, 10**12] for row in found[:-1].tolist()] + [[]]
        result = whole.rescore(held_out, given, 10, refine=0)
        exact = term_scores(reference, held_out)
        for row, ids in enumerate(found[:-1]):
            best = -np.sort(-exact[row, ids])[:10]
            np.testing.assert_allclose(result.scores[row], best, atol=2e-6)
            np.testing.assert_allclose(exact[row, result.ids[row]], best, atol=2e-6)
        assert result.ids[-1].tolist() == [-1] * 10
        assert np.isneginf(result.scores[-1]).all()
        with pytest.raises(DimensionError, match="a row for each of 20 queries, got 19 rows"):
            whole.rescore(held_out, given[:-1])
        with pytest.raises(InputError, match="the ids of this index are integers, those to score hold '7'"):
            whole.rescore(held_out[:1], [["7"]])

    def test_rescore_ends_with_the_last_stage(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        found = reference.search(held_out, 40, mode="sparse").ids
        result = whole.rescore(held_out, found, 10)
        unit = normalize_rows(held_out).astype(np.float64)
        for row, ids in enumerate(found):
            exact = np.sort(whole.documents.vectors(ids, whole.model) @ unit[row])[::-1][:10]
            np.testing.assert_allclose(result.scores[row], exact, atol=2e-5)

    @pytest.mark.parametrize("candidates", [30, 1000])
    def test_sparse_gives_the_best_sums_where_it_is_certified(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray, candidates: int
    ) -> None:
        result = whole.search(held_out, 10, mode="sparse", query_nnz=32, candidates=candidates)
        assert_certified_best(result, term_scores(reference, held_out, 32), 10, tolerance=self.tolerance)
        if candidates == 1000:
            assert certified(result).all()

    def test_symmetric_scoring_compares_codes(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        result = whole.search(held_out, 10, mode="sparse", scoring="symmetric")
        exact = term_scores(reference, held_out, scoring="symmetric")
        assert certified(result).any()
        assert_certified_best(result, exact, 10, tolerance=self.tolerance)

    def test_codes_and_explanations(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        ids = [7, 3, 3999, 3]
        codes, expected = whole.codes(ids), reference.codes(ids)
        np.testing.assert_array_equal(codes.to_dense(), expected.to_dense())
        np.testing.assert_array_equal(whole.reconstruct(ids), reference.reconstruct(ids))
        why = whole.explain(held_out[0], 7)
        by_code = why.score - why.residual
        assert by_code == pytest.approx(term_scores(reference, held_out[:1])[0, 7], abs=2e-6)
        assert why.contributions.sum() + why.mean == pytest.approx(by_code, abs=1e-6)
        assert len(whole) == whole.stats().vectors == 4000

    def test_who_holds_a_latent(self, small: Index, held_out: FloatArray) -> None:
        small.remove([1003])
        ids = small.ids
        dense = small.codes(ids).to_dense()
        latent = int(np.abs(np.sign(dense)).sum(axis=0).argmax())
        values = dense[:, latent]
        np.testing.assert_array_equal(small.holding(latent), values != 0)
        np.testing.assert_array_equal(small.holding(latent, sign="+"), values > 0)
        np.testing.assert_array_equal(small.holding(latent, sign="-", at_least=0.1), values <= -0.1)
        wanted = ids[small.holding(latent)]
        found = small.search(held_out[:3], 300, filter=wanted, query_nnz=512)
        assert set(found.ids[found.scores > -np.inf].tolist()) <= set(wanted.tolist())

    def test_names_of_latents(self, small: Index, held_out: FloatArray) -> None:
        assert small.explain(held_out[0], 1000).names == ()
        made = small.label_latents(["one" if number % 2 else "two" for number in range(len(small))])
        assert set(made.values()) <= {"one", "two"}
        code = small.codes([1000])
        small.labels = {f"{code.latents[0, 0]}{'+' if code.values[0, 0] > 0 else '-'}": "three"}
        why = small.explain(held_out[0], 1000)
        assert [why.names[i] for i in np.flatnonzero(why.latents == code.latents[0, 0])] == ["three"]
        assert why.names.count("") == len(why.names) - 1

    def test_a_filter_of_ids(self, whole: Index, reference: CompressedIndex, held_out: FloatArray) -> None:
        allowed = np.arange(0, 4000, 13)
        result = whole.search(held_out, 5, filter=allowed, query_nnz=reference.model.n_latents, refine=0)
        scores = np.full((len(held_out), 4000), -np.inf)
        scores[:, allowed] = term_scores(reference, held_out)[:, allowed]
        assert certified(result).all()
        assert_certified_best(result, scores, 5, tolerance=2e-6)

    def test_filters_are_of_the_kinds_that_documents_declare(
        self, whole: Index, held_out: FloatArray
    ) -> None:
        allowed = np.arange(0, 4000, 13)
        mask = np.isin(np.arange(4000), allowed)
        assert "ids" in whole.documents.filters
        if "mask" in whole.documents.filters:
            found, expected = (whole.search(held_out, 5, filter=wanted) for wanted in (mask, allowed))
            np.testing.assert_array_equal(found.ids, expected.ids)
        else:
            with pytest.raises(InputError, match="mask"):
                whole.search(held_out, 5, filter=mask)
        if "expression" not in whole.documents.filters:
            with pytest.raises(InputError, match="expression"):
                whole.search(held_out, 5, filter="price < 10")

    def test_fewer_documents_than_k_are_padded(
        self, small: Index, named: Index, held_out: FloatArray
    ) -> None:
        result = small.search(held_out[:3], 500, filter=[1001, 1005], query_nnz=512)
        assert result.scores.shape == result.ids.shape == (3, 500)
        for ids, scores in zip(result.ids, result.scores, strict=True):
            found = int(np.isfinite(scores).sum())
            assert found <= 2
            assert (ids[found:] == -1).all()
            assert set(ids[:found]) <= {1001, 1005}
            assert (scores[found:] == -np.inf).all()
        assert set(named.search(held_out[:3], 500).ids[:, -1]) == {None}

    def test_added_vectors_are_found_and_removed_ones_are_not(
        self, small: Index, embeddings: FloatArray, held_out: FloatArray
    ) -> None:
        small.add(embeddings[300:310], ids=np.arange(10))
        assert len(small) == 310
        assert small.search(embeddings[300:310], 1).ids[:, 0].tolist() == list(range(10))
        small.remove([3, 1005])
        assert len(small) == 308
        assert not np.isin(small.search(held_out, 300, candidates=310).ids, [3, 1005]).any()
        with pytest.raises(UnknownIdError, match="unknown id 3 "):
            small.codes([4, 3])
        small.add(embeddings[303:304], ids=[3])
        assert small.search(embeddings[303], 1).ids.tolist() == [[3]]

    def test_strings_as_ids(self, named: Index, embeddings: FloatArray) -> None:
        assert named.search(embeddings[:200], 1).ids[:, 0].tolist() == names(200)
        assert named.search(embeddings[:1], 5, filter=names(3)).ids[0, 0] == names(1)[0]
        named.add(embeddings[200:202], ids=["a", "b"])
        named.remove(names(2))
        assert len(named) == 200
        assert named.search(embeddings[:2], 200).ids.tolist().count(names(1)[0]) == 0
        with pytest.raises(InputError, match="the ids of this index are strings, the new ones are integers"):
            named.add(embeddings[:1], ids=[5])
        with pytest.raises(UnknownIdError, match="unknown id 5"):
            named.remove([5])

    def test_upsert_replaces(self, small: Index, embeddings: FloatArray) -> None:
        small.upsert(embeddings[300:302], ids=[1000, 5])
        assert len(small) == 301
        assert small.search(embeddings[300:302], 1).ids[:, 0].tolist() == [1000, 5]
        if self.residual_bits:
            vectors = small.documents.vectors(np.array([1000, 5]), small.model)
            assert (np.einsum("nd,nd->n", vectors, normalize_rows(embeddings[300:302])) > 0.97).all()

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
    def test_bad_ids_change_nothing(
        self, whole: Index, embeddings: FloatArray, ids: list[Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            whole.add(embeddings[300:302], ids=ids)
        assert len(whole) == 4000

    def test_a_bad_row_changes_nothing(self, whole: Index, embeddings: FloatArray) -> None:
        rows = embeddings[300:303].copy()
        rows[2, 5] = np.nan
        with pytest.raises(InputError, match="row 2 holds NaN"):
            whole.add(rows, ids=[5001, 5002, 5003])
        with pytest.raises(DimensionError, match="dimension 10, expected 384"):
            whole.add(embeddings[:1, :10], ids=[5001])
        assert len(whole) == 4000

    def test_bad_removals_change_nothing(self, whole: Index) -> None:
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
    def test_bad_options(
        self, whole: Index, held_out: FloatArray, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            whole.search(held_out, **options)

    def test_bad_queries(self, whole: Index, held_out: FloatArray) -> None:
        with pytest.raises(DimensionError, match="dimension 10, expected 384"):
            whole.search(held_out[:, :10])
        with pytest.raises(InputError, match="queries row 0 is zero"):
            whole.search(np.zeros((1, 384), dtype=np.float32))
        with pytest.raises(DimensionError, match="one query, got 2"):
            whole.explain(held_out[:2], 1)

    def test_inner_products(
        self,
        opened: Open,
        reference_uncentred_model: CompresSAE,
        embeddings: FloatArray,
        held_out: FloatArray,
    ) -> None:
        metric: Metric = "inner_product"
        lengths = np.linspace(0.5, 3, 300, dtype=np.float32)[:, None]
        embedded = self.built_of(embeddings[:300] * lengths, model=reference_uncentred_model, metric=metric)
        index = opened(embedded)
        assert index.metric == metric
        expected = embedded.search(held_out * 2, 5, mode="dense")
        np.testing.assert_allclose(
            index.search(held_out * 2, 5, query_nnz=512).scores, expected.scores, rtol=1e-5
        )
        index.add(embeddings[300:301] * 5, ids=[5000])
        # The reconstruction has the norm of the vector, up to the rounding of the embedded index.
        assert np.linalg.norm(index.reconstruct([5000])) == pytest.approx(5, rel=2e-2)

    def test_no_queries_and_no_rows(self, small: Index, named: Index, embeddings: FloatArray) -> None:
        nothing: Any
        for nothing in (embeddings[:0], [], np.empty((0, 0))):
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
            small.upsert(embeddings[:0], [1])
        with pytest.raises(InputError, match="must not be empty"):
            small.explain(embeddings[:0], 1000)

    def test_candidates_below_k_are_refused(self, small: Index, held_out: FloatArray) -> None:
        with pytest.raises(InputError, match="candidates must be at least k = 10, got 5"):
            small.search(held_out[:1], 10, candidates=5)
        assert small.search(held_out[:1], 10, candidates=10).ids.shape == (1, 10)
        assert small.search(held_out[:1], 1100).ids.shape == (1, 1100)

    def test_neighbours_of_stored_documents(self, whole: Index, reference: CompressedIndex) -> None:
        ids = [7, 3, 3999, 3]
        exact = term_scores(reference, reference.reconstruct(ids))
        exact[np.arange(4), ids] = -np.inf
        n_latents = reference.model.n_latents
        result = whole.neighbours(ids, 10, candidates=2000, query_nnz=n_latents, refine=0)
        assert_certified_best(result, exact, 10, tolerance=4e-6)
        assert certified(result).all()

    def test_neighbours_of_strings_and_of_few_documents(self, named: Index) -> None:
        ids = names(200)
        result = named.neighbours(ids[:3], 250, candidates=250)
        assert result.ids.shape == result.scores.shape == (3, 250)
        for i, found in enumerate(result.ids.tolist()):
            assert set(found) <= {*ids[:i], *ids[i + 1 :], None}
        assert (result.scores[:, 199:] == -np.inf).all()
        among = named.neighbours(ids[:1], 5, filter=ids[:3]).ids[0].tolist()
        assert set(among) <= {ids[1], ids[2], None}
        assert named.neighbours([], 4).ids.shape == (0, 4)

    def test_bad_neighbours(self, whole: Index, named: Index) -> None:
        with pytest.raises(UnknownIdError, match="unknown id 5000 "):
            whole.neighbours([1000, 5000])
        with pytest.raises(UnknownIdError, match="unknown id 'a' "):
            whole.neighbours(["a"])
        with pytest.raises(UnknownIdError, match="unknown id 5 "):
            named.neighbours([5])
        with pytest.raises(InputError, match=r"pass a list, for one id \[5\]"):
            whole.neighbours(5)
        with pytest.raises(InputError, match="k must be at least 1, got 0"):
            whole.neighbours([5], 0)
        with pytest.raises(InputError, match="candidates must be at least k = 10, got 9"):
            whole.neighbours([5], 10, candidates=9)

    def test_a_neighbour_graph_holds_the_neighbours_of_all(self, small: Index) -> None:
        small.remove([1007, 1200])
        graph = small.neighbour_graph(5, candidates=50, progress=False)
        ids, result = small.ids, small.neighbours(small.ids, 5, candidates=50)
        assert graph.shape == (298, 298)
        assert np.diff(graph.indptr).tolist() == np.isfinite(result.scores).sum(axis=1).tolist()
        np.testing.assert_array_equal(ids[graph.indices], result.ids[np.isfinite(result.scores)])
        np.testing.assert_array_equal(graph.data, result.scores[np.isfinite(result.scores)])
        assert (graph.diagonal() == 0).all()

    def test_range_search_gives_all_above_the_radius(
        self, whole: Index, reference: CompressedIndex, held_out: FloatArray
    ) -> None:
        queries = held_out[:5]
        exact = term_scores(reference, queries)
        many: dict[str, Any] = {"candidates": 2000, "query_nnz": reference.model.n_latents, "refine": 0}
        for radius in (float(np.quantile(exact, 0.97)), float(exact.max(axis=1).mean())):
            result = whole.range_search(queries, radius, **many)
            assert_in_range(result, exact, radius, tolerance=2e-6)
        allowed = np.arange(0, 4000, 13)
        exact[:, ~np.isin(np.arange(4000), allowed)] = -np.inf
        radius = float(np.quantile(exact[:, allowed], 0.8))
        result = whole.range_search(queries, radius, filter=allowed, **many)
        assert_in_range(result, exact, radius, tolerance=2e-6)

    def test_range_search_of_strings_and_of_nothing(
        self, small: Index, named: Index, embeddings: FloatArray
    ) -> None:
        for index, kind in ((small, np.int64), (named, object)):
            for n, radius in ((0, 0.5), (2, 2)):
                lims, scores, ids = index.range_search(embeddings[:n], radius)
                assert (lims.tolist(), len(scores), len(ids)) == ([0] * (n + 1), 0, 0)
                assert ids.dtype == kind
        lims, scores, ids = named.range_search(embeddings[:2], 0.5)
        assert [ids[lims[0]], ids[lims[1]]] == names(2)
        assert lims[-1] == len(scores) == len(ids)
        assert scores.min() > 0.5
        with pytest.raises(InputError, match="radius must be a number, got NaN"):
            small.range_search(embeddings[:1], np.nan)
        with pytest.raises(InputError, match="mode must be one of"):
            small.range_search(embeddings[:1], 0.5, mode="fast")
        with pytest.raises(DimensionError, match="dimension 10, expected 384"):
            small.range_search(embeddings[:1, :10], 0.5)

    def test_masked_ids_and_queries_are_refused(self, small: Index, held_out: FloatArray) -> None:
        masked = np.ma.masked_array([1000, 1001], [True, False])
        for act in (small.remove, small.codes, lambda ids: small.search(held_out[:1], filter=ids)):
            with pytest.raises(InputError, match="are masked"):
                act(masked)
        with pytest.raises(InputError, match="queries are masked"):
            small.search(np.ma.masked_array(held_out[:1]))
        assert len(small) == 300


def sampled_model(vectors: FloatArray, mean: FloatArray | None) -> CompresSAE:
    """A model whose atoms are some of the vectors: good enough to compare answers, without training."""
    rows = vectors[:: len(vectors) // 512][:512]
    atoms = normalize_rows(rows if mean is None else normalize_rows(rows) - mean)
    return CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(512, np.float32), atoms, 16, mean)


def assert_best(
    result: Any,
    exact: Float64,
    k: int,
    ids: npt.NDArray[Any] | None = None,
    *,
    allowed: Mask | None = None,
    tolerance: float | Float64 = 1e-5,
) -> None:
    """Checks that a result holds the k best documents of every query, best first.

    Each score is that of its document, and the one that exact search has in its place, up to the tolerance.
    Of equal scores, the document that is first in `ids` comes first. No document comes twice. Where there are
    fewer than k documents, the other places have score -inf and id -1, or None among strings.

    Args:
        result: scores and ids, (n_queries, k) each.
        exact: the scores of all documents, (n_queries, n); -inf for documents that must not be found.
        k: neighbours that were asked for.
        ids: (n,) those of the documents; their rows by default.
        allowed: (n,) documents that may be found; all by default.
        tolerance: how far a score may be off: one number, or any shape that broadcasts to `exact`.
    """
    scores, found = result[0], result[1]
    ids = np.arange(exact.shape[1]) if ids is None else ids
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    missing = None if ids.dtype == object else -1
    exact = exact if allowed is None else np.where(allowed, exact, -np.inf)
    tolerance = np.broadcast_to(tolerance, exact.shape)
    assert scores.shape == found.shape == (len(exact), k)
    for q, (wanted, within) in enumerate(zip(exact, tolerance, strict=True)):
        n_found = min(k, int(np.isfinite(wanted).sum()))
        assert (scores[q, n_found:] == -np.inf).all()
        assert found[q, n_found:].tolist() == [missing] * (k - n_found)
        assert set(found[q, :n_found].tolist()) <= row_of.keys()
        rows = np.array([row_of[id_] for id_ in found[q, :n_found].tolist()], dtype=np.int64)
        given = scores[q, :n_found].astype(np.float64)
        assert len(set(rows.tolist())) == n_found
        assert (np.abs(given - wanted[rows]) <= within[rows]).all()
        assert (np.abs(given - -np.sort(-wanted)[:n_found]) <= within.max(initial=0)).all()
        assert np.lexsort((rows, -given)).tolist() == list(range(n_found))


def assert_in_range(
    result: Any,
    exact: Float64,
    radius: float,
    ids: npt.NDArray[Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Checks that a range search gave every document that scores above the radius, best first.

    Args:
        result: lims (n_queries + 1,), and the scores and ids of the documents.
        exact: the scores of all documents, (n_queries, n); -inf for documents that must not be found.
        radius: the score that documents must exceed.
        ids: (n,) those of the documents; their rows by default.
        tolerance: how far a score may be off, so that a document so near the radius may be in or out.
    """
    lims, scores, found = result
    ids = np.arange(exact.shape[1]) if ids is None else ids
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    assert lims.shape == (len(exact) + 1,)
    assert lims[0] == 0
    assert scores.shape == found.shape == (lims[-1],)
    for wanted, begin, end in zip(exact, lims[:-1], lims[1:], strict=True):
        rows = np.array([row_of[id_] for id_ in found[begin:end].tolist()], dtype=np.int64)
        given = scores[begin:end].astype(np.float64)
        assert (given > np.float32(radius)).all()
        assert (np.abs(given - wanted[rows]) <= tolerance).all()
        assert np.lexsort((rows, -given)).tolist() == list(range(end - begin))
        assert len(set(rows.tolist())) == end - begin
        assert set(np.flatnonzero(wanted > radius + tolerance).tolist()) <= set(rows.tolist())


def certified(result: Any) -> Mask:
    """The answers that claim to be exact, (n_queries,): all of a result without certificates."""
    marks: Mask = np.ones(len(result.ids), dtype=bool)
    return marks if result.certified is None else result.certified


def assert_certified_best(result: Any, exact: Float64, k: int, **options: Any) -> None:
    """`assert_best` for the certified answers of a result."""
    claimed = certified(result)
    assert_best((result.scores[claimed], result.ids[claimed]), exact[claimed], k, **options)


def strongest_entries(u: npt.NDArray[Any], query_nnz: int) -> Float64:
    """The query_nnz entries of largest magnitude of each row, ties to the lower latent; zero elsewhere."""
    kept = np.argsort(-np.abs(u), axis=1, kind="stable")[:, :query_nnz]
    cut = np.zeros(u.shape)
    np.put_along_axis(cut, kept, np.take_along_axis(u, kept, axis=1).astype(np.float64), axis=1)
    return cut


def dense_codes(index: CompressedIndex) -> Float64:
    """The codes of all documents in the order of `index.ids`: (n, n_latents)."""
    codes: Float64 = index.codes(index.ids).to_dense().astype(np.float64)
    return codes


def query_codes(index: CompressedIndex, queries: FloatArray) -> Float64:
    """Codes of queries, as symmetric scoring encodes them: (n_queries, n_latents)."""
    model = index.model
    return model.fold(model.encode(queries, index.k, encoder=index.encoder)).to_dense().astype(np.float64)


def query_terms(
    index: CompressedIndex, queries: FloatArray, query_nnz: int | None = None, scoring: Scoring = "asymmetric"
) -> Float64:
    """The strongest entries of each query's projection, or of its code where scoring is symmetric.

    Projections are those of the model, in 16 bits; a test of their own bounds how far from exact they are.
    """
    u = index.model.project(queries) if scoring == "asymmetric" else query_codes(index, queries)
    return strongest_entries(u, query_nnz or u.shape[1])


def term_scores(
    index: CompressedIndex, queries: FloatArray, query_nnz: int | None = None, scoring: Scoring = "asymmetric"
) -> Float64:
    """Scores of all documents by the terms of queries and the index's metric: (n_queries, n).

    Args:
        index: its codes, model and metric.
        queries: (n_queries, d).
        query_nnz: how many terms of a query count; all by default.
        scoring: symmetric scores are those of cosine indexes only.
    """
    scores: Float64 = query_terms(index, queries, query_nnz, scoring) @ dense_codes(index).T
    if scoring == "symmetric":
        assert index.metric == "cosine"
        return scores
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    if index.model.mean is not None:
        scores += queries / lengths @ mean_of(index)[:, None]
    return scores * lengths if index.metric == "inner_product" else scores


def mean_of(index: CompressedIndex) -> Float64:
    """The mean of the index's model, which has one: (d,)."""
    assert index.model.mean is not None
    return index.model.mean.astype(np.float64)
