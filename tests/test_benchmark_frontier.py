"""`run.py frontier`: a small run from contestants to the picture; nothing about times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import frontier
import numpy as np
import pytest
from frontier_contestants import CONTESTANTS, Contestant, Task, our_form, untuned
from frontier_pages import contestants_table, fastest, front, fronts_table, picture, times_table

from compressae_index.checks import normalize_rows
from compressae_index.demo import DemoData
from compressae_index.measuring.exact import exact_neighbours

pytestmark = pytest.mark.slow
FEW = frontier.Effort(queries=3, rounds=2)
OURS, MISSING, FLAT, GRAPH = "ours, k=8 + originals", "missing", "flat, float16", "Faiss HNSW, SQ8"
NAMES = (OURS, MISSING, FLAT, GRAPH)


@pytest.fixture(scope="module")
def report(demo_data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run by 3,000 rows, the second of two: the first filled the cache."""
    unit, queries = normalize_rows(demo_data.embeddings[:3000]), normalize_rows(demo_data.queries[:60])
    truth = exact_neighbours(unit, queries, max(frontier.TOPS))
    task, cache = Task.of(unit, 256, 1, seed=0), tmp_path_factory.mktemp("cache")

    def unused(task: Task) -> Any:
        raise AssertionError(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "opened_bytes", lambda *_: 10**7)
        patch.setitem(CONTESTANTS, MISSING, Contestant(unused, untuned, "no_such_package"))
        first = frontier.run(NAMES, task, queries, truth, cache, FEW, print)
        patch.setitem(CONTESTANTS, OURS, our_form()._replace(build=unused))
        second = frontier.run(NAMES, task, queries, truth, cache, FEW, print)
    assert first["contestants"] == second["contestants"]
    loaded: dict[str, Any] = json.loads(json.dumps(second | {"data": {"vectors": len(unit)}}))
    return loaded


def test_what_is_not_installed_is_left_out(report: dict[str, Any]) -> None:
    assert [one["family"] for one in report["contestants"]] == [OURS, FLAT, GRAPH]
    assert report["left_out"] == {MISSING: "No module named 'no_such_package'"}


def test_bytes_are_told_apart(report: dict[str, Any]) -> None:
    ours, flat, graph = report["contestants"]
    assert (flat["row_bytes"], flat["disk_bytes"], flat["is_ours"]) == (768, 0, False)
    assert ours["row_bytes"] < 80
    assert (ours["disk_bytes"], ours["is_ours"]) == (768, True)
    assert ours["model_bytes"] >= 256 * 384
    assert 384 + 4 * 32 < graph["row_bytes"] < 384 + 4 * 64


def test_every_setting_is_measured(report: dict[str, Any]) -> None:
    for line in report["lines"]:
        assert line["ms"] > 0
        assert (line["ms_cold"] is not None) == (line["family"] == OURS)
    flat = [line["recall"] for line in report["lines"] if line["family"] == FLAT]
    assert min(flat) > 0.99
    refined = [line["recall"] for line in report["lines"] if line["family"] == OURS and line["at"] == 10]
    assert max(refined) > 0.98


def test_other_data_are_not_taken_from_the_cache() -> None:
    rows = normalize_rows(np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32))
    names = {
        frontier.key_of(name, Task.of(each, latents, 1, 0))
        for name in (OURS, FLAT)
        for each in (rows, rows[::-1])
        for latents in (None, 256)
    }
    assert len(names) == 4 + 2


def test_pages(report: dict[str, Any], tmp_path: Path) -> None:
    picture(report, 10, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    for table in (contestants_table(report), times_table(report, 10), fronts_table(report, 100)):
        assert all(f"| {one['family']} " in table for one in report["contestants"])


def line(family: str, share: float, milliseconds: float) -> dict[str, Any]:
    return {"family": family, "at": 10, "recall": share, "ms": milliseconds}


def test_a_front_has_what_nothing_faster_reaches() -> None:
    lines = [line("a", 0.9, 2), line("a", 0.8, 1), line("a", 0.85, 3), line("a", 0.99, 3), line("a", 0.7, 1)]
    assert [one["recall"] for one in front(lines)] == [0.8, 0.9, 0.99]
    assert fastest(front(lines), 0.85) == line("a", 0.9, 2)
    assert fastest(front(lines), 0.995) is None


def test_the_fastest_of_the_smallest_are_bold() -> None:
    sizes = {"small": 50.0, "large": 500.0, "slow": 700.0}
    report = {
        "contestants": [
            {"family": name, "row_bytes": size, "disk_bytes": 0.0} for name, size in sizes.items()
        ],
        "lines": [line("large", 0.991, 1), line("small", 0.96, 2), line("slow", 0.96, 3)],
    }
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in times_table(report, 10).split("\n")
    ]
    assert rows[2] == ["small", "50", "", "**2.000**", "**2.000**", "**2.000**", "", "", "0.960"]
    assert rows[3] == ["large", "500", "", *["**1.000**"] * 5, "0.991"]
    assert rows[4] == ["slow", "700", "", "3.000", "3.000", "3.000", "", "", "0.960"]
