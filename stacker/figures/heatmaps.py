"""An image beside the maps of the class that was predicted, one panel for each backbone.

Drawn pixel by pixel: a figure with axes and bars takes a second, this takes hundredths of one, and new
images come by the thousand. Each panel has its own scale, from nothing to its map's maximum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image as Raster
from PIL import ImageDraw, ImageFont

from stacker.caches.format import map_classes
from stacker.caches.reader import Cache
from stacker.data.images import decode_image, read_mask
from stacker.data.manifest import Image, Manifest
from stacker.errors import ConfigError, require_one_of
from stacker.figures.canvas import LEAK_COLOUR, STRONG_ALPHA, Sheet
from stacker.files import publish
from stacker.run import BaseModel, Run

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
    sheet = Raster.new("RGB", (step * len(pictures) - GAP, top + height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for number, (caption, pixels) in enumerate(zip([title, *panels], pictures, strict=True)):
        sheet.paste(Raster.fromarray(pixels), (number * step, top))
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


def upsample(map_hw: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map as float32 of (height, width), bilinearly interpolated."""
    small = Raster.fromarray(np.ascontiguousarray(map_hw, dtype=np.float32))
    height, width = size
    return np.asarray(small.resize((width, height), Raster.Resampling.BILINEAR))


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
    caches = {key: cache for key, cache in caches.items() if maps in cache.maps}
    manifest = run.manifest
    backbones = list(backbones) or list(dict.fromkeys(backbone for backbone, _ in caches))
    classes = list(classes) or [manifest.classes[-1]]
    require_one_of("backbone", backbones, {backbone for backbone, _ in caches})
    require_one_of("class", classes, manifest.classes)
    images = _images(manifest, image_ids)
    panels = {}
    for backbone in backbones:
        own = [cache for (name, _), cache in caches.items() if name == backbone]
        found = _mean_maps(own, image_ids, maps)
        shown = map_classes(manifest.classes, own[0].shapes[maps][0])
        title = backbone if maps == "maps" else f"{backbone}, {maps}"
        for label in classes if shown == manifest.classes else shown:
            panels[f"{title}\n{label}"] = [found[image.id][shown.index(label)] for image in images]
    pictures = [_picture(image, run) for image in images]
    warning = run.folds.label if run.folds.leaks else ""
    return heatmap_sheet(pictures, panels, signed, warning)


def _images(manifest: Manifest, image_ids: Sequence[str]) -> list[Image]:
    by_id = {image.id: image for image in manifest.images}
    require_one_of("image", image_ids, by_id)
    return [by_id[image_id] for image_id in image_ids]


def _picture(image: Image, run: Run) -> Picture:
    title = f"{image.id}\ntrue label: {image.label}"
    return Picture(title, decode_image(image, run.config.images), read_mask(image, run.config))


def _mean_maps(caches: Sequence[Cache], image_ids: Sequence[str], dataset: str) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    wanted = {image_id.encode() for image_id in image_ids}
    for cache in caches:
        mask = np.isin(cache.rows.image_id, list(wanted))
        for image_id, maps in zip(cache.rows.image_id[mask], cache.read(dataset, mask), strict=True):
            found[image_id.decode()].append(maps.astype(np.float32))
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not cached: it trained the base models; choose an image that was held out "
            "(see --sample)"
        )
    return {image_id: np.mean(maps, axis=0) for image_id, maps in found.items()}


@dataclass(frozen=True)
class Picture:
    """One row of a heatmap sheet: pixels (S, S, 3), what to call it, and its mask if it has one."""

    title: str
    pixels: np.ndarray
    mask: np.ndarray | None = None


def heatmap_sheet(
    pictures: Sequence[Picture],
    panels: Mapping[str, Sequence[np.ndarray]],
    signed: bool,
    warning: str = "",
) -> Figure:
    """Return a sheet: a row per picture, the picture itself and then one overlay per panel.

    A panel holds one map (h, w) per picture. Its colour scale is shared by its column, in units of the
    logit: the maps of two backbones are of different size, those of two images can be compared.
    """
    rows, columns = len(pictures), 1 + len(panels)
    figure = Sheet(figsize=(2.5 * columns, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, picture in zip(axes[:, 0], pictures, strict=True):
        _show(axis, picture)
        axis.set_title(picture.title, fontsize=7)
    for (name, maps), column in zip(panels.items(), axes.T[1:], strict=True):
        heats = [upsample(m, p.pixels.shape[:2]) for m, p in zip(maps, pictures, strict=True)]
        limit = max(float(np.abs(h).max() if signed else h.max()) for h in heats)
        scale = Normalize(-limit if signed else 0, limit if limit > 0 else 1)
        colours = ScalarMappable(scale, "RdBu_r" if signed else "inferno")
        for axis, picture, heat in zip(column, pictures, heats, strict=True):
            _show(axis, picture)
            overlay = colours.to_rgba(heat if signed else heat.clip(min=0))
            strength = np.abs(heat) if signed else heat.clip(min=0)
            overlay[..., 3] = STRONG_ALPHA * np.clip(strength / scale.vmax, 0, 1) ** 0.5
            axis.imshow(overlay)
        column[0].set_title(name, fontsize=8)
        bar = figure.colorbar(colours, ax=list(column), location="bottom", shrink=0.8, aspect=30)
        bar.ax.tick_params(labelsize=6)
    if warning:
        figure.suptitle(warning, fontsize=8, color=LEAK_COLOUR)
    return figure


def _show(axis: Axes, picture: Picture) -> None:
    axis.imshow(picture.pixels)
    if picture.mask is not None:
        axis.contour(picture.mask, levels=[0.5], colors="lime", linewidths=0.8)
    axis.set_axis_off()
