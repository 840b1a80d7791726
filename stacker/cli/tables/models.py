"""A table with a row per model and its scores in columns, as many as the terminal has room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from stacker.cli.tables.common import (
    Name,
    make_table,
    note_lines,
    number,
    title_lines,
    with_bounds,
)

NAME_WIDTH = 24  # characters that a name gets before minor intervals do
GAP = 2  # characters between two columns


class Score(NamedTuple):
    """A score with its interval, or with the reason why it has none."""

    value: float | None
    bounds: Sequence[float] | None = None
    why: str | None = None


@dataclass(frozen=True)
class ModelsTable:
    """The scores of some models; which columns and intervals are shown, the terminal's width decides.

    A column without any number is left out. Where not all columns fit, those in `minor` lose their
    intervals, or are left out if they are words; what still does not fit is continued in a second
    table. Notes below say what is left out and why. `signs` stand behind the models' names, `styles`
    colour them.
    """

    title: str | Text
    names: Sequence[str]
    columns: Mapping[str, Sequence[Score | str]]
    notes: Sequence[str | Text] = ()
    first: str = "model"
    minor: Sequence[str] = ()
    sign: str = ""
    signs: Mapping[str, str] = field(default_factory=dict)
    styles: Mapping[str, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the table in as many pieces as it takes, and the notes."""
        room, notes = options.max_width, [*self._reasons()]
        cells = {heading: self._texts(heading) for heading in self._known()}
        notes += self._narrow(cells, room)
        yield from title_lines(self.title)
        for number_of_piece, headings in enumerate(self._pieces(cells, room)):
            if number_of_piece:
                yield ""
            yield self._piece({heading: cells[heading] for heading in headings})
        yield from note_lines([*notes, *self.notes])

    def _narrow(self, cells: dict[str, list[str]], room: int) -> Iterator[str]:
        """Take intervals off minor columns, or words out, from the last on; yield what was taken."""
        bounded, words = [], []
        for heading in reversed([heading for heading in self.minor if heading in cells]):
            if self._width(cells) <= room:
                break
            if self._bounded(heading):
                cells[heading] = self._texts(heading, bounds=False)
                bounded.append(heading)
            elif isinstance(self.columns[heading][0], str):
                del cells[heading]
                words.append(heading)
        if bounded:
            yield f"A wider terminal shows the intervals of {_listed(reversed(bounded))}, too."
        if words:
            yield f"A wider terminal shows {_listed(reversed(words))}, too."

    def _piece(self, cells: Mapping[str, Sequence[str]]) -> Table:
        """Return a table of some of the columns; numbers with intervals start at one place."""
        names = [
            Name(shown, self.styles.get(name, ""))
            for name, shown in zip(self.names, self._shown(), strict=True)
        ]
        headings = (
            Column(heading, no_wrap=True) if any("[" in text for text in texts) else number(heading)
            for heading, texts in cells.items()
        )
        return make_table("", [self.first, *headings], zip(names, *cells.values(), strict=True))

    def _shown(self) -> list[str]:
        """Return the models' names with the signs behind them."""
        return [name + self.signs.get(name, "") for name in self.names]

    def _known(self) -> list[str]:
        """Return the columns that hold a number or a word."""
        return [heading for heading, scores in self.columns.items() if any(map(_is_known, scores))]

    def _bounded(self, heading: str) -> bool:
        return any(isinstance(s, Score) and s.bounds is not None for s in self.columns[heading])

    def _texts(self, heading: str, bounds: bool = True) -> list[str]:
        """Return the cells of a column."""
        return [
            s
            if isinstance(s, str)
            else with_bounds(s.value, s.bounds if bounds else None, sign=self.sign)
            for s in self.columns[heading]
        ]

    def _width(self, cells: Mapping[str, Sequence[str]]) -> int:
        """Return how wide a table of some columns is, its names being shortened where they are long."""
        widths = (max(len(heading), *map(len, texts)) for heading, texts in cells.items())
        return self._name_width() + sum(width + GAP for width in widths)

    def _name_width(self) -> int:
        return min(max(map(len, (self.first, *self._shown()))), NAME_WIDTH)

    def _pieces(self, cells: Mapping[str, Sequence[str]], room: int) -> Iterator[list[str]]:
        """Yield the columns of each table, in their order."""
        piece: list[str] = []
        for heading in cells:
            if piece and self._width({name: cells[name] for name in [*piece, heading]}) > room:
                yield piece
                piece = []
            piece.append(heading)
        if piece:
            yield piece

    def _reasons(self) -> Iterator[str]:
        """Yield why columns and intervals are missing, each reason once."""
        known = self._known()
        empty: dict[str, list[str]] = {}
        for heading in (heading for heading in self.columns if heading not in known):
            reasons = [s.why for s in self.columns[heading] if isinstance(s, Score) and s.why]
            empty.setdefault(reasons[0] if reasons else "not defined", []).append(heading)
        for why, missing in empty.items():
            yield f"No {_listed(missing)}: {why}."
        scored = [h for h in known if any(isinstance(s, Score) for s in self.columns[h])]
        lacking = self._without_interval(scored)
        for why in dict.fromkeys(why for why, _ in lacking):
            ((headings, names), *more) = [(key[1], of) for key, of in lacking.items() if key[0] == why]
            if more:
                yield f"Scores without interval: {why}."
            elif len(names) < len(self.names):
                yield f"No interval of {_listed(headings)} for {_listed(names)}: {why}."
            elif len(headings) < len(scored):
                yield f"No intervals of {_listed(headings)}: {why}."
            else:
                yield f"No intervals: {why}."

    def _without_interval(self, headings: Sequence[str]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
        """Return the models whose scores in some columns have no interval, by reason and columns."""
        models: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for row, name in enumerate(self.names):
            of_model: dict[str, list[str]] = {}
            for heading in headings:
                score = self.columns[heading][row]
                if isinstance(score, Score) and score.value is not None and score.why:
                    of_model.setdefault(score.why, []).append(heading)
            for why, lacking in of_model.items():
                models.setdefault((why, tuple(lacking)), []).append(name)
        return models


def _is_known(score: Score | str) -> bool:
    return score not in ("", "-") if isinstance(score, str) else score.value is not None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
