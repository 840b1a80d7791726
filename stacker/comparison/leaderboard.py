"""From what all entries say to a leaderboard: scores, differences with tests, and plain answers.

Two parts are scored apart: the development cases, out of fold, and the untouched test cases. Everything
is scored on the same images with the same draws of whole cases, so that differences are paired. Images
are ranked within parts, because two fits differ in scale, and a mean of probabilities, which is fitted
to nothing, would lose nothing by being pooled. The first of many entries is the luckiest of them: that
is why each is compared with the mean of the base models' probabilities and with the best base model, and
why intervals and p-values are adjusted for their number (`multiplicity`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import Rows
from stacker.comparison.controls import LABELS, MAPS, is_of_maps
from stacker.comparison.entries import Comparison, Entry
from stacker.files import publish, write_json
from stacker.run import Run
from stacker.scores.bootstrap import Resampling
from stacker.scores.multiplicity import at_chance, choose, gains, null_rows, row_of_gain
from stacker.scores.predictions import Predictions
from stacker.scores.significance import CAVEAT, TESTS, compare_pair, holm
from stacker.stacking.stage import best_base


def make_leaderboard(comparison: Comparison, run: Run) -> dict[str, Any]:
    """Score everything and write compare/*.csv and leaderboard.json; return the latter's content."""
    manifest, config = run.manifest, run.config
    how = Resampling(config.stack.bootstrap, config.seed, manifest.classes, manifest.unit)
    models = {part: _said(comparison.entries, part) for part in comparison.rows}
    models = {part: found for part, found in models.items() if found}
    scored = {
        part: how.evaluate_subsets(found, _subsets(comparison.rows[part], run))
        for part, found in models.items()
    }
    development = scored.get("development", {}).get("all", {})
    best = best_base(list(config.backbones), development)
    controls = _controls(comparison, development)
    tables = {
        "leaderboard": list(_score_rows(comparison.entries, scored, controls, manifest.unit)),
        "differences": list(_differences(how, models, comparison.entries, best, list(config.backbones))),
        "answers": [
            row for part, said in models.items() for row in _answers(how, part, said, comparison)
        ],
        "controls": controls,
    }
    found = {
        "split": run.folds.label,
        "leaks": run.folds.leaks,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "intervals": how.description,
        "sizes": {
            part: {"images": len(r), "cases": len(np.unique(r.case_id))}
            for part, r in comparison.rows.items()
        },
        "best_base": best,
        "best_stack": choose(_stacks(comparison.entries, models), how.replicates, how.seed),
        "rows": tables["leaderboard"],
        "differences": tables["differences"],
        "answers": tables["answers"],
        "controls": controls,
        "at_chance": list(_at_chance(comparison)),
        "tests": TESTS,
        "caveat": CAVEAT,
        "failures": comparison.failures,
    }
    for name, lines in tables.items():
        path = run.path / "compare" / f"{name}.csv"
        write_rows(path, [{**line, "split": run.folds.label} for line in lines])
    write_json(run.path / "compare" / "leaderboard.json", found)
    return found


def _said(entries: Sequence[Entry], part: str) -> dict[str, Predictions]:
    said = {entry.name: getattr(entry.says, part) for entry in entries}
    return {name: found for name, found in said.items() if found is not None}


def _stacks(
    entries: Sequence[Entry], models: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Predictions]:
    """Return what the stacks say out of fold."""
    said = models.get("development", {})
    return {e.name: said[e.name] for e in entries if e.kind == "meta" and e.name in said}


def _controls(comparison: Comparison, development: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the nulls of all entries by kind of control, with their p-values."""
    observed = {name: scores["image"]["auc"] for name, scores in development.items()}
    draws = {
        kind: {
            name: [each["image"] for each in found if each["part"] == "development"]
            for name, found in by_entry.items()
        }
        for kind, by_entry in comparison.controls.items()
    }
    known = {kind: {n: v for n, v in by_entry.items() if v} for kind, by_entry in draws.items()}
    return null_rows(observed, {kind: by_entry for kind, by_entry in known.items() if by_entry})


def _at_chance(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield what the controls come to that have nothing to learn at all."""
    designs = {entry.name: entry.design for entry in comparison.entries if entry.design is not None}
    for kind, by_entry in comparison.controls.items():
        for name, draws in by_entry.items():
            design = designs.get(name)
            if kind == MAPS and not (design and all(is_of_maps(f, design) for f in design.features)):
                continue  # the rest of the columns is in its place
            for part in dict.fromkeys(each["part"] for each in draws):
                values = [each["image"] for each in draws if each["part"] == part]
                if (row := at_chance(f"{name}, {kind}", part, values)) is not None:
                    yield row


def _subsets(rows: Rows, run: Run) -> dict[str, np.ndarray]:
    """Return masks (N,) of all rows, and of those of each magnification and subtype."""
    images = {image.id: image for image in run.manifest.images}
    mine = [images[image_id.decode()] for image_id in rows.image_id]
    found = {"all": np.ones(len(mine), dtype=bool)}
    for kind in ("magnification", "subtype"):
        values = np.array([str(getattr(image, kind) or "") for image in mine])
        for value in sorted(set(values.tolist()) - {""}):
            found[f"{kind} {value}"] = values == value
    return found


def _score_rows(
    entries: Sequence[Entry],
    scored: Mapping[str, Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    unit: str,
) -> Iterator[dict[str, Any]]:
    by_name = {entry.name: entry for entry in entries}
    nulls = {row["model"]: row for row in controls if row["control"] == LABELS}
    for part, subsets in scored.items():
        for subset, models in subsets.items():
            for name, scores in models.items():
                facts, says = by_name[name].facts, by_name[name].says
                yield {
                    "part": part,
                    "subset": subset,
                    "model": name,
                    "kind": by_name[name].kind,
                    "meta": facts["meta"],
                    "features": " + ".join(facts["features"]),
                    "columns": facts.get("columns_used"),
                    "fit_seconds": facts.get("fit_seconds"),
                    "predict_seconds": facts.get("predict_seconds"),
                    "seeds": len(says.areas),
                    "seeds_auc_deviation": float(np.std(says.areas)) if len(says.areas) > 1 else None,
                    "threshold": says.finish.threshold,
                    "one_class_only": scores["constant_prediction"] if subset == "all" else None,
                    **_null(nulls.get(name), part, subset),
                    "images": scores["image"]["n"],
                    "cases": scores["case"]["n"],
                    **_flat(scores, unit),
                }


def _flat(scores: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return scores as columns: image_auc, image_auc_low, image_auc_high, ..., image_withheld, ..."""
    flat: dict[str, Any] = {}
    for of, named in _units(unit).items():
        for score, bounds in scores[of]["interval"].items():
            low, high = bounds or (None, None)
            flat |= {
                f"{named}_{score}": scores[of][score],
                f"{named}_{score}_low": low,
                f"{named}_{score}_high": high,
            }
        reasons = [f"{score}: {why}" for score, why in scores[of]["withheld"].items()]
        flat[f"{named}_withheld"] = "; ".join(reasons)
    return flat


def _null(row: Mapping[str, Any] | None, part: str, subset: str) -> dict[str, Any]:
    """Return how likely permuted labels are to be as good, for the rows that they were permuted of."""
    if row is None or (part, subset) != ("development", "all"):
        return {"null_p": None, "null_p_of_many": None}
    return {"null_p": row["p"], "null_p_of_many": row["p_of_many"]}


def _units(unit: str) -> dict[str, str]:
    """Return how the units of scores are called: cases that nobody knows are slides, or not there."""
    return {"image": "image"} if unit == "image" else {"image": "image", "case": unit}


def _differences(
    how: Resampling,
    models: Mapping[str, Mapping[str, Predictions]],
    entries: Sequence[Entry],
    best: str,
    backbones: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yield what each stack gains over the mean and over the best base model, with every test.

    Which base model is the best is part of what was learnt from the development cases: it is chosen
    anew in every draw of them.
    """
    for part, said in models.items():
        stacks = [entry.name for entry in entries if entry.kind == "meta" and entry.name in said]
        if not stacks:
            continue
        for rival in ("mean", best):
            rows = _gains(how, part, models, stacks, rival, backbones)
            tests = {name: compare_pair(said[name], said[rival]) for name in stacks}
            p_values = {test: [tests[name][test] for name in stacks] for test in TESTS}
            adjusted = {test: holm(values) for test, values in p_values.items()}
            for number, name in enumerate(stacks):
                row = {"part": part, "model": name, "rival": rival, **rows[name]}
                for test in TESTS:
                    row |= {f"{test}_p": p_values[test][number], f"{test}_holm": adjusted[test][number]}
                yield row


def _gains(
    how: Resampling,
    part: str,
    models: Mapping[str, Mapping[str, Predictions]],
    stacks: Sequence[str],
    rival: str,
    backbones: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the paired differences of AUC and accuracy of some stacks, as columns."""
    said, found = models[part], {}
    joint = gains(said, [(name, rival) for name in stacks])
    carriers = {name: how.carriers(said[name]) for name in stacks}
    if rival == "mean" or "development" not in models:
        rows = how.differences(said, [(name, rival) for name in stacks], scores=("accuracy",))
        found = {name: joint.row((name, rival), carriers[name]) for name in stacks}
    else:
        bases = {name: (models["development"][name], said[name]) for name in backbones}
        own = {name: said[name] for name in stacks}
        rows = how.over_best(own, bases, same_cases=part == "development")
        for row in [row for row in rows if row["score"] == "auc"]:
            own_carriers = carriers[row["first"]]
            freedom = own_carriers.freedom("auc")
            gain = (row["difference"], row["error"], freedom, joint.joint, own_carriers)
            found[row["first"]] = row_of_gain(*gain)
    for row in [row for row in rows if row["score"] == "accuracy"]:
        low, high = row["interval"] or (None, None)
        own_row = {"accuracy_difference": row["difference"], "accuracy_low": low, "accuracy_high": high}
        found[row["first"]] |= own_row
    return found


def _answers(
    how: Resampling, part: str, models: Mapping[str, Predictions], comparison: Comparison
) -> Iterator[dict[str, Any]]:
    """Yield what a block adds to others: the same meta-learner with it and without it."""
    stacks = [e for e in comparison.entries if e.kind == "meta" and e.name in models]
    nested = []
    for more, less in permutations(stacks, 2):
        with_it, without = (set(e.facts["features"]) for e in (more, less))
        one_more = without < with_it and len(with_it - without) == 1
        if more.facts["meta"] == less.facts["meta"] and one_more:
            nested.append((more, less))
    found = gains(models, [(more.name, less.name) for more, less in nested])
    for more, less in nested:
        (added,) = set(more.facts["features"]) - set(less.facts["features"])
        named = {"added": added, "to": " + ".join(less.facts["features"]), "meta": more.facts["meta"]}
        carriers = how.carriers(models[more.name])
        yield {"part": part, **named, **found.row((more.name, less.name), carriers)}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish rows that may have different columns, in the order in which these first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
