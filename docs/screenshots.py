"""Pictures of the pages that the docs show: the demo, and the report of `eval`. Run by `make screenshots`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from compressae_index.demo import load_data
from compressae_index.demo.server import Server, collected

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1100, 900
QUESTION = "volcano"


def main() -> None:
    """Makes all pictures anew, by the Chromium of this machine."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        server = Server(collected(folder, print), 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        report = _report(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"{server.address}?q={QUESTION}")
        page.get_by_text("Why").first.click()
        _picture(page, "demo")
        page.goto(report.as_uri())
        _picture(page, "report")
        browser.close()
        server.shutdown()


def _report(folder: Path) -> Path:
    """The page of `eval` for the demo's index, and its queries."""
    data, page = load_data(), folder / "eval.html"
    np.save(folder / "texts.npy", data.embeddings)
    np.save(folder / "queries.npy", data.queries)
    given = ("index", "texts.npy", "queries.npy", "--report", page.name)
    subprocess.run([sys.executable, "-P", "-m", "compressae_index", "eval", *given], cwd=folder, check=True)
    return page


def _picture(page: Page, name: str) -> None:
    page.screenshot(path=IMAGES / f"{name}.png", scale="css")


if __name__ == "__main__":
    main()
