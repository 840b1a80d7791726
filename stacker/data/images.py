"""From an image file to a rectangle of uint8 pixels, or a reason why not.

Files that would have to be guessed at (16-bit pixels, several frames, slivers of tissue) are refused
with path and reason. Greyscale, palette, CMYK and transparent images become RGB. Images that are rows of
an HDF5 array, as in PatchCamelyon, are read in place.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from PIL import Image as Picture
from PIL import ImageFilter, ImageOps, UnidentifiedImageError

from stacker.config.data import ImagesConfig
from stacker.config.root import Config
from stacker.data.manifest import Image
from stacker.errors import DataError

Shown: TypeAlias = str | Path | np.ndarray | Picture.Image  # one image, or a path that names several
MAX_PIXELS = 100_000_000
MIN_SIDE = 16  # a sliver of tissue (IDC has patches of 50x1) shows no nucleus
GRID = 48  # pixels a side of a small grey picture
FLAT = 5.0  # standard deviation of its levels below which it shows nothing that could be compared
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def resize(pixels_HWC: np.ndarray, config: ImagesConfig, background: str = "white") -> np.ndarray:
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
        return decode_file(path, config, background)
    except UnusableError as error:
        raise DataError(f"{path}: {error}") from None


def decode_image(image: Image, config: ImagesConfig) -> np.ndarray:
    """Return the pixels of one row of a manifest, from its file or its array."""
    return resize(source_of(image), config)


def source_of(image: Image) -> np.ndarray:
    """Return the pixels of one row of a manifest in the size that they have."""
    if image.index is not None:
        pixels: np.ndarray = open_array(Path(image.path), "x")[image.index]
        return pixels
    try:
        return own_size(image.path)
    except UnusableError as error:
        raise DataError(f"{image.path}: {error}") from None


class UnusableError(Exception):
    """Why a file's content is no picture to work with."""


def own_size(image: Path | str | np.ndarray | Picture.Image, background: str = "white") -> np.ndarray:
    """Return a picture or that of a file as (height, width, 3) uint8, in the size that it has."""
    if isinstance(image, str | Path):
        return _decode(_content(image), background)
    picture = Picture.fromarray(image) if isinstance(image, np.ndarray) else image
    return _pixels(picture, background)


def decode_file(path: Path | str, config: ImagesConfig, background: str = "white") -> np.ndarray:
    """Return one picture as (height, width, 3) uint8; raise UnusableError with the reason alone."""
    return decode_bytes(_content(path), config, background)


def _content(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror}") from None


def decode_bytes(content: bytes, config: ImagesConfig, background: str = "white") -> np.ndarray:
    """Return a file's content as (height, width, 3) uint8; raise UnusableError with the reason."""
    return resize(_decode(content, background), config, background)


def _decode(content: bytes, background: str) -> np.ndarray:
    """Return a file's content in its own size; raise UnusableError with the reason."""
    try:
        with Picture.open(io.BytesIO(content)) as picture:
            return _pixels(picture, background)
    except UnidentifiedImageError:
        raise UnusableError("not an image, or a format that Pillow does not know") from None
    except (UnusableError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  # what Pillow raises for damaged files is no closed list
        raise UnusableError(f"cannot be decoded: {error}") from None


def decode_picture(picture: np.ndarray | Picture.Image, config: ImagesConfig) -> np.ndarray:
    """Return a picture in memory as its file would come out; raise UnusableError with the reason."""
    return resize(own_size(picture), config)


def each_of(images: Any) -> Iterable[Any]:
    """Return images as they are given, paths or pictures, or the one that is given alone."""
    one = isinstance(images, str | Path | Picture.Image)
    return [images] if one or (isinstance(images, np.ndarray) and images.ndim == 3) else images


def require_pixels(picture: np.ndarray | Picture.Image) -> None:
    """Raise DataError for an array that is not (height, width, 3) of uint8: its scale is not known."""
    if isinstance(picture, np.ndarray) and not (
        picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    ):
        raise DataError(
            f"an image is a {picture.dtype} array of shape {picture.shape}, expected uint8 of shape "
            "(height, width, 3), RGB from 0 to 255",
            "convert it, or pass a path or a PIL image",
        )


def _pixels(picture: Picture.Image, background: str) -> np.ndarray:
    _refuse_unusable(picture)
    return np.asarray(_opaque(picture, background))


def _refuse_unusable(picture: Picture.Image) -> None:
    """Raise for a picture whose pixels would have to be guessed at, before they are decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnusableError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels; split it into tiles")
    if min(width, height) < MIN_SIDE:
        raise UnusableError(f"{width}x{height} is too small, each side needs {MIN_SIDE} pixels")
    raw = " ".join(str(tile[3]) for tile in getattr(picture, "tile", []))
    if picture.mode not in EIGHT_BIT_MODES or ";16" in raw:  # Pillow cuts 16-bit RGB to 8 without a word
        depth = " in 16 bits" if picture.mode in EIGHT_BIT_MODES else ""
        raise UnusableError(f"pixels of type {picture.mode}{depth}; convert it to 8-bit RGB")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a camera's JPEG with a preview behind it
        raise UnusableError(f"{frames} frames or pages; save the one you need as its own file")


def _opaque(picture: Picture.Image, background: str) -> Picture.Image:
    """Return the picture as RGB; what is transparent becomes white, the colour of an empty slide."""
    if "A" in picture.mode or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Picture.alpha_composite(Picture.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return picture.convert("RGB")


def small_grey(image_HWC: np.ndarray) -> np.ndarray:
    """Return a smoothed grey picture, (GRID, GRID) uint8, without the white borders of `resize: pad`."""
    picture = Picture.fromarray(image_HWC).convert("L")
    picture = picture.crop(ImageOps.invert(picture).getbbox())
    picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 112))
    return np.asarray(picture.resize((GRID, GRID), Picture.Resampling.BOX))


class ContiguousArray:
    """Rows of an array that lies in a file in one piece, read without HDF5's overhead per call.

    A memory map would be as fast, but the file's pages would count as this process's memory.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file = path.open("rb", buffering=0)
        self.offset, self.shape, self.dtype = offset, shape, dtype
        self.row_bytes = dtype.itemsize * math.prod(shape[1:])

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """Return one row, or a slice of consecutive rows."""
        start, stop, _ = rows.indices(len(self)) if isinstance(rows, slice) else (rows, rows + 1, 1)
        wanted = max(0, stop - start) * self.row_bytes
        content = os.pread(self.file.fileno(), wanted, self.offset + int(start) * self.row_bytes)
        if len(content) != wanted:
            raise DataError(f"{self.file.name} ends before row {stop - 1}", "download it again")
        values = np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])
        return values if isinstance(rows, slice) else values[0]


def open_array(path: Path, name: str) -> Any:
    """Open an array of an HDF5 file, to be read by row or by slice of rows."""
    try:
        dataset = h5py.File(path, "r")[name]
        offset = dataset.id.get_offset()
    except FileNotFoundError:
        raise DataError(
            f"no file at {path}", "put PatchCamelyon's x and y files into one folder"
        ) from None
    except (OSError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as HDF5 with a dataset '{name}': {error}", "download it again"
        ) from None
    if offset is None or not hasattr(os, "pread"):  # Windows has no pread
        return dataset
    return ContiguousArray(path, offset, dataset.shape, dataset.dtype)


def mask_file(image: Image, config: Config) -> Path | None:
    """Return the file of an image's lesion mask, or None when it has none."""
    path = None if config.data.masks is None else config.data.masks / Path(image.path).name
    return path if path is not None and path.exists() else None


def read_mask(image: Image, config: Config) -> np.ndarray | None:
    """Return an image's lesion mask as (height, width) bool, or None when it has none."""
    path = mask_file(image, config)
    return None if path is None else decode(path, config.images, "black")[..., 0] > 127
