"""State dicts of others, against their formulas in torch."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from compressae_index import CompresSAE, FormatError, InputError, StorageError
from compressae_index.arrays import FloatArray
from compressae_index.connectors.checkpoints import from_checkpoint, to_checkpoint

DIM, LATENTS, K = 24, 96, 6


def kept(activations: torch.Tensor, k: int) -> torch.Tensor:
    """The k entries of largest magnitude of each row."""
    latents = activations.abs().topk(k, dim=-1).indices
    return torch.zeros_like(activations).scatter(-1, latents, activations.gather(-1, latents))


class Upstream(torch.nn.Module):
    """recombee/CompresSAE: parameters by its names, codes and reconstructions by its formulas."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder_w = torch.nn.Parameter(torch.randn(DIM, LATENTS, generator=generator))
        self.encoder_b = torch.nn.Parameter(0.3 * torch.randn(LATENTS, generator=generator))
        atoms = torch.randn(LATENTS, DIM, generator=generator)
        self.decoder_w = torch.nn.Parameter(atoms / atoms.norm(dim=-1, keepdim=True))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return kept(x / x.norm(dim=-1, keepdim=True) @ self.encoder_w + self.encoder_b, K)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.decoder_w


@pytest.fixture
def upstream() -> Upstream:
    return Upstream(torch.Generator().manual_seed(0)).requires_grad_(False)


@pytest.fixture
def rows() -> FloatArray:
    return np.random.default_rng(1).normal(size=(200, DIM)).astype(np.float32)


def save(state: dict[str, torch.Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({name: tensor.contiguous().numpy() for name, tensor in state.items()}, file)
    else:
        torch.save(state, file)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_upstreams_codes(upstream: Upstream, rows: FloatArray, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"upstream.{suffix}"
    save(upstream.state_dict(), file)
    model = from_checkpoint(file, K)
    codes = model.encode(rows, encoder="topk")
    expected = upstream.encode(torch.from_numpy(rows))
    np.testing.assert_array_equal(codes.to_dense() != 0, (expected != 0).numpy())
    np.testing.assert_allclose(codes.to_dense(), expected, atol=1e-5)
    np.testing.assert_allclose(model.decode(codes), upstream.decode(expected), atol=1e-5)
    # and back: the same parameters, as upstream loads them
    again = tmp_path / f"again.{suffix}"
    to_checkpoint(model, again)
    for name in ("encoder_w", "encoder_b", "decoder_w"):
        np.testing.assert_allclose(getattr(from_checkpoint(again, K), name), getattr(model, name), atol=1e-7)
    if suffix == "pt":
        other = Upstream(torch.Generator().manual_seed(1)).requires_grad_(False)
        other.load_state_dict(torch.load(again, weights_only=True))
        assert torch.equal(other.encode(torch.from_numpy(rows)), expected)
        torch.testing.assert_close(other.decoder_w, upstream.decoder_w)


def test_half_precision_is_read(upstream: Upstream, rows: FloatArray, tmp_path: Path) -> None:
    torch.save(
        {name: tensor.bfloat16() for name, tensor in upstream.state_dict().items()}, tmp_path / "half.pt"
    )
    model = from_checkpoint(tmp_path / "half.pt", K)
    np.testing.assert_array_equal(model.encoder_w, upstream.encoder_w.bfloat16().float())
    assert len(model.encode(rows)) == len(rows)


def test_compressos_codes(rows: FloatArray, tmp_path: Path) -> None:
    """TopKSAE: two linear layers, the second without a bias."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(DIM, LATENTS), torch.nn.Linear(LATENTS, DIM, bias=False)
    module = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder}).requires_grad_(False)
    save(module.state_dict(), tmp_path / "compresso.pt")
    model = from_checkpoint(tmp_path / "compresso.pt", K)
    unit = torch.nn.functional.normalize(torch.from_numpy(rows), dim=-1)
    expected = kept(encoder(unit), K)
    codes = model.encode(rows, encoder="topk")
    np.testing.assert_allclose(codes.to_dense(), expected, atol=1e-6)
    norms = np.linalg.norm(decoder.weight, axis=0)
    scaled = codes.to_dense() * norms @ model.decoder_w
    np.testing.assert_allclose(scaled, decoder(expected), atol=1e-6)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("evil",)


def test_what_is_refused(
    upstream: Upstream, model: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder_w": Evil()}, "evil.pt")
    torch.save([1, 2], "list.pt")
    Path("text.pt").write_text("no checkpoint")
    Path("text.safetensors").write_text("no checkpoint")
    for name in ("evil.pt", "list.pt", "text.pt", "text.safetensors", "missing.pt", "missing.safetensors"):
        with pytest.raises(FormatError, match=name):
            from_checkpoint(name, K)
    assert not Path("evil").exists()
    state = upstream.state_dict()
    torch.save(state | {"more": torch.ones(1)}, "more.pt")
    with pytest.raises(InputError, match=r"more.pt: expected the parameters encoder_w, encoder_b, decoder_w"):
        from_checkpoint("more.pt", K)
    torch.save(state | {"encoder_w": state["encoder_w"].T}, "turned.pt")
    with pytest.raises(InputError, match=r"turned.pt: decoder_w is \(96, 24\), so encoder_w must be"):
        from_checkpoint("turned.pt", K)
    torch.save(state, "good.pt")
    with pytest.raises(InputError, match="k must be at most n_latents = 96, got 97"):
        from_checkpoint("good.pt", 97)
    assert model.mean is not None
    with pytest.raises(InputError, match="subtracts a mean"):
        to_checkpoint(model, "mean.pt")
    assert not Path("mean.pt").exists()
    from_zero = from_checkpoint("good.pt", K)
    with pytest.raises(InputError, match="subtracts a mean"):
        to_checkpoint(from_zero.centred_at(np.ones(from_zero.dim, np.float32)), "good.pt")
    before = Path("good.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        to_checkpoint(from_zero, "good.pt")
    assert Path("good.pt").read_bytes() == before
