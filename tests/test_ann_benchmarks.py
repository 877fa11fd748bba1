"""The adapter for ann-benchmarks, driven as its runner does, in a stand-in for that repository."""

from __future__ import annotations

import importlib
import json
import re
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
from compressae_index.measuring.exact import exact_neighbours
from compressae_index.search.recall import recall

SOURCE = Path(__file__).parent.parent / "benchmarks" / "ann_benchmarks" / "compressae"
CONFIG = yaml.safe_load((SOURCE / "config.yml").read_text())
BASE = "class BaseANN:\n    def done(self): ...\n    def get_additional(self): return {}\n"
COUNT = 10


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package ann_benchmarks of nothing but the base class and the adapter."""
    root = tmp_path_factory.mktemp("repository")
    algorithms = root / "ann_benchmarks" / "algorithms"
    (algorithms / "base").mkdir(parents=True)
    for folder in (algorithms.parent, algorithms):
        (folder / "__init__.py").touch()
    (algorithms / "base" / "module.py").write_text(BASE)
    shutil.copytree(SOURCE, algorithms / SOURCE.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        patch.setattr("compressae_index.building.planning.RANKED", 20)
        yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "ann_benchmarks"]:
        del sys.modules[name]


def combinations(settings: dict[str, Any] | list[Any]) -> list[Any]:
    """How the framework spreads `args` and `query_args`."""
    if isinstance(settings, dict):
        return [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]
    return [list(values) for values in product(*settings)]


def points(n: int, dimension: int) -> list[str]:
    """All builds and searches that the module plans for n vectors."""
    module = importlib.import_module("ann_benchmarks.algorithms.compressae.module")
    found = []
    for (*_, build), settings in definitions(dimension):
        fitted = module.fitting_build(build, n, dimension)
        clusters = n // 32768 * 8 if fitted.get("cluster") else 0
        stats = SimpleNamespace(clusters=clusters, n_latents=min(4096, n // 2), vectors=n)
        searches = [module.fitting_query(query_arguments, stats) for (query_arguments,) in settings]
        found += [f"{sorted(fitted.items())} {sorted(search.items())}" for search in searches]
        assert all(search.get("nprobe", 0) < max(clusters, 1) for search in searches)
    return found


def definitions(dimension: int) -> list[tuple[list[Any], list[Any]]]:
    """Arguments of the constructor, and those of all query settings, of each build of config.yml."""
    (algorithm,) = CONFIG["float"]["angular"]
    known = {"@metric": "angular", "@dimension": dimension, "@count": COUNT}
    base = [known.get(argument, argument) for argument in algorithm["base_args"]]
    return [
        ([*base, build], combinations(group["query_args"]))
        for group in algorithm["run_groups"].values()
        for build in combinations(group["args"])
    ]


def instantiate(arguments: list[Any]) -> Any:
    (algorithm,) = CONFIG["float"]["angular"]
    module = importlib.import_module(f"{algorithm['module']}.module")
    # Arguments pass through JSON on the way to a container.
    return getattr(module, algorithm["constructor"])(*json.loads(json.dumps(arguments)))


def answers(algorithm: Any, queries: FloatArray) -> list[list[int]]:
    """Of single queries, after the checks of the framework, and of the batch, which must be the same."""
    found = [list(algorithm.query(query, COUNT)) for query in queries]
    assert all(len(rows) == len(set(rows)) <= COUNT for rows in found)
    algorithm.batch_query(queries, COUNT)
    assert [list(rows) for rows in algorithm.get_batch_results()] == found
    return found


def test_the_configuration_is_what_the_framework_reads() -> None:
    (algorithm,) = CONFIG["float"]["angular"]
    assert {"name", "docker_tag", "module", "constructor", "run_groups"} <= set(algorithm)
    assert algorithm["docker_tag"] == f"ann-benchmarks-{SOURCE.name}"
    assert algorithm["module"] == f"ann_benchmarks.algorithms.{SOURCE.name}"


@pytest.mark.usefixtures("repository")
def test_every_setting_on_real_vectors(vectors: FloatArray, queries: FloatArray) -> None:
    # As few as can be trained with 64 nonzeros, or it would take minutes.
    vectors = vectors[:600]
    truth = exact_neighbours(vectors, queries, COUNT)
    best = []
    for arguments, settings in definitions(vectors.shape[1]):
        algorithm = instantiate(arguments)
        assert algorithm.get_memory_usage() == 0
        algorithm.fit(vectors)
        labels, shares = set(), []
        for query_arguments in settings:
            algorithm.set_query_arguments(*json.loads(json.dumps(query_arguments)))
            shares.append(recall(np.array(answers(algorithm, queries)), truth, COUNT))
            labels.add(str(algorithm))
        assert len(labels) == len(settings)
        assert all("k=" in label or "bytes_per_vector=" in label for label in labels)
        additional = algorithm.get_additional()
        kilobytes = (additional["bytes_per_vector"] * len(vectors) + additional["model_bytes"]) / 1024
        assert kilobytes <= algorithm.get_memory_usage() < kilobytes + 1024
        best.append(max(shares))
        algorithm.done()
    print(best)
    assert min(best) > 0.7


@pytest.mark.usefixtures("repository")
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


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("n", [64, 600, 9000, 33_000, 65_536, 98_304, 1_183_514])
def test_no_point_repeats_another(n: int) -> None:
    for dimension in (1, 2, 3, 4, 8, 20, 25, 65, 100, 384, 960):
        found = points(n, dimension)
        assert len(set(found)) == len(found), dimension
    if n > 1_000_000:  # what the settings are for
        assert {int(k) for k in re.findall(r"\('k', (\d+)\)", " ".join(points(n, 384)))} == {16, 32, 64}
        assert "('candidates', 10000), ('mode', 'two_stage'), ('query_nnz', 256)" in " ".join(points(n, 384))


@pytest.mark.usefixtures("repository")
def test_builds_of_few_dimensions_differ() -> None:
    vectors = np.random.default_rng(0).standard_normal((700, 20)).astype(np.float32)
    labels, sizes = set(), set()
    for arguments, settings in definitions(20):
        algorithm = instantiate(arguments)
        algorithm.fit(vectors)
        for query_arguments in settings:
            algorithm.set_query_arguments(*query_arguments)
            assert len(algorithm.query(vectors[0], COUNT)) == COUNT
            labels.add(str(algorithm))
        algorithm.set_query_arguments({"mode": "two_stage"})
        sizes.add(algorithm.get_additional()["bytes_per_vector"])
        algorithm.done()
    assert len(labels) == sum(len(settings) for _, settings in definitions(20))
    assert len(sizes) == len(definitions(20))


@pytest.mark.usefixtures("repository")
def test_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="angular data sets here, got metric 'euclidean'"):
        instantiate(["euclidean", 20, {"k": 16}])
