"""Maps over images: a sheet of what is cached, and the overlays of what is predicted.

A sheet is a figure with axes and colour bars; a column of it shares one scale, in units of the logit.
An overlay is drawn pixel by pixel: a figure takes a second, this takes hundredths of one, and new images
come by the thousand. Each of its panels has its own scale, from nothing to its map's maximum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import ImageDraw, ImageFont

from stacker.caches.format import map_classes
from stacker.caches.reader import Cache
from stacker.data.images import decode_image, read_mask
from stacker.errors import ConfigError, require_one_of
from stacker.figures.canvas import LEAK_COLOUR, STRONG_ALPHA, Sheet
from stacker.files import publish
from stacker.run import BaseModel, Run

TEXT, LINE, GAP = 12, 16, 4
COLOURS = np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255)


def upsample(map_hw: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map as float32 of (height, width), bilinearly interpolated."""
    small = PIL.Image.fromarray(np.ascontiguousarray(map_hw, dtype=np.float32))
    height, width = size
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.BILINEAR))


def draw(
    run: Run,
    caches: dict[BaseModel, Cache],
    image_ids: Sequence[str],
    backbones: Sequence[str] = (),
    classes: Sequence[str] = (),
    signed: bool = False,
    maps: str = "maps",
) -> Figure:
    """Draw cached maps over images: one column per backbone and class, one row per image.

    Every backbone and the last class (malignant, in BreakHis) are taken when none is named; `maps` is
    the dataset that they are taken from. Test images are cached once per fold: their maps are averaged,
    for the eye only. Raise ConfigError for an image, backbone, class or dataset that is not there.
    """
    known = list(dict.fromkeys(name for cache in caches.values() for name in cache.maps))
    if maps not in known:
        raise ConfigError(
            f"no maps {maps!r} are cached; {', '.join(known)} are (cam.methods, cam.lower)"
        )
    by_backbone: dict[str, list[Cache]] = defaultdict(list)
    for base, cache in caches.items():
        if maps in cache.maps:
            by_backbone[base.backbone].append(cache)
    manifest, by_id = run.manifest, {image.id: image for image in run.manifest.images}
    backbones = list(backbones) or list(by_backbone)
    classes = list(classes) or [manifest.classes[-1]]
    require_one_of("backbone", backbones, sorted(by_backbone))
    require_one_of("class", classes, manifest.classes)
    require_one_of("image", image_ids, by_id)
    panels = {}
    for backbone in backbones:
        averaged = _mean_maps(by_backbone[backbone], image_ids, maps)
        shown = map_classes(manifest.classes, by_backbone[backbone][0].shapes[maps][0])
        title = backbone if maps == "maps" else f"{backbone}, {maps}"
        for label in classes if shown == manifest.classes else shown:
            panels[f"{title}\n{label}"] = [maps_Khw[shown.index(label)] for maps_Khw in averaged]
    rows = []
    for image in (by_id[image_id] for image_id in image_ids):
        pixels, mask = decode_image(image, run.config.images), read_mask(image, run.config)
        rows.append(SheetRow(f"{image.id}\ntrue label: {image.label}", pixels, mask))
    return heatmap_sheet(rows, panels, signed, run.folds.label if run.folds.leaks else "")


def _mean_maps(caches: Sequence[Cache], image_ids: Sequence[str], dataset: str) -> list[np.ndarray]:
    """Return each image's maps (K, h, w), averaged over the caches that hold it."""
    maps_of: dict[bytes, list[np.ndarray]] = {image_id.encode(): [] for image_id in image_ids}
    for cache in caches:
        mask = np.isin(cache.rows.image_id, list(maps_of))
        for image_id, maps in zip(cache.rows.image_id[mask], cache.read(dataset, mask), strict=True):
            maps_of[image_id].append(maps.astype(np.float32))
    missing = [image_id.decode() for image_id, maps in maps_of.items() if not maps]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not cached: it trained the base models",
            "choose an image that was held out (see --sample)",
        )
    return [np.mean(maps_of[image_id.encode()], axis=0) for image_id in image_ids]


@dataclass(frozen=True)
class SheetRow:
    """One row of a heatmap sheet: pixels (S, S, 3), what to call them, and their mask if any."""

    title: str
    pixels: np.ndarray
    mask: np.ndarray | None = None

    def show(self, axis: Axes) -> None:
        """Draw the pixels and the outline of the mask."""
        axis.imshow(self.pixels)
        if self.mask is not None:
            axis.contour(self.mask, levels=[0.5], colors="lime", linewidths=0.8)
        axis.set_axis_off()


def heatmap_sheet(
    rows: Sequence[SheetRow],
    panels: Mapping[str, Sequence[np.ndarray]],
    signed: bool,
    warning: str = "",
) -> Figure:
    """Return a sheet: on every row the image itself and then one overlay per panel.

    A panel holds one map (h, w) per row. Its colour scale is shared by its column, in units of the
    logit: the maps of two backbones are of different size, those of two images can be compared.
    """
    columns = 1 + len(panels)
    figure = Sheet(figsize=(2.5 * columns, 2.5 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        row.show(axis)
        axis.set_title(row.title, fontsize=7)
    for (name, maps), column in zip(panels.items(), axes.T[1:], strict=True):
        heats = [upsample(m, row.pixels.shape[:2]) for m, row in zip(maps, rows, strict=True)]
        heats = heats if signed else [heat.clip(min=0) for heat in heats]
        limit = max(float(np.abs(heat).max()) for heat in heats)
        scale = Normalize(-limit if signed else 0, limit if limit > 0 else 1)
        colours = ScalarMappable(scale, "RdBu_r" if signed else "inferno")
        for axis, row, heat in zip(column, rows, heats, strict=True):
            row.show(axis)
            overlay = colours.to_rgba(heat)
            overlay[..., 3] = STRONG_ALPHA * np.clip(np.abs(heat) / scale.vmax, 0, 1) ** 0.5
            axis.imshow(overlay)
        column[0].set_title(name, fontsize=8)
        bar = figure.colorbar(colours, ax=list(column), location="bottom", shrink=0.8, aspect=30)
        bar.ax.tick_params(labelsize=6)
    if warning:
        figure.suptitle(warning, fontsize=8, color=LEAK_COLOUR)
    return figure


@dataclass
class Overlays:
    """A folder of overlays, each under its image's name; those of one name are numbered."""

    folder: Path
    names: set[str] = field(default_factory=set)

    def draw(
        self, stem: str, title: str, pixels_HWC: np.ndarray, panels: Mapping[str, np.ndarray]
    ) -> Path:
        """Publish a PNG of an image and its overlays, each map (h, w) under its caption of two lines."""
        name, number = f"{stem}.png", 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}.png"
        self.names.add(name)
        height, width, _ = pixels_HWC.shape
        step, top = width + GAP, 2 * LINE + GAP
        pictures = [pixels_HWC, *(lay_over(pixels_HWC, heat) for heat in panels.values())]
        sheet = PIL.Image.new("RGB", (step * len(pictures) - GAP, top + height), "white")
        text, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
        for column, (caption, pixels) in enumerate(zip([title, *panels], pictures, strict=True)):
            sheet.paste(PIL.Image.fromarray(pixels), (column * step, top))
            for line, words in enumerate(caption.split("\n")[:2]):
                place = (column * step + 2, line * LINE)
                text.text(place, _fitting(words, font, width), "black", font)
        with publish(self.folder / name) as temporary:
            sheet.save(temporary, format="PNG", compress_level=3)
        return self.folder / name


def lay_over(pixels_HWC: np.ndarray, map_hw: np.ndarray) -> np.ndarray:
    """Return pixels with what of a map speaks for its class laid over them."""
    heat = upsample(map_hw, pixels_HWC.shape[:2]).clip(min=0)
    heat = heat / heat.max() if heat.max() > 0 else heat
    alpha = STRONG_ALPHA * np.sqrt(heat)[..., None]
    colours = COLOURS[np.round(heat * 255).astype(np.int64)]
    blended: np.ndarray = np.round(pixels_HWC * (1 - alpha) + colours * alpha).astype(np.uint8)
    return blended


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text, or as much of its end as is not too wide: names differ at their ends."""
    if font.getlength(text) <= width - 2:
        return text
    short = text
    while short and font.getlength(f"...{short}") > width - 2:
        short = short[1:]
    return f"...{short}"
