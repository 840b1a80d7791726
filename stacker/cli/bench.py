"""The commands that measure: bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker.cli.common import Command, json_option, print_json, show, takes_config

if TYPE_CHECKING:
    from rich.table import Table

    from stacker.config.root import Config

JSON = json_option("Print JSON instead of tables.")


def _count(name: str, default: int, least: int, text: str) -> Callable[[Command], Command]:
    number = click.IntRange(least)
    return click.option(f"--{name}", default=default, show_default=True, type=number, help=text)


def _print(bench: Any, as_json: bool, *tables: Table, lines: Sequence[str] = ()) -> None:
    """Print what was measured, as JSON or for people."""
    if as_json:
        print_json(bench)
        return
    show(*tables)
    for line in lines:
        click.echo(line)


@click.group()
def bench() -> None:
    """Measure this machine, beside the usual way of doing the same, in one run."""


@bench.command()
@takes_config
@_count("images", 512, 1, "How many.")
@_count("repeats", 3, 1, "Timed epochs.")
@JSON
def images(config: Config, as_json: bool, **options: Any) -> None:
    """Time an epoch's loading of CONFIG's images: from the packed store, and by decoding files."""
    from stacker.bench.images import bench_images
    from stacker.cli.tables.bench import timings_table

    timings = bench_images(config, **options)
    _print(timings, as_json, timings_table(timings, "store"))


@bench.command()
@takes_config
@click.option("--backbone", metavar="NAME", help="Which of CONFIG's; default: the first.")
@_count("images", 256, 2, "Per epoch.")
@_count("repeats", 3, 1, "Timed epochs.")
@click.option("--compiled", is_flag=True, help="Time torch.compile too.")
@click.option(
    "--timm-script",
    "script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="timm's train.py (from its repository), to be timed on the same files.",
)
@JSON
def train(config: Config, as_json: bool, **options: Any) -> None:
    """Time stage one on CONFIG's images, and say what holds it back."""
    from stacker.bench.train import bench_train
    from stacker.cli.tables.bench import timings_table

    bench = bench_train(config, **options)
    height, width = bench["size"]
    title = f"{bench['backbone']}, {height}x{width}, batches of {bench['batch_size']}, "
    title += f"{bench['precision']}, {bench['device']}"
    table = timings_table(bench["timings"], "our loop", title)
    _print(bench, as_json, table, lines=[bench["verdict"]])


@bench.command()
@takes_config
@_count("images", 64, 1, "How many.")
@_count("repeats", 3, 1, "Timed rounds.")
@JSON
def cache(config: Config, as_json: bool, **options: Any) -> None:
    """Time stage two on CONFIG's images, beside a bare forward pass and the grad-cam package."""
    from stacker.bench.cache import bench_cache
    from stacker.cli.tables.bench import costs_table, deviations_table

    bench = bench_cache(config, **options)
    deviations = [deviations_table(bench["deviations"])] if bench["deviations"] else []
    lines = [*bench["notes"], bench["verdict"]]
    _print(bench, as_json, costs_table(bench), *deviations, lines=lines)


@bench.command()
@_count("rows", 20_000, 10, "Images.")
@_count("columns", 2000, 6, "Features.")
@_count("rounds", 50, 1, "Trees to grow.")
@_count("epochs", 1, 0, "Of the MLP; 0: none.")
@click.option(
    "--peers/--no-peers", default=True, help="Without: ours alone, where an array does not fit."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the caches are written for the while, at 2 bytes a value; default: here.",
)
@JSON
def stack(as_json: bool, **options: Any) -> None:
    """Time stage three on drawn caches, rows read when they are wanted, beside XGBoost in memory."""
    from stacker.bench.stack import bench_stack
    from stacker.cli.tables.bench import fits_table

    bench = bench_stack(**options)
    _print(bench, as_json, fits_table(bench), lines=[bench["verdict"]])
