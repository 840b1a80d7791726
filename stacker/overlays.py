"""An image beside the maps of the class that was predicted, one panel for each backbone.

Drawn pixel by pixel: a figure with axes and bars takes a second, this takes hundredths of one, and new
images come by the thousand. Each panel has its own scale, from nothing to its map's maximum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from stacker.heatmaps import upsample
from stacker.run import publish

STRONG_ALPHA = 0.75
TEXT, LINE, GAP = 12, 16, 4
COLOURS = np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255)


def lay_over(pixels_HWC: np.ndarray, map_hw: np.ndarray) -> np.ndarray:
    """Return pixels with what of a map speaks for its class laid over them."""
    height, width, _ = pixels_HWC.shape
    heat = upsample(map_hw, (height, width)).clip(min=0)
    heat = heat / heat.max() if heat.max() > 0 else heat
    alpha = STRONG_ALPHA * np.sqrt(heat)[..., None]
    colours = COLOURS[np.round(heat * 255).astype(np.int64)]
    found: np.ndarray = np.round(pixels_HWC * (1 - alpha) + colours * alpha).astype(np.uint8)
    return found


@dataclass
class Overlays:
    """A folder of overlays, each under its image's name; those of one name are numbered."""

    folder: Path
    names: set[str] = field(default_factory=set)

    def draw(
        self, stem: str, title: str, pixels_HWC: np.ndarray, panels: Mapping[str, np.ndarray]
    ) -> Path:
        """Draw an image and its panels; return the path of the PNG."""
        name, number = f"{stem}.png", 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}.png"
        self.names.add(name)
        draw_overlays(self.folder / name, title, pixels_HWC, panels)
        return self.folder / name


def draw_overlays(
    path: Path, title: str, pixels_HWC: np.ndarray, panels: Mapping[str, np.ndarray]
) -> None:
    """Publish a PNG of the image and its overlays, each map (h, w) under its caption of two lines."""
    height, width, _ = pixels_HWC.shape
    step, top = width + GAP, 2 * LINE + GAP
    pictures = [pixels_HWC, *(lay_over(pixels_HWC, heat) for heat in panels.values())]
    sheet = Picture.new("RGB", (step * len(pictures) - GAP, top + height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for number, (caption, pixels) in enumerate(zip([title, *panels], pictures, strict=True)):
        sheet.paste(Picture.fromarray(pixels), (number * step, top))
        for line, text in enumerate(caption.split("\n")[:2]):
            draw.text((number * step + 2, line * LINE), _fitting(text, font, width), "black", font)
    with publish(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=3)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text, or as much of its end as is not too wide: names differ at their ends."""
    if font.getlength(text) <= width - 2:
        return text
    short = text
    while short and font.getlength(f"...{short}") > width - 2:
        short = short[1:]
    return f"...{short}"
