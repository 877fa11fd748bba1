"""Residual codes: levels, bytes, scores against float64, and that they stay with their documents."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fuzzing import fit_checksums
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same, nearest, overlap

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError
from compressae_index._engine import Residuals, residual_row_bytes, residual_rows, residual_vectors
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.residual import RESIDUAL_BITS
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.embedded.codecs import Aligned, WithResiduals
from compressae_index.testing import Float64, sampled_model

BITS = RESIDUAL_BITS[1:]
DIMS = (1, 15, 16, 17, 50, 384)
each_bits = pytest.mark.parametrize("bits", BITS)
# The largest level of each number of bits is this many times the unit that all are rounded to.
LARGEST_LEVEL = 127


@cache
def lloyd_max(bits: int) -> tuple[Float64, float]:
    """The positive levels of least squared error for a normal distribution, and that error.

    By Lloyd's (1982) iteration: bounds half way between levels, levels at the means between bounds.
    """
    levels: Float64 = np.linspace(0.1, 3, 2 ** (bits - 1))
    while True:
        bounds = np.array([0, *(levels[1:] + levels[:-1]) / 2, math.inf])
        shares = -np.diff([math.erfc(x / math.sqrt(2)) / 2 for x in bounds])
        means = -np.diff([math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in bounds]) / shares
        if np.abs(means - levels).max() < 1e-10:
            return means, 1 - 2 * float((shares * means**2).sum())
        levels = means


def levels_of(bits: int) -> Float64:
    """The level of every number, as multiples of a unit, which is the second."""
    positive = lloyd_max(bits)[0]
    rounded = np.round(positive * LARGEST_LEVEL / positive[-1])
    levels: Float64 = np.concatenate([-rounded[::-1], rounded]) * positive[-1] / LARGEST_LEVEL
    return levels


def packed_numbers(numbers: npt.NDArray[np.int64], scales: FloatArray, bits: int) -> npt.NDArray[np.uint8]:
    """Rows (n, row_bytes) of numbers (n, dim), written as csrc/codes/residuals.hpp describes them."""
    n, dim = numbers.shape
    high = {1: 1, 2: 2, 3: 2, 4: 4, 6: 4}[bits]
    rows = [scales.astype(np.float16).view(np.uint8).reshape(n, 2)]
    for width, fields in ((high, numbers >> (bits - high)), (bits - high, numbers)):
        if width == 0:
            continue
        groups = np.zeros((n, -(-dim // 16), 16), np.int64)
        groups.reshape(n, -1)[:, :dim] = fields % (1 << width)
        if width == 1:
            plane = np.packbits(groups.astype(np.uint8), axis=2, bitorder="little")
        else:
            shifts = width * np.arange(8 // width)
            plane = (groups.reshape(*groups.shape[:2], -1, 2 * width) << shifts[:, None]).sum(axis=2)
        rows.append(plane.reshape(n, -1).astype(np.uint8))
    return np.concatenate(rows, axis=1)


def numbers_in(rows: npt.NDArray[np.uint8], dim: int, bits: int) -> npt.NDArray[np.int64]:
    """The numbers of rows, by a bit at a time: (n, dim)."""
    high, n_groups = {1: 1, 2: 2, 3: 2, 4: 4, 6: 4}[bits], -(-dim // 16)
    numbers = np.zeros((len(rows), dim), np.int64)
    begin = 2
    for width, shift in ((high, bits - high), (bits - high, 0)):
        for i, bit in np.ndindex(dim if width else 0, width):
            group, lane = divmod(i, 16)
            byte, at = divmod(lane, 8) if width == 1 else (lane % (2 * width), lane // (2 * width) * width)
            column = rows[:, begin + 2 * width * group + byte].astype(np.int64)
            numbers[:, i] |= (column >> (at + bit) & 1) << (shift + bit)
        begin += 2 * width * n_groups
    return numbers


def decoded(rows: npt.NDArray[np.uint8], dim: int, bits: int) -> Float64:
    """The residuals that rows stand for, in float64: (n, dim)."""
    scales = np.ascontiguousarray(rows[:, :2]).view(np.float16).astype(np.float64)
    return scales * levels_of(bits)[numbers_in(rows, dim, bits)] / math.sqrt(dim)


def encoded(targets: FloatArray, bits: int, sums: FloatArray | None = None) -> npt.NDArray[np.uint8]:
    """Residual rows of targets (n, dim), beside codes of one nonzero that stand for `sums`, or for zeros."""
    sums = np.zeros_like(targets) if sums is None else sums
    latents = np.arange(len(targets), dtype=np.uint16)[:, None]
    return residual_rows(targets, latents, np.ones((len(targets), 1), np.float32), sums, bits, 1)


# Levels and rows


@each_bits
def test_levels_are_those_of_lloyd_and_max(bits: int) -> None:
    numbers = np.arange(2**bits)[None]
    rows = packed_numbers(numbers, np.ones(1, np.float32), bits)
    levels = residual_vectors(rows, 2**bits, bits, 1)[0] * math.sqrt(2**bits)
    np.testing.assert_allclose(levels, levels_of(bits), rtol=1e-6)
    # Half a unit is what rounding to bytes may change.
    optimal = lloyd_max(bits)[0]
    np.testing.assert_allclose(
        levels[2 ** (bits - 1) :], optimal, atol=optimal[-1] / LARGEST_LEVEL / 2 + 1e-6
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.sampled_from(DIMS) | st.integers(1, 200), st.integers(0, 2**32))
def test_rows_are_laid_out_as_described(bits: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 2**bits, (3, dim))
    scales = np.array([0, 1.5, 6e4], np.float32)
    rows = packed_numbers(numbers, scales, bits)
    assert rows.shape == (3, residual_row_bytes(dim, bits))
    assert rows.shape[1] == 2 + 2 * bits * -(-dim // 16)
    np.testing.assert_array_equal(numbers_in(rows, dim, bits), numbers)
    expected = (
        scales.astype(np.float16).astype(np.float64)[:, None] * levels_of(bits)[numbers] / math.sqrt(dim)
    )
    np.testing.assert_allclose(residual_vectors(rows, dim, bits, 1), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.sampled_from(DIMS), st.integers(0, 2**32), st.sampled_from([1e-3, 1, 1e3]))
def test_each_entry_gets_the_nearest_level(bits: int, dim: int, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    targets = (size * rng.standard_normal((4, dim))).astype(np.float32)
    sums = (size * rng.standard_normal((4, dim))).astype(np.float32)
    residuals = (targets - sums).astype(np.float64)
    rows = encoded(targets, bits, sums)
    levels = levels_of(bits)[numbers_in(rows, dim, bits)]
    bounds = (levels_of(bits)[1:] + levels_of(bits)[:-1]) / 2
    cosines = []
    for step in (0.88, 0.94, 1.0, 1.06, 1.12):
        unit = np.linalg.norm(residuals, axis=1, keepdims=True) / math.sqrt(dim) * step
        cosines.append(cosines_of(levels_of(bits)[np.searchsorted(bounds, residuals / unit)], residuals))
    np.testing.assert_allclose(cosines_of(levels, residuals), np.max(cosines, axis=0), atol=1e-5)


def cosines_of(a: Float64, b: Float64) -> Float64:
    products: Float64 = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return products


@each_bits
def test_the_error_of_normal_rows_is_that_of_theory(bits: int) -> None:
    targets = np.random.default_rng(bits).standard_normal((500, 384)).astype(np.float32)
    left = (
        1 - (cosines_of(decoded(encoded(targets, bits), 384, bits), targets.astype(np.float64)) ** 2).mean()
    )
    # A step of a row's own does a little better than one for all.
    assert 0.92 * lloyd_max(bits)[1] < left < 1.01 * lloyd_max(bits)[1]


@each_bits
def test_nothing_left_out_is_a_row_of_zeros(bits: int) -> None:
    targets = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    rows = encoded(targets, bits, targets)
    assert not rows.any()
    assert not residual_vectors(rows, 50, bits, 1).any()


def test_long_and_short_rows_keep_finite_scales() -> None:
    rng = np.random.default_rng(0)
    for norm in (2.0**-10, 2.0**12):
        targets = (norm * normalize_rows(rng.standard_normal((20, 384)).astype(np.float32))).astype(
            np.float32
        )
        for bits in BITS[1:]:
            found = np.linalg.norm(decoded(encoded(targets, bits), 384, bits), axis=1)
            np.testing.assert_allclose(found, norm, rtol=1e-3)


# Scores


def residuals_of(index: CompressedIndex) -> Float64:
    """The residual of every row of an index's back end, in float64."""
    codec, rows = index.documents.backend.codec, np.arange(len(index.documents.backend))
    assert isinstance(codec, WithResiduals)
    arrays = index.documents.backend.forward_rows(rows)
    return decoded(arrays["residuals"], codec.dim, codec.residual_bits)


def exact_scores(index: CompressedIndex, queries: FloatArray) -> tuple[Float64, Float64]:
    """Scores of all rows, (n_queries, n), and how far off they may be: the engine rounds queries to bytes."""
    wide, model, residuals = queries.astype(np.float64), index.model, residuals_of(index)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    codes = index.documents.backend.codes(np.arange(len(residuals))).to_dense().astype(np.float64)
    mean = 0.0 if model.mean is None else model.mean.astype(np.float64)
    vectors = mean + codes @ model.decoder_w.astype(np.float64) + residuals
    step = np.abs(unit).max(axis=1, keepdims=True) / 127
    off = step / 2 * np.abs(residuals).sum(axis=1) + 3e-5 * (1 + np.linalg.norm(vectors, axis=1))
    factors = 1.0 if index.metric == "cosine" else np.linalg.norm(wide, axis=1, keepdims=True) * index.unit
    return factors * (unit @ vectors.T), factors * off


def assert_scored(index: CompressedIndex, queries: FloatArray, **options: Any) -> None:
    """Checks the scores of a search against `exact_scores`, and their order."""
    found = index.search(queries, len(index), refine=len(index), num_threads=1, **options)
    exact, off = exact_scores(index, queries)
    rows = index.documents.rows_of(found.ids.ravel()).reshape(found.ids.shape)
    error = np.abs(found.scores - np.take_along_axis(exact, rows, axis=1))
    assert (error <= np.take_along_axis(off, rows, axis=1)).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (np.sort(found.ids, axis=1) == np.sort(index.ids)).all()


@pytest.fixture(scope="module")
def plain_model(vectors: FloatArray) -> CompresSAE:
    """A model without a mean, of atoms that are embeddings."""
    return sampled_model(vectors, None)


@pytest.fixture(scope="module")
def mean_model(vectors: FloatArray) -> CompresSAE:
    """The same with a mean."""
    return sampled_model(vectors, normalize_rows(vectors).mean(axis=0))


def build(embeddings: FloatArray, model: CompresSAE, ids: Any = None, **options: Any) -> CompressedIndex:
    return CompressedIndex.build(embeddings, ids, model=model, progress=False, num_threads=1, **options)


@each_bits
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "no mean"])
def test_scores_are_those_of_codes_and_residuals(
    bits: int,
    mean: bool,
    mean_model: CompresSAE,
    plain_model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
) -> None:
    index = build(vectors[:300], mean_model if mean else plain_model, residual_bits=bits)
    assert_scored(index, queries[:5], mode="dense")
    assert_scored(index, queries[:5], candidates=300, query_nnz=512)


@pytest.mark.parametrize("options", [{"encoder": "topk"}, {"forward": "aligned"}, {"k": 1}, {"postings": 3}])
def test_scores_of_other_codes(
    options: dict[str, Any], mean_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    assert_scored(build(vectors[:200], mean_model, residual_bits=3, **options), queries[:5], mode="dense")


@pytest.mark.parametrize("dim", DIMS[1:5])
def test_scores_of_any_dimension(dim: int, vectors: FloatArray, queries: FloatArray) -> None:
    rows = np.ascontiguousarray(vectors[:, :dim])
    for bits in BITS:
        index = build(rows[:100], sampled_model(rows, None), k=4, residual_bits=bits)
        assert_scored(index, np.ascontiguousarray(queries[:4, :dim]), mode="dense")


@each_bits
def test_inner_products_of_very_different_norms(
    bits: int, plain_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    rng = np.random.default_rng(bits)
    scales = np.float32(2) ** rng.uniform(-7, 9, (300, 1)).astype(np.float32)
    asked = queries[:5] * np.array([[1e-3], [1], [7], [1e3], [1e6]], np.float32)
    index = build(vectors[:300] * scales * 100, plain_model, metric="inner_product", residual_bits=bits)
    assert index.unit >= 32
    assert_scored(index, asked, mode="dense")
    held = np.linalg.norm(index.reconstruct(index.ids), axis=1)
    np.testing.assert_allclose(held, np.linalg.norm(vectors[:300] * scales * 100, axis=1), rtol=0.1)


def test_symmetric_scoring_compares_reconstructions(
    mean_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = build(vectors[:200], mean_model, residual_bits=4)
    found = index.search(queries[:5], 200, mode="dense", scoring="symmetric", refine=200)
    asked = mean_model.decode(mean_model.fold(mean_model.encode(queries[:5], index.k))).astype(np.float64)
    ids: Any = found.ids
    exact = np.take_along_axis(asked @ index.reconstruct(index.ids).T, ids, axis=1)
    step = np.abs(asked).max() / 127
    assert (
        np.abs(found.scores - exact).max() <= step / 2 * np.abs(residuals_of(index)).sum(axis=1).max() + 1e-5
    )


@each_bits
@pytest.mark.parametrize("encoder", ["pursuit", "topk"])
def test_codes_and_residuals_have_the_norms_of_rows(
    bits: int, encoder: Any, mean_model: CompresSAE, plain_model: CompresSAE, vectors: FloatArray
) -> None:
    for model in (mean_model, plain_model):
        index = build(vectors[:300], model, residual_bits=bits, encoder=encoder)
        mean = 0 if model.mean is None else model.mean
        held = np.linalg.norm(index.reconstruct(index.ids) - mean, axis=1)
        true = np.linalg.norm(normalize_rows(vectors[:300]) - mean, axis=1)
        # What is left of an embedding that is an atom is no normal row, of which one bit says little.
        np.testing.assert_allclose(held, true, rtol=0.06 if bits == 1 else 5e-4)
        assert abs((held / true).mean() - 1) < 5e-3


def test_recall_grows_with_bits(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    true = nearest(vectors[:2000], queries, 10)
    found = [
        build(vectors[:2000], model, residual_bits=bits).search(queries, 10, mode="dense")
        for bits in RESIDUAL_BITS
    ]
    recalls = [overlap(each.ids, true) for each in found]
    assert all(low < high for low, high in itertools.pairwise(recalls)), recalls
    assert recalls[-1] > 0.98


def test_refining_scores_the_best_by_codes_again(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = build(vectors[:500], model, residual_bits=3)
    by_codes = index.search(queries, 40, mode="dense", refine=0)
    again = index.search(queries, 40, mode="dense", refine=40)
    np.testing.assert_array_equal(np.sort(again.ids, axis=1), np.sort(by_codes.ids, axis=1))
    assert (again.ids != by_codes.ids).any()
    every = index.search(queries, 40, mode="dense", refine=500)
    assert every.scores.sum() > again.scores.sum()


def test_explanations_add_up(
    model: CompresSAE, uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    for each, options in ((model, {}), (uncentred_model, {"metric": "inner_product"})):
        index = build(3 * vectors[:100], each, residual_bits=2, **options)
        found = index.search(2 * queries[:1], 100, mode="dense", refine=100)
        for id_, score in zip(found.ids[0, ::9].tolist(), found.scores[0, ::9], strict=True):
            told = index.explain(2 * queries[0], id_)
            assert told.residual != 0
            assert told.score == pytest.approx(told.mean + told.contributions.sum() + told.residual, abs=1e-5)
            assert told.score == pytest.approx(score, abs=0.02)


def test_rescoring_does_not_depend_on_how_rows_lie(
    mean_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = build(vectors[:150], mean_model, residual_bits=3)
    arrays = index.documents.backend.forward_rows(np.arange(150))["residuals"]
    rows = np.stack([np.random.default_rng(i).permutation(150) for i in range(5)])
    asked, scores = normalize_rows(queries[:5]), np.zeros((5, 150), np.float32)
    whole = Residuals([arrays], 384, 3).rescore(asked, scores, rows, 1)
    pieces = [arrays[:1], arrays[1:1], arrays[1:70], arrays[70:]]
    np.testing.assert_array_equal(Residuals(pieces, 384, 3).rescore(asked, scores, rows, 2), whole)
    missing = rows.copy()
    missing[:, ::2] = -1
    some = Residuals(pieces, 384, 3).rescore(asked, scores, missing, 1)
    np.testing.assert_array_equal(some, np.where(missing < 0, 0, whole))


# Changes


def reconstructions(index: CompressedIndex) -> dict[Any, FloatArray]:
    ids = index.ids.tolist()
    return dict(zip(ids, index.reconstruct(ids), strict=True))


def assert_kept(index: CompressedIndex, before: dict[Any, FloatArray], new: dict[Any, FloatArray]) -> None:
    """Checks that reconstructions are as before, to the last bit, and new ones near their vectors."""
    now = reconstructions(index)
    for id_, vector in now.items():
        if id_ in new:
            true = new[id_].astype(np.float64)
            assert vector @ true / np.linalg.norm(vector) / np.linalg.norm(true) > 0.95
        else:
            np.testing.assert_array_equal(vector, before[id_])


@pytest.mark.parametrize("options", [{"forward": "aligned"}, {"value_bits": 5}, {"metric": "inner_product"}])
def test_changes_keep_residuals_with_their_documents(
    options: dict[str, Any], plain_model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    index = build(vectors[:120], plain_model, residual_bits=3, **options)
    reload = [
        lambda: CompressedIndex.load(tmp_path / "i"),
        lambda: CompressedIndex.load(tmp_path / "i", mmap=True),
    ]
    copies: list[Any] = [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))]
    for step in range(30):
        before, new = reconstructions(index), dict[Any, FloatArray]()
        ids, count = index.ids, int(rng.integers(1, 25))
        some, rows = rng.permutation(ids)[: min(count, len(ids) - 1)], rng.permutation(len(vectors))
        kind = ("add", "remove", "upsert", "compact", "save", "copy")[step % 6]
        if kind == "add":
            new = dict(
                zip(range(1000 * (step + 1), 1000 * (step + 1) + count), vectors[rows[:count]], strict=True)
            )
            index.add(vectors[rows[:count]], list(new), num_threads=1)
        elif kind == "remove":
            index.remove(some)
        elif kind == "upsert":
            new = dict(zip(some.tolist(), vectors[rows[: len(some)]], strict=True))
            index.upsert(vectors[rows[: len(some)]], some, num_threads=1)
        elif kind == "compact":
            index.compact(num_threads=1)
        elif kind == "save":
            index.save(tmp_path / "i")
            index = reload[step // 6 % 2]()
        else:
            index = copies[step // 6 % 3](index)
        gone = set(some.tolist()) if kind == "remove" else set()
        assert set(index.ids.tolist()) == (before.keys() - gone) | new.keys(), kind
        assert_kept(index, before, new)
        assert_scored(index, queries[:2], mode="dense")


def test_adding_in_pieces_is_building_at_once(
    mean_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    whole = build(vectors[:300], mean_model, residual_bits=4, forward="aligned")
    grown = build(vectors[:100], mean_model, residual_bits=4, forward="aligned")
    for first, last in ((100, 101), (101, 150), (150, 300)):
        grown.add(vectors[first:last], num_threads=1)
    for name, array in whole.documents.backend.to_arrays().items():
        np.testing.assert_array_equal(grown.documents.backend.to_arrays()[name], array)
    assert_same(*(index.search(queries, 20, refine=100) for index in (grown, whole)))


def test_threads_encode_the_same(mean_model: CompresSAE, vectors: FloatArray) -> None:
    one, two = (
        CompressedIndex.build(vectors[:300], model=mean_model, residual_bits=3, num_threads=n, progress=False)
        for n in (1, 2)
    )
    np.testing.assert_array_equal(one.reconstruct(one.ids), two.reconstruct(two.ids))


def test_what_residuals_cost(mean_model: CompresSAE, vectors: FloatArray) -> None:
    plain = build(vectors[:300], mean_model)
    for bits in BITS:
        index = build(vectors[:300], mean_model, residual_bits=bits)
        assert index.stats().bytes_per_vector["forward"] == plain.stats().bytes_per_vector["forward"]
        more = index.stats().bytes_per_vector["residuals"]
        assert more == residual_row_bytes(384, bits) == 2 + 48 * bits
        filed = FaissIndex.from_index(index, progress=False).stats().bytes_per_vector
        assert (filed["residuals"], filed["total"]) == (more, sum(filed.values()) - filed["total"])
        assert index.documents.residual_bits == bits
        assert index.documents.refines


# Errors


@pytest.mark.parametrize("bits", [5, 7, 8, -1, 1.5, True, "3"])
def test_other_bits_are_refused(bits: Any, mean_model: CompresSAE, vectors: FloatArray) -> None:
    with pytest.raises(InputError, match="residual_bits must be"):
        build(vectors[:20], mean_model, residual_bits=bits)


def test_codes_alone_have_no_residuals(mean_model: CompresSAE, vectors: FloatArray) -> None:
    codec, codes = WithResiduals(Aligned(), 384, 2), mean_model.encode(vectors[:5])
    with pytest.raises(ValueError, match="residual codes are made of vectors"):
        codec.pack(codes)
    for dim, bits in ((0, 2), (384, 5), (10**6, 2)):
        with pytest.raises(ValueError, match=r"dim is|residual_bits is"):
            WithResiduals(Aligned(), dim, bits)


def test_the_engine_refuses_what_does_not_fit() -> None:
    rows, floats = np.zeros((4, residual_row_bytes(16, 2)), np.uint8), np.zeros((2, 16), np.float32)
    refiner = Residuals([rows], 16, 2)
    calls: list[Callable[[], Any]] = [
        lambda: Residuals([rows[:, 1:].copy()], 16, 2),
        lambda: Residuals([rows], 17, 2),
        lambda: refiner.rescore(floats[:, :15].copy(), floats, np.zeros((2, 16), np.int64), 1),
        lambda: refiner.rescore(floats, floats[:, :3].copy(), np.zeros((2, 16), np.int64), 1),
        lambda: refiner.rescore(floats, floats, np.full((2, 16), 4), 1),
        lambda: refiner.rescore(floats, floats, np.zeros((1, 16), np.int64), 1),
        lambda: residual_vectors(rows, 33, 2, 1),
        lambda: residual_rows(floats, np.ones((2, 1), np.uint16), floats[:, :1].copy(), floats[:1], 2, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
    rows[2, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="row 2 of the residual codes has no finite scale"):
        refiner.validate(1)


# Damaged files


def test_damaged_rows_are_refused(mean_model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    def rows_of(path: Path) -> Path:
        (file,) = path.rglob("forward_residuals.npy")
        return file

    def changed(rows: npt.NDArray[np.uint8], number: float) -> npt.NDArray[np.uint8]:
        rows = rows.copy()
        rows[7, :2] = np.array([number], np.float16).view(np.uint8)
        return rows

    index = build(vectors[:50], mean_model, residual_bits=3)
    cases: list[tuple[Callable[[Any], Any], str]] = [
        (
            lambda rows: np.concatenate([rows, rows[:1]]),
            r"must be uint8 \(50, 146\), got uint8 \(51, 146\)",
        ),
        (lambda rows: rows[:-1], r"rows must be uint8 \(50, 146\), got uint8 \(49, 146\)"),
        (lambda rows: np.ascontiguousarray(rows[:, :-1]), r"got uint8 \(50, 145\)"),
        (lambda rows: rows.astype(np.int16), r"must be uint8 .* got int16 \(50, 146\)"),
        (lambda rows: changed(rows, np.nan), "row 7 of the residual codes has no finite scale"),
        (lambda rows: changed(rows, np.inf), "row 7 of the residual codes has no finite scale"),
        (lambda rows: changed(rows, -1), "row 7 of the residual codes has no finite scale"),
    ]
    for change, message in cases:
        index.save(tmp_path / "i")
        np.save(rows_of(tmp_path / "i"), change(np.load(rows_of(tmp_path / "i"))))
        fit_checksums(tmp_path / "i")
        for mmap in (False, True):
            with pytest.raises(FormatError, match=message):
                CompressedIndex.load(tmp_path / "i", mmap=mmap)
    index.save(tmp_path / "i")
    rows_of(tmp_path / "i").unlink()
    fit_checksums(tmp_path / "i")
    with pytest.raises(FormatError, match="lacks the array forward_residuals"):
        CompressedIndex.load(tmp_path / "i")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("dim", 383, "residual codes are of 383 dimensions, the model has 384"),
        ("dim", None, "residual codes are of None dimensions"),
        ("dim", True, "residual codes are of True dimensions"),
        ("residual_bits", 0, "has an array 'forward_residuals'"),
        ("residual_bits", 2, r"rows must be uint8 \(50, 98\), got uint8 \(50, 146\)"),
        ("residual_bits", 5, "residual_bits must be one of"),
        ("residual_bits", "3", "residual_bits must be an integer"),
    ],
)
def test_damaged_manifests_are_refused(
    entry: str, value: Any, message: str, mean_model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    build(vectors[:50], mean_model, residual_bits=3).save(tmp_path / "i")
    fit_checksums(tmp_path / "i", lambda manifest: manifest["meta"]["packing"].update({entry: value}))
    with pytest.raises(FormatError, match=message):
        CompressedIndex.load(tmp_path / "i")
