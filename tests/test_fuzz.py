"""Damaged files of any kind give an error of this package or a sane answer. See `fuzzing`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest

# Mutations of each kind; `make fuzz` tries any number, in processes of their own.
MUTATIONS = {"index of two windows": 10, "checkpoint of rounds": 15, "checkpoint of steps": 15}


@pytest.fixture(scope="module", autouse=True)
def samples() -> Iterator[None]:
    yield
    fuzzing.forget_samples()


@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_changed_files_are_refused_or_give_sane_answers(kind: str, tmp_path: Path) -> None:
    outcomes = []
    for seed in range(MUTATIONS.get(kind, 30)):
        try:
            outcomes.append(fuzzing.attempt(kind, seed, tmp_path))
        except Exception as error:
            msg = f"{kind!r}, seed {seed}: {type(error).__name__}: {error}"
            raise AssertionError(msg) from error
    # Most changes are seen, and some do no harm.
    assert set(outcomes) >= {"refused", "sane"}
