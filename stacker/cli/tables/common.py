"""What the tables for the terminal share: plain results in, rich renderables out, printed by the CLI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

LEAK_STYLE = "bold red"


def make_table(
    title: str | Text,
    headings: Iterable[str | Text | Column],
    rows: Iterable[Sequence[str]] = (),
    caption: str | None = None,
    **options: Any,
) -> Table:
    """Return a table with its title and caption on the left, its cells folded where it is narrow."""
    columns = [h if isinstance(h, Column) else Column(h, overflow="fold") for h in headings]
    table = Table(*columns, title=title, caption=caption, **options)
    table.title_justify = table.caption_justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def number(heading: str) -> Column:
    """Return a column of numbers."""
    return Column(heading, justify="right")


def title_of(start: str, scores: Mapping[str, Any]) -> Text:
    """Return a title with the label of the split, red where cases straddle it."""
    return Text(start, style="italic").append(
        scores["split"], LEAK_STYLE if scores["leaks"] else "italic"
    )


def with_bounds(
    value: float | None, bounds: Sequence[float] | None, why: str | None = None, sign: str = ""
) -> str:
    """Return a number with its interval, or with the reason why it has none; `sign` is "+" for gains."""
    text = "-" if value is None else f"{value:{sign}.3f}"
    if bounds is not None:
        return f"{text} [{bounds[0]:{sign}.2f}, {bounds[1]:{sign}.2f}]"
    return f"{text} ({why})" if why else text


def bounds_of(row: Mapping[str, Any], score: str) -> tuple[float, float] | None:
    """Return the interval of a score from a row's columns `<score>_low` and `<score>_high`."""
    low, high = row.get(f"{score}_low"), row.get(f"{score}_high")
    return None if low is None or high is None else (low, high)
