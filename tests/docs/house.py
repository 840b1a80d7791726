"""The picture of the rooms and what each says of itself: `python -m tests.docs.house` prints them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from importlib import import_module

from tests.test_architecture import FLOORS, HALVES, PACKAGE

TITLES = ("torch half", "", "scikit-learn half")


def picture() -> str:
    """Return the floors as text, the roof first; what neither half owns stands between them."""
    torch_half, learn_half = HALVES
    rows = [
        [
            "  ".join(sorted(floor & rooms))
            for rooms in (torch_half, floor - torch_half - learn_half, learn_half)
        ]
        for floor in reversed(FLOORS)
    ]
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    rule = "+".join(["", *("-" * (width + 2) for width in widths), ""])
    lines = [
        "|".join(["", *(f" {cell:<{width}} " for cell, width in zip(row, widths, strict=True)), ""])
        for row in (TITLES, *rows)
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def rooms() -> dict[str, str]:
    """Return what every room says of itself, floor by floor, each with the rooms inside of it."""
    found = {}
    for name in [name for floor in FLOORS for name in sorted(floor) if (PACKAGE / name).is_dir()]:
        for file in sorted((PACKAGE / name).rglob("__init__.py")):
            room = file.parent.relative_to(PACKAGE).as_posix()
            module = import_module(f"stacker.{room.replace('/', '.')}")
            found[room] = " ".join((module.__doc__ or "").split())
    return found


def listing() -> Iterator[str]:
    """Yield the lines of the list of rooms."""
    for room, says in rooms().items():
        yield from textwrap.wrap(f"- **`{room}/`** {says}", 118, subsequent_indent="  ")


if __name__ == "__main__":
    print(picture(), *listing(), sep="\n")  # noqa: T201  # for a person, to be put into the page
