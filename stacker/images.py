"""Decode once: every image becomes a square of uint8 pixels in one memory-mapped array.

Decoding a BreakHis PNG costs about 10 ms and every epoch of every fold of every backbone would pay it
again. The store pays once; training and caching read rows of it. Its file name is a digest of the
sources' content and of the resize settings, so runs share a store and a changed file never meets a
stale one. Scaling to a backbone's mean and standard deviation happens later, on the device.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from stacker.config import ImagesConfig
from stacker.errors import DataError, UnreadableImages
from stacker.manifest import Manifest
from stacker.progress import track
from stacker.run import digest, publish, require_space, sweep

MAX_PIXELS = 100_000_000
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


def decode(path: Path | str, config: ImagesConfig) -> np.ndarray:
    """Return one picture as (size, size, 3) uint8; raise DataError with the path and the reason."""
    try:
        with Picture.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{path}: {picture.size} is more than {MAX_PIXELS:,} pixels")
            if picture.mode not in EIGHT_BIT_MODES:
                raise DataError(f"{path}: pixels of type {picture.mode}; convert it to 8-bit RGB")
            rgb = _on_white(picture)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or of a format that Pillow does not know") from None
    except (OSError, SyntaxError, Picture.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be decoded: {reason}") from None
    if config.resize == "crop":
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        rgb = rgb.crop((left, top, left + side, top + side))
    side = config.size
    if rgb.size != (side, side):
        rgb = rgb.resize((side, side), Picture.Resampling.BICUBIC)
    return np.asarray(rgb)


def _on_white(picture: Picture.Image) -> Picture.Image:
    """Return the picture as RGB; what is transparent becomes white, the colour of an empty slide."""
    if "A" in picture.mode or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Picture.alpha_composite(Picture.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def open_store(folder: Path, manifest: Manifest, config: ImagesConfig) -> np.ndarray:
    """Return all images as (N, size, size, 3) uint8, memory-mapped, in the manifest's order.

    They are decoded first when no run has done so before; raise UnreadableImages with all that fail.
    """
    key = digest([[(image.id, image.sha256) for image in manifest.images], config.model_dump()])
    file = folder / f"{key}.npy"
    if not file.exists():
        _pack(file, manifest, config)
    pixels: np.ndarray = np.load(file, mmap_mode="r")
    return pixels


def _pack(file: Path, manifest: Manifest, config: ImagesConfig) -> None:
    shape = (len(manifest.images), config.size, config.size, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    sweep(file.parent)
    require_space(file.parent, math.prod(shape))
    reasons: dict[int, str] = {}
    with publish(file) as temporary:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

        def fill(row: int) -> None:
            try:
                pixels[row] = decode(manifest.images[row].path, config)
            except DataError as error:
                reasons[row] = str(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the GIL
            for _ in track(pool.map(fill, range(shape[0])), "decode images", total=shape[0]):
                pass
        if reasons:
            raise UnreadableImages(reasons, shape[0])
        pixels.flush()
