"""The house stands as drawn: imports run one way, and the two halves meet in the cache alone."""

from __future__ import annotations

import ast
from pathlib import Path

import stacker

PACKAGE = Path(stacker.__file__).parent
ORDER = (  # every module imports only from modules above it
    *("__init__", "errors", "recipe", "settings", "config", "configfile", "run", "progress"),
    *("tissue", "lesions", "synthetic", "manifest", "breakhis", "pcam", "tables", "readers"),
    *("images", "pixels", "store", "assignment", "folds"),
    *("ranking", "predictions", "metrics", "influence", "bootstrap", "significance", "multiplicity"),
    *("calibration", "grouping", "matrix"),
    *("findings", "census", "fingerprints", "copies", "shortcuts", "audit"),
    *("devices", "alexnet", "weights", "cut", "backbone", "checkpoint", "layers", "optimize", "losses"),
    *("studies", "augment", "batches", "validation", "snapshot", "finetune"),
    *("formulas", "perturb", "cam", "cache", "cache_writer", "unseen", "extract"),
    *("heatmaps", "figures", "data_figures", "curves", "watch", "jobs", "targets", "caching"),
    *("export", "tune_space", "tune_score", "tune_figures", "tune"),
    *("blocks", "features", "admission", "preparation"),
    *("weighing", "rules", "estimators", "svm", "custom", "boosting", "networks", "mlp", "convnet"),
    *("finish", "meta", "fitting", "stored", "novelty", "predictions_csv", "stack"),
    *("controls", "compare", "leaderboard", "compare_figures"),
    *(
        "inspection",
        "cache_export",
        "verify",
        "inputs",
        "overlays",
        "outputs",
        "tally",
        "ensemble",
        "needs",
        "predict",
        "card",
        "unpack",
        "pack",
        "probe",
        "pipeline",
    ),
    *("inflation",),
    *("report", "check"),
    *("bench", "bench_train", "bench_costs", "bench_peers"),
    *("bench_setup", "bench_cache", "bench_maps", "bench_compression", "bench_table", "bench_stack"),
    *("terminal", "boards", "demo"),
    *("command", "cli_data", "cli_cache", "cli_bench", "cli_models", "cli_train"),
    *("cli_compare", "cli_predict", "cli", "__main__"),
)
TORCH_HALF = {
    *("devices", "alexnet", "weights", "cut", "backbone", "checkpoint", "layers", "optimize", "losses"),
    *("augment", "batches", "validation", "snapshot", "finetune", "watch", "jobs"),
    *("formulas", "perturb", "cam", "extract", "targets", "caching", "ensemble"),
    *("export", "tune_space", "tune_score", "tune"),
}
SKLEARN_HALF = {
    *("matrix", "grouping", "blocks", "features", "admission", "preparation"),
    *("weighing", "rules", "estimators", "svm", "custom", "boosting", "networks", "mlp", "convnet"),
    *("finish", "meta", "fitting", "stored", "novelty", "predictions_csv", "stack"),
    *("controls", "compare", "leaderboard"),
}


def imports(module: str, top_level_only: bool = False) -> set[str]:
    """Return the stacker modules that a module imports, those for type checking left out."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = list(tree.body if top_level_only else ast.walk(tree))
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and id(node) not in guarded and node.module:
            if node.module == "stacker":
                found |= {a.name for a in node.names if (PACKAGE / f"{a.name}.py").exists()}
            elif node.module.startswith("stacker."):
                found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_place() -> None:
    """A new module is given a place in the order."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ORDER)


def test_imports_run_one_way() -> None:
    """Data flows from the manifest to the stack, and so do the imports."""
    for position, module in enumerate(ORDER):
        later = imports(module) & set(ORDER[position:])
        assert not later, f"{module} imports {later}"


def test_the_halves_do_not_import_each_other() -> None:
    """The torch half writes the cache, the scikit-learn half reads it."""
    for module in TORCH_HALF:
        assert not imports(module) & SKLEARN_HALF
    for module in SKLEARN_HALF:
        assert not imports(module) & TORCH_HALF


def test_commands_import_nothing_at_the_top() -> None:
    """Only each other and the errors: everything else is imported inside a command."""
    commands = {"command", "cli_data", "cli_cache", "cli_bench", "cli_models", "cli_train"}
    commands |= {"cli_compare", "cli_predict"}
    for module in (*commands, "cli"):
        assert imports(module, top_level_only=True) <= {"errors", *commands}


def test_nothing_prints_but_the_command_line() -> None:
    """Modules return values and log."""
    for path in PACKAGE.glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


def test_modules_are_short_enough_to_read() -> None:
    """No module grows beyond what fits in a head."""
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
