"""Memory, measured: what a process holds, and what serving takes in a fresh one."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from compressae_index.arrays import FloatArray

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from stores import Opener, Store

ANSWERED = 100
TOP = 100


def resident() -> int:
    """Bytes of memory that this process holds, after what is free was given back."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serving_bytes(store: Store, queries: FloatArray) -> int:
    """Bytes that a fresh process takes to open a store and to answer 100 queries.

    Models and codebooks are included. Counted are anonymous memory and the pages of the store's files that
    were read by mapping them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        folder.mkdir()
        return opened_bytes(store.save(folder), folder, queries)


def opened_bytes(opener: Opener, folder: Path, queries: FloatArray, package: str = "faiss") -> int:
    """The same of a store that was saved to a folder; the package that it needs is imported before."""
    task = pickle.dumps((opener, folder, package, np.ascontiguousarray(queries[:ANSWERED])))
    done = subprocess.run([sys.executable, __file__], input=task, stdout=subprocess.PIPE, check=True)
    return int(done.stdout.split()[-1])  # packages may print, too


def _held(folder: Path) -> int:
    """Resident anonymous bytes, and those of mapped files in a folder.

    Original vectors are not among them: they are on disk, and what the system keeps of them it may drop.
    """
    held, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            mapped = str(folder) in line and not line.endswith("originals.npy")
        elif name == ("Rss" if mapped else "Anonymous"):
            held += 1024 * int(rest.split()[0])
    return held


def _serve() -> None:
    opener, folder, package, queries = pickle.load(sys.stdin.buffer)
    importlib.import_module(package)
    queries @ queries.T  # BLAS takes its buffers
    gc.collect()
    before = _held(folder)
    store = opener()
    for query in queries:
        store.search(query[None], TOP, 1)
    gc.collect()
    sys.stdout.write(f"\n{_held(folder) - before}\n")


if __name__ == "__main__":
    _serve()
