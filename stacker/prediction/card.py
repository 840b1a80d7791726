"""The model card: what a stack is, what it was made from, how good it was found to be, what it is not.

Every sentence and every number comes from the files of the run; what the files do not tell is not said.
Identities of cases do not appear.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stacker.data.formats.registry import format_of
from stacker.data.manifest import Image
from stacker.errors import plural
from stacker.files import read_json
from stacker.run import Run
from stacker.scores.predictions import PARTS

FEW_CASES = 50
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auc": "AUC",
    "brier": "Brier score",
    "ece": "calibration error",
    "recognition_rate": "recognition rate",
}
USE = (
    "Research. **Not for diagnosis, and not for any decision about a patient**: nothing but the images "
    "below stands behind these numbers."
)
HOW = """\
    stacker predict PACK image.png
    stacker predict PACK folder/ --format csv --output rows.csv"""


def model_card(run: Run, meta: str, facts: Mapping[str, Any]) -> str:
    """Return the card of a run's stack as Markdown; `facts` are what the stack says of itself."""
    metrics = _metrics(run, meta)
    paragraphs = (
        *_what_it_is(run, meta, facts),
        *("## Intended use", USE),
        *("## Data", *_data(run)),
        *("## Split", *_split(run)),
        *("## Scores", *_scores(metrics, meta)),
        *_confusion(run, meta, facts["classes"]),
        *_decision(run, facts),
        *("## Limits", "\n".join(_limits(run, metrics, meta))),
        *("## How to use it", HOW),
        *("## Where it comes from", *_origin(facts)),
    )
    return "\n\n".join(paragraphs) + "\n"


def _metrics(run: Run, meta: str) -> dict[str, Any] | None:
    """Return the run's scores, if they are there and speak of this stack."""
    path = run.path / "metrics.json"
    metrics: dict[str, Any] = read_json(path) if path.exists() else {}
    return metrics if meta in metrics.get("test", {}) else None


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows))
    return "\n".join([first, f"|{'---|' * len(header)}", *others])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _what_it_is(run: Run, meta: str, facts: Mapping[str, Any]) -> Iterator[str]:
    backbones, folds = facts["backbones"], facts["folds"]
    models = plural(len(backbones) * len(folds), "base model")
    yield f"# {run.config.run}: `{meta}` over {models}"
    yield (
        f"Tells {_listed(facts['classes'])} apart in images. {plural(len(backbones), 'backbone')} "
        f"({_listed(backbones)}), fine-tuned in {plural(len(folds), 'fold')}; the meta-learner `{meta}` "
        f"looks at {_listed(facts['features'])} and was fitted on {facts['rows']} images, "
        "each seen by base models that were not trained on it."
    )


def _data(run: Run) -> Iterator[str]:
    manifest, config = run.manifest, run.config
    height, width = config.images.shape
    yield (
        f"{plural(len(manifest.images), 'image')} {format_of(config.data).described}, brought to "
        f"{height}x{width} pixels ({config.images.resize})."
    )
    tests = {manifest.images[n].id for n in manifest.rows_of(run.folds.group, run.folds.test)}
    rows = []
    for name in manifest.classes:
        images = [image for image in manifest.images if image.label == name]
        of_test = [image for image in images if image.id in tests]
        rows.append((name, len(images), _cases(images), len(of_test), _cases(of_test)))
    yield _table(("class", "images", "cases", "of these, test images", "test cases"), rows)
    magnifications = Counter(image.magnification for image in manifest.images if image.magnification)
    if magnifications:
        listed = (f"{m}X ({plural(n, 'image')})" for m, n in sorted(magnifications.items()))
        yield f"Magnifications: {', '.join(listed)}."


def _cases(images: Iterable[Image]) -> int | str:
    return len({image.case for image in images if image.case}) or "not known"


def _split(run: Run) -> Iterator[str]:
    group, unit = run.folds.group, run.manifest.unit
    yield f"{run.folds.label[0].upper()}{run.folds.label[1:]}."
    if group != "case":
        yield (
            f"> **WARNING: this split goes by {group}, not by case. Images of one patient may lie on "
            "both sides of it, and then every score below is too good: it says nothing about new "
            "patients.**"
        )
    if unit != "case":
        yield (
            f"> **WARNING: the cases of the images are not known. The intervals below take every {unit} "
            "for independent of the others, and are too narrow where it is not.**"
        )


def _scores(metrics: Mapping[str, Any] | None, meta: str) -> Iterator[str]:
    """Yield the scores of the stack, and of what it must be better than."""
    if metrics is None:
        yield "This stack has not been scored with the run's present settings."
        return
    yield f"In brackets: {metrics['intervals']}."
    best = metrics["best_base"]
    for part, title in PARTS.items():
        of_part = metrics.get(part, {})
        models = [name for name in dict.fromkeys([meta, "mean", best, "constant"]) if name in of_part]
        for unit in dict.fromkeys(["image", metrics["unit"]] if models else []):
            by_model = {name: of_part[name].get(unit, {}) for name in models}
            first = by_model[models[0]]
            scores = [score for score in SCORES if score in first]
            yield f"### {title}, by {unit} ({first.get('n', 'unknown number')} of them)"
            yield _table(
                ("", *(SCORES[score] for score in scores)),
                (
                    [f"`{name}`{' (best base model)' * (name == best)}"]
                    + [_score(by_model[name], score) for score in scores]
                    for name in models
                ),
            )
    yield from _differences(metrics, meta)


def _score(scores: Mapping[str, Any], score: str) -> str:
    interval = (scores.get("interval") or {}).get(score)
    why = (scores.get("withheld") or {}).get(score)
    return _with_interval(scores.get(score), interval, why)


def _with_interval(value: float | None, interval: Sequence[float] | None, why: str | None) -> str:
    """Return a number with its interval, or with the reason why it has none."""
    if value is None:
        return "not defined"
    bounds = f"{interval[0]:.3f}, {interval[1]:.3f}" if interval else why or "no interval"
    return f"{value:.3f} [{bounds}]"


def _differences(metrics: Mapping[str, Any], meta: str) -> Iterator[str]:
    rows = [row for row in metrics.get("differences", []) if row["first"] == meta]
    if not rows:
        return
    yield "### Better than what it is made of?"
    yield "Paired differences; an interval that holds 0 shows none."
    yield _table(
        ("on", "over", "score", "gain"),
        (
            (
                PARTS[row["part"]],
                f"`{row['second']}`",
                f"{SCORES[row['score']]} by {row['unit']}",
                _with_interval(row["difference"], row["interval"], row["withheld"]),
            )
            for row in rows
        ),
    )


def _confusion(run: Run, meta: str, classes: Sequence[str]) -> Iterator[str]:
    """Count the test images by true and predicted class, from the file of the stack's predictions."""
    path = run.path / "predictions.csv"
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = (row for row in csv.DictReader(file) if row["model"] == meta)
        counts = Counter((row["label"], row["predicted"]) for row in rows)
    if counts:
        yield "### Test images by class"
        yield _table(
            ("true class", *(f"predicted {name}" for name in classes)),
            ((true, *(counts[true, guess] for guess in classes)) for true in classes),
        )


def _decision(run: Run, facts: Mapping[str, Any]) -> Iterator[str]:
    for unit, finish in {"An image": facts["finish"], "A case": facts["case_finish"]}.items():
        if finish is not None:
            yield f"{unit}: {_finish(finish, facts['classes'])}"
    abstain = run.config.stack.abstain
    below = (
        f"below a confidence of {abstain:g}" if abstain > 0 else "never, unless asked to (`--abstain`)"
    )
    yield f"It abstains {below}."


def _finish(finish: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Say how probabilities are calibrated and cut."""
    kind, threshold = finish["calibrator"]["kind"], finish["threshold"]
    calibrated = "its probabilities are not calibrated"
    if kind != "none":
        calibrated = f"calibration by {kind}, fitted on what the stack said out of fold"
    if threshold is None:
        return f"{calibrated}; the likeliest class is predicted."
    return (
        f"{calibrated}; `{classes[1]}` is predicted from a probability of {threshold:.4f} on, which no "
        f"test case had a say in; sensitivity is that of `{classes[1]}`."
    )


def _limits(run: Run, metrics: Mapping[str, Any] | None, meta: str) -> Iterator[str]:
    manifest, folds = run.manifest, run.folds
    yield "- What it says of images of another kind is not known; `novelty` tells how unusual one looks."
    units = len({manifest.cases[row] for row in manifest.rows_of(folds.group, folds.test)})
    if units < FEW_CASES:
        yield f"- The test set has {plural(units, manifest.unit)}: read the intervals, not the scores."
    if metrics is not None and metrics["test"][meta]["constant_prediction"]:
        yield "- **It predicts one and the same class for every test image.**"
    if folds.group == "case" and manifest.unit == "case":
        yield "- Whether cases come from one hospital, scanner or laboratory is not in the files."


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    versions = (f"{name} {version}" for name, version in facts["versions"].items())
    yield f"Fitted with {', '.join(versions)}; base models run in {facts['precision']}."
    rows = [(f"`{name}`", f"`{sha256}`") for name, sha256 in facts["checkpoints"].items()]
    yield _table(("base model", "SHA-256 of its file in the run"), rows)
