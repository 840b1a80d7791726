"""What all figures share: how one is saved without a display, and that a leak is red."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stacker.files import publish

STRONG_ALPHA = 0.75
LEAK_COLOUR = "#c00000"


class Sheet(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        _draw(self, content)
        return content.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Publish a figure as PNG."""
    with publish(path) as temporary:
        _draw(figure, temporary)


def _draw(figure: Figure, target: Path | io.BytesIO) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(
        target,
        format="png",
        dpi=120,
        bbox_inches="tight",  # the constrained layout alone cuts titles of two lines
        pad_inches=0.1,
        metadata={"Software": None},
    )


def title_colour(leaks: bool) -> str:
    """Return the colour of a figure's title: red where cases straddle the split."""
    return LEAK_COLOUR if leaks else "black"
