"""The area under the ROC curve with its error, when images come in cases and are compared in parts.

What a case adds to the area (its influence) is had without drawing anything: each of its positives beats
some negatives of its part, each of its negatives is beaten by some positives, more or less often than
the area says. Adding up by case what DeLong et al. (1988) add up by image gives Obuchowski's variance
(1997). Of two models the influences are subtracted, which makes the comparison a paired one.

Intervals use t-quantiles with as many degrees of freedom as the rarest class has cases, less one, and
are made on the scale of log-odds: so they stay between nought and one, and few cases make them wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from stacker.scores.predictions import Predictions, aligned

LEVEL, POWER = 0.95, 0.8
DRAWS = 20_000  # of the largest of several t-statistics
ROUNDING = 1e-15  # a variance below this is nought, computed in floating point


@dataclass(frozen=True)
class Influence:
    """What each unit (U,) adds to an area by its positives, and by its negatives.

    `carriers` are how many units have positives, and negatives.
    """

    area: float
    positive: np.ndarray
    negative: np.ndarray
    carriers: tuple[int, int]

    def less(self, other: Influence) -> Influence:
        """Return the influence on the difference of two areas of the same images."""
        positive, negative = self.positive - other.positive, self.negative - other.negative
        return Influence(self.area - other.area, positive, negative, self.carriers)

    @property
    def of_unit(self) -> np.ndarray:
        """What each unit adds in all, (U,)."""
        total: np.ndarray = self.positive + self.negative
        return total

    @property
    def variance(self) -> float:
        """The variance of the area when whole units are independent (Obuchowski 1997)."""
        sides = (self.positive, self.negative)
        variance = sum(
            n / (n - 1) * float(side @ side) if n > 1 else math.nan
            for n, side in zip(self.carriers, sides, strict=True)
        )
        units = len(self.positive)
        variance += 2 * float(self.positive @ self.negative) * units / max(1, units - 1)
        return variance if not variance < ROUNDING else 0.0

    @property
    def error(self) -> float:
        """The standard error of the area."""
        return math.sqrt(self.variance)

    @property
    def freedom(self) -> int:
        """The degrees of freedom of the error: Satterthwaite's are more, and cover too seldom."""
        return max(1, min(self.carriers) - 1)

    @property
    def p(self) -> float | None:
        """How likely so large a difference is by chance; None where its error is not known."""
        if math.isnan(self.variance):
            return None
        if self.variance > 0:
            return float(2 * stats.t.sf(abs(self.area) / self.error, self.freedom))
        return 1.0 if abs(self.area) < ROUNDING else None


def influence(predictions: Predictions, unit: np.ndarray, units: int) -> Influence | None:
    """Return the area of some predictions, images of one `unit` (N,) going together.

    Beyond two classes it is the mean area of one class against the rest. None where it is not defined.
    """
    classes = predictions.probabilities.shape[1]
    if classes == 2:
        return _of_class(predictions, 1, unit, units)
    by_class = [_of_class(predictions, k, unit, units) for k in range(classes)]
    known = [of_class for of_class in by_class if of_class is not None]
    if not known:
        return None
    # An image is a positive of one class and a negative of all others: only their sum has a meaning.
    total = np.mean([of_class.of_unit for of_class in known], axis=0)
    fewest = min(min(of_class.carriers) for of_class in known)
    area = float(np.mean([of_class.area for of_class in known]))
    return Influence(area, total, np.zeros_like(total), (units, max(2, fewest)))


def _of_class(predictions: Predictions, k: int, unit: np.ndarray, units: int) -> Influence | None:
    positive = predictions.labels == k
    wins, pairs = 0.0, 0
    gained, lost = np.zeros((2, units)), np.zeros((2, units))  # won pairs, and all pairs, by unit
    for raw_NK, parts_N in zip(*predictions.ranked, strict=True):
        for part in np.unique(parts_N):
            rows = np.flatnonzero(parts_N == part)
            above, below = rows[positive[rows]], rows[~positive[rows]]
            if not len(above) or not len(below):
                continue
            beaten, by = _beaten(raw_NK[above, k], raw_NK[below, k])
            wins, pairs = wins + float(beaten.sum()), pairs + len(above) * len(below)
            gained += _by_unit(unit[above], beaten, len(below), units)
            lost += _by_unit(unit[below], by, len(above), units)
    if not pairs:
        return None
    area = wins / pairs
    won, beaten = ((side[0] - area * side[1]) / pairs for side in (gained, lost))
    carriers = (len(np.unique(unit[positive])), len(np.unique(unit[~positive])))
    return Influence(area, won, beaten, carriers)


def _beaten(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many negatives each positive beats, and how many positives beat each negative.

    From midranks (Sun & Xu 2014, algorithm 2): ties count half.
    """
    count, ranks = len(positives), stats.rankdata(np.concatenate([positives, negatives]))
    beaten = ranks[:count] - stats.rankdata(positives)
    return beaten, count - (ranks[count:] - stats.rankdata(negatives))


def _by_unit(unit: np.ndarray, won: np.ndarray, against: int, units: int) -> np.ndarray:
    pairs = np.full(len(unit), float(against))
    return np.stack([np.bincount(unit, pairs_or_wins, units) for pairs_or_wins in (won, pairs)])


def difference_of_areas(first: Predictions, second: Predictions) -> Influence | None:
    """Return the influence of cases on the difference of two models' areas; None if not defined."""
    names, unit = np.unique(first.cases, return_inverse=True)
    one, other = (influence(side, unit, len(names)) for side in aligned(first, second))
    return None if one is None or other is None else one.less(other)


def quantile(freedom: float) -> float:
    """Return the t-quantile of a two-sided interval of 95 %."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def detectable(error: float, freedom: float) -> float:
    """Return the gain that would have been seen four times of five (5 %, two-sided)."""
    return error * (quantile(freedom) + float(stats.t.ppf(POWER, freedom)))


def on_log_odds(value: float, error: float, freedom: float) -> list[float]:
    """Return the interval of a share, by a t-quantile on the scale of log-odds."""
    half = quantile(freedom) * error / (value * (1 - value))
    return [float(expit(logit(value) - half)), float(expit(logit(value) + half))]


def around(value: float, error: float, quantile: float) -> list[float]:
    """Return value - quantile x error, and value + quantile x error."""
    return [value - quantile * error, value + quantile * error]


def joint_quantile(gains: Sequence[Influence]) -> float:
    """Return the quantile by which all of some intervals hold the truth together, 95 times of 100.

    It is that of the largest of several t-statistics that are correlated as the influences are (Hothorn
    et al. 2008), with the fewest degrees of freedom among them.
    """
    varying = [gain for gain in gains if gain.variance > 0]
    if not varying:
        return math.nan
    scaled = np.stack([gain.of_unit / np.linalg.norm(gain.of_unit) for gain in varying])
    freedom = min(gain.freedom for gain in varying)
    rng = np.random.default_rng(0)
    pieces = (rng.standard_normal((DRAWS // 10, scaled.shape[1])) @ scaled.T for _ in range(10))
    largest = np.concatenate([np.abs(piece).max(axis=1) for piece in pieces])
    spread = np.sqrt(rng.chisquare(freedom, len(largest)) / freedom)
    return float(np.quantile(largest / spread, LEVEL))
