"""What all benches share: a time limit, a plan that fits into it, ways timed in turn, and ratios.

Ways to do the same take turns, so that none of them has the machine's better minute. A plan is made
from what a warm-up took: it is said before anything is measured, with what there is not enough time
for. A figure from few repeats or less than a second of work is called rough.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeVar

from stacker.errors import plural
from stacker.progress import bar, duration

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Way = TypeVar("Way")
MINUTES = 2.0  # that a bench takes unless it is told otherwise
REPEATS = (3, 2, 1)  # best first
SLOW = 1.0  # seconds, beside which what the first run of anything takes is little
ENOUGH_REPEATS, ENOUGH_SECONDS = 3, 1.0
ROUGH = f"rough: fewer than {ENOUGH_REPEATS} repeats, or less than a second of work"


class Budget:
    """The minutes that a bench may take, counted from its beginning."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.started = time.perf_counter()

    @classmethod
    def of(cls, bench: str, minutes: float) -> Budget:
        """Begin a bench, and say so."""
        log.info("bench %s: about %g minutes; the estimate follows a warm-up", bench, minutes)
        return cls(minutes)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return 60 * self.minutes - (time.perf_counter() - self.started)


@dataclass(frozen=True)
class Plan:
    """How many images are measured how often, and the seconds that this will take."""

    images: int
    repeats: int
    seconds: float


def plan(
    cost: Callable[[int, int], float],
    budget: Budget,
    images: Sequence[int],
    repeats: Sequence[int],
    noun: str = "image",
) -> Plan:
    """Return the first plan that fits into the budget, else the smallest; log what it will take.

    `cost` estimates the seconds of so many images and repeats; both are listed best first.
    """
    options = [Plan(n, r, cost(n, r)) for r, n in product(repeats, images)]
    chosen = next((option for option in options if option.seconds <= budget.left), options[-1])
    said = describe_plan(chosen, options[0], budget.minutes, noun)
    late = " (more than there is time for: the last may be left out)"
    log.info("%s%s", said, late if chosen.seconds > budget.left else "")
    return chosen


def describe_plan(chosen: Plan, whole: Plan, minutes: float, noun: str) -> str:
    """Say how long a plan takes, and what was left out to stay within the minutes."""
    size = f"{plural(chosen.images, noun)}, {plural(chosen.repeats, 'repeat')}"
    text = f"takes about {duration(chosen.seconds)}: {size}"
    if chosen == whole:
        return text
    needed = math.ceil(minutes + (whole.seconds - chosen.seconds) / 60)
    return (
        f"{text}; not enough time for the full {plural(whole.images, noun)} and "
        f"{plural(whole.repeats, 'repeat')} (--minutes {needed})"
    )


@dataclass(frozen=True)
class Timing:
    """How fast one way is: images per second, the median of the repeats, and all of them."""

    way: str
    images_per_second: float
    repeats: tuple[float, ...]
    images: int
    rough: bool


@dataclass(frozen=True)
class Ratio:
    """One way's figure as a multiple of another's: of the medians, and its range over the repeats."""

    value: float
    low: float
    high: float
    rough: bool

    def __str__(self) -> str:
        """Return the ratio with its range and its caution, for a table."""
        return f"{self._figure}{', rough' if self.rough else ''}"

    def times(self, what: str) -> str:
        """Return the ratio as a part of a sentence."""
        return f"{self._figure} {what}{' (rough)' if self.rough else ''}"

    @property
    def _figure(self) -> str:
        spread = f" ({digits(self.low)}-{digits(self.high)})" if self.low < self.high else ""
        return f"{self.value:.{1 if self.value >= 10 else 2}f}x{spread}"


def ratio(above: Sequence[float], below: Sequence[float], rough: bool) -> Ratio:
    """Compare two ways that were measured in the same rounds; one may have been stopped earlier."""
    each = [one / other for one, other in zip(above, below, strict=False)]
    value = statistics.median(above) / statistics.median(below)
    return Ratio(round(value, 3), round(min(each), 3), round(max(each), 3), rough)


def is_rough(repeats: int, seconds: float) -> bool:
    """Say whether so many repeats and seconds of work in all are too few to rely on."""
    return repeats < ENOUGH_REPEATS or seconds < ENOUGH_SECONDS


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return what a run takes, the device's work included."""
    wait_for(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - started


def second_time(run: Callable[[], object], device: torch.device) -> float:
    """Return what a run takes behind a warm-up; on a CPU a slow one is not run again."""
    first = seconds(run, device)
    return first if device.type == "cpu" and first > SLOW else min(first, seconds(run, device))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        import torch  # here, as a fit of boosted trees is measured in a process without it

        torch.cuda.synchronize(device)


def in_turn(
    ways: Mapping[Way, Callable[[], float]],
    repeats: int,
    limit: float = math.inf,
    label: str = "bench",
    hear: Callable[[Way, int, float], None] = lambda *_: None,
) -> dict[Way, list[float]]:
    """Call all ways in turn, so many times; `hear` is told each figure when it is there.

    No repeat begins that would not end within `limit` seconds, as the one before took; the first does.
    """
    measured: dict[Way, list[float]] = {way: [] for way in ways}
    started = time.perf_counter()
    with bar(label, repeats * len(ways)) as advance:
        for number in range(1, repeats + 1):
            passed = time.perf_counter() - started
            if number > 1 and passed * number / (number - 1) > limit:
                done = f"{number - 1} of {plural(repeats, 'repeat')}"
                log.info("%s: stopped after %s, as this took longer than estimated", label, done)
                break
            for way, measure in ways.items():
                advance(0, f"{label}: {way}, repeat {number} of {repeats}")
                measured[way].append(measure())
                hear(way, number, measured[way][-1])
                advance(1)
    return measured


def time_rates(
    ways: Mapping[str, Callable[[], float]],
    images: int,
    repeats: int,
    limit: float = math.inf,
    least: float = 0.0,
) -> list[Timing]:
    """Return how fast all ways are that measure images per second; log each figure at once.

    Each was at work for `least` seconds at least.
    """

    def hear(way: str, number: int, rate: float) -> None:
        log.info("repeat %d of %d: %s, %s images/s", number, repeats, way, digits(rate))

    measured = in_turn(ways, repeats, limit, "bench", hear)
    return [timing_of(way, images, rates, least) for way, rates in measured.items()]


def timing_of(way: str, images: int, rates: Sequence[float], least: float = 0.0) -> Timing:
    """Return a way's timing from the images per second of its repeats."""
    rounded = tuple(round(rate, 1) for rate in rates)
    rough = is_rough(len(rates), sum(max(least, images / rate) for rate in rates))
    return Timing(way, round(statistics.median(rates), 1), rounded, images, rough)


def digits(value: float) -> str:
    """Return a number with three digits before or behind the point, or all before it."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
