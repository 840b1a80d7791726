"""Frozen features and a regression, on the run's own split, beside the run's base models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stacker.comparison.probe import probe
from stacker.config.root import Config
from stacker.run import reopen
from tests.commands import call, expect_refusal


def test_probes_stand_beside_the_cached_base_models(finished: Config) -> None:
    """Both are scored on the same held-out and test images, and their difference is paired."""
    found = probe(reopen(finished), 0.001)
    names = ["test_resnet, frozen", "test_efficientnet, frozen", "mean, frozen"]
    names += ["test_resnet", "test_efficientnet"]
    assert list(found["development"]) == list(found["test"]) == names
    sizes = {scores["image"]["n"] for scores in found["development"].values()}
    assert len(sizes) == 1
    pairs = {(row["first"], row["second"]) for row in found["differences"]}
    assert pairs == {(name, f"{name}, frozen") for name in names[3:]}
    own = found["development"]["test_resnet"]["image"]["auc"]
    frozen = found["development"]["test_resnet, frozen"]["image"]["auc"]
    (gain,) = (
        row["difference"]
        for row in found["differences"]
        if (row["first"], row["score"]) == ("test_resnet", "auc")
    )
    assert gain == pytest.approx(own - frozen, abs=2e-4)
    metrics = json.loads((finished.run_path / "metrics.json").read_text())
    for part in ("development", "test"):  # the same model has the same scores, whoever tells them
        for name in names[3:]:
            assert found[part][name] == metrics[part][name]
    assert own == metrics["development"]["test_resnet"]["image"]["auc"]
    assert (finished.run_path / "probe.json").exists()


def test_without_base_models_the_probes_stand_alone(write_config: Callable[..., Path]) -> None:
    """A probe costs minutes: it may come before any training."""
    done = call("probe", write_config(), "--json")
    found = json.loads(done.stdout)
    assert set(found["development"]) == {
        "test_resnet, frozen",
        "test_efficientnet, frozen",
        "mean, frozen",
    }
    assert found["differences"] == []
    table = call("probe", write_config(), "--C", "0.1").stdout
    assert "Development cases, out of fold" in table
    assert "Test cases" in table
    expect_refusal(call("probe", write_config(), "--C", "0"), 2, "--C")


def test_a_fold_is_fitted_on_its_own_training_images_alone(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither held-out nor test images reach a regression."""
    run = reopen(finished)
    seen: list[np.ndarray] = []
    fit = LogisticRegression.fit

    def spy(self: Any, X: np.ndarray, y: np.ndarray, **kwargs: Any) -> Any:
        seen.append(y)
        return fit(self, X, y, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", spy)
    probe(run, 0.001)
    (fold,) = run.folds.folds
    rows = run.manifest.rows_of("case", (*fold.train, *fold.validation))
    assert [list(labels) for labels in seen] == [list(run.manifest.labels[rows])] * 2
