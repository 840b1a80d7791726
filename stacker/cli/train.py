"""The commands about base models: probe and tune before stage one, train, and export after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import (
    FULL,
    backbones_option,
    json_option,
    out_option,
    print_json,
    repeated,
    show,
    takes_config,
    takes_run,
)

if TYPE_CHECKING:
    from stacker.config.root import Config
    from stacker.run import Run
    from stacker.training.export import Form


@click.command()
@takes_config
@click.option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    help="How many trials, over all calls together; default: tune.trials.",
)
@backbones_option(
    "Score recipes by this backbone. May be repeated; default: the mean over all of CONFIG."
)
@json_option("Print JSON instead of a summary.")
def tune(config: Config, trials: int | None, backbones: tuple[str, ...], as_json: bool) -> None:
    """Search the settings in CONFIG's tune.space with Optuna, on the development cases alone.

    An interrupted search goes on when the command is called again. Optuna is needed:
    pip install -e '.[tune]'.
    """
    from stacker.training.tuning.search import tune as search

    best = search(config, trials, backbones)
    if as_json:
        print_json(best)
        return
    done = best.complete + best.pruned + best.failed
    click.echo(f"{done} trials: {best.complete} complete, {best.pruned} pruned, {best.failed} failed")
    click.echo(f"best: {best.score:.4f} in trial {best.number} ({best.what})")
    for name, value in best.parameters.items():
        click.echo(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    click.echo(f"Next: stacker run {best.config}; all trials: {best.trials}")


@click.command()
@takes_config
@backbones_option()
@repeated("--fold", "folds", "Only this one: 2, or fold2. May be repeated.", "N")
def train(config: Config, backbones: tuple[str, ...], folds: tuple[str, ...]) -> None:
    """Stage one: fine-tune every backbone on every fold of CONFIG.

    Base models that are trained are skipped; an interrupted one resumes after its last whole epoch. When
    several calls run at once, e.g. one per GPU, each takes base models that no other is training.
    """
    from stacker import pipeline
    from stacker.training.begin import begin

    run = begin(config)
    elsewhere = pipeline.train(run, backbones, folds)
    done = [name for name, fold in run.jobs() if run.model_file(name, fold.name).exists()]
    click.echo(f"{len(done)} of {len(run.jobs())} base models in {run.path}/models")
    if elsewhere:
        click.echo(f"being trained by other processes: {', '.join(elsewhere)}")


@click.command()
@takes_config
@click.option(
    "--C",
    "strength",
    default=0.001,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Inverse of the regularisation.",
)
@FULL
@json_option("Print JSON instead of tables.")
def probe(config: Config, strength: float, full: bool, as_json: bool) -> None:
    """Score a simple baseline on CONFIG's split: frozen features and a logistic regression.

    Base models of the run that are cached are shown beside it, with the gain from fine-tuning.
    """
    from stacker.cli.tables.scores import score_tables
    from stacker.comparison.probe import probe as score
    from stacker.training.begin import begin

    metrics = score(begin(config), strength)
    if as_json:
        print_json(metrics)
    else:
        show(*score_tables(metrics, full))


@click.command()
@takes_run
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
@out_option("The file to write; default: RUN/export/BACKBONE-FOLD.pth or .onnx.")
@json_option("Print JSON.")
def export(
    run: Run, backbone: str | None, fold: str | None, form: Form, out: Path | None, as_json: bool
) -> None:
    """Write one base model of RUN for use without stacker.

    The file is kept only if it can be loaded again and gives the base model's logits on random images.
    """
    from stacker.training.export import export as export_model

    done = export_model(run, backbone, fold, form, out)
    if as_json:
        print_json(done)
        return
    click.echo(f"{done.path} ({done.bytes / 1e6:.1f} MB)")
    click.echo(f"largest difference of its logits from the base model's: {done.deviation:.2g}")
