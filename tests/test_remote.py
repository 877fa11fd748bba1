"""Embeddings, ids, models and indexes in stores: a real S3 server over HTTP, and memory:// and file://."""

from __future__ import annotations

import gc
import importlib
import io
import multiprocessing
import operator
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_source_files import WRITERS, Rows, write_parquet

from compressae_index import (
    BatchEncoder,
    CompresSAE,
    CompressedIndex,
    FormatError,
    InputError,
    InstallationError,
    MissingExtraError,
    StorageError,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import as_path, as_place
from compressae_index.cli import main
from compressae_index.coding.directory import encode_to_directory
from compressae_index.connectors.ray.output import Finished, output_at
from compressae_index.connectors.ray.pieces import FileRows, Job, Piece
from compressae_index.connectors.ray.work import Shards
from compressae_index.errors import CompressaeError
from compressae_index.persistence import kind_of, was_written
from compressae_index.remote import RemotePath, shown
from compressae_index.sources import open_vectors, read_ids

fsspec = pytest.importorskip("fsspec")
s3fs = pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

# What must never be shown, with signs that have a meaning in addresses.
KEY, SECRET = "AKIANOBODYSHALLSEEIT", "nor/this+secret@of:ours"
PARTS = (KEY, SECRET, quote(SECRET, safe=""), "nor/this", "secret@of", "of:ours")
REFUSED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Counter:
    """The server's application, whose answers are counted, and which may refuse requests."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.bytes = 0
        self.authorizations: list[str] = []
        self.refuses: Callable[[str, str], bool] = lambda _method, _path: False

    def __call__(self, environ: Any, start: Any) -> Iterator[bytes]:
        self.authorizations.append(environ.get("HTTP_AUTHORIZATION", ""))
        if self.refuses(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("403 Forbidden", [("Content-Type", "text/xml"), ("Content-Length", str(len(REFUSED)))])
            yield REFUSED
            return
        for part in self._app(environ, start):
            self.bytes += len(part)
            yield part


class Store:
    """A bucket, and the server that it is on."""

    def __init__(self, url: str, client: Any, counter: Counter) -> None:
        self.url, self.client, self.counter = url, client, counter

    def put(self, name: str, content: bytes) -> str:
        self.client.put_object(Bucket="bucket", Key=name, Body=content)
        return f"s3://bucket/{name}"

    def names(self, below: str) -> set[str]:
        listed = self.client.list_objects_v2(Bucket="bucket", Prefix=below)
        return {each["Key"].removeprefix(below) for each in listed.get("Contents", [])}

    @contextmanager
    def refusing(self, refuses: Callable[[str, str], bool]) -> Iterator[None]:
        self.counter.refuses = refuses
        yield
        self.counter.refuses = lambda _method, _path: False

    @contextmanager
    def checked(self) -> Iterator[None]:
        """The server compares keys and signatures."""
        for after in (b"0", b"inf"):
            request = Request(f"{self.url}/moto-api/reset-auth", after, {"Content-Type": "text/plain"})
            with urlopen(request) as answer:
                assert answer.status == 200
            if after == b"0":
                yield


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    """A bucket named bucket."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    counter = server._server.app = Counter(server._server.app)
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patched.delenv(name)
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_CONFIG_FILE", os.devnull)
        patched.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield Store(f"http://{host}:{port}", client, counter)
        client.close()
    server.stop()


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """60 rows of 8."""
    return vectors[:60, :8].copy()


def content_of(tmp_path: Path, suffix: str, rows: Rows) -> bytes:
    path = tmp_path / f"written{suffix}"
    path.unlink(missing_ok=True)
    WRITERS[suffix](path, rows)
    return path.read_bytes()


def npy(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


each_kind = pytest.mark.parametrize("suffix", WRITERS)


@each_kind
def test_slices_of_an_object(s3: Store, tmp_path: Path, rows: FloatArray, suffix: str) -> None:
    opened = open_vectors(s3.put(f"one/a{suffix}", content_of(tmp_path, suffix, rows)))
    assert opened.shape == (60, 8)
    for begin, end in ((0, 60), (7, 8), (30, 99), (60, 60)):
        np.testing.assert_array_equal(opened[begin:end], rows[begin:end])


def test_other_dtypes_and_orders(s3: Store, rows: FloatArray) -> None:
    bytes_ = (np.abs(rows) * 100).astype(np.uint8)
    dims = np.full((60, 4), [8, 0, 0, 0], dtype=np.uint8)
    bvecs = open_vectors(s3.put("other/a.bvecs", np.hstack([dims, bytes_]).tobytes()))
    np.testing.assert_array_equal(bvecs[3:50], bytes_[3:50])
    for content in (np.asfortranarray(rows), rows.astype(np.float16), rows.astype(">f8")):
        opened = open_vectors(s3.put("other/a.npy", npy(content)))
        np.testing.assert_array_equal(opened[3:50], content[3:50])


@pytest.mark.parametrize("store", ["s3://bucket", "memory://bucket", "file://"])
def test_folders_patterns_and_lists(s3: Store, tmp_path: Path, rows: FloatArray, store: str) -> None:
    root = f"{store}{tmp_path}" if store == "file://" else f"{store}/folder"
    system, base = fsspec.core.url_to_fs(root)
    system.mkdirs(base, exist_ok=True)

    def put(name: str, content: bytes) -> str:
        system.makedirs(os.path.dirname(f"{base}/{name}"), exist_ok=True)
        system.pipe_file(f"{base}/{name}", content)
        return f"{root}/{name}"

    first, second, tenth = (
        put(f"shards/shard-{number}.npy", npy(rows[begin : begin + 20]))
        for number, begin in ((1, 0), (2, 20), (10, 40))
    )
    for name in ("_SUCCESS", ".shard-1.npy.crc", "readme.md", "shard-1.npy.sha256", "_old/shard-3.npy"):
        put(f"shards/{name}", b"nothing")
    if store.startswith("s3"):
        s3.put("folder/shards/", b"")  # the folder itself, as consoles make it
    named: list[Any] = [f"{root}/shards", f"{root}/shards/", f"{root}/shards/shard-*.npy"]
    for source in (*named, f"{root}/**/shards/shard-*[0-9].npy", [first, f"{root}/shards/shard-2*", tenth]):
        opened = open_vectors(source)
        np.testing.assert_array_equal(opened[0:60], rows)
        np.testing.assert_array_equal(opened[15:45], rows[15:45])
    np.testing.assert_array_equal(open_vectors([tenth, second])[0:40], np.vstack([rows[40:], rows[20:40]]))

    put("shards/more/shard-4.npy", npy(rows))
    with pytest.raises(FormatError, match=r"shards holds a folder with .*/more/shard-4\.npy, which would be"):
        open_vectors(f"{root}/shards")
    system.rm(f"{base}/shards/more", recursive=True)
    put("shards/shard-5.npy.gz", b"")
    with pytest.raises(FormatError, match=r"shards holds shard-5\.npy\.gz, which would be passed over"):
        open_vectors(f"{root}/shards")
    with pytest.raises(FormatError, match=r"/x\*\.npy does not exist, and as a pattern it matches no file"):
        open_vectors(f"{root}/x*.npy")
    put("narrow/a.npy", npy(rows[:, :4]))
    with pytest.raises(FormatError, match=r"narrow/a\.npy has dimension 4, but .*/shard-1\.npy has 8"):
        open_vectors([first, f"{root}/narrow/a.npy"])


@each_kind
def test_slices_do_not_fetch_the_whole(s3: Store, tmp_path: Path, vectors: FloatArray, suffix: str) -> None:
    if suffix == ".parquet":  # its writer makes groups of 20 rows
        vectors = vectors[:2000]
    address = s3.put(f"large/a{suffix}", content := content_of(tmp_path, suffix, vectors))
    before = s3.counter.bytes
    opened = open_vectors(address)
    np.testing.assert_array_equal(opened[1205:1215], vectors[1205:1215])
    assert 10 * 384 * 4 < s3.counter.bytes - before < len(content) / 8
    np.testing.assert_array_equal(opened[0 : len(vectors)], vectors)


def test_no_collection_waits_for_hdf5(
    s3: Store, tmp_path: Path, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h5py waits with a lock held, which a collection in the thread that fetches would wait for."""
    address = s3.put("locked/a.hdf5", content_of(tmp_path, ".hdf5", vectors))
    collects, read_at = [], RemotePath.read_at

    def watched(self: RemotePath, begin: int, into: memoryview) -> int:
        collects.append(gc.isenabled())
        return read_at(self, begin, into)

    monkeypatch.setattr(RemotePath, "read_at", watched)
    assert gc.isenabled()
    opened = open_vectors(address)
    at_opening = len(collects)
    np.testing.assert_array_equal(opened[910:920], vectors[910:920])
    assert 0 < at_opening < len(collects)
    assert not any(collects)
    s3.put("locked/a.hdf5", b"")
    with pytest.raises(FormatError):
        opened[10:20]
    assert gc.isenabled()


def test_a_slice_of_many_requests(s3: Store, rows: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressae_index.remote._BLOCK_BYTES", 100)
    monkeypatch.setattr("compressae_index.remote._AT_ONCE", 3)
    opened = open_vectors(s3.put("many/a.npy", npy(rows)))
    np.testing.assert_array_equal(opened[0:60], rows)
    np.testing.assert_array_equal(opened[1:2], rows[1:2])


@each_kind
@pytest.mark.parametrize(("store", "sharded"), [("s3", False), ("s3", True), ("memory", True)])
def test_an_object_that_changes_is_refused(
    s3: Store, tmp_path: Path, rows: FloatArray, suffix: str, store: str, sharded: bool
) -> None:
    system = fsspec.filesystem(store)
    assert store != "s3" or s3.url
    address = f"{store}://bucket/changing/a{suffix}"
    content = content_of(tmp_path, suffix, rows)
    # As many bytes as before, another dtype, fewer rows, and the same object again.
    for other in (rows * 2, rows.astype(np.float64), rows[:30], rows):
        system.pipe_file(f"bucket/changing/a{suffix}", content)
        opened = open_vectors([address] if sharded else address)
        np.testing.assert_array_equal(opened[10:20], rows[10:20])
        changed = content_of(tmp_path, suffix, other)
        system.pipe_file(f"bucket/changing/a{suffix}", changed)
        if store == "s3" and changed == content:
            continue  # nobody can tell, and nobody need to
        with pytest.raises(FormatError, match=rf"/a{suffix} (changed|ends within|cannot be read|: rows)"):
            opened[30:50]
    system.rm(f"bucket/changing/a{suffix}")
    with pytest.raises(FormatError, match=rf"/a{suffix} (is gone: it was moved|does not exist|changed)"):
        opened[0:5]


def test_what_others_write_is_seen(s3: Store, rows: FloatArray) -> None:
    """No listing is kept: this process writes nothing here by fsspec, which would notice."""
    s3.put("others/1.npy", npy(rows))
    opened = open_vectors("s3://bucket/others")
    s3.put("others/2.npy", npy(rows))
    assert open_vectors("s3://bucket/others").shape == (120, 8)
    s3.put("others/1.npy", npy(rows * 2))
    with pytest.raises(FormatError, match=r"^s3://bucket/others/1\.npy changed since it was opened"):
        opened[0:5]


@pytest.mark.usefixtures("s3")
def test_a_dataset_in_a_store(rows: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    lance = pytest.importorskip("lance")

    def write(name: str, rows: Rows, first: int, mode: str = "create") -> None:
        table = pa.table({"e": list(rows), "id": range(first, first + len(rows))})
        lance.write_dataset(table, f"s3://bucket/lance/{name}", mode=mode)

    for number, part in enumerate(np.split(rows, 2)):
        write(f"{number}.lance", part, 30 * number)
    for source in ("s3://bucket/lance", "s3://bucket/lance/*.lance"):
        opened = open_vectors(source)
        np.testing.assert_array_equal(opened[25:45], rows[25:45])
        np.testing.assert_array_equal(read_ids(source, "id"), np.arange(60))
    one = open_vectors("s3://bucket/lance/1.lance")
    write("1.lance", rows, 0, "overwrite")
    with pytest.raises(FormatError, match=r"s3://bucket/lance/1\.lance changed"):
        one[0:5]
    with pytest.raises(InputError, match=r"takes credentials from the environment") as caught:
        open_vectors(f"s3://{KEY}:{quote(SECRET, safe='')}@bucket/lance/0.lance")
    assert KEY not in str(caught.value)


def test_ids(s3: Store, tmp_path: Path, rows: FloatArray) -> None:
    write_parquet(tmp_path / "a.parquet", rows, id=[f"n{row}" for row in range(60)])
    text = s3.put("ids/ids.txt", "\ufeff3\n1\n4\n".encode())
    numbers = s3.put("ids/ids.npy", npy(np.array([3, 1, 4])))
    column = s3.put("ids/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert read_ids(text).tolist() == read_ids(numbers).tolist() == [3, 1, 4]
    assert read_ids(column, "id").tolist() == [f"n{row}" for row in range(60)]
    with pytest.raises(FormatError, match=r"s3://bucket/ids/none\.txt cannot be read: there is no such file"):
        read_ids("s3://bucket/ids/none.txt")
    with pytest.raises(FormatError, match=r"s3://bucket/ids/a\.parquet holds no column 'x', only: e, id"):
        read_ids(column, "x")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_read_too(s3: Store, rows: FloatArray, start: str) -> None:
    opened = open_vectors(s3.put("process/a.npy", npy(rows)))
    np.testing.assert_array_equal(opened[0:5], rows[0:5])  # this process has a connection
    with multiprocessing.get_context(start).Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(operator.getitem, (opened, slice(3, 9))), rows[3:9])
    np.testing.assert_array_equal(opened[3:9], rows[3:9])


# Models and indexes.


def assert_same(one: CompressedIndex, other: CompressedIndex, queries: FloatArray) -> None:
    for mode in ("sparse", "dense", "two_stage"):
        found, expected = one.search(queries, mode=mode), other.search(queries, mode=mode)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("store", ["s3://bucket", "memory://bucket", "file://"])
@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(
    s3: Store,  # noqa: ARG001
    scratch: Path,
    tmp_path: Path,
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    store: str,
    mmap: bool,
) -> None:
    root = f"{store}{tmp_path}" if store == "file://" else f"{store}/saved-{mmap}"
    ids = [f"n{row}" for row in range(500)]
    index = CompressedIndex.build(vectors[:500], ids, model=model, k=16, originals="float16", progress=False)
    index.save(f"{root}/items.index")
    loaded = CompressedIndex.load(f"{root}/items.index", mmap=mmap)
    assert os.listdir(scratch) == []  # what is mapped has no name any more
    assert_same(loaded, index, queries)
    assert loaded.ids.tolist() == ids
    again = pickle.loads(pickle.dumps(loaded))
    assert_same(again, index, queries)
    loaded.remove(ids[:100])
    loaded.save(f"{root}/items.index")
    assert_same(CompressedIndex.load(f"{root}/items.index"), loaded, queries)
    if mmap:  # a pickle says where the files are, which are others now
        pickled = pickle.dumps(CompressedIndex.load(f"{root}/items.index", mmap=True))
        index.save(f"{root}/items.index")
        with pytest.raises(FormatError, match=r"items\.index was written anew since"):
            pickle.loads(pickled)

    model.save(f"{root}/items.model")
    assert CompresSAE.load(f"{root}/items.model").fingerprint == model.fingerprint
    assert [kind_of(f"{root}/items.{kind}") for kind in ("index", "model")] == ["index", "model"]
    with pytest.raises(FormatError, match=r"items\.model holds: model; expected: index, or nothing"):
        index.save(f"{root}/items.model")
    with pytest.raises(FormatError, match=r"items\.index holds: index; expected: model"):
        CompresSAE.load(f"{root}/items.index")


@pytest.mark.parametrize("mmap", [False, True])
def test_faiss_indexes_too(scratch: Path, index: CompressedIndex, queries: FloatArray, mmap: bool) -> None:
    faiss = pytest.importorskip("compressae_index.connectors.faiss", exc_type=MissingExtraError)
    lists = faiss.FaissIndex.from_index(index, progress=False)
    lists.save("memory://bucket/items.faiss-index")
    loaded = faiss.FaissIndex.load("memory://bucket/items.faiss-index", mmap=mmap)
    assert os.listdir(scratch) == []
    found, expected = loaded.search(queries), lists.search(queries)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert kind_of("memory://bucket/items.faiss-index") == "faiss index"


def test_a_save_leaves_nothing_else(s3: Store, scratch: Path, index: CompressedIndex) -> None:
    for _ in range(2):
        index.save("s3://bucket/tidy/items.index")
        names = s3.names("tidy/items.index/")
        assert "manifest.json" in names
        assert len({name.partition("/")[0] for name in names}) == 2  # the manifest, and one folder
    assert os.listdir(scratch) == []
    s3.put("tidy/foreign/x.txt", b"mine")
    for foreign in ("s3://bucket/tidy/foreign", "s3://bucket/tidy/foreign/x.txt"):
        with pytest.raises(FormatError, match="was not written by compressae-index; it is left as it is"):
            index.save(foreign)
    assert s3.names("tidy/foreign/") == {"x.txt"}


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_save_that_is_interrupted(
    s3: Store,
    scratch: Path,
    index: CompressedIndex,
    vectors: FloatArray,
    queries: FloatArray,
    is_first: bool,
    is_killed: bool,
) -> None:
    """One write is refused, or, as if the process was killed, all from this one on: nothing is tidied."""
    path = f"s3://bucket/interrupted-{is_first}-{is_killed}/items.index"
    below = path.removeprefix("s3://bucket/") + "/"
    new = CompressedIndex.build(vectors[:300] + 0.1, model=index.model, k=16, progress=False)
    if not is_first:
        index.save(path)
    before = s3.names(below)
    writes: list[str] = []

    def noted(method: str, _: str) -> bool:
        writes.extend([method] if method in ("PUT", "POST", "DELETE") else [])
        return False

    with s3.refusing(noted):
        new.save(f"{path}.elsewhere")
    last = len(writes) - 1  # the manifest
    assert last > 5
    assert set(writes) == {"PUT"}
    for at in (last // 2, last):
        writes.clear()

        def refuses(method: str, name: str, at: int = at) -> bool:
            noted(method, name)
            return len(writes) > at if is_killed else method == "PUT" and len(writes) == at + 1

        with s3.refusing(refuses), pytest.raises(StorageError, match=f"{below}.* cannot be written: the sto"):
            new.save(path)
        assert os.listdir(scratch) == []
        assert before <= s3.names(below)
        if is_first:
            assert not was_written(RemotePath(path))
        else:
            assert_same(CompressedIndex.load(path), index, queries)
        if not is_killed and at < last:  # the store may still get a manifest, so that its data must stay
            assert s3.names(below) == before
    new.save(path)
    assert_same(CompressedIndex.load(path), new, queries)
    with s3.refusing(lambda method, _: method in ("DELETE", "POST")):  # the old data cannot be removed
        index.save(path)
    assert_same(CompressedIndex.load(path), index, queries)


def test_an_index_that_is_replaced_while_it_is_loaded(
    s3: Store, index: CompressedIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    path = "s3://bucket/replaced/items.index"
    index.save(path)
    new = CompressedIndex.build(vectors[:300] + 0.1, model=index.model, k=16, progress=False)
    saved: list[bool] = []

    def save_once(method: str, name: str) -> bool:
        if method == "GET" and "/data-" in name and not saved:
            saved.append(True)
            new.save(path)
        return False

    with s3.refusing(save_once):
        loaded = CompressedIndex.load(path)
    assert saved
    assert_same(loaded, new, queries)


def test_damage_is_named_by_address(s3: Store, scratch: Path, index: CompressedIndex) -> None:
    path = "s3://bucket/damaged/items.index"
    index.save(path)
    name = next(each for each in s3.names("damaged/") if each.endswith("forward_rows.npy"))
    content = bytearray(s3.client.get_object(Bucket="bucket", Key=f"damaged/{name}")["Body"].read())
    content[-1] ^= 1
    s3.put(f"damaged/{name}", bytes(content))
    with pytest.raises(FormatError, match=r"^s3://bucket/damaged/.*/forward_rows\.npy does not match its ch"):
        CompressedIndex.load(path)
    s3.client.delete_object(Bucket="bucket", Key=f"damaged/{name}")
    with pytest.raises(FormatError, match=r"^s3://bucket/damaged/.*/forward_rows\.npy is missing"):
        CompressedIndex.load(path)
    s3.put("damaged/items.index/manifest.json", b"{")
    with pytest.raises(FormatError, match=r"s3://bucket/damaged/items\.index/manifest\.json is truncated or"):
        CompressedIndex.load(path)
    assert os.listdir(scratch) == []


def test_what_killed_processes_left_is_removed(scratch: Path, index: CompressedIndex) -> None:
    left = scratch / "compressae-copy-01234567"
    left.mkdir()
    (left / "forward_rows.npy").write_bytes(b"much")
    (scratch / "mine").mkdir()
    index.save("memory://bucket/left/items.index")
    assert os.listdir(scratch) == ["mine"]


def test_shards_and_codes_in_a_store(
    index: CompressedIndex, model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    root = "memory://key:pa55@bucket/sharded"
    for number in range(2):
        shard = index.empty_like()
        shard.add(vectors[number * 150 : number * 150 + 150], index.ids[number * 150 : number * 150 + 150])
        shard.save(f"{root}/{number}.index")
    merged = CompressedIndex.merge(f"{root}/{number}.index" for number in range(2))
    assert_same(merged, index, queries)
    with pytest.raises(InputError, match=r"memory://\*\*\*@bucket/sharded/0\.index") as caught:
        CompressedIndex.merge([f"{root}/0.index", f"{root}/0.index"])
    assert_silent(caught.value, ("pa55",))

    model.save(f"{root}/items.model")
    encoder = pickle.loads(pickle.dumps(BatchEncoder(f"{root}/items.model")))
    assert "pa55" not in repr(encoder)
    pq.write_table(encoder(pa.table({"embedding": [*vectors[:300]]})), tmp_path / "codes.parquet")
    content = (tmp_path / "codes.parquet").read_bytes()
    fsspec.filesystem("memory").pipe_file("key:pa55@bucket/sharded/codes/1.parquet", content)
    for source in (f"{root}/codes", f"{root}/codes/*.parquet", f"{root}/codes/1.parquet"):
        of_codes = CompressedIndex.from_codes(source, model, index.ids, progress=False)
        assert "pa55" not in repr(of_codes)
        plain = CompressedIndex.build(vectors[:300], index.ids, model=model, k=16, progress=False)
        assert_same(of_codes, plain, queries)


def job_of(rows: FloatArray, index: CompressedIndex, output: str) -> tuple[Job, list[Piece]]:
    target = output_at(as_place(output))
    pieces = [Piece(number, first, first + 20, None) for number, first in enumerate(range(0, len(rows), 20))]
    return Job(FileRows(rows, "train", "error"), Shards(index.empty_like()), target), pieces


def finished_on(job: Job, pieces: list[Piece]) -> list[Finished]:
    """What a driver of Ray does, in this process."""
    with job.output.opened(job.work.kind):
        done = [job.finish(piece) for piece in pieces]
        job.publish(done)
    return done


def test_a_job_in_a_store(
    s3: Store, vectors: FloatArray, index: CompressedIndex, queries: FloatArray
) -> None:
    rows = vectors[:60].copy()
    output = "s3://bucket/job/items.shards"
    job, pieces = job_of(rows, index, output)
    # A worker that is killed while it uploads leaves objects without a record.
    left = s3.put("job/items.shards/pieces/shard-000000-0123456789abcdef/left", b"").removeprefix(
        "s3://bucket/"
    )
    with s3.refusing(lambda method, path: method == "PUT" and "records" in path):
        failure(StorageError, lambda: finished_on(job, pieces), r"cannot be written: .*refuses")
    assert not any("manifest.json" in name for name in s3.names("job/items.shards/") if "pieces" not in name)
    assert [each.is_new for each in finished_on(job, pieces)] == [True] * 3
    assert left not in s3.names("")
    whole = index.empty_like()
    whole.add(rows, np.arange(60))
    assert_same(CompressedIndex.load(output), whole, queries)
    # Run again, only pieces of rows that changed, or that others overwrote, are written.
    rows[25] += 0.1
    shard = next(name for name in s3.names("job/items.shards/pieces/") if name.startswith("shard-000002"))
    s3.put(f"job/items.shards/pieces/{shard}", b"other")
    done = finished_on(*job_of(rows, index, output))
    assert [each.is_new for each in done] == [False, True, True]
    held = {name.partition("/")[0] for name in s3.names("job/items.shards/pieces/")}
    assert held == {each.name for each in done}
    assert s3.names("job/items.shards/records/") == {f"{each.name}.json" for each in done}
    whole.upsert(rows[25:26], [25])
    found = CompressedIndex.load(output, mmap=True).search(rows, 3)
    assert [each[0] for each in found.ids.tolist()] == list(range(60))


def test_what_is_no_output_of_a_job(s3: Store, vectors: FloatArray, index: CompressedIndex) -> None:
    index.save("s3://bucket/other/items.index")
    s3.put("other/foreign/file.txt", b"")
    for name, match in (("items.index", "holds: index; expected: shards"), ("foreign", "holds no manifest")):
        job, pieces = job_of(vectors[:20], index, f"s3://bucket/other/{name}")
        before = s3.names("other/")
        failure(FormatError, partial(finished_on, job, pieces), match)
        assert s3.names("other/") == before


# What goes wrong, and what must not be seen then.


def assert_silent(error: BaseException, parts: tuple[str, ...] = PARTS) -> None:
    """Nothing that an error says or holds, nor its causes, has a part of the credentials."""
    seen: BaseException | None = error
    told = "".join(traceback.format_exception(error))
    while seen is not None:
        told += f"{seen} {seen!r} {seen.args!r} {vars(seen)!r} {getattr(seen, 'filename', '')!r}"
        seen = seen.__cause__ or seen.__context__
    # Lines of this file that a traceback quotes hold names, not values.
    assert not [part for part in parts if part in told], told


def failure(kind: type[CompressaeError], act: Callable[[], Any], match: str) -> CompressaeError:
    with pytest.raises(kind, match=match) as caught:
        act()
    return caught.value


def acts(root: str, index: CompressedIndex) -> dict[str, Callable[[], Any]]:
    return {
        "open": lambda: open_vectors(f"{root}/a.npy"),
        "folder": lambda: open_vectors(f"{root}/*.npy"),
        "ids": lambda: read_ids(f"{root}/ids.txt"),
        "load": lambda: CompressedIndex.load(f"{root}/items.index"),
        "save": lambda: index.save(f"{root}/items.index"),
        "model": lambda: CompresSAE.load(f"{root}/items.model"),
    }


each_act = pytest.mark.parametrize("act", ["open", "folder", "ids", "load", "save", "model"])


@each_act
def test_missing_buckets_and_objects(s3: Store, index: CompressedIndex, act: str) -> None:  # noqa: ARG001
    if act == "save":
        run = acts("s3://no-such-bucket", index)[act]
        failure(StorageError, run, r"^s3://no-such-bucket cannot be written: there is no such bucket")
        return
    for root in ("s3://bucket/nothing", "s3://no-such-bucket"):
        run = acts(root, index)[act]
        failure(FormatError, run, rf"^{root}/.*( does not exist|there is no such file)")


@pytest.mark.parametrize("given", ["address", "settings", "environment"])
def test_wrong_credentials_are_not_shown(
    s3: Store,
    index: CompressedIndex,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    given: str,
) -> None:
    root = "s3://bucket/wrong"
    if given == "address":
        root = f"s3://{KEY}:{quote(SECRET, safe='')}@bucket/wrong"
    elif given == "settings":
        monkeypatch.setitem(fsspec.config.conf, "s3", {"key": KEY, "secret": SECRET})
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    s3fs.S3FileSystem.clear_instance_cache()
    caplog.set_level("INFO")
    with s3.checked():
        s3.counter.authorizations.clear()
        for act in acts(root, index).values():
            error = failure(StorageError, act, r"^s3://(\*\*\*@)?bucket.* the store refuses it to these cre")
            assert_silent(error)
            assert_silent(pickle.loads(pickle.dumps(error)))
    used = [each for each in s3.counter.authorizations if each]
    assert len(used) >= 6
    assert all(KEY in each for each in used)
    s3fs.S3FileSystem.clear_instance_cache()
    printed = "".join(capsys.readouterr()) + caplog.text
    assert not [part for part in PARTS if part in printed]


def test_no_credentials(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    failure(
        StorageError,
        lambda: open_vectors("s3://bucket/a.npy"),
        r"^s3://bucket/a\.npy cannot be read: there are no credentials, or not all of them \(NoCredentials",
    )
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_cannot_be_reached(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """The error of the client repeats the address of the server, with what is in it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{KEY}:password@127.0.0.1:9")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"max_attempts": 0}}})
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    for path in ("s3://bucket/a.npy", f"s3://{KEY}:{quote(SECRET, safe='')}@bucket/a.npy"):
        error = failure(StorageError, partial(open_vectors, path), "cannot be read: (Endpoint|HTTPCl)")
        assert_silent(error, (*PARTS, "password"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_texts_of_stores_are_searched_for_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_place(f"memory://{KEY}:{quote(SECRET, safe='')}@bucket/a.npy")
    monkeypatch.setitem(fsspec.config.conf, "memory", {"client_kwargs": {"aws_session_token": "sesame"}})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    told = f"{KEY} {SECRET} sesame from-the-environment https://user:pa55@host/x?sig=s1gned"

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(told)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", fail)
    error = failure(
        StorageError, lambda: open_vectors(path), r"RuntimeError: \*\*\* .* https://\*\*\*@host/x\?"
    )
    assert_silent(error, (*PARTS, "sesame", "from-the", "pa55", "s1gned"))


def test_addresses_are_shown_without_credentials(rows: FloatArray) -> None:
    for address, text in {
        "s3://bucket/a@b/c.npy": "s3://bucket/a@b/c.npy",
        "s3://bucket/part-?/x=1/*.npy": "s3://bucket/part-?***",
        "s3://key:secret@bucket/a.npy": "s3://***@bucket/a.npy",
        "s3://key:sec/ret@bucket/a.npy": "s3://***@bucket/a.npy",
        "s3://key:s@e/cret@bucket/a.npy": "s3://***@bucket/a.npy",
        "https://host/a.npy?X-Amz-Signature=secret": "https://host/a.npy?***",
        "https://host:80/a.npy": "https://host:80/a.npy",
    }.items():
        assert shown(address) == text
    path = RemotePath("memory://key:secret@bucket/a.npy")
    for each in (path, path / "b", path.parent, pickle.loads(pickle.dumps(path))):
        assert "secret" not in f"{each} {each!r}"
    fsspec.filesystem("memory").pipe_file("key:secret@bucket/a.npy", npy(rows))
    opened = open_vectors(path)
    assert "secret" not in f"{opened!r} {pickle.loads(pickle.dumps(opened))!r}"
    np.testing.assert_array_equal(opened[0:5], rows[0:5])
    zero = rows.copy()
    zero[3] = 0
    fsspec.filesystem("memory").pipe_file("key:secret@bucket/a.npy", npy(zero))
    with pytest.raises(InputError, match=r"row 3 of memory://\*\*\*@bucket/a\.npy") as caught:
        CompressedIndex.build(path)
    assert_silent(caught.value, ("secret",))


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("s3://", "s3:// names no bucket"),
        ("s3://key:pa55@", r"s3://\*\*\*@ names no bucket"),
        ("s3://key:pa/55@bucket/a.npy", "no bucket has a : in its name; write / in a secret as %2F"),
        ("gs://key:pa55@bucket/a.npy", "credentials in an address are for s3:// only"),
        ("simplecache::s3://key:pa55@bucket/a.npy", "chains of addresses are not supported"),
        (Path("s3://key:pa55@bucket/a.npy"), r"s3://\*\*\*@bucket/a.npy has lost a slash in pathlib"),
        ("nowhere://key:pa55@bucket/a.npy", r"nowhere://\*\*\*@bucket/a.npy.*: fsspec knows no store"),
    ],
)
def test_addresses_that_are_refused(index: CompressedIndex, address: Any, match: str) -> None:
    for act in (open_vectors, CompressedIndex.load, index.save):
        refused = match if act != index.save or "nowhere" not in match else "saving is for s3"
        assert_silent(failure(InputError, partial(act, address), refused), ("pa55", "pa/55"))


def test_paths_of_this_machine(
    index: CompressedIndex,
    model: CompresSAE,
    rows: FloatArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_path(f"file://{tmp_path}/a b") == as_place(f"file://{tmp_path}/a b") == tmp_path / "a b"
    address = "s3://key:pa55@bucket/x"
    for act in (
        lambda: encode_to_directory(model, rows, address),
        lambda: CompressedIndex.from_codes(address, model),
        lambda: CompressedIndex.build(rows, originals=address + ".npy", progress=False),
    ):
        error = failure(InputError, act, r" must be a path on this machine, got s3://\*\*\*@bucket/x")
        assert_silent(error, ("pa55",))
    failure(InputError, lambda: index.save("http://host/x"), "saving is for s3, .* save to a local dir")
    assert os.listdir(tmp_path) == []


def test_packages_that_are_missing(index: CompressedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "registry", {})
    for scheme in ("s3", "gs", "abfs"):
        entry = {"class": f"no_{scheme}.Files", "err": f"Install no_{scheme}"}
        monkeypatch.setitem(registry.known_implementations, scheme, entry)
    hints = ("Install no_abfs", "run: pip install fsspec")
    for hint in hints:
        for act in (open_vectors, CompressedIndex.load, index.save):
            for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")):
                error = failure(MissingExtraError, partial(act, f"{scheme}://bucket/a.npy"), package)
                assert f"pip install 'compressae-index[{extra}]'" in str(error)
            failure(InstallationError, partial(act, "abfs://bucket/a.npy"), hint)
        monkeypatch.setitem(sys.modules, "fsspec.core", None)


# The command line.


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_commands_take_addresses(
    s3: Store, vectors: FloatArray, queries: FloatArray, index: CompressedIndex, tmp_path: Path
) -> None:
    s3.put("cli/shards/1.npy", npy(vectors[:200]))
    s3.put("cli/shards/2.npy", npy(vectors[200:300]))
    s3.put("cli/queries.npy", npy(queries))
    s3.put("cli/ids.txt", "".join(f"{row}\n" for row in range(1000, 1300)).encode())
    index.model.save("s3://bucket/cli/items.model")
    root = f"s3://{KEY}:{quote(SECRET, safe='')}@bucket/cli"
    made = f"{root}/items.index"
    model = ("--model", f"{root}/items.model")
    done = [
        run("build", f"{root}/shards", "-o", made, *model, "--ids", f"{root}/ids.txt", "--k", "16"),
        run("info", made),
        run("info", f"{root}/items.model", "--json"),
        run("search", made, f"{root}/queries.npy", "-k", "10", "-o", str(tmp_path / "found.npz")),
        run("encode", f"{root}/shards/*.npy", *model, "-o", str(tmp_path / "codes")),
        run("eval", made, f"{root}/shards", f"{root}/queries.npy", "--ids", f"{root}/ids.txt"),
    ]
    assert [code for code, _ in done] == [0] * len(done), done
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["ids"], index.search(queries, 10).ids)
    done += [
        run("info", f"{root}/nothing"),
        run("search", made, f"{root}/queries.npy", "-o", f"{root}/found.npz"),
        run("encode", f"{root}/shards", *model, "-o", f"{root}/codes"),
    ]
    assert "s3://***@bucket/cli/nothing does not exist" in done[-3][1]
    assert "must be a path on this machine, got s3://***@bucket/cli/found.npz" in done[-2][1]
    assert "must be a path on this machine, got s3://***@bucket/cli/codes" in done[-1][1]
    assert [code for code, _ in done[-3:]] == [2, 2, 2]
    assert not [part for part in PARTS for _, text in done if part in text]
