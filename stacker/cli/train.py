"""The commands of stage one: train; and before it probe and tune.

The commands about single base models: export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import CONFIG, RUN, SET, load, show

if TYPE_CHECKING:
    from stacker.training.export import Form


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

    from stacker.training.tuning.search import tune as search

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


@click.command()
@CONFIG
@SET
@click.option(
    "--backbone", "backbones", multiple=True, metavar="NAME", help="Only this one. May be repeated."
)
@click.option(
    "--fold", "folds", multiple=True, metavar="N", help="Only this one: 2, or fold2. May be repeated."
)
def train(
    config_file: Path, overrides: tuple[str, ...], backbones: tuple[str, ...], folds: tuple[str, ...]
) -> None:
    """Stage one: fine-tune every backbone on every fold of CONFIG.

    What is trained is skipped, what was interrupted goes on after its last whole epoch. Started several
    times, e.g. once per GPU, each call takes the base models that no other has in hand.
    """
    from stacker import pipeline
    from stacker.training.begin import begin

    run = begin(load(config_file, overrides))
    elsewhere = pipeline.train(run, backbones, folds)
    done = [name for name, fold in run.jobs() if run.model_file(name, fold.name).exists()]
    click.echo(f"{len(done)} of {len(run.jobs())} base models in {run.path}/models")
    if elsewhere:
        click.echo(f"left to other processes: {', '.join(elsewhere)}")


@click.command()
@CONFIG
@SET
@click.option(
    "--C",
    "strength",
    default=0.001,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Inverse of the regularisation.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def probe(config_file: Path, overrides: tuple[str, ...], strength: float, as_json: bool) -> None:
    """Score what anyone would try first: frozen features and a logistic regression, on CONFIG's split.

    Where base models of the run are cached, they stand beside it, with the gain of fine-tuning.
    """
    from stacker.cli.tables.scores import differences_table, scores_table
    from stacker.comparison.probe import probe as score
    from stacker.training.begin import begin

    metrics = score(begin(load(config_file, overrides)), strength)
    if as_json:
        click.echo(json.dumps(metrics, indent=1))
    else:
        tables = [scores_table(metrics, part) for part in ("development", "test")]
        show(*tables, *([differences_table(metrics)] if metrics["differences"] else []))


@click.command()
@RUN
@click.option("--backbone", metavar="NAME", help="Which backbone; default: the only one of the run.")
@click.option("--fold", metavar="N", help="Which fold, e.g. 2 or holdout; default: the only one.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["timm", "onnx"]),
    default="timm",
    show_default=True,
    help="A .pth for timm.create_model, with a .json; or a graph for onnxruntime.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; default: RUN/export/BACKBONE-FOLD.pth or .onnx.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run_folder: Path,
    backbone: str | None,
    fold: str | None,
    form: Form,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write one base model of RUN for use without stacker, and try what was written.

    The export is loaded again and answers random images as the base model does, or is not written.
    """
    from dataclasses import asdict

    from stacker.run import open_run
    from stacker.training.export import export as export_model

    done = export_model(open_run(run_folder), backbone, fold, form, out)
    if as_json:
        click.echo(json.dumps({**asdict(done), "path": str(done.path)}, indent=1))
        return
    click.echo(f"{done.path} ({done.bytes / 1e6:.1f} MB)")
    click.echo(f"largest deviation of the logits from the base model's: {done.deviation:.2g}")
