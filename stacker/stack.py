"""Stage three: fit meta-learners on the cached features, and score them on the untouched test cases.

The meta-learner is fitted on the development rows, each made by a model that never saw the row's case.
On a test case every fold's model yields its features, and the meta-learner's probabilities are averaged
over the folds. The constant, each base model and the mean of their probabilities are always scored
beside it, on the same images, calibrated and cut in the same way.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stacker.admission import open_caches
from stacker.blocks import resolve, sees_frozen
from stacker.cache import Rows
from stacker.features import Caches, Tables
from stacker.figures import confusion_figure, reliability_figure, roc_figure, save_figure
from stacker.fitting import Design, Says, conclude, fit
from stacker.folds import Folds
from stacker.grouping import cut
from stacker.heatmaps import localise
from stacker.manifest import Manifest
from stacker.metrics import Predictions, differences, evaluate
from stacker.novelty import keep_novelty
from stacker.progress import track
from stacker.run import FROZEN, Run, digest, publish, read_json, versions, write_json
from stacker.stored import fitted_names, is_current, load_says, save_stack, stack_facts

log = logging.getLogger(__name__)


def fit_stack(run: Run, manifest: Manifest, folds: Folds, names: Sequence[str]) -> dict[str, Any]:
    """Fit the named meta-learners that are not fitted yet; return the run's metrics."""
    for name in names:
        run.config.stack.require(name)
    config = run.config.stack
    caches = open_caches(run, manifest, folds, sees_frozen(resolve(config.features, config)))
    keep_novelty(run, caches)
    for name in track(names, "fit meta-learners", total=len(names)):
        design = design_of(run, name)
        tables = caches.tables(design.features, run.config.stack)
        identity = identity_of(design, caches, tables)
        if is_current(run.stack_folder(name), identity):
            log.info("stack %s: done already", name)
        else:
            _fit_one(run, design, caches, tables, identity, folds.label)
    return _summarise(run, manifest, folds, caches)


def design_of(run: Run, name: str) -> Design:
    """Return how a meta-learner is fitted in a run."""
    config = run.config
    return Design.of(name, config.stack.features, config.stack, config.seed, config.device)


def identity_of(design: Design, caches: Caches, tables: Tables) -> dict[str, Any]:
    """Return all that decides a fitted meta-learner: equal identities mean equal models."""
    frozen = sees_frozen(resolve(design.features, design.config))
    ours = [key for key in caches.origins if frozen or not key.endswith(f"/{FROZEN}")]
    return {
        **design.identity(),
        "checkpoints": {key: caches.checkpoints[key] for key in ours},
        "origins": {key: caches.origins[key] for key in ours},
        "columns": digest(tables.development.columns),
    }


def _fit_one(
    run: Run, design: Design, caches: Caches, tables: Tables, identity: dict[str, Any], split: str
) -> None:
    fitted = fit(design, tables)
    folder = run.stack_folder(design.meta)
    rows = next(iter(tables.tests.values())).rows
    write_predictions(
        folder / "predictions.csv", {design.meta: fitted.says.test}, rows, caches.classes, split
    )
    facts = {
        "classes": caches.classes,
        "split": split,
        "methods": run.config.cam.methods,
        "lower": run.config.cam.lower,
        "precision": caches.precision,
        "backbones": caches.backbones,
        "folds": caches.folds,
        "rows": tables.development.shape[0],
        "versions": versions(),
    }
    save_stack(folder, design, fitted, identity, facts)
    count = sum(len(each) for each in fitted.members.values())
    shape = tables.development.shape[0], fitted.columns
    log.info(
        "stack %s: %d rows x %d columns, %d fits in %.1f s",
        design.meta,
        *shape,
        count,
        fitted.fit_seconds,
    )


def baselines(caches: Caches, tables: Tables, run: Run) -> dict[str, Says]:
    """Return what is always in the comparison: the constant, each base model, and their mean."""
    rows, test_rows = tables.development.rows, next(iter(tables.tests.values())).rows
    config = run.config.stack
    parts = cut(rows.label, tables.groups, config.parts, run.config.seed)
    development, tests = caches.base()
    development["mean"] = np.mean(list(development.values()), axis=0)
    tests["mean"] = np.mean(list(tests.values()), axis=0)
    truth, test_truth = (rows.label, rows.case_id), (test_rows.label, test_rows.case_id)
    frequency = np.bincount(rows.label, minlength=len(caches.classes)) / len(rows)
    plain = config.model_copy(update={"calibration": "none", "threshold": "none"})
    constant = np.tile(frequency, (len(rows), 1)), np.tile(frequency, (1, len(test_rows), 1))
    return {
        "constant": conclude(plain, constant[0], parts, truth, constant[1], test_truth),
        **{
            name: conclude(config, development[name], parts, truth, tests[name], test_truth)
            for name in tests
        },
    }


def _fitted_says(run: Run, caches: Caches) -> dict[str, Says]:
    """Return what the stacks say that were fitted with the present settings; mention the others."""
    found, others = {}, []
    for name in fitted_names(run):
        folder = run.stack_folder(name)
        if run.config.stack.knows(name) and _seeds_are_current(run, name):
            facts = stack_facts(run, name)
            design = replace(design_of(run, name), drawn=tuple(facts["seeds"]))  # nothing is imported
            identity = identity_of(design, caches, caches.tables(design.features, run.config.stack))
            if is_current(folder, identity):
                found[name] = load_says(folder, facts)
                continue
        others.append(name)
    if others:
        named = ", ".join(others)
        log.warning("stacks of other settings are left out: %s; refresh them with --meta", named)
    return found


def _seeds_are_current(run: Run, name: str) -> bool:
    """Say whether a stored stack was fitted with the config's seeds, or by an older version."""
    facts = read_json(run.stack_folder(name) / "stack.json")
    seeds = facts.get("seeds") or [None]
    return seeds[0] == run.config.seed and len(seeds) in (1, run.config.stack.seeds)


def _summarise(run: Run, manifest: Manifest, folds: Folds, caches: Caches) -> dict[str, Any]:
    """Score everything that is fitted, and write metrics.json, the predictions and the figures."""
    plain = caches.tables(["logits"], run.config.stack)
    before, stacks = baselines(caches, plain, run), _fitted_says(run, caches)
    says = before | stacks
    test = {name: found.test for name, found in says.items()}
    held_out = {name: found.development for name, found in says.items() if found.development}
    draws, seed = run.config.stack.bootstrap, run.config.seed
    development = evaluate(held_out, draws, seed)
    best = best_base(caches.backbones, development)
    pairs = [(name, rival) for name in stacks for rival in (best, "mean") if name != rival]
    both = {"held_out": held_out, "test": test}
    metrics: dict[str, Any] = {
        "split": folds.label,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "intervals": f"95%, {draws} bootstrap draws of whole {manifest.unit}s",
        "test": by_unit(evaluate(test, draws, seed), manifest.unit),
        "held_out": by_unit(development, manifest.unit),
        "best_base": best,
        "differences": [
            {"part": part, **row}
            for part, models in both.items()
            for row in differences(models, [p for p in pairs if p[0] in models], draws, seed)
        ],
        "thresholds": {name: found.finish.threshold for name, found in says.items()},
        "calibrators": {name: found.finish.calibrator.as_dict() for name, found in says.items()},
        "seeds_auc": {name: found.seeds for name, found in stacks.items() if len(found.seeds) > 1},
    }
    if run.config.data.masks is not None:
        metrics["localisation"] = localise(run, manifest, folds)
    rows, test_rows = plain.development.rows, next(iter(plain.tests.values())).rows
    write_predictions(run.path / "predictions.csv", test, test_rows, manifest.classes, folds.label)
    write_predictions(run.path / "out_of_fold.csv", held_out, rows, manifest.classes, folds.label)
    for name, figure in {"confusion": confusion_figure, "roc": roc_figure}.items():
        save_figure(figure(test, manifest.classes, folds.label), run.figures / f"{name}.png")
    named = "Development images, out of fold" if held_out else "Test images"
    shown = reliability_figure(held_out or test, manifest.classes, folds.label, named)
    save_figure(shown, run.figures / "reliability.png")
    write_json(run.path / "metrics.json", metrics)
    return metrics


def best_base(backbones: Sequence[str], development: Mapping[str, Any]) -> str:
    """Return the backbone with the best AUC on development cases that its models never saw."""
    found = {name: development.get(name, {}).get("image", {}).get("auc") for name in backbones}
    return max(found, key=lambda name: found[name] or 0)


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


def write_predictions(
    path: Path, models: Mapping[str, Predictions], rows: Rows, classes: Sequence[str], split: str
) -> None:
    """Publish one line per image and model."""
    shares = [f"p_{name}" for name in classes]
    header = ["image_id", "case_id", "label", "model", "predicted", *shares, "split"]
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for name, found in models.items():
            for i, (guess, p) in enumerate(zip(found.predicted, found.probabilities, strict=True)):
                image, case = rows.image_id[i].decode(), rows.case_id[i].decode()
                label, said = classes[rows.label[i]], classes[guess]
                writer.writerow([image, case, label, name, said, *(f"{each:.6f}" for each in p), split])
