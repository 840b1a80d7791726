"""The runs of a folder: of which data each is, how far it is, and what it came to.

Only small files are read (config.yaml, run.json, metrics.json, stack.json, leaderboard.json), so that
many runs are listed in a moment. What is out of date is called so: scores are of the base models and
stacks that were there when they were made.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker.config.root import Config
from stacker.errors import RunError, StackerError, plural
from stacker.files import read_json
from stacker.run import FROZEN, Run, open_run


@dataclass(frozen=True)
class Best:
    """The best model of a run by its development score, out of fold; `score` says what that is."""

    name: str
    value: float
    score: str


@dataclass(frozen=True)
class Overview:
    """What one run is about and how far it is; `problem` says why nothing else is known of it.

    `cases` is None where cases are not known. `base_models` and `caches` are those that are there, of
    `planned` ones. `notes` say what is out of date, and what is there but ignored.
    """

    run: str
    path: str
    problem: str = ""
    data: str = ""
    images: int | None = None
    cases: int | None = None
    protocol: str = ""
    backbones: tuple[str, ...] = ()
    planned: int = 0
    base_models: int = 0
    caches: int = 0
    stacks: tuple[str, ...] = ()
    compared: bool = False
    best: Best | None = None
    notes: tuple[str, ...] = ()


def list_runs(folder: Path) -> list[Overview]:
    """Return the runs in a folder, or the one that it is itself; raise RunError where there is none."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder", "give the one that the runs are in, e.g. artifacts")
    own = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if _is_run(path))
    return [look(path) for path in own]


def _is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in ("run.json", "config.yaml"))


def look(path: Path) -> Overview:
    """Return what is known of one run, or why nothing is."""
    if not (path / "manifest.csv").exists():
        return Overview(path.name, str(path), "its data is not read yet: run 'stacker train CONFIG'")
    try:
        run = open_run(path)
        metrics = _read(path / "metrics.json")
        board = _read(path / "compare" / "leaderboard.json")
    except StackerError as error:
        return Overview(path.name, str(path), error.what)
    images, cases = _counts(run)
    planned = run.planned()
    stacks = sorted(file.parent.name for file in path.glob("stack/*/stack.json"))
    return Overview(
        run=path.name,
        path=str(path),
        data=run.config.data.format,
        images=images,
        cases=cases,
        protocol=_protocol(run.config),
        backbones=tuple(run.config.backbones),
        planned=len(planned),
        base_models=len([base for base in run.kept_models() if base in planned]),
        caches=len([base for base in run.kept_caches() if base in planned]),
        stacks=tuple(stacks),
        compared=bool(board),
        best=_best(metrics, board),
        notes=tuple(_notes(run, metrics, board)),
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON file's content, nothing where there is none; raise RunError for a damaged one."""
    if not path.exists():
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError):
        raise RunError(f"{path} cannot be read") from None


def _counts(run: Run) -> tuple[int, int | None]:
    """Return how many images and cases a run has, from its logbook or else from its manifest."""
    book = _read(run.path / "run.json").get("data")
    if book is None:
        with run.manifest_file.open(newline="", encoding="utf-8") as file:
            cases = [row.get("case", "") for row in csv.DictReader(file)]
        book = {"images": len(cases), "cases": len(set(cases)) if all(cases) else None}
    return book["images"], book["cases"]


def _protocol(config: Config) -> str:
    folds = config.folds
    how = f"crossfit, {folds.k} folds" if folds.protocol == "crossfit" else "holdout"
    return f"{how}, by {folds.group}{'' if folds.group == 'case' else ' (leaks across cases)'}"


def _best(metrics: Mapping[str, Any], board: Mapping[str, Any]) -> Best | None:
    """Return the model with the best AUC by image on the development cases, of run and comparison."""
    areas = {
        name: scores["image"]["auc"]
        for name, scores in metrics.get("development", {}).items()
        if name != "constant"
    }
    for row in board.get("rows", []):
        if (row["part"], row["subset"]) == ("development", "all") and row["model"] != "constant":
            areas.setdefault(row["model"], row["image_auc"])
    known = {name: area for name, area in areas.items() if area is not None}
    if not known:
        return None
    name = max(known, key=lambda each: known[each])
    return Best(name, known[name], "AUC by image, out of fold")


def _notes(run: Run, metrics: Mapping[str, Any], board: Mapping[str, Any]) -> list[str]:
    """Return what is out of date, and what is ignored."""
    wanted = {str(base) for base in run.planned()}
    notes = [
        f"{what} was computed with other base models than the config lists: run '{again}'"
        for what, found, again in (
            ("metrics.json", metrics, f"stacker run {run.path}/config.yaml"),
            ("compare/", board, f"stacker compare {run.path}"),
        )
        if found and {n for n in found.get("base_models", wanted) if not n.endswith(FROZEN)} != wanted
    ]
    if not notes and not all(run.has_scored(label, metrics) for label in metrics.get("stacks", {})):
        again = f"stacker stack {run.path}/config.yaml"
        notes.append(f"metrics.json does not match the stacks of this run: run '{again}'")
    on_disk = {file.parent.parent.name for file in run.path.glob("models/*/*/model.safetensors")}
    idle = sorted(on_disk - set(run.config.backbones) - set(run.config.frozen))
    return notes + [f"models/{name} is ignored: it is not in the config" for name in idle]


def state(overview: Overview) -> str:
    """Say in a line how far a run is."""
    of = f" of {overview.planned}"
    done = [f"trained {overview.base_models}{of}", f"cached {overview.caches}{of}"]
    done += [plural(len(overview.stacks), "stack")] if overview.stacks else []
    return ", ".join([*done, *(["compared"] if overview.compared else [])])
