"""The site: built without a warning, complete, and whole without a network."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CONNECTORS = ("faiss", "milvus", "ray")


class Tags(HTMLParser):
    """Links of a page, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` makes it."""
    place = tmp_path_factory.mktemp("site")
    rule = re.search(r"-m sphinx (.*) build/docs$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rule
    command = [sys.executable, "-P", "-m", "sphinx", *rule[1].split(), str(place / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return place / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Tags]:
    return {path: Tags(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there_and_leads_to_it(site: Path, pages: dict[Path, Tags]) -> None:
    sources = [path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    sources += [Path("README.html"), Path("CONTRIBUTING.html"), Path("CHANGELOG.html")]
    assert {site / path for path in sources} <= set(pages)
    linked = {
        (path.parent / unquote(urlsplit(link).path)).resolve()
        for path, page in pages.items()
        for link in page.links
        if not urlsplit(link).scheme
    }
    assert {(site / path).resolve() for path in sources} <= linked


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Tags]) -> None:
    for path, page in pages.items():
        for link in page.links:
            split = urlsplit(link)
            if split.scheme:
                continue
            target = (path.parent / unquote(split.path)).resolve() if split.path else path
            assert target.exists(), (path, link)
            if split.fragment and target in pages and "_static" not in target.parts:
                assert unquote(split.fragment) in pages[target].ids, (path, link)


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Tags]) -> None:
    for path, page in pages.items():
        for load in page.loads:
            assert not urlsplit(load).netloc, (path, load)
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), style


@pytest.mark.parametrize(
    "module", ["compressae_index", *map("compressae_index.connectors.{}".format, CONNECTORS)]
)
def test_public_names_are_in_the_reference(pages: dict[Path, Tags], module: str) -> None:
    described = {name for page in pages.values() for name in page.ids}
    names = [name for name in importlib.import_module(module).__all__ if not name.startswith("__")]
    assert {f"{module}.{name}" for name in names} <= described
    assert "compressae_index.CompressedIndex.build" in described
