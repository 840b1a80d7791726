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
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(label, total=total)
        yield lambda steps, label=None: shown.update(task, advance=steps, description=label)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items while a bar counts them."""
    with bar(label, total) as advance:
        for item in items:
            yield item
            advance(1)
