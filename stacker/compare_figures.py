"""The pictures of a comparison: a leaderboard with intervals, and inflation side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stacker.figures import LEAK_COLOUR, split_colour

COLOURS = {"base": "#1f6fb4", "meta": "black", "rule": "#2a9d5c", "control": "0.55"}
PARTS = {"development": "Development cases, out of fold", "test": "Test cases"}


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
    figure.suptitle(title, fontsize=9, color=split_colour(board["split"]))
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


def inflation_figure(found: Mapping[str, Any], part: str) -> Figure:
    """Return the AUC by image of every model under each split; splits that leak are red."""
    models = list(dict.fromkeys(row["model"] for row in found["rows"] if row["part"] == part))
    units = found["units"]
    figure = Figure(figsize=(2 + 1.3 * len(models), 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(units)
    for number, unit in enumerate(units):
        rows = {r["model"]: r for r in found["rows"] if (r["part"], r["split_by"]) == (part, unit)}
        leaks = "leaks" in found["labels"][unit]
        shade = (
            {"color": LEAK_COLOUR, "alpha": 0.45 + 0.3 * number / len(units)}
            if leaks
            else {"color": "0.25"}
        )
        places = np.array([i for i, name in enumerate(models) if name in rows], dtype=float)
        values = np.array([rows[name]["auc"] or np.nan for name in models if name in rows])
        places += (number - (len(units) - 1) / 2) * width
        axis.bar(places, values, width * 0.92, label=found["labels"][unit], **shade)
        for place, name in zip(places, (n for n in models if n in rows), strict=True):
            if rows[name]["auc_low"] is not None:
                axis.plot(
                    [place, place], [rows[name]["auc_low"], rows[name]["auc_high"]], color="black", lw=1
                )
    axis.axhline(0.5, color="0.6", linewidth=0.8)
    axis.set_xticks(range(len(models)), models, fontsize=8, rotation=20, ha="right")
    axis.set(ylabel="AUC by image", ylim=(0, 1.02))
    figure.legend(fontsize=7, loc="outside lower center", ncols=1)
    what = {"held_out": "Development cases, out of fold", "test": "Test images"}[part]
    title = f"{what}: red splits let cases straddle; their scores are not results"
    figure.suptitle(title, fontsize=9, color=LEAK_COLOUR)
    return figure
