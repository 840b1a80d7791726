"""A sheet of cached maps over their images: a figure with a scale below every column.

A column shares one scale: the maps of two backbones differ in size, those of two images can be compared.
Images are shown in their own resolution, and text has the size that it has in print.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from stacker.caches.format import map_classes
from stacker.caches.reader import Cache
from stacker.config.data import ImagesConfig
from stacker.data.images import mask_file, own_size, source_of
from stacker.data.manifest import Image
from stacker.errors import ConfigError, require_one_of
from stacker.figures.canvas import LEAK_COLOUR, SHOWN_DOTS, Sheet
from stacker.figures.evidence import fit, lay_over, scale_bar, spread, unit_of
from stacker.figures.lettering import font_of, shorten
from stacker.files import read_json
from stacker.run import BaseModel, Run

CELL, GAP = 1.65, 0.08  # inches: four columns fill the width of a page
LINE, BAR, POINTS = 0.15, 0.09, 8
MOST_DOTS, MOST_PIXELS = 450, 20_000  # per inch, and along a side of the sheet
NARROWEST = 200  # pixels of an image's width: smaller ones are enlarged
FINE = 80  # the size in which the width of text is measured
LESION = "#39ff14"


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet: the image (H, W, 3), what is written above it, and its mask (H, W) if any."""

    title: str
    pixels: np.ndarray
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class SheetColumn:
    """One column: its title, the unit of its maps, and for every row a map (h, w) and its caption."""

    title: str
    unit: str
    maps: Sequence[np.ndarray]
    captions: Sequence[str]


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
    backbones = list(backbones) or sorted(by_backbone, key=_by_config(run))
    classes = list(classes) or [manifest.classes[-1]]
    require_one_of("backbone", backbones, sorted(by_backbone))
    require_one_of("class", classes, manifest.classes)
    require_one_of("image", image_ids, by_id)
    columns = [
        column
        for backbone in backbones
        for column in _columns(run, backbone, by_backbone[backbone], image_ids, classes, maps)
    ]
    said = _said_of(run, image_ids)
    rows = [_row(by_id[image_id], run, said.get(image_id, "")) for image_id in image_ids]
    warning = run.folds.label if run.folds.leaks else ""
    return heatmap_sheet(rows, columns, run.config.images, signed, warning)


def _by_config(run: Run) -> Callable[[str], int]:
    """Return a key that sorts backbones as the config has them, and others after these."""
    order = list(run.config.backbones)
    return lambda name: order.index(name) if name in order else len(order)


def _columns(
    run: Run,
    backbone: str,
    caches: Sequence[Cache],
    image_ids: Sequence[str],
    classes: Sequence[str],
    maps: str,
) -> list[SheetColumn]:
    """Return the columns of a backbone, one for each class; one alone where classes do not differ."""
    names = run.manifest.classes
    averaged = _means(caches, image_ids, maps)
    logits = _means(caches, image_ids, "logits")
    shown = map_classes(names, caches[0].shapes[maps][0])
    method, _ = run.config.cam.maps.get(maps, ("", 0))
    title, columns = backbone if maps == "maps" else f"{backbone}, {maps}", []
    for label in classes if shown == names else shown:
        place = names.index(label) if label in names else names.index(classes[0])
        columns.append(
            SheetColumn(
                f"{title}\n{f'evidence for {label}' if label in names else 'all classes'}",
                unit_of(method),
                [maps_Khw[shown.index(label)] for maps_Khw in averaged],
                [f"{names[place]} {softmax(of_image)[place]:.2f}" for of_image in logits],
            )
        )
    return columns


def _means(caches: Sequence[Cache], image_ids: Sequence[str], dataset: str) -> list[np.ndarray]:
    """Return each image's values of a dataset, averaged over the caches that hold it."""
    values_of: dict[bytes, list[np.ndarray]] = {image_id.encode(): [] for image_id in image_ids}
    for cache in caches:
        mask = np.isin(cache.rows.image_id, list(values_of))
        read = cache.read(dataset, mask)
        for image_id, values in zip(cache.rows.image_id[mask], read, strict=True):
            values_of[image_id].append(values.astype(np.float32))
    missing = [image_id.decode() for image_id, values in values_of.items() if not values]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not cached: it trained the base models",
            "choose an image that was held out (see --sample)",
        )
    return [np.mean(values_of[image_id.encode()], axis=0) for image_id in image_ids]


def _said_of(run: Run, image_ids: Sequence[str]) -> dict[str, str]:
    """Return what the run's first meta-learner predicted for the images, where it is known.

    What an earlier stack of the same name predicted is not told.
    """
    path = run.path / "metrics.json"
    metrics = read_json(path) if path.exists() else {}
    first = [name for name in run.config.stack.meta if run.has_scored(name, metrics)]
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for path in (run.path / "predictions.csv", run.path / "out_of_fold.csv"):
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["image_id"] in image_ids:
                        share = float(row[f"p_{row['predicted']}"])
                        said[row["image_id"]][row["model"]] = f"{row['predicted']} {share:.2f}"
    return {
        image_id: f"{by_model[name]} ({name})"
        for image_id, by_model in said.items()
        for name in [name for name in first if name in by_model][:1]
    }


def _row(image: Image, run: Run, said: str) -> SheetRow:
    """Return the row of an image, in its own resolution."""
    pixels = np.asarray(fit(PIL.Image.fromarray(source_of(image)), NARROWEST))
    path, mask = mask_file(image, run.config), None
    if path is not None:
        grey = PIL.Image.fromarray(own_size(path, "black")[..., 0])
        mask = np.asarray(grey.resize(pixels.shape[1::-1])) > 127
    title = f"{image.id}\ntrue class: {image.label}"
    return SheetRow(f"{title}; predicted: {said}" if said else title, pixels, mask)


@dataclass(frozen=True)
class _Page:
    """A sheet in inches from its lower left corner: cells in columns, the images in column 0."""

    figure: Figure
    width: float
    height: float

    def left(self, column: int) -> float:
        """Return where a column begins."""
        return GAP + column * (CELL + GAP)

    def write(self, left: float, top: float, text: str, room: float, colour: str = "black") -> None:
        """Write a line, without its middle where it is too long."""
        shown = shorten(text, room, _inches)
        self.figure.text(
            left / self.width, top / self.height, shown, va="top", size=POINTS, color=colour
        )

    def show(self, column: int, bottom: float, pixels: np.ndarray, mask: np.ndarray | None) -> None:
        """Show pixels in a cell, with the outline of the mask."""
        high = CELL * pixels.shape[0] / pixels.shape[1]
        axis = self._axes(self.left(column), bottom, high)
        axis.imshow(pixels)
        if mask is not None:
            axis.contour(mask, levels=[0.5], colors="black", linewidths=1.6)
            axis.contour(mask, levels=[0.5], colors=LESION, linewidths=0.8)

    def scale(self, column: int, top: float, unit: str, limit: float, signed: bool) -> None:
        """Draw the scale of a column, with the values of its ends and what they are."""
        left = self.left(column)
        if limit <= 0:
            self.write(left, top, "no evidence in any image", CELL)
            return
        self._axes(left, top - BAR, BAR).imshow(scale_bar(256, 1, signed), aspect="auto")
        ends = (f"-{limit:.2g} against", f"for {limit:.2g}") if signed else ("0", f"{limit:.2g}")
        below = top - BAR - GAP / 2
        self.write(left, below, ends[0], CELL)
        self.write(left + CELL - _inches(ends[1]), below, ends[1], CELL)
        self.write(left, below - LINE, f"{unit},", CELL)
        self.write(left, below - 2 * LINE, "one scale for the column", CELL)

    def _axes(self, left: float, bottom: float, high: float) -> Axes:
        place = (left / self.width, bottom / self.height, CELL / self.width, high / self.height)
        axis = self.figure.add_axes(place)
        axis.set_axis_off()
        return axis


def _inches(text: str) -> float:
    """Return how wide a text is."""
    return font_of(FINE).getlength(text) / FINE * POINTS / 72


def heatmap_sheet(
    rows: Sequence[SheetRow],
    columns: Sequence[SheetColumn],
    images: ImagesConfig,
    signed: bool,
    warning: str = "",
) -> Figure:
    """Return a sheet: on every row the image itself, and then the map of each column over it."""
    heights = [CELL * row.pixels.shape[0] / row.pixels.shape[1] for row in rows]
    width = (1 + len(columns)) * (CELL + GAP) + GAP
    head = 2 * LINE + GAP + (LINE if warning else 0)
    height = head + sum(heights) + len(rows) * (3 * LINE + 2 * GAP) + BAR + 4 * LINE
    dots = max(SHOWN_DOTS, *(row.pixels.shape[1] / CELL for row in rows))
    dots = min(MOST_DOTS, MOST_PIXELS / max(width, height), dots)
    page = _Page(Sheet(figsize=(width, height), dpi=dots), width, height)
    if warning:
        page.write(GAP, height, warning, width - 2 * GAP, LEAK_COLOUR)
    for number, column in enumerate(columns, start=1):
        for line, text in enumerate(column.title.split("\n")):
            page.write(page.left(number), height - head + (2 - line) * LINE, text, CELL)
    limits = [_limit(rows, column, images, signed) for column in columns]
    bottom = height - head
    for n, (row, high) in enumerate(zip(rows, heights, strict=True)):
        bottom -= high + 3 * LINE + 2 * GAP
        for line, text in enumerate(row.title.split("\n")):
            page.write(GAP, bottom + high + (3 - line) * LINE, text, width - 2 * GAP)
        page.show(0, bottom, row.pixels, row.mask)
        for number, (column, limit) in enumerate(zip(columns, limits, strict=True), start=1):
            heat = spread(column.maps[n], row.pixels.shape[:2], images)
            page.write(page.left(number), bottom + high + LINE, column.captions[n], CELL)
            page.show(number, bottom, lay_over(row.pixels, heat, limit, signed), row.mask)
    for number, (column, limit) in enumerate(zip(columns, limits, strict=True), start=1):
        page.scale(number, bottom - GAP, column.unit, limit, signed)
    return page.figure


def _limit(rows: Sequence[SheetRow], column: SheetColumn, images: ImagesConfig, signed: bool) -> float:
    """Return the end of a column's scale: the largest evidence of all its images."""
    heats = (spread(m, row.pixels.shape[:2], images) for m, row in zip(column.maps, rows, strict=True))
    return max(float((np.abs(heat) if signed else heat).max()) for heat in heats)
