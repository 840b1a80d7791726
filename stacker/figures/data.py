"""Figures of a data set: a montage of its subtypes and cases, and who is in which part of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stacker.config.data import ImagesConfig
from stacker.data.images import decode_image
from stacker.data.manifest import Image, Manifest


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
    figure = Figure(figsize=(1.5 * columns + 1.2, 1.75 * len(chosen) + 0.4), layout="constrained")
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


def split_figure(manifest: Manifest, parts: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw a bar per part, cut into its cases: their images on the left, their number on the right."""
    kinds = sorted(
        {image.subtype or image.label: image.label for image in manifest.images}.items(),
        key=lambda item: (manifest.classes.index(item[1]), item[0]),
    )
    colours = _colours(kinds, manifest.classes)
    figure = Figure(figsize=(11, 0.45 * len(parts) + 1.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for place, rows in enumerate(parts.values()):
        cases: Counter[tuple[str, str]] = Counter(
            (manifest.images[row].subtype or manifest.images[row].label, manifest.cases[row])
            for row in rows
        )
        start = number = 0
        for kind, _ in kinds:
            sizes = sorted((n for (k, _), n in cases.items() if k == kind), reverse=True)
            drawn = sizes if len(cases) < 150 else [sum(sizes)]  # more cannot be told apart
            starts = start + np.cumsum([0, *drawn])[:-1]
            left.barh(place, drawn, left=starts, color=colours[kind], edgecolor="white", linewidth=0.7)
            right.barh(place, len(sizes), left=number, color=colours[kind])
            start, number = start + sum(sizes), number + len(sizes)
    left.set_yticks(range(len(parts)), list(parts))
    left.invert_yaxis()
    left.set_xlabel(f"images, cut into {manifest.unit}s where there are few")
    right.set_xlabel(f"{manifest.unit}s (one of several kinds counts in each)")
    handles = [Patch(color=colours[kind], label=kind.replace("_", " ")) for kind, _ in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _colours(
    kinds: Sequence[tuple[str, str]], classes: Sequence[str]
) -> dict[str, tuple[float, float, float, float]]:
    """Give every class a hue and its subtypes shades of it."""
    hues = ("Blues", "Reds", "Greens", "Purples", "Oranges", "Greys")
    colours: dict[str, tuple[float, float, float, float]] = {}
    for number, label in enumerate(classes):
        subtypes = [kind for kind, of in kinds if of == label]
        shades = np.linspace(0.45, 0.85, len(subtypes)) if len(subtypes) > 1 else [0.65]
        ramp = colormaps[hues[number % len(hues)]]
        colours |= {kind: ramp(shade) for kind, shade in zip(subtypes, shades, strict=True)}
    return colours
