"""The house stands as drawn: imports run from floor to floor, and the two halves meet in the cache."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stacker

PACKAGE = Path(stacker.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
FLOORS = (  # a room imports from the floors before its own; rooms of one floor do not know each other
    {"__init__", "errors", "progress"},
    {"files", "config", "scores"},
    {"data", "synthetic"},
    {"run", "backbones"},
    {"caches", "overview"},
    {"figures", "maps"},
    {"training", "stacking"},
    {"pipeline", "prediction", "audit", "bench"},
    {"comparison"},
    {"cli", "notebook"},
    {"__main__"},
)
# torch and scikit-learn: neither imports the other
HALVES = {"backbones", "maps", "training"}, {"stacking"}
INNER = {  # what a room within a room may know of the room around it
    "data/formats": {"data/images", "data/manifest"},
    "stacking/learners": set[str](),
}
LINES = 350


def imports(file: Path, top_level_only: bool = False) -> Iterator[str]:
    """Yield the modules of stacker that a file imports, as paths, but not those for type checking."""
    tree = ast.parse(file.read_text())
    guards = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECK" in ast.unparse(n.test))
    guarded = {id(child) for guard in guards for child in ast.walk(guard)}
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in guarded:
            for name in node.names:
                path = f"{node.module}.{name.name}" if node.module == "stacker" else str(node.module)
                if path.startswith("stacker."):
                    yield path[8:].replace(".", "/").replace("__version__", "__init__")


def room_of(path: str) -> str:
    """Return the room that a file is of, or the file's own name where it lies in none."""
    return path.split("/", 1)[0].removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    """A new room is given its place."""
    assert {room_of(name) for name in FILES} == set().union(*FLOORS)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    """A room knows the floors below its own, and neither half the other."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = room_of(name)
    for other in {room_of(module) for module in imports(FILES[name])} - {room}:
        assert floor[other] < floor[room], f"{name} imports {other}"
        assert not any(room in one and other in two for one, two in (HALVES, HALVES[::-1])), name


def test_inner_rooms_know_little_of_the_room_around_them() -> None:
    """Formats are added, and meta-learners, without a look at the rest; training does not tune."""
    for inner, known in INNER.items():
        for name in (name for name in FILES if name.startswith(inner)):
            outer = {module for module in imports(FILES[name]) if room_of(module) == room_of(inner)}
            assert all(module.startswith(inner) for module in outer - known), name
    for name in (name for name in FILES if name.startswith("training/") and "/tuning/" not in name):
        assert not any(module.startswith("training/tuning") for module in imports(FILES[name])), name


@pytest.mark.parametrize("name", FILES)
def test_models_come_from_the_zoo(name: str) -> None:
    """One file imports timm and torchvision: imported elsewhere first, they load torch's compiler."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    assert name == "backbones/zoo.py" or not found & {"timm", "torchvision"}


def test_commands_import_nothing_at_the_top() -> None:
    """Only each other and the errors, so that --help is fast; who prints a table imports it then."""
    for name in (name for name in FILES if name.startswith("cli/") and "/tables/" not in name):
        modules = set(imports(FILES[name], top_level_only=True)) - {"errors", "__init__"}
        assert all(module.startswith("cli/") and "/tables/" not in module for module in modules), name


@pytest.mark.parametrize("name", FILES)
def test_nothing_prints_but_the_command_line(name: str) -> None:
    """Modules return values and log."""
    calls = [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short_enough_to_read(name: str) -> None:
    """A file tells one story."""
    assert len(FILES[name].read_text().splitlines()) <= LINES


def test_rooms_are_small_enough_to_walk_through() -> None:
    """A dozen files at most."""
    for folder in {file.parent for file in FILES.values()} - {PACKAGE}:
        assert len([file for file in folder.glob("*.py") if file.stem != "__init__"]) <= 12, folder


def test_tests_mirror_the_rooms() -> None:
    """Who changes a file finds its tests in a room of that name; no test imports what is private."""
    rooms = {room_of(name) for name in FILES if "/" in name}
    tests = Path(__file__).parent
    assert {path.name for path in tests.iterdir() if (path / "__init__.py").exists()} == rooms | {
        "docs",
        "gpu",
        "packaging",
    }
    for file in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):  # what is patched by name
                assert re.fullmatch(r"stacker(\.\w+)*\._\w+", node.value) is None, (
                    f"{file}: {node.value}"
                )
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stacker"):
                assert not any(n.name.startswith("_") and n.name != "__version__" for n in node.names), (
                    f"{file}: {node.module}"
                )
