"""The commands about single base models: export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stacker.command import RUN

if TYPE_CHECKING:
    from stacker.export import Form


@click.command()
@RUN
@click.option("--backbone", metavar="NAME", help="Which backbone; default: the only one of the run.")
@click.option("--fold", metavar="N", help="Which fold, e.g. 2 or holdout; default: the only one.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["timm", "onnx"]),
    default="timm",
    show_default=True,
    help="A .pth for timm.create_model, with a .json; or a graph for onnxruntime.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; default: RUN/export/BACKBONE-FOLD.pth or .onnx.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run_folder: Path,
    backbone: str | None,
    fold: str | None,
    form: Form,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write one base model of RUN for use without stacker, and try what was written.

    The export is loaded again and answers random images as the base model does, or is not written.
    """
    from dataclasses import asdict

    from stacker.export import export as export_model
    from stacker.run import open_run

    done = export_model(open_run(run_folder), backbone, fold, form, out)
    if as_json:
        click.echo(json.dumps({**asdict(done), "path": str(done.path)}, indent=1))
        return
    click.echo(f"{done.path} ({done.bytes / 1e6:.1f} MB)")
    click.echo(f"largest deviation of the logits from the base model's: {done.deviation:.2g}")
