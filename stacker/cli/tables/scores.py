"""The scores of a run for the terminal: of every model, of one over another, of maps against masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from stacker.cli.tables.common import make_table, title_of, with_bounds
from stacker.scores.predictions import PARTS

NAMES = {"accuracy": "accuracy", "auc": "AUC"}


def score_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return all tables of a run's metrics."""
    tables = [scores_table(metrics, part) for part in PARTS if metrics[part]]
    if metrics["differences"]:
        tables.append(_differences_table(metrics))
    if "localisation" in metrics:
        tables.append(_localisation_table(metrics["localisation"]))
    return tables


def scores_table(metrics: Mapping[str, Any], part: str = "test") -> Table:
    """Return the scores of all models on a part of the data, each with its interval."""
    first, unit = next(iter(metrics[part].values())), metrics["unit"]
    columns = [("image", "accuracy"), ("image", "auc")]
    columns += [(unit, "accuracy"), (unit, "auc")] if unit != "image" else []
    columns += [(unit, "recognition_rate")] if unit == "case" else []
    groups = "cases not known" if unit == "image" else f"{first[unit]['n']} {unit}s"
    star = "* best base model on held-out cases; " if "best_base" in metrics else ""
    marks = f"{star}(!) predicts one class. AUC: pairs of images of one part"
    table = make_table(
        title_of(f"{PARTS[part]}: {first['image']['n']} images, {groups}; ", metrics),
        ["model", *(f"{of} {NAMES[s]}" if s in NAMES else "recognition rate" for of, s in columns)],
        caption=f"{_base_models(metrics)}Intervals: {metrics['intervals']}. {marks}",
    )
    for name, scores in metrics[part].items():
        mark = " *" if name == metrics.get("best_base") else ""
        mark += " (!)" if scores["constant_prediction"] else ""
        table.add_row(name + mark, *(_cell(scores[of], score) for of, score in columns))
    return table


def _base_models(metrics: Mapping[str, Any]) -> str:
    """Return which base models took part, by backbone; nothing of scores that do not say."""
    names = metrics.get("base_models", ())
    counts = Counter(n if n.endswith("/frozen") else n.rsplit("/", 1)[0] for n in names)
    if not counts:
        return ""
    shown = (name if count == 1 else f"{name} ({count} folds)" for name, count in counts.items())
    return f"Base models: {', '.join(shown)}. "


def _cell(scores: Mapping[str, Any], score: str) -> str:
    bounds, why = (scores[key].get(score) for key in ("interval", "withheld"))
    return with_bounds(scores.get(score), bounds, why)


def _differences_table(metrics: Mapping[str, Any]) -> Table:
    """Return what each first model gains over the second, on the same images."""
    rows = metrics["differences"]
    parts = any("part" in row for row in rows)
    table = make_table(
        f"Gain on the same images, paired by {metrics['unit']}",
        [*(["on"] if parts else []), "model", "against", "score", "difference"],
    )
    for row in rows:
        part = [PARTS[row["part"]].split(",")[0]] if parts else []
        gain = with_bounds(row["difference"], row["interval"], row["withheld"], "+")
        table.add_row(*part, row["first"], row["second"], row["score"], gain)
    return table


def _localisation_table(localisation: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return how well the maps of the true class point into the masks."""
    shares = ("pointing_game", "mass_inside", "mask_area")
    return make_table(
        "Maps of the true class against the lesion masks",
        ("backbone", "pointing game", "mass inside", "mask area (chance)", "maps"),
        (
            [name, *(f"{row[share]:.3f}" for share in shares), str(row["maps"])]
            for name, row in localisation.items()
        ),
    )
