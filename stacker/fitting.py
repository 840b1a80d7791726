"""How one meta-learner is fitted, and what it says of cases that it has not seen.

A `Design` is a meta-learner and the feature blocks that it looks at. It is fitted on the development
rows (each made by base models that never saw the row's case), once per seed where it draws lots; where
the columns of several folds lie in different bases, once per fold, too. What it would say of new cases
is estimated out of fold: the rows are cut by case into parts, and each part is predicted by a fit on the
others. Calibration and operating threshold come from these, and never from the test cases.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stacker import meta
from stacker.calibration import Calibrator, choose_threshold, cross_finish, fit_calibrator
from stacker.errors import StackError
from stacker.features import Table, Tables
from stacker.grouping import cut
from stacker.matrix import Matrix
from stacker.metrics import Predictions, area_under_curve
from stacker.preparation import Preparation, fit_preparation
from stacker.settings import StackConfig

SCHEMA = 1  # of what is fitted and said: another one makes what is stored out of date
COPIES = 3  # of a table that is held: itself, the rows of a part, and these made ready
log = logging.getLogger(__name__)

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
        return cls(name, meta.features_of(name, features), config, seed, device)

    @property
    def seeds(self) -> list[int]:
        """The seeds that it is fitted with."""
        if self.drawn is not None:
            return list(self.drawn)
        count = self.config.seeds if meta.is_seeded(self.meta, self.config) else 1
        return [self.seed + number for number in range(count)]

    @property
    def components(self) -> dict[str, int]:
        """The blocks whose columns give way to principal components, and to how many."""
        blocks = {name: self.config.blocks.get(name) for name in self.features}
        return {name: block.pca for name, block in blocks.items() if block and block.pca}

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the fit and what is made of it, as plain data."""
        own = {name: self.config.blocks[name] for name in self.features if name in self.config.blocks}
        finish = ("parts", "calibration", "sensitivity")
        return {
            "schema": SCHEMA,
            "meta": self.meta,
            "features": list(self.features),
            "blocks": {name: block.model_dump(mode="json") for name, block in own.items()},
            "parameters": meta.parameters(self.meta, self.config),
            "seeds": self.seeds,
            "cuts": self.config.seeds,
            **{name: getattr(self.config, name) for name in finish},
            "rule": self.config.threshold,
        }


@dataclass(frozen=True)
class Member:
    """One fit: what was learnt of the columns, and the meta-learner."""

    preparation: Preparation
    learner: meta.MetaLearner

    def predict_proba(self, table: Matrix) -> np.ndarray:
        """Return class probabilities (N, K)."""
        return np.asarray(self.learner.predict_proba(self.preparation.of(table)), dtype=np.float64)


@dataclass(frozen=True)
class Finish:
    """What is made of probabilities: calibrated, and cut at a threshold where there are two classes."""

    calibrator: Calibrator
    threshold: float | None


@dataclass(frozen=True)
class Says:
    """What a model says of the development cases, out of fold, and of the test cases; and its finish.

    `development` is None where there are too few cases to cut. `seeds` are the AUC of single seeds on
    the development cases.
    """

    development: Predictions | None
    test: Predictions
    finish: Finish
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A fitted design: its members by scope (a fold, or all), and what it says."""

    members: dict[str, list[Member]]
    says: Says
    columns: int
    fit_seconds: float
    predict_seconds: float


def fit(design: Design, tables: Tables) -> Fitted:
    """Fit a design on all development rows, estimate it out of fold, and predict the test rows."""
    table = tables.development.hold(design.config.memory_gb / COPIES)
    labels = table.rows.label
    meta.build(design.meta, design.config, design.seed, table.columns)  # imports are not fitting
    started = time.perf_counter()
    members = {
        scope: [fit_member(design, table.take(rows), tables.groups[rows], seed) for seed in design.seeds]
        for scope, rows in scopes(tables)
    }
    fitted = time.perf_counter()
    tests = np.stack([say(of_scope(members, fold), test) for fold, test in tables.tests.items()])
    done = time.perf_counter()
    found, parts = out_of_fold(design, tables, table)
    rows = next(iter(tables.tests.values())).rows
    says = conclude(
        design.config,
        development=None if found is None else found.mean(axis=0),
        parts=parts,
        truth=(labels, table.rows.case_id),
        tests=tests,
        test_truth=(rows.label, rows.case_id),
        seeds=() if found is None else tuple(area_under_curve(labels, each) for each in found),
    )
    columns = len(next(iter(members.values()))[0].preparation.columns)
    return Fitted(members, says, columns, fitted - started, done - fitted)


def fit_member(design: Design, table: Table, groups: np.ndarray, seed: int) -> Member:
    """Fit once, on all rows of a table."""
    name, config = design.meta, design.config
    scaled = meta.is_scaled(name, config)
    prepared = fit_preparation(table, table.columns, design.components, scaled, seed)
    learner = meta.build(name, config, seed, prepared.columns, design.device)
    ready = prepared.of(table)
    small = table.values is not None
    learner.fit(ready.read(0, len(table.rows)) if small else ready, table.rows.label, groups=groups)
    return Member(prepared, learner)


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
    found: np.ndarray = np.mean([member.predict_proba(table) for member in members], axis=0)
    return found


def out_of_fold(
    design: Design, tables: Tables, table: Table
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return probabilities (S, N, K) of every row by fits that saw nothing of its case, and parts (N,).

    The cases are cut anew for every seed: with few of them, one cut decides too much. The parts are
    those of the first. None and None where some class has too few cases to be cut.
    """
    labels, groups = table.rows.label, tables.groups
    repeats = design.config.seeds
    found = np.full((repeats, len(labels), len(table.classes)), np.nan)
    parts = np.full((repeats, len(labels)), -1)
    for _, rows in scopes(tables):
        for number in range(repeats):
            own = cut(labels[rows], groups[rows], design.config.parts, design.seed + number)
            if own is None:
                return None, None
            parts[number, rows] = own
            seed = design.seeds[number % len(design.seeds)]
            for part in np.unique(own):
                inside, outside = (rows & (parts[number] == part), rows & (parts[number] != part))
                member = fit_member(design, table.take(outside), groups[outside], seed)
                found[number, inside] = member.predict_proba(table.take(inside))
    return found, parts[0]


def conclude(
    config: StackConfig,
    development: np.ndarray | None,
    parts: np.ndarray | None,
    truth: tuple[np.ndarray, np.ndarray],
    tests: np.ndarray,
    test_truth: tuple[np.ndarray, np.ndarray],
    seeds: tuple[float, ...] = (),
) -> Says:
    """Return what a model says once it is finished.

    Takes its probabilities out of fold (N, K), with the parts that they were made in, and those of the
    test rows by each fold (folds, N, K); `truth` is labels and cases. On the development rows each part
    is calibrated, and gets its threshold, by the others: what is reported saw nothing of its case. They
    are ranked as one calibration for all ranks them: parts that are cooled differently cannot be.
    """
    labels, cases = truth
    kind, rule, wanted = config.calibration, config.threshold, config.sensitivity
    if development is None or parts is None:
        finish, reported = Finish(Calibrator(), None), None
    else:
        calibrator = fit_calibrator(kind, development, labels)
        cuts = tests.shape[2] == 2 and rule != "none"
        if calibrator.slopes and not any(calibrator.slopes):
            log.warning("platt: its probabilities tell nothing out of fold, all images get the same one")
        order = calibrator.apply(development)
        level = choose_threshold(rule, order[:, 1], labels, wanted)
        finish = Finish(calibrator, level if cuts else None)
        shares, levels = cross_finish(kind, rule, wanted, development, labels, parts)
        reported = Predictions(labels, cases, shares, levels if cuts else None, order)
    return Says(reported, apply(finish, tests, test_truth), finish, seeds)


def apply(finish: Finish, tests: np.ndarray, truth: tuple[np.ndarray, np.ndarray]) -> Predictions:
    """Return the mean over folds of calibrated probabilities (folds, N, K), ready to be scored."""
    shares = np.mean([finish.calibrator.apply(each) for each in tests], axis=0)
    return Predictions(*truth, shares, finish.threshold)
