"""Overlays of predicted images: the picture, and beside it the map of each backbone over it.

A sheet is drawn pixel by pixel, without matplotlib: a figure takes a second, this takes a tenth of one,
and new images come by the thousand. Text has about 8 points where the sheet is printed 17 cm wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageDraw

from stacker.config.data import ImagesConfig
from stacker.figures.evidence import fit, frame_of, lay_over, limit_of, scale_bar, spread
from stacker.figures.lettering import Font, font_of, shorten
from stacker.files import publish

COLUMNS = 4  # pictures side by side: more are printed too small
LETTERS = 60  # the sheet's width in heights of its letters
SMALLEST = 14  # pixels of a letter's height
NARROWEST = 400  # pixels of a picture's width: its caption must fit above it
LINES = 2  # of a caption


@dataclass(frozen=True)
class Panel:
    """One map (h, w) over the picture: its caption of two lines, and the unit of its values."""

    caption: tuple[str, str]
    unit: str
    map_hw: np.ndarray


@dataclass
class Overlays:
    """A folder of overlays, each under its image's name; those of one name are numbered."""

    folder: Path
    names: set[str] = field(default_factory=set)

    def draw(
        self,
        stem: str,
        title: Sequence[str],
        picture: np.ndarray,
        images: ImagesConfig,
        panels: Sequence[Panel],
    ) -> Path:
        """Publish a PNG of a picture (H, W, 3) and its overlays, under the lines of its title."""
        name, number = f"{stem}.png", 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}.png"
        self.names.add(name)
        sheet = draw_sheet(title, picture, images, panels)
        with publish(self.folder / name) as temporary:
            sheet.save(temporary, format="PNG", compress_level=1)
        return self.folder / name


@dataclass(frozen=True)
class _Grid:
    """Where things lie on a sheet, in pixels: cells in lines, each with a caption and a scale."""

    cell: int
    height: int
    columns: int
    letter: int

    @classmethod
    def of(cls, size: tuple[int, int], panels: int) -> _Grid:
        """Return the grid for a picture (width, height) and so many panels."""
        columns = min(COLUMNS, panels)
        return cls(*size, columns, max(SMALLEST, size[0] * columns // LETTERS))

    @property
    def gap(self) -> int:
        """Between two cells, and around all of them."""
        return self.letter // 2

    @property
    def line(self) -> int:
        """From one line of text to the next."""
        return round(1.3 * self.letter)

    @property
    def width(self) -> int:
        """Of the sheet."""
        return self.columns * (self.cell + self.gap) + self.gap

    @property
    def step(self) -> int:
        """From one line of cells to the next: caption, picture, scale with its numbers, and a gap."""
        return LINES * self.line + self.height + self.gap + 2 * self.letter + self.gap

    def corner(self, number: int, top: int) -> tuple[int, int]:
        """Return left and top of a cell."""
        row, column = divmod(number, self.columns)
        return self.gap + column * (self.cell + self.gap), top + row * self.step


def draw_sheet(
    title: Sequence[str], picture: np.ndarray, images: ImagesConfig, panels: Sequence[Panel]
) -> PIL.Image.Image:
    """Return a picture (H, W, 3) and the maps over it, each on a scale of its own."""
    shown = fit(PIL.Image.fromarray(picture), NARROWEST)
    cells = 1 + len(panels)
    grid = _Grid.of((max(shown.width, min(NARROWEST, 2 * shown.height)), shown.height), cells)
    font = font_of(grid.letter)
    top = grid.gap + round(1.1 * grid.line * len(title)) + grid.gap
    height = top + -(-cells // grid.columns) * grid.step
    sheet = PIL.Image.new("RGB", (grid.width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(title):
        place = grid.gap, grid.gap + round(1.1 * grid.line * number)
        pen.text(place, shorten(text, grid.width - 2 * grid.gap, font.getlength), "black", font)
    pixels = np.asarray(shown)
    _place(sheet, grid, grid.corner(0, top), ("", "image"), pixels, images)
    for number, panel in enumerate(panels, start=1):
        heat = spread(panel.map_hw, pixels.shape[:2], images)
        limit = limit_of(panel.map_hw, heat, panel.unit)
        corner = grid.corner(number, top)
        over = lay_over(pixels, heat, limit, signed=False)
        _place(sheet, grid, corner, panel.caption, over, images)
        _scale(sheet, grid, corner, panel, limit)
    return sheet


def _place(
    sheet: PIL.Image.Image,
    grid: _Grid,
    corner: tuple[int, int],
    caption: tuple[str, str],
    pixels: np.ndarray,
    images: ImagesConfig,
) -> None:
    """Draw a picture into its cell, its caption above it; a frame shows what base models were shown."""
    pen, font, (left, top) = ImageDraw.Draw(sheet), font_of(grid.letter), corner
    for number, text in enumerate(caption):
        words = shorten(text, grid.cell, font.getlength)
        pen.text((left, top + number * grid.line), words, "black", font)
    left, top = left + (grid.cell - pixels.shape[1]) // 2, top + LINES * grid.line
    sheet.paste(PIL.Image.fromarray(pixels), (left, top))
    if images.resize == "crop":
        x, y, width, height = frame_of(pixels.shape[:2], images)
        box = (left + x, top + y, left + x + width - 1, top + y + height - 1)
        pen.rectangle(box, outline="white", width=max(1, grid.letter // 10))


def _scale(
    sheet: PIL.Image.Image, grid: _Grid, corner: tuple[int, int], panel: Panel, limit: float
) -> None:
    """Draw the colours of a panel below it, with the values at both ends and what they are."""
    pen, font = ImageDraw.Draw(sheet), font_of(round(0.85 * grid.letter))
    left, top = corner[0], corner[1] + LINES * grid.line + grid.height + grid.gap
    if limit <= 0:
        words = shorten("no evidence for the class", grid.cell, font.getlength)
        pen.text((left, top), words, "black", font)
        return
    bar = scale_bar(grid.cell, round(0.6 * grid.letter), signed=False)
    sheet.paste(PIL.Image.fromarray(bar), (left, top))
    below = top + round(0.75 * grid.letter)
    for place, text in _ticks(panel, limit, grid.cell, font):
        pen.text((left + place, below), text, "black", font)


def _ticks(panel: Panel, limit: float, width: int, font: Font) -> Iterator[tuple[float, str]]:
    """Yield what stands below a scale, and how far from its left end; none meets another."""
    first, last = "0", f"{limit:.2g}"
    yield 0, first
    yield width - font.getlength(last), last
    room = width - font.getlength(first) - font.getlength(last) - 2 * font.getlength("  ")
    text = shorten(f"{panel.unit}, own scale", room, font.getlength)
    yield font.getlength(f"{first}  ") + (room - font.getlength(text)) / 2, text
