"""The model card: what a stack is, how it was trained, how well it performed, and its limits.

Every sentence and every number comes from the files of the run, and what they do not tell is left out.
Case ids do not appear.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stacker.data.formats.registry import format_of
from stacker.data.manifest import Image
from stacker.errors import plural
from stacker.files import read_json
from stacker.prediction.tally import no_verdict
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
    "Research only. **Not for diagnosis, and not for any decision about a patient.** The stack was "
    "tested on the images described below and on no others."
)
LICENCE = (
    "The run does not record the licence of the images: look it up at their source before you pass this "
    "pack on, and cite the data set as its authors ask."
)
SPLITS = {
    "crossfit": "Each base model was trained without one fold and describes the images of that fold to "
    "the meta-learner; the test part was used by none.",
    "holdout": "One part trained the base models, another one the meta-learner; the test part was used "
    "by neither.",
}
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
        *("## Base models", *_recipes(run, facts["backbones"])),
        *("## Split", *_split(run)),
        *("## Scores", *_scores(metrics, meta)),
        *(_confusion(run, meta, facts["classes"]) if metrics else ()),
        *("## Decisions", *_decision(run, facts)),
        *("## Limits", "\n".join(_limits(run, metrics, meta))),
        *("## How to use it", HOW),
        *("## Versions and checksums", *_origin(facts)),
    )
    return "\n\n".join(paragraphs) + "\n"


def _metrics(run: Run, meta: str) -> dict[str, Any] | None:
    """Return the run's scores, if it has any of this stack, and not of an earlier one of its name."""
    path = run.path / "metrics.json"
    metrics: dict[str, Any] = read_json(path) if path.exists() else {}
    return metrics if run.has_scored(meta, metrics) else None


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
        f"A classifier of histopathology images into {_listed(facts['classes'])}. It has "
        f"{plural(len(backbones), 'backbone')} ({_listed(backbones)}), each trained in "
        f"{plural(len(folds), 'fold')}. The meta-learner `{meta}` combines their "
        f"{_listed(facts['features'])}; it was fitted on {plural(facts['rows'], 'image')}, using only "
        "base models that were not trained on the image."
    )
    if run.manifest.positive is not None:
        yield (
            f"The positive class is `{run.manifest.positive}`: sensitivity is the share of its images "
            "(or cases) that are recognised, specificity that of the other class."
        )


def _data(run: Run) -> Iterator[str]:
    manifest, config = run.manifest, run.config
    height, width = config.images.shape
    yield (
        f"{plural(len(manifest.images), 'image')} {format_of(config.data).described}, resized to "
        f"{height}x{width} pixels ({config.images.resize})."
    )
    tests = {manifest.images[n].id for n in manifest.rows_of(run.folds.group, run.folds.test)}
    rows = []
    for name in manifest.classes:
        images = [image for image in manifest.images if image.label == name]
        of_test = [image for image in images if image.id in tests]
        rows.append((name, len(images), _cases(images), len(of_test), _cases(of_test)))
    yield _table(("class", "images", "cases", "images in the test part", "cases in the test part"), rows)
    magnifications = Counter(image.magnification for image in manifest.images if image.magnification)
    if magnifications:
        listed = (f"{m}X ({plural(n, 'image')})" for m, n in sorted(magnifications.items()))
        yield f"Magnifications: {', '.join(listed)}."
    yield LICENCE


def _recipes(run: Run, backbones: Sequence[str]) -> Iterator[str]:
    """Yield how each backbone of a stack was trained, by the settings that matter most."""
    rows = []
    for name in (name for name in backbones if name in run.config.backbones):
        recipe, weights = run.config.recipe(name), run.config.backbones[name].weights
        start = weights if weights in ("hub", "random") else Path(weights).name
        rate = f"{recipe.optimizer}, {recipe.lr:g}, {recipe.schedule}"
        trained = "all" if recipe.trainable == "all" else str(recipe.trainable)
        cells = (recipe.epochs, recipe.batch_size, rate, recipe.loss, recipe.balance)
        rows.append((f"`{name}`", start, trained, *cells))
    header = ("weights at the start", "trained layers", "epochs", "batch", "optimizer, rate, schedule")
    yield _table(("backbone", *header, "loss", "balance"), rows)
    yield "`config.yaml` has all other settings."
    gone = [name for name in backbones if name not in run.config.backbones]
    if gone:
        yield f"The settings of {_listed(gone)} are no longer in the config of the run."


def _cases(images: Iterable[Image]) -> int | str:
    return len({image.case for image in images if image.case}) or "not known"


def _split(run: Run) -> Iterator[str]:
    group, unit = run.folds.group, run.manifest.unit
    yield f"{run.folds.label[0].upper()}{run.folds.label[1:]}. {SPLITS[run.folds.protocol]}"
    if group != "case":
        yield (
            f"> **WARNING: this split goes by {group}, not by case. Images of one patient may be on "
            "both sides of it. The scores below are then too high, and say nothing of new patients.**"
        )
    if unit != "case":
        yield (
            f"> **WARNING: the cases of the images are not known. The intervals below treat every "
            f"{unit} as independent of the others, and are too narrow if they are not.**"
        )


def _scores(metrics: Mapping[str, Any] | None, meta: str) -> Iterator[str]:
    """Yield the scores of the stack, and of the models that it should be better than."""
    if metrics is None:
        yield "This stack has not been scored with the run's current settings."
        return
    yield (
        f"In brackets: intervals ({metrics['intervals']}), or the reason why there is none. `mean` is "
        "the mean of the base models' probabilities, `constant` always predicts the class frequencies. "
        "The recognition rate is the share of a case's images that are classified correctly, averaged "
        "over the cases."
    )
    best = metrics["best_base"]
    for part, title in PARTS.items():
        of_part = metrics.get(part, {})
        models = [name for name in dict.fromkeys([meta, "mean", best, "constant"]) if name in of_part]
        for unit in dict.fromkeys(["image", metrics["unit"]] if models else []):
            by_model = {name: of_part[name].get(unit, {}) for name in models}
            first = by_model[models[0]]
            scores = [score for score in SCORES if score in first]
            yield f"### {title}, by {unit} (n = {first.get('n', 'not known')})"
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
    yield "### Is the stack better than its base models?"
    yield "Paired differences; where the interval includes 0, no difference was shown."
    yield _table(
        ("on", "compared with", "score", "difference"),
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
        yield "### Test images by true and predicted class"
        yield _table(
            ("true class", *(f"predicted {name}" for name in classes)),
            ((true, *(counts[true, guess] for guess in classes)) for true in classes),
        )


def _decision(run: Run, facts: Mapping[str, Any]) -> Iterator[str]:
    undecided = no_verdict(facts["cases"])
    for unit, finish in {"Images": facts["finish"], "Cases": facts["case_finish"]}.items():
        if finish is not None:
            yield f"{unit}: {_finish(finish, facts['classes'])}"
    if undecided:
        yield undecided
    abstain = run.config.stack.abstain
    yield (
        f"No decision is made below a confidence of {abstain:g}."
        if abstain > 0
        else "Every image gets a decision, unless `--abstain` sets a least confidence."
    )


def _finish(finish: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Say how probabilities are calibrated and cut."""
    kind, threshold = finish["calibrator"]["kind"], finish["threshold"]
    calibrated = "probabilities are not calibrated"
    if kind != "none":
        calibrated = f"probabilities are calibrated ({kind}, fitted on out-of-fold predictions)"
    if threshold is None:
        return f"{calibrated}; the class with the highest probability is predicted."
    return (
        f"{calibrated}; `{classes[1]}` is predicted from a probability of {threshold:.4f} on. The "
        "threshold was chosen without the test cases."
    )


def _limits(run: Run, metrics: Mapping[str, Any] | None, meta: str) -> Iterator[str]:
    manifest, folds = run.manifest, run.folds
    yield (
        "- It was not tested on images from other sources, stains or magnifications; `novelty` tells "
        "how unusual an image looks to the base models."
    )
    units = len({manifest.cases[row] for row in manifest.rows_of(folds.group, folds.test)})
    if units < FEW_CASES:
        yield (
            f"- The test set has {plural(units, manifest.unit)}: the scores are uncertain, so read the "
            "intervals."
        )
    if metrics is not None and metrics["test"][meta]["constant_prediction"]:
        yield "- **It predicts the same class for every test image.**"
    if folds.group == "case" and manifest.unit == "case":
        yield "- The run does not record whether all cases come from one hospital, scanner or lab."


def _origin(facts: Mapping[str, Any]) -> Iterator[str]:
    versions = (f"{name} {version}" for name, version in facts["versions"].items())
    yield f"Fitted with {', '.join(versions)}; the base models run in {facts['precision']}."
    rows = [(f"`{name}`", f"`{sha256}`") for name, sha256 in facts["checkpoints"].items()]
    yield _table(("base model", "SHA-256 of its file in the run"), rows)
