"""A table of scores fits its terminal, leaves out what is empty, and says below it what and why."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest
from rich.console import Console

from stacker.cli.tables.models import ModelsTable, Score

NAMES = ("mean", "logistic: frozen + map_stats + logits", "constant")
FEW = "3 cases of benign, 5 are needed"
ALIKE = "no variation between cases"


def printed(table: Any, width: int) -> list[str]:
    """Return the lines of a table on a terminal of some width."""
    shown = StringIO()
    Console(file=shown, width=width).print(table)
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def scored(value: float | None = 0.5, why: str | None = None) -> Score:
    """Return a score, with an interval unless there is a reason against it."""
    return Score(value, None if why else (0.25, 0.75), why)


def table(**columns: Sequence[Score | str]) -> ModelsTable:
    """Return a table of three models."""
    return ModelsTable("Test cases", NAMES, columns, ["A note."], minor=("minor", "words"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_name_is_wrapped(width: int) -> None:
    """A long name loses its middle, every model has a line in every piece of the table."""
    lines = printed(table(**{f"score {n}": [scored()] * 3 for n in range(5)}), width)
    assert max(map(len, lines)) <= width
    pieces = [line for line in lines if line.startswith("model")]
    assert sum(line.count("score") for line in pieces) == 5
    rows = [line for line in lines if "0.500 [0.25, 0.75]" in line]
    assert len(rows) == 3 * len(pieces)
    long = [line for line in rows if line.startswith("logistic")]
    assert all(" + " in line or "…" in line for line in long)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """Rules and ellipses are drawn with what its encoding has."""
    file = TextIOWrapper(BytesIO(), encoding="ascii")
    Console(file=file, width=50).print(table(score=[scored()] * 3))
    file.seek(0)
    lines = file.read().splitlines()
    assert any(line.startswith("logi") and "..." in line for line in lines)


def test_minor_columns_give_way_first() -> None:
    """Where all fit they have their intervals; else these, and minor words, wait for more room."""
    full = table(major=[scored()] * 3, minor=[scored(0.6)] * 3, words=["some words"] * 3)
    wide, narrow = ("\n".join(printed(full, width)) for width in (120, 50))
    assert "0.600 [0.25, 0.75]" in wide
    assert "some words" in wide
    assert "wider" not in wide
    assert "0.500 [0.25, 0.75]" in narrow
    assert "0.600 [" not in narrow
    assert "some words" not in narrow
    assert "A wider terminal shows the intervals of minor, too." in narrow.replace("\n", " ")
    assert "A wider terminal shows words, too." in narrow


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"a": [scored(why=FEW)] * 3, "b": [scored(why=FEW)] * 3}, f"No intervals: {FEW}."),
        ({"a": [scored()] * 3, "b": [scored(why=FEW)] * 3}, f"No intervals of b: {FEW}."),
        (
            {"a": [scored()] * 3, "b": [scored(), scored(), scored(why=ALIKE)]},
            f"No interval of b for constant: {ALIKE}.",
        ),
        (
            {"a": [scored(), scored(why=ALIKE), scored()], "b": [scored(why=ALIKE), *[scored()] * 2]},
            f"Scores without interval: {ALIKE}.",
        ),
        ({"a": [scored()] * 3, "b": [scored(None, FEW)] * 3}, f"No b: {FEW}."),
        ({"a": [scored()] * 3, "b": [Score(None)] * 3}, "No b: not defined."),
    ],
)
def test_what_is_missing_is_explained_once(columns: dict[str, list[Score | str]], note: str) -> None:
    """Reasons stand below the table, not in its cells, and a column of nothing is left out."""
    lines = printed(table(**columns), 120)
    assert lines.count(note) == 1
    assert lines[-1] == "A note."
    assert not any("(3 cases" in line or " - " in line for line in lines)
    (heading,) = [line for line in lines if line.startswith("model")]
    assert ("b" in heading.split()) is not note.startswith("No b:")
