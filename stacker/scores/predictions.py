"""What a model says of some images, before and after it is finished, by image and by case.

A model gives raw probabilities. Out of fold they come in parts, each by a fit of its own, and the cases
may be cut into parts more than once. Fits differ in scale: two images are compared only where one fit
made both raw probabilities. A finish makes of them what is reported: calibrated probabilities, and a
threshold where there are two classes. Cases have a finish of their own, because the mean of many images
is not distributed as one image is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import expit, softmax

Kind = Literal["none", "temperature", "platt"]
Threshold = float | np.ndarray | None
PARTS = {"development": "Development cases, out of fold", "test": "Test cases"}
BINS = 10  # of the calibration error
LEAST = 1e-7  # probabilities are kept this far from nought and one before their logarithm is taken
SURELY = 1e-4  # the same where fits are averaged: one that is too sure must not decide alone
FARTHEST = 30.0  # a sigmoid is not followed further out, where it is one or nought


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
            cooled: np.ndarray = softmax(log_of(probabilities) / self.temperature, axis=1)
            return cooled
        if self.kind == "platt":
            return sigmoids(log_odds(probabilities), self.slopes, self.intercepts)
        return probabilities


def sigmoids(values: np.ndarray, slopes: Any, intercepts: Any) -> np.ndarray:
    """Return probabilities (N, K) of one value a row (N, 1) for class 1 of two, or of one a class."""
    scaled = values * np.asarray(slopes) + np.asarray(intercepts)
    shares: np.ndarray = expit(np.clip(scaled, -FARTHEST, FARTHEST))
    if shares.shape[1] == 1:
        return np.column_stack([1 - shares, shares])
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def log_of(probabilities: np.ndarray, least: float = LEAST) -> np.ndarray:
    """Return the logarithm of probabilities, none of them nought."""
    logs: np.ndarray = np.log(np.clip(probabilities.astype(np.float64), least, 1))
    return logs


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Return the log-odds of class 1 of two (N, 1), else of each class against the rest (N, K)."""
    shares = probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities
    shares = np.clip(shares.astype(np.float64), LEAST, 1 - LEAST)
    odds: np.ndarray = np.log(shares) - np.log1p(-shares)
    return odds


def mean_over_folds(shares: np.ndarray) -> np.ndarray:
    """Return one model's probabilities (N, K) from those of every fold (folds, N, K): by log-odds.

    What is calibrated are the log-odds that one fold's models give; their mean stays on that scale. The
    mean of probabilities would be drawn to the middle, and every threshold would lie too far out.
    """
    if len(shares) == 1:
        only: np.ndarray = shares[0]
        return only
    mean: np.ndarray = softmax(log_of(shares, SURELY).mean(axis=0), axis=1)
    return mean


@dataclass(frozen=True)
class Finish:
    """What is made of raw probabilities: calibrated, and of two classes cut at a threshold."""

    calibrator: Calibrator = Calibrator()
    threshold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Finish:
        """Return the finish that JSON holds, where tuples are lists."""
        plain = Calibrator(**content["calibrator"])
        tuples = replace(plain, slopes=tuple(plain.slopes), intercepts=tuple(plain.intercepts))
        return cls(tuples, content["threshold"])


Finishes: TypeAlias = tuple[Mapping[int, Finish], ...]  # for each part of each cut, from the other parts


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==, and hashes go by identity
class Predictions:
    """Class probabilities (N, K) of some images, with their labels and cases.

    Of two classes, class 1 is predicted from the threshold on; it is one for all, or one for each image.
    `raw` (R, N, K) is what the images are ranked by: R cuts into `parts` (R, N), each with fits of its
    own. Without them the probabilities are ranked, as one part. `case_finish` is for the mean raw
    probabilities of cases; without it a case has the mean of its images' probabilities and thresholds.
    """

    labels: np.ndarray
    cases: np.ndarray
    probabilities: np.ndarray
    threshold: Threshold = None
    raw: np.ndarray | None = None
    parts: np.ndarray | None = None
    case_finish: Finishes | None = None

    @property
    def predicted(self) -> np.ndarray:
        """The decisions (N,): the likeliest class, or class 1 where it reaches the threshold."""
        if self.threshold is None or self.probabilities.shape[1] != 2:
            likeliest: np.ndarray = self.probabilities.argmax(axis=1)
            return likeliest
        return (self.probabilities[:, 1] >= self.threshold).astype(np.int64)

    @property
    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """What images are ranked by (R, N, K), and the parts (R, N) within which they are compared."""
        if self.raw is None or self.parts is None:
            return self.probabilities[None], np.zeros((1, len(self.labels)), dtype=np.int64)
        return self.raw, self.parts

    def at(self, rows: np.ndarray) -> Predictions:
        """Return the predictions of some images, given by mask or by number."""
        threshold = self.threshold[rows] if isinstance(self.threshold, np.ndarray) else self.threshold
        return replace(
            self,
            labels=self.labels[rows],
            cases=self.cases[rows],
            probabilities=self.probabilities[rows],
            threshold=threshold,
            raw=None if self.raw is None else self.raw[:, rows],
            parts=None if self.parts is None else self.parts[:, rows],
        )


def finished(
    labels: np.ndarray,
    cases: np.ndarray,
    raw: np.ndarray,
    parts: np.ndarray,
    finishes: Finishes,
    case_finishes: Finishes | None,
) -> Predictions:
    """Return raw probabilities (R, N, K) in parts (R, N) with what the finishes of each make of them.

    Calibrated probabilities and thresholds are averaged over the cuts; where some finish has no
    threshold there is none.
    """
    shares, levels = np.zeros(raw.shape[1:]), np.zeros(raw.shape[1])
    cuts = True
    for by_part, raw_NK, parts_N in zip(finishes, raw, parts, strict=True):
        for part in np.unique(parts_N):
            rows, finish = parts_N == part, by_part[int(part)]
            shares[rows] += finish.calibrator.apply(raw_NK[rows]) / len(raw)
            cuts = cuts and finish.threshold is not None
            levels[rows] += (finish.threshold or 0) / len(raw)
    threshold: Threshold = None
    if cuts:
        threshold = float(levels[0]) if len(np.unique(levels)) == 1 else levels
    return Predictions(labels, cases, shares, threshold, raw, parts, case_finishes)


def by_case(predictions: Predictions) -> Predictions | None:
    """Return one row per case, its mean probability; None when some case carries two labels."""
    cases, position = np.unique(predictions.cases, return_inverse=True)
    labels = _of_cases(predictions.labels, position)
    if labels is None:
        return None
    count = np.bincount(position)

    def mean(values: np.ndarray) -> np.ndarray:
        # Equal probabilities stay ties whatever the number of images: their sums differ in the last bit.
        if values.ndim > 1:
            return np.stack([mean(column) for column in values.T], axis=1)
        return np.round(np.bincount(position, values) / count, 12)

    raw, parts = None, None
    if predictions.raw is not None and predictions.parts is not None:
        raw = np.stack([mean(raw_NK) for raw_NK in predictions.raw])
        of_cases = [_of_cases(parts_N, position) for parts_N in predictions.parts]
        # One part for all where a split lets cases straddle it.
        parts = np.stack([np.full(len(cases), -1) if of is None else of for of in of_cases])
        if predictions.case_finish is not None and (parts >= 0).all():
            return finished(labels, cases, raw, parts, predictions.case_finish, None)
    threshold = predictions.threshold
    if threshold is not None:
        threshold = mean(threshold) if isinstance(threshold, np.ndarray) else round(threshold, 12)
    return Predictions(labels, cases, mean(predictions.probabilities), threshold, raw, parts)


def _of_cases(values: np.ndarray, position: np.ndarray) -> np.ndarray | None:
    """Return the value (C,) that all images of a case have, None where some have several."""
    of_cases = np.empty(position.max() + 1, dtype=np.int64)
    of_cases[position] = values
    return of_cases if (of_cases[position] == values).all() else None


def aligned(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Return two models' predictions for the same images, ranked within the same parts.

    Of parts that differ, those rows are compared that both have in one part.
    """
    same = np.array_equal(first.cases, second.cases) and np.array_equal(first.labels, second.labels)
    if not same:
        raise ValueError("the two models are not predictions for the same images")
    (raw_1, parts_1), (raw_2, parts_2) = first.ranked, second.ranked
    if np.array_equal(parts_1, parts_2):
        return first, second
    cuts = max(len(parts_1), len(parts_2))
    one, other = (
        np.resize(parts, (cuts, parts.shape[1])).astype(np.int64) for parts in (parts_1, parts_2)
    )
    both = one * (other.max() + 2) + other
    return (
        replace(first, raw=np.resize(raw_1, (cuts, *raw_1.shape[1:])), parts=both, case_finish=None),
        replace(second, raw=np.resize(raw_2, (cuts, *raw_2.shape[1:])), parts=both, case_finish=None),
    )


def stated(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return stated probabilities, and whether they came true: of class 1, or of the likeliest class."""
    shares, labels = predictions.probabilities, predictions.labels
    if shares.shape[1] == 2:
        return shares[:, 1], (labels == 1).astype(np.float64)
    return shares.max(axis=1), (shares.argmax(axis=1) == labels).astype(np.float64)


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return in which of the bins of equal width each probability lies; one is in the last."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def reliability(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, frequency and number of images in bins of equal width, each (bins,).

    A bin without images has NaN for its means.
    """
    confidence, came_true = stated(predictions)
    place = bin_of(confidence)
    images = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean, frequency = (np.bincount(place, v, BINS) / images for v in (confidence, came_true))
    return mean, frequency, images
