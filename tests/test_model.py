"""The model as arrays: encoders against float64 oracles, folding, files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressae_index import CompresSAE, CompressedIndex, DimensionError, FormatError, InputError, SparseCodes
from compressae_index._engine import Dictionary
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.coding.model import SOLVE_EVERY
from compressae_index.coding.torch_pursuit import pursue_on

Float64 = npt.NDArray[np.float64]


def textbook_pursuit(x: Float64, dictionary: Float64, k: int, solve_every: int) -> Float64:
    """Orthogonal matching pursuit of one vector, by numpy's least squares; a dense code.

    Every `solve_every` atoms, or a third of the support where that is more, the residual is that of the
    least-squares values, but not for the last eighth; in between, an atom takes its correlation as its value.
    """
    support: list[int] = []
    residual, next_solve = x, solve_every
    while len(support) < k:
        correlations = np.abs(dictionary @ residual)
        correlations[support] = -1
        support.append(int(correlations.argmax()))
        if len(support) in (next_solve, k):
            next_solve += max(solve_every, next_solve // 3)
            next_solve = k if 8 * next_solve > 7 * k else next_solve
            values = np.linalg.lstsq(dictionary[support].T, x, rcond=None)[0]
            residual = x - values @ dictionary[support]
        else:
            atom = dictionary[support[-1]]
            residual = residual - (atom @ residual) * atom
    code = np.zeros(len(dictionary))
    code[support] = values
    return code


def random_model(dim: int, n_latents: int, k: int, seed: int) -> CompresSAE:
    rng = np.random.default_rng(seed)
    decoder = normalize_rows(rng.standard_normal((n_latents, dim)).astype(np.float32))
    return CompresSAE(np.ascontiguousarray(decoder.T), np.zeros(n_latents, dtype=np.float32), decoder, k)


@pytest.fixture(params=[False, True], ids=["by the Gram matrix", "in rounds"])
def either_pursuit(
    request: pytest.FixtureRequest, model: CompresSAE, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Both ways to pursue, whatever the size of the dictionary."""

    class Forced:
        def __init__(self, atoms: FloatArray) -> None:
            self._dictionary = Dictionary(atoms)

        def pursue(self, rows: FloatArray, k: int, solve_every: int, num_threads: int) -> Any:
            return self._dictionary.pursue(rows, k, solve_every, num_threads, request.param)

    monkeypatch.setattr("compressae_index.coding.model.Dictionary", Forced)
    model.release()
    yield
    model.release()


@pytest.mark.usefixtures("either_pursuit")
def test_pursuit_follows_the_textbook_on_real_data(model: CompresSAE, queries: FloatArray) -> None:
    assert model.mean is not None
    codes = model.encode(queries, 16)
    unit, dictionary = normalize_rows(queries) - model.mean, model.decoder_w.astype(np.float64)
    expected = np.stack([textbook_pursuit(x, dictionary, 16, SOLVE_EVERY) for x in unit.astype(np.float64)])
    # Atoms are chosen by correlations of bytes: of two that correlate alike the other may be chosen, and
    # from then on others are.
    found = codes.to_dense()
    shared = ((found != 0) & (expected != 0)).sum(axis=1)
    assert shared.mean() > 0.8 * 16
    errors = [np.square(unit - values @ dictionary).sum(axis=1).mean() for values in (found, expected)]
    assert errors[0] < 1.002 * errors[1]
    # The values of what was chosen are exact.
    for x, latents, values in zip(unit, codes.latents, codes.values, strict=True):
        np.testing.assert_allclose(values, np.linalg.lstsq(dictionary[latents].T, x)[0], atol=1e-5)


@pytest.mark.usefixtures("either_pursuit")
def test_pursuit_recovers_planted_codes() -> None:
    """Pursuit finds exactly the atoms of a vector that few atoms, far apart, explain wholly."""
    model, rng = random_model(256, 500, 6, 3), np.random.default_rng(4)
    planted = np.zeros((60, 500))
    for row in planted:
        row[rng.choice(500, 6, replace=False)] = rng.uniform(1, 2, 6) * rng.choice([-1, 1], 6)
    vectors = planted @ model.decoder_w
    codes = model.encode(vectors).to_dense() * np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(codes, planted, atol=1e-4)


def test_large_dictionaries_are_pursued_in_rounds() -> None:
    rng = np.random.default_rng(8)
    atoms, rows = (normalize_rows(rng.standard_normal((n, 24), dtype=np.float32)) for n in (8193, 20))
    for n_latents, in_rounds in ((8193, True), (8192, False)):
        dictionary = Dictionary(atoms[:n_latents])
        found, expected = (dictionary.pursue(rows, 8, SOLVE_EVERY, 1, each) for each in (None, in_rounds))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_solving_every_few_atoms_costs_little(model: CompresSAE, queries: FloatArray) -> None:
    assert model.mean is not None
    unit, dictionary = normalize_rows(queries).astype(np.float64), model.decoder_w.astype(np.float64)
    exact = [textbook_pursuit(x, dictionary, 16, 1) for x in unit - model.mean] @ dictionary + model.mean
    fast = model.decode(model.encode(queries, 16))
    residuals = [np.linalg.norm(unit - approximation, axis=1).mean() for approximation in (exact, fast)]
    assert residuals[1] < 1.02 * residuals[0]


@pytest.mark.usefixtures("either_pursuit")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dim=st.integers(1, 40), n_latents=st.integers(1, 60), k=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_pursuit_values_solve_least_squares(dim: int, n_latents: int, k: int, seed: int) -> None:
    """The residual is orthogonal to any support, also if k exceeds the dimension."""
    model = random_model(dim, n_latents, min(k, n_latents), seed)
    x = np.random.default_rng(seed).standard_normal((4, dim)).astype(np.float32)
    codes = model.encode(x)
    assert codes.latents.shape == (4, model.k)
    residual = normalize_rows(x) - model.decode(codes)
    correlations = residual @ model.decoder_w.T
    used = codes.to_dense() != 0
    assert np.abs(correlations[used]).max(initial=0) < 2e-3


@pytest.mark.usefixtures("either_pursuit")
def test_pursuit_survives_duplicate_atoms() -> None:
    rng = np.random.default_rng(0)
    atoms = normalize_rows(rng.standard_normal((5, 8)).astype(np.float32))
    decoder = np.repeat(atoms, 4, axis=0)
    model = CompresSAE(np.ascontiguousarray(decoder.T), np.zeros(20, dtype=np.float32), decoder, 12)
    codes = model.encode(rng.standard_normal((50, 8)).astype(np.float32))
    assert np.isfinite(codes.values).all()
    assert np.abs(codes.values).max() < 10
    assert ((codes.values != 0).sum(axis=1) <= 5).all()


@pytest.mark.usefixtures("either_pursuit")
def test_pursuit_stops_when_nothing_is_left() -> None:
    model = random_model(16, 64, 8, 1)
    codes = model.encode(model.decoder_w[[3, 60]])
    assert codes.to_dense()[0, 3] == pytest.approx(1, abs=1e-5)
    assert codes.to_dense()[1, 60] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.abs(codes.to_dense()).sum(axis=1), 1, atol=1e-4)


@pytest.mark.usefixtures("either_pursuit")
def test_a_code_does_not_depend_on_its_batch(model: CompresSAE, vectors: FloatArray) -> None:
    together = model.encode(vectors[:100], num_threads=2)
    apart = model.encode(vectors[37:38], num_threads=1)
    np.testing.assert_array_equal(together.latents[37], apart.latents[0])
    np.testing.assert_allclose(together.values[37], apart.values[0], atol=1e-5)


def test_topk_equals_the_paper_in_float64(model: CompresSAE, queries: FloatArray) -> None:
    assert model.mean is not None
    unit = normalize_rows(queries).astype(np.float64)
    rest = unit - model.mean
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    activations = rest / lengths @ model.encoder_w.astype(np.float64) + model.encoder_b
    kth = np.sort(np.abs(activations), axis=1)[:, -16]
    expected = lengths * np.where(np.abs(activations) >= kth[:, None], activations, 0)
    np.testing.assert_allclose(model.encode(queries, encoder="topk").to_dense(), expected, atol=1e-5)


@pytest.mark.parametrize("encoder", ["topk", "pursuit"])
def test_folded_codes_score_the_cosine_with_the_reconstruction(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, encoder: str
) -> None:
    assert model.mean is not None
    codes = model.encode(vectors[:200], encoder=encoder)  # type: ignore[arg-type]
    folded = model.fold(codes)
    # The direction of s W_dec stays, and the whole reconstruction gets unit norm.
    np.testing.assert_array_equal(folded.latents, codes.latents)
    factors = (folded.values * codes.values).sum(axis=1) / np.square(codes.values).sum(axis=1)
    np.testing.assert_allclose(folded.values, codes.scaled(factors).values, atol=1e-6)
    assert (factors > 0).all()
    reconstruction = model.mean + folded.to_dense().astype(np.float64) @ model.decoder_w.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(reconstruction, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.decode(folded), reconstruction, atol=1e-5)
    unit = queries.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mean_scores = model.mean_scores(queries)
    assert mean_scores is not None
    scores = model.project(queries) @ folded.to_dense().T + mean_scores
    np.testing.assert_allclose(scores, unit @ reconstruction.T, atol=1e-5)


def test_rounding_the_dictionary_costs_next_to_nothing(vectors: FloatArray, queries: FloatArray) -> None:
    atoms, rows = normalize_rows(vectors[:1000]), normalize_rows(queries)
    exact = CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(1000, dtype=np.float32), atoms, 16)
    rounded = exact.rounded()
    in_steps = rounded.decoder_w / np.abs(rounded.decoder_w).max(axis=1, keepdims=True) * 127
    np.testing.assert_allclose(in_steps, np.rint(in_steps), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(rounded.decoder_w - atoms, axis=1), 0, atol=0.015)
    np.testing.assert_allclose(rounded.decoder_w, rounded.rounded().decoder_w, atol=1e-7)
    errors = [np.square(rows - m.decode(m.encode(queries))).sum(axis=1).mean() for m in (rounded, exact)]
    assert errors[0] < 1.002 * errors[1]
    projections = queries.astype(np.float64) @ rounded.decoder_w.T / np.linalg.norm(queries, axis=1)[:, None]
    np.testing.assert_allclose(rounded.project(queries), projections, atol=5e-7)


def test_a_rounded_dictionary_is_kept_as_bytes(
    vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    """A byte an entry in memory and on disk, and nothing else changes (case N23)."""
    exact = CompresSAE.of_dictionary(normalize_rows(vectors[:1000]), 8, vectors[:9].mean(axis=0) / 9)
    model = exact.rounded()
    parts = 384 * 1000, 4 * 1024, 4 * 384  # entries, scales of whole blocks, the mean
    assert model.nbytes <= sum(parts) + 24 * 384
    model.save(tmp_path / "model")
    assert (next(tmp_path.rglob("model.safetensors"))).stat().st_size < sum(parts)
    for again in (CompresSAE.load(tmp_path / "model"), pickle.loads(pickle.dumps(model)), model):
        assert again.fingerprint == model.fingerprint
        assert again.nbytes == model.nbytes
        for name in ("encoder_w", "encoder_b", "decoder_w"):
            np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
        np.testing.assert_array_equal(again.project(queries), model.project(queries))
        codes = again.encode(queries)
        again.release()  # what encoding made is made again
        np.testing.assert_array_equal(again.encode(queries).values, codes.values)
    # A dictionary that is not of bytes, and an encoder of its own, stay whole.
    other = CompresSAE(exact.encoder_w, exact.encoder_b + 1, exact.decoder_w, 8)
    other.save(tmp_path / "other")
    for again in (CompresSAE.load(tmp_path / "other"), pickle.loads(pickle.dumps(other))):
        assert again.fingerprint == other.fingerprint
        np.testing.assert_array_equal(again.encoder_b, other.encoder_b)
        np.testing.assert_array_equal(again.decoder_w, exact.decoder_w)


def test_rough_products_are_those_of_rounded_queries(queries: FloatArray) -> None:
    wide = np.random.default_rng(2).standard_normal((700, queries.shape[1])).astype(np.float32)
    exact = CompresSAE.of_dictionary(normalize_rows(wide), 8)
    for model in (exact, exact.rounded()):
        precise, rough = (model.seen(queries, 1, rough=rough)[0] for rough in (False, True))
        error = (rough - precise) * np.sqrt(queries.shape[1])
        assert 1e-4 < np.sqrt(np.square(error).mean()) < 0.02
        np.testing.assert_array_equal(model.seen(queries[:1], 1, rough=True)[0], rough[:1])


def test_an_index_that_serves_keeps_nothing_of_encoding(
    vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    index = CompressedIndex.build(vectors[:1000], k=8, progress=False)
    index.save(tmp_path / "index")
    for each in (index, CompressedIndex.load(tmp_path / "index")):
        each.search(queries, 10)
        held = [value.nbytes for value in vars(each.model).values() if isinstance(value, np.ndarray)]
        assert sum(held) == each.model.dim * 4  # the mean
        assert not any(isinstance(value, Dictionary) for value in vars(each.model).values())


def test_encoding_ignores_the_norm(model: CompresSAE, queries: FloatArray) -> None:
    for scale in (1e-10, 1e10):
        np.testing.assert_array_equal(
            model.encode(queries * np.float32(scale)).latents, model.encode(queries).latents
        )


def test_saved_and_loaded(model: CompresSAE, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = CompresSAE.load(tmp_path / "model")
    assert again.fingerprint == model.fingerprint
    assert again.k == model.k
    with pytest.raises(FormatError, match=r"holds: model; expected: index"):
        CompressedIndex.load(tmp_path / "model")


def test_wrong_parameters() -> None:
    good = random_model(4, 8, 2, 0)
    with pytest.raises(DimensionError, match=r"\(8, 4\).*\(5, 8\)"):
        CompresSAE(np.zeros((5, 8), dtype=np.float32), good.encoder_b, good.decoder_w, 2)
    wide = np.zeros((8, 65537), dtype=np.float32)
    with pytest.raises(InputError, match="dim must be at most 65536, got 65537"):
        CompresSAE(np.ascontiguousarray(wide.T), good.encoder_b, wide, 2)
    with pytest.raises(InputError, match="k must be at most n_latents = 8, got 9"):
        CompresSAE(good.encoder_w, good.encoder_b, good.decoder_w, 9)
    with pytest.raises(InputError, match=r"row \d has 2"):
        CompresSAE(good.encoder_w, good.encoder_b, 2 * good.decoder_w, 2)
    with pytest.raises(InputError, match="expected the parameters"):
        CompresSAE.from_state_dict({"encoder_w": good.encoder_w}, 2)
    with pytest.raises(InputError, match="k must be at most n_latents = 8, got 9"):
        good.encode(np.ones((1, 4), dtype=np.float32), 9)
    with pytest.raises(DimensionError, match="dimension 5, expected 4"):
        good.encode(np.ones((1, 5), dtype=np.float32))
    with pytest.raises(DimensionError, match="over 9 latents, the model has 8"):
        good.decode(random_model(4, 9, 2, 0).encode(np.ones((1, 4), dtype=np.float32)))


def test_pursuit_by_torch_equals_the_textbook(model: CompresSAE, queries: FloatArray) -> None:
    """The GPU's path, on tensors of the processor."""
    unit, dictionary = normalize_rows(queries), model.decoder_w
    latents, values = pursue_on("cpu", unit, dictionary, 16, SOLVE_EVERY)
    found = SparseCodes(latents, values, model.n_latents).to_dense()
    wide = unit.astype(np.float64), dictionary.astype(np.float64)
    expected = np.stack([textbook_pursuit(x, wide[1], 16, SOLVE_EVERY) for x in wide[0]])
    agree = ((found != 0) == (expected != 0)).all(axis=1)
    assert agree.mean() > 0.95
    np.testing.assert_allclose(found[agree], expected[agree], atol=2e-4)


def test_pursuit_by_torch_survives_duplicate_atoms() -> None:
    rng = np.random.default_rng(0)
    atoms = np.repeat(normalize_rows(rng.standard_normal((5, 8)).astype(np.float32)), 4, axis=0)
    rows = normalize_rows(rng.standard_normal((50, 8)).astype(np.float32))
    latents, values = pursue_on("cpu", rows, atoms, 12, SOLVE_EVERY)
    codes = SparseCodes(latents, values, 20)
    assert np.abs(codes.values).max() < 10
    residual = rows - codes.to_dense() @ atoms
    assert np.abs(residual @ atoms.T).max() < 1e-2


def test_a_device_that_is_not_there_is_refused(model: CompresSAE, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        model.encode(queries, device="abacus")
