"""Progress bars on stderr: shown on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
console = Console(stderr=True)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a bar of `total` steps while the block runs; yield what moves it on, and may rename it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=600,  # a step may take minutes
    ) as shown:
        task = shown.add_task(label, total=total)
        yield lambda steps, label=None: shown.update(task, advance=steps, description=label)


def duration(seconds: float) -> str:
    """Return a time for people, such as '45 seconds' or '2.5 hours'."""
    if seconds < 1.5:
        return "1 second"
    units = ((3600, "hours"), (60, "minutes"))
    size, name = next((unit for unit in units if seconds >= 2 * unit[0]), (1, "seconds"))
    number = seconds / size
    return f"{number:.0f} {name}" if number >= 10 or size == 1 else f"{number:.1f} {name}"


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items while a bar counts them."""
    with bar(label, total) as advance:
        for item in items:
            yield item
            advance(1)
