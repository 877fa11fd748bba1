"""Neighbours of stored documents, and graphs of them, against float64 brute force; and the command."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from oracles import assert_same, overlap
from scipy.sparse.csgraph import connected_components

from compressae_index import CompresSAE, CompressedIndex, InputError, UnknownIdError
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.coding.metric import Metric
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.ids import as_id_array
from compressae_index.search import neighbours
from compressae_index.search.results import read_results
from compressae_index.testing import Float64, assert_best, names

N = 1500
# What an index may keep of vectors, and how far its scores may be from products in float64, as a share of the
# largest: an entry of a query that is next to a tie may be rounded to either byte.
KEPT: list[tuple[dict[str, Any], float]] = [
    ({}, 1e-5),
    ({"residual_bits": 3}, 5e-5),
    ({"originals": "float32"}, 1e-5),
]


def exact_scores(index: CompressedIndex, ids: Any) -> Float64:
    """Scores of all documents for stored ones as queries, which are left out: (len(ids), n)."""
    documents, unit = index.documents, index.unit
    vectors = documents.vectors(index.ids, index.model).astype(np.float64) * unit
    queries = documents.vectors(as_id_array(ids), index.model).astype(np.float64) * unit
    if index.metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        if documents.backend.originals is not None:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores: Float64 = queries @ vectors.T
    residuals = documents.backend.residuals(documents.rows_of(index.ids))
    if residuals is not None:
        # The engine rounds queries to bytes where residual codes score.
        step = np.abs(queries).max(axis=1, keepdims=True) / 127
        scores += (np.rint(queries / step) * step - queries) @ (residuals.T.astype(np.float64) * unit)
    scores[np.asarray(index.ids)[None, :] == np.asarray(ids)[:, None]] = -np.inf
    return scores


@pytest.mark.parametrize(("kept", "tolerance"), KEPT, ids=lambda one: str(one))
@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_neighbours_equal_brute_force(
    uncentred_model: CompresSAE, vectors: FloatArray, kept: dict[str, Any], tolerance: float, metric: Metric
) -> None:
    lengths = np.random.default_rng(0).uniform(50, 200, (N, 1)).astype(np.float32)  # a unit of 128
    index = CompressedIndex.build(
        vectors[:N] * lengths, model=uncentred_model, k=16, metric=metric, progress=False, **kept
    )
    ids = [7, 1499, 0, 7, 640]
    exact = exact_scores(index, ids)
    result = index.neighbours(ids, 12, mode="dense", refine=N if kept else None)
    assert_best(result, exact, 12, tolerance=tolerance * np.abs(exact[np.isfinite(exact)]).max())
    found = index.neighbours(ids, 12)
    assert overlap(found.ids, result.ids) > 0.95


def test_neighbours_are_those_of_the_originals(model: CompresSAE, vectors: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:N], model=model, k=16, originals="float32", progress=False)
    expected = index.search(vectors[5:8], 11, candidates=N, refine=N)
    result = index.neighbours([5, 6, 7], 10, candidates=N, refine=N)
    assert expected.ids[:, 0].tolist() == [5, 6, 7]
    np.testing.assert_array_equal(result.ids, expected.ids[:, 1:])
    np.testing.assert_allclose(result.scores, expected.scores[:, 1:], atol=1e-6)


def test_documents_that_are_alike_are_neighbours_but_not_of_themselves(
    model: CompresSAE, vectors: FloatArray
) -> None:
    rows = np.concatenate([np.tile(vectors[:1], (6, 1)), vectors[1:300]])
    index = CompressedIndex.build(rows, model=model, k=16, progress=False)
    # Of equal scores the first documents come first, so that the last two are not even among the four best.
    found = index.neighbours([0, 2, 4, 5], 3, mode="dense").ids
    assert found.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]


def test_filters_choose_neighbours_not_documents(built: CompressedIndex) -> None:
    mask = np.arange(4000) % 3 == 0
    exact = exact_scores(built, [3, 4])
    for wanted in (mask, built.ids[mask]):
        result = built.neighbours([3, 4], 5, mode="dense", filter=wanted)
        assert_best(result, exact, 5, allowed=mask)
    assert set(built.neighbours([3], 4, filter=[3, 9]).ids[0].tolist()) == {9, -1}
    assert (built.neighbours([3], 4, filter=[3]).ids == -1).all()


def test_settings_leave_room_for_the_document_itself(model: CompresSAE, vectors: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:300], model=model, k=16, residual_bits=2, progress=False)
    result = index.neighbours([4, 5], 10, candidates=10, refine=10)
    assert (result.scores > -np.inf).all()
    assert index.neighbours([4], 10, refine=0).ids.shape == (1, 10)
    for options, message in (
        ({"refine": 9}, "refine must be at least k = 10, or 0, got 9"),
        ({"candidates": 9}, "candidates must be at least k = 10, got 9"),
        ({"mode": "sparse", "refine": 10}, "there is no stage that scores again"),
        ({"k": 2**31 - 1}, "k must be at most"),
        ({"filter": np.ones(3, dtype=bool)}, "a boolean filter must have shape"),
    ):
        with pytest.raises(InputError, match=message):
            index.neighbours([4], **options)


def test_batches_change_nothing(built: CompressedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(0, 4000, 97)
    expected, graph = built.neighbours(ids, 6), built.neighbour_graph(4, progress=False)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    assert_same(built.neighbours(ids, 6), expected)
    monkeypatch.setattr(neighbours, "BLOCK", 999)
    again = built.neighbour_graph(4, progress=False)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(again, name), getattr(graph, name))


def test_a_document_of_an_empty_code_has_no_neighbours(vectors: FloatArray) -> None:
    """The atoms span the first 16 dimensions, and one row lies beside them."""
    atoms = np.eye(16, 384, dtype=np.float32)
    model = CompresSAE(np.ascontiguousarray(atoms.T), np.zeros(16, np.float32), atoms, 4)
    rows = vectors[:50].copy()
    rows[7] = np.eye(1, 384, 100)
    index = CompressedIndex.build(rows, model=model, k=4, metric="inner_product", progress=False)
    assert not index.reconstruct([7]).any()
    result = index.neighbours([6, 7, 8], 5)
    assert result.ids[1].tolist() == [-1] * 5
    assert (result.scores[1] == -np.inf).all()
    assert (result.scores[[0, 2]] > -np.inf).all()
    graph = index.neighbour_graph(5, progress=False)
    assert np.diff(graph.indptr)[7] == 0
    assert graph.nnz == 49 * 5


@pytest.mark.parametrize(
    "ids", [None, names(300), np.arange(300)[::-1] * 5], ids=["rows", "names", "integers"]
)
def test_a_graph_is_in_the_order_of_ids(model: CompresSAE, vectors: FloatArray, ids: Any) -> None:
    index = CompressedIndex.build(vectors[:300], ids, model=model, k=16, progress=False)
    index.remove(index.ids[[3, 250]])
    exact = exact_scores(index, index.ids)
    graph = index.neighbour_graph(7, mode="dense", progress=False)
    assert graph.shape == (298, 298)
    assert (str(graph.dtype), str(graph.indices.dtype)) == ("float32", "int32")
    result = graph.data.reshape(298, 7), graph.indices.reshape(298, 7).astype(np.int64)
    assert_best(result, exact, 7)
    # scipy's algorithms take it as it is.
    assert connected_components(graph)[0] < 298


def test_graphs_of_few_documents(model: CompresSAE, vectors: FloatArray) -> None:
    index = CompressedIndex.build(vectors[:3], model=model, k=16, progress=False)
    graph = index.neighbour_graph(10, progress=False)
    assert (graph.shape, graph.nnz) == ((3, 3), 6)
    assert index.neighbour_graph(10, filter=[1], progress=False).toarray().nonzero()[1].tolist() == [1, 1]
    index.remove([0, 1])
    assert index.neighbour_graph(10, progress=False).shape == (1, 1)
    assert index.neighbours([2], 3).ids.tolist() == [[-1, -1, -1]]
    empty = CompressedIndex(model)
    assert empty.neighbour_graph(progress=False).shape == (0, 0)
    assert empty.neighbours([], 3).ids.shape == (0, 3)
    with pytest.raises(UnknownIdError, match="unknown id 5 "):
        empty.neighbours([5])
    with pytest.raises(InputError, match="k must be at least 1"):
        index.neighbour_graph(0)


def test_a_graph_takes_memory_for_its_result_and_a_batch(
    built: CompressedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    built.neighbour_graph(2, progress=False)
    tracemalloc.start()
    try:
        built.neighbour_graph(2, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # the vectors of all take 6 MB


def test_a_graph_shows_its_progress(
    built: CompressedIndex, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compressae_index.progress.FIRST_LINE", 0)
    built.neighbour_graph(3)
    assert "neighbours: 1,024 of 4,000 rows" in capsys.readouterr().err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: CompresSAE, vectors: FloatArray) -> Path:
    """A working directory with an index of integers as ids, one of strings, and one of Faiss."""
    monkeypatch.chdir(tmp_path)
    index = CompressedIndex.build(vectors[:300], model=model, k=8, progress=False)
    index.save("i")
    FaissIndex.from_index(index, progress=False).save("f")
    CompressedIndex.build(
        vectors[:300], [f"n {i}" for i in range(300)], model=model, k=8, progress=False
    ).save("s")
    Path("some.txt").write_text("5\n0\n299\n")
    Path("named.txt").write_text("n 5\nn 0\n")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["neighbours", *map(str, arguments)])


@pytest.mark.usefixtures("place")
def test_the_command_prints_what_the_library_finds() -> None:
    scores, ids = CompressedIndex.load("i").neighbours([5, 0, 299], 4)
    printed = run("i", "--ids", "some.txt", "-k", 4)
    assert printed.exit_code == 0
    assert printed.stdout.splitlines() == [
        f"{one}\t" + " ".join(f"{id_}:{score:.4f}" for id_, score in zip(ids[row], scores[row], strict=True))
        for row, one in enumerate([5, 0, 299])
    ]
    shown = json.loads(run("i", "--ids", "some.txt", "-k", 4, "--json").stdout)
    assert shown == {"documents": [5, 0, 299], "ids": ids.tolist(), "scores": scores.tolist()}
    named = run("s", "--ids", "named.txt", "-k", 2).stdout.splitlines()
    assert [line.split("\t")[0] for line in named] == ['"n 5"', '"n 0"']
    assert run("f", "--ids", "some.txt", "-k", 2, "--mode", "sparse").exit_code == 0


@pytest.mark.usefixtures("place")
def test_the_command_writes_results_of_all() -> None:
    for name in ("i", "s"):
        done = run(name, "--all", "-k", 3, "--mode", "dense", "-o", "r.npz")
        assert done.stdout == "300 x 3 results in r.npz\n"
        index = CompressedIndex.load(name)
        assert_same(read_results("r.npz"), index.neighbours(index.ids, 3, mode="dense"))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("i", "Give either --ids or --all."),
        ("i --ids some.txt --all", "Give either --ids or --all."),
        ("i --ids named.txt", "unknown id 'n 5' (2 of 2 ids are unknown)"),
        ("s --ids some.txt", "unknown id '5' (3 of 3 ids are unknown)"),
        ("i --ids nowhere.txt", "nowhere.txt cannot be read"),
        ("i --all -k 0", "k must be at least 1, got 0"),
        ("i --all -o r.txt", "r.txt: results are written as .npz"),
        ("f --all --mode dense", "mode must be one of"),
        ("nowhere --all", "nowhere does not exist"),
    ],
)
def test_mistakes_of_the_command_are_one_line(place: Path, arguments: str, message: str) -> None:
    done = run(*arguments.split())
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "r.npz").exists()
