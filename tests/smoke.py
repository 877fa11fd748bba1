"""Builds and searches by an installed wheel, with its own dependencies alone: python tests/smoke.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from compressae_index import CompressedIndex
from compressae_index.demo import load_data
from compressae_index.measuring.exact import exact_neighbours


def main() -> None:
    """Builds an index, saves and loads it, and compares it with exact search."""
    data = load_data()
    rows, queries = data.embeddings[:2000], data.queries[:100]
    index = CompressedIndex.build(rows, k=16, residual_bits=4, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        index = CompressedIndex.load(Path(folder) / "index")
    found = index.search(queries, k=10, mode="dense").ids
    true = exact_neighbours(rows, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)])
    print(f"recall@10 {recall:.3f}, {index.stats().simd}")
    assert recall > 0.9, recall


if __name__ == "__main__":
    main()
