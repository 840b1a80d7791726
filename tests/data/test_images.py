"""A picture becomes a square of pixels, or is refused with its path and the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.images import decode, read_mask, resize
from stacker.data.manifest import Image
from stacker.errors import DataError

SIZE = ImagesConfig(size=32)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_eight_bit_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, palette, alpha, CMYK and bilevel pictures of one colour keep their colour."""
    path = tmp_path / "picture.tiff"
    Picture.new("RGB", (40, 40), "white").convert(mode).save(path)
    assert decode(path, SIZE).min() >= 254


def test_transparent_becomes_white(tmp_path: Path) -> None:
    """Where a picture has no tissue it is as white as an empty slide, not black."""
    path = tmp_path / "clear.png"
    Picture.new("RGBA", (40, 40), (0, 0, 0, 0)).save(path)
    assert decode(path, SIZE).min() == 255


def test_sixteen_bit_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Sixteen bits would be cut to eight silently: convert them on purpose."""
    path = tmp_path / "deep.png"
    Picture.fromarray(np.full((40, 40), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match="I;16"):
        decode(path, SIZE)


def test_squash_keeps_all_and_crop_keeps_the_aspect(tmp_path: Path) -> None:
    """A wide picture with red sides: squashed, the sides stay; cropped, they are gone."""
    pixels = np.full((40, 80, 3), 255, np.uint8)
    pixels[:, :16] = pixels[:, -16:] = (255, 0, 0)
    path = tmp_path / "wide.png"
    Picture.fromarray(pixels).save(path)
    assert tuple(decode(path, ImagesConfig(size=40))[20, 1]) == (255, 0, 0)
    assert decode(path, ImagesConfig(size=40, resize="crop")).min() == 255


def test_pad_keeps_everything_and_adds_white(tmp_path: Path) -> None:
    """A wide red picture ends in a band of its own shape between white ones."""
    path = tmp_path / "wide.png"
    Picture.new("RGB", (80, 40), "red").save(path)
    pixels = decode(path, ImagesConfig(size=40, resize="pad"))
    assert (pixels[10:30] == (255, 0, 0)).all()
    assert pixels[:10].min() == pixels[30:].min() == 255


def test_masks_are_padded_with_black(tmp_path: Path) -> None:
    """What is added to an image belongs to no lesion."""
    masks = tmp_path / "masks"
    masks.mkdir()
    Picture.new("L", (80, 40), 255).save(masks / "wide.png")
    settings = {
        "run": "r",
        "data": {"path": str(tmp_path), "masks": str(masks)},
        "images": {"size": 40, "resize": "pad"},
        "backbones": {"resnet18": None},
    }
    mask = read_mask(Image("wide", "elsewhere/wide.png", "x"), Config.model_validate(settings))
    assert mask is not None
    assert mask[10:30].all()
    assert not mask[:10].any()
    assert not mask[30:].any()


@pytest.mark.parametrize("way", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(16, 2000), (2000, 16), (33, 32), (400, 400)])
def test_every_shape_becomes_the_square(way: str, shape: tuple[int, int]) -> None:
    """Slivers, tall ones, and shapes that differ by a pixel."""
    config = ImagesConfig.model_validate({"size": 32, "resize": way})
    assert resize(np.zeros((*shape, 3), np.uint8), config).shape == (32, 32, 3)


def test_the_right_size_is_not_touched() -> None:
    """Pixels that fit are not resampled."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resize(noise, SIZE), noise)


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path: Path) -> None:
    """One entry of the palette is clear, the other keeps its colour."""
    picture = Picture.new("P", (40, 40), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (0, 0, 20, 40))
    picture.save(tmp_path / "clear.png", transparency=0)
    pixels = decode(tmp_path / "clear.png", ImagesConfig(size=40))
    assert (pixels[:, :20] == (255, 0, 0)).all()
    assert (pixels[:, 20:] == 255).all()


def test_a_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    """Adobe writes the four inks upside down: red stays red."""
    path = tmp_path / "inks.jpg"
    Picture.new("CMYK", (40, 40), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = decode(path, SIZE)[16, 16]
    assert red > 245
    assert max(green, blue) < 10


def frames(count: int) -> list[Picture.Image]:
    """Return pictures that differ."""
    return [Picture.new("RGB", (40, 40), (80 * n, 0, 0)) for n in range(count)]


@pytest.mark.parametrize("name", ["moving.gif", "pages.tiff", "moving.png", "moving.webp"])
def test_several_frames_are_refused(tmp_path: Path, name: str) -> None:
    """Which frame counts is not guessed; one frame alone is a picture."""
    first, *rest = frames(3)
    first.save(tmp_path / name, save_all=True, append_images=rest)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: 3 frames or pages; save the one"):
        decode(tmp_path / name, SIZE)
    first.save(tmp_path / name)
    assert decode(tmp_path / name, SIZE).max() < 10


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((1, 50, 3), np.uint8), "50x1 is too small, each side needs 16 pixels"),
        (np.zeros((50, 15), np.uint8), "15x50 is too small"),
        (np.zeros((40, 40), np.uint16), "pixels of type I;16; convert it to 8-bit RGB"),
        (np.zeros((40, 40), np.int32), "pixels of type I; convert"),
        (np.zeros((40, 40), np.float32), "pixels of type F; convert"),
    ],
    ids=["1 high", "15 wide", "16 bits", "32 bits", "float"],
)
def test_what_would_be_guessed_at_is_refused(tmp_path: Path, pixels: Any, reason: str) -> None:
    """The refusal has the path, what was found and what to do."""
    path = tmp_path / "odd.tiff"
    Picture.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=re.escape(f"{path}: {reason}")):
        decode(path, SIZE)


def test_the_smallest_side_is_enough(tmp_path: Path) -> None:
    """Sixteen pixels a side are taken."""
    Picture.new("RGB", (16, 16), "red").save(tmp_path / "small.png")
    assert (decode(tmp_path / "small.png", SIZE) == (255, 0, 0)).all()


def test_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole slide is to be cut into tiles."""
    monkeypatch.setattr("stacker.data.images.MAX_PIXELS", 1599)
    Picture.new("RGB", (40, 40)).save(tmp_path / "slide.png")
    with pytest.raises(DataError, match=r"slide\.png: 40x40 is more than 1,599 pixels; split it into"):
        decode(tmp_path / "slide.png", SIZE)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp", ".webp"])
def test_a_picture_that_is_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    """Half a file is no picture with a grey half."""
    path = tmp_path / f"half{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Picture.fromarray(noise).save(path)
    decode(path, SIZE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"half\{suffix}: (cannot be decoded|not an image)"):
        decode(path, SIZE)


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A folder where a picture should be, or nothing at all."""
    with pytest.raises(DataError, match=f"{tmp_path}: cannot be read: Is a directory"):
        decode(tmp_path, SIZE)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read: No such file"):
        decode(tmp_path / "gone.png", SIZE)
