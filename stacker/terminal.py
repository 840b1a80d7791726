"""Tables for the terminal: plain results in, rich renderables out; only the CLI prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:  # predict loads torch, which a table of scores does not need
    from stacker.inspection import Summary
    from stacker.predict import Prediction

COLUMNS = (
    ("image", "accuracy", "image accuracy"),
    ("image", "auc", "image AUC"),
    ("case", "accuracy", "case accuracy"),
    ("case", "auc", "case AUC"),
    ("case", "recognition_rate", "recognition rate"),
)


def scores_table(metrics: dict[str, Any]) -> Table:
    """Return the test scores of all models, each with its interval."""
    first = next(iter(metrics["test"].values()))
    sizes = f"{first['image']['n']} images of {first['case']['n']} cases"
    table = Table(title=f"Test set: {sizes}; {metrics['split']}", title_justify="left")
    table.add_column("model")
    for _, _, heading in COLUMNS:
        table.add_column(heading)
    for name, scores in metrics["test"].items():
        mark = " *" if name == metrics["best_base"] else ""
        mark += " (!)" if scores["constant_prediction"] else ""
        cells = (_with_interval(scores[unit], score) for unit, score, _ in COLUMNS)
        table.add_row(name + mark, *cells)
    marks = "* best base model on held-out cases; (!) predicts one class"
    table.caption = f"Intervals: {metrics['intervals']}. {marks}"
    table.caption_justify = "left"
    return table


def _with_interval(scores: dict[str, Any], score: str) -> str:
    value = scores.get(score)
    return "-" if value is None else f"{value:.3f} {_interval(scores['interval'][score])}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def differences_table(metrics: dict[str, Any]) -> Table:
    """Return what each meta-learner gains over the best base model and over the mean."""
    table = Table(title="Gain on the same test images, paired by case", title_justify="left")
    for heading in ("model", "against", "score", "difference"):
        table.add_column(heading)
    for row in metrics["differences"]:
        gain = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        bounds = _interval(row["interval"])
        table.add_row(row["first"], row["second"], row["score"], f"{gain} {bounds}")
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


def caches_table(summaries: Sequence[Summary]) -> Table:
    """Return what each cache of a run holds."""
    table = Table(title="Caches", title_justify="left")
    headings = (
        "backbone",
        "fold",
        "images",
        "maps",
        "embedding",
        "method",
        "layer",
        "MB",
        "checkpoint",
    )
    for heading in headings:
        table.add_column(heading)
    for s in summaries:
        images = ", ".join(f"{count} {part}" for part, count in s.images.items())
        shape = " x ".join(map(str, s.maps))
        cells = (s.embedding, s.method, s.layer, s.megabytes, s.checkpoint)
        table.add_row(s.backbone, s.fold, images, shape, *map(str, cells))
    return table


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """Return the stack's say on each image, beside that of each base model."""
    table = Table(title="Predictions", title_justify="left")
    for heading in ("image", "predicted", "probability", *predictions[0].base, "heatmaps"):
        table.add_column(heading, overflow="fold")
    for p in predictions:
        base = (f"{shares[p.predicted]:.3f}" for shares in p.base.values())
        table.add_row(p.path, p.predicted, f"{p.probabilities[p.predicted]:.3f}", *base, p.heatmaps)
    return table
