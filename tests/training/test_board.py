"""What TensorBoard shows, by its own reader: scores in groups, the recipe, and a few maps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine
from stacker.config.root import Config
from stacker.run import open_run
from stacker.training.board import SHOWN, Board, draw_maps
from stacker.training.plan import Job, list_jobs

Events = Any


def job_of(config: Config) -> Job:
    """Return the job of the small run's ResNet."""
    (job,) = list_jobs(open_run(config.run_path), ["test_resnet"])
    return job


@pytest.fixture
def events(finished: Config) -> Events:
    """Return the events of the ResNet that the finished run has trained."""
    read = EventAccumulator(
        str(finished.run_path / "models/test_resnet/holdout/tensorboard"), {"images": 0, "scalars": 0}
    )
    read.Reload()
    return read


def metrics(config: Config) -> list[dict[str, Any]]:
    """Return the epochs that are written down beside the events."""
    path = config.run_path / "models/test_resnet/holdout/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_in_groups_by_epoch(events: Events, finished: Config) -> None:
    """Training and validation loss share a chart; every epoch is there once, with its value."""
    tags = {tag for tag in events.Tags()["scalars"] if not tag.startswith("best/")}
    assert {"loss/train", "loss/val", "auc/val", "accuracy/val", "balanced_accuracy/val"} <= tags
    assert all("/" in tag for tag in tags)
    for tag, name in {"loss/train": "train_loss", "auc/val": "val_auc"}.items():
        seen = [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        assert [(epoch["epoch"], epoch[name]) for epoch in metrics(finished)] == seen


def test_the_learning_rate_is_there_by_step(events: Events, finished: Config) -> None:
    """It rises and falls within epochs, which a value per epoch would hide."""
    rates = [(event.step, event.value) for event in events.Scalars("learning_rate/by_step")]
    steps = [step for step, _ in rates]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert len(steps) > len(metrics(finished))
    job = job_of(finished)
    assert max(value for _, value in rates) == pytest.approx(job.recipe.lr)


def test_the_recipe_stands_beside_the_best_scores(events: Events, finished: Config) -> None:
    """As TensorBoard's own table of hyperparameters, in the same folder."""
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(content)
    assert started.version == metadata.PLUGIN_DATA_VERSION
    settings = started.session_start_info.hparams
    assert settings["backbone"].string_value == "test_resnet"
    assert settings["fold"].string_value == "holdout"
    assert settings["lr"].number_value == job_of(finished).recipe.lr
    assert settings["optimizer"].string_value == "adamw"
    assert settings["augment.flips"].number_value == 1
    assert settings["patience"].string_value == "None"
    (best,) = events.Scalars("best/auc")
    assert best.value == pytest.approx(metrics(finished)[best.step - 1]["val_auc"])
    folder = finished.run_path / "models/test_resnet/holdout/tensorboard"
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_a_few_validation_images_are_shown_with_their_map(events: Events, finished: Config) -> None:
    """Of both classes, of the inner validation part alone, after the first epoch and the best one."""
    job, tags = job_of(finished), events.Tags()["images"]
    manifest = job.run.manifest
    _, validation = job.parts(job.run.pixels())
    label_of = {
        manifest.images[row].id.replace("/", "_"): manifest.labels[row] for row in validation.rows
    }
    shown = [label_of[tag.removeprefix("map_of_malignant/")] for tag in tags]
    assert len(shown) == min(SHOWN, len(validation.rows))
    assert set(shown) == {0, 1}
    (best,) = events.Scalars("best/epoch")
    for tag in tags:
        assert {event.step for event in events.Images(tag)} == {1, best.step}
        picture = Picture.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        pixels = np.asarray(picture)
        assert pixels.shape == (32, 64, 3)
        left, right = pixels[:, :32], pixels[:, 32:]
        row = next(r for r in validation.rows if manifest.images[r].id.replace("/", "_") in tag)
        assert np.array_equal(left, validation.pixels[row])
        assert not np.array_equal(left, right)


def test_drawing_maps_draws_no_random_numbers(finished: Config) -> None:
    """A training with pictures ends with the same weights as one without."""
    job = job_of(finished)
    backbone, _ = load_checkpoint(job.path)
    _, validation = job.parts(job.run.pixels())
    before, weights = torch.get_rng_state(), backbone.model.state_dict()
    kept = {name: tensor.clone() for name, tensor in weights.items()}
    pictures = draw_maps(backbone, validation, job.run.manifest, Machine.of(finished))
    assert len(pictures) == min(SHOWN, len(validation.rows))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_events_of_a_training_that_begins_again_are_new(finished: Config, tmp_path: Path) -> None:
    """Old ones would be drawn over the new ones."""
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "events.out.tfevents.old").touch()
    board = Board(folder)
    board.add(metrics(finished)[0])
    board.close()
    assert [path.name for path in folder.iterdir() if "old" in path.name] == []
    read = EventAccumulator(str(folder))
    read.Reload()
    assert len(read.Scalars("loss/val")) == 1
