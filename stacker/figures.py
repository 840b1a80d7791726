"""Every figure, drawn with matplotlib and without a display.

The functions return a Figure and know nothing of runs: whoever calls them decides what to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from stacker.heatmaps import upsample
from stacker.metrics import area_under_curve
from stacker.predictions import Predictions, reliability
from stacker.run import publish

STRONG_ALPHA = 0.75
LEAK_COLOUR = "#c00000"


@dataclass(frozen=True)
class Picture:
    """One row of a heatmap sheet: pixels (S, S, 3), what to call it, and its mask if it has one."""

    title: str
    pixels: np.ndarray
    mask: np.ndarray | None = None


def save_figure(figure: Figure, path: Path) -> None:
    """Publish a figure as PNG."""
    FigureCanvasAgg(figure)
    with publish(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            dpi=120,
            bbox_inches="tight",  # the constrained layout alone cuts titles of two lines
            pad_inches=0.1,
            metadata={"Software": None},
        )


def split_colour(split: str) -> str:
    """Return the colour of a figure's title: red where cases straddle the split."""
    return LEAK_COLOUR if "leaks" in split else "black"


def confusion_figure(models: Mapping[str, Predictions], classes: Sequence[str], split: str) -> Figure:
    """Return the confusion matrices of all models but the constant, in counts of test images."""
    shown = {name: found for name, found in models.items() if name != "constant"}
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    side = max(2.6, 0.6 * len(classes) + 1.4)
    figure = Figure(figsize=(side * columns, side * lines + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axis, (name, found) in zip(axes, shown.items(), strict=False):
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, (found.labels, found.predicted), 1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for true, guess in np.ndindex(counts.shape):
            colour = "white" if share[true, guess] > 0.5 else "black"
            axis.text(guess, true, counts[true, guess], ha="center", va="center", color=colour)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(classes)), classes, fontsize=8, rotation=30, ha="right")
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    title = f"Test images: predicted (across) against true (down); {split}"
    figure.suptitle(title, fontsize=10, color=split_colour(split))
    return figure


def roc_figure(models: Mapping[str, Predictions], classes: Sequence[str], split: str) -> Figure:
    """Return the ROC curves of all models on the test images (one panel per class beyond two)."""
    targets = [1] if len(classes) == 2 else list(range(len(classes)))
    columns = min(4, len(targets))
    lines = math.ceil(len(targets) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.6 * lines), layout="constrained")
    for axis, k in zip(figure.subplots(lines, columns, squeeze=False).ravel(), targets, strict=False):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for name, found in models.items():
            if name == "constant":
                continue
            positive, score = found.labels == k, found.ranked[0][0][:, k]
            area = area_under_curve(positive.astype(int), np.stack([1 - score, score], axis=1))
            axis.plot(*_roc_points(positive, score), label=f"{name} ({area:.3f})", linewidth=1.4)
        axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axis.set_title(f"{classes[k]} against the rest; {split}", fontsize=10, color=split_colour(split))
        axis.legend(title="AUC by image", fontsize=8, title_fontsize=8, loc="lower right")
    return figure


def reliability_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, rows: str
) -> Figure:
    """Return how often each model is right where it is so sure, with how often it is so sure."""
    shown = {name: found for name, found in models.items() if name != "constant"}
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.8 * columns, 2.9 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, found) in zip(axes, shown.items(), strict=False):
        confidence, frequency, count = reliability(found)
        some = count > 0
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        axis.bar(np.linspace(0.05, 0.95, len(count)), count / count.sum(), 0.1, color="0.9")
        axis.plot(confidence[some], frequency[some], marker="o", markersize=3, linewidth=1.2)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_title(name, fontsize=9)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    what = f"probability of {classes[1]}" if len(classes) == 2 else "largest probability"
    figure.supxlabel(f"{what} (bars: share of images)", fontsize=9)
    figure.supylabel(f"share that is {classes[1]}" if len(classes) == 2 else "share right", fontsize=9)
    figure.suptitle(f"{rows}; {split}", fontsize=10, color=split_colour(split))
    return figure


def _roc_points(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every distinct threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    true, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.r_[0, false / max(false[-1], 1)], np.r_[0, true / max(true[-1], 1)]


def heatmap_sheet(
    pictures: Sequence[Picture],
    panels: Mapping[str, Sequence[np.ndarray]],
    signed: bool,
    split: str = "",
) -> Figure:
    """Return a sheet: a row per picture, the picture itself and then one overlay per panel.

    A panel holds one map (h, w) per picture. Its colour scale is shared by its column, in units of the
    logit: the maps of two backbones are of different size, those of two images can be compared.
    """
    rows, columns = len(pictures), 1 + len(panels)
    figure = Figure(figsize=(2.5 * columns, 2.5 * rows + 0.9), layout="constrained")
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
    if "leaks" in split:
        figure.suptitle(split, fontsize=8, color=LEAK_COLOUR)
    return figure


def _show(axis: Axes, picture: Picture) -> None:
    axis.imshow(picture.pixels)
    if picture.mask is not None:
        axis.contour(picture.mask, levels=[0.5], colors="lime", linewidths=0.8)
    axis.set_axis_off()
