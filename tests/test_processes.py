"""Forks, daemon threads at exit, Ctrl-C, the pool's threads, and pickles for other processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracles import assert_same

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import MAX_THREADS, check_threads
from compressae_index.coding.directory import encode_to_directory
from compressae_index.connectors.faiss import DenseStore, FaissIndex, lists
from compressae_index.connectors.milvus import MilvusIndex
from compressae_index.errors import UnknownIdError
from compressae_index.processes import ForkSafeLock, cpu_quota
from compressae_index.search.backend import SparseBackend
from compressae_index.search.index import Index
from compressae_index.search.queries import MAX_PLACES
from compressae_index.search.stages import Candidates

# Seconds until a child or a script counts as hanging.
PATIENCE = 60


@pytest.fixture
def index(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """1,000 vectors in two parts, two of them removed. Tests may change it."""
    index = CompressedIndex.build(vectors[:900], model=model, progress=False)
    index.add(vectors[900:1000])
    index.remove([3, 950])
    return index


@pytest.fixture(scope="module")
def saved(built: CompressedIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "index"
    built.save(path)
    return path


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# The work that a thread repeats while the process ends or forks.
WORK = """
import sys, threading, time
import numpy as np
from compressae_index import CompressedIndex
index, model = CompressedIndex.load(sys.argv[1]), None
model = index.model
x, n = index.reconstruct(index.ids[:500]), 20
work = {
    "two_stage": lambda: index.search(x[:n]),
    "dense": lambda: index.search(x[:n], mode="dense"),
    "encode": lambda: model.encode(x),
    "topk": lambda: model.encode(x, encoder="topk"),
    "build": lambda: CompressedIndex.build(x, model=model, progress=False),
    "upsert": lambda: index.upsert(x, list(range(500))),
    "add": lambda: index.add(x),
}[sys.argv[2]]
def again():
    while True:
        work()
"""


@pytest.mark.parametrize("work", ["two_stage", "dense", "encode", "topk", "build", "upsert"])
def test_daemon_threads_at_work_let_the_process_end(saved: Path, work: str) -> None:
    ended = run_script(
        WORK + "for _ in range(3): threading.Thread(target=again, daemon=True).start()\ntime.sleep(0.2)",
        saved,
        work,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@contextmanager
def working(*work: Callable[[], object]) -> Iterator[None]:
    """Repeats each call in a thread of its own, until the block ends."""
    stop, failures = threading.Event(), list[BaseException]()

    def again(call: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=again, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def in_child(call: Callable[[], object]) -> None:
    """Runs a call in a forked child, and fails if it hangs or raises."""
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    for _ in range(PATIENCE * 100):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def searched_and_changed(index: CompressedIndex | FaissIndex, vectors: FloatArray) -> None:
    """Searches, removes, upserts and builds, as a child must be able to."""
    held = len(index)
    assert held in (998, 999)  # before or after the change that another thread makes
    found = index.search(vectors[:20], 5, num_threads=2)
    assert (found.ids >= 0).all()
    index.remove([10])
    index.upsert(vectors[2000:2020], np.arange(5000, 5020), num_threads=2)
    assert len(index) == held + 19
    assert index.search(vectors[2000:2001], 1).ids[0, 0] == 5000
    assert len(CompressedIndex.build(vectors[:50], model=index.model, progress=False)) == 50


# Python 3.12 and later warn of forks in processes with threads, which these tests do on purpose.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@forks
@pytest.mark.parametrize("kind", [CompressedIndex, FaissIndex])
def test_a_child_forked_at_any_time_searches_and_writes(
    index: CompressedIndex, vectors: FloatArray, kind: type[CompressedIndex] | type[FaissIndex]
) -> None:
    used = index if kind is CompressedIndex else FaissIndex.from_index(index, progress=False)

    def write() -> None:
        used.upsert(vectors[:300], np.arange(300), num_threads=2)

    write()
    with working(lambda: used.search(vectors[:20], 5, num_threads=2), write):
        for _ in range(10):
            time.sleep(0.02)
            in_child(lambda: searched_and_changed(used, vectors))


@forks
def test_a_child_encodes_while_another_thread_makes_the_models_first_call(
    model: CompresSAE, vectors: FloatArray
) -> None:
    for _ in range(5):
        fresh = copy.deepcopy(model)
        with working(lambda fresh=fresh: fresh.encode(vectors[:50])):  # type: ignore[misc]
            in_child(lambda fresh=fresh: fresh.encode(vectors[:50], num_threads=2))  # type: ignore[misc]


@forks
def test_a_child_and_its_parent_read_an_iterators_embeddings_at_once(
    vectors: FloatArray,
) -> None:
    from compressae_index.sources import open_vectors

    spooled = open_vectors(iter([vectors[:300], vectors[300:600]]))

    def read() -> None:
        for first in range(0, 600, 50):
            np.testing.assert_array_equal(spooled[first : first + 50], vectors[first : first + 50])

    with working(read, read):
        for _ in range(10):
            in_child(read)


@forks
def test_locks_are_free_in_a_child_and_no_property_holds_one() -> None:
    lock, taken, done = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock.lock:
            taken.set()
            done.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(PATIENCE)

    def take() -> None:
        assert lock.lock.acquire(timeout=5)

    in_child(take)
    assert lock.lock.locked()
    done.set()
    holder.join()
    if sys.version_info < (3, 12):
        # Before 3.12, a cached_property has one lock for all objects of the class.
        for module in [
            module for name, module in sys.modules.items() if name.startswith("compressae_index.")
        ]:
            for kind in [value for value in vars(module).values() if isinstance(value, type)]:
                if kind.__module__.startswith("compressae_index.") and "milvus" not in kind.__module__:
                    assert not [n for n, v in vars(kind).items() if isinstance(v, cached_property)], kind


INTERRUPTED = (
    WORK
    + """
import os, signal
expected = index.search(x[:5])
state = len(index), index.ids.tolist()
x, n = np.concatenate([x] * 200), None
def fire():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=fire, daemon=True).start()
try:
    work()
    print("finished")
except KeyboardInterrupt:
    again = index.search(x[:5])
    same = np.array_equal(again.ids, expected.ids) and np.array_equal(again.scores, expected.scores)
    print(same, state == (len(index), index.ids.tolist()))
"""
)


@pytest.mark.parametrize("work", ["two_stage", "dense", "encode", "add"])
def test_ctrl_c_ends_long_calls_and_changes_nothing(saved: Path, work: str) -> None:
    """Each call would take many times longer than the script has."""
    ended = run_script(INTERRUPTED, saved, work)
    assert (ended.stdout, ended.stderr) == ("True True\n", "")


def test_the_engine_raises_the_exception_of_a_signal_handler(
    built: CompressedIndex, vectors: FloatArray
) -> None:
    import signal

    class AlarmError(Exception):
        pass

    def handler(*_: object) -> None:
        built.search(vectors[:3], num_threads=2)  # a handler may use the engine
        raise AlarmError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(AlarmError):
            built.search(np.concatenate([vectors] * 50), 100)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_faiss_lists_recover_from_an_interrupted_change(
    index: CompressedIndex, vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    faiss_index = FaissIndex.from_index(index, progress=False)
    expected = faiss_index.search(vectors[:20], 10)
    append = lists.append

    def interrupted(index: Any, codes: Any, first_row: int) -> None:
        append(index, codes[: len(codes) // 2], first_row)
        raise KeyboardInterrupt

    monkeypatch.setattr(lists, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faiss_index.add(vectors[2000:2100], np.arange(2000, 2100))
    monkeypatch.undo()
    assert_same(faiss_index.search(vectors[:20], 10), expected)
    faiss_index.add(vectors[2000:2100], np.arange(2000, 2100))
    found = faiss_index.search(vectors[2000:2100], 1)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(2000, 2100))
    assert faiss_index.faiss_index.ntotal == np.count_nonzero(faiss_index.codes(range(2000, 2100)).values) + (
        np.count_nonzero(index.documents.backend.codes(index.documents.alive_rows()).values)
    )


# Counts threads before, during and after searches with many threads.
THREADS = """
import os, sys, time
import numpy as np
from compressae_index import CompressedIndex
index = CompressedIndex.load(sys.argv[1])
x = index.reconstruct(index.ids[:400])
def count():
    return len(os.listdir("/proc/self/task"))
index.search(x, num_threads=2)
before = count()
index.search(x, num_threads=300)
grown = count()
for _ in range(20):
    index.search(x, num_threads=3)
for _ in range(500):
    if (after := count()) <= before + 1:
        break
    time.sleep(0.01)
for _ in range(500):
    if (idle := count()) < before:
        break
    time.sleep(0.01)
print(grown > before + 100, after <= before + 1, idle < before)
"""

linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them"
)


@linux
def test_the_pool_keeps_no_more_threads_than_recent_searches_used(saved: Path) -> None:
    ended = run_script(THREADS, saved)
    assert (ended.stdout, ended.stderr) == ("True True True\n", "")


FEW_THREADS = """
import os, resource, sys
import numpy as np
from compressae_index import CompressedIndex
index = CompressedIndex.load(sys.argv[1])
x = index.reconstruct(index.ids[:400])
expected = index.search(x, num_threads=1)
if os.geteuid() == 0:
    os.setuid(65534)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[2]),) * 2)
found = index.search(x, num_threads=4096)
print(np.array_equal(found.ids, expected.ids), len(os.listdir("/proc/self/task")) < 400)
"""


@linux
@pytest.mark.parametrize("most", [0, 5])
def test_a_search_uses_the_threads_that_the_system_lets_it_start(saved: Path, most: int) -> None:
    ended = run_script(FEW_THREADS, saved, most)
    assert (ended.stdout, ended.stderr) == ("True True\n", "")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("3", 3),
        (" 2 ", 2),
        ("5,2,1", 5),
        ("64", 8),
        ("0", 8),
        ("-2", 8),
        ("", 8),
        ("many", 8),
        ("2x", 8),
        ("9" * 6000, 8),
    ],
)
def test_omp_num_threads_limits_all_threads(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("compressae_index.processes.cpu_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert check_threads(None) == expected
    assert check_threads(7) == 7


def test_affinity_and_the_quota_limit_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10_000)), raising=False)
    monkeypatch.setattr("compressae_index.processes.cpu_quota", lambda: 6)
    assert check_threads(None) == 6
    monkeypatch.setattr("compressae_index.processes.cpu_quota", lambda: None)
    assert check_threads(None) == MAX_THREADS
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert check_threads(None) == 1


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "10000 100000"}, 1),
        ("0::/not/seen/here\n", {"cpu.max": "400000 100000"}, 4),
        (
            "4:memory:/x\n2:cpu,cpuacct:/docker/x\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("2:cpu:/g\n", {"cpu/g/cpu.cfs_quota_us": "-1\n", "cpu/g/cpu.cfs_period_us": "100000\n"}, None),
        ("2:cpu:/g\n", {"cpu/g/cpu.cfs_quota_us": "1000\n", "cpu/g/cpu.cfs_period_us": "0\n"}, None),
        ("nonsense\n0::/\n", {"cpu.max": "what\n"}, None),
        ("", {}, None),
    ],
)
def test_quotas_of_cgroups(tmp_path: Path, groups: str, files: dict[str, str], expected: int | None) -> None:
    for name, content in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{n}": c for n, c in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == expected
    assert cpu_quota(tmp_path / "elsewhere") is None


def trip(value: Any, protocol: int) -> Any:
    buffers: list[pickle.PickleBuffer] = []
    if protocol < 5:
        return pickle.loads(pickle.dumps(value, protocol))
    content = pickle.dumps(value, protocol, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(buffer.raw()) for buffer in buffers])  # read-only


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda i: trip(i, 2), lambda i: trip(i, 5)])
@pytest.mark.parametrize("kind", ["embedded", "aligned", "strings", "faiss", "dense store", "empty"])
def test_copies_are_equal_and_independent(
    index: CompressedIndex, vectors: FloatArray, kind: str, way: Callable[[Any], Any]
) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "embedded": lambda: index,
        "aligned": lambda: CompressedIndex.build(
            vectors[:200], model=index.model, forward="aligned", progress=False
        ),
        "strings": lambda: CompressedIndex.build(
            vectors[:200], [f"d{i}" for i in range(200)], model=index.model, progress=False
        ),
        "faiss": lambda: FaissIndex.from_index(index, progress=False),
        "dense store": lambda: DenseStore(index, progress=False, device="cpu"),
        "empty": lambda: CompressedIndex(index.model),
    }
    made = makers[kind]()
    if kind == "faiss":
        made.remove([7])
    search = {"mode": "sparse"} if kind == "faiss" else {"mode": "dense"}
    expected = made.search(vectors[:20], 10, **search)
    copied = way(made)
    assert type(copied) is type(made)
    assert repr(copied) == repr(made)
    assert_same(copied.search(vectors[:20], 10, **search), expected)
    assert_same(copied.search(vectors[:20], 10), made.search(vectors[:20], 10))
    if kind in ("embedded", "faiss", "dense store") and (way is not copy.copy or kind == "embedded"):
        copied.remove([11])
        copied.add(vectors[3000:3010], np.arange(8000, 8010))
        assert 11 in made.search(vectors[11], 1).ids
        assert_same(made.search(vectors[:20], 10, **search), expected)
        assert copied.search(vectors[3000], 1).ids[0, 0] == 8000


def test_a_model_is_pickled_at_any_time(model: CompresSAE, vectors: FloatArray) -> None:
    expected = model.encode(vectors[:20])
    model.project(vectors[:20])
    assert model.fingerprint
    for copied in (trip(model, 2), trip(model, 5), copy.copy(model), copy.deepcopy(model)):
        assert copied.fingerprint == model.fingerprint
        np.testing.assert_array_equal(copied.encode(vectors[:20]).values, expected.values)
        np.testing.assert_array_equal(copied.project(vectors[:5]), model.project(vectors[:5]))
    codes = trip(expected, 5)
    np.testing.assert_array_equal(codes.latents, expected.latents)


@pytest.mark.parametrize("kind", [CompressedIndex, FaissIndex])
def test_a_mapped_index_is_pickled_as_its_path(
    index: CompressedIndex,
    vectors: FloatArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[CompressedIndex] | type[FaissIndex],
) -> None:
    saved = index if kind is CompressedIndex else FaissIndex.from_index(index, progress=False)
    saved.save(tmp_path / "i")
    monkeypatch.chdir(tmp_path)
    mapped = kind.load("i", mmap=True)
    mapped.remove([20, 21])
    expected = mapped.search(vectors[:30], 10)
    monkeypatch.undo()  # another process has another working directory
    content = pickle.dumps(mapped)
    assert len(content) < 20_000
    again = pickle.loads(content)
    assert_same(again.search(vectors[:30], 10), expected)
    assert_same(copy.deepcopy(mapped).search(vectors[:30], 10), expected)
    with pytest.raises(UnknownIdError):
        again.codes([20])
    saved.remove([100])
    saved.save(tmp_path / "i")
    with pytest.raises(FormatError, match="was written anew since"):
        pickle.loads(content)
    assert_same(mapped.search(vectors[:30], 10), expected)
    shutil.rmtree(tmp_path / "i")
    with pytest.raises(FormatError, match="does not exist"):
        pickle.loads(content)


def test_a_mapped_index_that_grew_is_pickled_as_arrays(
    index: CompressedIndex, vectors: FloatArray, tmp_path: Path
) -> None:
    index.save(tmp_path / "i")
    mapped = CompressedIndex.load(tmp_path / "i", mmap=True)
    mapped.add(vectors[2000:2010])
    content = pickle.dumps(mapped)
    shutil.rmtree(tmp_path / "i")
    assert_same(pickle.loads(content).search(vectors[:20]), mapped.search(vectors[:20]))


def test_a_store_of_codes_is_pickled_as_its_path(
    model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    store = encode_to_directory(model, vectors[:300], tmp_path / "codes", shard_rows=100)
    content = pickle.dumps(store)
    np.testing.assert_array_equal(pickle.loads(content)[50:150].values, store[50:150].values)
    shutil.rmtree(tmp_path / "codes")
    encode_to_directory(model, vectors[300:600], tmp_path / "codes", shard_rows=100)
    with pytest.raises(FormatError, match="was written anew since"):
        pickle.loads(content)


def test_other_processes_search_pickled_indexes(
    index: CompressedIndex, saved: Path, vectors: FloatArray
) -> None:
    mapped = CompressedIndex.load(saved, mmap=True)
    sent: list[Any] = [index, mapped, FaissIndex.from_index(index, progress=False)]
    search = methodcaller("search", vectors[:20], 10)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for each, found in zip(sent, pool.map(search, sent), strict=True):
            expected = search(each)
            assert_same(found, expected)
            assert type(found) is type(expected)
            assert (found.certified is not None) is isinstance(each, FaissIndex)


def test_reprs_are_one_line(index: CompressedIndex, tmp_path: Path, vectors: FloatArray) -> None:
    per_vector = index.stats().bytes_per_vector["total"]
    expected = f"998 vectors, dim=384, n_latents=512, k=16, {per_vector:.1f} bytes a vector"
    assert repr(index) == f"CompressedIndex({expected})"
    assert "998 vectors, dim=384, n_latents=512, k=16" in repr(FaissIndex.from_index(index, progress=False))
    assert repr(DenseStore(index, device="cpu", progress=False)) == (
        "DenseStore(998 vectors, dim=384, float16 on cpu, 768.0 bytes a vector)"
    )
    size = sum(tensor.nbytes for tensor in index.model.tensors().values())
    assert repr(index.model) == (
        f"CompresSAE(dim=384, n_latents=512, k=16, with a mean, {size / 1e6:.1f} MB)"
    )
    assert repr(index.codes([0, 1])) == "SparseCodes(2 codes, n_latents=512, k=16)"
    store = encode_to_directory(index.model, vectors[:10], tmp_path / "c")
    assert repr(store) == (
        f"CodeStore({str(tmp_path / 'c')!r}, 10 codes, n_latents=512, k=16, 96 bytes a vector)"
    )
    assert repr(CompressedIndex(index.model)).startswith("CompressedIndex(0 vectors")


def over(index: CompressedIndex, kind: Any) -> Any:
    """The same documents in another kind of index."""
    if kind is FaissIndex:
        return FaissIndex.from_index(index, progress=False)
    return DenseStore(index, progress=False) if kind is DenseStore else index


def test_a_milvus_index_has_a_repr_and_refuses_to_be_pickled(model: CompresSAE) -> None:
    index = MilvusIndex.__new__(MilvusIndex)  # repr and pickle need no Milvus
    vars(index).update(
        model=model, _documents=SimpleNamespace(collection=SimpleNamespace(name="texts"), k=16, n_latents=512)
    )
    assert repr(index) == "MilvusIndex('texts', dim=384, n_latents=512, k=16)"
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match=r"holds a connection.* call MilvusIndex.open there"):
            send(index)


@pytest.mark.parametrize("kind", [CompressedIndex, FaissIndex, DenseStore])
def test_k_beyond_the_documents_is_bounded(index: CompressedIndex, vectors: FloatArray, kind: Any) -> None:
    used = over(index, kind)
    for k in (2**31 - 1, MAX_PLACES // 2 + 1):
        with pytest.raises(InputError, match=f"k must be at most {MAX_PLACES // 2} for 2 queries of 998"):
            used.search(vectors[:2], k)
    for k in (2**31, 2**64, 2**200):
        with pytest.raises(InputError, match=f"k must be at most {2**31 - 1}"):
            used.search(vectors[:2], k)
    found = used.search(vectors[:2], 100_000, candidates=2**70, query_nnz=2**70)
    assert found.ids.shape == (2, 100_000)
    assert (found.ids[:, 998:] == -1).all()
    assert len(used.search(vectors[:1], 1, candidates=2**70)) == 2


@pytest.mark.parametrize("kind", [FaissIndex, DenseStore])
def test_searches_go_on_while_another_thread_removes(
    index: CompressedIndex, vectors: FloatArray, kind: Any
) -> None:
    used = over(index, kind)
    left = np.setdiff1d(np.arange(1000), [3, 950])

    def search() -> None:
        for mode in ("two_stage", "sparse" if kind is FaissIndex else "dense"):
            found = used.search(vectors[:30], 50, mode=mode, candidates=400)
            assert (np.diff(found.scores, axis=1) <= 0).all()

    with working(search, search):
        for first in range(0, 600, 6):
            used.remove(left[first : first + 6])
    assert len(used) == 398
    assert np.isin(used.search(vectors[:30], 398).ids, left[600:]).all()


class Forgetful(SparseBackend):
    """A back end whose documents are removed after `candidates` finds them, before `codes` reads them."""

    def __init__(self, index: CompressedIndex, forgotten: list[int]) -> None:
        super().__init__(512, index.k)
        self._index, self._forgotten = index, forgotten

    def put(self, codes: Any, ids: Any) -> None:
        raise NotImplementedError

    def remove(self, ids: Any) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._index)

    def held(self, ids: Any) -> Any:
        return ~np.isin(ids, self._forgotten) & np.isin(ids, self._index.ids)

    def codes(self, ids: Any) -> Any:
        if not self.held(ids).all():
            msg = "gone"
            raise UnknownIdError(msg)
        return self._index.codes(ids)

    def candidates(self, terms: Any, n: int, filter: Any) -> Candidates:  # noqa: A002, ARG002
        u = terms.to_dense()
        ids: Any = np.tile(self._index.ids[:40], (len(u), 1))
        return Candidates(ids, np.full(ids.shape, 9, np.float32), np.full(len(u), 9, np.float32), None)


def test_documents_removed_during_a_search_are_no_neighbours(
    index: CompressedIndex, vectors: FloatArray
) -> None:
    forgotten = [0, 1, 7]
    backed = Index(index.model, Forgetful(index, forgotten))
    ids = index.ids[:40]
    whole = Index(index.model, Forgetful(index, []))
    for mode in ("sparse", "two_stage"):
        found = backed.search(vectors[:20], 40, mode=mode)
        assert (found.ids[:, 37:] == -1).all()
        assert np.isneginf(found.scores[:, 37:]).all()
        expected = whole.search(vectors[:20], 40, mode=mode)
        for row in range(20):
            kept = ~np.isin(expected.ids[row], forgotten)
            np.testing.assert_array_equal(found.ids[row, :37], expected.ids[row][kept])
            np.testing.assert_array_equal(found.scores[row, :37], expected.scores[row][kept])
    none = Index(index.model, Forgetful(index, ids.tolist()))
    assert (none.search(vectors[:2], 5).ids == -1).all()
