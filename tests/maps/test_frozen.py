"""Backbones that nobody trains: a feature source of their own, and no way around the split."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from stacker import pipeline
from stacker.caches.reader import open_cache
from stacker.config.root import Config
from stacker.errors import LeakError
from stacker.files import file_sha256
from stacker.prediction.inputs import Input
from stacker.prediction.predictor import open_predictor
from stacker.prediction.rows import Prediction
from stacker.run import reopen
from stacker.stacking.learners.matrix import whole
from stacker.stacking.saved import stack_facts
from stacker.training.begin import begin
from tests.conftest import MakeConfig, tables_of

FROZEN = {"frozen": {"test_vit": {"weights": "random"}, "test_resnet": {"weights": "random"}}}


def test_frozen_backbones_are_a_feature_source(make_config: MakeConfig) -> None:
    """Under crossfit their embeddings stand in one basis; new images get them too."""
    config = make_config(
        folds={"protocol": "crossfit", "k": 2},
        backbones={"test_resnet": {"weights": "random"}},
        train={"epochs": 1},
        stack={"features": ["logits", "frozen"], "meta": ["logistic"]},
        **FROZEN,
    )
    metrics = pipeline.run_all(config)
    assert "logistic" in metrics["test"]
    run = reopen(config)
    cache = open_cache(run.cache_folder("test_vit", "frozen"))
    assert set(cache.shapes) == {"features"}
    assert cache.provenance.training_cases == ()
    assert len(cache.rows) == len(run.manifest.images)
    tables = tables_of(run, ["logits", "frozen"])
    columns = list(tables.development.columns)
    first = columns.index("test_vit/frozen/0000")
    place = {image: row for row, image in enumerate(cache.rows.image_id)}
    expected = cache.read("features")[[place[image] for image in tables.development.rows.image_id]]
    width = expected.shape[1]
    np.testing.assert_array_equal(
        whole(tables.development, 1, "a test")[:, first : first + width], expected
    )
    assert "test_resnet/frozen/0000" in columns
    assert "test_resnet/frozen" in stack_facts(run, "logistic")["checkpoints"]
    image = run.manifest.images[run.manifest.rows_of("case", run.folds.test)[0]]
    (row,) = open_predictor(run).stream([Input(Path(image.path))])
    assert isinstance(row, Prediction)
    with (run.path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        who = (image.id, "logistic")
        (stored,) = (r for r in csv.DictReader(file) if (r["image_id"], r["model"]) == who)
    assert row.probabilities["malignant"] == pytest.approx(float(stored["p_malignant"]), abs=0.02)
    with np.load(run.stack_folder("logistic") / "centres.npz") as centres:
        assert set(centres) == {"fold0", "fold1"}
        for of_fold in centres.values():  # folds differ in what they trained, and in nothing else
            assert {c for c, centre in zip(columns, of_fold, strict=True) if centre} == {
                "test_resnet/logits/malignant-benign"
            }


def test_weights_that_have_seen_a_case_are_refused(finished: Config, make_config: MakeConfig) -> None:
    """A base model is no frozen backbone, and nothing to start from, where its cases are."""
    path = finished.run_path / "models" / "test_resnet" / "holdout" / "model.safetensors"
    seen = {"test_resnet": {"weights": str(path)}}
    config = Config.model_validate({**finished.model_dump(), "frozen": seen})
    with pytest.raises(LeakError, match=r"was trained on \d+ cases of this run, e\.g\. "):
        pipeline.cache(reopen(config))
    with pytest.raises(LeakError, match="no score of a model that starts from it could be trusted"):
        begin(make_config(run="another", backbones=seen))


def test_frozen_weights_may_change(make_config: MakeConfig) -> None:
    """Other weights are another copy and another cache; the base models stay."""
    config = make_config(backbones={"test_resnet": {"weights": "random"}}, train={"epochs": 1}, **FROZEN)
    pipeline.train(begin(config))
    pipeline.cache(reopen(config))
    path = config.run_path / "models" / "test_vit" / "frozen" / "model.safetensors"
    cache = config.run_path / "cache" / "test_vit" / "frozen" / "part-00000.h5"
    before = file_sha256(path), file_sha256(cache)
    frozen = {"test_vit": config.frozen["test_vit"].model_copy(update={"std": (0.2, 0.2, 0.2)})}
    pipeline.cache(reopen(config.model_copy(update={"frozen": frozen})))
    assert file_sha256(path) != before[0]
    assert file_sha256(cache) != before[1]
