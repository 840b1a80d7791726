"""From a picture file to a rectangle of uint8 pixels, or a reason why not.

What would have to be guessed at (16-bit pixels, several frames, slivers of tissue) is refused with its
path and reason; grey, palette, CMYK and transparent pictures become RGB.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageOps, UnidentifiedImageError

from stacker.config import ImagesConfig
from stacker.errors import DataError
from stacker.manifest import Image
from stacker.pcam import open_array

MAX_PIXELS = 100_000_000
MIN_SIDE = 16  # a sliver of tissue (IDC has patches of 50x1) shows no nucleus
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def fit(pixels_HWC: np.ndarray, config: ImagesConfig, background: str = "white") -> np.ndarray:
    """Return pixels as a rectangle of the config's size: squashed, cropped or padded."""
    height, width = config.shape
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    picture = Picture.fromarray(pixels_HWC)
    if config.resize == "crop":
        picture = ImageOps.fit(picture, (width, height), Picture.Resampling.BICUBIC)
    elif config.resize == "pad":
        picture = ImageOps.pad(picture, (width, height), Picture.Resampling.BICUBIC, background)
    else:
        picture = picture.resize((width, height), Picture.Resampling.BICUBIC)
    return np.asarray(picture)


def decode(path: Path | str, config: ImagesConfig, background: str = "white") -> np.ndarray:
    """Return one picture as (height, width, 3) uint8; raise DataError with the path and the reason."""
    try:
        return decode_bytes(Path(path).read_bytes(), config, background)
    except UnusableError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def decode_image(image: Image, config: ImagesConfig) -> np.ndarray:
    """Return the pixels of one row of a manifest, from its file or its array."""
    if image.index is None:
        return decode(image.path, config)
    return fit(open_array(Path(image.path), "x")[image.index], config)


class UnusableError(Exception):
    """Why a file's content is no picture to work with."""


def decode_bytes(content: bytes, config: ImagesConfig, background: str = "white") -> np.ndarray:
    """Return a file's content as (height, width, 3) uint8; raise UnusableError with the reason."""
    try:
        with Picture.open(io.BytesIO(content)) as picture:
            _refuse_unusable(picture)
            rgb = _opaque(picture, background)
    except UnidentifiedImageError:
        raise UnusableError("not an image, or of a format that Pillow does not know") from None
    except (UnusableError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  # what Pillow raises for damaged files is no closed list
        raise UnusableError(f"cannot be decoded: {error}") from None
    return fit(np.asarray(rgb), config, background)


def _refuse_unusable(picture: Picture.Image) -> None:
    """Raise for a picture whose pixels would have to be guessed at, before they are decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnusableError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels; cut it into tiles")
    if min(width, height) < MIN_SIDE:
        raise UnusableError(f"{width}x{height} is too small, {MIN_SIDE} pixels a side are needed")
    raw = " ".join(str(tile[3]) for tile in getattr(picture, "tile", []))
    if picture.mode not in EIGHT_BIT_MODES or ";16" in raw:  # Pillow cuts 16-bit RGB to 8 without a word
        depth = " in 16 bits" if picture.mode in EIGHT_BIT_MODES else ""
        raise UnusableError(f"pixels of type {picture.mode}{depth}; convert it to 8-bit RGB")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a camera's JPEG with a preview behind it
        raise UnusableError(f"{frames} frames or pages; keep the one that counts")


def _opaque(picture: Picture.Image, background: str) -> Picture.Image:
    """Return the picture as RGB; what is transparent becomes white, the colour of an empty slide."""
    if "A" in picture.mode or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Picture.alpha_composite(Picture.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return picture.convert("RGB")
