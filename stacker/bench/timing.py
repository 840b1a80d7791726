"""Several ways to do the same, timed in turn, so that none of them has the machine's better minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from stacker.progress import track

Way = TypeVar("Way")


@dataclass(frozen=True)
class Timing:
    """How fast one way is: images per second, the median of the repeats, and all of them."""

    way: str
    images_per_second: float
    repeats: tuple[float, ...]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return what a run takes, the device's work included."""
    _wait_for(device)
    started = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    ways: Mapping[Way, Callable[[], float]], repeats: int, warm: Container[Way] = ()
) -> dict[Way, list[float]]:
    """Call all ways in turn, `repeats` times after a round to warm up; return what they measured.

    Ways that bring their own warm-up sit out the first round.
    """
    measured: dict[Way, list[float]] = {way: [] for way in ways}
    for number in track(range(repeats + 1), "bench", repeats + 1):
        for way, measure in ways.items():
            if number > 0:
                measured[way].append(measure())
            elif way not in warm:
                measure()
    return measured


def time_rates(
    ways: Mapping[str, Callable[[], float]], repeats: int, warm: Container[str] = ()
) -> list[Timing]:
    """Return how fast all ways are that measure images per second."""
    return [
        Timing(way, round(statistics.median(rates), 1), tuple(round(rate, 1) for rate in rates))
        for way, rates in in_turn(ways, repeats, warm).items()
    ]
