"""Pictures that are there more than once: byte by byte, or turned, mirrored, re-encoded.

Copies of copies belong together: what is asked (two classes? two parts?) is asked of the whole group, so
that an image of unknown case or part between two others hides nothing.

Images that are equal to the byte and lie under two cases are disputed: one of them stands under a
patient whom it does not show, and a split may part the two. A run is not begun with them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from PIL import Image as Picture
from PIL import ImageFilter, ImageOps

from stacker.config.data import ImagesConfig
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest
from stacker.errors import DataError

log = logging.getLogger(__name__)

GRID = 48  # pixels a side of a picture that is compared
FLAT = 5.0  # standard deviation of the grey levels below which there is nothing to compare


def undisputed(manifest: Manifest, config: ImagesConfig, on_error: str) -> Manifest:
    """Return the manifest without disputed images; raise DataError where they shall stop it."""
    groups = disputed(manifest, config)
    if not groups:
        return manifest
    rows = [row for group in groups for row in group]
    meaning = (
        f"{len(rows)} of {len(manifest.images)} images are equal to the byte to an image of another "
        f"case, first {dispute(manifest, groups[0])}"
    )
    if on_error == "stop":
        raise DataError(
            f"{meaning}: one of the two cases is wrong, and a split may cut it; correct the cases or "
            "remove the files, or leave out all that are concerned (--set data.on_error=skip)"
        )
    log.warning("left out: %s: nobody can say whose they are", meaning)
    return manifest.without(rows)


def disputed(manifest: Manifest, config: ImagesConfig) -> list[list[int]]:
    """Return the rows of each picture that is there byte by byte under two known cases.

    Blank pictures, which may be anyone's, are left out, and what cannot be decoded.
    """
    groups = [rows for rows in same_bytes(manifest).values() if _cases(manifest, rows) > 1]
    return [rows for rows in groups if _shows_something(manifest.images[rows[0]], config)]


def dispute(manifest: Manifest, rows: Iterable[int]) -> str:
    """Name two images of a disputed picture, with their cases."""
    first: dict[str, Image] = {}
    for row in rows:
        first.setdefault(manifest.images[row].case, manifest.images[row])
    first.pop("", None)
    one, other, *_ = first.values()
    return f"{one.id} (case {one.case}) = {other.id} (case {other.case})"


def _cases(manifest: Manifest, rows: Iterable[int]) -> int:
    """Return how many cases some rows are known to be of."""
    return len({manifest.images[row].case for row in rows} - {""})


def _shows_something(image: Image, config: ImagesConfig) -> bool:
    """Say whether a picture can be decoded and is not blank."""
    try:
        return contrast(decode_image(image, config)) > FLAT
    except DataError:
        return False


def same_bytes(manifest: Manifest) -> dict[str, list[int]]:
    """Return the rows of each content, by its SHA-256; one that is not known is no content."""
    same: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(manifest.images):
        if image.sha256:
            same[image.sha256].append(row)
    return same


def contrast(image_HWC: np.ndarray) -> float:
    """Return the standard deviation of one picture's grey levels, as `measure` does for many."""
    return float(small_grey(image_HWC).std())


def small_grey(image_HWC: np.ndarray) -> np.ndarray:
    """Return a smoothed grey picture, (GRID, GRID) uint8, without the white borders of `resize: pad`."""
    picture = Picture.fromarray(image_HWC).convert("L")
    picture = picture.crop(ImageOps.invert(picture).getbbox())
    picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 112))
    return np.asarray(picture.resize((GRID, GRID), Picture.Resampling.BOX))
