"""Intervals draw whole cases, the same for all models, and hold the truth as often as they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk

from stacker import ranking
from stacker.metrics import (
    Predictions,
    differences,
    draw_cases,
    evaluate,
    evaluate_subsets,
    interval,
    replicate,
)
from tests.test_metrics import random_predictions


def test_few_cases_and_many_give_the_same_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of thresholds by cases, the running sums and a chunk of one draw agree."""
    p = random_predictions(3, 4, images=300)
    drawn = draw_cases(p.cases, 50, 1)
    table = replicate(p, drawn)
    monkeypatch.setattr(ranking, "FEW", 0)
    running = replicate(p, drawn)
    monkeypatch.setattr("stacker.metrics.CHUNK", 1)
    slowly = replicate(p, drawn)
    np.testing.assert_array_equal(draw_cases(p.cases, 50, 1), drawn)
    for unit, found in table.items():
        for name, values in found.items():
            np.testing.assert_allclose(running[unit][name], values, rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(slowly[unit][name], values, rtol=1e-6, err_msg=name)


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


def test_an_interval_is_that_of_the_draws() -> None:
    """The score itself is not one of the replicates; models of other cases have draws of their own."""
    models = {"a": random_predictions(2, 0), "b": random_predictions(2, 1, images=200).at(np.arange(50))}
    found = evaluate(models, 15, 3)
    for name, p in models.items():
        spread = replicate(p, draw_cases(p.cases, 15, 3))
        for unit in ("image", "case"):
            expected = np.quantile(spread[unit]["brier"], [0.025, 0.975])
            np.testing.assert_allclose(found[name][unit]["interval"]["brier"], expected, atol=1e-4)


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


def test_differences_by_case_and_score_are_those_of_the_replicates() -> None:
    """Any score and unit can be asked for; each row is the difference of the two models' replicates."""
    models = {name: random_predictions(2, 3, images=200) for name in "ab"}
    models["b"] = replace(models["b"], probabilities=models["b"].probabilities[::-1])
    noise = np.random.default_rng(5).dirichlet([1, 1], 200)
    models["c"] = replace(models["a"], probabilities=(models["a"].probabilities + noise) / 2)
    pairs = [("a", "c"), ("c", "b")]
    rows = differences(models, pairs, 300, 4, scores=("brier", "average_precision"), unit="case")
    drawn = draw_cases(models["a"].cases, 300, 4)
    assert [(r["first"], r["second"], r["score"]) for r in rows][1:3] == [
        ("a", "c", "average_precision"),
        ("c", "b", "brier"),
    ]
    for row in rows:
        assert row["unit"] == "case"
        sides = [models[row[side]] for side in ("first", "second")]
        point, spread = (
            np.subtract(*(replicate(side, w)["case"][row["score"]] for side in sides))
            for w in (np.ones((1, drawn.shape[1])), drawn)
        )
        assert row["difference"] == pytest.approx(point[0], abs=1e-4)
        expected = np.nanquantile(spread, [0.025, 0.975])  # a draw may hold one class alone
        np.testing.assert_allclose(row["interval"], expected, atol=1e-4)
    with pytest.raises(ValueError, match="a and d are not predictions for the same images"):
        differences(models | {"d": random_predictions(2, 9, images=200)}, [("a", "d")], 10, 0)
    turned = replace(models["a"], labels=1 - models["a"].labels)
    with pytest.raises(ValueError, match="not predictions for the same images"):
        differences({"a": models["a"], "e": turned}, [("a", "e")], 10, 0)


def test_a_subset_is_scored_as_if_it_were_all() -> None:
    """Each subset draws its own cases; one without images is left out, one case has no interval."""
    p = random_predictions(2, 6, images=200)
    p = replace(p, threshold=np.full(200, 0.4))
    masks = {
        "even": np.arange(200) % 2 == 0,
        "one class": p.labels == 1,
        "one case": p.cases == 3,
        "none": np.zeros(200, dtype=bool),
    }
    found = evaluate_subsets({"m": p}, masks, 200, 1)
    assert set(found) == {"even", "one class", "one case"}
    assert found["even"] == evaluate({"m": p.at(masks["even"])}, 200, 1)
    image: dict[str, Any] = found["one class"]["m"]["image"]
    undefined = {name for name, value in image.items() if value is None}
    assert undefined == {"auc", "average_precision", "specificity", "balanced_accuracy"}
    assert image["accuracy"] == image["sensitivity"] > 0
    assert image["interval"]["accuracy"] is not None
    assert image["interval"]["auc"] is None
    alone = found["one case"]["m"]
    assert alone["case"]["n"] == 1
    for unit in ("image", "case"):
        assert alone[unit]["accuracy"] is not None
        assert set(alone[unit]["interval"].values()) == {None}


@pytest.mark.slow
def test_intervals_by_case_hold_the_truth_and_those_by_image_do_not() -> None:
    """Of images whose cases differ, the 95 % interval holds the truth nearly as often as it says.

    Scores are label + case + noise, all normal, so that both scores are known for the population.
    """
    rng = np.random.default_rng(11)
    cases, simulations = np.repeat(np.arange(50), 8), 200
    labels = cases % 2
    spread = np.sqrt(1.5**2 + 1)
    truth = {"accuracy": norm.cdf(1 / spread), "auc": norm.cdf(2 / spread / np.sqrt(2))}
    held = {(unit, score): 0 for unit in ("case", "image") for score in truth}
    for seed in range(simulations):
        score = 2 * labels - 1 + 1.5 * rng.normal(size=50)[cases] + rng.normal(size=400)
        share = norm.cdf(score)
        p = Predictions(labels, cases, np.stack([1 - share, share], axis=1))
        for unit, drawn in (("case", cases), ("image", np.arange(400))):
            models = {"m": replace(p, cases=drawn)}
            intervals = evaluate(models, 300, seed)["m"]["image"]["interval"]
            for name, value in truth.items():
                low, high = intervals[name]
                held[unit, name] += low <= value <= high
    coverage = {key: count / simulations for key, count in held.items()}
    for name in truth:
        assert coverage["case", name] >= 0.90
        assert coverage["image", name] < 0.75


def test_interval_needs_enough_defined_replicates() -> None:
    """Too many undefined draws, no interval."""
    assert interval(np.r_[np.zeros(10), np.full(11, np.nan)]) is None
    assert interval(np.linspace(0, 1, 1001)) == [0.025, 0.975]
