"""CompresSAE as a torch module: encode, decode, the losses and one step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compressae_index._engine import top_k_codes
from compressae_index.arrays import FloatArray
from compressae_index.coding.model import CompresSAE
from compressae_index.training.config import check_multi_k

# Weight of the loss at 4k nonzeros, as in the released code of the paper.
LOSS_4K_WEIGHT = 1 / 8


class Losses(NamedTuple):
    """Batch means."""

    cosine: torch.Tensor
    """Cosine distance of x and its reconstruction from k latents."""
    cosine_4k: torch.Tensor
    """The same from 4k latents."""
    total: torch.Tensor
    """cosine + cosine_4k / 8, the loss to minimise."""


class CompresSAEModule(nn.Module):
    """CompresSAE as in arXiv 2505.11388 and recombee/CompresSAE, with its parameter names.

    s = phi(x / |x| W_enc + b_enc, k), where phi keeps the k largest magnitudes with their signs;
    x_hat = s W_dec with unit rows of W_dec.
    """

    def __init__(self, dim: int, n_latents: int, k: int, *, generator: torch.Generator | None = None) -> None:
        """With random parameters, from torch's own generator by default."""
        super().__init__()
        check_multi_k(k, n_latents)
        self.k = k
        self.use_bfloat16 = False
        """Whether to compute the product with W_enc, the costliest step, in bfloat16."""
        self.encoder_w = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(dim, n_latents), generator=generator)
        )
        self.encoder_b = nn.Parameter(torch.zeros(n_latents))
        self.decoder_w = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(n_latents, dim), generator=generator)
        )
        self.normalize_decoder()

    def set_dictionary(self, atoms: torch.Tensor) -> None:
        """Sets the decoder to unit rows (n_latents, dim), and the encoder to their transpose."""
        self.decoder_w.data = atoms
        self.encoder_w.data = atoms.T.contiguous()
        self.encoder_b.data.zero_()

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Dense activations of x (b, dim) before the top-k: (b, n_latents)."""
        unit = functional.normalize(x, dim=-1)
        if self.use_bfloat16:
            return (unit.bfloat16() @ self.encoder_w.bfloat16()).float() + self.encoder_b
        return unit @ self.encoder_w + self.encoder_b

    def encode(self, x: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest magnitudes of each row's activations, largest first: latents and values, (b, k)."""
        k = self.k if k is None else k
        activations = self.activations(x)
        if activations.device.type != "cpu" or activations.dtype != torch.float32:
            latents = activations.abs().topk(k, dim=-1).indices
            return latents, activations.gather(-1, latents)
        # In a tenth of the time that torch takes.
        found, values = top_k_codes(activations.detach().numpy(), k, torch.get_num_threads())
        order = np.argsort(-np.abs(values), axis=-1)
        latents = torch.from_numpy(np.take_along_axis(found, order, axis=-1).astype(np.int64))
        return latents, activations.gather(-1, latents)

    def decode(self, latents: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Reconstructions (b, dim) of codes (b, k): k dictionary rows each, no dense product."""
        return functional.embedding_bag(latents, self.decoder_w, per_sample_weights=values, mode="sum")

    def losses(self, x: torch.Tensor, fired: torch.Tensor | None = None) -> Losses:
        """Losses of a batch of nonzero rows (b, dim).

        Adds to `fired` (n_latents,) how often each latent was among the k.
        """
        latents, values = self.encode(x, 4 * self.k)
        if fired is not None:
            fired += torch.bincount(latents[:, : self.k].flatten(), minlength=len(fired))
        cosine, cosine_4k = (
            1 - functional.cosine_similarity(x, self.decode(latents[:, :k], values[:, :k]), dim=-1).mean()
            for k in (self.k, 4 * self.k)
        )
        return Losses(cosine, cosine_4k, cosine + LOSS_4K_WEIGHT * cosine_4k)

    def train_step(
        self, optimizer: torch.optim.Optimizer, x: torch.Tensor, fired: torch.Tensor | None = None
    ) -> Losses:
        """One optimiser step, after which the rows of a decoder that learns have unit norm again."""
        losses = self.losses(x, fired)
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if self.decoder_w.requires_grad:
            self.normalize_decoder()
        return losses

    @torch.no_grad()
    def held_out_loss(self, x: torch.Tensor) -> float:
        """The total loss of held-out rows."""
        return float(self.losses(x).total)

    @torch.no_grad()
    def revive(self, optimizer: torch.optim.Optimizer, x: torch.Tensor, fired: torch.Tensor) -> int:
        """Sets latents that did not fire to the residuals of the worst reconstructed rows of x.

        Resets their Adam moments. Returns the number of latents set.
        """
        dead = torch.nonzero(fired == 0).flatten()
        residual = functional.normalize(x, dim=-1) - functional.normalize(
            self.decode(*self.encode(x)), dim=-1
        )
        worst = residual.norm(dim=-1).argsort(descending=True, stable=True)[: len(dead)]
        dead = dead[: len(worst)]
        atoms = functional.normalize(residual[worst], dim=-1)
        self.decoder_w[dead] = atoms
        self.encoder_w[:, dead] = atoms.T
        self.encoder_b[dead] = 0
        for parameter, of_dead in (
            (self.decoder_w, (dead,)),
            (self.encoder_w, (slice(None), dead)),
            (self.encoder_b, (dead,)),
        ):
            for moments in optimizer.state.get(parameter, {}).values():
                if moments.shape == parameter.shape:
                    moments[of_dead] = 0
        return len(dead)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scales decoder rows to unit norm."""
        self.decoder_w.data = functional.normalize(self.decoder_w.data, dim=-1)

    def arrays(self) -> dict[str, FloatArray]:
        """The parameters by name, as copies."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    def to_model(self) -> CompresSAE:
        """The parameters as plain arrays."""
        return CompresSAE.from_state_dict(self.state_dict(), self.k)
