"""The stages of a search that back ends share, each against numpy."""

from __future__ import annotations

import numpy as np

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.search.queries import Asked, Settings
from compressae_index.search.stages import (
    Found,
    Refined,
    Stages,
    answered,
    code_scores,
    holds_best,
    strongest_terms,
)


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


def test_the_last_stage_scores_the_best_documents_again(built: CompressedIndex, queries: FloatArray) -> None:
    ids = np.array([[7, 3, 5, -1], [2, 1, 8, 4]])
    scores = np.array([[0.5, 0.9, 0.5, -np.inf], [0.1, 0.4, 0.3, 0.2]], dtype=np.float32)
    given: list[int] = []

    def by_id(asked: Asked, found: Found) -> FloatArray:  # noqa: ARG001
        given.append(found.scores.shape[1])
        return found.ids.astype(np.float32)

    stages = Stages(lambda _: Found(scores, ids, ids), (Refined(by_id),))

    def best(refine: int) -> list[list[int]]:
        asked = built.asked(queries[:2], 2, Settings(refine=0))
        asked.refine = refine
        result = answered(stages, asked, 2, are_strings=False)
        assert (result.scores == (result.ids if refine else -np.sort(-scores, axis=1)[:, :2])).all()
        found: list[list[int]] = result.ids.tolist()
        return found

    # Of two documents with the same score, the first in `ids` is among the best.
    assert best(2) == [[5, 3], [8, 1]]
    assert best(3) == [[7, 5], [8, 4]]
    assert best(9) == [[7, 5], [8, 4]]
    assert given == [2, 3, 4]
    assert best(0) == [[3, 5], [1, 8]]
    assert given == [2, 3, 4]
