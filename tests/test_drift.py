"""Drift: same kinds are fine, other kinds are seen, and the probe is kept with the index."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import CompresSAE, CompressedIndex, DimensionError, FormatError, InputError, TrainConfig
from compressae_index.arrays import FloatArray
from compressae_index.building.drift import PROBE_ROWS, RECALL_ROWS, Tally, cosines_of
from compressae_index.cli import main
from compressae_index.coding.chunks import Encoded
from compressae_index.demo import DemoData


class Kinds(NamedTuple):
    """Real embeddings of two kinds: either side of their first principal component."""

    built: CompressedIndex
    """Of 8,000 of the first kind. Not to be changed."""
    same: FloatArray
    """Others of the first kind."""
    other: FloatArray
    """Of the second."""


@pytest.fixture(scope="module")
def kinds(demo_data: DemoData) -> Kinds:
    rows = demo_data.embeddings
    centred = rows - rows.mean(axis=0)
    side = centred @ np.linalg.svd(centred[:3000], full_matrices=False)[2][0]
    side *= np.sign(np.median(side)) * -1
    first, second = rows[side < np.percentile(side, 65)], rows[side > np.percentile(side, 80)]
    config = TrainConfig(k=16, n_latents=1024, steps=0, refine_rounds=16)
    index = CompressedIndex.build(first[:8000], k=16, config=config, progress=False)
    return Kinds(index, first[8000:], second)


def test_the_same_kind_is_fine(kinds: Kinds) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 20, 100, 500, 2000):
        for _ in range(5):
            some = kinds.same[rng.choice(len(kinds.same), size, replace=False)]
            assert kinds.built.drift(some).verdict == "fine", size


def test_one_topic_of_the_same_kind_is_fine(kinds: Kinds) -> None:
    """Its vectors use other latents than all others, but their codes are no worse."""
    for number in (0, 500, 1000):
        near = np.argsort(-(kinds.same @ kinds.same[number]), kind="stable")
        found = kinds.built.drift(kinds.same[near[:200]])
        assert found.divergence > 0.03
        assert (found.verdict, found.reasons) == ("fine", [])


@pytest.mark.parametrize(("rows", "verdict"), [(20, "recode"), (300, "recode"), (3000, "recode")])
def test_another_kind_is_seen(kinds: Kinds, rows: int, verdict: str) -> None:
    found = kinds.built.drift(kinds.other[:rows])
    assert found.verdict == verdict
    assert found.reasons
    assert found.vectors == rows
    assert found.cosines.new[50] < found.cosines.probe[50]
    assert found.divergence > 0.03


def test_a_third_of_another_kind_is_to_be_watched(kinds: Kinds) -> None:
    mixed = np.concatenate([kinds.same[:1600], kinds.other[:800]])
    assert kinds.built.drift(mixed).verdict == "watch"


def test_figures_are_those_of_slow_ones(kinds: Kinds) -> None:
    index, rows = kinds.built, kinds.other[:RECALL_ROWS]
    found, codes = index.drift(rows), index.model.encode(rows)
    made = index.model.decode(index.model.fold(codes))
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(made, rows, strict=True)]
    assert list(found.cosines.new.values()) == pytest.approx(
        [float(np.percentile(cosines, at)) for at in found.cosines.new], abs=1e-5
    )
    truth, scores = rows @ rows.T, rows @ made.T
    hits = 0
    for number in range(len(rows)):
        others = np.delete(np.arange(len(rows)), number)
        best, by_codes = (set(others[np.argsort(-each[number, others])[:10]]) for each in (truth, scores))
        hits += len(best & by_codes)
    assert found.recall == pytest.approx(hits / 10 / len(rows), abs=1e-3)
    assert found.recall is not None
    assert found.probe_recall is not None
    assert found.recall < found.probe_recall


def test_uses_are_counted_over_all_vectors(kinds: Kinds) -> None:
    probe = kinds.built.probe
    assert probe is not None
    assert (probe.built.n, probe.held_out) == (8000, True)
    held = kinds.built.codes(kinds.built.ids)
    # Stored values are rounded, some of them to 0.
    fewest = np.bincount(held.latents[held.values != 0], minlength=1024)
    assert (probe.built.uses >= fewest).all()
    assert probe.built.uses.sum() == pytest.approx(fewest.sum(), rel=0.01)


def test_what_was_added(kinds: Kinds, tmp_path: Path) -> None:
    index = copy.copy(kinds.built)
    with pytest.raises(InputError, match="nothing was added since"):
        index.drift()
    index.add(kinds.same[:500])
    assert index.drift().verdict == "fine"
    with pytest.raises(InputError, match="zero"):
        index.add(np.zeros((3, 384), np.float32))
    assert index.drift().vectors == 500
    index.upsert(kinds.other[:3500], np.arange(3500))
    found = index.drift()
    assert (found.verdict, found.vectors) == ("recode", 4000)
    index.save(tmp_path / "index")
    for other in (
        CompressedIndex.load(tmp_path / "index", mmap=True),
        CompressedIndex.load(tmp_path / "index"),
        pickle.loads(pickle.dumps(index)),
        pickle.loads(pickle.dumps(CompressedIndex.load(tmp_path / "index", mmap=True))),
    ):
        assert other.drift().as_dict() == found.as_dict()
    index.compact()
    assert index.drift().as_dict() == found.as_dict()
    with pytest.raises(InputError, match="nothing was added since"):
        kinds.built.drift()


def test_a_sample_of_what_passes_is_even(model: CompresSAE, vectors: FloatArray) -> None:
    codes = model.encode(vectors)
    whole, pieces = Tally(model), Tally(model)
    whole.note(Encoded(codes, vectors))
    for first in range(0, len(vectors), 70):
        pieces.note(Encoded(codes[slice(first, first + 70)], vectors[first : first + 70] * 3))
    expected = cosines_of(model, codes, vectors)
    for tally in (whole, pieces):
        assert tally.seen.n == len(vectors)
        assert len(tally.seen.cosines) == PROBE_ROWS
        assert np.isin(tally.seen.cosines.round(4), expected.round(4)).mean() > 0.99
        assert tally.seen.cosines.mean() == pytest.approx(expected.mean(), abs=0.005)
    np.testing.assert_array_equal(whole.seen.uses, pieces.seen.uses)


def test_an_index_without_a_probe(model: CompresSAE, vectors: FloatArray, kinds: Kinds) -> None:
    shard = kinds.built.empty_like()
    shard.add(vectors[:50])
    with pytest.raises(InputError, match="no probe to compare with"):
        shard.drift(vectors[:5])
    kept = CompressedIndex.build(vectors, model=model, k=16, originals="float16", progress=False)
    made = kept.drift(vectors[:500])
    kept.probe = None
    assert kept.drift(vectors[:500]).verdict == made.verdict == "fine"


def test_rows_that_were_trained_on_are_allowed_for(vectors: FloatArray) -> None:
    config = TrainConfig(k=16, n_latents=1024, steps=0, refine_rounds=8)
    index = CompressedIndex.build(vectors[:1500], k=16, config=config, progress=False)
    assert index.probe is not None
    assert not index.probe.held_out
    found = index.drift(vectors[1500:])
    assert found.error_ratio > 1.5
    assert found.verdict == "fine"
    assert found.recall is not None
    assert found.probe_recall is None


def test_refused(kinds: Kinds) -> None:
    with pytest.raises(DimensionError):
        kinds.built.drift(np.ones((3, 8), np.float32))
    with pytest.raises(InputError, match="zero"):
        kinds.built.drift(np.zeros((3, 384), np.float32))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("probe_cosines", np.full((2, 1000), 2, np.float32)),
        ("probe_cosines", np.full((2, 1000), np.nan, np.float32)),
        ("probe_cosines", np.zeros((2, 1000), np.float32)),
        ("probe_cosines", np.zeros((2, 3), np.float32)),
        ("probe_uses", np.zeros((2, 5), np.uint32)),
        ("probe_uses", np.zeros((2, 1024), np.int64)),
    ],
)
def test_a_damaged_probe(kinds: Kinds, tmp_path: Path, name: str, array: Any) -> None:
    from compressae_index import persistence

    kinds.built.save(tmp_path / "index")
    stored = persistence.read(tmp_path / "index", "index")
    arrays = stored.arrays | {name: array}
    persistence.write(tmp_path / "index", "index", stored.meta, arrays=arrays, tensors=stored.tensors)
    with pytest.raises(FormatError, match="probe"):
        CompressedIndex.load(tmp_path / "index")


def test_the_command(kinds: Kinds, tmp_path: Path) -> None:
    kinds.built.save(tmp_path / "index")
    np.save(tmp_path / "new.npy", kinds.other[:400])
    arguments = ["drift", str(tmp_path / "index"), str(tmp_path / "new.npy")]
    done = CliRunner().invoke(main, [*arguments, "--json", "--plot", str(tmp_path / "drift.png")])
    found = json.loads(done.stdout)
    expected = kinds.built.drift(kinds.other[:400]).as_dict()
    assert found == json.loads(json.dumps(expected))
    assert found["verdict"] == "recode"
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    text = CliRunner().invoke(main, arguments).stdout
    assert text.startswith("verdict           recode\n")
    assert "| 50 " in text
    refused = CliRunner().invoke(main, ["drift", str(tmp_path / "index")])
    assert (refused.exit_code, "nothing was added" in refused.stderr) == (2, True)
