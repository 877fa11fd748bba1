"""The adapter for ann-benchmarks and VIBE, driven as their runners do, in stand-ins for them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from compressae_index.arrays import FloatArray
from compressae_index.demo import DemoData
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAME = "compressae"
BASE = "class BaseANN:\n    def done(self): ...\n    def get_additional(self): return {}\n"
# Frameworks, the name by which each knows containers, and the neighbours that each asks for.
FRAMEWORKS = {"ann_benchmarks": ("docker_tag", 10), "vibe": ("singularity_image", 100)}
COUNT = 10


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Packages of nothing but the base class and the adapter, as the READMEs say to copy it."""
    root = tmp_path_factory.mktemp("repositories")
    for framework in FRAMEWORKS:
        algorithms = root / framework / "algorithms"
        (algorithms / "base").mkdir(parents=True)
        for folder in (algorithms.parent, algorithms):
            (folder / "__init__.py").touch()
        (algorithms / "base" / "module.py").write_text(BASE)
        shutil.copytree(BENCHMARKS / framework / NAME, algorithms / NAME)
        shutil.copy(BENCHMARKS / "ann_benchmarks" / NAME / "module.py", algorithms / NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        patch.setattr("compressae_index.building.planning.RANKED", 20)
        yield root
    for name in [name for name in sys.modules if name.split(".")[0] in FRAMEWORKS]:
        del sys.modules[name]


def config(framework: str, metric: str) -> dict[str, Any]:
    (algorithm,) = yaml.safe_load((BENCHMARKS / framework / NAME / "config.yml").read_text())["float"][metric]
    assert isinstance(algorithm, dict)
    return algorithm


def combinations(groups: list[Any]) -> list[Any]:
    """How both frameworks spread `arg_groups` and `query_arg_groups`."""
    spread = [
        [dict(zip(group, values, strict=True)) for values in product(*map(listed, group.values()))]
        if isinstance(group, dict)
        else group
        for group in groups
    ]
    return [list(values) for values in product(*spread)]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def definitions(
    dimension: int, framework: str = "ann_benchmarks", metric: str = "angular"
) -> list[tuple[list[Any], list[Any]]]:
    """Arguments of the constructor, and those of all query settings, of each build of config.yml."""
    algorithm = config(framework, metric)
    known = {"@metric": metric, "@dimension": dimension}
    base = [known.get(argument, argument) for argument in algorithm["base_args"]]
    return [
        ([*base, *build], combinations(group["query_arg_groups"]))
        for group in algorithm["run_groups"].values()
        for build in combinations(group["arg_groups"])
    ]


def points(n: int, dimension: int, framework: str, metric: str) -> list[str]:
    """All builds and searches that the module plans for n vectors."""
    module = importlib.import_module(f"{framework}.algorithms.{NAME}.module")
    found = []
    for (*_, build), settings in definitions(dimension, framework, metric):
        fitted = module.fitting_build(build, n, dimension)
        assert fitted.get("postings", 0) <= fitted.get("k", 0) <= dimension
        stats = SimpleNamespace(n_latents=min(4096, n // 2), vectors=n)
        searches = [module.fitting_query(query_arguments, stats) for (query_arguments,) in settings]
        found += [f"{sorted(fitted.items())} {sorted(search.items())}" for search in searches]
    return found


def instantiate(arguments: list[Any], framework: str = "ann_benchmarks", metric: str = "angular") -> Any:
    algorithm = config(framework, metric)
    module = importlib.import_module(f"{algorithm['module']}.module")
    # Arguments pass through JSON on the way to a container.
    return getattr(module, algorithm["constructor"])(*json.loads(json.dumps(arguments)))


def answers(algorithm: Any, queries: FloatArray, count: int = COUNT) -> list[list[int]]:
    """Of single queries, after the checks of the framework, and of the batch, which must be the same."""
    found = [list(algorithm.query(query, count)) for query in queries]
    assert all(len(rows) == len(set(rows)) <= count for rows in found)
    algorithm.batch_query(queries, count)
    assert [list(rows) for rows in algorithm.get_batch_results()] == found
    return found


EVERY = [("ann_benchmarks", "angular"), *(("vibe", metric) for metric in ("cosine", "normalized", "ip"))]


@pytest.mark.parametrize(("framework", "metric"), EVERY)
def test_the_configuration_is_what_the_framework_reads(framework: str, metric: str) -> None:
    algorithm, container = config(framework, metric), FRAMEWORKS[framework][0]
    assert {"name", container, "module", "constructor", "run_groups"} <= set(algorithm)
    assert algorithm[container] in (NAME, f"ann-benchmarks-{NAME}")
    assert algorithm["module"] == f"{framework}.algorithms.{NAME}"
    assert len(definitions(384, framework, metric)) >= 6


@pytest.mark.slow
@pytest.mark.usefixtures("repositories")
@pytest.mark.parametrize(("framework", "metric"), [EVERY[0], EVERY[3]])
def test_every_setting_on_real_vectors(
    framework: str, metric: str, vectors: FloatArray, queries: FloatArray
) -> None:
    # As few as can be trained with 64 nonzeros, or it would take minutes.
    vectors, count = vectors[:600], FRAMEWORKS[framework][1]
    truth = exact_neighbours(vectors, queries, count)
    best = {}
    builds = definitions(vectors.shape[1], framework, metric)
    for arguments, settings in builds if framework == "ann_benchmarks" else builds[::3]:
        algorithm = instantiate(arguments, framework, metric)
        assert algorithm.get_memory_usage() == 0
        algorithm.fit(vectors)
        labels, shares = set(), []
        for query_arguments in settings:
            algorithm.set_query_arguments(*json.loads(json.dumps(query_arguments)))
            shares.append(recall(np.array(answers(algorithm, queries, count)), truth, count))
            labels.add(str(algorithm))
        assert len(labels) == len(settings)
        additional = algorithm.get_additional()
        assert additional["disk_bytes_per_vector"] == (768 if "originals" in arguments[-1] else 0)
        row_bytes = additional["bytes_per_vector"] + additional["disk_bytes_per_vector"]
        kilobytes = (row_bytes * len(vectors) + additional["model_bytes"]) / 1024
        assert kilobytes <= algorithm.get_memory_usage() < kilobytes + 1024
        best[str(arguments[-1])] = max(shares)
        algorithm.done()
    print(best)
    assert min(best.values()) > 0.5  # of the lists of a query's few latents alone
    # Of so few vectors, the smallest dictionary takes 41 bytes each.
    by_budget = [share for build, share in best.items() if "bytes" in build]
    assert by_budget == sorted(by_budget)
    assert by_budget[-1] > 0.74
    assert max(share for build, share in best.items() if "originals" in build) > 0.99


@pytest.mark.usefixtures("repositories")
def test_recall_to_reach(demo_data: DemoData) -> None:
    """Where there is a frontier, the search takes its settings; beyond its end, those of the end."""
    vectors = demo_data.embeddings[:8192]
    algorithm = instantiate(["angular", 384, {"k": 8, "value_bits": 4, "postings": 4, "n_latents": 256}])
    algorithm.fit(vectors)
    index = algorithm._index
    best = index.frontier.points[-1]
    unreached = (best.recall + 1) / 2
    for target in (index.frontier.points[0].recall, unreached):
        algorithm.set_query_arguments({"target_recall": target})
        found = answers(algorithm, demo_data.queries[:20])
        options = {"candidates": best.candidates, "query_nnz": best.query_nnz}
        options = options if target == unreached else {"target_recall": target}
        expected = index.search(demo_data.queries[:20], COUNT, **options).ids
        assert found == expected.tolist()
        assert f"target_recall={target}" in str(algorithm)
    algorithm.done()


@pytest.mark.usefixtures("repositories")
def test_few_dimensions_and_vectors_without_a_direction() -> None:
    random = np.random.default_rng(0)
    vectors, queries = (random.random((n, 20), dtype=np.float32) for n in (1000, 30))
    vectors[[3, 500]] = 0
    truth = exact_neighbours(np.delete(vectors, [3, 500], axis=0), queries, COUNT)
    truth += (truth >= 3).astype(int) + (truth >= 499)
    queries[7] = 0
    arguments, _ = definitions(20)[-1]
    algorithm = instantiate([*arguments[:2], {"k": 32}])
    algorithm.fit(vectors.tolist())
    algorithm.set_query_arguments({"mode": "dense"})
    found = answers(algorithm, queries)
    assert {len(rows) for rows in found} == {COUNT}
    assert not {3, 500} & {row for rows in found for row in rows}
    kept = [row for row in range(30) if row != 7]
    assert recall(np.array(found)[kept], truth[kept], COUNT) > 0.7


@pytest.mark.usefixtures("repositories")
@pytest.mark.parametrize("n", [600, 9000, 33_000, 65_536, 98_304, 1_183_514])
@pytest.mark.parametrize(("framework", "metric"), [EVERY[0], EVERY[1]])
def test_no_point_repeats_another(n: int, framework: str, metric: str) -> None:
    for dimension in (20, 25, 65, 100, 384, 960):
        found = points(n, dimension, framework, metric)
        assert len(set(found)) == len(found), dimension
    if n > 1_000_000:  # what the settings are for
        module = importlib.import_module(f"{framework}.algorithms.{NAME}.module")
        stats = SimpleNamespace(n_latents=4096, vectors=n)
        for (*_, build), settings in definitions(960, framework, metric):
            assert module.fitting_build(build, n, 960) == build
            for (search,) in settings:
                assert module.fitting_query(search, stats) == search


@pytest.mark.usefixtures("repositories")
@pytest.mark.parametrize("dimension", [1, 2, 20])
def test_few_dimensions(dimension: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((700, dimension)).astype(np.float32)
    for arguments, settings in definitions(dimension):
        algorithm = instantiate(arguments)
        algorithm.fit(vectors)
        for query_arguments in settings:
            algorithm.set_query_arguments(*query_arguments)
            assert len(algorithm.query(vectors[0], COUNT)) == COUNT
        algorithm.done()


@pytest.mark.usefixtures("repositories")
def test_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"searches by angular, .* here, got metric 'jaccard'"):
        instantiate(["jaccard", 20, {"k": 16}])


@pytest.mark.usefixtures("repositories")
def test_euclidean_distances() -> None:
    rows = np.random.default_rng(0).standard_normal((900, 20)).astype(np.float32)
    rows *= np.linspace(0.2, 4, 900, dtype=np.float32)[:, None]
    rows[3] = 0
    algorithm = instantiate(["euclidean", 20, {"k": 16, "originals": "float32"}])
    algorithm.fit(rows)
    algorithm.set_query_arguments({"candidates": 900, "query_nnz": 512, "refine": 500})
    truth = exact_neighbours(rows, rows[:20], COUNT, metric="l2")
    found = np.array([algorithm.query(row, COUNT) for row in rows[:20]])
    assert recall(found, truth, COUNT) > 0.95
    assert found[3, 0] == 3
    algorithm.done()
