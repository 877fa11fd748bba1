"""The installed package holds what the checkout promises."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from compressae_index import MissingExtraError

ROOT = Path(__file__).parent.parent
INSTALLED = Path(str(files("compressae_index")))

CONNECTORS = sorted(path.relative_to(ROOT / "connectors") for path in (ROOT / "connectors").rglob("*.py"))


def test_the_installed_package_is_tested() -> None:
    assert not INSTALLED.is_relative_to(ROOT / "compressae_index")


@pytest.mark.parametrize("path", CONNECTORS, ids=str)
def test_connectors_are_installed(path: Path) -> None:
    assert (INSTALLED / "connectors" / path).read_bytes() == (ROOT / "connectors" / path).read_bytes()
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    try:
        module = importlib.import_module(".".join(["compressae_index.connectors", *parts]))
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert module.__file__ == str(INSTALLED / "connectors" / path)


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("pymilvus", "milvus", "milvus"),
        ("langchain_core", "langchain", "langchain"),
        ("llama_index", "llamaindex", "llamaindex"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_missing_package_is_named(package: str, module: str, extra: str) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None
from compressae_index import MissingExtraError
try:
    import compressae_index.connectors.{module}
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"run: pip install 'compressae-index[{extra}]'")


def test_what_is_shipped_and_what_is_not() -> None:
    wordnet = [f"data/wordnet/{name}" for name in ("LICENSE", "embeddings.npz", "texts.txt.xz")]
    for name in ("py.typed", "data/evaluation.html", *wordnet):
        assert (INSTALLED / name).is_file()
    assert not (INSTALLED / "csrc").exists()


def test_the_stub_is_what_the_built_engine_gives(tmp_path: Path) -> None:
    """If not: make stub."""
    stubgen = ["-m", "nanobind.stubgen", "-m", "compressae_index._engine", "-o", "_engine.pyi", "-q"]
    # In a folder without sources, which stubgen would import instead.
    subprocess.run([sys.executable, "-P", *stubgen], cwd=tmp_path, check=True)
    ruff = ["-m", "ruff", "format", "--quiet", "--config", str(ROOT / "pyproject.toml"), "_engine.pyi"]
    subprocess.run([sys.executable, "-P", *ruff], cwd=tmp_path, check=True)
    generated = (tmp_path / "_engine.pyi").read_text()
    assert (INSTALLED / "_engine.pyi").read_text() == generated
    assert "class InvertedLists:" in generated
