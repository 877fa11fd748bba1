"""Other engines, searching the codes that ours searches; each is optional but scipy.

An engine that takes signed values gets the codes as they are. The rest get them sign-split: latent l of a
negative value becomes latent l + n_latents of its magnitude, and a query holds its value at l and its
opposite at l + n_latents, so that the scores stay what they were.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from common import timed
from memory import resident

from compressae_index import CompresSAE, SparseCodes
from compressae_index.arrays import FloatArray

T = TypeVar("T")
IntArray = npt.NDArray[np.integer[Any]]

SINDI_WINDOW = 50_000
# Postings that Seismic keeps a latent on average, as a share of the documents: more than codes have at k = 32
# and h = 4,096, so that only lists beyond 6 times that are cut.
SEISMIC_POSTINGS, SEISMIC_MAX_FRACTION = 0.01, 6.0
SEISMIC_SETTINGS = ((10, 0.8), (32, 0.8), (64, 0.7))
KANNOLO_M, KANNOLO_EF_CONSTRUCTION = 16, 100
KANNOLO_EFS = (200, 800, 1600)
BMP_BLOCK = 32
MILVUS_ROWS = 5000
# Rows that dense quantisers learn from, and rows that are reconstructed at a time.
TRAIN_ROWS = 100_000
CHUNK = 50_000
TURBOVEC_BITS = (2, 4)


class SparseQuery(NamedTuple):
    """The strongest latents of a query's projection, ascending, and their values."""

    latents: IntArray
    values: FloatArray


class Contender(NamedTuple):
    """A way to search that is measured."""

    name: str
    queries: list[Any]
    """Queries in the engine's own form, whose making is not timed."""
    search: Callable[[Any], Any]
    rows: Callable[[Any], IntArray]
    """Rows found, best first, from what `search` gives; not timed."""
    build_seconds: float
    row_bytes: float


@dataclass(frozen=True)
class Bench:
    """The documents and queries of a benchmark."""

    model: CompresSAE | None
    """The model of the codes; None for codes of a file, which have no reconstructions."""
    codes: SparseCodes
    vectors: FloatArray
    """Unit queries (q, dim), for engines of dense vectors."""
    projections: FloatArray
    query_nnz: int
    top: int

    @property
    def n(self) -> int:
        """Documents."""
        return len(self.codes)

    @cached_property
    def queries(self) -> list[SparseQuery]:
        """The query_nnz strongest latents of each query, without zeros."""
        kept = np.argpartition(-np.abs(self.projections), self.query_nnz - 1, axis=1)[:, : self.query_nnz]
        queries = []
        for latents, projection in zip(np.sort(kept, axis=1), self.projections, strict=True):
            used = latents[projection[latents] != 0]
            queries.append(SparseQuery(used, projection[used]))
        return queries

    @cached_property
    def cut(self) -> list[FloatArray]:
        """The same as dense arrays (n_latents,)."""
        cut = np.zeros_like(self.projections)
        for row, query in zip(cut, self.queries, strict=True):
            row[query.latents] = query.values
        return list(cut)

    @cached_property
    def matrix(self) -> sp.csr_array:
        """The codes as scipy's CSR, without the zeros that fill rows up to k."""
        matrix = self.codes.to_csr()
        if not matrix.data.all():
            matrix = matrix.copy()  # its values are those of the codes
            matrix.eliminate_zeros()
        return matrix

    @cached_property
    def split(self) -> sp.csr_array:
        """The matrix sign-split, over twice the latents."""
        n, h = self.matrix.shape
        indices = np.where(self.matrix.data < 0, self.matrix.indices + h, self.matrix.indices)
        split = sp.csr_array((np.abs(self.matrix.data), indices, self.matrix.indptr), shape=(n, 2 * h))
        split.sort_indices()
        return split

    @property
    def split_queries(self) -> list[SparseQuery]:
        """Queries of sign-split codes, which give the scores of codes that are not split."""
        h = self.codes.n_latents
        return [
            SparseQuery(np.concatenate([latents, latents + h]), np.concatenate([values, -values]))
            for latents, values in self.queries
        ]

    def reconstructions(self, n: int) -> Iterator[FloatArray]:
        """Vectors (at most CHUNK, dim) of the first n codes, whose inner products are the scores."""
        assert self.model is not None
        for first in range(0, min(n, self.n), CHUNK):
            rows = slice(first, min(first + CHUNK, n, self.n))
            codes = SparseCodes(self.codes.latents[rows], self.codes.values[rows], self.codes.n_latents)
            yield self.model.decode(codes)


def available(names: tuple[str, ...]) -> tuple[str, ...]:
    """The rivals that are installed, loaded so that their threads can be limited."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    # The loader does not look for MKL where pip puts it.
    libraries = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    if libraries:
        os.environ.setdefault("MKL_RT", str(libraries[0]))
    found = []
    for name in names:
        with suppress(ImportError):
            importlib.import_module(RIVALS[name].module)
            found.append(name)
    return tuple(found)


def built(make: Callable[[], T], n: int) -> tuple[T, float, float]:
    """An index, the seconds that it took, and the resident bytes a document."""
    before = resident()
    index, seconds = timed(make)
    return index, seconds, (resident() - before) / n


def best(scores: FloatArray, top: int) -> IntArray:
    """The rows of the largest scores, best first."""
    rows = np.argpartition(-scores, top)[:top]
    return rows[np.argsort(-scores[rows], kind="stable")]


def scipy_csr(bench: Bench) -> Iterator[Contender]:
    """A product, as anybody with codes in CSR would write it, and one that touches the query's lists only."""
    matrix, seconds = timed(bench.matrix.copy)
    row_bytes = (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / bench.n
    top = bench.top
    yield Contender(
        "scipy CSR @ dense query",
        bench.cut,
        lambda query: best(matrix @ query, top),
        np.asarray,
        seconds,
        row_bytes,
    )
    transposed, more = timed(lambda: sp.csr_array(matrix.T))
    yield Contender(
        "scipy CSR query @ transposed CSR",
        [sp.csr_array(query[None]) for query in bench.cut],
        lambda query: best((query @ transposed).toarray()[0], top),
        np.asarray,
        seconds + more,
        row_bytes,
    )


def mkl(bench: Bench) -> Iterator[Contender]:
    """The product of MKL, through sparse_dot_mkl."""
    product = importlib.import_module("sparse_dot_mkl").dot_product_mkl
    matrix, seconds = timed(lambda: sp.csr_matrix(bench.matrix))
    row_bytes = (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / bench.n
    top = bench.top
    yield Contender(
        "sparse_dot_mkl CSR @ dense query",
        bench.cut,
        lambda query: best(product(matrix, query), top),
        np.asarray,
        seconds,
        row_bytes,
    )


def _sindi_index(matrix: sp.csr_array, quantized: bool) -> Any:
    settings = {
        "dtype": "sparse",
        "metric_type": "ip",
        "dim": int(np.diff(matrix.indptr).max()),  # the most nonzeros, not the vocabulary
        "index_param": {
            "term_id_limit": matrix.shape[1],
            "window_size": SINDI_WINDOW,
            "doc_prune_ratio": 0.0,
            "use_quantization": quantized,
            "use_reorder": False,
        },
    }
    index = importlib.import_module("pyvsag").Index("sindi", json.dumps(settings))
    index.build(
        index_pointers=matrix.indptr.astype(np.uint32),
        indices=matrix.indices.astype(np.uint32),
        values=matrix.data,
        ids=np.arange(matrix.shape[0], dtype=np.int64),
    )
    return index


def sindi(bench: Bench) -> Iterator[Contender]:
    """SINDI of VSAG without pruning: exact in float32; 8-bit values need sign-split codes."""
    top = bench.top
    parameters = json.dumps({"sindi": {"n_candidate": top, "query_prune_ratio": 0.0}})
    for name, matrix, queries, quantized in (
        ("VSAG SINDI, float32", bench.matrix, bench.queries, False),
        ("VSAG SINDI, SQ8, sign-split", bench.split, bench.split_queries, True),
    ):
        make = partial(_sindi_index, matrix, quantized)
        index, seconds, row_bytes = built(make, bench.n)
        yield Contender(
            name,
            [
                (np.array([0, len(latents)], np.uint32), latents.astype(np.uint32), values)
                for latents, values in queries
            ],
            partial(_search_sindi, index, top, parameters),
            lambda found: np.asarray(found[0]).ravel(),
            seconds,
            row_bytes,
        )


def _search_sindi(index: Any, top: int, parameters: str, query: tuple[Any, Any, Any]) -> Any:
    return index.knn_search(*query, top, parameters)


def seismic(bench: Bench) -> Iterator[Contender]:
    """Seismic on sign-split codes, from few lists and early stops to nearly all."""
    module = importlib.import_module("seismic")
    split = bench.split

    def make() -> Any:
        dataset = module.SeismicDataset(split.shape[1])
        dataset.add_documents_by_id(
            [str(row) for row in range(bench.n)],
            split.indices.astype(np.int64),
            split.data,
            split.indptr.astype(np.int64),
        )
        return module.SeismicIndex.build_from_dataset(
            dataset,
            n_postings=int(SEISMIC_POSTINGS * bench.n),
            max_fraction=SEISMIC_MAX_FRACTION,
            num_threads=1,
        )

    index, seconds, row_bytes = built(make, bench.n)
    string = module.get_seismic_string()
    queries = [(latents.astype(string), values) for latents, values in bench.split_queries]
    for cut, factor in SEISMIC_SETTINGS:
        yield Contender(
            f"Seismic, sign-split, query_cut {cut}, heap_factor {factor}",
            queries,
            partial(_search_seismic, index, bench.top, cut, factor),
            lambda found: np.array([int(row) for _, _, row in found]),
            seconds,
            row_bytes,
        )


def _search_seismic(index: Any, top: int, cut: int, factor: float, query: tuple[Any, Any]) -> Any:
    return index.search("", *query, top, cut, factor)


def kannolo(bench: Bench) -> Iterator[Contender]:
    """The graph of kANNolo on signed codes."""
    module = importlib.import_module("kannolo")

    def make() -> Any:
        return module.SparsePlainHNSW.build_from_arrays(
            bench.matrix.indices.astype(np.int32),
            bench.matrix.data,
            bench.matrix.indptr.astype(np.int64),
            m=KANNOLO_M,
            ef_construction=KANNOLO_EF_CONSTRUCTION,
        )

    index, seconds = timed(make)
    queries = [(latents.astype(np.int32), values) for latents, values in bench.queries]
    for ef in KANNOLO_EFS:
        yield Contender(
            f"kANNolo HNSW, m {KANNOLO_M}, ef {ef}",
            queries,
            partial(_search_kannolo, index, bench.top, ef),
            lambda found: np.asarray(found[1]),
            seconds,
            index.space_usage_bytes() / bench.n,
        )


def _search_kannolo(index: Any, top: int, ef: int, query: tuple[Any, Any]) -> Any:
    return index.search(*query, top, ef)


def bmp(bench: Bench) -> Iterator[Contender]:
    """Block-Max Pruning, exact for 8-bit values; it ignores a query's negative values.

    So it sees agreeing signs alone, and its recall ends where their share of the scores does.
    """
    module = importlib.import_module("bmp")
    split = bench.split
    names = [str(latent) for latent in range(split.shape[1])]
    step = float(split.data.max()) / 255

    def make() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "index"))
            indexer = module.Indexer(path, bsize=BMP_BLOCK, compress_range=False)
            for row, (begin, end) in enumerate(pairwise(split.indptr)):
                levels = np.maximum(np.rint(split.data[begin:end] / step), 1).astype(int).tolist()
                latents = split.indices[begin:end].tolist()
                document = {names[latent]: level for latent, level in zip(latents, levels, strict=True)}
                indexer.add_document(str(row), document)
            indexer.finish()
            return module.Searcher(path)

    searcher, seconds, row_bytes = built(make, bench.n)
    h = bench.codes.n_latents
    yield Contender(
        "BMP, agreeing signs alone",
        [
            {
                names[latent + h * (value < 0)]: abs(value)
                for latent, value in zip(latents.tolist(), values.tolist(), strict=True)
            }
            for latents, values in bench.queries
        ],
        lambda query: searcher.search(query, k=bench.top, alpha=1.0, beta=1.0),
        lambda found: np.array([int(row) for row in found[0]]),
        seconds,
        row_bytes,
    )


def milvus(bench: Bench) -> Iterator[Contender]:
    """Milvus Lite in this process, on sign-split codes; it reads all rows in Python."""
    module = importlib.import_module("pymilvus")
    folder = tempfile.TemporaryDirectory()
    client = module.MilvusClient(str(Path(folder.name, "codes.db")))

    def make() -> None:
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", module.DataType.INT64, is_primary=True)
        schema.add_field("code", module.DataType.SPARSE_FLOAT_VECTOR)
        params = client.prepare_index_params()
        params.add_index("code", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection("codes", schema=schema, index_params=params)
        indices, values = bench.split.indices.tolist(), bench.split.data.tolist()
        rows = [
            {"id": row, "code": dict(zip(indices[begin:end], values[begin:end], strict=True))}
            for row, (begin, end) in enumerate(pairwise(bench.split.indptr))
        ]
        for first in range(0, len(rows), MILVUS_ROWS):
            client.insert("codes", rows[first : first + MILVUS_ROWS])
        client.flush("codes")

    _, seconds, row_bytes = built(make, bench.n)
    yield Contender(
        "Milvus Lite, agreeing signs alone",
        [
            {
                int(latent + bench.codes.n_latents * (value < 0)): abs(float(value))
                for latent, value in zip(latents, values, strict=True)
            }
            for latents, values in bench.queries
        ],
        partial(_search_milvus, client, folder, bench.top),
        lambda found: np.array([hit["id"] for hit in found[0]]),
        seconds,
        row_bytes,
    )


def _search_milvus(client: Any, _folder: Any, top: int, query: dict[int, float]) -> Any:
    """The folder of the files lasts as long as the object that searches them."""
    return client.search("codes", [query], anns_field="code", limit=top, search_params={"metric_type": "IP"})


def faiss(bench: Bench) -> Iterator[Contender]:
    """Fast scans of all reconstructions, quantised: product quantisation in 4 bits, and RaBitQ."""
    module = importlib.import_module("faiss")
    dim = bench.vectors.shape[1]
    for name, factory in (
        (f"Faiss PQ{dim // 2}x4fs", f"PQ{dim // 2}x4fs"),
        ("Faiss RaBitQfs", f"RR{dim},RaBitQfs"),
    ):
        index = module.index_factory(dim, factory, module.METRIC_INNER_PRODUCT)

        def make(index: Any = index) -> None:
            index.train(np.concatenate(list(bench.reconstructions(TRAIN_ROWS))))
            for rows in bench.reconstructions(bench.n):
                index.add(rows)

        _, seconds = timed(make)
        yield Contender(
            name,
            [vector[None] for vector in bench.vectors],
            partial(_search_dense, index, bench.top),
            lambda found: found[1][0],
            seconds,
            index.sa_code_size(),
        )


def turbovec(bench: Bench) -> Iterator[Contender]:
    """A scan of all reconstructions by the package turbovec."""
    module = importlib.import_module("turbovec")
    for bits in TURBOVEC_BITS:
        index = module.TurboQuantIndex(dim=bench.vectors.shape[1], bit_width=bits)

        def make(index: Any = index) -> None:
            index.calibrate(next(bench.reconstructions(CHUNK)))
            for rows in bench.reconstructions(bench.n):
                index.add(rows)
            index.prepare()

        _, seconds = timed(make)
        yield Contender(
            f"turbovec, {bits} bits",
            [vector[None] for vector in bench.vectors],
            partial(_search_dense, index, bench.top),
            lambda found: np.asarray(found[1])[0].astype(np.int64),
            seconds,
            len(index.to_bytes()) / bench.n,
        )


def _search_dense(index: Any, top: int, query: FloatArray) -> Any:
    return index.search(query, top)


class Rival(NamedTuple):
    """How to build the contenders of an engine."""

    module: str
    contenders: Callable[[Bench], Iterator[Contender]]
    most: int | None = None
    """Documents up to which it is built: more take many minutes or gigabytes."""
    dense: bool = False
    """Searches reconstructions."""


RIVALS = {
    "scipy": Rival("scipy", scipy_csr),
    "mkl": Rival("sparse_dot_mkl", mkl),
    "sindi": Rival("pyvsag", sindi),
    "seismic": Rival("seismic", seismic, most=1_000_000),
    "kannolo": Rival("kannolo", kannolo, most=1_000_000),
    "bmp": Rival("bmp", bmp, most=1_000_000),
    "milvus": Rival("milvus_lite", milvus, most=20_000),
    "faiss": Rival("faiss", faiss, dense=True),
    "turbovec": Rival("turbovec", turbovec, dense=True),
}
