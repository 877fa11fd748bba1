"""Resident memory of processes that build and load: what `stats` says, and at most twice that on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import CodecName, codec_of
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.embedded.sizes import RUN_ROWS

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"
)

N = 400_000
N_STORED = 20 * RUN_ROWS
K = 16

BEGIN = """
import json, sys
import numpy as np
from compressae_index import CompresSAE, CompressedIndex
from compressae_index.coding.chunks import Encoded
from compressae_index.coding.codes import SparseCodes
from compressae_index.embedded.sizes import RUN_ROWS
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import codec_of

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

folder, form, n, k = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = CompresSAE.load(folder + "/model")
"""
BUILD = (
    BEGIN
    + """
few = np.load(folder + "/latents.npy"), np.load(folder + "/values.npy")
repeated = (np.tile(array, (n // len(array), 1)) for array in few)
codes = SparseCodes(*repeated, model.n_latents)
empty = EmbeddedBackend(model.n_latents, k, codec_of(form))
empty.added([Encoded(codes[:1000])], 1, model)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
runs = (Encoded(codes[first : first + RUN_ROWS]) for first in range(0, n, RUN_ROWS))
backend = empty.added(runs, 1, model)
print(json.dumps([status("VmRSS") - before, status("VmHWM") - before, backend.nbytes]))
"""
)
LOAD = (
    BEGIN
    + """
queries = np.load(folder + "/queries.npy")
CompressedIndex.load(folder + "/small").search(queries, num_threads=1)
before = status("VmRSS")
index = CompressedIndex.load(folder + "/index", mmap=form == "map")
loaded = status("VmRSS") - before
for query in queries[:k]:
    index.search(query, candidates=10, query_nnz=4, num_threads=1)
parts = index.stats().bytes_per_vector
print(json.dumps([loaded, status("VmRSS") - before, {name: round(size * n) for name, size in parts.items()}]))
"""
)
FILE = (
    BEGIN
    + """
from compressae_index.connectors.faiss import FaissIndex
path = folder + "/filed" if form == "disk" else None
FaissIndex.from_index(CompressedIndex.load(folder + "/small", mmap=True), path, progress=False)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
index = FaissIndex.from_index(CompressedIndex.load(folder + "/index", mmap=True), path, progress=False)
print(json.dumps([status("VmRSS") - before, status("VmHWM") - before, index.documents.nbytes]))
"""
)


def run_python(code: str, *arguments: object, keeps_freed: bool = False) -> tuple[int, int, dict[str, int]]:
    """The output of the code. Freed memory goes back to the system at once, unless the process keeps it."""
    command = [sys.executable, "-P", "-W", "error", "-c", code, *map(str, arguments)]
    settings = {"OMP_NUM_THREADS": "1"} | ({} if keeps_freed else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    first, second, parts = json.loads(done.stdout)
    return first, second, parts


MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize("form", get_args(CodecName))
def test_building_takes_what_stats_says_and_at_most_twice_that_on_the_way(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray, form: CodecName
) -> None:
    codes = model.fold(model.encode(vectors, K))
    model.save(tmp_path / "model")
    np.save(tmp_path / "latents.npy", codes.latents)
    np.save(tmp_path / "values.npy", codes.values)
    grown, _, parts = run_python(BUILD, tmp_path, form, N, K)
    _, peak, _ = run_python(BUILD, tmp_path, form, N, K, keeps_freed=True)
    size = sum(parts.values())
    assert parts["inverted"] > N * K * 3
    assert abs(grown - size) < 0.15 * size + 3 * MIB, (
        f"{grown / MIB:.1f} MiB grown, stats says {size / MIB:.1f}"
    )
    assert peak < 2 * size, f"{peak / MIB:.1f} MiB at most, the index takes {size / MIB:.1f}"


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> Path:
    """A directory with an index of N_STORED vectors, and one of few."""
    folder = tmp_path_factory.mktemp("stored")
    model.save(folder / "model")
    np.save(folder / "queries.npy", queries)
    few = model.fold(model.encode(vectors, K))
    run = SparseCodes.concatenate([few] * (RUN_ROWS // len(few) + 1))[:RUN_ROWS]
    for name, n in (("small", RUN_ROWS), ("index", N_STORED)):
        backend = EmbeddedBackend(model.n_latents, K, codec_of("aligned"))
        for _ in range(n // RUN_ROWS):
            backend = backend.added([Encoded(run)], 1)
        CompressedIndex(model, documents=EmbeddedDocuments(backend)).save(folder / name)
    return folder


def test_loading_takes_what_stats_says(stored: Path) -> None:
    loaded, _, parts = run_python(LOAD, stored, "read", N_STORED, 1)
    assert parts["total"] > N_STORED * 6 * K
    assert abs(loaded - parts["total"]) < 0.15 * parts["total"] + 3 * MIB


def test_a_mapped_index_takes_what_searches_touch(stored: Path) -> None:
    loaded, searched, parts = run_python(LOAD, stored, "map", N_STORED, 3)
    assert loaded < 3 * MIB
    # The system maps up to a MiB around each place that is read.
    assert searched < 0.4 * parts["total"]


@pytest.mark.slow
def test_lists_of_faiss_are_built_on_disk_in_the_memory_of_a_batch(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray
) -> None:
    model.save(tmp_path / "model")
    few = model.fold(model.encode(vectors, K))
    run = SparseCodes.concatenate([few] * (RUN_ROWS // len(few) + 1))[:RUN_ROWS]
    for name, runs in (("small", 1), ("index", 8)):
        backend = EmbeddedBackend(model.n_latents, K, codec_of("packed"))
        for _ in range(runs):
            backend = backend.added([Encoded(run)], 1)
        CompressedIndex(model, documents=EmbeddedDocuments(backend)).save(tmp_path / name)
    _, peak, parts = run_python(FILE, tmp_path, "memory", 0, 0)
    assert peak > parts["inverted"] > 75 * MIB
    _, peak, parts = run_python(FILE, tmp_path, "disk", 0, 0)
    assert parts["inverted"] > 75 * MIB
    # Pages of the packed rows that are read, and a batch.
    assert peak < parts["forward"] + 24 * MIB, f"{peak / MIB:.1f} MiB at most"
