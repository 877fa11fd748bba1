"""Writes the golden files of a format version: `python tests/golden/make.py`, with the release that has it.

An archive holds a directory of each kind that the release saves, and what searches of its indexes answered.
`tests/test_golden.py` holds later releases to reading it and answering the same. Never write the archive of
an older format version again: that would test nothing but the release that wrote it.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.coding.directory import encode_to_directory
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.demo import load_data
from compressae_index.persistence import FORMAT_VERSION
from compressae_index.training import TrainConfig, train

ROWS, DIM = 300, 24
ARCHIVE = Path(__file__).parent / f"format-{FORMAT_VERSION}.tar.xz"


def main() -> None:
    """Writes the archive next to this file."""
    data = load_data()
    embeddings = np.ascontiguousarray(data.embeddings[:4000, :DIM])
    queries = np.ascontiguousarray(data.queries[:8, :DIM])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = _saved(folder, embeddings, queries)
        np.savez(folder / "answers.npz", queries=queries, embeddings=embeddings[:ROWS], **answers)
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(folder, arcname=".")
    print(ARCHIVE, ARCHIVE.stat().st_size, "bytes")


def _saved(folder: Path, embeddings: Any, queries: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"k": 6, "n_latents": 64, "refine_rounds": 8, "steps": 4, "batch_size": 256}
    model = train(embeddings, TrainConfig(**settings), progress=False).model
    plain = train(embeddings, TrainConfig(**settings, center=False), progress=False).model
    model.save(folder / "model")
    encode_to_directory(model, embeddings[:ROWS], folder / "codes", shard_rows=128)
    names = [f"text {number} ž" for number in range(ROWS)]

    def built(model: CompresSAE, ids: Any = None, **options: Any) -> CompressedIndex:
        return CompressedIndex.build(embeddings[:ROWS], ids, model=model, progress=False, **options)

    changed = built(model, names, value_bits=5, postings=4)
    changed.remove(names[5:50])
    changed.upsert(embeddings[ROWS : ROWS + 2], [names[60], "new"])
    indexes = {
        "packed": built(model),
        "aligned": built(model, np.arange(ROWS) * 7, forward="aligned"),
        "strings": changed,
        "inner-product": built(plain, metric="inner_product", k=4),
        "empty": CompressedIndex(model),
    }
    answers: dict[str, Any] = {}
    for name, index in indexes.items():
        index.save(folder / name)
        for mode in ("sparse", "dense", "two_stage"):
            scores, ids = index.search(queries, 5, mode=mode, candidates=20)
            answers[f"{name}.{mode}.scores"] = scores
            answers[f"{name}.{mode}.ids"] = ids.astype(str) if ids.dtype == object else ids
    FaissIndex.from_index(indexes["strings"], progress=False).save(folder / "faiss")
    return answers


if __name__ == "__main__":
    main()
