"""Stage three: fit meta-learners on the cached features, and score them on the untouched test cases.

The meta-learner is fitted on the development rows, each made by a model that never saw the row's case.
On a test case every fold's model yields its features, and the meta-learner's probabilities are averaged
over the folds. The constant, each base model and the mean of their probabilities are always scored
beside it, on the same images, calibrated and cut in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stacker.caches.reader import open_cache
from stacker.config.stacking import StackConfig
from stacker.data.images import read_mask
from stacker.figures.canvas import save_figure
from stacker.figures.heatmaps import upsample
from stacker.figures.scores import confusion_figure, reliability_figure, roc_figure
from stacker.files import digest, read_json, versions, write_json
from stacker.progress import track
from stacker.run import Run
from stacker.scores.bootstrap import Resampling
from stacker.scores.predictions import Predictions, mean_over_folds
from stacker.stacking.admission import open_caches
from stacker.stacking.blocks import resolve, sees_frozen
from stacker.stacking.finish import Says, conclude, unfinished
from stacker.stacking.fitting import Design, cut_parts, fit
from stacker.stacking.novelty import keep_novelty
from stacker.stacking.saved import (
    fitted_names,
    is_current,
    load_says,
    save_stack,
    write_predictions,
)
from stacker.stacking.tables import Caches, Tables

log = logging.getLogger(__name__)


def fit_stack(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """Fit the named meta-learners that are not fitted yet; return the run's metrics."""
    for name in names:
        run.config.stack.require(name)
    config = run.config.stack
    caches = open_caches(run, sees_frozen(resolve(config.features, config)))
    keep_novelty(run, caches)
    for name in track(names, "fit meta-learners", total=len(names)):
        design = design_of(run, name)
        tables = caches.tables(design.features, run.config.stack)
        identity = identity_of(design, caches, tables)
        if is_current(run.stack_folder(name), identity):
            log.info("stack %s: done already", name)
        else:
            fitted = fit(design, tables)
            save_stack(run.stack_folder(name), design, fitted, identity, facts_of(run, caches))
            count, seconds = sum(map(len, fitted.members.values())), fitted.fit_seconds
            size = f"{fitted.rows} rows x {fitted.columns} columns"
            log.info("stack %s: %s, %d fits in %.1f s", name, size, count, seconds)
    return _summarise(run, caches)


def design_of(run: Run, name: str) -> Design:
    """Return how a meta-learner is fitted in a run."""
    config = run.config
    return Design.of(name, config.stack.features, config.stack, config.seed, config.device)


def identity_of(design: Design, caches: Caches, tables: Tables) -> dict[str, Any]:
    """Return all that decides a fitted meta-learner: equal identities mean equal models."""
    frozen = sees_frozen(resolve(design.features, design.config))
    bases = [base for base in caches.origins if frozen or not base.is_frozen]
    return {
        **design.identity(),
        "checkpoints": {str(base): caches.checkpoints[base] for base in bases},
        "origins": {str(base): caches.origins[base] for base in bases},
        "columns": digest(tables.development.columns),
    }


def facts_of(run: Run, caches: Caches) -> dict[str, Any]:
    """Return what the users of a fitted stack want to know of the run and its caches."""
    return {
        "classes": caches.classes,
        "split": run.folds.label,
        "leaks": run.folds.leaks,
        "methods": run.config.cam.methods,
        "lower": run.config.cam.lower,
        "precision": caches.precision,
        "backbones": caches.backbones,
        "folds": caches.folds,
        "versions": versions(),
    }


def baselines(caches: Caches, tables: Tables, run: Run) -> dict[str, Says]:
    """Return what is always in the comparison: the constant, each base model, and their mean."""
    config, rows = run.config.stack, tables.development.rows
    test_rows = next(iter(tables.tests.values())).rows
    development, tests = caches.base()
    development["mean"] = np.mean(list(development.values()), axis=0)
    tests["mean"] = np.mean(list(tests.values()), axis=0)
    frequency = np.bincount(rows.label, minlength=len(caches.classes)) / len(rows)
    development["constant"] = np.tile(frequency, (len(rows), 1))
    tests["constant"] = np.tile(frequency, (1, len(test_rows), 1))
    plain = config.model_copy(update={"calibration": "none", "threshold": "none"})
    parts = cut_parts(tables, config, run.config.seed)
    return {
        name: say_plainly(
            plain if name == "constant" else config,
            parts,
            rows.truth,
            development[name],
            test_rows.truth,
            tests[name],
        )
        for name in ("constant", *caches.backbones, "mean")
    }


def say_plainly(
    config: StackConfig,
    parts: np.ndarray | None,
    truth: tuple[np.ndarray, np.ndarray],
    development: np.ndarray,
    test_truth: tuple[np.ndarray, np.ndarray],
    tests: np.ndarray,
) -> Says:
    """Return what a model says that needs no fit: (N, K) out of fold, (folds, N, K) of test rows.

    It is finished and scored in the same `parts` (R, N) as a stack is.
    """
    plain = None
    if parts is not None:
        plain = unfinished(truth, np.repeat(development[None], len(parts), axis=0), parts)
    return conclude(config, plain, Predictions(*test_truth, mean_over_folds(tests)))


def _fitted_says(run: Run, caches: Caches) -> dict[str, Says]:
    """Return what the stacks say that were fitted with the present settings; mention the others."""
    config, says, others = run.config.stack, {}, []
    for name in fitted_names(run):
        folder = run.stack_folder(name)
        seeds = read_json(folder / "stack.json")["seeds"]
        if config.knows(name) and seeds[0] == run.config.seed and len(seeds) in (1, config.seeds):
            design = replace(design_of(run, name), drawn=tuple(seeds))  # nothing is imported
            identity = identity_of(design, caches, caches.tables(design.features, config))
            if is_current(folder, identity):
                says[name] = load_says(folder, config)
                continue
        others.append(name)
    if others:
        named = ", ".join(others)
        log.warning("stacks of other settings are left out: %s; refresh them with --meta", named)
    return says


def _summarise(run: Run, caches: Caches) -> dict[str, Any]:
    """Score everything that is fitted, and write metrics.json, the predictions and the figures."""
    manifest, folds = run.manifest, run.folds
    plain = caches.tables(["logits"], run.config.stack)
    stacks = _fitted_says(run, caches)
    models = baselines(caches, plain, run) | stacks
    test = {name: says.test for name, says in models.items()}
    development = {name: says.development for name, says in models.items() if says.development}
    how = Resampling(run.config.stack.bootstrap, run.config.seed, manifest.classes, manifest.unit)
    scored = how.evaluate(development)
    metrics: dict[str, Any] = {
        "split": folds.label,
        "leaks": folds.leaks,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "intervals": how.description,
        "test": by_unit(how.evaluate(test), manifest.unit),
        "development": by_unit(scored, manifest.unit),
        "best_base": best_base(caches.backbones, scored),
        "differences": _differences(how, development, test, list(stacks), caches.backbones),
        "finish": {name: says.finish.as_dict() for name, says in models.items()},
        "case_finish": {
            name: says.case_finish.as_dict() for name, says in models.items() if says.case_finish
        },
        "seeds_auc": {name: says.areas for name, says in stacks.items() if len(says.areas) > 1},
    }
    if run.config.data.masks is not None:
        metrics["localisation"] = localise(run)
    tests = next(iter(plain.tests.values()))
    for name, predictions, rows, made_by in (
        ("out_of_fold", development, plain.development.rows, plain.development.made_by),
        ("predictions", test, tests.rows, None),
    ):
        write_predictions(run.path / f"{name}.csv", predictions, rows, made_by, manifest, folds.label)
    _draw(run, how, development, test)
    write_json(run.path / "metrics.json", metrics)
    return metrics


def _draw(
    run: Run,
    how: Resampling,
    development: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
) -> None:
    """Draw what the models say of the test images, and of the development images where they do."""
    split, positive = (run.folds.label, run.folds.leaks), run.manifest.positive
    best = (development, "development") if development else (test, "test")
    figures = {
        "confusion": confusion_figure(test, how, "test", *split),
        "roc": roc_figure(test, how, positive, "test", *split),
        "reliability": reliability_figure(best[0], how, positive, best[1], *split),
    }
    if development:
        figures["roc_development"] = roc_figure(development, how, positive, "development", *split)
    for name, figure in figures.items():
        save_figure(figure, run.figures / f"{name}.png")


def _differences(
    how: Resampling,
    development: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
    stacks: Sequence[str],
    backbones: Sequence[str],
) -> list[dict[str, Any]]:
    """Return what each stack gains over the mean, and over the best base model, chosen in every draw."""
    rows = []
    for part, models in {"development": development, "test": test}.items():
        known = {name: models[name] for name in stacks if name in models}
        gains = how.differences(models, [(name, "mean") for name in known if name != "mean"])
        if development:
            bases = {name: (development[name], models[name]) for name in backbones}
            gains += how.over_best(known, bases, same_cases=part == "development")
        rows += [{"part": part, **row} for row in gains]
    return rows


def best_base(backbones: Sequence[str], development: Mapping[str, Any]) -> str:
    """Return the backbone with the best AUC on development cases that its models never saw."""
    areas = {name: development.get(name, {}).get("image", {}).get("auc") for name in backbones}
    return max(areas, key=lambda name: areas[name] or 0)


def by_unit(scores: dict[str, dict[str, Any]], unit: str) -> dict[str, dict[str, Any]]:
    """Call the scores of whole cases what they are where cases are not known: of slides, or nothing."""
    return {
        name: {
            unit if key == "case" else key: value
            for key, value in of_model.items()
            if (key, unit) != ("case", "image")
        }
        for name, of_model in scores.items()
    }


def pointing_and_mass(map_hw: np.ndarray, mask: np.ndarray) -> tuple[bool, float]:
    """Say whether the map's peak lies inside the mask, and which share of its positive mass does.

    A map without any positive value points nowhere: a miss, with no mass inside.
    """
    heat = upsample(map_hw, mask.shape).clip(min=0)
    if heat.max() <= 0:
        return False, 0.0
    return bool(mask.flat[heat.argmax()]), float(heat[mask].sum() / heat.sum())


def localise(run: Run) -> dict[str, Any]:
    """Score each backbone's maps of the true class on the test images that have a mask.

    `mask_area` is what a map that knows nothing would reach. Labels are used to look, never to stack.
    """
    tests = [run.manifest.images[row] for row in run.manifest.rows_of(run.folds.group, run.folds.test)]
    masks = {image.id: read_mask(image, run.config) for image in tests}
    known = {name: mask for name, mask in masks.items() if mask is not None and mask.any()}
    result: dict[str, Any] = {}
    for backbone in run.config.backbones:
        scores = []
        for fold in run.folds.folds:
            cache = open_cache(run.cache_folder(backbone, fold.name))
            wanted = np.array([i.decode() in known for i in cache.rows.image_id])
            wanted &= cache.rows.fold == b"test"
            rows = cache.rows.take(wanted)
            for maps, label, image_id in zip(
                cache.read("maps", wanted), rows.label, rows.image_id, strict=True
            ):
                mask = known[image_id.decode()]
                scores.append((*pointing_and_mass(maps[label], mask), mask.mean()))
        if scores:
            hits, inside, areas = (
                round(float(np.mean(column)), 4) for column in zip(*scores, strict=True)
            )
            result[backbone] = {
                "pointing_game": hits,
                "mass_inside": inside,
                "mask_area": areas,
                "maps": len(scores),
            }
    return result
