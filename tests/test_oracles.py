"""The comparisons of oracles.py refuse what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compressae_index.testing import assert_best

EXACT = np.array([[0.1, 0.5, 0.9, 0.5, -np.inf]])
IDS = np.array([40, 30, 20, 10, 0])
ANSWERS: dict[str, tuple[list[float], list[int], bool]] = {
    "right": ([0.9, 0.5, 0.5, 0.1, -np.inf, -np.inf], [20, 30, 10, 40, -1, -1], True),
    "ties by id, not by place": ([0.9, 0.5, 0.5, 0.1, -np.inf, -np.inf], [20, 10, 30, 40, -1, -1], False),
    "another's score": ([0.9, 0.5, 0.5, 0.1, -np.inf, -np.inf], [20, 30, 40, 10, -1, -1], False),
    "worst first": ([0.1, 0.5, 0.5, 0.9, -np.inf, -np.inf], [40, 30, 10, 20, -1, -1], False),
    "a document twice": ([0.9, 0.5, 0.5, 0.1, -np.inf, -np.inf], [20, 30, 30, 40, -1, -1], False),
    "one too few": ([0.9, 0.5, 0.5, -np.inf, -np.inf, -np.inf], [20, 30, 10, -1, -1, -1], False),
    "one that is not allowed": ([0.9, 0.5, 0.5, 0.1, -np.inf, -np.inf], [20, 30, 10, 40, 0, -1], False),
    "not the best": ([0.5, 0.5, 0.1, -np.inf, -np.inf, -np.inf], [30, 10, 40, -1, -1, -1], False),
    "a score that is off": ([0.9, 0.5, 0.5, 0.1001, -np.inf, -np.inf], [20, 30, 10, 40, -1, -1], False),
    "no number": ([0.9, 0.5, 0.5, np.nan, -np.inf, -np.inf], [20, 30, 10, 40, -1, -1], False),
    "fewer places than k": ([0.9, 0.5], [20, 30], False),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_only_the_best_pass(answer: str) -> None:
    scores, ids, is_right = ANSWERS[answer]
    result: Any = np.array([scores]), np.array([ids])
    if is_right:
        assert_best(result, EXACT, 6, IDS)
        assert_best(result, np.where(np.isinf(EXACT), 1, EXACT), 6, IDS, allowed=np.isfinite(EXACT[0]))
        return
    with pytest.raises(AssertionError):
        assert_best(result, EXACT, 6, IDS)
