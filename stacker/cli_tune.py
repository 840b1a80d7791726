"""The command that searches a recipe: tune."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stacker.command import CONFIG, SET, load


@click.command()
@CONFIG
@SET
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="How many, in all calls together; default: tune.trials.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME",
    help="Score by this backbone. May be repeated; default: all of CONFIG, by their mean.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a summary.")
def tune(
    config_file: Path,
    overrides: tuple[str, ...],
    trials: int | None,
    backbones: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search the settings in CONFIG's tune.space with Optuna, on the development cases alone.

    A search that was interrupted goes on when it is called again. It needs: pip install 'stacker[tune]'.
    """
    from dataclasses import asdict

    from stacker.tune import tune as search

    found = search(load(config_file, overrides), trials, backbones)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, default=str))
        return
    done = found.complete + found.pruned + found.failed
    click.echo(f"{done} trials: {found.complete} complete, {found.pruned} pruned, {found.failed} failed")
    click.echo(f"best: {found.score:.4f} in trial {found.number} ({found.what})")
    for name, value in found.parameters.items():
        click.echo(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    click.echo(f"Next: stacker run {found.config}; all trials: {found.trials}")
