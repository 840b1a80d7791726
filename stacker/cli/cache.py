"""The commands about stage two's caches: fill, look, examine, hand on."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import (
    Failure,
    backbones_option,
    json_option,
    out_option,
    print_json,
    repeated,
    show,
    takes_config,
    takes_run,
)
from stacker.errors import ConfigError, plural

if TYPE_CHECKING:
    from stacker.config.root import Config
    from stacker.run import Run


class FilledByDefault(click.Group):
    """A group whose name alone, with a CONFIG behind it, means its command `fill`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `fill` in front of what is no command of the group."""
        known = (*self.commands, "-h", "--help")
        misspelt = args and not Path(args[0]).exists() and get_close_matches(args[0], self.commands)
        if args and args[0] not in known and not misspelt:
            args = ["fill", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show both ways of calling it."""
        formatter.write_usage(ctx.command_path, "CONFIG [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND RUN [OPTIONS]")


@click.group(cls=FilledByDefault)
def cache() -> None:
    """Stage two: cache maps, embeddings and logits of images that a base model never saw.

    'stacker cache CONFIG' is short for 'stacker cache fill CONFIG': it fills the caches of CONFIG's run.
    Valid parts are kept; missing, damaged and outdated ones are rebuilt.
    """


@cache.command()
@takes_config
def fill(config: Config) -> None:
    """Fill the caches of CONFIG's run; parts that are there are kept."""
    from stacker import pipeline
    from stacker.run import reopen, store_config

    run = reopen(config, store=False)
    number = pipeline.cache(run)
    store_config(run)  # not before: settings that no cache can be filled with are not kept
    click.echo(f"{plural(number, 'cache')} in {run.path}/cache")


@cache.command()
@takes_run
@json_option()
def info(run: Run, as_json: bool) -> None:
    """Show what the caches of RUN hold: sizes, throughput, flagged maps, and where they come from."""
    from stacker.caches.summary import find_caches, summaries
    from stacker.cli.tables.data import caches_table, flags_table

    of_caches = summaries(run, find_caches(run))
    if as_json:
        print_json(of_caches)
        return
    show(caches_table(of_caches))
    if any(summary.flagged for summary in of_caches):
        show(flags_table(of_caches))
    lines = (", ".join(f"{k} {v}" for k, v in summary.versions.items()) for summary in of_caches)
    show(*(f"made by {line}" for line in dict.fromkeys(lines)))


@cache.command()
@takes_run
@json_option()
def verify(run: Run, as_json: bool) -> None:
    """Check every byte of the caches of RUN.

    Looks for parts that are missing, damaged, or of another base model, split or config; for images that
    the base model was trained on; for an index that does not match its parts; and for maps that do not
    sum to logit - bias where they should. Exit code 1 when anything is found.
    """
    from stacker.cli.tables.data import verdicts_table
    from stacker.maps.verify import verify as examine

    verdicts = examine(run)
    if as_json:
        print_json(verdicts)
    else:
        show(verdicts_table(verdicts))
    bad = [verdict.name for verdict in verdicts if verdict.problems]
    if bad:
        fix = f"'stacker cache {run.path}/config.yaml' rebuilds what is missing or damaged"
        what = f"{len(bad)} of {plural(len(verdicts), 'cache')} of {run.path} have problems"
        raise Failure(f"{what}; {fix}", 1)


@cache.command()
@takes_run
@click.option("--npz", is_flag=True, help="One numpy archive per base model.")
@click.option("--csv", is_flag=True, help="One table per base model, a line per image.")
@click.option(
    "--zarr", is_flag=True, help="One zarr group per base model; needs pip install -e '.[zarr]'."
)
@out_option("Folder to write to; default: RUN/export.", folder=True)
def export(run: Run, npz: bool, csv: bool, zarr: bool, out: Path | None) -> None:
    """Export the caches of RUN: every array, the rows, and the base model behind them."""
    from stacker.caches.export import export_caches
    from stacker.caches.summary import find_caches

    kinds = [name for name, wanted in {"npz": npz, "csv": csv, "zarr": zarr}.items() if wanted]
    if not kinds:
        raise click.UsageError("say in which form: --npz, --csv or --zarr")
    caches = find_caches(run)
    for kind in kinds:
        for path in export_caches(caches, kind, out or run.path / "export"):
            click.echo(path)


@click.command()
@takes_run
@repeated(
    "--image",
    "image_ids",
    "Draw this image (an id of predictions.csv or out_of_fold.csv). May be repeated.",
    "ID",
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Draw N test images, alternating between classes.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of --sample.")
@backbones_option()
@repeated(
    "--class",
    "classes",
    "Draw the evidence for this class; default: the last one. May be repeated.",
)
@click.option(
    "--maps",
    default="maps",
    show_default=True,
    metavar="NAME",
    help="Which cached maps to draw: maps, or e.g. maps_layercam, maps_lower1.",
)
@click.option("--signed", is_flag=True, help="Draw the evidence against the class, too (in blue).")
@out_option("The PNG to write; default: RUN/figures/inspect.png, overwritten each time.")
@json_option("Print the table as JSON.")
def inspect(
    run: Run,
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
    """Draw cached heatmaps over images of RUN; without --image or --sample, list its caches."""
    from stacker.caches import summary
    from stacker.cli.tables.data import caches_table
    from stacker.errors import plural

    drawn = bool(sample or image_ids)
    if not drawn and (backbones or classes or signed or out or maps != "maps"):
        raise ConfigError("nothing is drawn without images", "add --sample N, or --image ID")
    caches = summary.find_caches(run)
    if as_json:
        print_json(summary.summaries(run, caches))
    elif not drawn:
        show(caches_table(summary.summaries(run, caches)))
    if sample:
        image_ids += tuple(summary.sample(caches, sample, seed))
    if image_ids:
        from stacker.figures.canvas import save_figure
        from stacker.figures.heatmaps import draw

        path = out or run.figures / "inspect.png"
        save_figure(draw(run, caches, image_ids, backbones, classes, signed, maps), path)
        click.echo(f"heatmaps of {plural(len(image_ids), 'image')}: {path}", err=as_json)
