"""Logistic regression: fitted by scikit-learn, stored as its coefficients.

What it says is a product of matrices. A prediction needs neither scikit-learn nor skops for that, which
take longer to import than the answer takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from scipy.special import expit, softmax

from stacker.config.learners import LogisticConfig
from stacker.errors import StackError
from stacker.stacking.learners.contract import MetaLearner, count_classes
from stacker.stacking.learners.matrix import Rows2D, whole

ROUNDS = 2000  # of the solver: features are standardised, it never takes so many


class Logistic(MetaLearner):
    """L2-regularised logistic regression; `coef_` (1 or K, F) and `intercept_` are learnt."""

    suffix: ClassVar[str] = ".safetensors"
    settings: LogisticConfig

    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,  # noqa: ARG002  # it keeps no rows from learning
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F), class indices (N,) and weights (N,)."""
        from sklearn.linear_model import LogisticRegression

        labels = np.asarray(y).astype(np.int64)
        classes, values = count_classes(labels), whole(X, self.memory_gb, "logistic")
        model = LogisticRegression(C=self.settings.C, max_iter=ROUNDS).fit(values, labels, weights)
        self.coef_, self.intercept_ = model.coef_, model.intercept_
        self.classes_ = np.arange(classes)
        return self

    def _probabilities(self, rows: np.ndarray) -> np.ndarray:
        logits: np.ndarray = rows @ self.coef_.T + self.intercept_
        if logits.shape[1] > 1:
            shares: np.ndarray = softmax(logits, axis=1)
            return shares
        last = expit(logits[:, 0])
        return np.stack([1 - last, last], axis=1)

    def importances(self) -> tuple[str, np.ndarray]:
        """Return the coefficients; of two classes they are those of the last one."""
        return "standardised coefficient", self.coef_[0] if len(self.coef_) == 1 else self.coef_

    def save(self, path: Path) -> None:
        """Write the coefficients as safetensors."""
        from safetensors.numpy import save_file

        tensors = {"coef": np.ascontiguousarray(self.coef_), "intercept": self.intercept_}
        save_file(tensors, path, metadata={"classes": str(len(self.classes_))})

    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:  # noqa: ARG002  # nothing to run
        """Take what `save` wrote; raise StackError when it is not of these columns."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                coef, intercept = file.get_tensor("coef"), file.get_tensor("intercept")
                classes = int(file.metadata()["classes"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StackError(
                f"{path} is not a stored logistic regression ({error!r})", "run 'stacker stack' again"
            ) from error
        outputs = 1 if classes == 2 else classes
        expected = (outputs, len(self.columns)), (outputs,)
        if (coef.shape, intercept.shape) != expected or classes < 2:
            raise StackError(
                f"{path} holds coefficients {coef.shape} of {classes} classes, expected {expected[0]} "
                f"for these {len(self.columns)} columns",
                "run 'stacker stack' again",
            )
        self.coef_, self.intercept_, self.classes_ = coef, intercept, np.arange(classes)
        return self
