"""The bench of stage three measures what it says, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stacker.bench import stack as bench
from stacker.bench.table import open_table, write_caches
from stacker.errors import StackError


def test_all_ways_are_measured(tmp_path: Path) -> None:
    """Each way fits in its own process and answers nearly the same; the folder is empty afterwards."""
    found = bench.bench_stack(tmp_path, rows=400, columns=20, rounds=3)
    assert [cost.way for cost in found.costs] == [
        *(bench.OURS, bench.CLASSIFIER, bench.QUANTILE, bench.PLAIN, bench.MLP)
    ]
    assert all(cost.seconds > 0 and 0.05 < cost.peak_gib < 4 for cost in found.costs)
    assert all(0.3 < cost.loss < 1 for cost in found.costs)
    assert found.ratio == bench.ratio_of(found.costs)
    assert "x the time of the fastest fit of an array" in found.verdict
    ours, *peers = found.apart
    assert ours.mean < 0.05
    assert all(each.maximum < 1e-6 for each in peers)
    assert list(tmp_path.iterdir()) == []


def test_it_cleans_up_after_a_child_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that fails is told, and the files are gone."""

    def fail(task: bench.Task) -> bench.Answer:
        raise StackError(f"{task.way} was killed")

    monkeypatch.setattr(bench, "_in_child", fail)
    with pytest.raises(StackError, match="was killed"):
        bench.bench_stack(tmp_path, rows=100, columns=7, rounds=1, peers=False)
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_read_as_a_runs_is(tmp_path: Path) -> None:
    """The maps of three backbones lie side by side, and some rows are read as they would be of all."""
    write_caches(tmp_path, rows=1500, columns=22)
    table = open_table(tmp_path)
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


def test_a_verdict_without_peers_is_of_ours() -> None:
    """Where no array was fitted there is no ratio."""
    costs = [bench.FitCost(bench.OURS, 0, 12.3, 1.0, 3.5, 0.6)]
    assert bench.ratio_of(costs) is None
    assert bench.verdict(costs, None) == "12.3 s and 3.50 GiB at most"
