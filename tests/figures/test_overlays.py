"""Overlays of new images: where evidence lies in the picture, in which colours, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config.data import ImagesConfig
from stacker.data.images import resize
from stacker.figures.evidence import (
    LONGEST,
    POSITIVE,
    SIGNED,
    colour_table,
    fit,
    lay_over,
    spread,
    upsample,
)
from stacker.figures.lettering import font_of, shorten
from stacker.figures.overlays import Overlays, Panel, draw_sheet


def lightness(table: np.ndarray) -> np.ndarray:
    """Return the CIE lightness of colours (N, 3) from 0 to 255."""
    shares = table / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lights: np.ndarray = 116 * np.cbrt(luminance.clip(0.008856)) - 16
    return lights


def test_upsampling_keeps_sign_and_range() -> None:
    """Bilinear, within the values of the map."""
    heat = upsample(np.array([[-2.0, 1.0], [0.0, 3.0]]), (64, 96))
    assert heat.shape == (64, 96)
    assert heat.min() == -2
    assert heat.max() == 3


@pytest.mark.parametrize("way", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(40, 100), (100, 40)])
def test_evidence_lies_where_the_base_model_saw_it(way: str, size: tuple[int, int]) -> None:
    """A spot that reaches one cell of the model's input is found again in the picture's own pixels."""
    images = ImagesConfig.model_validate({"size": 64, "resize": way})
    picture = np.zeros((*size, 3), np.uint8)
    middle = size[0] // 2, size[1] // 2
    spot = middle[0] + 8, middle[1] + 8
    picture[spot[0] - 4 : spot[0] + 4, spot[1] - 4 : spot[1] + 4] = 255
    shown = resize(picture, images, "black")[..., 0].astype(np.float32)
    heat = spread(shown, size, images)
    assert heat.shape == size
    found = np.argwhere(heat > 0.5 * heat.max()).mean(axis=0)
    np.testing.assert_allclose(found, np.array(spot) - 0.5, atol=1.5)


def test_what_was_cropped_off_has_no_evidence() -> None:
    """The base model never saw it."""
    heat = spread(np.ones((2, 2)), (40, 100), ImagesConfig(size=64, resize="crop"))
    assert (heat[:, 30:70] == 1).all()
    assert (heat[:, :30] == 0).all()
    assert (heat[:, 70:] == 0).all()


def test_colours_change_evenly() -> None:
    """Equal steps of evidence are about equal steps of lightness, and both signs are equally dark."""
    positive, signed = lightness(colour_table(POSITIVE)), lightness(colour_table(SIGNED))
    assert (np.diff(positive) > 0).all()
    against, favour = signed[:128], signed[:127:-1]
    assert (np.diff(against) > 0).all()
    assert (np.diff(favour) > 0).all()
    assert np.abs(against - favour).max() < 8
    for steps in (np.diff(positive[::15]), np.diff(against[::15]), np.diff(favour[::15])):
        assert steps.max() < 2.5 * steps.min()


def test_no_evidence_leaves_the_picture_as_it_is() -> None:
    """Nor does what speaks against the class, unless signs are asked for."""
    grey = np.full((8, 8, 3), 128, np.uint8)
    np.testing.assert_array_equal(lay_over(grey, np.zeros((8, 8)), 0.0, signed=True), grey)
    np.testing.assert_array_equal(lay_over(grey, np.full((8, 8), -1.0), 1.0, signed=False), grey)
    against, favour = (lay_over(grey, np.full((8, 8), s), 1.0, signed=True)[0, 0] for s in (-1.0, 1.0))
    assert int(against[2]) - int(against[0]) > 60
    assert int(favour[0]) - int(favour[2]) > 60


def test_pictures_keep_their_own_size() -> None:
    """Very large ones get smaller, tiny ones a multiple: text must fit beside them."""
    sizes = {(700, 460): (700, 460), (3200, 1000): (LONGEST, 500), (50, 50): (400, 400)}
    for size, expected in sizes.items():
        assert fit(Picture.new("RGB", size), 400).size == expected


@pytest.mark.parametrize("size", [(50, 50), (700, 460), (30, 300), (1200, 60)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_sheet_shows_the_picture_as_it_is(size: tuple[int, int], count: int) -> None:
    """Pixel by pixel where it is not enlarged, four cells in a line at most; nothing is cut off."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
    panels = [Panel(("net" * 40, "malignant 0.50"), "logits per cell", np.ones((2, 2)))] * count
    sheet = np.asarray(draw_sheet(["name" * 100, "said"], picture, ImagesConfig(size=32), panels))
    shown = np.asarray(fit(Picture.fromarray(picture), 400))
    height, width, _ = shown.shape
    cell = max(width, min(400, 2 * height))
    assert sheet.shape[1] < (min(4, count + 1) + 0.5) * (cell + 30)
    corner = next(
        (top, left)
        for top in range(sheet.shape[0] - height)
        for left in range(min(cell, sheet.shape[1] - width))
        if np.array_equal(sheet[top, left : left + width], shown[0])
    )
    top, left = corner
    np.testing.assert_array_equal(sheet[top : top + height, left : left + width], shown)
    assert (sheet[:, -3:] == 255).all()
    assert (sheet[-3:] == 255).all()


@pytest.mark.parametrize(
    ("unit", "value", "coloured"),
    [
        ("logits per cell", 8.2e-6, False),
        ("logits per cell", 0.02, True),
        ("logits per cell", -1.0, False),
        ("no unit", 8.2e-6, True),
        ("no unit", 0.0, False),
    ],
)
def test_negligible_evidence_has_no_colour(unit: str, value: float, coloured: bool) -> None:
    """In logits the size of a map counts, in other methods only whether there is any."""
    picture = np.full((60, 60, 3), 128, np.uint8)
    panels = [Panel(("net", "benign 0.50"), unit, np.full((7, 7), value))]
    sheet = np.asarray(draw_sheet(["a.png"], picture, ImagesConfig(size=32), panels)).astype(int)
    assert (np.ptp(sheet, axis=2) > 0).any() == coloured


def test_a_file_is_a_photograph_in_full_colour(tmp_path: Path) -> None:
    """No palette; files of one name are numbered."""
    overlays = Overlays(tmp_path)
    pixels = np.zeros((460, 700, 3), np.uint8)
    panel = Panel(("net", "benign 0.50"), "no unit", -np.ones((2, 2)))
    paths = [overlays.draw("a", ["a.png"], pixels, ImagesConfig(), [panel]) for _ in range(2)]
    assert [path.name for path in paths] == ["a.png", "a-2.png"]
    with Picture.open(paths[0]) as sheet:
        assert sheet.mode == "RGB"


def test_long_texts_lose_their_middle() -> None:
    """Names differ at their ends, and begin with what they are of."""
    assert shorten("short", 10, len) == "short"
    assert shorten("SOB_B_PT-14-21998AB-100-015.png", 20, len) == "SOB_B_P…-100-015.png"
    assert shorten("abc", 0, len) == "…"
    font = font_of(20)
    assert font.getlength(shorten("m" * 100, 300, font.getlength)) <= 300
