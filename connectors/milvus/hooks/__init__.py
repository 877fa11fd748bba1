"""Sparse embeddings for the Milvus stores of LangChain and LlamaIndex and for pymilvus.model.

Each wraps a text embedder and a model, and returns codes split by sign. The stores score by shared latents,
as mode "sparse" does; only `MilvusIndex` re-scores. Import the module that you need: `hooks.langchain` (extra
"langchain"), `hooks.llama_index` (extra "llamaindex") or `hooks.pymilvus_model`. The first two cannot be
installed together, as one needs pymilvus 3 and the other an older version.
"""

from __future__ import annotations
