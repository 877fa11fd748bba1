"""Sparse embeddings for what others built on Milvus: LangChain, LlamaIndex and pymilvus.model.

Each wraps an embedder of texts and a model, and gives codes split by sign. They are searched by agreement
alone; `MilvusIndex` adds the exact re-scoring. Import the module that is wanted: `hooks.langchain` (extra
"langchain"), `hooks.llama_index` (extra "llamaindex") or `hooks.pymilvus_model`. The first two cannot be
installed together: one needs pymilvus 3, the other an older one.
"""

from __future__ import annotations
