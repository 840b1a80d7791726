"""scikit-learn's estimators as meta-learners, and whatever keeps to the same contract.

They need their whole table at once, so the memory is asked for first, and are stored with skops. The
support vector machine is an estimator of the same kind whose probabilities rest on rows that it has not
seen.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from sklearn.utils._param_validation import InvalidParameterError

from stacker.data.cuts import cut
from stacker.errors import StackerError, StackError
from stacker.scores.predictions import sigmoids
from stacker.stacking.learners.contract import (
    MetaLearner,
    count_classes,
    fit_sigmoid,
    or_ones,
    say_once,
)
from stacker.stacking.learners.matrix import Rows2D, whole
from stacker.stacking.learners.skops_file import check_forest, check_machine, load_skops, require

log = logging.getLogger(__name__)
IMPORTANCES = {"coef_": "coefficient", "feature_importances_": "feature importance"}
PARTS = 5  # of the rows, for the sigmoids of the support vector machine


class WholeTable(MetaLearner, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that gets its table as one array; `estimator_` is the fitted copy.

    `parallel` lets a fit take all cores; never a prediction, whose sums would come out in another order
    each time. A stored one of ours must have as many `columns`. `path` is that of a class which is not
    ours: what it raises is not a bug of this program.
    """

    suffix: ClassVar[str] = ".skops"

    def __init__(
        self,
        estimator: Any,
        name: str,
        memory_gb: float = 2.0,
        parallel: bool = False,
        columns: Sequence[str] = (),
        path: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.name = name
        self.memory_gb = memory_gb
        self.parallel = parallel
        self.columns = columns
        self.path = path

    @property
    def weighs(self) -> bool:
        """Say whether the estimator's `fit` takes weights."""
        return "sample_weight" in inspect.signature(self.estimator.fit).parameters

    def check(self) -> None:
        """Raise StackError for parameters that scikit-learn would refuse in a fit."""
        if hasattr(self.estimator, "_parameter_constraints"):  # not of estimators of others
            with self._named("learn from", np.empty((0, len(self.columns)))):
                self.estimator._validate_params()  # noqa: SLF001  # what its fit begins with

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F) and class indices (N,); an estimator gets what its `fit` takes."""
        labels = np.asarray(y).astype(np.int64)
        classes = count_classes(labels)
        values = whole(X, self.memory_gb, self.name)
        model = clone(self.estimator, safe=False)
        extra, taken = {}, inspect.signature(model.fit).parameters
        if groups is not None and "groups" in taken:
            extra["groups"] = groups
        if weights is not None and self.weighs:
            extra["sample_weight"] = weights
        elif weights is not None and np.ptp(weights) > 0:
            say_once(f"{self.name} takes no weights: the minority class may be under-predicted")
        if self.parallel:
            model.set_params(n_jobs=-1)
        with self._named("learn from", values):
            model.fit(values, labels, **extra)
        learnt = np.asarray(getattr(model, "classes_", np.arange(classes)))
        if not np.array_equal(learnt, np.arange(classes)):
            raise StackError(
                f"{self.name} has the classes {learnt.tolist()}, expected 0 to {classes - 1}"
            )
        if self.parallel:
            model.set_params(n_jobs=None)
        self.estimator_, self.classes_ = model, np.arange(classes)
        return self

    def _probabilities(self, rows: np.ndarray) -> Any:
        with self._named("answer for", rows):
            return self.estimator_.predict_proba(rows)

    def importances(self) -> tuple[str, np.ndarray] | None:
        """Return coefficients or impurity-based importances, by scikit-learn's names for them.

        None for coefficients of pairs of classes (one against one), even if as many as classes.
        """
        if len(self.classes_) > 2 and hasattr(self.estimator_, "decision_function_shape"):
            return None
        for name, kind in IMPORTANCES.items():
            values = getattr(self.estimator_, name, None)
            if values is not None:
                values = np.asarray(values, dtype=np.float64)
                of_classes = values.ndim == 2 and len(values) == len(self.classes_)
                if values.ndim == 1 or of_classes or len(values) == 1:
                    return kind, values if of_classes else values.reshape(-1)
        return None

    @contextmanager
    def _named(self, what: str, rows: np.ndarray) -> Iterator[None]:
        """Raise StackError for wrong parameters, and for whatever one that is not ours raises."""
        try:
            yield
        except InvalidParameterError as error:
            raise StackError(f"{self.name}: {error}; fix its parameters in the config") from error
        except StackerError:
            raise
        except Exception as error:
            if self.path is None:
                raise
            log.debug("%s failed", self.path, exc_info=True)
            who = self.path if self.path == self.name else f"{self.name} ({self.path})"
            said = f"{type(error).__name__}: {error}"
            raise StackError(
                f"{who} cannot {what} {rows.shape[0]} rows x {rows.shape[1]} columns: it raised "
                f"{' '.join(said.split())}; change its parameters or scale under stack.custom, give it "
                "other features, or leave it out"
            ) from error

    def save(self, path: Path) -> None:
        """Write the fitted estimator with skops."""
        import skops.io

        skops.io.dump({"estimator": self.estimator_, "classes": len(self.classes_)}, path)

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:
        """Take the estimator that `save` wrote; raise StackError for types that are not trusted."""
        kind = None if self.path is not None else type(self.estimator)
        content = load_skops(path, self.name, trusted, TYPES.get(kind, ()))
        self.estimator_, self.classes_ = content.get("estimator"), np.arange(content["classes"])
        if kind is not None:
            require(self.estimator_, kind, len(self.columns), path)
        if kind is RandomForestClassifier:
            check_forest(self.estimator_, path)
        if kind is SupportVectors:
            check_machine(self.estimator_, self.estimator.kernel, len(self.classes_), path)
        return self


class SupportVectors(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A support vector machine whose distances become probabilities by Platt's sigmoids.

    These learn from the distances of rows that the machine has not seen: the rows are cut by whole
    groups, a machine is fitted without each part. A sigmoid never falls: where the distances of unseen
    rows tell nothing, neither do the probabilities. `machine_` learns from all, `slopes_` and
    `intercepts_` come after.
    """

    def __init__(self, C: float = 1.0, kernel: str = "rbf") -> None:
        self.C = C
        self.kernel = kernel

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F) and class indices (N,), cut by `groups` (N,)."""
        classes, weights = count_classes(y), or_ones(sample_weight, y)
        parts = cut(y, np.arange(len(y)) if groups is None else groups, PARTS, seed=0)
        if parts is None:
            log.warning(
                "svm: too few cases to split; its probabilities are fitted on the rows that it was "
                "trained on, and are too confident"
            )
        self.machine_ = self._machine().fit(X, y, weights)
        distances = _distances(self.machine_, X)
        for part in [] if parts is None else np.unique(parts):
            unseen = parts == part
            machine = self._machine().fit(X[~unseen], y[~unseen], weights[~unseen])
            distances[unseen] = _distances(machine, X[unseen])
        targets = [1] if classes == 2 else range(classes)
        fitted = [
            fit_sigmoid(column, y == k, weights / weights.mean())
            for k, column in zip(targets, distances.T, strict=True)
        ]
        self.slopes_, self.intercepts_ = (list(numbers) for numbers in zip(*fitted, strict=True))
        self.classes_, self.n_features_in_ = np.arange(classes), X.shape[1]
        return self

    def _machine(self) -> SVC:
        return SVC(C=self.C, kernel=self.kernel, cache_size=500)

    @property
    def coef_(self) -> np.ndarray | None:
        """What the distance from a straight border is made of, of two classes (1, F)."""
        straight = self.kernel == "linear" and len(self.classes_) == 2
        return np.asarray(self.machine_.coef_) if straight else None

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K)."""
        return sigmoids(_distances(self.machine_, X), self.slopes_, self.intercepts_)


# What skops does not know, by the estimator of ours whose file may hold it.
TYPES: dict[type | None, tuple[str]] = {
    RandomForestClassifier: ("sklearn.tree._tree.Tree",),
    SupportVectors: (f"{__name__}.SupportVectors",),
}


def _distances(machine: SVC, values: np.ndarray) -> np.ndarray:
    """Return how far rows lie from the border: (N, 1) for two classes, (N, K) for more."""
    distances: np.ndarray = machine.decision_function(values)
    return distances[:, None] if distances.ndim == 1 else distances
