"""What all meta-learners share: the contract, what a row weighs, the sigmoid, and the device.

Classes weigh the same, so that none is under-predicted, and so do the cases of a class: one of many
images is not overfitted. What is fitted so answers for a world in which the classes are equally
frequent; as the weights are known, its probabilities are corrected by them, and by nothing that is
estimated. The fits of all parts are corrected to the frequencies of all development rows: to those of
its own rows, each would answer the lower for a part the more of it is of the last class.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from stacker.config.section import require_device
from stacker.errors import ConfigError, StackError
from stacker.stacking.learners.matrix import Rows2D, predict_in_pieces

log = logging.getLogger(__name__)
Balance = Literal["cases", "classes", "none"]


class MetaLearner(ABC):
    """What stage three needs of an estimator, and how each of them goes through a table.

    One that learns in pieces is made of its section of the config and of the names of the columns.
    """

    suffix: ClassVar[str]

    def __init__(
        self,
        settings: Any,
        columns: Sequence[str],
        memory_gb: float = 2.0,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.settings = settings
        self.columns = columns
        self.memory_gb = memory_gb
        self.seed = seed
        self.device = device

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  # scikit-learn's signature
        """Return what it was made of, for scikit-learn's `clone`, which is not imported for that."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def weighs(self) -> bool:
        """Say whether the weights of rows change what is learnt."""
        return True

    def check(self) -> None:
        """Raise StackError for what can be told to be wrong before a fit: nothing, of most."""
        return

    @abstractmethod
    def fit(
        self,
        X: Rows2D,
        y: np.ndarray,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Learn from rows (N, F), class indices (N,), weights (N,), cut by whole groups (N,)."""

    def predict_proba(self, X: Rows2D) -> np.ndarray:
        """Return class probabilities (N, K), going through the table piece by piece."""
        return predict_in_pieces(self._probabilities, X)

    def predict(self, X: Rows2D) -> np.ndarray:
        """Return class indices (N,)."""
        likeliest: np.ndarray = self.predict_proba(X).argmax(axis=1)
        return likeliest

    def importances(self) -> tuple[str, np.ndarray] | None:
        """Return what each column counts, and what that number is; None where it cannot be told.

        The numbers are (F,), or (K, F) where each class has its own.
        """
        return None

    @abstractmethod
    def _probabilities(self, rows: np.ndarray) -> Any:
        """Return class probabilities of some rows that are in memory."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what was learnt."""

    @abstractmethod
    def restore(self, path: Path, trusted: Sequence[str] = ()) -> Self:
        """Take what was learnt from a file; raise StackError when it does not fit."""


def count_classes(labels: np.ndarray) -> int:
    """Return how many classes the labels have; raise StackError when one between has no row."""
    counts = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
    if len(counts) < 2 or not counts.all():
        listed = ", ".join(f"{count} of class {number}" for number, count in enumerate(counts)) or "none"
        raise StackError(
            f"a meta-learner needs rows of every class: found {listed}, expected some of each of at "
            "least two; look at the split with 'stacker data split', or use fewer folds"
        )
    return len(counts)


def row_weights(labels: np.ndarray, cases: np.ndarray, balance: Balance) -> np.ndarray:
    """Return the weight (N,) of each row; they add up to the number of rows."""
    if balance == "none":
        return np.ones(len(labels))
    weights = np.empty(len(labels))
    classes = count_classes(labels)
    for k in range(classes):
        of_class = labels == k
        share = np.ones(int(of_class.sum()))
        if balance == "cases":
            _, place, images = np.unique(cases[of_class], return_inverse=True, return_counts=True)
            share = 1 / images[place]
        weights[of_class] = share * len(labels) / (classes * share.sum())
    return weights


def or_ones(weights: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Return weights as float64; without them all rows weigh the same."""
    return np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)


def class_factors(labels: np.ndarray, weights: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return by how much more each class (K,) weighs in a fit than it is frequent (K,)."""
    factors: np.ndarray = np.bincount(labels, weights, len(frequency)) / weights.sum() / frequency
    return factors


def unweigh(probabilities: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) as they are where classes are as frequent as they were found."""
    shares = probabilities / factors
    total = shares.sum(axis=1, keepdims=True)
    unweighed: np.ndarray = np.divide(shares, total, out=shares, where=total > 0)
    return unweighed


def fit_sigmoid(logits: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return Platt's slope and intercept of one class against the rest.

    His targets stop short of nought and one, which keeps the slope finite where classes are separated. A
    negative slope would turn the ranking round: it is kept from that. Equal answers are only shifted.
    """
    positives, negatives = weights[positive].sum(), weights[~positive].sum()
    targets = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = parameters[0] * logits + parameters[1]
        gaps = weights * (expit(scaled) - targets)
        value = weights @ (np.logaddexp(0, scaled) - targets * scaled)
        return float(value) / len(logits), np.array([gaps @ logits, gaps.sum()]) / len(logits)

    slope = (1, 1) if np.ptp(logits) == 0 else (0, None)
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    start = np.array([1.0, 0.0])
    best = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[slope, (None, None)], options=options
    )
    return float(best.x[0]), float(best.x[1])


def choose_device(wanted: str, has_gpu: Callable[[], bool]) -> str:
    """Return the wanted device, or for 'auto' the best at hand; raise ConfigError where it is not here.

    What a library can make of a GPU is for the library to say; torch is asked, and imported, only where
    a GPU is wanted by its name.
    """
    require_device(wanted)
    if wanted == "auto":
        return "cuda" if has_gpu() else "cpu"
    if wanted == "mps":  # the libraries do not know Apple's GPU, and the tables are small
        return "cpu"
    if wanted != "cpu":
        import torch

        count = torch.cuda.device_count()
        if (torch.device(wanted).index or 0) >= count:
            raise ConfigError(f"device: {wanted} is not here ({count} CUDA devices found)", "use 'auto'")
    return wanted


@cache
def say_once(message: str) -> None:
    """Warn of what is so for every fit of an estimator."""
    log.warning(message)
