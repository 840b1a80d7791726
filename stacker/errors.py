"""The exception tree, and the check that suggests the nearest name.

    StackerError            exit 1: something that the user can fix went wrong
    ├── ConfigError         exit 2: the config, an option or an argument is wrong
    ├── DataError           images, names or labels
    │   └── UnreadableImages    pictures that cannot be decoded, with their rows
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
from collections.abc import Iterable


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


class UnreadableImages(DataError):
    """Some pictures cannot be decoded; `reasons` says why, by their row in the manifest."""

    def __init__(self, reasons: dict[int, str], total: int) -> None:
        self.reasons = reasons
        listed = "\n  ".join(reasons[row] for row in sorted(reasons))
        super().__init__(
            f"{len(reasons)} of {total} images cannot be decoded; fix or remove them, or "
            f"continue without them (--set data.on_error=skip):\n  {listed}"
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
            raise ConfigError(f"no {kind} '{name}'; {hint}")


def plural(number: int, noun: str) -> str:
    """Return '1 image' or '2 images'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
