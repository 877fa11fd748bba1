"""The figure of the paper, redrawn: recall@100 against compression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import faiss
import numpy as np
from dense_contestants import Bench, better_of_decoded, factory, recipe, truncated
from stores import IntArray

from compressae_index import CompresSAE, CompressedIndex, SparseCodes, train
from compressae_index.coding.model import Encoder
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall
from compressae_index.training.config import TrainConfig

AT = 100
KS = (8, 16, 32, 64, 128, 256)
# A latent and a value of 4 bytes each.
PAPER_BYTES = 8
QUERY_BLOCK = 100

# Recall@100 of the paper's own data (768 dimensions, 4,096 latents; not released), read off the marks of the
# authors' poster (recombee/CompresSAE, assets/poster.pdf), about 0.002 off. Compression factor, recall@100.
PUBLISHED = {
    "paper: sparse": {1.5: 0.844, 3: 0.793, 6: 0.713, 12: 0.654, 24: 0.600, 48: 0.566},
    "paper: reconstructed": {1.5: 0.927, 3: 0.854, 6: 0.776, 12: 0.710, 24: 0.656, 48: 0.588},
    "paper: Matryoshka, float32": {1.5: 0.875, 3: 0.787, 6: 0.680, 12: 0.579},
}


class Point(NamedTuple):
    """A point of a curve."""

    curve: str
    k: int
    """Nonzeros, or half the components of a truncated vector, which take as many of the paper's bytes."""
    paper_bytes: float
    """By the paper's accounting: 8 a nonzero."""
    bytes: float
    """As our engine stores it; the same where it does not."""
    recall: float


def nearest_codes(codes: SparseCodes, asked: SparseCodes) -> IntArray:
    """Rows of the codes of the largest cosine with each asked one, best first: (n_asked, AT)."""

    def unit(of: SparseCodes) -> Any:
        norms = np.linalg.norm(of.values, axis=1, keepdims=True)
        return SparseCodes(of.latents, of.values / np.maximum(norms, 1e-12), of.n_latents).to_csr()

    rows, columns = unit(asked), unit(codes).T.tocsr()
    found = []
    for first in range(0, len(asked), QUERY_BLOCK):
        scores = (rows[first : first + QUERY_BLOCK] @ columns).toarray()
        best = np.argpartition(-scores, AT - 1, axis=1)[:, :AT]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def of_recipe(bench: Bench, k: int) -> Iterator[Point]:
    """The paper's recipe for one k, compared as it does: codes, or reconstructions, with each other."""
    model = recipe(bench, k)
    encode = partial(model.encode, encoder="topk", num_threads=bench.threads)
    codes, asked = encode(bench.vectors), encode(bench.queries)
    size = PAPER_BYTES * k
    found = nearest_codes(codes, asked)
    yield Point("recipe: sparse", k, size, size, recall(found, bench.truth, AT))
    found = exact_neighbours(model.decode(codes), model.decode(asked), AT)
    yield Point("recipe: reconstructed", k, size, size, recall(found, bench.truth, AT))


def of_ours(bench: Bench, model: CompresSAE, encoder: Encoder, k: int) -> Iterator[Point]:
    """Our dictionary and scoring, for codes of one encoder."""
    index = CompressedIndex.build(
        bench.vectors, k=k, model=model, encoder=encoder, num_threads=bench.threads, progress=False
    )
    by_mode = index.stats().bytes_by_mode
    for mode in ("dense", "two_stage", "sparse"):
        found = index.search(bench.queries, AT, mode=mode, num_threads=bench.threads).ids
        share = recall(found, bench.truth, AT)
        yield Point(f"ours: {mode}, {encoder}", k, PAPER_BYTES * k, by_mode[mode], share)


def of_truncation(bench: Bench, k: int) -> Iterator[Point]:
    """Components in float32, as many as take the bytes of k nonzeros in the paper."""
    dims = PAPER_BYTES * k // 4
    if dims > bench.dim:
        return
    indexes = {
        "first": truncated(dims, None, bench.metric, bench.dim),
        "principal": factory(f"PCA{dims},Flat", bench.dim),
    }
    for name, index in indexes.items():
        index.train(bench.training)
        _, found = better_of_decoded(index.sa_decode(index.sa_encode(bench.vectors)), bench)
        yield Point(f"{name} components, float32", k, 4.0 * dims, 4.0 * dims, recall(found, bench.truth, AT))


def run(bench: Bench, ks: tuple[int, ...], say: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """The points of all curves, one by one."""
    faiss.omp_set_num_threads(bench.threads)
    model = train(bench.vectors, TrainConfig.preset(bench.preset)).model
    for k in ks:
        for of in (
            of_truncation(bench, k),
            of_ours(bench, model, "topk", k),
            of_ours(bench, model, "pursuit", k),
            of_recipe(bench, k),
        ):
            for point in of:
                say(f"  {point.curve}, k={k}: {point.bytes:.0f} bytes, recall@{AT} {point.recall:.4f}")
                yield point._asdict()
