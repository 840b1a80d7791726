"""The runs of a folder for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table

from stacker.cli.tables.common import Name, make_table, number
from stacker.overview import Overview, state

LONGEST = 18  # characters of a backbone's name that are shown


def runs_table(runs: Sequence[Overview]) -> Table:
    """Return a row for each run that could be read."""
    return make_table(
        "Runs",
        [
            "run",
            "data",
            number("images"),
            number("cases"),
            "protocol",
            Column("backbones", no_wrap=True, max_width=LONGEST),
            "state",
            "best model",
        ],
        [_row(run) for run in runs if not run.problem],
        caption="Best model: AUC by image on the development cases, out of fold",
    )


def _row(run: Overview) -> list[RenderableType]:
    """Return the cells of a run; its backbones stand one below the other."""
    counts = [f"{run.images:,}", "not known" if run.cases is None else str(run.cases)]
    best = "-" if run.best is None else f"{run.best.name} {run.best.value:.3f}"
    backbones = Group(*map(Name, run.backbones))
    return [run.run, run.data, *counts, run.protocol, backbones, state(run), best]


def remarks(runs: Sequence[Overview]) -> Iterator[str]:
    """Yield a line for each run that cannot be read, and for each note."""
    for run in runs:
        yield from (f"{run.run}: {line}" for line in ([run.problem] if run.problem else run.notes))
