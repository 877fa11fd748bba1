"""Training of CompresSAE. The only package that imports torch."""

from __future__ import annotations

from compressae_index.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("torch", "train", "training") from error

from compressae_index.training.config import PRESETS, TrainConfig
from compressae_index.training.module import CompresSAEModule
from compressae_index.training.run import Check, TrainResult, train

__all__ = ["PRESETS", "Check", "CompresSAEModule", "TrainConfig", "TrainResult", "train"]
