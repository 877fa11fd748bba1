"""Saved directories: what was saved comes back, or an error says why not; a crash loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import assert_nothing_stray, content_of
from oracles import assert_same

from compressae_index import CompresSAE, CompressedIndex, FormatError, NewerFormatError, persistence
from compressae_index.arrays import FloatArray
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.texts import Record, TextStore
from compressae_index.persistence import _manifest_checksum, describe
from compressae_index.search.queries import MODES


def assert_same_index(a: CompressedIndex, b: CompressedIndex, queries: FloatArray) -> None:
    assert a.ids.tolist() == b.ids.tolist()
    assert (a.k, a.encoder, a.model.fingerprint) == (b.k, b.encoder, b.model.fingerprint)
    for mode in MODES:
        assert_same(*(which.search(queries, 7, mode=mode, candidates=50) for which in (a, b)))


def make(kind: str, model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    if kind == "empty":
        return CompressedIndex(model, k=5, encoder="topk")
    ids: Any = {"strings": ["", "a\0", *(f"é{i}" for i in range(198))], "counted": None}.get(
        kind, np.arange(200)[::-1] * 2**40
    )
    index = CompressedIndex.build(vectors[:200], ids, model=model, k=16, progress=False)
    if kind == "some removed":
        index.remove(index.ids[3:30])
    if kind == "all removed":
        index.remove(index.ids)
    return index


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["integers", "strings", "counted", "some removed", "all removed", "empty"])
def test_round_trip(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path, kind: str, mmap: bool
) -> None:
    index = make(kind, model, vectors)
    index.save(tmp_path / "new" / "index")
    assert_nothing_stray(tmp_path / "new" / "index")
    loaded = CompressedIndex.load(str(tmp_path / "new" / "index"), mmap=mmap)
    assert_same_index(loaded, index, queries)
    assert loaded.stats() == index.stats()
    # A loaded index can be changed as one that was built.
    names: Any = ["one", "two"] if kind == "strings" else [507, 509]
    for which in (loaded, index):
        which.add(vectors[300:302], names)
        which.remove(names[:1])
    assert_same_index(loaded, index, queries)
    loaded.save(tmp_path / "again")
    assert_same_index(CompressedIndex.load(tmp_path / "again"), index, queries)


@pytest.mark.parametrize("kind", ["embedded", "faiss", "texts"])
def test_saving_counts_all_bytes(
    kind: str, model: CompresSAE, vectors: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Any = CompressedIndex.build(vectors[:2000], model=model, k=8, originals="float16", progress=False)
    index.labels = {"3+": "kidney"}
    if kind == "faiss":
        index = FaissIndex.from_index(index, progress=False)
    if kind == "texts":
        filled = TextStore()
        filled.write([Record(f"id {n}", f"text {n}", {}) for n in range(2000)], vectors[:2000])
        filled.save(tmp_path / "filled")
        index = TextStore.load(tmp_path / "filled")  # whose database has no unused pages
    totals, done = list[int](), list[int]()

    @contextmanager
    def counting(total: int, label: str, *, enabled: bool, unit: str) -> Iterator[Callable[[int], object]]:
        assert (label, enabled, unit) == ("saving", True, "B")
        totals.append(total)
        yield done.append

    monkeypatch.setattr(persistence, "track", counting)
    index.save(tmp_path / "index", progress=True)
    # All is written, and read once for checksums. The total lacks the headers of files.
    size = sum(file.stat().st_size for file in data_of(tmp_path / "index").iterdir())
    assert 0.99 * 2 * size < totals[0] <= 2 * size
    assert 0.99 * totals[0] < sum(done) <= 2 * size


@pytest.mark.parametrize("kind", ["embedded", "texts"])
def test_loading_shows_its_progress(
    kind: str,
    index: CompressedIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("compressae_index.progress.FIRST_LINE", 0)
    saved = TextStore.of(index, ["text"] * len(index)) if kind == "texts" else index
    saved.save(tmp_path / "index")
    type(saved).load(tmp_path / "index")
    assert capsys.readouterr().err == ""
    type(saved).load(tmp_path / "index", progress=True)
    said = re.search(r"loading: ([\d,]+) of ([\d,]+) B", capsys.readouterr().err)
    assert said
    size = sum(file.stat().st_size for file in data_of(tmp_path / "index").iterdir())
    assert 0 < int(said[1].replace(",", "")) < int(said[2].replace(",", "")) == size


@pytest.fixture
def saved(index: CompressedIndex, tmp_path: Path) -> Path:
    index.remove([1010])
    index.save(tmp_path / "index")
    return tmp_path / "index"


def data_of(saved: Path) -> Path:
    (data,) = saved.glob("data-*")
    return data


def files_of(saved: Path) -> list[Path]:
    files = [saved / "manifest.json", *sorted(data_of(saved).iterdir())]
    assert len(files) == 14
    return files


def rewrite(saved: Path, change: Callable[[dict[str, Any]], object], *, checksum: bool = True) -> None:
    """Changes the manifest, and makes its checksum fit again."""
    manifest = json.loads((saved / "manifest.json").read_bytes())
    change(manifest)
    if checksum:
        manifest["checksum"] = _manifest_checksum(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))


def refused(saved: Path, *messages: str) -> FormatError:
    """Checks that loading fails, mapped or not, with an error that says all of this."""
    for mmap in (True, False):
        with pytest.raises(FormatError) as caught:
            CompressedIndex.load(saved, mmap=mmap)
        for message in messages:
            assert message in str(caught.value)
    return caught.value


def test_what_is_no_index(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "does not exist")
    refused(tmp_path, str(tmp_path), "holds no manifest.json")
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", str(tmp_path / "file"), "is not a directory")
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, "holds no manifest.json")
    (tmp_path / "manifest.json").mkdir()
    refused(tmp_path, "holds no manifest.json")


@pytest.mark.parametrize("text", ['{"format": "other"}', "{}", "[1]", '"compressae-index"', "null"])
def test_foreign_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, str(tmp_path / "manifest.json"), "was not written by compressae-index")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"\0" * 100, b"[" * 100_000])
def test_a_manifest_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    refused(tmp_path, str(tmp_path / "manifest.json"), "truncated or not JSON")


def test_a_newer_format(saved: Path) -> None:
    # Its manifest may be whatever that version makes of it.
    rewrite(saved, lambda manifest: manifest.update(format_version=2), checksum=False)
    error = refused(saved, str(saved), "has format version 2", "reads up to 1")
    assert type(error) is NewerFormatError


def test_an_edited_manifest(saved: Path) -> None:
    rewrite(saved, lambda manifest: manifest["meta"].update(k=15), checksum=False)
    refused(saved, str(saved / "manifest.json"), "does not match its own checksum")


def test_a_model_is_no_index(saved: Path, model: CompresSAE, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    refused(tmp_path / "model", "holds: model; expected: index")
    with pytest.raises(FormatError, match="holds: index; expected: model"):
        CompresSAE.load(saved)


def test_every_file_truncated_flipped_or_missing(saved: Path) -> None:
    for file in files_of(saved):
        content, is_manifest = file.read_bytes(), file.name == "manifest.json"
        for keep in {0, 1, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:keep])
            refused(saved, str(file), "truncated" if is_manifest else f"holds {keep} bytes, its manifest")
        file.write_bytes(content + b" ")
        if not is_manifest:
            refused(saved, str(file), f"holds {len(content) + 1} bytes, its manifest says {len(content)}")
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            refused(saved, str(file), "" if is_manifest else "does not match its checksum")
        file.unlink()
        refused(saved, "manifest.json" if is_manifest else f"{file} is missing")
        file.write_bytes(content)
    CompressedIndex.load(saved)


def test_random_flips_never_load(saved: Path) -> None:
    rng = np.random.default_rng(17)
    files = files_of(saved)
    contents = [file.read_bytes() for file in files]
    for _ in range(400):
        # Every other one in the manifest, which is small and whose checksum guards all others.
        which = int(rng.integers(1, len(files))) if rng.random() < 0.5 else 0
        flipped = bytearray(contents[which])
        for place in rng.integers(0, len(flipped), rng.integers(1, 4)):
            flipped[place] ^= 1 << int(rng.integers(8))
        if flipped == contents[which]:
            continue
        files[which].write_bytes(flipped)
        with pytest.raises(FormatError):
            CompressedIndex.load(saved, mmap=bool(rng.integers(2)))
        files[which].write_bytes(contents[which])
    CompressedIndex.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["meta"].update(n=301),
        lambda manifest: manifest["meta"].update(n=299),
        lambda manifest: manifest["meta"].update(n=-1),
        lambda manifest: manifest["meta"].update(n="300"),
        lambda manifest: manifest["meta"].update(k=15),
        lambda manifest: manifest["meta"].update(encoder="magic"),
        lambda manifest: manifest["meta"].update(model=None),
        lambda manifest: manifest["meta"]["model"].update(k=0),
        lambda manifest: manifest["meta"]["model"].update(fingerprint="0" * 32),
        lambda manifest: manifest.pop("meta"),
        lambda manifest: manifest.pop("kind"),
        lambda manifest: manifest.pop("data"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].pop("model.safetensors"),
        lambda manifest: manifest["files"].pop("forward_rows.npy"),
        lambda manifest: manifest["files"].pop("inverted_offsets.npy"),
        lambda manifest: manifest["files"]["ids.npy"].pop("sha256"),
    ],
)
def test_a_manifest_that_lies(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(saved, change)
    refused(saved)


def replace_file(saved: Path, name: str, content: bytes) -> None:
    """Another file in the place of one of the index, with checksums that fit."""
    file = data_of(saved) / name
    file.write_bytes(content)
    rewrite(saved, lambda manifest: manifest["files"].update({name: describe(file)}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\0" * 5000),
        ("model.safetensors", b""),
        ("ids.npy", b"PK\3\4" + b"\0" * 100),
        ("ids.npy", b"\x93NUMPY\1\0\xff\xff"),
        ("forward_latents.npy", b""),
    ],
)
def test_garbage_with_fitting_checksums(saved: Path, name: str, content: bytes) -> None:
    replace_file(saved, name, content)
    refused(saved, str(saved), "is damaged")


class Trap:
    """Unpickling would call this."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    array = np.empty(300, dtype=object)
    array[:] = [Trap(tmp_path / "sprung")] * 300
    np.save(tmp_path / "trap.npy", array, allow_pickle=True)
    replace_file(saved, "ids.npy", (tmp_path / "trap.npy").read_bytes())
    refused(saved, str(saved), "is damaged")
    replace_file(saved, "ids.npy", (tmp_path / "trap.npy").read_bytes()[128:])
    refused(saved, str(saved), "is damaged")
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def other(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    return CompressedIndex.build(vectors[500:600], model=model, k=8, progress=False)


def test_saving_replaces_an_older_index(saved: Path, other: CompressedIndex, queries: FloatArray) -> None:
    for _ in range(2):
        other.save(saved)
        assert_nothing_stray(saved)
        assert_same_index(CompressedIndex.load(saved), other, queries)


def test_saving_into_an_empty_directory(tmp_path: Path, other: CompressedIndex, queries: FloatArray) -> None:
    other.save(tmp_path)
    assert_nothing_stray(tmp_path)
    assert_same_index(CompressedIndex.load(tmp_path), other, queries)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "dear diary"),
        ("manifest.json", '{"name": "a web extension"}'),
        ("manifest.json", "not JSON"),
        ("manifest.json", '{"format": "compressae-index"}'),
        ("data-1234567/x", ""),
        # The data that such a manifest names would be deleted.
        *(
            ("manifest.json", json.dumps({"format": "compressae-index", "data": data}))
            for data in ("..", ".", "", "photos", "../photos", "data-", None, 3)
        ),
    ],
)
def test_what_is_foreign_is_left_alone(
    tmp_path: Path, other: CompressedIndex, model: CompresSAE, name: str, text: str
) -> None:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    (tmp_path / "home" / "photos" / "1.jpg").touch()
    (tmp_path / "home" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "home" / name).write_text(text)
    before = content_of(tmp_path)
    for save in (other.save, model.save):
        with pytest.raises(FormatError, match=r"home exists and was not written by .* left as it is"):
            save(tmp_path / "home")
    assert content_of(tmp_path) == before


def test_a_file_is_left_alone(tmp_path: Path, other: CompressedIndex) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError, match="file exists and was not written by"):
        other.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("target", ["os.replace", "os.fsync", "numpy.save", "json.dumps"])
def test_a_failure_while_writing(
    saved: Path, other: CompressedIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError("the disk is full")

    before = content_of(saved)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        for path in (saved, tmp_path / "new", tmp_path / "empty"):
            with pytest.raises(OSError, match="the disk is full"):
                other.save(path)
    assert content_of(tmp_path) == {f"index/{name}": content for name, content in before.items()}
    assert not (tmp_path / "new").exists()
    CompressedIndex.load(saved)


def test_saving_over_the_directory_that_is_mapped(
    saved: Path, vectors: FloatArray, queries: FloatArray
) -> None:
    mapped, kept = CompressedIndex.load(saved, mmap=True), CompressedIndex.load(saved)
    for step in range(3):
        for which in (mapped, kept):
            which.remove(which.ids[5:9])
            which.add(vectors[300 + step : 301 + step])
            if step == 1:
                which.compact()
        mapped.save(saved)
        assert_nothing_stray(saved)
        assert_same_index(mapped, kept, queries)
        assert_same_index(CompressedIndex.load(saved, mmap=True), kept, queries)
        mapped = CompressedIndex.load(saved, mmap=True)


KILLED = """
import os, sys
import numpy as np
from compressae_index import CompressedIndex

index = CompressedIndex.load(sys.argv[1])
module, name = {"replace": (os, "replace"), "save": (np, "save")}[sys.argv[3]]
real = getattr(module, name)

def killed(*arguments, **options):
    if sys.argv[4] == "after":
        real(*arguments, **options)
    os._exit(9)

setattr(module, name, killed)
index.save(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("function", "when"), [("replace", "before"), ("replace", "after"), ("save", "after")]
)
def test_a_process_killed_while_saving(
    saved: Path, other: CompressedIndex, queries: FloatArray, tmp_path: Path, function: str, when: str
) -> None:
    other.save(tmp_path / "other")
    shutil.copytree(saved, tmp_path / "copy")
    for target in (saved, tmp_path / "new"):
        command = [sys.executable, "-P", "-c", KILLED, str(tmp_path / "other"), str(target), function, when]
        assert subprocess.run(command, check=False).returncode == 9
    survivor, old = CompressedIndex.load(saved), CompressedIndex.load(tmp_path / "copy")
    assert_same_index(survivor, other if (function, when) == ("replace", "after") else old, queries)
    # The leftovers do not hinder a later save.
    for target in (saved, tmp_path / "new"):
        other.save(target)
        assert_same_index(CompressedIndex.load(target), other, queries)


def test_a_first_save_that_ends_meanwhile_is_not_foreign(
    model: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_written = persistence.was_written

    def look(path: Path) -> bool:
        found = was_written(path)
        monkeypatch.setattr(persistence, "was_written", was_written)
        model.save(path)  # another writer, right after the look
        return found

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(persistence, "was_written", look)
    model.save(tmp_path / "model")
    assert CompresSAE.load(tmp_path / "model").fingerprint == model.fingerprint
