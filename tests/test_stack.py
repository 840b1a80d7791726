"""Stage three: what it writes, what it skips, and that its numbers are those of the predictions."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stacker import pipeline, studies
from stacker.admission import open_caches
from stacker.calibration import Calibrator
from stacker.config import Config
from stacker.errors import CacheError
from stacker.predict import predict
from stacker.stored import stack_facts
from stacker.terminal import scores_table
from tests.conftest import MakeConfig
from tests.pictures import write_table
from tests.test_audit import case_rows

MODELS = ["constant", "test_resnet", "test_efficientnet", "mean", "logistic", "mlp", "xgboost"]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_follow_the_contract(finished_artifacts: Path) -> None:
    """{"test": {MODEL: {"image": {...}, "case": {...}}}}, from the constant to the meta-learners."""
    metrics = json.loads((finished_artifacts / "small" / "metrics.json").read_text())
    assert list(metrics["test"]) == MODELS
    for found in metrics["test"].values():
        for unit in ("image", "case"):
            assert {"accuracy", "balanced_accuracy", "auc", "f1", "n", "interval"} <= set(found[unit])
            for score, bounds in found[unit]["interval"].items():
                assert bounds is None or bounds[0] <= bounds[1], score
        assert 0 <= found["case"]["recognition_rate"] <= 1
    assert metrics["test"]["constant"]["constant_prediction"]
    assert metrics["split"] == "holdout split by case"
    assert list(metrics["held_out"]) == MODELS
    held_out = {name: metrics["held_out"][name]["image"]["auc"] for name in MODELS[1:3]}
    assert held_out[metrics["best_base"]] == max(held_out.values())
    assert {row["second"] for row in metrics["differences"]} == {metrics["best_base"], "mean"}
    assert set(metrics["localisation"]) == set(MODELS[1:3])


def test_metrics_are_those_of_the_predictions(finished_artifacts: Path) -> None:
    """Accuracy recomputed from predictions.csv, and the mean from the backbones."""
    run = finished_artifacts / "small"
    metrics = json.loads((run / "metrics.json").read_text())
    rows = read_csv(run / "predictions.csv")
    shares: dict[str, list[float]] = {}
    for name in MODELS:
        mine = [row for row in rows if row["model"] == name]
        right = np.mean([row["predicted"] == row["label"] for row in mine])
        assert metrics["test"][name]["image"]["accuracy"] == pytest.approx(right, abs=1e-4)
        assert metrics["test"][name]["image"]["n"] == len(mine)
        shares[name] = [float(row["p_malignant"]) for row in mine]
    study = studies.open_study(run)
    _, base = open_caches(study.run, study.manifest, study.folds, frozen=False).base()
    calibrator = Calibrator.from_dict(metrics["calibrators"]["mean"])
    (mean,) = np.mean(list(base.values()), axis=0)
    np.testing.assert_allclose(shares["mean"], calibrator.apply(mean)[:, 1], atol=1e-5)


def test_test_rows_are_the_test_cases(finished: Config) -> None:
    """No prediction is scored on a case that trained or stacked anything."""
    study = studies.reopen(finished)
    cases = {row["case_id"] for row in read_csv(study.run.path / "predictions.csv")}
    assert cases == set(study.folds.test)


def test_figures_are_there(finished_artifacts: Path) -> None:
    """A confusion matrix and a ROC curve, as PNG."""
    for name in ("confusion.png", "roc.png"):
        content = (finished_artifacts / "small" / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_what_is_fitted_is_skipped_and_what_changed_is_fitted_again(finished: Config) -> None:
    """A meta-learner is refitted when its own parameters change, the others stay."""
    run = finished.run_path
    before = {path: path.stat().st_mtime_ns for path in run.glob("stack/*/all-*")}
    pipeline.stack(studies.reopen(finished), ["logistic", "mlp", "xgboost"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stack = finished.stack.model_copy(
        update={"logistic": finished.stack.logistic.model_copy(update={"C": 5.0})}
    )
    changed = finished.model_copy(update={"stack": stack})
    pipeline.stack(studies.reopen(changed), ["logistic", "xgboost"])
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parent.name for path in before if after[path] != before[path]} == {"logistic"}
    assert stack_facts(studies.reopen(changed).run, "logistic")["parameters"]["C"] == 5.0


def test_other_features_behind_equal_settings_are_noticed(finished: Config) -> None:
    """Backbones in another order, or caches by another method, are other columns: fit again."""
    pipeline.stack(studies.reopen(finished), ["logistic"])
    model = finished.run_path / "stack" / "logistic" / "all-0.skops"
    times = [model.stat().st_mtime_ns]
    turned = finished.model_copy(update={"backbones": dict(reversed(finished.backbones.items()))})
    pipeline.stack(studies.reopen(turned), ["logistic"])
    times.append(model.stat().st_mtime_ns)
    cam = finished.cam.model_copy(update={"methods": ["layercam"]})
    study = studies.reopen(finished.model_copy(update={"cam": cam}))
    pipeline.cache(study)
    pipeline.stack(study, ["logistic"])
    times.append(model.stat().st_mtime_ns)
    assert len(set(times)) == 3


def test_a_changed_method_is_noticed(finished: Config, data: Path) -> None:
    """Caches by another method are refused, and predict keeps the method that it was fitted on."""
    image = next((data / "histology_slides").rglob("*.png"))
    run = studies.reopen(finished).run
    (before,), _ = predict(run, [image], "logistic")
    cam = finished.cam.model_copy(update={"methods": ["layercam"]})
    study = studies.reopen(finished.model_copy(update={"cam": cam}))
    with pytest.raises(CacheError, match="was made with methods gradcam, this run uses layercam"):
        pipeline.stack(study, ["logistic"])
    (after,), _ = predict(study.run, [image], "logistic")
    assert after.probabilities == before.probabilities


def test_caches_of_a_model_that_was_trained_again_are_refused(finished: Config) -> None:
    """Stage three compares the caches with the base models on disk."""
    path = finished.run_path / "models" / "test_resnet" / "holdout" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheError, match="was made by another model"):
        pipeline.stack(studies.reopen(finished), ["logistic"])


def test_a_stale_meta_learner_is_left_out(finished: Config) -> None:
    """After a change of features only what was fitted on them is scored."""
    stack = finished.stack.model_copy(update={"features": ["logits"]})
    changed = finished.model_copy(update={"stack": stack})
    metrics = pipeline.stack(studies.reopen(changed), ["logistic"])
    assert list(metrics["test"]) == ["constant", "test_resnet", "test_efficientnet", "mean", "logistic"]


def test_a_stack_of_a_package_that_is_gone_stops_nothing(
    finished: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is named and left out, and nothing is imported because a folder is called so."""
    folder = finished.run_path / "stack"
    shutil.copytree(folder / "logistic", folder / "gone_package.Classifier")
    metrics = pipeline.stack(studies.reopen(finished), ["logistic"])
    assert "logistic" in metrics["test"]
    assert "gone_package.Classifier" not in metrics["test"]
    assert "stacks of other settings are left out: gone_package.Classifier" in caplog.text


def test_meta_learners_can_be_added_one_by_one(finished: Config) -> None:
    """Metrics cover what is fitted, in whatever order it was."""
    for name in ("logistic", "mlp", "xgboost"):
        for path in (finished.run_path / "stack" / name).iterdir():
            path.unlink()
    study = studies.reopen(finished)
    assert list(pipeline.stack(study, ["xgboost"])["test"])[-1] == "xgboost"
    assert list(pipeline.stack(study, ["logistic"])["test"])[-2:] == ["logistic", "xgboost"]


def test_scores_without_cases_are_not_called_scores_of_cases(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Where nobody knows the patient there are no case scores, and intervals say what they draw."""
    rows = [row[:2] for row in case_rows()]
    table = write_table(tmp_path / "set.csv", "path,label", rows)
    data = {"path": str(table), "format": "csv", "masks": None}
    config = make_config(data=data, folds={"group": "image"}, stack={"meta": ["logistic"]})
    metrics = pipeline.run_all(config)
    assert metrics["unit"] == "image"
    assert metrics["intervals"] == "95%, 100 bootstrap draws of whole images"
    assert all("case" not in scores for scores in metrics["test"].values())
    shown = scores_table(metrics)
    assert "cases not known" in str(shown.title)
    assert [column.header for column in shown.columns] == ["model", "image accuracy", "image AUC"]
