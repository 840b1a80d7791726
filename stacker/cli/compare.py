"""The command that compares meta-learners."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import FULL, RUN, Failure, json_option, print_json, set_option, show
from stacker.errors import ConfigError

if TYPE_CHECKING:
    from stacker.run import Run


@click.command()
@RUN
@set_option("Override a setting of 'stack', e.g. --set stack.compare.meta=[svm,mlp]. May be repeated.")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Parallel processes; default: one per core."
)
@click.option("--all", "everything", is_flag=True, help="Show every entry, not only the best 12 stacks.")
@FULL
@click.option(
    "--protocols",
    metavar="UNIT,...",
    help="Instead, repeat the run split by these units (image, slide, case): by how much does leakage "
    "inflate the scores?",
)
@click.option("--yes", is_flag=True, help="With --protocols: train without asking first.")
@json_option("Print JSON instead of tables.")
def compare(
    run_folder: Path,
    overrides: tuple[str, ...],
    jobs: int | None,
    everything: bool,
    full: bool,
    protocols: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Fit every meta-learner on every choice of features of RUN, and write a leaderboard.

    The leaderboard also has the base models and the mean of their probabilities. As controls, every
    entry is fitted again on permuted labels and on shuffled maps. All are scored out of fold and on the
    test cases, with confidence intervals and paired differences. Finished fits are kept. Writes
    RUN/compare/ and RUN/figures/leaderboard.png.

    With --protocols, the whole run is trained again under splits that leak. The command first says what
    it will train and how long that takes, and on a terminal it asks before it starts.
    """
    from stacker.run import open_run

    for setting in overrides:
        if not setting.startswith("stack."):
            raise ConfigError(f"--set {setting}: only settings of 'stack' can be changed here")
    if yes and protocols is None:
        raise ConfigError("--yes goes with --protocols")
    run = open_run(run_folder, overrides)
    if protocols is not None:
        if overrides:
            raise ConfigError("--set cannot be used with --protocols: only the split may differ")
        units = [unit.strip() for unit in protocols.split(",")]
        _announce(run, units, yes)
        _inflation(run, units, as_json)
    else:
        _leaderboard(run, jobs or 0, everything, full, as_json)


def _leaderboard(run: Run, jobs: int, everything: bool, full: bool, as_json: bool) -> None:
    from stacker.cli.tables.comparison import (
        answers_table,
        headlines,
        leaderboard_tables,
        shown_models,
        verdicts,
    )
    from stacker.comparison.entries import compare as fit_all
    from stacker.comparison.leaderboard import make_leaderboard
    from stacker.figures.canvas import save_figure
    from stacker.figures.scores import leaderboard_figure

    comparison = fit_all(run, jobs)
    board = make_leaderboard(comparison, run)
    shown = shown_models(board, everything)
    path = run.figures / "leaderboard.png"
    save_figure(leaderboard_figure(board, shown), path)
    if as_json:
        print_json(board)
    else:
        answers = [answers_table(board)] if board["answers"] else []
        show(*headlines(board), *leaderboard_tables(board, shown, full), *answers)
        show("", *verdicts(board))
        written = "leaderboard.csv, differences.csv, answers.csv, controls.csv"
        click.echo(f"\n{run.path}/compare/{written}; {path}")
    if comparison.failures:
        listed = [f"{name}: {why}" for name, why in comparison.failures.items()]
        raise Failure("\n  ".join([f"{len(listed)} entries could not be fitted:", *listed]), 1)


def somebody_answers() -> bool:
    """Say whether a person sits at a terminal."""
    return sys.stdin.isatty()


def _announce(run: Run, units: list[str], yes: bool) -> None:
    """Say what will be trained and how long that takes; on a terminal, ask whether to go on."""
    from stacker.comparison.inflation import time_of, work_to_do

    works = work_to_do(run, units)
    if not works:
        return
    click.echo(
        "\n  ".join(["The run will be trained again, split by other units:", *map(str, works)]), err=True
    )
    click.echo(f"{time_of(works)}. Finished work is kept.", err=True)
    if not yes and somebody_answers():
        click.confirm("Continue?", abort=True, err=True)


def _inflation(run: Run, units: list[str], as_json: bool) -> None:
    from stacker.cli.tables.comparison import inflation_table
    from stacker.comparison.inflation import measure_inflation
    from stacker.figures.canvas import save_figure
    from stacker.figures.scores import inflation_figure

    inflation = measure_inflation(run, units)
    path = run.figures / "inflation.png"
    save_figure(inflation_figure(inflation), path)
    if as_json:
        print_json(inflation)
        return
    show(inflation_table(inflation))
    click.echo(f"\n{run.path}/compare/inflation.csv; {path}")
