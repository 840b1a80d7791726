"""The commands that measure: bench."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stacker.cli.common import CONFIG, SET, load, show


@click.group()
def bench() -> None:
    """Measure this machine, beside the usual way of doing the same, in one run."""


@bench.command()
@CONFIG
@SET
@click.option("--images", default=512, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Timed epochs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def images(
    config_file: Path, overrides: tuple[str, ...], images: int, repeats: int, as_json: bool
) -> None:
    """Time an epoch's loading of CONFIG's images: from the packed store, and by decoding files."""
    from dataclasses import asdict

    from stacker.bench.images import bench_images
    from stacker.cli.tables.bench import timings_table

    timings = bench_images(load(config_file, overrides), images, repeats)
    if as_json:
        click.echo(json.dumps([asdict(timing) for timing in timings], indent=1))
    else:
        show(timings_table(timings, "store"))


@bench.command()
@CONFIG
@SET
@click.option("--backbone", metavar="NAME", help="Which of CONFIG's; default: the first.")
@click.option("--images", default=256, show_default=True, type=click.IntRange(2), help="Per epoch.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Timed epochs.")
@click.option("--compiled", is_flag=True, help="Time torch.compile too.")
@click.option(
    "--timm-script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="timm's train.py (from its repository), to be timed on the same files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def train(
    config_file: Path,
    overrides: tuple[str, ...],
    backbone: str | None,
    images: int,
    repeats: int,
    compiled: bool,
    timm_script: Path | None,
    as_json: bool,
) -> None:
    """Time stage one on CONFIG's images, and say what holds it back."""
    from dataclasses import asdict

    from stacker.bench.train import bench_train
    from stacker.cli.tables.bench import timings_table

    config = load(config_file, overrides)
    name = backbone or next(iter(config.backbones))
    found = bench_train(config, name, images, repeats, compiled, timm_script)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    height, width = found.size
    title = f"{found.backbone}, {height}x{width}, batches of {found.batch_size}, {found.precision}"
    show(timings_table(found.timings, "our loop", f"{title}, {found.device}"))
    click.echo(found.verdict)


@bench.command()
@CONFIG
@SET
@click.option("--images", default=64, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Timed rounds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def cache(
    config_file: Path, overrides: tuple[str, ...], images: int, repeats: int, as_json: bool
) -> None:
    """Time stage two on CONFIG's images, beside a bare forward pass and the grad-cam package."""
    from dataclasses import asdict

    from stacker.bench.cache import bench_cache
    from stacker.cli.tables.bench import costs_table, deviations_table

    found = bench_cache(load(config_file, overrides), images, repeats)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    show(costs_table(found), *([deviations_table(found.deviations)] if found.deviations else []))
    for line in (*found.notes, found.verdict):
        click.echo(line)


@bench.command()
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(10), help="Images.")
@click.option("--columns", default=2000, show_default=True, type=click.IntRange(6), help="Features.")
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(1), help="Trees to grow.")
@click.option(
    "--epochs", default=1, show_default=True, type=click.IntRange(0), help="Of the MLP; 0: none."
)
@click.option(
    "--peers/--no-peers", default=True, help="Without: ours alone, where an array does not fit."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the caches are written for the while, at 2 bytes a value; default: here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def stack(
    rows: int, columns: int, rounds: int, epochs: int, peers: bool, folder: Path, as_json: bool
) -> None:
    """Time stage three on drawn caches, rows read when they are wanted, beside XGBoost in memory."""
    from dataclasses import asdict

    from stacker.bench.stack import bench_stack
    from stacker.cli.tables.bench import fits_table

    found = bench_stack(folder, rows, columns, rounds, epochs, peers)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        show(fits_table(found))
        click.echo(found.verdict)
