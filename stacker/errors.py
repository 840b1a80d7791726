"""The exception tree, and the check that suggests the nearest name.

    StackerError            exit 1: something that the user can fix went wrong
    ├── ConfigError         exit 2: the config, an option or an argument is wrong
    ├── DataError           images, names or labels
    │   └── UnreadableImages    images that cannot be decoded, with their rows
    ├── BackboneError       a model, its weights or a checkpoint
    ├── RunError            a run directory that does not fit the config
    ├── StackError          a meta-learner that cannot be built, fitted or loaded
    └── CacheError          a cache file that is missing, broken or of another origin
        └── LeakError       a row whose case trained the model that produced it

A message says what is wrong, where, what was found against what was expected, and what to do next: the
last is its `advice`, which a caller who knows better can leave out.
Anything that is not a StackerError is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHOWN = 3  # names that a message gives before it counts the rest
MOST_KINDS = 5


class StackerError(Exception):
    """Base of every error that a user can fix: what is wrong, and what to do about it."""

    exit_code = 1

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}; {advice}" if advice else what)
        self.what = what
        self.advice = advice


class ConfigError(StackerError):
    """The config, an option or an argument is wrong."""

    exit_code = 2


class DataError(StackerError):
    """Images, file names or labels are not usable."""


class Unusable(NamedTuple):
    """An image that cannot be used, and why."""

    path: str
    why: str

    def __str__(self) -> str:
        """Return the path and the reason."""
        return f"{self.path}: {self.why}"


class UnreadableImages(DataError):
    """Some images cannot be decoded; `reasons` says why, by their row in the manifest."""

    def __init__(self, reasons: dict[int, Unusable], total: int) -> None:
        self.reasons = reasons
        listed = "\n  ".join(grouped(reasons[row] for row in sorted(reasons)))
        complete = "'stacker check CONFIG' lists all of them in audit.json. "
        super().__init__(
            f"{len(reasons)} of {total} images cannot be decoded:\n  {listed}\n"
            f"{complete if len(reasons) > SHOWN else ''}"
            "Fix or remove them, or continue without them (--set data.on_error=skip)"
        )


class BackboneError(StackerError):
    """A model cannot be built, loaded or mapped."""


class RunError(StackerError):
    """A run directory does not fit what is asked of it."""


class StackError(StackerError):
    """A meta-learner cannot be built, fitted or loaded."""


class CacheError(StackerError):
    """A cache file is missing, broken or of another origin."""


class LeakError(CacheError):
    """A row's case trained the model that produced the row."""


def require_one_of(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for the first name that is not known, with the nearest one that is."""
    names = list(known)
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            listed = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
            hint = f"did you mean '{near[0]}'?" if near else f"known are {listed}"
            raise ConfigError(f"no {kind} '{name}'", hint)


def install_extra(extra: str) -> str:
    """Say how the packages of an optional extra are installed; `stacker` on PyPI is another project."""
    return f"in the clone of stacker, run: pip install -e '.[{extra}]'"


def first_few(names: Sequence[object], between: str = ", ", most: int = SHOWN) -> str:
    """Return 'a, b, c and 12 more'; the number of the rest has a line of its own where names have."""
    listed = between.join(str(name) for name in names[:most])
    gap = between if "\n" in between else " "
    return f"{listed}{gap}and {len(names) - most} more" if len(names) > most else listed


def grouped(images: Iterable[Unusable]) -> list[str]:
    """Return a line for every kind of reason: how many images, where, and the first of them.

    Reasons that differ in their numbers only are of one kind.
    """
    kinds: dict[str, list[Unusable]] = defaultdict(list)
    for image in images:
        kinds[re.sub(r"[\d.,]+", "", image.why)].append(image)
    lines = []
    for alike in list(kinds.values())[:MOST_KINDS]:
        if len(alike) == 1:
            lines.append(str(alike[0]))
            continue
        paths = [image.path for image in alike]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
        named = first_few([os.path.relpath(path, folder or ".") for path in paths])
        lines.append(f"{len(alike)} images in {folder or '.'}: {named}: {alike[0].why}")
    rest = sum(len(alike) for alike in list(kinds.values())[MOST_KINDS:])
    return [*lines, f"{plural(rest, 'image')} for other reasons"] if rest else lines


def plural(number: int, noun: str) -> str:
    """Return '1 image' or '2 images'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
