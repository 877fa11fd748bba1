"""Texts and metadata beside an index: what the stores for LangChain, LlamaIndex and Haystack share."""

from __future__ import annotations

from compressae_index.connectors.texts.records import Record
from compressae_index.connectors.texts.store import BUILD_AT, Filter, Hit, TextStore

__all__ = ["BUILD_AT", "Filter", "Hit", "Record", "TextStore"]
