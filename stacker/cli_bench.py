"""The commands that measure: bench."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stacker.command import CONFIG, SET, load, show


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

    from stacker.bench import bench_images
    from stacker.terminal import timings_table

    timings = bench_images(load(config_file, overrides), images, repeats)
    if as_json:
        click.echo(json.dumps([asdict(timing) for timing in timings], indent=1))
    else:
        show(timings_table(timings))
