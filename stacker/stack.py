"""Stage three: fit meta-learners on the cached features, and score them on the untouched test cases.

The meta-learner is fitted on the development rows, each made by a model that never saw the row's case.
On a test case every fold's model yields its features, and the meta-learner's probabilities are averaged
over the folds: averaged features would be smoother than those it was trained on. The constant, each base
model and the mean of their probabilities are always scored beside it, on the same images.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stacker.errors import RunError
from stacker.features import Tables, load_tables
from stacker.figures import confusion_figure, roc_figure, save_figure
from stacker.folds import Folds
from stacker.heatmaps import localise
from stacker.manifest import Manifest
from stacker.meta import META, MetaLearner, load_meta, model_file, save_meta
from stacker.metrics import Predictions, differences, evaluate
from stacker.progress import track
from stacker.run import Run, digest, publish, read_json, versions, write_json

log = logging.getLogger(__name__)


def fit_stack(run: Run, manifest: Manifest, folds: Folds, names: Sequence[str]) -> dict[str, Any]:
    """Fit the named meta-learners that are not fitted yet; return the run's metrics."""
    tables = load_tables(run, manifest, folds, run.config.stack.features)
    for name in track(names, "fit meta-learners", total=len(names)):
        if _is_fitted(run, name, tables):
            log.info("stack %s: done already", name)
        else:
            _fit_one(run, name, tables, manifest.classes, folds.label)
    return _summarise(run, manifest, folds, tables)


def _fit_one(run: Run, name: str, tables: Tables, classes: Sequence[str], split: str) -> None:
    config = run.config
    table = tables.development
    started = time.perf_counter()
    model = META[name].build(config.stack, config.seed)
    model.fit(table.values, table.rows.label)
    seconds = time.perf_counter() - started
    folder = run.stack_folder(name)
    (folder / "stack.json").unlink(missing_ok=True)  # it must never speak of another model
    save_meta(name, model, folder)
    _write_predictions(folder / "predictions.csv", {name: _on_test(model, tables)}, tables, classes)
    facts = {
        **_identity(run, name, tables),
        "classes": classes,
        "split": split,
        "methods": config.cam.methods,
        "lower": config.cam.lower,
        "precision": tables.precision,
        "backbones": list(tables.base_test),
        "folds": list(tables.tests),
        "rows": len(table.rows),
        "seconds": round(seconds, 3),
        "versions": versions(),
    }
    write_json(folder / "stack.json", {"digest": digest(_identity(run, name, tables)), **facts})
    log.info("stack %s: %d rows x %d columns in %.1f s", name, *table.values.shape, seconds)


def _identity(run: Run, name: str, tables: Tables) -> dict[str, Any]:
    """Return all that decides a fitted meta-learner: equal identities mean equal models."""
    return {
        "meta": name,
        "features": run.config.stack.features,
        "parameters": getattr(run.config.stack, name).model_dump(mode="json"),
        "seed": run.config.seed,
        "checkpoints": tables.checkpoints,
        "origins": tables.origins,
        "columns": digest(tables.development.columns),
    }


def _is_fitted(run: Run, name: str, tables: Tables) -> bool:
    facts_file = run.stack_folder(name) / "stack.json"
    if not facts_file.exists() or not model_file(name, run.stack_folder(name)).exists():
        return False
    return bool(read_json(facts_file)["digest"] == digest(_identity(run, name, tables)))


def _on_test(model: MetaLearner, tables: Tables) -> Predictions:
    """Return the mean over folds of the meta-learner's probabilities on the test cases."""
    tests = list(tables.tests.values())
    shares = np.mean([model.predict_proba(table.values) for table in tests], axis=0)
    return Predictions(tests[0].rows.label, tests[0].rows.case_id, shares.astype(np.float64))


def stack_facts(run: Run, name: str) -> dict[str, Any]:
    """Return what a fitted meta-learner says of itself; raise RunError when there is none."""
    path = run.stack_folder(name) / "stack.json"
    if not path.exists():
        raise RunError(f"{path}: no such meta-learner; run 'stacker stack CONFIG --meta {name}' first")
    facts: dict[str, Any] = read_json(path)
    if "precision" not in facts:
        raise RunError(f"{path} was written by an older version; run 'stacker stack CONFIG' again")
    return facts


def default_meta(run: Run) -> str:
    """Return the first of `stack.meta` that is fitted, or else any other that is."""
    names = [*run.config.stack.meta, *META]
    fitted = [name for name in names if (run.stack_folder(name) / "stack.json").exists()]
    if not fitted:
        raise RunError(f"{run.path}: no meta-learner is fitted yet; run 'stacker stack CONFIG' first")
    return fitted[0]


def _summarise(run: Run, manifest: Manifest, folds: Folds, tables: Tables) -> dict[str, Any]:
    """Score everything that is fitted, and write metrics.json, predictions.csv and the figures."""
    fitted = [name for name in META if _is_fitted(run, name, tables)]
    for folder in sorted(run.path.glob("stack/*/stack.json")):
        if folder.parent.name not in fitted:
            log.warning(
                "stack %s was fitted with other settings and is left out; refresh it with --meta %s",
                folder.parent.name,
                folder.parent.name,
            )
    tests = next(iter(tables.tests.values())).rows
    base = {n: Predictions(tests.label, tests.case_id, p) for n, p in tables.base_test.items()}
    models = {
        "constant": _constant(tables, len(manifest.classes)),
        **base,
        "mean": mean_of(base),
        **{name: _on_test(load_meta(name, run.stack_folder(name)), tables) for name in fitted},
    }
    rows = tables.development.rows
    held_out = {
        name: Predictions(rows.label, rows.case_id, p) for name, p in tables.base_development.items()
    }
    held_out["mean"] = mean_of(held_out)
    draws = run.config.stack.bootstrap
    development = evaluate(held_out, draws, run.config.seed)
    best = max(base, key=lambda name: development[name]["image"]["auc"] or 0)
    pairs = [(name, rival) for name in fitted for rival in (best, "mean")]
    metrics: dict[str, Any] = {
        "split": folds.label,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "intervals": f"95%, {draws} bootstrap draws of whole {manifest.unit}s",
        "test": by_unit(evaluate(models, draws, run.config.seed), manifest.unit),
        "held_out": by_unit(development, manifest.unit),
        "best_base": best,
        "differences": differences(models, pairs, draws, run.config.seed),
    }
    if run.config.data.masks is not None:
        metrics["localisation"] = localise(run, manifest, folds)
    _write_predictions(run.path / "predictions.csv", models, tables, manifest.classes)
    save_figure(confusion_figure(models, manifest.classes, folds.label), run.figures / "confusion.png")
    save_figure(roc_figure(models, manifest.classes, folds.label), run.figures / "roc.png")
    write_json(run.path / "metrics.json", metrics)
    return metrics


def by_unit(found: dict[str, dict[str, Any]], unit: str) -> dict[str, dict[str, Any]]:
    """Call the scores of whole cases what they are where cases are not known: of slides, or nothing."""
    names = {"case": unit}
    return {
        name: {
            names.get(key, key): value
            for key, value in scores.items()
            if (key, unit) != ("case", "image")
        }
        for name, scores in found.items()
    }


def _constant(tables: Tables, classes: int) -> Predictions:
    """Return the predictor that knows only how frequent the classes are among the development rows."""
    tests = next(iter(tables.tests.values())).rows
    frequency = np.bincount(tables.development.rows.label, minlength=classes)
    shares = np.tile(frequency / frequency.sum(), (len(tests), 1))
    return Predictions(tests.label, tests.case_id, shares)


def mean_of(base: Mapping[str, Predictions]) -> Predictions:
    """Return the mean of several models' probabilities on the same rows."""
    first = next(iter(base.values()))
    shares = np.mean([p.probabilities for p in base.values()], axis=0)
    return Predictions(first.labels, first.cases, shares)


def _write_predictions(
    path: Path, models: Mapping[str, Predictions], tables: Tables, classes: Sequence[str]
) -> None:
    """Publish one line per test image and model."""
    rows = next(iter(tables.tests.values())).rows
    header = ["image_id", "case_id", "label", "model", "predicted", *(f"p_{c}" for c in classes)]
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, found in models.items():
            guesses = found.probabilities.argmax(axis=1)
            for i, shares in enumerate(found.probabilities):
                image, case = rows.image_id[i].decode(), rows.case_id[i].decode()
                label, guess = classes[rows.label[i]], classes[guesses[i]]
                writer.writerow([image, case, label, name, guess, *(f"{p:.6f}" for p in shares)])
