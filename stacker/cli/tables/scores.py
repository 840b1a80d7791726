"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from stacker.cli.tables.common import title_of
from stacker.scores.predictions import PARTS

NAMES = {"accuracy": "accuracy", "auc": "AUC"}


def scores_table(metrics: dict[str, Any], part: str = "test") -> Table:
    """Return the scores of all models on a part of the data, each with its interval."""
    first, unit = next(iter(metrics[part].values())), metrics["unit"]
    groups = "cases not known" if unit == "image" else f"{first[unit]['n']} {unit}s"
    sizes = f"{first['image']['n']} images, {groups}"
    title = title_of(f"{PARTS[part]}: {sizes}; ", metrics)
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    columns = [("image", "accuracy"), ("image", "auc")]
    columns += [(unit, "accuracy"), (unit, "auc")] if unit != "image" else []
    columns += [(unit, "recognition_rate")] if unit == "case" else []
    for of, score in columns:
        table.add_column(f"{of} {NAMES[score]}" if score in NAMES else "recognition rate")
    for name, scores in metrics[part].items():
        mark = " *" if name == metrics.get("best_base") else ""
        mark += " (!)" if scores["constant_prediction"] else ""
        table.add_row(name + mark, *(_with_interval(scores[of], score) for of, score in columns))
    star = "* best base model on held-out cases; " if "best_base" in metrics else ""
    marks = f"{star}(!) predicts one class. AUC: pairs of images of one part"
    table.caption = f"Intervals: {metrics['intervals']}. {marks}"
    table.caption_justify = "left"
    return table


def _with_interval(scores: dict[str, Any], score: str) -> str:
    value = scores.get(score)
    if value is None:
        return "-"
    why = scores["withheld"].get(score)
    return f"{value:.3f} " + (f"({why})" if why else _interval(scores["interval"][score]))


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def differences_table(metrics: dict[str, Any]) -> Table:
    """Return what each first model gains over the second, on the same images."""
    title = f"Gain on the same images, paired by {metrics['unit']}"
    table = Table(title=title, title_justify="left")
    parts = any("part" in row for row in metrics["differences"])
    for heading in (*(("on",) if parts else ()), "model", "against", "score", "difference"):
        table.add_column(heading)
    for row in metrics["differences"]:
        gain = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        bounds = f"({row['withheld']})" if row["withheld"] else _interval(row["interval"])
        part = [PARTS[row["part"]].split(",")[0]] if parts else []
        table.add_row(*part, row["first"], row["second"], row["score"], f"{gain} {bounds}")
    return table


def localisation_table(metrics: dict[str, Any]) -> Table:
    """Return how well the maps of the true class point into the masks."""
    table = Table(title="Maps of the true class against the lesion masks", title_justify="left")
    for heading in ("backbone", "pointing game", "mass inside", "mask area (chance)", "maps"):
        table.add_column(heading)
    for name, found in metrics["localisation"].items():
        shares = (f"{found[key]:.3f}" for key in ("pointing_game", "mass_inside", "mask_area"))
        table.add_row(name, *shares, str(found["maps"]))
    return table
