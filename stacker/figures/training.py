"""Figures of stage one: the course of a training, by epoch, and that of a search, by trial.

A training has its loss and its scores on the inner validation images. Of a search there are how the
score rose, and which settings it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PANELS = {
    "loss": ("train_loss", "val_loss"),
    "accuracy": ("val_accuracy", "val_balanced_accuracy"),
    "AUC": ("val_auc",),
    "precision and recall": ("val_precision", "val_recall"),
    "F1": ("val_f1",),
    "learning rate": ("lr",),
}
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "0.6"


def draw_curves(epochs: Sequence[dict[str, Any]], best: int, title: str) -> Figure:
    """Return one small panel per group of scores; a dashed line marks the epoch that was kept."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    numbers = [epoch["epoch"] for epoch in epochs]
    for axes, (name, keys) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for key, colour in zip(keys, (BLUE, ORANGE), strict=False):
            values = [epoch[key] for epoch in epochs]
            label = key.removeprefix("val_").replace("_", " ")
            if name == "loss":
                label = {"train_loss": "training", "val_loss": "inner validation"}[key]
            axes.plot(
                numbers, values, color=colour, marker="o", markersize=3, linewidth=1.3, label=label
            )
        axes.axvline(best, color="0.6", linestyle="--", linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        if name not in ("loss", "learning rate"):
            axes.set_ylim(-0.03, 1.03)
        if len(keys) > 1:
            axes.legend(fontsize=7, frameon=False)
        axes.grid(visible=True, color="0.92")
    figure.supxlabel("epoch (dashed: the one that was kept)", fontsize=9)
    return figure


def draw_history(
    complete: Mapping[int, float], pruned: Sequence[int], failed: Sequence[int], what: str
) -> Figure:
    """Draw each trial's score by its number, and the best so far.

    What was pruned has a score of some folds alone, which says nothing beside those of all: it is marked
    at the bottom, and so is what failed.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    numbers, scores = list(complete), list(complete.values())
    best = np.maximum.accumulate(scores)
    axis.plot(numbers, best, color=ORANGE, drawstyle="steps-post", linewidth=1.4, label="best so far")
    axis.scatter(numbers, scores, color=BLUE, s=22, zorder=3, label="complete trial")
    bottom = {"pruned": (pruned, "|", GREY), "failed": (failed, "x", "black")}
    for label, (trials, marker, colour) in bottom.items():
        if trials:
            heights = np.full(len(trials), 0.03)
            place = axis.get_xaxis_transform()
            axis.scatter(trials, heights, s=30, c=colour, marker=marker, transform=place, label=label)
    axis.set(xlabel="trial", ylabel="score")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(-0.5, max(*numbers, *pruned, *failed, 1) + 0.5)
    axis.margins(y=0.12)
    axis.grid(visible=True, color="0.92")
    axis.set_axisbelow(True)
    axis.set_title(what, fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_importance(shares: Mapping[str, float], trials: int) -> Figure:
    """Draw a bar per setting: its share of what the settings do to the score by themselves (fANOVA)."""
    figure = Figure(figsize=(7, 0.36 * len(shares) + 1.3), layout="constrained")
    axis = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    bars = axis.barh(names, [shares[name] for name in names], color=BLUE, height=0.65)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set_xlim(0, 1.1 * max(*shares.values(), 0.1))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("share of the settings' own effects on the score", fontsize=9)
    axis.set_title(f"Hyperparameter importance, in {trials} complete trials (fANOVA)", fontsize=9)
    return figure
