"""A support vector machine whose probabilities rest on rows that it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC

from stacker.config.learners import SvmConfig
from stacker.data.cuts import cut
from stacker.errors import StackError
from stacker.scores.predictions import sigmoids
from stacker.stacking.finish import fit_sigmoid
from stacker.stacking.learners.contract import count_classes, or_ones
from stacker.stacking.learners.matrix import Rows2D, predict_in_pieces, whole
from stacker.stacking.learners.whole_table import load_skops, require

log = logging.getLogger(__name__)
PARTS = 5  # of the rows, for the sigmoids


class SupportVectors(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A support vector machine whose distances become probabilities by Platt's sigmoids.

    These learn from the distances of rows that the machine has not seen: the rows are cut by whole
    groups, a machine is fitted without each part. A sigmoid never falls: where the distances of unseen
    rows tell nothing, neither do the probabilities. `machine_` learns from all, `slopes_` and
    `intercepts_` come after.
    """

    suffix: ClassVar[str] = ".skops"
    weighs: ClassVar[bool] = True

    def __init__(self, settings: SvmConfig, memory_gb: float = 2.0, columns: int | None = None) -> None:
        self.settings = settings
        self.memory_gb = memory_gb
        self.columns = columns

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F) and class indices (N,), cut by `groups` (N,)."""
        labels = np.asarray(y).astype(np.int64)
        classes, weights = count_classes(labels), or_ones(weights, labels)
        values = whole(X, self.memory_gb, "svm")
        parts = cut(labels, np.arange(len(labels)) if groups is None else groups, PARTS, seed=0)
        if parts is None:
            log.warning(
                "svm: too few cases to cut; its probabilities rest on rows that it has learnt from"
            )
        self.machine_ = self._machine().fit(values, labels, weights)
        distances = _distances(self.machine_, values)
        for part in [] if parts is None else np.unique(parts):
            unseen = parts == part
            machine = self._machine().fit(values[~unseen], labels[~unseen], weights[~unseen])
            distances[unseen] = _distances(machine, values[unseen])
        targets = [1] if classes == 2 else range(classes)
        fitted = [
            fit_sigmoid(column, labels == k, weights / weights.mean())
            for k, column in zip(targets, distances.T, strict=True)
        ]
        self.slopes_, self.intercepts_ = (list(each) for each in zip(*fitted, strict=True))
        self.classes_ = np.arange(classes)
        return self

    def _machine(self) -> SVC:
        return SVC(C=self.settings.C, kernel=self.settings.kernel, cache_size=500)

    def predict_proba(self, X: Rows2D) -> np.ndarray:
        """Return class probabilities (N, K)."""
        return predict_in_pieces(
            lambda rows: sigmoids(_distances(self.machine_, rows), self.slopes_, self.intercepts_), X
        )

    def predict(self, X: Rows2D) -> np.ndarray:
        """Return class indices (N,)."""
        likeliest: np.ndarray = self.predict_proba(X).argmax(axis=1)
        return likeliest

    def save(self, path: Path) -> None:
        """Write the machine and the sigmoids with skops."""
        import skops.io

        about = {
            "machine": self.machine_,
            "slopes": self.slopes_,
            "intercepts": self.intercepts_,
            "classes": len(self.classes_),
        }
        skops.io.dump(about, path)

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:
        """Take what `save` wrote; raise StackError for types that are not scikit-learn's."""
        found = load_skops(path, "svm", trusted, ())
        self.machine_ = found.get("machine")
        self.slopes_, self.intercepts_ = found.get("slopes", []), found.get("intercepts", [])
        require(self.machine_, SVC, self.columns, path)
        if (
            not len(self.slopes_)
            == len(self.intercepts_)
            == (found["classes"] if found["classes"] > 2 else 1)
        ):
            raise StackError(f"{path} is damaged: it lacks sigmoids; run 'stacker stack' again")
        _check_machine(self.machine_, self.settings.kernel, found["classes"], path)
        self.classes_ = np.arange(found["classes"])
        return self


def _distances(machine: SVC, values: np.ndarray) -> np.ndarray:
    """Return how far rows lie from the border: (N, 1) for two classes, (N, K) for more."""
    found: np.ndarray = machine.decision_function(values)
    return found[:, None] if found.ndim == 1 else found


def _check_machine(machine: SVC, kernel: str, classes: int, path: Path) -> None:
    """Raise StackError when the arrays of a stored machine do not fit each other: libsvm trusts them."""
    number, each = len(machine.support_vectors_), machine.n_support_
    fine = (
        machine.kernel == kernel
        and machine.support_vectors_.shape == (number, machine.n_features_in_)
        and machine._dual_coef_.shape == (classes - 1, number)
        and machine._intercept_.shape == (classes * (classes - 1) // 2,)
        and each.shape == (classes,)
        and each.min() >= 0
        and each.sum() == number
    )
    if not fine:
        raise StackError(f"{path} is damaged: its parts do not fit; run 'stacker stack' again")
