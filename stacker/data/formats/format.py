"""What a format of data sets is, and what the readers share.

What a name states is read by a strict grammar; a picture outside it stops the reading, because a case
that is guessed wrong leaks.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stacker.config.data import DataConfig
from stacker.data.manifest import PICTURES, Image
from stacker.errors import DataError, first_few

log = logging.getLogger(__name__)


def case_by_pattern(path: Path, below: str, config: DataConfig) -> str:
    """Return the case that `data.case_pattern` finds in `below`, or in the bare name, or nothing."""
    if config.case_pattern is None:
        return ""
    matches = (re.search(config.case_pattern, text) for text in (below, path.name) if text)
    return next((match["case"] for match in matches if match and match["case"]), "")


def case_by_name(grammar: re.Pattern[str]) -> Callable[[Path, str, DataConfig], str]:
    """Return a function that reads the case off a name of the grammar, whatever its ending."""

    def case_in(path: Path, _below: str, _config: DataConfig) -> str:
        match = grammar.fullmatch(f"{path.stem}.png")
        return match["case"] if match else ""

    return case_in


@dataclass(frozen=True)
class Format:
    """One format: how it is read, what it is called, which settings it takes.

    `described` completes "images ..." in a model card; `given` is what `data.path` names; `takes` are
    the settings of the data section that not every format has; `case_in(path, below, config)` is the
    case that a name alone tells. Where a slide has one subtype, one of two is left out by subtype.
    """

    read: Callable[[DataConfig], list[Image]]
    described: str
    given: Literal["folder", "file"] = "folder"
    takes: tuple[Literal["case_pattern", "fold_list"], ...] = ()
    case_in: Callable[[Path, str, DataConfig], str] = case_by_pattern
    one_subtype_per_slide: bool = False


def named_pictures(
    tree: Path, grammar: re.Pattern[str], name: str, example: str
) -> list[tuple[Path, re.Match[str]]]:
    """Return the PNG files below a folder with the parts of their names; refuse strangers."""
    pictures = sorted(path for path in tree.rglob("*") if path.suffix.lower() in PICTURES)
    matches = {p.absolute(): grammar.fullmatch(p.name) for p in pictures if p.suffix == ".png"}
    strangers = [path for path, match in matches.items() if match is None]
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(matches)} PNG files in {tree} are not named as in {name} "
            f"(e.g. {example}): {first_few([path.name for path in strangers])}",
            f"data.format or data.path is wrong: these are no {name} images"
            if 2 * len(strangers) > len(matches)
            else "move them elsewhere",
        )
    others = [path.name for path in pictures if path.suffix != ".png"]
    if others:
        text = "left out: %d images in %s that are not PNG files, as %s images are: %s"
        log.warning(text, len(others), tree, name, first_few(others))
    if not matches:
        raise DataError(f"no {name} image (e.g. {example}) in {tree}", "check data.path")
    return [(path, match) for path, match in matches.items() if match is not None]


def with_cases(images: list[Image], pattern: str | None, root: Path) -> list[Image]:
    """Read case and slide off each path below the root; raise DataError for those that do not tell."""
    if pattern is None:
        return images
    grammar = re.compile(pattern)
    paths = [Path(os.path.relpath(image.path, root)).as_posix() for image in images]
    matches = [grammar.search(path) for path in paths]
    named = [match.groupdict() for match in matches if match and match["case"]]
    if len(named) < len(images):
        strangers = [p for p, match in zip(paths, matches, strict=True) if not (match and match["case"])]
        raise DataError(
            f"data.case_pattern {pattern!r} matches no case in {len(strangers)} of {len(images)} paths "
            f"below {root}: {first_few(strangers)}",
            "correct the pattern",
        )
    return [
        replace(image, case=names["case"], slide=names.get("slide") or image.slide)
        for image, names in zip(images, named, strict=True)
    ]
