"""What a stack needs of its run, or of a pack: the right base models, and whose cases they have seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stacker.blocks import sees_frozen
from stacker.checkpoint import read_facts
from stacker.errors import BackboneError
from stacker.run import FROZEN, Run, file_sha256, read_json
from stacker.stored import Stack


def needed(stack: Stack) -> list[str]:
    """Return the base models and frozen backbones that a stack looks at, as "backbone/fold"."""
    fine_tuned = [f"{name}/{fold}" for fold in stack.folds for name in stack.backbones]
    if not sees_frozen(stack.blocks):
        return fine_tuned
    return fine_tuned + [name for name in stack.facts["checkpoints"] if name.endswith(f"/{FROZEN}")]


def base_file(run: Run, base: str) -> Path:
    """Return the file of a base model that is named "backbone/fold"."""
    return run.model_file(*base.rsplit("/", 1))


def require_checkpoints(run: Run, expected: Mapping[str, str]) -> None:
    """Raise BackboneError when a base model is not the one that the meta-learner was fitted on."""
    for base, sha256 in expected.items():
        path = base_file(run, base)
        if not path.exists():
            raise BackboneError(f"{path}: this base model is missing; run 'stacker run CONFIG' again")
        found = file_sha256(path)
        if found != sha256:
            raise BackboneError(
                f"{path} is not the base model that the meta-learner was fitted on (sha256 "
                f"{found[:12]}, expected {sha256[:12]}); run 'stacker run CONFIG' again"
            )


def fitted_cases(run: Run, stack: Stack) -> tuple[frozenset[str], bool]:
    """Return the cases that base models or stack are known to be fitted on, and whether these are all.

    All are known from the split of a run that goes by case, or from a pack that has kept them.
    """
    found, all_known = set(stack.facts.get("fitted_cases", [])), "fitted_cases" in stack.facts
    for base in needed(stack):
        found |= set(read_facts(base_file(run, base)).get("training_cases", []))
    if run.folds_file.exists():
        folds = read_json(run.folds_file)
        if folds["group"] == "case":
            parts, all_known = ("fit", "validation", "held_out"), True
            found |= {case for fold in folds["folds"] for part in parts for case in fold[part]}
    return frozenset(found), all_known
