"""Scores and their intervals, in plain numpy.

Every score takes weights (R, N): one row of ones gives the score itself, and R rows of case counts give
R bootstrap replicates in the same pass. Whole cases are drawn, never single images, because images of
one case resemble each other and an interval that ignores it is too narrow. The same draws serve every
model, which is what makes the interval of a difference a paired one.

Most scores are functions of sums over images, so that a replicate is a row of case counts times a small
table of sums per case; the two areas need the order of the images too (see `ranking`). The calibration
error is the one score that grows by being resampled: its interval tends to lie above it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stacker.ranking import Ranking

Scores = dict[str, np.ndarray]
Threshold = float | np.ndarray | None
Wanted = Collection[str] | None
CHUNK = 1_000_000  # weights held at once, replicates x images: few enough to stay near the processor
BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (N, K) of some images, with their labels and cases.

    Of two classes, class 1 is predicted from the threshold on; it is one for all, or one for each image.
    `order` (N, K) is what images are ranked by where that is not the probabilities: those that were
    calibrated in parts, each with a temperature of its own, do not rank the images of two parts.
    """

    labels: np.ndarray
    cases: np.ndarray
    probabilities: np.ndarray
    threshold: Threshold = None
    order: np.ndarray | None = None

    @property
    def ranks(self) -> np.ndarray:
        """What the areas under curves rank the images by, (N, K)."""
        return self.probabilities if self.order is None else self.order

    @property
    def predicted(self) -> np.ndarray:
        """The decisions (N,): the likeliest class, or class 1 where it reaches the threshold."""
        if self.threshold is None or self.probabilities.shape[1] != 2:
            likeliest: np.ndarray = self.probabilities.argmax(axis=1)
            return likeliest
        return (self.probabilities[:, 1] >= self.threshold).astype(np.int64)

    def at(self, rows: np.ndarray) -> Predictions:
        """Return the predictions of some images, given by mask or by number."""
        threshold = self.threshold[rows] if isinstance(self.threshold, np.ndarray) else self.threshold
        order = None if self.order is None else self.order[rows]
        own = (self.labels[rows], self.cases[rows], self.probabilities[rows])
        return Predictions(*own, threshold, order)


def scores(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, threshold: Threshold = None
) -> Scores:
    """Return every score for each row of weights; a score that is undefined is NaN."""
    rows = np.arange(len(labels))
    return _scores(Predictions(labels, rows, probabilities, threshold), rows, weights)


def area_under_curve(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the ROC curve (mean of one against the rest beyond two classes)."""
    rows = np.arange(len(labels))
    found = _scores(Predictions(labels, rows, probabilities), rows, np.ones((1, len(rows))), {"auc"})
    return float(found["auc"][0])


def _scores(
    predictions: Predictions, unit: np.ndarray, weights: np.ndarray, wanted: Wanted = None
) -> Scores:
    """Return the scores for each row of weights (R, U), where image i has the weight of its unit[i]."""
    classes, units = predictions.probabilities.shape[1], weights.shape[1]
    sums = _sums(predictions, unit, units)
    rankings = []
    if wanted is None or {"auc", "average_precision"} & set(wanted):
        exact = np.float32 if weights.dtype.kind in "ui" else np.float64  # counts are, in either
        rankings = [
            Ranking(predictions.labels == k, predictions.ranks[:, k], unit, units, exact)
            for k in ([1] if classes == 2 else range(classes))
        ]
    pieces = []
    step = max(1, CHUNK // max(len(unit), units))
    for start in range(0, len(weights), step):
        some = weights[start : start + step].astype(np.float64)
        found = _from_sums(some @ sums, classes)
        if rankings:
            areas = np.array([ranking.areas(some) for ranking in rankings])
            found["auc"], found["average_precision"] = _mean_of_defined(areas.transpose(1, 2, 0))
        pieces.append({s: v for s, v in found.items() if wanted is None or s in wanted})
    return {score: np.concatenate([piece[score] for piece in pieces]) for score in pieces[0]}


def _sums(predictions: Predictions, unit: np.ndarray, units: int) -> np.ndarray:
    """Return what most scores are made of, added up by unit: confusion, squares, gaps by bin."""
    classes = predictions.probabilities.shape[1]
    cell = (unit * classes + predictions.labels) * classes + predictions.predicted
    confusion = np.bincount(cell, minlength=units * classes**2).reshape(units, -1)
    errors = predictions.probabilities - np.eye(classes)[predictions.labels]
    squares = np.bincount(unit, (errors**2).sum(axis=1) / 2, units)
    confidence, came_true = stated(predictions)
    cell = unit * BINS + bin_of(confidence, BINS)
    gaps = np.bincount(cell, came_true - confidence, units * BINS).reshape(units, -1)
    return np.column_stack([confusion, squares, gaps])


def _from_sums(sums: np.ndarray, classes: int) -> Scores:
    confusion = sums[:, : classes**2].reshape(-1, classes, classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truly, guessed, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / truly
        others = total[:, None] - truly
        by_class = {
            "sensitivity": recall,
            "specificity": (others - guessed + hits) / others,
            "precision": hits / guessed,
            "f1": np.where(truly > 0, 2 * hits / (truly + guessed), np.nan),
        }
        return {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1) if classes == 2 else _mean_of_defined(recall),
            **{s: v[:, 1] if classes == 2 else _mean_of_defined(v) for s, v in by_class.items()},
            "auc": np.full(len(sums), np.nan),
            "average_precision": np.full(len(sums), np.nan),
            "brier": sums[:, -BINS - 1] / total,
            "ece": np.abs(sums[:, -BINS:]).sum(axis=1) / total,
        }


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, leaving NaN out; NaN where nothing is defined."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)
    return mean


def stated(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return stated probabilities, and whether they came true: of class 1, or of the likeliest class."""
    shares, labels = predictions.probabilities, predictions.labels
    if shares.shape[1] == 2:
        return shares[:, 1], (labels == 1).astype(np.float64)
    return shares.max(axis=1), (shares.argmax(axis=1) == labels).astype(np.float64)


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return in which of the bins of equal width each probability lies; one is in the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def vote(predictions: Predictions) -> Predictions | None:
    """Return one row per case, its mean probability; None when some case carries two labels."""
    cases, position = np.unique(predictions.cases, return_inverse=True)
    labels = np.empty(len(cases), dtype=np.int64)
    labels[position] = predictions.labels
    if (labels[position] != predictions.labels).any():
        return None
    count = np.bincount(position)

    def mean(values: np.ndarray) -> np.ndarray:
        # Equal probabilities stay ties whatever the number of images: their sums differ in the last bit.
        return np.round(np.bincount(position, values) / count, 12)

    def means(values: np.ndarray) -> np.ndarray:
        return np.stack([mean(column) for column in values.T], axis=1)

    threshold = predictions.threshold
    if isinstance(threshold, np.ndarray):
        threshold = mean(threshold)
    elif threshold is not None:
        threshold = round(threshold, 12)
    order = None if predictions.order is None else means(predictions.order)
    return Predictions(labels, cases, means(predictions.probabilities), threshold, order)


def recognition_rate(predictions: Predictions, case_weights: np.ndarray) -> np.ndarray:
    """Return the mean over cases of each case's image accuracy (Spanhol et al. 2016, eq. 1 and 2)."""
    _, position = np.unique(predictions.cases, return_inverse=True)
    right = predictions.predicted == predictions.labels
    rate = np.bincount(position, weights=right) / np.bincount(position)
    some = np.array_split(case_weights, -(-case_weights.size // CHUNK))
    return np.concatenate([weights @ rate / weights.sum(axis=1) for weights in some])


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


class _Draws:
    """The draws for all models, made once as long as their cases are the same; the first row is ones."""

    def __init__(self, replicates: int, seed: int) -> None:
        self.replicates, self.seed = replicates, seed
        self.cases: np.ndarray | None = None

    def replicate(self, predictions: Predictions, wanted: Wanted = None) -> dict[str, Scores]:
        """Return the scores by unit: first themselves, then their replicates."""
        if self.cases is None or not np.array_equal(self.cases, predictions.cases):
            self.cases = predictions.cases
            _, self.numbers = np.unique(self.cases, return_inverse=True)
            drawn = draw_cases(self.numbers, self.replicates, self.seed)
            self.weights = np.concatenate([np.ones_like(drawn[:1]), drawn])
        # Numbers sort as their names do, and faster.
        return replicate(replace(predictions, cases=self.numbers), self.weights, wanted)


def replicate(
    predictions: Predictions, case_weights: np.ndarray, wanted: Wanted = None
) -> dict[str, Scores]:
    """Return the scores, or those that are wanted, by image and by case for each row of case weights."""
    names, position = np.unique(predictions.cases, return_inverse=True)
    by_case = {}
    if (voted := vote(predictions)) is not None:
        by_case = _scores(voted, np.arange(len(names)), case_weights, wanted)
    by_case["recognition_rate"] = recognition_rate(predictions, case_weights)
    return {"image": _scores(predictions, position, case_weights, wanted), "case": by_case}


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Return the percentile interval of the defined replicates; None when hardly any is defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2:
        return None
    tail = (1 - level) / 2
    return [round(float(bound), 4) for bound in np.quantile(defined, [tail, 1 - tail])]


def evaluate(models: Mapping[str, Predictions], replicates: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return {model: {unit: {score: value, ..., "n": N, "interval": {score: [low, high]}}}}.

    One case alone has no interval: nothing says how much another would differ.
    """
    draws = _Draws(replicates, seed)
    result: dict[str, dict[str, Any]] = {}
    for name, predictions in models.items():
        found = draws.replicate(predictions)
        sizes = {"image": len(predictions.labels), "case": draws.weights.shape[1]}
        result[name] = {
            unit: {
                **{score: _number(values[0]) for score, values in by_unit.items()},
                "n": sizes[unit],
                "interval": {score: _spread(v, sizes["case"]) for score, v in by_unit.items()},
            }
            for unit, by_unit in found.items()
        }
        result[name]["constant_prediction"] = len(np.unique(predictions.predicted)) == 1
    return result


def evaluate_subsets(
    models: Mapping[str, Predictions], subsets: Mapping[str, np.ndarray], replicates: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {subset: what `evaluate` says of its images}; a subset (N,) of no image is left out."""
    return {
        subset: evaluate({n: p.at(mask) for n, p in models.items()}, replicates, seed)
        for subset, mask in subsets.items()
        if mask.any()
    }


def differences(
    models: Mapping[str, Predictions],
    pairs: Sequence[tuple[str, str]],
    replicates: int,
    seed: int,
    scores: Sequence[str] = ("accuracy", "auc"),
    unit: str = "image",
) -> list[dict[str, Any]]:
    """Return the paired differences first - second of some scores by image or case, with intervals."""
    draws, found = _Draws(replicates, seed), {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        found[name] = draws.replicate(models[name], scores)[unit]
    rows = []
    for first, second in pairs:
        one, other = models[first], models[second]
        if not (np.array_equal(one.cases, other.cases) and np.array_equal(one.labels, other.labels)):
            raise ValueError(f"{first} and {second} are not predictions for the same images")
        for score in scores:
            undefined = np.full(replicates + 1, np.nan)  # such as a vote of cases with two labels
            gain = found[first].get(score, undefined) - found[second].get(score, undefined)
            row = {"first": first, "second": second, "score": score, "unit": unit}
            spread = _spread(gain, len(np.unique(one.cases)))
            rows.append(row | {"difference": _number(gain[0]), "interval": spread})
    return rows


def _spread(values: np.ndarray, cases: int) -> list[float] | None:
    """Return the interval of a score's replicates, which follow the score itself."""
    return interval(values[1:]) if cases > 1 else None


def _number(value: float) -> float | None:
    """Return a score as JSON can hold it: NaN is null."""
    return round(float(value), 4) if np.isfinite(value) else None
