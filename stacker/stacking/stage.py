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
from stacker.stacking.finish import OutOfFold, Says, conclude
from stacker.stacking.fitting import Design, cut_parts, fit
from stacker.stacking.novelty import keep_novelty
from stacker.stacking.saved import (
    fitted_names,
    is_current,
    load_says,
    save_stack,
    stack_facts,
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
            _fit_one(run, design, caches, tables, identity)
    return _summarise(run, caches)


def design_of(run: Run, name: str) -> Design:
    """Return how a meta-learner is fitted in a run."""
    config = run.config
    return Design.of(name, config.stack.features, config.stack, config.seed, config.device)


def identity_of(design: Design, caches: Caches, tables: Tables) -> dict[str, Any]:
    """Return all that decides a fitted meta-learner: equal identities mean equal models."""
    frozen = sees_frozen(resolve(design.features, design.config))
    ours = [key for key in caches.origins if frozen or not key.is_frozen]
    return {
        **design.identity(),
        "checkpoints": {str(key): caches.checkpoints[key] for key in ours},
        "origins": {str(key): caches.origins[key] for key in ours},
        "columns": digest(tables.development.columns),
    }


def _fit_one(run: Run, design: Design, caches: Caches, tables: Tables, identity: dict[str, Any]) -> None:
    fitted = fit(design, tables)
    folder = run.stack_folder(design.meta)
    facts = {
        "classes": caches.classes,
        "split": run.folds.label,
        "leaks": run.folds.leaks,
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
    config, rows = run.config.stack, tables.development.rows
    test_rows = next(iter(tables.tests.values())).rows
    development, tests = caches.base()
    development["mean"] = np.mean(list(development.values()), axis=0)
    tests["mean"] = np.mean(list(tests.values()), axis=0)
    frequency = np.bincount(rows.label, minlength=len(caches.classes)) / len(rows)
    constant = np.tile(frequency, (len(rows), 1)), np.tile(frequency, (1, len(test_rows), 1))
    plain = config.model_copy(update={"calibration": "none", "threshold": "none"})
    parts = cut_parts(tables, config, run.config.seed)
    truth, test_truth = (rows.label, rows.case_id), (test_rows.label, test_rows.case_id)
    return {
        "constant": say_plainly(plain, parts, truth, constant[0], test_truth, constant[1]),
        **{
            name: say_plainly(config, parts, truth, development[name], test_truth, tests[name])
            for name in tests
        },
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
    found = None
    if parts is not None:
        found = OutOfFold(np.repeat(development[None], len(parts), axis=0), parts)
    return conclude(config, found, truth, mean_over_folds(tests), test_truth)


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
                found[name] = load_says(folder, run.config.stack)
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


def _summarise(run: Run, caches: Caches) -> dict[str, Any]:
    """Score everything that is fitted, and write metrics.json, the predictions and the figures."""
    plain = caches.tables(["logits"], run.config.stack)
    before, stacks = baselines(caches, plain, run), _fitted_says(run, caches)
    says = before | stacks
    test = {name: found.test for name, found in says.items()}
    development = {name: found.development for name, found in says.items() if found.development}
    how = Resampling(
        run.config.stack.bootstrap, run.config.seed, run.manifest.classes, run.manifest.unit
    )
    scored = how.evaluate(development)
    best = best_base(caches.backbones, scored)
    metrics: dict[str, Any] = {
        "split": run.folds.label,
        "leaks": run.folds.leaks,
        "classes": run.manifest.classes,
        "unit": run.manifest.unit,
        "intervals": how.description,
        "test": by_unit(how.evaluate(test), run.manifest.unit),
        "development": by_unit(scored, run.manifest.unit),
        "best_base": best,
        "differences": _differences(how, development, test, list(stacks), caches.backbones),
        "finish": {name: found.finish.as_dict() for name, found in says.items()},
        "case_finish": {
            name: found.case_finish.as_dict() for name, found in says.items() if found.case_finish
        },
        "seeds_auc": {name: found.areas for name, found in stacks.items() if len(found.areas) > 1},
    }
    if run.config.data.masks is not None:
        metrics["localisation"] = localise(run)
    tables = {"out_of_fold": plain.development, "predictions": next(iter(plain.tests.values()))}
    for name, models in {"out_of_fold": development, "predictions": test}.items():
        table = tables[name]
        made_by = table.made_by if name == "out_of_fold" else None
        write_predictions(
            run.path / f"{name}.csv", models, table.rows, made_by, run.manifest, run.folds.label
        )
    for name, figure in {"confusion": confusion_figure, "roc": roc_figure}.items():
        save_figure(
            figure(test, run.manifest.classes, run.folds.label, run.folds.leaks),
            run.figures / f"{name}.png",
        )
    named = "Development images, out of fold" if development else "Test images"
    shown = reliability_figure(
        development or test, run.manifest.classes, run.folds.label, run.folds.leaks, named
    )
    save_figure(shown, run.figures / "reliability.png")
    write_json(run.path / "metrics.json", metrics)
    return metrics


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
        known = [name for name in stacks if name in models]
        found = how.differences(models, [(name, "mean") for name in known if name != "mean"])
        if development:
            bases = {name: (development[name], models[name]) for name in backbones}
            own = {name: models[name] for name in known}
            found += how.over_best(own, bases, same_cases=part == "development")
        rows += [{"part": part, **row} for row in found]
    return rows


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
        hits, inside, areas = [], [], []
        for fold in run.folds.folds:
            cache = open_cache(run.cache_folder(backbone, fold.name))
            wanted = np.array([i.decode() in known for i in cache.rows.image_id])
            wanted &= cache.rows.fold == b"test"
            rows = cache.rows.take(wanted)
            found = cache.read("maps", wanted)
            for maps, label, image_id in zip(found, rows.label, rows.image_id, strict=True):
                mask = known[image_id.decode()]
                hit, mass = pointing_and_mass(maps[label], mask)
                hits.append(hit)
                inside.append(mass)
                areas.append(mask.mean())
        if hits:
            result[backbone] = {
                "pointing_game": round(float(np.mean(hits)), 4),
                "mass_inside": round(float(np.mean(inside)), 4),
                "mask_area": round(float(np.mean(areas)), 4),
                "maps": len(hits),
            }
    return result
