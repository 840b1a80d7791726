"""The course of a training as a picture: loss and scores on the inner validation images, by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

PANELS = {
    "loss": ("train_loss", "val_loss"),
    "accuracy": ("val_accuracy", "val_balanced_accuracy"),
    "AUC": ("val_auc",),
    "precision and recall": ("val_precision", "val_recall"),
    "F1": ("val_f1",),
    "learning rate": ("lr",),
}
COLOURS = ("#1f77b4", "#d95f02")


def draw_curves(epochs: Sequence[dict[str, Any]], best: int, title: str) -> Figure:
    """Return one small panel per group of scores; a dashed line marks the epoch that was kept."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    numbers = [epoch["epoch"] for epoch in epochs]
    for axes, (name, keys) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for key, colour in zip(keys, COLOURS, strict=False):
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
