"""Plain Faiss indexes: an IVF over the dictionary, and vectors and codes to and from Faiss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from oracles import nearest, overlap

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError
from compressae_index.arrays import FloatArray
from compressae_index.checks import normalize_rows
from compressae_index.connectors.faiss import FaissVectors, dictionary_ivf, from_faiss, search_once, to_faiss

IP = faiss.METRIC_INNER_PRODUCT


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Faiss's threads wait for each other where other work runs."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def list_of(index: Any, number: int) -> set[int]:
    lists, number = index.invlists, int(number)
    size = lists.list_size(number)
    return set(faiss.rev_swig_ptr(lists.get_ids(number), size).tolist()) if size else set()


def test_vectors_stand_under_their_strongest_signed_latent(model: CompresSAE, vectors: FloatArray) -> None:
    rows = vectors[:500]
    index = dictionary_ivf(rows, model, ids=np.arange(500) * 3, progress=False)
    products = normalize_rows(rows).astype(np.float64) @ model.decoder_w.T
    strongest = np.abs(products).argmax(axis=1)
    against = products[np.arange(500), strongest] < 0
    for row, number in enumerate(strongest + model.n_latents * against):
        assert 3 * row in list_of(index, int(number))
    assert index.ntotal == 500


def test_several_assignments_are_the_latents_of_the_code(model: CompresSAE, vectors: FloatArray) -> None:
    index = dictionary_ivf(vectors[:200], model, assignments=3, progress=False)
    codes = model.encode(vectors[:200], 3)
    for row, (latents, values) in enumerate(zip(codes.latents.tolist(), codes.values, strict=True)):
        for latent, value in zip(latents, values, strict=True):
            assert row in list_of(index, latent + model.n_latents * (value < 0))
    assert index.ntotal == 600


@pytest.mark.parametrize("payload", ["Flat", "SQfp16", "SQ8", "PQ16x4", "RaBitQ", "PQ16x4fs"])
def test_plain_faiss_reads_and_searches_it(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, payload: str, tmp_path: Path
) -> None:
    rows = vectors[:1500]
    index = dictionary_ivf(rows, model, payload=payload, progress=False)
    faiss.write_index(index, str(tmp_path / "ivf.faiss"))
    read: Any = faiss.read_index(str(tmp_path / "ivf.faiss"))
    unit = normalize_rows(queries)
    read.nprobe = read.nlist
    scores, ids = read.search(unit, 10)
    assert (np.sort(ids, axis=1) >= 0).all()
    if payload == "Flat":
        exact = unit @ normalize_rows(rows).T
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)
    else:
        # All lists are probed, so the payload alone decides; a random choice would share 0.7 %.
        shared = overlap(ids, nearest(rows, queries, 10))
        assert shared > {"SQfp16": 0.99, "SQ8": 0.9, "PQ16x4": 0.35, "PQ16x4fs": 0.2, "RaBitQ": 0.4}[payload]
    np.testing.assert_array_equal(
        read.quantizer.reconstruct_n(0, read.nlist), np.concatenate([model.decoder_w, -model.decoder_w])
    )


@pytest.fixture(scope="module")
def points(vectors: FloatArray) -> FloatArray:
    """1,500 rows of norms from 1 to 3, around a point far from 0; one is 0."""
    rows = vectors[:1500] * np.linspace(1, 3, 1500, dtype=np.float32)[:, None] + np.float32(0.05)
    rows[4] = 0
    return rows


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ("Flat", True),
        ("SQ8", False),
        ("RaBitQ", False),
        *(("PQ16x4fs,Refine(SQfp16)", n) for n in (False, True)),
    ],
)
def test_of_a_model_with_a_center_it_finds_by_distances(
    uncentred_model: CompresSAE,
    points: FloatArray,
    queries: FloatArray,
    payload: str,
    named: bool,
    tmp_path: Path,
) -> None:
    model = uncentred_model.centred_at(points.mean(axis=0))
    ids = np.arange(1500) * 3 + 7 if named else None
    index = dictionary_ivf(points, model, payload=payload, ids=ids, progress=False)
    faiss.write_index(index, str(tmp_path / "ivf.faiss"))
    read: Any = faiss.read_index(str(tmp_path / "ivf.faiss"))
    assert (read.metric_type, read.ntotal) == (faiss.METRIC_L2, 1500)
    asked = np.concatenate([2 * queries + np.float32(0.05), np.zeros_like(queries[:1])])
    exact = np.square(asked.astype(np.float64)[:, None] - points[None]).sum(axis=2)
    shares = []
    for probes in (1024, 16):
        faiss.ParameterSpace().set_index_parameter(read, "nprobe", probes)
        distances, found = read.search(asked, 10)
        found = (found - 7) // 3 if named else found
        shares.append(overlap(found, np.argsort(exact, axis=1)[:, :10]))
    assert shares[0] > {"Flat": 0.999, "SQ8": 0.9, "RaBitQ": 0.35}.get(payload, 0.75)
    assert shares[1] > 0.15  # by a 64th of the lists
    if payload == "Flat":
        there = found >= 0  # few lists may hold fewer
        expected = np.take_along_axis(exact, found, axis=1)
        np.testing.assert_allclose(distances[there], expected[there], rtol=1e-3, atol=1e-4)
        assert found[-1, 0] == 4


def test_several_assignments_by_distances(
    uncentred_model: CompresSAE, points: FloatArray, queries: FloatArray
) -> None:
    model = uncentred_model.centred_at(points.mean(axis=0))
    index = dictionary_ivf(points, model, assignments=3, progress=False)
    assert index.ntotal == 4500
    ivf = faiss.extract_index_ivf(index)
    ivf.nprobe = ivf.nlist
    asked = 2 * queries + np.float32(0.05)
    exact = np.square(asked.astype(np.float64)[:, None] - points[None]).sum(axis=2)
    distances, found = search_once(index, asked, 12, 3)
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :12], rtol=1e-3)
    assert overlap(found, np.argsort(exact, axis=1)[:, :12]) > 0.99
    few = dictionary_ivf(points[:3], model, assignments=2, progress=False)
    faiss.extract_index_ivf(few).nprobe = 1024
    distances, found = search_once(few, asked[:1], 5, 2)
    assert (distances[0, 3:] == np.inf).all()
    assert found[0, 3:].tolist() == [-1, -1]


@pytest.mark.parametrize("named", [False, True])
def test_a_payload_that_refines(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, named: bool, tmp_path: Path
) -> None:
    rows, ids = vectors[:1500], np.arange(1500) * 3 + 7 if named else None
    payload = "PQ16x4fs,Refine(SQfp16)"
    index = dictionary_ivf(rows, model, payload=payload, ids=ids, progress=False)
    faiss.write_index(index, str(tmp_path / "ivf.faiss"))
    read: Any = faiss.read_index(str(tmp_path / "ivf.faiss"))
    faiss.ParameterSpace().set_index_parameter(read, "nprobe", 1024)
    unit = normalize_rows(queries)
    scores, found = read.search(unit, 10)
    found = (found - 7) // 3 if named else found
    assert overlap(found, nearest(rows, queries, 10)) > 0.7  # of the best 100 by 4 bits for 24 dimensions
    exact = unit @ normalize_rows(rows).T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, found, axis=1), atol=1e-3)


def test_search_once_gives_each_id_once(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    index = dictionary_ivf(vectors[:1500], model, assignments=4, progress=False)
    index.nprobe = index.nlist
    scores, ids = search_once(index, queries * 5, 20, 4)
    exact = normalize_rows(queries) @ normalize_rows(vectors[:1500]).T
    assert all(len(set(row)) == 20 for row in ids.tolist())
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :20], atol=1e-5)
    few = dictionary_ivf(vectors[:3], model, assignments=2, progress=False)
    few.nprobe = few.nlist
    scores, ids = search_once(few, queries[:1], 5, 2)
    assert sorted(ids[0].tolist()) == [-1, -1, 0, 1, 2]
    assert (scores[0, 3:] == -np.inf).all()


def test_an_ivf_refuses(model: CompresSAE, vectors: FloatArray) -> None:
    with pytest.raises(InputError, match="integers, got strings"):
        dictionary_ivf(vectors[:2], model, ids=["a", "b"])
    with pytest.raises(DimensionError, match="dimension 3, expected 384"):
        dictionary_ivf(vectors[:2, :3], model)
    with pytest.raises(InputError, match="payload 'Nonsense'"):
        dictionary_ivf(vectors[:2], model, payload="Nonsense")
    with pytest.raises(InputError, match="takes 1 assignment, got 2"):
        dictionary_ivf(vectors[:2], model, payload="PQ16x4fs", assignments=2)
    with pytest.raises(InputError, match="takes 1 assignment, got 2: what refines holds each vector once"):
        dictionary_ivf(vectors[:2], model, payload="SQ8,RFlat", assignments=2)
    with pytest.raises(InputError, match="cannot train the payload on 2 vectors"):
        dictionary_ivf(vectors[:2], model, payload="PQ48")
    with pytest.raises(InputError, match="NaN"):
        dictionary_ivf(np.full((2, 384), np.nan, np.float32), model)


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 5e-3)])
def test_flat_indexes_score_as_dense_does(
    built: CompressedIndex, queries: FloatArray, kind: Any, tolerance: float, tmp_path: Path
) -> None:
    faiss.write_index(to_faiss(built, kind, progress=False), str(tmp_path / "flat.faiss"))
    read = faiss.read_index(str(tmp_path / "flat.faiss"))
    assert isinstance(read, faiss.IndexFlat if kind == "float32" else faiss.IndexScalarQuantizer)
    scores, ids = read.search(normalize_rows(queries), 10)
    expected = built.search(queries, 10, mode="dense")
    np.testing.assert_allclose(scores, expected.scores, atol=tolerance)
    # Documents that are nearly level may change places: each still has its own score.
    everything = built.search(queries, len(built), mode="dense")
    by_id = np.take_along_axis(everything.scores, np.argsort(everything.ids, axis=1), axis=1)
    np.testing.assert_allclose(scores, np.take_along_axis(by_id, ids, axis=1), atol=tolerance)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("settings", [{"residual_bits": 4}, {"originals": "float32"}, {}], ids=str)
def test_plain_faiss_refines_what_a_quantiser_finds(
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    settings: dict[str, Any],
    named: bool,
    tmp_path: Path,
) -> None:
    ids = np.arange(1500) * 3 + 7 if named else np.arange(1500)
    index = CompressedIndex.build(vectors[:1500], ids, model=model, k=16, progress=False, **settings)
    exported = to_faiss(index, "SQ4", refine="float16", progress=False)
    faiss.write_index(exported, str(tmp_path / "refined.faiss"))
    read: Any = faiss.read_index(str(tmp_path / "refined.faiss"), faiss.IO_FLAG_MMAP_IFC)
    known = index.documents.vectors(ids, model)
    if "originals" in settings:
        np.testing.assert_allclose(known, normalize_rows(vectors[:1500]), atol=1e-6)
    unit = normalize_rows(queries)
    exact = unit.astype(np.float64) @ known.T
    best = ids[np.argsort(-exact, axis=1)[:, :10]]
    scores, found = read.search(unit, 10)
    refined = overlap(found, best)
    assert refined > 0.995
    rows = (found - 7) // 3 if named else found
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=1e-3)
    alone = to_faiss(index, "SQ4", progress=False)
    library: Any = faiss  # whose stubs lack keyword arguments of parameters
    unrefined = read.search(unit, 10, params=library.IndexRefineSearchParameters(k_factor=1))
    # A quantiser alone ranks by its own vectors, and so worse.
    within: Any = faiss.downcast_index(read.index if named else read)
    base = faiss.downcast_index(within.base_index)
    for quantiser, (_, unsure) in (
        (base, unrefined),
        (faiss.downcast_index(alone.index if named else alone), alone.search(unit, 10)),
    ):
        by_quantiser = np.argsort(-(unit.astype(np.float64) @ quantiser.reconstruct_n(0, 1500).T), axis=1)
        assert overlap(unsure, ids[by_quantiser[:, :10]]) > 0.995
        assert 0.6 < overlap(unsure, best) < refined
    np.testing.assert_allclose(read.reconstruct(int(ids[5])), known[5], atol=1e-3)
    np.testing.assert_allclose(FaissVectors(read)[0:1500], known, atol=1e-3)


def test_inner_products_are_refined_in_their_own_norms(
    uncentred_model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    rows = vectors[:600] * np.linspace(20, 60, 600, dtype=np.float32)[:, None]
    index = CompressedIndex.build(
        rows, model=uncentred_model, metric="inner_product", originals="float16", progress=False
    )
    exported = to_faiss(index, "SQ8", refine="float32", progress=False)
    scores, found = exported.search(queries, 10)
    exact = queries.astype(np.float64) @ rows.T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], rtol=2e-3)
    assert overlap(found, nearest(rows, queries, 10, "inner_product")) > 0.98


def test_own_ids_are_those_of_faiss(index: CompressedIndex, queries: FloatArray) -> None:
    index.remove([1000])
    exported = to_faiss(index, "float32", progress=False)
    assert isinstance(exported, faiss.IndexIDMap2)
    expected = index.search(queries, 5, mode="dense")
    unit = normalize_rows(queries)
    scores, found = exported.search(unit, 5)
    # Projections are rounded, so documents with nearly the same score may change places.
    np.testing.assert_allclose(scores, expected.scores, atol=2e-5)
    for ids in (found, expected.ids):
        vectors = index.reconstruct(ids.ravel()).reshape(*ids.shape, -1)
        np.testing.assert_allclose(np.einsum("qd,qkd->qk", unit, vectors), scores, atol=2e-5)
    np.testing.assert_allclose(exported.reconstruct(1017), index.reconstruct([1017])[0], atol=1e-6)


def test_strings_need_integers(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    names = [f"n{i}" for i in range(20)]
    index = CompressedIndex.build(vectors[:20], names, model=model, k=16, progress=False)
    with pytest.raises(InputError, match="pass integers as ids="):
        to_faiss(index, progress=False)
    exported = to_faiss(index, "float32", ids=np.arange(20) + 5, progress=False)
    found = exported.search(normalize_rows(queries), 1)[1][:, 0]
    expected = index.search(queries, 1, mode="dense").ids[:, 0]
    assert [names[i - 5] for i in found] == expected.tolist()
    with pytest.raises(InputError, match="kind must be one of"):
        to_faiss(index, "flat")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="refine must be one of"):
        to_faiss(index, refine="SQ8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="so they take no refine, got 'float16'"):
        to_faiss(index, "inverted", refine="float16")


def test_an_empty_index_is_exported(model: CompresSAE) -> None:
    assert to_faiss(CompressedIndex(model), "float16", progress=False).ntotal == 0
    assert to_faiss(CompressedIndex(model), "SQ8", refine="float16", progress=False).ntotal == 0
    assert to_faiss(CompressedIndex(model), "inverted", progress=False).ntotal == 0


IDS = np.arange(600) * 7 + 3
# The least mean cosine of a vector and what is read of it.
HOLDERS = {
    "Flat": 1 - 1e-6,
    "SQfp16": 1 - 1e-6,
    "IVF8,Flat": 1 - 1e-6,
    "IVF8,SQ8": 0.999,
    "IVF300,Flat": 1 - 1e-6,
    "HNSW8": 1 - 1e-6,
    "IDMap,Flat": 1 - 1e-6,
    "IDMap2,SQ8": 0.999,
    "RR384,IVF8,Flat": 1 - 1e-6,
    "IDMap,RR384,IVF8,Flat": 1 - 1e-6,
    "Flat,RFlat": 1 - 1e-6,
    "PQ16x4,Refine(SQfp16)": 1 - 1e-6,
    "IDMap2,IVF8,PQ16x4fs,RFlat": 1 - 1e-6,
    "IVF8,PQ16x4": 0.5,
    "IVF8,PQ16x4fs": 0.5,
}


def held(factory: str, rows: FloatArray) -> Any:
    index = faiss.index_factory(rows.shape[1], factory, IP)
    index.train(rows)
    if "IDMap" in factory or factory.startswith("IVF"):
        index.add_with_ids(rows, IDS)
    else:
        index.add(rows)
    return index


@pytest.mark.parametrize(("factory", "least"), HOLDERS.items())
def test_vectors_of_any_index_are_read(vectors: FloatArray, factory: str, least: float) -> None:
    rows = normalize_rows(vectors[:600])
    read = FaissVectors(held(factory, rows))
    assert read.shape == (600, 384)
    order = np.arange(600) if read.ids is None else read.ids
    if "IDMap" in factory or factory.startswith("IVF"):
        order = (order - 3) // 7
    assert sorted(order) == list(range(600))
    whole = read[0:600]
    cosines = np.einsum("nd,nd->n", normalize_rows(whole), rows[order])
    assert cosines.mean() > least
    # A vector of another row would give less.
    assert (cosines > normalize_rows(whole) @ rows.mean(axis=0)).all()
    for piece in (slice(0, 1), slice(10, 345), slice(590, 700), slice(5, 5)):
        np.testing.assert_allclose(read[piece], whole[piece], atol=1e-6)


def test_a_mapped_index_is_read(vectors: FloatArray, tmp_path: Path) -> None:
    rows = normalize_rows(vectors[:600])
    faiss.write_index(held("IVF8,Flat", rows), str(tmp_path / "ivf.faiss"))
    read = FaissVectors(faiss.read_index(str(tmp_path / "ivf.faiss"), faiss.IO_FLAG_MMAP))
    assert read.ids is not None
    np.testing.assert_array_equal(read[100:400], rows[(read.ids[100:400] - 3) // 7])


def test_an_index_is_built_from_faiss(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    rows = normalize_rows(vectors[:600])
    built = from_faiss(held("IVF8,Flat", rows), model=model, k=16, progress=False)
    expected = CompressedIndex.build(rows, IDS, model=model, k=16, progress=False)
    assert sorted(built.ids.tolist()) == IDS.tolist()
    a, b = built.search(queries, 5, mode="dense"), expected.search(queries, 5, mode="dense")
    # The codebooks of values were learned in another order of rows.
    np.testing.assert_allclose(a.scores, b.scores, atol=2e-3)
    named = from_faiss(held("Flat", rows), ids=[f"n{i}" for i in range(600)], model=model, progress=False)
    assert named.search(rows[5], 1).ids[0, 0] == "n5"


def test_what_cannot_be_read_is_refused(vectors: FloatArray) -> None:
    with pytest.raises(InputError, match="got IndexBinaryFlat"):
        from_faiss(faiss.IndexBinaryFlat(64))
    with pytest.raises(InputError, match="got list"):
        from_faiss([])
    with pytest.raises(InputError, match="got IndexFlat"):
        from_faiss(faiss.IndexFlat(4, faiss.METRIC_L1))
    with pytest.raises(InputError, match=r"\(IndexFlatIP\) is empty"):
        from_faiss(faiss.IndexFlatIP(4))
    rows = normalize_rows(vectors[:600])
    with pytest.raises(InputError, match="FastScan lists within a IndexPreTransform cannot"):
        from_faiss(held("RR384,IVF8,PQ16x4fs", rows))
    shards: Any = faiss.IndexShards(384)
    shards.add_shard(held("Flat", rows))
    with pytest.raises(InputError, match=r"\(IndexShards\) cannot reconstruct"):
        from_faiss(shards)
