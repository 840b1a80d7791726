"""The pictures of a comparison: a leaderboard with intervals, and inflation side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacker.figures.canvas import LEAK_COLOUR, title_colour
from stacker.scores.predictions import PARTS

COLOURS = {"base": "#1f6fb4", "meta": "black", "rule": "#2a9d5c"}


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


def inflation_figure(found: Mapping[str, Any]) -> Figure:
    """Return the AUC by image of every model under each split, both parts; splits that leak are red."""
    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    parts = list(dict.fromkeys(row["part"] for row in found["rows"]))
    figure = Figure(figsize=(2 + 1.2 * len(models), 2.6 * len(parts) + 1.2), layout="constrained")
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        for number, unit in enumerate(found["units"]):
            _bars(axis, found, part, unit, models, number)
        axis.axhline(0.5, color="0.6", linewidth=0.8)
        axis.set(ylabel="AUC by image", ylim=(0, 1.02))
        title = {"development": "Development images, out of fold", "test": "Test images"}[part]
        axis.set_title(title, fontsize=9)
    axes[-1].set_xticks(range(len(models)), models, fontsize=8, rotation=20, ha="right")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    title = "Red: cases straddle the split. These scores are not results."
    figure.suptitle(title, fontsize=9, color=LEAK_COLOUR)
    return figure


def _bars(
    axis: Axes, found: Mapping[str, Any], part: str, unit: str, models: Sequence[str], number: int
) -> None:
    """Draw the scores of all models under one split."""
    rows = {r["model"]: r for r in found["rows"] if (r["part"], r["split_by"]) == (part, unit)}
    label, units = found["labels"][unit], len(found["units"])
    leaks = found["leaks"][unit]
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
