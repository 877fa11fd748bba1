"""The engine against float64 brute force over the values it stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import MODEL_OF_TEST
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bitmap, damped_sums, damping_of, stored_in_lists

from compressae_index import CompressedIndex, SparseCodes
from compressae_index._engine import (
    AlignedCodes,
    Dictionary,
    InvertedLists,
    Projection,
    RoughProjection,
    search,
    simd,
    top_k_codes,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Aligned, Codec, Packed
from compressae_index.embedded.sizes import WINDOW, dictionary_bytes
from compressae_index.testing import Float64, Mask, assert_best, strongest_entries


def random_codes(n: int, n_latents: int, k: int, seed: int) -> SparseCodes:
    rng = np.random.default_rng(seed)
    latents = np.argsort(rng.random((n, n_latents)), axis=1)[:, :k]
    values = rng.standard_normal((n, k)).astype(np.float32)
    return SparseCodes(np.sort(latents, axis=1).astype(np.uint16), values, n_latents)


def steps(u: FloatArray, query_nnz: int, lists: InvertedLists, *, damped: bool = False) -> Float64:
    """16-bit steps of a score of each query, (n_queries, 1), as scan.hpp derives them."""
    cut, norm = strongest_entries(u, query_nnz), lists.arrays()["largest_norm"][0]
    damping = damped * damping_of(u, query_nnz)[:, 0]
    bound = np.linalg.norm(cut, axis=1) * norm + damping * norm**2
    largest = 32000 - (1 + (damping > 0)) * (cut != 0).sum(axis=1)
    result: Float64 = np.divide(largest, bound, out=np.ones(len(u)), where=bound > 0)[:, None]
    return result


def assert_best_rows(
    hits: tuple[FloatArray, npt.NDArray[np.int64]],
    exact: Float64,
    top: int,
    allowed: Mask | None = None,
    off: float = 0.0,
) -> None:
    """`assert_best` for rows, with scores that are off by at most `off` and float32 rounding."""
    exact = exact if allowed is None else np.where(allowed, exact, -np.inf)
    rounding = 1e-5 * max(1.0, float(np.abs(exact[np.isfinite(exact)]).max(initial=0)))
    assert_best(hits, exact, top, tolerance=off + rounding)


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(1, 400),
    n_latents=st.integers(1, 90) | st.integers(500, 5000),
    k=st.integers(1, 90),
    query_nnz=st.integers(1, 100),
    top=st.integers(1, 500),
    share=st.sampled_from([None, 0.0, 0.02, 0.6]),
    codec=st.sampled_from([Aligned(), *map(Packed, range(4, 9))]),
    short=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_search_equals_brute_force(
    n: int,
    n_latents: int,
    k: int,
    query_nnz: int,
    top: int,
    share: float | None,
    codec: Codec,
    short: bool,
    seed: int,
) -> None:
    codes = random_codes(n, n_latents, min(k, n_latents), seed)
    if short:
        codes.values[np.random.default_rng(seed).random(codes.values.shape) < 0.1] = 0
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((3, n_latents)).astype(np.float32)
    allowed = None if share is None else rng.random(n) < share
    marks = None if allowed is None else bitmap(allowed)

    lists = InvertedLists.build(codes.latents, codes.values, n_latents, 1)
    exact = strongest_entries(u, query_nnz) @ stored_in_lists(lists, n_latents).T
    # A product is rounded by half a step, and its weight by half of 1 / 128 of one.
    off = float((min(codes.k, query_nnz) / steps(u, query_nnz, lists)).max())
    assert_best_rows(lists.search(u, query_nnz, top, marks, 1), exact, top, allowed, off)
    exact = damped_sums(u, query_nnz, stored_in_lists(lists, n_latents))
    off = float((2 * min(codes.k, query_nnz) / steps(u, query_nnz, lists, damped=True)).max())
    found = lists.search(u, query_nnz, top, marks, 1, damped=True)
    assert_best_rows(found, exact, top, allowed, off)

    codec = codec.fitted(codes)
    arrays = codec.pack(codes)
    forward = codec.engine(arrays, n_latents, codes.k)
    stored = codec.unpack(arrays, n_latents, codes.k)
    exact = u.astype(np.float64) @ stored.to_dense().astype(np.float64).T
    assert_best_rows(forward.search(u, top, marks, 1), exact, top, allowed)
    # With every document a candidate, two stages are one.
    hits = search([(lists, forward)], u, u, query_nnz, max(n, top), top, marks, 1)
    assert_best_rows(hits, exact, top, allowed)
    hits = search([(lists, forward)], u, None, query_nnz, max(n, top), top, marks, 1)
    exact_by_terms = strongest_entries(u, query_nnz) @ stored.to_dense().astype(np.float64).T
    assert_best_rows(hits, exact_by_terms, top, allowed)

    candidates = np.stack([rng.permutation(n) for _ in u])
    candidates[rng.random(candidates.shape) < 0.3] = -1
    chosen = np.full(exact.shape, -np.inf)
    for q, row in enumerate(candidates):
        chosen[q, row[row >= 0]] = exact[q, row[row >= 0]]
    assert_best_rows(forward.rescore(u, candidates, top, 1), chosen, top)


def test_real_codes_over_several_windows(built: CompressedIndex, queries: FloatArray) -> None:
    real = built.codes(built.ids)
    tiled = SparseCodes.concatenate([real] * (2 * WINDOW // len(real) + 2))
    assert len(tiled) > 2 * WINDOW
    lists = InvertedLists.build(tiled.latents, tiled.values, tiled.n_latents, 2)
    u = built.model.project(queries[:5])
    exact = strongest_entries(u, 32) @ stored_in_lists(lists, tiled.n_latents).T
    off = float((16 / steps(u, 32, lists)).max())
    assert off < 2e-3
    scores, rows = lists.search(u, 32, 100, None, 1)
    assert_best_rows((scores, rows), exact, 100, None, off)
    forward = AlignedCodes(Aligned().pack(tiled), tiled.n_latents)
    forward_scores, forward_rows = forward.search(u, 100, None, 1)
    # The copies of a document tie.
    copies = forward_rows % len(real)
    for q in range(len(u)):
        for i in range(99):
            if copies[q, i] == copies[q, i + 1]:
                assert forward_scores[q, i] == forward_scores[q, i + 1]
                assert forward_rows[q, i + 1] == forward_rows[q, i] + len(real)
    # One query alone is shared out by its windows.
    for num_threads in (2, 3, 7):
        shared = forward.search(u[:1], 100, None, num_threads)
        np.testing.assert_array_equal(shared[0], forward_scores[:1])
        np.testing.assert_array_equal(shared[1], forward_rows[:1])


@pytest.mark.parametrize("order", ["best first", "best last", "as they come"])
@pytest.mark.parametrize("damped", [False, True])
def test_threads_share_the_windows_of_one_query(order: str, *, damped: bool) -> None:
    """Of 17 windows, two threads take some each, and each has its own first window."""
    rng, n = np.random.default_rng(6), 16 * WINDOW + 900
    latents = np.sort(rng.integers(0, 20, (n, 2)), axis=1).astype(np.uint16) * 2
    latents[:, 1] += 1
    values = rng.standard_normal((n, 2)).astype(np.float32)
    u = rng.standard_normal((1, 40)).astype(np.float32)
    if order != "as they come":
        by_score = np.argsort((u[0, latents] * values).sum(axis=1) * (1 if order == "best last" else -1))
        latents, values = latents[by_score], values[by_score]
    lists = InvertedLists.build(latents, values, 40, 2)
    for top in (10, 3000):
        scores, rows = lists.search(u, 25, top, None, 1, damped=damped)
        for num_threads in (2, 5):
            shared = lists.search(u, 25, top, None, num_threads, damped=damped)
            np.testing.assert_array_equal(shared[1], rows)
            np.testing.assert_array_equal(shared[0], scores)


@pytest.mark.parametrize("order", ["best first", "best last", "hardly any above zero", "as they come"])
@pytest.mark.parametrize("top", [100, 3000])
def test_candidates_do_not_depend_on_the_order_of_documents(order: str, top: int) -> None:
    """The first window says what to expect of the others, and may be wrong."""
    codes = random_codes(3 * WINDOW + 10, 64, 4, 9)
    u = np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    exact = (u.astype(np.float64) @ codes.to_dense().T)[0]
    if order == "hardly any above zero":
        codes.values[exact > np.sort(exact[exact > 0])[50]] *= -1
    elif order != "as they come":
        codes = codes[np.argsort(-exact if order == "best first" else exact)]
    lists = InvertedLists.build(codes.latents, codes.values, codes.n_latents, 2)
    exact = strongest_entries(u, 64) @ stored_in_lists(lists, codes.n_latents).T
    hits = lists.search(u, 64, top, None, 1)
    assert_best_rows(hits, exact, top, None, float((16 / steps(u, 64, lists)).max()))


@pytest.mark.parametrize("damped", [False, True])
def test_candidates_of_two_stages_are_those_of_the_lists(
    built: CompressedIndex, queries: FloatArray, *, damped: bool
) -> None:
    real = built.codes(built.ids)
    lists = InvertedLists.build(real.latents, real.values, real.n_latents, 2)
    forward = AlignedCodes(Aligned().pack(real), real.n_latents)
    u = built.model.project(queries)
    _, chosen = lists.search(u, 20, 150, None, 1, damped=damped)
    expected = forward.rescore(u, chosen, 40, 1)
    for num_threads in (1, 2):
        hits = search([(lists, forward)], u, u, 20, 150, 40, None, num_threads, damped=damped)
        np.testing.assert_array_equal(hits[1], expected[1])
        np.testing.assert_array_equal(hits[0], expected[0])


def test_threads_do_not_change_results(built: CompressedIndex, queries: FloatArray) -> None:
    for mode in ("sparse", "dense", "two_stage"):
        one = built.search(queries, 20, mode=mode, num_threads=1)
        for num_threads in (2, 5):
            many = built.search(queries, 20, mode=mode, num_threads=num_threads)
            np.testing.assert_array_equal(one.ids, many.ids)
            np.testing.assert_array_equal(one.scores, many.scores)


def test_ties_go_to_the_lower_row() -> None:
    codes = SparseCodes(np.zeros((5000, 1), dtype=np.uint16), np.ones((5000, 1), dtype=np.float32), 3)
    u = np.array([[1.0, 0.0, 0.0]], dtype=np.float32)
    expected = np.arange(1500)[None]
    lists = InvertedLists.build(codes.latents, codes.values, 3, 1)
    np.testing.assert_array_equal(lists.search(u, 1, 1500, None, 1)[1], expected)
    backwards = np.arange(5000)[None, ::-1].copy()
    for codec in (Aligned(), Packed().fitted(codes)):
        forward = codec.engine(codec.pack(codes), 3, 1)
        np.testing.assert_array_equal(forward.search(u, 1500, None, 1)[1], expected)
        np.testing.assert_array_equal(forward.rescore(u, backwards, 1500, 1)[1], expected)


def test_documents_without_a_shared_latent_score_zero() -> None:
    codes = SparseCodes.from_dense(np.diag([1.0, -1.0, 1.0]))
    lists = InvertedLists.build(codes.latents, codes.values, 3, 1)
    scores, rows = lists.search(np.array([[1.0, 1.0, 0.0]], dtype=np.float32), 3, 3, None, 1)
    assert rows.tolist() == [[0, 2, 1]]
    np.testing.assert_allclose(scores, [[1.0, 0.0, -1.0]], atol=0.5 / 127)


def test_lists_hold_only_what_is_kept() -> None:
    codes = random_codes(WINDOW + 50, 60, 5, 4)
    kept = np.random.default_rng(2).random(codes.values.shape) < 0.4
    kept[7] = False
    lists = InvertedLists.build(codes.latents, codes.values, codes.n_latents, 2, kept)
    expected = np.zeros((len(codes), 60))
    np.put_along_axis(expected, codes.latents.astype(np.int64), np.where(kept, codes.values, 0), axis=1)
    stored = stored_in_lists(lists, 60)
    np.testing.assert_allclose(stored, expected, atol=np.abs(codes.values).max() / 127)
    lengths = np.bincount(codes.latents[kept], minlength=60)
    np.testing.assert_array_equal(lists.list_lengths(), lengths)
    # The bound of sums is of what is kept.
    norm = np.linalg.norm(stored, axis=1).max()
    assert lists.arrays()["largest_norm"][0] == pytest.approx(norm, rel=1e-5)
    lists.validate(0, 5, 1)
    with pytest.raises(ValueError, match="number of postings"):
        lists.validate(2, 5, 1)
    with pytest.raises(ValueError, match="number of postings"):
        lists.validate(0, 1, 1)
    nothing = InvertedLists.build(codes.latents, codes.values, 60, 2, np.zeros_like(kept))
    assert nothing.list_lengths().sum() == 0
    u = np.ones((1, 60), np.float32)
    assert nothing.search(u, 5, 3, None, 1)[1].tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="columns of kept is 4, expected 5"):
        InvertedLists.build(codes.latents, codes.values, 60, 1, kept[:, :4].copy())


@pytest.mark.parametrize("n", [20_000, WINDOW + 999])
@pytest.mark.parametrize("top", [20, 1500])
def test_documents_in_no_list_fill_up_by_row(n: int, top: int) -> None:
    """A query of few latents finds few documents; all others score 0, and are far more than are wanted."""
    codes = random_codes(n, 80, 1, 5)
    u = np.random.default_rng(6).standard_normal((2, 80)).astype(np.float32)
    lists = InvertedLists.build(codes.latents, codes.values, codes.n_latents, 2)
    exact = strongest_entries(u, 2) @ stored_in_lists(lists, codes.n_latents).T
    off = float((2 / steps(u, 2, lists)).max())
    allowed = np.random.default_rng(7).random(n) < 0.7
    for mask in (None, allowed):
        scores, rows = lists.search(u, 2, top, None if mask is None else bitmap(mask), 1)
        assert_best_rows((scores, rows), exact, top, mask, off)
        for q in range(len(u)):
            zeros = np.flatnonzero((exact[q] == 0) & (True if mask is None else mask))
            found = rows[q][scores[q] == 0]
            np.testing.assert_array_equal(found, zeros[: len(found)])


@pytest.mark.parametrize("path", ["amx", "avx512vbmi", "avx512", "avx2", "neon", "plain"])
def test_every_instruction_set(path: str, refined: CompressedIndex, tmp_path: Path) -> None:
    """Runs the searches and pursuit again in a process that is forced to one instruction set.

    It loads what this process saved: models and indexes are the same on every processor.
    """
    refined.model.save(tmp_path / "model")
    refined.save(tmp_path / "index")
    environment = {**os.environ, "COMPRESSAE_SIMD": path, MODEL_OF_TEST: str(tmp_path / "model")}
    command = [sys.executable, "-P", "-c", PROBE, str(tmp_path / "index")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "this processor supports" in done.stderr:
        pytest.skip(f"this processor has no {path}")
    found = refined.search(refined.reconstruct(refined.ids[:20]), 1).ids.ravel()
    assert done.stdout.split() == [path, *map(str, found)], done.stderr
    if path == simd():
        return  # the tests run by it in this process
    tests = [f"{Path(__file__).parent / file}::{name}" for file, name in ENGINE_TESTS]
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others than this one are slow to load
    command = [sys.executable, "-P", "-m", "pytest", "-q", *tests]
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *plugins], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


PROBE = """
import sys
from compressae_index import CompressedIndex
from compressae_index._engine import simd
print(simd())
index = CompressedIndex.load(sys.argv[1])
print(*index.search(index.reconstruct(index.ids[:20]), 1).ids.ravel())
"""

ENGINE_TESTS = (
    ("test_model.py", "test_pursuit_recovers_planted_codes"),
    ("test_model.py", "test_pursuit_follows_the_textbook_on_real_data"),
    ("test_model.py", "test_pursuit_values_solve_least_squares"),
    ("test_engine.py", "test_every_search_equals_brute_force"),
    ("test_engine.py", "test_ties_go_to_the_lower_row"),
    ("test_engine.py", "test_projections_equal_products"),
    ("test_engine.py", "test_rough_projections_on_many_atoms_read_half_of_their_bytes"),
    ("test_engine.py", "test_top_k_codes"),
    ("test_packing.py", "test_scores_of_every_shape"),
    ("test_packing.py", "test_rows_end_within_a_file"),
    ("test_packing.py", "test_zeros_stay_zeros"),
    ("test_packing.py", "test_damaged_rows_never_leave_the_buffers"),
    ("test_packing.py", "test_a_row_without_k_latents_scores_zero"),
    ("test_residuals.py", "test_each_entry_gets_the_nearest_level"),
)


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "import compressae_index._engine as e\ntry: e.simd()\nexcept ValueError as error: print(error)"
    environment = {**os.environ, "COMPRESSAE_SIMD": "abacus"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "COMPRESSAE_SIMD is 'abacus', but this processor supports:" in done.stdout
    assert simd() in done.stdout


@settings(deadline=None)
@given(n_latents=st.integers(1, 60), k=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_top_k_codes(n_latents: int, k: int, seed: int) -> None:
    k = min(k, n_latents)
    # Few distinct magnitudes, so that some tie.
    x = np.random.default_rng(seed).integers(-4, 5, (5, n_latents)).astype(np.float32)
    latents, values = top_k_codes(x, k, 1)
    expected = np.sort(np.argsort(-np.abs(x), axis=1, kind="stable")[:, :k], axis=1)
    np.testing.assert_array_equal(latents, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=1))


def lists_of(codes: SparseCodes) -> dict[str, Any]:
    lists = InvertedLists.build(codes.latents, codes.values, codes.n_latents, 1)
    return {name: array.copy() for name, array in lists.arrays().items()}


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    n_latents=st.integers(1, 200),
    dim=st.integers(1, 50) | st.just(400),
    kind=st.sampled_from(["any", "bytes", "spikes"]),
    seed=st.integers(0, 2**31),
)
def test_projections_equal_products(n: int, n_latents: int, dim: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms, vectors = (rng.standard_normal((rows, dim)).astype(np.float32) for rows in (n_latents, n))
    if kind == "bytes":
        whole = rng.integers(-127, 128, (n_latents, dim))
        whole[:, rng.integers(dim)] = 127
        atoms = (whole * rng.uniform(1e-3, 10, (n_latents, 1))).astype(np.float32)
    if kind == "spikes":  # whole rows in one entry: the largest possible sums
        atoms, vectors = (
            np.float32(100) * np.sign(x) * (x == x.max(axis=1, keepdims=True)) for x in (atoms, vectors)
        )
    vectors[0] = 0
    mean = rng.standard_normal(dim).astype(np.float32)
    unit = vectors.astype(np.float64)
    unit[1:] /= np.linalg.norm(unit[1:], axis=1, keepdims=True)
    norms = np.linalg.norm(atoms.astype(np.float64), axis=1)
    exact = unit @ atoms.T.astype(np.float64)
    projection = Projection(atoms)
    got, of_mean = projection.project(vectors, mean, 2)
    # Entries of rows that are not of bytes are off by half of 1 / 254 of 1 / 127 of the largest.
    step = 0 if kind == "bytes" else np.abs(atoms).max(axis=1) / 127 / 254
    assert got.shape == (n, n_latents)
    assert (np.abs(got - exact) <= 0.51 * np.sqrt(dim) * step + 1e-6 * norms).all()
    assert of_mean is not None
    np.testing.assert_allclose(of_mean, unit @ mean[:, None], atol=1e-6 * float(np.linalg.norm(mean)))
    alone, nothing = projection.project(vectors[-1:], None, 1)
    np.testing.assert_array_equal(alone, got[-1:])
    assert nothing is None
    # Rough ones are off by half of 1 / 127 of the vector's and of the atom's largest.
    rough, _ = RoughProjection(projection).project(vectors, mean, 2)
    steps = np.abs(unit).max(axis=1, keepdims=True) / 127, np.abs(atoms).max(axis=1) / 127
    limit = 0.51 * np.sqrt(dim) * (steps[0] * norms + steps[1] * (1 + np.sqrt(dim) * steps[0]))
    assert (np.abs(rough - exact) <= limit + 1e-6 * norms).all()
    # Next to one large entry, bytes would tell others hardly apart.
    vectors[1:, dim // 2] = 3
    precise, rough = (each.project(vectors, None, 2)[0] for each in (projection, RoughProjection(projection)))
    spiked = 3 * np.sqrt(dim) > 6.1 * np.linalg.norm(vectors, axis=1)
    np.testing.assert_array_equal(rough[spiked], precise[spiked])


@pytest.mark.parametrize("dim", [380, 768])
def test_rough_projections_on_many_atoms_read_half_of_their_bytes(dim: int) -> None:
    rng = np.random.default_rng(4)
    n, few = 2**21 // dim + 7, 100
    atoms, vectors = (normalize_rows(rng.standard_normal((rows, dim)).astype(np.float32)) for rows in (n, 50))
    projection = Projection(atoms)
    assert RoughProjection(Projection(atoms[: n - 8])).nbytes == 0
    large = RoughProjection(projection)
    assert large.nbytes == -(-n // 64) * 64 * (-(-dim // 8) * 8) // 2
    counted = dictionary_bytes(n, dim, by_originals=True) - dictionary_bytes(n, dim)
    assert large.nbytes == pytest.approx(counted, rel=0.02)
    assert dictionary_bytes(n - 8, dim, by_originals=True) == dictionary_bytes(n - 8, dim)
    found, _ = large.project(vectors, None, 2)
    # The middle of the bytes whose upper half is the same, in steps of the atom, by the rounded vector.
    bytes_ = projection.entries().astype(np.int64) + 128
    halves = ((bytes_ >> 4 << 4) + 8 - 128) * (np.abs(atoms).max(axis=1, keepdims=True) / 127)
    steps = np.abs(vectors).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(found, np.rint(vectors / steps) * steps @ halves.T, atol=2e-3 / np.sqrt(dim))
    error = np.sqrt(dim) * (found - vectors.astype(np.float64) @ atoms.T)
    assert 0.05 < np.sqrt(np.square(error).mean()) < 0.16
    np.testing.assert_array_equal(large.project(vectors[:1], None, 1)[0], found[:1])
    # Where most atoms have peaks, half a byte would tell their other entries hardly apart.
    atoms[:, 3] = 0.5
    peaked, alone = (RoughProjection(Projection(normalize_rows(some))) for some in (atoms, atoms[:few]))
    assert peaked.nbytes == 0
    np.testing.assert_array_equal(
        peaked.project(vectors, None, 2)[0][:, :few], alone.project(vectors, None, 2)[0]
    )


def test_corrupt_posting_lists_are_refused_or_harmless() -> None:
    codes = random_codes(500, 40, 6, 3)
    rng = np.random.default_rng(0)
    u = rng.standard_normal((2, 40)).astype(np.float32)
    refused = 0
    for _ in range(300):
        arrays = lists_of(codes)
        name = rng.choice(["starts", "offsets", "ids", "values", "scales"])
        raw = arrays[name].view(np.uint8).reshape(-1)
        raw[rng.integers(raw.size, size=4)] = rng.integers(256, size=4)
        try:
            lists = InvertedLists(arrays, 500, 40)
        except ValueError:
            refused += 1
            continue
        lists.search(u, 40, 10, None, 1)
    assert refused > 0
    for name in ("starts", "offsets", "ids", "values", "scales"):
        arrays = lists_of(codes)
        arrays[name] = arrays[name][:-1]
        with pytest.raises(ValueError, match=r"expected|hold"):
            InvertedLists(arrays, 500, 40)
        del arrays[name]
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            InvertedLists(arrays, 500, 40)


def test_corrupt_forward_codes_stay_in_bounds() -> None:
    arrays = Aligned().pack(random_codes(50, 40, 6, 3))
    arrays["latents"] = np.full_like(arrays["latents"], 65535)
    # A search of the largest dictionary leaves nothing that damaged codes of a smaller one could score.
    largest = AlignedCodes(Aligned().pack(random_codes(2, 65536, 4, 3)), 65536)
    largest.search(np.ones((1, 65536), dtype=np.float32), 1, None, 1)
    scores, _ = AlignedCodes(arrays, 40).search(np.ones((1, 40), dtype=np.float32), 5, None, 1)
    assert (scores == 0).all()


def test_wrong_arguments_are_refused() -> None:
    codes = random_codes(20, 8, 2, 0)
    lists = InvertedLists.build(codes.latents, codes.values, 8, 1)
    forward = AlignedCodes(Aligned().pack(codes), 8)
    u = np.ones((1, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="columns of projections is 7, expected 8"):
        lists.search(u[:, :7].copy(), 2, 2, None, 1)
    with pytest.raises(ValueError, match="bitmap is 1, expected 3"):
        forward.search(u, 2, np.zeros(1, dtype=np.uint8), 1)
    with pytest.raises(ValueError, match="candidate 20 is outside of 20 documents"):
        forward.rescore(u, np.array([[20]]), 2, 1)
    with pytest.raises(ValueError, match="top is 0"):
        forward.search(u, 0, None, 1)
    with pytest.raises(ValueError, match="latent 7 is outside of n_latents 7"):
        InvertedLists.build(np.full((1, 1), 7, dtype=np.uint16), np.ones((1, 1), dtype=np.float32), 7, 1)
    with pytest.raises(TypeError):
        lists.search(u.astype(np.float64), 2, 2, None, 1)
    with pytest.raises(TypeError):
        lists.search(np.ones((8, 1), dtype=np.float32).T[:, ::-1], 2, 2, None, 1)
    with pytest.raises(ValueError, match="k is 9, expected 1 to n_latents 8"):
        Dictionary(np.eye(8, dtype=np.float32)).pursue(u, 9, 1, 1)
    nine = np.ones((8, 9), dtype=np.float32)
    for refused in (
        lambda: Dictionary(nine).pursue(u, 2, 1, 1),
        lambda: RoughProjection(Projection(nine)).project(u, None, 1),
    ):
        with pytest.raises(ValueError, match="columns of vectors is 8, expected 9"):
            refused()


@pytest.mark.parametrize("codec", [Aligned(), Packed(levels=np.linspace(0.03, 1, 32, dtype=np.float32))])
def test_added_documents_end_up_as_if_built_at_once(codec: Codec) -> None:
    codes = random_codes(2 * WINDOW + 700, 64, 4, 5)
    at_once = EmbeddedBackend(64, 4, codec).added([Encoded(codes)], 2)
    grown = EmbeddedBackend(64, 4, codec)
    for begin, end in [
        (0, 10),
        (10, 500),
        (500, WINDOW + 3),
        (WINDOW + 3, 2 * WINDOW + 9),
        (2 * WINDOW + 9, len(codes)),
    ]:
        grown = grown.added([Encoded(codes[begin:end])], 1)
    assert len(grown) == len(at_once)
    stored, expected = grown.to_arrays(), at_once.to_arrays()
    assert set(stored) == set(expected)
    u = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    for hits, other in (
        (grown.sparse(u, 20, 50, None, 1), at_once.sparse(u, 20, 50, None, 1)),
        (grown.dense(u, 50, None, 1), at_once.dense(u, 50, None, 1)),
    ):
        np.testing.assert_allclose(hits[0], other[0], atol=2e-2)
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name], array)
