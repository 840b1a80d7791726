"""The commands that end in a stack: demo and run, through all three stages, and stack alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stacker.cli.common import FULL, SET, Failure, repeated, show, takes_config
from stacker.errors import plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stacker.config.root import Config


@click.command()
@SET
@FULL
def demo(overrides: tuple[str, ...], full: bool) -> None:
    """Write a synthetic data set and run all three stages on it.

    Everything lands in artifacts/: the images in artifacts/demo-data, the run in artifacts/demo.
    """
    from stacker.cli.tables.scores import score_tables
    from stacker.pipeline import run_demo

    run, metrics = run_demo(overrides)
    show(*score_tables(metrics, full))
    click.echo(f"\nA picture of what the base models looked at: {run.figures}/heatmaps.png")
    click.echo(f"All results: {run.path}/metrics.json, predictions.csv, figures/")
    click.echo(f"Next: stacker inspect {run.path} --sample 4, or copy configs/breakhis.yaml")


@click.command()
@takes_config
@repeated(
    "--meta",
    "metas",
    "Meta-learner, one of ours or a class as module.Class, or 'NAME: FEATURE + FEATURE' for other "
    "features than stack.features. May be repeated; default: stack.meta.",
)
@FULL
def stack(config: Config, metas: tuple[str, ...], full: bool) -> None:
    """Stage three: train meta-learners on the cached maps and score them on the test cases."""
    from stacker import pipeline
    from stacker.cli.tables.scores import score_tables
    from stacker.run import StackName, reopen, store_config

    config.stack.require(*(StackName.parse(name, ()).meta for name in metas))
    run = reopen(config, store=False)
    metrics = pipeline.stack(run, metas or config.stack.meta)
    store_config(run)  # not before: settings that cannot be fitted are not kept
    show(*score_tables(metrics, full))
    click.echo(f"\n{run.path}/metrics.json, predictions.csv, figures/")
    _require_all_fitted(metrics)


@click.command()
@takes_config
@FULL
def run(config: Config, full: bool) -> None:
    """All three stages of CONFIG; what is already done is skipped."""
    from stacker import pipeline
    from stacker.cli.tables.scores import score_tables

    metrics = pipeline.run_all(config)
    show(*score_tables(metrics, full))
    click.echo(f"\n{config.run_path}/metrics.json, predictions.csv, figures/")
    _require_all_fitted(metrics)


def _require_all_fitted(metrics: Mapping[str, Any]) -> None:
    """Fail where a stack could not be fitted; the others are shown by then."""
    failures = metrics["failures"]
    if failures:
        listed = [f"{name}: {why}" for name, why in failures.items()]
        what = f"{plural(len(failures), 'stack')} could not be fitted, the others are:"
        raise Failure("\n  ".join([what, *listed]), 1)
