"""Codes in Faiss's inverted lists: the engine's sums over Faiss's memory, and the index over them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bitmap, overlap

from compressae_index import CompresSAE, CompressedIndex, DimensionError, FormatError, InputError, SparseCodes
from compressae_index._engine import BorrowedLists
from compressae_index.arrays import FloatArray
from compressae_index.coding.chunks import Encoded
from compressae_index.connectors.faiss import FaissIndex, to_faiss
from compressae_index.connectors.faiss import lists as faiss_lists
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Aligned, CodecName, Packed, codec_of
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.search.stages import strongest_terms
from compressae_index.sources import CHUNK_ROWS
from compressae_index.testing import assert_best


def summed(index: Any, terms: SparseCodes, n: int) -> npt.NDArray[np.float64]:
    """Sums over the terms' lists by numpy, from Faiss's memory, (n_queries, n) float64."""
    scores = np.zeros((len(terms), n))
    lists = faiss.downcast_InvertedLists(index.invlists)
    for row, (latents, weights) in enumerate(zip(terms.latents, terms.values, strict=True)):
        for latent, weight in zip(latents.tolist(), weights, strict=True):
            if size := lists.list_size(latent):
                documents = faiss.rev_swig_ptr(lists.get_ids(latent), size).copy()
                values = faiss.rev_swig_ptr(lists.get_codes(latent), 2 * size).copy().view(np.float16)
                np.add.at(scores[row], documents, np.float64(weight) * values.astype(np.float64))
    return scores


def random_codes(seed: int, n: int, k: int, n_latents: int) -> SparseCodes:
    rng = np.random.default_rng(seed)
    latents = np.argsort(rng.random((n, n_latents)), axis=1)[:, :k]
    latents.sort(axis=1)
    values = rng.standard_normal((n, k)) * (rng.random((n, k)) > 0.2)
    return SparseCodes(latents.astype(np.uint16), values.astype(np.float32), n_latents)


@pytest.fixture(scope="module")
def filed(built: CompressedIndex) -> FaissIndex:
    """The 4,000 embeddings in Faiss's lists. Not to be changed."""
    return FaissIndex.from_index(built, progress=False)


@pytest.fixture
def few(model: CompresSAE, vectors: FloatArray) -> FaissIndex:
    """300 embeddings with ids 1000 .. 1299, for tests that change it."""
    index = FaissIndex(model, k=16)
    index.add(vectors[:300], np.arange(1000, 1300))
    return index


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 200),
    n_latents=st.integers(4, 40),
    threads=st.integers(1, 2),
    filtered=st.booleans(),
)
def test_the_engine_adds_up_as_numpy_does(
    seed: int, n: int, n_latents: int, threads: int, filtered: bool
) -> None:
    codes, terms = random_codes(seed, n, 3, n_latents), random_codes(seed + 1, 5, 4, n_latents)
    index = faiss_lists.empty_lists(n_latents)
    faiss_lists.append(index, codes[: n // 2], 0)
    faiss_lists.append(index, codes[n // 2 :], n // 2)
    allowed = np.random.default_rng(seed).random(n) > 0.5 if filtered else np.ones(n, dtype=bool)
    marks = bitmap(allowed) if filtered else None
    view = faiss_lists.borrowed(index, n)
    scores, rows = view.search(terms.latents, terms.values, n, marks, threads)
    expected = summed(index, terms, n)
    assert_best((scores, rows), expected, n, allowed=allowed)


def test_documents_beyond_one_window_are_found() -> None:
    n, latents = 70_000, 3
    rng = np.random.default_rng(0)
    codes = SparseCodes(
        np.broadcast_to(np.arange(2, dtype=np.uint16), (n, 2)).copy(),
        rng.standard_normal((n, 2)).astype(np.float32),
        latents,
    )
    index = faiss_lists.empty_lists(latents)
    faiss_lists.append(index, codes, 0)
    terms = random_codes(1, 3, 2, latents)
    scores, rows = faiss_lists.borrowed(index, n).search(terms.latents, terms.values, 50, None, 1)
    expected = summed(index, terms, n)
    assert rows.max() > 65_536
    for score, found, exact in zip(scores, rows, expected, strict=True):
        np.testing.assert_allclose(score, np.sort(exact)[::-1][:50], atol=1e-5)
        np.testing.assert_allclose(exact[found], score, atol=1e-5)


@pytest.mark.parametrize("document", [-1, 5, 2**62, -(2**63)])
def test_a_document_outside_writes_nowhere_and_is_named(document: int) -> None:
    index = faiss_lists.empty_lists(2)
    documents, halves = np.array([0, document]), np.ones(2, np.float16).view(np.uint8)
    index.invlists.add_entries(1, 2, faiss.swig_ptr(documents), faiss.swig_ptr(halves))
    if document < 0:
        for read in (faiss_lists.stats, faiss_lists.read_codes):
            with pytest.raises(FormatError, match=f"hold the row {document}"):
                read(index)
    view = faiss_lists.borrowed(index, 5)
    with pytest.raises(ValueError, match=f"holds document {document} at place 1"):
        view.search(np.array([[1]], np.uint16), np.ones((1, 1), np.float32), 5, None, 1)
    # A search of other lists goes on, with clean accumulators.
    scores, _ = view.search(np.array([[0]], np.uint16), np.ones((1, 1), np.float32), 5, None, 1)
    assert (scores == 0).all()


def test_a_list_out_of_order_is_named() -> None:
    index = faiss_lists.empty_lists(1)
    n = 70_000
    documents, halves = np.arange(n)[::-1].copy(), np.ones(n, np.float16).view(np.uint8)
    index.invlists.add_entries(0, n, faiss.swig_ptr(documents), faiss.swig_ptr(halves))
    with pytest.raises(ValueError, match="out of order"):
        faiss_lists.borrowed(index, n).search(
            np.array([[0]], np.uint16), np.ones((1, 1), np.float32), 5, None, 1
        )


def test_the_engine_refuses_what_does_not_fit() -> None:
    addresses, counts = np.zeros(2, np.uint64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="length of documents is 1"):
        BorrowedLists(addresses[:1], addresses, counts, 5)
    with pytest.raises(ValueError, match="postings at no address"):
        BorrowedLists(addresses, addresses, counts + 1, 5)
    view = BorrowedLists(addresses, addresses, counts, 5)
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="latent 2 is outside"):
        view.search(np.array([[2]], np.uint16), one, 5, None, 1)
    with pytest.raises(ValueError, match="columns of weights"):
        view.search(np.array([[0, 1]], np.uint16), one, 5, None, 1)
    with pytest.raises(ValueError, match="bytes of the allowed bitmap"):
        view.search(np.array([[0]], np.uint16), one, 5, np.zeros(3, np.uint8), 1)


def test_sparse_scores_are_exact_sums(filed: FaissIndex, model: CompresSAE, queries: FloatArray) -> None:
    terms = strongest_terms(model.project(queries), 32)
    mean_scores = model.mean_scores(queries)
    assert mean_scores is not None
    expected = summed(filed.faiss_index, terms, len(filed)) + mean_scores
    found = filed.search(queries, 20, mode="sparse", query_nnz=32)
    assert_best(found, expected, 20)
    assert found.certified is not None
    assert found.certified.all()


def test_two_stage_scores_are_those_of_the_codes(
    filed: FaissIndex, built: CompressedIndex, model: CompresSAE, queries: FloatArray
) -> None:
    found = filed.search(queries, 10, candidates=4000)
    exact = model.project(queries).astype(np.float64) @ built.codes(built.ids).to_csr().T.toarray()
    exact += model.mean_scores(queries)
    np.testing.assert_allclose(
        np.take_along_axis(exact, found.ids.astype(int), axis=1), found.scores, atol=1e-6
    )
    embedded = built.search(queries, 10, mode="dense")
    assert overlap(found.ids, embedded.ids) > 0.98
    np.testing.assert_allclose(found.scores, embedded.scores, atol=1e-6)


def test_codes_stay_what_they_are(
    filed: FaissIndex, built: CompressedIndex, model: CompresSAE, vectors: FloatArray
) -> None:
    np.testing.assert_array_equal(filed.codes(built.ids).to_dense(), built.codes(built.ids).to_dense())
    assert filed.documents.nbytes["forward"] == 4000 * Packed(6).row_bytes(512, 16)
    aligned = CompressedIndex.build(vectors[:300], model=model, k=16, forward="aligned", progress=False)
    copied = FaissIndex.from_index(aligned, progress=False)
    np.testing.assert_array_equal(copied.codes(aligned.ids).to_dense(), aligned.codes(aligned.ids).to_dense())
    assert copied.documents.nbytes["forward"] == 300 * Aligned().row_bytes(512, 16)


def test_lists_hold_the_values_of_the_packed_rows(filed: FaissIndex) -> None:
    read = faiss_lists.read_codes(filed.faiss_index)
    packed = filed.codes(filed.ids)
    np.testing.assert_array_equal(read.to_dense(), packed.to_dense().astype(np.float16).astype(np.float32))


def test_plain_faiss_reads_the_lists(filed: FaissIndex, model: CompresSAE, tmp_path: Path) -> None:
    faiss.write_index(filed.faiss_index, str(tmp_path / "lists.faiss"))
    read = faiss.read_index(str(tmp_path / "lists.faiss"))
    assert isinstance(read, faiss.IndexIVFScalarQuantizer)
    assert (read.d, read.nlist) == (1, model.n_latents)
    code = filed.codes([7])
    latent, value = int(code.latents[0, 3]), float(code.values[0, 3])
    lists: Any = read.invlists
    ids = faiss.rev_swig_ptr(lists.get_ids(latent), lists.list_size(latent))
    place = int(np.flatnonzero(ids == 7)[0])
    decoded = np.empty(1, dtype=np.float32)
    read.reconstruct_from_offset(latent, place, faiss.swig_ptr(decoded))
    assert decoded[0] == np.float16(value)


def test_filters_are_ids_or_a_mask(few: FaissIndex, queries: FloatArray) -> None:
    allowed = [1003, 1100, 1299]
    for mode in ("sparse", "two_stage"):
        by_ids = few.search(queries, 5, mode=mode, filter=allowed)
        by_mask = few.search(queries, 5, mode=mode, filter=np.isin(np.arange(1000, 1300), allowed))
        assert (np.sort(by_ids.ids, axis=1) == [-1, -1, *allowed]).all()
        assert (by_ids.scores[:, 3:] == -np.inf).all()
        np.testing.assert_array_equal(by_ids.ids, by_mask.ids)
    nothing = few.search(queries, 5, filter=np.zeros(300, dtype=bool))
    assert (nothing.ids == -1).all()
    assert nothing.certified is not None
    assert nothing.certified.all()
    with pytest.raises(DimensionError, match="shape"):
        few.search(queries, 5, filter=np.ones(299, dtype=bool))
    with pytest.raises(InputError, match="unknown id 7"):
        few.search(queries, 5, filter=[7])


def test_added_removed_and_replaced(few: FaissIndex, vectors: FloatArray) -> None:
    few.remove([1000, 1001])
    assert len(few) == 298
    few.add(vectors[:1], [1000])
    few.upsert(vectors[5:7], [1002, 2000])
    assert len(few) == 300
    found = few.search(vectors[[0, 1, 5]], 2, candidates=300)
    assert found.ids[0, 0] == 1000
    assert 1001 not in found.ids
    assert set(found.ids[2]) == {1002, 1005}
    assert few.reconstruct([1002])[0] @ vectors[5] > 0.5
    with pytest.raises(InputError, match="already in the index"):
        few.add(vectors[:1], [1000])
    before = few.search(vectors[:20], 5)
    few.compact()
    after = few.search(vectors[:20], 5)
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert few.faiss_index.ntotal == np.count_nonzero(few.codes(few.ids).values)
    assert few.documents.nbytes["forward"] == 300 * Packed(8).row_bytes(512, 16)


def test_string_ids(model: CompresSAE, vectors: FloatArray, tmp_path: Path) -> None:
    index = FaissIndex(model, k=16, string_ids=True)
    index.add(vectors[:50], [f"item-{i}" for i in range(50)])
    index.remove(["item-3"])
    index.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index")
    found = loaded.search(vectors[:5], 60)
    assert found.ids[0, 0] == "item-0"
    assert "item-3" not in found.ids
    assert found.ids[0, 49] is None
    with pytest.raises(InputError, match="strings"):
        loaded.add(vectors[:1], [1])


@pytest.mark.parametrize("mmap", [False, True])
def test_saved_and_loaded(
    few: FaissIndex, queries: FloatArray, vectors: FloatArray, tmp_path: Path, mmap: bool
) -> None:
    few.remove([1010])
    few.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index", mmap=mmap)
    for mode in ("sparse", "two_stage"):
        a, b = few.search(queries, 10, mode=mode), loaded.search(queries, 10, mode=mode)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
    if mmap:
        with pytest.raises(InputError, match="mapped from a file"):
            loaded.add(vectors[:1], [1])
        loaded.remove([1011])
        # Mapped lists are saved as a whole, also in place of the file that they are.
        loaded.save(tmp_path / "index")
        assert len(FaissIndex.load(tmp_path / "index")) == 298
        loaded.compact()
    loaded.add(vectors[:1], [1])
    assert loaded.search(vectors[0], 1).ids[0, 0] in (1, 1000)


def test_an_empty_index(model: CompresSAE, queries: FloatArray, tmp_path: Path) -> None:
    empty = FaissIndex(model, k=16)
    empty.save(tmp_path / "index")
    loaded = FaissIndex.load(tmp_path / "index")
    assert (loaded.search(queries, 3).ids == -1).all()
    assert len(loaded) == 0
    named = FaissIndex(model, k=16, string_ids=True)
    assert set(named.search(queries, 3).ids.ravel()) == {None}


def test_damaged_directories_are_named(few: FaissIndex, tmp_path: Path) -> None:
    few.save(tmp_path / "index")
    for path in sorted((tmp_path / "index").rglob("lists.faiss")):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1  # Faiss itself would not notice
        path.write_bytes(bytes(content))
    with pytest.raises(FormatError, match=r"lists\.faiss does not match its checksum"):
        FaissIndex.load(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    few.save(tmp_path / "index")
    next((tmp_path / "index").rglob("lists.faiss")).unlink()
    with pytest.raises(FormatError, match=r"lists\.faiss is missing"):
        FaissIndex.load(tmp_path / "index")


def test_shards_are_merged(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    one, two = FaissIndex(model, k=16), FaissIndex(model, k=16)
    one.add(vectors[:1500], np.arange(1500))
    two.add(vectors[1500:3000], np.arange(1500, 3000))
    two.remove([1600])
    one.merge(two)
    assert (len(one), len(two)) == (2999, 1499)
    moved = two.ids
    # What the codebook of one rounds, as if two's codes were added to it.
    off = np.linalg.norm(one.reconstruct(moved) - two.reconstruct(moved), axis=1)
    assert off.max() < 0.02
    found = one.search(vectors[1500:1520], 1, candidates=3000)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(1500, 1520))
    assert not np.isin(1600, one.search(vectors[1600], 2999).ids)
    # An empty index takes over the codebook, and rows stay as they are.
    empty = FaissIndex(model, k=16)
    empty.merge(two)
    np.testing.assert_array_equal(empty.codes(moved).values, two.codes(moved).values)
    a, b = empty.search(queries, 10), two.search(queries, 10)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)
    with pytest.raises(InputError, match="id 1500 is in both"):
        one.merge(two)
    assert len(one) == 2999
    with pytest.raises(InputError, match="agree"):
        one.merge(FaissIndex(model, k=8))


def test_from_lists_alone(built: CompressedIndex, queries: FloatArray, model: CompresSAE) -> None:
    exported = to_faiss(built, "inverted", progress=False)
    index = FaissIndex.from_lists(exported, model)
    settings: Any = {"candidates": 1000, "query_nnz": 64}
    other = FaissIndex.from_index(built, progress=False)
    a, b = index.search(queries, 10, **settings), other.search(queries, 10, **settings)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
    named = FaissIndex.from_lists(exported, model, [f"row {i}" for i in range(4000)])
    assert named.search(queries, 1, **settings).ids[0, 0] == f"row {a.ids[0, 0]}"
    with pytest.raises(FormatError, match="IndexFlat"):
        FaissIndex.from_lists(faiss.IndexFlatIP(3), model)
    with pytest.raises(FormatError, match="4 lists, the model 512"):
        FaissIndex.from_lists(faiss_lists.empty_lists(4), model)


@pytest.mark.parametrize("unit", [1.0, 2.0**-6])
def test_inner_products(
    vectors: FloatArray, queries: FloatArray, uncentred_model: CompresSAE, tmp_path: Path, unit: float
) -> None:
    lengths = np.random.default_rng(0).uniform(0.5, 2, size=(500, 1)).astype(np.float32) * unit
    built = CompressedIndex.build(
        vectors[:500] * lengths, model=uncentred_model, k=16, metric="inner_product", progress=False
    )
    index = FaissIndex.from_index(built, progress=False)
    index.save(tmp_path / "index")
    expected = built.search(queries * 3, 5, mode="dense")
    for one in (index, FaissIndex.load(tmp_path / "index")):
        found = one.search(queries * 3, 5, candidates=500)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        sums = one.search(queries * 3, 5, mode="sparse", query_nnz=512)
        np.testing.assert_allclose(sums.scores, expected.scores, rtol=1e-3)


def test_values_beyond_half_precision_are_refused(vectors: FloatArray, uncentred_model: CompresSAE) -> None:
    built = CompressedIndex.build(
        vectors[:50] * 2.0**20, model=uncentred_model, k=16, metric="inner_product", progress=False
    )
    with pytest.raises(InputError, match="beyond half precision"):
        FaissIndex.from_index(built, progress=False)


def test_codes_of_another_shape_are_refused(few: FaissIndex) -> None:
    with pytest.raises(DimensionError, match="expected"):
        few.documents.put(random_codes(0, 2, 3, 512), np.arange(2))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a saved index, without the random name of its folder."""
    return {file.name: file.read_bytes() for file in folder.glob("data-*/*")}


@pytest.mark.parametrize("form", ["packed", "aligned"])
def test_lists_built_on_disk_are_those_built_in_memory(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path, form: CodecName
) -> None:
    n = 2 * CHUNK_ROWS + 100
    codes = model.fold(model.encode(vectors, 16))
    repeated = SparseCodes.concatenate([codes] * (n // len(codes) + 1))[:n]
    backend = EmbeddedBackend(model.n_latents, 16, codec_of(form)).added([Encoded(repeated)], 1)
    index = CompressedIndex(model, documents=EmbeddedDocuments(backend))
    index.remove(np.arange(50, 5000))
    FaissIndex.from_index(index, progress=False).save(tmp_path / "memory")
    built = FaissIndex.from_index(index, tmp_path / "disk", progress=False)
    assert contents(tmp_path / "disk") == contents(tmp_path / "memory")
    assert isinstance(faiss.downcast_InvertedLists(built.faiss_index.invlists), faiss.OnDiskInvertedLists)
    for mode in ("sparse", "two_stage"):
        a = built.search(queries, 10, mode=mode)
        b = FaissIndex.load(tmp_path / "memory").search(queries, 10, mode=mode)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
    # Mapped lists are written as they were read.
    built.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "memory")


@pytest.mark.parametrize(("n", "n_latents"), [(0, 5), (2, 1000), (700, 9)])
def test_files_of_lists_are_read_by_faiss(tmp_path: Path, n: int, n_latents: int) -> None:
    codes = random_codes(3, n, 3, n_latents)
    expected = faiss_lists.empty_lists(n_latents)
    faiss_lists.append(expected, codes, 0)
    faiss_lists.write_codes(tmp_path / "lists", n_latents, lambda: [codes[: n // 3], codes[n // 3 :]])
    for read in (
        faiss_lists.read_lists(tmp_path / "lists"),
        faiss_lists.read_lists(tmp_path / "lists", mmap=True),
    ):
        assert read.ntotal == expected.ntotal
        assert faiss_lists.stats(read) == faiss_lists.stats(expected)
        if n:
            held = faiss_lists.read_codes(read).to_dense()
            np.testing.assert_array_equal(held, faiss_lists.read_codes(expected).to_dense())


def test_a_build_on_disk_that_fails_leaves_nothing(
    few: FaissIndex,
    built: CompressedIndex,
    vectors: FloatArray,
    uncentred_model: CompresSAE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = CompressedIndex.build(
        vectors[:50] * 2.0**20, model=uncentred_model, k=16, metric="inner_product", progress=False
    )
    with pytest.raises(InputError, match="beyond half precision"):
        FaissIndex.from_index(large, tmp_path / "new", progress=False)
    few.save(tmp_path / "held")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(faiss_lists, "write_codes", full)
        with pytest.raises(OSError, match="No space left"):
            FaissIndex.from_index(built, tmp_path / "held", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
    assert len(list((tmp_path / "held").iterdir())) == 2
    assert len(FaissIndex.load(tmp_path / "held")) == 300
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("dear diary")
    with pytest.raises(FormatError, match="was not written by compressae-index"):
        FaissIndex.from_index(built, tmp_path / "foreign", progress=False)


@pytest.mark.parametrize("string_ids", [False, True])
def test_an_empty_index_is_built_on_disk(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path, string_ids: bool
) -> None:
    ids = ["a", "b"] if string_ids else [5, 7]
    for form in get_args(CodecName):
        index = CompressedIndex.build(vectors[:2], ids, model=model, k=16, forward=form, progress=False)
        found = FaissIndex.from_index(index, tmp_path / form, progress=False).search(vectors[:2], 1)
        assert found.ids.ravel().tolist() == ids
        index.remove(ids)
        nothing = FaissIndex.from_index(index, tmp_path / f"{form} empty", progress=False)
        assert len(nothing) == 0
        assert set(nothing.search(queries, 2).ids.ravel()) <= {None, -1}
