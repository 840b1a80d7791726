"""Every meta-learner on every choice of features, beside what needs no meta-learner, and the controls.

An entry is fitted in a process of its own and writes what it says of the development and the test cases
into `compare/<entry>/`. One that is there already, by the digest of its settings and of the caches, is
kept: a comparison that was stopped goes on where it stood. `leaderboard` makes scores of the answers.
"""

from __future__ import annotations

import logging
import os
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
from stacker.progress import bar
from stacker.run import Run
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
        designs[entry_name(design)] = design
    fits = {n: partial(_fit, d, caches, folder / slug(n), facts) for n, d in designs.items()}
    failures = _work("compare", fits, jobs)
    fitted = {name: design for name, design in designs.items() if name not in failures}
    controls = [control for name, design in fitted.items() for control in list_controls(name, design)]
    files = {c.name: folder / slug(c.entry) / f"{slug(c.kind)}.json" for c in controls}
    nulls = {c.name: partial(_draw, c, caches, draws, files[c.name], split) for c in controls}
    failures |= _work("controls", nulls, jobs)
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
        log.warning("convnet: none of stack.compare.features has cells of maps; it is left out")
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


def entry_name(design: Design) -> str:
    """Return what an entry is called: as the stack of the same design."""
    return str(design.name)


def slug(name: str) -> str:
    """Return the name of an entry's folder."""
    return name.replace(": ", "@").replace(" + ", "+").replace(" ", "_")


def _fit(design: Design, caches: Caches, folder: Path, facts: dict[str, Any]) -> bool:
    """Fit one entry; say whether there was anything to do."""
    tables = caches.tables(design.features, design.config)
    identity = identity_of(design, caches, tables)
    if is_current(folder, identity):
        return False
    save_stack(folder, design, fit(design, tables), identity, facts, with_members=False)
    return True


def _draw(control: Control, caches: Caches, draws: int, path: Path, split: str) -> bool:
    """Draw one control; say whether there was anything to do."""
    design = control.design
    tables = caches.tables(design.features, design.config)
    identity = identity_of(design, caches, tables)
    memory = design.config.memory_gb  # decides how many cases a control has
    stamp = digest(identity | {"draws": draws, "kind": control.kind, "memory_gb": memory})
    if path.exists() and read_json(path)["digest"] == stamp:
        return False
    answers = run_control(control, tables, draws)
    write_json(path, {"digest": stamp, "split": split, "draws": answers})
    return True


def _work(what: str, tasks: Mapping[str, Task], jobs: int) -> dict[str, str]:
    """Do the tasks, in so many processes (0: one per core); return why some could not be done."""
    failures = {}
    with bar(what, len(tasks)) as advance:
        for done, (name, new, problem) in enumerate(_attempts(tasks, jobs), 1):
            advance(1)
            if problem is not None:
                failures[name] = problem
                log.warning("%s %d of %d: %s: %s", what, done, len(tasks), name, problem)
            else:
                kept = "" if new else ", there already"
                log.info("%s %d of %d: %s%s", what, done, len(tasks), name, kept)
    return failures


def _attempts(tasks: Mapping[str, Task], jobs: int) -> Iterator[tuple[str, bool, str | None]]:
    """Yield what `_attempt` says of the tasks as they are done; each process has one thread."""
    number = jobs or len(os.sched_getaffinity(0))
    if number == 1:
        yield from (_attempt(name, task) for name, task in tasks.items())
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        work = Parallel(n_jobs=number, return_as="generator_unordered")
        yield from work(delayed(_attempt)(name, task) for name, task in tasks.items())


def _attempt(name: str, task: Task) -> tuple[str, bool, str | None]:
    """Do a task; return its name, whether it was new, and what a user can fix where it failed."""
    try:
        return name, task(), None
    except StackerError as error:
        return name, False, str(error)


def _entry(design: Design, folder: Path) -> Entry:
    name, kind = entry_name(design), "rule" if design.meta in RULES else "meta"
    facts = read_json(folder / slug(name) / "stack.json")
    return Entry(name, kind, load_says(folder / slug(name), design.config), facts, design)
