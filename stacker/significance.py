"""Is one model better than another on the same images? Tests of a difference, in numpy and scipy.

DeLong's test compares two areas under the ROC curve, McNemar's two lists of right and wrong answers.
Both are what readers of the field expect, and both take images as independent. Beside each stands one
that does not: Obuchowski's variance adds up by case what DeLong's adds up by image, and the exchange
test swaps the two models' answers for whole cases. Of one image in each case, they are the same tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from stacker.metrics import Predictions, vote

CAVEAT = (
    "DeLong's and McNemar's tests take images as independent, which images of one case are not: "
    "by image, their p-values are too small."
)
FEW_DISCORDANT = 25  # fewer discordant pairs than this are tested exactly
ROUNDING = 1e-15  # a variance below this is nought, computed in floating point


@dataclass(frozen=True)
class AreaTest:
    """Two areas under the ROC curve of the same images; z and p are None where nothing varies."""

    method: str
    first: float
    second: float
    difference: float
    variance: float
    z: float | None
    p: float | None


@dataclass(frozen=True)
class McNemar:
    """How often only the first model is right, how often only the second, and how likely by chance.

    The statistic is None when the test is exact.
    """

    method: str
    only_first_right: int
    only_second_right: int
    statistic: float | None
    p: float


@dataclass(frozen=True)
class ExchangeTest:
    """The difference of two accuracies, and how often swapping whole cases gives as large a one."""

    difference: float
    discordant_cases: int
    p: float


def delong(first: Predictions, second: Predictions) -> AreaTest | None:
    """Compare two AUCs by DeLong et al. 1988; None beyond two classes or without two of each."""
    return _compare_areas(first, second, np.arange(len(first.labels)), "DeLong")


def clustered_delong(first: Predictions, second: Predictions) -> AreaTest | None:
    """Compare two AUCs by Obuchowski 1997, whole cases being independent; None as in `delong`.

    Two cases with images of class 1 and two with images of class 0 are needed. It is a test of large
    samples: of a score of cases, its p-values are a little too small as well.
    """
    _, unit = np.unique(first.cases, return_inverse=True)
    return _compare_areas(first, second, unit, "Obuchowski")


def _compare_areas(
    first: Predictions, second: Predictions, unit: np.ndarray, method: str
) -> AreaTest | None:
    _same_images(first, second)
    positive = first.labels == 1
    enough = all(len(np.unique(unit[side])) > 1 for side in (positive, ~positive))
    if first.probabilities.shape[1] != 2 or not enough:
        return None
    shares = np.stack([first.ranks[:, 1], second.ranks[:, 1]])
    areas, components = _components(positive, shares)
    weights = np.array([1.0, -1.0])
    variance = float(weights @ _covariance(positive, areas, components, unit) @ weights)
    variance = variance if variance > ROUNDING else 0.0
    difference = float(areas[0] - areas[1])
    z, p = None, None
    if variance > 0:
        z = difference / math.sqrt(variance)
        p = float(2 * stats.norm.sf(abs(z)))
    elif abs(difference) < ROUNDING:
        z, p = 0.0, 1.0
    return AreaTest(method, float(areas[0]), float(areas[1]), difference, variance, z, p)


def _components(positive: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return AUCs (M,) and structural components (M, N) from midranks (Sun & Xu 2014, algorithm 2).

    The component of a positive is the share of negatives that it outscores, that of a negative the share
    of positives that outscore it; ties count half.
    """
    ranks = stats.rankdata(shares, axis=1)
    components = np.empty_like(ranks)
    for side, sign in ((positive, 1), (~positive, -1)):
        own = stats.rankdata(shares[:, side], axis=1)
        beaten = (ranks[:, side] - own) / (~side).sum()
        components[:, side] = beaten if sign > 0 else 1 - beaten
    return components[:, positive].mean(axis=1), components


def _covariance(
    positive: np.ndarray, areas: np.ndarray, components: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """Return the covariance (M, M) of the AUCs when whole units are independent (Obuchowski 1997).

    With one image in each unit the mixed term is nought, since a unit has images of one class only, and
    what is left is DeLong's estimate, its factors m/(m-1) and n/(n-1) included.
    """
    units = int(unit.max()) + 1
    deviations = components - areas[:, None]
    found = []
    for side in (positive, ~positive):
        sums = np.stack([np.bincount(unit[side], d[side], units) for d in deviations])
        having = len(np.unique(unit[side]))
        found.append((sums / side.sum(), having / (having - 1)))
    (of_positives, factor_10), (of_negatives, factor_01) = found
    mixed = of_positives @ of_negatives.T * units / (units - 1)
    covariance: np.ndarray = (
        factor_10 * (of_positives @ of_positives.T)
        + factor_01 * (of_negatives @ of_negatives.T)
        + (mixed + mixed.T)
    )
    return covariance


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Compare two lists (N,) of right and wrong answers by McNemar 1947.

    Fewer than 25 discordant pairs are tested by the binomial distribution, more by chi-square with the
    correction for continuity, as R's mcnemar.test does.
    """
    b = int((first_right & ~second_right).sum())
    c = int((second_right & ~first_right).sum())
    if b + c < FEW_DISCORDANT:
        p = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
        return McNemar("exact binomial", b, c, None, p)
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    p = float(stats.chi2.sf(statistic, 1))
    return McNemar("chi-square with continuity correction", b, c, statistic, p)


def exchange_test(first: Predictions, second: Predictions) -> ExchangeTest:
    """Compare two accuracies by swapping the models' answers for whole cases, in all possible ways.

    Were the models alike, a case's surplus of right answers would as well be the other's. The surpluses
    are whole numbers, so that the distribution of their sum over all 2^cases swaps is had exactly, by
    convolution, with no draws and no seed. With one image in each case this is McNemar's exact test.
    """
    _same_images(first, second)
    _, case = np.unique(first.cases, return_inverse=True)
    gain = (first.predicted == first.labels) * 1 - (second.predicted == second.labels)
    surplus = np.rint(np.bincount(case, gain)).astype(np.int64)
    sizes = np.abs(surplus[surplus != 0])
    total = int(sizes.sum())
    chances = np.zeros(2 * total + 1)  # of the sums -total ... total
    chances[total] = 1
    for size in sizes:
        # What leaves at one end of the array comes in at the other, where it can only be nought.
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    as_large = np.abs(np.arange(-total, total + 1)) >= abs(int(surplus.sum()))
    p = min(1.0, float(chances[as_large].sum()))
    return ExchangeTest(float(gain.mean()), len(sizes), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for being several (Holm 1979); None stays None and does not count."""
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        so_far = min(1.0, max(so_far, (len(known) - rank) * p))
        adjusted[i] = so_far
    return adjusted


def compare_pair(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Return every test of two models, as JSON can hold them, by image and by case.

    By case, each model has the mean probability of a case's images for an answer; it is None when some
    case carries two labels.
    """
    by_image = {
        "delong": delong(first, second),
        "clustered_delong": clustered_delong(first, second),
        "mcnemar": mcnemar(first.predicted == first.labels, second.predicted == second.labels),
        "exchange": exchange_test(first, second),
    }
    result: dict[str, Any] = {"image": _plain(by_image), "case": None, "caveat": CAVEAT}
    one, other = vote(first), vote(second)
    if one is not None and other is not None:
        right = (one.predicted == one.labels, other.predicted == other.labels)
        result["case"] = _plain({"delong": delong(one, other), "mcnemar": mcnemar(*right)})
    return result


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {name: None if test is None else asdict(test) for name, test in found.items()}


def _same_images(first: Predictions, second: Predictions) -> None:
    same = np.array_equal(first.cases, second.cases) and np.array_equal(first.labels, second.labels)
    if not same:
        raise ValueError("the two models are not compared on the same images")
