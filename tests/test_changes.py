"""Adding, upserting, removing, compacting and reloading an index, also while other threads search."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.embedded.backend import EmbeddedBackend
from compressae_index.embedded.codecs import Aligned, Codec, Packed
from compressae_index.embedded.documents import EmbeddedDocuments
from compressae_index.search.queries import MODES, Mode

POOL = 24
K = 16


class Step(NamedTuple):
    """A change: `rows` maps the ids that are added, upserted or removed to rows of the embeddings."""

    kind: str
    rows: dict[int, int]


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """Adds of ids that are out, upserts of any, removals of ids that are in, what moves rows, reloads."""
    steps: list[Step] = []
    held: set[int] = set()
    kinds = st.sampled_from(["add", "add", "upsert", "upsert", "remove", "compact", "load", "map"])
    for kind in draw(st.lists(kinds, min_size=2, max_size=9)):
        pools = {"add": set(range(POOL)) - held, "upsert": set(range(POOL)), "remove": held}
        pool = sorted(pools.get(kind, ()))
        ids = draw(st.lists(st.sampled_from(pool), unique=True, min_size=1, max_size=10)) if pool else []
        if not ids and kind in pools:
            continue
        steps.append(Step(kind, {id_: draw(st.integers(0, 99)) for id_ in ids}))
        held = held - set(ids) if kind == "remove" else held | set(ids)
    return steps


def changed(index: CompressedIndex, step: Step, ids: list[Any], vectors: FloatArray) -> CompressedIndex:
    rows = vectors[list(step.rows.values())]
    if step.kind == "add":
        index.add(rows, ids)
    elif step.kind == "upsert":
        index.upsert(rows, ids)
    elif step.kind == "remove":
        index.remove(ids)
    elif step.kind == "compact":
        index.compact()
        assert index.stats().removed == 0
    else:
        with tempfile.TemporaryDirectory() as folder:
            index.save(folder)
            return CompressedIndex.load(folder, mmap=step.kind == "map")
    return index


@pytest.mark.parametrize("levels", ["aligned", "usual", "learned"])
@settings(deadline=None, max_examples=30)
@given(steps=sequences(), strings=st.booleans(), data=st.data())
def test_changes_end_in_what_a_fresh_index_gives(
    model: CompresSAE,
    vectors: FloatArray,
    queries: FloatArray,
    levels: str,
    steps: list[Step],
    strings: bool,
    data: st.DataObject,
) -> None:
    """Ids and scores are equal to the last bit, in all modes, where both round alike.

    Levels of packed values are learned from the first rows that are added, if there are 8,192 nonzeros, so
    both indexes begin with the same ones. Posting lists are rounded by what is in a list, removed documents
    included, which may change who is a candidate but no score: here all are candidates.
    """

    def named(ids: Any) -> list[Any]:
        return [f"id {id_}" if strings else id_ for id_ in ids]

    codec: Codec = Aligned() if levels == "aligned" else Packed()
    if levels == "learned":
        codec = codec.fitted(model.fold(model.encode(vectors[:1000], K)))

    def empty() -> CompressedIndex:
        backend = EmbeddedBackend(model.n_latents, K, codec)
        return CompressedIndex(model, documents=EmbeddedDocuments(backend))

    index, held = empty(), dict[int, int]()
    for step in steps:
        index = changed(index, step, named(step.rows), vectors)
        held = {id_: row for id_, row in held.items() if id_ not in step.rows}
        if step.kind != "remove":
            held |= step.rows
        assert index.ids.tolist() == named(held)
        assert len(index) == index.stats().vectors == len(held)
    fresh = empty()
    if held:
        fresh.add(vectors[list(held.values())], named(held))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(held), max_size=len(held))), dtype=bool)
    for mode in MODES:
        for allowed in (None, mask, index.ids[mask]):
            for k in (3, POOL):
                ours, theirs = (
                    which.search(queries[:5], k, mode=mode, filter=allowed) for which in (index, fresh)
                )
                if not held:
                    assert (ours.scores == -np.inf).all()
                    continue
                assert_same(ours, theirs)


def test_upsert_replaces_what_is_held_and_adds_the_rest(
    index: CompressedIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    untouched = index.codes(np.arange(1002, 1300))
    index.upsert(vectors[400:403], [1001, 7, 1000])
    assert index.ids.tolist() == [*range(1002, 1300), 1001, 7, 1000]
    assert (index.stats().vectors, index.stats().removed) == (301, 2)
    np.testing.assert_array_equal(index.codes(np.arange(1002, 1300)).values, untouched.values)
    wanted = index.model.encode(vectors[400:403], K)
    np.testing.assert_array_equal(index.codes([1001, 7, 1000]).latents, wanted.latents)
    assert index.search(vectors[400:403], 1, mode="dense").ids.ravel().tolist() == [1001, 7, 1000]
    assert sorted(index.search(queries[:1], 301).ids[0].tolist()) == sorted(index.ids.tolist())


def test_upsert_of_all_that_is_held_leaves_nothing_to_reclaim(
    index: CompressedIndex, vectors: FloatArray
) -> None:
    index.upsert(vectors[300:600], np.arange(1000, 1300))
    assert (index.stats().vectors, index.stats().removed) == (300, 0)
    with pytest.raises(Exception, match="of this index are integers, the new ones are strings"):
        index.upsert(vectors[:1], ["a"])
    index.remove(index.ids)
    index.upsert(vectors[:1], ["a"])
    assert index.ids.tolist() == ["a"]


Fingerprint = tuple[bytes, bytes]


def results(index: CompressedIndex, queries: FloatArray, mode: Mode, num_threads: int) -> list[Fingerprint]:
    """Results of a search for all that an index holds, and of one with a filter."""
    found = [
        index.search(queries[:2], 400, mode=mode, filter=allowed, num_threads=num_threads)
        for allowed in (None, [1007, 1100, 1299])
    ]
    return [(result.ids.tobytes(), result.scores.tobytes()) for result in found]


def test_searches_in_threads_see_one_state_while_another_thread_writes(
    index: CompressedIndex, vectors: FloatArray, queries: FloatArray
) -> None:
    changes: list[Callable[[], None]] = [
        lambda: index.add(vectors[400:450], np.arange(5000, 5050), num_threads=2),
        lambda: index.upsert(vectors[450:480], np.arange(5030, 5060), num_threads=2),
        lambda: index.upsert(vectors[480:540], np.arange(5000, 5060), num_threads=1),
        lambda: index.remove(np.arange(5000, 5060)),
        lambda: index.compact(num_threads=2),
    ]
    # Each round goes through the same states, whose results are known before.
    held = set[tuple[int, int]]()
    whole, filtered = ({mode: set[Fingerprint]() for mode in MODES} for _ in range(2))
    for change in changes:
        change()
        held.add((index.stats().vectors, index.stats().removed))
        for mode in MODES:
            everything, few = results(index, queries, mode, 1)
            whole[mode].add(everything)
            filtered[mode].add(few)
    assert held == {(300, 0), (350, 0), (360, 20), (360, 80), (300, 140)}
    # Removing and compacting restore the first state; the documents that the filter allows never change.
    assert {len(states) for states in whole.values()} == {len(changes) - 1}
    assert {len(states) for states in filtered.values()} == {1}
    stop, failures, searches = threading.Event(), list[BaseException](), [0] * len(MODES)

    def search(number: int) -> None:
        mode = MODES[number]
        try:
            while not stop.is_set():
                # The two searches may see two states, each of them a whole one.
                everything, few = results(index, queries, mode, 1 + number % 2)
                assert everything in whole[mode]
                assert few in filtered[mode]
                assert len(index.ids) in {300, 350, 360}
                stats = index.stats()
                assert (stats.vectors, stats.removed) in held
                searches[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(len(MODES))]
    for thread in threads:
        thread.start()
    rounds = 0
    while not failures and (rounds < 30 or min(searches) < 30):
        for change in changes:
            change()
        rounds += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_writers_in_threads_wait_for_each_other(index: CompressedIndex, vectors: FloatArray) -> None:
    threads = [
        threading.Thread(target=index.add, args=(vectors[400 + 20 * i : 420 + 20 * i],)) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.ids.tolist() == list(range(1000, 1420))
