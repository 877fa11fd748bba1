"""Both codecs of the forward part: exact round trips, sizes, zeros, damage, and the way to disk and back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressae_index import CompresSAE, CompressedIndex, InputError, SparseCodes
from compressae_index._engine import PackedCodes, pack_rows, quantize, unpack_rows
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.chunks import Encoded
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Aligned, Codec, CodecName, Packed, codec_of
from compressae_index.embedded.codecs.levels import learn_levels, usual_levels
from compressae_index.embedded.sizes import WINDOW

Float64 = npt.NDArray[np.float64]

LEVELS = np.linspace(1 / 32, 1, 32, dtype=np.float32)


def row_bytes(n_latents: int, k: int, value_bits: int) -> int:
    high_and_low = min(k + ((n_latents - 1) >> low) + k * low for low in range(17))
    return -(-(16 + high_and_low + k * value_bits) // 8)


def some_latents(n: int, n_latents: int, k: int, seed: int) -> npt.NDArray[np.uint16]:
    """Random rows, behind the two extremes: the k lowest latents and the k highest."""
    rng = np.random.default_rng(seed)
    rows = [np.arange(k), np.arange(n_latents - k, n_latents)]
    rows += [np.sort(rng.choice(n_latents, k, replace=False)) for _ in range(n)]
    return np.stack(rows).astype(np.uint16)


def some_codes(n: int, n_latents: int, k: int, seed: int = 0) -> SparseCodes:
    latents = some_latents(n, n_latents, k, seed)
    values = np.random.default_rng(seed).standard_normal(latents.shape).astype(np.float32)
    return SparseCodes(latents, values, n_latents)


@settings(deadline=None)
@given(
    n_latents=st.integers(1, 300) | st.integers(1, 65536) | st.just(65536),
    k=st.integers(1, 300),
    value_bits=st.integers(4, 8),
    n=st.integers(0, 40),
    seed=st.integers(0, 2**31),
)
def test_packed_rows_are_an_exact_round_trip(
    n_latents: int, k: int, value_bits: int, n: int, seed: int
) -> None:
    k = min(k, n_latents)
    latents = some_latents(n, n_latents, k, seed)
    rng = np.random.default_rng(seed)
    codes = rng.integers(1 << value_bits, size=latents.shape).astype(np.uint8)
    scales = rng.integers(1 << 16, size=len(latents)).astype(np.uint16)
    rows = pack_rows(latents, codes, scales, n_latents, value_bits, 2)
    assert rows.shape == (len(latents), row_bytes(n_latents, k, value_bits))
    for got, given_to_it in zip(
        unpack_rows(rows, n_latents, k, value_bits, 2), (latents, codes, scales), strict=True
    ):
        np.testing.assert_array_equal(got, given_to_it)


@pytest.mark.parametrize("n_latents", [1, 2, 63, 64, 65, 1000])
def test_codes_that_use_every_latent(n_latents: int) -> None:
    codes = some_codes(2, n_latents, n_latents)
    codec = Packed().fitted(codes)
    stored = codec.unpack(codec.pack(codes), n_latents, n_latents)
    np.testing.assert_array_equal(stored.latents, codes.latents)


def test_the_size_of_a_row() -> None:
    # 16 + 63 + 224 + 192 = 495 bits.
    codes = some_codes(100, 4096, 32)
    codec = Packed().fitted(codes)
    arrays = codec.pack(codes)
    assert arrays["rows"].shape == (102, 62)
    assert codec.engine(arrays, 4096, 32).nbytes == 102 * 62 + 4 * 32
    aligned = Aligned().pack(codes)
    assert Aligned().engine(aligned, 4096, 32).nbytes == 102 * (3 * 32 + 2)


def test_rows_end_within_a_file(tmp_path: Path) -> None:
    """The last rows of a mapped file, whose pages end right behind them, score as everywhere else."""
    n_latents, k = 300, 24
    codec = Packed().fitted(some_codes(4096, n_latents, k))
    width = row_bytes(n_latents, k, 6)
    codes = some_codes(4094, n_latents, k)
    assert width * len(codes) % 4096 == 0
    codec.pack(codes)["rows"].tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=np.uint8, mode="r", shape=(len(codes), width))
    u = np.random.default_rng(1).standard_normal((1, n_latents)).astype(np.float32)
    engine = codec.engine({"rows": mapped}, n_latents, k)
    scores, rows = engine.search(u, len(codes), None, 1)
    again = engine.rescore(u, np.arange(len(codes))[None], len(codes), 1)
    np.testing.assert_array_equal(rows, again[1])
    np.testing.assert_array_equal(scores, again[0])
    stored = codec.unpack({"rows": mapped}, n_latents, k)
    np.testing.assert_allclose(scores[0], (stored.to_dense() @ u[0])[rows[0]], atol=1e-4)


@pytest.mark.parametrize(("value_bits", "most"), [(4, 0.12), (5, 0.06), (6, 0.03), (7, 0.015), (8, 0.008)])
def test_rounding_shrinks_with_bits(built: CompressedIndex, value_bits: int, most: float) -> None:
    codes = built.codes(built.ids)
    # The values are rounded already; noise makes them continuous again.
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(codes.values.shape).astype(np.float32)
    codes = SparseCodes(codes.latents, codes.values * noise, codes.n_latents)
    codec = Packed(value_bits).fitted(codes)
    stored = codec.unpack(codec.pack(codes), codes.n_latents, codes.k)
    np.testing.assert_array_equal(stored.latents, codes.latents)
    error = np.linalg.norm(stored.values - codes.values, axis=1) / np.linalg.norm(codes.values, axis=1)
    assert error.mean() < most
    assert (np.sign(stored.values) == np.sign(codes.values)).all()


@pytest.mark.parametrize("codec", [Aligned(), *map(Packed, range(4, 9))])
def test_zeros_stay_zeros(codec: Codec) -> None:
    # Learned from rows without zeros, as a codebook is to which short rows are added later.
    codec = codec.fitted(some_codes(500, 200, 8))
    codes = some_codes(500, 200, 8, seed=1)
    codes.values[np.random.default_rng(2).random(codes.values.shape) < 0.4] = 0
    codes.values[5:7] = 0
    codes.values[7] = [1e-30, 0, 0, 0, 0, 0, 0, 0]
    codes.values[8] = [-1, -0.0, 1e-3, -1e-3, 0, 1e-6, 1, 0]
    stored = codec.unpack(codec.pack(codes), 200, 8)
    np.testing.assert_array_equal(stored.values[codes.values == 0], 0)
    u = np.random.default_rng(3).standard_normal((1, 200)).astype(np.float32)
    scores, rows = codec.engine(codec.pack(codes), 200, 8).search(u, len(codes), None, 1)
    np.testing.assert_allclose(scores[0], (stored.to_dense() @ u[0])[rows[0]], atol=1e-4)


def test_huge_and_tiny_values_saturate() -> None:
    latents = np.zeros((4, 1), dtype=np.uint16)
    values = np.array([[1e30], [-70000], [65504], [1e-7]], dtype=np.float32)
    codec = Packed(levels=LEVELS)
    stored = codec.unpack(codec.pack(SparseCodes(latents, values, 1)), 1, 1)
    np.testing.assert_allclose(stored.values[:3, 0], [65504, -65504, 65504])
    assert 0 < stored.values[3, 0] < 2e-7


@pytest.mark.parametrize("value_bits", [4, 6, 8])
def test_every_level_is_its_own_code(value_bits: int) -> None:
    n_levels = 1 << (value_bits - 1)
    levels = np.linspace(1 / n_levels, 1, n_levels, dtype=np.float32)
    values = np.concatenate([levels, -levels])[None]
    one = np.array([1], dtype=np.float16).view(np.uint16)
    latents = np.arange(2 * n_levels, dtype=np.uint16)[None]
    codes = quantize(latents, values, one, levels, None, 1)
    np.testing.assert_array_equal(codes, np.arange(2 * n_levels)[None])


def test_levels_are_learned_the_same_every_time() -> None:
    codes = some_codes(3000, 500, 20)
    first, second = Packed().fitted(codes), Packed().fitted(codes)
    assert first.levels is not None
    assert second.levels is not None
    assert first.levels.dtype == np.float32
    np.testing.assert_array_equal(first.levels, second.levels)
    assert first.fitted(some_codes(10, 500, 20, seed=5)) is first


@settings(deadline=None, max_examples=50)
@given(
    sample=st.lists(st.floats(2**-14, 1, width=32), max_size=50),
    value_bits=st.integers(4, 8),
)
def test_learned_levels_ascend(sample: list[float], value_bits: int) -> None:
    levels = learn_levels(np.array(sample, dtype=np.float32), value_bits)
    assert levels.shape == (1 << (value_bits - 1),)
    assert (np.diff(levels) >= 0).all()
    assert levels[0] >= 0
    assert levels[-1] <= 1


def test_learned_levels_beat_even_ones() -> None:
    sample = (np.random.default_rng(0).random(20000) ** 4 + 1e-6).astype(np.float32).clip(0, 1)

    def error(levels: FloatArray) -> float:
        return float((np.abs(sample[:, None] - levels).min(axis=1) ** 2).mean())

    assert error(learn_levels(sample, 5)) < 0.7 * error(np.linspace(0.03, 1, 16, dtype=np.float32))


# One and several words of high parts, low parts of 0 to 16 bits, and rows too long for the vector kernels.
@pytest.mark.parametrize("value_bits", range(4, 9))
@pytest.mark.parametrize(
    ("n_latents", "k"),
    [(1, 1), (65536, 1), (64, 64), (63, 40), (4096, 32), (4096, 33), (5000, 127), (65536, 300), (30000, 700)],
)
def test_scores_of_every_shape(n_latents: int, k: int, value_bits: int) -> None:
    codes = some_codes(80, n_latents, k)
    codec = Packed(value_bits).fitted(codes)
    arrays = codec.pack(codes)
    stored = codec.unpack(arrays, n_latents, k)
    u = np.random.default_rng(1).standard_normal((1, n_latents)).astype(np.float32)
    exact = (u[0, stored.latents].astype(np.float64) * stored.values).sum(axis=1)
    scores, rows = codec.engine(arrays, n_latents, k).search(u, len(codes), None, 1)
    np.testing.assert_allclose(scores[0], exact[rows[0]], rtol=0, atol=1e-4)


# Small, wide, of several words of high parts, and too long for the kernels' buffers.
@pytest.mark.parametrize(("n_latents", "k"), [(40, 6), (4096, 32), (1000, 200), (65536, 700), (1, 1)])
def test_damaged_rows_never_leave_the_buffers(n_latents: int, k: int) -> None:
    codec = Packed().fitted(some_codes(50, n_latents, k))
    whole = codec.pack(some_codes(50, n_latents, k))["rows"]
    rng = np.random.default_rng(0)
    u = rng.standard_normal((1, n_latents)).astype(np.float32)
    for attempt in range(60):
        rows = whole.copy()
        if attempt < 3:
            rows[:] = (0, 255, 170)[attempt]
        else:
            flat = rows.reshape(-1)
            flat[rng.integers(flat.size, size=40)] = rng.integers(256, size=40)
        engine = codec.engine({"rows": rows}, n_latents, k)
        engine.search(u, 10, None, 1)
        engine.rescore(u, np.arange(52)[None], 10, 1)
        try:
            stored = codec.unpack({"rows": rows}, n_latents, k)
        except ValueError as error:
            assert re.search("damaged|must be finite", str(error))  # noqa: PT017
        else:
            assert int(stored.latents.max()) < n_latents


def test_a_row_without_k_latents_scores_zero() -> None:
    codec = Packed().fitted(some_codes(50, 4096, 32))
    rows = codec.pack(some_codes(50, 4096, 32))["rows"].copy()
    rows[3, 2:6] = 0
    rows[4, 2:9] = 255
    u = np.ones((1, 4096), dtype=np.float32)
    scores, _ = codec.engine({"rows": rows}, 4096, 32).rescore(u, np.array([[3, 4]]), 2, 1)
    np.testing.assert_array_equal(scores, [[0, 0]])
    with pytest.raises(ValueError, match="row 3 of the packed codes is damaged"):
        codec.unpack({"rows": rows}, 4096, 32)


def test_wrong_arguments_are_refused() -> None:
    latents = np.array([[0, 5]], dtype=np.uint16)
    codes = np.zeros((1, 2), dtype=np.uint8)
    scales = np.zeros(1, dtype=np.uint16)
    rows = pack_rows(latents, codes, scales, 6, 6, 1)
    with pytest.raises(ValueError, match="ascend below n_latents 5"):
        pack_rows(latents, codes, scales, 5, 6, 1)
    with pytest.raises(ValueError, match="ascend"):
        pack_rows(latents[:, ::-1].copy(), codes, scales, 6, 6, 1)
    with pytest.raises(ValueError, match="is 64, more than value_bits hold"):
        pack_rows(latents, codes + np.uint8(64), scales, 6, 6, 1)
    with pytest.raises(ValueError, match="columns of codes is 1, expected 2"):
        pack_rows(latents, codes[:, :1].copy(), scales, 6, 6, 1)
    with pytest.raises(ValueError, match="length of scales is 0, expected 1"):
        pack_rows(latents, codes, scales[:0], 6, 6, 1)
    for value_bits in (3, 9):
        with pytest.raises(ValueError, match="expected 4 to 8"):
            pack_rows(latents, codes, scales, 6, value_bits, 1)
    with pytest.raises(ValueError, match="columns of rows is"):
        unpack_rows(rows[:, :-1].copy(), 6, 2, 6, 1)
    with pytest.raises(ValueError, match="k is 7, expected 1 to n_latents 6"):
        unpack_rows(rows, 6, 7, 6, 1)
    with pytest.raises(ValueError, match="columns of 'rows' is"):
        PackedCodes({"rows": rows[:, :-1].copy()}, LEVELS, 6, 2)
    with pytest.raises(ValueError, match="'rows' is missing"):
        PackedCodes({}, LEVELS, 6, 2)
    with pytest.raises(ValueError, match="length of levels is 31"):
        PackedCodes({"rows": rows}, LEVELS[:-1], 6, 2)
    for levels in (LEVELS[::-1].copy(), LEVELS * np.float32(1.1), LEVELS * np.float32(np.nan), -LEVELS):
        with pytest.raises(ValueError, match="ascend"):
            PackedCodes({"rows": rows}, levels, 6, 2)
        with pytest.raises(ValueError, match="ascend"):
            Packed().with_learned({"levels": levels})
    with pytest.raises(ValueError, match="levels must be float32"):
        Packed(5).with_learned({"levels": LEVELS})
    with pytest.raises(ValueError, match="not fitted"):
        Packed().pack(some_codes(1, 6, 2))
    with pytest.raises(ValueError, match="codes have 2 nonzeros, expected 3"):
        Aligned().engine(Aligned().pack(some_codes(1, 6, 2)), 6, 3)
    with pytest.raises(InputError, match="forward must be one of 'packed', 'aligned'"):
        codec_of("zipped")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="value_bits must be at most 8"):
        codec_of("packed", value_bits=9)


@pytest.mark.parametrize("codec", [Aligned(), Packed(4)])
def test_adding_does_not_round_again(codec: Codec) -> None:
    codes = some_codes(3000, 64, 8)
    backend = EmbeddedBackend(64, 8, codec).added([Encoded(codes)], 1)
    first = backend.codes(np.arange(100))
    for _ in range(3):
        backend = backend.added([Encoded(some_codes(10, 64, 8, seed=9))], 1)
    backend = backend.subset(np.arange(len(backend)), 1)
    np.testing.assert_array_equal(backend.codes(np.arange(100)).values, first.values)


@pytest.mark.parametrize("codec", [Aligned(), Packed()])
def test_both_parts_hold_the_same_values(codec: Codec) -> None:
    codes = some_codes(WINDOW + 500, 64, 4)
    backend = (
        EmbeddedBackend(64, 4, codec)
        .added([Encoded(codes[: WINDOW + 5])], 2)
        .added([Encoded(codes[WINDOW + 5 :])], 2)
    )
    u = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    sparse, dense = backend.sparse(u, 64, 50, None, 1), backend.dense(u, 50, None, 1)
    # All latents are looked up, so that both score by whole codes.
    np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-5)
    np.testing.assert_array_equal(sparse[1], dense[1])


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(("forward", "value_bits"), [("packed", 4), ("packed", 6), ("aligned", 6)])
def test_saved_and_loaded(
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    tmp_path: Path,
    forward: CodecName,
    value_bits: int,
    mmap: bool,
) -> None:
    index = CompressedIndex.build(
        vectors[:500], model=model, k=16, forward=forward, value_bits=value_bits, progress=False
    )
    bytes_of_a_row = row_bytes(512, 16, value_bits) if forward == "packed" else 3 * 16 + 2
    assert round(index.stats().bytes_per_vector["forward"]) == bytes_of_a_row
    index.save(tmp_path / "index")
    loaded = CompressedIndex.load(tmp_path / "index", mmap=mmap)
    for mode in ("sparse", "dense", "two_stage"):
        before, after = index.search(queries, mode=mode), loaded.search(queries, mode=mode)
        np.testing.assert_array_equal(before.ids, after.ids)
        np.testing.assert_array_equal(before.scores, after.scores)
    # Added rows use the codebook of the index, before and after.
    for grown in (index, loaded):
        grown.add(vectors[500:700])
    np.testing.assert_array_equal(index.codes(index.ids).values, loaded.codes(loaded.ids).values)


def test_an_emptied_index_keeps_its_form(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    index = CompressedIndex.build(vectors[:50], model=model, k=16, forward="aligned", progress=False)
    index.remove(index.ids)
    index.compact()
    index.save(tmp_path / "index")
    for emptied in (index, CompressedIndex.load(tmp_path / "index")):
        emptied.add(vectors[:50])
        assert emptied.stats().bytes_per_vector["forward"] == 3 * 16 + 2


@pytest.mark.parametrize("codec", [Aligned(), Packed(4), Packed(6)])
def test_reconstructions_keep_their_norms(
    codec: Codec, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    """Setting scales by the reconstructions' norms also brings scores closer to those of the codes."""
    codes = model.fold(model.encode(vectors))
    codec, exact = codec.fitted(codes), model.project(queries) @ codes.to_dense().T
    errors = []
    for dictionary in (None, model.decoder_w):
        stored = codec.unpack(codec.pack(codes, 1, dictionary), codes.n_latents, codes.k)
        errors.append(np.abs(model.project(queries) @ stored.to_dense().T - exact).mean())
    np.testing.assert_allclose(model.norms(stored), model.norms(codes), atol=1e-3)
    assert errors[1] < 1.02 * errors[0]


def nearest_plane(x: Float64, atoms: Float64, levels: Float64) -> Float64:
    """Babai's rounding of x, relative to its largest magnitude, as one writes it down; a sign and a level."""
    order = np.lexsort((np.arange(len(x)), np.abs(x)))
    factor = np.linalg.cholesky(atoms[order] @ atoms[order].T).T
    signed = np.concatenate([levels, -levels])
    rounded, wanted = np.zeros(len(x)), x[order]
    for i in reversed(range(len(x))):
        moved = wanted[i] + factor[i, i + 1 :] @ (wanted - rounded)[i + 1 :] / factor[i, i]
        rounded[i] = signed[np.abs(signed - moved).argmin()]
    result = np.empty(len(x))
    result[order] = rounded
    return result


def test_rounding_makes_up_for_itself(model: CompresSAE, vectors: FloatArray) -> None:
    """As by the textbook, and closer to the vectors than values rounded one by one."""
    codes = model.fold(model.encode(vectors[:300]))
    levels = usual_levels(5)
    largest = np.abs(codes.values).max(axis=1)
    scales = largest.astype(np.float16).view(np.uint16)
    dictionary = model.decoder_w.astype(np.float64)
    signed = np.concatenate([levels, -levels])
    stored = [
        SparseCodes(
            codes.latents,
            signed[quantize(codes.latents, codes.values, scales, levels, given, 2)]
            * scales.view(np.float16).astype(np.float32)[:, None],
            codes.n_latents,
        )
        for given in (model.decoder_w, None)
    ]
    sizes = scales.view(np.float16).astype(np.float64)
    expected = np.stack(
        [
            size * nearest_plane(values / size, dictionary[latents], levels.astype(np.float64))
            for size, values, latents in zip(
                sizes, codes.values.astype(np.float64), codes.latents, strict=True
            )
        ]
    )
    # A value that falls between two levels to the last bits may go either way.
    same = np.isclose(stored[0].values, expected, atol=1e-6).all(axis=1)
    assert same.mean() > 0.95
    unrounded = model.decode(codes)
    errors = [np.square(model.decode(some) - unrounded).sum() for some in stored]
    assert errors[0] < 0.95 * errors[1]


def test_rounding_with_atoms_that_depend_on_each_other() -> None:
    atoms = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    dictionary = np.repeat(normalize_rows(atoms), 5, axis=0)
    codes = SparseCodes(
        np.tile(np.arange(20, dtype=np.uint16), (3, 1)),
        np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32),
        20,
    )
    codec = Packed().fitted(codes)
    stored = codec.unpack(codec.pack(codes, 1, dictionary), 20, 20)
    np.testing.assert_allclose(stored.to_dense() @ dictionary, codes.to_dense() @ dictionary, atol=0.3)


def test_norms_equal_those_of_reconstructions(model: CompresSAE, vectors: FloatArray) -> None:
    codes = model.encode(vectors[:200])
    sums = codes.to_csr() @ model.decoder_w
    np.testing.assert_allclose(model.norms(codes), np.linalg.norm(sums, axis=1), rtol=1e-5)
