"""Training: upstream's formulas in float64, and a dictionary that stays alive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compressae_index import CompresSAE, InputError, TrainConfig, train
from compressae_index.checks import FloatArray
from compressae_index.demo import DemoData
from compressae_index.training import CompresSAEModule

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


def test_a_dictionary_from_the_data_stays_alive(demo_data: DemoData) -> None:
    dead = {
        start: dead_latents(
            train(demo_data.embeddings, TrainConfig(initialization=start, steps=50, batch_size=512)).model,
            demo_data.embeddings,
        )
        for start in ("data", "random")
    }
    assert dead["data"] == 0
    assert dead["random"] > 100


def test_training_lowers_the_loss_and_repeats_itself(vectors: FloatArray) -> None:
    config = TrainConfig(k=8, n_latents=256, steps=25, batch_size=128, seed=7, initialization="random")
    first, second = train(vectors, config), train(vectors, config)
    assert first.losses[-5:].mean() < 0.8 * first.losses[:5].mean()
    assert first.model.fingerprint == second.model.fingerprint
    assert first.model.fingerprint != train(vectors, replace(config, seed=8)).model.fingerprint


def test_the_callers_random_state_is_left_alone(vectors: FloatArray) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train(vectors[:200], TrainConfig(k=2, n_latents=32, steps=2))
    assert torch.equal(torch.rand(1), expected)


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
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_bad_rows(vectors: FloatArray) -> None:
    config = TrainConfig(k=4, n_latents=64, steps=1)
    bad = vectors[:100].copy()
    bad[17] = 0
    with pytest.raises(InputError, match="row 17 is zero"):
        train(bad, config)
    with pytest.raises(
        InputError, match="n_latents = 64 needs at least as many vectors to start from, got 63"
    ):
        train(vectors[:63], config)
