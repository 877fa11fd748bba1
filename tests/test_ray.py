"""Jobs and searches on Ray: kills, the same bytes whatever the workers, and the answers of one index."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from oracles import assert_same, assert_same_codes

from compressae_index import BatchEncoder, CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.embedded.merging import shard_paths
from compressae_index.errors import BackendError, FormatError, InputError, UnknownIdError

ray: Any = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from compressae_index.connectors.ray import (  # noqa: E402
    Input,
    ShardedIndex,
    build_shards,
    encode,
    export_milvus,
    recode_shards,
)
from compressae_index.connectors.ray.recoding import like_all  # noqa: E402
from compressae_index.training import TrainConfig, train  # noqa: E402

pytestmark = pytest.mark.slow
ROWS = 2600


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray with two processors, started in a folder without the sources, which would hide the package."""
    folder, before = tmp_path_factory.mktemp("ray"), Path.cwd()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOME", str(folder))
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.chdir(folder)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        yield folder
        stop()
        os.chdir(before)


def stop() -> None:
    """Ends Ray, which leaves files open for the garbage collection to complain of."""
    ray.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def rows(vectors: FloatArray) -> FloatArray:
    """Rows of different norms."""
    return vectors[:ROWS] * np.linspace(0.5, 2, ROWS, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def source(cluster: Path, rows: FloatArray) -> Path:
    """Parquet files of ids and vectors."""
    folder = cluster / "source"
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        table = pa.table({"id": [f"item {i}" for i in part], "embedding": list(rows[part])})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=300)
    return folder


@pytest.fixture(scope="module")
def like(uncentred_model: CompresSAE, rows: FloatArray) -> CompressedIndex:
    return CompressedIndex.build(
        rows[:1000],
        model=uncentred_model,
        k=12,
        postings=6,
        metric="inner_product",
        originals="float16",
        progress=False,
    )


@pytest.fixture(scope="module")
def shards(cluster: Path, source: Path, like: CompressedIndex) -> Path:
    rows = Input(source, "embedding", id_column="id", piece_rows=1300)
    published = build_shards(rows, cluster / "shards", like=like, progress=False)
    assert (published.rows, published.skipped, published.kept, len(published.pieces)) == (ROWS, 0, 0, 2)
    return Path(published.path)


@pytest.fixture(scope="module")
def sharded(shards: Path) -> ShardedIndex:
    return ShardedIndex.load(shards, cpus=0.1)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of pieces, whose folders of data have random names."""
    found = {}
    for file in sorted(folder.rglob("*")):
        parts = ["data" if part.startswith("data-") else part for part in file.relative_to(folder).parts]
        if file.is_file() and parts[-1] != "manifest.json" and "records" not in parts:
            found["/".join(parts)] = file.read_bytes()
    return found


@pytest.mark.parametrize("kept", [{"originals": "float32"}, {"residual_bits": 3}])
def test_distances_over_shards(
    cluster: Path,
    source: Path,
    uncentred_model: CompresSAE,
    rows: FloatArray,
    queries: FloatArray,
    kept: dict[str, Any],
) -> None:
    model = uncentred_model.centred_at(rows.mean(axis=0))
    options: Any = {"model": model, "k": 12, "metric": "l2", "progress": False, **kept}
    like = CompressedIndex.build(rows[:1000], **options)
    given = Input(source, "embedding", id_column="id", piece_rows=1300)
    path = cluster / f"distances-{len(kept)}-{min(kept)}"
    build_shards(given, path, like=like, progress=False)
    whole, sharded = CompressedIndex.load(path), ShardedIndex.load(path, cpus=0.1)
    for mode in ("dense", "two_stage", "sparse"):
        settings: Any = {"mode": mode, "query_nnz": 256}
        a, b = (index.search(queries[:8] * 2, 6, **settings) for index in (sharded, whole))
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-4)
        assert (a.ids == b.ids).mean() > 0.95
    exact = np.square(2 * queries[:8, None] - rows[None]).sum(axis=2)
    found = sharded.search(queries[:8] * 2, 6, mode="dense", refine=1000)
    estimated = np.sort(exact, axis=1)[:, :6]
    np.testing.assert_allclose(found.scores, estimated, rtol=2e-3 if "originals" in kept else 0.3)
    with pytest.raises(InputError, match='metric="l2" needs longest'):
        export_milvus(given, cluster / "bulk-l2", like=like, progress=False)


def test_rows_of_zeros_are_points_where_distances_count(cluster: Path, rows: FloatArray) -> None:
    spoiled = rows[:900].copy()
    spoiled[[3, 500]], spoiled[7] = 0, np.nan
    np.save(cluster / "zeros.npy", spoiled)
    given = Input(cluster / "zeros.npy", on_bad_rows="skip", piece_rows=450)
    config = TrainConfig.preset("fast", k=8, n_latents=64, steps=0, refine_rounds=2)
    options: Any = {"metric": "l2", "config": config, "progress": False}
    published = build_shards(given, cluster / "zeros", **options)
    assert (published.rows, published.skipped) == (899, 1)
    index = CompressedIndex.load(cluster / "zeros")
    assert {*index.search(np.zeros(384, np.float32), 2, mode="dense").ids[0].tolist()} == {3, 500}
    written = encode(given, cluster / "codes-zeros", index.model, k=8, progress=False)
    assert (written.rows, written.skipped) == (899, 1)


def test_codes_of_points_become_an_index(
    cluster: Path, source: Path, uncentred_model: CompresSAE, rows: FloatArray, queries: FloatArray
) -> None:
    model = uncentred_model.centred_at(rows.mean(axis=0))
    given = Input(source, "embedding", id_column="id")
    encode(given, cluster / "codes-l2", model, k=12, progress=False)
    index = CompressedIndex.from_codes(cluster / "codes-l2" / "pieces", model, metric="l2", progress=False)
    built = CompressedIndex.build(rows, model=model, k=12, metric="l2", value_bits=6, progress=False)
    a, b = (each.search(queries[:5], 5, mode="dense") for each in (index, built))
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3)


def test_shards_are_the_index_of_all_rows(
    shards: Path, like: CompressedIndex, rows: FloatArray, queries: FloatArray
) -> None:
    whole = like.empty_like()
    whole.add(rows, [f"item {i}" for i in range(ROWS)])
    loaded = CompressedIndex.load(shards, mmap=True)
    assert loaded.ids.tolist() == whole.ids.tolist()
    assert_same_codes(loaded.codes(loaded.ids), whole.codes(whole.ids))
    for mode in ("dense", "two_stage"):
        expected = whole.search(queries, 10, mode=mode, candidates=2000)
        assert_same(loaded.search(queries, 10, mode=mode, candidates=2000), expected)


@pytest.fixture(scope="module")
def other(rows: FloatArray) -> CompresSAE:
    """Another model for inner products."""
    config = TrainConfig(k=12, n_latents=256, steps=0, refine_rounds=4, center=False)
    return train(rows[:1000], config).model


def test_shards_are_recoded_as_the_index_of_all_rows(
    cluster: Path, shards: Path, other: CompresSAE, queries: FloatArray
) -> None:
    output, whole = cluster / "recoded", CompressedIndex.load(shards)
    whole.recode(other)
    first = recode_shards(shards, output, other, progress=False)
    assert (first.rows, first.skipped, first.kept, len(first.pieces)) == (ROWS, 0, 0, 2)
    loaded, sharded = CompressedIndex.load(output, mmap=True), ShardedIndex.load(output, cpus=0.1)
    assert loaded.model.fingerprint == sharded.model.fingerprint == other.fingerprint
    assert loaded.ids.tolist() == whole.ids.tolist()
    assert_same_codes(loaded.codes(loaded.ids), whole.codes(whole.ids))
    np.testing.assert_array_equal(loaded.vectors[0:ROWS], whole.vectors[0:ROWS])
    for index in (loaded, sharded):
        assert_same(index.search(queries, 10, mode="dense"), whole.search(queries, 10, mode="dense"))
    before = contents(output)
    Path(first.pieces[1], "manifest.json").write_text("damaged")
    again = recode_shards(shards, output, other, progress=False)
    assert (again.kept, contents(output)) == (1, before)
    narrow = CompresSAE.of_dictionary(np.eye(24, dtype=np.float32), 4)
    with pytest.raises(InputError, match="dimension 24"):
        recode_shards(shards, cluster / "wrong", narrow, progress=False)


def test_shards_are_recoded_in_place(
    cluster: Path, shards: Path, like: CompressedIndex, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cluster / "in-place"
    shutil.copytree(shards, folder)
    index = CompressedIndex.load(next((folder / "pieces").iterdir()))
    index.remove(index.ids[5:50])
    index.save(next((folder / "pieces").iterdir()))
    before = CompressedIndex.load(folder, mmap=True)
    expected = before.search(queries, 5)
    done = CliRunner().invoke(main, ["ray", "recode", str(folder), "-o", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == ROWS - 45
    after = CompressedIndex.load(folder)
    assert after.model.fingerprint != like.model.fingerprint
    assert sorted(after.ids) == sorted(before.ids)
    assert {entry.name for entry in folder.iterdir()} == {"manifest.json", "pieces", "records"}
    assert len(list((folder / "pieces").iterdir())) == len(list((folder / "records").iterdir())) == 2
    assert_same(before.search(queries, 5), expected)  # what is mapped stays
    # A reader that read the manifest just before it was replaced reads it again.
    monkeypatch.setattr("compressae_index.index.shard_paths", replaced_once(folder, shards))
    assert CompressedIndex.load(folder).model.fingerprint == like.model.fingerprint


def test_a_training_for_shards_is_not_done_twice(shards: Path, tmp_path: Path) -> None:
    first = like_all(shard_paths(shards), None, 500, tmp_path)
    state = tmp_path / "training" / "manifest.json"
    before = state.read_bytes()
    again = like_all(shard_paths(shards), None, 500, tmp_path)
    assert state.read_bytes() == before  # no round was done
    assert again.settings() == first.settings()
    assert first.settings()["originals"] == {"dtype": "float16"}


def replaced_once(folder: Path, by: Path) -> Any:
    """`shard_paths`, after which the first time the folder is replaced by another one."""
    calls = list[Path]()

    def paths(of: Path) -> list[Any]:
        found = shard_paths(of)
        if not calls:
            calls.append(of)
            shutil.rmtree(folder)
            shutil.copytree(by, folder)
        return found

    return paths


def test_finished_pieces_stay_and_changed_rows_are_done_again(
    cluster: Path, rows: FloatArray, like: CompressedIndex
) -> None:
    np.save(cluster / "changing.npy", rows[:1200])
    given, output = Input(cluster / "changing.npy", piece_rows=500), cluster / "changing"
    first = build_shards(given, output, like=like, progress=False)
    before = contents(output)
    damaged = next(Path(first.pieces[1]).rglob("inverted_values.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = build_shards(given, output, like=like, progress=False)
    assert (again.kept, again.pieces) == (2, first.pieces)
    assert contents(output) == before
    changed = rows[:1200].copy()
    changed[1100] = rows[2000]
    np.save(cluster / "changing.npy", changed)
    last = build_shards(given, output, like=like, progress=False)
    assert last.kept == 2
    assert last.pieces[:2] == first.pieces[:2]
    assert not first.pieces[2].exists()
    assert {path.name for path in output.glob("pieces/shard-*")} == {path.name for path in last.pieces}
    found = CompressedIndex.load(output).search(rows[2000], 1, mode="dense")
    assert found.ids[0, 0] == 1100


def test_bad_rows_are_named_or_left_out(cluster: Path, rows: FloatArray, like: CompressedIndex) -> None:
    bad = rows[:900].copy()
    bad[[7, 650]] = 0
    np.save(cluster / "bad.npy", bad)
    with pytest.raises(InputError, match=r"is zero.*row (7|650) of .*bad.npy"):
        build_shards(Input(cluster / "bad.npy", piece_rows=400), cluster / "bad", like=like, progress=False)
    assert not (cluster / "bad" / "manifest.json").exists()
    given = Input(cluster / "bad.npy", on_bad_rows="skip", piece_rows=400)
    published = build_shards(given, cluster / "bad", like=like, progress=False)
    assert (published.rows, published.skipped) == (898, 2)
    assert CompressedIndex.load(cluster / "bad").ids.tolist() == np.delete(np.arange(900), [7, 650]).tolist()
    bad[400:800] = np.nan  # a whole piece
    np.save(cluster / "bad.npy", bad)
    published = build_shards(given, cluster / "bad", like=like, progress=False)
    assert (published.rows, published.skipped, len(published.pieces)) == (499, 401, 2)
    assert CompressedIndex.load(cluster / "bad").ids.tolist() == np.delete(np.arange(400), 7).tolist() + list(
        range(800, 900)
    )
    np.save(cluster / "none.npy", np.zeros_like(bad))
    with pytest.raises(InputError, match="all 900 rows"):
        build_shards(
            Input(cluster / "none.npy", on_bad_rows="skip"), cluster / "none", like=like, progress=False
        )


def test_what_cannot_work_is_refused_first(cluster: Path, source: Path, like: CompressedIndex) -> None:
    (cluster / "foreign").mkdir()
    (cluster / "foreign" / "a.txt").write_text("a")
    with pytest.raises(FormatError):  # before any training
        build_shards(Input(source, "embedding"), cluster / "foreign", sample_rows=0, progress=False)
    with pytest.raises(InputError, match="original_field needs original vectors"):
        export_milvus(Input(source, "embedding"), cluster / "x", original_field="float16", progress=False)
    assert [entry.name for entry in (cluster / "foreign").iterdir()] == ["a.txt"]
    with pytest.raises(InputError, match="paths of files, got ndarray"):
        Input(np.zeros((3, 3)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k cannot be given with `like`"):
        build_shards(Input(source, "embedding"), cluster / "x", like=like, k=3, progress=False)
    with pytest.raises(FormatError, match="no column 'no'"):
        build_shards(Input(source, "embedding", id_column="no"), cluster / "x", like=like, progress=False)


def test_a_sample_decides_the_form(cluster: Path, source: Path) -> None:
    given = Input(source, "embedding", piece_rows=1300)
    brief = TrainConfig(k=8, n_latents=256, refine_rounds=8, steps=0)
    published = build_shards(
        given, cluster / "sampled", sample_rows=1500, config=brief, encoder="pursuit", progress=False
    )
    index = CompressedIndex.load(published.path)
    assert (len(index), index.k, index.model.n_latents) == (ROWS, 8, 256)


@pytest.mark.parametrize("page", ["README.md", "docs/scale-out.md", "docs/tutorials/a-billion.md"])
def test_the_code_of_a_page_runs(cluster: Path, rows: FloatArray, queries: FloatArray, page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith("from compressae_index.connectors.ray"))
    table = pa.table({"id": np.arange(1000), "embedding": list(rows[:1000])})
    pq.write_table(table, cluster / "vectors.parquet")
    (cluster / "vectors").mkdir(exist_ok=True)
    np.save(cluster / "vectors" / "0.npy", rows[:1000])
    brief = TrainConfig(k=16, n_latents=256, refine_rounds=8, steps=0)
    names: dict[str, Any] = {"brief": brief, "CompressedIndex": CompressedIndex}
    exec(block.replace('originals="float16"', 'originals="float16", config=brief'), names)
    found = names["index"].search(queries, 5)
    assert_same(names.get("actors", names["index"]).search(queries, 5), found)
    assert len(names["index"]) == 1000


def test_codes_are_those_of_the_encoder(
    cluster: Path, source: Path, model: CompresSAE, rows: FloatArray
) -> None:
    given = Input(source, "embedding", id_column="id", piece_rows=1000)
    published = encode(given, cluster / "codes", model, k=10, values="float16", progress=False)
    encoder = BatchEncoder(model, k=10, values="float16")
    expected = encoder(pa.table({"embedding": list(rows)}))
    tables = [pq.read_table(path) for path in published.pieces]
    assert [table.num_rows for table in tables] == [1000, 1000, 600]
    table = pa.concat_tables(tables)
    assert table["id"].to_pylist() == [f"item {i}" for i in range(ROWS)]
    for name in ("latents", "values", "scale"):
        assert table[name].to_pylist() == expected[name].to_pylist()
    assert table.schema.metadata[b"compressae_index.fingerprint"].decode() == model.fingerprint
    index = CompressedIndex.from_codes(published.pieces, model, ids=table["id"])
    assert len(index) == ROWS


def test_files_for_milvus_are_those_of_the_index(
    cluster: Path, source: Path, like: CompressedIndex, shards: Path, tmp_path: Path
) -> None:
    from compressae_index.connectors.milvus import export_parquet

    given = Input(source, "embedding", id_column="id", piece_rows=1300)
    published = export_milvus(given, cluster / "bulk", like=like, original_field="float16", progress=False)
    tables = [
        pq.read_table(file) for path in published.pieces for file in sorted(Path(path).glob("*.parquet"))
    ]
    expected = export_parquet(CompressedIndex.load(shards), tmp_path / "bulk", originals="float16")
    assert pa.concat_tables(tables).equals(pa.concat_tables([pq.read_table(file) for file in expected.files]))


def test_the_command_line(cluster: Path, source: Path, like: CompressedIndex, model: CompresSAE) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(main, [*words, "--dataset", "embedding", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.output[result.output.index("{") :])

    like.save(cluster / "like")
    model.save(cluster / "model")
    given, pieces, kept = str(source), ("--piece-rows", "1300"), ("--like", str(cluster / "like"))
    for before in (0, 2):
        done = run("ray", "build", given, "-o", str(cluster / "a"), "--id-column", "id", *kept, *pieces)
        assert (done["rows"], done["pieces"], done["kept"]) == (ROWS, 2, before)
    done = run("ray", "encode", given, "-o", str(cluster / "b"), "--model", str(cluster / "model"), *pieces)
    assert pq.read_table(cluster / "b" / "pieces").num_rows == done["rows"] == ROWS
    done = run("ray", "milvus", given, "-o", str(cluster / "c"), *kept, *pieces)
    assert done["rows"] == ROWS
    merged = CliRunner().invoke(main, ["merge", str(cluster / "a"), "-o", str(cluster / "one")])
    assert merged.exit_code == 0, merged.output
    assert len(CompressedIndex.load(cluster / "one")) == ROWS


@pytest.mark.parametrize("scoring", ["asymmetric", "symmetric"])
def test_actors_answer_as_the_merged_index(
    sharded: ShardedIndex, shards: Path, queries: FloatArray, scoring: Any
) -> None:
    merged = CompressedIndex.load(shards)
    masks = np.random.default_rng(0).random((3, ROWS)) < np.array([[0.5], [0.1], [0.003]])
    filters: list[Any] = [None, *masks, merged.ids[5:2000:100], []]
    for wanted in filters:
        for mode in ("sparse", "dense", "two_stage"):
            for settings in ({}, {"candidates": 60, "query_nnz": 9, "refine": 20}):
                if mode == "sparse":
                    settings = {name: value for name, value in settings.items() if name != "refine"}
                both = {"mode": mode, "scoring": scoring, "filter": wanted, **settings}
                expected = merged.search(queries, 12, **both)
                found = sharded.search(queries, 12, **both)
                np.testing.assert_array_equal(found.ids, expected.ids, err_msg=str(both))
                np.testing.assert_array_equal(found.scores, expected.scores, err_msg=str(both))
                assert found.lost == ()


def test_actors_take_the_settings_of_the_merged_index(
    sharded: ShardedIndex, shards: Path, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.building.recoding.CALIBRATED_ROWS", ROWS)
    merged = CompressedIndex.load(shards)
    merged.calibrate()
    monkeypatch.setattr(sharded, "frontier", merged.frontier)
    found, expected = (index.search(queries, 10, target_recall=0.6) for index in (sharded, merged))
    assert_same(found, expected)


def test_actors_say_who_holds_a_latent(sharded: ShardedIndex, shards: Path) -> None:
    merged = CompressedIndex.load(shards)
    latent = int(merged.codes(merged.ids[:1]).latents[0, 0])
    np.testing.assert_array_equal(sharded.holding(latent), merged.holding(latent))
    texts = [f"text {number % 7}" for number in range(len(merged))]
    assert sharded.label_latents(texts) == merged.label_latents(texts)
    sharded.labels = None


def test_actors_know_their_documents(sharded: ShardedIndex, shards: Path, queries: FloatArray) -> None:
    merged = CompressedIndex.load(shards)
    some = ["item 2599", "item 3", "item 700", "item 3"]
    assert sharded.ids.tolist() == merged.ids.tolist()
    assert_same_codes(sharded.codes(some), merged.codes(some))
    np.testing.assert_array_equal(sharded.reconstruct(some), merged.reconstruct(some))
    assert_same(sharded.neighbours(some, 5), merged.neighbours(some, 5))
    ours, theirs = sharded.explain(queries[0], "item 9"), merged.explain(queries[0], "item 9")
    assert ours.score == theirs.score
    np.testing.assert_array_equal(ours.contributions, theirs.contributions)
    assert sharded.stats().vectors == len(merged)
    with pytest.raises(UnknownIdError, match="'item x'"):
        sharded.codes(["item x"])
    with pytest.raises(UnknownIdError):
        sharded.search(queries, 3, filter=["item x"])
    with pytest.raises(InputError, match="is not changed"):
        sharded.remove(["item 3"])
    with pytest.raises(InputError, match="is not changed"):
        sharded.add(queries, [str(i) for i in range(50)])


def test_a_lost_actor_comes_back_or_is_reported(shards: Path, queries: FloatArray) -> None:
    from compressae_index.embedded.merging import shard_paths

    merged = CompressedIndex.load(shards)
    index, partial = (ShardedIndex.load(shards, cpus=0.1, partial=partial) for partial in (False, True))
    documents: Any = index.documents
    expected = merged.search(queries, 5)
    ray.kill(documents.actors[1], no_restart=False)
    assert_same(index.search(queries, 5), expected)
    ray.kill(documents.actors[1], no_restart=True)
    with pytest.raises(BackendError, match=r"actor of .*shard-000001-.* was lost"):
        index.search(queries, 5)
    others: Any = partial.documents
    ray.kill(others.actors[1], no_restart=True)
    found = partial.search(queries, 5)
    paths = shard_paths(shards)
    assert found.lost == (str(paths[1]),)
    rest = CompressedIndex.merge([path for path in paths if path != paths[1]])
    assert_same(partial.search(queries, 5, mode="dense"), rest.search(queries, 5, mode="dense"))


DRIVER = """
import sys
import ray
from compressae_index import CompresSAE, CompressedIndex
from compressae_index.connectors.ray import Input, build_shards, recode_shards
quietly = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 << 20}
rows, output, like, other = sys.argv[1:]
ray.init(num_cpus=2, **quietly)
like = CompressedIndex.load(like)
build_shards(Input(rows, piece_rows=100), f"{output}/built", like=like, progress=False)
recode_shards(f"{output}/built", f"{output}/recoded", CompresSAE.load(other), progress=False)
"""


def test_killed_workers_and_drivers_cost_their_pieces_only(
    cluster: Path, rows: FloatArray, like: CompressedIndex, other: CompresSAE, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", rows[:1300])
    like.save(tmp_path / "like")
    other.save(tmp_path / "other")
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    given = Input(tmp_path / "rows.npy", piece_rows=100)
    build_shards(given, quiet / "built", like=like, progress=False)
    recode_shards(quiet / "built", quiet / "recoded", other, progress=False)
    stop()  # the drivers make their own

    def driver() -> subprocess.Popen[str]:
        paths = [tmp_path / "rows.npy", disturbed, tmp_path / "like", tmp_path / "other"]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", DRIVER, *map(str, paths)],
            cwd=cluster,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def kill_after(driver: subprocess.Popen[str], step: str) -> None:
        _wait_for(lambda: len(list((disturbed / step).glob("pieces/shard-*"))) > 3)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()

    try:
        kill_after(driver(), "built")
        again = driver()
        assert _kill_workers(again, 2)
        kill_after(again, "recoded")
        last = driver()
        _, errors = last.communicate(timeout=300)
        assert last.returncode == 0, errors
        assert contents(disturbed) == contents(quiet)
        assert not list(disturbed.rglob(".writing-*"))
    finally:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)


def _wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in two minutes"
        time.sleep(0.02)


def _kill_workers(driver: subprocess.Popen[str], wanted: int) -> int:
    """Kills processes of Ray that work on pieces, while the driver runs."""
    killed, deadline = 0, time.monotonic() + 120
    while killed < wanted and driver.poll() is None and time.monotonic() < deadline:
        for process in Path("/proc").iterdir():
            try:
                busy = b"ray::_finish" in (process / "cmdline").read_bytes()
            except OSError:
                continue
            if busy and killed < wanted:
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    return killed
