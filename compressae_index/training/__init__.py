"""Training of CompresSAE: a dictionary, by rounds, and an encoder, by steps, which alone need torch."""

from __future__ import annotations

from compressae_index.training.config import PRESETS, TrainConfig
from compressae_index.training.course import Check
from compressae_index.training.run import TrainResult, train

__all__ = ["PRESETS", "Check", "TrainConfig", "TrainResult", "train"]
