"""Clusters: an order that puts similar vectors together, and searches that skip most of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from oracles import bitmap, overlap, stored_in_lists

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError
from compressae_index._engine import Clusters, search
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.sizes import CLUSTER, WINDOW
from compressae_index.measuring.evaluation import sweep
from compressae_index.search.queries import MODES, Mode
from compressae_index.testing import assert_best, strongest_entries

ROWS = 2 * WINDOW + 5000
PROBING: tuple[Mode, ...] = ("sparse", "two_stage")


@pytest.fixture(scope="module")
def near(vectors: FloatArray) -> FloatArray:
    """Noisy copies of real embeddings, (ROWS, d), in no order."""
    rng = np.random.default_rng(0)
    length = np.linalg.norm(vectors, axis=1).mean() / np.sqrt(vectors.shape[1])
    noise = 0.3 * length * rng.standard_normal((ROWS, vectors.shape[1]), dtype=np.float32)
    near: FloatArray = vectors[rng.integers(len(vectors), size=ROWS)] + noise
    return near


@pytest.fixture(scope="module")
def plain(model: CompresSAE, near: FloatArray) -> CompressedIndex:
    """Without clusters. Not to be changed."""
    return CompressedIndex.build(near, model=model, k=16, progress=False)


@pytest.fixture(scope="module")
def clustered(plain: CompressedIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same index, with clusters."""
    path = tmp_path_factory.mktemp("clustered") / "items.index"
    plain.save(path)
    index = CompressedIndex.load(path)
    index.cluster(num_threads=2)
    index.save(path)
    return path


def parts_of(index: CompressedIndex) -> tuple[EmbeddedBackend, Clusters]:
    backend = index.documents.backend
    assert backend.clusters is not None
    return backend, backend.clusters


def means_of(clusters: Clusters) -> npt.NDArray[np.float64]:
    """Mean codes as they are stored, (n_clusters, n_latents)."""
    arrays = clusters.arrays()
    means: npt.NDArray[np.float64] = arrays["means"] * arrays["scales"].astype(np.float64)[:, None]
    return means[:, : len(clusters)].T


def test_vectors_keep_their_ids_and_codes(plain: CompressedIndex, clustered: Path) -> None:
    index = CompressedIndex.load(clustered)
    assert index.stats().clusters == 2 * WINDOW // CLUSTER
    assert sorted(index.ids) == list(range(ROWS))
    assert index.ids.tolist() != list(range(ROWS))
    some = np.arange(0, ROWS, 7)
    for name in ("latents", "values"):
        np.testing.assert_array_equal(getattr(index.codes(some), name), getattr(plain.codes(some), name))


@pytest.mark.parametrize("mode", MODES)
def test_without_nprobe_search_is_as_exact_as_before(
    plain: CompressedIndex, clustered: Path, queries: FloatArray, mode: Mode
) -> None:
    index = CompressedIndex.load(clustered)
    before, after = (which.search(queries, 20, mode=mode, candidates=2000) for which in (plain, index))
    np.testing.assert_allclose(after.scores, before.scores, atol=2e-3 if mode == "sparse" else 1e-6)
    assert overlap(after.ids, before.ids) > 0.99


def test_means_are_those_of_the_posting_lists(clustered: Path) -> None:
    backend, clusters = parts_of(CompressedIndex.load(clustered))
    stored = stored_in_lists(backend._parts[0].inverted, backend.n_latents)[: backend.n_clustered]
    exact = stored.reshape(len(clusters), CLUSTER, -1).mean(axis=1)
    step = np.abs(exact).max(axis=0) / 127
    assert (np.abs(means_of(clusters) - exact) <= 0.51 * step + 1e-9).all()
    # Documents of a cluster are similar: their means are longer than those of random ones.
    everything = np.linalg.norm(stored.mean(axis=0))
    assert np.linalg.norm(exact, axis=1).mean() > 2 * everything


@pytest.mark.parametrize("nprobe", [1, 3, 7])
@pytest.mark.parametrize("share", [None, 0.5])
def test_probed_search_is_exact_within_the_best_clusters(
    clustered: Path, queries: FloatArray, nprobe: int, share: float | None
) -> None:
    index = CompressedIndex.load(clustered)
    backend, clusters = parts_of(index)
    u = index.model.project(queries)
    cut = strongest_entries(u, 32)
    worth = cut @ means_of(clusters).T
    best = np.argsort(-worth, axis=1)[:, :nprobe]
    inside = np.zeros((len(u), ROWS), dtype=bool)
    inside[:, backend.n_clustered :] = True
    for row, chosen in zip(inside, best, strict=True):
        for c in chosen:
            row[c * CLUSTER : (c + 1) * CLUSTER] = True
    allowed = None if share is None else np.random.default_rng(1).random(ROWS) < share
    marks = None if allowed is None else bitmap(allowed)
    if allowed is not None:
        inside &= allowed
    codes = backend.codes(np.arange(ROWS)).to_csr().astype(np.float64)
    exact = np.where(inside, (codes @ cut.T).T, -np.inf)
    by_threads = [backend.sparse(u, 32, 20, marks, num_threads, nprobe) for num_threads in (1, 2)]
    assert_best(by_threads[0], exact, 20, tolerance=2e-3)
    np.testing.assert_array_equal(by_threads[0][1], by_threads[1][1])
    alone = backend.sparse(u[:1], 32, 20, marks, 2, nprobe)
    np.testing.assert_array_equal(alone[1], by_threads[0][1][:1])


@pytest.mark.parametrize("mode", PROBING)
def test_few_clusters_hold_most_of_the_neighbours(clustered: Path, queries: FloatArray, mode: Mode) -> None:
    index = CompressedIndex.load(clustered)
    options: dict[str, Any] = {"mode": mode, "candidates": 200}
    exact = index.search(queries, 10, **options)
    recalls = [overlap(index.search(queries, 10, nprobe=n, **options).ids, exact.ids) for n in (1, 4, 15, 16)]
    assert recalls == sorted(recalls)
    assert recalls[1] > 0.75
    assert recalls[-1] == 1
    all_of_them = index.search(queries, 10, nprobe=10**6, **options)
    np.testing.assert_array_equal(all_of_them.ids, exact.ids)


def test_more_neighbours_than_the_clusters_hold_are_found_elsewhere(
    clustered: Path, queries: FloatArray
) -> None:
    index = CompressedIndex.load(clustered)
    wanted = 2 * CLUSTER + ROWS - 2 * WINDOW
    found = index.search(queries[:2], wanted, mode="sparse", nprobe=1)
    assert (found.ids >= 0).all()
    allowed = np.random.default_rng(0).choice(ROWS, 600, replace=False)
    found = index.search(queries[:2], 600, mode="sparse", nprobe=1, filter=allowed)
    assert (np.sort(found.ids, axis=1) == np.sort(allowed)).all()


def test_what_is_added_later_is_always_found(clustered: Path, queries: FloatArray) -> None:
    index = CompressedIndex.load(clustered, mmap=True)
    index.add(queries, np.arange(ROWS, ROWS + len(queries)))
    assert index.stats().clusters == 2 * WINDOW // CLUSTER
    for mode in PROBING:
        found = index.search(queries, 1, mode=mode, nprobe=1)
        assert overlap(found.ids, np.arange(ROWS, ROWS + len(queries))[:, None]) == 1
    # A fifth of the first vectors goes; clusters are made of the rest, and what was added stays outside.
    index.remove(np.arange(0, ROWS, 5))
    index.compact()
    assert index.stats().clusters == WINDOW // CLUSTER
    found = index.search(queries, 10, mode="sparse", nprobe=1)
    assert overlap(found.ids[:, :1], np.arange(ROWS, ROWS + len(queries))[:, None]) == 1
    assert (found.ids % 5 != 0)[found.ids < ROWS].all()
    exact, probed = (index.search(queries, 10, mode="sparse", nprobe=n) for n in (None, 8))
    np.testing.assert_array_equal(exact.ids, probed.ids)


def test_removed_vectors_are_dropped(clustered: Path, queries: FloatArray) -> None:
    index = CompressedIndex.load(clustered)
    index.remove(index.search(queries, 5).ids[0])
    index.cluster()
    assert len(index) == index.stats().vectors == ROWS - 5
    assert index.stats().removed == 0


def test_string_ids_and_few_vectors(index: CompressedIndex, vectors: FloatArray, queries: FloatArray) -> None:
    """Too few for a cluster: a warning says so, and no search changes."""
    names = CompressedIndex.build(
        vectors[:300], [f"item {i}" for i in range(300)], model=index.model, k=16, progress=False
    )
    for one in (index, names):
        before = one.search(queries, 5)
        order = one.ids
        with pytest.warns(UserWarning, match="at least 32,768 vectors, and the index holds 300: none were"):
            one.cluster()
        assert one.stats().clusters == 0
        np.testing.assert_array_equal(one.ids, order)
        after = one.search(queries, 5)
        np.testing.assert_array_equal(after.ids, before.ids)
        with pytest.raises(InputError, match=r"no clusters: search without nprobe .* it holds 300"):
            one.search(queries, 5, nprobe=1)


def test_an_empty_index_stays_empty(model: CompresSAE, queries: FloatArray) -> None:
    empty = CompressedIndex(model)
    with pytest.warns(UserWarning, match="the index holds 0: none were made"):
        empty.cluster()
    assert len(empty) == 0
    assert (empty.search(queries, 3).ids == -1).all()
    with pytest.raises(InputError, match="it holds 0"):
        empty.search(queries, 3, nprobe=1)


def test_bad_nprobe_is_refused(plain: CompressedIndex, clustered: Path, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="nprobe is 4, but this index has no clusters: call `cluster` first"):
        plain.search(queries, 5, nprobe=4)
    index = CompressedIndex.load(clustered, mmap=True)
    with pytest.raises(InputError, match="nprobe must be at least 1, got 0"):
        index.search(queries, nprobe=0)
    with pytest.raises(InputError, match="nprobe must be an integer, got 'many'"):
        index.search(queries, nprobe="many")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nprobe has no use in mode 'dense'"):
        index.search(queries, mode="dense", nprobe=1)


def test_damaged_clusters_are_refused_or_harmless(clustered: Path, queries: FloatArray) -> None:
    index = CompressedIndex.load(clustered)
    backend, clusters = parts_of(index)
    u = index.model.project(queries[:3])
    arrays = {name: array.copy() for name, array in clusters.arrays().items()}
    rng = np.random.default_rng(0)
    arrays["begins"][:] = rng.integers(0, 2**16, arrays["begins"].shape)
    parts = [(part.inverted, part.forward) for part in backend._parts]
    for scale in (1.0, 3e38, np.nan):
        arrays["scales"][::2] = scale
        _, rows = search(parts, u, None, 32, 100, 50, None, 1, Clusters(arrays), 3)
        assert (rows < ROWS).all()
    for name in arrays:
        with pytest.raises(ValueError, match="is missing"):
            Clusters({key: array for key, array in arrays.items() if key != name})
        with pytest.raises(ValueError, match="expected"):
            Clusters(arrays | {name: arrays[name][:-1]})
    head = backend.subset(np.arange(WINDOW), 1)._parts
    with pytest.raises(ValueError, match="clusters are of more documents than there are"):
        search([(part.inverted, part.forward) for part in head], u, None, 32, 100, 50, None, 1, clusters, 3)
    with pytest.raises(ValueError, match="nprobe is 0"):
        search(parts, u, None, 32, 100, 50, None, 1, clusters, 0)
    with pytest.raises(ValueError, match="3 windows of 70536 documents are not whole"):
        Clusters.build(backend._parts[0].inverted, 3, 1)


def test_clusters_of_another_index_are_refused_by_load(clustered: Path) -> None:
    backend, clusters = parts_of(CompressedIndex.load(clustered))
    arrays = backend.to_arrays()
    n, manifest = len(backend), backend.codec.manifest()

    def loaded(clusters: Clusters) -> EmbeddedBackend:
        foreign = {f"clusters_{name}": array for name, array in clusters.arrays().items()}
        return EmbeddedBackend.from_arrays(
            arrays | foreign, n, backend.n_latents, backend.k, manifest, backend.postings
        )

    assert loaded(clusters).n_clustered == 2 * WINDOW
    few = {name: array[:-1] for name, array in clusters.arrays().items()}
    with pytest.raises(
        DimensionError, match="clusters are of 65536 documents and 511 latents, the index has"
    ):
        loaded(Clusters(few))
    begins = clusters.arrays()["begins"]
    many = {"begins": np.repeat(begins, 2, axis=1), "means": clusters.arrays()["means"]}
    with pytest.raises(DimensionError, match="clusters are of 131072 documents and 512 latents"):
        loaded(Clusters(clusters.arrays() | many))


def test_on_the_command_line(plain: CompressedIndex, queries: FloatArray, tmp_path: Path) -> None:
    path, asked = tmp_path / "items.index", tmp_path / "queries.npy"
    plain.save(path)
    np.save(asked, queries)

    def run(*arguments: object) -> Any:
        done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert run("cluster", path, "-o", tmp_path / "other", "--threads", 2)["clusters"] == 16
    assert run("info", path)["clusters"] == 0
    assert run("cluster", path)["clusters"] == 16
    found = run("search", path, asked, "--nprobe", 2)
    assert found["ids"] == CompressedIndex.load(path).search(queries, nprobe=2).ids.tolist()
    assert found["ids"] != CompressedIndex.load(path).search(queries).ids.tolist()


def test_a_sweep_varies_nprobe(clustered: Path, queries: FloatArray) -> None:
    index = CompressedIndex.load(clustered, mmap=True)
    truth = index.search(queries[:10], 10, mode="dense").ids
    swept = [each for each in sweep(index, queries[:10], truth, ks=[10]) if each.option == "nprobe"]
    assert [each.mode for each in swept] == ["two_stage"]
    recalls = {nprobe: one.recall[10] for nprobe, one in swept[0].measurements.items()}
    expected = {n: overlap(index.search(queries[:10], 10, nprobe=n).ids, truth) for n in (8, 16)}
    assert recalls == pytest.approx(expected)
