"""Is one model better than another on the same images? Tests of a difference, in numpy and scipy.

DeLong's test compares two areas under the ROC curve, McNemar's two lists of right and wrong answers.
Both are what readers of the field expect, and both take images as independent. Beside each stands one
that does not: Obuchowski's variance adds up by case what DeLong's adds up by image, and the exchange
test swaps the two models' answers for whole cases. Areas are those of pairs within parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from stacker.scores.influence import influence
from stacker.scores.predictions import Predictions, aligned, by_case

CAVEAT = (
    "DeLong's and McNemar's tests take images as independent, which images of one case are not: "
    "by image, their p-values are too small."
)
FEW_DISCORDANT = 25  # fewer discordant pairs than this are tested exactly


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

    Two cases with images of class 1 and two with images of class 0 are needed; p comes from a
    t-distribution, because a normal one promises too much of a score of cases.
    """
    _, unit = np.unique(first.cases, return_inverse=True)
    return _compare_areas(first, second, unit, "Obuchowski")


def _compare_areas(
    first: Predictions, second: Predictions, unit: np.ndarray, method: str
) -> AreaTest | None:
    one, other = aligned(first, second)
    if first.probabilities.shape[1] != 2:
        return None
    units = int(unit.max()) + 1
    ours, theirs = influence(one, unit, units), influence(other, unit, units)
    if ours is None or theirs is None or min(ours.carriers) < 2:
        return None
    found = ours.less(theirs)
    z, p = None, found.p
    if found.variance > 0:
        z = found.area / found.error
        p = p if method == "Obuchowski" else float(2 * stats.norm.sf(abs(z)))
    elif p is not None:
        z = 0.0
    return AreaTest(method, ours.area, theirs.area, found.area, found.variance, z, p)


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
    aligned(first, second)  # of the same images
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
    one, other = by_case(first), by_case(second)
    if one is not None and other is not None:
        right = (one.predicted == one.labels, other.predicted == other.labels)
        result["case"] = _plain({"delong": delong(one, other), "mcnemar": mcnemar(*right)})
    return result


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {name: None if test is None else asdict(test) for name, test in found.items()}
