"""Text in pictures and tables: shortened in the middle to a width, and the font of all pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Measure: TypeAlias = Callable[[str], float]
CUT = "…"
HEAD = 0.35  # the share of a shortened text that its beginning keeps: names differ at their ends


def shorten(text: str, width: float, measure: Measure) -> str:
    """Return a text, or its beginning and its end where the whole is wider than `width`."""
    if measure(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head = round(kept * HEAD)
        short = f"{text[:head]}{CUT}{text[len(text) - kept + head :]}"
        if measure(short) <= width:
            return short
    return CUT


@cache
def font_of(size: int) -> Font:
    """Return the font of all figures, DejaVu Sans, without importing matplotlib, which has it."""
    found = find_spec("matplotlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    path = folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size) if path.exists() else ImageFont.load_default(size)
