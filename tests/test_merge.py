"""Merging of shards: the answers of one index that holds all vectors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import assert_same, assert_same_codes

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.embedded.sizes import WINDOW
from compressae_index.errors import FormatError, InputError

ENDS = (0, 700, 1501, 1502, 3000)
FORMS: list[dict[str, Any]] = [
    {},
    {"postings": 6, "value_bits": 5},
    {"residual_bits": 2},
    {"originals": "float16"},
    {"forward": "aligned", "originals": "float32"},
]


def shards_of(whole: CompressedIndex, vectors: FloatArray, ids: Any = None) -> list[CompressedIndex]:
    """Indexes like `whole`, of uneven runs of the vectors."""
    every = np.arange(len(vectors)) if ids is None else ids
    shards = []
    for first, end in itertools.pairwise(ENDS):
        shard = whole.empty_like()
        shard.add(vectors[first:end], every[first:end])
        shards.append(shard)
    return shards


def answers(index: CompressedIndex, queries: FloatArray, **settings: Any) -> dict[str, Any]:
    return {mode: index.search(queries, 20, mode=mode, **settings) for mode in index.modes}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_merged_index_answers_as_one_that_was_built_of_all(
    uncentred_model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    form: dict[str, Any],
    tmp_path: Path,
) -> None:
    rows = vectors[: ENDS[-1]] * np.linspace(0.5, 3, ENDS[-1], dtype=np.float32)[:, None]
    names = np.array([f"item {i}" for i in range(len(rows))], dtype=object)
    whole = CompressedIndex.build(
        rows, names, model=uncentred_model, metric="inner_product", k=12, progress=False, **form
    )
    merged, whole.frontier = CompressedIndex.merge(shards_of(whole, rows, names)), None
    assert merged.ids.tolist() == names.tolist()
    assert_same_codes(merged.codes(names), whole.codes(names))
    np.testing.assert_array_equal(merged.reconstruct(names), whole.reconstruct(names))
    # All are candidates: how lists round decides nothing.
    for settings in ({"filter": np.arange(len(rows)) % 3 > 0, "candidates": len(rows)}, {"candidates": 3000}):
        for mode, expected in answers(whole, queries, **settings).items():
            if mode != "sparse":
                assert_same(merged.search(queries, 20, mode=mode, **settings), expected)
    merged.save(tmp_path / "merged")
    whole.save(tmp_path / "whole")
    for name in ("merged", "whole"):
        again = CompressedIndex.load(tmp_path / name, mmap=True)
        for mode, expected in answers(whole, queries, candidates=300).items():
            assert_same(again.search(queries, 20, mode=mode, candidates=300), expected)


def test_paths_merge_without_copies_and_the_result_changes_like_any_index(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    whole = CompressedIndex.build(vectors[: ENDS[-1]], model=model, k=12, residual_bits=1, progress=False)
    paths = []
    for number, shard in enumerate(shards_of(whole, vectors)):
        paths.append(tmp_path / f"shard-{number}")
        shard.save(paths[-1])
    merged, whole.frontier = CompressedIndex.merge(paths), None
    for index in (merged, whole):
        index.remove([5, 1501, 2999])
        index.upsert(vectors[3000:3100], np.arange(2950, 3050))
        index.add(vectors[3100:3200])
    np.testing.assert_array_equal(merged.ids, whole.ids)
    for k in (1, 20):
        assert_same(merged.search(queries, k, mode="dense"), whole.search(queries, k, mode="dense"))
    merged.compact()
    whole.compact()
    for mode, expected in answers(whole, queries, candidates=200).items():
        assert_same(merged.search(queries, 20, mode=mode, candidates=200), expected)
    found = merged.neighbours([17, 3049], 5)
    assert_same(found, whole.neighbours([17, 3049], 5))


def test_shards_of_whole_windows_have_the_lists_of_one_index(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    rows = np.tile(vectors, (WINDOW // len(vectors) + 2, 1))
    rows = rows[: WINDOW + 3000] + np.linspace(0, 0.01, WINDOW + 3000, dtype=np.float32)[:, None]
    made = CompressedIndex.build(vectors, model=model, k=4, progress=False)
    whole, first, second = made.empty_like(), made.empty_like(), made.empty_like()
    whole.add(rows)
    first.add(rows[:WINDOW])
    second.add(rows[WINDOW:], np.arange(WINDOW, len(rows)))
    merged = CompressedIndex.merge([first, second])
    for mode, expected in answers(whole, queries).items():
        assert_same(merged.search(queries, 20, mode=mode), expected)


def test_removed_vectors_stay_removed_and_their_ids_may_come_again(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    whole = CompressedIndex.build(vectors[:1000], model=model, progress=False)
    a, b, empty = whole.empty_like(), whole.empty_like(), whole.empty_like()
    a.add(vectors[:500])
    a.remove(np.arange(0, 500, 5))
    b.add(vectors[500:1000:5], np.arange(0, 500, 5))
    merged = CompressedIndex.merge([empty, a, b])
    assert len(merged) == 500
    assert sorted(merged.ids) == list(range(500))
    gone = whole.empty_like()
    gone.add(vectors[:5], [f"x{i}" for i in range(5)])
    gone.remove(gone.ids)
    assert sorted(CompressedIndex.merge([gone, a, b]).ids) == list(range(500))
    lone = CompressedIndex.merge([gone, empty])
    assert len(lone) == 0
    lone.add(vectors[:10])
    assert lone.search(queries, 3).ids.shape == (50, 3)
    everything = np.concatenate([np.delete(vectors[:500], np.arange(0, 500, 5), axis=0), vectors[500:1000:5]])
    again = whole.empty_like()
    again.add(everything, merged.ids)
    assert_same(merged.search(queries, 10, mode="dense"), again.search(queries, 10, mode="dense"))


def test_shards_that_were_made_otherwise_are_refused_by_name(
    model: CompresSAE, uncentred_model: CompresSAE, vectors: FloatArray, tmp_path: Path
) -> None:
    def built(rows: FloatArray, first: int = 0, **settings: Any) -> CompressedIndex:
        ids = np.arange(first, first + len(rows))
        return CompressedIndex.build(rows, ids, progress=False, **({"model": model} | settings))

    a = built(vectors[:600])
    other_levels = built(vectors[600:1200] ** 3, 600)
    for other, what in (
        (built(vectors[600:1200], 600, model=uncentred_model), "fingerprint"),
        (built(vectors[600:1200], 600, k=8), "in the k"),
        (built(vectors[600:1200], 600, encoder="topk"), "encoder"),
        (built(vectors[600:1200], 600, value_bits=5), "codec"),
        (built(vectors[600:1200], 600, residual_bits=1), "codec"),
        (built(vectors[600:1200], 600, originals="float16"), "originals"),
        (built(vectors[600:1200], 600, postings=4), "postings"),
        (other_levels, "levels"),
    ):
        with pytest.raises(InputError, match=f"shard 1 differs from shard 0 .*{what}"):
            CompressedIndex.merge([a, other])
    strings = a.empty_like()
    strings.add(vectors[600:700], [f"x{i}" for i in range(100)])
    with pytest.raises(InputError, match="the ids of shard 1 are strings, those of shard 0 are integers"):
        CompressedIndex.merge([a, strings])
    twice = a.empty_like()
    twice.add(vectors[600:700], np.arange(599, 699))
    twice.save(tmp_path / "twice")
    with pytest.raises(InputError, match=r"id 599 is in shard 0 and in .*twice \(1 ids are in both\)"):
        CompressedIndex.merge([a, tmp_path / "twice"])
    with pytest.raises(InputError, match="no shards"):
        CompressedIndex.merge([])
    with pytest.raises(FormatError, match="missing"):
        CompressedIndex.merge([a, tmp_path / "missing"])
