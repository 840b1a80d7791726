"""The commands that look at data before anything is trained: check and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import Failure, json_option, out_option, print_json, show, takes_config

if TYPE_CHECKING:
    from stacker.config.root import Config
    from stacker.data.folds import Folds
    from stacker.data.manifest import Manifest


@click.command()
@takes_config
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@out_option("Folder for audit.json and audit.md; default: the run's folder.", folder=True)
@json_option("Print the findings as JSON.")
def check(config: Config, strict: bool, out: Path | None, as_json: bool) -> None:
    """Check CONFIG and its data before GPU time is spent.

    Checks the config, paths, weights, backbones with their map layers, and free disk space. Audits the
    images for leakage between the parts of the split, duplicates (also mirrored, rotated or re-encoded),
    contradictory labels, and shortcuts: classes that can be told without the tissue. Decoded images are
    kept for the run. The table shows the worst findings; audit.md and audit.json have all of them.

    Exit code: 0 without errors, 1 with an error (with --strict, also with a warning), 2 when the config
    itself is wrong.
    """
    from stacker.audit.check import check as examine
    from stacker.audit.report import worst, write
    from stacker.cli.tables.data import backbones_table, census_line, findings_table, parts_table
    from stacker.errors import plural

    report = examine(config)
    folder = out or config.run_path
    written = write(report, config, folder)
    if as_json:
        print_json(report.findings)
    else:
        if report.audit is not None:
            click.echo(census_line(report.audit.census, report.positive))
            if report.audit.parts["own"]:
                show(parts_table(report.audit.parts["own"], report.audit.split))
        show(backbones_table(report), findings_table(report.findings))
    state = "Complete lists" if written else "Kept from an earlier check, because this one read no image"
    click.echo(f"{state}: {folder}/audit.md, audit.json", err=as_json)
    severity = worst(report.findings)
    if severity == "error" or (strict and severity == "warning"):
        number = sum(finding.severity == severity for finding in report.findings)
        raise Failure(f"{plural(number, severity)} found", 1)


@click.group()
def data() -> None:
    """Look at a data set: count it, draw it, see how it is split."""


@data.command()
@takes_config
@out_option("CSV for the complete list: every count, and every image left out with the reason.")
@json_option("Print the counts as JSON.")
def describe(config: Config, out: Path | None, as_json: bool) -> None:
    """Count the images, slides and cases of CONFIG's data by class, subtype, magnification and part.

    The table shows the first rows of a long list; --out writes all of them.
    """
    from stacker.cli.tables.data import census_table
    from stacker.data.census import census, save_census

    manifest, _ = _open(config)
    counts = census(manifest)
    if as_json:
        print_json({**counts, "positive": manifest.positive})
    else:
        show(census_table(counts, manifest.positive, "--out FILE writes all of them"))
    if out is not None:
        save_census(manifest, counts, out)
        click.echo(out, err=as_json)


@data.command()
@takes_config
@click.option("--cases", default=8, show_default=True, type=click.IntRange(1), help="Cases per subtype.")
@click.option("--seed", default=0, show_default=True, help="Seed for the random choice.")
@out_option("The PNG to write; default: figures/montage.png of the run.")
def montage(config: Config, cases: int, seed: int, out: Path | None) -> None:
    """Draw random images of CONFIG's data, a row per subtype and a column per case."""
    from stacker.figures.canvas import save_figure
    from stacker.figures.data import montage as draw
    from stacker.figures.data import pick

    manifest, _ = _open(config)
    path = out or config.run_path / "figures" / "montage.png"
    save_figure(draw(pick(manifest, cases, seed), config.images, manifest.describe()), path)
    click.echo(path)


@data.command()
@takes_config
@out_option("The PNG to write; default: figures/split.png of the run.")
@json_option("Print the parts' counts as JSON.")
def split(config: Config, out: Path | None, as_json: bool) -> None:
    """Show how CONFIG splits its data: the split of its run, or the one that a new run would get."""
    from stacker.cli.tables.data import parts_table
    from stacker.data.census import part_counts, parts_of
    from stacker.data.folds import make_folds
    from stacker.figures.canvas import save_figure
    from stacker.figures.data import split_figure

    manifest, begun = _open(config)
    folds = begun or make_folds(manifest, config.folds, config.seed)
    parts = parts_of(manifest, folds)
    counts = part_counts(manifest, parts)
    if as_json:
        print_json({"split": folds.label, "digest": folds.digest, "parts": counts})
    else:
        show(parts_table(counts, folds.label))
    path = out or config.run_path / "figures" / "split.png"
    title = f"{manifest.describe()}\n{folds.label}"
    save_figure(split_figure(manifest, parts, title, folds.leaks), path)
    click.echo(path, err=as_json)


def _open(config: Config) -> tuple[Manifest, Folds | None]:
    """Return the images and the split of the run, or the images that a new run would start with."""
    from stacker.data.disputed import undisputed
    from stacker.data.formats.registry import read_manifest
    from stacker.data.store import open_usable
    from stacker.run import has_begun, reopen

    if has_begun(config):
        run = reopen(config, store=False)
        return run.manifest, run.folds
    manifest = read_manifest(config.data)
    if config.data.on_error == "skip":  # else what cannot be used stops the run anyway
        manifest = undisputed(manifest, config.images, "skip")
        folder = config.artifacts / ".images"
        manifest, _ = open_usable(folder, manifest, config.images, "skip")
    return manifest, None
