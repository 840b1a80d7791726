"""The best of many is corrected: nulls of the largest, choices made again, joint intervals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from stacker.scores.bootstrap import Carriers, Resampling, draw_cases
from stacker.scores.influence import difference_of_areas, joint_quantile, quantile
from stacker.scores.metrics import area_within
from stacker.scores.multiplicity import at_chance, choose, gains, null_rows, p_of, row_of_gain
from stacker.scores.predictions import Predictions
from tests.predictions import parted_predictions, two

HOW = Resampling(10, 0, ("benign", "malignant"))
ENOUGH = Carriers((20, 20), HOW.classes, "case")


def some_models(count: int, seed: int, gain: float = 1.0, cases: int = 40) -> dict[str, Predictions]:
    """Return models of two images a case that are equally good, and agree in part."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(cases), 2)
    shared = gain * (of % 2) + rng.normal(size=cases)[of]
    return {
        f"model {k}": Predictions(of % 2, of, two(expit(shared + rng.normal(size=2 * cases))))
        for k in range(count)
    }


def noise(count: int, seed: int, cases: int = 40) -> dict[str, Predictions]:
    """Return models that know nothing, of one image a case."""
    rng, labels = np.random.default_rng(seed), np.arange(cases) % 2
    return {
        f"model {k}": Predictions(labels, np.arange(cases), two(rng.random(cases))) for k in range(count)
    }


def test_a_gain_has_an_interval_alone_and_one_among_many() -> None:
    """Both by hand from area, error and quantiles; what is negligible and detectable follows."""
    models = some_models(5, 0)
    pairs = [(f"model {k}", "model 0") for k in range(1, 5)]
    found = gains(HOW, models, pairs)
    each = [difference_of_areas(models[first], models["model 0"]) for first, _ in pairs]
    known = [one for one in each if one is not None]
    assert found.quantile == joint_quantile(known) > quantile(19)
    for pair, one in zip(pairs, known, strict=True):
        row = found.row(pair)
        ends = {"_alone": quantile(19), "": found.quantile}
        for end, factor in ends.items():
            assert row[f"auc_low{end}"] == pytest.approx(one.area - factor * one.error, abs=1e-4)
            assert row[f"auc_high{end}"] == pytest.approx(one.area + factor * one.error, abs=1e-4)
        detectable = one.error * (stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19))
        assert row["auc_detectable"] == pytest.approx(detectable, abs=1e-4)
        assert row["auc_difference"] == pytest.approx(one.area, abs=1e-4)
        assert row["auc_withheld"] is None
        assert row["auc_negligible"] == (one.area + found.quantile * one.error < 0.01)
        assert json.loads(json.dumps(row)) == row


def test_gains_are_those_of_pairs_within_common_parts() -> None:
    """Models in other parts are compared where both have a pair in one part."""
    p = parted_predictions(2, 3)
    q = replace(parted_predictions(2, 8), labels=p.labels, cases=p.cases)
    found = gains(HOW, {"p": p, "q": q}, [("p", "q")]).row(("p", "q"))
    expected = difference_of_areas(p, q)
    assert expected is not None
    assert found["auc_difference"] == pytest.approx(expected.area, abs=1e-4)
    assert expected.area != pytest.approx(area_within(p) - area_within(q), abs=1e-3)


def test_a_gain_without_an_interval_says_why() -> None:
    """Few cases, no error or no area: everything but the difference is left open."""
    few = Carriers((20, 3), ("benign", "malignant"), "slide")
    empty = {
        "auc_low": None,
        "auc_high": None,
        "auc_low_alone": None,
        "auc_high_alone": None,
        "auc_negligible": None,
        "auc_detectable": None,
    }
    found = row_of_gain(0.02, 0.01, 2, 3.0, few)
    assert found == {
        "auc_difference": 0.02,
        "auc_withheld": "3 slides of malignant, 5 are needed",
        **empty,
    }
    for error in (0.0, float("nan"), None):
        found = row_of_gain(0.02, error, 19, 3.0, ENOUGH)
        assert found == {"auc_difference": 0.02, "auc_withheld": "no variation between cases", **empty}
    models = some_models(1, 0)
    same = gains(HOW, models, [("model 0", "model 0")])
    assert same.row(("model 0", "model 0"))["auc_withheld"] == "no variation between cases"
    one = {"a": models["model 0"].at(models["model 0"].labels == 1)}
    undefined = gains(HOW, one, [("a", "a")]).row(("a", "a"))
    assert undefined == {"auc_difference": None, "auc_withheld": "no variation between cases", **empty}


def test_a_gain_is_negligible_only_where_that_is_shown() -> None:
    """The upper end among many must lie below 0.01; the joint interval is never the narrower one."""
    assert row_of_gain(0.0, 0.003, 19, 3.0, ENOUGH)["auc_negligible"] is True
    assert row_of_gain(0.0, 0.004, 19, 3.0, ENOUGH)["auc_negligible"] is False
    assert row_of_gain(-0.3, 0.01, 19, 3.0, ENOUGH)["auc_negligible"] is True
    alone = row_of_gain(0.1, 0.01, 4, 2.0, ENOUGH)
    assert (
        alone["auc_low"] == alone["auc_low_alone"] == pytest.approx(0.1 - 0.01 * quantile(4), abs=1e-4)
    )


def test_equal_models_gain_nothing_and_a_better_one_does() -> None:
    """Among eight, joint intervals of equal models hold nought, and a planted gain is above it."""
    wrong = 0
    for seed in range(40):
        models = some_models(9, seed)
        pairs = [(f"model {k}", "model 0") for k in range(1, 9)]
        found = gains(HOW, models, pairs)
        rows = [found.row(pair) for pair in pairs]
        wrong += any(row["auc_low"] > 0 or row["auc_high"] < 0 for row in rows)
    assert wrong <= 5
    better = some_models(9, 0) | {"better": some_models(1, 50, gain=5)["model 0"]}
    row = gains(HOW, better, [*pairs, ("better", "model 0")]).row(("better", "model 0"))
    assert row["auc_low"] > 0


def test_p_values_count_chance_that_is_as_good() -> None:
    """One more than the draws that are as good, of one more than the draws; rounded to four places."""
    null = np.array([0.4, 0.5, 0.6])
    assert p_of(0.6, null) == 0.5
    assert p_of(0.61, null) == 0.25
    assert p_of(0.1, null) == 1
    assert p_of(0.9, np.zeros(2)) == 0.3333
    assert p_of(None, null) is None
    assert p_of(float("nan"), null) is None


def test_nulls_by_hand() -> None:
    """Each entry's own p-value, and that of its AUC among the largest of each draw."""
    draws = {"labels": {"a": [0.4, 0.5, 0.6], "b": [0.7, 0.5, 0.3]}, "maps": {"a": [0.2, 0.4]}}
    rows = null_rows({"a": 0.6, "b": 0.55}, draws)
    assert [(row["control"], row["model"]) for row in rows] == [
        ("labels", "a"),
        ("labels", "b"),
        ("maps", "a"),
    ]
    a, b, maps = rows
    assert (a["auc"], a["draws"], a["null_auc"]) == (0.6, 3, 0.5)
    assert (a["null_low"], a["null_high"]) == (0.405, 0.595)
    assert (a["p"], a["p_of_many"]) == (0.5, 0.75)
    assert (b["p"], b["p_of_many"]) == (0.5, 0.75)
    assert (maps["p"], maps["p_of_many"]) == (0.3333, 0.3333)


def test_nulls_that_are_not_known() -> None:
    """Undefined draws do not count, nor entries of none; of unequal draws there is no largest."""
    nan = float("nan")
    rows = null_rows(
        {"a": 0.6}, {"labels": {"a": [0.4, nan, 0.7], "b": [nan, nan, nan], "c": [0.5, 0.8, 0.1]}}
    )
    assert [row["model"] for row in rows] == ["a", "c"]
    assert (rows[0]["draws"], rows[0]["null_auc"], rows[0]["p"]) == (3, 0.55, 0.6667)
    assert rows[0]["p_of_many"] == 0.75
    assert (rows[1]["auc"], rows[1]["p"], rows[1]["p_of_many"]) == (None, None, None)
    unequal = null_rows({"a": 0.6}, {"labels": {"a": [0.4, 0.5], "b": [0.4]}})
    assert [row["p_of_many"] for row in unequal] == [None, None]
    assert unequal[0]["p"] == 0.3333


def test_a_draw_that_nobody_has_does_not_count() -> None:
    """Where all entries are undefined, there is no largest of the draw."""
    nan = float("nan")
    rows = null_rows({"a": 0.6}, {"labels": {"a": [nan, 0.4, 0.7], "b": [nan, 0.5, 0.5]}})
    assert (rows[0]["p"], rows[0]["p_of_many"]) == (0.6667, 0.6667)


def test_the_best_of_many_nulls_is_seen_through_and_a_real_one_is_not() -> None:
    """Of twenty entries by chance the best has a small p-value of its own, but any among many."""
    rng = np.random.default_rng(1)
    own, of_many = [], []
    for _ in range(200):
        chance = 0.5 + 0.05 * rng.normal(size=(20, 40))
        observed = {str(k): value for k, value in enumerate(chance[:, 0])}
        rows = null_rows(observed, {"labels": {str(k): list(row[1:]) for k, row in enumerate(chance)}})
        own.append(min(row["p"] for row in rows))
        of_many.append(min(row["p_of_many"] for row in rows))
    assert np.mean(np.array(own) <= 0.05) > 0.5
    assert np.mean(np.array(of_many) <= 0.05) < 0.09
    assert stats.kstest(of_many, "uniform").pvalue > 0.01
    chance[0, 0] = 0.9
    rows = null_rows({"0": 0.9}, {"labels": {str(k): list(row[1:]) for k, row in enumerate(chance)}})
    assert rows[0]["p_of_many"] == 0.025


def test_a_control_is_off_on_either_side() -> None:
    """Draws about one half are at chance; those well above leak, and those well below do as well."""
    draws = 0.5 + np.array([-0.02, 0.01, 0, 0.02, -0.01])
    found = at_chance("maps", "test", draws.tolist())
    assert found == {
        "control": "maps",
        "part": "test",
        "draws": 5,
        "auc": 0.5,
        "limit": round(float(stats.t.ppf(0.9995, 4) * np.std(draws, ddof=1) / 5**0.5), 4),
        "leaks": False,
    }
    for shift, leaks in ((0.05, False), (-0.05, False), (0.1, True), (-0.1, True)):
        row = at_chance("maps", "test", (draws + shift).tolist())
        assert row is not None
        assert row["leaks"] == leaks
        assert row["auc"] == 0.5 + shift


def test_a_control_must_be_off_by_something_that_matters() -> None:
    """Less than 0.02 is no leak, however sure; fewer than two draws say nothing."""
    for value, leaks in ((0.519, False), (0.481, False), (0.521, True), (0.479, True)):
        row = at_chance("maps", "test", [value, value, float("nan")])
        assert row is not None
        assert (row["limit"], row["leaks"], row["draws"]) == (0.02, leaks, 2)
    assert at_chance("maps", "test", [0.9, float("nan")]) is None
    assert at_chance("maps", "test", []) is None


def test_chance_is_seldom_called_a_leak() -> None:
    """Of a thousand controls without a leak hardly one is off; with one, nearly all."""
    rng = np.random.default_rng(2)
    off = np.zeros(2)
    for _ in range(1000):
        draws = 0.5 + 0.06 * rng.normal(size=20)
        rows = [at_chance("maps", "test", (draws + shift).tolist()) for shift in (0, 0.1)]
        off += [row is not None and row["leaks"] for row in rows]
    assert off[0] <= 5
    assert off[1] > 980


def test_a_choice_is_made_again_in_every_draw() -> None:
    """By hand: the best of the cases drawn, and its area among those that were not."""
    models = some_models(4, 3, gain=0.7, cases=20)
    found = choose(models, 60, 5)
    p = models["model 0"]
    kept, choices = [], []
    for counts in draw_cases(p.cases, 60, 5):
        inside, outside = np.repeat(np.arange(40), counts[p.cases]), np.flatnonzero(counts[p.cases] == 0)
        areas = [roc_auc_score(m.labels[inside], m.probabilities[inside, 1]) for m in models.values()]
        choices.append(int(np.argmax(areas)))
        chosen = list(models.values())[choices[-1]]
        if len(np.unique(chosen.labels[outside])) == 2:
            kept.append(roc_auc_score(chosen.labels[outside], chosen.probabilities[outside, 1]))
    areas = [roc_auc_score(m.labels, m.probabilities[:, 1]) for m in models.values()]
    best = int(np.argmax(areas))
    assert found == {
        "model": f"model {best}",
        "auc": pytest.approx(areas[best], abs=1e-4),
        "auc_corrected": pytest.approx(np.mean(kept), abs=1e-4),
        "chosen": pytest.approx(np.mean(np.array(choices) == best), abs=1e-3),
        "of": 4,
    }
    assert len(set(choices)) > 1


def test_the_best_of_noise_is_corrected_to_chance() -> None:
    """The best of thirty that know nothing looks good, until it is chosen again in every draw."""
    found = [choose(noise(30, seed), 100, seed) for seed in range(12)]
    known = [each for each in found if each is not None]
    assert np.mean([each["auc"] for each in known]) > 0.65
    assert np.mean([each["auc_corrected"] for each in known]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([each["chosen"] for each in known]) < 0.6


def test_one_that_is_truly_better_stays() -> None:
    """It is chosen in nearly every draw, and loses next to nothing."""
    models = noise(30, 0) | {"better": noise(1, 99)["model 0"]}
    rng, labels = np.random.default_rng(5), models["better"].labels
    models["better"] = replace(
        models["better"], probabilities=two(expit(4 * labels - 2 + rng.normal(size=40)))
    )
    found = choose(models, 200, 0)
    assert found is not None
    assert (found["model"], found["of"]) == ("better", 31)
    assert found["chosen"] > 0.99
    assert found["auc_corrected"] == pytest.approx(found["auc"], abs=0.01)


def test_there_must_be_something_to_choose_from() -> None:
    """One entry is no choice, nor are several whose area is not defined."""
    models = noise(2, 0)
    assert choose({}, 10, 0) is None
    assert choose({"a": models["model 0"]}, 10, 0) is None
    one_class = {name: replace(p, labels=np.zeros(40, dtype=int)) for name, p in models.items()}
    assert choose(one_class, 10, 0) is None
