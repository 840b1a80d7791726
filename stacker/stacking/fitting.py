"""How one meta-learner is fitted, and what it says of cases that it has not seen.

A `Design` is a meta-learner and the feature blocks that it looks at. It is fitted on the development
rows (each made by base models that never saw the row's case), once per seed where it draws lots; where
the columns of several folds lie in different bases, once per fold, too. What it would say of new cases
is estimated out of fold: the rows come in parts, and each part is predicted by a fit on the others.

Where one fit learns from rows of several folds' models, parts are the folds themselves, and so are the
pieces of every cut inside. The models of two folds differ, and a learner tells them apart by their
offsets; folds are stratified, so that what is left of a fold when a case is held out is mostly of the
other class. Cut across the folds, a learner of pure noise recognises the fold and says the opposite of
the truth. Columns are centred fold by fold for the same reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stacker.config.learners import RULES
from stacker.config.stacking import StackConfig
from stacker.data.cuts import cut
from stacker.errors import StackError
from stacker.run import StackName
from stacker.scores.metrics import area_within
from stacker.scores.predictions import Predictions, mean_over_folds
from stacker.stacking.finish import Says, conclude, unfinished
from stacker.stacking.learners.contract import MetaLearner, class_factors, row_weights, unweigh
from stacker.stacking.learners.matrix import Matrix
from stacker.stacking.learners.registry import build, is_scaled, is_seeded, parameters
from stacker.stacking.preparation import Preparation, fit_centres, fit_preparation
from stacker.stacking.tables import Tables

log = logging.getLogger(__name__)
SCHEMA = 3  # of what is fitted and said: another one makes what is stored out of date
COPIES = 3  # of a table that is held: itself, the rows of a part, and these made ready
ALL = "all"  # the scope of a fit that serves every fold


@dataclass(frozen=True)
class Design:
    """A meta-learner, the blocks that it looks at, and the settings that it is fitted with."""

    meta: str
    features: tuple[str, ...]
    config: StackConfig
    seed: int
    device: str = "auto"
    drawn: tuple[int, ...] | None = None  # the seeds of a fit that is stored already

    @classmethod
    def of(
        cls, name: str, features: Sequence[str], config: StackConfig, seed: int, device: str
    ) -> Design:
        """Return a design; the rules look at probabilities, whatever the others look at."""
        return cls(*StackName.of(name, features), config, seed, device)

    @property
    def name(self) -> StackName:
        """What the stack is known by that comes of it."""
        return StackName(self.meta, self.features)

    @property
    def seeds(self) -> list[int]:
        """The seeds that it is fitted with."""
        if self.drawn is not None:
            return list(self.drawn)
        count = self.config.seeds if is_seeded(self.meta, self.config) else 1
        return [self.seed + number for number in range(count)]

    @property
    def components(self) -> dict[str, int]:
        """The blocks whose columns give way to principal components, and to how many."""
        blocks = {name: self.config.blocks.get(name) for name in self.features}
        return {name: block.pca for name, block in blocks.items() if block and block.pca}

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the fit and what is made of it, as plain data."""
        blocks = {name: self.config.blocks[name] for name in self.features if name in self.config.blocks}
        decisive = ("parts", "centre", "balance", "calibration", "sensitivity")
        return {
            "schema": SCHEMA,
            "meta": self.meta,
            "features": list(self.features),
            "blocks": {name: block.model_dump(mode="json") for name, block in blocks.items()},
            "parameters": parameters(self.meta, self.config),
            "seeds": self.seeds,
            "cuts": self.config.seeds,
            **{name: getattr(self.config, name) for name in decisive},
            "rule": self.config.threshold,
        }


@dataclass(frozen=True)
class Member:
    """One fit: what was learnt of the columns, the meta-learner, and how the classes were weighed."""

    preparation: Preparation
    learner: MetaLearner
    factors: np.ndarray

    def predict_proba(self, table: Matrix) -> np.ndarray:
        """Return class probabilities (N, K), as if the classes had not been weighed."""
        shares = np.asarray(self.learner.predict_proba(self.preparation.of(table)), dtype=np.float64)
        return unweigh(shares, self.factors)


@dataclass(frozen=True)
class Fitted:
    """A fitted design: its members by scope (a fold, or all), and what it says.

    `centres` (F,) are what the models of each fold have in common, taken off before all else.
    """

    members: dict[str, list[Member]]
    centres: dict[str, np.ndarray]
    says: Says
    rows: int
    columns: int
    fit_seconds: float
    predict_seconds: float


def fit(design: Design, tables: Tables) -> Fitted:
    """Fit a design on all development rows, estimate it out of fold, and predict the test rows."""
    tables, centres = ready(design, tables)
    table = tables.development
    build(design.meta, design.config, design.seed, table.columns)  # imports are not fitting
    started = time.perf_counter()
    members = {
        scope: [fit_member(design, tables, rows, seed) for seed in design.seeds]
        for scope, rows in scopes(tables)
    }
    fitted = time.perf_counter()
    tests = np.stack([say(of_scope(members, fold), test) for fold, test in tables.tests.items()])
    done = time.perf_counter()
    test_rows = next(iter(tables.tests.values())).rows
    development, areas = out_of_fold(design, tables)
    if development is None:
        log.warning(
            "%s: some class has too few cases or folds to be left out in turn: nothing is estimated out "
            "of fold, calibrated or given a threshold",
            design.meta,
        )
    test = Predictions(*test_rows.truth, mean_over_folds(tests))
    says = conclude(design.config, development, test, areas)
    columns = len(next(iter(members.values()))[0].preparation.columns)
    return Fitted(members, centres, says, len(table.rows), columns, fitted - started, done - fitted)


def require_fittable(design: Design, tables: Tables) -> None:
    """Raise StackError for what can be told to fail before anything is fitted."""
    list(scopes(tables))
    build(design.meta, design.config, design.seed, tables.development.columns, design.device).check()


def ready(design: Design, tables: Tables) -> tuple[Tables, dict[str, np.ndarray]]:
    """Return the tables as they are fitted, centred fold by fold and held in memory if they may be."""
    limit, centres = design.config.memory_gb / COPIES, {}
    if tables.crossed and design.config.centre and design.meta not in RULES:
        means = fit_centres(tables.development)
        by_fold = {
            source.fold: row for source, row in zip(tables.development.sources, means, strict=True)
        }
        centres = {fold: by_fold[fold] for fold in tables.tests}
        tests = {fold: test.centred(means) for fold, test in tables.tests.items()}
        tables = replace(tables, development=tables.development.centred(means), tests=tests)
    return replace(tables, development=tables.development.hold(limit)), centres


def fit_member(design: Design, tables: Tables, rows: np.ndarray, seed: int) -> Member:
    """Fit once, on some development rows (N,); inner cuts follow the folds, where there are several."""
    name, config, everything = design.meta, design.config, tables.development.rows.label
    table = tables.development.take(rows)
    labels = table.rows.label
    prepared = fit_preparation(table, table.columns, design.components, is_scaled(name, config), seed)
    learner = build(name, config, seed, prepared.columns, design.device)
    values = prepared.of(table)
    groups: np.ndarray | None = tables.groups[rows]
    if len(np.unique(table.source)) > 1:
        groups = table.source
    elif name in RULES:
        groups = None  # all rows are on one scale
    weights = row_weights(labels, table.rows.case_id, config.balance)
    held = table.values is not None
    learner.fit(values.read(0, len(labels)) if held else values, labels, groups=groups, weights=weights)
    if name in RULES:
        return Member(prepared, learner, np.ones(len(table.classes)))
    frequency = np.bincount(everything, minlength=len(table.classes)) / len(everything)
    weighed = weights if learner.weighs else np.ones(len(labels))
    return Member(prepared, learner, class_factors(labels, weighed, frequency))


def scopes(tables: Tables) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what is fitted apart, as name and mask of development rows: all, or each fold."""
    table = tables.development
    if not tables.mixed:
        yield ALL, np.ones(len(table.rows), dtype=bool)
        return
    classes = len(table.classes)
    for fold in tables.tests:
        rows = table.made_by == fold
        if len(np.unique(table.rows.label[rows])) < classes:
            raise StackError(
                f"embeddings need a fit per fold, and {fold} holds out no image of some class; lower "
                "folds.k, take folds.protocol=holdout, or take 'frozen' in place of 'embeddings'"
            )
        yield fold, rows


def of_scope(members: Mapping[str, list[Member]], fold: str) -> list[Member]:
    """Return the members that speak of a fold's rows: its own, or those of all."""
    return members[fold if fold in members else ALL]


def say(members: Sequence[Member], table: Matrix) -> np.ndarray:
    """Return the mean of the members' probabilities, (N, K)."""
    mean: np.ndarray = np.mean([member.predict_proba(table) for member in members], axis=0)
    return mean


def cut_parts(tables: Tables, config: StackConfig, seed: int) -> np.ndarray | None:
    """Return the parts (R, N) that development rows are estimated in; None where some class is too rare.

    Where each fold has a fit of its own, the rows of each are cut by case.
    """
    table = tables.development
    labels, groups, classes = table.rows.label, tables.groups, len(table.classes)
    if not tables.mixed:
        return parts_of(labels, groups, table.source, classes, config, seed)
    parts = np.full((config.seeds, len(labels)), -1, dtype=np.int64)
    for number, (_, rows) in enumerate(scopes(tables)):
        one_fold = np.zeros(int(rows.sum()), dtype=np.int64)
        of_scope = parts_of(labels[rows], groups[rows], one_fold, classes, config, seed)
        if of_scope is None:
            return None
        parts[:, rows] = of_scope + number * config.parts
    return parts


def parts_of(
    labels: np.ndarray,
    groups: np.ndarray,
    fold: np.ndarray,
    classes: int,
    config: StackConfig,
    seed: int,
) -> np.ndarray | None:
    """Return the parts (R, N) of rows: the folds (N,) that made them, or pieces by case of one fold.

    One fold's rows are cut again for every seed: with few cases, one cut decides too much. None where a
    class has too few folds, or cases, for all parts to be predicted by fits that know it.
    """
    if len(np.unique(fold)) > 1:
        holders = [len(np.unique(fold[labels == k])) for k in range(classes)]
        return fold[None].astype(np.int64) if min(holders) > 1 else None
    cuts = [cut(labels, groups, config.parts, seed + repeat) for repeat in range(config.seeds)]
    known = [one for one in cuts if one is not None]
    return np.stack(known).astype(np.int64) if len(known) == len(cuts) else None


def out_of_fold(design: Design, tables: Tables) -> tuple[Predictions | None, tuple[float, ...]]:
    """Return what fits that saw nothing of its case say of every row, and the AUC of each seed or cut.

    Of one cut it is the mean over seeds, as on new images; of several, each has a seed of its own. None
    where too few cases can be cut.
    """
    truth = tables.development.rows.truth
    parts = cut_parts(tables, design.config, design.seed)
    if parts is None:
        return None, ()
    tries = [(0, seed) for seed in design.seeds]
    if len(parts) > 1:
        tries = [(r, design.seeds[r % len(design.seeds)]) for r in range(len(parts))]
    raw = np.stack([_predict_parts(design, tables, parts[r], seed) for r, seed in tries])
    areas = tuple(area_within(unfinished(truth, raw[[t]], parts[[r]])) for t, (r, _) in enumerate(tries))
    if len(parts) == 1:
        raw = raw.mean(axis=0, keepdims=True)
    return unfinished(truth, raw, parts), areas


def _predict_parts(design: Design, tables: Tables, parts: np.ndarray, seed: int) -> np.ndarray:
    """Return probabilities (N, K) of every part by a fit on the others of its scope."""
    table = tables.development
    raw = np.full((len(parts), len(table.classes)), np.nan)
    for _, rows in scopes(tables):
        for part in np.unique(parts[rows]):
            inside = rows & (parts == part)
            member = fit_member(design, tables, rows & (parts != part), seed)
            raw[inside] = member.predict_proba(table.take(inside))
    return raw
