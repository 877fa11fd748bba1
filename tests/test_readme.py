"""README and docs tell the truth: their Python and their commands run, and no command is left out."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from compressae_index import CompressedIndex, demo, errors
from compressae_index.cli import main
from compressae_index.demo import DemoData

pytestmark = pytest.mark.usefixtures("no_naps")

ROOT = Path(__file__).parent.parent
# In the order of their sessions: the README makes the index that the pages load, training the model.
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("training", "search", "explain", "living", "budgets", "data", "scale-out", "how-it-works"),
            *("frameworks", "milvus", "faiss", "exports", "ecosystem"),
            *("command-line", "errors", "benchmarks"),
            *("index", "how-to", "when-not", "project"),
            *("tutorials/index", "tutorials/items-to-items", "tutorials/search-with-texts"),
            *("tutorials/milvus-beside", "tutorials/a-billion"),
        )
    ),
]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
EVERYTHING = "\n".join(TEXTS.values())
DOCUMENTS = [
    *(*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"),
    *("benchmarks/README.md", "benchmarks/results/README.md"),
    *("benchmarks/ann_benchmarks/README.md", "benchmarks/vibe/README.md"),
]
FOLDERS = ("compressae_index", "connectors", "tests")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


CONSOLE = [
    shlex.split(line.removeprefix("$ "))
    for block in blocks(EVERYTHING, "console")
    for line in block.splitlines()
    if line.startswith("$ ")
]
OURS = [words[1:] for words in CONSOLE if words[0] == "compressae-index"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
    monkeypatch.setattr("compressae_index.building.planning.RANKED", 20)
    return tmp_path


def test_every_page_is_tested() -> None:
    docs = ROOT / "docs"
    assert sorted(PAGES[1:]) == sorted(path.relative_to(ROOT).as_posix() for path in docs.rglob("*.md"))
    for page in PAGES[1:]:
        assert f"]({page}" in README or f"]({page.removeprefix('docs/')}" in TEXTS["docs/index.md"], page


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page: str) -> None:
    opened = re.findall(r"^```(\w*)$", TEXTS[page], flags=re.MULTILINE)[::2]
    assert set(opened) <= {"console", "python", ""}
    for block in blocks(TEXTS[page], "console"):
        assert all(line.startswith("$ ") for line in block.splitlines())


def test_commands_are_those_that_are_tested() -> None:
    assert {words[0] for words in CONSOLE} == {"make", "pip", "compressae-index"}


@pytest.mark.parametrize("document", ["README.md", *PAGES[1:], "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_fit_a_screen(document: str) -> None:
    """Rows of tables cannot be broken."""
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        assert line.startswith("|") or len(line) <= 120, line


def make_items(demo_data: DemoData) -> None:
    """The collection of Milvus Lite that docs/milvus.md imports."""
    from pymilvus import DataType

    from compressae_index.connectors.milvus import connect

    client = connect("items.db")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=demo_data.embeddings.shape[1])
    schema.add_field("price", DataType.FLOAT)
    params = client.prepare_index_params()
    params.add_index("embedding", index_type="FLAT", metric_type="COSINE")
    client.create_collection("items", schema=schema, index_params=params)
    rows = [
        {"id": i, "embedding": row, "price": float(i)} for i, row in enumerate(demo_data.embeddings[:150])
    ]
    client.insert("items", rows)
    client.close()


# What the Python of a page leaves behind.
MADE = {
    "README.md": {"texts.index"},
    "docs/training.md": {"texts.model", "training.checkpoint"},
    "docs/explain.md": {"labelled.index"},
    "docs/budgets.md": {"texts.npy", "exact.index"},
    "docs/data.md": {"texts.codes"},
    "docs/scale-out.md": {
        *("texts-codes.model", "vectors.parquet", "codes.parquet", "codes-datasets.parquet"),
        *("datasets-cache", "texts.shard-0", "texts.shard-1"),
    },
    "docs/living.md": {"recoded.index"},
    "docs/frameworks.md": {"notes.store", "documents.store", "notes.db", "notes.texts"},
    "docs/faiss.md": {"texts.faiss-index", "texts.faiss"},
    "docs/exports.md": {"texts.vsag", "texts.seismic"},
    "docs/ecosystem.md": {"uncentred.pt"},
    "docs/tutorials/items-to-items.md": {"shop.index"},
    "docs/tutorials/search-with-texts.md": {"glosses.index"},
    "docs/tutorials/milvus-beside.md": {"shop.db"},
}


@pytest.fixture(scope="module")
def session(demo_data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the README's Python ran, with few of the texts and queries."""
    few = DemoData(
        demo_data.embeddings[:600],
        demo_data.queries[:200],
        demo_data.texts[:600],
        demo_data.query_texts[:200],
    )
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "load_data", lambda: few)
        patched.setattr("compressae_index.index.CALIBRATED_ROWS", 100)
        patched.setattr("compressae_index.building.planning.RANKED", 20)
        patched.chdir(folder)
        make_items(demo_data)
        with redirect_stdout(StringIO()) as shown:
            run_page("README.md", folder)
        assert "->" in shown.getvalue()
        yield folder


# Blocks with these are run by the tests of their connectors, beside engines, servers and embedders.
ENGINES = re.compile(
    r"^(from|import) (ray|pyspark|daft|psycopg|sentence_transformers|mteb"
    r"|compressae_index\.connectors\.(ray|hub))\b",
    re.MULTILINE,
)


def run_page(page: str, folder: Path) -> None:
    """Runs the Python of a page, block after block, with nothing of other pages but their files."""
    before = set(folder.iterdir())
    names: dict[str, object] = {}
    for block in blocks(TEXTS[page], "python"):
        if ENGINES.search(block):
            continue
        exec(compile(block, page, "exec"), names)
    assert {path.name for path in set(folder.iterdir()) - before} == MADE.get(page, set())


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(TEXTS[page], "python")])
def test_the_python_of_a_page_runs(session: Path, page: str) -> None:
    run_page(page, session)


def test_the_sessions_on_the_command_line_run(place: Path, demo_data: DemoData) -> None:
    np.save("embeddings.npy", demo_data.embeddings[:300])
    np.save("queries.npy", demo_data.queries[:20])
    make_items(demo_data)
    Path("ids.txt").write_text("".join(f"item-{i}\n" for i in range(300)))
    Path("texts.txt").write_text("".join(f"{text}\n" for text in demo_data.texts[:300]))
    Path("shards").mkdir()
    for i in range(3):
        np.save(f"shards/{i}.npy", demo_data.embeddings[i * 100 : i * 100 + 100])
    for words in OURS:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
    assert {"found.npz", "queries.npz", "eval.html"} <= {path.name for path in place.iterdir()}
    for name in ("items.index", "encoded.index"):
        assert CompressedIndex.load(name).ids.tolist() == [f"item-{i}" for i in range(300)]


def test_no_block_replaces_what_another_made() -> None:
    written = [words[i + 1] for words in OURS for i, word in enumerate(words) if word in ("-o", "--report")]
    written += [
        name
        for block in blocks(EVERYTHING, "python")
        for name in re.findall(r'(?:save|encode_to_directory)\(.*"(.*)"\)', block)
    ]
    assert len(written) > 10
    assert sorted(written) == sorted(set(written))


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_and_their_options_are_in_the_help(words: list[str]) -> None:
    command: click.Command = main
    names, rest = [], list(words)
    while isinstance(command, click.Group):
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    shown = CliRunner().invoke(main, [*names, "--help"])
    assert shown.exit_code == 0
    for word in rest:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s/]){re.escape(word)}\b", shown.output), word


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_named(name: str) -> None:
    assert re.search(rf"compressae-index {name}\b", EVERYTHING)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", EVERYTHING))))
def test_options_named_in_sentences_exist(option: str) -> None:
    with click.Context(main, **main.context_settings) as context:
        known = {name for command in main.commands.values() for name in _options(command, context)}
    assert option in known


def _options(command: click.Command, context: click.Context) -> list[str]:
    if isinstance(command, click.Group):
        return [name for inner in command.commands.values() for name in _options(inner, context)]
    return [
        name
        for parameter in command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_targets_exist(document: str) -> None:
    targets = re.findall(r"(?:`|\$ )make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_checkout_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.resolve().is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_files_that_contributing_names_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where things are")[1]
    named = set(re.findall(r"`([\w/.]+\.(?:py|pyi|hpp|cpp|toml|txt|md))`", text)) - {"csrc/README.md"}
    assert len(named) > 40
    for name in named:
        assert any(path.is_file() for path in ROOT.glob(name)) or any(
            path.match(name) for folder in FOLDERS for path in (ROOT / folder).rglob(Path(name).name)
        ), name


def anchors(document: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    cells = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| [^|]+ \|$", README, flags=re.MULTILINE)
    table = [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]
    assert [name for name in table if name in extras] == [
        name for name in extras if name not in ("docs", "dev")
    ]


def test_results_are_the_table_of_the_demo() -> None:
    block = TEXTS["docs/benchmarks.md"].split("<!-- results -->")[1].split("<!-- /results -->")[0]
    names = re.findall(r"^\| (\S[^|]*?) +\|", block, flags=re.MULTILINE)
    for name in ("exact float32", "sparse", "dense", "two_stage"):
        assert name in names


def test_every_error_is_explained() -> None:
    listed = re.findall(r"^\| `(\w+Error)`", TEXTS["docs/errors.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(errors.__all__) - {"CompressaeError"})
