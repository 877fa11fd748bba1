"""The script for machines with a GPU, on the processor: its checks pass, fail, and say what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

pytestmark = pytest.mark.slow
SMALL = ("--rows", "1200", "--n-latents", "128", "--steps", "8")


@pytest.fixture
def script() -> Iterator[Any]:
    """The module, while torch has one thread: on a busy machine, more wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("gpu")
    torch.set_num_threads(threads)


def run(script: Any, *arguments: str) -> Result:
    return CliRunner().invoke(script.main, arguments)


def verdicts(result: Result) -> list[tuple[str, str]]:
    """The part of each check, and how it ended."""
    rows = [[cell.strip() for cell in line.split("|")] for line in result.stdout.splitlines()]
    return [(row[1], row[5]) for row in rows if len(row) > 5 and row[5] in ("ok", "failed")]


def test_all_checks_pass_on_the_processor(script: Any) -> None:
    result = run(script, "--device", "cpu", *SMALL)
    assert result.exit_code == 0, result.output
    found = verdicts(result)
    assert {part for part, _ in found} == set(script.PARTS)
    assert {verdict for _, verdict in found} == {"ok"}
    assert f"{len(found)} of {len(found)} checks passed" in result.stdout
    assert "filling the store" in result.stdout


def test_wrong_codes_fail(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pursue = script.pursue_on

    def wrong(device: str, unit: Any, *rest: Any) -> Any:
        latents, values = pursue(device, unit, *rest)
        return latents, values * (1.02 if unit.dtype == "float32" else 1)

    monkeypatch.setattr(script, "pursue_on", wrong)
    monkeypatch.setattr(script, "PARTS", {"pursuit": script.pursuit})
    result = run(script, "--device", "cpu", *SMALL)
    assert result.exit_code == 1
    assert [verdict for _, verdict in verdicts(result)].count("failed") >= 3


def test_nan_is_no_small_difference(script: Any) -> None:
    assert not script.Check("", float("nan"), 1).passed
    assert not script.Check("", script.largest([0, float("nan")]), 1).passed


def test_what_cannot_be_run_is_named(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run(script)
    assert result.exit_code == 2
    assert not result.stdout
    for part in script.PARTS:
        assert f"not run: {part}: " in result.stderr
    assert "this is Faiss's CPU build" in result.stderr
    # A GPU of torch alone.
    obstacle = script.obstacle
    monkeypatch.setattr(
        script, "obstacle", lambda part, _: obstacle(part, "cuda" if part == "DenseStore" else "cpu")
    )
    monkeypatch.setattr(script, "PARTS", {name: script.PARTS[name] for name in ("pursuit", "DenseStore")})
    result = run(script, "--device", "cpu", *SMALL)
    assert result.exit_code == 2
    assert {part for part, _ in verdicts(result)} == {"pursuit"}
    assert "not run: DenseStore: this is Faiss's CPU build" in result.stderr
