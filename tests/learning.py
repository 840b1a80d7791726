"""What the tests of the meta-learners share: tables from which every one of them can learn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stacker.config.stacking import StackConfig

CONFIG = StackConfig.model_validate(
    {
        "logistic": {"C": 1.0},
        "random_forest": {"n_estimators": 40},
        "xgboost": {"n_estimators": 60, "learning_rate": 0.2, "patience": 10},
        "mlp": {"epochs": 30, "hidden": [16]},
        "convnet": {"epochs": 40, "channels": [8, 8], "grid": 3, "lr": 0.01, "dropout": 0.1},
        "custom": {
            "extra_trees": {
                "estimator": "sklearn.ensemble.ExtraTreesClassifier",
                "parameters": {"n_estimators": 30},
                "scale": False,
            }
        },
    }
)
SIDES = {"resnet50": 3, "vgg16": 2}  # how many cells the maps of each backbone have along a side


@dataclass(frozen=True)
class Learnt:
    """Rows (N, F) of some cases, four a case, with labels and the names of the columns."""

    values: np.ndarray
    labels: np.ndarray
    cases: np.ndarray
    columns: tuple[str, ...]

    def at(self, rows: np.ndarray) -> Learnt:
        """Return some of the rows."""
        return Learnt(self.values[rows], self.labels[rows], self.cases[rows], self.columns)


def table(classes: int = 2, seed: int = 0, cases: int = 60) -> Learnt:
    """Return maps that are higher for the class of the row, and probabilities that tell it as often."""
    rng = np.random.default_rng(seed)
    case = np.repeat(np.arange(cases), 4)
    labels = (case % classes).astype(np.int64)
    blocks, columns = [], []
    for backbone, side in SIDES.items():
        for k in range(classes):
            block = rng.normal(size=(len(labels), side * side)) + 1.2 * (labels == k)[:, None]
            blocks.append(block * 7 + 3)
            columns += [f"{backbone}/maps/{k}/r{r}c{c}" for r in range(side) for c in range(side)]
        odds = np.exp(rng.normal(size=(len(labels), classes)) + 2.5 * np.eye(classes)[labels])
        blocks.append(odds / odds.sum(axis=1, keepdims=True))
        columns += [f"{backbone}/probabilities/{k}" for k in range(classes)]
    return Learnt(np.concatenate(blocks, axis=1).astype(np.float32), labels, case, tuple(columns))


@dataclass(frozen=True)
class Lazy:
    """A matrix that is not an array: it counts the rows that are read from it, and the most at once."""

    values: np.ndarray
    read_rows: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return some rows."""
        found = self.values[start:stop].copy()
        self.read_rows.append(len(found))
        return found

    def take(self, rows: np.ndarray) -> Lazy:
        """Return some of the rows."""
        return Lazy(self.values[rows], self.read_rows)


def standardised(rows: Learnt) -> Learnt:
    """Return the rows as the caller of a meta-learner scales them."""
    values = (rows.values - rows.values.mean(axis=0)) / rows.values.std(axis=0)
    return Learnt(values, rows.labels, rows.cases, rows.columns)
