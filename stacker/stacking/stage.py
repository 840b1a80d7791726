"""Stage three: fit meta-learners on the cached features, and score them on the untouched test cases.

The meta-learner is fitted on the development rows, each made by a model that never saw the row's case.
On a test case every fold's model yields its features, and the meta-learner's probabilities are averaged
over the folds. The constant, each base model and the mean of their probabilities are always scored
beside it, on the same images, calibrated and cut in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stacker.config.changes import changes
from stacker.data.manifest import Manifest
from stacker.errors import StackerError, StackError, plural
from stacker.figures.canvas import save_figure
from stacker.figures.localisation import localise
from stacker.figures.scores import confusion_figure, reliability_figure, roc_figure
from stacker.files import digest, read_json, versions, write_json
from stacker.progress import track
from stacker.run import FROZEN, Run
from stacker.scores.bootstrap import Resampling
from stacker.scores.predictions import Predictions
from stacker.stacking.admission import open_caches
from stacker.stacking.blocks import resolve, sees_frozen
from stacker.stacking.finish import Says, say_plainly
from stacker.stacking.fitting import Design, cut_parts, fit, require_fittable
from stacker.stacking.novelty import keep_novelty
from stacker.stacking.saved import (
    fitted_names,
    is_current,
    load_says,
    save_stack,
    strange_folders,
    write_predictions,
)
from stacker.stacking.tables import Caches, Tables

log = logging.getLogger(__name__)


def fit_stack(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """Fit the named stacks that are not fitted yet; return the run's metrics.

    A name is that of a meta-learner, on `stack.features`, or a full one with its features. All are
    looked at before the first is fitted: raise StackerError with every fault that can be told then. One
    that fails later does not stop the others: the reason is under `failures`.
    """
    caches = open_caches(run, _needs_frozen(run, names))
    plans = _plan(run, caches, names)
    keep_novelty(run, caches)
    failures: dict[str, str] = {}
    for label, plan in track(plans.items(), "fit meta-learners", total=len(plans)):
        if plan is None:
            log.info("stack %s: already done", label)
            continue
        try:
            fitted = fit(plan.design, plan.tables)
        except StackerError as error:
            log.error("stack %s: %s", label, error)  # noqa: TRY400  # a message, not a bug
            failures[label] = str(error)
            continue
        folder = run.stack_folder(str(plan.design.name))
        save_stack(folder, plan.design, fitted, plan.identity, facts_of(run, caches))
        fits, size = (
            sum(map(len, fitted.members.values())),
            f"{fitted.rows} rows x {fitted.columns} columns",
        )
        log.info("stack %s: %s, %s in %.1f s", label, size, plural(fits, "fit"), fitted.fit_seconds)
    if failures and len(failures) == len(plans):
        raise _together(f"{plural(len(failures), 'stack')} could not be fitted", failures)
    return _summarise(run, caches, failures)


@dataclass(frozen=True)
class _Plan:
    """A stack to be fitted: how, on which tables, and what will stand for it."""

    design: Design
    tables: Tables
    identity: dict[str, Any]


def _plan(run: Run, caches: Caches, names: Sequence[str]) -> dict[str, _Plan | None]:
    """Return what is to be fitted, None for what is there; raise StackerError with all faults in it."""
    plans: dict[str, _Plan | None] = {}
    faults: dict[str, StackerError] = {}
    for name in names:
        label = run.stack_label(run.stack_name(name))
        try:
            run.config.stack.require(run.stack_name(name).meta)
            design = design_of(run, name)
            tables = caches.tables(design.features, run.config.stack)
            identity = identity_of(design, caches, tables)
            plans[label] = None
            if not is_current(run.stack_folder(name), identity):
                require_fittable(design, tables)
                plans[label] = _Plan(design, tables, identity)
        except StackerError as error:
            faults[label] = error
    if len(faults) == 1 == len(names):
        raise next(iter(faults.values()))
    if faults:
        what = f"nothing was fitted, because {len(faults)} of {plural(len(names), 'stack')} have errors"
        raise _together(what, {label: str(error) for label, error in faults.items()})
    return plans


def _together(what: str, reasons: Mapping[str, str]) -> StackError:
    """Return one error for several stacks."""
    return StackError("\n  ".join([f"{what}:", *(f"{name}: {why}" for name, why in reasons.items())]))


def _needs_frozen(run: Run, names: Sequence[str]) -> bool:
    """Say whether some stack looks at frozen backbones: one to be fitted, or one that stands beside."""
    config = run.config.stack
    if any(sees_frozen(resolve(run.stack_name(name).features, config)) for name in names):
        return True
    cached = [(run.cache_folder(name, FROZEN) / "index.h5").exists() for name in run.config.frozen]
    beside = any(sees_frozen(resolve(name.features, config)) for name in fitted_names(run))
    return bool(cached) and all(cached) and beside


def design_of(run: Run, name: str) -> Design:
    """Return how a stack is fitted in a run."""
    config, stack = run.config, run.stack_name(name)
    return Design.of(stack.meta, stack.features, config.stack, config.seed, config.device)


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
        "base_models": [str(base) for base in caches.origins],
        "folds": caches.folds,
        "cases": _count_cases(run),
        "versions": versions(),
    }


def _count_cases(run: Run) -> dict[str, int]:
    """Count the cases outside the test part, and those of them with images of several classes."""
    manifest = run.manifest
    tests = set(manifest.rows_of(run.folds.group, run.folds.test))
    others = tuple(image for row, image in enumerate(manifest.images) if row not in tests)
    development = Manifest(others, manifest.classes)
    return {"development": len(set(development.cases)), "mixed": len(development.mixed_cases)}


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


def _fitted_says(run: Run, caches: Caches) -> dict[str, Says]:
    """Return what the stacks say that are of the present settings and caches; mention the others."""
    for path in (run.path / "stack" / strange for strange in strange_folders(run)):
        log.warning(
            "%s is left out: its stack.json cannot be read or is of another stack; delete %s", path, path
        )
    says, others = {}, []
    for name in fitted_names(run):
        folder, label = run.stack_folder(str(name)), run.stack_label(name)
        why = _outdated(run, caches, read_json(folder / "stack.json"))
        if why:
            others.append(f"{label} ({why})")
        else:
            says[label] = load_says(folder, run.config.stack)
    if others:
        text = "not shown, because they were fitted with other settings: %s; refit with --meta"
        log.warning(text, "; ".join(others))
    return says


def _outdated(run: Run, caches: Caches, facts: Mapping[str, Any]) -> str:
    """Return why a fitted stack is not of the present settings and caches; empty if it is."""
    config, seeds = run.config.stack, facts["seeds"]
    gone = [name for name in facts["blocks"] if name not in config.blocks]
    if gone or not config.knows(facts["meta"]):
        return f"stack.blocks.{gone[0]} is gone" if gone else "not in this config"
    design = Design.of(facts["meta"], facts["features"], config, run.config.seed, run.config.device)
    count = len(seeds) if len(seeds) in (1, config.seeds) else config.seeds
    drawn = tuple(run.config.seed + number for number in range(count))
    design = replace(design, drawn=drawn)  # so that nothing is imported to count them
    try:
        identity = identity_of(design, caches, caches.tables(design.features, config))
    except StackerError as error:
        return error.what
    if digest(identity) == facts["digest"]:
        return ""
    if set(identity["checkpoints"]) != set(facts["checkpoints"]):
        return "other base models"
    if any(identity[key] != facts[key] for key in ("checkpoints", "origins", "columns")):
        return "other caches"
    return "; ".join(changes({key: facts.get(key) for key in identity}, identity))


def _summarise(run: Run, caches: Caches, failures: Mapping[str, str]) -> dict[str, Any]:
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
        "positive": manifest.positive,
        "unit": manifest.unit,
        "intervals": how.description,
        "base_models": [str(base) for base in caches.origins],
        "stacks": {label: _named(run, label) for label in stacks},
        "failures": dict(failures),
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


def _named(run: Run, label: str) -> dict[str, Any]:
    """Return which stack a label means, and what stands for it."""
    name, folder = run.stack_name(label), run.stack_folder(label)
    where = folder.relative_to(run.path).as_posix()
    stated = read_json(folder / "stack.json")["digest"]
    return {"meta": name.meta, "features": list(name.features), "folder": where, "digest": stated}


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
