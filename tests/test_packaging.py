"""The installed package holds what the checkout promises."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from compressae_index import MissingExtraError
from compressae_index.demo import load_data

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
    for name in ("py.typed", "data/evaluation.html", "data/demo.html", *wordnet):
        assert (INSTALLED / name).is_file()
    assert not (INSTALLED / "csrc").exists()


def test_the_data_are_the_same_everywhere() -> None:
    """Figures of the docs are of these rows."""
    data = load_data()
    rows = np.concatenate([data.embeddings, data.queries])
    assert rows.shape == (20_000, 384)
    assert rows.dtype == np.float32
    assert len(data.texts) == 19_000
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    digest = "dd4f863daa9d377858692073460f19f46d1cc8fc639970fac51a6057e63a8f3e"
    assert hashlib.sha256(rows.astype("<f2").tobytes()).hexdigest() == digest
    shipped = [path for path in (INSTALLED / "data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) < 3_500_000


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a checkout without git gives, by the names of files."""
    place = tmp_path_factory.mktemp("sdist")
    builder = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    env = os.environ | {"GIT_DIR": str(place / "nowhere")}
    subprocess.run([sys.executable, "-P", "-c", builder, str(place)], cwd=ROOT, env=env, check=True)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.isfile()]
        return {name.name.partition("/")[2]: opened.extractfile(name).read() for name in members}  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_sdist_is_the_checkout(sdist: dict[str, bytes]) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    hidden = re.compile(r"(^|/)\.")
    kept = {name for name in listed.stdout.split("\0") if name and not hidden.search(name)}
    assert {name for name in kept if (ROOT / name).exists()} - set(sdist) == set()
    assert {name for name in sdist if name.endswith((".so", ".pyc", ".whl"))} == set()
    assert not any(name.startswith(("build/", ".venv/", "dist/", "demo-output/")) for name in sdist)


@pytest.mark.slow
def test_links_of_the_readme_work_where_it_is_alone(sdist: dict[str, bytes]) -> None:
    told = sdist["PKG-INFO"].decode()
    headers, _, text = told.partition("\n\n")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all("/raw/" in picture and picture.endswith(".png") for picture in pictures)
    for label in ("Homepage", "Documentation", "Source", "Changelog", "Issues"):
        assert f"Project-URL: {label}, https://" in headers


def test_versions_and_addresses_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["version"]) == ("1.2.0", project["project"]["version"])
    assert project["tool"]["scikit-build"]["wheel"]["py-api"] == "cp312"
    home = project["project"]["urls"]["Homepage"]
    assert all(url.startswith(home) for url in project["project"]["urls"].values())
    readme = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert all(home in each["replacement"] for each in readme["substitutions"])


def test_the_smoke_test_of_wheels_passes() -> None:
    subprocess.run([sys.executable, "-P", str(ROOT / "tests" / "smoke.py")], check=True)


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
