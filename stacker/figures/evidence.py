"""Evidence as colour: a map brought to the size of its picture, and laid over it.

A map is on a coarse grid over what the base model was shown. It is interpolated and drawn where that
lies in the picture, which is shown in its own resolution. Strong evidence is opaque, none is clear.
"""

from __future__ import annotations

import numpy as np
import PIL.Image

from stacker.config.data import ImagesConfig

STRONG_ALPHA = 0.75
LONGEST = 1600  # pixels of the longer side at most
# Colours at equal steps: inferno without its black, which would look like a shadow in the picture; and a
# blue and an orange that are equally dark at equal distance from the middle. Lightness changes evenly,
# and the colour-blind can tell them apart.
POSITIVE = (
    "3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)
SIGNED = (
    "1a61b2 3974bc 5386c6 6d98cf 87aad8 a1bde1 bbcfe8 d6e1ef f3f3f3 eedcd4 e5c5b7 dcaf9b d2997f c78364 "
    "bb6c48 ae562a a13f00"
)
LOGITS = "logits per cell"
# In all cells together: evidence that changes no probability by more than 0.0025 is drawn as none.
NEGLIGIBLE = 0.01
IN_LOGITS = ("gradcam", "xgradcam", "hirescam", "shapleycam", "layercam", "gradcamelementwise")


def colour_table(steps: str) -> np.ndarray:
    """Return 256 colours (256, 3), from 0 to 255, between those of the steps."""
    anchors = np.array([list(bytes.fromhex(step)) for step in steps.split()], dtype=np.float64)
    places = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(places, np.arange(len(anchors)), anchor) for anchor in anchors.T]
    return np.stack(columns, axis=1).astype(np.float32)


TABLES = {False: colour_table(POSITIVE), True: colour_table(SIGNED)}


def unit_of(method: str) -> str:
    """Return what the values of a method's maps are measured in."""
    return LOGITS if method in IN_LOGITS else "no unit"


def limit_of(map_hw: np.ndarray, heat_HW: np.ndarray, unit: str) -> float:
    """Return the end of a map's scale, its largest value; 0 where there is no evidence to draw.

    A map in logits has none where all its cells with that value would add up to less than NEGLIGIBLE.
    """
    limit = max(0.0, float(heat_HW.max()))
    return 0.0 if unit == LOGITS and limit * map_hw.size < NEGLIGIBLE else limit


def upsample(map_hw: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map as float32 of (height, width), bilinearly interpolated."""
    small = PIL.Image.fromarray(np.ascontiguousarray(map_hw, dtype=np.float32))
    height, width = size
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.BILINEAR))


def frame_of(size: tuple[int, ...], images: ImagesConfig) -> tuple[int, int, int, int]:
    """Return left, top, width and height of what base models are shown of a picture (height, width).

    A squashed picture is shown whole, a cropped one less its edges, a padded one with more around it.
    """
    height, width = size
    shown_height, shown_width = images.shape
    scales = shown_height / height, shown_width / width
    if images.resize == "squash":
        return 0, 0, width, height
    scale = max(scales) if images.resize == "crop" else min(scales)
    of_height, of_width = round(shown_height / scale), round(shown_width / scale)
    return (width - of_width) // 2, (height - of_height) // 2, of_width, of_height


def spread(map_hw: np.ndarray, size: tuple[int, ...], images: ImagesConfig) -> np.ndarray:
    """Return a map over a whole picture (height, width); what the base model was not shown has none."""
    left, top, width, height = frame_of(size, images)
    canvas = PIL.Image.new("F", (size[1], size[0]))
    canvas.paste(PIL.Image.fromarray(upsample(map_hw, (height, width))), (left, top))
    return np.asarray(canvas)


def fit(picture: PIL.Image.Image, narrowest: int) -> PIL.Image.Image:
    """Return a picture in its own size; a very large one smaller, a narrow one some times larger."""
    width, height = picture.size
    if max(width, height) > LONGEST:
        scale = LONGEST / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return picture.resize(size, PIL.Image.Resampling.LANCZOS)
    times = min(-(-narrowest // width), LONGEST // max(width, height))
    return picture.resize((width * times, height * times), PIL.Image.Resampling.BICUBIC)


def lay_over(pixels_HWC: np.ndarray, heat_HW: np.ndarray, limit: float, signed: bool) -> np.ndarray:
    """Return pixels with evidence over them, on a scale from 0, or from -limit, to limit."""
    if limit <= 0:
        return pixels_HWC
    share = np.clip(heat_HW.astype(np.float32) / limit, -1 if signed else 0, 1)
    place = (share + 1) / 2 if signed else share
    colours = TABLES[signed][(place * 255 + 0.5).astype(np.uint8)]
    alpha = STRONG_ALPHA * np.sqrt(np.abs(share))[..., None]
    blended: np.ndarray = (pixels_HWC + alpha * (colours - pixels_HWC) + 0.5).astype(np.uint8)
    return blended


def scale_bar(width: int, height: int, signed: bool) -> np.ndarray:
    """Return the colours of a scale (height, width, 3) as they look over a white picture."""
    share = np.linspace(-1 if signed else 0, 1, width)
    white = np.full((height, width, 3), 255, np.uint8)
    return lay_over(white, np.tile(share, (height, 1)), 1, signed)
