"""Loading is timed in the ways that it says; how fast any is, is left to the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stacker.bench import images as bench
from stacker.bench.timing import Timing, in_turn, time_rates
from tests.commands import call


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.0)


def test_loading_is_timed_four_ways(write_config: Callable[..., Path]) -> None:
    """One thread, all threads, torch's DataLoader and the store, each as often as asked for."""
    options = ("--images", "20", "--repeats", "2")
    timings = json.loads(call("bench", "images", write_config(), *options, "--json").stdout)
    ways = [timing["way"].split(",")[0] for timing in timings]
    assert ways == ["decode", "decode", "DataLoader", "store"]
    assert all(len(timing["repeats"]) == 2 and timing["images_per_second"] > 0 for timing in timings)
    assert "store is faster by" in call("bench", "images", write_config(), *options).stdout


def test_a_way_that_loses_images_is_a_bug() -> None:
    """A rate of images that were never delivered would be a lie."""
    with pytest.raises(AssertionError, match="lossy delivered 3 of 4 images"):
        bench._rate("lossy", lambda: [[1, 2], [3]], 4)  # noqa: SLF001


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    """Only a way that brings its own warm-up sits that round out."""
    calls: list[str] = []

    def measure(way: str) -> float:
        calls.append(way)
        return float(len(calls))

    ways = {way: partial(measure, way) for way in ("a", "b", "warm")}
    assert in_turn(ways, 2, warm=["warm"]) == {"a": [3, 6], "b": [4, 7], "warm": [5, 8]}
    assert calls == ["a", "b", *("a", "b", "warm") * 2]


def test_a_rate_is_the_median_of_its_repeats() -> None:
    """Rounded, as are the repeats that stand beside it."""
    rates = iter([1.0, 9.0, 2.04, 3.16])
    assert time_rates({"way": lambda: next(rates)}, 3) == [Timing("way", 3.2, (9.0, 2.0, 3.2))]
