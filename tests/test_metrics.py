"""Scores equal scikit-learn's, and intervals draw whole cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from stacker.metrics import (
    Predictions,
    area_under_curve,
    differences,
    draw_cases,
    evaluate,
    interval,
    replicate,
    scores,
    vote,
)


def random_predictions(classes: int, seed: int, images: int = 60) -> Predictions:
    """Return predictions with ties, better than chance, of twelve cases of one class each."""
    rng = np.random.default_rng(seed)
    cases = rng.integers(12, size=images)
    labels = cases % classes
    logits = rng.normal(size=(images, classes)).round(1)
    logits[np.arange(images), labels] += 0.7
    powers = np.exp(logits)
    return Predictions(labels, cases, powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(5))
def test_binary_scores_equal_scikit_learn(seed: int) -> None:
    """Weighted and unweighted, ties in the AUC included."""
    p = random_predictions(2, seed)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 60)).astype(float)
    weights[0] = 1
    found = scores(p.labels, p.probabilities, weights)
    guess, share = p.probabilities.argmax(axis=1), p.probabilities[:, 1]
    for r, w in enumerate(weights):
        expected = {
            "accuracy": sk.accuracy_score(p.labels, guess, sample_weight=w),
            "balanced_accuracy": sk.balanced_accuracy_score(p.labels, guess, sample_weight=w),
            "auc": sk.roc_auc_score(p.labels, share, sample_weight=w),
            "precision": sk.precision_score(p.labels, guess, sample_weight=w),
            "f1": sk.f1_score(p.labels, guess, sample_weight=w),
            "brier": sk.brier_score_loss(p.labels, share, sample_weight=w),
            "sensitivity": sk.recall_score(p.labels, guess, sample_weight=w),
            "specificity": sk.recall_score(p.labels, guess, pos_label=0, sample_weight=w),
        }
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value), name


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_scores_equal_scikit_learn(seed: int) -> None:
    """Macro averages beyond two classes, one against the rest for the AUC."""
    p = random_predictions(4, seed)
    found = scores(p.labels, p.probabilities, np.ones((1, 60)))
    guess = p.probabilities.argmax(axis=1)
    assert found["auc"][0] == pytest.approx(
        sk.roc_auc_score(p.labels, p.probabilities, multi_class="ovr")
    )
    assert found["f1"][0] == pytest.approx(sk.f1_score(p.labels, guess, average="macro"))
    assert found["balanced_accuracy"][0] == pytest.approx(sk.balanced_accuracy_score(p.labels, guess))


def test_undefined_scores_are_null_not_numbers() -> None:
    """One class among the test images leaves the AUC undefined."""
    p = Predictions(np.zeros(4, int), np.arange(4), np.full((4, 2), 0.5))
    assert np.isnan(area_under_curve(p.labels, p.probabilities))
    found = evaluate({"m": p}, 100, 0)["m"]["image"]
    assert found["auc"] is None
    assert found["interval"]["auc"] is None


def test_vote_is_the_mean_probability_of_a_case() -> None:
    """Two images of a case, one row; a case with two labels has no vote."""
    shares = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    voted = vote(Predictions(np.array([0, 0, 1]), np.array(["a", "a", "b"]), shares))
    assert voted is not None
    np.testing.assert_allclose(voted.probabilities, [[0.6, 0.4], [0.2, 0.8]])
    assert list(voted.labels) == [0, 1]
    assert vote(Predictions(np.array([0, 1, 1]), np.array(["a", "a", "b"]), shares)) is None


def test_recognition_rate_weighs_cases_not_images() -> None:
    """A case of one image counts as much as a case of three (Spanhol et al. 2016)."""
    labels, cases = np.array([0, 0, 0, 1]), np.array(["a", "a", "a", "b"])
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    found = evaluate({"m": Predictions(labels, cases, shares)}, 100, 0)["m"]
    assert found["case"]["recognition_rate"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-4)
    assert found["image"]["accuracy"] == 0.5


def test_bootstrap_draws_whole_cases() -> None:
    """Replicates by hand, image by image, equal the weighted ones."""
    p = random_predictions(2, 0)
    drawn = draw_cases(p.cases, 20, 5)
    assert (drawn.sum(axis=1) == len(np.unique(p.cases))).all()
    found = replicate(p, drawn)
    names, position = np.unique(p.cases, return_inverse=True)
    for r, counts in enumerate(drawn):
        rows = np.repeat(np.arange(len(position)), counts[position])
        expected = sk.accuracy_score(p.labels[rows], p.probabilities[rows].argmax(axis=1))
        assert found["image"]["accuracy"][r] == pytest.approx(expected)
    assert len(names) == drawn.shape[1]


def test_intervals_by_case_are_wider_than_by_image() -> None:
    """When the images of a case are right or wrong together, single images would promise too much."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(30), 10)
    labels = cases % 2
    right = np.repeat(rng.random(30) < 0.7, 10)
    shares = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1
    widths = []
    for unit in (cases, np.arange(300)):
        low, high = evaluate({"m": Predictions(labels, unit, shares)}, 1000, 0)["m"]["image"][
            "interval"
        ]["accuracy"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    """Two models that err on the same images differ by little, and surely."""
    p = random_predictions(2, 1, images=200)
    better = p.probabilities.copy()
    wrong = np.flatnonzero(better.argmax(axis=1) != p.labels)[:10]
    better[wrong] = better[wrong][:, ::-1]
    models = {"one": Predictions(p.labels, p.cases, better), "two": p}
    (row, _) = differences(models, [("one", "two")], 500, 0)
    assert row["difference"] == pytest.approx(0.05)
    low, high = row["interval"]
    own = evaluate(models, 500, 0)["one"]["image"]["interval"]["accuracy"]
    assert high - low < own[1] - own[0]


def test_a_model_of_one_class_is_called_out() -> None:
    """A predictor that never changes its mind is marked."""
    p = random_predictions(2, 2)
    constant = Predictions(p.labels, p.cases, np.tile([0.4, 0.6], (60, 1)))
    found = evaluate({"a": p, "b": constant}, 100, 0)
    assert not found["a"]["constant_prediction"]
    assert found["b"]["constant_prediction"]
    assert found["b"]["image"]["auc"] == 0.5


def test_a_constant_has_no_auc_by_case_either() -> None:
    """Means of equal probabilities over cases of different size are ties, not noise in the last bit."""
    cases = np.repeat(np.arange(20), np.arange(1, 21))
    constant = Predictions(cases % 2, cases, np.tile([0.1 + 0.2, 0.7], (len(cases), 1)))
    assert evaluate({"m": constant}, 100, 0)["m"]["case"]["auc"] == 0.5


def test_interval_needs_enough_defined_replicates() -> None:
    """Too many undefined draws, no interval."""
    assert interval(np.r_[np.zeros(10), np.full(11, np.nan)]) is None
    assert interval(np.linspace(0, 1, 1001)) == [0.025, 0.975]
