"""What all figures share: how one is saved without a display, and that a leak is red."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stacker.files import publish

LEAK_COLOUR = "#c00000"
DOTS, SHOWN_DOTS = 120, 180  # per inch, of a file and of a sheet in a notebook


class Sheet(Figure):
    """A figure of photographs, in inches as it is printed: its `dpi` is what they need in a file.

    A notebook shows it by itself, whether or not pyplot was ever imported.
    """

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        _draw(self, content, SHOWN_DOTS)
        return content.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Publish a figure as PNG, a sheet in the resolution that its photographs need."""
    with publish(path) as temporary:
        _draw(figure, temporary, figure.dpi if isinstance(figure, Sheet) else DOTS)


def _draw(figure: Figure, target: Path | io.BytesIO, dots: float) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(
        target,
        format="png",
        dpi=dots,
        bbox_inches="tight",  # the constrained layout alone cuts titles of two lines
        pad_inches=0.1,
        metadata={"Software": None},
    )


def title_colour(leaks: bool) -> str:
    """Return the colour of a figure's title: red where cases straddle the split."""
    return LEAK_COLOUR if leaks else "black"
