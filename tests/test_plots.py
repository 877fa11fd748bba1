"""Plots can be read: lines differ for every reader, bytes are seen, and axes have ticks where it matters."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from frontier_pages import MOST, styles
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from summaries import CURVES, FAST, PLOTTED

from compressae_index.measuring.evaluation import Measurement
from compressae_index.measuring.plots import (
    COLOURS,
    Series,
    Text,
    is_ours,
    look,
    looks,
    mark_front,
    recall_against_bytes,
    recall_against_expected,
    speed_against_recall,
    write_texts,
)

# The linear RGB that is left for readers without red or green cones (Viénot, Brettel and Mollon, 1999).
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def lab(colour: str, seen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of a colour as it is seen."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(seen @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_differ_for_every_reader(blindness: str) -> None:
    seen = {colour: lab(colour, BLINDNESS[blindness]) for colour in COLOURS}
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(COLOURS, 2)}
    closest = min(distances, key=lambda pair: distances[pair])
    # tab10 has pairs at 4.5 and 5.6 for readers without green or red cones.
    assert distances[closest] > 15, closest


def test_no_two_lines_look_alike() -> None:
    looks = [look(number) for number in range(100)]
    assert len({(one.color, one.marker) for one in looks}) == 100
    most = max(len(FAST), len(PLOTTED))
    assert len({one.color for one in looks[:most]}) == len({one.marker for one in looks[:most]}) == most
    assert all(a.linestyle != b.linestyle for a, b in pairwise(looks))


def series() -> list[Series]:
    sizes = {"small": [56.0, 62.0], "large": [1536.0]}
    return [
        Series(name, [Measurement("", size, {10: 0.5 + size / 4000}, 1.0) for size in each], joined=True)
        for name, each in sizes.items()
    ]


def test_bytes_are_seen_in_the_plot_of_speed() -> None:
    axes = Figure().subplots()
    speed_against_recall(axes, series(), 10)
    assert axes.get_legend() is None
    assert [text.get_text() for text in axes.texts] == ["small, 56–62 B", "large, 1,536 B"]
    small, large = (marks.get_sizes() for marks in axes.collections)  # type: ignore[attr-defined]
    assert small[0] < small[1] < large[0] / 2
    recall_against_bytes(axes := Figure().subplots(), series(), 10)
    assert len({size for marks in axes.collections for size in marks.get_sizes()}) == 1  # type: ignore[attr-defined]


def test_names_are_in_a_legend_where_points_have_texts() -> None:
    axes = Figure().subplots()
    small, large = series()
    speed_against_recall(axes, [small._replace(labels=["a", ""]), large], 10)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["small, 56–62 B", "large, 1,536 B"]
    assert [text.get_text() for text in axes.texts] == ["a"]


def test_ours_are_set_off_from_the_rest() -> None:
    found = looks([True, False, True, *[False] * 9])
    assert [is_ours(one) for one in found] == [True, False, True, *[False] * 9]
    assert len({(one.color, one.marker) for one in found}) == len(found)
    rivals = [one.color for one in found if not is_ours(one)][: len(COLOURS) - 1]
    assert len(set(rivals)) == len(COLOURS) - 1
    axes = Figure().subplots()
    own, other = series()
    recall_against_bytes(axes, [own._replace(is_ours=True), other], 10)
    widths = {line.get_color(): line.get_linewidth() for line in axes.lines}
    assert widths[COLOURS[0]] > widths[COLOURS[1]]
    drawn: Any = axes.collections
    filled, hollow = (np.asarray(marks.get_facecolor())[0, :3] for marks in drawn)
    np.testing.assert_allclose(filled, to_rgb(COLOURS[0]))
    np.testing.assert_allclose(hollow, 1)


@pytest.mark.parametrize(
    ("right", "up", "expected"),
    [
        (True, True, [(4, 2), (3, 5)]),
        (False, True, [(1, 1), (2, 4), (3, 5)]),
        (True, False, [(4, 2), (1, 1)]),
        (False, False, [(1, 1)]),
    ],
)
def test_nothing_beats_the_front(right: bool, up: bool, expected: list[tuple[float, float]]) -> None:
    axes = Figure().subplots()
    mark_front(axes, [(2, 4), (1, 1), (3, 5), (4, 2), (3, 3)], right=right, up=up)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), expected)


def test_texts_cover_no_other_and_stay_inside() -> None:
    axes = Figure(figsize=(5, 4)).subplots()
    points = [(0.0, 0.0), (0.5, 0.5), (0.52, 0.52), (0.54, 0.5), (1.0, 1.0)]
    axes.plot(*zip(*points, strict=True))
    write_texts(axes, [Text(f"a long name {i}", [point]) for i, point in enumerate(points)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_a_name_is_written_where_there_is_room() -> None:
    axes = Figure(figsize=(5, 4)).subplots()
    crowd = [(0.01 * i, 0.01 * i) for i in range(10)]
    axes.plot(*zip(*crowd, (1.0, 0.5), strict=True), marker="o")
    write_texts(axes, [Text("taken", [crowd[5]]), Text("name", [crowd[5], (1.0, 0.5)])])
    assert [text.xy for text in axes.texts] == [crowd[5], (1.0, 0.5)]  # type: ignore[attr-defined]


def test_at_most_ten_families_in_a_picture() -> None:
    for path in (Path(__file__).parents[1] / "benchmarks" / "results").glob("*/frontier.json"):
        shown = styles(json.loads(path.read_text()))
        assert len(shown) <= MOST == 10
        assert len({(one.color, one.marker) for one in shown.values()}) == len(shown)
    assert max(len(FAST), len(PLOTTED), len(CURVES) + 3) <= MOST


def test_equal_recalls_lie_on_the_line() -> None:
    found = [Measurement(name, 60.0, {10: share}, 1.0) for name, share in (("a", 0.9), ("b", 0.8))]
    axes = Figure().subplots()
    recall_against_expected(axes, Series("settings", found), {"a": 0.95, "b": 0.8}, 10)
    equal, points = (line.get_xydata() for line in axes.lines)
    np.testing.assert_array_equal(equal, [[0.8, 0.8], [0.95, 0.95]])
    np.testing.assert_array_equal(points, [[0.95, 0.9], [0.8, 0.8]])


def test_ticks_of_bytes() -> None:
    def ticks(one: list[Series], budgets: tuple[int, ...] = ()) -> list[float]:
        axes = Figure().subplots()
        recall_against_bytes(axes, one, 10, budgets)
        return [float(tick) for tick in axes.get_xticks()]

    assert ticks(series()) == [32, 64, 128, 256, 512, 1024, 2048]
    assert ticks(series()[:1]) == [32, 48, 64, 96]
    assert ticks(series(), (56, 96, 128, 192, 256)) == [32, 56, 96, 128, 192, 256, 512, 1024, 2048]


def test_pictures_of_results_are_there() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    assert {path.name for path in results.glob("*/*.png")} >= {"recall-bytes.png", "speed-recall.png"}
