"""Commands that use a finished stack: predict new images, and pack the stack for another machine."""

from __future__ import annotations

import shutil
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.cli.common import META, RUN, Failure, out_option, repeated, takes_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from stacker.prediction.inputs import Input
    from stacker.prediction.predictor import Predictor
    from stacker.prediction.rows import Layout
    from stacker.prediction.tally import Tally
    from stacker.run import Run

MOST_DRAWN = 32  # images that are drawn unless --no-overlays: more are seldom looked at one by one
WIDTH = 80  # of what is said on stderr, and of the table where the terminal's width is not known
TRUST = repeated(
    "--trust",
    "trusted",
    "Allow a custom meta-learner to use classes of this package. May be repeated.",
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
    help="Format of the rows; default: by the ending of --output, else a table.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the rows to this file (named FILE.partial until it is complete); default: stdout.",
)
@click.option(
    "--overlays/--no-overlays",
    default=None,
    help=f"Draw the maps over the images; default: if there are at most {MOST_DRAWN} images.",
)
@out_option(
    "Draw overlays, into this folder; default: RUN/predictions, for a pack OUTPUT-overlays or "
    "PACK-overlays.",
    folder=True,
)
@click.option(
    "--abstain",
    type=float,
    metavar="P",
    help="Make no decision below this confidence; default: stack.abstain.",
)
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or mps; default: the run's own.")
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
    """Classify IMAGEs with the whole stack of RUN, which is a run or a pack ('stacker pack').

    An IMAGE is a file, a folder, a quoted pattern ('slides/**/*.png'), a .csv with a column path (and
    case and label, if known), or - for paths on stdin. Rows are printed as soon as they are known, one
    per image and then one per known case. In the table, disagree is the share of base models that
    predict another class, and novelty how unusual the image is (above 0.95: unlike the training
    images); docs/predict.md explains all columns. An image that cannot be read is skipped and reported;
    the exit code is then 1.
    """
    from stacker.prediction.inputs import STDIN, find_inputs
    from stacker.prediction.rows import choose_format, make_layout
    from stacker.prediction.tally import Tally
    from stacker.prediction.unpack import is_pack, opened
    from stacker.stacking.saved import choose_stack

    format_name = choose_format(wanted, output)
    with opened(run_folder) as run:
        name = choose_stack(run, meta)
        inputs = find_inputs(images, run.config.data, sys.stdin if STDIN in images else ())
        drawn = overlays if overlays is not None else out is not None or len(inputs) <= MOST_DRAWN
        folder = out or (
            _beside(output or Path(run_folder.name)) if is_pack(run_folder) else run.path / "predictions"
        )
        predictor = _predictor(run, device, name, abstain, folder if drawn else None, trusted)
        tally = Tally(predictor.no_cases)
        width = shutil.get_terminal_size((WIDTH, 24)).columns if _on_terminal(output) else None
        layout = make_layout(format_name, predictor.stack.classes, map(str, predictor.bases), width)
        _stream(predictor, inputs, layout, output, tally)
    _summarise(tally, predictor.stack.facts, folder)


def _beside(path: Path) -> Path:
    """Return the folder of overlays that belongs to a file of rows, or to a pack."""
    return path.with_name(f"{path.stem}-overlays")


def _on_terminal(output: Path | None) -> bool:
    return output is None and sys.stdout.isatty()


def _summarise(tally: Tally, facts: Mapping[str, Any], folder: Path) -> None:
    """Print what is said at the end, and fail where images were skipped."""
    from stacker.errors import plural

    if facts["leaks"]:
        warning = f"the stack was fitted on a {facts['split']}: its performance on new cases is unknown"
        click.secho(textwrap.fill(warning, WIDTH), fg="red", err=True)
    for paragraph in tally.lines():
        wrapped = textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)
        click.echo(wrapped, err=True)
    if tally.overlays:
        click.echo(f"{plural(tally.overlays, 'overlay')} in {folder}", err=True)
    if tally.skipped:
        raise Failure("\n  ".join(tally.skips()), 1)


def _predictor(
    run: Run,
    device: str | None,
    name: str,
    abstain: float | None,
    overlays: Path | None,
    trusted: tuple[str, ...],
) -> Predictor:
    """Load torch and the stack; the arguments were checked before, as that takes seconds."""
    from stacker.prediction.predictor import open_predictor

    return open_predictor(_on_device(run, device), name, abstain, overlays, trusted)


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
    """Write every row as soon as it is known; a bar shows the progress where the rows do not."""
    from stacker.prediction.rows import CasePrediction, row_file
    from stacker.progress import bar

    stdout = sys.stdout  # a bar on the terminal would take what is written there for its own
    with ExitStack() as stack:
        advance: Callable[..., None] = lambda _: None  # noqa: E731
        write: Callable[[str], None] = lambda line: click.echo(line, file=stdout)  # noqa: E731
        if output is not None:
            write = stack.enter_context(row_file(output))
        if not _on_terminal(output):
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
    help="The folder to write, or a zip file if it ends in .zip.",
)
@META
@click.option(
    "--keep-cases",
    is_flag=True,
    help="Include the ids of the cases in the training data, so that predict can recognise them.",
)
@TRUST
def pack(run: Run, out: Path, meta: str | None, keep_cases: bool, trusted: tuple[str, ...]) -> None:
    """Pack a stack of RUN with its base models and a model card, to predict elsewhere without the data.

    'stacker predict' accepts the folder or zip in place of a run, and predicts the same.
    """
    from stacker.prediction.pack import pack as write

    done = write(run, out, meta, keep_cases, trusted)
    click.echo(f"{done.path}: {done.meta}, {done.files} files, {done.bytes / 1e6:.1f} MB")
    click.echo(f"sha256 of its pack.json: {done.sha256}")
