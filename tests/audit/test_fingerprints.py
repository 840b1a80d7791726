"""Copies are found however they were turned, mirrored or saved, and different tissue is left alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageEnhance, ImageOps

from stacker.audit import fingerprints
from stacker.audit.fingerprints import Copy, find_pairs, measure
from tests.pictures import tissue

SIDE = 96
TRANSPOSE = Picture.Transpose


def pairs_among(*pictures: Picture.Image) -> list[Copy]:
    """Return the pairs found among pictures."""
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return find_pairs(measure(pixels), np.arange(len(pixels)))


def as_jpeg(picture: Picture.Image) -> Picture.Image:
    """Return the picture as a JPEG of low quality shows it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Picture.open(file)


COPIES = {
    "mirrored": lambda p: p.transpose(TRANSPOSE.FLIP_LEFT_RIGHT),
    "mirrored and rotated by 180 degrees": lambda p: p.transpose(TRANSPOSE.FLIP_TOP_BOTTOM),
    "rotated by 90 degrees": lambda p: p.transpose(TRANSPOSE.ROTATE_90),
    "rotated by 180 degrees": lambda p: p.transpose(TRANSPOSE.ROTATE_180),
    "rotated by 15 degrees": lambda p: p.rotate(15, Picture.Resampling.BILINEAR),
    "rotated by 48 degrees": lambda p: p.rotate(-47, Picture.Resampling.BILINEAR),
    "same position": as_jpeg,
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_is_found_and_said_how_it_was_made(change: str, seed: int) -> None:
    """Quarter turns, mirroring, any other angle and another JPEG: the picture stays the same picture."""
    original = tissue(seed, SIDE)
    (pair,) = pairs_among(original, COPIES[change](original), tissue(seed + 100, SIDE))
    assert (pair.first, pair.second) == (0, 1)
    assert pair.similarity > 0.9
    assert pair.change == change


def test_a_mirrored_and_turned_copy_in_other_colours_is_found() -> None:
    """Augmentations are applied together, and jitter brightness and colour as well."""
    original = tissue(7, SIDE)
    other = original.transpose(TRANSPOSE.TRANSVERSE)
    other = ImageEnhance.Color(ImageEnhance.Brightness(other).enhance(0.85)).enhance(1.4)
    (pair,) = pairs_among(original, other)
    assert pair.change.startswith("mirrored")


def test_different_tissue_is_not_a_copy() -> None:
    """Among many random pictures of one texture no pair is found."""
    assert pairs_among(*(tissue(seed, SIDE) for seed in range(120))) == []


def test_edges_of_tissue_against_glass_are_not_copies() -> None:
    """All straight edges are turned versions of each other: what lies beside them decides."""
    edges = []
    for seed in range(30):
        picture = np.asarray(tissue(seed, SIDE)).copy()
        picture[: 30 + seed] = 245
        edges.append(Picture.fromarray(picture).rotate(90 * (seed % 4)))
    assert pairs_among(*edges) == []


def test_blank_pictures_are_no_copies_of_each_other() -> None:
    """Nothing can be compared in a picture of one colour, noise included."""
    rng = np.random.default_rng(0)
    blank = [Picture.fromarray(rng.normal(240, 1, (SIDE, SIDE, 3)).astype(np.uint8)) for _ in range(3)]
    assert pairs_among(*blank) == []


def test_white_borders_are_not_compared() -> None:
    """Padded fields of view have the same borders; what lies between them decides."""
    padded = [
        ImageOps.pad(tissue(n, 96).crop((0, 0, 96, 60)), (96, 96), color="white") for n in range(30)
    ]
    assert pairs_among(*padded) == []
    (pair,) = pairs_among(padded[0], padded[0].transpose(TRANSPOSE.ROTATE_180))
    assert pair.change == "rotated by 180 degrees"


def test_many_copies_of_one_picture_are_tied_together_and_no_more() -> None:
    """Fifty copies would make 1225 pairs; 49 say the same."""
    rng = np.random.default_rng(0)
    copies = [
        tissue(3, SIDE).rotate(rng.uniform(0, 360), Picture.Resampling.BILINEAR) for _ in range(50)
    ]
    pairs = pairs_among(*copies)
    assert len(pairs) == 49
    assert {row for pair in pairs for row in (pair.first, pair.second)} == set(range(50))


def test_candidates_miss_nothing_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick comparison of magnitudes lets every copy through, in blocks of any size."""
    pictures = [tissue(seed, SIDE) for seed in range(12)]
    pictures += [
        picture.rotate(10 * n, Picture.Resampling.BILINEAR) for n, picture in enumerate(pictures, 1)
    ]
    at_once = pairs_among(*pictures)
    assert {(p.first, p.second) for p in at_once} == {(n, n + 12) for n in range(12)}
    monkeypatch.setattr(fingerprints, "BLOCK", 5)
    assert pairs_among(*pictures) == at_once


def test_colour_and_contrast_are_measured() -> None:
    """A red, a grey and a blank picture differ in what is measured of them."""
    grey = tissue(1, SIDE).convert("L").convert("RGB")
    red = Picture.new("RGB", (SIDE, SIDE), (255, 0, 0))
    measures = measure(np.stack([np.asarray(p) for p in (red, grey, tissue(1, SIDE))]))
    assert measures.saturation[0] == pytest.approx(1)
    assert measures.saturation[1] == pytest.approx(0)
    assert measures.contrast[0] == 0 < measures.contrast[1]
    assert measures.colour[0] == pytest.approx([1, 0, 0, 0, 0, 0])
