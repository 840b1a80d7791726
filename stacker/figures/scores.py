"""Every figure, drawn with matplotlib and without a display.

The functions return a Figure and know nothing of runs: whoever calls them decides what to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from stacker.figures.canvas import title_colour
from stacker.scores.metrics import area_under_curve
from stacker.scores.predictions import Predictions, reliability


def confusion_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool
) -> Figure:
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
    figure.suptitle(title, fontsize=10, color=title_colour(leaks))
    return figure


def roc_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool
) -> Figure:
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
        axis.set_title(f"{classes[k]} against the rest; {split}", fontsize=10, color=title_colour(leaks))
        axis.legend(title="AUC by image", fontsize=8, title_fontsize=8, loc="lower right")
    return figure


def reliability_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool, rows: str
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
    figure.suptitle(f"{rows}; {split}", fontsize=10, color=title_colour(leaks))
    return figure


def _roc_points(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every distinct threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    true, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.r_[0, false / max(false[-1], 1)], np.r_[0, true / max(true[-1], 1)]
