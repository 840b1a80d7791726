"""What all commands share: arguments, options, printing, and errors that become one message."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker.errors import StackerError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stacker.config.root import Config


WIDE = 160  # columns of a table that is written to a file or a pipe


class Failure(click.ClickException):
    """A message and an exit code for a person at the terminal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance too


class Commands(click.Group):
    """A group that turns what a user can fix into one message, and lists its commands in their order."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click passes it
        """Return the commands as they were added: in the order of the work."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; translate errors, a full disk and Ctrl-C."""
        try:
            return super().invoke(ctx)
        except StackerError as error:
            raise Failure(str(error), error.exit_code) from error
        except KeyboardInterrupt:
            raise Failure("interrupted; what is finished is kept, run it again to go on", 130) from None
        except Exception as error:
            if not _is_disk_full(error):
                raise
            raise Failure(
                f"the disk is full ({error}); what is finished is kept: make room, or point 'artifacts' "
                "at another disk, and run the same command again",
                1,
            ) from error


def _is_disk_full(error: Exception) -> bool:
    """Recognise a full disk: HDF5 and safetensors report it in the text alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    texts = ("No space left on device", f"errno = {errno.ENOSPC}", "Disk quota exceeded")
    return any(text in str(error) for text in texts)


Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def repeated(flag: str, variable: str, text: str, metavar: str = "NAME") -> Decorator:
    """Return an option that may be given several times; its values come as a tuple."""
    return click.option(flag, variable, multiple=True, metavar=metavar, help=text)


def set_option(text: str) -> Decorator:
    """Return the option --set, `overrides`."""
    return repeated("--set", "overrides", text, "KEY=VALUE")


def backbones_option(text: str = "Only this backbone. May be repeated.") -> Decorator:
    """Return the option --backbone, `backbones`."""
    return repeated("--backbone", "backbones", text)


def json_option(text: str = "Print JSON instead of a table.") -> Decorator:
    """Return the option --json, `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def out_option(text: str, folder: bool = False) -> Decorator:
    """Return the option --out, for a file or a folder."""
    kind = click.Path(file_okay=not folder, dir_okay=folder, path_type=Path)
    return click.option("--out", type=kind, help=text)


CONFIG = click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
RUN = click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
SET = set_option("Override a setting, e.g. --set train.epochs=5. May be repeated.")
FULL = click.option("--full", is_flag=True, help="Show every score, not only AUC and accuracy.")
META = click.option(
    "--meta",
    metavar="NAME",
    help="Meta-learner, or the full name of a stack; default: the first of stack.meta that is fitted.",
)


def takes_config(command: Command) -> Command:
    """Give a command, as its first argument, the Config of CONFIG with the settings of --set."""

    @CONFIG
    @SET
    @wraps(command)
    def with_config(config_file: Path, overrides: tuple[str, ...], **options: Any) -> None:
        command(load(config_file, overrides), **options)

    return with_config


def takes_run(command: Command) -> Command:
    """Give a command, as its first argument, the Run that lies at RUN."""

    @RUN
    @wraps(command)
    def with_run(run_folder: Path, **options: Any) -> None:
        from stacker.run import open_run

        command(open_run(run_folder), **options)

    return with_run


def load(config_file: Path, overrides: tuple[str, ...]) -> Config:
    """Read the config of a command."""
    from stacker.config.load import load_config

    return load_config(config_file, overrides)


def print_json(content: object) -> None:
    """Print a result; dataclasses become objects, paths become text."""
    click.echo(json.dumps(content, indent=1, default=_plain))


def _plain(content: object) -> object:
    from dataclasses import asdict, is_dataclass

    if is_dataclass(content) and not isinstance(content, type):
        return asdict(content)
    return str(content)


def show(*renderables: RenderableType) -> None:
    """Print tables and lines to stdout, as wide as the terminal; a file or a pipe has WIDE columns.

    COLUMNS sets another width for either.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console = Console(highlight=False, width=WIDE)
    for renderable in renderables:
        console.print(renderable, markup=False)
