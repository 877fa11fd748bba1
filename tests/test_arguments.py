"""Arguments of build, train and estimate are checked before anything is read or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import CompresSAE, CompressedIndex, DimensionError, InputError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.building.estimation import estimate
from compressae_index.building.planning import Budget
from compressae_index.cli import main
from compressae_index.coding.directory import encode_to_directory
from compressae_index.measuring.model_report import model_report


class Unread:
    """Vectors that fail a test as soon as they are looked at."""

    shape = (2000, 32)

    def __getitem__(self, rows: slice) -> FloatArray:
        pytest.fail(f"rows {rows} were read before the arguments were checked")


KNOBS: list[tuple[dict[str, Any], str]] = [
    ({"k": 0}, "k must be at least 1, got 0"),
    ({"k": "8"}, "k must be an integer, got '8'"),
    ({"k": np.float32(8)}, "k must be an integer"),
    ({"k": 33}, "k must be at most dim = 32, got 33"),
    ({"k": 40}, "k must be at most dim = 32, got 40"),
    ({"n_latents": 0}, "n_latents must be at least 1, got 0"),
    ({"n_latents": "64"}, "n_latents must be an integer"),
    ({"n_latents": 65_537}, "n_latents must be at most 65536"),
    ({"n_latents": 4096}, "n_latents = 4096 needs at least as many vectors to start from, got 2000"),
    ({"k": 17, "n_latents": 64}, "4k = 68 and n_latents = 64"),
    ({"k": 16, "postings": 17}, "postings must be at most k = 16, got 17"),
    ({"postings": 33}, "postings must be at most k = 32, got 33"),
    ({"postings": 0}, "postings must be at least 1, got 0"),
    ({"postings": 2.5}, "postings must be an integer, got 2.5"),
    ({"value_bits": 9}, "value_bits must be at most 8, got 9"),
    ({"value_bits": True}, "value_bits must be an integer, got True"),
    ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
    ({"num_threads": "2"}, "num_threads must be an integer"),
    ({"bytes_per_vector": 5}, r"bytes_per_vector = 5 holds no code: .* the least is \d+"),
    ({"bytes_per_vector": 1e-9}, "bytes_per_vector = 1e-09 holds no code"),
    ({"bytes_per_vector": "96"}, "bytes_per_vector must be a number, got '96'"),
    ({"bytes_per_vector": True}, "bytes_per_vector must be a number, got True"),
    ({"bytes_per_vector": np.inf}, "bytes_per_vector must be positive and finite, got inf"),
    ({"target_recall": "0.9"}, "target_recall must be a number"),
    ({"target_recall": 1}, "target_recall must be between 0 and 1, got 1"),
    ({"target_recall": 0.0}, "target_recall must be between 0 and 1, got 0"),
    ({"target_recall": np.nan}, "target_recall must be between 0 and 1, got nan"),
    ({"target_recall": 0.9, "bytes_per_vector": 96}, "not both"),
    ({"target_recall": 0.9, "k": 8}, "k = 8 cannot be given with a budget"),
]
BUILDS: list[tuple[dict[str, Any], str]] = [
    ({"encoder": "magic"}, "encoder must be one of"),
    ({"encoder": None}, "encoder must be one of"),
    ({"metric": "l1"}, "metric must be one of 'cosine', 'inner_product', 'l2', got 'l1'"),
    ({"forward": "wide"}, "forward must be one of"),
    ({"ids": [0] * 2000}, "duplicate id 0"),
    ({"ids": range(1999)}, "1999 ids for 2000 vectors"),
    ({"config": "fast"}, "config must be a TrainConfig, such as"),
    ({"config": {"steps": 3}}, "config must be a TrainConfig"),
    ({"config": TrainConfig(k=4), "k": 5}, "k is 5, but config has k = 4: name it once"),
    ({"config": TrainConfig(k=33)}, "k must be at most dim = 32, got 33"),
    ({"config": TrainConfig(device="abacus"), "k": 4}, "device 'abacus' cannot be used"),
    ({"model": "items.model"}, "model must be a CompresSAE, got str; CompresSAE.load reads one"),
]


@pytest.mark.parametrize(("options", "message"), KNOBS + BUILDS)
def test_arguments_are_checked_before_any_vector_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompressedIndex.build(Unread(), **{"progress": False, **options})
    if (options, message) in KNOBS:
        with pytest.raises(InputError, match=message):
            estimate(Unread(), **options)


def test_arguments_are_checked_against_a_model_before_any_vector_is_read(vectors: FloatArray) -> None:
    config = TrainConfig.preset("fast", k=4, n_latents=64, refine_rounds=1, steps=1)
    model = train(vectors[:200, :32], config).model
    for options, message in (
        ({"k": 33}, "k must be at most dim = 32, got 33"),
        ({"k": 65}, "k must be at most n_latents = 64, got 65"),
        ({"postings": 5}, "postings must be at most k = 4, got 5"),
        ({"bytes_per_vector": 5}, "bytes_per_vector = 5 holds no code"),
        ({"metric": "inner_product"}, "center=False"),
        ({"n_latents": "64"}, "n_latents must be an integer"),
    ):
        with pytest.raises(InputError, match=message):
            CompressedIndex.build(Unread(), model=model, progress=False, **options)
    narrow = train(vectors[:200, :16], config).model
    with pytest.raises(DimensionError, match="embeddings have dimension 32, expected 16"):
        CompressedIndex.build(Unread(), model=narrow, progress=False)
    with pytest.raises(InputError, match="k must be at most dim = 32, got 40"):
        model_report(model, vectors[:50, :32], ks=[8, 40])
    assert set(model_report(model, vectors[:50, :32]).recall) == {4, 8, 16, 32}


def test_a_config_may_name_the_sizes(vectors: FloatArray) -> None:
    config = TrainConfig(k=4, n_latents=64, refine_rounds=1, steps=1)
    index = CompressedIndex.build(vectors[:200], config=config, progress=False)
    assert (index.k, index.model.k, index.model.n_latents) == (4, 4, 64)


def test_sizes_that_nobody_names_fit_the_vectors(vectors: FloatArray) -> None:
    config = TrainConfig(refine_rounds=1, steps=1)
    index = CompressedIndex.build(vectors[:100, :8], config=config, progress=False)
    assert (index.k, index.model.n_latents) == (8, 50)
    # A model of more nonzeros than dimensions is used with as many as help.
    wide = CompresSAE.of_dictionary(index.model.decoder_w, 20, index.model.mean)
    assert CompressedIndex.build(vectors[:9, :8], model=wide, progress=False).k == 8
    topk = CompressedIndex.build(vectors[:9, :8], model=wide, encoder="topk", progress=False)
    assert topk.k == 20


@pytest.fixture(scope="module")
def narrow(vectors: FloatArray) -> FloatArray:
    """The first 32 dimensions of real embeddings."""
    return np.ascontiguousarray(vectors[:600, :32])


@pytest.fixture(scope="module")
def small(narrow: FloatArray) -> CompresSAE:
    return train(narrow, TrainConfig.preset("fast", k=4, n_latents=64, refine_rounds=1, steps=1)).model


def test_codes_are_not_read_for_wrong_arguments(
    small: CompresSAE, narrow: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="k must be at most dim = 32, got 40"):
        encode_to_directory(small, narrow, tmp_path / "codes", k=40)
    assert not (tmp_path / "codes").exists()
    store = encode_to_directory(small, narrow, tmp_path / "codes")
    monkeypatch.setattr(type(store), "load", lambda _: pytest.fail("codes were read"))
    for options, message in (
        ({"value_bits": 3}, "value_bits must be at least 4"),
        ({"postings": 0}, "postings must be at least 1"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"forward": "wide"}, "forward must be one of"),
        ({"ids": [0.5]}, "ids must be integers or strings"),
        ({"model": "items.model"}, "model must be a CompresSAE"),
    ):
        with pytest.raises(InputError, match=message):
            CompressedIndex.from_codes(tmp_path / "codes", **{"model": small, **options})  # type: ignore[arg-type]


def test_a_plan_needs_a_budget(small: CompresSAE) -> None:
    for options, message in (
        ({}, "give bytes_per_vector or target_recall"),
        ({"bytes_per_vector": "96"}, "bytes_per_vector must be a number"),
        ({"bytes_per_vector": 5.0}, "the least is"),
        ({"target_recall": 0.5, "bytes_per_vector": 96}, "not both"),
    ):
        with pytest.raises(InputError, match=message):
            Budget(**options).check_room(small.n_latents, 0.0)


def test_the_least_budget_will_do(small: CompresSAE, narrow: FloatArray) -> None:
    with pytest.raises(InputError) as caught:
        CompressedIndex.build(narrow, model=small, bytes_per_vector=1, progress=False)
    least = float(str(caught.value).rpartition(" ")[2])
    index = CompressedIndex.build(narrow, model=small, bytes_per_vector=least, progress=False)
    assert index.plan is not None
    assert index.plan.bytes_per_vector <= least
    with pytest.raises(InputError, match=f"the least is {least:g}"):
        CompressedIndex.build(narrow, model=small, bytes_per_vector=least - 0.2, progress=False)


def test_a_recall_is_reached_where_few_vectors_share_large_lists(narrow: FloatArray) -> None:
    model = train(narrow, TrainConfig(k=8, n_latents=512, refine_rounds=2, steps=2)).model
    plan = CompressedIndex.build(narrow[:12], model=model, target_recall=0.6, progress=False).plan
    assert plan is not None
    assert plan.recall >= 0.6
    assert plan.bytes_per_vector > 512


def test_the_command_line_refuses_more_nonzeros_than_dimensions(
    small: CompresSAE, narrow: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("e.npy", narrow)
    small.save("m")
    for arguments in (
        ["build", "e.npy", "-o", "i"],
        ["build", "e.npy", "-o", "i", "--model", "m"],
        ["train", "e.npy", "-o", "n"],
        ["estimate", "e.npy"],
        ["encode", "e.npy", "--model", "m", "-o", "c"],
        ["encode", "e.npy", "--model", "m", "-o", "c.npz"],
    ):
        result = CliRunner().invoke(main, [*arguments, "--k", "40"])
        assert (result.exit_code, result.stderr) == (2, "Error: k must be at most dim = 32, got 40\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "m"]
