"""The command line: every command opens a config or a run, calls one function and prints.

Heavy packages are imported inside the commands, so that `stacker --help` answers at once. Results go to
stdout; progress and the log go to stderr. Only a StackerError becomes a one-line message (`common`):
anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import logging

import click

from stacker import __version__
from stacker.cli.bench import bench
from stacker.cli.cache import cache, inspect
from stacker.cli.common import Commands
from stacker.cli.compare import compare
from stacker.cli.data import check, data
from stacker.cli.features import features
from stacker.cli.predict import pack, predict
from stacker.cli.runs import runs
from stacker.cli.stack import demo, run, stack
from stacker.cli.train import export, probe, train, tune


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stacker")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def main(quiet: bool) -> None:
    """Stack breast-histopathology classifiers on their Grad-CAM maps, split by case.

    Three stages share one run directory: train base models, cache their maps, stack a meta-learner.
    Start with 'stacker demo', then copy configs/breakhis.yaml.
    """
    import warnings

    from rich.logging import RichHandler

    from stacker.progress import console

    rich = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    handler = rich if console.is_terminal else logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("stacker")
    package.handlers = [handler]
    package.setLevel(logging.WARNING if quiet else logging.INFO)
    package.propagate = False
    warnings.filterwarnings("ignore", module="torch|timm|xgboost")


COMMANDS = {  # in the order of the work, each with its line in `stacker --help`
    demo: "All three stages on synthetic images, in two minutes.",
    check: "Audit data, split, backbones and disk before training.",
    data: "Count a data set, draw samples, show the split.",
    probe: "Simple baseline: frozen features, logistic regression.",
    tune: "Search a training recipe with Optuna.",
    run: "All three stages; finished parts are skipped.",
    train: "Stage one: fine-tune the backbones.",
    cache: "Stage two: maps, embeddings and logits to HDF5.",
    stack: "Stage three: train and score meta-learners.",
    runs: "List runs: data, split, state and best model.",
    inspect: "Draw cached heatmaps, or list the caches.",
    features: "Export the feature table; show importances.",
    compare: "Compare meta-learners and features, with controls.",
    predict: "Classify new images with the whole stack.",
    pack: "Pack a stack with its base models, without the data.",
    export: "Write a base model for timm or ONNX.",
    bench: "Measure speed on this machine.",
}
for command, line in COMMANDS.items():
    command.short_help = line
    main.add_command(command)
