"""What is made of raw probabilities: finishes by part, cases out of images, models side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from stacker.scores.influence import difference_of_areas
from stacker.scores.metrics import area_within, scores
from stacker.scores.predictions import (
    Calibrator,
    Finish,
    Predictions,
    aligned,
    by_case,
    finished,
    mean_over_folds,
    reliability,
)
from tests.predictions import parted_predictions, two


def shift(intercept: float, threshold: float | None = None) -> Finish:
    """Return a finish that moves the log-odds of class 1."""
    return Finish(Calibrator("platt", slopes=(1.0,), intercepts=(intercept,)), threshold)


def test_a_finish_survives_its_file() -> None:
    """What JSON holds of it is all that it is."""
    for finish in (Finish(), shift(0.5, 0.3), Finish(Calibrator("temperature", 2.5), 0.7)):
        assert Finish.from_dict(json.loads(json.dumps(finish.as_dict()))) == finish


def test_each_part_has_its_finish_and_cuts_are_averaged() -> None:
    """Two cuts by hand: each row is moved by the mean of what its two parts' finishes say."""
    raw = two(np.array([[0.2, 0.5, 0.7], [0.3, 0.5, 0.9]]))
    parts = np.array([[0, 0, 1], [1, 0, 1]])
    finish = ({0: shift(1.0, 0.2), 1: shift(-1.0, 0.4)}, {0: shift(0.0, 0.6), 1: shift(2.0, 0.8)})
    expected = expit(logit(raw[..., 1]) + np.array([[1, 1, -1], [2, 0, 2]])).mean(axis=0)
    cases = np.array(["a", "b", "c"])
    found = finished(np.array([0, 1, 1]), cases, raw, parts, finish, None)
    np.testing.assert_allclose(found.probabilities, two(expected))
    np.testing.assert_allclose(np.asarray(found.threshold), [0.5, 0.4, 0.6])
    assert list(found.predicted) == list((expected >= [0.5, 0.4, 0.6]).astype(int))
    assert found.ranked[0] is raw
    assert found.ranked[1] is parts


def test_a_threshold_of_all_rows_is_one_number() -> None:
    """Equal thresholds are one; a cut without any leaves the decision to the likeliest class."""
    raw, parts = two(np.array([[0.2, 0.5, 0.7]] * 2)), np.zeros((2, 3), dtype=int)
    rows = np.arange(3)

    def thresholds(*finishes: Finish) -> object:
        of_cuts = tuple({0: finish} for finish in finishes)
        return finished(rows, rows, raw, parts, of_cuts, None).threshold

    assert thresholds(shift(0, 0.3), shift(1, 0.3)) == 0.3
    assert thresholds(shift(0, 0.3), shift(1)) is None
    one = finished(rows, rows, raw[:1], parts[:1], ({0: shift(0.7, 0.4)},), None)
    np.testing.assert_allclose(one.probabilities, two(expit(logit(raw[0, :, 1]) + 0.7)))
    assert one.threshold == 0.4


def test_steep_sigmoids_leave_a_probability() -> None:
    """Where no class is likely by its own sigmoid, they share what is left."""
    steep = Calibrator("platt", slopes=(1e5,) * 3, intercepts=(0.0,) * 3)
    np.testing.assert_allclose(steep.apply(np.full((1, 3), 1 / 3)), np.full((1, 3), 1 / 3))


def test_folds_are_averaged_by_log_odds() -> None:
    """Two folds as sure of opposite things cancel out; one alone stays as it is, also if too sure."""
    shares = np.stack([two(np.array([0.9, 0.8, 0.5])), two(np.array([0.1, 0.5, 0.5]))])
    expected = expit((logit(shares[0, :, 1]) + logit(shares[1, :, 1])) / 2)
    np.testing.assert_allclose(mean_over_folds(shares), two(expected))
    assert expected[0] == pytest.approx(0.5)
    np.testing.assert_array_equal(
        mean_over_folds(two(np.array([[1.0, 0.3]]))), two(np.array([1.0, 0.3]))
    )
    three = np.random.default_rng(0).dirichlet([1, 1, 1], size=(4, 5))
    by_hand = softmax(np.log(np.maximum(three, 1e-4)).mean(axis=0), axis=1)
    np.testing.assert_allclose(mean_over_folds(three), by_hand)


def test_a_fold_that_is_too_sure_does_not_decide_alone() -> None:
    """A probability of nought by one of five folds is outvoted by four that say nine tenths."""
    found = mean_over_folds(two(np.array([[0.0], [0.95], [0.95], [0.95], [0.95]])))
    assert 0.5 < found[0, 1] < 0.9


def test_a_case_has_the_mean_probability_of_its_images() -> None:
    """Two images of a case, one row; a case with two labels has none."""
    shares = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    found = by_case(Predictions(np.array([0, 0, 1]), np.array(["a", "a", "b"]), shares))
    assert found is not None
    np.testing.assert_allclose(found.probabilities, [[0.6, 0.4], [0.2, 0.8]])
    assert list(found.labels) == [0, 1]
    assert list(found.cases) == ["a", "b"]
    assert by_case(Predictions(np.array([0, 1, 1]), np.array(["a", "a", "b"]), shares)) is None


def test_a_case_has_the_mean_threshold_of_its_images() -> None:
    """A threshold for each image is averaged as the probabilities are; one for all stays."""
    shares = np.array([0.9, 0.4, 0.5])
    p = Predictions(np.array([1, 1, 0]), np.array(["a", "a", "b"]), two(shares))
    found = by_case(replace(p, threshold=np.array([0.2, 0.4, 0.9])))
    assert found is not None
    np.testing.assert_allclose(np.asarray(found.threshold), [0.3, 0.9])
    thirds = Predictions(p.labels, p.cases, np.tile([2 / 3, 1 / 3], (3, 1)), 1 / 3)
    found = by_case(thirds)
    assert found is not None
    assert list(thirds.predicted) == [1, 1, 1]
    assert list(found.predicted) == [1, 1]


def test_a_case_has_a_finish_of_its_own() -> None:
    """The mean raw probability of a case is finished by its part's finish of cases, cut by cut."""
    cases = np.array(["a", "a", "b", "b", "c"])
    raw = two(np.array([[0.2, 0.4, 0.9, 0.5, 0.6], [0.1, 0.1, 0.6, 0.6, 0.8]]))
    parts = np.array([[0, 0, 1, 1, 0], [2, 2, 0, 0, 0]])
    of_cases = ({0: shift(1.0, 0.2), 1: shift(-1.0, 0.4)}, {0: shift(0, 0.6), 2: shift(2, 0.8)})
    images = ({0: shift(0, 0.5), 1: shift(3, 0.5)}, {0: shift(0, 0.5), 2: shift(-1, 0.5)})
    p = finished(np.array([0, 0, 1, 1, 1]), cases, raw, parts, images, of_cases)
    found = by_case(p)
    assert found is not None
    means = np.array([[0.3, 0.7, 0.6], [0.1, 0.6, 0.8]])
    np.testing.assert_allclose(found.ranked[0], two(means))
    np.testing.assert_array_equal(found.ranked[1], [[0, 1, 0], [2, 0, 0]])
    expected = expit(logit(means) + np.array([[1, -1, 1], [2, 0, 0]])).mean(axis=0)
    np.testing.assert_allclose(found.probabilities, two(expected))
    np.testing.assert_allclose(np.asarray(found.threshold), [0.5, 0.5, 0.4])
    plain = by_case(replace(p, case_finish=None))
    assert plain is not None
    np.testing.assert_allclose(plain.probabilities[0, 1], p.probabilities[:2, 1].mean())
    assert plain.threshold == 0.5
    np.testing.assert_array_equal(plain.ranked[1], found.ranked[1])


def test_cases_that_straddle_parts_are_ranked_as_one_part() -> None:
    """Only the cut that some case straddles has one part, and the finish of images is averaged."""
    cases = np.array(["a", "a", "b", "b"])
    raw = two(np.array([[0.2, 0.4, 0.9, 0.5], [0.1, 0.3, 0.6, 0.8]]))
    parts = np.array([[0, 1, 1, 1], [0, 0, 1, 1]])
    images = ({0: shift(1, 0.2), 1: shift(-1, 0.4)}, {0: shift(0, 0.6), 1: shift(2, 0.8)})
    p = finished(np.array([0, 0, 1, 1]), cases, raw, parts, images, images)
    found = by_case(p)
    assert found is not None
    np.testing.assert_array_equal(found.ranked[1], [[-1, -1], [0, 1]])
    np.testing.assert_allclose(found.ranked[0][..., 1], [[0.3, 0.7], [0.2, 0.7]])
    np.testing.assert_allclose(
        found.probabilities[:, 1], p.probabilities[:, 1].reshape(2, 2).mean(axis=1)
    )
    np.testing.assert_allclose(np.asarray(found.threshold), [0.45, 0.6])
    assert area_within(found) == 1
    one, other = aligned(found, replace(found, parts=np.array([[0, 0], [0, 0]])))
    assert area_within(one) == area_within(other) == 1


def test_some_rows_keep_what_belongs_to_them() -> None:
    """Raw probabilities, parts and thresholds go with the rows, by mask and by number."""
    p = replace(parted_predictions(2, 1), threshold=np.arange(60) / 60)
    rows = np.array([4, 1, 7])
    some = p.at(rows)
    assert p.raw is not None
    assert p.parts is not None
    np.testing.assert_array_equal(some.ranked[0], p.raw[:, rows])
    np.testing.assert_array_equal(some.ranked[1], p.parts[:, rows])
    np.testing.assert_array_equal(np.asarray(some.threshold), rows / 60)
    np.testing.assert_array_equal(some.predicted, p.predicted[rows])
    mask = p.labels == 1
    np.testing.assert_array_equal(p.at(mask).ranked[0], p.raw[:, mask])


def test_the_same_parts_are_left_as_they_are() -> None:
    """Models in the same parts, or in none, are compared as they stand."""
    p = parted_predictions(2, 1)
    turned = replace(p, raw=p.ranked[0][:, ::-1])
    plain = replace(p, raw=None, parts=None)
    for pair in ((p, turned), (plain, plain)):
        assert all(each is own for each, own in zip(aligned(*pair), pair, strict=True))
    with pytest.raises(ValueError, match="the two models are not predictions for the same images"):
        aligned(p, p.at(np.arange(60)[::-1]))
    with pytest.raises(ValueError, match="not predictions for the same images"):
        aligned(p, replace(p, labels=1 - p.labels))


@pytest.mark.parametrize("cuts", [(1, 1), (1, 3), (2, 2), (0, 2)])
def test_pairs_are_compared_that_both_models_have_in_one_part(cuts: tuple[int, int]) -> None:
    """Two areas counted over the same pairs, one by one, cut by cut; the order does not matter."""
    p = parted_predictions(2, 4, cuts=max(1, cuts[0]))
    if not cuts[0]:
        p = replace(p, raw=None, parts=None)
    q = replace(parted_predictions(2, 9, cuts=cuts[1]), labels=p.labels, cases=p.cases)
    won, pairs = np.zeros(2), 0
    for r in range(max(cuts)):
        raws, parts = zip(
            *[(raw[r % len(raw)], of[r % len(of)]) for raw, of in (p.ranked, q.ranked)], strict=True
        )
        for i in np.flatnonzero(p.labels == 1):
            for j in np.flatnonzero(p.labels == 0):
                if all(part[i] == part[j] for part in parts):
                    pairs += 1
                    won += [(np.sign(raw[i, 1] - raw[j, 1]) + 1) / 2 for raw in raws]
    one, other = aligned(p, q)
    assert [area_within(one), area_within(other)] == pytest.approx(won / pairs)
    assert [area_within(each) for each in aligned(q, p)] == pytest.approx((won / pairs)[::-1])
    found, back = difference_of_areas(p, q), difference_of_areas(q, p)
    assert found is not None
    assert back is not None
    assert found.area == -back.area == pytest.approx((won[0] - won[1]) / pairs)
    assert found.variance == pytest.approx(back.variance)
    np.testing.assert_array_equal(one.probabilities, p.probabilities)


def test_parts_that_are_one_for_all_cases_are_told_from_numbered_ones() -> None:
    """Cases that straddle have the part -1, which no other model's parts are mistaken for."""
    labels, cases = np.array([0, 1, 0, 1, 0, 1]), np.arange(6)
    raw = two(np.array([[0.1, 0.9, 0.3, 0.2, 0.5, 0.8]]))
    p = Predictions(labels, cases, raw[0], None, raw, np.array([[0, 0, 1, 1, 2, 2]]))
    q = replace(p, parts=np.full((1, 6), -1))
    for pair in (aligned(p, q), aligned(q, p)):
        for each in pair:
            codes = each.ranked[1][0]
            assert [codes[0] == codes[k] for k in range(6)] == [True, True, False, False, False, False]
            assert len(np.unique(codes)) == 3
    mixed = replace(p, parts=np.array([[-1, -1, 0, 0, 1, 1]]))
    assert len(np.unique(aligned(mixed, p)[0].ranked[1])) == 3
    crossed = replace(p, parts=np.array([[-1, 0, -1, 0, -1, 0]]))
    assert len(np.unique(aligned(crossed, p)[0].ranked[1])) == 6
    assert difference_of_areas(crossed, p) is None


@pytest.mark.parametrize("classes", [2, 4])
def test_reliability_adds_up_to_the_calibration_error(classes: int) -> None:
    """Gaps between confidence and frequency, weighed by images, are the score `ece`."""
    rng = np.random.default_rng(9)
    shares = np.exp(log_softmax(rng.normal(size=(500, classes)) * 2, axis=1))
    p = Predictions(rng.integers(classes, size=500), np.arange(500), shares)
    confidence, frequency, images = reliability(p)
    assert images.sum() == 500
    filled = images > 0
    assert (np.isfinite(confidence) == filled).all()
    gaps = np.abs(confidence - frequency)[filled]
    expected = scores(p.labels, p.probabilities, np.ones((1, 500)))["ece"][0]
    assert (gaps * images[filled]).sum() / 500 == pytest.approx(expected)


def test_reliability_by_hand() -> None:
    """Ten bins are closed below; a probability of one is in the last."""
    p = Predictions(np.array([1, 0, 1]), np.arange(3), two(np.array([0.5, 0.95, 1.0])))
    confidence, frequency, images = reliability(p)
    np.testing.assert_allclose(confidence, [*[np.nan] * 5, 0.5, *[np.nan] * 3, 0.975])
    np.testing.assert_allclose(frequency, [*[np.nan] * 5, 1, *[np.nan] * 3, 0.5])
    assert list(images) == [0] * 5 + [1] + [0] * 3 + [2]
