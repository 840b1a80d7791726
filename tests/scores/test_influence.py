"""What cases add to an area: against derivatives, jackknives, DeLong's and Obuchowski's formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from stacker.scores.influence import (
    Influence,
    around,
    detectable,
    difference_of_areas,
    influence,
    joint_quantile,
    on_log_odds,
    quantile,
)
from stacker.scores.metrics import area_within, weighted_scores
from stacker.scores.predictions import Predictions
from tests.predictions import brute_variance, clustered_pair, parted_predictions, random_predictions, two


def of_cases(predictions: Predictions) -> Influence:
    """Return what each case adds to the area."""
    names, unit = np.unique(predictions.cases, return_inverse=True)
    one = influence(predictions, unit, len(names))
    assert one is not None
    return one


def of_images(predictions: Predictions) -> Influence:
    """Return what each image adds to the area."""
    return of_cases(replace(predictions, cases=np.arange(len(predictions.labels))))


def many_kinds() -> list[Predictions]:
    """Return predictions of two classes and more, with parts or none, with cases of any classes."""
    return [
        random_predictions(2, 0),
        random_predictions(3, 1),
        clustered_pair(2, mixed=True)[0],
        parted_predictions(2, 3),
        parted_predictions(2, 4, cuts=3, by_case=True),
        parted_predictions(4, 5, cuts=2),
    ]


def model(value: np.ndarray, cases: np.ndarray) -> Predictions:
    """Return a model from values for class 1; cases take turns in their class."""
    return Predictions(cases % 2, cases, two(expit(value)))


@pytest.mark.parametrize("kind", range(6))
def test_the_influence_of_a_case_is_how_its_weight_moves_the_area(kind: int) -> None:
    """The derivative of the weighted area by each case's weight; they add up to nought."""
    p = many_kinds()[kind]
    found = of_cases(p)
    assert found.area == pytest.approx(area_within(p))
    assert found.of_unit.sum() == pytest.approx(0, abs=1e-12)
    names, unit = np.unique(p.cases, return_inverse=True)
    step = 1e-5
    weights = np.concatenate([1 + step * np.eye(len(names)), 1 - step * np.eye(len(names))])
    areas = weighted_scores(p, unit, weights, {"auc"})["auc"].reshape(2, -1)
    np.testing.assert_allclose(found.of_unit, (areas[0] - areas[1]) / (2 * step), atol=1e-7)
    np.testing.assert_allclose(of_images(p).of_unit.sum(), 0, atol=1e-12)
    by_image = np.bincount(unit, of_images(p).of_unit)
    np.testing.assert_allclose(found.of_unit, by_image, atol=1e-12)


@pytest.mark.parametrize("kind", range(6))
def test_the_variance_is_nearly_that_of_a_jackknife(kind: int) -> None:
    """Areas without one case each, one after the other, vary about as the influences say."""
    p = [*many_kinds()[:2], *clustered_pair(3, cases=60), *many_kinds()[3:5]][kind]
    names = np.unique(p.cases)
    left = [area_within(p.at(p.cases != name)) for name in names]
    jackknife = (len(names) - 1) * np.var(left)
    assert of_cases(p).variance == pytest.approx(jackknife, rel=0.1 if len(names) == 60 else 0.4)


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_single_images_is_delongs(seed: int) -> None:
    """Two sample variances of the share of pairs won, by positives and by negatives, ties half."""
    p = clustered_pair(seed)[0]
    share = p.probabilities[:, 1]
    ours, theirs = share[p.labels == 1], share[p.labels == 0]
    won = (np.sign(ours[:, None] - theirs[None]) + 1) / 2
    expected = won.mean(axis=1).var(ddof=1) / len(ours) + won.mean(axis=0).var(ddof=1) / len(theirs)
    found = of_images(p)
    assert found.variance == pytest.approx(expected)
    assert found.error == pytest.approx(expected**0.5)
    assert found.freedom == min(len(ours), len(theirs)) - 1


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_cases_is_obuchowskis(seed: int, mixed: bool) -> None:
    """Of one area and of a difference, cluster by cluster, also where cases have images of both."""
    first, second = clustered_pair(seed, mixed=mixed)
    level = replace(first, probabilities=np.full((len(first.labels), 2), 0.5))
    found, gain = of_cases(first), difference_of_areas(first, second)
    assert found.variance == pytest.approx(brute_variance(first, level, first.cases))
    assert gain is not None
    assert gain.variance == pytest.approx(brute_variance(first, second, first.cases))
    assert gain.area == pytest.approx(found.area - of_cases(second).area)
    carriers = [len(np.unique(first.cases[first.labels == k])) for k in (1, 0)]
    assert list(found.carriers) == carriers
    assert found.freedom == gain.freedom == min(carriers) - 1


def test_within_parts_every_pair_counts_once() -> None:
    """Two parts by hand: what each case adds is its won pairs less what the area promised, by pairs.

    Part 0 has the pairs 0.9 > 0.2, 0.9 > 0.4 and 0.3 > 0.2, 0.3 < 0.4, part 1 the tie of 0.5: 3.5 of 5
    are won, 0.7. Its two positives win 2 and 1 of 2 pairs, and half of one: 2 - 1.4, 1 - 1.4, 0.5 - 0.7.
    """
    share = np.array([0.9, 0.3, 0.2, 0.4, 0.5, 0.5])
    labels, parts = np.array([1, 1, 0, 0, 1, 0]), np.array([[0, 0, 0, 0, 1, 1]])
    p = Predictions(labels, np.arange(6), two(np.full(6, 0.5)), None, two(share)[None], parts)
    found = of_cases(p)
    assert found.area == pytest.approx(0.7)
    np.testing.assert_allclose(found.positive * 5, [0.6, -0.4, 0, 0, -0.2, 0], atol=1e-12)
    np.testing.assert_allclose(found.negative * 5, [0, 0, 0.6, -0.4, 0, -0.2], atol=1e-12)
    expected = 3 / 2 * (0.6**2 + 0.4**2 + 0.2**2) / 25 * 2
    assert found.variance == pytest.approx(expected)
    assert of_cases(replace(p, raw=two(share - parts * 0.3)[0][None])).area == pytest.approx(0.7)


def test_beyond_two_classes_only_the_sum_is_known() -> None:
    """The mean over classes of one against the rest, with as many degrees as the rarest class allows."""
    p = parted_predictions(3, 2)
    found, each = of_cases(p), []
    for k in range(3):
        raw = np.stack([-p.ranked[0][..., k], p.ranked[0][..., k]], axis=2)
        binary = replace(p, labels=(p.labels == k) * 1, probabilities=two(np.full(60, 0.5)), raw=raw)
        each.append(of_cases(binary))
    np.testing.assert_allclose(found.of_unit, np.mean([one.of_unit for one in each], axis=0))
    assert found.area == pytest.approx(np.mean([one.area for one in each]))
    assert found.variance == pytest.approx(12 / 11 * (found.of_unit**2).sum())
    assert found.freedom == min(len(np.unique(p.cases[p.labels == k])) for k in range(3)) - 1
    rare = replace(p, labels=np.where((p.labels == 2) & (p.cases > 2), 0, p.labels))
    assert of_cases(rare).freedom == 1
    two_left = p.at(p.labels < 2)
    assert of_cases(two_left).area == pytest.approx(area_within(two_left))


def test_an_area_that_is_not_defined_has_no_influence() -> None:
    """One class alone, or parts of one class each; one case of a class leaves the error open."""
    p = random_predictions(2, 0)
    one = p.at(p.labels == 1)
    assert influence(one, one.cases, 12) is None
    apart = replace(p, raw=p.probabilities[None], parts=p.labels[None])
    assert influence(apart, p.cases, 12) is None
    assert difference_of_areas(apart, apart) is None
    lonely = of_cases(p.at((p.labels == 1) | (p.cases == 4)))
    assert math.isnan(lonely.variance)
    assert math.isnan(lonely.error)
    assert lonely.p is None
    assert lonely.freedom == 1


def test_models_that_do_not_differ_vary_by_nothing() -> None:
    """A model against itself has p = 1; an equal gain everywhere has no error to go by."""
    p = random_predictions(2, 0)
    same = difference_of_areas(p, p)
    assert same is not None
    assert (same.area, same.variance, same.p) == (0, 0, 1)
    cases = np.arange(12)
    perfect = difference_of_areas(model(cases % 2 * 1.0, cases), model(np.zeros(12), cases))
    assert perfect is not None
    assert (perfect.area, perfect.variance, perfect.p) == (0.5, 0, None)


def test_p_is_two_sided_by_t() -> None:
    """As large a difference on either side, with the degrees of freedom of the rarest class."""
    first, second = clustered_pair(5)
    gain, back = difference_of_areas(first, second), difference_of_areas(second, first)
    assert gain is not None
    assert back is not None
    expected = 2 * stats.t.sf(abs(gain.area) / gain.error, gain.freedom)
    assert gain.p == pytest.approx(expected)
    assert back.p == pytest.approx(expected)


@pytest.mark.slow
def test_equal_models_have_any_p_and_a_better_one_a_small_one() -> None:
    """P-values of models that are equally good are spread evenly; a planted difference is found."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(40), 4)
    parts = np.repeat([0, 1, 2, 3], 10)[None, cases]
    p_values: dict[str, list[float]] = {"equal": [], "better": []}
    for _ in range(300):
        shared = rng.normal(size=40)[cases] + cases % 2
        own = rng.normal(size=(2, 40))[:, cases] + rng.normal(size=(2, 160))
        shifts = rng.normal(size=4)[parts][..., None] * 5
        for name, gain in (("equal", 0), ("better", 2)):
            values = np.stack([shared + own[0] + gain * (cases % 2), shared + own[1]])
            models = [
                replace(model(v, cases), raw=np.stack([-v, v], 1)[None] + shifts, parts=parts)
                for v in values
            ]
            difference = difference_of_areas(*models)
            assert difference is not None
            assert difference.p is not None
            p_values[name].append(difference.p)
    even = np.array(p_values["equal"])
    assert stats.kstest(even, "uniform").pvalue > 0.01
    assert 0.025 < (even < 0.05).mean() < 0.08
    assert (np.array(p_values["better"]) < 0.05).mean() > 0.8


def test_intervals_of_shares_stay_between_nought_and_one() -> None:
    """By a t-quantile on log-odds: as wide as the delta method says, mirrored about one half."""
    low, high = on_log_odds(0.8, 0.05, 9)
    half = stats.t.ppf(0.975, 9) * 0.05 / 0.16
    assert [low, high] == pytest.approx([expit(logit(0.8) - half), expit(logit(0.8) + half)])
    assert on_log_odds(0.2, 0.05, 9) == pytest.approx([1 - high, 1 - low])
    wide = on_log_odds(0.99, 0.3, 4)
    assert 0 < wide[0] < 0.99 < wide[1] <= 1
    narrow = on_log_odds(0.5, 1e-4, 10**9)
    assert narrow == pytest.approx([0.5 - 1.959964e-4, 0.5 + 1.959964e-4], abs=1e-9)
    assert around(0.1, 0.05, 2) == pytest.approx([0, 0.2])


def test_quantiles_are_those_of_t() -> None:
    """Two-sided at the level; what is detectable adds the quantile of four times of five."""
    assert quantile(5) == pytest.approx(2.570582, abs=1e-6)
    assert quantile(1e9) == pytest.approx(1.959964, abs=1e-5)
    assert detectable(0.02, 9) == pytest.approx(0.02 * (2.262157 + 0.883404), abs=1e-6)


def drawn(rng: np.random.Generator, units: int, count: int) -> list[Influence]:
    """Return influences that have nothing to do with each other."""
    half = units // 2
    return [
        Influence(0.0, np.r_[rng.normal(size=half), np.zeros(half)], np.zeros(units), (half, half))
        for _ in range(count)
    ]


def test_the_joint_quantile_of_one_is_its_own() -> None:
    """One difference has the quantile of t, and copies of it, of either sign and size, have the same."""
    (one,) = drawn(np.random.default_rng(0), 24, 1)
    joint = joint_quantile([one])
    assert joint == pytest.approx(quantile(11), rel=0.02)
    assert joint == joint_quantile([one])
    copies = [replace(one, positive=factor * one.positive) for factor in (1, 0.1, -3)]
    assert joint_quantile(copies) == pytest.approx(joint, rel=1e-9)
    still = replace(one, positive=np.zeros(24))
    assert joint_quantile([one, still]) == joint
    assert math.isnan(joint_quantile([still]))
    assert math.isnan(joint_quantile([]))


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_joint_quantile_of_many_is_larger(count: int) -> None:
    """Independent ones have nearly Sidak's, never more than Bonferroni's; correlated ones have less."""
    rng = np.random.default_rng(count)
    many = drawn(rng, 1000, count)
    joint = joint_quantile(many)
    sidak, bonferroni = stats.norm.ppf((1 + 0.95 ** (1 / count)) / 2), stats.norm.ppf(1 - 0.025 / count)
    assert joint == pytest.approx(sidak, rel=0.04)
    assert joint < bonferroni * 1.04
    alike = [replace(one, positive=one.positive + 3 * many[0].positive) for one in many]
    assert quantile(499) * 0.98 < joint_quantile(alike) < joint
    few = [replace(many[0], carriers=(5, 500)), *many[1:]]
    assert joint_quantile(few) > joint * 1.3


@pytest.mark.slow
def test_joint_intervals_hold_the_truth_together() -> None:
    """All of eight intervals hold nought 95 times of 100, which those that stand alone do not."""
    rng = np.random.default_rng(3)
    cases = np.repeat(np.arange(40), 2)
    together, alone, simulations = 0, 0, 200
    for _ in range(simulations):
        shared = rng.normal(size=40)[cases] + 2 * (cases % 2)
        models = [model(shared + rng.normal(size=40)[cases], cases) for _ in range(9)]
        gains = [difference_of_areas(each, models[0]) for each in models[1:]]
        known = [one for one in gains if one is not None]
        largest = max(abs(one.area) / one.error for one in known)
        together += largest <= joint_quantile(known)
        alone += largest <= quantile(19)
    assert 0.91 < together / simulations < 0.99
    assert alone / simulations < 0.88
