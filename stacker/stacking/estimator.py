"""The meta-learners as estimators of scikit-learn, for tables that are nobody's but the caller's.

Columns are scaled as stage three scales them, and labels may be anything. Some meta-learners keep rows
from learning to say when to stop, or to turn distances into probabilities: `groups`, given to `fit`,
says which rows may not be taken apart there.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from stacker.config.learners import META_NAMES, RULES
from stacker.config.load import explain
from stacker.config.stacking import StackConfig
from stacker.errors import ConfigError, StackError, require_one_of
from stacker.stacking.learners.contract import unweigh
from stacker.stacking.learners.matrix import InMemory
from stacker.stacking.learners.registry import build, is_scaled
from stacker.stacking.preparation import fit_preparation

BY_NAME = (*RULES, "convnet")  # they look for columns by their names


class MetaLearnerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A meta-learner by its name, with its `settings` as under `stack.<name>` in a config.

    `columns` are the names of the columns where the table is an array; a DataFrame brings its own. What
    fitting leaves behind: `learner_`, `preparation_`, `classes_`, `n_features_in_`.
    """

    def __init__(
        self,
        name: str = "logistic",
        settings: dict[str, Any] | None = None,
        columns: Sequence[str] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "auto",
    ) -> None:
        self.name = name
        self.settings = settings
        self.columns = columns
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Learn from rows (N, F) and labels (N,); raise StackError where the columns do not suit it."""
        config = _config(self.name, self.settings)
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        check_consistent_length(X, groups)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        kept = weights > 0  # a row of no weight is no row, for scales and inner cuts too
        X, y, weights = X[kept], y[kept], weights[kept]
        groups = None if groups is None else np.asarray(groups)[kept]
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:  # scikit-learn's contract wants a ValueError here
            only = ", ".join(map(str, self.classes_)) or "none"
            raise ValueError(f"{self.name}: y is of one class ({only}), expected two classes or more")
        seed = self._seed()
        self.preparation_ = fit_preparation(
            InMemory(X), self._names(X.shape[1]), {}, is_scaled(self.name, config), seed
        )
        self.learner_ = build(self.name, config, seed, self.preparation_.columns, self.device)
        self.learner_.fit(self.preparation_.change(X), labels, groups=groups, weights=weights)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability (N, K) of each of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        shares = np.asarray(self.learner_.predict_proba(self.preparation_.change(X)), dtype=np.float64)
        return unweigh(shares, np.ones(len(self.classes_)))  # which makes them sum to one

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class (N,) of each row."""
        places = self.predict_proba(X).argmax(axis=1)
        likeliest: np.ndarray = self.classes_[places]
        return likeliest

    def _names(self, count: int) -> tuple[str, ...]:
        """Return the names of the columns; raise StackError where they are needed and not given."""
        names = self.columns if self.columns is not None else getattr(self, "feature_names_in_", None)
        if names is None and self.name in BY_NAME:
            raise StackError(
                f"{self.name} finds what it looks at by the names of columns, and this table has none; "
                "give columns=, e.g. those of stacker.table(...), or a DataFrame that has them"
            )
        names = [f"x{number}" for number in range(count)] if names is None else names
        if len(names) != count:
            raise StackError(f"{self.name}: {len(names)} columns are named, the table has {count}")
        return tuple(str(name) for name in names)

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def _config(name: str, settings: dict[str, Any] | None) -> StackConfig:
    """Return the settings of a meta-learner; raise ConfigError for a name or setting that is none."""
    require_one_of("meta-learner", [name], META_NAMES)
    if name in RULES:
        if settings:
            raise ConfigError(f"{name} has no settings; found {', '.join(settings)}")
        return StackConfig()
    try:
        return StackConfig.model_validate({name: settings or {}})
    except ValidationError as error:
        faults = [explain({**fault, "loc": ("stack", *fault["loc"])}) for fault in error.errors()]
        raise ConfigError("\n  ".join([f"meta_learner {name!r}:", *faults])) from None


def meta_learner(
    name: str,
    *,
    columns: Sequence[str] | None = None,
    random_state: int | None = 0,
    device: str = "auto",
    **settings: Any,
) -> MetaLearnerClassifier:
    """Return a meta-learner as an estimator of scikit-learn: `meta_learner("xgboost", max_depth=2)`."""
    _config(name, settings)
    return MetaLearnerClassifier(name, settings, columns, random_state, device)
