"""How rows are seen by their codes: as directions and norms, from 0 or from their mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compressae_index.arrays import FloatArray
from compressae_index.coding.lengths import check_room_for_norms
from compressae_index.coding.metric import Metric, are_unit, check_unit_norms, row_norms
from compressae_index.coding.model import CompresSAE
from compressae_index.errors import InputError
from compressae_index.progress import track
from compressae_index.sources import CHUNK_ROWS, Vectors, checked_rows
from compressae_index.sources.centred import NEXT_TO_NOTHING, Centred


class Points(NamedTuple):
    """Rows as codes see them."""

    vectors: Vectors
    """(n, d)"""
    center: FloatArray | None
    """What was subtracted, (d,); None for nothing."""
    order: Metric
    """The metric that orders these rows: cosine for distances from unit rows."""

    @property
    def keep_norms(self) -> bool:
        """Whether distances need norms beside codes."""
        return self.order == "l2"


def points_of(
    vectors: Vectors, metric: Metric, given: CompresSAE | None, *, centers: bool, progress: bool
) -> Points:
    """Rows (n, d) as codes by a model see them; reads all of them once for "l2", unless the model says it.

    Args:
        vectors: the rows.
        metric: what scores are to be.
        given: the model; None for one that is to be trained.
        centers: whether that one is to see rows from their mean.
        progress: show a progress bar.

    Raises:
        InputError: bad rows, rows that are not of unit norm, for a model that leaves out their mean, or rows
            that are all next to nothing, but not zero.
    """
    if metric != "l2":
        return Points(vectors, None, metric)
    if given is not None and given.mean is None:
        check_room_for_norms(given.n_latents)
        return Points(Centred(vectors, given.center), given.center, metric)
    total, longest, all_unit = np.zeros(vectors.shape[1]), 0.0, True
    with track(vectors.shape[0], "norms", enabled=progress) as advance:
        for begin in range(0, vectors.shape[0], CHUNK_ROWS):
            rows = checked_rows(vectors, begin, begin + CHUNK_ROWS, dim=vectors.shape[1], zeros=True)
            norms = row_norms(rows)
            if given is not None:
                check_unit_norms(norms, begin)
            all_unit = all_unit and bool(are_unit(norms).all())
            longest = max(longest, float(norms.max()))
            total += rows.sum(axis=0, dtype=np.float64)
            advance(len(rows))
    if all_unit:
        return Points(vectors, None, "cosine")
    if 0 < longest < NEXT_TO_NOTHING:
        msg = (
            f"embeddings are too short: their largest norm is {longest:.3g}, and below {NEXT_TO_NOTHING:.3g} "
            "they are taken for zeros; multiply them by a power of two"
        )
        raise InputError(msg)
    center = (total / vectors.shape[0]).astype(np.float32) if centers else None
    return Points(Centred(vectors, center), center, metric)


def seen_again(vectors: Vectors, center: FloatArray | None, metric: Metric, *, keep_norms: bool) -> Points:
    """The rows of an index as its codes see them."""
    if keep_norms:
        return Points(Centred(vectors, center), center, "l2")
    return Points(vectors, None, "cosine" if metric == "l2" else metric)
