"""What `run.py frontier` compares: rows of a table, each a function that builds, and settings of searches.

Bytes a vector are computed where a package's layout is known: ours by `stats`, Faiss's from what it writes,
without what it writes when it is trained and empty. Of other packages they are measured, without models.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import faiss
import fine_codes
import numpy as np
from common import timed
from dense_contestants import LeftOut, factory, require_lvq, turbovec_of
from rival_stores import HnswlibStore, ScannStore, UsearchStore, VamanaStore, VoyagerStore
from stores import FaissStore, OurStore, Store

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.building.planning import Plan
from compressae_index.training import TrainConfig, train

# Rows that rivals learn from: 1,024 lists take 39,936 by Faiss's rule.
TRAIN_ROWS, SAMPLE_ROWS = 100_000, 2048
M, EF_CONSTRUCTION = 16, 200
EF = (10, 20, 40, 80, 160, 320, 640)
LISTS = 1024
# Lists that are read, and how many times the neighbours asked for are scored again.
PROBES = ((4, 4), (8, 4), (16, 4), (16, 10), (32, 10), (64, 10), (128, 10), (256, 20))
# Leaves that ScaNN reads, and candidates that it scores again for each neighbour asked for.
LEAVES = ((4, 3), (8, 5), (16, 10), (32, 10), (64, 20), (128, 20), (256, 20))
# ScaNN's advice: two dimensions a block, its threshold of anisotropic loss, and SOAR's weight.
SCANN_BLOCK, SCANN_THRESHOLD, SOAR = 2, 0.2, 1.5
VAMANA_DEGREE, VAMANA_ALPHA = 32, 0.95
# Candidates, latents of the query and documents of the last stage, by the neighbours asked for.
OURS: dict[int, tuple[tuple[int, int, int], ...]] = {
    10: (
        *((300, 24, 20), (300, 32, 20), (550, 48, 30), (550, 64, 50), (550, 96, 50), (1000, 96, 50)),
        *((1000, 128, 50), (1700, 128, 50), (1700, 192, 100), (3000, 256, 100), (3000, 512, 100)),
        *((6000, 512, 100), (10_000, 512, 200)),
    ),
    100: (
        *((1000, 64, 150), (1000, 128, 200), (2000, 128, 200), (3000, 256, 300), (3000, 512, 300)),
        *((6000, 512, 400), (10_000, 512, 400)),
    ),
}
CODES = {"postings": 8, "value_bits": 5}
# Lists that are read of codes that are not scored again.
FINE_PROBES = (8, 16, 32, 64, 128, 256)
# With an id of 8 bytes, 128.
FINE_BYTES = 120
# A rival that takes longer to build, by the processor time of each thread, is left out.
MOST_SECONDS = 900
ADDED = 50_000

Tuned: TypeAlias = Iterator[tuple[str, Store]]


@dataclass(frozen=True)
class Task:
    """The data that every contestant is built from."""

    vectors: FloatArray
    """Of unit norm, and so are `training` and `sample`, rows of them."""
    training: FloatArray
    sample: FloatArray
    n_latents: int | None
    threads: int

    @classmethod
    def of(cls, unit: FloatArray, n_latents: int | None, threads: int, seed: int) -> Task:
        """The seed draws the rows that contestants learn from."""
        shuffled = np.random.default_rng(seed).permutation(len(unit))
        training, sample = unit[np.sort(shuffled[:TRAIN_ROWS])], unit[shuffled[:SAMPLE_ROWS]]
        return cls(unit, training, sample, n_latents, threads)

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return int(self.vectors.shape[1])

    @property
    def lists(self) -> int:
        """Of inverted files: fewer where there are few vectors."""
        return min(LISTS, 4 * math.isqrt(len(self.vectors)))

    @cached_property
    def model(self) -> tuple[CompresSAE, float]:
        """The model of all our forms, as a build trains it, and the seconds that took."""
        config = TrainConfig(n_latents=self.n_latents, k=16, steps=0)
        result, seconds = timed(partial(train, self.vectors, config))
        return result.model, seconds


class Built(NamedTuple):
    """A contestant that is ready to be searched."""

    store: Any
    """A `Store`; None while it lies on disk."""
    train_seconds: float
    fill_seconds: float
    model_bytes: float = 0.0
    """All bytes of codebooks, rotations and models."""
    row_bytes: float | None = None
    """Resident bytes a vector without these; None if they must be measured."""
    disk_bytes: float = 0.0
    """Bytes a vector on disk, which searches read."""
    resident_bytes: float = 0.0
    """All that a fresh process holds, measured."""
    details: str = ""


class Contestant(NamedTuple):
    """A row of the table."""

    build: Callable[[Task], Built]
    tuned: Callable[[Any, int], Tuned]
    """Settings to search a store for so many neighbours, by name."""
    package: str
    """What must be imported."""
    is_ours: bool = False


# Ours.


def ours(options: dict[str, Any], task: Task) -> Built:
    """An index by settings or a budget."""
    model, train_seconds = task.model
    build = partial(CompressedIndex.build, task.vectors, model=model, num_threads=task.threads)
    index, fill_seconds = timed(partial(build, progress=False, **options))
    stats = index.stats()
    row_bytes = stats.bytes_per_vector["total"]
    return Built(
        OurStore(index, mmap=False),
        train_seconds,
        fill_seconds,
        stats.model_bytes,
        row_bytes,
        stats.disk_bytes_per_vector,
        details=f"{model.n_latents:,} latents, {_form_of(index.plan, options)}",
    )


def _form_of(plan: Plan | None, options: dict[str, Any]) -> str:
    """Nonzeros, value bits, postings and residual bits in words."""
    held = options if plan is None else plan._asdict()
    form = f"k={held['k']}, {held['value_bits']} bits, {held['postings']} postings"
    bits = 0 if plan is None else plan.residual_bits
    return f"{form}, residuals of {bits} bits" if bits else form


def our_settings(store: OurStore, top: int) -> Tuned:
    """Settings by hand, and those that a search takes by itself."""
    yield "as built", store
    settings = OURS[top]
    if not store.index.documents.refines:  # a small budget may hold codes alone
        settings = tuple(dict.fromkeys((candidates, query_nnz, 0) for candidates, query_nnz, _ in settings))
    for candidates, query_nnz, refine in settings:
        options = {"candidates": candidates, "query_nnz": query_nnz, "refine": refine}
        last = f", {refine} refined" if refine else ""
        yield f"{candidates:,} candidates, {query_nnz} latents{last}", replace(store, options=options)


def our_form(**options: Any) -> Contestant:
    """A row of ours."""
    return Contestant(partial(ours, options), our_settings, "compressae_index", True)


def added(add: Callable[[FloatArray], Any], task: Task) -> float:
    """Seconds of adding all vectors, some at a time.

    Raises:
        LeftOut: at this rate, it takes too long.
    """
    n, began, started = len(task.vectors), time.perf_counter(), time.process_time()
    for begin in range(0, n, ADDED):
        add(task.vectors[begin : begin + ADDED])
        require_time((time.process_time() - started) * n / min(n, begin + ADDED), task.threads)
    return time.perf_counter() - began


def require_time(processor_seconds: float, threads: int) -> None:
    """Raises LeftOut if building takes too long, so that other work on the machine does not matter."""
    if processor_seconds > MOST_SECONDS * threads:
        minutes, most = processor_seconds / threads / 60, MOST_SECONDS / 60
        msg = f"it takes {minutes:.0f} minutes of {threads} threads to build, more than {most:.0f}"
        raise LeftOut(msg)


# Faiss.


def in_faiss(description: str, task: Task) -> Built:
    """An index of Faiss by its factory."""
    faiss.omp_set_num_threads(task.threads)
    index = factory(description.format(dim=task.dim, lists=task.lists, parts=task.dim // 2), task.dim)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = EF_CONSTRUCTION
    _, train_seconds = timed(partial(index.train, task.training))
    model_bytes = len(faiss.serialize_index(index))
    fill_seconds = added(index.add, task)
    row_bytes = (len(faiss.serialize_index(index)) - model_bytes) / len(task.vectors)
    return Built(FaissStore(index), train_seconds, fill_seconds, model_bytes, row_bytes)


def rounded_in_faiss(rounding: Callable[[FloatArray, int], fine_codes.Rounding], task: Task) -> Built:
    """An inverted file of codes that `fine_codes` describes."""
    faiss.omp_set_num_threads(task.threads)

    def trained() -> tuple[Any, fine_codes.Rounding]:
        found = rounding(task.training, FINE_BYTES)
        return fine_codes.inverted_file(found, task.training, task.lists), found

    (index, found), train_seconds = timed(trained)
    model_bytes = len(faiss.serialize_index(index))
    fill_seconds = added(index.add, task)
    row_bytes = (len(faiss.serialize_index(index)) - model_bytes) / len(task.vectors)
    widths = "/".join(map(str, sorted(set(found.bits.tolist()))))
    details = f"{len(found.bits)} components of {widths} bits; written for this from the paper, not tuned"
    return Built(FaissStore(index), train_seconds, fill_seconds, model_bytes, row_bytes, details=details)


def fine_probes(store: FaissStore, top: int) -> Tuned:  # noqa: ARG001
    """Settings of an inverted file whose codes are not scored again."""
    lists = faiss.extract_index_ivf(store.index)
    for nprobe in dict.fromkeys(min(nprobe, lists.nlist) for nprobe in FINE_PROBES):
        yield f"nprobe={nprobe}", replace(store, knobs=((lists, "nprobe", nprobe),))


def faiss_ef(store: FaissStore, top: int) -> Tuned:
    """Settings of a graph."""
    for ef in reached(EF, top):
        yield f"ef={ef}", replace(store, knobs=((store.index.hnsw, "efSearch", ef),))


def faiss_probes(store: FaissStore, top: int) -> Tuned:
    """Settings of an inverted file whose best codes are scored again."""
    lists = faiss.extract_index_ivf(store.index.base_index)
    for nprobe, factor in PROBES:
        scored = max(1, factor * 10 // (10 if top == 10 else 25))
        knobs = ((lists, "nprobe", nprobe), (store.index, "k_factor", scored))
        yield f"nprobe={nprobe}, {scored * top} refined", replace(store, knobs=knobs)


def untuned(store: Store, top: int) -> Tuned:  # noqa: ARG001
    """A store without settings."""
    yield "", store


def reached(sizes: tuple[int, ...], top: int) -> tuple[int, ...]:
    """Those that are enough to find so many neighbours, and exactly so many."""
    return tuple(sorted({top, *(size for size in sizes if size > top)}))


# Other packages.


def hnswlib(task: Task) -> Built:
    """Hnswlib over float32 vectors."""
    index = importlib.import_module("hnswlib").Index("ip", task.dim)
    index.init_index(len(task.vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
    seconds = added(partial(index.add_items, num_threads=task.threads), task)
    return Built(HnswlibStore(index, task.dim), 0.0, seconds)


def usearch(kind: str, task: Task) -> Built:
    """usearch, with numbers of one of its kinds."""
    module = importlib.import_module("usearch.index")
    options = {"connectivity": M, "expansion_add": EF_CONSTRUCTION}
    index = module.Index(ndim=task.dim, metric="ip", dtype=kind, **options)
    seconds = added(
        lambda rows: index.add(np.arange(len(rows)) + len(index), rows, threads=task.threads), task
    )
    return Built(UsearchStore(index), 0.0, seconds, details=str(index.hardware_acceleration))


def voyager(kind: str, task: Task) -> Built:
    """voyager, with numbers of one of its kinds."""
    module = importlib.import_module("voyager")
    index = module.Index(
        module.Space.InnerProduct,
        task.dim,
        M=M,
        ef_construction=EF_CONSTRUCTION,
        random_seed=1,
        max_elements=len(task.vectors),
        storage_data_type=getattr(module.StorageDataType, kind),
    )
    seconds = added(partial(index.add_items, num_threads=task.threads), task)
    return Built(VoyagerStore(index), 0.0, seconds)


def by_ef(store: Any, top: int) -> Tuned:
    """Settings of a graph with an ef."""
    for ef in reached(EF, top):
        yield f"ef={ef}", replace(store, ef=ef)


def scann(kind: str, task: Task) -> Built:
    """ScaNN with a tree, SOAR and 4-bit codes; the best are scored again by numbers of a kind."""
    module = importlib.import_module("scann")
    leaves = math.isqrt(len(task.vectors))
    builder = module.scann_ops_pybind.builder(task.vectors, 10, "dot_product")
    builder.set_n_training_threads(task.threads)
    builder.tree(leaves, 10, training_sample_size=TRAIN_ROWS, soar_lambda=SOAR, overretrieve_factor=2.0)
    builder.score_ah(SCANN_BLOCK, anisotropic_quantization_threshold=SCANN_THRESHOLD)
    builder.reorder(100, quantize=getattr(module.ReorderType, kind))
    searcher, seconds = timed(builder.build)
    codebooks = 4 * task.dim * (16 + leaves)
    return Built(ScannStore(searcher), 0.0, seconds, codebooks, details=f"{leaves:,} leaves")


def scann_leaves(store: ScannStore, top: int) -> Tuned:
    """Settings of ScaNN."""
    for leaves, factor in LEAVES:
        reordered = factor * top if top == 10 else max(2, factor // 3) * top
        yield f"{leaves} leaves, {reordered} refined", replace(store, leaves=leaves, reordered=reordered)


def vamana(bits: tuple[int, int] | None, task: Task) -> Built:
    """SVS's graph over locally adaptive quantisation of so many bits, or over half precision."""
    svs = importlib.import_module("svs")
    if bits is not None:
        require_lvq()
    parameters = svs.VamanaBuildParameters(
        graph_max_degree=VAMANA_DEGREE, window_size=EF_CONSTRUCTION, alpha=VAMANA_ALPHA
    )
    build = partial(svs.Vamana.build, parameters, num_threads=task.threads)
    if bits is None:
        rows = task.vectors.astype(np.float16)
        index, seconds = timed(partial(build, py_data=rows, distance_type=svs.DistanceType.MIP))
        return Built(VamanaStore(index, False), 0.0, seconds)
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "vectors.fvecs"))
        svs.write_vecs(task.vectors, path)
        data = svs.VectorDataLoader(path, svs.DataType.float32, dims=task.dim)
        loader = svs.LVQLoader(data, primary=bits[0], residual=bits[1])
        index, seconds = timed(partial(build, data_loader=loader, distance_type=svs.DistanceType.MIP))
    return Built(VamanaStore(index, True), 0.0, seconds)


def vamana_windows(store: VamanaStore, top: int) -> Tuned:
    """Settings of SVS."""
    for window in reached(EF, top):
        yield f"window={window}", replace(store, window=window)


def turbovec(bits: int, task: Task) -> Built:
    """A flat index of turbovec."""
    if task.dim % 8:
        msg = f"turbovec takes multiples of 8 dimensions, not {task.dim}"
        raise LeftOut(msg)
    built = turbovec_of(bits, task.vectors, task.sample)
    return Built(built.store, built.train_seconds, built.fill_seconds, 0.0, built.row_bytes)


CONTESTANTS = {
    "ours, codes": our_form(k=16, **CODES),
    "ours, 128 bytes": our_form(bytes_per_vector=128),
    "ours, 170 bytes": our_form(bytes_per_vector=170),
    "ours, 200 bytes": our_form(bytes_per_vector=200),
    "ours, k=8 + originals": our_form(k=8, originals="float16", **CODES),
    "ours, k=16 + originals": our_form(k=16, originals="float16", **CODES),
    "hnswlib": Contestant(hnswlib, by_ef, "hnswlib"),
    "Faiss HNSW": Contestant(partial(in_faiss, f"HNSW{M},Flat"), faiss_ef, "faiss"),
    "Faiss HNSW, SQ8": Contestant(partial(in_faiss, f"HNSW{M},SQ8"), faiss_ef, "faiss"),
    "Faiss IVF-PQ + SQ8": Contestant(
        partial(in_faiss, "IVF{lists},PQ{parts}x4fs,Refine(SQ8)"), faiss_probes, "faiss"
    ),
    "Faiss IVF-RaBitQ + SQ8": Contestant(
        partial(in_faiss, "RR{dim},IVF{lists},RaBitQfs,Refine(SQ8)"), faiss_probes, "faiss"
    ),
    "SAQ-like, by us": Contestant(partial(rounded_in_faiss, fine_codes.saq_like), fine_probes, "faiss"),
    "ASH-like, by us": Contestant(partial(rounded_in_faiss, fine_codes.ash_like), fine_probes, "faiss"),
    "flat, float32": Contestant(partial(in_faiss, "Flat"), untuned, "faiss"),
    "flat, float16": Contestant(partial(in_faiss, "SQfp16"), untuned, "faiss"),
    "flat, SQ8": Contestant(partial(in_faiss, "SQ8"), untuned, "faiss"),
    "ScaNN, int8": Contestant(partial(scann, "INT8"), scann_leaves, "scann"),
    "ScaNN, bfloat16": Contestant(partial(scann, "BFLOAT16"), scann_leaves, "scann"),
    "usearch, int8": Contestant(partial(usearch, "i8"), by_ef, "usearch.index"),
    "SVS Vamana, LVQ4x8": Contestant(partial(vamana, (4, 8)), vamana_windows, "svs"),
    "SVS Vamana, float16": Contestant(partial(vamana, None), vamana_windows, "svs"),
    "turbovec, 2 bits": Contestant(partial(turbovec, 2), untuned, "turbovec"),
    "turbovec, 4 bits": Contestant(partial(turbovec, 4), untuned, "turbovec"),
    "voyager, Float8": Contestant(partial(voyager, "Float8"), by_ef, "voyager"),
}
