"""Embeddings larger than memory: shards, iterators, and encoding that streams and goes on after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import assert_same_codes

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError, persistence
from compressae_index.arrays import FloatArray
from compressae_index.coding.chunks import encoded_chunks
from compressae_index.coding.directory import CodeStore, encode_to_directory
from compressae_index.sources import open_vectors

Rows = npt.NDArray[Any]

# Batches that the model encodes at once begin at the same rows in such shards as in the whole.
SHARD = 2048
SLICES = ((0, 100), (0, 1), (29, 31), (30, 60), (5, 95), (59, 61), (95, 200), (50, 50), (99, 100))


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """What earlier tests imported and keep is not looked at when `open_files` collects garbage."""
    gc.collect()
    gc.freeze()


def write_npy(path: Path, rows: Rows) -> None:
    np.save(path, rows)


def write_vecs(path: Path, rows: Rows) -> None:
    dims = np.full((len(rows), 1), rows.shape[1], dtype="<i4").view(np.uint8)
    np.hstack([dims, np.ascontiguousarray(rows).view(np.uint8)]).tofile(path)


def write_parquet(path: Path, rows: Rows) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table({"emb": column}), path, row_group_size=13)


def write_hdf5(path: Path, rows: Rows) -> None:
    with h5py.File(path, "w") as file:
        file["train"] = rows


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".npy": write_npy,
    ".fvecs": write_vecs,
    ".bvecs": write_vecs,
    ".parquet": write_parquet,
    ".hdf5": write_hdf5,
}
each_kind = pytest.mark.parametrize("suffix", WRITERS)


@pytest.fixture(scope="session")
def rows(vectors: FloatArray) -> FloatArray:
    """100 rows of 24."""
    return vectors[:100, :24].copy()


@pytest.fixture(scope="session")
def bytes_(rows: FloatArray) -> Rows:
    """The same shape in uint8, no row zero."""
    return np.random.default_rng(0).integers(1, 256, rows.shape).astype(np.uint8)


def write_shards(folder: Path, suffix: str, rows: Rows, cuts: tuple[int, ...] = (30, 60, 97)) -> list[Path]:
    """Shards named so that their order as text is another one."""
    folder.mkdir()
    paths = []
    for number, part in enumerate(np.split(rows, cuts), 8):
        paths.append(folder / f"part-{number}{suffix}")
        WRITERS[suffix](paths[-1], part)
    return paths


def assert_same_slices(opened: Any, expected: Rows) -> None:
    assert tuple(opened.shape) == expected.shape
    for begin, end in SLICES:
        np.testing.assert_array_equal(np.asarray(opened[begin:end]), expected[begin:end])
        assert np.asarray(opened[begin:end]).shape == expected[begin:end].shape


@each_kind
def test_shards_equal_the_array(tmp_path: Path, rows: Rows, bytes_: Rows, suffix: str) -> None:
    rows = bytes_ if suffix == ".bvecs" else rows
    expected = rows.astype(np.float32)
    paths = write_shards(tmp_path / "shards", suffix, rows)
    for name in ("_SUCCESS", ".part-1.npy", "ids.txt"):
        (tmp_path / "shards" / name).write_text("not a shard")
    for source in (tmp_path / "shards", str(tmp_path / "shards"), paths, tuple(map(str, paths))):
        assert_same_slices(open_vectors(source), expected)
    backwards = np.concatenate([expected[97:], expected[60:97], expected[30:60], expected[:30]])
    assert_same_slices(open_vectors(paths[::-1]), backwards)


@each_kind
def test_one_file_equals_the_array(tmp_path: Path, rows: Rows, bytes_: Rows, suffix: str) -> None:
    for number, content in enumerate([rows, bytes_]):
        if suffix == (".bvecs", ".fvecs")[number]:
            continue
        path = tmp_path / f"{number}{suffix}"
        WRITERS[suffix](path, content)
        opened = open_vectors(path)
        assert_same_slices(opened, content.astype(np.float32))
        assert np.asarray(opened[0:1]).dtype == np.float32


def test_shards_of_several_floats_and_empty_ones(tmp_path: Path, rows: FloatArray) -> None:
    (tmp_path / "s").mkdir()
    for number, dtype in enumerate((np.float16, np.float32, np.float64)):
        np.save(tmp_path / "s" / f"{2 * number}.npy", np.zeros((0, 7), dtype))
        np.save(tmp_path / "s" / f"{2 * number + 1}.npy", rows[30 * number : 30 * number + 30].astype(dtype))
    opened = open_vectors(tmp_path / "s")
    expected = np.concatenate([rows[:30].astype(np.float16).astype(np.float32), rows[30:90]])
    np.testing.assert_array_equal(opened[0:90], expected)
    np.testing.assert_array_equal(opened[29:31], expected[29:31])


def test_memory_maps_and_bytes_in_memory(tmp_path: Path, rows: FloatArray, bytes_: Rows) -> None:
    np.save(tmp_path / "a.npy", rows)
    for mode in ("r", "r+", "c"):
        mapped = np.load(tmp_path / "a.npy", mmap_mode=mode)
        assert_same_slices(open_vectors(mapped), rows)
        assert_same_slices(open_vectors(mapped[10:]), rows[10:])
    # Changes that are only in memory stay.
    mapped[3] = 7
    opened = open_vectors(mapped)
    opened[0:100]
    np.testing.assert_array_equal(opened[3:4], np.full((1, 24), 7))
    assert_same_slices(open_vectors(bytes_), bytes_.astype(np.float32))


def test_a_step_is_refused(tmp_path: Path, rows: FloatArray) -> None:
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(InputError, match="slices of step 1"):
        open_vectors(tmp_path / "a.npy")[0:10:2]


def test_one_shard_is_open_at_a_time(tmp_path: Path, rows: FloatArray) -> None:
    for suffix in (".npy", ".parquet"):
        (tmp_path / suffix).mkdir()
        for row in range(50):
            WRITERS[suffix](tmp_path / suffix / f"{row}{suffix}", rows[row : row + 1])
        opened = open_vectors(tmp_path / suffix)
        np.testing.assert_array_equal(opened[0:50], rows[:50])
        assert open_files(tmp_path / suffix) <= 1


def open_files(folder: Path) -> int:
    """Files of a folder that this process holds open, removed ones included.

    Others come and go meanwhile: connections of a server that an earlier test talked to.
    """
    gc.collect()
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            targets.append(os.readlink(entry))
    return sum(target.startswith(f"{folder}/") for target in targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r: np.save(p / "b.npy", r[:, :5]), r"/b\.npy has dimension 5, but .*/a\.npy has 24"),
        (lambda p, r: write_vecs(p / "b.fvecs", r), r"one kind, got \.fvecs \(.*/b\.fvecs\) and \.npy"),
        (lambda p, _: (p / "b.npy").write_text("x"), r"/b\.npy cannot be read"),
        (lambda p, r: np.save(p / "b.npy", r.astype(int)), r"/b\.npy: embeddings must be floating.*int64"),
        (lambda p, r: np.save(p / "b.npy", r[0]), r"/b\.npy: embeddings must have shape"),
        (lambda p, r: np.save(p / "a.npy", r[:0]), r"must have shape \(n, d\) and not be empty, got"),
        (lambda p, _: (p / "a.npy").rename(p / "a.txt"), r"/s holds no file of a known kind: \.npy"),
    ],
)
def test_faults_of_folders(
    tmp_path: Path, rows: FloatArray, change: Callable[[Path, Rows], object], message: str
) -> None:
    (tmp_path / "s").mkdir()
    np.save(tmp_path / "s" / "a.npy", rows)
    change(tmp_path / "s", rows)
    with pytest.raises((FormatError, InputError), match=message):
        open_vectors(tmp_path / "s")


def test_faults_found_on_reading(tmp_path: Path, rows: FloatArray, bytes_: Rows) -> None:
    path = tmp_path / "a.npy"
    np.save(path, rows)
    opened, sharded = open_vectors(path), open_vectors([path, path])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(FormatError, match=r"a\.npy ends within row 96 of 100"):
        opened[90:100]
    with pytest.raises(FormatError, match=r"a\.npy cannot be read"):
        sharded[0:10]
    np.save(path, rows[:50])
    with pytest.raises(FormatError, match=r"a\.npy changed: its shape was \(100, 24\) and is \(50, 24\)"):
        sharded[0:10]
    write_vecs(tmp_path / "a.bvecs", bytes_)
    content = bytearray((tmp_path / "a.bvecs").read_bytes())
    content[28 * 41] = 23
    (tmp_path / "a.bvecs").write_bytes(content)
    with pytest.raises(
        FormatError, match=r"a\.bvecs: rows differ in dimension, the first has 24, row 41 not"
    ):
        open_vectors(tmp_path / "a.bvecs")[30:50]
    (tmp_path / "a.bvecs").write_bytes(content[:-1])
    with pytest.raises(FormatError, match="not a whole number of bvecs rows"):
        open_vectors(tmp_path / "a.bvecs")
    with pytest.raises(FormatError, match=r"gone\.npy does not exist"):
        open_vectors([tmp_path / "gone.npy"])


@pytest.fixture
def spool_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_an_iterator_is_spooled_and_cleaned_up(spool_folder: Path, rows: FloatArray, bytes_: Rows) -> None:
    assert open_files(spool_folder) == 0
    for source in (rows, rows.astype(np.float64), rows.astype(np.float16), bytes_):
        parts = np.split(source, [10, 10, 45, 46])
        opened = open_vectors(iter(parts))
        assert_same_slices(opened, source.astype(np.float32))
        assert open_vectors(opened) is opened
        assert open_files(spool_folder) == 1
        assert not list(spool_folder.iterdir())
        del opened
        assert open_files(spool_folder) == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda _: [], "gave no rows"),
        (lambda r: [r[:0]], "gave no rows"),
        (lambda r: [r[:5], r[5:9, :7]], r"embeddings \(batch 1\) have dimension 7, expected 24"),
        (lambda r: [r[:5], r[5:9] * [np.nan]], r"embeddings \(batch 1\) row 5 holds NaN"),
        (lambda r: [r.astype(int)], r"embeddings \(batch 0\) must be floating point"),
        (lambda r: [r[None]], r"embeddings \(batch 0\) must have shape \(n, d\)"),
    ],
)
def test_bad_batches_are_cleaned_up(
    spool_folder: Path, rows: FloatArray, batches: Callable[[Rows], list[Rows]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_vectors(iter(batches(rows)))
    assert open_files(spool_folder) == 0
    assert not list(spool_folder.iterdir())


def test_the_iterators_own_error_passes(spool_folder: Path, rows: FloatArray) -> None:
    def failing() -> Iterator[Rows]:
        yield rows
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        open_vectors(failing())
    assert open_files(spool_folder) == 0
    assert not list(spool_folder.iterdir())


def test_an_index_of_every_source_is_that_of_the_array(
    tmp_path: Path, vectors: FloatArray, model: CompresSAE
) -> None:
    expected = CompressedIndex.build(vectors[:90], model=model, k=16, progress=False).codes(range(90))
    for suffix in (".npy", ".fvecs", ".parquet"):
        paths = write_shards(tmp_path / suffix, suffix, vectors[:90], (30, 31))
        for source in (tmp_path / suffix, paths, (vectors[i : i + 30] for i in range(0, 90, 30))):
            index = CompressedIndex.build(source, model=model, k=16, progress=False)
            np.testing.assert_array_equal(index.codes(range(90)).latents, expected.latents)


def test_training_on_shards_is_training_on_the_array(tmp_path: Path, vectors: FloatArray) -> None:
    from compressae_index.training import TrainConfig, train

    write_shards(tmp_path / "s", ".npy", vectors[:600], (100, 350))
    config = TrainConfig(k=4, n_latents=64, steps=3, batch_size=64)
    expected = train(vectors[:600], config).model.fingerprint
    assert train(tmp_path / "s", config).model.fingerprint == expected
    assert train(iter([vectors[:100], vectors[100:600]]), config).model.fingerprint == expected


def test_adding_in_runs_is_adding_at_once(
    vectors: FloatArray, model: CompresSAE, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packed, values would be rounded to levels that the first run alone decides.
    settings: dict[str, Any] = {"k": 16, "encoder": "topk", "forward": "aligned", "progress": False}
    # A product of matrices of another shape may round otherwise.
    monkeypatch.setattr("compressae_index.coding.model.BATCH_ROWS", 100)
    expected = CompressedIndex.build(vectors, model=model, **settings)
    monkeypatch.setattr("compressae_index.embedded.documents.RUN_ROWS", 1000)
    monkeypatch.setattr("compressae_index.coding.chunks.CHUNK_ROWS", 700)
    index = CompressedIndex.build(vectors, model=model, **settings)
    assert_same_codes(index.codes(index.ids), expected.codes(expected.ids))
    for mode in ("sparse", "dense", "two_stage"):
        found, wanted = (i.search(queries, 10, mode=mode) for i in (index, expected))
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.scores, wanted.scores)
    # A bad row in a later run leaves nothing behind.
    bad = vectors[:2000].copy()
    bad[1900] = np.nan
    with pytest.raises(InputError, match="row 1900 holds NaN"):
        index.add(bad)
    assert len(index) == len(vectors)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, model: CompresSAE, vectors: FloatArray) -> Path:
    """Codes of 4,000 embeddings in two shards. Not to be changed."""
    path = tmp_path_factory.mktemp("stored") / "codes"
    encode_to_directory(model, vectors, path, k=8, encoder="topk", shard_rows=SHARD)
    return path


@pytest.fixture
def begun(stored: Path, tmp_path: Path) -> Path:
    """A copy of them to change, modification times kept."""
    return Path(shutil.copytree(stored, tmp_path / "codes"))


def again(path: Path, model: CompresSAE, vectors: Any, **settings: Any) -> CodeStore:
    return encode_to_directory(model, vectors, path, **{"k": 8, "encoder": "topk", **settings})


def times(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in path.glob("[lv]*-*.npy")}


def test_a_directory_holds_what_encode_gives(stored: Path, model: CompresSAE, vectors: FloatArray) -> None:
    store = CodeStore.load(stored)
    expected = model.fold(model.encode(vectors, 8, encoder="topk"))
    assert (len(store), store.k, store.encoder, store.n_latents) == (4000, 8, "topk", 512)
    assert store.fingerprint == model.fingerprint
    for begin, end in ((0, 4000), (2040, 2060), (3990, 5000), (7, 7)):
        assert_same_codes(store[begin:end], expected[begin:end])
    names = {f"{part}-00000{i}.npy" for part in ("latents", "values") for i in (0, 1)}
    assert {file.name for file in stored.iterdir()} == {"manifest.json", *names}


def test_finished_shards_are_kept(begun: Path, model: CompresSAE, vectors: FloatArray) -> None:
    before = times(begun)
    again(begun, model, vectors)
    again(begun, model, vectors, shard_rows=SHARD)
    assert times(begun) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 9}, "k = 8, now it is 9"),
        ({"encoder": "pursuit"}, "encoder = topk, now it is pursuit"),
        ({"shard_rows": 100}, "shard_rows = 2048, now it is 100"),
        ({"rows": 3999}, "n = 4000, now it is 3999"),
        ({"model": True}, "fingerprint = [0-9a-f]{32}, now it is [0-9a-f]{32}"),
    ],
)
def test_other_settings_are_refused(
    begun: Path, model: CompresSAE, vectors: FloatArray, settings: dict[str, Any], message: str
) -> None:
    before = times(begun)
    vectors = vectors[: settings.pop("rows", None)]
    if settings.pop("model", False):
        model = CompresSAE(model.encoder_w * 2, model.encoder_b, model.decoder_w, model.k)
    with pytest.raises(
        FormatError, match=f"codes was begun with {message}: use the same settings, or another"
    ):
        again(begun, model, vectors, **settings)
    assert times(begun) == before


def changed_shards(before: dict[str, int], after: dict[str, int]) -> set[int]:
    return {int(re.findall(r"[0-9]+", name)[0]) for name in after if after[name] != before.get(name)}


@pytest.mark.parametrize("source", ["array", "file", "folder", "iterator"])
@pytest.mark.parametrize(
    ("rows", "shards"),
    [([0], {0}), ([SHARD // 2], {0}), ([SHARD - 5], {0}), ([3000], {1}), ([SHARD - 1, SHARD], {0, 1})],
)
def test_shards_of_changed_rows_are_encoded_again(
    begun: Path,
    tmp_path: Path,
    model: CompresSAE,
    vectors: FloatArray,
    rows: list[int],
    shards: set[int],
    source: str,
) -> None:
    other = vectors.copy()
    other[rows] = vectors[1000]
    np.save(tmp_path / "e.npy", other)
    write_shards(tmp_path / "s", ".npy", other, (700, 2500))
    given: dict[str, Any] = {
        "array": other,
        "file": tmp_path / "e.npy",
        "folder": tmp_path / "s",
        "iterator": iter(np.array_split(other, 3)),
    }
    before = times(begun)
    with pytest.warns(UserWarning, match=r"codes holds codes of other embeddings: rows .* are encoded again"):
        store = again(begun, model, given[source])
    assert changed_shards(before, times(begun)) == shards
    again(begun, model, other)  # without a warning
    assert changed_shards(before, times(begun)) == shards
    fresh = again(tmp_path / "fresh", model, other, shard_rows=SHARD)
    assert_same_codes(store[0:4000], fresh[0:4000])
    assert (begun / "manifest.json").read_bytes() == (tmp_path / "fresh" / "manifest.json").read_bytes()


def test_two_rows_exchanged_are_a_change(begun: Path, model: CompresSAE, vectors: FloatArray) -> None:
    other = vectors.copy()
    other[[100, 200]] = vectors[[200, 100]]
    other[3000, 5] = np.nextafter(vectors[3000, 5], np.float32(1))
    before = times(begun)
    with pytest.warns(UserWarning, match=r"rows (0 \.\. 2047|2048 \.\. 3999) changed") as warned:
        again(begun, model, other)
    assert len(warned) == 2
    assert changed_shards(before, times(begun)) == {0, 1}


def test_what_changes_while_it_is_encoded_is_found(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray
) -> None:
    """The digest is of the rows that were encoded, not of those that another look finds."""
    read: list[int] = []

    class Changing:
        shape = (100, 384)

        def __getitem__(self, rows: slice) -> FloatArray:
            part = vectors[rows].copy()
            if not read:
                part[50] = vectors[1000]
            read.append(rows.start)
            return part

    again(tmp_path / "codes", model, Changing())
    with pytest.warns(UserWarning, match=r"rows 0 \.\. 99 changed"):
        store = again(tmp_path / "codes", model, Changing())
    expected = model.fold(model.encode(vectors[:100], 8, encoder="topk"))
    assert_same_codes(store[0:100], expected)


def test_bad_rows_that_came_since_change_nothing(begun: Path, model: CompresSAE, vectors: FloatArray) -> None:
    before = {file.name: file.read_bytes() for file in begun.iterdir()}
    other = vectors.copy()
    other[5], other[3000, 2] = vectors[0], np.nan
    with pytest.warns(UserWarning, match="changed"), pytest.raises(InputError, match="row 3000 holds NaN"):
        again(begun, model, other)
    assert {file.name: file.read_bytes() for file in begun.iterdir()} == before


def test_codes_of_version_0_1_0(begun: Path, model: CompresSAE, vectors: FloatArray) -> None:
    """Their digests are of the first and last 4 rows of a shard, which says nothing of the others."""
    manifest = json.loads((begun / "manifest.json").read_bytes())
    for number, entry in enumerate(manifest["shards"]):
        shard = vectors[SHARD * number : SHARD * (number + 1)]
        witness = hashlib.sha256(shard[:4].tobytes() + shard[-4:].tobytes())
        entry["embeddings"] = witness.hexdigest()[:32]
    manifest["checksum"] = persistence._manifest_checksum(manifest)
    (begun / "manifest.json").write_text(json.dumps(manifest))
    assert len(CodeStore.load(begun)) == 4000
    other = vectors.copy()
    other[1000] = vectors[0]
    with pytest.warns(UserWarning, match=r"does not tell whether rows .* changed, as 0\.1\.0 encoded them"):
        store = again(begun, model, other)
    assert_same_codes(store[0:4000], model.fold(model.encode(other, 8, encoder="topk")))
    again(begun, model, other)


@pytest.mark.parametrize("name", ["latents-000001.npy", "values-000001.npy"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "bytes, its manifest says"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not match its checksum"),
        (lambda _: None, "is missing"),
    ],
)
def test_a_damaged_shard_is_encoded_again(
    begun: Path,
    stored: Path,
    model: CompresSAE,
    vectors: FloatArray,
    name: str,
    damage: Callable[[bytes], bytes | None],
    message: str,
) -> None:
    content = damage((begun / name).read_bytes())
    if content is None:
        (begun / name).unlink()
    else:
        (begun / name).write_bytes(content)
    with pytest.raises(FormatError, match=rf"{name}.*{message}"):
        CodeStore.load(begun)
    before = times(begun)
    with pytest.warns(UserWarning, match=rf"{name}.*{message}.*; its rows are encoded again"):
        store = again(begun, model, vectors)
    assert_same_codes(store[0:4000], CodeStore.load(stored)[0:4000])
    after = times(begun)
    assert {name for name in after if after[name] != before.get(name)} == {
        "latents-000001.npy",
        "values-000001.npy",
    }


def test_what_is_there_is_respected(tmp_path: Path, model: CompresSAE, vectors: FloatArray) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("model", "holds: model; expected: codes"),
        ("foreign", "holds no manifest.json"),
        ("file", "is not a directory"),
        ("file/codes", "file is not a directory"),
    ):
        with pytest.raises(FormatError, match=message):
            again(tmp_path / name, model, vectors[:10])
    with pytest.raises(FormatError, match="holds: model; expected: codes"):
        CodeStore.load(tmp_path / "model")
    with pytest.raises(InputError, match="dimension 9, expected 384"):
        again(tmp_path / "new", model, vectors[:10, :9])
    with pytest.raises(InputError, match="row 5 holds NaN"):
        again(tmp_path / "new", model, np.where(np.arange(10)[:, None] == 5, np.float32("nan"), vectors[:10]))
    assert not (tmp_path / "new").exists()


def test_a_failed_write_keeps_finished_shards(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, iter(range(100))

    def filling(*arguments: Any) -> None:
        if next(calls) == 4:  # latents, values and manifest of the first shard; latents of the second
            raise OSError("the disk is full")
        replace(*arguments)

    monkeypatch.setattr("os.replace", filling)
    with pytest.raises(OSError, match="the disk is full"):
        again(tmp_path / "codes", model, vectors, shard_rows=SHARD)
    names = {"manifest.json", "latents-000000.npy", "values-000000.npy", "latents-000001.npy"}
    assert {file.name for file in (tmp_path / "codes").iterdir()} == names
    expected = model.fold(model.encode(vectors, 8, encoder="topk"))
    assert_same_codes(again(tmp_path / "codes", model, vectors)[0:4000], expected)


def test_codes_from_a_center_are_known_again(
    tmp_path: Path, uncentred_model: CompresSAE, vectors: FloatArray
) -> None:
    model = uncentred_model.centred_at(vectors[0])
    options: dict[str, Any] = {"k": 8, "encoder": "topk", "shard_rows": SHARD}
    first = encode_to_directory(model, vectors[:1200], tmp_path / "codes", **options)
    before = times(first.path)
    encode_to_directory(model, vectors[:1200], tmp_path / "codes", **options)  # a warning is an error
    assert times(first.path) == before


def test_codes_that_leave_room_for_residuals(tmp_path: Path, model: CompresSAE, vectors: FloatArray) -> None:
    path = tmp_path / "codes"
    store = encode_to_directory(model, vectors[:50], path, residual_bits=2, num_threads=1)
    chunk = next(encoded_chunks(model, vectors[:50], model.k, "pursuit", 1, residual_bits=2))
    assert_same_codes(store[0:50], chunk.codes)
    with pytest.raises(FormatError, match="begun with residual_bits = 2, now it is 0"):
        encode_to_directory(model, vectors[:50], path)
    with pytest.raises(FormatError, match="leave room for residual codes"):
        CompressedIndex.from_codes(store, model)


def test_a_second_writer_is_refused(begun: Path, model: CompresSAE, vectors: FloatArray) -> None:
    handle = os.open(begun, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(FormatError, match="another process is encoding to"):
            again(begun, model, vectors)
    finally:
        os.close(handle)
    again(begun, model, vectors)


def test_an_index_from_codes(
    stored: Path, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    expected = CompressedIndex.build(
        vectors, np.arange(4000) + 5, model=model, k=8, encoder="topk", progress=False
    )
    expected.frontier = None  # codes alone do not tell what is near
    for codes in (stored, str(stored), CodeStore.load(stored)):
        index = CompressedIndex.from_codes(codes, model, np.arange(4000) + 5, progress=False)
        assert (index.k, index.encoder) == (8, "topk")
        np.testing.assert_array_equal(index.search(queries, 10).ids, expected.search(queries, 10).ids)
        assert_same_codes(index.codes(index.ids), expected.codes(expected.ids))
    with pytest.raises(InputError, match="3 ids for 4000 vectors"):
        CompressedIndex.from_codes(stored, model, [1, 2, 3])
    other = CompresSAE(model.encoder_w * 2, model.encoder_b, model.decoder_w, model.k)
    with pytest.raises(
        FormatError, match=f"of fingerprint {model.fingerprint}, the model given has {other.fingerprint}"
    ):
        CompressedIndex.from_codes(stored, other)


ENCODE = """
import os, sys
from compressae_index import CompresSAE
from compressae_index.coding import chunks, directory
source, target, kill_at = sys.argv[1:]
encode = directory.encoded_chunks
def dying(*arguments, begin, **more):
    for codes in encode(*arguments, begin=begin, **more):
        yield codes
        if begin >= int(kill_at):
            os._exit(9)
chunks.CHUNK_ROWS = 200
directory.encoded_chunks = dying
model = CompresSAE.load(source + ".model")
directory.encode_to_directory(model, source, target, k=8, encoder="topk", shard_rows=500)
"""
NEVER = 10**9


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_process_loses_no_finished_shard(
    tmp_path: Path, model: CompresSAE, vectors: FloatArray
) -> None:
    source, killed, whole = tmp_path / "a.npy", tmp_path / "killed", tmp_path / "whole"
    np.save(source, vectors)
    model.save(f"{source}.model")
    for kill_at, finished in ((0, 0), (1000, 2), (3500, 7)):
        before = times(killed)
        done = run_python(ENCODE, source, killed, kill_at)
        assert done.returncode == 9, done.stderr
        assert [file.name for file in killed.glob(".writing-*")]
        after = times(killed)
        assert len(after) == 2 * finished
        assert before.items() <= after.items()
        with pytest.raises(FormatError, match=f"{finished} of 8 shards: encode again|holds no manifest"):
            CodeStore.load(killed)
    for path in (killed, whole):
        done = run_python(ENCODE, source, path, NEVER)
        assert done.returncode == 0, done.stderr
    assert after.items() <= times(killed).items()
    contents = [{file.name: file.read_bytes() for file in path.iterdir()} for path in (killed, whole)]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 17


MEASURE = """
import sys
import numpy as np
from compressae_index import CompresSAE
from compressae_index.coding import directory
kind, source, target = sys.argv[1:]
rng = np.random.default_rng(0)
dictionary = rng.standard_normal((64, 128)).astype(np.float32)
dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
model = CompresSAE(np.ascontiguousarray(dictionary.T), np.zeros(64, np.float32), dictionary, 4)
n = np.load(source, mmap_mode="r").shape[0]
vectors = {
    "file": lambda: source,
    "parquet": lambda: source.replace(".npy", ".parquet"),
    "shards": lambda: [source] * 3,
    "map": lambda: np.load(source, mmap_mode="r"),
    "iterator": lambda: (np.load(source, mmap_mode="r")[i : i + 4096] for i in range(0, n, 4096)),
}[kind]()
store = directory.encode_to_directory(model, vectors, target, encoder="topk", shard_rows=32768, num_threads=1)
for begin in range(0, len(store), 4096):
    store[begin : begin + 4096]
# Not ru_maxrss, in which a child begins with what its parent has.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 20,000 to 420,000 rows of 128 dimensions. Not to be changed."""
    folder = tmp_path_factory.mktemp("large")
    block = np.random.default_rng(1).standard_normal((20_000, 128)).astype(np.float32)
    table = pa.table({"emb": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), 128)})
    for n in (20_000, 60_000, 140_000, 420_000):
        with (folder / f"{n}.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n, 128)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(n // len(block)):
                file.write(block.data)
    for n in (60_000, 420_000):
        with pq.ParquetWriter(folder / f"{n}.parquet", table.schema) as writer:
            for _ in range(n // len(block)):
                writer.write_table(table)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["file", "shards", "map", "iterator", "parquet"])
def test_memory_does_not_grow_with_n(tmp_path: Path, large: Path, kind: str) -> None:
    peaks = []
    # Shards are one file, three times.
    for n in (20_000, 140_000) if kind == "shards" else (60_000, 420_000):
        done = run_python(MEASURE, kind, large / f"{n}.npy", tmp_path / str(n))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    # 360,000 more rows are 176 MiB. Readers of Parquet keep some of what they freed, up to 30 MiB as seen.
    assert peaks[1] - peaks[0] < 48, f"peak memory in MiB: {peaks}"
