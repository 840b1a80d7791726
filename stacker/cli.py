"""The command line: every command opens a config or a run, calls one function and prints.

Heavy packages are imported inside the commands, so that `stacker --help` answers at once. Results go to
stdout; progress and the log go to stderr. Only a StackerError becomes a one-line message (`command`):
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker import __version__
from stacker.cli_bench import bench
from stacker.cli_cache import cache
from stacker.cli_compare import compare
from stacker.cli_data import check, data
from stacker.cli_models import export
from stacker.cli_predict import pack, predict
from stacker.cli_train import probe, train, tune
from stacker.command import CONFIG, RUN, SET, Commands, load, show

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stacker")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def main(quiet: bool) -> None:
    """Stack breast-histopathology classifiers on their Grad-CAM maps, split by case.

    Three stages share one run directory: train base models, cache their maps, stack a meta-learner.
    Begin with 'stacker demo', then copy configs/breakhis.yaml.
    """
    import warnings

    from rich.logging import RichHandler

    from stacker.progress import console

    rich = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    handler = rich if console.is_terminal else logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("stacker")
    package.handlers = [handler]
    package.setLevel(logging.WARNING if quiet else logging.INFO)
    package.propagate = False
    warnings.filterwarnings("ignore", module="torch|timm|xgboost")


for command in (check, data, probe, tune, train, cache, compare, predict, pack, export, bench):
    main.add_command(command)


@main.command()
@SET
def demo(overrides: tuple[str, ...]) -> None:
    """Write a synthetic data set and run all three stages on it.

    Everything lands in artifacts/: the images in artifacts/demo-data, the run in artifacts/demo.
    """
    from stacker.demo import run_demo

    done = run_demo(overrides)
    _print_scores(done.metrics)
    click.echo(f"\nA picture of what the base models looked at: {done.heatmaps}")
    click.echo(f"All results: {done.run}/metrics.json, predictions.csv, figures/")
    click.echo(f"Next: stacker inspect {done.run} --sample 4, or copy configs/breakhis.yaml")


@main.command()
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
    from stacker import pipeline, studies
    from stacker.run import store_config

    config = load(config_file, overrides)
    for name in metas:
        config.stack.require(name)
    study = studies.reopen(config, store=False)
    metrics = pipeline.stack(study, metas or config.stack.meta)
    store_config(study.run)  # not before: settings that cannot be fitted are not kept
    _print_scores(metrics)
    click.echo(f"\n{study.run.path}/metrics.json, predictions.csv, figures/")


@main.command()
@CONFIG
@SET
def run(config_file: Path, overrides: tuple[str, ...]) -> None:
    """All three stages of CONFIG; what is done already is skipped."""
    from stacker import pipeline

    config = load(config_file, overrides)
    _print_scores(pipeline.run_all(config))
    click.echo(f"\n{config.run_path}/metrics.json, predictions.csv, figures/")


@main.command()
@RUN
@click.option(
    "--image",
    "image_ids",
    multiple=True,
    metavar="ID",
    help="Draw this cached image (see the ids in predictions.csv). May be repeated.",
)
@click.option(
    "--sample", type=click.IntRange(1), metavar="N", help="Draw N test images, the classes in turn."
)
@click.option("--seed", default=0, show_default=True, help="Which images --sample takes.")
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="NAME",
    help="Only this backbone. May be repeated.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    help="The class whose map is drawn; default: the last one. May be repeated.",
)
@click.option(
    "--maps",
    default="maps",
    show_default=True,
    metavar="NAME",
    help="Which maps are drawn, where several methods or layers are cached.",
)
@click.option("--signed", is_flag=True, help="Draw evidence against the class too, in blue.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The PNG to write; default: RUN/figures/heatmaps.png.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def inspect(
    run_folder: Path,
    image_ids: tuple[str, ...],
    sample: int | None,
    seed: int,
    backbones: tuple[str, ...],
    classes: tuple[str, ...],
    maps: str,
    signed: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Draw cached heatmaps over the images of RUN; without images, show what its caches hold."""
    from dataclasses import asdict

    from stacker import inspection
    from stacker.figures import save_figure
    from stacker.findings import plural
    from stacker.studies import open_study
    from stacker.terminal import caches_table

    run = open_study(run_folder).run
    caches = inspection.find_caches(run)
    summaries = inspection.summaries(run, caches)
    if as_json:
        click.echo(json.dumps([asdict(summary) for summary in summaries], indent=1))
    elif not (sample or image_ids):
        show(caches_table(summaries))
    if sample:
        image_ids += tuple(inspection.sample(caches, sample, seed))
    if image_ids:
        path = out or run.figures / "heatmaps.png"
        save_figure(inspection.draw(run, caches, image_ids, backbones, classes, signed, maps), path)
        click.echo(f"heatmaps of {plural(len(image_ids), 'image')}: {path}", err=as_json)


def _print_scores(metrics: dict[str, Any]) -> None:
    from stacker.terminal import differences_table, localisation_table, scores_table

    parts = [part for part in ("held_out", "test") if metrics[part]]
    tables: list[RenderableType] = [scores_table(metrics, part) for part in parts]
    if metrics["differences"]:
        tables.append(differences_table(metrics))
    if "localisation" in metrics:
        tables.append(localisation_table(metrics))
    show(*tables)
