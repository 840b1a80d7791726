"""How much better a run looks when cases straddle its split: the same run, split by other units.

Each unit is a run of its own, named after the one that it repeats, with all three stages; nothing else
of the config changes. Splits by slide and by image leak across cases. Their scores are not results: they
are the measure of what such a split pretends, and carry that on their label wherever they are written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stacker import pipeline
from stacker.comparison.leaderboard import write_rows
from stacker.config.root import Config
from stacker.errors import ConfigError, RunError
from stacker.files import write_json
from stacker.run import Run

log = logging.getLogger(__name__)
UNITS = ("image", "slide", "case")
SCORES = ("auc", "accuracy")


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
        raise ConfigError(f"--protocols: {strange[0]!r} is no unit; expected some of {', '.join(UNITS)}")
    if len(set(units)) < 2:
        raise ConfigError("--protocols: name two units or more, e.g. --protocols image,slide,case")
    images = run.manifest.images
    for unit in set(units) - {"image"}:
        if not all(getattr(image, unit) for image in images):
            raise ConfigError(f"--protocols: the {unit} of some images is not known; leave {unit} out")
    config = run.config
    if "official" in (config.folds.test, config.folds.stack):
        raise RunError(
            "--protocols: an official split has its own unit and cannot be cut by another; take shares "
            "(folds.test=0.2) in a run of their own"
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
