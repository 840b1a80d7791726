"""Figures of a data set: a montage of its subtypes and cases, and what is in which part of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stacker.config.data import ImagesConfig
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest
from stacker.figures.canvas import title_colour

Colour: TypeAlias = tuple[float, float, float, float]
CLASSES, SUBTYPES = "several classes", "several subtypes"
MIXED: dict[str, dict[str, Any]] = {  # how cases are drawn that are of more than one kind
    SUBTYPES: {"facecolor": "0.9", "edgecolor": "0.5", "hatch": "....", "linewidth": 0},
    CLASSES: {"facecolor": "0.75", "edgecolor": "0.35", "hatch": "////", "linewidth": 0},
}


def pick(manifest: Manifest, cases: int, seed: int) -> dict[str, list[Image]]:
    """Return, for each subtype (or class), one random image of each of some random cases."""
    rng = np.random.default_rng(seed)
    piles: dict[str, dict[str, list[Image]]] = defaultdict(lambda: defaultdict(list))
    for image, case in zip(manifest.images, manifest.cases, strict=True):
        piles[image.subtype or image.label][case].append(image)
    order = {label: k for k, label in enumerate(manifest.classes)}
    rank = {image.subtype or image.label: order[image.label] for image in manifest.images}
    chosen = {}
    for subtype in sorted(piles, key=lambda name: (rank[name], name)):
        images = [pile for _, pile in sorted(piles[subtype].items())]
        taken = sorted(rng.permutation(len(images))[:cases])
        chosen[subtype] = [images[i][rng.integers(len(images[i]))] for i in taken]
    return chosen


def montage(chosen: Mapping[str, Sequence[Image]], config: ImagesConfig, title: str) -> Figure:
    """Draw a row per subtype and a column per case, every image as the networks see it.

    Raise DataError for an image that cannot be decoded.
    """
    columns = max(len(images) for images in chosen.values())
    figure = Figure(figsize=(1.5 * columns + 1.2, 1.75 * len(chosen) + 0.5), layout="constrained")
    axes = figure.subplots(len(chosen), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for line, (subtype, images) in zip(axes, chosen.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(decode_image(image, config))
            scale = f", {image.magnification}X" if image.magnification else ""
            name = image.case or image.slide or image.id
            name = name if len(name) <= 18 else f"\N{HORIZONTAL ELLIPSIS}{name[-17:]}"
            axis.set_title(name + scale, fontsize=6.5, pad=2)
        line[0].text(
            *(-0.06, 0.5, subtype.replace("_", "\n")),
            transform=line[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
        )
    figure.suptitle(title, fontsize=10)
    return figure


def split_figure(
    manifest: Manifest, parts: Mapping[str, np.ndarray], title: str, leaks: bool = False
) -> Figure:
    """Draw a bar per part for its images, cut into cases, and one for its cases, each counted once.

    A case with images of several classes (or subtypes) is of a kind of its own. Beyond 150 cases in a
    part the cuts could not be told apart, and are left out.
    """
    kinds = sorted(
        {image.subtype or image.label: image.label for image in manifest.images}.items(),
        key=lambda item: (manifest.classes.index(item[1]), item[0]),
    )
    colours = _colours(kinds, manifest.classes)
    figure = Figure(figsize=(11, 0.45 * len(parts) + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    mixed: set[str] = set()
    for place, rows in enumerate(parts.values()):
        cases = _cases(manifest, rows)
        _image_bar(left, place, cases, colours)
        mixed |= _case_bar(right, place, cases, colours, dict(kinds))
    left.set_yticks(range(len(parts)), list(parts))
    left.invert_yaxis()
    left.set_xlabel(f"images (white lines: between {manifest.unit}s)")
    right.set_xlabel(f"{manifest.unit}s")
    for axis in (left, right):
        axis.margins(x=0.09)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Patch(color=colours[kind], label=kind.replace("_", " ")) for kind, _ in kinds]
    named = {CLASSES: "both classes"} if len(manifest.classes) == 2 else {}
    handles += [
        Patch(label=f"{manifest.unit}s with images of {named.get(name, name)}", **style)
        for name, style in MIXED.items()
        if name in mixed
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10, color=title_colour(leaks))
    return figure


def _cases(manifest: Manifest, rows: np.ndarray) -> dict[str, Counter[str]]:
    """Return each case's number of images by subtype (or class)."""
    cases: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        image = manifest.images[row]
        cases[manifest.cases[row]][image.subtype or image.label] += 1
    return cases


def _image_bar(
    axis: Axes, place: int, cases: Mapping[str, Counter[str]], colours: Mapping[str, Colour]
) -> None:
    """Draw a part's images by kind, those of one case together."""
    start = 0
    for kind, colour in colours.items():
        sizes = sorted((of[kind] for of in cases.values() if kind in of), reverse=True)
        drawn = sizes if len(cases) < 150 else [sum(sizes)]
        starts = start + np.cumsum([0, *drawn])[:-1]
        axis.barh(place, drawn, left=starts, color=colour, edgecolor="white", linewidth=0.7)
        start += sum(sizes)
    axis.annotate(f" {start}", (start, place), va="center", fontsize=8)


def _case_bar(
    axis: Axes,
    place: int,
    cases: Mapping[str, Counter[str]],
    colours: Mapping[str, Colour],
    class_of: Mapping[str, str],
) -> set[str]:
    """Draw a part's cases by kind; return which kinds of mixed cases there are."""
    styles = {kind: {"color": colour} for kind, colour in colours.items()} | MIXED
    numbers = Counter(_kind_of(case, class_of) for case in cases.values())
    start = 0
    for kind, style in styles.items():
        if numbers[kind]:
            axis.barh(place, numbers[kind], left=start, **style)
            start += numbers[kind]
    axis.annotate(f" {start}", (start, place), va="center", fontsize=8)
    return numbers.keys() & MIXED.keys()


def _kind_of(case: Mapping[str, int], class_of: Mapping[str, str]) -> str:
    """Return the only subtype (or class) of a case, or what kind of mixture it is."""
    if len(case) == 1:
        return next(iter(case))
    return CLASSES if len({class_of[kind] for kind in case}) > 1 else SUBTYPES


def _colours(kinds: Sequence[tuple[str, str]], classes: Sequence[str]) -> dict[str, Colour]:
    """Give every class a hue and its subtypes shades of it; red is left to splits that leak."""
    hues = ("Blues", "Oranges", "Purples", "Greens", "YlOrBr", "RdPu")
    colours: dict[str, Colour] = {}
    for number, label in enumerate(classes):
        subtypes = [kind for kind, of in kinds if of == label]
        shades = np.linspace(0.4, 0.9, len(subtypes)) if len(subtypes) > 1 else [0.6]
        ramp = colormaps[hues[number % len(hues)]]
        colours |= {kind: ramp(shade) for kind, shade in zip(subtypes, shades, strict=True)}
    return colours
