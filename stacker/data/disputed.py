"""Identical files that are listed under two cases: one of the two cases is wrong.

Nobody can say which, and a split may put one copy into training and the other into the test. So no run
starts with them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from stacker.config.data import ImagesConfig
from stacker.data.images import FLAT, decode_image, small_grey
from stacker.data.manifest import Image, Manifest, rows_by
from stacker.errors import DataError, Unusable, first_few

log = logging.getLogger(__name__)


def undisputed(manifest: Manifest, config: ImagesConfig, on_error: str) -> Manifest:
    """Return the manifest without disputed images, or raise DataError when they are to stop the run."""
    groups = disputed(manifest, config)
    if not groups:
        return manifest
    rows = disputed_rows(manifest, groups)
    meaning = (
        f"{len(rows)} of {len(manifest.images)} images are identical files listed under two cases: "
        f"{first_few([dispute(manifest, group) for group in groups])}"
    )
    if on_error == "stop":
        raise DataError(
            f"{meaning}. One of the two cases is wrong, and a split by case would leak",
            "correct the cases, remove the files, or leave all of them out (--set data.on_error=skip)",
        )
    log.warning("left out: %s", meaning)
    return manifest.without(rows)


def disputed_rows(manifest: Manifest, groups: Iterable[Iterable[int]]) -> dict[int, Unusable]:
    """Return why each row of some disputed groups cannot be used."""
    why = "identical file under two cases"
    return {row: Unusable(manifest.images[row].path, why) for group in groups for row in group}


def disputed(manifest: Manifest, config: ImagesConfig) -> list[list[int]]:
    """Return the rows of each picture that is there byte by byte under two known cases.

    Blank pictures, which may be anyone's, are left out, and what cannot be decoded.
    """
    cases = [image.case for image in manifest.images]
    groups = [g for g in same_bytes(manifest).values() if len({cases[row] for row in g} - {""}) > 1]
    return [rows for rows in groups if _shows_something(manifest.images[rows[0]], config)]


def dispute(manifest: Manifest, rows: Iterable[int]) -> str:
    """Name two images of a disputed picture, with their cases."""
    first: dict[str, Image] = {}
    for row in rows:
        first.setdefault(manifest.images[row].case, manifest.images[row])
    first.pop("", None)
    one, other, *_ = first.values()
    return f"{one.id} (case {one.case}) = {other.id} (case {other.case})"


def _shows_something(image: Image, config: ImagesConfig) -> bool:
    """Say whether a picture can be decoded and is not blank."""
    try:
        return bool(small_grey(decode_image(image, config)).std() > FLAT)
    except DataError:
        return False


def same_bytes(manifest: Manifest) -> dict[str, list[int]]:
    """Return the rows of each content, by its SHA-256; one that is not known is no content."""
    same = rows_by(image.sha256 for image in manifest.images)
    same.pop("", None)
    return same
