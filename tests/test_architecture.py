"""The house stands as drawn: imports run from floor to floor, and the two halves meet in the cache."""

from __future__ import annotations

import ast
from pathlib import Path

import stacker

PACKAGE = Path(stacker.__file__).parent
FLOORS = (  # a room imports from the floors before its own; rooms of one floor do not know each other
    {"__init__", "errors", "progress"},
    {"files", "config", "scores"},
    {"data", "synthetic"},
    {"run", "backbones"},
    {"caches"},
    {"figures", "maps"},
    {"training", "stacking"},
    {"pipeline", "prediction", "audit", "bench"},
    {"comparison"},
    {"cli", "notebook"},
    {"__main__"},
)
HALVES = (
    {"backbones", "maps", "training"},
    {"stacking"},
)  # torch, scikit-learn: neither imports the other
INNER = ("data/formats", "stacking/learners", "training/tuning")  # a room of a room: see inner_walls


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the stacker modules that a file imports, as paths; those for type checking do not count."""
    tree = ast.parse(path.read_text())
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n)]
    guarded = {id(child) for guard in guards for child in ast.walk(guard)}
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = [n for n in nodes if isinstance(n, ast.ImportFrom) and id(n) not in guarded]
    names = {
        f"{n.module}.{a.name}" if n.module == "stacker" else n.module for n in found for a in n.names
    }
    return {
        str(name).removeprefix("stacker.").replace(".", "/") for name in names if "stacker" in str(name)
    }


def room(path: str) -> str:
    """Return the room, or the single module, that a path below the package is of."""
    return path.split("/", 1)[0].removesuffix(".py")


FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_run_one_way() -> None:
    """A room knows the floors below its own, and the torch half and the scikit-learn half no other."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    floor["__version__"] = 0
    assert {room(name) for name in FILES} == set().union(*FLOORS)
    for name, path in FILES.items():
        here = room(name)
        for other in {room(module) for module in imports(path)} - {here}:
            assert floor[other] < floor[here], f"{name} imports {other}"
            assert not any(here in one and other in two for one, two in (HALVES, HALVES[::-1])), name
