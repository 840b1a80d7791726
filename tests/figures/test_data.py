"""The figure of a split counts every image and every case once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stacker.data.manifest import Image, Manifest
from stacker.figures.canvas import LEAK_COLOUR
from stacker.figures.data import split_figure


def manifest(*rows: tuple[str, str, str]) -> Manifest:
    """Return a manifest of images by case, label and subtype."""
    images = (
        Image(id=f"{number}", path="", label=label, case=case, subtype=subtype)
        for number, (case, label, subtype) in enumerate(rows)
    )
    return Manifest(tuple(images), tuple(sorted({label for _, label, _ in rows})))


def widths(axis: Axes) -> dict[tuple[str, bool], float]:
    """Return the lengths of an axis's bars by colour and by whether they are hatched."""
    lengths: dict[tuple[str, bool], float] = {}
    for patch in axis.patches:
        assert isinstance(patch, Rectangle)
        kind = to_hex(patch.get_facecolor()), bool(patch.get_hatch())
        lengths[kind] = lengths.get(kind, 0) + patch.get_width()
    return lengths


def legend(figure: Figure) -> list[str]:
    """Return what a figure's legend says."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def title_of(figure: Figure) -> Any:
    """Return a figure's title."""
    return figure.texts[0]


def test_a_case_of_both_classes_is_counted_once() -> None:
    """Of five cases, three with both classes: five, of which three are of a kind of their own."""
    mixed = [(case, label, "") for case in "abc" for label in ("no", "yes") for _ in range(2)]
    known = manifest(*mixed, ("d", "no", ""), ("e", "yes", ""))
    figure = split_figure(known, {"train": np.arange(len(known.images))}, "split")
    left, right = figure.axes
    assert sum(widths(left).values()) == 14
    assert sorted(widths(right).values()) == [1, 1, 3]
    assert next(n for (_, hatched), n in widths(right).items() if hatched) == 3
    assert legend(figure)[-1] == "cases with images of both classes"
    assert [text.get_text().strip() for text in (*left.texts, *right.texts)] == ["14", "5"]


def test_a_case_of_two_subtypes_is_not_of_two_classes() -> None:
    """BreakHis has a case that is listed as ductal and as lobular carcinoma: malignant, both."""
    known = manifest(
        ("a", "malignant", "ductal"), ("a", "malignant", "lobular"), ("b", "benign", "adenosis")
    )
    figure = split_figure(known, {"test": np.arange(3)}, "split")
    assert legend(figure) == ["adenosis", "ductal", "lobular", "cases with images of several subtypes"]
    assert sorted(widths(figure.axes[1]).values()) == [1, 1]


@pytest.mark.parametrize(("leaks", "colour"), [(True, LEAK_COLOUR), (False, "black")])
def test_a_split_that_leaks_is_red(leaks: bool, colour: str) -> None:
    """As in every other figure; no class is drawn in red."""
    known = manifest(("a", "no", ""), ("b", "yes", ""))
    figure = split_figure(known, {"test": np.arange(2)}, "split by image", leaks)
    assert title_of(figure).get_color() == colour
    for kind, _ in widths(figure.axes[1]):
        red, green, _ = (int(kind[k : k + 2], 16) for k in (1, 3, 5))
        assert red < 2.5 * green, kind
