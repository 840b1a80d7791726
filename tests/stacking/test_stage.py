"""Stage three: what it writes, what it skips, and that its numbers are those of the predictions."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as sk

from stacker import pipeline
from stacker.cli.tables.scores import scores_table
from stacker.config.root import Config
from stacker.data.manifest import Manifest
from stacker.errors import CacheError, RunError, StackError
from stacker.prediction.inputs import Input
from stacker.prediction.predictor import open_predictor
from stacker.prediction.rows import Prediction
from stacker.run import open_run, reopen
from stacker.scores.predictions import Finish
from stacker.stacking.admission import open_caches
from stacker.stacking.saved import stack_facts
from stacker.stacking.stage import facts_of
from tests.commands import call, expect_refusal
from tests.conftest import MakeConfig
from tests.datasets import case_rows
from tests.pictures import write_table

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
    assert metrics["positive"] == "malignant"
    for of in ("constant_prediction", "constant_case_prediction"):
        assert metrics["test"]["constant"][of]
    assert metrics["split"] == "holdout split by case"
    assert list(metrics["development"]) == MODELS
    held_out = {name: metrics["development"][name]["image"]["auc"] for name in MODELS[1:3]}
    assert held_out[metrics["best_base"]] == max(held_out.values())
    assert {row["second"] for row in metrics["differences"]} == {metrics["best_base"], "mean"}
    assert set(metrics["localisation"]) == set(MODELS[1:3])


def test_a_stack_knows_whether_labels_are_of_cases(finished: Config) -> None:
    """It counts the cases with images of several classes, but not those of the test part."""
    run = reopen(finished)
    caches, images = open_caches(run, frozen=False), list(run.manifest.images)
    development = {case for fold in run.folds.folds for case in (*fold.train, *fold.held_out)}
    for cases, mixed in (([], 0), (run.folds.test, 0), (development, 2)):
        chosen = sorted(cases)[:2]
        rows = [next(n for n, image in enumerate(images) if image.case == case) for case in chosen]
        changed = list(images)
        for row in rows:
            others = {"benign": "malignant", "malignant": "benign"}
            changed[row] = replace(images[row], label=others[images[row].label])
        manifest = Manifest(tuple(changed), run.manifest.classes)
        facts = facts_of(run.with_split(manifest, run.folds), caches)
        assert facts["cases"] == {"development": 18, "mixed": mixed}


def test_metrics_are_those_of_the_predictions(finished_artifacts: Path) -> None:
    """Accuracy recomputed from predictions.csv, and the mean from the backbones."""
    run = open_run(finished_artifacts / "small")
    metrics = json.loads((run.path / "metrics.json").read_text())
    rows = read_csv(run.path / "predictions.csv")
    shares: dict[str, list[float]] = {}
    for name in MODELS:
        mine = [row for row in rows if row["model"] == name]
        right = np.mean([row["predicted"] == row["label"] for row in mine])
        assert metrics["test"][name]["image"]["accuracy"] == pytest.approx(right, abs=1e-4)
        assert metrics["test"][name]["image"]["n"] == len(mine)
        shares[name] = [float(row["p_malignant"]) for row in mine]
    _, base = open_caches(run, frozen=False).base()
    calibrator = Finish.from_dict(metrics["finish"]["mean"]).calibrator
    (mean,) = np.mean(list(base.values()), axis=0)
    np.testing.assert_allclose(shares["mean"], calibrator.apply(mean)[:, 1], atol=1e-5)


def recomputed(rows: list[dict[str, str]], labels: np.ndarray, kind: str) -> dict[str, float]:
    """Return the scores of one model from its lines of a CSV, by scikit-learn."""
    first = [row for row in rows if row["cut"] == "0"]
    truth = labels[: len(first)]
    share = np.array([float(row["p_malignant"]) for row in first])
    guess = np.array([row["predicted"] == "malignant" for row in first]).astype(int)
    raw = np.array([float(row["raw_malignant"]) for row in rows])
    part = np.array([f"{row['cut']}/{row['part']}" for row in rows])
    cut = np.array([row["cut"] for row in rows])

    def within(strata: np.ndarray, score: Any, weigh: Any) -> float:
        known = [m for m in (strata == s for s in np.unique(strata)) if len(set(labels[m])) == 2]
        values, weights = [score(labels[m], raw[m]) for m in known], [weigh(labels[m]) for m in known]
        return float(np.average(values, weights=weights))

    found = {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "sensitivity": sk.recall_score(truth, guess),
        "specificity": sk.recall_score(truth, guess, pos_label=0),
        "f1": sk.f1_score(truth, guess),
        "brier": sk.brier_score_loss(truth, share),
        "auc": within(part, sk.roc_auc_score, lambda y: (y == 1).sum() * (y == 0).sum()),
        "auc_pooled": within(cut, sk.roc_auc_score, lambda y: (y == 1).sum() * (y == 0).sum()),
        "average_precision": within(part, sk.average_precision_score, lambda y: (y == 1).sum()),
    }
    if kind == "image":
        right = (guess == truth).astype(float)
        cases = np.array([row["case_id"] for row in first])
        found["recognition_rate"] = float(np.mean([right[cases == c].mean() for c in np.unique(cases)]))
    return found


@pytest.mark.parametrize("protocol", ["holdout", "crossfit"])
def test_every_published_score_can_be_recomputed(
    protocol: str, finished_artifacts: Path, crossed_artifacts: Path
) -> None:
    """scikit-learn makes metrics.json of the CSV files, by image and by case, on both parts."""
    run = (finished_artifacts if protocol == "holdout" else crossed_artifacts) / "small"
    metrics = json.loads((run / "metrics.json").read_text())
    checked = 0
    for part, name in (("development", "out_of_fold"), ("test", "predictions")):
        for kind, ending in (("image", ""), ("case", "_cases")):
            rows = read_csv(run / f"{name}{ending}.csv")
            for model, scores in metrics[part].items():
                own = [row for row in rows if row["model"] == model]
                labels = np.array([row["label"] == "malignant" for row in own]).astype(int)
                expected = recomputed(own, labels, kind)
                rate = expected.pop("recognition_rate", None)
                if rate is not None:
                    assert scores["case"]["recognition_rate"] == pytest.approx(rate, abs=1e-4)
                for score, value in expected.items():
                    where = (part, kind, model, score)
                    assert scores[kind][score] == pytest.approx(value, abs=1e-4), where
                    checked += 1
    assert checked > 100


def test_thresholds_and_folds_are_in_the_files(crossed_artifacts: Path) -> None:
    """Each line says its fold, its part and its threshold, which decides as it says."""
    run = open_run(crossed_artifacts / "small")
    home = {case: fold.name for fold in run.folds.folds for case in fold.held_out}
    for row in read_csv(run.path / "out_of_fold.csv"):
        assert row["fold"] == home[row["case_id"]]
        assert row["part"] == row["fold"].removeprefix("fold")
        if row["threshold"]:
            reached = float(row["p_malignant"]) >= float(row["threshold"])
            assert row["predicted"] == ("malignant" if reached else "benign")
    assert {row["fold"] for row in read_csv(run.path / "predictions.csv")} == {""}


def test_few_cases_have_no_interval_and_the_files_say_why(finished_artifacts: Path) -> None:
    """Three cases of a class bear no interval: the scores are there, and the reason beside them."""
    metrics = json.loads((finished_artifacts / "small" / "metrics.json").read_text())
    found = metrics["test"]["logistic"]["image"]
    assert found["interval"]["accuracy"] is None
    assert found["withheld"]["accuracy"] == "3 cases of benign, 5 are needed"
    assert found["withheld"]["sensitivity"] == "3 cases of malignant, 5 are needed"
    shown = StringIO()
    Console(file=shown, width=200).print(scores_table(metrics))
    assert "No intervals: 3 cases of benign, 5 are needed." in shown.getvalue()


def test_test_rows_are_the_test_cases(finished: Config) -> None:
    """No prediction is scored on a case that trained or stacked anything."""
    run = reopen(finished)
    cases = {row["case_id"] for row in read_csv(run.path / "predictions.csv")}
    assert cases == set(run.folds.test)


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
    pipeline.stack(reopen(finished), ["logistic", "mlp", "xgboost"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stack = finished.stack.model_copy(
        update={"logistic": finished.stack.logistic.model_copy(update={"C": 5.0})}
    )
    changed = finished.model_copy(update={"stack": stack})
    pipeline.stack(reopen(changed), ["logistic", "xgboost"])
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parent.name for path in before if after[path] != before[path]} == {
        "logistic@maps+logits"
    }
    assert stack_facts(reopen(changed), "logistic")["parameters"]["C"] == 5.0


def test_other_features_behind_equal_settings_are_noticed(finished: Config) -> None:
    """Backbones in another order, or caches by another method, are other columns: fit again."""
    pipeline.stack(reopen(finished), ["logistic"])
    model = finished.run_path / "stack" / "logistic@maps+logits" / "all-0.safetensors"
    times = [model.stat().st_mtime_ns]
    turned = finished.model_copy(update={"backbones": dict(reversed(finished.backbones.items()))})
    pipeline.stack(reopen(turned), ["logistic"])
    times.append(model.stat().st_mtime_ns)
    cam = finished.cam.model_copy(update={"methods": ["layercam"]})
    run = reopen(finished.model_copy(update={"cam": cam}))
    pipeline.cache(run)
    pipeline.stack(run, ["logistic"])
    times.append(model.stat().st_mtime_ns)
    assert len(set(times)) == 3


def test_a_changed_method_is_noticed(finished: Config, data: Path) -> None:
    """Caches by another method are refused, and predict keeps the method that it was fitted on."""
    image = next((data / "histology_slides").rglob("*.png"))
    run = reopen(finished)
    (before,) = open_predictor(run, "logistic").stream([Input(image)])
    cam = finished.cam.model_copy(update={"methods": ["layercam"]})
    run = reopen(finished.model_copy(update={"cam": cam}))
    with pytest.raises(CacheError, match="was made with methods gradcam, this run uses layercam"):
        pipeline.stack(run, ["logistic"])
    (after,) = open_predictor(run, "logistic").stream([Input(image)])
    assert isinstance(before, Prediction)
    assert after == before


def test_caches_of_a_model_that_was_trained_again_are_refused(finished: Config) -> None:
    """Stage three compares the caches with the base models on disk."""
    path = finished.run_path / "models" / "test_resnet" / "holdout" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheError, match="was made by another model"):
        pipeline.stack(reopen(finished), ["logistic"])


def test_stacks_of_other_features_stand_beside(finished: Config, data: Path) -> None:
    """After a change of features the others are scored under names that say theirs, and can be asked."""
    stack = finished.stack.model_copy(update={"features": ["logits"]})
    changed = finished.model_copy(update={"stack": stack})
    run = reopen(changed)
    metrics = pipeline.stack(run, ["logistic"])
    others = ["logistic: maps + logits", "mlp: maps + logits", "xgboost: maps + logits"]
    assert list(metrics["test"]) == [*MODELS[:4], "logistic", *others]
    assert list(metrics["stacks"]) == ["logistic", *others]
    assert metrics["stacks"]["mlp: maps + logits"]["folder"] == "stack/mlp@maps+logits"
    models = [row["model"] for row in read_csv(run.path / "predictions.csv")]
    assert list(dict.fromkeys(models)) == list(metrics["test"])
    image = next((data / "histology_slides").rglob("*.png"))
    by_name = {}
    for name in ("logistic", "logistic: maps + logits", "logistic@maps+logits", "logistic: logits"):
        (row,) = open_predictor(run, name).stream([Input(image)])
        assert isinstance(row, Prediction)
        by_name[name] = row.probabilities
    one, other, folder, full = by_name.values()
    assert one == full
    assert other == folder
    assert one != other
    with pytest.raises(RunError, match="no stack 'mlp: logits' is fitted; fitted are: logistic, log"):
        open_predictor(run, "mlp")
    again = pipeline.stack(reopen(finished), ["logistic"])  # and back: nothing is lost
    assert list(again["test"]) == [*MODELS, "logistic: logits"]


def test_a_stack_of_a_package_that_is_gone_stops_nothing(
    finished: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is named and left out, and nothing is imported because a folder is called so."""
    folder = finished.run_path / "stack"
    gone = folder / "gone_package.Classifier@maps+logits"
    shutil.copytree(folder / "logistic@maps+logits", gone)
    facts = json.loads((gone / "stack.json").read_text())
    (gone / "stack.json").write_text(json.dumps(facts | {"meta": "gone_package.Classifier"}))
    shutil.copytree(folder / "logistic@maps+logits", folder / "thesis")
    metrics = pipeline.stack(reopen(finished), ["logistic"])
    assert "logistic" in metrics["test"]
    assert "gone_package.Classifier" not in metrics["test"]
    assert "fitted with other settings: gone_package.Class" in caplog.text
    assert f"is of another stack; delete {folder / 'thesis'}" in caplog.text


def test_a_damaged_stack_is_named_with_what_to_do(
    finished: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not called one of other settings, which a fit with --meta would replace."""
    folder = finished.run_path / "stack" / "mlp@maps+logits"
    (folder / "stack.json").write_text("{")
    metrics = pipeline.stack(reopen(finished), ["logistic"])
    assert "mlp" not in metrics["test"]
    assert f"its stack.json cannot be read or is of another stack; delete {folder}" in caplog.text
    assert "fitted with other settings" not in caplog.text


def test_meta_learners_can_be_added_one_by_one(finished: Config) -> None:
    """Metrics cover what is fitted, in whatever order it was."""
    for name in ("logistic", "mlp", "xgboost"):
        for path in (finished.run_path / "stack" / f"{name}@maps+logits").iterdir():
            path.unlink()
    run = reopen(finished)
    assert list(pipeline.stack(run, ["xgboost"])["test"])[-1] == "xgboost"
    assert list(pipeline.stack(run, ["logistic"])["test"])[-2:] == ["logistic", "xgboost"]


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
    assert "whole images resampled (100 bootstrap draws" in metrics["intervals"]
    assert all("case" not in scores for scores in metrics["test"].values())
    shown = scores_table(metrics)
    assert "cases not known" in str(shown.title)
    assert list(shown.columns) == ["image AUC", "image acc."]


def test_faults_of_all_stacks_are_told_before_the_first_is_fitted(finished: Config) -> None:
    """An unknown name, a class that is not there, wrong parameters, no maps: one error has all four."""
    settings = finished.model_dump()
    settings["stack"] |= {
        "features": ["logits"],
        "custom": {
            "gone": {"estimator": "no_such_package.Classifier"},
            "wrong": {"estimator": "sklearn.ensemble.ExtraTreesClassifier", "parameters": {"trees": 3}},
            "odd": {"estimator": "sklearn.svm.SVC", "parameters": {"C": -1, "probability": True}},
        },
    }
    run = reopen(Config.model_validate(settings))
    before = sorted(run.path.glob("stack/*"))
    names = ["logistic", "logistik", "gone", "wrong", "odd", "convnet", "mlp: nothing"]
    with pytest.raises(StackError) as refused:
        pipeline.stack(run, names)
    first, *lines = str(refused.value).splitlines()
    assert first == "nothing was fitted, because 6 of 7 stacks have errors:"
    wanted = [
        "did you mean 'logistic'",
        "no module no_such_package",
        "does not take its parameters",
        "'C' parameter of SVC must be",
        "convnet looks at maps",
        "has no nothing",
    ]
    for line, name, reason in zip(lines, names[1:], wanted, strict=True):
        assert line.startswith(f"  {name}: ")
        assert reason in line
    assert sorted(run.path.glob("stack/*")) == before


def test_a_stack_that_fails_does_not_lose_the_others(finished: Config) -> None:
    """The rest is fitted, scored and kept; the reason comes at the end, with exit code 1."""
    path = finished.run_path / "config.yaml"
    neighbours = "estimator: sklearn.neighbors.KNeighborsClassifier, parameters: {n_neighbors: 999}"
    bad = f"stack.custom.few={{{neighbours}}}"
    options = ("--set", bad, "--set", "stack.features=[logits]")
    done = call("stack", path, "--meta", "few", "--meta", "logistic", *options)
    expect_refusal(done, 1, "1 stack could not be fitted, the others are", "few: ", "n_neighbors")
    assert "logistic" in done.stdout
    metrics = json.loads((finished.run_path / "metrics.json").read_text())
    assert list(metrics["failures"]) == ["few"]
    assert metrics["stacks"]["logistic"]["features"] == ["logits"]
    assert open_run(finished.run_path).config.stack.features == ["logits"]
