"""Every meta-learner learns, repeats itself, and comes back from its file the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from stacker.config.learners import RULES
from stacker.config.stacking import StackConfig
from stacker.errors import ConfigError, StackError
from stacker.stacking.learners.contract import MetaLearner, row_weights
from stacker.stacking.learners.matrix import Rows2D
from stacker.stacking.learners.registry import (
    META,
    build,
    is_scaled,
    is_seeded,
    load_meta,
    parameters,
    save_meta,
)
from tests.learning import CONFIG, Lazy, Learnt, standardised, table

ALL = [*META, "extra_trees"]
LEARNING = [name for name in ALL if name not in RULES]
OWN = ("sklearn",)  # whom a run of one's own trusts for `extra_trees`


def fit(name: str, rows: Learnt, config: StackConfig = CONFIG, seed: int = 0) -> MetaLearner:
    """Return a meta-learner that has learnt from some rows of one fold, weighed as the config says."""
    found: MetaLearner = learn(build(name, config, seed, rows.columns, "cpu"), rows, rows.values, config)
    return found


def learn(model: Any, rows: Learnt, values: Rows2D, config: StackConfig = CONFIG) -> Any:
    """Fit a meta-learner; a rule has no use for groups, where all rows are on one scale."""
    weights = row_weights(rows.labels, rows.cases, config.balance)
    groups = None if hasattr(model, "rule") else rows.cases
    return model.fit(values, rows.labels, groups=groups, weights=weights)


def rows_for(name: str, classes: int = 2, seed: int = 0) -> Learnt:
    """Return a table as the caller would hand it to a meta-learner."""
    found = table(classes, seed)
    return standardised(found) if is_scaled(name, CONFIG) else found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns(name: str, classes: int) -> None:
    """On cases it has not seen it is right far more often than chance, for two classes and for three."""
    model = fit(name, rows_for(name, classes))
    unseen = rows_for(name, classes, seed=1)
    shares = model.predict_proba(unseen.values)
    assert shares.shape == (len(unseen.labels), classes)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (shares.argmax(axis=1) == unseen.labels).mean() > 0.75


@pytest.mark.parametrize("name", ALL)
def test_it_repeats_itself_and_survives_its_file(name: str, tmp_path: Path) -> None:
    """Same seed, same probabilities; stored and read again, the same to the bit."""
    rows = rows_for(name)
    first, second = fit(name, rows, seed=3), fit(name, rows, seed=3)
    expected = first.predict_proba(rows.values)
    assert np.array_equal(second.predict_proba(rows.values), expected)
    path = save_meta(first, tmp_path / "model-0")
    assert path.parent == tmp_path
    assert path.stem == "model-0"
    loaded = load_meta(name, CONFIG, tmp_path / "model-0", rows.columns, OWN)
    assert np.array_equal(loaded.predict_proba(rows.values), expected)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_changes_what_says_so(name: str) -> None:
    """One that is called seeded gives another answer for another seed, the others never do."""
    rows, unseen = rows_for(name), rows_for(name, seed=1)
    first, second = (fit(name, rows, seed=seed).predict_proba(unseen.values) for seed in (0, 1))
    assert np.array_equal(first, second) != is_seeded(name, CONFIG)
    assert np.abs(first - second).mean() < 0.2


@pytest.mark.parametrize("name", ALL)
def test_an_array_and_a_table_in_files_give_the_same_model(name: str) -> None:
    """Rows that are read when they are wanted teach what the same rows in memory teach, to the bit."""
    rows = rows_for(name)
    expected = fit(name, rows).predict_proba(rows.values)
    model = learn(build(name, CONFIG, 0, rows.columns, "cpu"), rows, Lazy(rows.values))
    assert np.array_equal(model.predict_proba(Lazy(rows.values)), expected)


@pytest.mark.parametrize("name", LEARNING)
def test_the_minority_class_is_not_under_predicted(name: str) -> None:
    """With one malignant case in ten, classes weigh the same: sensitivity stays above a half."""
    rows = rows_for(name)
    rare = rows.at((rows.labels == 0) | (rows.cases % 10 == 1))
    unseen = rows_for(name, seed=2)
    malignant = unseen.labels == 1
    found = fit(name, rare).predict_proba(unseen.values).argmax(axis=1)
    assert (found[malignant] == 1).mean() > 0.5
    assert (found[~malignant] == 0).mean() > 0.5


@pytest.mark.parametrize("name", ["logistic", "svm", "xgboost", "mlp", "random_forest"])
def test_balance_can_be_left_out(name: str) -> None:
    """Without balance the rare class is believed less; by cases or by images it is believed more."""
    rows = rows_for(name)
    rare = rows.at((rows.labels == 0) | (rows.cases % 10 == 1))
    configs = [CONFIG.model_copy(update={"balance": b}) for b in ("cases", "classes", "none")]
    means = [fit(name, rare, c).predict_proba(rows.values)[:, 1].mean() for c in configs]
    assert min(means[:2]) > means[2] + 0.003
    stated = [parameters(name, config)["balance"] for config in configs]
    assert stated == ["cases", "classes", "none"]


@pytest.mark.parametrize("name", ALL)
def test_it_says_whether_it_weighs(name: str) -> None:
    """Uneven weights change what is learnt where it says so; equal ones are as good as none."""
    rows, unseen = rows_for(name), rows_for(name, seed=1)
    uneven, even = np.where(rows.labels == 1, 9.0, 1.0), np.ones(len(rows.labels))
    said = []
    for weights in (None, even, uneven):
        model = build(name, CONFIG, 0, rows.columns, "cpu")
        model.fit(rows.values, rows.labels, None, weights)
        said.append(model.predict_proba(unseen.values))
    if name == "random_forest":  # with weights it draws its rows in another way
        assert np.abs(said[0] - said[1]).mean() < 0.05
    else:
        assert np.array_equal(said[0], said[1])
    assert np.array_equal(said[0], said[2]) != model.weighs
    assert model.weighs == (name in LEARNING)


@pytest.mark.parametrize("name", ALL)
def test_a_copy_has_learnt_nothing_and_learns_the_same(name: str) -> None:
    """scikit-learn's clone gives an unfitted twin, and fitting twice starts afresh."""
    rows = rows_for(name)
    model: Any = fit(name, rows)
    expected = model.predict_proba(rows.values)
    twin = clone(model)
    assert not [attribute for attribute in vars(twin) if attribute.endswith("_")]
    few = rows.at(rows.cases < 30)
    learn(learn(model, few, few.values), rows, rows.values)
    for one in (learn(twin, rows, rows.values), model):
        assert np.array_equal(one.predict_proba(rows.values), expected)
        assert np.array_equal(one.predict(rows.values), expected.argmax(axis=1))
        assert one.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("name", LEARNING)
def test_it_fits_where_no_inner_split_is_possible(name: str) -> None:
    """With one case of each class there is nothing to watch, and all rows are learnt from."""
    rows = rows_for(name)
    model = build(name, CONFIG, 0, rows.columns, "cpu").fit(rows.values, rows.labels, rows.labels)
    assert (model.predict_proba(rows.values).argmax(axis=1) == rows.labels).mean() > 0.8


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    """Files are a zip of skops JSON and arrays, safetensors, UBJSON and JSON."""
    suffixes = set()
    for name in ALL:
        path = save_meta(fit(name, rows_for(name)), tmp_path / name)
        content = path.read_bytes()
        suffixes.add(path.suffix)
        assert not content.startswith(b"\x80"), name
        assert b"\x80\x04\x95" not in content, name  # the head of a pickle, protocol 4
        assert content.startswith(b"PK") == (path.suffix == ".skops")
    assert suffixes == {".skops", ".safetensors", ".ubj", ".json"}


@pytest.mark.parametrize("name", ALL)
def test_a_missing_or_damaged_model_is_named(name: str, tmp_path: Path) -> None:
    """Loading what was never fitted says how to fit it, and so does a file that was cut off."""
    rows = rows_for(name)
    with pytest.raises(StackError, match=f"--meta {name}"):
        load_meta(name, CONFIG, tmp_path / "model", rows.columns, OWN)
    path = save_meta(fit(name, rows), tmp_path / "model")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StackError, match="again"):
        load_meta(name, CONFIG, tmp_path / "model", rows.columns, OWN)


@pytest.mark.parametrize("name", META)
def test_a_model_of_other_columns_is_refused(name: str, tmp_path: Path) -> None:
    """What was fitted on one table is not let loose on another."""
    rows = rows_for(name)
    save_meta(fit(name, rows), tmp_path / "model")
    with pytest.raises(StackError, match="columns"):
        load_meta(name, CONFIG, tmp_path / "model", rows.columns[:-1], OWN)


@pytest.mark.parametrize("name", ["logistic", "svm", "random_forest", "extra_trees"])
def test_a_table_that_is_too_large_is_refused(name: str) -> None:
    """Those that need everything at once say how much it is, and what to do about it."""
    rows = rows_for(name)
    small = CONFIG.model_copy(update={"memory_gb": 1e-6})
    model = build(name, small, 0, rows.columns)
    with pytest.raises(StackError, match=r"memory_gb is 1e-06; allow more.*xgboost"):
        model.fit(Lazy(rows.values), rows.labels, rows.cases)


@pytest.mark.parametrize("name", ALL)
def test_rows_of_one_class_are_refused(name: str) -> None:
    """Nothing can be told apart where there is one class, or a class without a row."""
    rows = rows_for(name, classes=3)
    for kept in (rows.labels == 0, rows.labels != 1):
        few, model = rows.at(kept), build(name, CONFIG, 0, rows.columns, "cpu")
        with pytest.raises(StackError, match="rows of every class"):
            model.fit(few.values, few.labels, few.cases)


def test_rules_follow_the_probabilities() -> None:
    """The mean is the mean, votes are counted and ties go by the mean, the best is the best by AUC."""
    columns = tuple(f"{b}/probabilities/{k}" for b in ("a", "b") for k in ("benign", "malignant"))
    values = np.array([[0.9, 0.1, 0.6, 0.4], [0.8, 0.2, 0.4, 0.6], [0.7, 0.3, 0.1, 0.9]], np.float32)
    labels = np.array([0, 1, 1])
    shares = {}
    for rule in RULES:
        model = build(rule, CONFIG, 0, columns).fit(values, labels)
        shares[rule] = model.predict_proba(values)[:, 1]
    np.testing.assert_allclose(shares["mean"], [0.25, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(shares["vote"], [0, 0.5, 0.5], atol=1e-6)
    assert shares["vote"][1] < 0.5 < shares["vote"][2]
    np.testing.assert_allclose(shares["best_base"], values[:, 1])  # both are perfect: the first


def test_the_best_base_model_is_found() -> None:
    """The backbone with the larger AUC on the rows at hand is relied on."""
    rows = table()
    names = [f"vgg16/probabilities/{k}" for k in range(2)]
    places = [rows.columns.index(name) for name in names]
    values = rows.values.copy()
    values[:, [rows.columns.index(f"resnet50/probabilities/{k}") for k in range(2)]] = 0.5
    model = build("best_base", CONFIG, 0, rows.columns).fit(values, rows.labels)
    np.testing.assert_allclose(model.predict_proba(values), values[:, places])


def test_the_best_base_model_is_found_within_folds() -> None:
    """Where scales differ from fold to fold, rows are compared within the folds that groups name."""
    columns = tuple(f"{b}/probabilities/{k}" for b in ("shifted", "steady") for k in range(2))
    rng = np.random.default_rng(0)
    folds, labels = np.repeat([0, 1], 60), np.tile([0, 1], 60)
    shifted = 0.1 + 0.1 * labels + 0.02 * rng.random(120) + 0.7 * folds  # perfect in either fold
    steady = 0.4 * rng.random(120) + 0.3 * labels
    each = np.stack([1 - shifted, shifted, 1 - steady, steady], axis=1).astype(np.float32)
    for groups, best in ((None, "steady"), (folds, "shifted"), (folds.astype(str), "shifted")):
        model: Any = build("best_base", CONFIG, 0, columns).fit(each, labels, groups)
        assert model.best_ == best
    assert np.array_equal(model.predict_proba(each), each[:, :2].astype(np.float64))


def test_rules_want_probabilities() -> None:
    """A rule says which columns it needs, and that it needs the same classes of every backbone."""
    values, labels = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(StackError, match="add probabilities to"):
        build("mean", CONFIG, 0, ("a/logits/x", "a/logits/y")).fit(values, labels)
    with pytest.raises(StackError, match="expected x"):
        build("vote", CONFIG, 0, ("a/probabilities/x", "b/probabilities/y")).fit(values, labels)
    with pytest.raises(StackError, match="1 classes, the labels have 2"):
        build("mean", CONFIG, 0, ("a/probabilities/x", "b/probabilities/x")).fit(values, labels)


def test_an_unknown_name_is_refused() -> None:
    """The message says which one it may have been."""
    with pytest.raises(StackError, match="did you mean 'logistic'"):
        build("logistik", CONFIG, 0, ())


def test_parameters_are_plain_data() -> None:
    """They go into a digest: numbers, words and lists, and all that decides the fit."""
    import json

    for name in ALL:
        found = parameters(name, CONFIG)
        assert json.loads(json.dumps(found)) == found
    assert parameters("mean", CONFIG) == {}
    assert parameters("mlp", CONFIG)["hidden"] == [16]
    assert parameters("extra_trees", CONFIG)["estimator"] == "sklearn.ensemble.ExtraTreesClassifier"


@pytest.mark.parametrize("name", ["logistic", "svm", "xgboost", "random_forest", "mean", "extra_trees"])
def test_only_the_networks_load_torch(name: str) -> None:
    """Importing the meta-learners loads neither half, and fitting one without torch loads no torch."""
    code = f"""
import sys
from stacker.stacking.learners import registry
assert not {{"torch", "sklearn", "xgboost", "skops"}} & set(sys.modules), "at import"
from tests.learning import CONFIG, table
rows = table()
model = registry.build({name!r}, CONFIG, 0, rows.columns)
model.fit(rows.values, rows.labels, rows.cases).predict_proba(rows.values)
assert "torch" not in sys.modules
assert {name!r} != "mean" or "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_best_base_looks_at_all_rows_where_no_group_has_two_classes() -> None:
    """Groups of one class each cannot rank anything: the better backbone is found without them."""
    labels = np.arange(40) % 2
    rng = np.random.default_rng(0)
    good, bad = np.where(labels == 1, 0.9, 0.1), rng.random(40)
    values = np.stack([1 - bad, bad, 1 - good, good], axis=1).astype(np.float32)
    columns = [f"{name}/probabilities/{label}" for name in ("bad", "good") for label in ("b", "m")]
    rule = build("best_base", CONFIG, 0, columns)
    rule.fit(values, labels, groups=np.arange(40))
    assert rule.predict_proba(values).argmax(axis=1).tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["mlp", "xgboost"])
def test_what_is_no_device_is_refused(name: str) -> None:
    """By its name, before anything is fitted."""
    rows = table()
    with pytest.raises(ConfigError, match="unknown device 'gpu'; choose auto, cpu"):
        build(name, CONFIG, 0, rows.columns, device="gpu").fit(rows.values, rows.labels)
