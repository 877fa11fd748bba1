"""Faiss: posting lists that Faiss keeps, and flat indexes of reconstructions on processors and GPUs."""

from __future__ import annotations

from compressae_index.connectors.faiss.dense import DenseStore
from compressae_index.connectors.faiss.index import FaissIndex

__all__ = ["DenseStore", "FaissIndex"]
