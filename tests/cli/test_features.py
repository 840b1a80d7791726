"""The command features: the table in files, and what a stack relies on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stacker.run import open_run
from stacker.stacking.feature_table import table
from tests.commands import call, expect_refusal


@pytest.fixture
def run_path(finished_artifacts: Path) -> Path:
    """Return the folder of a finished run. Do not write into it."""
    return finished_artifacts / "small"


def test_the_table_is_written(run_path: Path, tmp_path: Path) -> None:
    """Of the blocks that are named, by commas or one by one, in every form that is asked for."""
    files = ("--csv", tmp_path / "t.csv", "--npz", tmp_path / "t.npz")
    expected = table(open_run(run_path), ["map_stats", "logits"])
    for options in (
        ("--features", "map_stats,logits"),
        ("--features", "map_stats", "--features", "logits"),
    ):
        done = call("features", run_path, *options, *files)
        assert done.exit_code == 0
        assert f"t.csv: {expected!r}" in done.stdout
        with np.load(tmp_path / "t.npz") as stored:
            np.testing.assert_array_equal(stored["X"], expected.X)
            assert stored["columns"].tolist() == list(expected.columns)
    assert (tmp_path / "t.csv").read_text().startswith("image,case,fold,label,group,")


def test_blocks_are_shown_by_their_share(run_path: Path) -> None:
    """As a table, or as JSON with the same numbers."""
    shown = call("features", run_path, "--importance", "xgboost")
    assert shown.exit_code == 0
    assert "gain share" in shown.stdout
    assert "test_resnet" in shown.stdout
    told = json.loads(call("features", run_path, "--importance", "xgboost", "--json").stdout)
    assert told["kind"] == "gain share"
    assert sum(block["of_columns"] for block in told["blocks"]) == pytest.approx(1)


def test_what_cannot_be_done_is_said(run_path: Path, tmp_path: Path) -> None:
    """Nothing asked for, an unknown block, a meta-learner that tells nothing or is not fitted."""
    expect_refusal(call("features", run_path), 2, "--csv, --npz or --parquet PATH, or --importance META")
    wrong = call("features", run_path, "--features", "logit", "--csv", tmp_path / "t.csv")
    expect_refusal(wrong, 2, "did you mean 'logits'")
    expect_refusal(call("features", run_path, "--importance", "mlp"), 1, "has no importances by column")
    svm = call("features", run_path, "--importance", "svm")
    expect_refusal(svm, 1, "run 'stacker stack CONFIG --meta svm' first")
