"""Work on Ray against work in one process: rates, memory, kills, and searches over shards.

    python benchmarks/scale_out.py encode ten-million
    python benchmarks/scale_out.py build ten-million million.npy --output shards
    python benchmarks/scale_out.py kills ten-million

FOLDER holds vectors that `open_vectors` takes, such as those of `make_data.py pairs`.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import timed
from data_sets import QUERIES

from compressae_index import CompressedIndex, train
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.directory import encode_to_directory
from compressae_index.connectors.ray import Input, ShardedIndex, build_shards, encode
from compressae_index.sources import CHUNK_ROWS, open_vectors
from compressae_index.sources.base import Run
from compressae_index.training.config import TrainConfig

WORKERS = ("ray::_finish", "ray::_built", "ray::Shard")
folder_argument = click.argument("folder", type=click.Path(exists=True, path_type=Path))


def workers() -> Iterator[tuple[int, str]]:
    """Processes of Ray that work for us, and their names."""
    for process in Path("/proc").iterdir():
        try:
            name = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if name.startswith(WORKERS):
            yield int(process.name), name


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """The largest resident memory of workers, in MB by what they did, while the body runs."""
    largest: dict[str, int] = {}
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.2):
            for pid, name in workers():
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                high = next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)
                largest[name] = max(largest.get(name, 0), high)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        stopped.set()
        thread.join()


@click.group()
def main() -> None:
    """Measures work on Ray."""


@main.command("encode")
@folder_argument
@click.option("--rows", type=int, default=1_000_000, show_default=True)
@click.option("--latents", type=int, default=4096, show_default=True)
@click.option("--k", type=int, default=16, show_default=True)
def encode_command(folder: Path, rows: int, latents: int, k: int) -> None:
    """Rows a second: all threads of one process, and a worker a processor."""
    files = [str(file) for file in sorted(folder.glob("*.npy"))]
    source: Any = files[: -(-rows // open_vectors(files[0]).shape[0])]
    n = open_vectors(source).shape[0]
    model = train(open_vectors(source), TrainConfig(k=k, n_latents=latents, steps=0)).model
    with tempfile.TemporaryDirectory() as place:
        _, alone = timed(partial(encode_to_directory, model, source, Path(place) / "codes"))
        with peaks() as high:
            build = partial(encode, Input(source), Path(place) / "ray", model, progress=False)
            _, first_run = timed(build)
            shutil.rmtree(Path(place) / "ray")
            _, spread = timed(build)  # Ray runs already
        click.echo(
            f"{n:,} rows, {latents} latents, k={k}: one process {n / alone:,.0f} rows/s, workers "
            f"{n / spread:,.0f} ({alone / spread:.2f} of it; {n / first_run:,.0f} with Ray's start), "
            f"peak MB {high}"
        )


def true_neighbours(folder: Path, queries: FloatArray, k: int) -> Any:
    """The k nearest rows by cosine, exact."""
    vectors, unit = open_vectors(str(folder)), normalize_rows(queries)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), k), np.int64)
    for first in range(0, vectors.shape[0], CHUNK_ROWS):
        rows = normalize_rows(np.asarray(vectors[first : first + CHUNK_ROWS], dtype=np.float32))
        scores = np.concatenate([best_scores, unit @ rows.T], axis=1)
        numbers = np.concatenate(
            [best_rows, np.broadcast_to(np.arange(first, first + len(rows)), (len(unit), len(rows)))], axis=1
        )
        order = np.argpartition(-scores, k, axis=1)[:, :k]
        best_scores = np.take_along_axis(scores, order, axis=1)
        best_rows = np.take_along_axis(numbers, order, axis=1)
    return best_rows


@main.command("build")
@folder_argument
@click.argument("queries", type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--latents", type=int, help="Size of the dictionary; by default as for all rows.")
@click.option("--queries", "n_queries", type=int, default=200, show_default=True)
def build_command(folder: Path, queries: Path, output: Path, latents: int | None, n_queries: int) -> None:
    """Shards with 16 nonzeros and originals, merged, saved, and searched four ways."""
    asked = np.load(queries, mmap_mode="r")[-QUERIES:][:n_queries].astype(np.float32)
    settings: dict[str, Any] = {} if latents is None else {"n_latents": latents}
    with peaks() as high:
        build = partial(
            build_shards,
            Input(str(folder)),
            output / "shards",
            originals="float16",
            progress=True,
            **settings,
        )
        published, seconds = timed(build)
    click.echo(
        f"{published.rows:,} rows in {len(published.pieces)} shards: {seconds:.0f} s, kept {published.kept}, "
        f"peak MB {high}"
    )
    merged, seconds = timed(partial(CompressedIndex.load, output / "shards", mmap=True))
    click.echo(f"loaded and checked in {seconds:.1f} s: {merged}")
    _, seconds = timed(partial(merged.save, output / "one"))
    click.echo(f"saved as one index in {seconds:.1f} s, peak of this process {_peak_mb()} MB")
    truth = true_neighbours(folder, asked, 10)
    both = [
        (name, place, mmap)
        for mmap in (True, False)
        for name, place in (("one index", "one"), ("shards", "shards"))
    ]
    for name, place, mmap in both:
        index = CompressedIndex.load(output / place, mmap=mmap)
        for candidates, latents_asked, refine in ((1000, 128, 50), (3000, 256, 50), (10_000, 512, 100)):
            search = partial(
                index.search, candidates=candidates, query_nnz=latents_asked, refine=refine, num_threads=1
            )
            _report(
                f"{name}, {'mapped' if mmap else 'in memory'}, {candidates} / {latents_asked} / {refine}",
                search,
                asked,
                truth,
            )
    actors = ShardedIndex.load(output / "shards", cpus=0.1)
    search = partial(actors.search, candidates=3000, query_nnz=256, refine=50)
    _report("an actor a shard, 3000 / 256 / 50", search, asked, truth)


def _report(name: str, search: Any, queries: FloatArray, truth: Any) -> None:
    found = search(queries, 10).ids
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, truth, strict=True)])
    taken = [timed(partial(search, query, 10))[1] for query in queries]
    click.echo(f"{name}: recall@10 {recall:.4f}, {1000 * statistics.median(taken):.2f} ms")


def _peak_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


@main.command("kills")
@folder_argument
@click.option("--rows", type=int, default=200_000, show_default=True)
@click.option("--workers", "of_workers", type=int, default=25, show_default=True)
@click.option("--drivers", type=int, default=5, show_default=True)
def kills_command(folder: Path, rows: int, of_workers: int, drivers: int) -> None:
    """Kills workers and drivers of a build, and compares the result with an undisturbed one's."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "rows.npy"
        np.save(source, np.asarray(Run(open_vectors(str(folder)), 0, rows)[:]))
        expected = _built(source, Path(place) / "quiet", 0, 0)
        found = _built(source, Path(place) / "disturbed", of_workers, drivers)
        click.echo("the same bytes" if found == expected else "THE RESULTS DIFFER")


_DRIVER = """
import sys
from compressae_index.connectors.ray import Input, build_shards
build_shards(Input(sys.argv[1], piece_rows=2048), sys.argv[2], sample_rows=65536, k=16, n_latents=1024)
"""


def _built(source: Path, output: Path, of_workers: int, drivers: int) -> str:
    """A digest of all shards, built while so many workers and drivers were killed."""
    rng, killed = random.Random(0), [0, 0]
    while True:
        command = [sys.executable, "-P", "-c", _DRIVER, str(source), str(output)]
        driver = subprocess.Popen(command, start_new_session=True, cwd=source.parent)
        begun = time.monotonic()
        while driver.poll() is None:
            time.sleep(rng.uniform(0.2, 0.6))
            busy = [pid for pid, name in workers() if name.startswith("ray::_finish")]
            if busy and killed[0] < of_workers and killed[0] <= (killed[1] + 1) * of_workers / (drivers + 1):
                os.kill(rng.choice(busy), signal.SIGKILL)
                killed[0] += 1
            elif busy and killed[1] < drivers and time.monotonic() - begun > 5:
                os.killpg(driver.pid, signal.SIGKILL)
                killed[1] += 1
                break
        if driver.wait() == 0:
            click.echo(f"{output.name}: {killed[0]} workers and {killed[1]} drivers were killed")
            return _digest(output)


def _digest(output: Path) -> str:
    """Of all files of shards, but for the names of their data folders."""
    digest = hashlib.sha256()
    for shard in sorted(output.glob("pieces/shard-*")):
        for file in sorted(shard.rglob("*")):
            if file.is_file() and file.name != "manifest.json":
                digest.update(f"{shard.name}/{file.name}".encode() + file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
