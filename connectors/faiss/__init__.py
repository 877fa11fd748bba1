"""Faiss: codes in inverted lists, reconstructions in flat indexes, import and export of plain indexes."""

from __future__ import annotations

from compressae_index.connectors.faiss.dense import DenseStore
from compressae_index.connectors.faiss.exchange import FaissVectors, from_faiss, to_faiss
from compressae_index.connectors.faiss.index import FaissIndex
from compressae_index.connectors.faiss.ivf import dictionary_ivf, search_once

__all__ = [
    "DenseStore",
    "FaissIndex",
    "FaissVectors",
    "dictionary_ivf",
    "from_faiss",
    "search_once",
    "to_faiss",
]
