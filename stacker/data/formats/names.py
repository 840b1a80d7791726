"""BreakHis: a strict grammar of file names, the official fold lists, and one contradiction.

The name of an image states its subtype, slide and magnification. The case is the accession number: the
letters behind it tell its slides apart. The year is read, not assumed (one slide is of 15).
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from stacker.data.manifest import PICTURES, Image
from stacker.errors import DataError

log = logging.getLogger(__name__)


def named_pictures(
    tree: Path, grammar: re.Pattern[str], name: str, example: str
) -> Iterable[tuple[Path, re.Match[str]]]:
    """Return the PNG files below a folder with the parts of their names; refuse strangers."""
    pictures = sorted(path for path in tree.rglob("*") if path.suffix.lower() in PICTURES)
    found = [(p.absolute(), grammar.fullmatch(p.name)) for p in pictures if p.suffix == ".png"]
    strangers = [path for path, match in found if match is None]
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(found)} PNG files in {tree} are not named as in {name}, e.g. "
            f"{strangers[0].name} (expected such as {example}); move them elsewhere"
        )
    others = [path for path in pictures if path.suffix != ".png"]
    if others:
        log.warning(
            "%d pictures in %s are not .png, as those of %s are, and are left out, e.g. %s",
            len(others),
            tree,
            name,
            others[0].name,
        )
    if not found:
        raise DataError(f"no {name} image (such as {example}) in {tree}")
    return [(path, match) for path, match in found if match is not None]


def without_contradicting_slides(images: list[Image]) -> list[Image]:
    """Leave out the slides that carry two subtypes (BreakHis lists 14-13412 as DC and as LC).

    A case may have lesions of two subtypes on slides of its own (14-21998, 14-29960): those stay.
    """
    labels = defaultdict(set)
    for image in images:
        labels[image.slide].add(image.label)
    contradicting = sorted(slide for slide, found in labels.items() if len(found) > 1)
    for slide in contradicting:
        found = " and ".join(sorted(labels[slide]))
        log.warning("slide %s is left out: it is labelled %s", slide, found)
    return [image for image in images if image.slide not in contradicting]


def with_cases(images: list[Image], pattern: str | None, root: Path) -> list[Image]:
    """Read case and slide off each path below the root; raise DataError for those that do not tell."""
    if pattern is None:
        return images
    grammar = re.compile(pattern)
    paths = [Path(os.path.relpath(image.path, root)).as_posix() for image in images]
    found = [grammar.search(path) for path in paths]
    strangers = [path for path, match in zip(paths, found, strict=True) if not (match and match["case"])]
    if strangers:
        raise DataError(
            f"data.case_pattern {pattern!r} finds no case in {len(strangers)} of {len(images)} images, "
            f"e.g. {strangers[0]}; it is searched in the path below {root}"
        )
    named = [match.groupdict() for match in found if match]
    return [
        replace(image, case=names["case"], slide=names.get("slide") or image.slide)
        for image, names in zip(images, named, strict=True)
    ]
