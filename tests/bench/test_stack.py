"""The bench of stage three measures what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacker.bench import stack as bench
from stacker.errors import StackError
from tests.commands import call


def test_all_ways_are_measured(tmp_path: Path) -> None:
    """Each way fits in its own process and answers nearly the same; the folder is empty afterwards."""
    options = ("--rows", 400, "--columns", 20, "--rounds", 3, "--folder", tmp_path / "bench", "--json")
    measured = json.loads(call("bench", "stack", *map(str, options)).stdout)
    costs = [bench.FitCost(**cost) for cost in measured["costs"]]
    assert [cost.way for cost in costs] == [bench.OURS, *bench.PEERS, bench.MLP]
    assert all(cost.seconds > 0 and 0.05 < cost.peak_gib < 4 for cost in costs)
    assert all(0.3 < cost.loss < 1 for cost in costs)
    assert measured["ratio"] == bench.ratio_of(costs)
    assert measured["verdict"] == bench.verdict(costs, measured["ratio"])
    ours, *peers = measured["apart"]
    assert ours["mean"] < 0.05
    assert [gap["ways"][0] for gap in (ours, *peers)] == [bench.OURS, bench.CLASSIFIER, bench.PLAIN]
    assert all(gap["maximum"] < 1e-6 for gap in peers)
    assert list((tmp_path / "bench").iterdir()) == []


def test_ours_can_be_measured_alone(tmp_path: Path) -> None:
    """Where no array fits there is a table and a sentence, and no ratio."""
    options = ("--rows", 400, "--columns", 20, "--rounds", 3, "--epochs", 0, "--no-peers")
    shown = call("bench", "stack", *map(str, options), "--folder", str(tmp_path)).stdout
    assert "400 rows x 20 columns" in shown
    assert bench.OURS in shown
    assert not any(way in shown for way in (*bench.PEERS, bench.MLP))
    assert shown.splitlines()[-1].endswith(" GiB at the peak; one fit, rough")


def test_it_cleans_up_after_a_child_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that fails is told, and the files are gone."""

    def fail(way: str, *_: Any) -> None:
        raise StackError(f"{way} was killed")

    monkeypatch.setattr(bench, "in_child", fail)
    with pytest.raises(StackError, match="was killed"):
        bench.bench_stack(tmp_path, rows=100, columns=7, rounds=1, peers=False)
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_read_as_a_runs_is(tmp_path: Path) -> None:
    """The maps of three backbones lie side by side, and some rows are read as they would be of all."""
    bench.write_caches(tmp_path, rows=1500, columns=22)
    table = bench.open_table(tmp_path)
    assert table.shape == (1500, 22)
    assert table.columns[0] == "densenet121/both/benign/r0c0"
    assert table.columns[-1] == "vgg16/both/malignant/r0c2"
    assert set(table.rows.label.tolist()) == {0, 1}
    values = table.read(0, 1500)
    some = np.array([3, 4, 70, 1023, 1024, 1499])
    np.testing.assert_array_equal(table.take(some).read(1, 6), values[some[1:]])
    chosen = table.rows.label == 1
    np.testing.assert_array_equal(table.take(chosen).read(0, 5), values[chosen][:5])
    assert table.read(5, 5).shape == (0, 22)


def test_the_ratio_is_to_the_fastest_fit_of_an_array() -> None:
    """The memory, to the least of these; without them there are our own figures alone."""
    ours = bench.FitCost(bench.OURS, 0, 12.3, 1.0, 3.5, 0.6)
    peers = [bench.FitCost(way, 1, 10.0 + i, 1.0, 5.0 - i, 0.6) for i, way in enumerate(bench.PEERS)]
    costs = [ours, *peers, bench.FitCost(bench.MLP, 0, 1.0, 1.0, 1.0, 0.6)]
    assert bench.ratio_of(costs) == 1.23
    said = (
        "1.23x the time of the fastest fit of an array, 3.50 GiB at the peak instead of 3.00; one fit "
        "of each, rough"
    )
    assert bench.verdict(costs, 1.23) == said
    assert bench.ratio_of([ours]) is None
    assert bench.verdict([ours], None) == "12.3 s, 3.50 GiB at the peak; one fit, rough"


def test_a_fit_of_boosted_trees_has_no_torch_beside_it() -> None:
    """Its memory would count as that of the fit."""
    code = "import sys, stacker.bench.stack; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_are_planned_from_a_fit_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With little time there are fewer; each fit is logged when it has ended."""

    def fit(way: str, _: Path, rows: int, *__: Any) -> tuple[bench.FitCost, np.ndarray]:
        return bench.FitCost(way, 0, rows / 100, 100.0, 1.0, 0.5), np.zeros((1, 2))

    monkeypatch.setattr(bench, "in_child", fit)
    with caplog.at_level(logging.INFO, "stacker"):
        done = bench.bench_stack(tmp_path, columns=6, epochs=0, peers=False, minutes=1.9)
    assert done["rows"] == 10_000
    assert "not enough time for the full 20000 rows and 1 repeat (--minutes" in caplog.messages[1]
    assert caplog.messages[2] == "stacker xgboost: fitted in 100.00 s"
