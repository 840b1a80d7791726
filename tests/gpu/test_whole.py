"""A whole run on a GPU, and the same run asked on the CPU; meta-learners on both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stacker import pipeline
from stacker.config.root import Config
from stacker.prediction.inputs import Input
from stacker.prediction.predictor import open_predictor
from stacker.prediction.rows import Prediction
from stacker.run import Run, open_run
from stacker.stacking.learners.registry import META, build
from tests.conftest import MakeConfig
from tests.learning import CONFIG, standardised, table


def shares(run: Run, device: str, meta: str) -> list[float]:
    """Return the probabilities of a run's first images as a device gives them."""
    config = run.config.model_copy(update={"device": device})
    predictor = open_predictor(replace(run, config=config), meta)
    images = [Input(Path(image.path), "") for image in run.manifest.images[:6]]
    rows = predictor.stream(images)
    return [row.probabilities["malignant"] for row in rows if isinstance(row, Prediction)]


@pytest.fixture
def run(make_config: MakeConfig, finished: Config, device: torch.device) -> Run:
    """Return a finished run that was made on the device."""
    if device.type == "cpu":
        return open_run(finished.run_path)
    config = make_config(device=str(device), precision="fp32")
    pipeline.run_all(config)
    return open_run(config.run_path)


def test_new_images_are_predicted_on_either_device(run: Run, device: torch.device) -> None:
    """By every meta-learner, with the same probabilities."""
    for meta in ("logistic", "mlp", "xgboost"):
        there, here = shares(run, str(device), meta), shares(run, "cpu", meta)
        assert len(there) == len(here) == 6
        assert there == pytest.approx(here, abs=2e-3)


def test_new_images_are_seen_in_the_precision_of_the_stack(finished: Config) -> None:
    """Kernels are set for the precision that the stack was fitted in, whatever the config says now."""
    run = open_run(finished.run_path)
    for precision in ("fp32", "bf16"):
        config = run.config.model_copy(update={"precision": precision})
        predictor = open_predictor(replace(run, config=config), "logistic")
        fitted_in = predictor.stack.facts["precision"]
        assert predictor.ensemble.machine.arithmetic == fitted_in
        assert torch.backends.cudnn.allow_tf32 == (fitted_in != "float32")


@pytest.mark.parametrize("name", ["xgboost", "mlp", "convnet"])
def test_meta_learners_learn_as_much(device: torch.device, name: str) -> None:
    """Fitted on the device and asked on the CPU, they tell unseen cases apart as well as the CPU's."""
    rows = table(seed=1)
    rows = standardised(rows) if META[name].scaled else rows
    learnt, unseen = rows.cases < 40, rows.cases >= 40
    right = []
    for where in ("cpu", str(device)):
        learner = build(name, CONFIG, 0, rows.columns, where)
        learner.fit(rows.values[learnt], rows.labels[learnt], rows.cases[learnt])
        answers = learner.predict_proba(rows.values[unseen])
        assert np.isfinite(answers).all()
        right.append((answers.argmax(axis=1) == rows.labels[unseen]).mean())
    assert min(right) > 0.8
    assert abs(right[0] - right[1]) < 0.1
