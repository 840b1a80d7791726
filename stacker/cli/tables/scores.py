"""The scores of a run for the terminal: of every model, of one over another, of maps against masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stacker.cli.tables.common import make_table, number, title_of
from stacker.cli.tables.models import ModelsTable, Score
from stacker.scores.predictions import PARTS

if TYPE_CHECKING:
    from rich.console import RenderableType

USUAL = ("auc", "accuracy")
SHORT = {"auc": "AUC", "accuracy": "acc."}
NAMES = {
    "auc": "AUC",
    "auc_pooled": "AUC pooled",
    "average_precision": "av. precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "recognition_rate": "recognition rate",
}
FEW = 6  # models that are named one by one
ONE_CLASS = ("constant_prediction", "constant_case_prediction")


def score_tables(metrics: Mapping[str, Any], full: bool = False) -> list[RenderableType]:
    """Return the tables of a run's metrics: AUC and accuracy, or every score by image and by case."""
    units = [unit for unit in ("image", metrics["unit"]) if full or unit == "image"]
    tables: list[RenderableType] = [
        scores_table(metrics, part, unit if full else None)
        for part in PARTS
        if metrics[part]
        for unit in dict.fromkeys(units)
    ]
    tables += _gain_tables(metrics)
    if "localisation" in metrics:
        tables.append(_localisation_table(metrics["localisation"]))
    return tables


def scores_table(
    metrics: Mapping[str, Any], part: str = "test", every_score_of: str | None = None
) -> ModelsTable:
    """Return the models' AUC and accuracy by image and by case, or every score of one of the two."""
    models, unit = metrics[part], metrics["unit"]
    first = next(iter(models.values()))
    if every_score_of is None:
        columns = [(of, score) for of in dict.fromkeys(("image", unit)) for score in USUAL]
        headings = [f"{of} {SHORT[score]}" for of, score in columns]
        by = ""
    else:
        columns = [(every_score_of, score) for score in NAMES if score in first[every_score_of]]
        headings = [NAMES[score] for _, score in columns]
        by = f", by {every_score_of}"
    groups = "cases not known" if unit == "image" else f"{first[unit]['n']} {unit}s"
    last = part == [p for p in PARTS if metrics[p]][-1] and every_score_of in (None, unit)
    about = [f"Intervals: {metrics['intervals']}.", _base_models(metrics)] if last else []
    return ModelsTable(
        title_of(f"{PARTS[part]}{by}: {first['image']['n']} images, {groups}; ", metrics),
        list(models),
        {
            heading: [_score(scores[of], score) for scores in models.values()]
            for heading, (of, score) in zip(headings, columns, strict=True)
        },
        [*marks(metrics.get("best_base"), models, unit), *filter(None, about)],
        minor=() if every_score_of else minor_of(headings),
        signs=signs(metrics.get("best_base"), models),
    )


def minor_of(headings: Iterable[str]) -> list[str]:
    """Return the columns whose intervals wait for a wider terminal, the first of them longest."""
    return sorted(list(headings)[1:], key=lambda heading: SHORT["accuracy"] in heading)


def signs(best: str | None, models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the signs behind the models' names: of the best base model, and of one class for all."""
    return {
        name: " *" * (name == best) + " (!)" * any(scores.get(key) for key in ONE_CLASS)
        for name, scores in models.items()
    }


def marks(best: str | None, models: Mapping[str, Mapping[str, Any]], unit: str) -> Iterator[str]:
    """Yield what the signs behind the models' names mean, where there are some."""
    if best in models:
        yield "* the best base model on development cases."
    told = {
        what: [name for name, scores in models.items() if scores.get(key)]
        for what, key in zip(("images", f"{unit}s"), ONE_CLASS, strict=True)
    }
    if any(told.values()):
        listed = (
            f"all {what} ({', '.join(names) if len(names) <= FEW else f'{len(names)} models'})"
            for what, names in told.items()
            if names
        )
        yield f"(!) predicts the same class for {'; for '.join(listed)}."


def _base_models(metrics: Mapping[str, Any]) -> str:
    """Return which base models took part, by backbone; nothing of scores that do not say."""
    names = metrics.get("base_models", ())
    counts = Counter(n if n.endswith("/frozen") else n.rsplit("/", 1)[0] for n in names)
    shown = (name if count == 1 else f"{name} ({count} folds)" for name, count in counts.items())
    return f"Base models: {', '.join(shown)}." if counts else ""


def _score(scores: Mapping[str, Any], score: str) -> Score:
    bounds, why = (scores[key].get(score) for key in ("interval", "withheld"))
    return Score(scores.get(score), bounds, why)


def _gain_tables(metrics: Mapping[str, Any]) -> Iterator[ModelsTable]:
    """Yield, for each part, what each first model gains over the second, on the same images."""
    rows = metrics["differences"]
    parts = list(dict.fromkeys(row.get("part") for row in rows))
    sure = {row.get("part") for row in rows if row["interval"]}
    noted = [part for part in parts if part in sure][-1:]
    for part in parts:
        known = {
            (row["first"], row["second"], row["score"]): row for row in rows if row.get("part") == part
        }
        pairs = list(dict.fromkeys(key[:2] for key in known))
        where = f"{PARTS[part]}: " if part in PARTS else ""
        yield ModelsTable(
            f"{where}gain by image, paired by {metrics['unit']}",
            [f"{first} over {second}" for first, second in pairs],
            {f"image {SHORT[s]}": [_gain(known[(*pair, s)]) for pair in pairs] for s in USUAL},
            ["An interval that includes 0: no significant difference."] if part in noted else [],
            first="model",
            sign="+",
        )


def _gain(row: Mapping[str, Any]) -> Score:
    return Score(row["difference"], row["interval"], row["withheld"])


def _localisation_table(localisation: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return how well the maps of the true class point into the masks."""
    shares: Sequence[str] = ("pointing_game", "mass_inside", "mask_area")
    return make_table(
        "Test images: maps of the true class against the lesion masks",
        ("backbone", *map(number, ("pointing game", "mass inside", "mask area (chance)", "maps"))),
        (
            [name, *(f"{row[share]:.3f}" for share in shares), str(row["maps"])]
            for name, row in localisation.items()
        ),
    )
