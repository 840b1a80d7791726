"""The command that lists runs."""

from __future__ import annotations

from pathlib import Path

import click

from stacker.cli.common import json_option, print_json, show


@click.command()
@click.argument("folder", default="artifacts", type=click.Path(path_type=Path))
@json_option()
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: artifacts): their data, how far they are, and the best model.

    The best model is that with the highest AUC by image on the development cases, out of fold.
    Outdated results are listed below the table. FOLDER may also be a single run.
    """
    from stacker.cli.tables.runs import remarks, runs_table
    from stacker.overview import list_runs

    found = list_runs(folder)
    if as_json:
        print_json(found)
    elif found:
        if not all(run.problem for run in found):
            show(runs_table(found))
        for remark in remarks(found):
            click.echo(remark)
    else:
        click.echo(f"no run in {folder}; begin with 'stacker demo'", err=True)
