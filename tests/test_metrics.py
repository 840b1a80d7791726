"""Scores equal scikit-learn's, with weights and without, and follow a threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from stacker import ranking
from stacker.metrics import (
    Predictions,
    area_under_curve,
    evaluate,
    recognition_rate,
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


def calibration_error(stated: np.ndarray, came_true: np.ndarray, weights: np.ndarray) -> float:
    """Return the expected calibration error, bin by bin."""
    total = 0.0
    for k in range(10):
        inside = (stated >= k / 10) & ((stated < (k + 1) / 10) | (k == 9))
        if weights[inside].sum() > 0:
            gap = np.average(came_true[inside] - stated[inside], weights=weights[inside])
            total += abs(gap) * weights[inside].sum()
    return float(total / weights.sum())


def expected_scores(p: Predictions, guess: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Return what scikit-learn makes of two classes."""
    share, how = p.probabilities[:, 1], {"sample_weight": w}
    return {
        "accuracy": sk.accuracy_score(p.labels, guess, **how),
        "balanced_accuracy": sk.balanced_accuracy_score(p.labels, guess, **how),
        "sensitivity": sk.recall_score(p.labels, guess, **how),
        "specificity": sk.recall_score(p.labels, guess, pos_label=0, **how),
        "precision": sk.precision_score(p.labels, guess, **how),
        "f1": sk.f1_score(p.labels, guess, **how),
        "auc": sk.roc_auc_score(p.labels, share, **how),
        "average_precision": sk.average_precision_score(p.labels, share, **how),
        "brier": sk.brier_score_loss(p.labels, share, **how),
        "ece": calibration_error(share, p.labels == 1, w),
    }


@pytest.fixture(params=["table", "running sums"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work out the areas as for few cases, and as for many."""
    if request.param == "running sums":
        monkeypatch.setattr(ranking, "FEW", 0)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("threshold", [None, 0.62])
@pytest.mark.parametrize("seed", range(4))
def test_binary_scores_equal_scikit_learn(seed: int, threshold: float | None) -> None:
    """Weighted by counts, by fractions and not at all, with ties, and with a threshold of one's own."""
    p = random_predictions(2, seed)
    rng = np.random.default_rng(seed)
    weights = np.stack([np.ones(60), rng.integers(0, 4, 60), rng.random(60)])
    found = scores(p.labels, p.probabilities, weights, threshold)
    share = p.probabilities[:, 1]
    assert len(np.unique(share)) < 60
    guess = p.probabilities.argmax(axis=1) if threshold is None else (share >= threshold).astype(int)
    for r, w in enumerate(weights):
        expected = expected_scores(p, guess, w)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value), name


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("seed", range(3))
def test_multiclass_scores_equal_scikit_learn(seed: int) -> None:
    """Beyond two classes, means over classes of one against the rest, with and without weights."""
    p = random_predictions(4, seed)
    weights = np.stack([np.ones(60), np.random.default_rng(seed).random(60)])
    found = scores(p.labels, p.probabilities, weights)
    guess, hot = p.probabilities.argmax(axis=1), np.eye(4)[p.labels]
    for r, w in enumerate(weights):
        how = {"sample_weight": w, "average": "macro"}
        others = [sk.recall_score(p.labels != k, guess != k, sample_weight=w) for k in range(4)]
        expected = {
            "accuracy": sk.accuracy_score(p.labels, guess, sample_weight=w),
            "balanced_accuracy": sk.balanced_accuracy_score(p.labels, guess, sample_weight=w),
            "sensitivity": sk.recall_score(p.labels, guess, **how),
            "specificity": np.mean(others),
            "precision": sk.precision_score(p.labels, guess, **how),
            "f1": sk.f1_score(p.labels, guess, **how),
            "auc": sk.roc_auc_score(hot, p.probabilities, **how),
            "average_precision": sk.average_precision_score(hot, p.probabilities, **how),
            "brier": np.average(((p.probabilities - hot) ** 2).sum(axis=1) / 2, weights=w),
            "ece": calibration_error(p.probabilities.max(axis=1), guess == p.labels, w),
        }
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value), name


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 3), st.integers(0, 5)),
        min_size=2,
        max_size=30,
    ),
    classes=st.sampled_from([2, 3]),
)
def test_a_weight_is_a_repetition(rows: list[tuple[bool, int, int, int]], classes: int) -> None:
    """Any weighted score is that of the rows repeated, defined or not; so is a replicate by case."""
    positive, eighths, count, case = (np.array(column) for column in zip(*rows, strict=True))
    labels = positive * (classes - 1)
    low = np.repeat((8 - eighths)[:, None] / 8 / (classes - 1), classes - 1, axis=1)
    p = Predictions(labels, case, np.column_stack([low, eighths / 8]), 0.3)
    counts = np.bincount(case, count, 6)[np.unique(case)].astype(np.uint16)
    if counts.sum() == 0:
        return
    _, position = np.unique(case, return_inverse=True)
    repeated = p.at(np.repeat(np.arange(len(case)), counts[position]))
    expected = scores(
        repeated.labels, repeated.probabilities, np.ones((1, len(repeated.labels))), repeated.threshold
    )
    weighted = scores(p.labels, p.probabilities, counts[position][None], p.threshold)
    by_case = replicate(p, counts[None])["image"]
    for name, value in expected.items():
        np.testing.assert_allclose(weighted[name], value, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(by_case[name], value, atol=1e-6, err_msg=name)


def test_a_threshold_decides_everywhere() -> None:
    """Class 1 from the threshold on, inclusive; argmax beyond two classes; one for each image works."""
    shares = np.array([0.2, 0.3, 0.4, 0.6])
    p = Predictions(np.array([0, 1, 1, 0]), np.arange(4), np.stack([1 - shares, shares], axis=1), 0.3)
    assert list(p.predicted) == [0, 1, 1, 1]
    assert list(replace(p, threshold=None).predicted) == [0, 0, 0, 1]
    assert list(replace(p, threshold=np.array([0.1, 0.4, 0.4, 0.7])).predicted) == [1, 0, 1, 0]
    three = Predictions(p.labels, p.cases, np.eye(3)[[0, 1, 2, 1]], 0.0)
    assert list(three.predicted) == [0, 1, 2, 1]
    found = evaluate({"m": p, "low": replace(p, threshold=0.1)}, 50, 0)
    assert found["m"]["image"]["accuracy"] == 0.75
    assert found["m"]["case"]["accuracy"] == 0.75
    assert found["m"]["case"]["recognition_rate"] == 0.75
    assert recognition_rate(replace(p, threshold=0.1), np.ones((1, 4)))[0] == 0.5
    assert not found["m"]["constant_prediction"]
    assert found["low"]["constant_prediction"]


def test_a_case_has_the_mean_threshold_of_its_images() -> None:
    """A threshold for each image is averaged as the probabilities are; one for all stays."""
    shares = np.array([0.9, 0.4, 0.5])
    p = Predictions(np.array([1, 1, 0]), np.array(["a", "a", "b"]), np.stack([1 - shares, shares], 1))
    voted = vote(replace(p, threshold=np.array([0.2, 0.4, 0.9])))
    assert voted is not None
    np.testing.assert_allclose(np.asarray(voted.threshold), [0.3, 0.9])
    thirds = Predictions(p.labels, p.cases, np.tile([2 / 3, 1 / 3], (3, 1)), 1 / 3)
    voted = vote(thirds)
    assert voted is not None
    assert list(thirds.predicted) == [1, 1, 1]
    assert list(voted.predicted) == [1, 1]


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


def test_what_is_ranked_may_be_another_thing_than_what_is_stated() -> None:
    """Areas follow `order`, all other scores the probabilities, by image, by case and for some rows."""
    rng = np.random.default_rng(0)
    labels, cases = np.arange(60) % 2, np.arange(60) // 2 * 2 + np.arange(60) % 2
    stated, other = (np.column_stack([1 - p, p]) for p in rng.uniform(size=(2, 60)))
    found = evaluate({"a": Predictions(labels, cases, stated, None, other)}, 100, 0)["a"]
    ranked = evaluate({"a": Predictions(labels, cases, other)}, 100, 0)["a"]
    plain = evaluate({"a": Predictions(labels, cases, stated)}, 100, 0)["a"]
    for unit in ("image", "case"):
        for score, value in found[unit].items():
            expected = ranked if score in ("auc", "average_precision") else plain
            if score != "interval":
                assert value == expected[unit][score], score
    some = Predictions(labels, cases, stated, None, other).at(np.arange(10))
    np.testing.assert_array_equal(some.ranks, other[:10])
