"""Probabilities that mean what they say, and a threshold that was not chosen on what it is judged by.

Temperature scaling (Guo et al. 2017) makes all answers bolder or meeker at once; Platt's sigmoid (1999)
shifts them as well. A threshold is chosen by a rule, on calibrated probabilities. `cross_finish` does
both for each part of the images from the other parts only: what is scored has had no say in it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, softmax

from stacker.metrics import BINS, Predictions, bin_of, stated

log = logging.getLogger(__name__)
Kind = Literal["none", "temperature", "platt"]
Rule = Literal["none", "youden", "sensitivity"]
LEAST = 1e-7  # probabilities are kept this far from nought and one before their logarithm is taken
COLDEST, HOTTEST = 0.05, 20.0  # temperatures; where classes are separated, the best would be nought
FARTHEST = 30.0  # a sigmoid is not followed further out, where it is one or nought


class Reliability(NamedTuple):
    """A reliability diagram by bin of confidence; a bin without images has NaN in it."""

    confidence: np.ndarray
    frequency: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Calibrator:
    """A map from probabilities to better ones, in plain numbers.

    The sigmoids have one slope and intercept for class 1 of two, else one for each class.
    """

    kind: Kind = "none"
    temperature: float = 1.0
    slopes: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, K)."""
        if self.kind == "temperature":
            cooled: np.ndarray = softmax(_log(probabilities) / self.temperature, axis=1)
            return cooled
        if self.kind == "platt":
            logits = _logits(probabilities) * self.slopes + self.intercepts
            shares: np.ndarray = expit(np.clip(logits, -FARTHEST, FARTHEST))
            if shares.shape[1] == 1:
                return np.column_stack([1 - shares, shares])
            shares /= shares.sum(axis=1, keepdims=True)
            return shares
        return probabilities

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "slopes": list(self.slopes), "intercepts": list(self.intercepts)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `as_dict` wrote down."""
        sigmoids = {name: tuple(found[name]) for name in ("slopes", "intercepts")}
        return cls(**{**found, **sigmoids})


def fit_calibrator(
    kind: Kind, probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Calibrator:
    """Return the calibrator that makes some labels (N,) likeliest; weights say how rows compare.

    Images of one class alone cannot tell how sure a model should be: they leave it as it is.
    """
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    counted = weights > 0
    if kind == "none":
        return Calibrator()
    if len(np.unique(labels[counted])) < 2:
        log.warning(
            "calibration: %d images of one class alone, probabilities stay as they are", counted.sum()
        )
        return Calibrator()
    probabilities, labels = probabilities[counted], labels[counted]
    weights = weights[counted] / weights[counted].mean()
    if kind == "temperature":
        return Calibrator("temperature", temperature=_temperature(probabilities, labels, weights))
    logits = _logits(probabilities)
    targets = [1] if logits.shape[1] == 1 else range(logits.shape[1])
    sigmoids = [
        _sigmoid(column, labels == k, weights) for k, column in zip(targets, logits.T, strict=True)
    ]
    slopes, intercepts = zip(*sigmoids, strict=True)
    return Calibrator("platt", slopes=slopes, intercepts=intercepts)


def _log(probabilities: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.log(np.clip(probabilities.astype(np.float64), LEAST, 1))
    return found


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Return the log-odds of class 1 of two (N, 1), else of each class against the rest (N, K)."""
    shares = probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities
    shares = np.clip(shares.astype(np.float64), LEAST, 1 - LEAST)
    found: np.ndarray = np.log(shares) - np.log1p(-shares)
    return found


def _temperature(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    logs, rows = _log(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logs / np.exp(log_temperature), axis=1)
        return float(-(weights @ scaled[rows, labels]) / weights.sum())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # Where all answers are equal, so are all temperatures.
    return float(np.exp(best.x)) if best.fun < loss(0.0) - 1e-12 else 1.0


def _sigmoid(logits: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
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


def choose_threshold(
    rule: Rule,
    probabilities: np.ndarray,
    labels: np.ndarray,
    sensitivity: float = 0.95,
    weights: np.ndarray | None = None,
) -> float:
    """Return from which probability (N,) of class 1 on class 1 is predicted.

    `youden` makes sensitivity + specificity largest; of several such thresholds it takes the one nearest
    to 0.5, and of two as near, the lower. `sensitivity` takes the highest threshold that reaches the
    wanted one. Thresholds lie midway between neighbouring probabilities, the lowest midway to nought.
    It is 0.5 by the rule `none`, where there is one class only, or where none is better than chance.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    if rule == "none" or len(np.unique(labels[weights > 0])) < 2:
        return 0.5
    distinct, place = np.unique(probabilities.astype(np.float64), return_inverse=True)
    true, false = (
        np.cumsum(np.bincount(place, weights * side, len(distinct))[::-1])[::-1]
        for side in (labels == 1, labels != 1)
    )
    below = np.r_[0.0, distinct[:-1]]
    midway = (below + distinct) / 2
    # Neighbours in floating point have no middle.
    thresholds = np.where(midway > below, midway, distinct)
    reached = true / true[0]
    if rule == "sensitivity":
        return float(thresholds[reached >= sensitivity - 1e-12].max())
    gains = reached - false / false[0]
    if gains.max() <= 1e-12:
        return 0.5
    best = thresholds[gains >= gains.max() - 1e-12]
    return float(best[np.argmin(np.round(np.abs(best - 0.5), 12))])


def cross_finish(
    kind: Kind,
    rule: Rule,
    sensitivity: float,
    probabilities: np.ndarray,
    labels: np.ndarray,
    parts: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities (N, K) and thresholds (N,), each part's from the other parts only.

    The threshold is chosen on the others' calibrated probabilities; beyond two classes it is 0.5, and
    has no effect.
    """
    finished = np.empty(probabilities.shape, dtype=np.float64)
    thresholds = np.full(len(labels), 0.5)
    for part in np.unique(parts):
        own, others = parts == part, parts != part
        shares = None if weights is None else weights[others]
        calibrator = fit_calibrator(kind, probabilities[others], labels[others], shares)
        finished[own] = calibrator.apply(probabilities[own])
        if probabilities.shape[1] == 2:
            stated_others = calibrator.apply(probabilities[others])[:, 1]
            thresholds[own] = choose_threshold(rule, stated_others, labels[others], sensitivity, shares)
    return finished, thresholds


def reliability(predictions: Predictions, bins: int = BINS) -> Reliability:
    """Return mean confidence, frequency and number of images in bins of equal width, each (bins,)."""
    confidence, came_true = stated(predictions)
    place = bin_of(confidence, bins)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, frequency = (np.bincount(place, v, bins) / images for v in (confidence, came_true))
    return Reliability(mean, frequency, images)
