"""Training of CompresSAE. The only module that imports torch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressae_index.checks import FloatArray, check_int, check_vectors, normalize_rows
from compressae_index.codes import MAX_LATENTS
from compressae_index.errors import InputError, MissingExtraError, TrainingError
from compressae_index.model import CompresSAE
from compressae_index.progress import track
from compressae_index.sources import Vectors, open_vectors

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "train", "training") from error

DEFAULT_LATENTS = 4096
# Weight of the loss at 4k nonzeros, as in the released code of the paper.
LOSS_4K_WEIGHT = 1 / 8
# Times 1 / sqrt(d), the default peak of the learning rate; twice as much leaves latents dead.
LEARNING_RATE = 0.08


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training.

    Raises:
        InputError: a setting is out of range, k > n_latents, or 4k > n_latents.
    """

    k: int = 32
    """Nonzeros a code."""
    n_latents: int | None = None
    """Size of the dictionary; 4096 by default, less for fewer than 8,192 rows."""
    initialization: str = "data"
    """"data": dictionary rows are training vectors, less their mean; "random": as in the paper's code."""
    steps: int = 300
    """Optimiser steps."""
    batch_size: int = 1024
    """Rows a step."""
    learning_rate: float | None = None
    """Peak of Adam's rate, which warms up over the first twentieth and then falls as a cosine to a tenth; by
    default 0.08 / sqrt(d): an entry of a unit vector is about 1 / sqrt(d), and Adam's step does not scale."""
    max_rows: int = 262_144
    """Rows to train on; of more, a random sample is drawn."""
    seed: int = 0
    """Of the sample, the initialisation and the order of rows."""

    def __post_init__(self) -> None:
        check_int(self.k, "k", 1)
        if self.n_latents is not None:
            check_int(self.n_latents, "n_latents", 1, MAX_LATENTS)
            _check_multi_k(self.k, self.n_latents)
        for name in ("batch_size", "max_rows", "steps"):
            check_int(getattr(self, name), name, 0 if name == "steps" else 1)
        check_int(self.seed, "seed", 0)
        if self.initialization not in ("data", "random"):
            msg = f"initialization must be 'data' or 'random', got {self.initialization!r}"
            raise InputError(msg)
        rate = self.learning_rate
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            msg = f"learning_rate must be positive and finite, got {rate}"
            raise InputError(msg)

    def with_codes(self, k: int, n_latents: int | None) -> TrainConfig:
        """These settings for codes of another k and dictionary size."""
        return replace(self, k=k, n_latents=n_latents)


def _check_multi_k(k: int, n_latents: int) -> None:
    check_int(k, "k", 1, n_latents, "n_latents")
    if 4 * k > n_latents:
        msg = f"the loss needs 4k <= n_latents, got 4k = {4 * k} and n_latents = {n_latents}"
        raise InputError(msg)


class Losses(NamedTuple):
    """Batch means."""

    cosine: torch.Tensor
    """Cosine distance of x and its reconstruction from k latents."""
    cosine_4k: torch.Tensor
    """The same from 4k latents."""
    total: torch.Tensor
    """cosine + cosine_4k / 8, what is minimised."""


class TrainResult(NamedTuple):
    """A trained model and how training went."""

    model: CompresSAE
    losses: FloatArray
    """(steps,) total loss of each step's batch."""
    seconds: float


class CompresSAEModule(nn.Module):
    """CompresSAE as in arXiv 2505.11388 and recombee/CompresSAE, with its parameter names.

    s = phi(x / |x| W_enc + b_enc, k), where phi keeps the k largest magnitudes with their signs;
    x_hat = s W_dec with unit rows of W_dec.
    """

    def __init__(self, dim: int, n_latents: int, k: int) -> None:
        super().__init__()
        _check_multi_k(k, n_latents)
        self.k = k
        self.encoder_w = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(dim, n_latents)))
        self.encoder_b = nn.Parameter(torch.zeros(n_latents))
        self.decoder_w = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(n_latents, dim)))
        self.normalize_decoder()

    def initialize_from(self, rows: torch.Tensor, mean: torch.Tensor) -> None:
        """Dictionary from training vectors (n_latents, dim) less the mean; the encoder is its transpose."""
        centred = functional.normalize(rows - mean, dim=-1)
        # A row that equals the mean has no direction of its own; it keeps its random one.
        self.decoder_w.data = torch.where(centred.norm(dim=-1, keepdim=True) > 0.5, centred, self.decoder_w)
        self.encoder_w.data = self.decoder_w.data.T.contiguous()

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Dense activations of x (b, dim) before the top-k: (b, n_latents)."""
        return functional.normalize(x, dim=-1) @ self.encoder_w + self.encoder_b

    def encode(self, x: torch.Tensor, k: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest magnitudes of each row's activations, largest first: latents and values, (b, k)."""
        activations = self.activations(x)
        latents = activations.abs().topk(self.k if k is None else k, dim=-1).indices
        return latents, activations.gather(-1, latents)

    def decode(self, latents: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Reconstructions (b, dim) of codes (b, k): k dictionary rows each, no dense product."""
        return functional.embedding_bag(latents, self.decoder_w, per_sample_weights=values, mode="sum")

    def losses(self, x: torch.Tensor) -> Losses:
        """Losses of a batch of nonzero rows (b, dim)."""
        latents, values = self.encode(x, 4 * self.k)
        cosine, cosine_4k = (
            1 - functional.cosine_similarity(x, self.decode(latents[:, :k], values[:, :k]), dim=-1).mean()
            for k in (self.k, 4 * self.k)
        )
        return Losses(cosine, cosine_4k, cosine + LOSS_4K_WEIGHT * cosine_4k)

    def train_step(self, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> Losses:
        """One optimiser step, after which decoder rows have unit norm again."""
        losses = self.losses(x)
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.normalize_decoder()
        return losses

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scales decoder rows to unit norm."""
        self.decoder_w.data = functional.normalize(self.decoder_w.data, dim=-1)

    def to_model(self) -> CompresSAE:
        """The parameters as plain arrays."""
        return CompresSAE.from_state_dict(self.state_dict(), self.k)


def train(
    embeddings: Vectors | Any, config: TrainConfig | None = None, *, progress: bool = False
) -> TrainResult:
    """Trains a model on embeddings.

    Args:
        embeddings: (n, d) floating point, array or file path; rows finite and not zero.
        config: settings.
        progress: show a progress bar.

    Raises:
        InputError: bad rows, or more latents than rows to initialise them from.
        TrainingError: the loss is not finite any more.
    """
    config = TrainConfig() if config is None else config
    started = time.perf_counter()
    vectors = open_vectors(embeddings)
    n_latents = _choose_latents(vectors.shape[0], config)
    rng = np.random.default_rng(config.seed)
    rows = torch.from_numpy(_sample(vectors, config.max_rows, rng))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = CompresSAEModule(rows.shape[1], n_latents, config.k)
        if config.initialization == "data":
            chosen = torch.from_numpy(rng.permutation(len(rows))[:n_latents])
            module.initialize_from(rows[chosen], rows.mean(dim=0))
        losses = _run(module, rows, config, rng, progress)
    return TrainResult(module.to_model(), losses, time.perf_counter() - started)


def _choose_latents(n: int, config: TrainConfig) -> int:
    if config.n_latents is None:
        n_latents = min(DEFAULT_LATENTS, n // 2)
        if 4 * config.k > n_latents:
            msg = (
                f"{n} vectors are too few to learn a dictionary for k = {config.k}: "
                f"at least {8 * config.k} are needed, or a smaller k"
            )
            raise InputError(msg)
        return n_latents
    if config.initialization == "data" and config.n_latents > min(n, config.max_rows):
        msg = f"n_latents = {config.n_latents} needs at least as many vectors to start from, got {n}"
        raise InputError(msg)
    return config.n_latents


def _sample(vectors: Vectors, max_rows: int, rng: np.random.Generator) -> FloatArray:
    """Normalised float32 rows; of more than max_rows, blocks of rows spread at random over all."""
    n, block = vectors.shape[0], 4096
    starts: npt.NDArray[np.int64] = np.arange(0, n, block)
    if n > max_rows:
        starts = np.sort(rng.permutation(starts)[: max(max_rows // block, 1)])
    batches = [
        normalize_rows(check_vectors(vectors[int(start) : int(start) + block], first_row=int(start)))
        for start in starts
    ]
    return np.concatenate(batches)[:max_rows]


def _run(
    module: CompresSAEModule,
    rows: torch.Tensor,
    config: TrainConfig,
    rng: np.random.Generator,
    progress: bool,
) -> FloatArray:
    rate = LEARNING_RATE / math.sqrt(rows.shape[1]) if config.learning_rate is None else config.learning_rate
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    history = np.empty(config.steps, dtype=np.float32)
    batch_size = min(config.batch_size, len(rows))
    order, position = rng.permutation(len(rows)), 0
    with track(config.steps, "training", enabled=progress, unit="steps") as advance:
        for step in range(config.steps):
            if position + batch_size > len(rows):
                order, position = rng.permutation(len(rows)), 0
            batch = rows[torch.from_numpy(order[position : position + batch_size])]
            position += batch_size
            history[step] = float(module.train_step(optimizer, batch).total.detach())
            if not math.isfinite(history[step]):
                msg = f"the loss is {history[step]} at step {step}; try a smaller learning_rate"
                raise TrainingError(msg)
            schedule.step()
            advance(1)
    return history


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to a tenth."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
