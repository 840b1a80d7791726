"""The model card: what a stack is, what it was made from, how good it was found to be, what it is not.

Every sentence and every number comes from the files of the run; what the files do not tell is not said.
Identities of cases do not appear.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stacker.data.formats.registry import format_of
from stacker.data.manifest import Manifest
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


def model_card(run: Run, meta: str, facts: Mapping[str, Any]) -> str:
    """Return the card of a run's stack as Markdown; `facts` are what the stack says of itself."""
    metrics = _metrics(run, meta)
    sections = (
        _what_it_is(run, meta, facts),
        _use(),
        _data(run),
        _split(run),
        _scores(metrics, meta),
        _confusion(run, meta, facts["classes"]),
        _decision(run, facts),
        _limits(run, metrics, meta),
        _how_to_use(),
        _origin(facts),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _metrics(run: Run, meta: str) -> dict[str, Any] | None:
    """Return the run's scores, if they are there and speak of this stack."""
    path = run.path / "metrics.json"
    found: dict[str, Any] | None = read_json(path) if path.exists() else None
    return found if found is not None and meta in found.get("test", {}) else None


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(map(str, header))} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _what_it_is(run: Run, meta: str, facts: Mapping[str, Any]) -> Iterator[str]:
    backbones, folds = facts["backbones"], facts["folds"]
    models = plural(len(backbones) * len(folds), "base model")
    yield f"# {run.config.run}: `{meta}` over {models}"
    yield ""
    yield (
        f"Tells {_listed(facts['classes'])} apart in images. {plural(len(backbones), 'backbone')} "
        f"({_listed(backbones)}), fine-tuned in {plural(len(folds), 'fold')}; the meta-learner `{meta}` "
        f"looks at {_listed(facts['features'])} and was fitted on {facts['rows']} images, "
        "each seen by base models that were not trained on it."
    )


def _use() -> Iterator[str]:
    yield "## Intended use"
    yield ""
    yield (
        "Research. **Not for diagnosis, and not for any decision about a patient**: nothing but the "
        "images below stands behind these numbers."
    )


def _data(run: Run) -> Iterator[str]:
    manifest, config = run.manifest, run.config
    height, width = config.images.shape
    yield "## Data"
    yield ""
    yield (
        f"{plural(len(manifest.images), 'image')} {format_of(config.data).described}, brought to "
        f"{height}x{width} pixels ({config.images.resize})."
    )
    yield ""
    tests = {manifest.images[n].id for n in manifest.rows_of(run.folds.group, run.folds.test)}
    header = ("class", "images", "cases", "of these, test images", "test cases")
    yield from _table(header, (_counts(manifest, name, tests) for name in manifest.classes))
    magnifications = Counter(image.magnification for image in manifest.images if image.magnification)
    if magnifications:
        yield ""
        listed = (f"{m}X ({plural(n, 'image')})" for m, n in sorted(magnifications.items()))
        yield f"Magnifications: {', '.join(listed)}."


def _counts(manifest: Manifest, label: str, tests: set[str]) -> tuple[object, ...]:
    images = [image for image in manifest.images if image.label == label]
    inside = [image for image in images if image.id in tests]
    cases = [
        len({image.case for image in found if image.case}) or "not known" for found in (images, inside)
    ]
    return (label, len(images), cases[0], len(inside), cases[1])


def _split(run: Run) -> Iterator[str]:
    folds, manifest = run.folds, run.manifest
    yield "## Split"
    yield ""
    yield f"{folds.label[0].upper()}{folds.label[1:]}."
    if folds.group != "case":
        yield ""
        yield (
            f"> **WARNING: this split goes by {folds.group}, not by case. Images of one patient may lie "
            "on both sides of it, and then every score below is too good: it says nothing about new "
            "patients.**"
        )
    if manifest.unit != "case":
        yield ""
        yield (
            f"> **WARNING: the cases of the images are not known. The intervals below take every "
            f"{manifest.unit} for independent of the others, and are too narrow where it is not.**"
        )


def _scores(metrics: Mapping[str, Any] | None, meta: str) -> Iterator[str]:
    yield "## Scores"
    yield ""
    if metrics is None:
        yield "This stack has not been scored with the run's present settings."
        return
    yield f"In brackets: {metrics['intervals']}."
    for part, title in PARTS.items():
        models = [name for name in _shown(metrics, meta) if name in metrics.get(part, {})]
        units = [unit for unit in ("image", metrics["unit"]) if models]
        for unit in dict.fromkeys(units):
            found = {name: metrics[part][name].get(unit, {}) for name in models}
            first = found[models[0]]
            scores = [score for score in SCORES if score in first]
            yield ""
            yield f"### {title}, by {unit} ({first.get('n', 'unknown number')} of them)"
            yield ""
            rows = [[_called(m, metrics), *(_score(found[m], s) for s in scores)] for m in models]
            yield from _table(("", *(SCORES[score] for score in scores)), rows)
    yield from _differences(metrics, meta)


def _shown(metrics: Mapping[str, Any], meta: str) -> list[str]:
    """Return the models of the tables: the stack, and what it must be better than."""
    return list(dict.fromkeys([meta, "mean", metrics["best_base"], "constant"]))


def _called(name: str, metrics: Mapping[str, Any]) -> str:
    if name == metrics["best_base"]:
        return f"`{name}` (best base model)"
    return f"`{name}`"


def _score(found: Mapping[str, Any], score: str) -> str:
    value, interval = found.get(score), (found.get("interval") or {}).get(score)
    if value is None:
        return "not defined"
    why = (found.get("withheld") or {}).get(score, "no interval")
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f" [{why}]")


def _differences(metrics: Mapping[str, Any], meta: str) -> Iterator[str]:
    rows = [row for row in metrics.get("differences", []) if row["first"] == meta]
    if not rows:
        return
    yield ""
    yield "### Better than what it is made of?"
    yield ""
    yield "Paired differences; an interval that holds 0 shows none."
    yield ""
    found = [
        (
            PARTS.get(row.get("part", "test"), row.get("part")),
            f"`{row['second']}`",
            f"{SCORES.get(row['score'], row['score'])} by {row['unit']}",
            _gain(row),
        )
        for row in rows
    ]
    yield from _table(("on", "over", "score", "gain"), found)


def _gain(row: Mapping[str, Any]) -> str:
    """Return a difference with its interval, or with the reason why it has none."""
    withheld = {"d": row["withheld"]} if row["withheld"] else {}
    return _score(
        {"d": row["difference"], "interval": {"d": row["interval"]}, "withheld": withheld}, "d"
    )


def _confusion(run: Run, meta: str, classes: Sequence[str]) -> Iterator[str]:
    """Count the test images by true and predicted class, from the file of the stack's predictions."""
    path = run.path / "predictions.csv"
    if not path.exists():
        return
    counts = _pairs(path, meta)
    if not counts:
        return
    yield "### Test images by class"
    yield ""
    header = ("true class", *(f"predicted {name}" for name in classes))
    yield from _table(header, ((true, *(counts[true, guess] for guess in classes)) for true in classes))


def _pairs(path: Path, meta: str) -> Counter[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = (row for row in csv.DictReader(file) if row["model"] == meta)
        return Counter((row["label"], row["predicted"]) for row in rows)


def _decision(run: Run, facts: Mapping[str, Any]) -> Iterator[str]:
    classes = facts["classes"]
    for unit, finish in {"An image": facts["finish"], "A case": facts["case_finish"]}.items():
        if finish is not None:
            yield f"{unit}: {_finish(finish, classes)}"
            yield ""
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
    yield "## Limits"
    yield ""
    yield "- What it says of images of another kind is not known; `novelty` tells how unusual one looks."
    rows = manifest.rows_of(folds.group, folds.test)
    units = len({manifest.cases[row] for row in rows})
    if units < FEW_CASES:
        yield f"- The test set has {plural(units, manifest.unit)}: read the intervals, not the scores."
    if metrics is not None and metrics["test"][meta]["constant_prediction"]:
        yield "- **It predicts one and the same class for every test image.**"
    if folds.group == "case" and manifest.unit == "case":
        yield "- Whether cases come from one hospital, scanner or laboratory is not in the files."


def _how_to_use() -> Iterator[str]:
    yield "## How to use it"
    yield ""
    yield "    stacker predict PACK image.png"
    yield "    stacker predict PACK folder/ --format csv --output rows.csv"


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Where it comes from"
    yield ""
    versions = (f"{name} {version}" for name, version in facts["versions"].items())
    yield f"Fitted with {', '.join(versions)}; base models run in {facts['precision']}."
    yield ""
    rows = [(f"`{name}`", f"`{sha256}`") for name, sha256 in facts["checkpoints"].items()]
    yield from _table(("base model", "SHA-256 of its file in the run"), rows)
