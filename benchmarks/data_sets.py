"""Data sets that benchmarks search: files, and rows of a table that are shipped or made.

The name has two words, as packages of others would import a module `datasets` in place of Hugging Face's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from compressae_index import SparseCodes
from compressae_index.arrays import FloatArray
from compressae_index.checks import check_int, check_vectors, normalize_rows
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.coding.metric import Metric, are_unit, row_norms
from compressae_index.demo import load_data
from compressae_index.errors import (
    CompressaeError,
    DimensionError,
    FormatError,
    InputError,
    MissingExtraError,
)
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.sources import Vectors, open_vectors

QUERIES = 2000
SEED = 0

MADE_ROWS = 20_000
GAUSSIAN_DIM = 768
# Of Gaussians that are searched by distance.
GAUSSIAN_DIMS = (16, 64, 256, 1024)
# Of made interactions. Popularity falls as rank^-POPULARITY within each cluster of items.
FACTORS = 128
# Of the randomised SVD: vectors beyond the factors, and products with the matrix and its transpose.
OVERSAMPLED, POWER_ROUNDS = 16, 5
CLUSTERS, CLUSTERS_A_USER, STRAY_CLICKS = 100, 3, 0.2
POPULARITY = 0.8
CLICKS, LEAST_CLICKS = 40, 3
# Of generated codes: rows made at a time, the least share of a code that comes from one real code, and the
# deviation of the factors on its values.
CHUNK = 65_536
LEAST_SHARE, VALUE_NOISE = 0.5, 0.1


# Images of scikit-image, and sizes at which they are described, in steps of pixels. Patches of less contrast
# than this norm are flat, and all alike.
IMAGES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
IMAGE_SCALES, PATCH_STEP, PATCH_RADIUS, LEAST_CONTRAST = (1.0, 0.6), 3, 15, 1.0


class DataSet(NamedTuple):
    """The vectors and queries of a benchmark."""

    name: str
    vectors: FloatArray
    """(n, dim) float32."""
    queries: FloatArray
    """(n_queries, dim) float32."""
    metric: Metric = "cosine"
    truth: npt.NDArray[np.int64] | None = None
    """Rows of the nearest vectors, best first, (n_queries, any number), where a file holds them."""

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return int(self.vectors.shape[1])

    def neighbours(self, k: int) -> npt.NDArray[np.int64]:
        """Rows of the k nearest vectors by the metric, best first: (n_queries, k)."""
        if self.truth is not None and self.truth.shape[1] >= k:
            return self.truth[:, :k]
        return exact_neighbours(self.vectors, self.queries, k, metric=self.metric)

    @property
    def stem(self) -> str:
        """The name as part of a file's."""
        return Path(self.name).stem.replace(" ", "-")

    def facts(self) -> dict[str, str | int]:
        """The description of the data in reports."""
        return {
            "name": self.name,
            "vectors": len(self.vectors),
            "dim": self.dim,
            "queries": len(self.queries),
        }

    def __str__(self) -> str:
        n = len(self.vectors)
        return f"{self.name}: {n:,} vectors of {self.dim} dimensions, {len(self.queries):,} queries"


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Errors of this package as those of the command line."""
    try:
        yield
    except CompressaeError as error:
        raise click.ClickException(str(error)) from error


data_set_argument = click.argument("source", metavar="[DATA]", default="shipped")


@_told_in_one_line()
def load(
    source: str,
    *,
    rows: int | None = None,
    queries: int | None = None,
    metrics: tuple[Metric, ...] = ("cosine",),
) -> DataSet:
    """A data set by name or path.

    Args:
        source: a name of `SHIPPED`; a name of `MADE`, which are seeded; a file in the ann-benchmarks layout
            (.hdf5 or .h5 with `train`, `test`, `neighbors`); or any other file of embeddings that
            `sources.open_vectors` reads, whose last 2,000 rows are the queries, by the first of `metrics`.
        rows: vectors to keep, the first ones; all by default, 20,000 of made ones.
        queries: the same for queries; made sets have 2,000.
        metrics: those that the caller can search by.

    Raises:
        click.ClickException: no such name or file, or it is not what it should be; the message says why.
    """
    for name, count in (("rows", rows), ("queries", queries)):
        check_int(1 if count is None else count, name, 1)
    data = _named(source, rows, metrics[0])
    if data.metric not in metrics:
        msg = f"{source} is searched by {data.metric}; here it must be {' or '.join(metrics)}"
        raise InputError(msg)
    truth = None if data.truth is None else data.truth[:queries]
    return data._replace(vectors=data.vectors[:rows], queries=data.queries[:queries], truth=truth)


def _named(source: str, rows: int | None, metric: Metric) -> DataSet:
    if source in SHIPPED:
        return SHIPPED[source]()
    if source in MADE:
        return MADE[source](MADE_ROWS if rows is None else rows)
    path = Path(source)
    if not path.exists():
        msg = f"no file {source}, nor a data set of that name: {', '.join([*SHIPPED, *MADE])}"
        raise InputError(msg)
    if path.suffix.lower() in (".hdf5", ".h5"):
        return _from_hdf5(path, rows)
    return _from_file(path, rows, metric)


def _from_file(path: Path, rows: int | None, metric: Metric) -> DataSet:
    everything = open_vectors(path)
    n = everything.shape[0] - QUERIES
    if n < 1:
        msg = f"{path} holds {everything.shape[0]} rows, and the last {QUERIES} are the queries"
        raise InputError(msg)
    zeros = metric == "l2"
    vectors = _rows(everything, 0, n if rows is None else min(n, rows), f"{path}: embeddings", zeros=zeros)
    queries = _rows(everything, n, n + QUERIES, f"{path}: queries", zeros=zeros)
    return DataSet(path.name, vectors, queries, metric=metric)


def _rows(vectors: Vectors, begin: int, end: int, name: str, *, zeros: bool = False) -> FloatArray:
    return check_vectors(vectors[begin:end], name=name, first_row=begin, zeros=zeros)


def _from_hdf5(path: Path, rows: int | None) -> DataSet:
    """A file of ann-benchmarks. It knows no inner products; its angular distances are cosines here.

    So are Euclidean ones of unit vectors, whose order is the same.
    """
    try:
        with h5py.File(path, "r") as file:
            distance = str(file.attrs.get("distance"))
            truth = file["neighbors"][:].astype(np.int64) if "neighbors" in file else None
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise FormatError(msg) from error
    if distance not in ("angular", "euclidean"):
        msg = f"{path} has the distance {distance}; only angular and Euclidean ones can be searched here"
        raise InputError(msg)
    train, test = open_vectors(path, dataset="train"), open_vectors(path, dataset="test")
    n, n_queries = train.shape[0], test.shape[0]
    if train.shape[1] != test.shape[1]:
        msg = f"{path}: train has dimension {train.shape[1]}, test {test.shape[1]}"
        raise DimensionError(msg)
    zeros = distance == "euclidean"
    vectors = _rows(train, 0, n if rows is None else min(n, rows), f"{path}: train", zeros=zeros)
    queries = _rows(test, 0, n_queries, f"{path}: test", zeros=zeros)
    metric: Metric = "l2" if zeros and not are_unit(row_norms(vectors)).all() else "cosine"
    if truth is not None and (
        len(truth) != n_queries or not truth.size or not 0 <= truth.min() <= truth.max() < n
    ):
        msg = f"{path}: neighbors {truth.shape} do not fit {n_queries} queries of {n} vectors"
        raise FormatError(msg)
    truth = truth if len(vectors) == n else None
    return DataSet(path.stem, vectors, queries, metric=metric, truth=truth)


def shipped() -> DataSet:
    """Texts that are shipped with their embeddings by all-MiniLM-L6-v2, (19,000, 384), and 1,000 queries."""
    data = load_data()
    return DataSet("shipped data", data.embeddings, data.queries)


def wordllama() -> DataSet:
    """The shipped texts by WordLlama, (19,000, 256), and 1,000 queries."""
    data = load_data()
    rows = embedded_by_wordllama(data.texts + data.query_texts)
    return DataSet("wordllama", rows[: len(data.texts)], rows[len(data.texts) :])


def embedded_by_wordllama(texts: list[str]) -> FloatArray:
    """Embeddings (n, 256) of texts by WordLlama, whose model comes with its package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        module = importlib.import_module("wordllama")
    except ImportError as error:
        raise MissingExtraError("wordllama", "bench", "embedding texts by WordLlama") from error
    # It looks for its tokenizer in another folder than the one that it is installed to.
    folder = Path(str(module.__file__)).parent
    rows: FloatArray = module.WordLlama.load(cache_dir=folder, disable_download=True).embed(texts, norm=True)
    return rows


SHIPPED: dict[str, Callable[[], DataSet]] = {make.__name__: make for make in (shipped, wordllama)}
"""Data sets of texts that are shipped."""


def interactions(n: int) -> DataSet:
    """Items (n, 128) of `recommendations`; the queries are items that were left out, nearest by cosine."""
    _, items = _factors(n + QUERIES)
    return DataSet("interactions", items[:n], items[n:])


def recommendations(n: int) -> DataSet:
    """Items and users of a factorised matrix of clicks: which n items to show to 2,000 users.

    Items come in clusters and are clicked by users of a few clusters, the popular ones more: norms of items
    grow with their clicks, and inner products matter. Factors are PureSVD's (Cremonesi et al., RecSys 2010),
    with the singular values shared between users and items. A million items take minutes and 4 GB.
    """
    users, items = _factors(n)
    return DataSet("recommendations", items, users[:QUERIES], metric="inner_product")


def _factors(n_items: int) -> tuple[FloatArray, FloatArray]:
    """Factors of users (n_users, 128) and items (n_items, 128), both in random order."""
    check_int(n_items, "rows", FACTORS + 1)
    rng = np.random.default_rng(SEED)
    n_users = max(n_items // 2, 2 * QUERIES)
    left, values, right = _leading(_clicks(n_users, n_items, rng), rng)
    shared = np.sqrt(values)
    return left * shared, right * shared


def _leading(matrix: sp.csr_array, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Leading singular vectors (rows, 128) and (columns, 128) and values (128,), nearly.

    By randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4): a Krylov
    method would need hundreds of products with the matrix to tell apart values that lie close together.
    """
    columns = min(FACTORS + OVERSAMPLED, *matrix.shape)
    right = rng.standard_normal((matrix.shape[1], columns), dtype=np.float32)
    for _ in range(POWER_ROUNDS):
        left = _orthonormal(matrix @ _orthonormal(right))
        right = matrix.T @ left
    # matrix is about left @ right.T, whose right side is decomposed by its Gram matrix.
    squares, turned = np.linalg.eigh(_gram(right))
    first = np.argsort(-squares)[:FACTORS]
    values = np.sqrt(squares[first]).astype(np.float32)
    turned = turned[:, first].astype(np.float32)
    return left @ turned, values, (right @ turned) / values


def _orthonormal(columns: FloatArray) -> FloatArray:
    """An orthonormal basis of columns, by two rounds of Cholesky: much faster than QR of tall matrices."""
    for _ in range(2):
        columns = columns @ np.linalg.inv(np.linalg.cholesky(_gram(columns)).T).astype(np.float32)
    return columns


def _gram(columns: FloatArray) -> npt.NDArray[np.float64]:
    """Inner products of columns."""
    gram = np.zeros((columns.shape[1], columns.shape[1]))
    for begin in range(0, len(columns), CHUNK):
        part = columns[begin : begin + CHUNK].astype(np.float64)
        gram += part.T @ part
    return gram


def _clicks(n_users: int, n_items: int, rng: np.random.Generator) -> sp.csr_array:
    """Clicks of users on items, as ones: (n_users, n_items)."""
    # Items in the order of their clusters, so that a cluster is a run of the cumulated popularities.
    clusters = np.sort(rng.integers(CLUSTERS, size=n_items))
    ranks = np.arange(n_items) - np.searchsorted(clusters, clusters) + 1
    cumulated = np.concatenate([[0], np.cumsum(ranks**-POPULARITY)])
    edges = cumulated[np.searchsorted(clusters, np.arange(CLUSTERS + 1))]
    counts = np.maximum(rng.lognormal(np.log(CLICKS), 1, n_users).astype(np.int64), LEAST_CLICKS)
    users = np.repeat(np.arange(n_users), counts)
    liked = rng.integers(CLUSTERS, size=(n_users, CLUSTERS_A_USER))
    cluster = liked[users, rng.integers(CLUSTERS_A_USER, size=len(users))]
    stray = rng.random(len(users)) < STRAY_CLICKS
    low, high = np.where(stray, 0, edges[cluster]), np.where(stray, cumulated[-1], edges[cluster + 1])
    items = np.searchsorted(cumulated, rng.uniform(low, high), side="right") - 1
    # No item without a click, which would have no direction.
    users = np.concatenate([users, rng.integers(n_users, size=LEAST_CLICKS * n_items)])
    items = np.concatenate([items, np.repeat(np.arange(n_items), LEAST_CLICKS)])
    items = rng.permutation(n_items)[items]
    clicks = sp.csr_array((np.ones(len(users), np.float32), (users, items)), shape=(n_users, n_items))
    clicks.data[:] = 1  # repeated clicks were added up
    return clicks


def anisotropic(n: int) -> DataSet:
    """Gaussians (n, 768) whose variances fall as 1 / rank."""
    return _gaussians("anisotropic", n, power=0.5, offset=0.0)


def uncentred(n: int) -> DataSet:
    """Gaussians (n, 768) of slowly falling variances around a mean as long as their deviation."""
    return _gaussians("uncentred", n, power=0.25, offset=1.0)


def descriptors(n: int) -> DataSet:
    """Descriptors (n, 200) of image patches, whose norms grow with contrast, by Euclidean distances.

    They are DAISY (Tola et al., PAMI 2010) of the images that scikit-image ships, less flat patches.
    """
    return _patches("descriptors", n, histograms=8)


def keypoints(n: int) -> DataSet:
    """Descriptors (n, 128) in the form of SIFT's: of unit norm, cut at 0.2, whole numbers up to 255."""
    data = _patches("keypoints", n, histograms=5)
    return data._replace(vectors=_as_sift(data.vectors), queries=_as_sift(data.queries))


def _patches(name: str, n: int, histograms: int) -> DataSet:
    """Patches of images in random order, by scikit-image.

    Raises:
        MissingExtraError: it is not installed.
        InputError: there are fewer patches than rows.
    """
    try:
        import skimage
        from skimage import color, feature, transform

        read: Any = importlib.import_module("skimage.io").imread
    except ImportError as error:
        raise MissingExtraError("scikit-image", "bench", "describing patches of images") from error
    describe: Any = feature.daisy
    parts = []
    for file in IMAGES:
        image = read(Path(skimage.__file__).parent / "data" / file)
        grey = color.rgb2gray(image[..., :3]) if image.ndim == 3 else image / 255.0
        for scale in IMAGE_SCALES:
            scaled = transform.rescale(grey, scale, anti_aliasing=True) if scale != 1 else grey
            if min(scaled.shape) > 2 * PATCH_RADIUS + PATCH_STEP:
                found = describe(
                    scaled,
                    step=PATCH_STEP,
                    radius=PATCH_RADIUS,
                    histograms=histograms,
                    normalization="off",
                )
                parts.append(found.reshape(-1, found.shape[2]).astype(np.float32))
    rows = np.concatenate(parts)
    rows = rows[row_norms(rows) > LEAST_CONTRAST]
    if len(rows) < n + QUERIES:
        msg = f"the images have {len(rows)} patches, less than {n} vectors and {QUERIES} queries"
        raise InputError(msg)
    rows = rows[np.random.default_rng(SEED).permutation(len(rows))[: n + QUERIES]]
    return DataSet(name, rows[:n], rows[n:], metric="l2")


def _as_sift(rows: FloatArray) -> FloatArray:
    cut = np.minimum(normalize_rows(rows), np.float32(0.2))
    whole: FloatArray = np.rint(512 * normalize_rows(cut)).clip(0, 255)
    return whole


def _gaussians(name: str, n: int, power: float, offset: float) -> DataSet:
    rng = np.random.default_rng(SEED)
    ranks = np.arange(1, GAUSSIAN_DIM + 1)
    deviations = ranks**-power / np.linalg.norm(ranks**-power)
    mean = rng.standard_normal(GAUSSIAN_DIM)
    mean *= offset / np.linalg.norm(mean)
    noise = rng.standard_normal((n + QUERIES, GAUSSIAN_DIM))
    rows = (mean + deviations * noise).astype(np.float32)
    return DataSet(name, rows[:n], rows[n:])


def _gaussian_points(n: int, *, dim: int, decay: float) -> DataSet:
    """Gaussians (n, dim) whose deviations fall as rank^-decay, by Euclidean distances."""
    rows = np.random.default_rng(dim).standard_normal((n + QUERIES, dim), dtype=np.float32)
    rows *= np.arange(1, dim + 1, dtype=np.float32) ** -np.float32(decay)
    return DataSet(f"decaying-{dim}" if decay else f"gaussians-{dim}", rows[:n], rows[n:], metric="l2")


MADE: dict[str, Callable[[int], DataSet]] = {
    **{
        make.__name__: make
        for make in (interactions, recommendations, anisotropic, uncentred, descriptors, keypoints)
    },
    **{f"gaussians-{dim}": partial(_gaussian_points, dim=dim, decay=0.0) for dim in GAUSSIAN_DIMS},
    **{f"decaying-{dim}": partial(_gaussian_points, dim=dim, decay=0.5) for dim in GAUSSIAN_DIMS},
}
"""Data sets that are made from SEED, by the number of vectors."""


@_told_in_one_line()
def sparse_rows(path: Path) -> sp.csr_array:
    """Rows of a .csr file of big-ann-benchmarks, mapped: float32 of any sign.

    The file holds, in little-endian order, int64 n, n_columns and nnz; int64 indptr (n + 1,); int32 indices
    (nnz,); float32 data (nnz,).

    Raises:
        click.ClickException: the file is not that.
    """
    size = path.stat().st_size if path.is_file() else 0
    n, n_columns, nnz = np.fromfile(path, "<i8", 3) if size >= 24 else (-1, -1, -1)
    if min(n, n_columns, nnz) < 0 or size != 24 + 8 * (n + 1) + 8 * nnz:
        msg = f"{path} is not a .csr file: its {size} bytes do not fit {n} rows of {nnz} nonzeros"
        raise FormatError(msg)
    indptr = np.memmap(path, "<i8", "r", 24, (n + 1,))
    indices = np.memmap(path, "<i4", "r", 24 + indptr.nbytes, (nnz,))
    values = np.memmap(path, "<f4", "r", 24 + indptr.nbytes + indices.nbytes, (nnz,))
    if indptr[0] != 0 or indptr[-1] != nnz or (np.diff(indptr) < 0).any():
        msg = f"{path} is damaged: rows must begin at 0, end at {nnz} and not overlap"
        raise FormatError(msg)
    if not 0 <= indices.min(initial=0) <= indices.max(initial=0) < n_columns:
        msg = f"{path} is damaged: indices from {indices.min()} to {indices.max()} in {n_columns} columns"
        raise FormatError(msg)
    return sp.csr_array((values, indices, indptr), shape=(n, n_columns))


@_told_in_one_line()
def sparse_codes(rows: sp.csr_array) -> SparseCodes:
    """Sparse rows as codes of one k, the most nonzeros of a row.

    Shorter rows are filled with zeros in latents of their own, beyond the columns, so that the lists that
    queries read stay as long as they were. They count where the bytes of our engine are given.

    Raises:
        click.ClickException: too many columns, or a row that is not a code.
    """
    counts = np.diff(rows.indptr)
    k, n_columns = int(counts.max(initial=0)), rows.shape[1]
    n_latents = check_int(n_columns + k, "columns and nonzeros of the fullest row, together,", 1, MAX_LATENTS)
    latents = np.tile(np.arange(n_columns, n_latents, dtype=np.uint16), (len(counts), 1))
    values = np.zeros(latents.shape, np.float32)
    held = np.arange(k) < counts[:, None]
    latents[held], values[held] = rows.indices, rows.data
    order = np.argsort(latents, axis=1)
    return SparseCodes(
        np.take_along_axis(latents, order, axis=1), np.take_along_axis(values, order, axis=1), n_latents
    )


def generated_codes(codes: SparseCodes, n: int, seed: int) -> Iterator[SparseCodes]:
    """Codes as real ones, chunk by chunk, so that n is not bound by memory.

    Each takes half to all of its pairs from one real code and the rest from another, both drawn at random: a
    latent is as frequent as in the real codes, with values of the same size, and most pairs of latents that
    occur together do so in a real code. No two are equal, as they would be if real ones were repeated. Their
    reconstructions have norms about those of the real ones; `CompresSAE.fold` makes them 1.

    Args:
        codes: real codes, k nonzeros each.
        n: codes to make.
        seed: of all that is random.

    Yields:
        Codes of the same k and n_latents, at most CHUNK at a time.
    """
    rng = np.random.default_rng(seed)
    for begin in range(0, n, CHUNK):
        yield _mixed(codes, min(CHUNK, n - begin), rng)


def _mixed(codes: SparseCodes, n: int, rng: np.random.Generator) -> SparseCodes:
    drawn = rng.integers(len(codes), size=(n, 2))
    latents = codes.latents[drawn].reshape(n, -1)
    order = np.argsort(latents, axis=1, kind="stable")
    latents = np.take_along_axis(latents, order, axis=1)
    # Those of the k pairs with the lowest keys are kept: a share of the first code's, then the second's that
    # the first does not have, then what is left.
    keys = rng.random(latents.shape, dtype=np.float32)
    second = order >= codes.k
    keys += second
    keys += 2 * (~second & (keys >= rng.uniform(LEAST_SHARE, 1, (n, 1))))
    keys[:, 1:] += 4 * (latents[:, 1:] == latents[:, :-1])
    kept = np.zeros(latents.shape, dtype=bool)
    np.put_along_axis(kept, np.argpartition(keys, codes.k - 1, axis=1)[:, : codes.k], True, axis=1)
    values = np.take_along_axis(codes.values[drawn].reshape(n, -1), order, axis=1)[kept].reshape(n, -1)
    values *= 1 + VALUE_NOISE * rng.standard_normal(values.shape, dtype=np.float32)
    return SparseCodes(latents[kept].reshape(n, -1), values, codes.n_latents)
