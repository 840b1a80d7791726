"""Every meta-learner on every choice of features, with base models and rules, and their controls.

An entry is fitted in a process of its own and writes its predictions for the development and test cases
into `compare/<entry>/`. A finished one, by the digest of its settings and of the caches, is kept: an
interrupted comparison continues where it stopped. `leaderboard` turns the predictions into scores.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import Rows
from stacker.comparison.controls import LABELS, MAPS, Control, list_controls, permute_labels, run_control
from stacker.config.learners import RULES
from stacker.config.stacking import StackConfig
from stacker.errors import StackerError
from stacker.files import digest, read_json, write_json
from stacker.progress import bar, duration
from stacker.run import Run, StackName
from stacker.scores.metrics import area_within
from stacker.stacking.admission import open_caches
from stacker.stacking.blocks import resolve
from stacker.stacking.finish import Says
from stacker.stacking.fitting import Design, fit
from stacker.stacking.saved import is_current, load_says, save_stack
from stacker.stacking.stage import baselines, facts_of, identity_of
from stacker.stacking.tables import Caches, Tables

log = logging.getLogger(__name__)
METAS = ("logistic", "svm", "random_forest", "xgboost", "mlp", "convnet")
Task = Callable[[], bool]  # says whether there was anything to do
Costs = Mapping[str, float]  # seconds that tasks are expected to take, 0 where the result is there


@dataclass(frozen=True)
class Entry:
    """One row of the comparison: its name, what kind it is, what it says and what it took.

    `kind` is base (a base model, the constant, the mean), meta, or rule; base has no design.
    """

    name: str
    kind: str
    says: Says
    facts: dict[str, Any]
    design: Design | None = None


@dataclass(frozen=True)
class Comparison:
    """What was compared: entries, the draws of the controls, and why some entries are missing.

    `rows` are those that the entries speak of, of the development and of the test cases. `controls` are
    the draws of each kind, by entry.
    """

    rows: dict[str, Rows]
    entries: list[Entry]
    controls: dict[str, dict[str, list[dict[str, Any]]]]
    failures: dict[str, str]


def compare(run: Run, jobs: int = 0) -> Comparison:
    """Fit what is not fitted yet, in so many processes (0: one per core), and return what all say."""
    config, folder, split = run.config, run.path / "compare", run.folds.label
    frozen, draws = bool(config.frozen), config.stack.compare.permutations
    caches = open_caches(run, frozen=frozen)
    designs, facts = {}, facts_of(run, caches)
    for name, features in grid(config.stack, list(config.cam.maps), frozen=frozen):
        design = Design.of(name, features, config.stack, config.seed, config.device)
        designs[str(design.name)] = design
    fits = {n: partial(_fit, d, caches, folder / slug(n), facts) for n, d in designs.items()}
    to_fit = {n: float(not _is_fitted(d, caches, folder / slug(n))) for n, d in designs.items()}
    failures = _work("compare", fits, to_fit, jobs)
    fitted = {name: design for name, design in designs.items() if name not in failures}
    controls = [control for name, design in fitted.items() for control in list_controls(name, design)]
    files = {c.name: folder / slug(c.entry) / f"{c.kind.replace(' ', '_')}.json" for c in controls}
    nulls = {c.name: partial(_draw, c, caches, draws, files[c.name], split) for c in controls}
    to_draw = {c.name: _seconds(c, caches, draws, files[c.name]) for c in controls}
    if any(to_draw.values()):
        shown = duration(sum(to_draw.values()) / _processes(jobs))
        log.info(
            "controls: %d of %d to fit, about %s", sum(map(bool, to_draw.values())), len(nulls), shown
        )
    failures |= _work("controls", nulls, to_draw, jobs)
    plain = caches.tables(["logits"], config.stack)
    before = baselines(caches, plain, run)
    entries = [Entry(n, "base", says, {"meta": "", "features": []}) for n, says in before.items()]
    entries += [_entry(design, folder) for design in fitted.values()]
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {LABELS: {}, MAPS: {}}
    for control in controls:
        if control.name not in failures:
            answers[control.kind][control.entry] = read_json(files[control.name])["draws"]
    answers[LABELS] |= null_of_plain(before, plain, config.seed, draws)
    tests = next(iter(plain.tests.values()))
    return Comparison(
        {"development": plain.development.rows, "test": tests.rows}, entries, answers, failures
    )


def null_of_plain(
    before: Mapping[str, Says], tables: Tables, seed: int, draws: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the permuted labels of models that need no fit: the same permutations, scored again."""
    areas: dict[str, list[dict[str, Any]]] = {}
    for number in range(draws):
        rng = np.random.default_rng([seed, number])
        labels = permute_labels(tables, rng).development.rows.label
        for name, says in before.items():
            if says.development is not None and name != "constant":
                area = area_within(replace(says.development, labels=labels))
                areas.setdefault(name, []).append({"part": "development", "image": area})
    return areas


def grid(config: StackConfig, maps: Sequence[str], frozen: bool) -> list[tuple[str, list[str]]]:
    """Return meta-learners and feature blocks that go together, the rules last.

    `maps` are the datasets of maps that are cached.
    """
    metas = config.compare.meta or list(dict.fromkeys([*METAS, *config.custom, *config.meta]))
    choices = config.compare.features or _choices(config, maps, frozen)
    entries = [
        (name, features)
        for features in choices
        for name in metas
        if name not in RULES and (name != "convnet" or _has_cells(features, config))
    ]
    if "convnet" in (config.compare.meta or ()) and not any(name == "convnet" for name, _ in entries):
        log.warning("left out: convnet, because no choice of stack.compare.features has cells of maps")
    return [*entries, *((name, ["probabilities"]) for name in ("vote", "best_base"))]


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


def slug(name: str) -> str:
    """Return the name of an entry's folder: that of the stack of the same name."""
    return StackName.parse(name, ()).folder


def _fit(design: Design, caches: Caches, folder: Path, facts: dict[str, Any]) -> bool:
    """Fit one entry; say whether there was anything to do."""
    tables = caches.tables(design.features, design.config)
    identity = identity_of(design, caches, tables)
    if is_current(folder, identity):
        return False
    save_stack(folder, design, fit(design, tables), identity, facts, with_members=False)
    return True


def _is_fitted(design: Design, caches: Caches, folder: Path) -> bool:
    """Say whether an entry is there; where that cannot be said, fitting it will say why."""
    try:
        tables = caches.tables(design.features, design.config)
        return is_current(folder, identity_of(design, caches, tables))
    except StackerError:
        return False


def _draw(control: Control, caches: Caches, draws: int, path: Path, split: str) -> bool:
    """Draw one control; say whether there was anything to do."""
    design = control.design
    tables = caches.tables(design.features, design.config)
    stamp = _stamp(control, caches, tables, draws)
    if _has_stamp(path, stamp):
        return False
    answers = run_control(control, tables, draws)
    write_json(path, {"digest": stamp, "split": split, "draws": answers})
    return True


def _stamp(control: Control, caches: Caches, tables: Tables, draws: int) -> str:
    """Stand for all that decides a control."""
    identity = identity_of(control.design, caches, tables)
    memory = control.design.config.memory_gb  # decides how many cases a control has
    return digest(identity | {"draws": draws, "kind": control.kind, "memory_gb": memory})


def _has_stamp(path: Path, stamp: str) -> bool:
    """Say whether a control is there, and up to date."""
    return path.exists() and bool(read_json(path)["digest"] == stamp)


def _seconds(control: Control, caches: Caches, draws: int, path: Path) -> float:
    """Return what a control will take, going by the fits of its entry; nothing where it is there."""
    design = control.design
    tables = caches.tables(design.features, design.config)
    if _has_stamp(path, _stamp(control, caches, tables, draws)):
        return 0.0
    fitted = read_json(path.with_name("stack.json"))["fit_seconds"]
    parts = len(caches.folds) if len(caches.folds) > 1 else design.config.parts
    return max(1e-3, draws * (parts - 1) * float(fitted) / len(design.seeds))


def _processes(jobs: int) -> int:
    """Return how many processes work at once: one per core unless the user says otherwise."""
    from joblib import cpu_count

    number: int = jobs or cpu_count()  # those that this process may use, on every system
    return number


def _work(what: str, tasks: Mapping[str, Task], costs: Costs, jobs: int) -> dict[str, str]:
    """Do the tasks, the longest first, and say what is left; return why some could not be done.

    The longest come first so that no process is left with one of them while the others have nothing.
    """
    failures, spent, total = {}, 0.0, sum(costs.values())
    rest, paid = total, 0.0
    ordered = {name: tasks[name] for name in sorted(tasks, key=lambda name: -costs[name])}
    with bar(what, len(tasks)) as advance:
        for done, (name, new, problem, seconds) in enumerate(_attempts(ordered, jobs), 1):
            advance(len(tasks) * costs[name] / total if total else 1)
            rest -= costs[name]
            if new:
                spent, paid = spent + seconds, paid + costs[name]
            left = ""
            if paid and done < len(tasks):
                left = f", about {duration(rest * spent / paid / _processes(jobs))} left"
            if problem is not None:
                failures[name] = problem
                log.warning("%s %d of %d: %s: %s", what, done, len(tasks), name, problem)
            else:
                kept = "" if new else ", already there"
                log.info("%s %d of %d: %s%s%s", what, done, len(tasks), name, kept, left)
    return failures


def _attempts(tasks: Mapping[str, Task], jobs: int) -> Iterator[tuple[str, bool, str | None, float]]:
    """Yield what `_attempt` says of the tasks as they are done; each process has one thread."""
    from joblib import Parallel, delayed, parallel_config

    number = _processes(jobs)
    if number == 1:
        yield from (_attempt(name, task) for name, task in tasks.items())
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        work = Parallel(n_jobs=number, return_as="generator_unordered")
        yield from work(delayed(_attempt)(name, task) for name, task in tasks.items())


def _attempt(name: str, task: Task) -> tuple[str, bool, str | None, float]:
    """Do a task; return its name, whether it was new, what a user can fix if it failed, its seconds."""
    started, new, problem = time.perf_counter(), False, None
    try:
        new = task()
    except StackerError as error:
        problem = str(error)
    return name, new, problem, time.perf_counter() - started


def _entry(design: Design, folder: Path) -> Entry:
    name, kind = str(design.name), "rule" if design.meta in RULES else "meta"
    facts = read_json(folder / slug(name) / "stack.json")
    return Entry(name, kind, load_says(folder / slug(name), design.config), facts, design)
