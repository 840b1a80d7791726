"""Jobs: some of them, at the same time, after a kill, with what is written down about them."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file

from stacker import pipeline
from stacker.backbones.backbone import Backbone
from stacker.backbones.checkpoint import load_checkpoint
from stacker.caches.reader import open_cache
from stacker.comparison.probe import probe
from stacker.config.root import Config
from stacker.errors import BackboneError, ConfigError, RunError
from stacker.files import file_sha256, held, read_json
from stacker.prediction.inputs import Input
from stacker.prediction.predictor import open_predictor
from stacker.prediction.rows import Prediction
from stacker.run import reopen
from stacker.training.begin import begin
from stacker.training.plan import list_jobs
from tests.conftest import MakeConfig
from tests.processes import start

CROSSFIT = {"protocol": "crossfit", "k": 3, "test": 0.25, "validation": 0.25}
ONE = {"test_resnet": {"weights": "random"}}


def trained(config: Config) -> set[str]:
    """Return the base models that are there."""
    paths = config.run_path.glob("models/*/*/model.safetensors")
    return {f"{path.parts[-3]}/{path.parts[-2]}" for path in paths}


def epochs_of(config: Config, backbone: str) -> list[dict[str, Any]]:
    """Return what is written down about the epochs of a backbone of a holdout run."""
    path = config.run_path / "models" / backbone / "holdout/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_job_by_backbone_and_fold(make_config: MakeConfig) -> None:
    """A fold is a number or a name; the rest is left for later, and is then all that is done."""
    run = begin(make_config(folds=CROSSFIT))
    pipeline.train(run, ["test_efficientnet"], ["2"])
    assert trained(run.config) == {"test_efficientnet/fold2"}
    path = run.model_file("test_efficientnet", "fold2")
    before = path.stat().st_mtime_ns
    pipeline.train(run, [], ["fold2", "1"])
    assert len(trained(run.config)) == 4
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"no fold of this run 'fold7'"):
        list_jobs(run, [], ["7"])
    with pytest.raises(ConfigError, match=r"no backbone of this run 'resnet50'"):
        list_jobs(run, ["resnet50"])


def test_a_job_in_other_hands_is_left_to_them(make_config: MakeConfig) -> None:
    """Several processes share the list; a run that needs all of them says who is missing."""
    config = make_config()
    run = begin(config)
    with held(run.model_file("test_resnet", "holdout").with_name(".lock")) as locked:
        assert locked
        assert pipeline.train(run) == ["test_resnet/holdout"]
        assert trained(config) == {"test_efficientnet/holdout"}
        with pytest.raises(RunError, match="test_resnet/holdout: other processes are training"):
            pipeline.run_all(config)
    assert pipeline.train(run) == []


def test_a_failing_job_does_not_stop_the_others(make_config: MakeConfig) -> None:
    """All reasons come together at the end, and what was trained is kept."""
    wild = {"lr": 1e30, "warmup": 0, "clip_norm": None}
    backbones = {"test_efficientnet": {"weights": "random", "train": wild}, **ONE}
    config = make_config(backbones=backbones)
    run = begin(config)
    with pytest.raises(BackboneError, match=r"1 of 2 base models failed:\n  test_efficientnet/holdout"):
        pipeline.train(run)
    assert trained(config) == {"test_resnet/holdout"}
    fixed = make_config(backbones={"test_efficientnet": {"weights": "random"}, **ONE})
    pipeline.train(begin(fixed))  # as the message says: no model stands on the old recipe
    assert len(trained(config)) == 2
    with pytest.raises(RunError, match=r"test_efficientnet\.train\.clip_norm: was 1\.0, is null"):
        begin(config)


def test_what_is_written_down(finished: Config) -> None:
    """A line of scores per epoch, curves, and facts in run.json."""
    folder = finished.run_path / "models/test_resnet/holdout"
    lines = epochs_of(finished, "test_resnet")
    assert [line["epoch"] for line in lines] == [1, 2]
    wanted = {"train_loss", "val_loss", "val_accuracy", "val_precision", "val_recall", "val_f1"}
    assert {*wanted, "val_auc", "lr", "images_per_second"} <= lines[0].keys()
    with Picture.open(folder / "curves.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 50
    entry = read_json(finished.run_path / "run.json")["train"]["test_resnet/holdout"]
    assert (entry["epochs"], entry["accumulate"]) == (2, 1)
    assert not (folder / "resume.safetensors").exists()
    _, facts = load_checkpoint(folder / "model.safetensors")
    assert facts["precision"] in ("bfloat16", "float32")


def test_killed_in_an_epoch_it_goes_on_with_it(
    write_config: Callable[..., Path], tmp_path: Path, make_config: MakeConfig
) -> None:
    """SIGKILL after the third epoch: three are not trained again, and the weights are the same bits."""
    recipe = {"epochs": 8, "batch_size": 8, "ema": 0.9, "augment": {"rotation": 10, "mixup": 0.2}}
    path = write_config(backbones=ONE, train=recipe)
    folder = tmp_path / "artifacts/small/models/test_resnet/holdout"
    process = start(path, "train")
    deadline = time.monotonic() + 120
    lines = 0
    while lines < 3:
        assert process.poll() is None, "the training ended before the moment came"
        assert time.monotonic() < deadline
        curve = folder / "metrics.jsonl"
        lines = len(curve.read_text().splitlines()) if curve.exists() else 0
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "resume.safetensors").exists()
    behind = (folder / "metrics.jsonl").read_text().splitlines()[:2]
    assert start(path, "train").wait() == 0
    assert not (folder / "resume.safetensors").exists()
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert after[:2] == behind  # with their speeds: these epochs were not run again
    assert len(after) == 8
    undisturbed = make_config(run="undisturbed", backbones=ONE, train=recipe)
    pipeline.train(begin(undisturbed))
    same = undisturbed.run_path / "models/test_resnet/holdout/model.safetensors"
    assert file_sha256(same) != ""
    one, two = (load_checkpoint(p)[0].model.state_dict() for p in (folder / "model.safetensors", same))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_collapse_is_called_one(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives every image one class is warned of while it trains and when it is kept."""
    recipe = {"epochs": 3, "batch_size": 16, "lr": 1e-12, "balance": "none"}
    config = make_config(backbones={"test_vit": {"weights": "random"}}, train=recipe)
    monkeypatch.setattr(logging.getLogger("stacker"), "propagate", True)
    with caplog.at_level(logging.WARNING, "stacker"):
        pipeline.train(begin(config))
    (answer,) = {epoch["val_majority"] for epoch in epochs_of(config, "test_vit")}
    assert f"for 3 epochs every validation image has been given one class ({answer})" in caplog.text
    assert f"calls every validation image {answer}" in caplog.text


def test_an_unknown_optimizer_stops_before_anything_is_written(make_config: MakeConfig) -> None:
    """It is found when the run begins."""
    config = make_config(train={"optimizer": "adamv"})
    with pytest.raises(ConfigError, match="no optimizer 'adamv'"):
        begin(config)
    assert not config.run_path.exists()


def test_maps_are_of_the_model_that_is_kept(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the moving average where there is one; and a picture that fails costs no training."""
    run = begin(make_config(backbones=ONE, train={"epochs": 2, "batch_size": 16, "ema": 0.9}))
    file = run.model_file("test_resnet", "holdout")
    shown = []

    def draw(backbone: Backbone, *_: object) -> dict[str, Any]:
        if file.exists():
            raise MemoryError
        average = load_file(file.with_name("resume.safetensors"))
        state = backbone.model.state_dict()
        shown.append(all(torch.equal(average[f"ema/{name}"], state[name]) for name in state))
        return {}

    monkeypatch.setattr("stacker.training.jobs.draw_maps", draw)
    with pytest.raises(MemoryError):
        pipeline.train(run)
    assert shown == [True]
    assert all(job.is_done() for job in list_jobs(run))


def test_a_base_model_of_other_training_code_is_refused(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end with other weights today, and half of a run would not be like the other half."""
    (job, *_) = list_jobs(reopen(finished))
    assert job.is_done()
    monkeypatch.setattr("stacker.training.plan.TRAINING", 0)
    with pytest.raises(RunError, match="written by another version of stacker"):
        job.is_done()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "seed: was 0, is 5"),
        ({"train": {"epochs": 3, "batch_size": 16}}, "train.epochs: was 2, is 3"),
    ],
)
def test_a_base_model_of_another_recipe_is_refused(
    make_config: MakeConfig, change: Any, said: str
) -> None:
    """Copied into a run of other settings it is named, with what to do."""
    first, second = make_config(backbones=ONE), make_config(backbones=ONE, run="second", **change)
    pipeline.train(begin(first))
    run = begin(second)
    other = run.model_file("test_resnet", "holdout")
    other.parent.mkdir(parents=True)
    other.write_bytes((first.run_path / "models/test_resnet/holdout/model.safetensors").read_bytes())
    with pytest.raises(RunError, match=rf"delete it and run.*again:\n  .*{said}"):
        pipeline.train(run)


def test_rectangles_and_transformers_go_through_all_stages(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """A class-token transformer beside a network, on images that are not square, with one logit."""
    config = make_config(
        images={"size": [32, 64]},
        backbones={"test_vit": {"weights": "random"}, **ONE},
        train={"epochs": 1, "batch_size": 16, "loss": "bce", "trainable": 2, "unfreeze": {}},
        stack={"meta": ["logistic"], "bootstrap": 100},
    )
    metrics = pipeline.run_all(config)
    assert {"test_vit", "test_resnet"} <= metrics["test"].keys()
    assert set(metrics["localisation"]) == {"test_vit", "test_resnet"}
    shapes = {
        name: open_cache(config.run_path / "cache" / name / "holdout").read("maps").shape[1:]
        for name in config.backbones
    }
    assert shapes == {"test_vit": (2, 2, 4), "test_resnet": (2, 1, 2)}
    image = next(config.data.path.rglob("*.png"))
    run = reopen(config)
    (row,) = open_predictor(run, overlays=tmp_path / "out").stream([Input(image)])
    assert isinstance(row, Prediction)
    assert row.overlay is not None
    assert Path(row.overlay).exists()
    probe(reopen(config), 0.001)


def test_bce_of_more_than_two_classes_is_refused(make_config: MakeConfig) -> None:
    """When the run begins, with what to take instead."""
    config = make_config(data={"task": "subtype"}, train={"loss": "bce"}, folds={"group": "image"})
    with pytest.raises(ConfigError, match=r"bce is for two classes, found \d: .*entropy"):
        begin(config)
    assert not config.run_path.exists()


@pytest.mark.parametrize(
    ("backbone", "recipe", "reason"),
    [
        ("test_vit", {"trainable": 40}, "the recipe trains 40 stages and the model has"),
        (
            "test_vit",
            {"epochs": 5, "unfreeze": {2: 40}},
            "the recipe trains 40 stages and the model has",
        ),
        ("vgg11", {"drop_path": 0.1}, "vgg11: has no drop_path"),
        ("levit_128", {}, "its classifier is a tuple"),
    ],
)
def test_what_a_backbone_cannot_be_stops_before_any_job(
    make_config: MakeConfig, backbone: str, recipe: dict[str, Any], reason: str
) -> None:
    """The last of the list is looked at before the first is trained."""
    backbones = {**ONE, backbone: {"weights": "random", "train": recipe}}
    config = make_config(backbones=backbones)
    with pytest.raises(BackboneError, match=reason):
        pipeline.train(begin(config))
    assert not trained(config)
