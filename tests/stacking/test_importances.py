"""What a fitted stack relies on: a planted column comes first, and on noise no block stands out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacker.config.stacking import StackConfig
from stacker.errors import StackError
from stacker.run import open_run
from stacker.stacking.fitting import Member
from stacker.stacking.importances import (
    by_block,
    mean_importances,
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
    write_importances(folder, members, [f"class{k}" for k in range(classes)])

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
    assert len(rows) == 3 * len(COLUMNS)
    planted = {row["class"]: row["value"] for row in rows if row["column"] == COLUMNS[PLANTED]}
    assert planted["class0"] < 0 < planted["class2"]
    assert {row["kind"] for row in rows} == {"standardised coefficient"}
    assert by_block(rows)[0].block == "logits"


def test_members_are_averaged() -> None:
    """The mean over the fits of a stack, column by column."""
    members = fitted("xgboost", effect=1.0)
    known = mean_importances(members)
    assert known is not None
    each = [mean_importances([member]) for member in members]
    np.testing.assert_allclose(known[2], np.mean([one[2] for one in each if one], axis=0))
    assert known[2].sum() == pytest.approx(1)


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
