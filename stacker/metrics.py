"""Scores and their intervals, in plain numpy.

Every score takes weights (R, N): one row of ones gives the score itself, and R rows of case counts give
R bootstrap replicates in the same pass. Whole cases are drawn, never single images, because images of
one case resemble each other and an interval that ignores it is too narrow. The same draws serve every
model, which is what makes the interval of a difference a paired one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Scores = dict[str, np.ndarray]
CHUNK = 8_000_000  # weights held at once: replicates x images


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (N, K) of some images, with their labels and cases."""

    labels: np.ndarray
    cases: np.ndarray
    probabilities: np.ndarray


def scores(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> Scores:
    """Return every score for each row of weights; a score that is undefined is NaN."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.empty((len(weights), classes, classes))
    for true in range(classes):
        for guess in range(classes):
            confusion[:, true, guess] = weights[:, (labels == true) & (predicted == guess)].sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truly, guessed = confusion.sum(axis=2), confusion.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / truly
        precision = hits / guessed
        f1 = np.where(truly > 0, 2 * hits / (truly + guessed), np.nan)
        squares = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1) / 2
        found = {
            "accuracy": hits.sum(axis=1) / truly.sum(axis=1),
            "balanced_accuracy": _mean_of_defined(recall),
            "auc": _auc(labels, probabilities, weights),
            "precision": precision[:, 1] if classes == 2 else _mean_of_defined(precision),
            "f1": f1[:, 1] if classes == 2 else _mean_of_defined(f1),
            "brier": weights @ squares / weights.sum(axis=1),
        }
        if classes == 2:
            found |= {"sensitivity": recall[:, 1], "specificity": recall[:, 0]}
    return found


def area_under_curve(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the ROC curve (mean of one against the rest beyond two classes)."""
    return float(_auc(labels, probabilities, np.ones((1, len(labels))))[0])


def _auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    classes = probabilities.shape[1]
    targets = [1] if classes == 2 else range(classes)
    curves = [_weighted_auc(labels == k, probabilities[:, k], weights) for k in targets]
    return _mean_of_defined(np.stack(curves, axis=1))


def _weighted_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the chance that a positive outscores a negative, ties counting half, (R,)."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sides = [np.where(mask, weights, 0)[:, order] for mask in (positive, ~positive)]
    positives, negatives = (np.add.reduceat(side, starts, axis=1) for side in sides)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore"):
        area: np.ndarray = (positives * below).sum(axis=1) / (positives.sum(1) * negatives.sum(1))
    return area


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, leaving NaN out; NaN where nothing is defined."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
    return mean


def vote(predictions: Predictions) -> Predictions | None:
    """Return one row per case, its mean probability; None when some case carries two labels."""
    cases, position = np.unique(predictions.cases, return_inverse=True)
    total = np.zeros((len(cases), predictions.probabilities.shape[1]))
    np.add.at(total, position, predictions.probabilities)
    lowest = np.full(len(cases), np.iinfo(np.int64).max)
    highest = np.full(len(cases), -1)
    np.minimum.at(lowest, position, predictions.labels)
    np.maximum.at(highest, position, predictions.labels)
    if (lowest != highest).any():
        return None
    # Equal probabilities stay ties whatever the number of images: their sums differ in the last bit.
    mean = np.round(total / np.bincount(position)[:, None], 12)
    return Predictions(lowest, cases, mean)


def recognition_rate(predictions: Predictions, case_weights: np.ndarray) -> np.ndarray:
    """Return the mean over cases of each case's image accuracy (Spanhol et al. 2016, eq. 1 and 2)."""
    _, position = np.unique(predictions.cases, return_inverse=True)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    rate = np.bincount(position, weights=right) / np.bincount(position)
    share: np.ndarray = case_weights @ rate / case_weights.sum(axis=1)
    return share


def draw_cases(cases: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return how often each distinct case is drawn in each bootstrap replicate, (R, cases)."""
    count = len(np.unique(cases))
    rng, shares = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = np.empty((replicates, count), dtype=np.uint16)  # numpy draws int64: gigabytes at once
    step = max(1, CHUNK // count)
    for start in range(0, replicates, step):
        rows = drawn[start : start + step]
        rows[:] = rng.multinomial(count, shares, size=len(rows))
    return drawn


def replicate(predictions: Predictions, case_weights: np.ndarray) -> dict[str, Scores]:
    """Return the scores by image and by case for each row of case weights."""
    _, position = np.unique(predictions.cases, return_inverse=True)
    per_case = vote(predictions)
    pieces: dict[str, list[Scores]] = {"image": [], "case": []}
    step = max(1, CHUNK // len(position))
    for start in range(0, len(case_weights), step):
        weights = case_weights[start : start + step].astype(np.float64)
        by_image = scores(predictions.labels, predictions.probabilities, weights[:, position])
        by_case = {"recognition_rate": recognition_rate(predictions, weights)}
        if per_case is not None:
            by_case = scores(per_case.labels, per_case.probabilities, weights) | by_case
        pieces["image"].append(by_image)
        pieces["case"].append(by_case)
    return {
        unit: {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}
        for unit, found in pieces.items()
    }


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Return the percentile interval of the defined replicates; None when hardly any is defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2:
        return None
    tail = (1 - level) / 2
    return [round(float(bound), 4) for bound in np.quantile(defined, [tail, 1 - tail])]


def evaluate(models: Mapping[str, Predictions], replicates: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return {model: {unit: {score: value, ..., "n": N, "interval": {score: [low, high]}}}}."""
    result: dict[str, dict[str, Any]] = {}
    for name, predictions in models.items():
        drawn = draw_cases(predictions.cases, replicates, seed)
        point = replicate(predictions, np.ones((1, drawn.shape[1])))
        spread = replicate(predictions, drawn)
        sizes = {"image": len(predictions.labels), "case": drawn.shape[1]}
        result[name] = {
            unit: {
                **{score: _number(value[0]) for score, value in found.items()},
                "n": sizes[unit],
                "interval": {score: interval(spread[unit][score]) for score in found},
            }
            for unit, found in point.items()
        }
        result[name]["constant_prediction"] = bool(
            len(np.unique(predictions.probabilities.argmax(axis=1))) == 1
        )
    return result


def differences(
    models: Mapping[str, Predictions], pairs: list[tuple[str, str]], replicates: int, seed: int
) -> list[dict[str, Any]]:
    """Return the paired differences first - second of image-level scores, with intervals."""
    found = []
    for first, second in pairs:
        drawn = draw_cases(models[first].cases, replicates, seed)
        ones = np.ones((1, drawn.shape[1]))
        for score in ("accuracy", "auc"):
            point, spread = (
                replicate(models[first], w)["image"][score]
                - replicate(models[second], w)["image"][score]
                for w in (ones, drawn)
            )
            found.append(
                {
                    "first": first,
                    "second": second,
                    "score": score,
                    "difference": _number(point[0]),
                    "interval": interval(spread),
                }
            )
    return found


def _number(value: float) -> float | None:
    """Return a score as JSON can hold it: NaN is null."""
    return round(float(value), 4) if np.isfinite(value) else None
