"""What all commands share: arguments, printing, and errors that become one message."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stacker.errors import StackerError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stacker.config.root import Config


class Failure(click.ClickException):
    """A message and an exit code for a person at the terminal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance too


class Commands(click.Group):
    """A group that turns what a user can mend into one message."""

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


CONFIG = click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
RUN = click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, e.g. --set train.epochs=5. May be repeated.",
)


def load(config_file: Path, overrides: tuple[str, ...]) -> Config:
    """Read the config of a command."""
    from stacker.config.load import load_config

    return load_config(config_file, overrides)


def show(*renderables: RenderableType) -> None:
    """Print tables to stdout, wide enough to be read when it is a file or a pipe."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=int(os.environ.get("COLUMNS", "160")))
    for renderable in renderables:
        console.print(renderable)
