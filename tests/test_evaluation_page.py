"""The page of an evaluation: numbers of the JSON, in one valid file, which a browser shows well."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compressae_index import CompresSAE, CompressedIndex
from compressae_index.arrays import FloatArray
from compressae_index.cli import main
from compressae_index.measuring.evaluation import Measurement, Sweep
from compressae_index.measuring.index_report import IndexReport, index_report
from compressae_index.measuring.page import as_page
from compressae_index.measuring.plots import Series, as_svg, recall_against_bytes, speed_against_recall

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A file may be named so.
NASTY = "<script>alert('1')&amp;.npy"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """The content of a page; fails if a tag is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.numbers: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "data":
            self.numbers.append((dict(attrs)["value"] or "", ""))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "data":
            self.numbers[-1] = (self.numbers[-1][0], data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, model: CompresSAE, vectors: FloatArray, queries: FloatArray
) -> Path:
    """A directory with an index, what it was built from, and queries."""
    place = tmp_path_factory.mktemp("evaluation")
    CompressedIndex.build(vectors[:300], model=model, k=4, progress=False).save(place / "i")
    np.save(place / NASTY, vectors[:300])
    np.save(place / "q.npy", queries[:20])
    return place


@pytest.fixture(scope="module")
def made(place: Path) -> tuple[dict[str, Any], str]:
    """The JSON and the page that one command gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = run("eval", "i", NASTY, "q.npy", "--json", "--report", "eval.html", "--faiss")
    assert result.exit_code == 0, result.output
    assert {path.name for path in place.iterdir()} == {"i", NASTY, "q.npy", "eval.html"}
    return json.loads(result.stdout), (place / "eval.html").read_text(encoding="utf-8")


def numbers_in(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers_in(value)
    elif isinstance(content, int | float):
        yield content


def test_every_number_is_that_of_the_json(made: tuple[dict[str, Any], str]) -> None:
    content, text = made
    page = Page(text)
    known = {repr(number) for number in numbers_in(content)}
    assert len(page.numbers) > 100
    for exact, shown in page.numbers:
        assert exact in known
        assert float(shown.replace(",", "")) == pytest.approx(float(exact), abs=0.5, rel=0.01)
    said = {exact for exact, _ in page.numbers}
    swept = [one for each in content["sweeps"] for one in each["measurements"].values()]
    for measured in (*content["measurements"], *swept):
        assert measured["name"] in page.text
        assert measured["queries_per_second"] == 1000 / measured["ms_per_query"]
        keys = ("bytes_per_vector", "ms_per_query", "queries_per_second")
        wanted = [measured[key] for key in keys] + list(measured["recall"].values())
        assert said >= {repr(number) for number in wanted}


def test_the_page_is_valid_and_needs_nothing_else(made: tuple[dict[str, Any], str]) -> None:
    page = Page(made[1])
    assert page.tags[:3] == ["html", "head", "meta"]
    assert "script" not in page.tags
    assert '<th scope="col"></th>' not in made[1]
    assert page.tags.count("svg") == 4
    assert {"title", "main", "h1", "table", "figure"} <= set(page.tags)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 100
    targets = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    targets += re.findall(r"url\(([^)]*)\)", made[1])
    assert {target for target in targets if not target.startswith("#")} == {"data:,"}
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert "http" not in made[1]
    assert "@import" not in made[1]
    # The picture's text is text.
    assert "bytes per vector" in page.text
    assert "queries per second, one thread" in page.text


def test_names_are_escaped(made: tuple[dict[str, Any], str]) -> None:
    page = Page(made[1])
    assert NASTY not in made[1]
    assert page.text.count(NASTY) >= 3  # in the title, the heading and the facts


def test_settings_that_build_measured_and_bytes_on_disk(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
    index = CompressedIndex.build(vectors[:600], model=model, k=8, originals="float16", progress=False)
    report = index_report(index, vectors[:600], queries[:20])
    assert index.frontier is not None
    assert [point for point, _ in report.frontier] == list(index.frontier.points)
    page, known = (
        Page(as_page(report, {"embeddings": "e.npy"})),
        {repr(number) for number in numbers_in(report.as_dict())},
    )
    assert {exact for exact, _ in page.numbers} <= known
    assert page.tags.count("svg") == 5
    assert "recall@10 expected by build" in page.text
    assert "original vectors of 768 bytes on disk" in page.text
    for point, one in report.frontier:
        assert one.name in page.text
        assert one.bytes_per_vector == index.stats().bytes_per_vector["total"]
        assert f"{point.recall:.3f}" in page.text


def test_names_of_latents(small: IndexReport) -> None:
    lengths = small.model.list_lengths
    most, second, *_, least = sorted(range(len(lengths)), key=lambda latent: -lengths[latent])
    labels = {f"{most}+": "kidney <b>", f"{second}-": "violin", f"{least}+": "glacier"}
    text = as_page(small._replace(labels=labels), {"embeddings": "e.npy"})
    page = Page(text)
    row = re.search(rf'<tr><th scope="row">{most}</th>(.*)</tr>', text)
    assert row is not None
    number = f'<data value="{lengths[most]}">{lengths[most]}</data>'
    assert row[1] == f"<td>{number}</td><td>kidney &lt;b&gt;</td><td></td>"
    assert "violin" in page.text
    assert "glacier" not in page.text
    assert "What latents stand for" in page.text
    assert "What latents stand for" not in as_page(small, {"embeddings": "e.npy"})


def report_of(modes: list[Measurement], rivals: list[Measurement], base: IndexReport) -> IndexReport:
    exact = Measurement("exact float32", 1536.0, {10: 1.0, 100: 1.0}, 9.0)
    return base._replace(exact=exact, modes=modes, rivals={"Faiss PQ": rivals} if rivals else {}, sweeps=[])


@pytest.fixture(scope="module")
def small(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> IndexReport:
    index = CompressedIndex.build(vectors[:120], model=model, k=4, progress=False)
    return index_report(index, vectors[:120], queries[:5], faiss=False)


def test_where_it_loses(small: IndexReport) -> None:
    def one(name: str, size: float, share: float, ms: float) -> Measurement:
        return Measurement(name, size, {10: 1 - share, 100: share}, ms)

    modes = [one("sparse", 100, 0.5, 0.3), one("dense", 60, 0.9, 0.6), one("two_stage", 160, 0.8, 0.4)]
    rivals = [one("PQ48", 48, 0.7, 0.2), one("PQ96", 96, 0.6, 2), one("PQ160", 160, 0.85, 3)]
    report = report_of(modes, rivals, small)
    named = [
        (each.mode.name, [one.name for one in each.finds_more], [one.name for one in each.faster])
        for each in report.standings()
    ]
    assert named == [
        ("sparse", ["PQ48", "PQ96"], ["PQ48"]),
        ("dense", [], []),
        ("two_stage", ["PQ160"], []),
    ]
    told = report.as_dict()["standings"]
    assert [(each["mode"], each["finds_more"], each["faster"]) for each in told] == named
    assert [len(each["advice"]) for each in told] == [2, 0, 1]
    page = Page(as_page(report, {"embeddings": "e.npy"}))
    said = page.text.split("Where it loses")[1].split("Recall and time")[0].split("\n")
    sparse, dense, two_stage = (line for line in said if line)
    assert sparse == (
        "sparse finds fewer of the 100 nearest, 0.500 in 100 bytes at 0.30 ms a query, than do in no more "
        "bytes: PQ48 (0.700 in 48 bytes, 0.20 ms) and PQ96 (0.600 in 96 bytes, 2.00 ms); it is slower, at "
        "0.30 ms a query and 100 bytes, than what finds as much: PQ48 (0.20 ms, 0.700 in 48 bytes). "
        "Search by two_stage or dense: sparse is for answers that may be rough. Search with fewer candidates "
        "or a lower query_nnz; 120 vectors are few, and posting lists gain on scans with every one more."
    )
    assert dense == (
        "dense does not: nothing finds more than 0.900 in at most its 60 bytes, and nothing finds as much in "
        "less than its 0.60 ms a query."
    )
    assert two_stage.startswith("two_stage finds fewer of the 100 nearest, 0.800 in 160 bytes")
    assert two_stage.endswith("Use dense, which finds 0.900 in 60 bytes, or give two_stage more candidates.")
    assert "slower" not in two_stage
    assert "Faiss was not measured" not in page.text
    # Exact search is a rival, too.
    slow = report_of([mode._replace(ms_per_query=10) for mode in modes], [], small)
    assert [each.faster for each in slow.standings()] == [[slow.exact]] * 3


def test_advice_is_about_what_was_measured(small: IndexReport) -> None:
    def one(name: str, size: float, share: float, ms: float = 1) -> Measurement:
        return Measurement(name, size, {100: share}, ms)

    modes = [one("sparse", 160, 0.9), one("dense", 170, 0.8), one("two_stage", 160, 0.8)]
    report = report_of(modes, [one("PQ", 150, 0.85)], small)

    def advice(report: IndexReport) -> list[list[str]]:
        return [each.advice for each in report.standings()]

    longer = {candidates: one("", 160, 0.8 + candidates / 1e5) for candidates in (1000, 5000, 9000)}
    swept = report._replace(sweeps=[Sweep("two_stage", "candidates", longer)])
    assert advice(swept)[2] == ["Search with candidates=5000, which finds as much"]
    assert advice(swept)[0] == []
    assert "Give build a budget (bytes_per_vector)" in advice(report)[2][0]
    cut = report._replace(stats=report.stats._replace(postings=2, k=4))
    assert [each[0].split(":")[0] for each in advice(cut)[1:]] == [
        "Build with a budget, residual_bits or originals"
    ] * 2
    refined = cut._replace(stats=cut.stats._replace(residual_bits=2))
    assert all(each[0].startswith("Build with more bytes") for each in advice(refined)[1:])
    wider = refined._replace(sweeps=[Sweep("two_stage", "refine", longer)])
    assert advice(wider)[2] == ["Search with refine=5000, which finds as much"]
    slow = report_of([mode._replace(ms_per_query=20) for mode in modes], [], small)
    assert "120 vectors are few" in advice(slow)[2][0]
    large = slow._replace(stats=slow.stats._replace(vectors=40_000))
    assert advice(large)[2] == ["Search with fewer candidates or a lower query_nnz"]
    assert "Use two_stage or sparse" in advice(large)[1][0]


def test_bytes_are_counted_alike(model: CompresSAE, vectors: FloatArray, queries: FloatArray) -> None:
    """The same ids are held by all, so that what they take is in every sum, and in the budgets."""
    rows, taken = vectors[:300], []
    for ids in (None, [f"https://example.org/articles/{row:07d}" for row in range(300)]):
        index = CompressedIndex.build(rows, ids, model=model, k=16, progress=False)
        report = index_report(index, rows, queries[:5], ids=ids, faiss=True)
        ids_take = index.stats().bytes_per_vector["ids"]
        taken.append({one.name: one.bytes_per_vector - ids_take for one in report.measurements})
    assert ids_take > 36
    assert taken[0] == pytest.approx(taken[1])


def test_files_whose_names_are_not_utf8_are_reported(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    CompressedIndex.build(vectors[:30], model=model, k=4, progress=False).save(tmp_path / "i")
    np.save(tmp_path / "q.npy", queries[:2])
    embeddings, page = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.npy", b"caf\xe9.html"))
    with embeddings.open("wb") as file:
        np.save(file, vectors[:30])
    result = run("eval", tmp_path / "i", embeddings, tmp_path / "q.npy", "--report", page)
    assert result.exit_code == 0, result.output
    assert r"caf\udce9.npy" in Page(page.read_text(encoding="utf-8")).text


def test_report_without_faiss_and_of_few_vectors(
    model: CompresSAE, vectors: FloatArray, queries: FloatArray, small: IndexReport
) -> None:
    assert small.rivals == {}
    assert [each.measurements.keys() for each in small.sweeps] == [{8, 16, 32, 64, 128, 256}, {100}]
    index = CompressedIndex.build(vectors[:7], model=model, k=4, progress=False)
    few = index_report(index, vectors[:7], queries[:2], faiss=False)
    assert few.exact.recall == {7: 1.0}
    assert [each.measurements.keys() for each in few.sweeps] == [{8, 16, 32, 64, 128, 256}, {7}]
    shown = Page(as_page(few, {"embeddings": "e.npy"})).text
    assert "recall@7" in shown
    assert "Faiss was not measured" in shown


def test_pictures_are_the_same_every_time_and_do_not_clash() -> None:
    ones = [Measurement("a", 10.0, {5: 0.5}, 1.0), Measurement("b", 20.0, {5: 0.7}, 2.0)]
    series = [Series("one", ones, ["a", "<b>"], joined=True), Series("two", ones[:1])]
    first = as_svg(lambda axes: recall_against_bytes(axes, series, 5), "first", 'a "quoted" <name>')
    assert first == as_svg(lambda axes: recall_against_bytes(axes, series, 5), "first", 'a "quoted" <name>')
    second = as_svg(lambda axes: speed_against_recall(axes, series, 5), "second", "x")
    for svg, name in ((first, "first"), (second, "second")):
        values = [value for each, value in Page(svg).attributes if each == "id"]
        assert all(value.startswith(f"{name}-") for value in values)
    assert ("aria-label", 'a "quoted" <name>') in Page(first).attributes
    for text in ("<b>", "one", "two", "recall@5", "bytes per vector"):
        assert text in Page(first).text
    assert "1,000" in Page(second).text


def test_mistakes_are_told_before_the_work(
    place: Path, made: tuple[dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        result = run("eval", "nowhere", NASTY, "q.npy", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    monkeypatch.chdir(place)
    assert fail("--report", "eval.pdf") == "Error: eval.pdf: reports are written as .html\n"
    assert fail("--report", "no/eval.html") == "Error: no is not a directory\n"
    assert "nowhere" in fail("--report", "eval.html")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'compressae-index[plot]'" in fail("--report", "eval.html")
    monkeypatch.setitem(sys.modules, "faiss", None)
    missing = run("eval", "i", NASTY, "q.npy", "--faiss")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "pip install 'compressae-index[faiss]'" in missing.stderr
    assert (place / "eval.html").read_text(encoding="utf-8") == made[1]


@pytest.mark.browser
@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_it_well(
    place: Path, browser: Browser, width: int, scheme: Literal["light", "dark"]
) -> None:
    said: list[str] = []
    asked: list[str] = []
    address = (place / "eval.html").as_uri()
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert page.title() == f"compressae-index on {NASTY}"
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    # A wide table scrolls in its own box; everything else fits.
    right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert page.eval_on_selector_all("main > *, figure, svg, dd, .scroll", right) <= width
    drawn = "all => all.map(one => one.getBoundingClientRect().width)"
    assert min(page.eval_on_selector_all("svg", drawn)) > 0.4 * min(width, 1120)
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    ink, paper = (sum(map(int, re.findall(r"\d+", one)[:3])) for one in page.evaluate(colours))
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 3 * 128
    assert said == []
    assert asked == [address]
    page.close()


@pytest.mark.browser
@pytest.mark.usefixtures("made")
def test_it_prints_in_dark_ink_without_boxes_that_scroll(place: Path, browser: Browser) -> None:
    width = 680  # of A4 between margins, in CSS pixels
    page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme="dark")
    page.goto((place / "eval.html").as_uri())
    page.emulate_media(media="print")
    right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert page.eval_on_selector_all("table, figure, svg", right) <= width
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    assert page.evaluate(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    page.close()
