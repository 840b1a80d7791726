"""Figures of scores: of the models of a run, of a comparison, and of what leaking splits pretend.

The functions return a Figure and know nothing of runs: whoever calls them decides what to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacker.figures.canvas import LEAK_COLOUR, title_colour
from stacker.scores.metrics import area_within
from stacker.scores.predictions import PARTS, Predictions, reliability

COLOURS = {"base": "#1f6fb4", "meta": "black", "rule": "#2a9d5c"}


def _panels(count: int, width: float, height: float, more: float = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, four in a line at most; there is room for a title above."""
    columns = min(4, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * lines + more), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def confusion_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool
) -> Figure:
    """Return the confusion matrices of all models but the constant, in counts of test images."""
    shown = {name: model for name, model in models.items() if name != "constant"}
    side = max(2.6, 0.6 * len(classes) + 1.4)
    figure, axes = _panels(len(shown), side, side, more=0.5)
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, (model.labels, model.predicted), 1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for true, guess in np.ndindex(counts.shape):
            colour = "white" if share[true, guess] > 0.5 else "black"
            axis.text(guess, true, str(counts[true, guess]), ha="center", va="center", color=colour)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(classes)), classes, fontsize=8, rotation=30, ha="right")
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
    title = f"Test images: predicted (across) against true (down); {split}"
    figure.suptitle(title, fontsize=10, color=title_colour(leaks))
    return figure


def roc_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool
) -> Figure:
    """Return the ROC curves of all models on the test images (one panel per class beyond two)."""
    targets = [1] if len(classes) == 2 else list(range(len(classes)))
    figure, axes = _panels(len(targets), 4.6, 4.6)
    for axis, k in zip(axes, targets, strict=True):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for name, model in models.items():
            if name == "constant":
                continue
            positive, score = model.labels == k, model.ranked[0][0][:, k]
            shares = np.stack([1 - score, score], axis=1)
            area = area_within(Predictions(positive.astype(int), model.cases, shares))
            axis.plot(*_roc_points(positive, score), label=f"{name} ({area:.3f})", linewidth=1.4)
        axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axis.set_title(f"{classes[k]} against the rest; {split}", fontsize=10, color=title_colour(leaks))
        axis.legend(title="AUC by image", fontsize=8, title_fontsize=8, loc="lower right")
    return figure


def _roc_points(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every distinct threshold."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    true, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.r_[0, false / max(false[-1], 1)], np.r_[0, true / max(true[-1], 1)]


def reliability_figure(
    models: Mapping[str, Predictions], classes: Sequence[str], split: str, leaks: bool, rows: str
) -> Figure:
    """Return how often each model is right where it is so sure, with how often it is so sure."""
    shown = {name: model for name, model in models.items() if name != "constant"}
    figure, axes = _panels(len(shown), 2.8, 2.9, more=0.5)
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        confidence, frequency, count = reliability(model)
        some = count > 0
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        axis.bar(np.linspace(0.05, 0.95, len(count)), count / count.sum(), 0.1, color="0.9")
        axis.plot(confidence[some], frequency[some], marker="o", markersize=3, linewidth=1.2)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_title(name, fontsize=9)
    what = f"probability of {classes[1]}" if len(classes) == 2 else "largest probability"
    figure.supxlabel(f"{what} (bars: share of images)", fontsize=9)
    figure.supylabel(f"share that is {classes[1]}" if len(classes) == 2 else "share right", fontsize=9)
    figure.suptitle(f"{rows}; {split}", fontsize=10, color=title_colour(leaks))
    return figure


def leaderboard_figure(board: Mapping[str, Any], shown: Sequence[str]) -> Figure:
    """Return the AUC by image of some models on both parts, with intervals, best at the top."""
    rows = {(row["part"], row["model"]): row for row in board["rows"] if row["subset"] == "all"}
    parts = [part for part in PARTS if any(key[0] == part for key in rows)]
    figure = Figure(figsize=(4 + 3.6 * len(parts), 1.4 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        mean = rows[part, "mean"]["image_auc"]
        axis.axvline(0.5, color="0.85", linewidth=1)
        if mean is not None:
            axis.axvline(mean, color=COLOURS["base"], linewidth=0.8, linestyle=":")
        for place, name in enumerate(reversed(shown)):
            if (part, name) in rows:
                _point(axis, place, rows[part, name])
        size = board["sizes"][part]
        axis.set_title(
            f"{PARTS[part]}: {size['images']} images, {size['cases']} {board['unit']}s", fontsize=9
        )
        axis.set_xlabel("AUC by image", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    axes[0].set_ylim(-0.7, len(shown) - 0.3)
    title = f"{board['split']}; {board['intervals']}; dotted: mean of probabilities"
    figure.suptitle(title, fontsize=9, color=title_colour(board["leaks"]))
    return figure


def _point(axis: Axes, place: int, row: Mapping[str, Any]) -> None:
    """Draw one model's score and interval."""
    score, low, high = (row[f"image_auc{end}"] for end in ("", "_low", "_high"))
    if score is None:
        return
    colour = COLOURS[row["kind"]]
    if low is not None:
        axis.plot([low, high], [place, place], color=colour, linewidth=1.2, alpha=0.7)
    axis.plot([score], [place], marker="o", color=colour, markersize=4)


def inflation_figure(inflation: Mapping[str, Any]) -> Figure:
    """Return the AUC by image of every model under each split, both parts; splits that leak are red."""
    models = list(dict.fromkeys(row["model"] for row in inflation["rows"]))
    parts = list(dict.fromkeys(row["part"] for row in inflation["rows"]))
    figure = Figure(figsize=(2 + 1.2 * len(models), 2.6 * len(parts) + 1.2), layout="constrained")
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        for number, unit in enumerate(inflation["units"]):
            _bars(axis, inflation, part, unit, models, number)
        axis.axhline(0.5, color="0.6", linewidth=0.8)
        axis.set(ylabel="AUC by image", ylim=(0, 1.02))
        axis.set_title(PARTS[part], fontsize=9)
    axes[-1].set_xticks(range(len(models)), models, fontsize=8, rotation=20, ha="right")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    title = "Red: cases straddle the split. These scores are not results."
    figure.suptitle(title, fontsize=9, color=LEAK_COLOUR)
    return figure


def _bars(
    axis: Axes, inflation: Mapping[str, Any], part: str, unit: str, models: Sequence[str], number: int
) -> None:
    """Draw the scores of all models under one split."""
    rows = {r["model"]: r for r in inflation["rows"] if (r["part"], r["split_by"]) == (part, unit)}
    label, units = inflation["labels"][unit], len(inflation["units"])
    leaks = inflation["leaks"][unit]
    colour = LEAK_COLOUR if leaks else "0.25"
    alpha = 0.4 + 0.4 * number / units if leaks else 1.0
    width = 0.8 / units
    known = [name for name in models if name in rows]
    places = np.array([models.index(name) for name in known]) + (number - (units - 1) / 2) * width
    values = [rows[name]["auc"] or np.nan for name in known]
    axis.bar(places, values, width * 0.92, label=label, color=colour, alpha=alpha)
    for place, name in zip(places, known, strict=True):
        low, high = rows[name]["auc_low"], rows[name]["auc_high"]
        if low is not None:
            axis.plot([place, place], [low, high], color="black", linewidth=1)
