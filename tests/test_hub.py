"""Models and indexes on the Hub: a server in this process that answers as the Hub does."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("huggingface_hub")

from folders import block_of
from hub_server import TOKEN, HubServer, hub_server
from huggingface_hub import HfApi, cached_assets_path

from compressae_index import (
    BackendError,
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
)
from compressae_index.arrays import FloatArray
from compressae_index.connectors import hub
from compressae_index.connectors.hub import from_pretrained, model_card, push_to_hub
from compressae_index.demo import DemoData
from compressae_index.measuring.model_report import model_report

REPO = "someone/texts"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server() as running:
        # The endpoint and the caches are constants that were read when the library was imported.
        monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=running.url))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        assets = partial(cached_assets_path, assets_dir=tmp_path / "assets")
        monkeypatch.setattr(hub, "cached_assets_path", assets)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def test_a_model_comes_back(server: HubServer, model: CompresSAE) -> None:
    url = push_to_hub(model, REPO, private=True, token=TOKEN)
    assert url == f"{server.url}/{REPO}/commit/{server.repositories[REPO][-1][0]}"
    assert server.created[0].items() >= {"name": "texts", "organization": "someone"}.items()
    assert server.created[0]["visibility"] == "private"
    names = {name.partition("-")[0] for name in server.files(REPO)}
    assert names == {".gitattributes", "README.md", "data", "manifest.json"}
    again = from_pretrained(CompresSAE, REPO)
    assert (again.fingerprint, again.k) == (model.fingerprint, model.k)


@pytest.mark.usefixtures("server")
def test_an_index_comes_back_mapped(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = CompressedIndex.build(
        vectors[:500], [f"id {i}" for i in range(500)], model=model, originals="float16", progress=False
    )
    push_to_hub(index, REPO, token=TOKEN)
    expected = index.search(queries, 10)
    for mmap in (False, True):
        found = from_pretrained(CompressedIndex, REPO, mmap=mmap).search(queries, 10)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert from_pretrained(CompressedIndex, REPO, originals=False).stats().disk_bytes_per_vector == 0
    mapped = pickle.loads(pickle.dumps(from_pretrained(CompressedIndex, REPO, mmap=True)))
    np.testing.assert_array_equal(mapped.search(queries, 10).ids, expected.ids)


def test_each_commit_is_downloaded_once(server: HubServer, model: CompresSAE) -> None:
    push_to_hub(model, REPO, token=TOKEN)
    first = server.repositories[REPO][-1][0]
    from_pretrained(CompresSAE, REPO)
    server.requests.clear()
    from_pretrained(CompresSAE, REPO)
    assert server.requests == [f"HEAD /{REPO}/resolve/main/manifest.json"]
    other = CompresSAE(model.encoder_w, model.encoder_b, model.decoder_w, 7, model.mean)
    push_to_hub(other, REPO, token=TOKEN)
    folders = {name.partition("/")[0] for name in server.files(REPO) if name.startswith("data-")}
    assert len(folders) == 1  # what the manifest names; the older data went with the same commit
    assert from_pretrained(CompresSAE, REPO).k == 7
    assert from_pretrained(CompresSAE, REPO, revision=first).k == model.k
    server.broken = True
    assert from_pretrained(CompresSAE, REPO).k == 7
    assert from_pretrained(CompresSAE, REPO, revision=first).k == model.k


def test_a_folder_of_the_name_is_read(model: CompresSAE, tmp_path: Path) -> None:
    model.save(tmp_path / "texts.model")
    assert from_pretrained(CompresSAE, str(tmp_path / "texts.model")).fingerprint == model.fingerprint


def test_the_card_of_a_model_says_what_was_measured(model: CompresSAE, vectors: FloatArray) -> None:
    report = model_report(model, vectors[:1000], ks=[8])
    card = model_card(model, REPO, report=report, licence="mit")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "compressae-index",
        "license": "mit",
        "tags": ["compressae-index", "sparse-autoencoder", "embeddings"],
    }
    assert report.as_text() in text
    assert "| latents | 512 |" in text
    assert f'from_pretrained(CompresSAE, "{REPO}")' in text


def test_the_card_of_an_index_has_its_bytes_and_frontier(
    model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
    index = CompressedIndex.build(vectors[:600], model=model, k=16, progress=False)
    card = model_card(index, REPO)
    assert yaml.safe_load(card.split("---\n")[1])["tags"][-1] == "vector-search"
    assert f"| bytes a vector, total | {index.stats().bytes_per_vector['total']:.1f} |" in card
    assert index.frontier is not None
    for point in index.frontier.points:
        line = f"| {point.recall:.3f} | {point.candidates} | {point.query_nnz} | {point.refine} |"
        assert line in card


def test_what_is_downloaded_is_checked(server: HubServer, model: CompresSAE) -> None:
    push_to_hub(model, REPO, token=TOKEN)
    good = server.files(REPO)
    tensors = next(name for name in good if name.endswith(".safetensors"))
    damaged = good[tensors][:-1] + bytes([good[tensors][-1] ^ 1])
    server.commit(REPO, good | {tensors: damaged})
    with pytest.raises(FormatError, match="does not match its checksum"):
        from_pretrained(CompresSAE, REPO)
    server.commit(REPO, {name: content for name, content in good.items() if name != tensors})
    with pytest.raises(FormatError, match=f"{REPO} lacks a file of compressae-index"):
        from_pretrained(CompresSAE, REPO)
    server.commit(REPO, good | {"manifest.json": good["manifest.json"].replace(b'"k": 16', b'"k": 15')})
    with pytest.raises(FormatError, match="does not match its own checksum"):
        from_pretrained(CompresSAE, REPO)
    server.commit(REPO, good)
    with pytest.raises(FormatError, match="holds: model; expected: index"):
        from_pretrained(CompressedIndex, REPO)


def test_no_path_leads_out_of_the_folder(server: HubServer, model: CompresSAE, tmp_path: Path) -> None:
    from compressae_index.persistence import _manifest_checksum  # a forger has it, too

    push_to_hub(model, REPO, token=TOKEN)
    good = server.files(REPO)
    for data, name in (("../..", "evil"), ("data-00000000", "../../evil"), ("data-00000000", "/evil")):
        manifest: dict[str, Any] = json.loads(good["manifest.json"])
        manifest |= {"data": data, "files": {name: {"bytes": 4, "sha256": ""}}}
        manifest["checksum"] = _manifest_checksum(manifest)
        server.commit(
            REPO, good | {"manifest.json": json.dumps(manifest).encode(), f"{data}/{name}": b"evil"}
        )
        server.requests.clear()
        with pytest.raises(FormatError, match="its manifest names"):
            from_pretrained(CompresSAE, REPO)
        assert not any("evil" in request for request in server.requests)
    assert not list(tmp_path.rglob("evil"))


def test_files_that_the_manifest_does_not_name_are_left(
    server: HubServer, model: CompresSAE, tmp_path: Path
) -> None:
    server.commit(REPO, {"setup.py": b"raise SystemExit", "README.md": b"old"})
    push_to_hub(model, REPO, token=TOKEN)
    assert server.files(REPO)["setup.py"] == b"raise SystemExit"
    assert server.files(REPO)["README.md"].startswith(b"---\nlibrary_name")
    from_pretrained(CompresSAE, REPO)
    assert not list(tmp_path.rglob("setup.py"))


def test_what_cannot_be_pushed(
    server: HubServer, model: CompresSAE, built: CompressedIndex, vectors: FloatArray
) -> None:
    push_to_hub(model, REPO, token=TOKEN)
    commits = len(server.repositories[REPO])
    with pytest.raises(FormatError, match="holds: model; expected: index"):
        push_to_hub(built, REPO, token=TOKEN)
    with pytest.raises(InputError, match="a CompresSAE or a CompressedIndex, got ndarray"):
        push_to_hub(vectors, REPO)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'a b' is no name of a repository"):
        push_to_hub(model, "a b", token=TOKEN)
    with pytest.raises(InputError, match="3 is no name of a repository"):
        push_to_hub(model, 3, token=TOKEN)  # type: ignore[arg-type]
    assert len(server.repositories[REPO]) == commits


def test_an_index_that_refers_to_a_file_is_refused(
    server: HubServer, model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    np.save(tmp_path / "texts.npy", vectors[:300])
    index = CompressedIndex.build(
        vectors[:300], model=model, originals=str(tmp_path / "texts.npy"), progress=False
    )
    with pytest.raises(InputError, match="refers to a file of original vectors"):
        push_to_hub(index, REPO, token=TOKEN)
    assert not server.requests


def test_failures_are_told_without_the_token(
    server: HubServer, model: CompresSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="'a b/c d' is no name of a repository"):
        from_pretrained(CompresSAE, "a b/c d")
    with pytest.raises(BackendError, match="nobody/nothing is not on the Hub, or not for this token"):
        from_pretrained(CompresSAE, "nobody/nothing", token=TOKEN)
    server.commit(REPO, {"README.md": b""})
    with pytest.raises(FormatError, match=f"{REPO} lacks a file of compressae-index"):
        from_pretrained(CompresSAE, REPO)
    with pytest.raises(BackendError, match="has no such revision"):
        from_pretrained(CompresSAE, REPO, revision="old")
    for token in ("hf_another", TOKEN[:-1]):
        with pytest.raises(BackendError, match="bad credentials") as caught:
            push_to_hub(model, REPO, token=token)
        assert token not in str(caught.value)
        assert caught.value.__context__ is None
    server.shutdown()
    server.server_close()
    with pytest.raises(BackendError, match="cannot be reached"):
        push_to_hub(model, REPO, token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for a while
    with pytest.raises(BackendError, match="cannot be reached"):
        from_pretrained(CompresSAE, "someone/else", token=TOKEN)


def test_the_environment_names_the_hub_and_the_token(model: CompresSAE, tmp_path: Path) -> None:
    """In a process of its own, as the library reads these when it is imported; then without a connection."""
    model.save(tmp_path / "texts.model")
    code = f"""
import sys
from compressae_index import CompresSAE
from compressae_index.connectors.hub import from_pretrained, push_to_hub
if sys.argv[1] == "push":
    push_to_hub(CompresSAE.load("texts.model"), "{REPO}")
print(from_pretrained(CompresSAE, "{REPO}").fingerprint)
"""
    with hub_server() as running:
        environment = os.environ | {
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
        }
        for word, extra in (("push", {}), ("pull", {"HF_HUB_OFFLINE": "1"})):
            done = subprocess.run(
                [sys.executable, "-P", "-W", "error", "-c", code, word],
                cwd=tmp_path,
                env=environment | extra,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == model.fingerprint


def test_the_code_of_the_page_runs(
    server: HubServer,
    built: CompressedIndex,
    demo_data: DemoData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = demo_data._replace(embeddings=demo_data.embeddings[:600])
    monkeypatch.setattr("compressae_index.demo.load_data", lambda: few)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    built.save("texts.index")
    names: dict[str, Any] = {}
    exec(block_of("docs/ecosystem.md", "compressae_index.connectors.hub"), names)
    assert len(names["index"]) == len(built)
    assert names["model"].fingerprint == built.model.fingerprint
    assert names["report"].as_text() in server.files("someone/texts-index")["README.md"].decode()
