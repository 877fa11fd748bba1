"""What an index says of itself: statistics of searches, and logs that are silent by default."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_backends import Toy

from compressae_index import CompresSAE, CompressedIndex, Index
from compressae_index.arrays import FloatArray
from compressae_index.search.queries import SearchStats


def stats_of(index: Index, queries: FloatArray, **settings: Any) -> SearchStats:
    """Of a search that answers as without statistics."""
    found, plain = index.search(queries, 5, stats=True, **settings), index.search(queries, 5, **settings)
    np.testing.assert_array_equal(found.scores, plain.scores)
    np.testing.assert_array_equal(found.ids, plain.ids)
    assert plain.stats is None
    assert found.stats is not None
    assert pickle.loads(pickle.dumps(found)).stats == found.stats
    return found.stats


def test_counts_are_those_of_lists_and_codes(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:1000], model=model, k=8, originals="float16", progress=False)
    found = stats_of(index, queries, query_nnz=20, candidates=300, refine=40)
    codes = index.codes(index.ids)

    def postings(projections: FloatArray) -> int:
        terms = np.argsort(-np.abs(projections), axis=1, kind="stable")[:, :20]
        return sum(int(np.isin(codes.latents[codes.values != 0], each).sum()) for each in terms)

    read = postings(model.seen(queries, 1, rough=True)[0])
    assert found.postings == read
    assert (found.queries, found.candidates, found.rescored) == (50, 15_000, 15_000)
    assert found.refined == 2000
    row = int(index.stats().bytes_per_vector["forward"])  # without levels, which all share
    assert found.bytes_read == (3 * read + 15_000 * row + 2000 * 384 * 2)
    assert set(found.milliseconds) == {"project", "find", "total"}
    assert found.milliseconds["total"] >= found.milliseconds["find"] > 0
    dense = stats_of(index, queries, mode="dense", refine=0)
    assert (dense.postings, dense.rescored, dense.refined) == (0, 50_000, 0)
    sparse = stats_of(index, queries, mode="sparse", query_nnz=20)
    assert sparse.postings == postings(model.project(queries))


def test_residual_codes_are_read(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:500], model=model, k=8, residual_bits=2, progress=False)
    with_them, without = (stats_of(index, queries, candidates=100, refine=refine) for refine in (30, 0))
    assert with_them.bytes_read is not None
    assert without.bytes_read is not None
    row = index.stats().bytes_per_vector["residuals"]
    assert with_them.bytes_read - without.bytes_read == 50 * 30 * row


def test_an_empty_index(model: CompresSAE, queries: FloatArray) -> None:
    found = stats_of(CompressedIndex(model), queries)
    assert (found.candidates, found.postings, found.bytes_read) == (0, 0, 0)


def test_stages_of_a_back_end_are_timed(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = Index(model, Toy(model.n_latents, model.k, are_strings=False))
    index.add(vectors[:100], np.arange(100))
    found = stats_of(index, queries)
    assert set(found.milliseconds) == {"project", "find", "re-score", "total"}
    assert (found.postings, found.bytes_read) == (None, None)


def test_logs(
    model: CompresSAE, vectors: FloatArray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "compressae_index")
    index = CompressedIndex.build(vectors[:200], model=model, k=8, progress=False)
    index.add(vectors[200:203])
    index.remove([1, 2])
    index.compact()
    index.save(tmp_path / "index")
    CompressedIndex.load(tmp_path / "index")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "built an index of 200 vectors: k = 8, 512 latents",
        "added 3 vectors",
        "removed 2 vectors",
        "compacted 203 vectors to 201",
        f"saved 201 vectors to {tmp_path / 'index'}",
        f"loaded 201 vectors from {tmp_path / 'index'}",
    ]


def test_silence_is_the_default(tmp_path: Path, built: CompressedIndex) -> None:
    built.save(tmp_path / "index")
    code = "import sys, compressae_index\ncompressae_index.CompressedIndex.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "index")], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
