"""The benchmarks measure what they say; how fast anything is, they leave to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker import bench
from tests.test_cli import call


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.0)


def test_loading_is_timed_four_ways(write_config: Callable[..., Path]) -> None:
    """One thread, all threads, torch's DataLoader and the store, each as often as asked for."""
    done = call("bench", "images", write_config(), "--images", "20", "--repeats", "2", "--json")
    timings = json.loads(done.stdout)
    assert [timing["way"].split(",")[0] for timing in timings] == [
        "decode",
        "decode",
        "DataLoader",
        "store",
    ]
    assert all(len(timing["repeats"]) == 2 and timing["images_per_second"] > 0 for timing in timings)
    table = call("bench", "images", write_config(), "--images", "20", "--repeats", "1").stdout
    assert "the last is faster by" in table


def test_a_way_that_loses_images_is_a_bug() -> None:
    """A rate of images that were never delivered would be a lie."""
    with pytest.raises(AssertionError, match="delivered 3 of 4 images"):
        bench._time("lossy", lambda: iter([[1, 2], [3]]), 4, 1)  # noqa: SLF001
