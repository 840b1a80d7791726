"""A fitted stack on disk: its members, what it says of itself, and what it said of the run's cases.

    stack/<meta>@<features>/
        stack.json           what it was fitted with and on, calibrations and thresholds
        centres.npz          what is taken off the columns of each fold's models
        importances.csv      what each column counts, where the meta-learner can tell
        <scope>-<seed>.npz   scales and components of one member
        <scope>-<seed>.*     its meta-learner: skops, UBJSON, safetensors or JSON, never pickle
        predictions.npz      raw probabilities of development and test rows
    out_of_fold.csv          a line per model, development image and cut into parts
    predictions.csv          a line per model and test image
    ..._cases.csv            the same by case, where each case has one label

A meta-learner has a stack for every choice of features; that on `stack.features` is called by the name
of the meta-learner alone, any other by its full name. `stack.json` is written last and removed first, so
that it never speaks of other files. The tables of what all models said are enough to compute every
published score again: `raw_<class>` is what images are ranked by, within their `part` of a `cut`;
`p_<class>` is calibrated, `threshold` is from where on the last class is predicted (the likeliest where
it is empty). Numbers are read back to the last bit.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from stacker.caches.format import Rows
from stacker.config.stacking import StackConfig
from stacker.data.manifest import Manifest
from stacker.errors import ConfigError, RunError, StackError
from stacker.files import digest, publish, read_json, write_arrays, write_json
from stacker.run import Run, StackName
from stacker.scores.predictions import Finish, Predictions, by_case, mean_over_folds
from stacker.stacking.blocks import Arrays, Blocks, assemble, resolve
from stacker.stacking.finish import Says, conclude, unfinished
from stacker.stacking.fitting import SCHEMA, Design, Fitted, Member, of_scope, say
from stacker.stacking.importances import write_importances
from stacker.stacking.learners.matrix import InMemory
from stacker.stacking.learners.registry import load_meta, save_meta, trusted_by_config
from stacker.stacking.preparation import Preparation, read_arrays

log = logging.getLogger(__name__)
CENTRES = "centres.npz"
KEYS = ("labels", "cases", "raw", "parts")  # of what is said of a part of the split


@dataclass(frozen=True)
class Stack:
    """A fitted stack that was read back: it predicts from what base models say of new images."""

    name: str
    facts: dict[str, Any]
    blocks: Blocks
    members: dict[str, list[Member]]
    centres: dict[str, np.ndarray]
    finish: Finish
    case_finish: Finish

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in the order of their indices."""
        return tuple(self.facts["classes"])

    @property
    def folds(self) -> list[str]:
        """The folds whose base models it needs."""
        return list(self.facts["folds"])

    @property
    def backbones(self) -> list[str]:
        """The backbones that were fine-tuned, in the order of its columns."""
        return list(self.facts["backbones"])

    def raw(self, by_fold: Mapping[str, Mapping[str, Arrays]]) -> np.ndarray:
        """Return raw probabilities (N, K) from the arrays of every fold's backbones.

        Each fold's model yields features of its own, centred by its own constants: averaged features
        would be smoother than those that the stack was fitted on. What it says of them is averaged.
        """
        shares = []
        for fold in self.folds:
            values, _ = assemble(by_fold[fold], self.classes, self.blocks)
            if fold in self.centres:
                values = values - self.centres[fold]
            shares.append(say(of_scope(self.members, fold), InMemory(values)))
        return mean_over_folds(np.stack(shares))

    def finish_images(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (N, K) and classes (N,) of images."""
        return _decided(self.finish, raw)

    def finish_cases(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the same of cases, from the mean raw probabilities of their images."""
        return _decided(self.case_finish, raw)


def _decided(finish: Finish, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = finish.calibrator.apply(raw)
    rows = np.zeros(len(raw), dtype=np.int64)
    return shares, Predictions(rows, rows, shares, finish.threshold).predicted


def save_stack(
    folder: Path,
    design: Design,
    fitted: Fitted,
    identity: dict[str, Any],
    facts: dict[str, Any],
    with_members: bool = True,
) -> None:
    """Publish a fitted stack, or without its members what it says of the run's cases.

    `identity` decides whether it is up to date, `facts` are what its users want to know of the run.
    """
    (folder / "stack.json").unlink(missing_ok=True)
    for stale in folder.glob("*-[0-9]*.*"):  # members of other seeds, or of other scopes
        stale.unlink()
    members = fitted.members if with_members else {}
    for scope, fits in members.items():
        for number, member in enumerate(fits):
            stem = folder / f"{scope}-{number}"
            member.preparation.save(stem.with_name(f"{stem.name}.npz"))
            save_meta(member.learner, stem)
    if with_members:
        write_arrays(folder / CENTRES, fitted.centres)
        write_importances(folder, members, facts["classes"])
    says = fitted.says
    _save_says(folder, says)
    content = {
        "digest": digest(identity),
        **identity,
        **facts,
        "rows": fitted.rows,
        "members": {scope: len(fits) for scope, fits in members.items()},
        "factors": {scope: [list(m.factors) for m in fits] for scope, fits in members.items()},
        "settings": design.config.model_dump(mode="json"),
        "finish": says.finish.as_dict(),
        "case_finish": None if says.case_finish is None else says.case_finish.as_dict(),
        "columns_used": fitted.columns,
        "seeds_auc": [round(area, 4) for area in says.areas],
        "fit_seconds": round(fitted.fit_seconds, 3),
        "predict_seconds": round(fitted.predict_seconds, 3),
    }
    write_json(folder / "stack.json", content)


def is_current(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Say whether a stack was fitted with just these settings on just these caches."""
    path = folder / "stack.json"
    return path.exists() and bool(read_json(path).get("digest") == digest(identity))


def load_stack(run: Run, name: str, trusted: Sequence[str] = ()) -> Stack:
    """Read a fitted stack; raise StackError when a file of it is missing or strange.

    In a run, the package that its config names is trusted, too; in a pack only those in `trusted`: its
    config came with it.
    """
    folder, facts = run.stack_folder(name), stack_facts(run, name)
    meta, label = str(facts["meta"]), run.stack_label(run.stack_name(name))
    config = StackConfig.model_validate(facts["settings"])
    if not run.packed:
        trusted = (*trusted, *trusted_by_config(meta, run.config.stack))

    def load(stem: Path, factors: list[float]) -> Member:
        preparation = Preparation.load(stem.with_name(f"{stem.name}.npz"))
        learner = load_meta(meta, config, stem, preparation.columns, trusted)
        return Member(preparation, learner, np.array(factors))

    members = {
        scope: [load(folder / f"{scope}-{n}", facts["factors"][scope][n]) for n in range(count)]
        for scope, count in facts["members"].items()
    }
    finish = Finish.from_dict(facts["finish"])
    case_finish = Finish.from_dict(facts["case_finish"]) if facts["case_finish"] else finish
    blocks = resolve(facts["features"], config)
    if not run.packed and set(facts["backbones"]) != set(run.config.backbones):
        log.warning(
            "%s was fitted on %s, and the config has %s: run 'stacker run CONFIG' to fit it on these",
            *(label, ", ".join(facts["backbones"]), ", ".join(run.config.backbones)),
        )
    return Stack(label, facts, blocks, members, read_arrays(folder / CENTRES), finish, case_finish)


def stack_facts(run: Run, name: str) -> dict[str, Any]:
    """Return what a fitted stack says of itself; raise RunError when there is none."""
    path = run.stack_folder(name) / "stack.json"
    if not path.exists():
        fitted = ", ".join(run.stack_label(known) for known in fitted_names(run)) or "none"
        raise RunError(
            f"{run.path}: no stack '{run.stack_name(name)}' is fitted; fitted are: {fitted}",
            f"run 'stacker stack CONFIG --meta {name!r}' first",
        )
    facts: dict[str, Any] = read_json(path)
    if facts.get("schema") != SCHEMA:
        raise RunError(
            f"{path} was written in schema {facts.get('schema')}, this program reads {SCHEMA}",
            "run 'stacker stack CONFIG' again",
        )
    return facts


def fitted_names(run: Run) -> list[StackName]:
    """Return all stacks of a run, those of `stack.meta` on `stack.features` first."""
    names = {name for _, name in _folders(run) if name is not None}
    first = [name for name in map(run.stack_name, run.config.stack.meta) if name in names]
    return [*first, *sorted(names - set(first))]


def strange_folders(run: Run) -> list[str]:
    """Return the folders whose stack.json is damaged, or says another name than the folder has."""
    return [folder.name for folder, name in _folders(run) if name is None]


def _folders(run: Run) -> Iterator[tuple[Path, StackName | None]]:
    """Yield the folders of stacks with their names; None where the two do not agree."""
    for path in sorted(run.path.glob("stack/*/stack.json")):
        try:
            facts = read_json(path)
            name = StackName.of(facts["meta"], facts["features"])
        except (ValueError, KeyError, TypeError):
            name = None
        yield path.parent, name if name and name.folder == path.parent.name else None


def choose_stack(run: Run, text: str | None) -> str:
    """Return the stack that a text names, or the first of `stack.meta` that is fitted, or any other.

    Raise ConfigError for a meta-learner that nobody knows, RunError where it, or any, is not fitted.
    """
    fitted = [run.stack_label(name) for name in fitted_names(run)]
    if text is not None:
        name = run.stack_name(text)
        if fitted and not run.config.stack.knows(name.meta):
            near = get_close_matches(text, fitted, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(
                f"no meta-learner '{name.meta}'", f"{hint}this run has fitted: {', '.join(fitted)}"
            )
        run.config.stack.require(name.meta)
        label = run.stack_label(name)
        stack_facts(run, label)
        return label
    if not fitted:
        raise RunError(f"{run.path}: no meta-learner is fitted yet", "run 'stacker stack CONFIG' first")
    return fitted[0]


def _save_says(folder: Path, says: Says) -> None:
    """Publish what a model says of the run's cases, raw, to be read again to the bit."""
    arrays: dict[str, np.ndarray] = {"areas": np.array(says.areas)}
    for part, said in {"development": says.development, "test": says.test}.items():
        if said is not None:
            raw, parts = said.ranked
            cases = said.cases.view(f"S{said.cases.itemsize}")  # h5py marks its own type
            values = (said.labels, cases, raw, parts)
            arrays |= {f"{part}_{key}": v for key, v in zip(KEYS, values, strict=True)}
    write_arrays(folder / "predictions.npz", arrays)


def load_says(folder: Path, config: StackConfig) -> Says:
    """Read what a stack said of the run's cases; raise StackError when that is missing or damaged."""
    stored = read_arrays(folder / "predictions.npz")

    def said(part: str) -> Predictions:
        labels, cases, raw, parts = (stored[f"{part}_{key}"] for key in KEYS)
        return unfinished((labels, cases), raw, parts)

    if "test_raw" not in stored:
        raise StackError(f"{folder} has no test rows", "delete it and run 'stacker stack CONFIG' again")
    development = said("development") if "development_raw" in stored else None
    areas = tuple(float(area) for area in stored["areas"])
    return conclude(config, development, said("test"), areas)


Line = list[object]


def write_predictions(
    path: Path,
    models: Mapping[str, Predictions],
    rows: Rows,
    made_by: np.ndarray | None,
    manifest: Manifest,
    split: str,
) -> None:
    """Publish what models say of some rows, by image and by case; `made_by` (N,) is each row's fold."""
    folds = np.full(len(rows), "") if made_by is None else made_by
    images = [image.decode() for image in rows.image_id]
    _write(path, ("image_id", images), models, folds, manifest.classes, split)
    by_name = {name: by_case(said) for name, said in models.items()}
    whole = {name: said for name, said in by_name.items() if said is not None}
    beside = path.with_name(f"{path.stem}_cases.csv")
    if len(whole) < len(models) or manifest.unit == "image":
        beside.unlink(missing_ok=True)
        return
    _, first, place, counts = np.unique(
        rows.case_id, return_index=True, return_inverse=True, return_counts=True
    )
    straddles = np.bincount(place, folds != folds[first][place]) > 0  # in a split by image
    of_cases = np.where(straddles, "", folds[first])
    _write(beside, ("images", counts.tolist()), whole, of_cases, manifest.classes, split)


def _write(
    path: Path,
    first: tuple[str, Sequence[object]],
    models: Mapping[str, Predictions],
    folds: np.ndarray,
    classes: Sequence[str],
    split: str,
) -> None:
    """Publish a table of what models say; its first column has a name and a value (N,) for each row."""
    title, values = first
    raw, shares = [f"raw_{name}" for name in classes], [f"p_{name}" for name in classes]
    header = [title, "case_id", "label", "model", "fold", "cut", "part", *raw, *shares]
    with publish(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "threshold", "predicted", "split"])
        for name, said in models.items():
            for i, line in _lines(name, said, folds, classes):
                writer.writerow([values[i], *line, split])


def _lines(
    name: str, said: Predictions, folds: np.ndarray, classes: Sequence[str]
) -> Iterator[tuple[int, Line]]:
    """Yield the number and the line of every row, cut by cut."""
    threshold = np.broadcast_to(np.nan if said.threshold is None else said.threshold, len(said.labels))
    predicted = said.predicted
    for number, (raw_NK, part_N) in enumerate(zip(*said.ranked, strict=True)):
        for i, case in enumerate(said.cases):
            who: Line = [case.decode(), classes[said.labels[i]], name, folds[i], number, int(part_N[i])]
            shares = [repr(float(share)) for share in (*raw_NK[i], *said.probabilities[i])]
            level = "" if np.isnan(threshold[i]) else repr(float(threshold[i]))
            yield i, [*who, *shares, level, classes[predicted[i]]]
