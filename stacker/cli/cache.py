"""The commands about stage two's caches: fill, look, examine, hand on."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path

import click

from stacker.cli.common import CONFIG, RUN, SET, Failure, load, show


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
    Parts that are there, by their digests, are kept; missing, damaged and foreign ones are made again.
    """


@cache.command()
@CONFIG
@SET
def fill(config_file: Path, overrides: tuple[str, ...]) -> None:
    """Fill the caches of CONFIG's run; parts that are there are kept."""
    from stacker import pipeline
    from stacker.run import reopen

    run = reopen(load(config_file, overrides))
    number = pipeline.cache(run)
    click.echo(f"{number} caches in {run.path}/cache")


@cache.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info(run_folder: Path, as_json: bool) -> None:
    """Show what the caches of RUN hold: sizes, throughput, flagged maps, and where they come from."""
    from dataclasses import asdict

    from stacker.caches.summary import find_caches, summaries
    from stacker.cli.tables.data import caches_table, flags_table
    from stacker.run import open_run

    run = open_run(run_folder)
    found = summaries(run, find_caches(run))
    if as_json:
        click.echo(json.dumps([asdict(summary) for summary in found], indent=1))
        return
    show(caches_table(found))
    if any(summary.flagged for summary in found):
        show(flags_table(found))
    for versions in dict.fromkeys(json.dumps(summary.versions) for summary in found):
        click.echo("made by " + ", ".join(f"{k} {v}" for k, v in json.loads(versions).items()))


@cache.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(run_folder: Path, as_json: bool) -> None:
    """Examine the caches of RUN to the last byte.

    Looks for parts that are missing, damaged, or of another base model, split or config; for rows that
    trained their own model; for an index that shows something else than the parts; and for maps that do
    not sum to logit - bias where they should. Exit code 1 when anything is found.
    """
    from dataclasses import asdict

    from stacker.cli.tables.data import verdicts_table
    from stacker.maps.verify import verify as examine
    from stacker.run import open_run

    verdicts = examine(open_run(run_folder))
    if as_json:
        click.echo(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    else:
        show(verdicts_table(verdicts))
    bad = [verdict.name for verdict in verdicts if verdict.problems]
    if bad:
        mend = f"'stacker cache {run_folder}/config.yaml' makes anew what is missing or damaged"
        raise Failure(f"{len(bad)} of {len(verdicts)} caches are not as they should be; {mend}", 1)


@cache.command()
@RUN
@click.option("--npz", is_flag=True, help="One numpy archive per base model.")
@click.option("--csv", is_flag=True, help="One table per base model, a line per image.")
@click.option("--zarr", is_flag=True, help="One zarr group per base model; needs stacker[zarr].")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to; default: RUN/export.",
)
def export(run_folder: Path, npz: bool, csv: bool, zarr: bool, out: Path | None) -> None:
    """Hand the caches of RUN to other tools: every array, with the rows and who made them."""
    from stacker.caches.export import export_caches
    from stacker.caches.summary import find_caches
    from stacker.run import open_run

    kinds = [name for name, wanted in {"npz": npz, "csv": csv, "zarr": zarr}.items() if wanted]
    if not kinds:
        raise click.UsageError("say in which form: --npz, --csv or --zarr")
    run = open_run(run_folder)
    caches = find_caches(run)
    for kind in kinds:
        for path in export_caches(caches, kind, out or run.path / "export"):
            click.echo(path)


@click.command()
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

    from stacker.caches import summary
    from stacker.cli.tables.data import caches_table
    from stacker.errors import plural
    from stacker.figures.canvas import save_figure
    from stacker.figures.heatmaps import draw
    from stacker.run import open_run

    run = open_run(run_folder)
    caches = summary.find_caches(run)
    summaries = summary.summaries(run, caches)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in summaries], indent=1))
    elif not (sample or image_ids):
        show(caches_table(summaries))
    if sample:
        image_ids += tuple(summary.sample(caches, sample, seed))
    if image_ids:
        path = out or run.figures / "heatmaps.png"
        save_figure(draw(run, caches, image_ids, backbones, classes, signed, maps), path)
        click.echo(f"heatmaps of {plural(len(image_ids), 'image')}: {path}", err=as_json)
