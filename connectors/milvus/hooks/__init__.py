"""Sparse embeddings for the Milvus stores of LangChain and LlamaIndex and for pymilvus.model.

Each wraps an embedder of texts and a model, and returns codes split by sign. These stores search by agreement
alone; `MilvusIndex` adds the exact re-scoring. Import the module that you need: `hooks.langchain` (extra
"langchain"), `hooks.llama_index` (extra "llamaindex") or `hooks.pymilvus_model`. The first two cannot be
installed together: one needs pymilvus 3, the other an older one.
"""

from __future__ import annotations
