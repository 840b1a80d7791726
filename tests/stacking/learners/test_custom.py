"""Any classifier by the dotted path of its class: what it is given, what is refused, its file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from stacker.config.learners import RandomForestConfig
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.stacking.learners.contract import row_weights, say_once
from stacker.stacking.learners.registry import (
    build,
    is_scaled,
    is_seeded,
    load_meta,
    save_meta,
    trusted_by_config,
)
from tests.learning import standardised, table


def config(estimator: str, **parameters: Any) -> StackConfig:
    """Return a config with a meta-learner of one's own."""
    custom = {"own": {"estimator": estimator, "parameters": parameters}}
    return StackConfig.model_validate({"custom": custom, "meta": ["own"]})


class Deaf:
    """A classifier that takes neither weights nor a seed, and remembers the groups that it was given."""

    def __init__(self, wide: bool = False) -> None:
        self.wide = wide

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Deaf:
        """Learn nothing."""
        self.seen_ = len(X), len(groups)
        self.classes_ = np.arange(y.max() + 2) if self.wide else np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return that all is equally likely."""
        return np.full((len(X), 2), 0.5)


class Scales:
    """A classifier that remembers the weights that it was given, and whether it was given groups."""

    def fit(
        self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None, **others: Any
    ) -> Scales:
        """Learn nothing."""
        self.seen_ = sample_weight, len(X), others
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return that all is equally likely."""
        return np.full((len(X), 2), 0.5)


@pytest.mark.parametrize(
    ("path", "package", "parameters"),
    [
        ("sklearn.ensemble.ExtraTreesClassifier", "sklearn", {"n_estimators": 20}),
        ("sklearn.neighbors.KNeighborsClassifier", "sklearn", {"n_neighbors": 7}),
        ("sklearn.ensemble.HistGradientBoostingClassifier", "sklearn", {"max_iter": 20}),
        ("lightgbm.LGBMClassifier", "lightgbm", {"n_estimators": 20, "verbose": -1, "n_jobs": 1}),
        ("xgboost.XGBClassifier", "xgboost", {"n_estimators": 20}),
    ],
)
def test_a_class_of_another_package_is_a_meta_learner(
    path: str, package: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """It learns, is stored without pickle, and answers the same when its package is trusted."""
    pytest.importorskip(package)
    rows, unseen = standardised(table()), standardised(table(seed=1))
    chosen = config(path, **parameters)
    model = build("own", chosen, 0, rows.columns).fit(rows.values, rows.labels, rows.cases)
    expected = model.predict_proba(unseen.values)
    assert (expected.argmax(axis=1) == unseen.labels).mean() > 0.8
    content = save_meta(model, tmp_path / "model").read_bytes()
    assert content.startswith(b"PK")
    assert b"\x80\x04\x95" not in content
    if "KNeighbors" not in path:  # by brute force: it has no parts that skops does not know
        with pytest.raises(
            StackError, match=rf"types that are not trusted: .*add .*--trust {package}.* to the command"
        ):
            load_meta("own", chosen, tmp_path / "model", rows.columns)
    loaded = load_meta("own", chosen, tmp_path / "model", rows.columns, (package,))
    assert np.array_equal(loaded.predict_proba(unseen.values), expected)


def test_the_path_itself_is_a_name() -> None:
    """Without a section of its own a class is built with what it has by itself."""
    rows = table()
    model = build("sklearn.naive_bayes.GaussianNB", StackConfig(), 0, rows.columns)
    assert (
        model.fit(rows.values, rows.labels).predict_proba(rows.values).argmax(1) == rows.labels
    ).all()


def test_it_is_given_the_seed_unless_it_has_one() -> None:
    """A class with a random_state is seeded by us, or by the config, or draws no lots."""
    path = "sklearn.ensemble.ExtraTreesClassifier"
    model: Any = build("own", config(path), 7, ())
    assert model.estimator.random_state == 7
    assert is_seeded("own", config(path))
    model = build("own", config(path, random_state=3), 7, ())
    assert model.estimator.random_state == 3
    assert not is_seeded("own", config(path, random_state=3))
    assert not is_seeded("own", config("sklearn.neighbors.KNeighborsClassifier"))
    assert is_seeded("own", config("xgboost.XGBClassifier"))  # it takes its parameters as keywords
    assert is_scaled("own", config(path))


def test_classes_weigh_the_same_by_what_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    """By weights of rows, or not at all, which is said; its parameters are left as they are."""
    for chosen in ({}, {"class_weight": None}, {"class_weight": "balanced"}):
        trees: Any = build("own", config("sklearn.ensemble.ExtraTreesClassifier", **chosen), 0, ())
        assert trees.estimator.class_weight == chosen.get("class_weight")
    rows = table()
    rare = rows.at((rows.labels == 0) | (rows.cases % 10 == 1))
    weights = row_weights(rare.labels, rare.cases, "cases")
    bayes: Any = build("own", config("sklearn.naive_bayes.GaussianNB"), 0, rows.columns)
    assert bayes.weighs
    bayes.fit(rare.values, rare.labels, rare.cases, weights)
    np.testing.assert_allclose(bayes.estimator_.class_prior_, 0.5)
    bayes.fit(rare.values, rare.labels, rare.cases)
    np.testing.assert_allclose(
        bayes.estimator_.class_prior_, np.bincount(rare.labels) / len(rare.labels)
    )
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        neighbours = build("own", config("sklearn.neighbors.KNeighborsClassifier"), 0, rows.columns)
        assert not neighbours.weighs
        neighbours.fit(rare.values, rare.labels, rare.cases)
        neighbours.fit(rare.values, rare.labels, rare.cases, np.ones(len(rare.labels)))
        assert caplog.text == ""  # nothing is lost
        neighbours.fit(rare.values, rare.labels, rare.cases, weights)
        neighbours.fit(rare.values, rare.labels, rare.cases, weights)
    assert caplog.text.count("the minority class may be under-predicted") == 1


def test_weights_go_to_whom_they_concern() -> None:
    """An estimator whose fit takes weights gets those of each row to the bit; a **rest gets nothing."""
    rows = table()
    model: Any = build("own", config(f"{__name__}.Scales"), 0, rows.columns)
    weights = np.random.default_rng(0).random(len(rows.labels))
    model.fit(rows.values, rows.labels, rows.cases, weights)
    given, number, others = model.estimator_.seen_
    assert model.weighs
    assert np.array_equal(given, weights)
    assert (number, others) == (len(rows.labels), {})
    deaf: Any = build("own", config(f"{__name__}.Deaf"), 0, rows.columns)
    assert not deaf.weighs
    deaf.fit(rows.values, rows.labels, rows.cases, weights)


def test_groups_go_to_whom_they_concern() -> None:
    """An estimator whose fit takes groups gets the case of each row."""
    rows = table()
    model: Any = build("own", config(f"{__name__}.Deaf"), 0, rows.columns)
    model.fit(rows.values, rows.labels, rows.cases)
    assert model.estimator_.seen_ == (len(rows.labels), len(rows.labels))
    assert not hasattr(model.estimator, "seen_")


@pytest.mark.parametrize(
    ("path", "parameters", "reason"),
    [
        ("no_such_package.Model", {}, "pip install no_such_package"),
        ("sklearn.no_such_part.Model", {}, "no_such_part, though sklearn is installed; fix"),
        ("sklearn.ensemble.NoSuchTrees", {}, "has no NoSuchTrees; fix the path"),
        ("sklearn.base.clone", {}, "expected the class"),
        ("sklearn.svm.LinearSVC", {}, "has no predict_proba"),
        ("sklearn.ensemble.ExtraTreesClassifier", {"trees": 3}, "given are trees, it has n_estimators"),
    ],
)
def test_what_is_no_classifier_is_refused(path: str, parameters: dict[str, Any], reason: str) -> None:
    """A message says what was looked for and what to do."""
    with pytest.raises(StackError, match=reason):
        build("own", config(path, **parameters), 0, ())


def test_what_does_not_fit_is_refused() -> None:
    """Values that the estimator refuses, and classes other than those of the labels."""
    rows = table()
    model = build(
        "own", config("sklearn.neighbors.KNeighborsClassifier", n_neighbors=-1), 0, rows.columns
    )
    with pytest.raises(StackError, match="'n_neighbors' parameter"):
        model.fit(rows.values, rows.labels)
    model = build("own", config(f"{__name__}.Deaf", wide=True), 0, rows.columns)
    with pytest.raises(StackError, match="expected 0 to 1"):
        model.fit(rows.values, rows.labels, rows.cases)


def test_nothing_is_imported_for_a_file_that_is_not_trusted(tmp_path: Path) -> None:
    """Types in a file are compared with those trusted before the class of the config is looked for."""
    rows = table()
    trees = config("sklearn.ensemble.ExtraTreesClassifier", n_estimators=3)
    save_meta(build("own", trees, 0, rows.columns).fit(rows.values, rows.labels), tmp_path / "model")
    strange = config("no_such_package.Model")
    with pytest.raises(StackError, match=r"not trusted: sklearn\.tree"):
        load_meta("own", strange, tmp_path / "model", rows.columns)
    with pytest.raises(StackError, match=r"holds sklearn\..*\.ExtraTreesClassifier, expected no_such"):
        load_meta("own", strange, tmp_path / "model", rows.columns, ("no_such_package",))
    namesake = config("no_such_package.ExtraTreesClassifier")
    with pytest.raises(StackError, match=r"expected no_such_package\.ExtraTreesClassifier"):
        load_meta("own", namesake, tmp_path / "model", rows.columns, ("no_such_package",))


def test_a_tree_that_points_outside_itself_is_refused(tmp_path: Path) -> None:
    """A stored forest of ours is looked over before it is run: a wrong index would end the process."""
    rows = table()
    settings = StackConfig.model_validate({"random_forest": {"n_estimators": 2}})
    model: Any = build("random_forest", settings, 0, rows.columns).fit(rows.values, rows.labels)
    tree = model.estimator_.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 10_000
    tree.__setstate__(state)
    save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match="points outside itself"):
        load_meta("random_forest", settings, tmp_path / "model", rows.columns)


def test_a_forest_of_more_columns_than_the_table_is_refused(tmp_path: Path) -> None:
    """Its trees say themselves how many they look at; read past a row, they would take what is there."""
    rows = table()
    settings = StackConfig.model_validate({"random_forest": {"n_estimators": 2}})
    model: Any = build("random_forest", settings, 0, rows.columns)
    model.fit(np.tile(rows.values, (1, 50)), rows.labels, rows.cases)
    path = save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match=f"of {50 * len(rows.columns)} columns, expected"):
        load_meta("random_forest", settings, tmp_path / "model", rows.columns)
    model.estimator_.n_features_in_ = len(rows.columns)
    model.save(path)
    with pytest.raises(StackError, match=r"DecisionTreeClassifier of .* columns, expected"):
        load_meta("random_forest", settings, tmp_path / "model", rows.columns)
    for tree in model.estimator_.estimators_:
        tree.n_features_in_ = len(rows.columns)
    model.save(path)
    with pytest.raises(StackError, match="points outside itself"):
        load_meta("random_forest", settings, tmp_path / "model", rows.columns)


def test_an_estimator_of_another_type_is_refused(tmp_path: Path) -> None:
    """Trees are looked over in a forest alone, so nothing else may have them."""
    rows = table()
    settings = StackConfig()
    model: Any = build("random_forest", settings, 0, rows.columns)
    model.estimator_ = DecisionTreeClassifier().fit(rows.values, rows.labels)
    model.classes_ = np.arange(2)
    save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match="a DecisionTreeClassifier, expected a RandomForestClassifier"):
        load_meta("random_forest", settings, tmp_path / "model", rows.columns)


@pytest.mark.parametrize(("name", "other"), [("svm", "random_forest"), ("random_forest", "svm")])
def test_the_file_of_another_is_refused(name: str, other: str, tmp_path: Path) -> None:
    """A forest where a machine is expected, or the other way round, whatever the file is called."""
    rows, config = standardised(table()), StackConfig(random_forest=RandomForestConfig(n_estimators=2))
    model = build(other, config, 0, rows.columns).fit(rows.values, rows.labels, rows.cases)
    save_meta(model, tmp_path / "model")
    reason = {
        "svm": r"types that are not trusted: .*_tree\.Tree",
        "random_forest": r"types that are not trusted: .*SupportVectors",
    }
    with pytest.raises(StackError, match=reason[name]):
        load_meta(name, StackConfig(), tmp_path / "model", rows.columns)


@pytest.mark.parametrize("part", ["support_vectors_", "_dual_coef_", "_n_support", "kernel"])
def test_a_machine_whose_parts_do_not_fit_is_refused(part: str, tmp_path: Path) -> None:
    """The library that runs it believes every length, and would read past what is there."""
    rows = standardised(table())
    model: Any = build("svm", StackConfig(), 0, rows.columns).fit(rows.values, rows.labels, rows.cases)
    machine = model.estimator_.machine_
    if part == "kernel":
        machine.kernel = "precomputed"
    else:
        setattr(machine, part, np.ascontiguousarray(getattr(machine, part)[..., :1]))
    save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match="its parts do not fit"):
        load_meta("svm", StackConfig(), tmp_path / "model", rows.columns)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_stored_machine_keeps_its_sigmoids_to_the_bit(classes: int, tmp_path: Path) -> None:
    """Slopes and intercepts come back as they were, and with them every probability."""
    rows = standardised(table(classes))
    model: Any = build("svm", StackConfig(), 0, rows.columns).fit(rows.values, rows.labels, rows.cases)
    save_meta(model, tmp_path / "model")
    loaded: Any = load_meta("svm", StackConfig(), tmp_path / "model", rows.columns)
    assert loaded.estimator_.slopes_ == model.estimator_.slopes_
    assert loaded.estimator_.intercepts_ == model.estimator_.intercepts_
    assert len(loaded.estimator_.slopes_) == (1 if classes == 2 else classes)
    assert loaded.classes_.tolist() == list(range(classes))
    unseen = standardised(table(classes, seed=1)).values
    assert np.array_equal(loaded.predict_proba(unseen), model.predict_proba(unseen))


@pytest.mark.parametrize("part", ["slopes_", "intercepts_"])
@pytest.mark.parametrize("values", [None, [], [1.0, 1.0]])
def test_a_machine_without_its_sigmoids_is_refused(
    part: str, values: list[float] | None, tmp_path: Path
) -> None:
    """Too few of them, too many, or none at all."""
    rows = standardised(table())
    model: Any = build("svm", StackConfig(), 0, rows.columns).fit(rows.values, rows.labels, rows.cases)
    if values is None:
        delattr(model.estimator_, part)
    else:
        setattr(model.estimator_, part, values)
    save_meta(model, tmp_path / "model")
    with pytest.raises(StackError, match=r"lacks sigmoids; run 'stacker stack' again"):
        load_meta("svm", StackConfig(), tmp_path / "model", rows.columns)


def test_what_another_class_raises_is_told_as_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Its name, its words on one line and what to do; the traceback is in the log at debug."""
    rows = standardised(table())
    path = "sklearn.naive_bayes.MultinomialNB"
    size = f"{len(rows.values)} rows x {len(rows.columns)} columns"
    with caplog.at_level(logging.DEBUG), pytest.raises(StackError) as told:
        build("own", config(path), 0, rows.columns).fit(rows.values, rows.labels)
    assert f"own ({path}) cannot learn from {size}: it raised ValueError: Negative" in str(told.value)
    assert "or leave it out" in str(told.value)
    assert isinstance(told.value.__cause__, ValueError)
    assert "Traceback" in caplog.text
    model = build(path, StackConfig(), 0, rows.columns)
    model.fit(np.abs(rows.values), rows.labels)
    with pytest.raises(StackError, match=rf"^{path} cannot answer for {size}: it raised .*two lines"):
        _failing(model).predict_proba(rows.values)


def _failing(model: Any) -> Any:
    """Return a meta-learner whose estimator fails to predict."""

    def fail(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("two\nlines")

    model.estimator_.predict_proba = fail
    return model


def test_what_ours_raise_is_a_bug() -> None:
    """It keeps its traceback: nobody can fix it in a config."""
    rows, config = table(), StackConfig(random_forest=RandomForestConfig(n_estimators=2))
    model = build("random_forest", config, 0, rows.columns).fit(rows.values, rows.labels)
    with pytest.raises(RuntimeError, match="two"):
        _failing(model).predict_proba(rows.values)


def test_a_config_vouches_for_the_package_that_it_names() -> None:
    """For an installed one, by its section or its path; never for ours, or for Python's own modules."""
    own, path = config("sklearn.ensemble.ExtraTreesClassifier"), "lightgbm.LGBMClassifier"
    assert trusted_by_config("own", own) == ("sklearn",)
    assert trusted_by_config(path, StackConfig(meta=[path])) == ("lightgbm",)
    compared = StackConfig.model_validate({"compare": {"meta": [path]}})
    assert trusted_by_config(path, compared) == ("lightgbm",)
    assert trusted_by_config(path, StackConfig()) == trusted_by_config(path, own) == ()
    assert trusted_by_config("svm", StackConfig()) == ()
    assert trusted_by_config("own", config("subprocess.Popen")) == ()
    assert trusted_by_config("own", config("no_such_package.Model")) == ()


def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose types are trusted and whose package is missing says what to install."""
    rows = table()
    trees = config("sklearn.ensemble.ExtraTreesClassifier", n_estimators=3)
    save_meta(build("own", trees, 0, rows.columns).fit(rows.values, rows.labels), tmp_path / "model")
    monkeypatch.setattr("stacker.stacking.learners.skops_file.find_spec", lambda _: None)
    with pytest.raises(
        StackError, match=r"needs sklearn, which is not installed; .*pip install sklearn"
    ):
        load_meta("own", trees, tmp_path / "model", rows.columns, ("sklearn",))
