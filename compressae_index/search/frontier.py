"""Settings of a search and the recall that they reach, measured when an index is built."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from compressae_index.checks import check_int, check_number
from compressae_index.coding.codes import MAX_LATENTS
from compressae_index.errors import InputError
from compressae_index.persistence import entry
from compressae_index.search.queries import REFINE_PER_K

# Of fewer rows, half or more are candidates by the settings that all indexes have: none are measured.
CALIBRATED_ROWS = 2048
# Neighbours that recall is measured of.
NEIGHBOURS = 10
# The default point may lose so much recall against the best one.
LOSS = 0.01
# Candidates of a search for many neighbours, at least so many for each.
LEAST_CANDIDATES_PER_K = 10


class Point(NamedTuple):
    """Settings of mode "two_stage", and what they give."""

    candidates: int
    """Documents that stage one hands to stage two."""
    query_nnz: int
    """Latents of the query that stage one keeps."""
    refine: int
    """Documents that the last stage scores again; 0 without such a stage."""
    recall: float
    """recall@10 of rows of the index, each searched for among the others."""
    cost: float
    """Nanoseconds of a query, about: by numbers of postings, codes and vectors that it reads."""

    def for_neighbours(self, k: int) -> Point:
        """Settings for about the same recall@k: those of this point to 10 neighbours, more for more.

        With candidates that grow as the root of k and latents as its fourth root, recall@100 of a million
        vectors stays within 0.01 of recall@10. With the same ones it was 0.08 lower.
        """
        if k <= NEIGHBOURS <= min(self.candidates, self.refine or NEIGHBOURS):
            return self  # at once, as this is part of every search
        growth = math.sqrt(max(k / NEIGHBOURS, 1))
        candidates, refine = (k, k) if k <= NEIGHBOURS else (LEAST_CANDIDATES_PER_K * k, REFINE_PER_K * k)
        return self._replace(
            candidates=max(math.ceil(growth * self.candidates), candidates),
            query_nnz=math.ceil(math.sqrt(growth) * self.query_nnz),
            refine=self.refine and max(self.refine, refine),
        )


class Frontier(NamedTuple):
    """Settings of which none has both more recall and less cost than another, by ascending cost.

    Recall is that of queries that are like the rows of the index: of other queries it may be less.
    """

    points: tuple[Point, ...]
    target: float | None = None
    """The recall that the index was built for, if its builder said one."""
    damped_to: int = MAX_LATENTS
    """The most latents of a query with which stage one estimates what the others would add: with more, it
    clearly finds more neighbours without."""
    n_rows: int = 0
    """Rows of the index that was measured; 0 if they are not known."""

    @classmethod
    def of(
        cls,
        measured: Iterable[Point],
        target: float | None = None,
        damped_to: int = MAX_LATENTS,
        n_rows: int = 0,
    ) -> Frontier:
        """The points that no other point beats."""
        best: list[Point] = []
        for point in sorted(measured, key=lambda each: (each.cost, -each.recall)):
            if not best or point.recall > best[-1].recall:
                best.append(point)
        return cls(tuple(best), target, damped_to, n_rows)

    @property
    def default(self) -> Point:
        """The cheapest point that reaches the target, or loses at most LOSS of the best one's recall."""
        best = self.points[-1].recall
        return self._cheapest(best - LOSS if self.target is None else min(self.target, best))

    def reaching(self, target_recall: Any) -> Point:
        """The cheapest point whose recall is at least the target.

        Raises:
            InputError: the target is not between 0 and 1, or no point reaches it.
        """
        if not 0 < check_number(target_recall, "target_recall") < 1:
            msg = f"target_recall must be between 0 and 1, got {target_recall}"
            raise InputError(msg)
        best = self.points[-1]
        if target_recall > best.recall:
            msg = (
                f"target_recall = {target_recall} is out of reach: the most that was measured is "
                f"{best.recall:.3f}, with candidates={best.candidates}, query_nnz={best.query_nnz}, "
                f"refine={best.refine}; build with more bytes, or search with mode='dense'"
            )
            raise InputError(msg)
        return self._cheapest(float(target_recall))

    def grown(self, point: Point, n_rows: int) -> Point:
        """Settings for about the recall of a point in an index that has n_rows by now.

        With candidates and documents of the last stage that grow as the root of the rows, real vectors that
        became 6 to 67 times as many were found within 0.04 of the measured recall, and as by settings that
        were measured anew. With the same ones it was 0.03 to 0.19 lower.
        """
        if not 0 < self.n_rows < n_rows:
            return point
        growth = math.sqrt(n_rows / self.n_rows)
        return point._replace(
            candidates=math.ceil(growth * point.candidates), refine=math.ceil(growth * point.refine)
        )

    def _cheapest(self, recall: float) -> Point:
        return self.points[bisect_left(self.points, recall, key=attrgetter("recall"))]

    def manifest(self) -> dict[str, Any]:
        """What there is, to store."""
        return self._asdict() | {"points": [point._asdict() for point in self.points]}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Frontier:
        """Reads `manifest`.

        Raises:
            InputError: a number of another type or out of range, or no points.
            KeyError: one is missing.
        """
        points = [
            Point(
                check_int(each["candidates"], "candidates", 1),
                check_int(each["query_nnz"], "query_nnz", 1),
                check_int(each["refine"], "refine", 0),
                float(check_number(each["recall"], "recall")),
                float(check_number(each["cost"], "cost")),
            )
            for each in entry(stored, "points", list)
        ]
        if not points:
            msg = "a frontier without points"
            raise InputError(msg)
        target = stored["target"]
        return cls.of(
            points,
            None if target is None else float(check_number(target, "target")),
            check_int(stored.get("damped_to", MAX_LATENTS), "damped_to", 0),
            check_int(stored.get("n_rows", 0), "n_rows", 0),
        )
