"""Curves have the areas and shares that are reported, and intervals as the scores have them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from stacker.scores.bootstrap import Resampling
from stacker.scores.curves import RATES, reliability_with_intervals, roc
from stacker.scores.metrics import area_within
from stacker.scores.predictions import Predictions, reliability
from tests.predictions import parted_predictions, random_predictions, two

HOW = Resampling(200, 0, ("benign", "malignant"))


def of_cases(benign: int, malignant: int, seed: int, images: int = 10) -> Predictions:
    """Return predictions of some cases of each class, whose images resemble each other."""
    rng = np.random.default_rng(seed)
    cases = np.repeat(np.arange(benign + malignant), images)
    labels = (cases >= benign).astype(np.int64)
    values = 2 * labels - 1 + rng.normal(size=benign + malignant)[cases] + rng.normal(size=len(labels))
    return Predictions(labels, cases, two(expit(values)))


def test_a_curve_of_one_part_is_the_usual_one() -> None:
    """At each false positive rate it is the best that scikit-learn's points and lines reach."""
    p = of_cases(8, 8, seed=1)
    curve = roc(p, 1, HOW)
    false, true, _ = sk.roc_curve(p.labels, p.probabilities[:, 1], drop_intermediate=False)
    for rate, reached in zip(RATES, curve.rates, strict=True):
        on_a_line = np.interp(rate, false, true)
        at_once = true[np.isclose(false, rate)].max(initial=0.0)
        assert reached == pytest.approx(max(on_a_line, at_once))
    assert curve.area == pytest.approx(sk.roc_auc_score(p.labels, p.probabilities[:, 1]))


def test_the_area_that_is_seen_is_the_area_that_is_reported() -> None:
    """Out of fold the parts have scales of their own, and pooled scores would give another curve."""
    for seed in range(5):
        p = parted_predictions(2, seed, images=300)
        curve = roc(p, 1, HOW)
        assert sk.auc(RATES, curve.rates) == pytest.approx(area_within(p), abs=0.01)
        assert curve.area == pytest.approx(area_within(p))


def test_each_class_is_set_against_all_others() -> None:
    """The area is that of scikit-learn for the class, of three."""
    p, how = random_predictions(3, 2), Resampling(200, 0, ("a", "b", "c"))
    for k in range(3):
        assert roc(p, k, how).area == pytest.approx(
            sk.roc_auc_score(p.labels == k, p.probabilities[:, k])
        )


def test_the_interval_of_the_area_is_the_one_of_the_metrics() -> None:
    """A figure and metrics.json say the same."""
    p = of_cases(7, 9, seed=4)
    scored = HOW.evaluate({"model": p})["model"]["image"]
    assert roc(p, 1, HOW).interval == pytest.approx(scored["interval"]["auc"], abs=1e-4)


def test_too_few_cases_have_no_band_but_the_reason() -> None:
    """Four benign cases say nothing of the next ones; neither do images of one class."""
    few = roc(of_cases(4, 9, seed=0), 1, HOW)
    assert few.band is None
    assert few.interval is None
    assert few.withheld == "4 cases of benign, 5 are needed"
    p = of_cases(6, 6, seed=0)
    alone = roc(p.at(p.labels == 1), 1, HOW)
    assert alone.withheld == "images of one class only"
    assert np.isnan(alone.rates).all()


def test_more_cases_make_a_narrower_band_around_the_curve() -> None:
    """Cases count, and not images: more of these from the same cases narrow it little."""
    widths = []
    for cases, images in ((6, 10), (6, 40), (60, 10)):
        curve = roc(of_cases(cases, cases, seed=3, images=images), 1, HOW)
        assert curve.band is not None
        low, high = curve.band
        assert (low <= curve.rates).all()
        assert (curve.rates <= high).all()
        widths.append((high - low).mean())
    assert widths[1] > 0.6 * widths[0]
    assert widths[2] < 0.5 * widths[0]


def test_bins_hold_the_images_and_their_intervals() -> None:
    """The frequency is inside its interval; bins of fewer than five cases have none."""
    p = of_cases(12, 12, seed=5)
    bins = reliability_with_intervals(p, HOW)
    confidence, frequency, images = reliability(p)
    np.testing.assert_array_equal(bins.images, images)
    np.testing.assert_array_equal(bins.confidence, confidence)
    place = np.minimum((p.probabilities[:, 1] * 10).astype(int), 9)
    cases = np.array([len(np.unique(p.cases[place == k])) for k in range(10)])
    known = np.isfinite(bins.interval[0])
    assert known.any()
    assert not known[(cases < 5) | (frequency == 0) | (frequency == 1)].any()
    assert known[(cases >= 5) & (frequency > 0) & (frequency < 1)].all()
    assert (bins.interval[0, known] < frequency[known]).all()
    assert (frequency[known] < bins.interval[1, known]).all()


def test_a_bin_whose_cases_are_alike_has_no_interval() -> None:
    """A third of each case's images came true: no draw of cases differs, and no length is known."""
    cases = np.repeat(np.arange(6), 3)
    p = Predictions(np.tile([1, 0, 0], 6), cases, two(np.full(18, 0.35)))
    bins = reliability_with_intervals(p, HOW)
    assert bins.frequency[3] == pytest.approx(1 / 3)
    assert np.isnan(bins.interval).all()
