"""Controls: what a comparison must not find, and finds if something leaks.

Shuffled maps belong to other images than the row says; permuted labels belong to other cases. A stack
that is fitted on either has nothing to learn and must be at chance, on development and test cases alike.
A third control keeps everything but the maps: what shuffled maps gain beside the rest is what that many
columns gain without any evidence in them. Where a table does not fit into memory, cases are drawn by
lot. A single draw of a few cases says little, so each control is drawn many times; what is reported is
the mean and the middle 95 % of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stacker.blocks import array_of
from stacker.errors import StackError
from stacker.features import Caches, Table, Tables
from stacker.fitting import COPIES, Design, fit, scopes
from stacker.matrix import whole
from stacker.metrics import Predictions, replicate
from stacker.settings import RULES


@dataclass(frozen=True)
class Control:
    """One kind of control: a name, how it is fitted, and what is drawn by lot: maps or labels."""

    name: str
    design: Design
    shuffled: str


def list_controls(design: Design) -> list[Control]:
    """Return the controls of a design; without maps among its features they take `maps` for theirs."""
    config = design.config.model_copy(update={"seeds": 1})
    meta = "logistic" if design.meta in RULES else design.meta
    features = ["maps", "logits"] if design.meta in RULES else list(design.features)
    maps = [name for name in features if is_of_maps(name, design)] or ["maps"]
    rest = [name for name in features if name not in maps]

    def of(names: list[str]) -> Design:
        return Design.of(meta, names, config, design.seed, design.device)

    found = [
        Control("shuffled maps", of(maps), "maps"),
        Control("permuted labels", of(features), "labels"),
    ]
    if rest:
        found.insert(1, Control(f"{' + '.join(rest)} + shuffled maps", of([*maps, *rest]), "maps"))
    return found


def is_of_maps(name: str, design: Design) -> bool:
    """Say whether a block is made of maps."""
    return array_of(name, design.config.blocks.get(name)).startswith("maps") or name == "map_stats"


def run_control(control: Control, caches: Caches, draws: int) -> list[dict[str, Any]]:
    """Return the scores of every draw: {part: {unit: {score: value}}}."""
    config = control.design.config
    found = caches.tables(control.design.features, config)
    tables = _held(within(found, config.memory_gb / COPIES, control.design.seed))
    chosen = np.array([_is_map_column(name, control) for name in tables.development.columns])
    answers = []
    for number in range(draws):
        rng = np.random.default_rng([control.design.seed, number])
        if control.shuffled == "maps":
            drawn = shuffle_columns(tables, chosen, rng)
        else:
            drawn = permute_labels(tables, rng)
        says = fit(control.design, drawn).says
        parts = {"development": says.development, "test": says.test}
        answers.append({part: _points(p) for part, p in parts.items() if p is not None})
    return answers


def _is_map_column(column: str, control: Control) -> bool:
    return is_of_maps(column.split("/")[1], control.design)


def within(tables: Tables, limit_gb: float, seed: int) -> Tables:
    """Return tables of so many cases, drawn by lot, and so many test rows, as fit into memory."""
    most = int(limit_gb * 1e9 / (4 * tables.development.shape[1]))
    rng = np.random.default_rng(seed)
    if len(tables.groups) > most:
        groups, place, sizes = np.unique(tables.groups, return_inverse=True, return_counts=True)
        order = rng.permutation(len(groups))
        kept = np.zeros(len(groups), dtype=bool)
        kept[order[np.cumsum(sizes[order]) <= most]] = True
        rows = kept[place]
        development = tables.development.take(rows)
        if len(np.unique(development.rows.label)) < len(development.classes):
            raise StackError(
                f"a control needs cases of every class, and {kept.sum()} cases are all that fit into "
                "stack.memory_gb; allow more"
            )
        tables = replace(tables, development=development, groups=tables.groups[rows])
    number = len(next(iter(tables.tests.values())).rows)
    if number * len(tables.tests) > most:
        chosen = np.sort(rng.permutation(number)[: max(1, most // len(tables.tests))])
        tests = {fold: table.take(chosen) for fold, table in tables.tests.items()}
        tables = replace(tables, tests=tests)
    return tables


def _held(tables: Tables) -> Tables:
    """Return tables with all values in memory, where they can be shuffled."""

    def hold(table: Table) -> Table:
        return replace(table, values=whole(table, np.inf, "a control"))

    tests = {fold: hold(table) for fold, table in tables.tests.items()}
    return replace(tables, development=hold(tables.development), tests=tests)


def _points(predictions: Predictions) -> dict[str, dict[str, float]]:
    cases = len(np.unique(predictions.cases))
    found = replicate(predictions, np.ones((1, cases)))
    return {
        unit: {name: float(value[0]) for name, value in scores.items()} for unit, scores in found.items()
    }


def shuffle_columns(tables: Tables, chosen: np.ndarray, rng: np.random.Generator) -> Tables:
    """Give some columns (F,) of every row to another row; on the test rows of all folds alike."""
    tests = list(tables.tests.values())
    order = rng.permutation(len(tables.development.rows))
    order_of_tests = rng.permutation(len(tests[0].rows))
    return replace(
        tables,
        development=_shuffled(tables.development, chosen, order),
        tests={f: _shuffled(table, chosen, order_of_tests) for f, table in tables.tests.items()},
    )


def _shuffled(table: Table, chosen: np.ndarray, order: np.ndarray) -> Table:
    values = whole(table, np.inf, "a control").copy()
    values[:, chosen] = values[order][:, chosen]
    return replace(table, values=values)


def permute_labels(tables: Tables, rng: np.random.Generator) -> Tables:
    """Give every case the label of another one; single rows, where a case has several labels.

    Whole cases, because that is how the truth is clustered: permuted rows would be easier to tell from
    it. Within each fold, where each has a fit of its own: all of them keep their classes.
    """
    rows = tables.development.rows
    labels = rows.label.copy()
    for _, mine in scopes(tables):
        labels[mine] = _permuted(rows.label[mine], tables.groups[mine], rng)
    development = replace(tables.development, rows=replace(rows, label=labels))
    return replace(tables, development=development)


def _permuted(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    names, place = np.unique(groups, return_inverse=True)
    by_group = np.full(len(names), -1)
    by_group[place] = labels
    if np.array_equal(by_group[place], labels):
        permuted: np.ndarray = by_group[rng.permutation(len(names))][place]
        return permuted
    return labels[rng.permutation(len(labels))]
