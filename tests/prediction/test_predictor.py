"""Predicting on new images: what is said of each, in which form, and what happens when it fails."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image as Picture
from safetensors.torch import save_file

from stacker.backbones.checkpoint import load_checkpoint
from stacker.config.root import Config
from stacker.data.manifest import Image
from stacker.errors import BackboneError, ConfigError, StackError
from stacker.figures.overlays import Overlays
from stacker.maps.extract import Arrays
from stacker.prediction.inputs import Input
from stacker.prediction.predictor import Predictor, open_predictor
from stacker.prediction.rows import CasePrediction, Prediction, Skipped, row_file
from stacker.run import BaseModel, Run, open_run, reopen
from stacker.stacking.admission import open_caches
from stacker.stacking.novelty import keep_novelty, novelty_file
from tests.commands import call, expect_refusal
from tests.pictures import tissue, write_table


def rows_of(result: Result) -> list[dict[str, Any]]:
    """Return the rows that were printed as JSON lines."""
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def tests_of(finished: Config) -> list[Image]:
    """Return the test images of the finished run."""
    run = reopen(finished)
    return [run.manifest.images[n] for n in run.manifest.rows_of("case", run.folds.test)]


@pytest.fixture
def ready(finished: Config) -> Config:
    """Return the config of a finished run that knows what is usual."""
    run = reopen(finished)
    keep_novelty(run, open_caches(run, frozen=False))
    return finished


def probabilities(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the probability of malignant by file name."""
    return {Path(r["path"]).stem: r["probabilities"]["malignant"] for r in rows if r["row"] == "image"}


@pytest.mark.parametrize("meta", ["logistic", "mlp", "xgboost"])
def test_new_images_get_what_the_cached_ones_got(
    ready: Config, tests_of: list[Image], meta: str
) -> None:
    """The same probabilities, classes and thresholds as in the run's own predictions of its test set."""
    paths = [image.path for image in tests_of]
    result = call(
        "predict", ready.run_path, *paths, "--meta", meta, "--format", "jsonl", "--no-overlays"
    )
    assert result.exit_code == 0, result.stderr
    rows = rows_of(result)
    with (ready.run_path / "predictions.csv").open() as file:
        stored = {row["image_id"]: row for row in csv.DictReader(file) if row["model"] == meta}
    with (ready.run_path / "predictions_cases.csv").open() as file:
        by_case = {row["case_id"]: row for row in csv.DictReader(file) if row["model"] == meta}
    images = [row for row in rows if row["row"] == "image"]
    assert [row["path"] for row in images] == paths
    for image, row in zip(tests_of, images, strict=True):
        expected = float(stored[image.id]["p_malignant"])
        assert row["probabilities"]["malignant"] == pytest.approx(expected, abs=2e-3)
        assert row["predicted"] == stored[image.id]["predicted"] or abs(expected - 0.5) < 0.1
        assert (row["case"], row["seen"], row["abstained"]) == (image.case, False, None)
        assert row["confidence"] == row["probabilities"][row["predicted"]]
        assert 0 <= row["novelty"] <= 1
        assert set(row["base"]) == {"test_resnet/holdout", "test_efficientnet/holdout"}
        against = [base["vote"] != row["predicted"] for base in row["base"].values()]
        assert row["disagreement"] == np.mean(against)
    for row in [row for row in rows if row["row"] == "case"]:
        expected = float(by_case[row["case"]]["p_malignant"])
        assert row["probabilities"]["malignant"] == pytest.approx(expected, abs=2e-3)


def test_a_case_is_the_mean_of_its_images(ready: Config, tests_of: list[Image]) -> None:
    """It has a finish of its own, of the mean raw probability; images of unknown cases are in none."""
    stranger = ready.run_path / "stranger.png"
    tissue(3).save(stranger)
    predictor = open_predictor(open_run(ready.run_path))
    finish, of_cases = predictor.stack.finish, predictor.stack.case_finish
    assert finish != of_cases
    images_of = (*tests_of, Image("x", str(stranger), ""))
    rows = list(predictor.stream(Input(Path(i.path), i.case) for i in images_of))
    images = [row for row in rows if isinstance(row, Prediction)]
    cases = [row for row in rows if isinstance(row, CasePrediction)]
    assert [case.case for case in cases] == sorted({image.case for image in tests_of})
    assert rows[-len(cases) :] == cases
    for case in cases:
        members = [row for row in images if row.case == case.case]
        stated = np.array([row.probabilities["malignant"] for row in members])
        odds = np.log(stated / (1 - stated)) * finish.calibrator.temperature  # as before calibration
        raw = (1 / (1 + np.exp(-odds))).mean()
        expected = of_cases.calibrator.apply(np.array([[1 - raw, raw]]))[0, 1]
        assert case.images == len(members)
        assert case.probabilities["malignant"] == pytest.approx(expected, abs=2e-4)
        assert of_cases.threshold is not None
        assert case.predicted == ("malignant" if expected >= of_cases.threshold else "benign")
        share = np.mean([row.predicted == "malignant" for row in members])
        assert case.shares["malignant"] == pytest.approx(share, abs=1e-6)
    assert images[-1].case is None
    assert images[-1].seen is None


def test_cases_have_no_verdict_where_labels_are_of_images(ready: Config, tests_of: list[Image]) -> None:
    """The stack knows from its training data; the summary says why, where there are cases at all."""
    path = ready.run_path / "stack" / "logistic@maps+logits" / "stack.json"
    facts = json.loads(path.read_text())
    assert facts["cases"] == {"development": 18, "mixed": 0}
    path.write_text(json.dumps(facts | {"cases": {"development": 18, "mixed": 17}}))
    result = call("predict", ready.run_path, tests_of[0].path, "--format", "jsonl", "--no-overlays")
    assert result.exit_code == 0, result.stderr
    assert [row["row"] for row in rows_of(result)] == ["image"]
    told = " ".join(result.stderr.split())
    assert "1 image of 1 case" in told
    assert "No verdict by case: 17 of the 18 cases in the training data have images of more" in told


def test_rows_do_not_depend_on_the_batch_or_on_turns(ready: Config, tests_of: list[Image]) -> None:
    """One by one, in threes, and with base models that take turns: the numbers are the same."""
    images = [Input(Path(image.path), image.case) for image in tests_of[:7]]
    run = open_run(ready.run_path)
    shares = []
    for size, memory in ((32, 4.0), (1, 4.0), (3, 1e-6)):
        cam = run.config.cam.model_copy(update={"batch_size": size, "memory_gb": memory})
        changed = replace(run, config=run.config.model_copy(update={"cam": cam}))
        predictor = open_predictor(changed)
        assert len(predictor.ensemble.rounds) == (1 if memory > 1 else 2)
        rows = list(predictor.stream(images))
        shares.append([row.probabilities["malignant"] for row in rows if isinstance(row, Prediction)])
    assert len(shares[0]) == 7
    np.testing.assert_allclose(shares[1], shares[0], atol=2e-3)
    np.testing.assert_allclose(shares[2], shares[0], atol=2e-3)


def test_a_row_comes_out_as_soon_as_its_batch_is_done(ready: Config, tests_of: list[Image]) -> None:
    """Not when all images have been read."""
    run = open_run(ready.run_path)
    cam = run.config.cam.model_copy(update={"batch_size": 2})
    predictor = open_predictor(replace(run, config=run.config.model_copy(update={"cam": cam})))
    taken: list[int] = []

    def images() -> Iterator[Input]:
        for n in range(20):
            taken.append(n)
            yield Input(Path(tests_of[0].path))

    rows = predictor.stream(images())
    next(rows)
    assert len(taken) <= 6
    rows.close()  # type: ignore[attr-defined]


def test_what_cannot_be_read_is_skipped_and_said_at_the_end(
    ready: Config, tests_of: list[Image], tmp_path: Path
) -> None:
    """In its place among the others; the exit code is 1, and nothing else is lost."""
    bad, good = tmp_path / "bad.png", tests_of[0].path
    bad.write_bytes(Path(good).read_bytes()[:100])
    listed = f"{bad}\n{good}\n{tmp_path / 'gone.png'}\n"
    result = call("predict", ready.run_path, "-", "--format", "jsonl", "--no-overlays", input=listed)
    assert result.exit_code == 1
    assert [row["row"] for row in rows_of(result)] == ["skipped", "image", "skipped", "case"]
    assert rows_of(result)[2]["reason"] == "cannot be read: No such file or directory"
    assert "2 images skipped:" in result.stderr
    assert "bad.png: cannot be decoded" in result.stderr
    only = call("predict", ready.run_path, bad)
    assert only.exit_code == 1
    assert "bad.png" in only.stdout
    for words, text in (
        ((tmp_path / "nowhere.png",), "no such file or folder"),
        ((good, "--meta", "mpl"), "did you mean 'mlp'"),
        ((good, "--meta", "../../x"), "no meta-learner '../../x'"),
        ((good, "--abstain", "1.5"), "expected a probability from 0 to below 1"),
        ((good, "--output", "rows.xlsx"), "--format jsonl, csv or table"),
        ((good, "--device", "tpu9"), "unknown device 'tpu9'; choose auto, cpu, cuda"),
    ):
        expect_refusal(call("predict", ready.run_path, *words), 2, text)


def test_it_abstains_below_a_confidence(ready: Config, tests_of: list[Image]) -> None:
    """As the config or the option says; the class and its probability are still told."""
    path = tests_of[0].path
    (row, case) = rows_of(
        call("predict", ready.run_path, path, "--abstain", "0.999", "--format", "jsonl")
    )
    assert row["abstained"] == f"confidence {row['confidence']:.3f} is below 0.999"
    assert row["predicted"] in ("benign", "malignant")
    assert (case["abstained"] is None) == (case["confidence"] >= 0.999)
    table = call("predict", ready.run_path, path, "--abstain", "0.999")
    assert "abstains: confidence" in table.stdout
    assert "1 abstained" in table.stderr
    run = open_run(ready.run_path, ("stack.abstain=0.999",))
    assert _first(run, tests_of).abstained == row["abstained"]


def test_cases_that_the_stack_knows_are_told(
    ready: Config, tests_of: list[Image], tmp_path: Path
) -> None:
    """What it says of them is no proof of anything: accuracy is that of the other labelled images."""
    run = reopen(ready)
    known = next(i for i in run.manifest.images if i.case in run.folds.folds[0].held_out)
    new = tests_of[0]
    lines = [f"{image.path},{image.label}" for image in (known, new)] + [f"{tests_of[1].path},odd"]
    table = tmp_path / "list.csv"
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    result = call("predict", ready.run_path, table, "--format", "jsonl", "--no-overlays")
    images = [row for row in rows_of(result) if row["row"] == "image"]
    assert [(row["label"], row["seen"]) for row in images] == [
        (known.label, True),
        (new.label, False),
        ("odd", False),
    ]
    right = float(images[1]["predicted"] == new.label)
    told = " ".join(result.stderr.split())
    assert f"accuracy {right:.3f} on 1 labelled image of cases that were not in the training" in told
    assert "1 label left out of the accuracy" in told
    assert f"'odd' of {tests_of[1].path}; classes: benign, malignant" in told
    assert "1 image: the case was in the training data." in told
    table.write_text(f"path,case,label\n{known.path},my own name,{known.label}\n")
    (row, *_) = rows_of(call("predict", ready.run_path, table, "--format", "jsonl", "--no-overlays"))
    assert (row["case"], row["seen"]) == ("my own name", True)


def test_a_csv_has_the_same_rows_and_is_whole_when_it_has_its_name(
    ready: Config, tests_of: list[Image], tmp_path: Path
) -> None:
    """Every row has every column; the cases of a table's own column come before those of names."""
    table = write_table(tmp_path / "in" / "list.csv", "path,case", [["a.png", "P1"], ["b.png", "P2"]])
    output = tmp_path / "out" / "rows.csv"
    result = call(
        "predict", ready.run_path, table, tests_of[0].path, "--output", output, "--no-overlays"
    )
    assert (result.exit_code, result.stdout) == (0, "")
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["row"] for row in rows] == ["image"] * 3 + ["case"] * 3
    assert [row["case"] for row in rows[:3]] == ["P1", "P2", tests_of[0].case]
    assert not any(None in row or None in row.values() for row in rows)
    assert {row["test_resnet/holdout/vote"] for row in rows[:3]} <= {"benign", "malignant"}
    assert {row["images"] for row in rows[3:]} == {"1"}
    assert not output.with_name("rows.csv.partial").exists()


def test_rows_outlive_whatever_ends_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They lie under another name, which the message tells; an older file is not touched."""
    path = tmp_path / "rows.jsonl"
    path.write_text("older\n")

    def interrupted() -> None:
        with row_file(path) as write:
            write("one")
            assert (tmp_path / "rows.jsonl.partial").read_text() == "one\n"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "older\n"
    assert (tmp_path / "rows.jsonl.partial").read_text() == "one\n"
    assert "rows.jsonl.partial holds the 1 lines that were finished" in caplog.text
    with pytest.raises(ConfigError, match="is a folder"), row_file(tmp_path):
        pass


def test_overlays_are_drawn_for_few_images_and_where_they_are_wanted(
    ready: Config, tests_of: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One PNG each, numbered where names are equal: the image and a panel for each backbone."""
    twin = tmp_path / Path(tests_of[0].path).name
    twin.write_bytes(Path(tests_of[0].path).read_bytes())
    rows = rows_of(call("predict", ready.run_path, tests_of[0].path, twin, "--format", "jsonl"))
    overlays = [Path(row["overlay"]) for row in rows if row["row"] == "image"]
    stem = twin.stem
    assert overlays == [ready.run_path / "predictions" / f"{stem}{n}.png" for n in ("", "-2")]
    with Picture.open(twin) as source, Picture.open(overlays[0]) as sheet:
        assert sheet.width > 3 * source.width
    monkeypatch.setattr("stacker.cli.predict.MOST_DRAWN", 1)
    many = rows_of(call("predict", ready.run_path, tests_of[0].path, twin, "--format", "jsonl"))
    assert many[0]["overlay"] is None
    asked = call("predict", ready.run_path, tests_of[0].path, twin, "--out", tmp_path / "out")
    assert asked.exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_an_overlay_names_a_true_class_only_if_it_is_one(
    ready: Config, tests_of: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that is no class of the stack is rejected, and not printed either."""
    titles: list[str] = []
    monkeypatch.setattr(Overlays, "draw", lambda _, __, title, *___: titles.append(title[1]))
    for label in ("benign", "Benign"):
        table = tmp_path / "images.csv"
        table.write_text(f"path,label\n{tests_of[0].path},{label}\n")
        assert call("predict", ready.run_path, table, "--overlays").exit_code == 0
    assert [title.partition("; true class: ")[2] for title in titles] == ["benign", ""]


def test_what_is_no_number_is_no_prediction(
    ready: Config, tests_of: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that a base model fails on is skipped with the reason; the others are answered for."""
    predictor = open_predictor(open_run(ready.run_path))
    asked = predictor.ensemble.ask

    def fail(pixels: list[np.ndarray]) -> dict[BaseModel, Arrays]:
        outputs = asked(pixels)
        outputs[BaseModel("test_resnet", "holdout")]["maps"][1] = np.nan
        return outputs

    monkeypatch.setattr(predictor.ensemble, "ask", fail)
    images = [Input(Path(image.path)) for image in tests_of[:3]]
    first, second, third = predictor.stream(images)
    assert isinstance(first, Prediction)
    assert isinstance(third, Prediction)
    assert isinstance(second, Skipped)
    assert second.reason.startswith("test_resnet/holdout returns NaN or infinite maps")


def test_without_what_is_usual_novelty_is_not_known(
    ready: Config, tests_of: list[Image], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor where it is of other caches, which is said; a damaged file is refused."""
    run = reopen(ready)
    path = novelty_file(run)
    caches = open_caches(run, frozen=False)
    path.unlink()
    keep_novelty(run, replace(caches, origins=dict.fromkeys(caches.origins, "other")))
    assert _first(run, tests_of).novelty is None
    assert "novelty is not known" in caplog.text
    path.write_bytes(b"nonsense")
    with pytest.raises(StackError, match="damaged"):
        open_predictor(run)
    path.unlink()
    assert _first(run, tests_of).unlike_training is None


def _first(run: Run, tests_of: list[Image]) -> Prediction:
    (row,) = open_predictor(run).stream([Input(Path(tests_of[0].path))])
    assert isinstance(row, Prediction)
    return row


def test_predicting_loads_no_plotting_library() -> None:
    """Overlays are drawn without it: the first image is not kept waiting for an import."""
    code = "import sys, stacker.prediction.predictor\nprint('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_base_models_that_changed_are_refused(ready: Config) -> None:
    """A meta-learner is only as good as the base models that it was fitted on."""
    models = sorted(ready.run_path.glob("models/*/*/model.safetensors"))
    models[0].write_bytes(models[0].read_bytes() + b"\0")
    with pytest.raises(BackboneError, match="is not the base model"):
        open_predictor(open_run(ready.run_path))
    models[0].unlink()
    with pytest.raises(BackboneError, match="is missing"):
        open_predictor(open_run(ready.run_path))


def test_the_threshold_may_lie_anywhere(ready: Config, tests_of: list[Image]) -> None:
    """Confidence is the probability of what is predicted, below one half, too."""
    predictor = open_predictor(open_run(ready.run_path), abstain=0.4)
    finish = replace(predictor.stack.finish, threshold=1e-9)
    eager = replace(predictor, stack=replace(predictor.stack, finish=finish))
    assert isinstance(eager, Predictor)
    for row in eager.stream(Input(Path(image.path)) for image in tests_of):
        assert isinstance(row, Prediction)
        assert row.predicted == "malignant"
        assert row.confidence == row.probabilities["malignant"]
        assert (row.abstained is not None) == (row.confidence < 0.4)


def test_a_run_that_does_not_know_its_cases_says_so(ready: Config, tests_of: list[Image]) -> None:
    """Without the split, a case is seen where a base model lists it, else not known: never new."""
    run = reopen(ready)
    fold = run.folds.folds[0]
    listed, held_out = (
        next(i for i in run.manifest.images if i.case in cases) for cases in (fold.train, fold.held_out)
    )
    images = [Input(Path(i.path), i.case) for i in (listed, held_out, tests_of[0])]
    run = open_run(ready.run_path)

    def seen() -> list[bool | None]:
        rows = open_predictor(run).stream(images)
        return [row.seen for row in rows if isinstance(row, Prediction)]

    assert seen() == [True, True, False]
    run.folds_file.unlink()
    assert seen() == [True, None, None]


def test_a_precision_comes_from_a_list(ready: Config) -> None:
    """What a file names is not looked up among all that torch has."""
    path = ready.run_path / "stack" / "logistic@maps+logits" / "stack.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"precision": "load"}))
    with pytest.raises(StackError, match="precision is 'load', expected float32, bfloat16, float16"):
        open_predictor(open_run(ready.run_path))


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "local-dir:/tmp/model", "a/b", None])
def test_a_base_model_is_none_of_elsewhere(
    tmp_path: Path, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose name sends timm to a hub or a folder is refused before timm hears of it."""

    def heard(*_: object, **__: object) -> None:
        raise AssertionError(name)

    for asked in ("create_model", "get_pretrained_cfg"):
        monkeypatch.setattr(f"timm.{asked}", heard)
    facts = {"name": name, "size": [32, 32], "classes": ["a", "b"], "mean": [0] * 3, "std": [1] * 3}
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"stacker": json.dumps(facts)})
    with pytest.raises(BackboneError, match=r"model\.safetensors names the backbone"):
        load_checkpoint(path)
