"""Scores equal scikit-learn's, with weights and without, within parts, and follow a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from stacker.scores import metrics
from stacker.scores.bootstrap import Resampling, points, replicate
from stacker.scores.metrics import (
    area_within,
    recognition_rate,
    scores,
    weighted_scores,
)
from stacker.scores.predictions import Predictions
from tests.predictions import parted_predictions, random_predictions

HOW = Resampling(100, 0, ("benign", "malignant"))
RANKED = ("auc", "auc_pooled", "average_precision")


def ranked_pairs(p: Predictions) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (class, scores, parts) for each class to be found, cut by cut."""
    raw, parts = p.ranked
    for k in [1] if raw.shape[2] == 2 else range(raw.shape[2]):
        for r in range(len(raw)):
            yield k, raw[r, :, k], parts[r]


def area_by_two_loops(p: Predictions, weights: np.ndarray) -> float:
    """Return the mean over classes of the share of pairs of one part and cut that are won."""
    won, pairs = np.zeros(p.probabilities.shape[1]), np.zeros(p.probabilities.shape[1])
    for k, score, part in ranked_pairs(p):
        for i in np.flatnonzero(p.labels == k):
            for j in np.flatnonzero((p.labels != k) & (part == part[i])):
                pair = weights[i] * weights[j]
                pairs[k] += pair
                won[k] += pair * (1 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0)
    return float(np.mean((won / np.where(pairs > 0, pairs, 1))[pairs > 0]))


def precision_by_part(p: Predictions, weights: np.ndarray) -> float:
    """Return scikit-learn's average precision of each part, weighed by its positives."""
    precisions: dict[int, list[tuple[float, float]]] = {}
    for k, score, part in ranked_pairs(p):
        for each in np.unique(part):
            own = (part == each) & (weights > 0)
            positive = p.labels[own] == k
            if positive.any() and not positive.all():
                value = sk.average_precision_score(positive, score[own], sample_weight=weights[own])
                precisions.setdefault(k, []).append((value, weights[own][positive].sum()))
    means = [np.average(values, weights=w) for values, w in (np.array(v).T for v in precisions.values())]
    return float(np.mean(means))


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
        "auc_pooled": sk.roc_auc_score(p.labels, share, **how),
        "average_precision": sk.average_precision_score(p.labels, share, **how),
        "brier": sk.brier_score_loss(p.labels, share, **how),
        "ece": calibration_error(share, p.labels == 1, w),
    }


@pytest.fixture(params=["table", "running sums"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work out the areas as for few cases, and as for many."""
    if request.param == "running sums":
        monkeypatch.setattr(metrics, "FEW", 0)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("threshold", [None, 0.62])
@pytest.mark.parametrize("seed", range(4))
def test_binary_scores_equal_scikit_learn(seed: int, threshold: float | None) -> None:
    """Weighted by counts, by fractions and not at all, with ties, and with a threshold of one's own."""
    p = random_predictions(2, seed)
    rng = np.random.default_rng(seed)
    weights = np.stack([np.ones(60), rng.integers(0, 4, 60), rng.random(60)])
    scored = weighted_scores(replace(p, threshold=threshold), np.arange(60), weights)
    share = p.probabilities[:, 1]
    assert len(np.unique(share)) < 60
    guess = p.probabilities.argmax(axis=1) if threshold is None else (share >= threshold).astype(int)
    for r, w in enumerate(weights):
        expected = expected_scores(p, guess, w)
        assert list(scored) == list(expected)
        for name, value in expected.items():
            assert scored[name][r] == pytest.approx(value), name


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("seed", range(3))
def test_multiclass_scores_equal_scikit_learn(seed: int) -> None:
    """Beyond two classes, means over classes of one against the rest, with and without weights."""
    p = random_predictions(4, seed)
    weights = np.stack([np.ones(60), np.random.default_rng(seed).random(60)])
    scored = scores(p.labels, p.probabilities, weights)
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
            "auc_pooled": sk.roc_auc_score(hot, p.probabilities, **how),
            "average_precision": sk.average_precision_score(hot, p.probabilities, **how),
            "brier": np.average(((p.probabilities - hot) ** 2).sum(axis=1) / 2, weights=w),
            "ece": calibration_error(p.probabilities.max(axis=1), guess == p.labels, w),
        }
        assert list(scored) == list(expected)
        for name, value in expected.items():
            assert scored[name][r] == pytest.approx(value), name


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("cuts", [1, 3])
def test_areas_within_parts_equal_a_count_of_all_pairs(classes: int, cuts: int) -> None:
    """Pairs of one part and cut, one by one, with ties and any weights; precision part by part."""
    p = parted_predictions(classes, 10 * classes + cuts, cuts)
    rng = np.random.default_rng(cuts)
    weights = np.stack([np.ones(60), rng.integers(0, 3, 60), rng.random(60)])
    scored = weighted_scores(p, np.arange(60), weights)
    for r, w in enumerate(weights):
        assert scored["auc"][r] == pytest.approx(area_by_two_loops(p, w))
        whole = replace(p, parts=np.zeros((cuts, 60), dtype=int))
        assert scored["auc_pooled"][r] == pytest.approx(area_by_two_loops(whole, w))
        assert scored["average_precision"][r] == pytest.approx(precision_by_part(p, w))
    assert area_within(p) == pytest.approx(scored["auc"][0])
    assert scored["auc"][0] != pytest.approx(scored["auc_pooled"][0], abs=0.01)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("by_case", [False, True])
def test_cases_weigh_pairs_within_parts(by_case: bool) -> None:
    """Counts of cases give what the same weights of their images give, whole in parts or not."""
    p = parted_predictions(2, 5, 2, by_case=by_case)
    counts = np.random.default_rng(0).integers(0, 3, size=(4, 12)).astype(np.uint16)
    scored = replicate(p, counts)["image"]
    for r, weights in enumerate(counts[:, p.cases].astype(float)):
        assert scored["auc"][r] == pytest.approx(area_by_two_loops(p, weights))
        expected = precision_by_part(p, weights)
        assert scored["average_precision"][r] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_shift_of_a_part_changes_no_area_within(classes: int) -> None:
    """What a fit adds to all its scores is seen by the pooled area alone."""
    p = parted_predictions(classes, 3)
    assert p.raw is not None
    assert p.parts is not None
    shifted = replace(p, raw=p.raw + np.array([4.0, 0, -2])[p.parts][..., None])
    before, after = points(p)["image"], points(shifted)["image"]
    for name in before:
        if name == "auc_pooled":
            assert abs(before[name] - after[name]) > 0.01
        else:
            assert before[name] == after[name], name


def test_parts_that_are_one_change_nothing() -> None:
    """One part a cut, whatever its number: the area within is the pooled one, and scikit-learn's."""
    p = random_predictions(2, 8)
    same = replace(p, raw=np.stack([p.probabilities] * 2), parts=np.repeat([[7], [3]], 60, axis=1))
    scored = points(same)["image"]
    assert scored == pytest.approx(points(p)["image"])
    assert scored["auc"] == scored["auc_pooled"]


def test_a_constant_out_of_fold_is_at_chance_only_within_parts() -> None:
    """The frequency of the other parts tells pooled images apart, the wrong way round."""
    labels, parts = np.array([1] * 15 + [0] * 5 + [1] * 5 + [0] * 15), np.repeat([0, 1], 20)
    raw = np.array([labels[parts != part].mean() for part in parts])
    p = Predictions(labels, np.arange(40), np.stack([1 - raw, raw], axis=1))
    scored = points(replace(p, raw=p.probabilities[None], parts=parts[None]))["image"]
    assert scored["auc"] == 0.5
    assert scored["average_precision"] == pytest.approx((15 * 0.75 + 5 * 0.25) / 20)
    assert scored["auc_pooled"] == pytest.approx(1 / 16 + 0.5 * 6 / 16)


def test_scores_without_signal_are_at_chance_and_with_it_above() -> None:
    """Noise in parts of differing frequency ranks as chance does; a planted signal is seen."""
    rng = np.random.default_rng(4)
    parts = rng.integers(5, size=(2, 4000))
    labels = (rng.random(4000) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])[parts[0]]).astype(int)
    noise, cases = rng.normal(size=(2, 4000)) - parts, np.arange(4000)
    for gain, lowest, highest in ((0.0, 0.47, 0.53), (1.0, 0.73, 0.79)):
        raw = np.stack([-noise, noise + gain * labels], axis=2)
        p = Predictions(labels, cases, np.full((4000, 2), 0.5), None, raw, parts)
        assert lowest < area_within(p) < highest
        assert weighted_scores(p, cases, np.ones((1, 4000)))["auc_pooled"][0] < lowest


repeatable = st.tuples(
    st.booleans(),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 2),
    st.integers(0, 4),
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(repeatable, min_size=2, max_size=30),
    classes=st.sampled_from([2, 3]),
    parted=st.booleans(),
)
def test_a_weight_is_a_repetition(
    rows: list[tuple[bool, int, int, int, int, int]], classes: int, parted: bool
) -> None:
    """Any weighted score is that of the rows repeated, defined or not; so is a replicate by case."""
    positive, eighths, count, case, part, fifths = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    labels = positive * (classes - 1)
    low = np.repeat((8 - eighths)[:, None] / 8 / (classes - 1), classes - 1, axis=1)
    p = Predictions(labels, case, np.column_stack([low, eighths / 8]), 0.3)
    if parted:
        raw = np.stack([p.probabilities, np.repeat(fifths[:, None] / 5, classes, axis=1)])
        p = replace(p, raw=raw, parts=np.stack([part, case]))
    counts = np.bincount(case, count, 6)[np.unique(case)].astype(np.uint16)
    if counts.sum() == 0:
        return
    _, position = np.unique(case, return_inverse=True)
    repeated = p.at(np.repeat(np.arange(len(case)), counts[position]))
    ones = np.ones((1, len(repeated.labels)))
    expected = weighted_scores(repeated, np.arange(len(repeated.labels)), ones)
    weighted = weighted_scores(p, np.arange(len(case)), counts[position][None])
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
    scored = HOW.evaluate({"m": p, "low": replace(p, threshold=0.1)})
    assert scored["m"]["image"]["accuracy"] == 0.75
    assert scored["m"]["case"]["accuracy"] == 0.75
    assert scored["m"]["case"]["recognition_rate"] == 0.75
    assert recognition_rate(replace(p, threshold=0.1), np.ones((1, 4)))[0] == 0.5
    assert not scored["m"]["constant_prediction"]
    assert scored["low"]["constant_prediction"]


def test_undefined_scores_are_null_not_numbers() -> None:
    """One class among the test images, or in every part, leaves the AUC undefined."""
    p = Predictions(np.zeros(4, int), np.arange(4), np.full((4, 2), 0.5))
    assert np.isnan(area_within(p))
    scored = HOW.evaluate({"m": p})["m"]["image"]
    assert scored["auc"] is None
    assert scored["interval"]["auc"] is None
    labels = np.array([0, 0, 1, 1])
    apart = replace(p, labels=labels, raw=p.probabilities[None], parts=labels[None])
    scored = HOW.evaluate({"m": apart})["m"]["image"]
    assert [scored[name] for name in RANKED] == [None, 0.5, None]
    assert np.isnan(area_within(apart))


def test_recognition_rate_weighs_cases_not_images() -> None:
    """A case of one image counts as much as a case of three (Spanhol et al. 2016)."""
    labels, cases = np.array([0, 0, 0, 1]), np.array(["a", "a", "a", "b"])
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    scored = HOW.evaluate({"m": Predictions(labels, cases, shares)})["m"]
    assert scored["case"]["recognition_rate"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-4)
    assert scored["image"]["accuracy"] == 0.5


def test_a_model_of_one_class_is_called_out() -> None:
    """A predictor that never changes its mind is marked."""
    p = random_predictions(2, 2)
    constant = Predictions(p.labels, p.cases, np.tile([0.4, 0.6], (60, 1)))
    scored = HOW.evaluate({"a": p, "b": constant})
    assert not scored["a"]["constant_prediction"]
    assert scored["b"]["constant_prediction"]
    assert scored["b"]["image"]["auc"] == 0.5


def test_a_constant_has_no_auc_by_case_either() -> None:
    """Means of equal probabilities over cases of different size are ties, not noise in the last bit."""
    cases = np.repeat(np.arange(20), np.arange(1, 21))
    constant = Predictions(cases % 2, cases, np.tile([0.1 + 0.2, 0.7], (len(cases), 1)))
    scored = HOW.evaluate({"m": constant})["m"]["case"]
    assert scored["auc"] == scored["auc_pooled"] == 0.5
    ranked = replace(constant, raw=constant.probabilities[None], parts=(cases // 2 % 3)[None])
    assert HOW.evaluate({"m": ranked})["m"]["case"]["auc"] == 0.5


def test_what_is_ranked_may_be_another_thing_than_what_is_stated() -> None:
    """Areas follow `raw`, all other scores the probabilities, by image, by case and for some rows."""
    rng = np.random.default_rng(0)
    labels, cases = np.arange(60) % 2, np.arange(60) // 2 * 2 + np.arange(60) % 2
    stated, other = (np.column_stack([1 - p, p]) for p in rng.uniform(size=(2, 60)))
    both = Predictions(labels, cases, stated, None, other[None], np.zeros((1, 60), dtype=int))
    scored = HOW.evaluate({"a": both})["a"]
    ranked = HOW.evaluate({"a": Predictions(labels, cases, other)})["a"]
    plain = HOW.evaluate({"a": Predictions(labels, cases, stated)})["a"]
    for unit in ("image", "case"):
        for score, value in scored[unit].items():
            expected = ranked if score in RANKED else plain
            if score not in ("interval", "withheld"):
                assert value == expected[unit][score], score
        for score, bounds in scored[unit]["interval"].items():
            expected = ranked if score in RANKED else plain
            assert bounds == expected[unit]["interval"][score], score
    raw, parts = both.at(np.arange(10)).ranked
    np.testing.assert_array_equal(raw, other[None, :10])
    np.testing.assert_array_equal(parts, np.zeros((1, 10)))
