"""What a fitted stack relies on: a planted column comes first, and on noise no block stands out."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from stacker import pipeline
from stacker.config.load import load_config
from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.run import open_run, reopen
from stacker.stacking.fitting import Member
from stacker.stacking.importances import (
    by_block,
    read_importances,
    write_importances,
)
from stacker.stacking.learners.matrix import InMemory
from stacker.stacking.learners.registry import build, is_scaled
from stacker.stacking.preparation import fit_preparation
from stacker.stacking.saved import load_stack

COLUMNS = tuple(
    f"{backbone}/{block}/{number}"
    for backbone in ("densenet121", "resnet50")
    for block, count in (("map_stats", 10), ("logits", 2))
    for number in range(count)
)
PLANTED = COLUMNS.index("resnet50/logits/1")
CONFIG = StackConfig.model_validate(
    {
        "random_forest": {"n_estimators": 60},
        "svm": {"kernel": "linear"},
        "xgboost": {"n_estimators": 40},
        "custom": {"ada": {"estimator": "sklearn.ensemble.AdaBoostClassifier"}},
    }
)
TELLING = ("logistic", "xgboost", "random_forest", "svm", "ada")


def fitted(name: str, effect: float, classes: int = 2, seeds: int = 2) -> list[Member]:
    """Return members fitted on noise of 400 rows, with a signal of some size in one column."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % classes
    values = rng.standard_normal((400, len(COLUMNS))).astype(np.float32)
    values[:, PLANTED] += effect * labels
    members = []
    for seed in range(seeds):
        preparation = fit_preparation(InMemory(values), COLUMNS, {}, is_scaled(name, CONFIG), seed)
        learner = build(name, CONFIG, seed, preparation.columns, "cpu")
        learner.fit(preparation.change(values), labels, groups=np.arange(400))
        members.append(Member(preparation, learner, np.ones(classes)))
    return members


def rows_of(members: list[Member], classes: int, folder: Path) -> list[dict[str, Any]]:
    """Return what is written of members, read again."""
    folder.mkdir(parents=True)
    (folder / "stack.json").touch()
    write_importances(folder, {"all": members} if members else {}, [f"class{k}" for k in range(classes)])

    class AsRun:
        path = folder.parent

        def stack_folder(self, meta: str) -> Path:
            return self.path / meta

    run: Any = AsRun()
    return read_importances(run, folder.name)


@pytest.mark.parametrize("name", TELLING)
def test_the_planted_column_and_its_block_come_first(name: str, tmp_path: Path) -> None:
    """Whatever the numbers are: coefficients, gains or impurities."""
    rows = rows_of(fitted(name, effect=2.0), 2, tmp_path / name)
    assert max(rows, key=lambda row: abs(row["value"]))["column"] == COLUMNS[PLANTED]
    first, *others = by_block(rows)
    assert (first.backbone, first.block, first.columns) == ("resnet50", "logits", 2)
    assert first.share > 2 * first.of_columns
    assert sum(share.share for share in (first, *others)) == pytest.approx(1)
    assert sum(share.of_columns for share in (first, *others)) == pytest.approx(1)


@pytest.mark.parametrize("name", ["logistic", "random_forest"])
def test_on_noise_no_block_stands_out(name: str, tmp_path: Path) -> None:
    """Every block has about the share that it has of the columns."""
    for share in by_block(rows_of(fitted(name, effect=0.0), 2, tmp_path / name)):
        assert 0.4 * share.of_columns < share.share < 2 * share.of_columns


def test_classes_have_coefficients_of_their_own(tmp_path: Path) -> None:
    """Of three classes there is a line for each; the planted column pulls the outer ones apart."""
    rows = rows_of(fitted("logistic", effect=2.0, classes=3), 3, tmp_path / "logistic")
    assert len(rows) == 2 * 3 * len(COLUMNS)
    planted = {row["class"]: row["value"] for row in rows if row["column"] == COLUMNS[PLANTED]}
    assert planted["class0"] < 0 < planted["class2"]
    assert {row["kind"] for row in rows} == {"standardised coefficient"}
    assert by_block(rows)[0].block == "logits"


class Told:
    """A member that says what it relies on."""

    def __init__(self, columns: list[str], values: list[float]) -> None:
        self.preparation = SimpleNamespace(columns=tuple(columns))
        self.learner = SimpleNamespace(importances=lambda: ("coefficient", np.array(values)))


def told(folder: Path, members: dict[str, list[Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what is written of members with their shares by block."""
    write_importances(folder, members, ["benign", "malignant"])
    run: Any = SimpleNamespace(stack_folder=lambda _: folder, path=folder)
    rows = read_importances(run, "logistic")
    return rows, {share.block: share for share in by_block(rows)}


def test_embeddings_of_several_folds_are_not_averaged(tmp_path: Path) -> None:
    """Column 0 of one fold's embeddings is not that of another's: +3 and -3 are not nothing."""
    columns = ["b/embeddings/0", "b/embeddings/1", "b/logits/0"]
    members = {f"fold{n}": [Told(columns, [3.0 * sign, 0, 1])] for n, sign in enumerate((1, -1))}
    rows, shares = told(tmp_path, members)
    assert [row["value"] for row in rows] == [3, 0, 1, -3, 0, 1]
    assert {row["fit"] for row in rows} == {"fold0-0", "fold1-0"}
    assert shares["embeddings"].share == pytest.approx(0.75)
    assert shares["embeddings"].columns == 2


def test_components_may_be_of_several_numbers(tmp_path: Path) -> None:
    """A small fold has fewer principal components, and each fit counts the same."""
    many = Told(["b/own/pc000", "b/own/pc001", "b/logits/0"], [2, -2, 4])
    few = Told(["b/own/pc000", "b/logits/0"], [30, -10])
    rows, shares = told(tmp_path, {"fold0": [many], "fold1": [few]})
    assert len(rows) == 5
    assert shares["own"].share == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert shares["own"].of_columns == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert shares["own"].columns == 2
    silent = Told(["b/own/pc000", "b/logits/0"], [0, 0])
    _, shares = told(tmp_path, {"all": [few, silent]})
    assert shares["own"].share == pytest.approx(3 / 4)


@pytest.mark.parametrize("features", [["embeddings"], ["own"]])
def test_a_stack_of_other_columns_in_each_fold_is_written(
    features: list[str], crossed_artifacts: Path, tmp_path: Path
) -> None:
    """Embeddings under crossfit, and principal components of them: every fit has its own lines."""
    shutil.copytree(crossed_artifacts, tmp_path / "artifacts")
    blocks = "{own: {of: embeddings, pca: 4}}"
    settings = [f"stack.features=[{','.join(features)}]", f"stack.blocks={blocks}"]
    path = tmp_path / "artifacts" / "small" / "config.yaml"
    run = reopen(load_config(path, [*settings, f"artifacts={tmp_path}/artifacts"]))
    pipeline.stack(run, ["logistic"])
    rows = read_importances(run, "logistic")
    assert {row["fit"] for row in rows} == {f"fold{n}-0" for n in range(3)}
    assert sum(share.share for share in by_block(rows)) == pytest.approx(1)


@pytest.mark.parametrize(("classes", "known"), [(2, True), (3, False)])
def test_coefficients_of_pairs_are_not_those_of_classes(classes: int, known: bool) -> None:
    """Of three classes a linear machine has three rows, too: of the pairs, not of the classes."""
    rows = np.random.default_rng(0).standard_normal((60, 4))
    model: Any = build("ada", CONFIG, 0, [f"b/logits/{n}" for n in range(4)])
    model.estimator_ = SVC(kernel="linear").fit(rows, np.arange(60) % classes)
    model.classes_ = np.arange(classes)
    assert len(model.estimator_.coef_) == (1 if classes == 2 else 3)
    assert (model.importances() is not None) == known


def test_what_tells_nothing_has_no_file(tmp_path: Path) -> None:
    """Nor one of an earlier fit: and whoever asks is told which meta-learners can tell."""
    svm = StackConfig.model_validate({"svm": {"kernel": "rbf"}})
    assert build("svm", svm, 0, COLUMNS).weighs
    with pytest.raises(StackError, match="has no importances by column; coefficients and gains are"):
        rows_of([], 2, tmp_path / "mlp")


def test_they_lie_beside_a_fitted_stack(finished_artifacts: Path) -> None:
    """As the stack's own members tell them, for the columns of the run."""
    run = open_run(finished_artifacts / "small")
    rows = read_importances(run, "logistic")
    (member,) = load_stack(run, "logistic").members["all"]
    told = member.learner.importances()
    assert told is not None
    np.testing.assert_allclose([row["value"] for row in rows], told[1], rtol=1e-4)
    assert tuple(row["column"] for row in rows) == member.preparation.columns
    assert not (run.stack_folder("mlp") / "importances.csv").exists()
