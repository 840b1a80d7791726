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


COMMANDS = (
    demo,
    check,
    data,
    probe,
    tune,
    run,
    runs,
    train,
    cache,
    inspect,
    stack,
    features,
    compare,
    predict,
    pack,
    export,
    bench,
)
for command in COMMANDS:
    main.add_command(command)
