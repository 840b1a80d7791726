"""ROC and reliability curves with intervals, as numbers to draw.

A ROC curve is drawn from pairs of images of one part, as the AUC is counted: at each false positive rate
the true positive rates of the parts are averaged, a part weighing as many pairs as it has. So the area
under the curve that is seen is the AUC that is reported. The errors come from draws of whole cases, and
the intervals are pointwise: each holds for its own rate or bin, not for all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

from stacker.scores.bootstrap import FEWEST, Resampling, draw_cases
from stacker.scores.influence import influence, on_log_odds, quantile
from stacker.scores.metrics import area_within
from stacker.scores.predictions import BINS, Predictions, bin_of, reliability, stated

DRAWS = 400  # at most: what is looked at needs no second digit
RATES = np.linspace(0, 1, 201)  # the false positive rates at which a curve is known


@dataclass(frozen=True)
class Roc:
    """The true positive rates at RATES and the area below them, with intervals or why there are none."""

    rates: np.ndarray
    band: np.ndarray | None
    area: float
    interval: list[float] | None
    withheld: str | None


@dataclass(frozen=True)
class Part:
    """Images that are compared with each other: are they positive, their ranks, and their cases."""

    positive: np.ndarray
    rank: np.ndarray
    case: np.ndarray


def roc(predictions: Predictions, target: int, how: Resampling) -> Roc:
    """Return the ROC curve of one class against all others."""
    binary, how = _against_others(predictions, target, how)
    names, case = np.unique(binary.cases, return_inverse=True)
    area, carriers = influence(binary, case, len(names)), how.carriers(binary)
    parts = list(_parts(binary, case))
    rates = _rates(parts, np.ones(len(names)))
    if area is None:
        return Roc(rates, None, area_within(binary), None, "images of one class only")
    why = carriers.why_not("auc")
    if why is None and (not area.error > 0 or not 0 < area.area < 1):
        why = f"no variation between {how.unit}s"
    if why is not None:
        return Roc(rates, None, area.area, None, why)
    drawn = draw_cases(case, min(how.replicates, DRAWS), how.seed)
    error = _deviation(np.stack([_rates(parts, weights) for weights in drawn]), len(names))
    band = _band(rates, error, min(carriers.counts))
    interval = on_log_odds(area.area, area.error, area.freedom)
    return Roc(rates, band, area.area, interval, None)


def _against_others(
    predictions: Predictions, target: int, how: Resampling
) -> tuple[Predictions, Resampling]:
    """Return predictions of two classes: all others, and the target."""
    raw, parts = predictions.ranked
    sides = np.stack([1 - raw[..., target], raw[..., target]], axis=-1)
    labels = (predictions.labels == target).astype(np.int64)
    binary = Predictions(labels, predictions.cases, sides[0], raw=sides, parts=parts)
    others = [name for k, name in enumerate(how.classes) if k != target]
    rest = others[0] if len(others) == 1 else "the other classes"
    return binary, replace(how, classes=(rest, how.classes[target]))


def _parts(binary: Predictions, case: np.ndarray) -> Iterator[Part]:
    """Yield the parts of every cut."""
    positive = binary.labels == 1
    for raw_N2, parts_N in zip(*binary.ranked, strict=True):
        for part in np.unique(parts_N):
            rows = parts_N == part
            rank = np.unique(-raw_N2[rows, 1], return_inverse=True)[1]
            yield Part(positive[rows], rank, case[rows])


def _rates(parts: list[Part], weights: np.ndarray) -> np.ndarray:
    """Return the mean true positive rate of the parts at RATES, where every case has a weight."""
    total, pairs = np.zeros(len(RATES)), 0.0
    for part in parts:
        weight = weights[part.case]
        true = np.cumsum(np.bincount(part.rank, weight * part.positive))
        false = np.cumsum(np.bincount(part.rank, weight * ~part.positive))
        if (number := true[-1] * false[-1]) > 0:
            # At a rate that several thresholds have, `interp` takes the last of them, which is the best.
            total += number * np.interp(RATES, np.r_[0, false / false[-1]], np.r_[0, true / true[-1]])
            pairs += number
    return total / pairs if pairs else np.full(len(RATES), np.nan)


def _deviation(drawn: np.ndarray, cases: int) -> np.ndarray:
    """Return the standard error of each column of some draws (R, M), of those that are defined."""
    error: np.ndarray = np.nanstd(drawn, axis=0, ddof=1) * np.sqrt(cases / max(1, cases - 1))
    return error


def _band(rates: np.ndarray, error: np.ndarray, cases: int) -> np.ndarray:
    """Return pointwise intervals (2, len(RATES)) on the scale of log-odds, which hold the curve.

    Half a case is added to each side: where the rate is one in every draw, its error would be nought.
    """
    middle = (cases * rates + 0.5) / (cases + 1)
    half = quantile(max(1, cases - 1)) * error / (middle * (1 - middle))
    low, high = expit(logit(middle) - half), expit(logit(middle) + half)
    return np.stack([np.minimum(low, rates), np.maximum(high, rates)])


@dataclass(frozen=True)
class Reliability:
    """Mean probability, frequency and number of images in each bin (BINS,), with intervals (2, BINS).

    A bin without images has NaN, and so has the interval of a bin of too few cases, or of cases that are
    all alike.
    """

    confidence: np.ndarray
    frequency: np.ndarray
    images: np.ndarray
    interval: np.ndarray


def reliability_with_intervals(predictions: Predictions, how: Resampling) -> Reliability:
    """Return how often it came true where a model was so sure, with intervals by whole cases."""
    confidence, frequency, images = reliability(predictions)
    sure, came_true = stated(predictions)
    names, case = np.unique(predictions.cases, return_inverse=True)
    cell, size = case * BINS + bin_of(sure), len(names) * BINS
    number = np.bincount(cell, minlength=size).reshape(-1, BINS)
    hits = np.bincount(cell, came_true, size).reshape(-1, BINS)
    drawn = draw_cases(case, min(how.replicates, DRAWS), how.seed).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shares = (drawn @ hits) / (drawn @ number)
    interval = np.full((2, BINS), np.nan)
    for k, cases in enumerate((number > 0).sum(axis=0)):
        if cases >= FEWEST and np.nanmax(shares[:, k]) > np.nanmin(shares[:, k]):
            error = float(_deviation(shares[:, [k]], int(cases))[0])
            interval[:, k] = on_log_odds(float(frequency[k]), error, int(cases) - 1)
    return Reliability(confidence, frequency, images, interval)
