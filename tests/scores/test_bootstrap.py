"""Intervals draw whole cases, the same for all models, and hold the truth as often as they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk

from stacker.scores import bootstrap, metrics
from stacker.scores.bootstrap import Carriers, Resampling, draw_cases, points, replicate
from stacker.scores.predictions import Predictions, by_case
from tests.predictions import brute_variance, parted_predictions, random_predictions, two

NAMES = ("benign", "malignant")


def of_cases(
    benign: int, malignant: int, seed: int = 0, images: int = 3, gain: float = 1.0
) -> Predictions:
    """Return predictions of some cases of each class, whose images resemble each other."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [benign * images, malignant * images])
    cases = np.repeat(np.arange(benign + malignant), images)
    values = gain * (2 * labels - 1) + rng.normal(size=benign + malignant)[cases]
    return Predictions(labels, cases, two(expit(values + rng.normal(size=len(labels)))))


def by_log_odds(value: float, error: float, freedom: int) -> list[float]:
    """Return the t-interval on the scale of log-odds."""
    half = stats.t.ppf(0.975, freedom) * error / (value * (1 - value))
    return [float(expit(logit(value) - half)), float(expit(logit(value) + half))]


def test_few_cases_and_many_give_the_same_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of thresholds by cases, the running sums and a chunk of one draw agree."""
    for p in (random_predictions(3, 4, images=300), parted_predictions(3, 4, images=300)):
        with monkeypatch.context() as changed:
            drawn = draw_cases(p.cases, 50, 1)
            table = replicate(p, drawn)
            changed.setattr(metrics, "FEW", 0)
            running = replicate(p, drawn)
            changed.setattr(metrics, "CHUNK", 1)
            slowly = replicate(p, drawn)
            changed.setattr(bootstrap, "CHUNK", 1)
            np.testing.assert_array_equal(draw_cases(p.cases, 50, 1), drawn)
        for unit, scored in table.items():
            for name, values in scored.items():
                np.testing.assert_allclose(running[unit][name], values, rtol=1e-6, err_msg=name)
                np.testing.assert_allclose(slowly[unit][name], values, rtol=1e-6, err_msg=name)


def test_bootstrap_draws_whole_cases() -> None:
    """Replicates by hand, image by image, equal the weighted ones."""
    p = random_predictions(2, 0)
    drawn = draw_cases(p.cases, 20, 5)
    assert (drawn.sum(axis=1) == len(np.unique(p.cases))).all()
    scored = replicate(p, drawn)
    names, position = np.unique(p.cases, return_inverse=True)
    for r, counts in enumerate(drawn):
        rows = np.repeat(np.arange(len(position)), counts[position])
        expected = sk.accuracy_score(p.labels[rows], p.probabilities[rows].argmax(axis=1))
        assert scored["image"]["accuracy"][r] == pytest.approx(expected)
        area = sk.roc_auc_score(p.labels[rows], p.probabilities[rows, 1])
        assert scored["image"]["auc"][r] == pytest.approx(area)
    assert len(names) == drawn.shape[1]


def test_points_are_scores_without_draws() -> None:
    """Each unit's scores are those of one row of ones, or some of them."""
    p = random_predictions(2, 3)
    scored, ones = points(p), replicate(p, np.ones((1, 12)))
    for unit in ("image", "case"):
        assert scored[unit] == {name: values[0] for name, values in ones[unit].items()}
    assert set(points(p, {"auc", "brier"})["image"]) == {"auc", "brier"}
    whole = by_case(p)
    assert whole is not None
    area = sk.roc_auc_score(whole.labels, whole.probabilities[:, 1])
    assert scored["case"]["auc"] == pytest.approx(area)


def test_an_interval_is_that_of_the_draws() -> None:
    """A t-quantile on log-odds with the replicates' deviation, of which the score itself is none.

    Models of other cases have draws of their own.
    """
    models = {"a": random_predictions(2, 0), "b": random_predictions(2, 1, images=200).at(np.arange(90))}
    scored = Resampling(15, 3, NAMES).evaluate(models)
    for name, p in models.items():
        spread, point = replicate(p, draw_cases(p.cases, 15, 3)), points(p)
        cases = [len(np.unique(p.cases[p.labels == k])) for k in range(2)]
        freedom = {"sensitivity": cases[1] - 1, "specificity": cases[0] - 1}
        for unit in ("image", "case"):
            for score, bounds in scored[name][unit]["interval"].items():
                if score == "auc" or (unit, score) == ("case", "ece"):
                    continue  # of which two tests below
                value, values = point[unit][score], spread[unit][score]
                error = np.nanstd(values, ddof=1) * np.sqrt(sum(cases) / (sum(cases) - 1))
                if value == 1:
                    assert (bounds, scored[name][unit]["withheld"][score]) == (
                        None,
                        "no variation between cases",
                    )
                    continue
                expected = by_log_odds(value, error, freedom.get(score, min(cases) - 1))
                np.testing.assert_allclose(bounds, expected, atol=1e-4, err_msg=score)


@pytest.mark.parametrize("unit", ["image", "case"])
def test_the_interval_of_an_area_needs_no_draws(unit: str) -> None:
    """Its error is Obuchowski's, image by image, and the same for any draws."""
    p = of_cases(9, 14, seed=2)
    rows = by_case(p) if unit == "case" else p
    assert rows is not None
    scored = [Resampling(20, seed, NAMES).evaluate({"m": p})["m"][unit] for seed in (0, 1)]
    assert scored[0]["interval"]["auc"] == scored[1]["interval"]["auc"]
    assert scored[0]["interval"]["brier"] != scored[1]["interval"]["brier"]
    level = replace(rows, probabilities=np.full((len(rows.labels), 2), 0.5))
    error = brute_variance(rows, level, rows.cases) ** 0.5
    area = sk.roc_auc_score(rows.labels, rows.probabilities[:, 1])
    np.testing.assert_allclose(scored[0]["interval"]["auc"], by_log_odds(area, error, 8), atol=1e-4)


def test_ece_by_case_has_no_interval() -> None:
    """Of few cases in ten bins it is mostly noise; by image it has one."""
    scored = Resampling(50, 0, NAMES).evaluate({"m": of_cases(30, 30)})["m"]
    assert scored["case"]["interval"]["ece"] is None
    assert scored["case"]["withheld"] == {"ece": "too few cases in each bin"}
    assert scored["image"]["interval"]["ece"] is not None
    assert scored["image"]["withheld"] == {}


def test_few_cases_of_a_class_have_no_interval() -> None:
    """Below five cases of a class the reason stands in the interval's place, also in differences."""
    how = Resampling(50, 0, NAMES)
    scored = how.evaluate({"m": of_cases(4, 20)})["m"]["image"]
    for score in ("auc", "accuracy", "specificity", "brier", "average_precision", "precision"):
        assert scored["interval"][score] is None
        assert scored["withheld"][score] == "4 cases of benign, 5 are needed"
        assert 0 < scored[score] < 1
    assert scored["interval"]["sensitivity"] is not None
    assert "sensitivity" not in scored["withheld"]
    case = how.evaluate({"m": of_cases(4, 20)})["m"]["case"]
    assert case["withheld"]["recognition_rate"] == "4 cases of benign, 5 are needed"
    assert how.evaluate({"m": of_cases(5, 5)})["m"]["image"]["withheld"] == {}
    one = how.evaluate({"m": of_cases(3, 1, gain=0)})["m"]["image"]["withheld"]
    assert one["sensitivity"] == one["auc"] == "1 case of malignant, 5 are needed"
    slides = replace(how, unit="slide").evaluate({"m": of_cases(20, 2)})["m"]["image"]["withheld"]
    assert slides["auc"] == "2 slides of malignant, 5 are needed"
    models = {"a": of_cases(4, 20), "b": of_cases(4, 20, seed=1)}
    for unit in ("image", "case"):
        for row in how.differences(models, [("a", "b")], unit=unit):
            assert (row["interval"], row["withheld"]) == (None, "4 cases of benign, 5 are needed")
            assert row["difference"] is not None


def test_a_class_is_counted_in_cases_that_have_images_of_it() -> None:
    """Cases of several classes carry each of them; beyond two classes the rarest counts for all."""
    labels, cases = np.array([0, 1, 0, 0, 1, 2]), np.array(["a", "a", "b", "b", "c", "c"])
    p = Predictions(labels, cases, np.full((6, 3), 1 / 3))
    carriers = Resampling(10, 0, ("x", "y", "z")).carriers(p)
    assert carriers.counts == (2, 2, 1)
    assert carriers.why_not("sensitivity") == "1 case of z, 5 are needed"
    assert carriers.freedom("auc") == 1
    both = Carriers((9, 6), NAMES, "case")
    assert [both.freedom(score) for score in ("auc", "sensitivity", "specificity")] == [5, 5, 8]
    assert both.why_not("auc") is None


def test_perfect_scores_have_no_interval() -> None:
    """Where all cases are alike nothing is known of the next one; what differs has its interval."""
    p = of_cases(12, 12)
    right = replace(p, probabilities=two(0.25 + 0.5 * p.labels + 0.1 * p.probabilities[:, 1]))
    scored = Resampling(50, 0, NAMES).evaluate({"m": right})["m"]
    for unit in ("image", "case"):
        for score in ("auc", "auc_pooled", "average_precision", "accuracy", "sensitivity", "f1"):
            assert scored[unit][score] == 1
            assert scored[unit]["interval"][score] is None
            assert scored[unit]["withheld"][score] == "no variation between cases"
        assert scored[unit]["interval"]["brier"] is not None
    level = replace(p, probabilities=two(np.full(72, 0.7)))
    flat = Resampling(50, 0, NAMES).evaluate({"m": level})["m"]["image"]
    assert flat["auc"] == 0.5
    assert flat["withheld"]["auc"] == "no variation between cases"


def test_what_is_said_of_a_model_can_be_stored() -> None:
    """Plain numbers: JSON gives back what it was given, and the ends lie around the score."""
    scored = Resampling(50, 0, NAMES).evaluate({"m": parted_predictions(2, 0), "few": of_cases(2, 9)})
    assert json.loads(json.dumps(scored)) == scored
    for unit in ("image", "case"):
        for score, bounds in scored["m"][unit]["interval"].items():
            if bounds is not None:
                assert 0 <= bounds[0] < scored["m"][unit][score] < bounds[1] <= 1
    assert scored["m"]["image"]["n"] == 60
    assert scored["m"]["case"]["n"] == 12
    said = Resampling(50, 0, NAMES, "slide").description
    assert "50 bootstrap draws" in said
    assert "whole slides resampled" in said


def test_intervals_by_case_are_wider_than_by_image() -> None:
    """When the images of a case are right or wrong together, single images would promise too much."""
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(30), 10)
    labels = cases % 2
    right = np.repeat(rng.random(30) < 0.7, 10)
    shares = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1
    how = Resampling(1000, 0, NAMES)
    for score in ("accuracy", "auc"):
        widths = []
        for unit in (cases, np.arange(300)):
            scored = how.evaluate({"m": Predictions(labels, unit, shares)})["m"]["image"]
            low, high = scored["interval"][score]
            widths.append(high - low)
        assert widths[0] > 2 * widths[1]


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    """Two models that err on the same images differ by little, and surely."""
    p = random_predictions(2, 1, images=200)
    better = p.probabilities.copy()
    wrong = np.flatnonzero(better.argmax(axis=1) != p.labels)[:10]
    better[wrong] = better[wrong][:, ::-1]
    models = {"one": Predictions(p.labels, p.cases, better), "two": p}
    how = Resampling(500, 0, NAMES)
    rows = how.differences(models, [("one", "two")])
    assert rows[0]["difference"] == pytest.approx(0.05)
    own = how.evaluate(models)["one"]["image"]["interval"]
    for row in rows:
        low, high = row["interval"]
        assert high - low < own[row["score"]][1] - own[row["score"]][0]


def test_differences_by_case_and_score_are_those_of_the_replicates() -> None:
    """Any score and unit can be asked for; each error is that of the replicates' differences."""
    models = {name: of_cases(6, 7, seed, gain=0.4) for seed, name in enumerate("abc")}
    pairs, how = [("a", "c"), ("c", "b")], Resampling(300, 4, NAMES)
    rows = how.differences(models, pairs, scores=("brier", "average_precision"), unit="case")
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
        error = np.nanstd(spread, ddof=1) * np.sqrt(13 / 12)  # a draw may hold one class alone
        assert row["error"] == pytest.approx(error, abs=1e-6)
        half = stats.t.ppf(0.975, 5) * error
        np.testing.assert_allclose(row["interval"], [point[0] - half, point[0] + half], atol=1e-4)
    with pytest.raises(ValueError, match="the two models are not predictions for the same images"):
        how.differences(models | {"d": of_cases(7, 6)}, [("a", "d")])
    turned = replace(models["a"], labels=1 - models["a"].labels)
    with pytest.raises(ValueError, match="not predictions for the same images"):
        how.differences({"a": models["a"], "e": turned}, [("a", "e")])


@pytest.mark.parametrize("unit", ["image", "case"])
def test_the_difference_of_two_areas_needs_no_draws(unit: str) -> None:
    """Its error is Obuchowski's of the paired difference, with the t of the rarest class's cases."""
    models = {"a": of_cases(7, 12, 3), "b": of_cases(7, 12, 4, gain=0.5)}
    (row,) = Resampling(10, 0, NAMES).differences(models, [("a", "b")], ("auc",), unit)
    sides = [by_case(p) if unit == "case" else p for p in models.values()]
    first, second = (side for side in sides if side is not None)
    error = brute_variance(first, second, first.cases) ** 0.5
    areas = [sk.roc_auc_score(p.labels, p.probabilities[:, 1]) for p in (first, second)]
    gain = areas[0] - areas[1]
    assert row["error"] == pytest.approx(error, abs=1e-6)
    half = stats.t.ppf(0.975, 6) * error
    np.testing.assert_allclose(row["interval"], [gain - half, gain + half], atol=1e-4)


def test_what_cannot_differ_says_why() -> None:
    """A model against itself, one class alone, and cases of two classes have no interval."""
    how, p = Resampling(20, 0, NAMES), of_cases(8, 8)
    for row in how.differences({"a": p, "b": p}, [("a", "b")]):
        assert row["difference"] == 0
        assert (row["interval"], row["withheld"], row["error"]) == (
            None,
            "no variation between cases",
            None,
        )
    one = of_cases(0, 8)
    (row,) = how.differences({"a": one, "b": one}, [("a", "b")], ("auc",))
    assert (row["difference"], row["interval"], row["withheld"]) == (None, None, "not defined")
    mixed = replace(p, labels=np.arange(48) % 2)
    for row in how.differences({"a": mixed, "b": mixed}, [("a", "b")], unit="case"):
        assert (row["difference"], row["withheld"]) == (
            None,
            "some cases have images of several classes",
        )
    scored = how.evaluate({"m": mixed})["m"]["case"]
    assert set(scored) == {"recognition_rate", "n", "interval", "withheld"}


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
    how = Resampling(200, 1, NAMES)
    scored = how.evaluate_subsets({"m": p}, masks)
    assert set(scored) == {"even", "one class", "one case"}
    assert scored["even"] == how.evaluate({"m": p.at(masks["even"])})
    image: dict[str, Any] = scored["one class"]["m"]["image"]
    undefined = {name for name, value in image.items() if value is None}
    areas = {"auc", "auc_pooled", "average_precision"}
    assert undefined == areas | {"specificity", "balanced_accuracy"}
    assert image["accuracy"] == image["sensitivity"] > 0
    assert image["interval"]["sensitivity"] is not None
    assert image["interval"]["auc"] is None
    alone = scored["one case"]["m"]
    assert alone["case"]["n"] == 1
    for unit in ("image", "case"):
        assert alone[unit]["accuracy"] is not None
        assert set(alone[unit]["interval"].values()) == {None}


def chosen_by_hand(
    chosen: list[Predictions], judged: list[Predictions], model: Predictions, seeds: tuple[int, int]
) -> tuple[list[float], list[int]]:
    """Return gains in AUC over the best base model, first of all rows, then draw by draw."""
    drawn = [draw_cases(p.cases, 40, seed) for p, seed in zip((chosen[0], model), seeds, strict=True)]
    gains, choices = [], []
    for r in range(41):
        rows = []
        for p, counts in zip((chosen[0], model), drawn, strict=True):
            position = np.unique(p.cases, return_inverse=True)[1]
            number = counts[r - 1][position] if r else np.ones(len(position), dtype=int)
            rows.append(np.repeat(np.arange(len(position)), number))

        def area(p: Predictions, own: np.ndarray) -> float:
            return float(sk.roc_auc_score(p.labels[own], p.probabilities[own, 1]))

        best = int(np.argmax([area(p, rows[0]) for p in chosen]))
        choices.append(best)
        gains.append(area(model, rows[1]) - area(judged[best], rows[1]))
    return gains, choices


@pytest.mark.parametrize("same_cases", [True, False])
def test_the_best_is_chosen_again_in_every_draw(same_cases: bool) -> None:
    """Gains over the best base model equal a loop over draws; other cases are drawn apart."""
    chosen = [of_cases(9, 9, seed, gain=0.5) for seed in range(4)]
    judged = chosen if same_cases else [of_cases(12, 8, seed, gain=0.5) for seed in range(4, 8)]
    model = of_cases(9, 9, 20) if same_cases else of_cases(12, 8, 20)
    how = Resampling(40, 7, NAMES)
    bases = {f"base {k}": (chosen[k], judged[k]) for k in range(4)}
    rows = how.over_best({"model": model}, bases, same_cases)
    gains, choices = chosen_by_hand(chosen, judged, model, (7, 7 if same_cases else 8))
    assert len(set(choices)) > 1
    assert [row["score"] for row in rows] == ["accuracy", "auc"]
    cases, freedom = (18, 8) if same_cases else (20, 7)
    error = np.std(gains[1:], ddof=1) * np.sqrt(cases / (cases - 1))
    assert rows[1]["second"] == f"base {choices[0]}"
    assert rows[1]["difference"] == pytest.approx(gains[0], abs=1e-4)
    assert rows[1]["error"] == pytest.approx(error, abs=1e-6)
    half = stats.t.ppf(0.975, freedom) * error
    np.testing.assert_allclose(rows[1]["interval"], [gains[0] - half, gains[0] + half], atol=1e-4)
    best = judged[choices[0]]
    right = (model.predicted == model.labels).mean() - (best.predicted == best.labels).mean()
    assert rows[0]["difference"] == pytest.approx(right, abs=1e-4)


def test_a_gain_over_the_best_is_seen_where_there_is_one() -> None:
    """A model that is one of the bases gains nothing for sure; a far better one does, few cases not."""
    bases = [of_cases(20, 20, seed, gain=0.4) for seed in range(3)]
    known = {f"base {k}": (p, p) for k, p in enumerate(bases)}
    models = {"same": bases[1], "better": of_cases(20, 20, 30, gain=2.5)}
    scored = Resampling(200, 0, NAMES).over_best(models, known, same_cases=True)
    rows = {(row["first"], row["score"]): row for row in scored}
    for score in ("accuracy", "auc"):
        assert rows["same", score]["interval"][0] <= 0 <= rows["same", score]["interval"][1]
        assert rows["better", score]["interval"][0] > 0
    few = {"base": (of_cases(4, 9), of_cases(4, 9))}
    for row in Resampling(50, 0, NAMES).over_best({"m": of_cases(4, 9, 1)}, few, same_cases=True):
        assert (row["interval"], row["withheld"]) == (None, "4 cases of benign, 5 are needed")


@pytest.mark.slow
@pytest.mark.parametrize("same_cases", [True, False])
def test_models_that_are_equally_good_seldom_gain_over_the_best(same_cases: bool) -> None:
    """Of five base models the best is luckier than a sixth like them, which loses if anything."""
    gains, above = [], 0
    for seed in range(60):
        chosen = alike(seed)
        judged = chosen if same_cases else alike(seed + 1000)
        bases = {f"base {k}": (chosen[k], judged[k]) for k in range(1, 6)}
        how = Resampling(100, seed, NAMES)
        (row,) = how.over_best({"model": judged[0]}, bases, same_cases, ("auc",))
        gains.append(row["difference"])
        above += row["interval"] is not None and row["interval"][0] > 0
    assert above <= 3
    if same_cases:
        assert np.mean(gains) < -0.03
    else:
        assert abs(np.mean(gains)) < 0.03


def alike(seed: int) -> list[Predictions]:
    """Return six models of 24 cases that are equally good, and agree in part."""
    rng, of = np.random.default_rng(seed), np.repeat(np.arange(24), 4)
    shared = 2 * (of % 2) - 1 + rng.normal(size=24)[of]
    own = rng.normal(size=(6, 24))[:, of] + rng.normal(size=(6, 96))
    return [Predictions(of % 2, of, two(expit(shared + each))) for each in own]


def test_interval_needs_enough_defined_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many undefined draws, no interval; undefined ones are not replicates."""
    p = of_cases(6, 6, images=5, gain=0.3)

    for undefined, known in ((60, False), (40, True)):

        def one_sided(
            cases: np.ndarray, replicates: int, seed: int, some: int = undefined
        ) -> np.ndarray:
            drawn = draw_cases(cases, replicates, seed)
            drawn[:some, :6] = 0  # no benign case
            return drawn

        monkeypatch.setattr(bootstrap, "draw_cases", one_sided)
        scored = Resampling(100, 0, NAMES).evaluate({"m": p})["m"]["image"]
        assert scored["interval"]["sensitivity"] is not None
        assert (scored["interval"]["specificity"] is not None) == known
    values = replicate(p, draw_cases(p.cases, 100, 0)[40:])["image"]["specificity"]
    error = values.std(ddof=1) * np.sqrt(12 / 11)
    expected = by_log_odds(scored["specificity"], error, 5)
    np.testing.assert_allclose(scored["interval"]["specificity"], expected, atol=1e-3)


def normal_images(rng: np.random.Generator, labels: np.ndarray, cases: np.ndarray) -> Predictions:
    """Return scores that are label + case + noise, all normal: accuracy and AUC are known."""
    count = cases.max() + 1
    score = 2 * labels - 1 + 1.5 * rng.normal(size=count)[cases] + rng.normal(size=len(cases))
    return Predictions(labels, cases, two(stats.norm.cdf(score)))


@pytest.mark.slow
@pytest.mark.parametrize("cases", [12, 44])
def test_intervals_by_case_hold_the_truth_and_those_by_image_do_not(cases: int) -> None:
    """Of images whose cases differ, the 95 % interval holds the truth nearly as often as it says.

    What is too seldom for none of the other scores is too often for some: precision and F1, because
    cases are drawn of either class, and scores of whole cases, of which few are wrong.
    """
    rng = np.random.default_rng(11)
    many, of = np.repeat(np.arange(20_000), 8), np.repeat(np.arange(cases), 8)
    truth = points(normal_images(rng, many % 2, many))
    spread = np.sqrt(1.5**2 + 1)
    exact = {"accuracy": stats.norm.cdf(1 / spread), "auc": stats.norm.cdf(2 / spread / np.sqrt(2))}
    for name, value in exact.items():
        assert truth["image"][name] == pytest.approx(value, abs=0.01)
        truth["image"][name] = value
    held: dict[tuple[str, str], list[bool]] = {}
    alone: dict[str, list[bool]] = {}
    for seed in range(300):
        p, how = normal_images(rng, of % 2, of), Resampling(150, seed, NAMES)
        scored = how.evaluate({"m": p})["m"]
        for unit in ("image", "case"):
            for name, bounds in scored[unit]["interval"].items():
                if bounds is not None:
                    inside = bounds[0] <= truth[unit][name] <= bounds[1]
                    held.setdefault((unit, name), []).append(inside)
        if seed < 60:
            single = how.evaluate({"m": replace(p, cases=np.arange(len(of)))})["m"]["image"]["interval"]
            for name, value in exact.items():
                alone.setdefault(name, []).append(single[name][0] <= value <= single[name][1])
    assert len(held) == 22  # all but the calibration error by case
    assert min(np.mean(each) for each in held.values()) > 0.91
    for name in exact:
        assert len(held["image", name]) == 300
        assert 0.91 < np.mean(held["image", name]) < 0.99
        assert np.mean(alone[name]) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("cases", [12, 44])
def test_intervals_of_differences_hold_nought_and_see_what_is_there(cases: int) -> None:
    """Of two models that are equally good it is in 95 % at least, of a far better one it is seldom."""
    rng = np.random.default_rng(12)
    of, simulations = np.repeat(np.arange(cases), 4), 300
    side = 2 * (of % 2) - 1
    held = {(first, score): 0 for first in ("equal", "better") for score in ("accuracy", "auc")}
    for seed in range(simulations):
        shared = rng.normal(size=cases)[of]
        own = rng.normal(size=(2, cases))[:, of] + rng.normal(size=(2, len(of)))
        values = (
            side + shared + own[0],
            2 * side + shared + own[0],
            side + shared + own[1],
            shared + own[1],
        )
        models = {
            name: Predictions(of % 2, of, two(stats.norm.cdf(each)))
            for name, each in zip(("equal", "better", "model", "noise"), values, strict=True)
        }
        how = Resampling(150, seed, NAMES)
        for row in how.differences(models, [("equal", "model"), ("better", "noise")]):
            low, high = row["interval"] or (0, 0)  # now and then nothing varies
            held[row["first"], row["score"]] += low <= 0 <= high
    for score in ("accuracy", "auc"):
        assert 0.91 < held["equal", score] / simulations < (1 if cases == 12 else 0.99)
        assert held["better", score] / simulations < (0.4 if cases == 12 else 0.01)
