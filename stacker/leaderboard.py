"""From what all entries say to a leaderboard: scores, differences with tests, and plain answers.

Two parts are scored apart: the development cases, out of fold, and the untouched test cases. Everything
is scored on the same images with the same draws of whole cases, so that differences are paired. The
first of many entries is the luckiest of them: that is why each is compared with the mean of the base
models' probabilities and with the best base model, and why p-values are adjusted for their number.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from stacker.cache import Rows
from stacker.compare import Comparison, Entry
from stacker.metrics import Predictions, differences, evaluate_subsets
from stacker.run import publish, write_json
from stacker.significance import CAVEAT, compare_pair, holm
from stacker.stack import best_base
from stacker.studies import Study

PARTS = {"development": "Development cases, out of fold", "test": "Test cases"}
TESTS = {
    "delong": "DeLong's test of the AUC by image",
    "clustered_delong": "the same with the variance by case (Obuchowski 1997)",
    "mcnemar": "McNemar's test of right and wrong by image",
    "exchange": "answers of whole cases exchanged",
    "case_delong": "DeLong's test of the AUC by case",
    "case_mcnemar": "McNemar's test by case",
}
CHANCE, LEAST_LEAK, SURE = 0.5, 0.02, 0.999
ENDS: dict[str, Callable[[np.ndarray], Any]] = {  # of a control's draws
    "": np.mean,
    "_low": lambda values: np.quantile(values, 0.025),
    "_high": lambda values: np.quantile(values, 0.975),
}


def make_leaderboard(comparison: Comparison, study: Study) -> dict[str, Any]:
    """Score everything and write compare/*.csv and leaderboard.json; return the latter's content."""
    run, manifest = study.run, study.manifest
    draws, seed = run.config.stack.bootstrap, run.config.seed
    models = {part: _said(comparison.entries, part) for part in comparison.rows}
    models = {part: found for part, found in models.items() if found}
    scored = {
        part: evaluate_subsets(found, _subsets(comparison.rows[part], study), draws, seed)
        for part, found in models.items()
    }
    best = best_base(list(run.config.backbones), scored.get("development", {}).get("all", {}))
    rows = list(_score_rows(comparison.entries, scored, manifest.unit))
    rows += list(_control_rows(comparison.controls, manifest.unit))
    gains = [
        row
        for part, said in models.items()
        for row in _differences(part, said, comparison.entries, best, draws, seed)
    ]
    answers = [
        row for part, said in models.items() for row in _answers(part, said, comparison, draws, seed)
    ]
    found = {
        "split": study.folds.label,
        "classes": manifest.classes,
        "unit": manifest.unit,
        "intervals": f"95%, {draws} bootstrap draws of whole {manifest.unit}s",
        "sizes": {
            part: {"images": len(r), "cases": len(np.unique(r.case_id))}
            for part, r in comparison.rows.items()
        },
        "best_base": best,
        "rows": rows,
        "differences": gains,
        "answers": answers,
        "controls": at_chance(comparison.controls),
        "tests": TESTS,
        "caveat": CAVEAT,
        "failures": comparison.failures,
    }
    folder = run.path / "compare"
    tables = {"leaderboard": rows, "differences": gains, "answers": answers}
    for name, lines in tables.items():
        write_rows(folder / f"{name}.csv", [{**line, "split": study.folds.label} for line in lines])
    write_json(folder / "leaderboard.json", found)
    return found


def _said(entries: Sequence[Entry], part: str) -> dict[str, Predictions]:
    said = {entry.name: getattr(entry.says, part) for entry in entries}
    return {name: found for name, found in said.items() if found is not None}


def _subsets(rows: Rows, study: Study) -> dict[str, np.ndarray]:
    """Return masks (N,) of all rows, and of those of each magnification and subtype."""
    images = {image.id: image for image in study.manifest.images}
    mine = [images[image_id.decode()] for image_id in rows.image_id]
    found = {"all": np.ones(len(mine), dtype=bool)}
    for kind in ("magnification", "subtype"):
        values = np.array([str(getattr(image, kind) or "") for image in mine])
        for value in sorted(set(values.tolist()) - {""}):
            found[f"{kind} {value}"] = values == value
    return found


def _score_rows(
    entries: Sequence[Entry], scored: Mapping[str, Mapping[str, Any]], unit: str
) -> Iterator[dict[str, Any]]:
    by_name = {entry.name: entry for entry in entries}
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
                    "columns": facts.get("columns"),
                    "fit_seconds": facts.get("fit_seconds"),
                    "predict_seconds": facts.get("predict_seconds"),
                    "seeds": len(says.seeds),
                    "seeds_auc_deviation": float(np.std(says.seeds)) if len(says.seeds) > 1 else None,
                    "threshold": says.finish.threshold,
                    "one_class_only": scores["constant_prediction"] if subset == "all" else None,
                    "images": scores["image"]["n"],
                    "cases": scores["case"]["n"],
                    **_flat(scores, unit),
                }


def _flat(scores: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return scores as columns: image_auc, image_auc_low, image_auc_high, case_auc, ..."""
    flat: dict[str, Any] = {}
    for of, named in _units(unit).items():
        for score, bounds in scores[of]["interval"].items():
            low, high = bounds or (None, None)
            flat |= {
                f"{named}_{score}": scores[of][score],
                f"{named}_{score}_low": low,
                f"{named}_{score}_high": high,
            }
    return flat


def _units(unit: str) -> dict[str, str]:
    """Return how the units of scores are called: cases that nobody knows are slides, or not there."""
    return {"image": "image"} if unit == "image" else {"image": "image", "case": unit}


def _control_rows(controls: Mapping[str, Sequence[Any]], unit: str) -> Iterator[dict[str, Any]]:
    """Yield the mean of every control's draws, with the middle 95 % of them for an interval."""
    for name, every_draw in controls.items():
        for part in dict.fromkeys(part for draw in every_draw for part in draw):
            draws = [draw for draw in every_draw if part in draw]
            row: dict[str, Any] = {"part": part, "subset": "all", "model": name, "kind": "control"}
            row |= {"meta": "", "features": "", "seeds": len(draws)}
            for of, named in _units(unit).items():
                for score in draws[0][part][of]:
                    values = np.array([draw[part][of].get(score, np.nan) for draw in draws])
                    values = values[np.isfinite(values)]
                    for end, of_all in ENDS.items():
                        value = round(float(of_all(values)), 4) if len(values) else None
                        row[f"{named}_{score}{end}"] = value
            yield row


def at_chance(controls: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Say of each control that has nothing to learn what its draws come to, and from where on they leak.

    `leaks` is whether the mean AUC lies above chance by more than a t-interval of 99.9 % (of one side)
    and by more than 0.02. Below chance is no leak: cases that are held out lack a little of what the
    others have too much of.
    """
    found = []
    for name in ("shuffled maps", "permuted labels"):
        draws = controls.get(name, ())
        for part in dict.fromkeys(part for draw in draws for part in draw):
            values = np.array([draw[part]["image"]["auc"] for draw in draws if part in draw])
            values = values[np.isfinite(values)]
            if len(values) < 2:
                continue
            error = values.std(ddof=1) / np.sqrt(len(values))
            limit = CHANCE + max(stats.t.ppf(SURE, len(values) - 1) * error, LEAST_LEAK)
            mean = float(values.mean())
            row = {"control": name, "part": part, "draws": len(values), "auc": round(mean, 4)}
            found.append(row | {"leaks_above": round(float(limit), 4), "leaks": bool(mean > limit)})
    return found


def _differences(
    part: str,
    models: Mapping[str, Predictions],
    entries: Sequence[Entry],
    best: str,
    draws: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield what each stack gains over the mean and over the best base model, with every test."""
    stacks = [entry.name for entry in entries if entry.kind == "meta" and entry.name in models]
    for rival in ("mean", best):
        pairs = [(name, rival) for name in stacks]
        gains = _gains(models, pairs, draws, seed)
        tests = {name: _p_values(models[name], models[rival]) for name in stacks}
        p_values = {test: [tests[name][test] for name in stacks] for test in TESTS}
        adjusted = {test: holm(values) for test, values in p_values.items()}
        for number, name in enumerate(stacks):
            row = {"part": part, "model": name, "rival": rival, **gains[name, rival]}
            for test in TESTS:
                row |= {f"{test}_p": p_values[test][number], f"{test}_holm": adjusted[test][number]}
            yield row


def _p_values(first: Predictions, second: Predictions) -> dict[str, float | None]:
    """Return the p-value of every test, None where it cannot be made."""
    found = compare_pair(first, second)
    by_case = found["case"] or {}
    tests = {**found["image"], **{f"case_{name}": test for name, test in by_case.items()}}
    return {test: (tests.get(test) or {}).get("p") for test in TESTS}


def _gains(
    models: Mapping[str, Predictions], pairs: Sequence[tuple[str, str]], draws: int, seed: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return paired differences of AUC and accuracy by image, with intervals, as columns."""
    gains: dict[tuple[str, str], dict[str, Any]] = {pair: {} for pair in pairs}
    for row in differences(models, pairs, draws, seed, scores=("auc", "accuracy")):
        low, high = row["interval"] or (None, None)
        score = row["score"]
        gains[row["first"], row["second"]] |= {
            f"{score}_difference": row["difference"],
            f"{score}_low": low,
            f"{score}_high": high,
        }
    return gains


def _answers(
    part: str, models: Mapping[str, Predictions], comparison: Comparison, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield what a block adds to others: the same meta-learner with it and without it."""
    stacks = [e for e in comparison.entries if e.kind == "meta" and e.name in models]
    nested = []
    for more, less in permutations(stacks, 2):
        with_it, without = (set(e.facts["features"]) for e in (more, less))
        if (
            more.facts["meta"] == less.facts["meta"]
            and without < with_it
            and len(with_it - without) == 1
        ):
            nested.append((more, less))
    gains = _gains(models, [(more.name, less.name) for more, less in nested], draws, seed)
    for more, less in nested:
        (added,) = set(more.facts["features"]) - set(less.facts["features"])
        named = {"added": added, "to": " + ".join(less.facts["features"]), "meta": more.facts["meta"]}
        yield {"part": part, **named, **gains[more.name, less.name]}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish rows that may have different columns, in the order in which these first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
