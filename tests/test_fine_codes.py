"""Codes of rivals that the benchmarks write themselves, and rivals that they leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import fine_codes
import frontier
import frontier_contestants
import numpy as np
import pytest
from dense_contestants import LeftOut
from fine_codes import ash_like, inverted_file, principal, rounded, saq_like, shared_bytes, tables_of
from frontier_contestants import CONTESTANTS, Task

from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows

SIZE = 12


@pytest.fixture(scope="module")
def unit(vectors: FloatArray) -> FloatArray:
    return normalize_rows(vectors[:2500, :48])


def missed(rows: FloatArray, rounding: fine_codes.Rounding) -> float:
    """Squared error of reconstructions, with what the rotation leaves out."""
    components = rows @ rounding.rotation.T
    values = rounded(components, tables_of(components, rounding.bits))
    return float(np.square(rows - values @ rounding.rotation).sum(axis=1).mean())


def test_bits_go_where_they_lower_the_error_most(unit: FloatArray) -> None:
    found = saq_like(unit, SIZE)
    assert found.bits.sum() == 8 * SIZE
    assert (np.diff(found.bits) <= 0).all()
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(len(found.bits)), atol=1e-5)
    directions, variances = principal(unit)
    # No bit is worth more at another component.
    worth = variances[: len(found.bits)] / 4.0**found.bits
    assert worth.max() <= 4 * worth.min() * (1 + 1e-9)
    equal = fine_codes.Rounding(directions[:24], np.full(24, 4))
    assert missed(unit, found) < 0.9 * missed(unit, equal)


def test_rotations_are_learned(unit: FloatArray) -> None:
    found = ash_like(unit, SIZE)
    (width,) = set(found.bits.tolist())
    assert width * len(found.bits) == 8 * SIZE
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(len(found.bits)), atol=1e-4)
    # It beats the components that it turns.
    equal = fine_codes.Rounding(principal(unit)[0][: len(found.bits)], found.bits)
    assert missed(unit, found) < missed(unit, equal)


def test_levels_are_the_nearest_ones() -> None:
    rows = np.random.default_rng(0).standard_normal((50_000, 2)).astype(np.float32)
    tables = tables_of(rows, np.array([1, 3]))
    # The best levels of a Gaussian (Max, 1960).
    np.testing.assert_allclose(tables[0], [-0.798, 0.798], atol=0.02)
    np.testing.assert_allclose(tables[1][4:], [0.245, 0.756, 1.344, 2.152], atol=0.05)
    for column, levels in enumerate(tables):
        nearest = levels[np.abs(rows[:, column, None] - levels).argmin(axis=1)]
        np.testing.assert_array_equal(rounded(rows, tables)[:, column], nearest)


def test_bytes_are_filled() -> None:
    bits = np.array([5, 4, 4, 3, 3, 2, 1, 1, 1, 8])
    held = shared_bytes(bits)
    assert sorted(one for group in held for one in group) == list(range(len(bits)))
    assert all(bits[group].sum() <= 8 for group in held)
    assert len(held) == 4


def test_wide_components_take_no_more_bytes() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    found = saq_like(rows, 30)  # 7 or 8 bits a component, which share no byte
    assert len(shared_bytes(found.bits)) == 30
    assert len(shared_bytes(np.array([8, 0, 0]))) == 1


@pytest.mark.parametrize("make", [saq_like, ash_like])
def test_all_lists_hold_what_brute_force_finds(
    make: Callable[[FloatArray, int], fine_codes.Rounding], unit: FloatArray, queries: FloatArray
) -> None:
    rounding = make(unit, SIZE)
    index = inverted_file(rounding, unit, 16)
    index.add(unit)
    lists = faiss.extract_index_ivf(index)
    lists.nprobe = 16
    assert lists.code_size == SIZE
    asked = normalize_rows(queries[:20, :48])
    values = rounded(unit @ rounding.rotation.T, tables_of(unit @ rounding.rotation.T, rounding.bits))
    scores = (asked @ rounding.rotation.T).astype(np.float64) @ values.T.astype(np.float64)
    found, rows = index.search(asked, 10)
    np.testing.assert_allclose(found, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, rows, axis=1), found, atol=1e-5)


def test_rivals_are_left_out_with_a_reason(
    unit: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.of(unit, None, 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(frontier_contestants, "MOST_SECONDS", 0)
        with pytest.raises(LeftOut, match="minutes of 1 threads to build, more than 0"):
            CONTESTANTS["Faiss HNSW"].build(task)
        with pytest.raises(LeftOut, match="to build"):
            frontier.opened("flat, SQ8", task, unit[:100], tmp_path, str)
    # The next run does not build it again.
    with pytest.raises(LeftOut, match="to build"):
        frontier.opened("flat, SQ8", task, unit[:100], tmp_path, str)
    monkeypatch.setattr(frontier, "HELD", 1e9)
    with pytest.raises(LeftOut, match=r"building may take .* GB, and .* are free"):
        frontier.opened("flat, float16", task, unit[:100], tmp_path, str)
