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
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stacker.errors import plural
from stacker.figures.canvas import LEAK_COLOUR, title_colour
from stacker.scores.bootstrap import FEWEST, Resampling
from stacker.scores.curves import (
    RATES,
    Reliability,
    Roc,
    reliability_with_intervals,
    roc,
)
from stacker.scores.predictions import PARTS, Predictions

# Okabe and Ito's colours, which people tell apart whatever colours they see.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"),
)
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "black", SKY, VERMILION, "#999999")
KINDS = {  # of entries: their colour, their marker, and what the legend calls them
    "control": ("#777777", "x", "constant (control)"),
    "base": (BLUE, "o", "base model"),
    "mean": (ORANGE, "D", "mean of base models"),
    "rule": (GREEN, "^", "rule"),
    "meta": ("black", "s", "stack"),
}


def _grid(count: int) -> tuple[int, int]:
    """Return lines and columns for some panels: at most four in a line, and about as many in each."""
    lines = math.ceil(count / 4)
    return lines, math.ceil(count / lines)


def _panels(count: int, width: float, height: float, more: float = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure of some panels with room for a title above."""
    lines, columns = _grid(count)
    figure = Figure(figsize=(max(5.2, width * columns), height * lines + more), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _without_constant(models: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return the models that tell images apart."""
    return {name: model for name, model in models.items() if name != "constant"}


def _title(figure: Figure, lines: Sequence[str], leaks: bool) -> None:
    figure.suptitle("\n".join(lines), fontsize=10, color=title_colour(leaks))


def _sizes(models: Mapping[str, Predictions], part: str, unit: str) -> str:
    """Return what a part is called, with its size."""
    some = next(iter(models.values()))
    cases = f", {plural(len(np.unique(some.cases)), unit)}" if unit != "image" else ""
    return f"{PARTS[part]}: {plural(len(some.labels), 'image')}{cases}"


def confusion_figure(
    models: Mapping[str, Predictions], how: Resampling, part: str, split: str, leaks: bool
) -> Figure:
    """Return the confusion matrices of all models but the constant, in images."""
    shown, classes = _without_constant(models), how.classes
    side = max(2.8, 0.6 * len(classes) + 1.4)
    figure, axes = _panels(len(shown), side, side, more=0.7)
    for axis, (name, model) in zip(axes, shown.items(), strict=True):
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, (model.labels, model.predicted), 1)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for true, guess in np.ndindex(counts.shape):
            colour = "white" if share[true, guess] > 0.5 else "black"
            text = f"{counts[true, guess]}\n{100 * share[true, guess]:.0f} %"
            size = 9 if len(classes) < 5 else 6.5
            axis.text(guess, true, text, ha="center", va="center", color=colour, fontsize=size)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(classes)), classes, fontsize=8, rotation=30, ha="right")
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        axis.set(xlabel="predicted class", ylabel="true class")
    what = "Images by true and predicted class; percentages are of the true class"
    _title(figure, [f"{_sizes(models, part, how.unit)}; {split}", what], leaks)
    return figure


def roc_figure(
    models: Mapping[str, Predictions],
    how: Resampling,
    positive: str | None,
    part: str,
    split: str,
    leaks: bool,
) -> Figure:
    """Return a panel for each model but the constant, with its ROC curve and the band of its errors.

    Without a positive class, beyond two classes, there is a curve for each class against the others.
    Their bands would hide each other: the legend has the intervals of the areas.
    """
    shown = _without_constant(models)
    targets = [how.classes.index(positive)] if positive else list(range(len(how.classes)))
    curves = {name: [roc(model, k, how) for k in targets] for name, model in shown.items()}
    figure, axes = _panels(len(shown), 3.1, 3.2, more=1.0)
    for axis, name in zip(axes, shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        if positive:
            for other in curves.values():
                axis.plot(*_line(other[0]), color="0.55", linewidth=0.5)
        for k, curve, colour in zip(targets, curves[name], _cycle(len(targets)), strict=True):
            area = _area(curve)
            axis.plot(
                *_line(curve), color=colour, label=area if positive else f"{how.classes[k]} {area}"
            )
            if positive and curve.band is not None:
                axis.fill_between(RATES, *curve.band, color=colour, alpha=0.22, linewidth=0, zorder=1)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axis.set(xlabel="false positive rate", ylabel="true positive rate")
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.legend(title="AUC", fontsize=7, title_fontsize=7, loc="lower right", handlelength=1)
    what = f"positive class: {positive}" if positive else "each class against the others"
    _title(
        figure,
        [
            f"ROC curves, {what}; {split}",
            _sizes(models, part, how.unit),
            _on_bands([curve for of_model in curves.values() for curve in of_model], how, positive),
        ],
        leaks,
    )
    return figure


def _on_bands(curves: Sequence[Roc], how: Resampling, positive: str | None) -> str:
    """Say what the bands are, and why some curves have none."""
    lines = []
    if any(curve.interval for curve in curves):
        band = f"Band: 95 % at each false positive rate, by whole {how.unit}s; grey: the other models"
        lines.append(band if positive else f"In brackets: 95 % interval by whole {how.unit}s")
    if why := list(dict.fromkeys(curve.withheld for curve in curves if curve.withheld)):
        lines.append(f"No interval: {'; '.join(why)}")
    return "\n".join(lines)


def _line(curve: Roc) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a curve, which begins in the corner."""
    return np.r_[0, RATES], np.r_[0, curve.rates]


def _area(curve: Roc) -> str:
    if curve.interval is None:
        return f"{curve.area:.3f}"
    low, high = curve.interval
    return f"{curve.area:.3f} [{low:.2f}, {high:.2f}]"


def _cycle(count: int) -> list[str]:
    """Return so many colours."""
    return [CYCLE[k % len(CYCLE)] for k in range(count)]


def reliability_figure(
    models: Mapping[str, Predictions],
    how: Resampling,
    positive: str | None,
    part: str,
    split: str,
    leaks: bool,
) -> Figure:
    """Return how often each model is right where it is so sure, and below it how often it is so sure."""
    shown = _without_constant(models)
    lines, columns = _grid(len(shown))
    size = (max(5.2, 2.9 * columns), 3.9 * lines + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[3, 1] * lines)
    for axis in grid.ravel():
        axis.set_visible(False)
    stated, came_true = "largest probability", "share right"
    if positive:
        stated, came_true = f"probability of {positive}", f"share that is {positive}"
    for place, (name, model) in enumerate(shown.items()):
        line, column = divmod(place, columns)
        pair = grid[2 * line, column], grid[2 * line + 1, column]
        _reliability(*pair, reliability_with_intervals(model, how))
        pair[0].set_title(name, fontsize=10)
        pair[0].set_ylabel(came_true, fontsize=9)
        pair[1].set_xlabel(stated, fontsize=9)
    what = (
        f"Bars: 95 % by whole {how.unit}s; hollow: no interval, fewer than {FEWEST} {how.unit}s "
        "or no variation"
    )
    _title(figure, [f"Reliability; {split}", _sizes(models, part, how.unit), what], leaks)
    return figure


def _reliability(above: Axes, below: Axes, bins: Reliability) -> None:
    """Draw one model's bins: what came true above, and the number of images below."""
    for axis in (above, below):
        axis.set_visible(True)
        axis.set_xlim(0, 1)
        axis.tick_params(labelsize=8)
        axis.set_xticks(np.linspace(0, 1, 6))
    some, known = bins.images > 0, np.isfinite(bins.interval[0])
    above.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    above.plot(bins.confidence[some], bins.frequency[some], color=BLUE, linewidth=0.8, alpha=0.5)
    above.vlines(bins.confidence[known], *bins.interval[:, known], color=BLUE, linewidth=1.2)
    fill = {True: BLUE, False: "white"}
    above.scatter(
        bins.confidence[some],
        bins.frequency[some],
        c=[fill[bool(of)] for of in known[some]],
        edgecolors=BLUE,
        s=18,
        zorder=3,
    )
    above.set_ylim(-0.04, 1.04)
    above.tick_params(labelbottom=False)
    width = 1 / len(bins.images)
    below.bar((np.arange(len(bins.images)) + 0.5) * width, bins.images, width * 0.92, color="0.7")
    for place in np.flatnonzero(some):
        below.annotate(
            *(str(bins.images[place]), ((place + 0.5) * width, bins.images[place])),
            ha="center",
            va="bottom",
            fontsize=6,
        )
    below.set_ylim(0, 1.35 * bins.images.max())
    below.set_ylabel("images", fontsize=9)
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def leaderboard_figure(board: Mapping[str, Any], shown: Sequence[str]) -> Figure:
    """Return the AUC by image of some models on both parts, with intervals, best at the top."""
    rows = {(row["part"], row["model"]): row for row in board["rows"] if row["subset"] == "all"}
    parts = [part for part in PARTS if any(key[0] == part for key in rows)]
    figure = Figure(figsize=(4 + 3.6 * len(parts), 2.1 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, sharex=True, squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        mean = rows[part, "mean"]["image_auc"]
        axis.grid(visible=True, axis="x", color="0.92")
        axis.axvline(0.5, color="0.6", linewidth=0.8)
        if mean is not None:
            axis.axvline(mean, color=ORANGE, linewidth=1, linestyle=":")
        for place, name in enumerate(reversed(shown)):
            if (part, name) in rows:
                _point(axis, place, rows[part, name])
        size = board["sizes"][part]
        of_cases = f", {plural(size['cases'], board['unit'])}" if board["unit"] != "image" else ""
        axis.set_title(f"{PARTS[part]}: {plural(size['images'], 'image')}{of_cases}", fontsize=9)
        axis.set_xlabel("AUC by image", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    axes[0].set_ylim(-0.7, len(shown) - 0.3)
    here = {_kind(row) for (_, name), row in rows.items() if name in shown}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for kind, (colour, marker, label) in KINDS.items()
        if kind in here
    ]
    handles.append(Line2D([], [], color=ORANGE, linestyle=":", label="AUC of the mean"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    title = f"Leaderboard; {board['split']}\nIntervals: {board['intervals']}"
    figure.suptitle(title, fontsize=9, color=title_colour(board["leaks"]))
    return figure


def _kind(row: Mapping[str, Any]) -> str:
    """Return the kind of an entry, where the constant and the mean are kinds of their own."""
    own = {"constant": "control", "mean": "mean"}
    kind: str = row["kind"]
    return own.get(row["model"], kind) if kind == "base" else kind


def _point(axis: Axes, place: int, row: Mapping[str, Any]) -> None:
    """Draw one model's score and interval."""
    score, low, high = (row[f"image_auc{end}"] for end in ("", "_low", "_high"))
    if score is None:
        return
    colour, marker, _ = KINDS[_kind(row)]
    if low is not None:
        axis.plot([low, high], [place, place], color=colour, linewidth=1.3, alpha=0.7)
    axis.plot([score], [place], marker=marker, color=colour, markersize=4.5)


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
    title = "Red and hatched: cases are on both sides of the split. These scores are not results."
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
    hatch: dict[str, Any] = {"hatch": "////", "edgecolor": "white"} if leaks else {}
    axis.bar(places, values, width * 0.92, label=label, color=colour, alpha=alpha, **hatch)
    for place, name in zip(places, known, strict=True):
        low, high = rows[name]["auc_low"], rows[name]["auc_high"]
        if low is not None:
            axis.plot([place, place], [low, high], color="black", linewidth=1)
