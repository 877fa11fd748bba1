"""Degenerate data: one direction, one row, few distinct rows. Indexes are built, and ties have a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex, InputError, TrainConfig, train
from compressae_index.building.estimation import estimate
from compressae_index.checks import normalize_rows
from compressae_index.embedded.sizes import WINDOW
from compressae_index.measuring.model_report import model_report
from compressae_index.search.queries import MODES

Maker = Callable[[np.random.Generator, int, int], Any]

SHORT = TrainConfig.preset("fast", refine_rounds=2, steps=2)
ONE_DIRECTION: dict[str, Maker] = {
    "one row many times": lambda rng, n, d: np.tile(rng.standard_normal(d), (n, 1)),
    "multiples of one row": lambda rng, n, d: rng.standard_normal(d) * (rng.random((n, 1)) + 0.1),
    "ones": lambda rng, n, d: np.full((n, d), float(rng.integers(1, 9))),
    "long float16": lambda _, n, d: np.full((n, d), 60_000, np.float16),
    "subnormal float16": lambda _, n, d: np.full((n, d), 6e-8, np.float16),
}
FEW_DIRECTIONS: dict[str, Maker] = {
    "both signs": lambda rng, n, d: rng.standard_normal(d) * rng.choice([-2.0, -1.0, 1.0], (n, 1)),
    "three rows": lambda rng, n, d: rng.standard_normal((3, d))[rng.integers(3, size=n)],
    "opposite rows": lambda rng, n, d: rng.standard_normal(d) * (-1.0) ** np.arange(n)[:, None],
    "two clusters": lambda rng, n, d: (
        rng.standard_normal((2, d))[rng.integers(2, size=n)] + 1e-3 * rng.standard_normal((n, d))
    ),
    "one-hot": lambda rng, n, d: np.eye(d)[rng.integers(d, size=n)],
    "isotropic": lambda rng, n, d: rng.standard_normal((n, d)),
}


def sizes(seed: int) -> tuple[np.random.Generator, int, int]:
    rng = np.random.default_rng(seed)
    return rng, int(rng.choice([1, 2, 3, 7, 8, 20, 100])), int(rng.choice([1, 2, 8, 32, 64]))


def as_floats(rows: Any) -> Any:
    return rows if rows.dtype == np.float16 else rows.astype(np.float32)


def built(rows: Any, seed: int, **options: Any) -> CompressedIndex:
    """By knobs or a budget, and by pursuit or topk, as the seed will have it."""
    options |= {"bytes_per_vector": 400.0} if seed % 3 == 1 else {}
    options |= {"encoder": "topk"} if seed % 5 == 4 else {}
    return CompressedIndex.build(rows, config=SHORT, num_threads=1, progress=False, **options)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ONE_DIRECTION)
def test_of_one_direction_all_tie_and_answer_by_row(kind: str, seed: int) -> None:
    rows = as_floats(ONE_DIRECTION[kind](*sizes(seed)))
    index = built(rows, seed)
    top = min(10, len(rows))
    for mode in MODES:
        found = index.search(rows[:2], top, mode=mode)
        assert (found.ids == np.arange(top)).all()
        np.testing.assert_allclose(found.scores, 1, atol=1e-5)
    # A different row that is added later is told apart.
    other = np.random.default_rng(seed).standard_normal(rows.shape[1]).astype(np.float32)
    other -= rows[0] * (other @ rows[0].astype(np.float64)) / np.square(rows[0].astype(np.float64)).sum()
    if np.linalg.norm(other) > 1e-3:
        index.add(other[None])
        assert index.search(rows[:1], len(rows) + 1).ids[0, -1] == len(rows)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3])
def test_nearly_constant_rows(noise: float, seed: int) -> None:
    rng, n, d = sizes(seed)
    rows = as_floats(normalize_rows(rng.standard_normal((1, d)).astype(np.float32)))
    rows = (rows + noise / np.sqrt(d) * rng.standard_normal((n, d))).astype(np.float32)
    index = built(rows, seed)
    truth = normalize_rows(rows).astype(np.float64)
    for mode in MODES:
        found = index.search(rows[:3], min(10, n), mode=mode)
        exact = np.take_along_axis(truth[:3] @ truth.T, found.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(found.scores, exact, atol=10 * noise + 1e-6)
        assert (np.lexsort((found.ids, -found.scores), axis=1) == np.arange(found.ids.shape[1])).all()
    np.testing.assert_allclose(np.linalg.norm(index.reconstruct(index.ids), axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", FEW_DIRECTIONS)
def test_few_directions(kind: str, seed: int) -> None:
    rows = as_floats(FEW_DIRECTIONS[kind](*sizes(seed)))
    for metric in ("cosine", "inner_product"):
        index = built(rows, seed, metric=metric)
        for mode in MODES:
            scores, ids = index.search(rows[:3], min(10, len(rows)), mode=mode)
            assert np.isfinite(scores).all()
            assert (ids >= 0).all()
            for keys in zip(scores, ids, strict=True):
                ranked = list(zip((-keys[0]).tolist(), keys[1].tolist(), strict=True))
                assert ranked == sorted(ranked)


def test_a_mean_as_long_as_its_rows_is_left_out_all_the_same() -> None:
    """Summed up in float32, the mean of so many rows would be off by a percent."""
    rows = np.ones((200_000, 3), dtype=np.float32)
    model = train(rows, TrainConfig.preset("fast", k=1, n_latents=4, refine_rounds=1, steps=1)).model
    assert model.mean is not None
    np.testing.assert_allclose(model.mean, 1 / np.sqrt(3), rtol=1e-6)
    assert (model.encode(rows[:5]).values == 0).all()
    with pytest.raises(InputError, match="the mean of unit rows is shorter than 1, got 1"):
        CompresSAE(model.encoder_w, model.encoder_b, model.decoder_w, 1, np.array([1, 0, 0], np.float32))


@pytest.mark.parametrize("settings", [{"refine_rounds": 0}, {"steps": 0}, {"center": False}])
@pytest.mark.parametrize("kind", ["ones", "opposite rows", "one-hot"])
def test_trainings_of_such_data(kind: str, settings: dict[str, Any]) -> None:
    rows = as_floats((ONE_DIRECTION | FEW_DIRECTIONS)[kind](np.random.default_rng(0), 300, 16))
    options: dict[str, Any] = {"k": 4, "refine_rounds": 5, "steps": 12, **settings}
    model = train(rows, TrainConfig.preset("fast", **options)).model
    decoded = normalize_rows(model.decode(model.encode(rows, encoder="pursuit")))
    assert np.einsum("nd,nd->n", decoded, normalize_rows(rows)).min() > 0.98


def test_estimates_reports_and_ties_of_constant_rows() -> None:
    rows = np.ones((WINDOW + 100, 6), dtype=np.float32)
    assert estimate(rows[:50]).plan.recall > 0
    model = train(rows[:200], SHORT).model
    assert model_report(model, rows[:200]).cosine[50] == pytest.approx(1, abs=1e-5)
    index = CompressedIndex.build(rows, model=model, progress=False)
    found = index.search(rows[:1], 20)
    np.testing.assert_allclose(found.scores, 1, atol=1e-5)
    assert sorted(found.ids[0].tolist()) == found.ids[0].tolist()


def test_sizes_of_small_data() -> None:
    for n, d, expected in (
        (1, 8, (1, 4)),
        (2, 1, (1, 4)),
        (20, 64, (2, 10)),
        (100, 8, (8, 50)),
        (255, 64, (31, 127)),
        (256, 64, (32, 128)),
        (10_000, 20, (20, 4096)),
        (10_000, 384, (32, 4096)),
    ):
        assert TrainConfig().sizes(n, d) == expected
    assert TrainConfig(max_rows=100).sizes(9000, 64) == (12, 50)
    for settings, n, d, message in (
        ({"k": 9}, 10_000, 8, "k must be at most dim = 8, got 9"),
        ({"k": 4}, 31, 8, "31 vectors are too few to learn a dictionary for k = 4: at least 32 are needed"),
        ({"n_latents": 64}, 63, 8, "n_latents = 64 needs at least as many vectors to start from, got 63"),
        ({"n_latents": 64, "max_rows": 9}, 99, 8, "to start from, got 9 by max_rows"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(**settings).sizes(n, d)  # type: ignore[arg-type]
