"""The site, by `make docs`. Paths begin at the checkout: its sources are the pages that a forge shows."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "compressae-index"
author = "The compressae-index developers"
copyright = author  # noqa: A001
version = release = version_of("compressae-index")

# The pages below each page, in order. Here, as a forge would show directives in pages as code.
# Pages of docs/ that no line names come below "docs/how-to".
NAVIGATION = {
    "docs/index": [
        *("docs/tutorials/index", "docs/how-to", "docs/reference/index"),
        *("docs/when-not", "docs/benchmarks", "docs/project"),
    ],
    "docs/tutorials/index": [
        *("docs/tutorials/items-to-items", "docs/tutorials/search-with-texts"),
        *("docs/tutorials/milvus-beside", "docs/tutorials/a-billion"),
    ],
    "docs/how-to": [
        *(
            "docs/search",
            "docs/explain",
            "docs/living",
            "docs/budgets",
            "docs/data",
            "docs/training",
            "docs/milvus",
            "docs/faiss",
        ),
        *("docs/scale-out", "docs/frameworks", "docs/exports", "docs/ecosystem"),
        *("docs/command-line", "docs/errors", "docs/how-it-works"),
    ],
    "docs/reference/index": [
        f"docs/reference/{name}"
        for name in (
            *("indexes", "model", "measuring", "sources", "faiss", "milvus", "ray", "extending", "errors"),
        )
    ],
    "docs/project": [
        *("README", "CONTRIBUTING", "CHANGELOG", "benchmarks/README", "benchmarks/results/README"),
        *("benchmarks/ann_benchmarks/README", "benchmarks/vibe/README"),
        *("compressae_index/csrc/README", "compressae_index/csrc/kernels/README"),
    ],
}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", *(f"{name}.md" for name in NAVIGATION["docs/project"])]
exclude_patterns = [".*", "build", "docs/site", "**/__pycache__"]

myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "description"
autodoc_type_aliases = {
    name: name for name in ("BoolArray", "FloatArray", "IdArray", "RowArray", "VectorSource")
}
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = project
html_extra_path = ["site"]  # index.html, which leads to the front page
html_show_sourcelink = html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Ends a page with the pages below it."""
    below = NAVIGATION.get(name, [])
    if name == "docs/how-to":
        named = {page for pages in NAVIGATION.values() for page in pages} | {root_doc}
        below = [*below, *sorted(page for page in app.env.found_docs if page not in named)]
    if not below:
        return
    lines = "".join(f"/{page}\n" for page in below)
    if PurePosixPath(app.env.doc2path(name)).suffix == ".md":
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n\n{lines}```\n"
    else:
        indented = "".join(f"   /{page}\n" for page in below)
        source[0] += f"\n\n.. toctree::\n   :hidden:\n\n{indented}"


def escape(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: |x| and object_ mean nothing else."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def mend(_app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """What stands before a colon in the docstring of an attribute is no type, as Napoleon believes."""
    types = [line for line in lines if line.startswith(":type: ")]
    if what in ("attribute", "property") and types:
        lines.remove(types[0])
        lines[0] = f"{types[0].removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", mend, priority=600)
