"""Training: upstream's formulas in float64, and a dictionary that stays alive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from threadpoolctl import threadpool_limits

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    TrainConfig,
    TrainingError,
    train,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.torch_pursuit import pursue_on
from compressae_index.demo import DemoData
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall
from compressae_index.training import TrainResult
from compressae_index.training.checkpoint import Checkpoint
from compressae_index.training.module import CompresSAEModule
from compressae_index.training.run import _hold_out

Float64 = npt.NDArray[np.float64]
State = dict[str, Float64]

DIM, LATENTS, K, BATCH = 24, 96, 5, 40
RATE = 1e-3


def upstream_encode(x: Float64, state: State, k: int) -> Float64:
    """recombee/CompresSAE: the k largest |x/|x| W + b| with their signs."""
    activations: Float64 = (
        x / np.linalg.norm(x, axis=1, keepdims=True) @ state["encoder_w"] + state["encoder_b"]
    )
    kept = np.argsort(-np.abs(activations), axis=1)[:, :k]
    codes: Float64 = np.zeros_like(activations)
    np.put_along_axis(codes, kept, np.take_along_axis(activations, kept, axis=1), axis=1)
    return codes


def upstream_loss(x: Float64, state: State) -> float:
    """Cosine distance at k, plus that at 4k over 8."""

    def distance(k: int) -> float:
        out = upstream_encode(x, state, k) @ state["decoder_w"]
        cosines = (x * out).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(out, axis=1))
        return float((1 - cosines).mean())

    return distance(K) + distance(4 * K) / 8


def upstream_gradient(x: Float64, state: State) -> State:
    """Gradient of the loss, by the chain rule on the chosen supports."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    gradient = {name: np.zeros_like(value) for name, value in state.items()}
    for k, weight in ((K, 1.0), (4 * K, 1 / 8)):
        codes = upstream_encode(x, state, k)
        out = codes @ state["decoder_w"]
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        cosines = (unit * out).sum(axis=1, keepdims=True) / norms
        d_out = -weight / len(x) * (unit / norms - cosines * out / norms**2)
        gradient["decoder_w"] += codes.T @ d_out
        d_codes = (d_out @ state["decoder_w"].T) * (codes != 0)
        gradient["encoder_w"] += unit.T @ d_codes
        gradient["encoder_b"] += d_codes.sum(axis=0)
    return gradient


def upstream_step(x: Float64, state: State) -> State:
    """One first step of Adam (torch's defaults), then unit decoder rows."""
    result = {}
    for name, gradient in upstream_gradient(x, state).items():
        # After bias correction, Adam's first moments are the gradient and its square.
        result[name] = state[name] - RATE * gradient / (np.abs(gradient) + 1e-8)
    result["decoder_w"] /= np.linalg.norm(result["decoder_w"], axis=1, keepdims=True)
    return result


@pytest.fixture
def module() -> CompresSAEModule:
    torch.manual_seed(3)
    module = CompresSAEModule(DIM, LATENTS, K).double()
    module.normalize_decoder()
    module.encoder_b.data = 0.1 * torch.randn(LATENTS, dtype=torch.float64)
    return module


@pytest.fixture
def batch() -> Float64:
    return np.random.default_rng(0).standard_normal((BATCH, DIM)) * 3


def state_of(module: CompresSAEModule) -> State:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def test_parity_of_encode_decode_and_loss(module: CompresSAEModule, batch: Float64) -> None:
    state, x = state_of(module), torch.from_numpy(batch)
    latents, values = module.encode(x)
    dense = np.zeros((BATCH, LATENTS))
    np.put_along_axis(dense, latents.numpy(), values.detach().numpy(), axis=1)
    expected = upstream_encode(batch, state, K)
    np.testing.assert_allclose(dense, expected, atol=1e-12)
    np.testing.assert_allclose(
        module.decode(latents, values).detach(), expected @ state["decoder_w"], atol=1e-12
    )
    assert module.losses(x).total.item() == pytest.approx(upstream_loss(batch, state), abs=1e-12)


def test_parity_of_an_optimiser_step(module: CompresSAEModule, batch: Float64) -> None:
    expected = upstream_step(batch, state_of(module))
    module.train_step(torch.optim.Adam(module.parameters(), lr=RATE), torch.from_numpy(batch))
    for name, value in state_of(module).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-9, err_msg=name)


def test_upstreams_state_dict_loads(module: CompresSAEModule, batch: Float64) -> None:
    assert set(module.state_dict()) == {"encoder_w", "encoder_b", "decoder_w"}
    model = CompresSAE.from_state_dict(module.state_dict(), K)
    codes = model.encode(batch, encoder="topk")
    np.testing.assert_allclose(codes.to_dense(), upstream_encode(batch, state_of(module), K), atol=1e-5)


def dead_latents(model: CompresSAE, vectors: FloatArray) -> int:
    return model.n_latents - len(np.unique(model.encode(vectors, encoder="topk").latents))


@pytest.mark.slow
def test_a_dictionary_from_the_data_stays_alive(demo_data: DemoData) -> None:
    dead = {
        start: dead_latents(
            train(
                demo_data.embeddings,
                TrainConfig(
                    initialization=start, refine_rounds=0, steps=50, batch_size=512, precision="float32"
                ),
            ).model,
            demo_data.embeddings,
        )
        for start in ("data", "random")
    }
    assert dead["data"] == 0
    assert dead["random"] > 50


@pytest.mark.slow
def test_no_latent_is_dead_after_refinement(demo_data: DemoData) -> None:
    model = train(demo_data.embeddings, TrainConfig(refine_rounds=20, steps=0)).model
    codes = model.encode(demo_data.embeddings)
    assert len(np.unique(codes.latents[codes.values != 0])) == model.n_latents


def test_training_lowers_the_loss_and_repeats_itself(vectors: FloatArray) -> None:
    config = TrainConfig(
        k=8, n_latents=256, refine_rounds=0, steps=25, batch_size=128, seed=7, initialization="random"
    )
    first, second = train(vectors, config), train(vectors, config)
    assert first.losses[-5:].mean() < 0.8 * first.losses[:5].mean()
    assert first.checks[-1].loss < first.checks[0].loss
    assert first.model.fingerprint == second.model.fingerprint
    assert first.model.fingerprint != train(vectors, replace(config, seed=8)).model.fingerprint


def error_of(model: CompresSAE, rows: FloatArray) -> float:
    """Mean squared error of pursuit codes of unit rows."""
    unit = normalize_rows(rows)
    return float(np.square(unit - model.decode(model.encode(rows))).sum() / len(rows))


def test_refinement_beats_the_papers_loss_for_pursuit(demo_data: DemoData) -> None:
    """Growing nonzeros is the reason: rounds lower the error of rows that were never seen."""
    vectors, queries = demo_data.embeddings[:4000], demo_data.queries
    # The paper leaves the mean in; without it, errors are lower from the start.
    settings = TrainConfig(k=16, n_latents=512, round_rows=1024, batch_size=512, center=False)
    start, refined, paper = (
        train(vectors, replace(settings, refine_rounds=rounds, steps=steps))
        for rounds, steps in ((0, 0), (40, 0), (0, 80))
    )
    assert error_of(refined.model, queries) < 0.95 * error_of(paper.model, queries)
    assert error_of(refined.model, queries) < 0.85 * error_of(start.model, queries)
    nonzeros = [entry.nonzeros for entry in refined.rounds]
    assert nonzeros == sorted(nonzeros)
    assert (nonzeros[0], nonzeros[-1]) == (4, 16)
    centred = train(vectors, replace(settings, refine_rounds=40, steps=0, center=True))
    assert error_of(centred.model, queries) < error_of(refined.model, queries)


def test_the_encoder_learns_while_the_refined_decoder_stays(vectors: FloatArray) -> None:
    config = TrainConfig(k=8, n_latents=256, refine_rounds=5, steps=0, round_rows=512)
    refined, trained = train(vectors, config), train(vectors, replace(config, steps=20, batch_size=256))
    np.testing.assert_array_equal(trained.model.decoder_w, refined.model.decoder_w)
    assert not np.allclose(trained.model.encoder_w, refined.model.encoder_w, atol=1e-3)
    assert trained.checks[-1].loss < trained.checks[-11].loss
    # The dictionary is one of bytes already.
    np.testing.assert_allclose(refined.model.rounded().decoder_w, refined.model.decoder_w, atol=1e-7)


def test_a_round_reads_a_share_of_the_rows_up_to_half_as_many_as_there_are_latents() -> None:
    default, given = TrainConfig(), TrainConfig(round_rows=100)
    sizes = ((256, 10**6), (8192, 10**6), (32_768, 10**6), (32_768, 40_000), (4096, 20_000), (2, 3))
    assert [default.rows_a_round(*each) for each in sizes] == [8192, 8192, 16_384, 10_000, 5000, 1]
    assert given.rows_a_round(32_768, 10**6) == 100
    with pytest.raises(InputError, match="round_rows"):
        TrainConfig(round_rows=0)


class InterruptionError(Exception):
    """Raised by a test to stop training."""


@pytest.mark.parametrize("saves", [3, 10, 14, 20])
def test_a_resumed_run_ends_bit_for_bit_as_an_unbroken_one(
    saves: int, vectors: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        k=4, n_latents=128, refine_rounds=10, steps=20, round_rows=512, batch_size=128, patience=20
    )
    save, left = Checkpoint.save, [saves]

    def save_and_stop(self: Checkpoint, *arguments: Any) -> None:
        save(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise InterruptionError

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            expected = train(vectors[:2000], config)
            monkeypatch.setattr(Checkpoint, "save", save_and_stop)
            with pytest.raises(InterruptionError):
                train(vectors[:2000], config, checkpoint=tmp_path / "run")
            resumed = train(vectors[:2000], config, checkpoint=tmp_path / "run")
    finally:
        torch.set_num_threads(threads)
    assert resumed.model.fingerprint == expected.model.fingerprint
    assert resumed.rounds == expected.rounds
    assert resumed.checks == expected.checks
    np.testing.assert_array_equal(resumed.losses, expected.losses)


def test_a_checkpoint_of_something_else_is_refused(vectors: FloatArray, tmp_path: Path) -> None:
    config = TrainConfig(k=2, n_latents=32, refine_rounds=2, steps=2, batch_size=64)
    train(vectors[:300], config, checkpoint=tmp_path / "run")
    with pytest.raises(InputError, match="seed = 0, not 1"):
        train(vectors[:300], replace(config, seed=1), checkpoint=tmp_path / "run")
    with pytest.raises(InputError, match="other rows"):
        train(vectors[1:301], config, checkpoint=tmp_path / "run")
    train(vectors[:300], config).model.save(tmp_path / "model")
    with pytest.raises(FormatError, match="holds: model; expected: checkpoint"):
        train(vectors[:300], config, checkpoint=tmp_path / "model")


def test_steps_stop_when_held_out_rows_gain_no_more(
    vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The losses are of the dictionary before it is rounded.
    monkeypatch.setattr(CompresSAE, "rounded", lambda model: model)
    settings: dict[str, Any] = {"steps": 400, "batch_size": 16, "patience": 1, "precision": "float32"}
    config = TrainConfig(k=4, n_latents=64, refine_rounds=0, center=False, **settings)
    rows = vectors[:250]
    result = train(rows, config)
    losses = [check.loss for check in result.checks]
    assert len(result.losses) < 400
    assert losses[-1] > min(losses)
    # The best weights are kept, not the last ones.
    module = CompresSAEModule(rows.shape[1], 64, 4)
    module.load_state_dict({name: torch.from_numpy(w) for name, w in result.model.tensors().items()})
    _, held_out = _hold_out(normalize_rows(rows), config, 64)
    assert module.held_out_loss(torch.from_numpy(held_out)) == pytest.approx(min(losses), rel=1e-4)


def test_training_that_diverges_stops_with_a_reason(vectors: FloatArray) -> None:
    config = TrainConfig(k=4, n_latents=64, refine_rounds=0, steps=60, batch_size=64, learning_rate=1e6)
    with pytest.raises(TrainingError, match="learning_rate"):
        train(vectors[:1000], config)


def gaussians(kind: str, n: int, dim: int, seed: int = 0) -> FloatArray:
    """Vectors as other models and recommenders make them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim))
    if kind == "anisotropic":
        x *= 1 / np.sqrt(1 + np.arange(dim))
    elif kind == "uncentred":
        x += 2 * np.sqrt(dim) * normalize_rows(rng.standard_normal((1, dim)).astype(np.float32))
    elif kind == "clustered":
        x = rng.standard_normal((20, dim))[rng.integers(20, size=n)] + 0.05 * x
    elif kind == "low rank":
        x = rng.standard_normal((n, 6)) @ rng.standard_normal((6, dim))
    elif kind == "long rows":
        x *= rng.lognormal(3, 2, size=(n, 1))
    return x.astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["isotropic", "anisotropic", "uncentred", "clustered", "low rank", "long rows"]
)
def test_any_shape_of_data_trains(kind: str) -> None:
    rows = gaussians(kind, 3000, 48)
    model = train(
        rows[:2800], TrainConfig(k=8, n_latents=256, refine_rounds=20, round_rows=1024, steps=10)
    ).model
    random = train(rows[:2800], TrainConfig(k=8, n_latents=256, refine_rounds=0, steps=0)).model
    assert error_of(model, rows[2800:]) < min(error_of(random, rows[2800:]) + 1e-4, 0.55)
    assert np.isfinite(model.encode(rows, encoder="topk").values).all()


@pytest.mark.parametrize("dim", [1, 2, 32, 4096])
def test_any_dimension_trains(dim: int) -> None:
    rows = gaussians("anisotropic", 400, dim)
    config = TrainConfig(n_latents=64, refine_rounds=3, round_rows=256, steps=3)
    model = train(rows, config).model
    assert (model.dim, model.k) == (dim, min(dim, 16))
    assert np.isfinite(model.encode(rows).values).all()
    with pytest.raises(InputError, match=f"k must be at most dim = {dim}, got {dim + 1}"):
        train(rows, replace(config, k=dim + 1, n_latents=None))


def test_the_mean_of_uncentred_rows_is_an_atom() -> None:
    rows = normalize_rows(gaussians("uncentred", 1000, 32))
    config = TrainConfig(k=4, n_latents=64, refine_rounds=0, steps=0, center=False)
    model = train(rows, config).model
    mean = rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0))
    assert (model.decoder_w @ mean).max() > 0.999
    assert model.mean is None


def test_leaving_out_the_mean_spares_a_list_of_all_rows_and_gains_recall() -> None:
    rows = gaussians("uncentred", 3000, 32)
    rows, queries = rows[:-200], rows[-200:]
    truth = exact_neighbours(rows, queries, 10)
    longest: dict[bool, list[float]] = {False: [], True: []}
    recalls = {False: 0.0, True: 0.0}
    # Of one seed, the recall may be the same.
    for center, seed in itertools.product((False, True), range(3)):
        config = TrainConfig(
            k=4, n_latents=128, refine_rounds=20, round_rows=1024, steps=0, center=center, seed=seed
        )
        model = train(rows, config).model
        codes = model.encode(rows)
        longest[center].append(np.bincount(codes.latents[codes.values != 0]).max() / len(rows))
        index = CompressedIndex.build(rows, model=model, progress=False)
        recalls[center] += recall(index.search(queries, 10, mode="dense").ids, truth, 10)
    assert min(longest[False]) > 0.9
    assert max(longest[True]) < 0.25
    assert recalls[True] > recalls[False]


def test_bfloat16_trains_as_well_as_float32(vectors: FloatArray) -> None:
    config = TrainConfig(k=8, n_latents=256, refine_rounds=0, steps=30, batch_size=256)
    losses = [train(vectors, replace(config, precision=p)).checks[-1].loss for p in ("float32", "bfloat16")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_presets() -> None:
    for name in ("fast", "default", "best"):
        assert TrainConfig.preset(name, k=16).k == 16
    assert TrainConfig.preset("default") == TrainConfig()
    assert TrainConfig.preset("fast").steps < TrainConfig.preset("best").steps
    with pytest.raises(InputError, match="preset must be one of 'fast', 'default', 'best', got 'slow'"):
        TrainConfig.preset("slow")  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused(vectors: FloatArray) -> None:
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        train(vectors[:300], TrainConfig(k=2, n_latents=32, device="abacus"))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' cannot be used"):
            train(vectors[:300], TrainConfig(k=2, n_latents=32, device="cuda"))


def test_the_callers_random_state_is_left_alone(vectors: FloatArray) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train(vectors[:200], TrainConfig(k=2, n_latents=32, steps=2))
    assert torch.equal(torch.rand(1), expected)


@contextmanager
def set_by_call(call: Callable[..., Any], value: Any, before: Any) -> Iterator[None]:
    call(value)
    try:
        yield
    finally:
        call(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: set_by_call(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: set_by_call(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta": lambda: torch.device("meta"),
    "default meta": lambda: set_by_call(torch.set_default_device, "meta", None),
    "deterministic": lambda: set_by_call(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "rounded products": lambda: set_by_call(torch.set_float32_matmul_precision, "medium", "highest"),
    "random numbers": lambda: set_by_call(torch.manual_seed, 5, 6),
}


def torch_settings() -> tuple[Any, ...]:
    """Settings of torch that a caller would see changed."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_anomaly_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index] # noqa: NPY002
    )


@pytest.fixture(scope="module")
def alone(vectors: FloatArray) -> TrainResult:
    """Trained where nothing was set."""
    return train(vectors[:600], ANYWHERE)


# Both stages, and every use of random numbers.
ANYWHERE = TrainConfig(k=4, n_latents=64, initialization="random", refine_rounds=2, steps=4, batch_size=64)


@pytest.mark.parametrize("name", CONTEXTS)
def test_training_goes_by_its_own_settings_of_torch(
    name: str, alone: TrainResult, vectors: FloatArray
) -> None:
    with CONTEXTS[name]():
        before = torch_settings()
        result = train(vectors[:600], ANYWHERE)
        latents, values = pursue_on("cpu", normalize_rows(vectors[:9]), alone.model.decoder_w, 4, 4)
        with pytest.raises(InputError, match="k must be at most dim"):
            train(vectors[:600, :3], ANYWHERE)
        with pytest.raises(InputError, match="device 'meta' cannot be used"):
            train(vectors[:600], replace(ANYWHERE, device="meta"))
        index = CompressedIndex.build(vectors[:600], config=ANYWHERE, progress=False)
        assert torch_settings() == before
    assert result.model.fingerprint == alone.model.fingerprint == index.model.fingerprint
    np.testing.assert_array_equal(result.losses, alone.losses)
    again = pursue_on("cpu", normalize_rows(vectors[:9]), alone.model.decoder_w, 4, 4)
    np.testing.assert_array_equal(latents, again[0])
    np.testing.assert_array_equal(values, again[1])


def test_trainings_in_several_threads_give_back_what_was_set(alone: TrainResult, vectors: FloatArray) -> None:
    with CONTEXTS["float64"](), ThreadPoolExecutor(3) as pool:
        before = torch_settings()
        trained = list(pool.map(lambda _: train(vectors[:600], ANYWHERE), range(6)))
        assert torch_settings() == before
    assert {result.model.fingerprint for result in trained} == {alone.model.fingerprint}


def test_a_default_dictionary_fits_few_rows(vectors: FloatArray) -> None:
    assert train(vectors[:300], TrainConfig(k=8, steps=2)).model.n_latents == 150
    with pytest.raises(InputError, match="20 vectors are too few"):
        train(vectors[:20], TrainConfig(k=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 9, "n_latents": 8}, "k must be at most n_latents = 8, got 9"),
        ({"k": 3, "n_latents": 8}, "4k = 12 and n_latents = 8"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"n_latents": 70000}, "at most 65536, got 70000"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"initialization": "magic"}, "'magic'"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"k": 2.5}, "k must be an integer, got 2.5"),
        ({"k": True}, "k must be an integer, got True"),
        ({"k": "8"}, "k must be an integer, got '8'"),
        ({"n_latents": 3}, "4k = 4 and n_latents = 3"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"learning_rate": np.nan}, "learning_rate must be positive and finite, got nan"),
        ({"center": "no"}, "center must be True or False, got 'no'"),
        ({"seed": 2**64}, "seed must be at most 18446744073709551615"),
        ({"device": 0}, "device must be a string, got 0"),
        ({"precision": np.array(["float32"])}, "precision must be one of"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"patience": 1.0}, "patience must be an integer"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_settings_may_be_numbers_of_numpy(vectors: FloatArray, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"k": np.int64(2), "n_latents": np.uint16(32), "seed": np.int8(3)}
    settings |= {"learning_rate": np.float32(2**-6), "center": np.False_, "steps": np.array(2)}
    config = TrainConfig(refine_rounds=1, **settings)
    assert config == TrainConfig(2, 32, seed=3, learning_rate=2**-6, center=False, refine_rounds=1, steps=2)
    train(vectors[:300], config, checkpoint=tmp_path / "run")


def test_sizes_are_named_once() -> None:
    config = TrainConfig(k=4, n_latents=64)
    assert TrainConfig().with_codes(4, 64) == config.with_codes(None, None) == config.with_codes(4, None)
    for k, n_latents, message in ((5, None, "k is 5, but config has k = 4"), (4, 65, "n_latents is 65")):
        with pytest.raises(InputError, match=message):
            config.with_codes(k, n_latents)


def test_bad_rows(vectors: FloatArray) -> None:
    config = TrainConfig(k=4, n_latents=64, steps=1)
    bad = vectors[:100].copy()
    bad[17] = 0
    with pytest.raises(InputError, match="row 17 is zero"):
        train(bad, config)
    with pytest.raises(InputError, match="dim must be at most 65536, got 65537"):
        train(np.ones((100, 65537), dtype=np.float32), config)
    with pytest.raises(
        InputError, match="n_latents = 64 needs at least as many vectors to start from, got 63"
    ):
        train(vectors[:63], config)
