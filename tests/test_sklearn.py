"""The transformer for scikit-learn: its own checks, and codes that are those of the model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from compressae_index import CompresSAE, InputError, TrainConfig
from compressae_index.arrays import FloatArray
from compressae_index.connectors.sklearn import CompresSAETransformer

BRIEF = TrainConfig(refine_rounds=3, steps=2, batch_size=64)


CHECKED = [
    CompresSAETransformer(),
    CompresSAETransformer(encoder="topk", config=TrainConfig(refine_rounds=3, steps=0)),
]


@parametrize_with_checks(CHECKED)  # type: ignore[untyped-decorator]
def test_scikit_learns_checks_pass(estimator: CompresSAETransformer, check: Callable[[Any], None]) -> None:
    """All of them. With the steps of "topk", training may refuse the 20 rows of some: it diverges."""
    check(estimator)


@pytest.fixture(scope="module")
def fitted(model: CompresSAE, vectors: FloatArray) -> CompresSAETransformer:
    return CompresSAETransformer(model=model, k=8).fit(vectors[:100])


@pytest.mark.parametrize("encoder", ["pursuit", "topk"])
def test_codes_are_those_of_the_model(model: CompresSAE, vectors: FloatArray, encoder: Any) -> None:
    coder = CompresSAETransformer(model=model, k=8, encoder=encoder)
    codes = coder.fit_transform(vectors[:100])
    assert isinstance(codes, sp.csr_array)
    assert [each.dtype.name for each in (codes, codes.indices, codes.indptr)] == ["float32", "int32", "int32"]
    expected = model.encode(vectors[:100], 8, encoder=encoder)
    np.testing.assert_array_equal(codes.toarray(), expected.to_dense())
    assert codes.nnz == np.count_nonzero(expected.values)
    np.testing.assert_allclose(coder.inverse_transform(codes), model.decode(expected), atol=1e-6)
    np.testing.assert_allclose(coder.inverse_transform(codes.toarray()), model.decode(expected), atol=1e-6)


def test_fit_trains_what_train_would(vectors: FloatArray) -> None:
    from compressae_index import train

    coder = CompresSAETransformer(64, k=4, config=TrainConfig(refine_rounds=3, steps=0)).fit(vectors[:500])
    assert (coder.model_.n_latents, coder.model_.k) == (64, 4)
    expected = train(vectors[:500], TrainConfig(k=4, n_latents=64, refine_rounds=3, steps=0)).model
    assert coder.model_.fingerprint == expected.fingerprint


def test_rows_of_zeros_have_codes_without_nonzeros(vectors: FloatArray) -> None:
    rows = vectors[:200].copy()
    rows[[0, 7, 199]] = 0
    coder = CompresSAETransformer(config=BRIEF)
    codes = coder.fit_transform(rows)
    others = np.delete(rows, [0, 7, 199], axis=0)
    assert np.flatnonzero(np.diff(codes.indptr) == 0).tolist() == [0, 7, 199]
    again = CompresSAETransformer(config=BRIEF).fit(others)
    assert again.model_.fingerprint == coder.model_.fingerprint
    np.testing.assert_array_equal(
        np.delete(codes.toarray(), [0, 7, 199], axis=0), again.transform(others).toarray()
    )
    assert coder.transform(np.zeros((2, rows.shape[1]))).nnz == 0
    with pytest.raises(InputError, match="all rows are zeros"):
        CompresSAETransformer(config=BRIEF).fit(np.zeros((3, 4)))


def test_clones_and_pickles(fitted: CompresSAETransformer, vectors: FloatArray) -> None:
    expected = fitted.transform(vectors[:5]).toarray()
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(fitted)).transform(vectors[:5]).toarray(), expected
    )
    cloned = clone(fitted)
    with pytest.raises(NotFittedError):
        cloned.transform(vectors[:5])
    np.testing.assert_array_equal(cloned.fit(vectors[:5]).transform(vectors[:5]).toarray(), expected)


def test_a_pipeline_learns_from_codes(vectors: FloatArray) -> None:
    """Labels that the sign of one direction gives, found again from the codes; k and all is searched."""
    labels = vectors @ vectors[5] > np.median(vectors @ vectors[5])
    coder = CompresSAETransformer(128, config=TrainConfig(refine_rounds=10, steps=0))
    pipeline = make_pipeline(coder, LogisticRegression(C=100, max_iter=1000))
    search = GridSearchCV(pipeline, {"compressaetransformer__k": [2, 16]}, cv=2)
    search.fit(vectors[:3000], labels[:3000])
    assert search.best_params_ == {"compressaetransformer__k": 16}
    assert search.score(vectors[3000:], labels[3000:]) > 0.75


def test_names_and_set_output(fitted: CompresSAETransformer, vectors: FloatArray) -> None:
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.model_.n_latents
    assert names[12] == "compressaetransformer12"
    pandas = pytest.importorskip("pandas")
    framed = clone(fitted).fit(pandas.DataFrame(vectors[:20]).add_prefix("x"))
    assert framed.feature_names_in_[0] == "x0"
    assert framed.n_features_in_ == vectors.shape[1]
    with pytest.raises(ValueError, match="outputs a scipy sparse matrix"):
        clone(fitted).fit(vectors[:20]).set_output(transform="pandas").transform(vectors[:20])


def test_what_fit_refuses(fitted: CompresSAETransformer, model: CompresSAE, vectors: FloatArray) -> None:
    rows = vectors[:100]
    for settings, message in (
        ({"encoder": "omp"}, "encoder must be one of"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 16, "config": TrainConfig(k=8)}, "k is 16, but config has k = 8"),
        ({"model": model, "n_latents": 7}, "n_latents is 7, but the model has 512"),
        ({"model": "items.model"}, "model must be a CompresSAE, got str"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"model": model.fingerprint}, "CompresSAE.load reads one"),
    ):
        with pytest.raises(InputError, match=message):
            CompresSAETransformer(**settings).fit(rows)
    with pytest.raises(InputError, match=f"dimension 7, expected {model.dim}"):
        CompresSAETransformer(model=model).fit(np.ones((3, 7)))
    with pytest.raises(ValueError, match="X has 7 features, but CompresSAETransformer is expecting"):
        fitted.transform(np.ones((3, 7)))
    with pytest.raises(InputError, match="codes have 3 columns, the model has 512 latents"):
        fitted.inverse_transform(np.ones((2, 3)))
