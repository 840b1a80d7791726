"""What a row weighs, and how that is taken back from the probabilities.

Classes weigh the same, so that none is drowned, and so do the cases of a class: one of many images is
not learnt by heart. What is fitted so answers for a world in which the classes are equally frequent; as
the weights are known, its probabilities are corrected by them, and by nothing that is estimated. The
fits of all parts are corrected to the frequencies of all development rows: to those of its own rows,
each would answer the lower for a part the more of it is of the last class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np

from stacker.errors import StackError
from stacker.stacking.learners.matrix import Rows2D

Balance = Literal["cases", "classes", "none"]


def count_classes(labels: np.ndarray) -> int:
    """Return how many classes the labels have; raise StackError when one between has no row."""
    counts = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
    if len(counts) < 2 or not counts.all():
        found = ", ".join(f"{count} of class {number}" for number, count in enumerate(counts)) or "none"
        raise StackError(
            f"a meta-learner needs rows of every class: found {found}, expected some of each of at "
            "least two; look at the split with 'stacker data split', or take fewer folds"
        )
    return len(counts)


def row_weights(labels: np.ndarray, cases: np.ndarray, balance: Balance) -> np.ndarray:
    """Return the weight (N,) of each row; they add up to the number of rows."""
    if balance == "none":
        return np.ones(len(labels))
    found = np.empty(len(labels))
    classes = count_classes(labels)
    for k in range(classes):
        mine = labels == k
        share = np.ones(int(mine.sum()))
        if balance == "cases":
            _, place, images = np.unique(cases[mine], return_inverse=True, return_counts=True)
            share = 1 / images[place]
        found[mine] = share * len(labels) / (classes * share.sum())
    return found


def or_ones(weights: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Return weights as float64; without them all rows weigh the same."""
    return np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)


def class_factors(labels: np.ndarray, weights: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return by how much more each class (K,) weighs in a fit than it is frequent (K,)."""
    found: np.ndarray = np.bincount(labels, weights, len(frequency)) / weights.sum() / frequency
    return found


def unweigh(probabilities: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) as they are where classes are as frequent as they were found."""
    shares = probabilities / factors
    total = shares.sum(axis=1, keepdims=True)
    found: np.ndarray = np.divide(shares, total, out=shares, where=total > 0)
    return found


class MetaLearner(Protocol):
    """What stage three needs of an estimator."""

    suffix: str

    @property
    def weighs(self) -> bool:
        """Say whether the weights of rows change what is learnt."""

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F), class indices (N,), weights (N,), cut by whole groups (N,)."""

    def predict_proba(self, X: Rows2D) -> np.ndarray:
        """Return class probabilities (N, K)."""

    def save(self, path: Path) -> None:
        """Write what was learnt."""

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:
        """Take what was learnt from a file; raise StackError when it does not fit."""
