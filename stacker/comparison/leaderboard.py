"""From what all entries say to a leaderboard: scores, differences with tests, and what blocks add.

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
from stacker.run import BaseModel, Run
from stacker.scores.bootstrap import Resampling
from stacker.scores.multiplicity import at_chance, choose, gains, null_rows
from stacker.scores.predictions import Predictions
from stacker.scores.significance import CAVEAT, TESTS, compare_pair, holm
from stacker.stacking.stage import best_base

ONE_CLASS = ("constant_prediction", "constant_case_prediction")
TABLES = {  # the files of a comparison, and where their rows are in leaderboard.json
    "leaderboard": "rows",
    "differences": "differences",
    "answers": "answers",
    "controls": "controls",
}


def make_leaderboard(comparison: Comparison, run: Run) -> dict[str, Any]:
    """Score everything and write compare/*.csv and leaderboard.json; return the latter's content."""
    board, folder = _score(comparison, run), run.path / "compare"
    for name, key in TABLES.items():
        rows = [{**_as_text(row), "split": run.folds.label} for row in board[key]]
        write_rows(folder / f"{name}.csv", rows)
    write_json(folder / "leaderboard.json", board)
    return board


def _as_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as CSV can hold it: reasons by score become text."""
    return {
        key: "; ".join(f"{score}: {why}" for score, why in value.items())
        if isinstance(value, Mapping)
        else value
        for key, value in row.items()
    }


def _score(comparison: Comparison, run: Run) -> dict[str, Any]:
    manifest, config, entries = run.manifest, run.config, comparison.entries
    how = Resampling(config.stack.bootstrap, config.seed, manifest.classes, manifest.unit)
    said = {part: _said(entries, part) for part in comparison.rows}
    models = {part: of_part for part, of_part in said.items() if of_part}
    stacks = {
        part: [e for e in entries if e.kind == "meta" and e.name in of] for part, of in models.items()
    }
    scored = {
        part: how.evaluate_subsets(of_part, _subsets(comparison.rows[part], run))
        for part, of_part in models.items()
    }
    development = scored.get("development", {}).get("all", {})
    best = best_base(list(config.backbones), development)
    out_of_fold = {e.name: models["development"][e.name] for e in stacks.get("development", ())}
    controls = _controls(comparison, development)
    return {
        "split": run.folds.label,
        "leaks": run.folds.leaks,
        "classes": manifest.classes,
        "positive": manifest.positive,
        "unit": manifest.unit,
        "intervals": how.description,
        "base_models": [str(BaseModel(name, fold.name)) for name, fold in run.jobs()],
        "sizes": {
            part: {"images": len(rows), "cases": len(np.unique(rows.case_id))}
            for part, rows in comparison.rows.items()
        },
        "best_base": best,
        "best_stack": choose(out_of_fold, how.replicates, how.seed),
        "rows": list(_score_rows(entries, scored, controls, manifest.unit)),
        "differences": list(_differences(how, models, stacks, best, list(config.backbones))),
        "answers": [row for part in models for row in _gains(how, part, models[part], stacks[part])],
        "controls": controls,
        "at_chance": list(_at_chance(comparison)),
        "tests": TESTS,
        "caveat": CAVEAT,
        "failures": comparison.failures,
    }


def _said(entries: Sequence[Entry], part: str) -> dict[str, Predictions]:
    said = {entry.name: getattr(entry.says, part) for entry in entries}
    return {name: predictions for name, predictions in said.items() if predictions is not None}


def _controls(comparison: Comparison, development: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the nulls of all entries by kind of control, with their p-values."""
    observed = {name: scores["image"]["auc"] for name, scores in development.items()}
    nulls: dict[str, dict[str, list[float]]] = {}
    for kind, by_entry in comparison.controls.items():
        for name, draws in by_entry.items():
            if areas := [draw["image"] for draw in draws if draw["part"] == "development"]:
                nulls.setdefault(kind, {})[name] = areas
    return null_rows(observed, nulls)


def _at_chance(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield what the controls come to that have nothing to learn at all."""
    designs = {entry.name: entry.design for entry in comparison.entries}
    stacks = {entry.name for entry in comparison.entries if entry.kind == "meta"}
    for kind, by_entry in comparison.controls.items():
        for name, draws in by_entry.items():
            design = designs.get(name)
            if kind == MAPS and not (design and all(is_of_maps(f, design) for f in design.features)):
                continue  # the rest of the columns is in its place
            for part in dict.fromkeys(draw["part"] for draw in draws):
                areas = [draw["image"] for draw in draws if draw["part"] == part]
                if (row := at_chance(f"{name}, {kind}", part, areas)) is not None:
                    yield {"model": name, "kind": kind, "fitted": name in stacks, **row}


def _subsets(rows: Rows, run: Run) -> dict[str, np.ndarray]:
    """Return masks (N,) of all rows, and of those of each magnification and subtype."""
    by_id = {image.id: image for image in run.manifest.images}
    images = [by_id[image_id.decode()] for image_id in rows.image_id]
    subsets = {"all": np.ones(len(images), dtype=bool)}
    for kind in ("magnification", "subtype"):
        values = np.array([str(getattr(image, kind) or "") for image in images])
        subsets |= {f"{kind} {value}": values == value for value in np.unique(values) if value}
    return subsets


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
                whole = (part, subset) == ("development", "all")  # of these rows labels were permuted
                null = nulls.get(name, {}) if whole else {}
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
                    **{key: scores[key] if subset == "all" else None for key in ONE_CLASS},
                    "null_p": null.get("p"),
                    "null_p_of_many": null.get("p_of_many"),
                    "images": scores["image"]["n"],
                    "cases": scores["case"]["n"],
                    **_flat(scores, unit),
                }


def _flat(scores: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return scores as columns: image_auc, image_auc_low, image_auc_high, ..., image_withheld, ...

    The last holds why scores have no interval, by score. Cases that nobody knows are slides, or not
    there.
    """
    flat: dict[str, Any] = {}
    for of, named in (("image", "image"), ("case", unit))[: 1 if unit == "image" else 2]:
        for score, bounds in scores[of]["interval"].items():
            low, high = bounds or (None, None)
            flat |= {
                f"{named}_{score}": scores[of][score],
                f"{named}_{score}_low": low,
                f"{named}_{score}_high": high,
            }
        flat[f"{named}_withheld"] = scores[of]["withheld"]
    return flat


def _differences(
    how: Resampling,
    models: Mapping[str, Mapping[str, Predictions]],
    stacks: Mapping[str, Sequence[Entry]],
    best: str,
    backbones: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yield what each stack gains over the mean and over the best base model, with every test.

    Which base model is the best is part of what was learnt from the development cases: it is chosen
    again in every draw of them.
    """
    for part, said in models.items():
        chosen = {entry.name: said[entry.name] for entry in stacks[part]}
        bases = {name: (models.get("development", said)[name], said[name]) for name in backbones}
        for rival in ("mean", best) if chosen else ():
            pairs = [(name, rival) for name in chosen]
            if rival == "mean" or "development" not in models:
                rows = how.differences(said, pairs, scores=("accuracy",))
            else:
                rows = how.over_best(chosen, bases, same_cases=part == "development")
            by_score = {(row["first"], row["score"]): row for row in rows}
            joint = gains(how, said, pairs)
            tests = [compare_pair(said[name], said[rival]) for name in chosen]
            adjusted = {test: holm([p_values[test] for p_values in tests]) for test in TESTS}
            for number, name in enumerate(chosen):
                gain, accuracy = by_score.get((name, "auc")), by_score[name, "accuracy"]
                low, high = accuracy["interval"] or (None, None)
                row: dict[str, Any] = {"part": part, "model": name, "rival": rival}
                row |= joint.row((name, rival)) if gain is None else joint.row_of(name, gain)
                row |= {"accuracy_difference": accuracy["difference"]}
                row |= {"accuracy_low": low, "accuracy_high": high}
                for test in TESTS:
                    row |= {f"{test}_p": tests[number][test], f"{test}_holm": adjusted[test][number]}
                yield row


def _gains(
    how: Resampling, part: str, models: Mapping[str, Predictions], stacks: Sequence[Entry]
) -> Iterator[dict[str, Any]]:
    """Yield what a block adds to others: the same meta-learner with it and without it."""
    nested = []
    for more, less in permutations(stacks, 2):
        with_it, without = (set(entry.facts["features"]) for entry in (more, less))
        added = with_it - without
        if more.facts["meta"] == less.facts["meta"] and without < with_it and len(added) == 1:
            nested.append((more, less, *added))
    joint = gains(how, models, [(more.name, less.name) for more, less, _ in nested])
    for more, less, added in nested:
        rest = less.facts["features"]
        named = {"added": added, "to": " + ".join(rest), "meta": more.facts["meta"]}
        yield {
            "part": part,
            **named,
            "maps_alone": _has_maps(more, [added]) and not _has_maps(more, rest),
            **joint.row((more.name, less.name)),
        }


def _has_maps(entry: Entry, blocks: Sequence[str]) -> bool:
    """Say whether a block of a stack is made of maps."""
    return entry.design is not None and any(is_of_maps(name, entry.design) for name in blocks)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish rows that may have different columns, in the order in which these first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
