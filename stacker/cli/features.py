"""The command that hands stage three's table on, and shows what a stack makes of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import json_option, print_json, repeated, show, takes_run

if TYPE_CHECKING:
    from stacker.run import Run
    from stacker.stacking.feature_table import Form

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@takes_run
@repeated(
    "--features",
    "blocks",
    "Feature block, or several separated by commas; default: stack.features. May be repeated.",
)
@click.option("--fold", metavar="NAME", help="Only the rows of this fold's base models.")
@click.option("--csv", type=FILE, help="Write the table as CSV.")
@click.option("--npz", type=FILE, help="Write X, y, columns, images, cases, folds, groups for numpy.")
@click.option("--parquet", type=FILE, help="Write the table as Parquet; needs pyarrow.")
@click.option(
    "--importance", metavar="META", help="Show which blocks this fitted meta-learner relies on."
)
@json_option()
def features(
    run: Run,
    blocks: tuple[str, ...],
    fold: str | None,
    csv: Path | None,
    npz: Path | None,
    parquet: Path | None,
    importance: str | None,
    as_json: bool,
) -> None:
    """Write the table that meta-learners are fitted on, or show feature importance by block.

    A row is a development image, with features from base models that never saw its case; test images
    are not in it. Split it by 'group' in your own cross-validation. With --importance, coefficients or
    gains are summed by block, beside the block's share of the columns: the share expected if all columns
    were equally important.
    """
    files: dict[Form, Path | None] = {"csv": csv, "npz": npz, "parquet": parquet}
    wanted = {form: path for form, path in files.items() if path is not None}
    if importance is not None:
        _show_importance(run, importance, as_json)
    elif not wanted:
        raise click.UsageError("say what to do: --csv, --npz or --parquet PATH, or --importance META")
    if wanted:
        from stacker.stacking.feature_table import table

        names = [name.strip() for some in blocks for name in some.split(",")]
        rows = table(run, names, fold)
        for form, path in wanted.items():
            rows.save(path, form)
            click.echo(f"{path}: {rows!r}", err=as_json)


def _show_importance(run: Run, meta: str, as_json: bool) -> None:
    from stacker.cli.tables.features import importance_table
    from stacker.stacking.importances import by_block, read_importances

    rows = read_importances(run, meta)
    shares = by_block(rows)
    if as_json:
        print_json({"meta": meta, "kind": rows[0]["kind"], "blocks": shares})
        return
    show(importance_table(shares, meta, rows[0]["kind"]))
    click.echo(f"by column: {run.stack_folder(meta)}/importances.csv")
