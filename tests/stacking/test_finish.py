"""Calibration finds what was done to probabilities, stays finite, and never sees its own judges."""

from __future__ import annotations

import json
import logging
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_curve

from stacker.scores.predictions import Calibrator, Finish, Finishes, Kind, Threshold, finished
from stacker.stacking.finish import (
    Rule,
    choose_threshold,
    cross_finish,
    fit_calibrator,
    fit_finish,
)
from stacker.stacking.learners.contract import fit_sigmoid
from tests.predictions import two


def applied(finish: Finishes, raw: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, Threshold]:
    """Return the probabilities and thresholds of raw probabilities, once they are finished."""
    rows = np.arange(raw.shape[1])
    model = finished(rows, rows, raw, parts, finish, None)
    return model.probabilities, model.threshold


def drawn_labels(probabilities: np.ndarray, seed: int) -> np.ndarray:
    """Draw a label for each row from its true probabilities."""
    rng = np.random.default_rng(seed)
    chance = rng.random(len(probabilities))[:, None]
    labels: np.ndarray = np.sum(chance > probabilities.cumsum(axis=1), axis=1)
    return labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found_again(temperature: float, classes: int) -> None:
    """Answers that were made bolder or meeker by a known factor are cooled by it."""
    logits = np.random.default_rng(0).normal(size=(20_000, classes)) * 1.5
    labels = drawn_labels(softmax(logits, axis=1), 1)
    stated = softmax(logits * temperature, axis=1)
    found = fit_calibrator("temperature", stated, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    np.testing.assert_allclose(found.apply(stated), softmax(logits, axis=1), atol=0.03)


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, -1.0), (1.0, 0.0), (2.0, 0.7)])
def test_platt_is_found_again(slope: float, intercept: float) -> None:
    """A known slope and intercept between stated and true log-odds are found."""
    share = expit(np.random.default_rng(2).normal(size=20_000))
    true = expit(slope * logit(share) + intercept)
    labels = drawn_labels(two(true), 3)
    found = fit_calibrator("platt", two(share), labels)
    assert found.slopes[0] == pytest.approx(slope, abs=0.06)
    assert found.intercepts[0] == pytest.approx(intercept, abs=0.06)
    np.testing.assert_allclose(found.apply(two(share))[:, 1], true, atol=0.02)


def test_platt_is_logistic_regression_on_his_targets() -> None:
    """Weighted and smoothed, it equals a logistic regression on rows of both labels."""
    rng = np.random.default_rng(4)
    share, weights = rng.random(80), rng.random(80) + 0.1
    labels = (rng.random(80) < share).astype(int)
    slope, intercept = fit_sigmoid(logit(share), labels == 1, weights)
    n1, n0 = weights[labels == 1].sum(), weights[labels == 0].sum()
    target = np.where(labels == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    expected = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(
        np.tile(logit(share), 2)[:, None],
        np.repeat([1, 0], 80),
        np.r_[weights * target, weights * (1 - target)],
    )
    assert slope == pytest.approx(expected.coef_[0, 0], abs=1e-4)
    assert intercept == pytest.approx(expected.intercept_[0], abs=1e-4)


def test_temperature_is_the_best_there_is() -> None:
    """No temperature on a fine grid has a smaller log loss."""
    rng = np.random.default_rng(5)
    shares, labels = rng.dirichlet([1, 1, 1], 60), rng.integers(3, size=60)
    labels[:30] = shares[:30].argmax(axis=1)

    def loss(temperature: float) -> float:
        scaled = softmax(np.log(shares) / temperature, axis=1)
        return float(log_loss(labels, scaled))

    calibrator = fit_calibrator("temperature", shares, labels)
    assert loss(calibrator.temperature) <= min(loss(t) for t in np.geomspace(0.05, 20, 500)) + 1e-9


finite = st.lists(
    st.tuples(st.sampled_from([0.0, 1e-12, 0.1, 0.5, 0.7, 1 - 1e-12, 1.0]), st.integers(0, 1)),
    min_size=0,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(finite, st.sampled_from(get_args(Kind)), st.sampled_from([2, 3]))
def test_calibrated_probabilities_are_probabilities(
    rows: list[tuple[float, int]], kind: Kind, classes: int
) -> None:
    """Of rows separated, equal, certain, few or none, the answer is finite and sums to one."""
    share = np.array([row[0] for row in rows])
    labels = np.array([row[1] for row in rows], dtype=int) * (classes - 1)
    shares = two(share) if classes == 2 else np.stack([(1 - share) / 2, (1 - share) / 2, share], axis=1)
    calibrator = fit_calibrator(kind, shares, labels)
    asked = np.array([0, 1e-9, 0.2, 0.5, 0.9, 1])
    thirds = np.stack([1 - asked, asked / 3, asked * 2 / 3], axis=1)
    found = calibrator.apply(two(asked) if classes == 2 else thirds)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    if classes == 2:
        assert (np.diff(found[:, 1]) >= 0).all()
    finish = Finish(calibrator)
    assert Finish.from_dict(json.loads(json.dumps(finish.as_dict()))) == finish


def test_one_class_alone_leaves_probabilities_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to fit to; the log says so."""
    shares = two(np.array([0.2, 0.9]))
    with caplog.at_level(logging.WARNING):
        found = fit_calibrator("platt", shares, np.array([1, 1]))
    assert found == Calibrator()
    assert "2 images of one class alone" in caplog.text
    np.testing.assert_array_equal(found.apply(shares), shares)


def test_separated_classes_do_not_run_away() -> None:
    """Temperature stops at its lower end, and Platt's targets keep certainty within the evidence."""
    shares, labels = two(np.array([0.1, 0.2, 0.8, 0.9])), np.array([0, 0, 1, 1])
    assert fit_calibrator("temperature", shares, labels).temperature == pytest.approx(0.05, rel=1e-3)
    answers = fit_calibrator("platt", shares, labels).apply(shares)[:, 1]
    np.testing.assert_allclose(answers, [0.25, 0.25, 0.75, 0.75], atol=0.1)


def test_certainty_that_is_wrong_is_cooled() -> None:
    """A probability of nought for what came true does not stop the others from being fitted."""
    shares = two(np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]))
    found = fit_calibrator("temperature", shares, np.array([1, 1, 1, 1, 0, 0]))
    assert found.apply(shares)[1, 1] == pytest.approx(5 / 6, abs=1e-3)


def test_a_ranking_is_never_turned_round() -> None:
    """Answers that are worse than chance become equal, not opposite; equal ones are shifted alike."""
    shares, labels = two(np.array([0.1, 0.2, 0.8, 0.9])), np.array([1, 1, 0, 0])
    assert np.ptp(fit_calibrator("platt", shares, labels).apply(shares)[:, 1]) < 1e-6
    level = fit_calibrator("platt", two(np.full(400, 0.9)), np.arange(400) % 4 == 0)
    np.testing.assert_allclose(level.apply(two(np.full(1, 0.9)))[0, 1], 0.25, atol=0.01)
    assert level.slopes == (1.0,)
    same = fit_calibrator("temperature", two(np.full(4, 0.5)), np.array([0, 1, 0, 1]))
    assert same.temperature == 1


def test_thresholds_by_hand() -> None:
    """Midway between neighbours; sensitivity takes the highest that reaches what is wanted."""
    share, labels = np.array([0.1, 0.3, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1, 1])
    assert choose_threshold("youden", share, labels) == pytest.approx(0.5)
    expected = {0.3: 0.7, 0.5: 0.5, 2 / 3: 0.5, 0.7: 0.2, 1.0: 0.2}
    for wanted, threshold in expected.items():
        found = choose_threshold("sensitivity", share, labels, wanted)
        assert found == pytest.approx(threshold), wanted
    assert choose_threshold("sensitivity", share, 1 - labels, 1.0) == pytest.approx(0.05)
    assert choose_threshold("none", share, labels) == 0.5
    above = np.nextafter(0.4, 1)
    assert choose_threshold("youden", np.array([0.4, above]), np.array([0, 1])) == above


def test_ties_between_thresholds_are_decided() -> None:
    """The nearest to 0.5 wins, of two as near the lower; without any gain it is 0.5."""
    labels = np.array([0, 1, 0, 1])
    assert choose_threshold("youden", np.array([0.1, 0.5, 0.6, 0.8]), labels) == pytest.approx(0.3)
    assert choose_threshold("youden", np.array([0.1, 0.4, 0.5, 0.6]), labels) == pytest.approx(0.55)
    symmetric = choose_threshold("youden", np.array([0.25, 0.5, 0.5, 0.75]), np.array([0, 0, 1, 1]))
    assert symmetric == 0.375
    assert choose_threshold("youden", np.array([0.9, 0.8, 0.2, 0.1]), np.array([0, 0, 1, 1])) == 0.5
    assert choose_threshold("youden", np.full(4, 0.7), labels) == 0.5
    assert choose_threshold("youden", np.array([0.2, 0.7]), np.array([1, 1])) == 0.5


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=25),
    st.floats(0.05, 1),
)
def test_a_threshold_does_what_its_rule_says(rows: list[tuple[float, bool]], wanted: float) -> None:
    """Youden's reaches the best point of scikit-learn's curve; the other its sensitivity, just."""
    share, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]).astype(int)
    if len(np.unique(labels)) < 2:
        return
    false, true, _ = roc_curve(labels, share, drop_intermediate=False)
    guess = share >= choose_threshold("youden", share, labels)
    gain = guess[labels == 1].mean() - guess[labels == 0].mean()
    best = (true - false).max()
    assert gain == pytest.approx(best) or best <= 1e-12
    threshold = choose_threshold("sensitivity", share, labels, wanted)
    positives = share[labels == 1]
    assert (positives >= threshold).mean() >= wanted - 1e-9
    higher = share[share >= threshold].min()
    assert (positives > higher).mean() < wanted


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_a_part_is_finished_by_the_others_alone(kind: Kind) -> None:
    """Its own labels change nothing of a part; its rows get what a fit on the others gives."""
    rng = np.random.default_rng(7)
    share, parts = rng.random(90), np.repeat([4, 1, 2], 30)
    labels = (rng.random(90) < share**2).astype(int)
    raw, cut = two(share)[None], parts[None]
    finish = cross_finish(kind, "youden", 0.95, raw, labels, cut)
    assert [sorted(by_part) for by_part in finish] == [[1, 2, 4]]
    own = parts == 1
    turned = np.where(own, 1 - labels, labels)
    again = cross_finish(kind, "youden", 0.95, raw, turned, cut)
    assert again[0][1] == finish[0][1]
    assert again[0][2] != finish[0][2]
    (shares, thresholds), (others, _) = applied(finish, raw, cut), applied(again, raw, cut)
    np.testing.assert_array_equal(others[own], shares[own])
    assert not np.allclose(others[~own], shares[~own])
    by_others = fit_calibrator(kind, two(share)[~own], labels[~own])
    np.testing.assert_array_equal(shares[own], by_others.apply(two(share)[own]))
    expected = choose_threshold("youden", by_others.apply(two(share)[~own])[:, 1], labels[~own])
    assert set(np.asarray(thresholds)[own]) == {expected}
    p = finished(labels, parts, raw, cut, finish, None)
    assert list(p.predicted) == list((shares[:, 1] >= thresholds).astype(int))


def test_each_cut_is_finished_by_itself() -> None:
    """Several cuts have finishes as if they were alone, and a row the mean of what they say."""
    rng = np.random.default_rng(10)
    labels, parts = rng.integers(2, size=60), rng.integers(3, size=(2, 60))
    raw = two(expit(rng.normal(size=(2, 60)) + labels))
    both = cross_finish("platt", "youden", 0.95, raw, labels, parts)
    alone = [cross_finish("platt", "youden", 0.95, raw[[r]], labels, parts[[r]]) for r in range(2)]
    assert both == (alone[0][0], alone[1][0])
    one, other = (applied(finish, raw[[r]], parts[[r]]) for r, finish in enumerate(alone))
    shares, thresholds = applied(both, raw, parts)
    np.testing.assert_allclose(shares, (one[0] + other[0]) / 2)
    np.testing.assert_allclose(np.asarray(thresholds), (np.asarray(one[1]) + np.asarray(other[1])) / 2)


def test_a_finish_is_calibration_and_a_threshold_on_it() -> None:
    """The threshold is chosen on calibrated probabilities, by its rule and the wanted sensitivity."""
    rng = np.random.default_rng(11)
    labels = rng.integers(2, size=200)
    shares = two(expit(rng.normal(size=200) + 2 * labels + 1))
    found = fit_finish("platt", "sensitivity", 0.8, shares, labels)
    assert found.calibrator == fit_calibrator("platt", shares, labels)
    calibrated = found.calibrator.apply(shares)[:, 1]
    assert found.threshold == choose_threshold("sensitivity", calibrated, labels, 0.8)
    assert (calibrated[labels == 1] >= found.threshold).mean() == pytest.approx(0.8, abs=0.01)
    assert fit_finish("platt", "none", 0.8, shares, labels) == Finish(found.calibrator)
    assert fit_finish("none", "none", 0.8, shares, labels) == Finish()


def test_noise_is_calibrated_to_its_frequency_and_signal_is_kept() -> None:
    """Answers that know nothing are drawn to how often class 1 comes; those that do stay apart."""
    rng = np.random.default_rng(12)
    labels, parts = (rng.random(3000) < 0.3).astype(int), rng.integers(4, size=(1, 3000))
    noise = rng.normal(size=3000) * 3
    for gain, lowest, highest in ((0, 0, 0.03), (3, 0.1, 1)):
        raw = two(expit(noise + gain * labels))[None]
        finish = cross_finish("platt", "none", 0.95, raw, labels, parts)
        shares = applied(finish, raw, parts)[0][:, 1]
        assert shares.mean() == pytest.approx(0.3, abs=0.02)
        assert lowest <= shares.std() < highest


@pytest.mark.parametrize("rule", get_args(Rule))
def test_there_is_no_threshold_beyond_two_classes(rule: Rule) -> None:
    """Three classes are calibrated, and decided by the likeliest."""
    rng = np.random.default_rng(8)
    shares, labels = rng.dirichlet([1, 1, 1], 60), np.arange(60) % 3
    raw, parts = shares[None], np.arange(60)[None] % 4
    finish = cross_finish("temperature", rule, 0.9, raw, labels, parts)
    found, threshold = applied(finish, raw, parts)
    assert threshold is None
    np.testing.assert_array_equal(found.argmax(axis=1), shares.argmax(axis=1))
    assert not np.allclose(found, shares)


def test_one_part_alone_is_left_as_it_is() -> None:
    """Without others there is nothing to learn from."""
    raw, labels = two(np.array([0.2, 0.9, 0.4]))[None], np.array([0, 1, 1])
    parts = np.zeros((1, 3), dtype=int)
    finish = cross_finish("platt", "youden", 0.95, raw, labels, parts)
    found, threshold = applied(finish, raw, parts)
    assert (found == raw[0]).all()
    assert threshold == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_sigmoid_is_the_best_there_is(seed: int) -> None:
    """No slope and intercept nearby has a smaller weighted loss on Platt's targets."""
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=60), rng.random(60)
    positive = rng.random(60) < expit(1.5 * values - 0.5)
    slope, intercept = fit_sigmoid(values, positive, weights)
    ours, theirs = weights[positive].sum(), weights[~positive].sum()
    targets = np.where(positive, (ours + 1) / (ours + 2), 1 / (theirs + 2))

    def loss(slope: float, intercept: float) -> float:
        shares = expit(slope * values + intercept)
        return float(-weights @ (targets * np.log(shares) + (1 - targets) * np.log1p(-shares)))

    least = loss(slope, intercept)
    for step in rng.normal(size=(50, 2)) * 0.05:
        assert least <= loss(slope + step[0], intercept + step[1])
    assert slope > 0.5
    turned, _ = fit_sigmoid(-values, positive, weights)
    assert turned == 0
