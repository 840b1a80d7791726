"""Is one model better than another on the same images? Tests of a difference, in numpy and scipy.

DeLong's test compares two areas under the ROC curve, McNemar's two lists of right and wrong answers.
Both are what readers of the field expect, and both take images as independent. Beside each stands one
that does not: Obuchowski's variance adds up by case what DeLong's adds up by image, and the exchange
test swaps the two models' answers for whole cases. Areas are those of pairs within parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stacker.scores.influence import Influence, influence
from stacker.scores.predictions import Predictions, aligned, by_case

TESTS = {
    "delong": "DeLong's test of the AUC by image",
    "clustered_delong": "DeLong's test of the AUC by image, clustered by case (Obuchowski 1997)",
    "mcnemar": "McNemar's test of right and wrong by image",
    "exchange": "permutation test: the two models' answers are exchanged for whole cases",
    "case_delong": "DeLong's test of the AUC by case",
    "case_mcnemar": "McNemar's test by case",
}
CAVEAT = (
    "DeLong's and McNemar's tests by image treat images as independent, which images of one case are "
    "not: their p-values are too small."
)
FEW_DISCORDANT = 25  # fewer discordant pairs than this are tested exactly


def delong(first: Predictions, second: Predictions) -> float | None:
    """Compare two AUCs by DeLong et al. 1988; None beyond two classes or without two of each."""
    gain = _gain_in_area(first, second, np.arange(len(first.labels)))
    if gain is None or not gain.variance > 0:
        return None if gain is None else gain.p
    return float(2 * stats.norm.sf(abs(gain.area / gain.error)))


def clustered_delong(first: Predictions, second: Predictions) -> float | None:
    """Compare two AUCs by Obuchowski 1997, whole cases being independent; None as in `delong`.

    Two cases with images of class 1 and two with images of class 0 are needed; p comes from a
    t-distribution, because a normal one promises too much of a score of cases.
    """
    _, unit = np.unique(first.cases, return_inverse=True)
    gain = _gain_in_area(first, second, unit)
    return None if gain is None else gain.p


def _gain_in_area(first: Predictions, second: Predictions, unit: np.ndarray) -> Influence | None:
    one, other = aligned(first, second)
    if first.probabilities.shape[1] != 2:
        return None
    units = int(unit.max()) + 1
    of_one, of_other = influence(one, unit, units), influence(other, unit, units)
    if of_one is None or of_other is None or min(of_one.carriers) < 2:
        return None
    return of_one.less(of_other)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Compare two lists (N,) of right and wrong answers by McNemar 1947.

    Fewer than 25 discordant pairs are tested by the binomial distribution, more by chi-square with the
    correction for continuity, as R's mcnemar.test does.
    """
    b = int((first_right & ~second_right).sum())
    c = int((second_right & ~first_right).sum())
    if b + c < FEW_DISCORDANT:
        return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    return float(stats.chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1))


def exchange_test(first: Predictions, second: Predictions) -> float:
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
    return min(1.0, float(chances[as_large].sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for being several (Holm 1979); None stays None and does not count."""
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        so_far = min(1.0, max(so_far, (len(known) - rank) * p))
        adjusted[i] = so_far
    return adjusted


def compare_pair(first: Predictions, second: Predictions) -> dict[str, float | None]:
    """Return the p-value of every one of `TESTS`, None where it cannot be made.

    By case, each model has the mean probability of a case's images for an answer; where some case
    carries two labels there is none.
    """
    p_values: dict[str, float | None] = {
        "delong": delong(first, second),
        "clustered_delong": clustered_delong(first, second),
        "mcnemar": mcnemar(first.predicted == first.labels, second.predicted == second.labels),
        "exchange": exchange_test(first, second),
    }
    one, other = by_case(first), by_case(second)
    if one is None or other is None:
        return p_values | {"case_delong": None, "case_mcnemar": None}
    right = (one.predicted == one.labels, other.predicted == other.labels)
    return p_values | {"case_delong": delong(one, other), "case_mcnemar": mcnemar(*right)}
