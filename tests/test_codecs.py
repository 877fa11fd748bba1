"""The seam of codecs: what each must do, and that an index takes a new one from the list alone."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import numpy.typing as npt
import pytest

from compressae_index import CompresSAE, CompressedIndex, FormatError, InputError, SparseCodes
from compressae_index._engine import AlignedCodes
from compressae_index.arrays import FloatArray
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.embedded.codecs import (
    CODECS,
    Aligned,
    Arrays,
    Codec,
    CodecName,
    Packed,
    codec_of,
    from_arrays,
)
from compressae_index.embedded.sizes import WINDOW
from compressae_index.search.queries import MODES

N, K = WINDOW + 6000, 4


@dataclass(frozen=True, eq=False)
class Plain(Codec):
    """16-bit latents and float32 values, multiples of one learned step; scored by the aligned kernels."""

    name: ClassVar = "plain"
    array_names: ClassVar = ("latents", "values")
    learned_names: ClassVar = ("step",)

    step: float = 0.0  # before it is learned

    def fitted(self, codes: SparseCodes) -> Plain:
        if self.step:
            return self
        # A power of two, which half precision holds.
        return replace(self, step=2.0 ** math.ceil(math.log2(np.abs(codes.values).max() / 127)))

    def learned(self) -> Arrays:
        return {"step": np.array([self.step])} if self.step else {}

    def with_learned(self, learned: Arrays) -> Plain:
        if learned["step"].shape != (1,):
            msg = "step must be one number"
            raise ValueError(msg)
        return replace(self, step=float(learned["step"][0]))

    def row_bytes(self, n_latents: int, k: int) -> int:  # noqa: ARG002
        return 6 * k

    def nbytes(self, arrays: Arrays) -> dict[str, int]:
        view = arrays["latents"].size + 2 * len(arrays["latents"])  # its values and scales
        return {"forward": super().nbytes(arrays)["forward"] + view}

    def pack(
        self,
        codes: SparseCodes,
        num_threads: int = 1,  # noqa: ARG002
        dictionary: FloatArray | None = None,  # noqa: ARG002
        targets: FloatArray | None = None,  # noqa: ARG002
    ) -> Arrays:
        values = np.clip(np.rint(codes.values / self.step), -127, 127) * self.step
        return {"latents": codes.latents, "values": values.astype(np.float32)}

    def unpack(self, arrays: Arrays, n_latents: int, k: int, num_threads: int = 1) -> SparseCodes:  # noqa: ARG002
        latents, values = (np.ascontiguousarray(arrays[name]) for name in self.array_names)
        return SparseCodes(latents, values, n_latents)

    def engine(self, arrays: Arrays, n_latents: int, k: int) -> AlignedCodes:
        if arrays["latents"].shape[1:] != (k,):
            msg = f"codes have {arrays['latents'].shape[1:]} nonzeros, expected {k}"
            raise ValueError(msg)
        values = np.rint(arrays["values"] / self.step).astype(np.int8)
        scales = np.full(len(values), self.step, np.float16).view(np.uint16)
        return AlignedCodes({"latents": arrays["latents"], "values": values, "scales": scales}, n_latents)


@pytest.fixture(scope="module", autouse=True)
def listed() -> Iterator[None]:
    """All that a new codec needs outside of its own file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(CODECS, "plain", Plain)
        yield


@pytest.fixture(scope="module")
def plain(model: CompresSAE, vectors: FloatArray) -> CompressedIndex:
    """More than a window of rows, also after a ninth of them is removed. Not to be changed."""
    noise = np.random.default_rng(0).standard_normal((N, vectors.shape[1]), dtype=np.float32)
    rows = np.resize(vectors, noise.shape) + 0.01 * noise
    return CompressedIndex.build(rows, model=model, k=K, forward="plain", progress=False)  # type: ignore[arg-type]


def assert_exact(index: CompressedIndex, queries: FloatArray) -> None:
    """All modes find the best documents by float64 sums over the stored codes."""
    ids, u = index.ids, index.model.project(queries).astype(np.float64)
    mean_scores = index.model.mean_scores(queries)
    assert mean_scores is not None
    exact = (index.codes(ids).to_csr() @ u.T).T + mean_scores
    best = -np.sort(-exact, axis=1)[:, :10]
    for mode in MODES:
        nnz = None if mode == "dense" else index.model.n_latents
        candidates = len(index) if mode == "two_stage" else None
        found = index.search(queries, 10, mode=mode, query_nnz=nnz, candidates=candidates)
        np.testing.assert_allclose(found.scores, best, rtol=0, atol=1e-5)
        places = np.searchsorted(ids, found.ids, sorter=(order := np.argsort(ids)))
        own = np.take_along_axis(exact, order[places], axis=1)
        np.testing.assert_allclose(found.scores, own, rtol=0, atol=1e-5)


def assert_same_codes(index: CompressedIndex, codes: SparseCodes, ids: npt.NDArray[np.int64]) -> None:
    held = index.codes(ids)
    np.testing.assert_array_equal(held.latents, codes.latents)
    np.testing.assert_array_equal(held.values, codes.values)


def test_an_index_takes_a_new_codec(
    plain: CompressedIndex, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    """Through all changes and to disk and back, answers are exact and no row is rounded again."""
    plain = copy.copy(plain)
    assert_exact(plain, queries)
    kept = np.arange(1, WINDOW, 3)
    codes = plain.codes(kept)
    plain.add(vectors[:500])
    assert len(plain) == N + 500
    assert_exact(plain, queries)
    plain.remove(np.arange(0, WINDOW, 9))
    assert_exact(plain, queries)
    plain.save(tmp_path / "removed")
    plain.compact()
    assert_exact(plain, queries)
    plain.upsert(vectors[:3000], np.arange(2, 9002, 3))
    assert_exact(plain, queries)
    assert_same_codes(plain, codes, kept)

    plain.save(tmp_path / "index")
    for mmap in (False, True):
        loaded = CompressedIndex.load(tmp_path / "index", mmap=mmap)
        assert_exact(loaded, queries)
        assert_same_codes(loaded, codes, kept)
        assert_exact(pickle.loads(pickle.dumps(loaded)), queries)
        loaded.add(vectors[500:600])
        assert_exact(loaded, queries)

    again = CompressedIndex.load(tmp_path / "removed")
    again.add(vectors[:10])
    assert_exact(again, queries)
    assert_same_codes(again, codes, kept)


def test_sizes_are_the_codecs(plain: CompressedIndex) -> None:
    rows = len(plain) * (Plain().row_bytes(512, K) + K + 2)
    assert round(plain.stats().bytes_per_vector["forward"] * len(plain)) == rows + 8


def test_faiss_lists_pack_the_codes_of_other_codecs(plain: CompressedIndex, queries: FloatArray) -> None:
    ids = plain.ids[:1000]
    filed = FaissIndex.from_index(plain, progress=False)
    np.testing.assert_array_equal(filed.codes(ids).latents, plain.codes(ids).latents)
    np.testing.assert_allclose(filed.codes(ids).values, plain.codes(ids).values, atol=0.02)
    assert len(filed.search(queries, 10).ids) == len(queries)


def test_files_of_an_unlisted_codec_are_refused(
    plain: CompressedIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.save(tmp_path / "index")
    (file,) = tmp_path.rglob("forward_step.npy")
    assert np.load(file).shape == (1,)
    monkeypatch.delitem(CODECS, "plain")
    with pytest.raises(FormatError, match="forward must be one of 'packed', 'aligned', got 'plain'"):
        CompressedIndex.load(tmp_path / "index")


def some_codes(n: int) -> SparseCodes:
    rng = np.random.default_rng(n)
    latents = np.sort(rng.permuted(np.tile(np.arange(300), (n, 1)), axis=1)[:, :8], axis=1)
    return SparseCodes(latents.astype(np.uint16), rng.standard_normal((n, 8), dtype=np.float32), 300)


def fitted(name: str) -> Codec:
    return CODECS[name].of({}).fitted(some_codes(2000))


each_codec = pytest.mark.parametrize("name", [*CODECS, "plain"])


@each_codec
def test_arrays_are_stored_and_read(name: str) -> None:
    codec = fitted(name)
    arrays = codec.pack(some_codes(20))
    assert sum(array.nbytes for array in arrays.values()) == 20 * codec.row_bytes(300, 8)
    assert tuple(arrays) == codec.array_names
    assert tuple(codec.learned()) == codec.learned_names
    stored = codec.to_arrays(arrays)
    by_row, learned = codec.stored_names()
    assert set(stored) == by_row | learned
    read, rows = from_arrays(codec.manifest(), stored | {"alive": np.empty(0)})
    assert read.agrees_with(codec)
    assert rows.keys() == arrays.keys()
    assert all(rows[each] is array for each, array in arrays.items())
    # Without documents, what was learned is stored alone.
    assert set(codec.to_arrays({})) == learned
    assert from_arrays(codec.manifest(), codec.to_arrays({}))[0].agrees_with(codec)


@each_codec
def test_rows_are_cut_stacked_and_gathered(name: str) -> None:
    codec, codes = fitted(name), some_codes(30)
    arrays = codec.pack(codes)
    pieces = [codec.cut(arrays, slice(first, last)) for first, last in ((0, 10), (10, 11), (11, 30))]
    whole = codec.unpack(arrays, 300, 8)
    for each in (codec.stacked(pieces), codec.gathered(pieces, np.arange(30))):
        assert {key: array.tolist() for key, array in each.items()} == {
            key: array.tolist() for key, array in arrays.items()
        }
    assert codec.stacked(pieces[:1]) is pieces[0]
    wanted = np.array([29, 0, 10, 10, 3])
    for some in (pieces, [arrays]):
        taken = codec.unpack(codec.gathered(some, wanted), 300, 8)
        np.testing.assert_array_equal(taken.latents, whole.latents[wanted])
        np.testing.assert_array_equal(taken.values, whole.values[wanted])


@each_codec
def test_the_engine_scores_what_is_unpacked(name: str) -> None:
    codec = fitted(name)
    arrays = codec.pack(some_codes(40))
    u = np.random.default_rng(1).standard_normal((1, 300)).astype(np.float32)
    scores, rows = codec.engine(arrays, 300, 8).search(u, 40, None, 1)
    exact = codec.unpack(arrays, 300, 8).to_dense().astype(np.float64) @ u[0]
    np.testing.assert_allclose(scores[0], exact[rows[0]], rtol=0, atol=1e-4)


def test_codecs_that_agree() -> None:
    codes = some_codes(2000)
    first = Packed().fitted(codes)
    assert first.agrees_with(Packed().fitted(codes))
    assert Aligned().agrees_with(Aligned())
    other = replace(first, levels=np.sqrt(first.learned()["levels"]))
    for stranger in (other, Packed(), Packed(5).fitted(codes), Aligned()):
        assert not first.agrees_with(stranger)
        assert not stranger.agrees_with(first)


def test_the_list_of_codecs() -> None:
    assert get_args(CodecName) == tuple(name for name in CODECS if name != "plain")
    assert all(codec.name == name for name, codec in CODECS.items())
    # A setting of another codec is ignored from users, and refused in manifests.
    assert isinstance(codec_of("aligned", value_bits=6), Aligned)
    with pytest.raises(TypeError, match="value_bits"):
        from_arrays({"forward": "aligned", "value_bits": 6}, {})
    with pytest.raises(InputError, match="forward must be one of 'packed', 'aligned', 'plain', got 'zipped'"):
        from_arrays({"forward": "zipped"}, {})
