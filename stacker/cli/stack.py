"""The command line: every command opens a config or a run, calls one function and prints.

Heavy packages are imported inside the commands, so that `stacker --help` answers at once. Results go to
stdout; progress and the log go to stderr. Only a StackerError becomes a one-line message (`command`):
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker.cli.common import CONFIG, SET, load, show

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command()
@SET
def demo(overrides: tuple[str, ...]) -> None:
    """Write a synthetic data set and run all three stages on it.

    Everything lands in artifacts/: the images in artifacts/demo-data, the run in artifacts/demo.
    """
    from stacker.pipeline import run_demo

    done = run_demo(overrides)
    _print_scores(done.metrics)
    click.echo(f"\nA picture of what the base models looked at: {done.heatmaps}")
    click.echo(f"All results: {done.run}/metrics.json, predictions.csv, figures/")
    click.echo(f"Next: stacker inspect {done.run} --sample 4, or copy configs/breakhis.yaml")


@click.command()
@CONFIG
@SET
@click.option(
    "--meta",
    "metas",
    multiple=True,
    metavar="NAME",
    help="Meta-learner, one of ours or a class as module.Class. May be repeated; default: stack.meta.",
)
def stack(config_file: Path, overrides: tuple[str, ...], metas: tuple[str, ...]) -> None:
    """Stage three: train meta-learners on the cached maps and score them on the test cases."""
    from stacker import pipeline
    from stacker.run import reopen, store_config

    config = load(config_file, overrides)
    for name in metas:
        config.stack.require(name)
    run = reopen(config, store=False)
    metrics = pipeline.stack(run, metas or config.stack.meta)
    store_config(run)  # not before: settings that cannot be fitted are not kept
    _print_scores(metrics)
    click.echo(f"\n{run.path}/metrics.json, predictions.csv, figures/")


@click.command()
@CONFIG
@SET
def run(config_file: Path, overrides: tuple[str, ...]) -> None:
    """All three stages of CONFIG; what is done already is skipped."""
    from stacker import pipeline

    config = load(config_file, overrides)
    _print_scores(pipeline.run_all(config))
    click.echo(f"\n{config.run_path}/metrics.json, predictions.csv, figures/")


def _print_scores(metrics: dict[str, Any]) -> None:
    from stacker.cli.tables.scores import differences_table, localisation_table, scores_table

    parts = [part for part in ("development", "test") if metrics[part]]
    tables: list[RenderableType] = [scores_table(metrics, part) for part in parts]
    if metrics["differences"]:
        tables.append(differences_table(metrics))
    if "localisation" in metrics:
        tables.append(localisation_table(metrics))
    show(*tables)
