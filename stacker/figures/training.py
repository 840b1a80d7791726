"""Figures of stage one: the course of a training, by epoch, and that of a search, by trial.

A training has its loss and its scores on the inner validation images. Of a search there are how the
score rose, and which settings it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAINING, VALIDATION = "training images", "inner validation images"
PANELS = {  # by title: the label of the axis, and each line's key and name
    "Loss": ("cross-entropy (nats)", {"train_loss": TRAINING, "val_loss": VALIDATION}),
    "Accuracy": (
        "share of images",
        {"val_accuracy": "accuracy", "val_balanced_accuracy": "balanced accuracy"},
    ),
    "AUC": ("AUC", {"val_auc": VALIDATION}),
    "Precision and recall": ("share of images", {"val_precision": "precision", "val_recall": "recall"}),
    "F1": ("F1", {"val_f1": VALIDATION}),
}
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "0.6"
FEW_TRIALS = 20  # in simulations of three settings, fewer often put the wrong one first


def draw_curves(epochs: Sequence[dict[str, Any]], best: int, name: str) -> Figure:
    """Return the loss and each score by epoch, and the learning rate by step.

    All scores are those on the inner validation images. A dashed line marks the epoch that was kept.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    title = f"Training of {name}: loss, scores on the inner validation images and learning rate"
    figure.suptitle(f"{title}\ndashed: epoch {best}, which was kept", fontsize=11)
    *panels, last = figure.subplots(2, 3).flat
    numbers = [epoch["epoch"] for epoch in epochs]
    for axes, (subject, (label, lines)) in zip(panels, PANELS.items(), strict=True):
        for (key, line), colour in zip(lines.items(), (BLUE, ORANGE), strict=False):
            values = [epoch[key] for epoch in epochs]
            axes.plot(numbers, values, color=colour, marker="o", markersize=3, linewidth=1.3, label=line)
        axes.axvline(best, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="epoch", ylabel=label)
        axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
        if subject == "Loss":
            _from_zero(axes)
        else:
            axes.set_ylim(-0.03, 1.03)
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False)
        _trim(axes, subject)
    steps, rates = np.array([point for epoch in epochs for point in epoch["lr_by_step"]]).T
    last.plot(steps, rates, color=BLUE, linewidth=1.3)
    kept = next(epoch for epoch in epochs if epoch["epoch"] == best)
    last.axvline(kept["lr_by_step"][-1][0], color=GREY, linestyle="--", linewidth=1)
    last.set(xlabel="step (one batch each)", ylabel="learning rate of the last layers")
    _from_zero(last)
    _trim(last, "Learning rate")
    return figure


def _from_zero(axes: Axes) -> None:
    """Let a panel begin at zero and end above its highest point, which the frame would cut."""
    top = axes.dataLim.ymax
    axes.set_ylim(0, 1.05 * top if 0 < top < np.inf else 1)


def _trim(axes: Axes, title: str) -> None:
    """Give a panel its title, whole numbers below and a light grid."""
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(8)
    axes.grid(visible=True, color="0.92")


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


def trial_caution(trials: int) -> str:
    """Say how many complete trials there are, and whether they are enough to rank settings by."""
    count = f"{trials} complete trials"
    return count if trials >= FEW_TRIALS else f"{count}: too few to rank settings (take {FEW_TRIALS})"


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
    axis.set_xlabel("share of the settings' own effects on the score (adds up to 1)", fontsize=9)
    axis.set_title(f"Hyperparameter importance (fANOVA)\n{trial_caution(trials)}", fontsize=9)
    return figure
