"""The public names, and the cost of importing them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import compressae_index
from compressae_index import CompressedIndex


def run_python(code: str, *arguments: str) -> str:
    """Output of a fresh process, which must succeed."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_sorted_and_every_name_exists() -> None:
    names = compressae_index.__all__
    assert names == sorted(names)
    assert dir(compressae_index) == names
    for name in names:
        assert getattr(compressae_index, name) is not None


def test_version_has_an_entry_in_the_changelog() -> None:
    changelog = Path(__file__).parent.parent / "CHANGELOG.md"
    assert f"## {compressae_index.__version__}" in changelog.read_text()


def test_import_load_and_search_need_no_heavy_library(built: CompressedIndex, tmp_path: Path) -> None:
    built.save(tmp_path / "index")
    code = """
import json, sys
import numpy as np
import compressae_index
index = compressae_index.CompressedIndex.load(sys.argv[1], mmap=True)
query = np.ones((1, index.model.dim), dtype=np.float32)
for mode in ("sparse", "dense", "two_stage"):
    for scoring in ("asymmetric", "symmetric"):
        index.search(query, 5, mode=mode, scoring=scoring)
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(json.loads(run_python(code, str(tmp_path / "index"))))
    assert not loaded & {"torch", "faiss", "pymilvus", "h5py", "pyarrow", "matplotlib"}
    assert not loaded & {"langchain_core", "llama_index", "haystack"}


def test_training_a_dictionary_needs_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from compressae_index import CompressedIndex, MissingExtraError, TrainConfig, train
from compressae_index.demo import load_data

rows = load_data().embeddings[:1200]
index = CompressedIndex.build(rows, k=8, config=TrainConfig.preset("fast", steps=0), progress=False)
index.recode(progress=False)
assert (index.search(rows, 1, mode="dense").ids[:, 0] == np.arange(len(rows))).mean() > 0.95
for attempt in (
    lambda: train(rows),
    lambda: CompressedIndex.build(rows, encoder="topk"),
    lambda: CompressedIndex.build(rows, config=TrainConfig(k=8)),
):
    try:
        attempt()
    except MissingExtraError as error:
        print(error)
"""
    said = run_python(code).splitlines()
    assert len(said) == 3
    assert set(said) == {
        "training an encoder (steps = 0 learns a dictionary alone) needs torch, which is not installed; "
        "run: pip install 'compressae-index[train]'"
    }
