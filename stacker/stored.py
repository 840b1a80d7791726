"""A fitted stack on disk: its members, what it says of itself, and what it said of the run's cases.

    stack/<meta>/stack.json           what it was fitted with and on, its calibration and its threshold
                 <scope>-<seed>.npz   scales and components of one member
                 <scope>-<seed>.*     its meta-learner: skops, UBJSON, safetensors or JSON, never pickle
                 says.npz             probabilities and thresholds of development and test rows
                 predictions.csv      the same of the test rows, to be read

`stack.json` is written last and removed first, so that it never speaks of other files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacker import meta
from stacker.blocks import Arrays, Blocks, assemble, resolve
from stacker.calibration import Calibrator
from stacker.errors import RunError, StackError
from stacker.fitting import Design, Finish, Fitted, Member, Says, of_scope, say
from stacker.matrix import InMemory
from stacker.metrics import Predictions
from stacker.preparation import Preparation
from stacker.run import Run, digest, read_arrays, read_json, write_arrays, write_json
from stacker.settings import StackConfig


@dataclass(frozen=True)
class Stack:
    """A fitted stack that was read back: it predicts from what base models say of new images."""

    name: str
    facts: dict[str, Any]
    blocks: Blocks
    members: dict[str, list[Member]]
    finish: Finish

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

    def predict_proba(self, by_fold: Mapping[str, Mapping[str, Arrays]]) -> np.ndarray:
        """Return calibrated probabilities (N, K) from the arrays of every fold's backbones.

        They are averaged over the folds, each of which sees its own features: averaged features would
        be smoother than those that the stack was fitted on.
        """
        shares = []
        for fold in self.folds:
            values, _ = assemble(by_fold[fold], self.classes, self.blocks)
            found = say(of_scope(self.members, fold), InMemory(values))
            shares.append(self.finish.calibrator.apply(found))
        mean: np.ndarray = np.mean(shares, axis=0)
        return mean

    def decide(self, shares: np.ndarray) -> np.ndarray:
        """Return the class (N,) of each row: by the threshold where there are two classes."""
        rows = np.zeros(len(shares), dtype=np.int64)
        return Predictions(rows, rows, shares, self.finish.threshold).predicted


def save_stack(
    folder: Path, design: Design, fitted: Fitted, identity: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Publish a fitted stack; `identity` decides whether it is up to date, `facts` are for its users."""
    (folder / "stack.json").unlink(missing_ok=True)
    for stale in folder.glob("*-[0-9]*.*"):  # members of other seeds, or of other scopes
        stale.unlink()
    for scope, members in fitted.members.items():
        for number, member in enumerate(members):
            stem = folder / f"{scope}-{number}"
            member.preparation.save(stem.with_name(f"{stem.name}.npz"))
            meta.save_meta(member.learner, stem)
    save_says(folder, fitted.says)
    finish = fitted.says.finish
    content = {
        "digest": digest(identity),
        **identity,
        **facts,
        "members": {scope: len(members) for scope, members in fitted.members.items()},
        "calibrator": finish.calibrator.as_dict(),
        "threshold": finish.threshold,
        "settings": design.config.model_dump(mode="json"),
        "columns_used": fitted.columns,
        "seeds_auc": [round(each, 4) for each in fitted.says.seeds],
        "fit_seconds": round(fitted.fit_seconds, 3),
        "predict_seconds": round(fitted.predict_seconds, 3),
    }
    write_json(folder / "stack.json", content)


def is_current(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Say whether a stack was fitted with just these settings on just these caches."""
    path = folder / "stack.json"
    return path.exists() and bool(read_json(path).get("digest") == digest(identity))


def load_stack(run: Run, name: str, trusted: Sequence[str] = ()) -> Stack:
    """Read a fitted stack; raise StackError when a file of it is missing or strange."""
    folder, facts = run.stack_folder(name), stack_facts(run, name)
    config = StackConfig.model_validate(facts["settings"])
    members = {
        scope: [_load_member(folder / f"{scope}-{n}", name, config, trusted) for n in range(count)]
        for scope, count in facts["members"].items()
    }
    finish = Finish(Calibrator.from_dict(facts["calibrator"]), facts["threshold"])
    return Stack(name, facts, resolve(facts["features"], config), members, finish)


def _load_member(stem: Path, name: str, config: StackConfig, trusted: Sequence[str]) -> Member:
    preparation = Preparation.load(stem.with_name(f"{stem.name}.npz"))
    return Member(preparation, meta.load_meta(name, config, stem, preparation.columns, trusted))


def stack_facts(run: Run, name: str) -> dict[str, Any]:
    """Return what a fitted stack says of itself; raise RunError when there is none."""
    path = run.stack_folder(name) / "stack.json"
    if not path.exists():
        raise RunError(f"{path}: no such meta-learner; run 'stacker stack CONFIG --meta {name}' first")
    facts: dict[str, Any] = read_json(path)
    if "calibrator" not in facts:
        raise RunError(f"{path} was written by an older version; run 'stacker stack CONFIG' again")
    return facts


def fitted_names(run: Run) -> list[str]:
    """Return the names of all stacks of a run, those of `stack.meta` first."""
    found = {path.parent.name for path in run.path.glob("stack/*/stack.json")}
    first = [name for name in run.config.stack.meta if name in found]
    return [*first, *sorted(found - set(first))]


def default_meta(run: Run) -> str:
    """Return the first of `stack.meta` that is fitted, or else any other that is."""
    names = fitted_names(run)
    if not names:
        raise RunError(f"{run.path}: no meta-learner is fitted yet; run 'stacker stack CONFIG' first")
    return names[0]


def save_says(folder: Path, says: Says) -> None:
    """Publish what a model says of the run's cases, to be read again to the bit."""
    arrays = {f"test_{key}": value for key, value in _as_arrays(says.test).items()}
    if says.development is not None:
        arrays |= {f"development_{key}": v for key, v in _as_arrays(says.development).items()}
    write_arrays(folder / "says.npz", arrays)


def _as_arrays(found: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "labels": found.labels,
        "cases": found.cases.view(f"S{found.cases.itemsize}"),  # h5py marks its own type
        "probabilities": found.probabilities,
    }
    beside = {"threshold": found.threshold, "order": found.order}
    return arrays | {name: np.asarray(value) for name, value in beside.items() if value is not None}


def load_says(folder: Path, facts: Mapping[str, Any]) -> Says:
    """Read what a stack said of the run's cases; raise StackError when that is missing or damaged."""
    found = read_arrays(folder / "says.npz")
    both = []
    for part in ("development", "test"):
        mine = {k.removeprefix(f"{part}_"): v for k, v in found.items() if k.startswith(part)}
        both.append(_predictions(mine) if mine else None)
    development, test = both
    if test is None:
        raise StackError(f"{folder} has no test rows; delete it and run 'stacker stack CONFIG' again")
    finish = Finish(Calibrator.from_dict(facts["calibrator"]), facts["threshold"])
    return Says(development, test, finish, tuple(facts["seeds_auc"]))


def _predictions(arrays: Mapping[str, np.ndarray]) -> Predictions:
    found = arrays.get("threshold")
    threshold = float(found) if found is not None and found.ndim == 0 else found
    own = (arrays["labels"], arrays["cases"], arrays["probabilities"])
    return Predictions(*own, threshold, arrays.get("order"))
