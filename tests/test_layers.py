"""Imports run one way: from what users call down to the ground."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "compressae_index"

# Rooms from the top down. A room may import those of later lines, and nothing of its own line but itself.
FLOORS = (
    ("__main__",),
    ("cli", "testing"),
    ("demo",),
    ("connectors",),
    ("measuring",),
    ("batches",),
    ("index",),
    ("building",),
    ("embedded",),
    ("search", "training"),
    ("coding",),
    ("sources",),
    # The ground: what its modules import of each other is their own affair.
    (
        *("_engine", "arrays", "checks", "conversion", "errors", "ids", "npy", "persistence", "processes"),
        *("progress", "remote", "storage", "terminal"),
    ),
)
GROUND = FLOORS[-1]


def modules() -> Iterator[tuple[Path, str]]:
    """Every file of the package and its name, the connectors under the name they are installed by."""
    for folder, name in ((ROOT / PACKAGE, PACKAGE), (ROOT / "connectors", f"{PACKAGE}.connectors")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield file, ".".join((name, *parts)).removesuffix(".__init__")


NAMES = {name for _, name in modules()} | {f"{PACKAGE}._engine"}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Modules of the package that a file imports, anywhere in it, and the name it takes from each."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in NAMES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == PACKAGE)


def room_of(module: str) -> str:
    return (*module.split("."), "")[1]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_has_a_floor() -> None:
    rooms = {room_of(name) for name in NAMES} - {""}
    assert rooms == {room for floor in FLOORS for room in floor}


@pytest.mark.parametrize(("file", "name"), list(modules()), ids=[name for _, name in modules()])
def test_imports_run_down(file: Path, name: str) -> None:
    room = room_of(name)
    if not room:
        pytest.skip("the package itself shows what is inside")
    for module, taken in imports(file):
        other = room_of(module)
        assert other, f"{name} imports the package itself"
        if other == room or (room in GROUND and other in GROUND):
            continue
        assert floor_of(room) < floor_of(other), f"{name} imports {module}, which is not below it"
        assert not taken.startswith("_"), f"{name} takes the private {taken} of {module}"


def test_torch_is_imported_where_it_is_needed() -> None:
    with_torch = {
        name
        for file, name in modules()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "torch" in {part.split(".")[0] for part in _imported(node)}
    }
    # A GPU index takes tensors where they lie, and others give and take nothing else.
    others = [
        f"{PACKAGE}.connectors.{name}" for name in ("checkpoints", "faiss.gpu", "sentence_transformers")
    ]
    training = [f"{PACKAGE}.training.{name}" for name in ("module", "steps")]
    expected = (*training, f"{PACKAGE}.coding.torch_", *others)
    assert {name for name in with_torch if name.startswith(expected)} == with_torch > set()


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


# Not of this package: named tuples, and two of pymilvus that have no public form.
FOREIGN = {"_replace", "_asdict", "_fields", "_get_connection", "_generate_call_context"}


@pytest.mark.parametrize(("file", "name"), list(modules()), ids=[name for _, name in modules()])
def test_private_attributes_stay_in_their_module(file: Path, name: str) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            reached = not _is_self(node.value) and node.attr not in own | FOREIGN
            assert not reached, f"{name}, line {node.lineno}: {ast.unparse(node)}"


def _is_self(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value) == "super()"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")
