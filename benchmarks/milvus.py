"""The Milvus connector on Milvus Lite: import, bytes, recall, milliseconds by phase, certificates.

    python benchmarks/milvus.py [DATA] --rows 100000
    python benchmarks/milvus.py [DATA] --rows 100000 --sync

The second measures syncs in place of searches: of a source that stays, and of one of which one row in a
hundred was replaced, deleted and added.

Milvus Lite runs as a server in a process of its own, so that memory and seconds are the connector's alone,
and requests go over a socket.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient
from threadpoolctl import threadpool_limits

from compressae_index import CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.coding.codes import SparseCodes
from compressae_index.connectors.milvus import MilvusIndex, connect
from compressae_index.connectors.milvus.collection import Collection
from compressae_index.search.queries import Asked, Settings
from compressae_index.search.recall import recall
from compressae_index.search.stages import Candidates, terms_of

sys.path.insert(0, str(Path(__file__).parent))  # python -P leaves it out

from common import markdown, print_load, results_path, timed, write_report
from data_sets import DataSet, data_set_argument, load

KS = (10, 100)
CANDIDATES = (100, 300, 1000, 3000)
PHASES = ("projection", "Milvus", "decoding", "re-score")
# Generous, as Milvus Lite scans all rows in Python.
TIMEOUT = 600.0

IMPORT = """
import json, resource, sys
from compressae_index import TrainConfig
from compressae_index.connectors.milvus import connect, from_milvus
uri, preset, target, dense, model = sys.argv[1:]
client = connect(uri, timeout=600)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = from_milvus(
    client, "dense", target=target, dense=dense or None, model=model or None, k=32,
    config=None if model else TrainConfig.preset(preset), num_threads=1, timeout=600, progress=False,
).report._asdict()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(report | {"mib_before": before / 1024, "mib_peak": peak / 1024}))
"""


# A sync, with the resident memory before it and its own peak.
SYNC = """
import json, resource, sys, time
from compressae_index.connectors.milvus import MilvusIndex, sync
def mib(entry):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[entry].split()[0]) / 1024
index = MilvusIndex.open(sys.argv[1], "codes", timeout=600)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, user, started = mib("VmRSS"), resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
report = sync(index, num_threads=1, progress=False)._asdict()
seconds, user = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
print(json.dumps(
    report | {"seconds": seconds, "user_seconds": user, "mib_before": before, "mib_peak": mib("VmHWM")}
))
"""


@contextmanager
def milvus_lite(folder: Path) -> Iterator[str]:
    """The address of a Milvus Lite that runs in another process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def fill(client: MilvusClient, vectors: FloatArray) -> None:
    """The dense collection that is imported."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    client.create_collection("dense", schema=schema, index_params=params, timeout=TIMEOUT)
    for first in range(0, len(vectors), 5000):
        rows = [{"id": first + i, "embedding": row} for i, row in enumerate(vectors[first : first + 5000])]
        client.insert("dense", rows, timeout=TIMEOUT)
    client.flush("dense", timeout=TIMEOUT)


def imported(uri: str, preset: str, target: str, dense: str = "", model: str = "") -> dict[str, Any]:
    """The report of an import in a process of its own, with its resident memory."""
    command = [sys.executable, "-P", "-c", IMPORT, uri, preset, target, dense, model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def synced(uri: str) -> dict[str, Any]:
    """The report of a sync in a process of its own, with its seconds and resident memory."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SYNC, uri], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def changed(client: MilvusClient, vectors: FloatArray) -> None:
    """Replaces one row in a hundred of the dense collection, deletes another one, and adds as many."""
    n = len(vectors)
    replaced, deleted = np.arange(0, n, 100), np.arange(50, n, 100)
    client.delete("dense", ids=deleted.tolist(), timeout=TIMEOUT)
    for first, ids in ((0, replaced), (1, np.arange(n, n + len(replaced)))):
        rows = np.roll(vectors, first + 1, axis=0)[: len(ids)]
        client.upsert(
            "dense",
            [{"id": int(id_), "embedding": row} for id_, row in zip(ids, rows, strict=True)],
            timeout=TIMEOUT,
        )
    client.flush("dense", timeout=TIMEOUT)


def measured_syncs(client: MilvusClient, uri: str, vectors: FloatArray, preset: str) -> dict[str, Any]:
    """An import, a sync of a source that stayed, and one of a source that changed."""
    results = {"import": imported(uri, preset, "codes"), "nothing changed": synced(uri)}
    changed(client, vectors)
    return results | {"1 % replaced, deleted, added": synced(uri), "nothing changed again": synced(uri)}


def on_disk(folder: Path, collection: str) -> int:
    """Bytes of a collection's files."""
    return sum(
        file.stat().st_size for file in (folder / "collections" / collection).rglob("*") if file.is_file()
    )


def _is_certified(index: MilvusIndex, asked: Asked, terms: SparseCodes, taken: Candidates) -> bool:
    """Whether the candidates of one query provably hold its `asked.k` best."""
    marks = index.documents.scored(asked, terms, taken).certified
    return marks is not None and bool(marks[0])


def searched(
    index: MilvusIndex, queries: FloatArray, truth: npt.NDArray[Any], mode: str, candidates: int
) -> dict[str, Any]:
    """Recall, share of certificates and median milliseconds by phase of queries asked one by one."""
    seconds: list[Any] = []
    found, certified = [], []
    for query in queries:
        times = [time.perf_counter()]
        settings = Settings(mode=mode, candidates=candidates, num_threads=1)
        asked = index.asked(query, KS[-1], settings)
        terms = terms_of(asked)
        request = index.documents.search_request(terms, candidates, None)
        times.append(time.perf_counter())
        hits = index.client.search(**request)
        times.append(time.perf_counter())
        taken = index.documents.found(hits, candidates, terms)
        times.append(time.perf_counter())
        result = index.documents.scored(asked, terms, taken)
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
        found.append(result.ids[0])
        certified.append({at: _is_certified(index, replace(asked, k=at), terms, taken) for at in KS})
    return {
        "mode": mode,
        "candidates": candidates,
        "recall": {at: recall(np.array(found), truth, at) for at in KS},
        "certified": {at: float(np.mean([marks[at] for marks in certified])) for at in KS},
        "ms": dict(zip(PHASES, (1000 * np.median(seconds, axis=0)).tolist(), strict=True)),
    }


def embedded(index: MilvusIndex, data: DataSet, truth: npt.NDArray[Any]) -> dict[str, float]:
    """Recall of the embedded engine with the same model."""
    built = CompressedIndex.build(data.vectors, model=index.model, k=32, num_threads=1, progress=False)
    found = built.search(data.queries, KS[-1], num_threads=1)
    return {str(at): recall(found.ids, truth, at) for at in KS}


def fused_recall(index: MilvusIndex, data: DataSet, truth: npt.NDArray[Any]) -> dict[str, dict[str, float]]:
    """Recall of the modes that search reconstructed vectors."""
    fused = {}
    for mode in ("dense", "hybrid"):
        found = index.search(data.queries, KS[-1], mode=mode)
        fused[mode] = {str(at): recall(found.ids, truth, at) for at in KS}
    return fused


def measured(
    client: MilvusClient, uri: str, folder: Path, data: DataSet, preset: str
) -> tuple[int, dict[str, Any]]:
    """How many codes were imported from the dense collection, and what importing and searching them took."""
    truth = data.neighbours(KS[-1])
    report = imported(uri, preset, "codes")
    n = Collection(client, "codes", TIMEOUT).count()
    disk = {name: on_disk(folder, name) / n for name in ("dense", "codes")}
    index = MilvusIndex.open(client, "codes", timeout=TIMEOUT)
    searches = [searched(index, data.queries, truth, "sparse", 1000)]
    searches += [searched(index, data.queries, truth, "two_stage", c) for c in CANDIDATES]
    index.model.save(folder / "model")
    imported(uri, preset, "both", "float32", str(folder / "model"))
    both = MilvusIndex.open(client, "both", model=index.model, timeout=TIMEOUT)
    return n, {
        "import": report,
        "disk": disk,
        "searches": searches,
        "fused": fused_recall(both, data, truth),
        "embedded": embedded(index, data, truth),
    }


def import_table(report: dict[str, Any], disk: dict[str, float], n: int) -> str:
    """Seconds by phase, memory, and bytes of a vector."""
    before, after = report["bytes_before"] / n, report["bytes_after"] / n
    phases = markdown(["phase", "seconds"], [[p, f"{s:.1f}"] for p, s in report["seconds"].items()])
    return (
        f"{phases}\n\n"
        f"resident memory of the importing process: {report['mib_peak']:.0f} MiB at its peak, "
        f"{report['mib_before']:.0f} MiB before\n\n"
        f"bytes a vector in Lite's files: dense {disk['dense']:.0f}, codes {disk['codes']:.0f}; "
        f"computed for a server's memory: {before:.0f} and {after:.0f}\n"
    )


def sync_table(results: dict[str, Any]) -> str:
    """A line for the import, without its training and measuring, and for each sync."""
    lines = []
    for name, each in results.items():
        seconds = each.get("seconds")
        if name == "import":
            seconds = sum(each["seconds"][phase] for phase in ("list", "write", "flush", "verify"))
        counts = [each.get(part, "") for part in ("added", "changed", "removed")]
        lines.append(
            [name, *counts, f"{seconds:.1f}", f"{each['mib_before']:.0f}", f"{each['mib_peak']:.0f}"]
        )
    header = ["", "added", "changed", "removed", "seconds", "MiB before", "MiB at its peak"]
    return markdown(header, lines)


def search_table(results: dict[str, Any]) -> str:
    """A line for each mode and number of candidates, and one for the embedded engine."""
    lines = [
        [
            result["mode"],
            result["candidates"],
            *(f"{result['recall'][at]:.3f}" for at in KS),
            *(f"{result['certified'][at]:.2f}" for at in KS),
            *(f"{ms:.2f}" for ms in result["ms"].values()),
        ]
        for result in results["searches"]
    ]
    others = results["fused"] | {"embedded two_stage": results["embedded"]}
    lines += [
        [name, 1000, *(f"{v:.3f}" for v in values.values()), *[""] * 6] for name, values in others.items()
    ]
    header = ["mode", "candidates", "recall@10", "recall@100", "certified@10", "certified@100"]
    return markdown([*header, *(f"ms {phase}" for phase in PHASES)], lines)


@click.command()
@data_set_argument
@click.option("--rows", default=100_000, show_default=True, help="Vectors of the database.")
@click.option("--queries", default=200, show_default=True, help="Queries to measure with.")
@click.option("--preset", default="default", show_default=True, help="Of the training.")
@click.option("--sync", is_flag=True, help="Measure syncs in place of searches.")
def main(source: str, rows: int, queries: int, preset: str, *, sync: bool) -> None:
    """Import a collection, and search it by every mode or sync it."""
    data = load(source, rows=rows, queries=queries)
    click.echo(f"{data}; Milvus Lite in another process\n")
    print_load(2)
    with (
        threadpool_limits(1),
        tempfile.TemporaryDirectory() as folder,
        milvus_lite(Path(folder)) as uri,
    ):
        client = connect(uri, timeout=TIMEOUT)
        _, filling = timed(partial(fill, client, data.vectors))
        if sync:
            n, results = len(data.vectors), measured_syncs(client, uri, data.vectors, preset)
        else:
            n, results = measured(client, uri, Path(folder), data, preset)

    click.echo(f"filling the dense collection: {filling:.1f} s; one thread:")
    if sync:
        click.echo(sync_table(results))
    else:
        click.echo(import_table(results["import"], results["disk"], n))
        click.echo(search_table(results))
    write_report(
        results_path(data.stem, "milvus_sync" if sync else "milvus"),
        1,
        {"rows": n, "queries": len(data.queries), "preset": preset},
        results,
    )


if __name__ == "__main__":
    main()
