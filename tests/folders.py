"""Saved directories: their files, and that these are all that the manifest names. Code in pages of docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path


def content_of(path: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path from there."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def assert_nothing_stray(path: Path) -> None:
    """Checks that a directory with a data folder holds what its manifest names, and no more."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    named = {f"{manifest['data']}/{name}" for name in manifest["files"]}
    everything = {"manifest.json", manifest["data"], *named}
    assert {str(entry.relative_to(path)) for entry in path.rglob("*")} == everything
    assert set(content_of(path)) == everything - {manifest["data"]}


def block_of(page: str, package: str) -> str:
    """The block of Python in a page that imports a package."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (block,) = (each for each in blocks if re.search(rf"^(from|import) {package}\b", each, re.MULTILINE))
    return str(block)
