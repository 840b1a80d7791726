"""A weight is so many rows; classes and cases weigh the same; what that does is taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from stacker.config.learners import RULES
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.stacking.learners.contract import (
    choose_device,
    class_factors,
    count_classes,
    or_ones,
    row_weights,
    unweigh,
)
from stacker.stacking.learners.registry import build
from tests.learning import Learnt

CELLS = tuple(f"a/maps/x/r{row}c{column}" for row in range(3) for column in range(3))
PLAIN = StackConfig.model_validate(  # what draws no lots, or the same ones for rows that repeat
    {
        "svm": {"kernel": "linear"},  # the width of the other one comes from the columns, unweighed
        "xgboost": {"n_estimators": 8, "max_depth": 2, "subsample": 1, "colsample_bytree": 1},
        "custom": {
            "extra_trees": {
                "estimator": "sklearn.ensemble.ExtraTreesClassifier",
                "parameters": {"n_estimators": 10, "max_depth": 3},
            },
            "tree": {
                "estimator": "sklearn.tree.DecisionTreeClassifier",
                "parameters": {"max_depth": 3},
            },
        },
    }
)
LOTS = StackConfig.model_validate(
    {
        "mlp": {"epochs": 60, "hidden": [8], "dropout": 0.1, "lr": 0.005, "batch_size": 32},
        "convnet": {"epochs": 60, "channels": [8], "grid": 3, "lr": 0.005, "dropout": 0.1},
        "random_forest": {"n_estimators": 200, "min_samples_leaf": 10},
    }
)


def hard(rows: int = 120, seed: int = 0) -> Learnt:
    """Return rows whose columns hardly tell the class, every row of a case of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    values = rng.normal(size=(rows, len(CELLS))) + 0.4 * labels[:, None]
    return Learnt(values.astype(np.float32), labels, np.arange(rows), CELLS)


def fit(name: str, config: StackConfig, rows: Learnt, weights: np.ndarray | None = None) -> Any:
    """Return a meta-learner that has learnt from some rows, none of them kept apart."""
    model = build(name, config, 0, rows.columns, "cpu")
    return model.fit(rows.values, rows.labels, np.zeros(len(rows.labels)), weights)


def before(model: Any, values: np.ndarray) -> np.ndarray:
    """Return what comes before any sigmoid that is fitted on cuts: distances, or else probabilities."""
    machine = getattr(getattr(model, "estimator_", None), "machine_", None)
    found: np.ndarray = machine.decision_function(values) if machine else model.predict_proba(values)
    return found


@pytest.mark.parametrize("name", ["logistic", "svm", "xgboost", "extra_trees", "tree"])
def test_a_weight_is_so_many_rows(name: str) -> None:
    """Weights of 1 to 3 teach what rows teach that are there so many times."""
    rows, unseen = hard(), hard(seed=1).values
    weights = np.random.default_rng(0).integers(1, 4, len(rows.labels))
    copies = rows.at(np.repeat(np.arange(len(weights)), weights))
    models = [fit(name, PLAIN, rows, weights), fit(name, PLAIN, copies), fit(name, PLAIN, rows)]
    weighed, repeated, plain = (before(model, unseen) for model in models)
    np.testing.assert_allclose(weighed, repeated, atol=5e-3 if name == "svm" else 1e-5)
    assert np.abs(plain - repeated).max() > 0.02


@pytest.mark.parametrize("name", ["mlp", "convnet", "random_forest"])
def test_a_class_of_more_weight_is_as_one_of_more_rows(name: str) -> None:
    """Those that draw lots believe in a class of weight 5 as in one whose rows are there 5 times."""
    rows, unseen = hard(300), hard(300, seed=1).values
    weights = np.where(rows.labels == 1, 5, 1)
    copies = rows.at(np.repeat(np.arange(len(weights)), weights))
    as_many_steps = LOTS
    if name != "random_forest":  # which has no epochs, of three times the batches
        section = getattr(LOTS, name)
        fewer = section.model_copy(update={"epochs": section.epochs // 3})
        as_many_steps = LOTS.model_copy(update={name: fewer})
    weighed, repeated, plain = (
        model.predict_proba(unseen)[:, 1]
        for model in (
            fit(name, LOTS, rows, weights),
            fit(name, as_many_steps, copies),
            fit(name, LOTS, rows),
        )
    )
    assert abs(weighed.mean() - repeated.mean()) < 0.08
    assert weighed.mean() > plain.mean() + 0.16
    assert np.corrcoef(weighed, repeated)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["logistic", "svm"])
def test_rows_without_weight_teach_nothing(name: str) -> None:
    """Whatever they are, and whatever they are labelled as."""
    rows = hard()
    weights = np.random.default_rng(0).integers(0, 2, len(rows.labels)).astype(float)
    kept = weights > 0
    strange = rows.values.copy()
    strange[~kept] *= -1000
    labels = np.where(kept, rows.labels, 1 - rows.labels)
    few = fit(name, PLAIN, rows.at(kept))
    found = fit(name, PLAIN, Learnt(strange, labels, rows.cases, rows.columns), weights)
    np.testing.assert_allclose(before(found, rows.values), before(few, rows.values), atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_rules_weigh_nothing(rule: str) -> None:
    """A mean is a mean: weights do not change it."""
    rng = np.random.default_rng(0)
    columns = tuple(f"{b}/probabilities/{k}" for b in "ab" for k in range(2))
    rows = Learnt(rng.random((40, 4)).astype(np.float32), np.arange(40) % 2, np.arange(40), columns)
    plain, weighed = fit(rule, PLAIN, rows), fit(rule, PLAIN, rows, rng.random(40) * rows.labels)
    assert not plain.weighs
    assert np.array_equal(plain.predict_proba(rows.values), weighed.predict_proba(rows.values))


some_rows = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([b"ab", b"b", b"c", b"a"])), min_size=1, max_size=40
)


@given(some_rows)
def test_classes_weigh_the_same_and_so_do_their_cases(drawn: list[tuple[int, bytes]]) -> None:
    """All weights add up to the rows; a case with images of two classes counts in each as any other."""
    drawn = [*drawn, (0, b"c"), (1, b"c"), (2, b"a")]
    labels, cases = np.array([row[0] for row in drawn]), np.array([row[1] for row in drawn])
    found = row_weights(labels, cases, "cases")
    for k in range(3):
        mine = labels == k
        assert found[mine].sum() == pytest.approx(len(labels) / 3)
        names = np.unique(cases[mine])
        for name in names:
            own = found[mine & (cases == name)]
            assert own.sum() == pytest.approx(len(labels) / 3 / len(names))
            assert np.ptp(own) == 0  # images of a case weigh the same
    by_image = row_weights(labels, cases, "classes")
    np.testing.assert_allclose(by_image, len(labels) / 3 / np.bincount(labels)[labels])
    assert np.array_equal(row_weights(labels, cases, "none"), np.ones(len(labels)))


def test_more_images_of_a_case_are_not_more_evidence() -> None:
    """Photographed thirty times, a case has the share of its class that it had before."""
    labels, cases = np.array([0, 0, 1, 1, 1]), np.array([1, 2, 3, 3, 4])
    more = np.r_[labels, np.zeros(30, int)], np.r_[cases, np.ones(30, int)]
    first, second = row_weights(labels, cases, "cases"), row_weights(*more, "cases")
    for case in (1, 2, 3, 4):
        share = second[more[1] == case].sum() / second.sum()
        assert share == pytest.approx(first[cases == case].sum() / first.sum())
    by_image = row_weights(*more, "classes")
    assert by_image[more[1] == 1].sum() == pytest.approx(31 * by_image[more[1] == 2].sum())


def test_a_class_without_rows_is_told() -> None:
    """Classes are counted from nought to the last one, and none between may lack."""
    assert count_classes(np.array([0, 1, 1, 2])) == 3
    for labels in ([0, 0], [0, 2], [1, 1], []):
        with pytest.raises(StackError, match="rows of every class"):
            row_weights(np.array(labels, dtype=np.int64), np.array(labels), "cases")
    with pytest.raises(StackError, match="found 2 of class 0, 0 of class 1, 1 of class 2, expected"):
        count_classes(np.array([0, 0, 2]))


def test_no_weights_are_ones() -> None:
    """Whole numbers become those that losses are multiplied with."""
    assert or_ones(None, np.zeros(3, int)).tolist() == [1, 1, 1]
    found = or_ones(np.array([1, 2]), np.zeros(2, int))
    assert found.dtype == np.float64


def test_factors_say_how_much_more_a_class_weighs() -> None:
    """Twenty of a hundred rows that weigh as much as the others: 2.5 times, and 0.625 times."""
    labels = np.repeat([0, 1], [80, 20])
    frequency = np.array([0.8, 0.2])
    balanced = class_factors(labels, row_weights(labels, labels, "classes"), frequency)
    np.testing.assert_allclose(balanced, [0.625, 2.5])
    np.testing.assert_allclose(class_factors(labels, np.ones(100), frequency), 1)
    fewer = labels[20:]  # a fit on a part in which the class is more frequent than in all
    np.testing.assert_allclose(class_factors(fewer, np.ones(80), frequency), [0.9375, 1.25])
    of_shares = class_factors(fewer, 7 * np.ones(80), frequency)  # whatever the weights add up to
    np.testing.assert_allclose(of_shares, [0.9375, 1.25])


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=4),
    st.floats(0.1, 10),
    st.integers(0, 2**32 - 1),
)
def test_unweighing_is_the_rule_of_bayes(prior: list[float], size: float, seed: int) -> None:
    """The posterior of equally frequent classes becomes that of classes as frequent as they are."""
    frequency = np.array(prior) / np.sum(prior)
    likelihood = np.random.default_rng(seed).random((20, len(prior))) + 1e-3
    even = likelihood / likelihood.sum(axis=1, keepdims=True)
    natural = likelihood * frequency
    natural /= natural.sum(axis=1, keepdims=True)
    found = unweigh(even, size / (len(prior) * frequency))  # the scale of all factors is of no account
    np.testing.assert_allclose(found, natural, rtol=1e-9)
    np.testing.assert_allclose(unweigh(natural, np.full(len(prior), size)), natural, rtol=1e-12)


def test_unweighing_keeps_what_it_is_given_and_the_order() -> None:
    """It writes nowhere else, divides nothing by nought, and ranks rows as they were ranked."""
    shares = np.array([[0.2, 0.8], [0.9, 0.1], [0.0, 0.0], [1.0, 0.0]])
    before = shares.copy()
    found = unweigh(shares, np.array([0.5, 2.0]))
    assert np.array_equal(shares, before)
    np.testing.assert_allclose(found, np.array([[0.5, 0.5], [36 / 37, 1 / 37], [0, 0], [1, 0]]))
    some = np.sort(np.random.default_rng(0).random(50))
    ranked = unweigh(np.stack([1 - some, some], axis=1), np.array([0.625, 2.5]))[:, 1]
    assert (np.diff(ranked) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_unweighed_probabilities_are_as_good_as_if_nothing_had_been_weighed(seed: int) -> None:
    """At 20 % malignant: balanced and taken back is as well calibrated as plain, and by far as balanced.

    Images of a case are many or few, which changes nothing of it.
    """
    rng = np.random.default_rng(seed)

    def draw(cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        case = np.repeat(np.arange(cases), rng.integers(1, 6, cases))
        labels = (rng.random(cases) < 0.2).astype(int)[case]
        return rng.normal(size=(len(case), 3)) + 0.7 * labels[:, None], labels, case

    values, labels, cases = draw(2000)
    unseen, truth, _ = draw(6000)
    weights = row_weights(labels, cases, "cases")
    frequency = np.bincount(labels) / len(labels)
    plain = LogisticRegression().fit(values, labels).predict_proba(unseen)
    balanced = LogisticRegression().fit(values, labels, weights).predict_proba(unseen)
    taken_back = unweigh(balanced, class_factors(labels, weights, frequency))
    brier = [np.mean((shares[:, 1] - truth) ** 2) for shares in (plain, balanced, taken_back)]
    assert abs(brier[2] - brier[0]) < 0.002
    assert brier[2] < brier[1] - 0.02
    assert taken_back[:, 1].mean() == pytest.approx(truth.mean(), abs=0.02)
    assert balanced[:, 1].mean() > truth.mean() + 0.1
    density = norm.pdf(unseen[:, :, None] - [0, 0.7]).prod(axis=1) * [0.8, 0.2]
    true = density[:, 1] / density.sum(axis=1)
    assert np.abs(taken_back[:, 1] - true).mean() < 0.02


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_machine_never_says_the_opposite_of_its_distances(classes: int, kernel: str) -> None:
    """On pure noise distances of unseen rows tend to be wrong; the sigmoids then go flat, not down."""
    config = StackConfig.model_validate({"svm": {"kernel": kernel}})
    flat = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        labels, values = np.arange(60) % classes, rng.normal(size=(60, 12)).astype(np.float32)
        model: Any = build("svm", config, 0, [""] * 12)
        model.fit(values, labels, np.arange(60) // 2 if classes == 3 else None, rng.uniform(0.5, 2, 60))
        assert min(model.estimator_.slopes_) >= 0
        flat += sum(slope == 0 for slope in model.estimator_.slopes_)
        unseen = rng.normal(size=(300, 12)).astype(np.float32)
        shares, distances = (
            model.predict_proba(unseen),
            model.estimator_.machine_.decision_function(unseen),
        )
        if classes == 2:
            assert (np.diff(shares[np.argsort(distances), 1]) >= 0).all()
            continue
        each = expit(distances * model.estimator_.slopes_ + model.estimator_.intercepts_)
        np.testing.assert_allclose(shares, each / each.sum(axis=1, keepdims=True), atol=1e-12)
    assert flat > 0


def test_apples_gpu_is_not_for_tables() -> None:
    """A config may name it for its base models: meta-learners then run on the CPU, asked or not."""
    assert choose_device("mps", lambda: False) == "cpu"
    assert choose_device("auto", lambda: False) == "cpu"
    assert choose_device("auto", lambda: True) == "cuda"
