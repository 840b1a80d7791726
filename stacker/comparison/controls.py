"""Controls: entries fitted where there is nothing to learn. If one beats chance, something leaks.

Every entry is fitted again on labels of other cases and, where it uses maps, on maps of other images.
Both are permuted within the rows of one fold's models: labels permuted across folds would keep what the
folds have in common, and a learner that reads the fold would pass. The permutations of a draw are the
same for all entries, so that the best of many has a null of its own (`multiplicity`). Where a table does
not fit into memory, a random sample of cases is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stacker.errors import StackError
from stacker.scores.bootstrap import points
from stacker.scores.predictions import Predictions
from stacker.stacking.blocks import array_of
from stacker.stacking.fitting import COPIES, Design, fit, out_of_fold, ready
from stacker.stacking.learners.matrix import whole
from stacker.stacking.tables import Table, Tables

LABELS, MAPS = "permuted labels", "shuffled maps"


@dataclass(frozen=True)
class Control:
    """An entry that has nothing to learn from what is permuted: labels or maps."""

    entry: str
    kind: str
    design: Design

    @property
    def name(self) -> str:
        """The control as people call it."""
        return f"{self.entry}, {self.kind}"


def list_controls(entry: str, design: Design) -> list[Control]:
    """Return the controls of an entry; each draw is fitted with one seed."""
    single = replace(design, config=design.config.model_copy(update={"seeds": 1}))
    kinds = [LABELS, *([MAPS] if any(is_of_maps(name, design) for name in design.features) else [])]
    return [Control(entry, kind, single) for kind in kinds]


def is_of_maps(name: str, design: Design) -> bool:
    """Say whether a block is made of maps."""
    return array_of(name, design.config.blocks.get(name)).startswith("maps") or name == "map_stats"


def run_control(control: Control, tables: Tables, draws: int) -> list[dict[str, float | str]]:
    """Return what every draw comes to: its AUC by image and by case, out of fold where that is known."""
    design = control.design
    tables = _hold(within(tables, design.config.memory_gb / COPIES, design.seed))
    blocks = [column.split("/")[1] for column in tables.development.columns]
    of_maps = np.array([is_of_maps(block, design) for block in blocks])
    answers: list[dict[str, float | str]] = []
    for number in range(draws):
        rng = np.random.default_rng([design.seed, number])
        drawn = (
            shuffle_columns(tables, of_maps, rng)
            if control.kind == MAPS
            else permute_labels(tables, rng)
        )
        part, said = _say(design, drawn)
        areas = {unit: scores.get("auc", np.nan) for unit, scores in points(said, {"auc"}).items()}
        answers.append({"part": part, **areas})
    return answers


def _say(design: Design, tables: Tables) -> tuple[str, Predictions]:
    """Return what a design says out of fold, or of the test cases where too few can be cut."""
    centred, _ = ready(design, tables)
    development, _ = out_of_fold(design, centred)
    if development is None:
        return "test", fit(design, tables).says.test
    return "development", development


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
                f"a control needs cases of every class, but only {kept.sum()} cases fit into "
                "stack.memory_gb",
                "raise it",
            )
        tables = replace(tables, development=development, groups=tables.groups[rows])
    number = len(next(iter(tables.tests.values())).rows)
    if number * len(tables.tests) > most:
        chosen = np.sort(rng.permutation(number)[: max(1, most // len(tables.tests))])
        tests = {fold: table.take(chosen) for fold, table in tables.tests.items()}
        tables = replace(tables, tests=tests)
    return tables


def _hold(tables: Tables) -> Tables:
    """Return tables with all values in memory, where they can be shuffled."""
    tests = {fold: table.hold(np.inf) for fold, table in tables.tests.items()}
    return replace(tables, development=tables.development.hold(np.inf), tests=tests)


def shuffle_columns(tables: Tables, chosen: np.ndarray, rng: np.random.Generator) -> Tables:
    """Give some columns (F,) of every row to another row of its fold; on all folds' test rows alike."""

    def shuffled(table: Table, order: np.ndarray) -> Table:
        values = whole(table, np.inf, "a control")
        values[:, chosen] = values[order][:, chosen]
        return replace(table, values=values)

    source = tables.development.source
    order = np.arange(len(source))
    for number in np.unique(source):
        rows = np.flatnonzero(source == number)
        order[rows] = rng.permutation(rows)
    order_of_tests = rng.permutation(len(next(iter(tables.tests.values())).rows))
    tests = {fold: shuffled(table, order_of_tests) for fold, table in tables.tests.items()}
    return replace(tables, development=shuffled(tables.development, order), tests=tests)


def permute_labels(tables: Tables, rng: np.random.Generator) -> Tables:
    """Give every case the label of another one of its fold; single rows, where a case has several.

    Whole cases, because that is how the truth is clustered: permuted rows would be easier to tell from
    it. Within each fold, so that all of them keep their classes.
    """
    rows = tables.development.rows
    labels = permuted(rows.label, tables.groups, tables.development.source, rng)
    development = replace(tables.development, rows=replace(rows, label=labels))
    return replace(tables, development=development)


def permuted(
    labels: np.ndarray, groups: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return labels (N,) that whole groups have exchanged within strata."""
    exchanged = labels.copy()
    for stratum in np.unique(strata):
        rows = strata == stratum
        names, place = np.unique(groups[rows], return_inverse=True)
        of_group = np.full(len(names), -1)
        of_group[place] = labels[rows]
        if np.array_equal(of_group[place], labels[rows]):
            exchanged[rows] = of_group[rng.permutation(len(names))][place]
        else:
            exchanged[rows] = labels[rows][rng.permutation(int(rows.sum()))]
    return exchanged
