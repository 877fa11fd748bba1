"""Directories that earlier releases wrote are read, and answer as they did then."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.coding.directory import CodeStore
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.embedded.thinning import strongest
from compressae_index.persistence import FORMAT_VERSION
from compressae_index.search.queries import Asked

GOLDEN = Path(__file__).parent / "golden"
INDEXES = ("packed", "aligned", "strings", "inner-product", "empty")


def unpacked(version: int, folder: Path) -> Path:
    """The folder, with the directories of a format version in it."""
    with tarfile.open(GOLDEN / f"format-{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_answers(index: CompressedIndex, answers: Mapping[str, Any], name: str) -> None:
    for mode in ("sparse", "dense", "two_stage"):
        scores, ids = index.search(answers["queries"], 5, mode=mode, candidates=20)
        np.testing.assert_allclose(scores, answers[f"{name}.{mode}.scores"], rtol=0, atol=1e-6)
        expected = answers[f"{name}.{mode}.ids"]
        np.testing.assert_array_equal(ids.astype(expected.dtype), expected)


@pytest.fixture(autouse=True)
def by_plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are the best by plain sums, as in the release of format 1."""
    monkeypatch.setattr(Asked, "is_damped", False)


@pytest.fixture(scope="module", params=range(1, FORMAT_VERSION + 1), ids="format-{}".format)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories that the release of a format version wrote."""
    return unpacked(request.param, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def answers(written: Path) -> dict[str, Any]:
    """Queries, embeddings, and the results of that release."""
    with np.load(written / "answers.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("name", INDEXES)
def test_indexes_answer_as_they_did(written: Path, answers: dict[str, Any], name: str, mmap: bool) -> None:
    assert_answers(CompressedIndex.load(written / name, mmap=mmap), answers, name)


@pytest.mark.parametrize("name", INDEXES)
def test_what_has_no_new_parts_is_saved_as_it_was(written: Path, tmp_path: Path, name: str) -> None:
    CompressedIndex.load(written / name).save(tmp_path / name)
    then, now = (json.loads((path / name / "manifest.json").read_bytes()) for path in (written, tmp_path))
    assert now["format_version"] == then["format_version"]
    assert now["files"].keys() == then["files"].keys()
    assert now["meta"].keys() == then["meta"].keys()
    assert now["meta"]["packing"] == then["meta"]["packing"]


def test_models_encode_as_they_did(written: Path, answers: dict[str, Any]) -> None:
    model, codes = CompresSAE.load(written / "model"), CodeStore.load(written / "codes")
    assert model.fingerprint == codes.fingerprint
    made = model.fold(model.encode(answers["embeddings"]))
    np.testing.assert_array_equal(made.latents, codes[0 : len(codes)].latents)
    np.testing.assert_allclose(made.values, codes[0 : len(codes)].values, rtol=0, atol=1e-6)


def test_faiss_lists_hold_the_codes_of_their_index(written: Path) -> None:
    index, filed = CompressedIndex.load(written / "strings"), FaissIndex.load(written / "faiss")
    ids = list(index.ids)
    np.testing.assert_array_equal(filed.reconstruct(ids), index.reconstruct(ids))


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_clusters_are_left_behind(tmp_path: Path, mmap: bool) -> None:
    """Format 1 had clusters: their vectors keep their order, and only they themselves are not saved again."""
    then, now = unpacked(1, tmp_path) / "clustered", tmp_path / "again"
    index = CompressedIndex.load(then, mmap=mmap)
    assert (np.diff(index.ids) < 0).any()
    index.save(now)
    files = [set(json.loads((path / "manifest.json").read_bytes())["files"]) for path in (then, now)]
    assert files[0] - files[1] == {f"clusters_{name}.npy" for name in ("begins", "means", "scales")}
    assert not files[1] - files[0]
    with np.load(tmp_path / "answers.npz") as answers:
        for each in (index, CompressedIndex.load(now, mmap=mmap)):
            assert_answers(each, answers, "clustered")


def test_lists_of_the_strongest_stay_so(written: Path, answers: dict[str, Any]) -> None:
    """Indexes of before there was a threshold hold as many postings of each document, of new ones too."""
    index = CompressedIndex.load(written / "strings")
    index.add(answers["embeddings"][:20], [f"more {number}" for number in range(20)])
    index.compact()
    backend, codes = index.documents.backend, index.codes(index.ids)
    assert backend.threshold is None
    lengths = np.bincount(codes.latents[strongest(codes, 4)], minlength=64)
    np.testing.assert_array_equal(backend.list_lengths(), lengths)


def test_what_is_loaded_can_be_changed(written: Path, answers: dict[str, Any]) -> None:
    index = CompressedIndex.load(written / "strings")
    held = len(index)
    index.add(answers["embeddings"][:2], ["one more", "and another"])
    index.remove(["new"])
    index.compact()
    assert len(index) == held + 1
    _, ids = index.search(answers["embeddings"][:1], 1, mode="dense")
    assert ids[0, 0] in ("text 0 ž", "one more")
