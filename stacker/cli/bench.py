"""The commands that measure: bench.

What a bench will take, and each figure when it is there, is logged to stderr; tables come at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker.cli.common import (
    Command,
    Failure,
    backbones_option,
    json_option,
    print_json,
    show,
    takes_config,
)
from stacker.errors import plural

if TYPE_CHECKING:
    from rich.table import Table

    from stacker.config.root import Config

JSON = json_option("Print JSON instead of tables.")


def _count(name: str, default: int | None, least: int, text: str) -> Callable[[Command], Command]:
    """Return an option for a number; without a default, it is chosen to fit into --minutes."""
    shown = default is not None
    number = click.IntRange(least)
    return click.option(f"--{name}", default=default, show_default=shown, type=number, help=text)


def _minutes(default: float = 2.0) -> Callable[[Command], Command]:
    number = click.FloatRange(min=0, min_open=True)
    text = "About how long it may take; what does not fit is left out and named."
    return click.option("--minutes", default=default, show_default=True, type=number, help=text)


AS_MANY = "default: as many as fit into --minutes"


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
    """Benchmark each stage on this machine against common alternatives.

    A benchmark takes about two minutes, 'gpu' about nine; --minutes changes that.
    """


@bench.command()
@takes_config
@_count("images", None, 1, f"Images per epoch; {AS_MANY}, up to 512.")
@_count("repeats", None, 1, f"Timed epochs; {AS_MANY}, up to 3.")
@_minutes()
@JSON
def images(config: Config, as_json: bool, **options: Any) -> None:
    """Time how fast CONFIG's images load, from the packed store and by decoding their files.

    All ways deliver shuffled batches; from the store, the pixels are copied out of a memory-mapped file.
    """
    from stacker.bench.images import STORE, bench_images
    from stacker.cli.tables.bench import describe_size, timings_table

    bench = bench_images(config, **options)
    table = timings_table(bench["timings"], STORE, describe_size(bench))
    _print(bench, as_json, table, lines=[bench["verdict"]])


@bench.command()
@takes_config
@click.option("--backbone", metavar="NAME", help="A backbone of CONFIG; default: the first.")
@_count("images", None, 2, f"Images per epoch, in whole batches; {AS_MANY}, up to 256.")
@_count("repeats", None, 1, f"Timed epochs; {AS_MANY}, up to 3.")
@_minutes()
@click.option("--compiled", is_flag=True, help="Time torch.compile, too.")
@click.option(
    "--timm-script",
    "script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Time timm's train.py (from its repository), too, on the same files.",
)
@JSON
def train(config: Config, as_json: bool, **options: Any) -> None:
    """Time stage one on CONFIG's images, and name the bottleneck."""
    from stacker.bench.train import LOADER, OURS, bench_train
    from stacker.cli.tables.bench import describe_size, timings_table

    bench = bench_train(config, **options)
    title = f"{bench['backbone']}, {describe_size(bench)}"
    table = timings_table(bench["timings"], OURS, title, apart=[LOADER])
    _print(bench, as_json, table, lines=[bench["verdict"]])


@bench.command()
@takes_config
@_count("images", None, 1, f"Images; {AS_MANY}, up to 64.")
@_count("repeats", None, 1, f"Timed rounds; {AS_MANY}, up to 3.")
@_minutes()
@JSON
def cache(config: Config, as_json: bool, **options: Any) -> None:
    """Time stage two on CONFIG's images against a bare forward pass and the grad-cam package."""
    from stacker.bench.cache import bench_cache
    from stacker.cli.tables.bench import costs_table, deviations_table

    bench = bench_cache(config, **options)
    deviations = [deviations_table(bench["deviations"])] if bench["deviations"] else []
    lines = [*bench["notes"], bench["verdict"]]
    _print(bench, as_json, costs_table(bench), *deviations, lines=lines)


@bench.command()
@_count("rows", None, 10, f"Rows (images) of the table; {AS_MANY}, up to 20000.")
@_count("columns", 2000, 6, "Columns (features).")
@_count("rounds", 50, 1, "Trees that XGBoost grows.")
@_count("epochs", 1, 0, "Epochs of the MLP; 0 leaves it out.")
@_minutes()
@click.option(
    "--peers/--no-peers",
    default=True,
    help="Without peers, only stacker is timed: the table need not fit into memory.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the table is stored temporarily, at 2 bytes per value; default: here.",
)
@JSON
def stack(as_json: bool, **options: Any) -> None:
    """Time stage three on a generated table that is read from disk against XGBoost in memory."""
    from stacker.bench.stack import bench_stack
    from stacker.cli.tables.bench import fits_table

    bench = bench_stack(**options)
    _print(bench, as_json, fits_table(bench), lines=[bench["verdict"]])


@bench.command()
@click.option("--device", default="cuda", show_default=True, metavar="NAME", help="cuda, cuda:1 or cpu.")
@backbones_option("Only this backbone (default: densenet121, resnet50, vgg16). May be repeated.")
@_count("size", 224, 32, "Height and width of the images.")
@_count("batch-size", 64, 2, "Images per batch.")
@_count("images", 2048, 2, "Images per epoch of training, at most.")
@_count("cached", 512, 1, "Images of stage two, at most.")
@_count("repeats", 3, 1, "Timed repeats, at most.")
@click.option("--compiled/--no-compiled", default=True, help="Whether to time torch.compile, too.")
@_minutes(9.0)
@click.option(
    "--tests",
    type=click.Path(exists=True, path_type=Path),
    help="Run the tests marked 'gpu' of this folder first; they are in the repository, in tests/gpu.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("artifacts/gpu"),
    show_default=True,
    help="Where report.json and report.md are written.",
)
def gpu(
    device: str, minutes: float, tests: Path | None, out: Path, backbones: tuple[str, ...], **size: Any
) -> None:
    """Measure a GPU: training and stage two at real size on generated images.

    Ends with exit code 0 and the reason where there is no GPU, and with 1 where something failed.
    """
    from stacker.bench.gpu import BACKBONES, Size, bench_gpu, find_gpu

    missing = find_gpu(device)
    if missing is not None:
        click.echo(f"skipped: {missing}; nothing was measured")
        return
    report = bench_gpu(out, device, minutes, Size(backbones or BACKBONES, **size), tests)
    click.echo((out / "report.md").read_text(encoding="utf-8"))
    click.echo(f"written to {out / 'report.json'} and {out / 'report.md'}")
    if report.failures:
        raise Failure(f"{plural(len(report.failures), 'step')} failed; the report says which", 1)
