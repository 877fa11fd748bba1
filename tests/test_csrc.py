"""The engine's rooms: includes run one way, and only the bindings know Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "compressae_index" / "csrc"
MAY_INCLUDE = {
    "base": {"base"},
    "kernels": {"base", "kernels"},
    "dictionary": {"base", "kernels", "dictionary"},
    "codes": {"base", "kernels", "codes"},
    "lists": {"base", "kernels", "lists"},
    "search": {"base", "kernels", "codes", "lists", "search"},
    "bindings": {"base", "kernels", "codes", "dictionary", "lists", "search", "bindings"},
}


@pytest.mark.parametrize("room", sorted(path.name for path in CSRC.iterdir() if path.is_dir()))
def test_includes_run_one_way(room: str) -> None:
    sources = [path for path in (CSRC / room).iterdir() if path.suffix in (".hpp", ".cpp")]
    assert sources
    for path in sources:
        text = path.read_text()
        included = {CSRC / name for name in re.findall(r'#include "(.+)"', text)}
        assert all(each.is_file() for each in included), path
        assert {each.parent.name for each in included} <= MAY_INCLUDE[room], path
        assert room == "bindings" or ("Python.h" not in text and "nanobind" not in text), path
