"""Commands that use a finished stack: on new images, and packed up for elsewhere."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import META, RUN, Failure, out_option, repeated, takes_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stacker.prediction.inputs import Input
    from stacker.prediction.predictor import Predictor
    from stacker.prediction.rows import Layout, Tally
    from stacker.run import Run

MOST_DRAWN = 32  # images that are drawn unless --no-overlays: more are seldom looked at one by one
TRUST = repeated(
    "--trust",
    "trusted",
    "Let a custom meta-learner be of this package's classes. May be repeated.",
    "PACKAGE",
)


@click.command()
@RUN
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@META
@click.option(
    "--format",
    "wanted",
    type=click.Choice(["table", "jsonl", "csv"]),
    help="How rows are written; default: as the ending of --output says, else a table.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write the rows to, FILE.partial until all are there; default: stdout.",
)
@click.option(
    "--overlays/--no-overlays",
    default=None,
    help=f"Draw the maps over the images; default: where there are {MOST_DRAWN} of them at most.",
)
@out_option(
    "Folder for the overlays, which are then drawn; default: predictions, in RUN if it is a run.",
    folder=True,
)
@click.option(
    "--abstain",
    type=float,
    metavar="P",
    help="Decide nothing below this confidence; default: stack.abstain.",
)
@click.option("--device", metavar="NAME", help="auto, cpu or cuda; default: the run's own.")
@TRUST
def predict(
    run_folder: Path,
    images: tuple[str, ...],
    meta: str | None,
    wanted: str | None,
    output: Path | None,
    overlays: bool | None,
    out: Path | None,
    abstain: float | None,
    device: str | None,
    trusted: tuple[str, ...],
) -> None:
    """Classify IMAGEs with the whole stack of RUN: a run, or what 'stacker pack' made of one.

    An IMAGE is a file, a folder, a quoted pattern ('slides/**/*.png'), a .csv with a column path (and,
    where known, case and label), or - for paths on stdin. A row comes out as soon as it is known; where
    cases are known, a row for each follows. An image that cannot be read is reported and skipped; the
    exit code is then 1.
    """
    from stacker.prediction.inputs import STDIN, find_inputs
    from stacker.prediction.predictor import open_predictor
    from stacker.prediction.rows import Tally, choose_format, make_layout
    from stacker.prediction.unpack import is_pack, opened

    format_name = choose_format(wanted, output)
    with opened(run_folder) as run:
        on_device = _on_device(run, device)
        inputs = find_inputs(images, run.config.data, sys.stdin if STDIN in images else ())
        drawn = overlays if overlays is not None else out is not None or len(inputs) <= MOST_DRAWN
        folder = out or (Path() if is_pack(run_folder) else run.path) / "predictions"
        predictor = open_predictor(on_device, meta, abstain, folder if drawn else None, trusted)
        tally = Tally()
        layout = make_layout(format_name, predictor.stack.classes, map(str, predictor.bases))
        _stream(predictor, inputs, layout, output, tally)
    facts = predictor.stack.facts
    if facts["leaks"]:
        click.secho(
            f"fitted on a {facts['split']}: how good it is, nobody has measured", fg="red", err=True
        )
    for line in [*tally.lines(), *([f"overlays: {folder}"] if tally.overlays else [])]:
        click.echo(line, err=True)
    if tally.skipped:
        raise Failure("\n  ".join(tally.skips()), 1)


def _on_device(run: Run, device: str | None) -> Run:
    """Return the run with another device, where one is asked for."""
    from dataclasses import replace

    from stacker.backbones.devices import choose_device

    if device is None:
        return run
    choose_device(device)
    return replace(run, config=run.config.model_copy(update={"device": device}))


def _stream(
    predictor: Predictor, images: Sequence[Input], layout: Layout, output: Path | None, tally: Tally
) -> None:
    """Write every row as soon as it is there; a bar shows the progress where the rows do not."""
    from stacker.prediction.rows import CasePrediction, row_file
    from stacker.progress import bar

    stdout = sys.stdout  # a bar on the terminal would take what is written there for its own
    with ExitStack() as stack:
        advance: Callable[..., None] = lambda _: None  # noqa: E731
        write: Callable[[str], None] = lambda line: click.echo(line, file=stdout)  # noqa: E731
        if output is not None:
            write = stack.enter_context(row_file(output))
        if output is not None or not stdout.isatty():
            advance = stack.enter_context(bar("predict", len(images)))
        if layout.header is not None:
            write(layout.header)
        for row in predictor.stream(images):
            write(layout.line(row))
            tally.add(row)
            if not isinstance(row, CasePrediction):
                advance(1)


@click.command()
@takes_run
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to write, or the zip where it ends in .zip.",
)
@META
@click.option(
    "--keep-cases",
    is_flag=True,
    help="Keep the ids of the cases that the stack was fitted on: tells leaks, and who they were.",
)
@TRUST
def pack(run: Run, out: Path, meta: str | None, keep_cases: bool, trusted: tuple[str, ...]) -> None:
    """Pack a stack of RUN, with its base models and a model card, to predict elsewhere without the data.

    'stacker predict' takes the folder or the zip in the place of a run, and says the same.
    """
    from stacker.prediction.pack import pack as write

    done = write(run, out, meta, keep_cases, trusted)
    click.echo(f"{done.path}: {done.meta}, {done.files} files, {done.bytes / 1e6:.1f} MB")
    click.echo(f"sha256 of its pack.json: {done.sha256}")
