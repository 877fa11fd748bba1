"""The command line: results are the library's, mistakes are one line and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from click.testing import CliRunner, Result

from compressae_index import CompresSAE, CompressedIndex, FormatError, SparseCodes, TrainConfig, train
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.cli.milvus import milvus
from compressae_index.connectors.faiss import FaissIndex
from compressae_index.connectors.faiss import lists as faiss_lists
from compressae_index.demo import DemoData
from compressae_index.search.results import read_results

COMMANDS = [
    "build",
    "demo",
    "drift",
    "encode",
    "estimate",
    "eval",
    "explain",
    "export",
    "info",
    "label",
    "merge",
    "milvus",
    "neighbours",
    "ray",
    "recode",
    "report",
    "search",
    "train",
]
SIZES = ["--k", 8, "--n-latents", 64]

needs_place = pytest.mark.usefixtures("place")


def run(*arguments: object) -> Result:
    """A command that must succeed."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def fail(*arguments: object) -> str:
    """The message of a command that must end in one line on standard error and exit code 2."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def furnished(
    tmp_path_factory: pytest.TempPathFactory, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> Path:
    """What `place` begins with. Not to be changed."""
    folder = tmp_path_factory.mktemp("furnished")
    np.save(folder / "e.npy", vectors[:300])
    np.save(folder / "q.npy", queries[:6])
    model.save(folder / "m")
    CompressedIndex.build(vectors[:300], model=model, k=8, progress=False).save(folder / "i")
    return folder


@pytest.fixture
def place(tmp_path: Path, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with embeddings, queries, a model and an index."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_of_every_command() -> None:
    assert isinstance(main, click.Group)
    assert sorted(main.commands) == COMMANDS
    for command in ([], *([name] for name in COMMANDS)):
        for option in ("--help", "-h"):
            lines = run(*command, option).stdout.splitlines()
            example = lines.index("  Example:")
            assert lines[example + 1].startswith("    compressae-index " + " ".join(command))


def test_the_installed_script(place: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "compressae-index"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script, *arguments], cwd=place, capture_output=True, text=True, check=False)

    version = call("--version")
    assert version.stdout.startswith("compressae-index, version ")
    searched = call("search", "i", "q.npy", "-k", "2")
    assert (searched.returncode, searched.stderr) == (0, "")
    assert searched.stdout == run("search", "i", "q.npy", "-k", 2).stdout
    failed = call("search", "nowhere", "q.npy")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "Error: nowhere does not exist\n"
    bare = call()
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "Commands:" in bare.stderr


@needs_place
def test_train(vectors: FloatArray) -> None:
    content = run_json("train", "e.npy", "-o", "new", *SIZES, "--steps", 3, "--seed", 5)
    expected = train(vectors[:300], TrainConfig(k=8, n_latents=64, steps=3, seed=5))
    assert content["fingerprint"] == expected.model.fingerprint == CompresSAE.load("new").fingerprint
    checks = expected.checks
    assert content["held_out_loss"] == (pytest.approx(checks[-1].loss, abs=1e-5) if checks else None)
    assert {name: content[name] for name in ("model", "dim", "n_latents", "k")} == {
        "model": "new",
        "dim": 384,
        "n_latents": 64,
        "k": 8,
    }
    assert content["seconds"] > 0
    assert "fingerprint  " + content["fingerprint"] in run("info", "new").stdout
    no_steps = run_json("train", "e.npy", "-o", "new", *SIZES, "--steps", 0)
    assert no_steps["held_out_loss"] > 0


@pytest.mark.parametrize("encoder", ["pursuit", "topk"])
def test_encode(place: Path, model: CompresSAE, vectors: FloatArray, encoder: Any) -> None:
    content = run_json("encode", "e.npy", "--model", "m", "-o", "c.npz", "--k", 5, "--encoder", encoder)
    assert content.pop("seconds") > 0
    assert content == {"codes": "c.npz", "rows": 300, "fingerprint": model.fingerprint}
    codes, expected = (
        SparseCodes.from_csr(sp.csr_array(sp.load_npz("c.npz"))),
        model.fold(model.encode(vectors[:300], 5, encoder=encoder)),
    )
    np.testing.assert_array_equal(codes.latents, expected.latents)
    np.testing.assert_array_equal(codes.values, expected.values)
    assert sorted(path.name for path in place.iterdir()) == ["c.npz", "e.npy", "i", "m", "q.npy"]


@needs_place
def test_encode_to_a_directory_and_build_of_it(model: CompresSAE, queries: FloatArray) -> None:
    command = ("encode", "e.npy", "--model", "m", "-o", "codes", "--k", 8)
    for _ in range(2):  # the second time, all is there
        content = run_json(*command)
        assert content.pop("seconds") > 0
        assert content == {"codes": "codes", "rows": 300, "fingerprint": model.fingerprint}
    Path("ids.txt").write_text("\n".join(f"item {row}" for row in range(300)))
    run("build", "--codes", "codes", "--model", "m", "--ids", "ids.txt", "-o", "new", "--threads", 1)
    built, expected = CompressedIndex.load("new"), CompressedIndex.load("i").search(queries, 5)
    assert (built.k, built.encoder, built.model.fingerprint) == (8, "pursuit", model.fingerprint)
    found = built.search(queries, 5)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.ids.tolist() == [[f"item {row}" for row in rows] for rows in expected.ids]
    described = run_json("info", "codes")
    assert (described["n"], described["k"], described["fingerprint"]) == (300, 8, model.fingerprint)
    assert "k = 8, now it is 9" in fail(*command[:-1], 9)
    assert "4 ids for 300 vectors" in fail(
        "build", "--codes", "codes", "--model", "m", "-o", "x", "--ids", ids_file(4)
    )
    for option in (["--k", 8], ["--encoder", "topk"], ["--n-latents", 512], ["--dataset", "x"]):
        message = fail("build", "--codes", "codes", "--model", "m", "-o", "x", *option)
        assert f"{option[0]} cannot be used with --codes" in message
    CompresSAE(2 * model.encoder_w, model.encoder_b, model.decoder_w, model.k).save("other")
    assert "encoded by a model of fingerprint" in fail(
        "build", "--codes", "codes", "--model", "other", "-o", "x"
    )
    assert not Path("x").exists()


def ids_file(n: int) -> str:
    Path("some.txt").write_text("\n".join(map(str, range(n))))
    return "some.txt"


@needs_place
def test_build_of_a_folder(vectors: FloatArray) -> None:
    Path("shards").mkdir()
    for number in range(12):
        np.save(f"shards/{number}.npy", vectors[25 * number : 25 * number + 25])
    run("build", "shards", "-o", "new", "--model", "m", "--k", 8)
    np.testing.assert_array_equal(
        CompressedIndex.load("new").codes(range(300)).latents,
        CompressedIndex.load("i").codes(range(300)).latents,
    )


@needs_place
def test_build_from_a_model(queries: FloatArray) -> None:
    content = run_json("build", "e.npy", "-o", "new", "--model", "m", "--k", 8, "--threads", 1)
    built, expected = CompressedIndex.load("new"), CompressedIndex.load("i")
    assert content.pop("index") == "new"
    assert content.pop("seconds") > 0
    assert content == json.loads(json.dumps(expected.stats()._asdict()))
    np.testing.assert_array_equal(built.search(queries, 5).ids, expected.search(queries, 5).ids)


@needs_place
def test_build_trains(vectors: FloatArray) -> None:
    run("build", "e.npy", "-o", "new", *SIZES, "--steps", 3, "--seed", 5, "--encoder", "topk")
    built = CompressedIndex.load("new")
    expected = train(vectors[:300], TrainConfig(k=8, n_latents=64, steps=3, seed=5)).model
    assert (built.model.fingerprint, built.k, built.encoder) == (expected.fingerprint, 8, "topk")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\n".join(map(str, range(7, 307))), list(range(7, 307))),
        ("".join(f"id {i}\r\n" for i in range(300)), [f"id {i}" for i in range(300)]),
        # Numbers that would not come back as they are.
        ("".join(f"{i:03}\n" for i in range(300)), [f"{i:03}" for i in range(300)]),
        ("".join(f"a\u2028\x0b{i}\n" for i in range(300)), [f"a\u2028\x0b{i}" for i in range(300)]),
        ("".join(f"{i}\n" for i in [2**63 - 1, *range(299)]), [2**63 - 1, *range(299)]),
        ("".join(f"{10**20 + i}\n" for i in range(300)), [f"{10**20 + i}" for i in range(300)]),
    ],
)
def test_ids_from_text(place: Path, text: str, ids: list[object]) -> None:
    (place / "ids.txt").write_bytes(text.encode())
    run("build", "e.npy", "-o", "new", "--model", "m", "--k", 8, "--ids", "ids.txt")
    assert CompressedIndex.load("new").ids.tolist() == ids


@needs_place
def test_ids_from_an_array() -> None:
    for ids in (np.arange(300) * 5, np.array([f"ü{i}" for i in range(300)])):
        np.save("ids.npy", ids)
        run("build", "e.npy", "-o", "new", "--model", "m", "--k", 8, "--ids", "ids.npy")
        assert CompressedIndex.load("new").ids.tolist() == ids.tolist()


@needs_place
def test_ids_from_a_column(vectors: FloatArray) -> None:
    names = [f"n{i}" for i in range(300)]
    pq.write_table(pa.table({"e": list(vectors[:300]), "name": names, "k": range(5, 305)}), "e.parquet")
    for column, expected in (("name", names), ("k", list(range(5, 305)))):
        run("build", "e.parquet", "-o", "new", "--model", "m", "--k", 8, "--id-column", column)
        assert CompressedIndex.load("new").ids.tolist() == expected
    content = run_json("eval", "new", "e.parquet", "q.npy", "--id-column", "k")
    assert {each["name"]: each["recall"]["10"] for each in content["measurements"]}["dense"] > 0.3
    run("build", "e.npy", "-o", "new", "--model", "m", "--k", 8, "--ids", "e.parquet", "--id-column", "name")
    assert CompressedIndex.load("new").ids.tolist() == names
    assert "name, k" in fail("build", "e.parquet", "-o", "x", "--model", "m", "--id-column", "nom")


@needs_place
def test_eval_of_a_file_with_missing_rows(vectors: FloatArray) -> None:
    rows: list[Any] = list(vectors[:300])
    rows[7] = None
    pq.write_table(pa.table({"train": pa.array(rows, pa.list_(pa.float32()))}), "gaps.parquet")
    skip = ("--on-bad-rows", "skip")
    run("build", "gaps.parquet", "-o", "gaps", "--model", "m", "--k", 8, *skip)
    measured = run_json("eval", "gaps", "gaps.parquet", "q.npy", *skip)
    assert (measured["left_out"], measured["stats"]["vectors"]) == (1, 299)
    for command in (("eval", "gaps", "gaps.parquet", "q.npy"), ("report", "m", "gaps.parquet")):
        assert "row 7" in fail(*command)
        assert run(*command, *skip).exit_code == 0
    estimated = ("estimate", "gaps.parquet", "--k", 8, "--n-latents", 64)
    assert "row 7" in fail(*estimated)
    assert run_json(*estimated, *skip)["plan"]["k"] == 8


@needs_place
def test_bad_rows_are_skipped(place: Path, vectors: FloatArray) -> None:
    rows = vectors[:300].copy()
    rows[[7, 100]], rows[250] = np.nan, 0
    np.save("spoiled.npy", rows)
    arguments = ("build", "spoiled.npy", "-o", "new", "--model", "m", "--k", 8, "--on-bad-rows", "skip")
    content = run_json(*arguments)
    assert (content["vectors"], content["skipped"], content["skipped_ids"]) == (297, 3, [7, 100, 250])
    assert CompressedIndex.load("new").ids.tolist() == np.delete(np.arange(300), [7, 100, 250]).tolist()
    (place / "ids.txt").write_text("".join(f"n{i}\n" for i in range(300)))
    printed = run(*arguments, "--ids", "ids.txt").stdout
    skipped = [line.split(maxsplit=1)[1].split() for line in printed.splitlines() if "skipped" in line]
    assert skipped == [["3"], ["ids", "'n7',", "'n100',", "'n250'"]]
    for more in ((), ("--on-bad-rows", "skip")):
        measured = run_json("eval", "new", "spoiled.npy", "q.npy", "--ids", "ids.txt", *more)
        assert (measured["left_out"], measured["stats"]["vectors"]) == (3, 297)
    assert run_json("build", "e.npy", *arguments[2:])["skipped"] == 0
    run("train", "spoiled.npy", "-o", "other", *SIZES, "--steps", 1, "--on-bad-rows", "skip")
    expected = train(np.delete(rows, [7, 100, 250], 0), TrainConfig(k=8, n_latents=64, steps=1)).model
    assert CompresSAE.load("other").fingerprint == expected.fingerprint


@needs_place
def test_a_search_of_no_queries(vectors: FloatArray) -> None:
    np.save("none.npy", vectors[:0])
    assert run("search", "i", "none.npy").stdout == ""
    assert run_json("search", "i", "none.npy") == {"ids": [], "scores": []}
    run("search", "i", "none.npy", "-k", 7, "-o", "r.npz")
    with np.load("r.npz") as stored:
        assert stored["ids"].shape == stored["scores"].shape == (0, 7)


@pytest.mark.parametrize("mode", ["sparse", "dense", "two_stage"])
@pytest.mark.parametrize("scoring", ["asymmetric", "symmetric"])
@needs_place
def test_search(queries: FloatArray, mode: Any, scoring: Any) -> None:
    of_mode: dict[str, dict[str, Any]] = {
        "sparse": {"query_nnz": 5},
        "dense": {},
        "two_stage": {"candidates": 9, "query_nnz": 5},
    }
    options = {**of_mode[mode], "scoring": scoring, "mode": mode}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    scores, ids = CompressedIndex.load("i").search(queries[:6], 4, **options)
    content = run_json("search", "i", "q.npy", "-k", 4, *flags)
    assert content == {"ids": ids.tolist(), "scores": scores.tolist()}
    lines = run("search", "i", "q.npy", "-k", 4, *flags).stdout.splitlines()
    assert lines == [
        f"{q}\t" + " ".join(f"{id_}:{score:.4f}" for id_, score in zip(ids[q], scores[q], strict=True))
        for q in range(6)
    ]
    run("search", "i", "q.npy", "-k", 4, *flags, "-o", "r.npz")
    with np.load("r.npz") as stored:
        np.testing.assert_array_equal(stored["ids"], ids)
        np.testing.assert_array_equal(stored["scores"], scores)


@needs_place
def test_missing_results(model: CompresSAE, vectors: FloatArray) -> None:
    for ids, missing in ((["a", "b"], None), ([7, 8], -1)):
        CompressedIndex.build(vectors[:2], ids, model=model, k=8, progress=False).save("two")
        content = run_json("search", "two", "q.npy", "-k", 3)
        assert {row[2] for row in content["ids"]} == {missing}
        assert {row[2] for row in content["scores"]} == {None}
        assert all(line.count(":") == 2 for line in run("search", "two", "q.npy").stdout.splitlines())
        assert run_json("search", "two", "q.npy", "-k", 3, "-o", "r.npz") == {"results": "r.npz"}
        with np.load("r.npz") as stored:
            assert set(stored["ids"][:, 2].tolist()) == {-1}
            assert (stored["scores"][:, 2] == -np.inf).all()
        assert set(read_results("r.npz").ids[:, 2].tolist()) == {missing}


@needs_place
def test_eval(model: CompresSAE, vectors: FloatArray) -> None:
    CompressedIndex.build(vectors[:300], model=model, k=3, progress=False).save("i")
    content = run_json("eval", "i", "e.npy", "q.npy", "--max-queries", 4, "--faiss")
    assert content["queries"] == 4
    measured = {each["name"]: each for each in content["measurements"]}
    assert list(measured)[:4] == ["exact float32", "sparse", "dense", "two_stage"]
    product = [each for name, each in measured.items() if name.startswith("Faiss PQ")]
    assert product[0]["bytes_per_vector"] <= measured["dense"]["bytes_per_vector"]
    assert product[-1]["bytes_per_vector"] <= measured["two_stage"]["bytes_per_vector"]
    assert measured["exact float32"]["recall"] == {"10": 1, "100": 1}
    assert all(0 < each["recall"]["100"] <= 1 and each["ms_per_query"] > 0 for each in measured.values())
    printed = run("eval", "i", "e.npy", "q.npy", "--scoring", "symmetric").stdout
    contestants, settings = (
        [line.split("|")[1].strip() for line in table.splitlines()[2:]] for table in printed.split("\n\n")
    )
    assert contestants == [
        "exact float32",
        "sparse (symmetric)",
        "dense (symmetric)",
        "two_stage (symmetric)",
    ]
    assert settings == [
        *(f"sparse (symmetric), query_nnz={nnz}" for nnz in (8, 16, 32, 64, 128, 256)),
        *(f"two_stage (symmetric), candidates={candidates}" for candidates in (100, 300)),
    ]


@needs_place
def test_eval_of_one_hdf5_file_and_string_ids(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    with h5py.File("e.hdf5", "w") as file:
        file["train"], file["test"], file["more"] = vectors[:60], queries[:6], queries[:7]
    ids = [f"id {i}" for i in range(60)]
    CompressedIndex.build(vectors[:60], ids, model=model, k=8, progress=False).save("s")
    Path("ids.txt").write_text("\n".join(ids))
    content = run_json("eval", "s", "e.hdf5", "--ids", "ids.txt")
    assert content["queries"] == 6
    assert content["measurements"][2]["recall"].keys() == {"10"}
    assert 0.2 < content["measurements"][2]["recall"]["10"] <= 1
    more = run_json("eval", "s", "e.hdf5", "--no-faiss", "--ids", "ids.txt", "--query-dataset", "more")
    assert more["queries"] == 7
    assert "are strings, as 'id 0', so the ids of the embeddings are needed" in fail("eval", "s", "e.hdf5")


@needs_place
def test_info(model: CompresSAE) -> None:
    index = CompressedIndex.load("i")
    expected = {"index": "i", "fingerprint": model.fingerprint, **index.stats()._asdict()}
    assert run_json("info", "i") == json.loads(json.dumps(expected))
    assert run_json("info", "m") == {"model": "m", **model.manifest()}
    text = run("info", "i").stdout
    assert "vectors                300\n" in text
    assert (
        f"bytes per vector       forward {index.stats().bytes_per_vector['forward']:.4g}, inverted " in text
    )


@needs_place
def test_info_of_a_faiss_index(model: CompresSAE) -> None:
    index = CompressedIndex.load("i")
    filed = FaissIndex.from_index(index, progress=False)
    filed.remove([0])
    filed.save("f")
    told = run_json("info", "f")
    assert told == json.loads(
        json.dumps({"faiss_index": "f", "fingerprint": model.fingerprint, **filed.stats()._asdict()})
    )
    assert (told["vectors"], told["n_latents"], told["k"]) == (299, 512, 8)

    faiss.write_index(filed.faiss_index, "lists.faiss")
    codes = index.codes(index.ids)
    postings = np.bincount(codes.latents[codes.values != 0], minlength=512)
    bytes_per_vector = 10 * postings.sum() / 300
    assert run_json("info", "lists.faiss") == {
        "faiss_lists": "lists.faiss",
        "vectors": 300,  # a removed one stays in the lists until they are compacted
        "n_latents": 512,
        "k": 8,
        "bytes_per_vector": {"inverted": bytes_per_vector, "total": bytes_per_vector},
        "dead_latents": int((postings == 0).sum()),
        "list_skew": pytest.approx(postings.max() / postings.mean()),
    }
    assert "faiss lists       lists.faiss\nvectors           300\n" in run("info", "lists.faiss").stdout


@needs_place
def test_a_search_says_what_it_did(queries: FloatArray) -> None:
    options = ("search", "i", "q.npy", "-k", 3, "--candidates", 50, "--query-nnz", 8)
    index = CompressedIndex.load("i")
    expected = index.search(queries[:6], 3, candidates=50, query_nnz=8, stats=True).stats
    assert expected is not None
    found = run_json(*options, "--stats")
    assert found["stats"] | {"milliseconds": {}} == expected._asdict() | {"milliseconds": {}}
    assert set(found["stats"]["milliseconds"]) == {"project", "find", "total"}
    assert {name: found[name] for name in ("ids", "scores")} == run_json(*options)
    told, plain = run(*options, "--stats"), run(*options)
    assert told.stdout == plain.stdout
    assert plain.stderr == ""
    (line,) = told.stderr.splitlines()
    counts = rf" {expected.candidates:,} candidates, .*, {expected.bytes_read:,} bytes read"
    assert re.fullmatch(rf"6 queries: project [\d.]+ ms, find .* ms, total .* ms;{counts}", line)
    assert run_json(*options, "--stats", "--explain")["stats"]["postings"] == expected.postings
    assert run_json(*options, "--stats", "-o", "r.npz")["stats"]["postings"] == expected.postings


@needs_place
def test_search_and_eval_of_a_faiss_index(queries: FloatArray) -> None:
    filed = FaissIndex.from_index(CompressedIndex.load("i"), progress=False)
    filed.save("f")
    for mode, more in (("sparse", ()), ("two_stage", ("--candidates", 50))):
        options = ("-k", 4, "--mode", mode, "--query-nnz", 32, *more)
        found = run_json("search", "f", "q.npy", *options)
        expected = filed.search(queries[:6], 4, mode=mode, candidates=50, query_nnz=32)
        assert found["ids"] == expected.ids.tolist()
        np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-6)
    assert run("search", "f", "q.npy", "-k", 3).stdout == run("search", "i", "q.npy", "-k", 3).stdout
    assert "mode must be one of 'sparse', 'two_stage', got 'dense'" in fail(
        "search", "f", "q.npy", "--mode", "dense"
    )
    measured = run_json("eval", "f", "e.npy", "q.npy", "--report", "f.html")
    assert [one["name"] for one in measured["measurements"]] == ["exact float32", "sparse", "two_stage"]
    assert "posting lists" in Path("f.html").read_text(encoding="utf-8")
    assert "m holds: model; expected: index" in fail("search", "m", "q.npy")


@needs_place
def test_info_of_other_files_of_faiss() -> None:
    faiss.write_index(faiss_lists.empty_lists(4), "empty.faiss")
    told = run_json("info", "empty.faiss")
    assert (told["vectors"], told["k"], told["dead_latents"]) == (0, 0, 4)
    faiss.write_index(faiss.IndexFlatIP(3), "flat.faiss")
    assert "one list a latent, got IndexFlatIP of 3 dimensions" in fail("info", "flat.faiss")
    FaissIndex.from_index(CompressedIndex.load("i"), progress=False).save("f")
    (whole,) = Path("f").rglob("lists.faiss")
    for size in (3, 100, whole.stat().st_size - 1000):
        Path("cut.faiss").write_bytes(whole.read_bytes()[:size])
        assert "cut.faiss cannot be read by Faiss" in fail("info", "cut.faiss")


def test_demo(
    tmp_path: Path, demo_data: DemoData, monkeypatch: pytest.MonkeyPatch, vectors: FloatArray
) -> None:
    few = DemoData(vectors[:400], demo_data.queries[:20], demo_data.texts[:400], demo_data.query_texts[:20])
    small: dict[str, Any] = {"k": 4, "n_latents": 64, "config": TrainConfig(steps=5)}
    monkeypatch.setattr("compressae_index.demo.load_data", lambda: few)
    monkeypatch.setattr(CompressedIndex, "build", partial(CompressedIndex.build, **small))

    content = run_json("demo", "-o", tmp_path / "out")
    index = CompressedIndex.load(tmp_path / "out" / "index")
    assert content["stats"] == json.loads(json.dumps(index.stats()._asdict()))
    assert content["stats"]["vectors"] == 400
    names = [each["name"] for each in content["measurements"]]
    assert names[:4] == ["exact float32", "sparse", "dense", "two_stage"]
    assert [name[:8] for name in names[4:]] == ["Faiss PQ"] * 2
    assert set(content["seconds"]) == {"train and build", "save and load", "measure"}

    monkeypatch.setitem(sys.modules, "faiss", None)
    said = run("demo").stdout
    assert said.startswith("400 embeddings of 384 dimensions")
    for text in few.query_texts[:3]:
        assert f"? {text[:90]}" in said
    assert "(no comparison with Faiss: comparing with product quantisation needs faiss-cpu" in said
    assert sum(line.startswith("| ") for line in said.splitlines()) == 6


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory, model: CompresSAE, queries: FloatArray) -> Path:
    """Files that most commands cannot take. Not to be changed."""
    folder = tmp_path_factory.mktemp("mistaken")
    (folder / "foreign" / "index").mkdir(parents=True)
    (folder / "foreign" / "notes.txt").write_text("dear diary")
    (folder / "foreign" / "index" / "notes.txt").write_text("dear diary")
    (folder / "ids.txt").write_text("1\n2\n3")
    bad = queries[:6].copy()
    bad[2, 5] = np.nan
    np.save(folder / "bad.npy", bad)
    np.save(folder / "narrow.npy", queries[:6, :9])
    np.save(folder / "integers.npy", queries[:6].astype(np.int64))
    with h5py.File(folder / "e.hdf5", "w") as file:
        file["train"] = queries
    CompressedIndex.build(queries[:6], model=model, k=8, progress=False).save(folder / "small")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bogus", "No such command 'bogus'"),
        ("search i", "Missing argument 'QUERIES'"),
        ("train e.npy", "Missing option '--output'"),
        ("search i q.npy --magic", "No such option"),
        ("search i nowhere.npy", "nowhere.npy does not exist"),
        ("search nowhere q.npy", "nowhere does not exist"),
        ("search foreign q.npy", "foreign holds no manifest.json"),
        ("search m q.npy", "m holds: model; expected: index"),
        ("search i q.npy -k 0", "k must be at least 1, got 0"),
        ("search i q.npy -k ten", "'ten' is not a valid integer"),
        ("search i q.npy --candidates 0", "candidates must be at least 1"),
        ("search i q.npy -k 10 --candidates 5", "candidates must be at least k = 10, got 5"),
        ("search i q.npy --mode dense --candidates 20", "--candidates has no use in mode dense"),
        ("search i q.npy --mode dense --query-nnz 20", "--query-nnz has no use in mode dense"),
        ("search i q.npy --mode sparse --candidates 20", "--candidates has no use in mode sparse"),
        ("search i q.npy --refine 20", "refine is 20, but there is no stage that scores again"),
        ("search i q.npy --target-recall 0.9", "this index has none: give candidates"),
        ("search i q.npy --mode dense --target-recall 0.9", "target_recall has no use in mode 'dense'"),
        ("search i q.npy --originals e.npy", "this index refers to no file of original vectors"),
        ("search i q.npy --query-nnz -1", "query_nnz must be at least 1"),
        ("search i q.npy --threads 0", "num_threads must be at least 1"),
        ("search i q.npy --mode magic", "'magic' is not one of 'sparse', 'dense', 'two_stage'"),
        ("search i q.npy --scoring magic", "'magic' is not one of"),
        ("search i narrow.npy", "queries have dimension 9, expected 384"),
        ("search i integers.npy", "integers.npy: embeddings must be floating point"),
        ("search i bad.npy", "queries row 2 holds NaN"),
        ("search i q.npy -o r.txt", "r.txt: results are written as .npz"),
        ("search i q.npy -o nowhere/r.parquet", "nowhere is not a directory"),
        ("search i q.npy --holding 1*", "'1*' is no latent such as 12"),
        ("search i q.npy --lacking 512", "latent must be at most n_latents - 1 = 511, got 512"),
        ("search i q.npy --steer 1", "'1' is no latent with a weight, such as 12=0.5"),
        ("search i q.npy --steer +=0.5", "'+=0.5' is no latent"),
        ("search i q.npy --explain --scoring symmetric", "--explain is of asymmetric scores"),
        ("search i q.npy --explain -o r.npz", "--explain prints, and cannot be used with --output"),
        ("search i q.npy --columns a", "--columns and --from need each other"),
        ("search i q.npy --from e.npy", "--columns and --from need each other"),
        ("search i q.npy --id-column id", "--id-column needs --columns and --from"),
        ("search i q.npy --columns id --from e.npy", "Results have a column 'id' of their own"),
        ("search i q.npy --columns a --from e.npy -o r.npz", "--columns are printed, or written to a"),
        (
            "search i q.npy --columns a --from e.npy",
            "columns are read from Parquet files and Lance",
        ),
        ("explain i q.npy 300", "unknown id 300"),
        ("explain i q.npy seventeen", "unknown id 'seventeen'"),
        ("explain i q.npy 17 --query 6", "query must be at most the last of QUERIES = 5, got 6"),
        ("label i nowhere.txt", "nowhere.txt cannot be read: there is no such file"),
        ("label i foreign/notes.txt", "texts for 300 documents"),
        ("label i foreign/notes.txt -o e.npy", "e.npy exists and was not written by"),
        ("label m foreign/notes.txt", "m holds: model; expected: index"),
        ("search i q.npy -o nowhere/r.npz", "nowhere is not a directory"),
        ("search i foreign/notes.txt", "unknown kind of file"),
        ("train e.npy -o new --k 0", "k must be at least 1, got 0"),
        ("train e.npy -o new --k 100 --n-latents 64", "k must be at most n_latents = 64, got 100"),
        ("train bad.npy -o new --k 1 --n-latents 4", "row 2 holds NaN"),
        ("train e.npy -o foreign", "foreign exists and was not written by compressae-index"),
        ("train e.npy -o new --steps -1", "steps must be at least 0"),
        ("encode e.npy --model i -o c.npz", "i holds: index; expected: model"),
        ("encode e.npy --model m -o e.npy", "e.npy is not a directory"),
        ("encode e.npy --model m -o i", "i holds: index; expected: codes"),
        ("encode bad.npy --model m -o c.npz", "row 2 holds NaN"),
        ("encode narrow.npy --model m -o c.npz", "dimension 9, expected 384"),
        ("encode e.npy --model m -o c.npz --k 999", "k must be at most n_latents = 512, got 999"),
        ("build e.npy -o foreign --model m", "foreign exists and was not written by compressae-index"),
        ("train e.npy -o e.npy/new", "e.npy is not a directory"),
        ("build e.npy -o e.npy --model m", "e.npy exists and was not written by compressae-index"),
        ("build bad.npy -o new --model m", "row 2 holds NaN (1 such rows), row 2 of bad.npy"),
        ("build bad.npy -o new --on-bad-rows drop", "'drop' is not one of 'error', 'skip'"),
        ("build --codes i -o new --model m --on-bad-rows skip", "--on-bad-rows cannot be used with --codes"),
        ("build --codes i -o new --model m --id-column id", "--id-column needs EMBEDDINGS or --ids"),
        (
            "build e.npy -o new --model m --id-column id",
            "columns of ids are read from Parquet files and Lance datasets, got e.npy",
        ),
        ("build e.npy -o new --model m --residual-bits 5", "residual_bits must be one of 0, 1, 2, 3, 4, 6"),
        (
            "build e.npy -o new --model m --residual-bits 2 --originals float16",
            "cannot be given with originals",
        ),
        ("build e.npy -o new --model m --originals q.npy", "originals have shape (6, 384)"),
        (
            "build e.npy -o new --model m --originals float64",
            "originals must be 'float16' or 'float32', or a .npy file",
        ),
        ("build --codes i -o new --model m --residual-bits 2", "--residual-bits cannot be used with --codes"),
        ("build --codes i -o new --model m --originals float16", "--originals cannot be used with --codes"),
        ("build e.npy -o new --model m --n-latents 9", "n_latents is 9, but the model has 512"),
        ("build e.npy -o new --model m --ids nowhere.txt", "nowhere.txt cannot be read"),
        ("build e.npy -o new --model m --ids ids.txt", "3 ids for 300 vectors"),
        ("build e.npy -o new --model m --ids e.npy", "one-dimensional"),
        ("build e.hdf5 -o new --model m --dataset valid", "e.hdf5 holds no data set 'valid', only: train"),
        ("build -o new --model m", "Give either EMBEDDINGS or --codes"),
        ("build e.npy --codes e.npy -o new --model m", "Give either EMBEDDINGS or --codes"),
        ("build --codes i -o new", "--codes needs the --model that encoded"),
        ("build --codes i -o new --model m", "i holds: index; expected: codes"),
        ("build e.npy -o new --encoder magic", "'magic' is not one of"),
        ("eval i q.npy q.npy", "embeddings hold 6 vectors, the index 300"),
        ("eval i e.npy", "QUERIES is needed"),
        ("eval i e.npy q.npy --max-queries 0", "max-queries must be at least 1"),
        ("eval i e.npy narrow.npy", "queries have dimension 9, expected 384"),
        ("eval small q.npy q.npy --faiss", "product quantisation needs at least 256 vectors, got 6"),
        ("info foreign", "foreign holds no manifest.json"),
        ("info e.npy", "e.npy is not a directory"),
        ("demo -o e.npy", "e.npy is not a directory"),
        ("demo -o foreign", "index exists and was not written by compressae-index"),
    ],
)
def test_mistakes(place: Path, mistaken: Path, arguments: str, message: str) -> None:
    shutil.copytree(mistaken, place, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert message in fail(*arguments.split())
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_failed_write_leaves_the_old_output(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("encode", "e.npy", "--model", "m", "-o", "c.npz")
    run("search", "i", "q.npy", "-o", "r.npz")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def full(*_arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", full)
    for command in (
        "encode q.npy --model m -o c.npz",
        "search i q.npy -k 3 -o r.npz",
        "build q.npy --model m -o i",
        "train e.npy -o m --k 2 --n-latents 16 --steps 1",
    ):
        assert fail(*command.split()) == "Error: the disk is full\n"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@needs_place
def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compressae_index.index.CompressedIndex.search", interrupt)
    result = CliRunner().invoke(main, ["search", "i", "q.npy"])
    assert (result.exit_code, result.stderr.strip()) == (130, "Aborted.")


@needs_place
def test_a_row_is_numbered_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressae_index.coding.chunks.CHUNK_ROWS", 100)
    rows = np.load("e.npy")
    rows[217] = 0
    np.save("e.npy", rows)
    assert "row 217 is zero" in fail("encode", "e.npy", "--model", "m", "-o", "c.npz")


def call_main(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-P", "-c", before + "from compressae_index.cli import main; main()", *arguments]


@needs_place
def test_results_beyond_memory() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30));"
    command = call_main("search", "i", "q.npy", "-k", "2000000000", before=limit)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: k must be at most ")
    assert done.stderr.count("\n") == 1


@needs_place
def test_a_closed_pipe_is_no_error() -> None:
    np.save("many.npy", np.tile(np.load("q.npy"), (200, 1)))
    with subprocess.Popen(
        call_main("search", "i", "many.npy", "-k", "100"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("0\t")
        process.stdout.close()
        assert process.stderr.read() == ""


@needs_place
def test_estimate() -> None:
    content = run_json("estimate", "e.npy", *SIZES, "--postings", 4, "--value-bits", 5)
    assert (content["vectors"], content["dim"], content["n_latents"]) == (300, 384, 64)
    assert {name: content["plan"][name] for name in ("k", "value_bits", "postings")} == {
        "k": 8,
        "value_bits": 5,
        "postings": 4,
    }
    assert 0 < content["plan"]["recall"] <= 1
    assert "index bytes" in run("estimate", "e.npy", *SIZES).stdout


@needs_place
def test_build_within_a_budget() -> None:
    content = run_json("build", "e.npy", "-o", "new", "--model", "m", "--bytes-per-vector", 60)
    index = CompressedIndex.load("new")
    assert index.stats().bytes_per_vector["total"] < 61
    assert 0 < content["expected_recall"] <= 1
    arguments = "build e.npy -o other --model m --preset best"
    assert "--preset cannot be used with --model" in fail(*arguments.split(" "))


@needs_place
def test_residual_codes(queries: FloatArray) -> None:
    content = run_json("build", "e.npy", "-o", "r", "--model", "m", "--k", 8, "--residual-bits", 3)
    index = CompressedIndex.load("r")
    assert content["residual_bits"] == index.documents.residual_bits == 3
    size, by_mode = content["bytes_per_vector"], content["bytes_by_mode"]
    assert size["residuals"] == 2 + 3 * 384 / 8
    assert size["total"] == pytest.approx(sum(size.values()) - size["total"])
    assert by_mode["sparse"] == pytest.approx(size["total"] - size["residuals"])
    assert by_mode["dense"] == pytest.approx(size["forward"] + size["residuals"] + size["ids"])
    assert by_mode["two_stage"] == size["total"]
    for refine in (0, 20):
        found = run_json("search", "r", "q.npy", "-k", 5, "--refine", refine)
        expected = index.search(queries[:6], 5, refine=refine)
        assert found == {"ids": expected.ids.tolist(), "scores": expected.scores.tolist()}
    assert "no stage that scores again" in fail("search", "r", "q.npy", "--mode", "sparse", "--refine", 20)
    estimated = run_json("estimate", "e.npy", *SIZES, "--residual-bits", 3)
    plain = run_json("estimate", "e.npy", *SIZES)
    assert estimated["plan"]["residual_bits"] == 3
    assert estimated["plan"]["bytes_per_vector"] - plain["plan"]["bytes_per_vector"] == 2 + 3 * 384 / 8
    assert estimated["plan"]["dense_recall"] > plain["plan"]["dense_recall"]


@needs_place
def test_original_vectors(queries: FloatArray, vectors: FloatArray) -> None:
    build = ("build", "e.npy", "--model", "m", "--k", 8)
    for precision, size in (("float16", 768), ("float32", 1536)):
        assert run_json(*build, "-o", "own", "--originals", precision)["disk_bytes_per_vector"] == size
    content = run_json(*build, "-o", "o", "--originals", "e.npy")
    assert (content["disk_bytes_per_vector"], content["bytes_per_vector"]["originals"]) == (1536, 0)
    expected = CompressedIndex.load("o").search(queries[:6], 5)
    exact = queries[:6] @ vectors[:300].T / np.linalg.norm(vectors[:300], axis=1)
    np.testing.assert_array_equal(expected.ids[:, 0], exact.argmax(axis=1))
    Path("e.npy").rename("elsewhere.npy")
    with_codes = CompressedIndex.load("i").search(queries[:6], 5)
    for command in (["search", "o", "q.npy"], ["info", "o"], ["neighbours", "o", "--all"]):
        assert "cannot be used" in fail(*command)
        run(*command, "--originals", "elsewhere.npy")
    moved = run_json("search", "o", "q.npy", "-k", 5, "--originals", "elsewhere.npy")
    assert moved["ids"] == expected.ids.tolist()
    without = run_json("search", "o", "q.npy", "-k", 5, "--originals", "none")
    assert without == {"ids": with_codes.ids.tolist(), "scores": with_codes.scores.tolist()}
    assert run_json("info", "o", "--originals", "none")["disk_bytes_per_vector"] == 0
    FaissIndex.from_index(CompressedIndex.load("o", originals="elsewhere.npy"), progress=False).save("f")
    assert run_json("info", "f")["disk_bytes_per_vector"] == 1536
    assert run_json("search", "f", "q.npy", "-k", 5)["ids"] == expected.ids.tolist()
    filed = run_json("search", "f", "q.npy", "-k", 5, "--originals", "none")
    assert filed["ids"] == with_codes.ids.tolist()
    np.save("changed.npy", vectors[1:301])
    assert "other vectors than when the index was built" in fail("info", "o", "--originals", "changed.npy")
    measured = run_json("eval", "o", "elsewhere.npy", "q.npy", "--originals", "elsewhere.npy")
    assert [each["recall"]["10"] for each in measured["measurements"][2:]] == [1.0, 1.0]


@needs_place
def test_settings_that_build_measured(monkeypatch: pytest.MonkeyPatch, queries: FloatArray) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
    arguments = ("build", "e.npy", "-o", "new", "--model", "m", "--k", 8, "--residual-bits", 2)
    built = run_json(*arguments)
    index = CompressedIndex.load("new")
    assert index.frontier is not None
    default = index.frontier.default._asdict()
    del default["cost"]
    told = run_json("info", "new")
    assert built["default_search"] == told["default_search"] == default
    assert told["frontier"] == index.frontier.manifest()["points"]
    text = run("info", "new").stdout
    assert text.count("candidates=") == len(index.frontier.points)
    target = index.frontier.points[0].recall
    choices: list[dict[str, Any]] = [
        {"target_recall": target},
        {"target_recall": target, "query_nnz": 512},
        {},
    ]
    for options in choices:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        expected = index.search(queries[:6], 5, **options)
        assert run_json("search", "new", "q.npy", "-k", 5, *flags)["ids"] == expected.ids.tolist()
    assert "is out of reach" in fail("search", "new", "q.npy", "--target-recall", 0.9999)
    run(*arguments[:-2], "--originals", "float16")
    run("search", "new", "q.npy", "--target-recall", target)
    without = ("search", "new", "q.npy", "--originals", "none")  # what was measured does not hold
    run(*without)
    assert "this index has none" in fail(*without, "--target-recall", target)
    run(*arguments)
    measured = run_json("eval", "new", "e.npy", "q.npy")
    assert [each["expected_recall"] for each in measured["frontier"]] == [
        point.recall for point in index.frontier.points
    ]
    printed = run("eval", "new", "e.npy", "q.npy").stdout
    assert "at build time" in printed
    assert "two_stage, refine=100 " in printed


@needs_place
def test_pursuit_needs_no_trained_encoder(vectors: FloatArray) -> None:
    run("build", "e.npy", "-o", "new", *SIZES)
    expected = train(vectors[:300], TrainConfig(k=8, n_latents=64, steps=0)).model
    assert CompressedIndex.load("new").model.fingerprint == expected.fingerprint


@needs_place
def test_train_goes_on_from_a_checkpoint() -> None:
    arguments = ["train", "e.npy", *SIZES, "--checkpoint", "state"]
    first = run_json(*arguments, "-o", "one")
    assert run_json(*arguments, "-o", "two")["fingerprint"] == first["fingerprint"]
    assert "seed = 0, not 1" in fail(*arguments, "-o", "three", "--seed", "1")


HELP = [
    (path, command)
    for path, command in (
        *(((name,), command) for name, command in main.commands.items()),
        *((("milvus", name), command) for name, command in milvus.commands.items()),
    )
]


@pytest.mark.parametrize(("path", "command"), [((), main), *HELP], ids=lambda one: str(one)[:30])
def test_every_help_text_is_whole_and_stands_alone(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help is not None
    first = command.help.splitlines()[0]
    assert len(first) < 60
    assert first.endswith(".")
    # What a list of commands shows is all of it, on a narrow terminal as well.
    assert command.get_short_help_str(60) == first
    shown = run(*path, "--help").stdout
    for words in ("README", "The same ", "See ", "..."):
        assert words not in re.sub(r"\b(ARGS\]|SHARDS)\.\.\.", "", shown)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"
            assert parameter.help.rstrip("]").endswith((".", "default", "all", "none", "no", "")), parameter
        else:
            name = (parameter.name or "").upper()
            assert re.search(rf"\b{name}\b", command.help), f"{path}: the help does not say what {name} is"


def test_as_a_module_and_completion(place: Path) -> None:
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=place, env=os.environ | variables, capture_output=True, text=True, check=False
        )

    module = call(sys.executable, "-P", "-m", "compressae_index", "search", "i", "q.npy", "-k", "2")
    assert (module.returncode, module.stderr) == (0, "")
    assert module.stdout == run("search", "i", "q.npy", "-k", 2).stdout
    script = str(Path(sysconfig.get_path("scripts")) / "compressae-index")
    source = call(script, _COMPRESSAE_INDEX_COMPLETE="bash_source")
    assert "_COMPRESSAE_INDEX_COMPLETE=bash_complete" in source.stdout
    completed = call(
        script,
        _COMPRESSAE_INDEX_COMPLETE="bash_complete",
        COMP_WORDS="compressae-index eval --re",
        COMP_CWORD="2",
    )
    assert completed.stdout.split() == ["plain,--report"]
    assert "_COMPRESSAE_INDEX_COMPLETE=bash_source" in " ".join(run("--help").stdout.split())


NASTY = [
    "a b",
    "red\x1b[31m",
    "two\nlines",
    "nul\0",
    "\u202etfel",
    'say "hi"',
    "back\\slash",
    "a:0.5",
    "žluť",
]


@needs_place
def test_ids_are_escaped_for_people_and_exact_for_programs(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> None:
    index = CompressedIndex.build(vectors[:9], NASTY, model=model, k=8, progress=False)
    index.save("nasty")
    expected = index.search(queries[:6], 9)
    printed = run("search", "nasty", "q.npy", "-k", 9).stdout
    assert printed.count("\n") == 6
    assert all(one.isprintable() or one in "\t\n" for one in printed)
    for line, ids in zip(printed.splitlines(), expected.ids, strict=True):
        words = re.findall(r'("(?:[^"\\]|\\.)*"|[^\s"]+):(-?[0-9.]+)(?: |$)', line.split("\t")[1])
        assert [json.loads(name) if name[0] == '"' else name for name, _ in words] == ids.tolist()
    assert run_json("search", "nasty", "q.npy", "-k", 9)["ids"] == expected.ids.tolist()
    run("search", "nasty", "q.npy", "-k", 9, "-o", "r.npz")
    stored = read_results("r.npz")
    assert stored.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(stored.scores, expected.scores)


@needs_place
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(model: CompresSAE, vectors: FloatArray, encoding: str) -> None:
    CompressedIndex.build(vectors[:9], NASTY, model=model, k=8, progress=False).save("žluť.index")
    commands = [
        ("search", "žluť.index", "q.npy", "-k", "9"),
        ("search", "žluť.index", "q.npy", "-o", "ť.npz"),
        ("info", "žluť.index"),
        ("info", "žluť.index", "--json"),
    ]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for arguments, process in [
        (arguments, subprocess.Popen(call_main(*arguments), env=env, **pipes)) for arguments in commands
    ]:
        stdout, stderr = process.communicate()
        assert (process.returncode, stderr) == (0, b"")
        # click writes UTF-8 where Python has chosen ASCII.
        assert encoding == "ascii" or "\\u0165" in stdout.decode(encoding)
        if "--json" in arguments:
            assert json.loads(stdout)["index"] == "žluť.index"


@needs_place
def test_messages_are_escaped() -> None:
    for name in ("no\x1b[31mwhere", "no\nwhere", "\u202eno", os.fsdecode(b"caf\xe9")):
        message = fail("info", name)
        assert message.rstrip("\n").isprintable()
    assert fail("info", "a\nb") == "Error: a b does not exist\n"
    message = fail("info", "nowhere://user:secret@host/x.index")
    assert message == "Error: nowhere://***@host/x.index: fsspec knows no store of that kind\n"


@needs_place
def test_one_long_id_costs_its_length_once(model: CompresSAE, vectors: FloatArray) -> None:
    ids = ["x" * 200_000 + "\0", *(f"{row}\0" for row in range(299))]
    CompressedIndex.build(vectors[:300], ids, model=model, k=8, progress=False).save("long")
    np.save("many.npy", np.tile(vectors[:4], (100, 1)))
    tracemalloc.start()
    try:
        run("search", "long", "many.npy", "-k", 300, "-o", "r.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20  # as fixed-width text, 96 GB
    assert Path("r.npz").stat().st_size < 3 << 20
    assert set(read_results("r.npz").ids.ravel().tolist()) == set(ids)
    with np.load("r.npz") as stored:
        text, ends = stored["id_text"].tobytes(), stored["id_ends"]
        assert text[ends[7] : ends[8]].decode() == read_results("r.npz").ids[stored["ids"] == 7][0]


@needs_place
def test_results_that_are_none() -> None:
    Path("r.npz").write_bytes(b"PK\x03\x04 nonsense")
    np.savez("other.npz", scores=np.zeros(3))
    np.savez("short.npz", scores=np.zeros(3), ids=np.array([5]), id_text=np.zeros(0, "u1"), id_ends=[0])
    for name in ("r.npz", "other.npz", "short.npz", "nowhere.npz"):
        with pytest.raises(FormatError, match=f"{name} holds no results of a search"):
            read_results(name)


@needs_place
def test_names_of_files_are_no_folders() -> None:
    for command in (
        "encode e.npy --model m -o codes.csv",
        "encode e.npy --model m -o codes.NPY",
        "build e.npy --model m -o new.parquet",
        "train e.npy -o new.pt --k 2 --n-latents 16",
    ):
        assert "are written as a directory, whose name must not end in" in fail(*command.split())
    assert "codes are written as a scipy" not in run("encode", "e.npy", "--model", "m", "-o", "C.NPZ").output
    assert Path("C.NPZ").is_file()
    assert "nowhere is not a directory" in fail("encode", "e.npy", "--model", "m", "-o", "nowhere/c.npz")
    run("encode", "e.npy", "--model", "m", "-o", "codes-v1.2")
    assert Path("codes-v1.2").is_dir()


@needs_place
def test_few_candidates_are_refused_where_they_were_asked_for() -> None:
    assert "candidates must be at least k = 10, got 5" in fail(
        "search", "i", "q.npy", "--candidates", 5, "-k", 10
    )
    assert "k = 100, got 99" in fail("eval", "i", "e.npy", "q.npy", "--candidates", 99)
    run("search", "i", "q.npy", "--candidates", 10, "-k", 10)
    run("search", "i", "q.npy", "-k", 2000)  # the default is no request


@needs_place
def test_what_was_replaced_is_said() -> None:
    arguments = ("build", "e.npy", "--model", "m", "-o", "new")
    assert run(*arguments).stderr == ""
    assert run(*arguments).stderr == "new: what was there before was replaced\n"


@needs_place
def test_eval_says_what_it_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    index = CompressedIndex.load("i")
    index.remove([1, 2])
    index.save("i")
    monkeypatch.setattr("compressae_index.measuring.index_report.SAID_ABOVE", 0)
    monkeypatch.setattr("compressae_index.progress.FIRST_LINE", 0)
    done = run("eval", "i", "e.npy", "q.npy")
    loading, first, second, *more = done.stderr.splitlines()
    assert re.match(r"loading: [\d,]+ of [\d,]+ B, 0 s, about \d+ s left", loading)
    assert first == "2 rows of the embeddings are not in the index and are left out"
    assert re.fullmatch(
        r"exact search of 6 queries among 298 vectors, then 10 settings of the index: about \d+ s", second
    )
    assert any(re.match(r"sweep: \d+ of 7 settings, \d+ s, about \d+ s left", line) for line in more)


@needs_place
def test_faiss_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    run("eval", "i", "e.npy", "q.npy", "--faiss")
    assert "WARNING" not in capfd.readouterr().err


@needs_place
def test_names_of_latents(demo_data: DemoData) -> None:
    texts, index = demo_data.texts[:300], CompressedIndex.load("i")
    Path("t.txt").write_text("".join(f"{text}\n" for text in texts))
    pq.write_table(
        pa.table({"key": np.arange(300)[::-1], "text": texts[::-1], "tags": [["one"]] * 300}), "t.parquet"
    )
    expected = index.label_latents(texts)
    for command in (
        ["label", "i", "t.txt", "-o", "by-lines"],
        ["label", "i", "t.parquet", "--text-column", "text", "--id-column", "key", "-o", "by-ids"],
        ["label", "i", "t.txt"],
    ):
        content = run_json(*command)
        assert content == {"index": command[-1] if "-o" in command else "i"} | {
            "named": len(expected),
            "latents": 512,
            "labels": expected,
        }
        assert CompressedIndex.load(content["index"]).labels == expected
    assert f"named    {len(expected)}\n" in run("label", "i", "t.txt").stdout
    FaissIndex.from_index(CompressedIndex.load("i"), "f", progress=False)
    assert run_json("label", "f", "t.parquet", "--text-column", "tags")["labels"] == {}
    assert "2 ids for 300 texts" in fail_with_ids(["1", "2"])


def fail_with_ids(ids: list[str]) -> str:
    Path("few.txt").write_text("\n".join(ids))
    return fail("label", "i", "t.txt", "--ids", "few.txt")


@needs_place
def test_explanations(queries: FloatArray, demo_data: DemoData) -> None:
    index = CompressedIndex.load("i")
    index.label_latents(demo_data.texts[:300])
    index.save("i")
    why = index.explain(queries[2], 17)
    content = run_json("explain", "i", "q.npy", 17, "--query", 2)
    sides = [
        f"{latent}{'-' if value < 0 else '+'}" for latent, value in zip(why.latents, why.values, strict=True)
    ]
    assert [each["latent"] for each in content["latents"]] == sides
    assert [each["name"] for each in content["latents"]] == list(why.names)
    assert [each["contribution"] for each in content["latents"]] == why.contributions.tolist()
    assert {name: content[name] for name in ("score", "mean", "residual")} == {
        "score": why.score,
        "mean": why.mean,
        "residual": why.residual,
    }
    shown = run("explain", "i", "q.npy", 17, "--query", 2).stdout
    for side, part, name in zip(sides, why.contributions, why.names, strict=True):
        assert re.search(
            rf"^\| {re.escape(side)} +\| +\{part:+.4f} .* {re.escape(name)} +\|$", shown, re.MULTILINE
        )
    assert f"{why.score:+.4f}" in shown.splitlines()[-1]
    found = index.search(queries[:6], 3)
    hits = run_json("search", "i", "q.npy", "-k", 3, "--explain")["hits"]
    assert [[hit[name] for name in ("query", "rank", "id")] for hit in hits] == [
        [query, rank, found.ids[query, rank]] for query in range(6) for rank in range(3)
    ]
    for hit in hits:
        why = index.explain(queries[hit["query"]], hit["id"])
        assert [each["contribution"] for each in hit["latents"]] == why.contributions[:3].tolist()
        assert [each["name"] for each in hit["latents"]] == list(why.names[:3])
    lines = run("search", "i", "q.npy", "-k", 3, "--explain").stdout.splitlines()
    assert len(lines) == 6 * 3 * 4
    assert lines[0] == f"0\t{found.ids[0, 0]}:{found.scores[0, 0]:.4f}"
    first = hits[0]["latents"][0]
    assert lines[1] == f"\t{first['contribution']:+.4f}  {first['latent']}  {first['name']}".rstrip()


@needs_place
def test_search_by_latents(queries: FloatArray) -> None:
    index = CompressedIndex.load("i")
    dense = index.codes(index.ids).to_dense()
    one, other = np.argsort(-np.sign(np.maximum(dense, 0)).sum(axis=0))[:2].tolist()
    options: list[Any] = ["--mode", "dense", "-k", 5, "--holding", f"{one}+", "--lacking", other]
    expected = index.search(
        index.steer(queries[:6], {one: 0.5, other: -1}),
        5,
        mode="dense",
        filter=(dense[:, one] > 0) & (dense[:, other] == 0),
    )
    content = run_json("search", "i", "q.npy", *options, "--steer", f"{one}=0.5", "--steer", f"{other}=-1")
    assert content["ids"] == expected.ids.tolist()
    np.testing.assert_allclose(np.array(content["scores"], float), expected.scores, rtol=1e-6)


@needs_place
def test_columns_of_results(queries: FloatArray) -> None:
    table = pa.table(
        {"key": np.arange(300)[::-1], "title": [f"a {i}" for i in range(300)], "price": range(300)}
    )
    pq.write_table(table, "t.parquet")
    found = CompressedIndex.load("i").search(queries[:6], 2)
    options = ["search", "i", "q.npy", "-k", 2, "--columns", "title,price", "--from", "t.parquet"]
    keyed = [*options, "--id-column", "key"]
    expected = found.to_arrow().to_pylist()
    for row in expected:
        row |= {"title": f"a {299 - row['id']}", "price": 299 - row["id"]}
    assert run_json(*keyed)["hits"] == expected
    assert run_json(*keyed, "-o", "r.parquet") == {"results": "r.parquet"}
    assert pq.read_table("r.parquet").to_pylist() == expected
    row = expected[0]
    assert run(*keyed).stdout.splitlines()[0] == (
        f'0\t{row["id"]}:{row["score"]:.4f}\t"{row["title"]}"\t{row["price"]}'
    )
    assert run_json(*options)["hits"][0]["price"] == row["id"]
    run("neighbours", "i", "--all", "-k", 2, "-o", "n.parquet")
    assert pq.read_table("n.parquet").num_rows == 600
