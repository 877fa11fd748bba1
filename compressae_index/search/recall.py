"""How many of the true neighbours a search finds."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from compressae_index.errors import DimensionError, InputError


def recall(found: npt.NDArray[Any], truth: npt.NDArray[Any], k: int) -> float:
    """recall@k: the share of the k true neighbours that are among the first k found, over all queries.

    Args:
        found: ids or rows, best first, (n_queries, at least k); -1 or None where nothing was found.
        truth: ids or rows of the true neighbours, of the same kind.
        k: neighbours to compare.

    Raises:
        DimensionError: fewer than k columns, or another number of queries.
        InputError: one holds strings and the other integers, which never match.
    """
    if len(found) != len(truth) or min(found.shape[1], truth.shape[1]) < k:
        msg = f"recall@{k} needs the same queries and k columns, got {found.shape} and {truth.shape}"
        raise DimensionError(msg)
    kinds = [array.dtype.kind in "iu" for array in (found, truth)]
    if kinds[0] != kinds[1]:
        msg = f"recall compares ids of one kind, got {found.dtype} and {truth.dtype}"
        raise InputError(msg)
    missing = {-1, None}
    shared = sum(
        len({*a[:k].tolist()} & {*b[:k].tolist()} - missing) for a, b in zip(found, truth, strict=True)
    )
    return shared / (len(truth) * k)
