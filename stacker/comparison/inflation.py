"""How much a leaking split inflates the scores of a run: the same run, split by other units.

Each unit is a run of its own, named after the original, with all three stages; nothing else of the
config changes. Splits by slide and by image leak across cases. Their scores are not results: they
measure how much such a split overstates them, and are labelled as leaking wherever they are written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacker import pipeline
from stacker.comparison.leaderboard import write_rows
from stacker.config.root import Config
from stacker.errors import ConfigError, RunError, plural
from stacker.files import read_json, write_json
from stacker.progress import duration
from stacker.run import FROZEN, BaseModel, Run

log = logging.getLogger(__name__)
UNITS = ("image", "slide", "case")
SCORES = ("auc", "accuracy")


@dataclass(frozen=True)
class Work:
    """What a run split by another unit still needs: base models to train and caches to fill.

    `seconds` is what they took in the run that is repeated; None where that is not known.
    """

    path: Path
    models: int
    caches: int
    seconds: float | None

    def __str__(self) -> str:
        """Return what is to be done, and where."""
        models, caches = plural(self.models, "base model"), plural(self.caches, "cache")
        return f"{self.path}: {models} to train, {caches} to fill"


def work_to_do(run: Run, units: Sequence[str]) -> list[Work]:
    """Return what the runs split by other units still need, those that are complete left out."""
    _require_units(run, units)
    siblings = [Run(c.run_path, c) for c in (sibling(run, u) for u in units if u != run.folds.group)]
    works = [_work_of(other, run) for other in siblings]
    return [work for work in works if work.models or work.caches]


def time_of(works: Sequence[Work]) -> str:
    """Say how long some work will take, going by the run that is repeated."""
    known = [work.seconds for work in works if work.seconds is not None]
    if len(known) < len(works):
        return "How long this takes is unknown: run.json has no times of the original run"
    return f"About {duration(sum(known))}, going by the times of the original run"


def _work_of(other: Run, run: Run) -> Work:
    """Return what another run, of the same folds by name, still needs."""
    bases = [BaseModel(name, fold.name) for name, fold in run.jobs()]
    models = [base for base in bases if not other.model_file(*base).exists()]
    frozen = [BaseModel(name, FROZEN) for name in run.config.frozen]
    caches = [b for b in (*bases, *frozen) if not (other.cache_folder(*b) / "index.h5").exists()]
    book = read_json(run.path / "run.json")
    trained, cached = book.get("train", {}), book.get("cache", {})
    try:
        seconds = sum(float(trained[str(base)]["seconds"]) for base in models)
        for times in (cached[str(base)] for base in caches):  # those filled in one pass share its time
            seconds += times["seconds"] / (times["together_with"] + 1)
    except KeyError:
        return Work(other.path, len(models), len(caches), None)
    return Work(other.path, len(models), len(caches), seconds)


def measure_inflation(run: Run, units: Sequence[str]) -> dict[str, Any]:
    """Repeat a run split by each unit; return scores side by side, and write compare/inflation.*."""
    _require_units(run, units)
    metrics = {}
    for unit in units:
        if unit == run.folds.group:
            metrics[unit] = pipeline.stack(run, run.config.stack.meta)
        else:
            config = sibling(run, unit)
            log.info("split by %s: run %s", unit, config.run_path)
            metrics[unit] = pipeline.run_all(config)
    rows = [
        row
        for part in ("development", "test")
        for model in metrics[units[0]][part]
        if model != "constant"
        for row in _rows(part, model, metrics)
    ]
    result = {
        "run": run.config.run,
        "units": list(units),
        "labels": {unit: scored["split"] for unit, scored in metrics.items()},
        "leaks": {unit: scored["leaks"] for unit, scored in metrics.items()},
        "intervals": {unit: scored["intervals"] for unit, scored in metrics.items()},
        "rows": rows,
    }
    folder = run.path / "compare"
    write_rows(folder / "inflation.csv", rows)
    write_json(folder / "inflation.json", result)
    return result


def sibling(run: Run, unit: str) -> Config:
    """Return the config of the same run, split by another unit, in a folder beside it."""
    path = run.path.absolute()
    changes = {"artifacts": path.parent, "run": f"{path.name}-by-{unit}"}
    folds = run.config.folds.model_copy(update={"group": unit})
    return run.config.model_copy(update={**changes, "folds": folds})


def _require_units(run: Run, units: Sequence[str]) -> None:
    """Raise ConfigError for units that the images do not have, or that cannot be compared."""
    strange = [unit for unit in units if unit not in UNITS]
    if strange:
        raise ConfigError(f"--protocols: unknown unit {strange[0]!r}", f"choose from {', '.join(UNITS)}")
    if len(set(units)) < 2:
        raise ConfigError(
            "--protocols: at least two units are needed", "e.g. --protocols image,slide,case"
        )
    images = run.manifest.images
    for unit in set(units) - {"image"}:
        if not all(getattr(image, unit) for image in images):
            raise ConfigError(f"--protocols: the {unit} of some images is unknown", f"leave {unit} out")
    config = run.config
    if "official" in (config.folds.test, config.folds.stack):
        raise RunError(
            "--protocols: an official split cannot be repeated by another unit",
            "start a run with shares instead (--set folds.test=0.2 --set run=NAME)",
        )


def _rows(part: str, model: str, metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a model's scores by image under each unit, and how far they are above those by case."""
    honest = metrics.get("case", {}).get(part, {}).get(model, {}).get("image", {})
    for unit, of_run in metrics.items():
        if model not in of_run[part]:
            continue
        scores = of_run[part][model]["image"]
        row: dict[str, Any] = {"part": part, "model": model, "split_by": unit}
        for score in SCORES:
            low, high = scores["interval"][score] or (None, None)
            row |= {score: scores[score], f"{score}_low": low, f"{score}_high": high}
            row[f"{score}_withheld"] = scores["withheld"].get(score)
            both = (scores[score], honest.get(score))
            row[f"{score}_inflation"] = None if None in both else round(both[0] - both[1], 4)
        yield row | {"images": scores["n"], "split": of_run["split"]}
