"""What the tables for the terminal share: plain results in, rich renderables out, printed by the CLI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

LEAK_STYLE = "bold red"
NOTE_STYLE = "dim"
SHORTEST = 16  # characters that are left of a name


class CaptionedTable(Table):
    """A table below its title and above its notes, both as wide as the terminal, not as the table."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the bare table and the notes."""
        bare = copy(self)
        bare.title = bare.caption = None
        yield from title_lines(self.title or "")
        yield from Table.__rich_console__(bare, console, options)
        yield from note_lines([self.caption] if self.caption else [], self.caption_style)


class Name:
    """A name that is not wrapped: where it is too long for its column, its middle is left out."""

    def __init__(self, name: str, style: str = "") -> None:
        self.name, self.style = name, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the name, as long as its column allows."""
        gap = "..." if options.ascii_only else "…"
        yield Text(shortened(self.name, options.max_width, gap), self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least and the whole width."""
        width = cell_len(self.name)
        return Measurement(min(SHORTEST, width), width)


def shortened(name: str, width: int, gap: str = "…") -> str:
    """Return a name of at most some characters, with an ellipsis in its middle if it is longer."""
    if len(name) <= width:
        return name
    left = max(0, width - len(gap))
    end = left // 2
    return (name[: left - end] + gap + (name[-end:] if end else ""))[:width]


def make_table(
    title: str | Text,
    headings: Iterable[str | Text | Column],
    rows: Iterable[Sequence[RenderableType]] = (),
    caption: str | None = None,
    **options: Any,
) -> Table:
    """Return a table with its title above and its caption below, its cells folded where it is narrow."""
    columns = [h if isinstance(h, Column) else Column(h, overflow="fold") for h in headings]
    look = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True}
    table = CaptionedTable(*columns, title=title, caption=caption, **{**look, **options})
    table.title_justify = table.caption_justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def title_lines(title: str | Text) -> Iterable[str | Text]:
    """Yield a title between blank lines, if there is one."""
    if str(title):
        yield ""
        yield title if isinstance(title, Text) else Text(title, "bold")
        yield ""


def note_lines(notes: Iterable[str | Text], style: Any = NOTE_STYLE) -> Iterable[Text]:
    """Yield the notes below a table."""
    for note in notes:
        yield note if isinstance(note, Text) else Text(note, style or NOTE_STYLE)


def number(heading: str) -> Column:
    """Return a column of numbers, on the right and never broken."""
    return Column(heading, justify="right", no_wrap=True)


def title_of(start: str, scores: Mapping[str, Any]) -> Text:
    """Return a title with the positive class and the label of the split, red where cases straddle it."""
    positive = f"positive class: {scores['positive']}; " if scores.get("positive") else ""
    return Text(start + positive, style="bold").append(
        scores["split"], LEAK_STYLE if scores["leaks"] else "bold"
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
