"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

LEAK_STYLE = "bold red"


def title_of(start: str, scores: Mapping[str, Any]) -> Text:
    """Return a title with the label of the split, red where cases straddle it."""
    return Text(start, style="italic").append(
        scores["split"], LEAK_STYLE if scores["leaks"] else "italic"
    )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
