"""Plans fit into their time, ways take turns, and figures carry how much they rest on."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from stacker.bench.timing import (
    Budget,
    Plan,
    Ratio,
    Timing,
    describe_plan,
    in_turn,
    is_rough,
    plan,
    ratio,
    time_rates,
)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(10, (64, 3)), (2, (32, 3)), (1, (16, 3)), (0.5, (16, 1)), (0.01, (16, 1))],
)
def test_the_best_plan_that_fits_is_taken(minutes: float, expected: tuple[int, int]) -> None:
    """Fewer images come before fewer repeats; the least is done in any case."""
    chosen = plan(lambda n, r: 1.0 * n * r, Budget(minutes), (64, 32, 16), (3, 2, 1))
    assert (chosen.images, chosen.repeats) == expected


def test_an_estimate_is_said_with_what_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """And with the minutes that all of it would take."""
    with caplog.at_level(logging.INFO, "stacker"):
        plan(lambda n, r: 1.0 * n * r, Budget(2), (64, 32), (3, 2, 1))
    said = "takes about 96 seconds: 32 images, 3 repeats; not enough time for the full 64 images and"
    assert caplog.messages == [f"{said} 3 repeats (--minutes 4)"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "stacker"):
        plan(lambda n, r: 1.0 * n * r, Budget(0.1), (64,), (1,))
    late = "(more than there is time for: the last may be left out)"
    assert caplog.messages == [f"takes about 64 seconds: 64 images, 1 repeat {late}"]
    whole = Plan(64, 3, 300)
    assert describe_plan(whole, whole, 9, "row") == "takes about 5.0 minutes: 64 rows, 3 repeats"


def test_ways_take_turns_and_each_figure_is_heard() -> None:
    """As soon as it is there."""
    heard: list[tuple[str, int, float]] = []
    calls: list[str] = []

    def measure(way: str) -> float:
        calls.append(way)
        return float(len(calls))

    ways = {way: partial(measure, way) for way in ("a", "b")}
    measured = in_turn(ways, 2, hear=lambda *figure: heard.append(figure))
    assert measured == {"a": [1, 3], "b": [2, 4]}
    assert heard == [("a", 1, 1), ("b", 1, 2), ("a", 2, 3), ("b", 2, 4)]


def test_no_repeat_begins_for_which_there_is_no_time(caplog: pytest.LogCaptureFixture) -> None:
    """The first is always there, and the end is said."""
    with caplog.at_level(logging.INFO, "stacker"):
        measured = in_turn({"a": lambda: 1.0}, 3, limit=0.0, label="resnet50")
    assert measured == {"a": [1.0]}
    said = "resnet50: stopped after 1 of 3 repeats, as this took longer than estimated"
    assert caplog.messages == [said]


def test_a_rate_is_the_median_of_its_repeats(caplog: pytest.LogCaptureFixture) -> None:
    """Rounded, as are the repeats that stand beside it; each is logged."""
    rates = iter([9.0, 2.04, 3.16])
    with caplog.at_level(logging.INFO, "stacker"):
        timings = time_rates({"way": lambda: next(rates)}, 40, 3)
    assert timings == [Timing("way", 3.2, (9.0, 2.0, 3.2), 40, rough=False)]
    assert caplog.messages[1] == "repeat 2 of 3: way, 2.04 images/s"


def test_little_work_is_rough() -> None:
    """Fewer than three repeats, or less than a second in all."""
    assert is_rough(2, 100)
    assert is_rough(3, 0.9)
    assert not is_rough(3, 1)


def test_a_ratio_has_the_range_of_its_repeats() -> None:
    """It is that of the medians; a way that was stopped earlier is compared as far as it came."""
    found = ratio([2.0, 4.0, 3.0], [1.0, 1.0], rough=False)
    assert found == Ratio(3.0, 2.0, 4.0, rough=False)
    assert (str(found), found.times("as long")) == ("3.00x (2-4)", "3.00x (2-4) as long")
    assert Ratio(1.5, 1.5, 1.5, rough=True).times("as long") == "1.50x as long (rough)"
    assert str(Ratio(320.4, 320.4, 320.4, rough=True)) == "320.4x, rough"
