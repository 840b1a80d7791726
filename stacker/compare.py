"""Every meta-learner on every choice of features, beside what needs no meta-learner, and the controls.

An entry is fitted in a process of its own and writes what it says of the development and the test cases
into `compare/<entry>/`. One that is there already, by the digest of its settings and of the caches, is
kept: a comparison that was stopped goes on where it stood. `leaderboard` makes scores of the answers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker.admission import open_caches
from stacker.blocks import resolve
from stacker.cache import Rows
from stacker.controls import Control, list_controls, run_control
from stacker.errors import StackerError
from stacker.features import Caches
from stacker.fitting import Design, Says, fit
from stacker.progress import bar
from stacker.run import Run, digest, read_json, write_json
from stacker.settings import RULES, StackConfig
from stacker.stack import baselines, design_of, identity_of
from stacker.stored import is_current, load_says, save_says
from stacker.studies import Study

log = logging.getLogger(__name__)

METAS = ("logistic", "svm", "random_forest", "xgboost", "mlp", "convnet")
Task = Callable[[], bool]  # says whether there was anything to do
Answer = tuple[str, bool, str | None]


@dataclass(frozen=True)
class Entry:
    """One row of the comparison: its name, what kind it is, what it says and what it took.

    `kind` is base (a base model, the constant, the mean), meta, or rule.
    """

    name: str
    kind: str
    says: Says
    facts: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What was compared: entries, the draws of each control, and why some entries are missing.

    `rows` are those that the entries speak of, of the development and of the test cases.
    """

    rows: dict[str, Rows]
    entries: list[Entry]
    controls: dict[str, list[dict[str, Any]]]
    failures: dict[str, str]


def compare(study: Study, jobs: int = 0) -> Comparison:
    """Fit what is not fitted yet, in so many processes (0: one per core), and return what all say."""
    run, config = study.run, study.run.config
    caches = open_caches(run, study.manifest, study.folds, frozen=bool(config.frozen))
    designs = [
        Design.of(name, features, config.stack, config.seed, config.device)
        for name, features in grid(config.stack, list(config.cam.maps), frozen=bool(config.frozen))
    ]
    controls = list_controls(_design_of_controls(run))
    folder, draws = run.path / "compare", config.stack.compare.permutations
    split = study.folds.label
    tasks: dict[str, Task] = {}
    for design in designs:
        tasks[entry_name(design)] = _Fit(design, caches, folder / slug(entry_name(design)), split)
    for control in controls:
        tasks[control.name] = _Draw(control, caches, draws, folder / slug(control.name), split)
    failures = _work(tasks, jobs)
    plain = caches.tables(["logits"], config.stack)
    entries = [
        Entry(name, "base", says, {"meta": "", "features": []})
        for name, says in baselines(caches, plain, run).items()
    ]
    entries += [_entry(design, folder) for design in designs if entry_name(design) not in failures]
    done = {
        control.name: read_json(folder / slug(control.name) / "draws.json")["draws"]
        for control in controls
        if control.name not in failures
    }
    tests = next(iter(plain.tests.values()))
    rows = {"development": plain.development.rows, "test": tests.rows}
    return Comparison(rows, entries, done, failures)


def grid(config: StackConfig, maps: Sequence[str], frozen: bool) -> list[tuple[str, list[str]]]:
    """Return meta-learners and feature blocks that go together, the rules last.

    `maps` are the datasets of maps that are cached.
    """
    metas = config.compare.meta or list(dict.fromkeys([*METAS, *config.custom, *config.meta]))
    choices = config.compare.features or _choices(config, maps, frozen)
    found = [
        (name, features)
        for features in choices
        for name in metas
        if name not in RULES and (name != "convnet" or _has_cells(features, config))
    ]
    if "convnet" in (config.compare.meta or ()) and not any(name == "convnet" for name, _ in found):
        log.warning("convnet: none of stack.compare.features has cells of maps; it is left out")
    return [*found, *((name, ["probabilities"]) for name in ("vote", "best_base"))]


def _choices(config: StackConfig, maps: Sequence[str], frozen: bool) -> list[list[str]]:
    """Return the blocks that are compared where the config does not say, each choice once."""
    choices = [config.features, ["probabilities"], ["logits"], ["map_stats"], ["embeddings"]]
    choices += [[name] for name in maps]
    choices += [["maps", "logits"], ["map_stats", "logits"], ["embeddings", "logits"]]
    if frozen:
        choices += [["frozen"], ["frozen", "logits"]]
    choices += [[name] for name in config.blocks]
    return list({frozenset(names): names for names in reversed(choices)}.values())[::-1]


def _has_cells(features: Sequence[str], config: StackConfig) -> bool:
    """Say whether some columns are cells of maps, without which the convolutional net has no input."""
    blocks = resolve(features, config).values()
    return any(
        b is not None and b.of.startswith("maps") and b.view != "stats" and not b.pca for b in blocks
    )


def entry_name(design: Design) -> str:
    """Return what an entry is called; the rules look at nothing but probabilities."""
    return design.meta if design.meta in RULES else f"{design.meta}: {' + '.join(design.features)}"


def slug(name: str) -> str:
    """Return the name of an entry's folder."""
    return name.replace(": ", "@").replace(" + ", "+").replace(" ", "_")


def _design_of_controls(run: Run) -> Design:
    """Return what the controls are controls of: the run's own stack."""
    learners = [name for name in run.config.stack.meta if name not in RULES]
    return design_of(run, learners[0] if learners else "logistic")


@dataclass(frozen=True)
class _Fit:
    """The task of fitting one entry."""

    design: Design
    caches: Caches
    folder: Path
    split: str

    def __call__(self) -> bool:
        tables = self.caches.tables(self.design.features, self.design.config)
        identity = identity_of(self.design, self.caches, tables)
        if is_current(self.folder, identity):
            return False
        (self.folder / "stack.json").unlink(missing_ok=True)
        fitted = fit(self.design, tables)
        save_says(self.folder, fitted.says)
        facts = {
            "digest": digest(identity),
            **identity,
            "split": self.split,
            "calibrator": fitted.says.finish.calibrator.as_dict(),
            "threshold": fitted.says.finish.threshold,
            "seeds_auc": list(fitted.says.seeds),
            "columns": fitted.columns,
            "fit_seconds": fitted.fit_seconds,
            "predict_seconds": fitted.predict_seconds,
        }
        write_json(self.folder / "stack.json", facts)
        return True


@dataclass(frozen=True)
class _Draw:
    """The task of drawing one control."""

    control: Control
    caches: Caches
    draws: int
    folder: Path
    split: str

    def __call__(self) -> bool:
        tables = self.caches.tables(self.control.design.features, self.control.design.config)
        identity = identity_of(self.control.design, self.caches, tables)
        memory = self.control.design.config.memory_gb  # decides how many cases a control has
        identity |= {"draws": self.draws, "shuffled": self.control.shuffled, "memory_gb": memory}
        path = self.folder / "draws.json"
        if path.exists() and read_json(path)["digest"] == digest(identity):
            return False
        found = run_control(self.control, self.caches, self.draws)
        write_json(path, {"digest": digest(identity), "split": self.split, "draws": found})
        return True


def _work(tasks: dict[str, Task], jobs: int) -> dict[str, str]:
    """Do the tasks, in so many processes (0: one per core); return why some could not be done."""
    failures = {}
    with bar("compare", len(tasks)) as advance:
        for done, (name, fitted, problem) in enumerate(_answers(tasks, jobs), 1):
            advance(1)
            if problem is None:
                kept = "" if fitted else ", there already"
                log.info("compare %d of %d: %s%s", done, len(tasks), name, kept)
            else:
                failures[name] = problem
                log.warning("compare %d of %d: %s: %s", done, len(tasks), name, problem)
    return failures


def _answers(tasks: dict[str, Task], jobs: int) -> Iterator[Answer]:
    """Yield the tasks as they are done; side by side, each process has one thread."""
    number = jobs or len(os.sched_getaffinity(0))
    if number == 1:
        yield from (_attempt(name, task) for name, task in tasks.items())
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        work = Parallel(n_jobs=number, return_as="generator_unordered")
        yield from work(delayed(_attempt)(name, task) for name, task in tasks.items())


def _attempt(name: str, task: Task) -> Answer:
    """Do a task; return its name, whether it was new, and what a user can mend where it failed."""
    try:
        return name, task(), None
    except StackerError as error:
        return name, False, str(error)


def _entry(design: Design, folder: Path) -> Entry:
    name = entry_name(design)
    facts = read_json(folder / slug(name) / "stack.json")
    kind = "rule" if design.meta in RULES else "meta"
    return Entry(name, kind, load_says(folder / slug(name), facts), facts)
