"""Recoding that is killed, and goes on: the same bytes, and nothing is done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import assert_nothing_stray, content_of

from compressae_index import CompresSAE, CompressedIndex, FormatError, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.building import unfinished

# Recodes by the command, in a child that kills itself when it has done so much, and notes what it does.
RECODE = """
import os, signal, sys
from compressae_index.building import recoding, unfinished
from compressae_index.cli import main
from compressae_index.coding import directory
from compressae_index.training import learning, run as training

index, folder, *plan = sys.argv[1:]
learn, encode, recoded = learning.DictionaryLearner.learn, directory.encoded_chunks, recoding.recoded

def note(line, at):
    if line == at:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{output}.log", "a") as file:
        file.write(line + "\\n")

def recode(at):
    def learning_round(self, batch):
        note(f"round {self.round}", at)
        return learn(self, batch)
    def encoding(*arguments, begin, **more):
        note(f"rows {begin}", at)
        yield from encode(*arguments, begin=begin, **more)
    def indexing(*arguments, **more):
        note("index", at)
        return recoded(*arguments, **more)
    import compressae_index.index
    learning.DictionaryLearner.learn = learning_round
    directory.encoded_chunks = encoding
    compressae_index.index.recoded = indexing
    unfinished.PIECE_ROWS = 100
    training.CONTINUED["refine_rounds"] = 10
    import torch
    torch.set_num_threads(1)
    main(["recode", index, "-o", output, "--threads", "1"])

for name, at in (step.split(":") for step in plan):
    output = f"{folder}/{name}"
    child = os.fork()
    if not child:
        try:
            recode(at)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def saved(vectors: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 350 vectors with residual codes."""
    rows = np.ascontiguousarray(vectors[:360, :48])
    config = TrainConfig(k=8, n_latents=64, steps=0, refine_rounds=4)
    index = CompressedIndex.build(rows, k=8, config=config, residual_bits=4, progress=False)
    index.remove(np.arange(20, 30))
    path = tmp_path_factory.mktemp("saved") / "index"
    index.save(path)
    return path


@pytest.fixture
def other(saved: Path) -> CompresSAE:
    """Another model of these vectors."""
    vectors = CompressedIndex.load(saved).vectors
    return train(vectors, TrainConfig(k=8, n_latents=96, steps=0, refine_rounds=3)).model


def run(*arguments: object) -> list[str]:
    """The exit codes of the command's runs."""
    command = [sys.executable, "-P", "-c", RECODE, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [line for line in done.stdout.splitlines() if line.lstrip("-").isdigit()]


def bytes_of(path: Path) -> dict[str, object]:
    """All of a saved index but the random name of its folder."""
    assert_nothing_stray(path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    files = {re.sub("data-[0-9a-f]{8}", "data", name): data for name, data in content_of(path).items()}
    return files | {"manifest.json": {**manifest, "data": "", "checksum": ""}}


@pytest.mark.slow
def test_killed_at_any_stage_it_goes_on_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    plan = ("killed:round 6", "killed:rows 200", "killed:index", "killed:never", "whole:never")
    assert run(saved, tmp_path, *plan) == ["-9", "-9", "-9", "0", "0"]
    # Training goes on from its last checkpoint, codes from the first piece that is missing.
    done = [f"round {number}" for number in (*range(6), *range(6, 10))]
    done += ["rows 0", "rows 100", "rows 200", "rows 300", "index"]
    assert (tmp_path / "killed.log").read_text().splitlines() == done
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert {entry.name for entry in tmp_path.glob("*") if entry.is_dir()} == {"killed", "whole"}


@pytest.fixture
def begun(saved: Path, other: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pieces of a recoding by `other` that failed when all were coded."""
    monkeypatch.setattr(unfinished, "PIECE_ROWS", 100)
    index = CompressedIndex.load(saved)
    with monkeypatch.context() as patched:
        patched.setattr("compressae_index.index.recoded", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.recode(other, output=tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.recoding"]
    (codes,) = (tmp_path / "new.recoding").iterdir()
    return codes


@pytest.mark.parametrize("damage", ["cut", "link", "manifest", "foreign names"])
def test_damaged_pieces_are_made_again(
    saved: Path, other: CompresSAE, begun: Path, tmp_path: Path, damage: str
) -> None:
    piece = begun / "values-000001.npy"
    if damage == "cut":
        piece.write_bytes(piece.read_bytes()[:-1])
    elif damage == "link":
        piece.rename(tmp_path / "elsewhere")
        piece.symlink_to(tmp_path / "elsewhere")
    elif damage == "manifest":
        (begun / "manifest.json").write_text("{")
    else:
        text = (begun / "manifest.json").read_text()
        (begun / "manifest.json").write_text(text.replace('"values"', '"../../saved"'))
    index = CompressedIndex.load(saved)
    with pytest.warns(UserWarning, match="encoded again|starts over"):
        index.recode(other, output=tmp_path / "new")
    expected = CompressedIndex.load(saved)
    expected.recode(other, output=tmp_path / "whole")
    assert bytes_of(tmp_path / "new") == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "new.recoding").exists()
    assert index.model.fingerprint == other.fingerprint


def test_pieces_of_another_model_or_other_vectors_are_not_taken(
    saved: Path, other: CompresSAE, begun: Path, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    shutil.copytree(begun.parent, aside)
    third = train(CompressedIndex.load(saved).vectors, TrainConfig(k=8, steps=0, refine_rounds=2)).model
    fewer = CompressedIndex.load(saved)
    fewer.remove([5])
    changed = CompressedIndex.load(saved)
    changed.upsert(changed.reconstruct([5])[:, ::-1], [359])
    for index, model, word in (
        (CompressedIndex.load(saved), third, "another model"),
        (fewer, other, "other vectors"),
        (changed, other, "rows 300 .. 349 changed"),
    ):
        shutil.rmtree(begun.parent, ignore_errors=True)
        shutil.copytree(aside, begun.parent)
        expected = CompressedIndex.merge([index])
        expected.probe = index.probe
        with pytest.warns(UserWarning, match=word):
            index.recode(model, output=tmp_path / "new")
        expected.recode(model, output=tmp_path / "whole")
        assert bytes_of(tmp_path / "new") == bytes_of(tmp_path / "whole")


def test_a_training_on_other_vectors_starts_over(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = CompressedIndex.load(saved)
    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "encode_to_directory", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.recode(output=tmp_path / "new")
    assert (tmp_path / "new.recoding" / "training").is_dir()
    index.upsert(index.reconstruct([5])[:, ::-1], [6])
    before = index.model.fingerprint
    with pytest.warns(UserWarning, match="other rows.* the training starts over"):
        index.recode(output=tmp_path / "new")
    assert index.model.fingerprint != before
    assert CompressedIndex.load(tmp_path / "new").model.fingerprint == index.model.fingerprint


def test_what_is_not_ours_is_left_alone(
    saved: Path, other: CompresSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = CompressedIndex.load(saved)
    before = index.model.fingerprint
    (tmp_path / "new.recoding").mkdir()
    (tmp_path / "new.recoding" / "letter.txt").write_text("dear")
    with pytest.raises(FormatError, match=r"letter.txt is no part of a recoding"):
        index.recode(other, output=tmp_path / "new")
    (tmp_path / "link.recoding").symlink_to(tmp_path)
    with pytest.raises(FormatError, match="is not a directory"):
        index.recode(other, output=tmp_path / "link")
    other.save(tmp_path / "model")
    with pytest.raises(FormatError, match="holds: model"):
        index.recode(other, output=tmp_path / "model")
    with unfinished.unfinished(tmp_path / "busy"), pytest.raises(FormatError, match="another process"):
        index.recode(other, output=tmp_path / "busy")
    monkeypatch.setattr(CompressedIndex, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.recode(other, output=tmp_path / "full")
    assert index.model.fingerprint == before
    assert (tmp_path / "new.recoding" / "letter.txt").read_text() == "dear"
