"""Dense scores from Faiss, on the processor and with fakes of its GPU indexes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from compressae_index import (
    CompresSAE,
    CompressedIndex,
    DimensionError,
    InputError,
    InstallationError,
    UnknownIdError,
)
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.faiss import DenseStore, FaissIndex, dictionary_ivf, gpu, library
from compressae_index.search.queries import SearchResult


@pytest.fixture(scope="module")
def store(built: CompressedIndex) -> DenseStore:
    """The 4,000 embeddings in float32. Do not change it."""
    return DenseStore(built, storage="float32", device="cpu", progress=False)


def expected_of(built: CompressedIndex, queries: FloatArray, k: int, mode: Any, scoring: Any) -> SearchResult:
    """The result by codes; the candidates of "two_stage" are the exact 300 best of "sparse"."""
    if mode == "dense":
        return built.search(queries, k, mode="dense", scoring=scoring)
    chosen = built.search(queries, 300, mode="sparse", scoring=scoring).ids
    best = [
        built.search(query, k, mode="dense", scoring=scoring, filter=ids)
        for query, ids in zip(queries, chosen, strict=True)
    ]
    return SearchResult(
        np.concatenate([one.scores for one in best]), np.concatenate([one.ids for one in best])
    )


def assert_same(found: SearchResult, expected: SearchResult) -> None:
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert (found.ids == expected.ids).mean() > 0.99  # others are ties within rounding


@pytest.mark.parametrize("scoring", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("mode", ["dense", "two_stage"])
def test_answers_are_those_of_the_codes(
    store: DenseStore, built: CompressedIndex, queries: FloatArray, mode: Any, scoring: Any
) -> None:
    found = store.search(queries * 3, 20, mode=mode, scoring=scoring, candidates=300)
    assert_same(found, expected_of(built, queries * 3, 20, mode, scoring))


def test_dense_is_a_brute_force_over_reconstructions(
    store: DenseStore, built: CompressedIndex, queries: FloatArray
) -> None:
    exact = normalize_rows(queries).astype(np.float64) @ built.reconstruct(built.ids).T.astype(np.float64)
    found = store.search(queries, 10, mode="dense")
    np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(exact, found.ids.astype(int), axis=1), found.scores, atol=1e-6
    )


@pytest.mark.parametrize("filed", [False, True])
@pytest.mark.parametrize("settings", [{"residual_bits": 4}, {"originals": "float32"}], ids=str)
def test_reconstructions_hold_residual_codes_and_no_originals(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, settings: dict[str, Any], filed: bool
) -> None:
    built = CompressedIndex.build(vectors[:500], model=model, k=16, progress=False, **settings)
    index = FaissIndex.from_index(built, progress=False) if filed else built
    store = DenseStore(index, storage="float32", device="cpu", progress=False)
    store.add(vectors[500:520], np.arange(1000, 1020))
    store.upsert(vectors[520:525], np.arange(3, 8))
    ids = store.ids
    reconstructed = index.reconstruct(ids).astype(np.float64)
    cosines = np.einsum("nd,nd->n", reconstructed[-5:], normalize_rows(vectors[520:525]))
    assert ((cosines > 0.97) == ("residual_bits" in settings)).all()
    exact = normalize_rows(queries).astype(np.float64) @ reconstructed.T
    for mode in ("dense", "two_stage"):
        found = store.search(queries, 10, mode=mode, candidates=600)
        np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
        why = store.explain(queries[0], found.ids[0].tolist()[0])
        assert why.score == pytest.approx(found.scores[0, 0], abs=1e-6)
        assert why.contributions.sum() + why.mean + why.residual == pytest.approx(why.score, abs=1e-6)
        with pytest.raises(InputError, match="refine is 20, but there is no stage that scores again"):
            store.search(queries, 10, mode=mode, refine=20)


@pytest.mark.parametrize(("storage", "error", "size"), [("float16", 1e-3, 2), ("bfloat16", 8e-3, 2)])
def test_sixteen_bits_round(
    built: CompressedIndex, queries: FloatArray, storage: Any, error: float, size: int
) -> None:
    store = DenseStore(built, storage=storage, device="cpu", progress=False)
    assert store.nbytes == 4000 * 384 * size
    expected = built.search(queries, 10, mode="dense")
    np.testing.assert_allclose(
        store.search(queries, 10, mode="dense").scores, expected.scores, atol=error, rtol=0
    )


def test_sparse_is_the_index_itself(store: DenseStore, built: CompressedIndex, queries: FloatArray) -> None:
    found, expected = (x.search(queries, 5, mode="sparse", query_nnz=16) for x in (store, built))
    np.testing.assert_array_equal(found.ids, expected.ids)


def test_no_queries_and_no_rows(index: CompressedIndex, vectors: FloatArray) -> None:
    store = DenseStore(index, storage="float32", device="cpu", progress=False)
    mode: Any
    nothing: Any
    for mode in ("sparse", "dense", "two_stage"):
        for nothing in (vectors[:0], [], torch.empty(0, 384)):
            result = store.search(nothing, 3, mode=mode)
            assert result.scores.shape == result.ids.shape == (0, 3)
            assert (str(result.scores.dtype), str(result.ids.dtype)) == ("float32", "int64")
        with pytest.raises(DimensionError, match="expected 384"):
            store.search(np.empty((0, 3)), mode=mode)
        with pytest.raises(InputError, match="candidates must be at least k = 10, got 9"):
            store.search(vectors[:1], candidates=9, mode=mode)
    store.add(vectors[:0])
    store.remove([])
    assert len(store) == len(index) == 300
    # An iterator is read once, by both stages.
    expected = store.search(vectors[:3], 5)
    np.testing.assert_array_equal(store.search(iter(vectors[:3]), 5).ids, expected.ids)


def test_filters_and_padding(index: CompressedIndex, queries: FloatArray) -> None:
    store = DenseStore(index, storage="float32", device="cpu", progress=False)
    mask = np.isin(np.arange(1000, 1300), [1003, 1299])
    for mode in ("dense", "two_stage"):
        for allowed in ([1003, 1299], mask):
            found = store.search(queries, 4, mode=mode, filter=allowed)
            assert (np.sort(found.ids, axis=1) == [-1, -1, 1003, 1299]).all()
            assert (found.scores[:, 2:] == -np.inf).all()
        assert (store.search(queries, 4, mode=mode, filter=np.zeros(300, dtype=bool)).ids == -1).all()
    whole = store.search(queries[0], 400, mode="dense")
    assert sorted(whole.ids[0, :300]) == list(range(1000, 1300))
    with pytest.raises(DimensionError, match="shape"):
        store.search(queries, 4, mode="dense", filter=mask[:-1])
    with pytest.raises(UnknownIdError, match="unknown id 7"):
        store.search(queries, 4, mode="dense", filter=[7])


@pytest.mark.parametrize("mode", ["dense", "two_stage"])
def test_changes_are_followed(
    index: CompressedIndex, vectors: FloatArray, queries: FloatArray, mode: Any
) -> None:
    store = DenseStore(index, storage="float32", device="cpu", progress=False)
    store.remove([1000, 1001])
    store.add(vectors[0:1], [1000])
    store.add(vectors[300:302])
    assert len(store) == len(index) == 301
    for refreshed in (False, True):
        if refreshed:
            store.refresh()
        found = store.search(queries, 301, mode=mode, candidates=301)
        expected = index.search(queries, 301, mode="dense")
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        assert set(found.ids[0]) == set(index.ids.tolist())
    index.remove([1005])
    with pytest.raises(InputError, match=r"call refresh\(\)"):
        store.search(queries, mode=mode)
    store.refresh()
    with pytest.raises(UnknownIdError):
        store.remove([1])
    with pytest.raises(InputError, match="already in the index"):
        store.add(vectors[:1], [1000])
    assert len(store) == 300


def test_an_empty_store_fills_up(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    store = DenseStore(CompressedIndex(model, k=16), device="cpu", progress=False)
    for mode in ("dense", "two_stage"):
        assert (store.search(queries, 3, mode=mode).ids == -1).all()
    store.add(vectors[:5], ["a", "b", "c", "d", "e"])
    assert store.search(vectors[1], 6).ids[0].tolist()[0] == "b"
    assert store.search(vectors[1], 6).ids[0].tolist()[5] is None


def test_queries_whose_inner_products_are_beyond_float32(
    uncentred_model: CompresSAE, vectors: FloatArray
) -> None:
    rows = vectors[:20] * np.float32(2.0**100)
    index = CompressedIndex.build(rows, model=uncentred_model, metric="inner_product", progress=False)
    store = DenseStore(index, device="cpu", progress=False)
    for mode in ("sparse", "dense", "two_stage"):
        with pytest.raises(InputError, match="queries row 0 is so long"):
            store.search(rows[:1], 3, mode=mode)


def test_arguments_that_are_no_model(vectors: FloatArray) -> None:
    wrong: Any
    for wrong in ("items.model", None, 3):
        for call in (FaissIndex, partial(dictionary_ivf, vectors[:20])):
            with pytest.raises(InputError, match="model must be a CompresSAE, got"):
                call(wrong)
        with pytest.raises(InputError, match="index must be a CompressedIndex, got"):
            FaissIndex.from_index(wrong)


def test_inner_products_of_long_vectors(
    uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    lengths = np.random.default_rng(0).uniform(0.5, 2, size=(500, 1)).astype(np.float32)
    rows = vectors[:500] * lengths * 2.0**20  # beyond half precision
    index = CompressedIndex.build(rows, model=uncentred_model, k=16, metric="inner_product", progress=False)
    store = DenseStore(index, device="cpu", progress=False)
    for mode in ("dense", "two_stage"):
        found = store.search(queries * 3, 5, mode=mode, candidates=500)
        expected = index.search(queries * 3, 5, mode="dense")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=2e-3)


def test_candidates_of_a_back_end(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    backed = FaissIndex(model, k=16)
    backed.add(vectors[:300], np.arange(300))
    store = DenseStore(backed, storage="float32", device="cpu", progress=False)
    found, expected = store.search(queries, 5, candidates=50), backed.search(queries, 5, candidates=50)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    store.add(vectors[300:301], [900])
    assert store.search(vectors[300], 1, mode="dense").ids[0, 0] == 900
    backed.add(vectors[301:302], [901])
    with pytest.raises(InputError, match=r"call refresh\(\)"):
        store.search(vectors[301], 1, candidates=300)
    some = DenseStore(backed, ids=[5, 6], device="cpu", progress=False)
    assert set(some.search(queries, 2, mode="dense").ids.ravel()) == {5, 6}


def test_torch_tensors_of_the_processor(store: DenseStore, queries: FloatArray) -> None:
    expected = store.search(queries, 5)
    np.testing.assert_array_equal(store.search(torch.from_numpy(queries), 5).ids, expected.ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "int8"}, "storage must be one of"),
        ({"spread": "both"}, "spread must be one of"),
        ({"device": "gpu"}, "device must be 'cpu'"),
        ({"device": 1}, "device must be 'cpu'"),
    ],
)
def test_bad_arguments(built: CompressedIndex, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DenseStore(built, **options)


def test_bad_searches(store: DenseStore, queries: FloatArray) -> None:
    with pytest.raises(InputError, match="mode must be one of"):
        store.search(queries, mode="fast")
    with pytest.raises(InputError, match="k must be at least 1"):
        store.search(queries, 0)
    with pytest.raises(InputError, match="candidates must be at least 1"):
        store.search(queries, candidates=0)
    with pytest.raises(DimensionError, match="dimension 3"):
        store.search(queries[:, :3], mode="dense")


# The GPU tests use fakes: flat indexes on the processor with the limits of Faiss on a GPU.


class FakeIndex:
    """An IndexFlatIP that takes only addresses, and selects at most 2,048 neighbours as on a GPU."""

    room = 10**9

    def __init__(self, resources: Any, dim: int, config: Any) -> None:
        self.resources, self.config = resources, config
        self.flat: Any = faiss.IndexFlatIP(dim)
        self.asked: list[tuple[int, int]] = []

    @property
    def ntotal(self) -> int:
        return int(self.flat.ntotal)

    def add_c(self, n: int, rows: Any) -> None:
        if self.ntotal + n > self.room:
            msg = "out of memory"
            raise RuntimeError(msg)
        self.flat.add_c(n, rows)

    def search_c(self, n: int, rows: Any, k: int, scores: Any, labels: Any) -> None:
        if k > 2048:
            msg = "GPU index only supports min/max-K selection up to 2048"
            raise RuntimeError(msg)
        self.asked.append((n, k))
        self.flat.search_c(n, rows, k, scores, labels)

    def reconstruct_batch_c(self, n: int, keys: Any, into: Any) -> None:
        self.flat.reconstruct_batch_c(n, keys, into)


class FakeConfig:
    device = 0
    useFloat16 = False  # noqa: N815


class FakeFaiss:
    """Faiss with fake GPUs."""

    GpuIndexFlatIP, GpuIndexFlatConfig, StandardGpuResources = FakeIndex, FakeConfig, object

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def get_compile_options(self) -> str:
        return "OPTIMIZE AVX512 GPU"

    def get_num_gpus(self) -> int:
        return self.gpus


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFaiss]:
    fake = FakeFaiss(2)
    monkeypatch.setattr(library, "faiss", fake)
    monkeypatch.setattr(gpu, "faiss", fake)
    monkeypatch.setattr(gpu, "BATCH_BYTES", 100_000)  # several batches
    yield fake
    FakeIndex.room = 10**9


def devices_of(store: DenseStore) -> list[Any]:
    assert isinstance(store._flat, gpu.GpuFlat)
    return store._flat._devices


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "spread", "numbers"),
    [
        ("cuda:1", "replicated", [1]),
        ("cuda", "replicated", [0, 1]),
        ("auto", "sharded", [0, 1]),
        ("cuda:0", "sharded", [0]),
    ],
)
def test_gpus_give_the_same_answers(
    built: CompressedIndex,
    queries: FloatArray,
    device: str,
    spread: Any,
    numbers: list[int],
) -> None:
    store = DenseStore(built, device=device, spread=spread, progress=False)
    assert store.device == ", ".join(f"cuda:{number}" for number in numbers)
    assert [one.index.config.device for one in devices_of(store)] == numbers
    assert all(one.index.config.useFloat16 for one in devices_of(store))
    held = [one.index.ntotal for one in devices_of(store)]
    if spread == "sharded" and len(numbers) > 1:
        assert sum(held) == 4000
        assert max(held) - min(held) < 100
    else:
        assert held == [4000] * len(numbers)
    assert store.nbytes == sum(held) * 384 * 2
    for mode in ("dense", "two_stage"):
        found = store.search(queries, 30, mode=mode, candidates=300)
        assert_same(found, expected_of(built, queries, 30, mode, "asymmetric"))
    assert all(one.index.asked for one in devices_of(store))


@pytest.mark.usefixtures("two_gpus")
def test_added_rows_go_to_all_gpus(index: CompressedIndex, vectors: FloatArray) -> None:
    for spread in ("replicated", "sharded"):
        store = DenseStore(index, device="cuda", spread=spread, progress=False)
        ids = np.arange(len(index), len(index) + 3) + 5000
        store.add(vectors[ids - 5000], ids)
        np.testing.assert_array_equal(store.search(vectors[ids - 5000], 1, mode="dense").ids[:, 0], ids)
        np.testing.assert_array_equal(store.search(vectors[ids - 5000], 1).ids[:, 0], ids)


@pytest.mark.usefixtures("two_gpus")
def test_codes_answer_searches_that_a_gpu_cannot(built: CompressedIndex, queries: FloatArray) -> None:
    store = DenseStore(built, device="cuda:0", progress=False)
    for options in ({"filter": [1, 2, 3]}, {"k": 2049}):
        found = store.search(queries[:3], **({"k": 3} | options), mode="dense")
        expected = built.search(queries[:3], **({"k": 3} | options), mode="dense")
        np.testing.assert_array_equal(found.ids, expected.ids)
    assert devices_of(store)[0].index.asked == []
    store.search(queries[:3], 2048, mode="dense")
    assert devices_of(store)[0].index.asked


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("settings", [{"residual_bits": 4}, {"originals": "float32"}], ids=str)
def test_codes_answer_with_the_reconstructions_that_a_gpu_holds(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, settings: dict[str, Any]
) -> None:
    index = CompressedIndex.build(vectors[:500], model=model, k=16, progress=False, **settings)
    store = DenseStore(index, device="cuda:0", storage="float32", progress=False)
    allowed = np.arange(0, 500, 3)
    found = store.search(queries, 5, mode="dense", filter=allowed)
    exact = normalize_rows(queries).astype(np.float64) @ index.reconstruct(allowed).T
    # The engine rounds queries to bytes for residual codes.
    np.testing.assert_allclose(found.scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-3)
    assert devices_of(store)[0].index.asked == []


@pytest.mark.usefixtures("two_gpus")
def test_removed_vectors_are_not_found_on_a_gpu(index: CompressedIndex, vectors: FloatArray) -> None:
    store = DenseStore(index, device="cuda:0", progress=False)
    store.remove([1007])
    assert 1007 not in store.search(vectors[7], 299, mode="dense").ids
    asked = len(devices_of(store)[0].index.asked)
    store.refresh()
    assert 1007 not in store.search(vectors[7], 299, mode="dense").ids
    assert len(devices_of(store)[0].index.asked) > 0 == asked


@pytest.mark.usefixtures("two_gpus")
def test_a_back_end_has_no_dense_mode_to_fall_back_to(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    backed = FaissIndex(model, k=16)
    backed.add(vectors[:30], np.arange(30))
    store = DenseStore(backed, device="cuda", progress=False)
    assert (store.search(queries, 5, mode="dense").ids >= 0).all()
    with pytest.raises(InputError, match="takes no filter"):
        store.search(queries, 5, mode="dense", filter=[1])


@pytest.mark.usefixtures("two_gpus")
def test_a_back_end_whose_vectors_did_not_fit(model: CompresSAE, vectors: FloatArray) -> None:
    backed = FaissIndex(model, k=16)
    backed.add(vectors[:30], np.arange(30))
    store = DenseStore(backed, device="cuda", progress=False)
    FakeIndex.room = 30
    with pytest.raises(InputError, match="cannot take 1 more"):
        store.add(vectors[30:31], [30])
    with pytest.raises(InputError, match=r"call refresh\(\)"):
        store.search(vectors[30], mode="dense")


@pytest.mark.usefixtures("two_gpus")
def test_bounds_of_a_gpu_are_named(
    built: CompressedIndex, index: CompressedIndex, vectors: FloatArray
) -> None:
    with pytest.raises(InputError, match="Faiss sees 2 GPUs, numbered from 0"):
        DenseStore(built, device="cuda:2")
    with pytest.raises(InputError, match="storage must be one of"):
        DenseStore(built, device="cuda", storage="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'float16' or 'float32'"):
        DenseStore(built, device="cuda", storage="bfloat16")
    FakeIndex.room = 4000
    store = DenseStore(index, device="cuda", progress=False)
    FakeIndex.room = 300
    with pytest.raises(InputError, match="cuda:0 holds 300 vectors and cannot take 1 more"):
        store.add(vectors[300:301], [300])
    for call in (partial(store.search, vectors[0]), partial(store.add, vectors[301:302], [301])):
        with pytest.raises(InputError, match=r"an add failed; call refresh\(\)"):
            call()
    FakeIndex.room = 4000
    store.refresh()
    assert store.search(vectors[300], 1, mode="dense").ids[0, 0] == 300
    FakeIndex.room = 3000
    with pytest.raises(InputError, match=r"cuda:0 holds \d+ vectors and cannot take .* out of memory"):
        DenseStore(built, device="cuda", progress=False)
    assert len(DenseStore(built, device="cuda", spread="sharded", progress=False)) == 4000


class CudaTensor(torch.Tensor):
    """A tensor on the processor that claims to be on a GPU."""

    is_cuda = True


class Stream:
    synchronized = 0

    def synchronize(self) -> None:
        Stream.synchronized += 1


def test_cuda_tensors_are_read_without_a_copy(
    built: CompressedIndex, queries: FloatArray, two_gpus: FakeFaiss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    seen = []
    cast = faiss.cast_integer_to_float_ptr

    def remembered(address: int) -> Any:
        seen.append(address)
        return cast(address)

    monkeypatch.setattr(two_gpus, "cast_integer_to_float_ptr", remembered, raising=False)
    store = DenseStore(built, device="cuda:0", progress=False)
    unit = normalize_rows(queries)
    expected = store.search(unit, 5, mode="dense")
    tensor = torch.from_numpy(unit * 2).as_subclass(CudaTensor)
    found = store.search(tensor, 5, mode="dense")
    assert seen[0] == tensor.data_ptr()
    assert Stream.synchronized
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    # Rows far from unit length, of another dtype or strided are copied on the device.
    for other in (tensor * 1000, tensor.double(), torch.cat([tensor, tensor], 1)[:, :384]):
        found = store.search(other.as_subclass(CudaTensor), 5, mode="dense")
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_array_equal(store.search(tensor, 5).ids, store.search(unit, 5).ids)
    np.testing.assert_array_equal(store.search(tensor[0], 5, mode="dense").ids, expected.ids[:1])


@pytest.mark.usefixtures("two_gpus")
def test_bad_cuda_tensors(built: CompressedIndex, queries: FloatArray) -> None:
    store = DenseStore(built, device="cuda:0", progress=False)
    tensor = torch.from_numpy(queries).as_subclass(CudaTensor)
    for bad, message in (
        (tensor[:, :3], r"shape \(50, 3\), expected"),
        (tensor.int(), "floating point"),
        (tensor * 0, "row 0 is zero"),
        (tensor * float("nan"), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            store.search(bad.as_subclass(CudaTensor), 5, mode="dense")
    with pytest.raises(InputError, match="no stage that scores again"):
        store.search(tensor, 5, mode="dense", refine=5)


def test_inner_products_of_cuda_tensors(
    uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(library, "faiss", FakeFaiss(1))
    monkeypatch.setattr(gpu, "faiss", FakeFaiss(1))
    index = CompressedIndex.build(
        vectors[:300] * 8, model=uncentred_model, k=16, metric="inner_product", progress=False
    )
    store = DenseStore(index, device="cuda", progress=False)
    for factor in (1, 1000):
        found = store.search(torch.from_numpy(queries * factor).as_subclass(CudaTensor), 5, mode="dense")
        expected = index.search(queries * factor, 5, mode="dense")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


def test_without_a_gpu_cuda_runs_on_the_processor_and_warns(
    built: CompressedIndex, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DenseStore(built, device="auto", progress=False).device == "cpu"
    with pytest.warns(UserWarning, match=r"CPU build, so 'cuda' runs on the CPU.*pip install faiss-gpu"):
        store = DenseStore(built, device="cuda", progress=False)
    assert store.device == "cpu"
    assert (store.search(queries, 5, mode="dense").ids >= 0).all()
    monkeypatch.setattr(library, "faiss", FakeFaiss(0))
    with pytest.warns(UserWarning, match="sees no GPU, so 'cuda:1' runs on the CPU"):
        assert DenseStore(built, device="cuda:1", progress=False).device == "cpu"


class Broken:
    """A Faiss module with only some attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


WHOLE = dict.fromkeys(library.NEEDED) | {"__version__": "1.15.1"}


def test_two_builds_in_one_folder_are_named() -> None:
    module = Broken(**WHOLE, get_compile_options=lambda: "OPTIMIZE GENERIC")
    command = "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-gpu"
    with pytest.warns(UserWarning, match=f"now it is the CPU build.*{command}"):
        library.check(module, ["faiss-cpu", "faiss-gpu"])
    library.check(module, ["faiss-cpu"])


def test_an_incomplete_faiss_is_named() -> None:
    with pytest.raises(InstallationError, match="pip uninstall -y faiss-gpu && pip install faiss-gpu"):
        library.check(Broken(), ["faiss-gpu"])
    with pytest.raises(InstallationError, match="run: pip install faiss-cpu"):
        library.check(Broken(), [])
    old = {name: value for name, value in WHOLE.items() if name != "IDSelectorBitmap"} | {
        "__version__": "1.7.1"
    }
    with pytest.raises(InstallationError, match=r"Faiss 1\.7\.1 has no IDSelectorBitmap.*'faiss-cpu>="):
        library.check(Broken(**old), ["faiss-cpu"])


def test_builds_that_are_installed() -> None:
    assert library.installed_builds() == ["faiss-cpu"]


def test_a_recoded_index_is_reconstructed_again(
    model: CompresSAE, uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:300], model=model, originals="float32", progress=False)
    store = DenseStore(index, storage="float32", device="cpu", progress=False)
    index.recode(uncentred_model)
    with pytest.raises(InputError, match=r"another model .*: call refresh\(\)"):
        store.search(queries)
    store.refresh()
    expected = DenseStore(index, storage="float32", device="cpu", progress=False)
    for mode in ("dense", "two_stage"):
        found, wanted = (each.search(queries, 5, mode=mode) for each in (store, expected))
        np.testing.assert_array_equal(found.scores, wanted.scores)
