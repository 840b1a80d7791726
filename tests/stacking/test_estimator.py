"""The meta-learners keep scikit-learn's contract, and say the same as stage three on the same table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from stacker.config.learners import RULES, ConvnetConfig, RandomForestConfig
from stacker.errors import ConfigError, StackError
from stacker.run import open_run
from stacker.stacking.estimator import meta_learner
from stacker.stacking.feature_table import table
from stacker.stacking.fitting import Design, out_of_fold, ready
from stacker.stacking.learners.registry import META
from tests.conftest import tables_of
from tests.learning import table as learnable

QUICK: dict[str, dict[str, Any]] = {
    "logistic": {"C": 1.0},
    "svm": {},
    "random_forest": {"n_estimators": 10, "min_samples_leaf": 1},
    "xgboost": {"n_estimators": 15, "learning_rate": 0.4, "min_child_weight": 0, "colsample_bytree": 1},
    "mlp": {"epochs": 12, "hidden": [16], "lr": 0.03, "dropout": 0.0, "batch_size": 128},
}
WEIGHED = "check_sample_weight_equivalence_on_dense_data"
NOT_REPEATED = (
    "columns are scaled, and rows are drawn or kept apart, without a look at weights: a weight of two "
    "is not a row that is there twice"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_it_is_an_estimator_of_scikit_learn(name: str) -> None:
    """Shapes, types, labels, errors, copies and pickles are as the contract says, but for one check."""
    model = meta_learner(name, device="cpu", **QUICK[name])
    found = check_estimator(model, expected_failed_checks={WEIGHED: NOT_REPEATED}, on_skip=None)
    assert len(found) > 50
    assert [check["check_name"] for check in found if check["status"] == "xfail"] == [WEIGHED]


def test_every_meta_learner_is_checked_or_needs_names() -> None:
    """No meta-learner goes without a test here."""
    assert {*QUICK, "convnet", *RULES} == set(META)


@pytest.mark.parametrize("name", [*QUICK, "convnet", "best_base", "vote"])
def test_it_says_what_stage_three_says(crossed_artifacts: Path, name: str) -> None:
    """Left out fold by fold, on the table of a run: the out-of-fold estimate, to the last bit."""
    run = open_run(crossed_artifacts / "small")
    quick = {
        "convnet": ConvnetConfig(epochs=5, grid=2),
        "random_forest": RandomForestConfig(n_estimators=20),
    }
    config = run.config.stack.model_copy(update={"balance": "none", "seeds": 1, **quick})
    design = Design.of(name, ["maps", "logits"], config, seed=7, device="cpu")
    tables, _ = ready(design, tables_of(run, list(design.features)))
    estimate, _ = out_of_fold(design, tables)
    assert estimate is not None
    rows = table(run, design.features, centre=name not in RULES)
    settings = {} if name in RULES else getattr(config, name).model_dump()
    model = meta_learner(name, columns=rows.columns, random_state=7, device="cpu", **settings)
    said = cross_val_predict(
        model,
        rows.X,
        rows.y,
        groups=rows.groups,
        cv=LeaveOneGroupOut(),
        method="predict_proba",
        params={"groups": rows.groups},
    )
    np.testing.assert_array_equal(said, estimate.ranked[0][0])


@pytest.mark.parametrize("name", ["logistic", "xgboost"])
def test_it_goes_where_estimators_go(name: str) -> None:
    """Into a pipeline, a grid of settings and a copy, with labels that are words."""
    rows = learnable(classes=3)
    words = np.array(["benign", "in situ", "invasive"])[rows.labels]
    setting = "C" if name == "logistic" else "max_depth"
    pipeline = make_pipeline(StandardScaler(), meta_learner(name, device="cpu", **QUICK[name]))
    grid = {"metalearnerclassifier__settings": [{**QUICK[name], setting: value} for value in (1, 2)]}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(4)).fit(rows.values, words, groups=rows.cases)
    assert search.best_score_ > 0.9
    unseen = learnable(classes=3, seed=1)
    assert (search.predict(unseen.values) == words[: len(unseen.labels)]).mean() > 0.9
    copy = clone(search.best_estimator_)
    with pytest.raises(NotFittedError):
        copy.predict(unseen.values)


def test_groups_decide_the_inner_cut() -> None:
    """What turns distances into probabilities keeps groups together, where it is told of them."""
    rows = learnable()
    alone, grouped = (
        meta_learner("svm").fit(rows.values, rows.labels, groups=groups).predict_proba(rows.values)
        for groups in (None, rows.cases)
    )
    assert not np.array_equal(alone, grouped)


def test_a_row_of_no_weight_is_no_row() -> None:
    """Neither scales nor inner cuts nor classes know of it."""
    rows = learnable(classes=3)
    kept = rows.labels < 2
    model = meta_learner("svm")
    whole = clone(model).fit(
        rows.values, rows.labels, sample_weight=kept.astype(float), groups=rows.cases
    )
    part = clone(model).fit(rows.values[kept], rows.labels[kept], groups=rows.cases[kept])
    np.testing.assert_array_equal(whole.predict_proba(rows.values), part.predict_proba(rows.values))
    assert whole.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["convnet", "mean"])
def test_those_that_look_for_columns_by_name_say_so(name: str) -> None:
    """Without names they refuse the table; with names of other columns, too."""
    rows = learnable()
    with pytest.raises(StackError, match="by the names of columns"):
        meta_learner(name).fit(rows.values, rows.labels)
    with pytest.raises(StackError, match="none of the 29 columns is"):
        meta_learner(name, columns=[f"c{n}" for n in range(29)]).fit(rows.values[:, :29], rows.labels)
    with pytest.raises(StackError, match="2 columns are named, the table has 30"):
        meta_learner(name, columns=["a", "b"]).fit(rows.values, rows.labels)


def test_a_data_frame_brings_its_names() -> None:
    """Its columns are looked for by name, and have to be the same ones afterwards."""
    pd = pytest.importorskip("pandas")
    rows = learnable()
    frame = pd.DataFrame(rows.values, columns=list(rows.columns))
    model = meta_learner("mean").fit(frame, rows.labels)
    assert model.score(frame, rows.labels) > 0.9
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={rows.columns[0]: "another"}))


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("logistics", {}, "did you mean 'logistic'"),
        ("xgboost", {"max_dept": 3}, "did you mean 'max_depth'"),
        ("mlp", {"epochs": 0}, "mlp.epochs"),
        ("vote", {"C": 1}, "vote has no settings"),
    ],
)
def test_what_it_does_not_know_is_said(name: str, settings: dict[str, Any], problem: str) -> None:
    """Before anything is fitted, with the nearest name that there is."""
    with pytest.raises(ConfigError, match=problem):
        meta_learner(name, **settings)


def test_draws_of_its_own() -> None:
    """Without a state of random numbers every fit is another one, with one it is the same."""
    rows = learnable()
    shares = [
        meta_learner("random_forest", random_state=state, n_estimators=5)
        .fit(rows.values, rows.labels)
        .predict_proba(rows.values)
        for state in (3, 3, None)
    ]
    np.testing.assert_array_equal(shares[0], shares[1])
    assert not np.array_equal(shares[0], shares[2])
