"""SparseCodes: conversions give back what went in, bad codes are refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import assert_same_codes

from compressae_index import DimensionError, InputError, SparseCodes


@st.composite
def codes(draw: st.DrawFn) -> SparseCodes:
    n_latents = draw(st.integers(1, 300))
    k = draw(st.integers(1, min(n_latents, 12)))
    n = draw(st.integers(1, 8))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    latents = np.stack([np.sort(rng.permutation(n_latents)[:k]) for _ in range(n)]).astype(np.uint16)
    values = draw(hnp.arrays(np.float32, (n, k), elements=st.floats(-10, 10, width=32)))
    return SparseCodes(latents, values, n_latents)


@given(codes())
def test_csr_round_trip(given_codes: SparseCodes) -> None:
    assert_same_codes(SparseCodes.from_csr(given_codes.to_csr()), given_codes)


@given(codes())
def test_dict_rows_round_trip(given_codes: SparseCodes) -> None:
    assert_same_codes(SparseCodes.from_rows(given_codes.to_rows(), given_codes.n_latents), given_codes)


@given(codes())
def test_dense_round_trip_keeps_every_value(given_codes: SparseCodes) -> None:
    dense = given_codes.to_dense()
    again = SparseCodes.from_dense(dense, k=given_codes.k)
    np.testing.assert_array_equal(again.to_dense(), dense)
    np.testing.assert_array_equal(given_codes.to_csr().toarray(), dense)


@given(codes(), st.integers(0, 5))
def test_short_rows_are_filled_with_zeros(given_codes: SparseCodes, more: int) -> None:
    k = min(given_codes.k + more, given_codes.n_latents)
    wider = SparseCodes.from_csr(given_codes.to_csr(), k=k)
    assert wider.k == k
    np.testing.assert_array_equal(wider.to_dense(), given_codes.to_dense())


def test_unsorted_csr_is_sorted() -> None:
    matrix = sp.csr_array((np.array([1.0, -2.0]), np.array([5, 2]), np.array([0, 2])), shape=(1, 8))
    result = SparseCodes.from_csr(matrix)
    assert result.latents.tolist() == [[2, 5]]
    assert result.values.tolist() == [[-2.0, 1.0]]


@pytest.mark.parametrize(
    ("latents", "values", "n_latents", "message"),
    [
        ([[0, 1]], [[1.0]], 4, r"\(1, 2\) and \(1, 1\)"),
        ([[1, 1]], [[1.0, 2.0]], 4, "strictly increasing"),
        ([[2, 1]], [[1.0, 2.0]], 4, "strictly increasing"),
        ([[1, 4]], [[1.0, 2.0]], 4, "latent 4 is outside of n_latents = 4"),
        ([[0, 1]], [[1.0, np.nan]], 4, "finite"),
        ([[0, 1]], [[1.0, np.inf]], 4, "finite"),
        ([[0, 1, 2]], [[1.0, 1.0, 1.0]], 2, "k must be at most n_latents = 2, got 3"),
        ([[0]], [[1.0]], 70000, "at most 65536, got 70000"),
        ([[]], [[]], 4, "k must be at least 1"),
    ],
)
def test_bad_codes(latents: object, values: object, n_latents: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseCodes(np.array(latents, dtype=np.uint16), np.array(values, dtype=np.float32), n_latents)


def test_wrong_dtypes() -> None:
    with pytest.raises(InputError, match="uint16 latents"):
        SparseCodes(np.array([[1]], dtype=np.int64), np.array([[1]], dtype=np.float32), 4)


def test_bad_csr() -> None:
    with pytest.raises(InputError, match="row 0 holds 3 entries, more than k = 2"):
        SparseCodes.from_csr(sp.csr_array(np.ones((1, 3))), k=2)
    with pytest.raises(InputError, match="expected a scipy CSR matrix, got coo_array"):
        SparseCodes.from_csr(sp.coo_array(np.ones((1, 3))))  # type: ignore[arg-type]
    twice = sp.csr_array((np.ones(2), np.array([1, 1]), np.array([0, 2])), shape=(1, 4))
    with pytest.raises(InputError, match="strictly increasing"):
        SparseCodes.from_csr(twice)
    with pytest.raises(InputError, match="latent 9 is outside of n_latents = 4"):
        SparseCodes.from_rows([{9: 1.0}], 4)
    with pytest.raises(DimensionError, match="shape"):
        SparseCodes.from_dense(np.ones(3))


def test_joining_needs_equal_shapes() -> None:
    a = SparseCodes.from_dense(np.eye(3, 8))
    b = SparseCodes.from_dense(np.eye(3, 9))
    assert len(SparseCodes.concatenate([a, a])) == 6
    with pytest.raises(DimensionError, match="agree"):
        SparseCodes.concatenate([a, b])
