"""The main job on shipped data: 20,000 texts of WordNet with their embeddings."""

from __future__ import annotations

import lzma
import tempfile
import time
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.errors import MissingExtraError
from compressae_index.index import CompressedIndex
from compressae_index.measuring.evaluation import Measurement, as_table, evaluate
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.measuring.rivals import evaluate_exact, evaluate_pq
from compressae_index.persistence import check_target
from compressae_index.search.index import IndexStats

HELD_OUT = 1000
SHOWN = 3
FOOTNOTE = """
Recall against exact search of the float32 vectors. Bytes: all that must be resident to serve the mode,
without the model. Milliseconds: median of single queries, one thread, encoding of the query included."""

Say = Callable[[str], Any]


class DemoData(NamedTuple):
    """Embeddings and texts; the last rows are held out as queries."""

    embeddings: FloatArray
    queries: FloatArray
    texts: list[str]
    query_texts: list[str]


class DemoResult(NamedTuple):
    """The demo's measurements."""

    stats: IndexStats
    measurements: list[Measurement]
    seconds: dict[str, float]


def load_data() -> DemoData:
    """Loads the shipped data set: 19,000 vectors of 384 dimensions and 1,000 held-out ones.

    The vectors have unit norm up to float16. They are stored as principal components in steps, which leaves a
    cosine of 0.991 with what the model gave.
    """
    folder = files("compressae_index") / "data" / "wordnet"
    with as_file(folder / "embeddings.npz") as path, np.load(path) as stored:
        basis = stored["basis"] * stored["scale"].astype(np.float64)
        rows = stored["steps"].T.astype(np.float64) @ basis.T + stored["mean"]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    # Rounded, so that the order in which a machine adds does not show.
    embeddings = rows.astype(np.float16).astype(np.float32)
    texts = lzma.decompress((folder / "texts.txt.xz").read_bytes()).decode().splitlines()
    return DemoData(embeddings[:-HELD_OUT], embeddings[-HELD_OUT:], texts[:-HELD_OUT], texts[-HELD_OUT:])


def run(output: Path | None, say: Say) -> DemoResult:
    """Trains, builds, saves, loads, searches and measures, and reports each step.

    Args:
        output: directory to keep the index in; a temporary one by default.
        say: prints a line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _run(Path(scratch) / "index" if output is None else output / "index", say)


def _run(path: Path, say: Say) -> DemoResult:
    check_target(path, "index")
    data, seconds = load_data(), {}
    n, dim = data.embeddings.shape
    say(f"{n:,} embeddings of {dim} dimensions (WordNet glosses, all-MiniLM-L6-v2), {HELD_OUT:,} held out")

    started = time.perf_counter()
    built = CompressedIndex.build(data.embeddings)
    seconds["train and build"] = time.perf_counter() - started
    started = time.perf_counter()
    built.save(path, progress=True)
    index = CompressedIndex.load(path, mmap=True)
    seconds["save and load"] = time.perf_counter() - started
    stats = index.stats()
    say(f"trained {stats.n_latents:,} latents, {stats.dead_latents} of them dead, and encoded all vectors")
    say(f"in {seconds['train and build']:.0f} s; saved to {path}")
    say(f"and mapped in {seconds['save and load']:.2f} s\n")

    for query, text in zip(data.queries[:SHOWN], data.query_texts[:SHOWN], strict=True):
        _show_neighbours(index, query, text, data.texts, say)

    started = time.perf_counter()
    truth = exact_neighbours(data.embeddings, data.queries, 100)
    measurements = [
        evaluate_exact(data.embeddings, data.queries, truth),
        *evaluate(index, data.queries, truth),
    ]
    try:
        for mode in ("dense", "two_stage"):
            measurements.append(evaluate_pq(data.embeddings, data.queries, truth, stats.bytes_by_mode[mode]))
    except MissingExtraError as error:
        say(f"(no comparison with Faiss: {error})")
    seconds["measure"] = time.perf_counter() - started
    say(as_table(measurements))
    say(FOOTNOTE)
    return DemoResult(stats, measurements, seconds)


def _show_neighbours(
    index: CompressedIndex, query: FloatArray, text: str, texts: list[str], say: Say
) -> None:
    say(f"? {_shortened(text)}")
    scores, ids = index.search(query, k=3)
    for score, row in zip(scores[0], ids[0], strict=True):
        say(f"  {score:.2f}  {_shortened(texts[row])}")
    say("")


def _shortened(text: str, width: int = 96) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
