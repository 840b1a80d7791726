"""Tests of differences against brute force, published values and sums done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from stacker.scores.predictions import Predictions
from stacker.scores.significance import (
    CAVEAT,
    clustered_delong,
    compare_pair,
    delong,
    exchange_test,
    holm,
    mcnemar,
)


def predictions(labels: np.ndarray, share: np.ndarray, cases: np.ndarray | None = None) -> Predictions:
    """Return predictions from the probability of class 1; every image is a case unless told."""
    share = np.asarray(share, dtype=float)
    cases = np.arange(len(labels)) if cases is None else cases
    return Predictions(np.asarray(labels), cases, np.stack([1 - share, share], axis=1))


def clustered_pair(seed: int, cases: int = 30, mixed: bool = False) -> tuple[Predictions, Predictions]:
    """Return two models that share a case's difficulty; with ties, and cases of several sizes."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(cases), rng.integers(1, 9, cases))
    labels = rng.integers(2, size=len(of)) if mixed else of % 2
    shared = labels + rng.normal(size=cases)[of]
    shares = [
        stats.norm.cdf(shared + rng.normal(size=cases)[of] + rng.normal(size=len(of))).round(2)
        for _ in range(2)
    ]
    return predictions(labels, shares[0], of), predictions(labels, shares[1], of)


def brute_variance(first: Predictions, second: Predictions, cases: np.ndarray) -> float:
    """Return Obuchowski's variance of the difference, pair by pair and cluster by cluster."""
    labels = first.labels
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positives), len(negatives)
    wins = np.zeros((2, m, n))
    for t, share in enumerate((first.probabilities[:, 1], second.probabilities[:, 1])):
        for a, i in enumerate(positives):
            for b, j in enumerate(negatives):
                wins[t, a, b] = 1.0 if share[i] > share[j] else 0.5 if share[i] == share[j] else 0.0
    gap = wins[0] - wins[1]
    theta = gap.mean()
    of_positive, of_negative = gap.mean(axis=1), gap.mean(axis=0)
    clusters = np.unique(cases)
    x = np.array([(of_positive - theta)[cases[positives] == c].sum() for c in clusters])
    y = np.array([(of_negative - theta)[cases[negatives] == c].sum() for c in clusters])
    i10, i01, count = len(set(cases[positives])), len(set(cases[negatives])), len(clusters)
    s10 = i10 / ((i10 - 1) * m) * (x**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (y**2).sum()
    s11 = count / (count - 1) * (x * y).sum()
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))


def test_delong_by_hand() -> None:
    """Three images of each class, worked out in fractions.

    The first model wins all pairs but one, (0.4 against 0.5): components 1, 1, 2/3 and 1, 1, 2/3. The
    second loses all pairs of its lowest positive and one more: 1, 2/3, 0 and 2/3, 2/3, 1/3. The
    differences 0, 1/3, 2/3 and 1/3, 1/3, 1/3 have sample variances 1/9 and 0, so that the variance is
    1/9/3 = 1/27 and z = (1/3) / sqrt(1/27) = sqrt(3).
    """
    labels = np.array([1, 1, 1, 0, 0, 0])
    first = predictions(labels, np.array([0.9, 0.8, 0.4, 0.1, 0.2, 0.5]))
    second = predictions(labels, np.array([0.9, 0.5, 0.1, 0.2, 0.3, 0.7]))
    found = delong(first, second)
    assert found is not None
    assert [found.first, found.second] == pytest.approx([8 / 9, 5 / 9])
    assert found.difference == pytest.approx(1 / 3)
    assert found.variance == pytest.approx(1 / 27)
    assert found.z == pytest.approx(3**0.5)
    assert found.p == pytest.approx(0.0832645, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_the_definition(seed: int) -> None:
    """Midranks give what counting all pairs gives, ties included, for images that are taken alone."""
    first, second = clustered_pair(seed)
    found = delong(first, second)
    assert found is not None
    assert found.variance == pytest.approx(brute_variance(first, second, np.arange(len(first.labels))))
    assert found.first == pytest.approx(roc_auc_score(first.labels, first.probabilities[:, 1]))
    z = found.difference / found.variance**0.5
    assert found.p == pytest.approx(2 * stats.norm.cdf(-abs(z)))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_clustered_delong_equals_the_definition(seed: int, mixed: bool) -> None:
    """The sums over cases equal Obuchowski's formulas, for cases of one class and of both."""
    first, second = clustered_pair(seed, mixed=mixed)
    found = clustered_delong(first, second)
    assert found is not None
    assert found.variance == pytest.approx(brute_variance(first, second, first.cases))
    alone = delong(first, second)
    assert alone is not None
    assert found.difference == alone.difference
    assert found.variance != pytest.approx(alone.variance)
    carriers = min(len(np.unique(first.cases[first.labels == k])) for k in range(2))
    z = found.difference / found.variance**0.5
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(z), carriers - 1))
    assert alone.p == pytest.approx(2 * stats.norm.sf(abs(alone.difference / alone.variance**0.5)))


@pytest.mark.parametrize("seed", range(3))
def test_clustered_delong_is_delong_of_single_images(seed: int) -> None:
    """One image in each case leaves DeLong's variance exactly; p is by t, and the larger."""
    first, second = clustered_pair(seed)
    names = np.array([f"case {i:03}" for i in range(len(first.labels))])
    single = [replace(model, cases=names) for model in (first, second)]
    by_case, by_image = clustered_delong(*single), delong(first, second)
    assert by_case is not None
    assert by_image is not None
    assert by_case.variance == pytest.approx(by_image.variance, rel=1e-12)
    assert by_case.z == pytest.approx(by_image.z, rel=1e-12)
    assert by_case.z is not None
    freedom = min(np.bincount(first.labels)) - 1
    assert by_case.p == pytest.approx(2 * stats.t.sf(abs(by_case.z), freedom), rel=1e-12)
    assert by_image.p == pytest.approx(2 * stats.norm.sf(abs(by_case.z)), rel=1e-12)
    assert by_case.p is not None
    assert by_image.p is not None
    assert by_case.p > by_image.p


@pytest.mark.parametrize("cuts", [1, 2])
def test_areas_are_compared_within_parts(cuts: int) -> None:
    """Parts are put together by their pairs: differences are those of the parts, weighed by pairs."""
    first, second = clustered_pair(2, mixed=True)
    rng = np.random.default_rng(cuts)
    parts = rng.integers(3, size=(cuts, len(first.labels)))
    raws = rng.integers(8, size=(2, cuts, len(first.labels), 2)) / 8 + first.labels[:, None] / 4
    one, other = (
        replace(model, raw=raw + 2 * parts[..., None], parts=parts)
        for model, raw in zip((first, second), raws, strict=True)
    )
    found, shifted = clustered_delong(one, other), delong(replace(one, raw=raws[0]), other)
    assert found is not None
    assert shifted is not None
    assert shifted.difference == pytest.approx(found.difference)
    gaps, pairs = [], []
    for r in range(cuts):
        for part in range(3):
            own = parts[r] == part
            areas = [roc_auc_score(first.labels[own], raw[r, own, 1]) for raw in raws]
            gaps.append(areas[0] - areas[1])
            pairs.append(np.prod(np.bincount(first.labels[own])))
    assert found.difference == pytest.approx(np.average(gaps, weights=pairs))
    whole = clustered_delong(replace(one, parts=parts * 0), replace(other, parts=parts * 0))
    assert whole is not None
    assert whole.difference != pytest.approx(found.difference, abs=1e-4)
    coarser = clustered_delong(one, replace(other, parts=parts % 2))
    assert coarser is not None
    assert coarser.difference == pytest.approx(found.difference)
    assert coarser.variance == pytest.approx(found.variance)


@pytest.mark.slow
def test_tests_by_case_keep_their_level_and_those_by_image_do_not() -> None:
    """Of models that are equally good, one in twenty differs at 5 %, if cases are reckoned with.

    A model that is better is found by those tests, too.
    """
    rejected = dict.fromkeys(("delong", "clustered_delong", "mcnemar", "exchange"), 0.0)
    found_out = dict.fromkeys(("clustered_delong", "exchange"), 0.0)
    simulations = 300
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        of = np.repeat(np.arange(40), 12)
        labels = of % 2
        shared = 2 * labels - 1 + rng.normal(size=40)[of]
        first, second = (
            predictions(labels, stats.norm.cdf(shared + own), of)
            for own in rng.normal(size=(2, 40))[:, of] + rng.normal(size=(2, len(of)))
        )
        found = compare_pair(first, second)["image"]
        for name in rejected:
            rejected[name] += found[name]["p"] < 0.05
        if seed < 50:
            better = stats.norm.ppf(first.probabilities[:, 1]) + 2 * (2 * labels - 1)
            planted = compare_pair(predictions(labels, stats.norm.cdf(better), of), second)["image"]
            for name in found_out:
                found_out[name] += planted[name]["p"] < 0.05
    level = {name: count / simulations for name, count in rejected.items()}
    assert 0.01 < level["clustered_delong"] < 0.08
    assert 0.01 < level["exchange"] < 0.08
    assert level["delong"] > 0.20
    assert level["mcnemar"] > 0.20
    assert min(found_out.values()) > 45


def test_areas_that_cannot_be_compared() -> None:
    """Three classes, one class, one image of a class or one case of it: there is nothing to say."""
    labels = np.array([0, 0, 1, 1])
    p = predictions(labels, np.array([0.1, 0.6, 0.5, 0.9]), np.array([0, 1, 2, 2]))
    assert delong(p, p) is not None
    assert clustered_delong(p, p) is None
    for few in ([0, 1], [0, 1, 2], [1, 2, 3]):
        assert delong(p.at(np.array(few)), p.at(np.array(few))) is None
    three = Predictions(np.arange(6) % 3, np.arange(6), np.eye(3)[np.arange(6) % 3])
    assert delong(three, three) is None


def test_areas_that_do_not_vary() -> None:
    """A model is as good as itself; a perfect one against a constant has no variance to go by."""
    labels = np.array([0, 0, 1, 1])
    perfect = predictions(labels, np.array([0.1, 0.2, 0.8, 0.9]))
    same = delong(perfect, perfect)
    assert same is not None
    assert (same.difference, same.variance, same.z, same.p) == (0, 0, 0, 1)
    found = delong(perfect, predictions(labels, np.full(4, 0.5)))
    assert found is not None
    assert (found.difference, found.variance, found.z, found.p) == (0.5, 0, None, None)
    # Interleaved one place apart, each image wins a third of its pairs more, up to the last bit.
    labels = np.array([0, 1, 0, 1, 0, 1])
    lower = predictions(labels, np.array([1, 0, 3, 2, 5, 4]) / 10)
    found = delong(predictions(labels, np.arange(6) / 10), lower)
    assert found is not None
    assert found.difference == pytest.approx(1 / 3)
    assert (found.variance, found.z, found.p) == (0, None, None)


def test_other_images_are_refused() -> None:
    """Tests are paired: the same images in the same order."""
    first, second = clustered_pair(0)
    for test in (delong, clustered_delong, exchange_test):
        with pytest.raises(ValueError, match="the same images"):
            test(first, second.at(np.arange(len(second.labels))[::-1]))


def right_and_wrong(both: int, b: int, c: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two lists of right and wrong with the given counts."""
    counts = (both, b, c, neither)
    return (
        np.repeat(np.array([True, True, False, False]), counts),
        np.repeat(np.array([True, False, True, False]), counts),
    )


@pytest.mark.parametrize(
    ("table", "statistic", "p"),
    [
        # Agresti's approval ratings: (|150 - 86| - 1)^2 / 236. R without the correction: 17.3559.
        ((794, 150, 86, 570), 63**2 / 236, 4.115e-05),
        ((0, 20, 49, 12), 11.362, 0.0007495),  # R's mcnemar.test
        ((71, 46, 9, 74), 23.564, 1.208499116e-06),
        ((41, 8, 17, 12), 2.56, 0.1095986),  # 25 discordant pairs are enough
        ((5, 20, 20, 5), 0, 1),
    ],
)
def test_mcnemar_equals_r(table: tuple[int, int, int, int], statistic: float, p: float) -> None:
    """Chi-square with continuity correction, from 25 discordant pairs on."""
    found = mcnemar(*right_and_wrong(*table))
    assert found.method == "chi-square with continuity correction"
    assert (found.only_first_right, found.only_second_right) == table[1:3]
    assert found.statistic == pytest.approx(statistic, abs=5e-4)
    assert found.p == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize(("b", "c"), [(8, 16), (0, 5), (3, 3), (1, 9)])
def test_mcnemar_is_exact_when_few_differ(b: int, c: int) -> None:
    """The binomial test of b out of b + c at one half, and its textbook value for 1 against 9."""
    found = mcnemar(*right_and_wrong(10, b, c, 4))
    assert found.method == "exact binomial"
    assert found.statistic is None
    assert found.p == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)
    if (b, c) == (1, 9):
        assert found.p == pytest.approx(22 / 1024)


def test_models_that_never_differ_are_alike() -> None:
    """No discordant pair, no evidence."""
    assert mcnemar(*right_and_wrong(3, 0, 0, 2)).p == 1
    first, _ = clustered_pair(1)
    found = exchange_test(first, first)
    assert (found.difference, found.discordant_cases, found.p) == (0, 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_exchange_test_goes_through_all_swaps(seed: int) -> None:
    """The convolution counts what listing all 2^cases swaps counts."""
    first, second = clustered_pair(seed, cases=11)
    found = exchange_test(first, second)
    gain = (first.predicted == first.labels) * 1 - (second.predicted == second.labels) * 1
    by_case = np.bincount(first.cases, gain)
    signs = np.array(list(product((-1, 1), repeat=len(by_case))))
    expected = (np.abs(signs @ by_case) >= abs(by_case.sum())).mean()
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx(gain.mean())
    assert found.discordant_cases == (by_case != 0).sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_exchange_test_of_single_images_is_mcnemars(rights: list[tuple[bool, bool]]) -> None:
    """One image in each case: the exact binomial of the discordant pairs."""
    one, other = np.array(rights).T
    labels = np.zeros(len(one), dtype=int)
    found = exchange_test(
        predictions(labels, np.where(one, 0, 1)), predictions(labels, np.where(other, 0, 1))
    )
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert found.p == pytest.approx(expected)


def test_holm_equals_r() -> None:
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]


def test_a_pair_is_compared_by_image_and_by_case() -> None:
    """Everything in plain numbers with the caveat; thresholds decide what McNemar's test sees."""
    first, second = clustered_pair(3)
    found = compare_pair(first, second)
    assert json.loads(json.dumps(found)) == found
    assert found["caveat"] == CAVEAT
    assert list(found["image"]) == ["delong", "clustered_delong", "mcnemar", "exchange"]
    by_case = found["case"]["mcnemar"]
    assert by_case["only_first_right"] + by_case["only_second_right"] <= 30
    never = replace(first, threshold=1.1)
    counts = compare_pair(never, never)["image"]["mcnemar"]
    assert counts["only_first_right"] == counts["only_second_right"] == 0
    shifted = compare_pair(first, never)["image"]["mcnemar"]
    right, guessed = first.predicted == first.labels, first.labels == 0
    assert shifted["only_first_right"] == (right & ~guessed).sum()
    assert shifted["only_second_right"] == (~right & guessed).sum()


def test_cases_of_two_labels_are_not_compared() -> None:
    """Without one label for each case there is no vote; the images can still be compared."""
    found = compare_pair(*clustered_pair(2, mixed=True))
    assert found["case"] is None
    assert found["image"]["clustered_delong"]["p"] is not None
