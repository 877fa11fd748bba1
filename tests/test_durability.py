"""Saves survive kills, full disks and other processes: the old or the new is on disk, without leftovers."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from folders import assert_nothing_stray, content_of

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    StorageError,
    persistence,
    storage,
)
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.faiss import lists as faiss_lists
from compressae_index.connectors.texts import TextStore
from compressae_index.connectors.texts.records import Records
from compressae_index.storage import written_aside
from compressae_index.training import TrainConfig, train
from compressae_index.training.checkpoint import Checkpoint

KINDS = ("model", "index", "faiss index", "texts", "codes", "checkpoint")
each_kind = pytest.mark.parametrize("kind", KINDS)
NOBODY = 65534


class Kit:
    """Saves and loads a small one of each kind of directory; `which` tells two of a kind apart."""

    def __init__(self, model: CompresSAE, vectors: FloatArray) -> None:
        self.vectors = vectors
        self.models = [model, CompresSAE(2 * model.encoder_w, model.encoder_b, model.decoder_w, model.k)]
        self.indexes = [
            CompressedIndex.build(vectors[:n], model=model, k=8, progress=False, num_threads=1)
            for n in (40, 50)
        ]
        self.filed = [FaissIndex.from_index(index, progress=False) for index in self.indexes]
        self.texts = [TextStore.of(index, [f"{len(index)} texts"] * len(index)) for index in self.indexes]

    def save(self, kind: str, path: Any, which: int = 0) -> None:
        if kind == "codes":
            encode_to_directory(self.models[which], self.vectors[:40], path, k=4, num_threads=1)
        elif kind == "checkpoint":
            Checkpoint(Path(path), {}).save({"which": which}, {"a": np.arange(5)})
        else:
            of_kind = {"model": self.models, "index": self.indexes, "faiss index": self.filed}
            made: Any = (of_kind | {"texts": self.texts})[kind]
            made[which].save(path)

    def load(self, kind: str, path: Any, *, mmap: bool = False) -> int:
        """Which of the two it is."""
        if kind == "codes":
            return [model.fingerprint for model in self.models].index(CodeStore.load(path).fingerprint)
        if kind == "checkpoint":
            stored = Checkpoint(Path(path), {}).load()
            assert stored is not None
            return int(stored.meta["which"])
        if kind == "model":
            return [model.fingerprint for model in self.models].index(CompresSAE.load(path).fingerprint)
        if kind == "texts":
            store = TextStore.load(path, mmap=mmap)
            hits = [store.search(query, 5) for query in self.vectors[:3]]
            assert {hit.record.text for found in hits for hit in found} == {f"{len(store)} texts"}
            which = (40, 50).index(len(store))
            expected = self.indexes[which].search(self.vectors[:3], 5)
            assert [[int(hit.record.id) for hit in found] for found in hits] == expected.ids.tolist()
            return which
        loaded = (CompressedIndex if kind == "index" else FaissIndex).load(path, mmap=mmap)
        which = (40, 50).index(len(loaded))
        expected = self.indexes[which].search(self.vectors[:3], 5)
        np.testing.assert_array_equal(loaded.search(self.vectors[:3], 5).ids, expected.ids)
        return which


@pytest.fixture(scope="module")
def kit(model: CompresSAE, vectors: FloatArray) -> Kit:
    return Kit(model, vectors)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest, and makes its checksum fit again."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    manifest["checksum"] = persistence._manifest_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# Kinds


@each_kind
def test_another_kind_is_not_replaced(kit: Kit, tmp_path: Path, kind: str) -> None:
    kit.save(kind, tmp_path / "a")
    assert persistence.kind_of(tmp_path / "a") == kind
    before = content_of(tmp_path)
    for other in KINDS:
        if other != kind:
            with pytest.raises(FormatError, match=rf"holds: {kind}; expected: {other}"):
                kit.save(other, tmp_path / "a")
    assert content_of(tmp_path) == before
    if kind != "codes":  # whose settings must stay
        kit.save(kind, tmp_path / "a", 1)
        assert kit.load(kind, tmp_path / "a") == 1
        assert_nothing_stray(tmp_path / "a")


def test_another_kind_is_refused_before_work(
    kit: Kit, tmp_path: Path, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("e.npy", vectors[:40])
    kit.save("index", "i")
    kit.save("model", "m")
    before = content_of(tmp_path)

    def work(*_arguments: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("compressae_index.building.training.ModelSource.model_for", work)
    monkeypatch.setattr("compressae_index.training.run._fitted", work)
    monkeypatch.setattr(CompressedIndex, "build", work)
    for arguments, message in (
        ("train e.npy -o i", "i holds: index; expected: model, or nothing"),
        ("train e.npy -o new --checkpoint m", "m holds: model; expected: checkpoint"),
        ("train e.npy -o new --checkpoint new", "new cannot hold both the model and the checkpoint"),
        ("build e.npy -o m", "m holds: model; expected: index, or nothing"),
        ("demo -o .", "index"),
    ):
        if arguments.startswith("demo"):
            kit.save("model", "index")
        result = CliRunner().invoke(main, arguments.split())
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        assert message in result.stderr
    shutil.rmtree("index")
    assert content_of(tmp_path) == before


# Paths


class Own:
    """A path that is not a pathlib.Path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@each_kind
def test_paths_of_any_type(
    kit: Kit, tmp_path: Path, vectors: FloatArray, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def save(path: Any) -> None:
        if kind == "checkpoint":
            train(vectors[:200], TrainConfig(k=4, n_latents=32, steps=1, refine_rounds=1), checkpoint=path)
        else:
            kit.save(kind, path)

    every: list[Any] = ["~/a", Own(tmp_path / "a"), os.fsencode(tmp_path / "a")]
    for given in every[:1] if kind == "checkpoint" else every:
        save(given)
        assert persistence.kind_of(tmp_path / "a") == kind
        if kind != "checkpoint":
            assert kit.load(kind, given) == 0
        shutil.rmtree(tmp_path / "a")
    for wrong in ("", "a\0b", 3, None):
        if kind == "checkpoint" and wrong is None:
            continue
        with pytest.raises(InputError, match=r"must be a (path|string)"):
            save(wrong)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(FormatError, match=rf"link is a link to {tmp_path}/nowhere, which does not exist"):
            save(path)
    with pytest.raises(StorageError, match="cannot be written: File name too long"):
        save(tmp_path / ("n" * 300))
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]
    # A link to a directory is the user's own word for it.
    (tmp_path / "real").mkdir()
    (tmp_path / "to").symlink_to(tmp_path / "real")
    save(tmp_path / "to")
    assert persistence.kind_of(tmp_path / "real") == kind


@pytest.mark.parametrize(
    "data", ["../b/{}", "../b", "{}/../{}", "/{}", ".", "", "data-1234567", "data-0000000G", 3, None, ["x"]]
)
def test_data_elsewhere_are_not_read(kit: Kit, tmp_path: Path, data: Any) -> None:
    for name in "ab":
        kit.save("model", tmp_path / name)
    (folder,) = (tmp_path / "b").glob("data-*")
    rewrite(tmp_path / "a", lambda manifest: manifest.update(data=_filled(data, folder.name)))
    with pytest.raises(FormatError, match=r"a is damaged: its manifest names .* as the folder"):
        kit.load("model", tmp_path / "a")
    with pytest.raises(FormatError, match="a exists and was not written by"):
        kit.save("model", tmp_path / "a")
    assert kit.load("model", tmp_path / "b") == 0


def _filled(data: Any, name: str) -> Any:
    return data.replace("{}", name) if isinstance(data, str) else data


@pytest.mark.parametrize("name", ["../../b/{}/model.safetensors", "x/model.safetensors", "..", "a\0", "/b"])
def test_files_elsewhere_are_not_read(kit: Kit, tmp_path: Path, name: str) -> None:
    for each in "ab":
        kit.save("model", tmp_path / each)
    (folder,) = (tmp_path / "b").glob("data-*")

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = manifest["files"].values()
        manifest["files"] = {name.replace("{}", folder.name): entry}

    rewrite(tmp_path / "a", change)
    with pytest.raises(FormatError, match="a is damaged: its manifest names a file"):
        kit.load("model", tmp_path / "a")


@each_kind
def test_links_and_pipes_are_not_followed(kit: Kit, tmp_path: Path, kind: str) -> None:
    path, elsewhere = tmp_path / "a", tmp_path / "elsewhere"
    kit.save(kind, path)
    for file in [
        path / "manifest.json",
        *path.glob("data-*"),
        *path.rglob("*-000000.npy"),
        *path.glob("*/*"),
    ]:
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        with pytest.raises(FormatError, match=f"{file} is a link, and links are not followed"):
            kit.load(kind, path)
        file.unlink()
        if elsewhere.is_file():
            os.mkfifo(file)
            with pytest.raises(FormatError, match=f"{file} is not a file"):
                kit.load(kind, path)
            file.unlink()
        elsewhere.rename(file)
    assert kit.load(kind, path) == 0


def test_links_that_lie_ready_are_not_written_through(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    # All randomness known to whoever made the folder ready.
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
    for name in ("latents-000000.npy", "values-000000.npy", "manifest.json"):
        folder = tmp_path / name
        folder.mkdir()
        for aside in (f".writing-{name}", f".writing-00000000-{name}"):
            (folder / aside).symlink_to(mine)
        kit.save("codes", folder)
        assert kit.load("codes", folder) == 0
        assert not list(folder.glob(".*"))
    assert mine.read_text() == "mine"


# Contents


@pytest.mark.parametrize("pad", [1, 2, 4, 64])
def test_misaligned_arrays_are_read_and_not_mapped(kit: Kit, tmp_path: Path, pad: int) -> None:
    kit.save("index", tmp_path / "a")
    (folder,) = (tmp_path / "a").glob("data-*")
    described = {}
    for file in folder.glob("*.npy"):
        content = file.read_bytes()
        end = 10 + int.from_bytes(content[8:10], "little")
        header = content[10 : end - 1] + b" " * pad + b"\n"
        file.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + content[end:])
        described[file.name] = persistence.describe(file)
    rewrite(tmp_path / "a", lambda manifest: manifest["files"].update(described))
    arrays = persistence.read(tmp_path / "a", "index", mmap=True).arrays
    assert all(
        array.flags.aligned and array.ctypes.data % array.dtype.alignment == 0 for array in arrays.values()
    )
    assert any(isinstance(array, np.memmap) for array in arrays.values())
    assert any(not isinstance(array, np.memmap) for array in arrays.values()) == (pad != 64)
    assert kit.load("index", tmp_path / "a", mmap=True) == 0


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("<f4", "(4611686018427387904,)"),
        ("<f4", "(-1, -16)"),
        ("|S0", "(4611686018427387904,)"),
        ("|O", "(8,)"),
    ],
)
def test_headers_that_lie(kit: Kit, tmp_path: Path, descr: str, shape: str) -> None:
    kit.save("checkpoint", tmp_path / "a")
    (file,) = tmp_path.rglob("*.npy")
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    file.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    rewrite(tmp_path / "a", lambda manifest: manifest["files"].update({"a.npy": persistence.describe(file)}))
    for mmap in (False, True):
        with pytest.raises(
            FormatError, match=r"a\.npy (is damaged: its header says|holds \d+ bytes, its header says)"
        ):
            persistence.read(tmp_path / "a", "checkpoint", mmap=mmap)


# Permissions


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights, where this one has all."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@each_kind
def test_without_permission(kit: Kit, kind: str) -> None:
    # Not tmp_path, whose parents are closed to others.
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        kit.save(kind, place / "a")
        files = [place / "a" / "manifest.json", *(f for f in (place / "a").rglob("*") if f.is_file())]
        for closed in (*files, place / "a"):
            mode = closed.stat().st_mode
            closed.chmod(0)
            with nobody(), pytest.raises(StorageError) as caught:
                kit.load(kind, place / "a")
            assert caught.value.errno == errno.EACCES
            assert re.match(
                r"/.*/a(/.*)? cannot be (read|written): Permission denied; ask", str(caught.value)
            )
            if kind != "checkpoint" and closed.name == "manifest.json":
                with nobody():
                    result = CliRunner().invoke(main, ["info", str(place / "a")])
                assert result.exit_code == 2
                assert result.stderr == f"Error: {caught.value}\n"
            closed.chmod(stat.S_IMODE(mode))
        place.chmod(0o555)
        for path in (place / "new", place / "new" / "below", place / "a"):
            (place / "a").chmod(0o555)
            with (
                nobody(),
                pytest.raises(StorageError, match=r"cannot be written: Permission denied; ask") as caught,
            ):
                kit.save(kind, path)
            assert caught.value.errno == errno.EACCES
        place.chmod(0o755)
        (place / "a").chmod(0o755)
        assert kit.load(kind, place / "a") == 0


def test_storage_errors_survive_processes() -> None:
    import pickle

    error = StorageError(errno.ENOSPC, "there is no room", "a.npy")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno, again.filename) == ("there is no room", errno.ENOSPC, "a.npy")
    assert isinstance(again, OSError)
    assert str(StorageError("full")) == "full"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_the_umasks(kit: Kit, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        for kind in KINDS:
            kit.save(kind, tmp_path / "new" / kind)
        with written_aside(tmp_path / "new" / "r.npz") as aside:
            np.savez(aside, a=1)
    finally:
        os.umask(before)
    for entry in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(entry.stat().st_mode) == (0o777 if entry.is_dir() else 0o666) & ~mask, entry


# Order and failures


class Recorder:
    """Calls that change what is on the disk, by name and path; one of them can be made to fail."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int = -1) -> None:
        self.calls: list[tuple[str, str]] = []
        self._fail_at = fail_at
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree")):
            patch.setattr(module, name, self._recorded(name, getattr(module, name)))

    def _recorded(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{arguments[0]}")
            else:
                path = os.path.abspath(arguments[1 if name == "replace" else 0])
            self.calls.append((name, path))
            if len(self.calls) - 1 == self._fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc"
)


@needs_proc
@pytest.mark.parametrize("kind", ["model", "index", "faiss index", "texts", "checkpoint"])
def test_the_order_of_a_save(kit: Kit, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a"
    for which in (0, 1):
        old = {entry.name for entry in path.glob("data-*")}
        with monkeypatch.context() as patch:
            calls = Recorder(patch).calls
            kit.save(kind, path, which)
        (data,) = {entry.name for entry in path.glob("data-*")} - old
        files = [file.name for file in (path / data).iterdir()]
        short = [(name, os.path.relpath(at, path)) for name, at in calls]
        if not which:
            begin = [("mkdir", ".."), ("fsync", "../.."), ("mkdir", "."), ("fsync", "..")]
            assert short[:4] == begin
            short = short[4:]
        # Files, then the folder, then its name, then the manifest, then the old data.
        assert short[0] == ("mkdir", data)
        assert sorted(short[1 : 1 + len(files)]) == sorted(("fsync", f"{data}/{name}") for name in files)
        assert short[1 + len(files) :] == [
            ("fsync", data),
            ("fsync", "."),
            ("fsync", f"{data}/manifest.json"),
            ("replace", "manifest.json"),
            ("fsync", "."),
            *(("rmtree", name) for name in old),
        ]


def encode_changed(kit: Kit, path: Path) -> CodeStore:
    """Again, after one row changed."""
    rows = kit.vectors[:40].copy()
    rows[27] += 1
    return encode_to_directory(kit.models[0], rows, path, k=4, num_threads=1)


@needs_proc
def test_the_order_of_encoding(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"

    def recorded(encode: Callable[[], object]) -> list[tuple[str, str]]:
        with monkeypatch.context() as patch:
            calls = Recorder(patch).calls
            encode()
        short = [(name, os.path.relpath(at, tmp_path)) for name, at in calls]
        return [(name, re.sub(r"\.writing-[0-9a-f]{8}-", "aside ", at)) for name, at in short]

    manifest = [("fsync", "a/aside manifest.json"), ("replace", "a/manifest.json"), ("fsync", "a")]

    def shard(number: int) -> list[tuple[str, str]]:
        files = [f"{part}-{number:06d}.npy" for part in ("latents", "values")]
        asides, finals = (
            [("fsync", f"a/aside {name}") for name in files],
            [("replace", f"a/{name}") for name in files],
        )
        return [*asides, *finals, ("fsync", "a"), *manifest]

    begun = recorded(lambda: encode_to_directory(kit.models[0], kit.vectors[:40], path, k=4, shard_rows=20))
    assert begun == [("mkdir", "a"), ("fsync", "."), *shard(0), *shard(1)]
    # The manifest lets go of a shard before its files are replaced.
    with pytest.warns(UserWarning, match="changed"):
        assert recorded(lambda: encode_changed(kit, path)) == [*manifest, *shard(1)]


@needs_proc
@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("kind", ["index", "faiss index", "texts"])
def test_a_save_that_fails_at_any_step(
    kit: Kit, tmp_path: Path, kind: str, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right error, the old one or the new one, and no leftovers."""
    for step in itertools.count():
        path = tmp_path / str(step) / "a"
        if existed:
            kit.save(kind, path)
        failure = None
        with monkeypatch.context() as patch:
            recorder = Recorder(patch, step)
            try:
                kit.save(kind, path, 1)
            except StorageError as error:
                failure = error
        if len(recorder.calls) <= step:
            break
        if failure is None:
            assert recorder.calls[step][0] == "rmtree"  # of old data, which is tried again by the next save
        else:
            assert failure.errno == errno.ENOSPC
            assert "cannot be written: No space left on device; make room" in str(failure)
        renamed = ("replace", str(path / "manifest.json")) in recorder.calls[:step]
        if renamed or existed:
            assert kit.load(kind, path) == int(renamed)
        else:
            assert not path.parent.exists()
        if not renamed:
            assert not existed or len(list(path.iterdir())) == 2
            continue
        kit.save(kind, path, 0)
        assert kit.load(kind, path) == 0
        assert_nothing_stray(path)
    assert step > 10


@needs_proc
def test_encoding_that_fails_at_any_step(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_to_directory(kit.models[0], kit.vectors[:40], tmp_path / "old", k=4, shard_rows=20)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    with pytest.warns(UserWarning, match="changed"):
        new = encode_changed(kit, tmp_path / "new")[0:40].values
    old = CodeStore.load(tmp_path / "old")[0:40].values
    for step in itertools.count():
        path = Path(shutil.copytree(tmp_path / "old", tmp_path / str(step)))
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorder = Recorder(patch, step)
            with suppress(StorageError):
                encode_changed(kit, path)
        if len(recorder.calls) <= step:
            break
        assert {file.name for file in path.iterdir()} == {file.name for file in (tmp_path / "old").iterdir()}
        try:
            found = CodeStore.load(path)[0:40].values
            assert np.array_equal(found, old) or np.array_equal(found, new)
        except FormatError as error:
            assert "1 of 2 shards: encode again" in str(error)  # noqa: PT017
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encode_changed(kit, path)
        assert content_of(path) == content_of(tmp_path / "new")
    assert step == 11


FULL = """
import errno, itertools, os, resource, sys
from pathlib import Path
import numpy as np
from compressae_index import CompresSAE, CompressedIndex, StorageError
from compressae_index.storage import written_aside
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.coding.directory import encode_to_directory
from compressae_index.training.checkpoint import Checkpoint

source = Path(sys.argv[1])
model, index = CompresSAE.load(source / "model"), CompressedIndex.load(source / "index")
filed, rows = FaissIndex.load(source / "faiss index"), np.load(source / "rows.npy")

def write_results():
    with written_aside(target / "r.npz") as aside:
        np.savez(aside, rows=np.arange(100_000))

work = {
    "model": lambda: model.save(target / "model"),
    "index": lambda: index.save(target / "index"),
    "faiss index": lambda: filed.save(target / "faiss index"),
    "mapped faiss index": lambda: FaissIndex.from_index(index, target / "faiss index", progress=False),
    "checkpoint": lambda: Checkpoint(target / "checkpoint", {}).save({}, {"a": np.arange(100_000)}),
    "codes": lambda: encode_to_directory(model, rows, target / "codes", k=16, num_threads=1),
    "results": write_results,
}
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
for name, target, limit in itertools.product(work, map(Path, sys.argv[2:]), (0, 100, 20_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        work[name]()
    except StorageError as error:
        assert error.errno == errno.EFBIG, error
        assert "File too large" in str(error), error
        print(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""


def test_a_full_disk(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    kinds = ("model", "index", "faiss index", "checkpoint")
    for kind in kinds:
        kit.save(kind, tmp_path / "source" / kind)
    np.save(tmp_path / "source" / "rows.npy", kit.vectors[:500])
    for kind in kinds:
        kit.save(kind, tmp_path / "existing" / kind, 1)
    (tmp_path / "empty").mkdir()
    before = content_of(tmp_path)
    targets = [str(tmp_path / name) for name in ("existing", "empty")]
    command = [sys.executable, "-P", "-c", FULL, str(tmp_path / "source"), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7 * 2 * 3, done.stdout
    assert content_of(tmp_path) == before
    assert {entry.name for entry in (tmp_path / "existing").iterdir()} == set(kinds)
    assert not list((tmp_path / "empty").iterdir())


def test_a_model_is_kept_where_there_is_room(
    tmp_path: Path, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "room").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "room"))
    np.save("e.npy", vectors[:300])
    new_file = storage.new_file
    refused = ["out/"]

    def full(file: Path) -> Any:
        if any(re.match(each, str(file)) for each in refused):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return new_file(file)

    monkeypatch.setattr(persistence, "new_file", full)
    sizes = "--k 8 --n-latents 64 --preset fast --steps 2"
    for command, kind in (("train", "model"), ("build", "index"), ("build", "model")):
        if (command, kind) == ("build", "model"):
            refused.append(r".*\.npy")
        result = CliRunner().invoke(main, [command, "e.npy", "-o", "out", *sizes.split()])
        assert result.exit_code == 2, result.output
        message = result.stderr.splitlines()[-1]
        reason = "cannot be written: No space left on device; make room, or use another disk"
        found = re.fullmatch(rf"Error: out/\S+ {reason}; the {kind} is kept in (\S+)", message)
        assert found is not None, message
        assert Path(found[1]).parent.parent == tmp_path / "room"
        assert persistence.kind_of(found[1]) == kind
        if kind == "model":
            assert CompresSAE.load(found[1]).n_latents == 64
        assert not Path("out").exists()
    before = content_of(tmp_path)
    refused.append(".*/room/")
    result = CliRunner().invoke(main, ["train", "e.npy", "-o", "out", *sizes.split()])
    assert result.stderr.splitlines()[-1].endswith(reason)
    assert content_of(tmp_path) == before
    assert len(list((tmp_path / "room").iterdir())) == 3


# Two writers, and readers


def test_a_first_save_that_fails_leaves_the_other_alone(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "new" / "a", os.replace

    def second(*_arguments: Any) -> None:
        monkeypatch.setattr("os.replace", replace)
        kit.save("index", path, 1)  # from beginning to end, while the first is about to end
        assert len(list(path.glob("data-*"))) == 2
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", second)
    with pytest.raises(StorageError):
        kit.save("index", path, 0)
    assert kit.load("index", path) == 1
    assert_nothing_stray(path)


def test_the_later_of_two_saves_wins(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for existed in (False, True):
        path, replace = tmp_path / str(existed), os.replace
        if existed:
            kit.save("index", path, 0)

        def second(*arguments: Any, path: Path = path, replace: Any = replace) -> None:
            monkeypatch.setattr("os.replace", replace)
            kit.save("index", path, 1)
            assert kit.load("index", path) == 1
            replace(*arguments)

        monkeypatch.setattr("os.replace", second)
        kit.save("index", path, 0)
        assert kit.load("index", path) == 0
        assert_nothing_stray(path)


def test_another_kind_that_came_meanwhile_stays(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = tmp_path / "a", np.save

    def intrude(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(np, "save", save)
        kit.save("model", path)
        save(*arguments, **options)

    monkeypatch.setattr(np, "save", intrude)
    with pytest.raises(FormatError, match="holds: model; expected: index, or nothing"):
        kit.save("index", path)
    assert kit.load("model", path) == 0
    assert_nothing_stray(path)


def test_writers_in_threads(kit: Kit, tmp_path: Path) -> None:
    """Each finds the directory whole at any time, and the last one leaves nothing behind."""
    path, failures = tmp_path / "a", []

    def write(which: int) -> None:
        try:
            for _ in range(8):
                kit.save("model", path, which)
                assert kit.load("model", path) in (0, 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert kit.load("model", path) in (0, 1)
    assert_nothing_stray(path)


def test_a_folder_that_another_first_write_makes_meanwhile(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, is_dir = tmp_path / "a", Path.is_dir

    def is_dir_until_made(self: Path) -> bool:
        found = is_dir(self)
        if self == path:
            os.makedirs(path, exist_ok=True)  # mkdir would ask is_dir again
        return found

    monkeypatch.setattr(persistence, "check_writable", lambda _path: None)
    monkeypatch.setattr(Path, "is_dir", is_dir_until_made)
    persistence.check_target(path, "model")
    kit.save("model", path)
    assert kit.load("model", path) == 0


def test_a_living_writer_keeps_its_data(kit: Kit, tmp_path: Path) -> None:
    """A lock says that its writer lives: without one, a folder that no manifest names is left over."""
    path = tmp_path / "a"
    kit.save("index", path)
    (path / "data-00000000").mkdir()
    (path / "data-00000000" / "x").write_text("left by a killed process")
    (path / "data-0000").mkdir()
    (path / "photos").mkdir()
    with storage.own_folder(path, "data-") as living:
        kit.save("index", path, 1)
        assert living.is_dir()
        assert not (path / "data-00000000").exists()
    kit.save("index", path, 1)
    assert not living.exists()
    assert {"data-0000", "photos"} < {entry.name for entry in path.iterdir()}


def test_without_locks(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks, the folder that the manifest named is removed, and nothing else."""

    def unsupported(*_arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    path = tmp_path / "a"
    kit.save("index", path)
    (path / "data-00000000").mkdir()
    kit.save("index", path, 1)
    (path / "data-00000000").rmdir()
    assert kit.load("index", path) == 1
    assert_nothing_stray(path)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["index", "faiss index", "texts"])
def test_a_directory_that_is_replaced_while_it_is_read(
    kit: Kit, tmp_path: Path, kind: str, mmap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader gets the old one or the new one, wherever it is when the data are replaced."""
    path = tmp_path / "a"
    for module, name, seen in (
        (persistence, "read_manifest", {1}),
        (persistence, "open_file", {0, 1}),
        (persistence, "_read_array", {0, 1}),
        (faiss_lists, "read_lists", {1}),
        (Records, "_connect", {1}),
    ):
        for which in (0, 1, 2):
            kit.save(kind, path)
            calls, real = iter(range(100)), getattr(module, name)

            def replaced(
                *arguments: Any, at: int = which, calls: Any = calls, real: Any = real, **more: Any
            ) -> Any:
                if next(calls) == at:
                    before = real(*arguments, **more) if real.__name__ == "read_manifest" else None
                    kit.save(kind, path, 1)
                    return before or real(*arguments, **more)
                return real(*arguments, **more)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, replaced)
                assert kit.load(kind, path, mmap=mmap) in seen | {0}
        assert_nothing_stray(path)


def test_codes_that_are_replaced_while_they_are_open(kit: Kit, tmp_path: Path) -> None:
    rows = kit.vectors[:40].copy()
    store = encode_to_directory(kit.models[0], rows, tmp_path / "a", k=4, shard_rows=20)
    before = store[0:40]
    rows[30] += 1
    with pytest.warns(UserWarning, match=r"rows 20 \.\. 39 changed"):
        encode_to_directory(kit.models[0], rows, tmp_path / "a", k=4)
    np.testing.assert_array_equal(store[0:20].values, before[0:20].values)
    for part in (slice(0, 21), slice(20, 40), slice(39, 40)):
        with pytest.raises(
            FormatError, match=r"000001\.npy was replaced since it was opened: load the codes again"
        ):
            store[part]
    shutil.rmtree(tmp_path / "a")
    with pytest.raises((FormatError, StorageError)):
        store[0:5]
    with pytest.raises(InputError, match="slices of step 1"):
        store[0:10:2]


# Kills

KILLED = """
import os, random, signal, sys, threading, time, warnings
import numpy as np
from tqdm import tqdm
from compressae_index import CompresSAE, CompressedIndex, FormatError
from compressae_index.cli import main
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.connectors.texts import TextStore
what, place, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
warnings.simplefilter("ignore")
# Its own lock is shared with children, so one that is killed while it holds it would stop all others.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())
os.chdir(place)
rng = random.Random(seed)
indexes = [CompressedIndex.load("0.index"), CompressedIndex.load("1.index")]
stores = [TextStore.of(index, [str(len(index))] * len(index)) for index in indexes]
model, rows = indexes[0].model, [np.load("0.npy"), np.load("1.npy")]

def work(number):
    if what == "save":
        indexes[number].save("target/a")
    elif what == "texts":
        stores[number].save("target/a")
    elif what == "encode":
        encode_to_directory(model, rows[number], "target/a", k=4, shard_rows=64, num_threads=1)
    else:
        os.makedirs("target", exist_ok=True)
        try:
            main(["encode", f"{number}.npy", "--model", "model", "-o", "target/a.npz", "--threads", "1"])
        except SystemExit:
            pass

def check():
    if what == "save":
        if os.path.exists("target/a/manifest.json"):
            found = CompressedIndex.load("target/a", mmap=True)
            assert len(found) in (40, 50)
            return "whole"
    elif what == "texts":
        if os.path.exists("target/a/manifest.json"):
            found = TextStore.load("target/a")  # which compares their ids
            assert {each.text for each in found.records()} == {str(len(found.index))}
            return "whole"
    elif what == "encode":
        try:
            found = CodeStore.load("target/a")[0:200].values
            assert any(np.array_equal(found, codes) for codes in expected), "codes of two inputs"
            return "whole"
        except FormatError as error:
            assert any(words in str(error) for words in ("encode again", "no manifest", "not exist")), error
    elif os.path.exists("target/a.npz"):
        assert np.load("target/a.npz")["shape"][0] == 200
        return "whole"
    return "begun"

expected = [model.fold(model.encode(each, 4, num_threads=1)).values for each in rows]
counts = {"whole": 0, "begun": 0}
work(0)
started = time.perf_counter()
work(1)
duration = time.perf_counter() - started
for _ in range(kills):
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        while True:
            work(0)
            work(1)
    time.sleep(rng.uniform(0, 3 * duration))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    counts[check()] += 1

def size():
    walk = [(folder, name) for folder, _, names in os.walk("target") for name in names]
    return sum(os.path.getsize(os.path.join(*each)) for each in walk)

left = size()
work(1)
if what == "encode":
    assert np.array_equal(CodeStore.load("target/a")[0:200].values, expected[1])
print(sum(counts.values()), "kills,", counts, "bytes before and after a good one:", left, size())
"""


@pytest.mark.parametrize("what", ["save", "texts", "encode", "command"])
def test_killed_at_any_time(kit: Kit, tmp_path: Path, what: str) -> None:
    kit.save("model", tmp_path / "model")
    for number in (0, 1):
        kit.save("index", tmp_path / f"{number}.index", number)
        rows = kit.vectors[:200].copy()
        rows[70 : 70 + 100 * number] = kit.vectors[300 : 300 + 100 * number]
        np.save(tmp_path / f"{number}.npy", rows)
    command = [sys.executable, "-P", "-c", KILLED, what, str(tmp_path), "12", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 kills" in done.stdout
    target = tmp_path / "target"
    if what == "save":
        assert_nothing_stray(target / "a")
        assert kit.load("index", target / "a") == 1
    elif what == "texts":
        assert_nothing_stray(target / "a")
        assert len(TextStore.load(target / "a")) == 50
    elif what == "encode":
        names = {f"{part}-{number:06d}.npy" for part in ("latents", "values") for number in range(4)}
        assert {entry.name for entry in (target / "a").iterdir()} == {"manifest.json", *names}
    else:
        assert [entry.name for entry in target.iterdir()] == ["a.npz"]


# Single files


def fail_after_writing(path: Path) -> None:
    path.write_text("half")
    raise KeyError("mine")


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.npz"
    path.write_text("old")
    for left in (".0123abcd-r.npz", ".0123abcd-other.npz", ".compressae-notes"):
        (tmp_path / left).touch()
    (tmp_path / ".compressae-0123abcd").mkdir()
    (tmp_path / ".compressae-0123abcd" / "x.npz").write_text("left by a killed process")
    with pytest.raises(KeyError, match="mine"), written_aside(path) as aside:
        fail_after_writing(aside)
    assert path.read_text() == "old"
    with storage.own_folder(tmp_path, ".compressae-") as living:
        with monkeypatch.context() as patch:
            calls = Recorder(patch).calls
            with written_aside(path) as aside:
                aside.write_text("new")
        assert [call for call in calls if call[0] in ("fsync", "replace")] == [
            ("fsync", str(aside)),
            ("replace", str(path)),
            ("fsync", str(tmp_path)),
        ]
        assert path.read_text() == "new"
        assert {entry.name for entry in tmp_path.iterdir()} == {
            "r.npz",
            ".0123abcd-other.npz",
            ".compressae-notes",
            living.name,
        }


def test_files_that_cannot_be_written_are_refused_before_work(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kit.save("index", "i")
    np.save("q.npy", kit.vectors[:3])
    Path("r.npz").mkdir()

    def work(*_arguments: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(CompressedIndex, "search", work)
    result = CliRunner().invoke(main, ["search", "i", "q.npy", "-o", "r.npz"])
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: r.npz is a directory, and results are written to a file\n",
    )
