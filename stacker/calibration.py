"""Probabilities that mean what they say, and a threshold that was not chosen on what it is judged by.

Temperature scaling (Guo et al. 2017) makes all answers bolder or meeker at once; Platt's sigmoid (1999)
shifts them as well. A threshold is chosen by a rule, on calibrated probabilities. `cross_finish` does
both for each part of the images from the other parts only: what is scored has had no say in it.
"""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from stacker.predictions import Calibrator, Finish, Finishes, Kind, log_odds, log_of

log = logging.getLogger(__name__)
Rule = Literal["none", "youden", "sensitivity"]
COLDEST, HOTTEST = 0.05, 20.0  # temperatures; where classes are separated, the best would be nought


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
    logits = log_odds(probabilities)
    targets = [1] if logits.shape[1] == 1 else range(logits.shape[1])
    fitted = [
        fit_sigmoid(column, labels == k, weights) for k, column in zip(targets, logits.T, strict=True)
    ]
    slopes, intercepts = zip(*fitted, strict=True)
    return Calibrator("platt", slopes=slopes, intercepts=intercepts)


def _temperature(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    logs, rows = log_of(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logs / np.exp(log_temperature), axis=1)
        return float(-(weights @ scaled[rows, labels]) / weights.sum())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # Where all answers are equal, so are all temperatures.
    return float(np.exp(best.x)) if best.fun < loss(0.0) - 1e-12 else 1.0


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


def fit_finish(
    kind: Kind, rule: Rule, sensitivity: float, probabilities: np.ndarray, labels: np.ndarray
) -> Finish:
    """Return calibration and threshold, the latter chosen on calibrated probabilities."""
    calibrator = fit_calibrator(kind, probabilities, labels)
    if rule == "none" or probabilities.shape[1] != 2:
        return Finish(calibrator)
    shares = calibrator.apply(probabilities)[:, 1]
    return Finish(calibrator, choose_threshold(rule, shares, labels, sensitivity))


def cross_finish(
    kind: Kind,
    rule: Rule,
    sensitivity: float,
    raw: np.ndarray,
    labels: np.ndarray,
    parts: np.ndarray,
) -> Finishes:
    """Return a finish for each part of each cut (R, N), fitted on raw probabilities of the others."""
    return Finishes(
        tuple(
            {
                int(part): fit_finish(
                    kind, rule, sensitivity, raw_NK[parts_N != part], labels[parts_N != part]
                )
                for part in np.unique(parts_N)
            }
            for raw_NK, parts_N in zip(raw, parts, strict=True)
        )
    )
