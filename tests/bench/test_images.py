"""Loading is timed in the ways that it says; how fast any is, is left to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stacker.bench import images as bench
from stacker.bench.images import STORE
from stacker.config.root import Config
from tests.commands import call


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.0)


def test_loading_is_timed_four_ways(write_config: Callable[..., Path]) -> None:
    """One thread, all threads, torch's DataLoader and the store, each as often as asked for."""
    options = ("--images", "20", "--repeats", "2")
    bench = json.loads(call("bench", "images", write_config(), *options, "--json").stdout)
    timings = bench["timings"]
    ways = [timing["way"].split(",")[0] for timing in timings]
    assert ways == ["decode", "decode", "DataLoader", STORE]
    assert all(len(timing["repeats"]) == 2 and timing["images_per_second"] > 0 for timing in timings)
    assert all(timing["rough"] and timing["images"] == 20 for timing in timings)
    done = call("bench", "images", write_config(), *options)
    assert "packed store is faster by" in done.stdout
    assert "20 images may fit into the processor's cache" in done.stdout.splitlines()[-1]
    assert "takes about " in done.stderr
    assert ": 20 images, 2 repeats" in done.stderr
    assert f"repeat 2 of 2: {STORE}" in done.stderr


def test_a_way_that_loses_images_is_a_bug() -> None:
    """A rate of images that were never delivered would be a lie."""
    with pytest.raises(AssertionError, match="lossy delivered 3 of 4 images"):
        bench.rate_of("lossy", lambda: [[1, 2], [3]], 4)


def test_no_more_images_are_planned_than_there_are(make_config: Callable[..., Config]) -> None:
    """The default is cut to the 72 of the data set."""
    assert bench.bench_images(make_config(), repeats=1)["images"] == 72
