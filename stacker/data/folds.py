"""Who is held out from whom: case-grouped, stratified, decided once and written down.

A split is a set of named parts of groups (cases, unless the config asks for slides or images), and a
list of folds. Under `crossfit` the parts are fold0 ... fold{k-1} and test, and each fold holds one part
out; under `holdout` the parts are train, stack and test, and the one fold holds `stack` out. Each fold
also names its inner validation groups: a slice of its own training part, used for early stopping and
the choice of the epoch, so that neither the held-out part nor the test set is ever consulted.

A part may also be the data set's own (`official`); a group that it has on two sides is refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stacker.config.data import FoldsConfig
from stacker.data.assignment import Contents, assign, group_contents
from stacker.data.manifest import Manifest
from stacker.errors import DataError, RunError, first_few
from stacker.files import digest, read_json, write_json

AGAIN = "restore the file, or start a new run (--set run=NAME)"


@dataclass(frozen=True)
class Fold:
    """One base model's view of the groups: `train` and `validation` train it, `held_out` never does."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """The split of a run: `group` says what a name stands for, `policy` what was asked for."""

    protocol: str
    group: str
    seed: int
    manifest_digest: str
    folds: tuple[Fold, ...]
    test: tuple[str, ...]
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a split in which a group is on two sides, whoever made it."""
        for fold in self.folds:
            seen: dict[str, str] = {}
            parts = {"train": fold.train, "validation": fold.validation, "held out": fold.held_out}
            for part, groups in {**parts, "test": self.test}.items():
                for group in groups:
                    if group in seen:
                        raise RunError(
                            f"{fold.name}: {self.group} {group} is in {seen[group]} and in {part}",
                            AGAIN,
                        )
                    seen[group] = part
        holders = Counter(group for fold in self.folds for group in fold.held_out)
        for group, count in holders.most_common(1):
            if count > 1:
                raise RunError(f"{self.group} {group} is held out by {count} folds, expected one", AGAIN)

    @cached_property
    def digest(self) -> str:
        """Stand for the whole split."""
        return digest(asdict(self))

    @property
    def leaks(self) -> bool:
        """Say whether a case may lie on both sides of the split."""
        return self.group != "case"

    @property
    def label(self) -> str:
        """Name the split for people; a split that lets a case straddle is called what it is."""
        parts = ("test", "stack") if self.protocol == "holdout" else ("test",)
        official = [part for part in parts if self.policy.get(part) == "official"]
        given = f", official {' and '.join(official)}" if official else ""
        leak = ", leaks across cases" if self.leaks else ""
        return f"{self.protocol} split by {self.group}{given}{leak}"


def fold_name(text: str) -> str:
    """Return the name of a fold that a person calls by its name or by its number."""
    return f"fold{text}" if text.isdigit() else text


def make_folds(manifest: Manifest, config: FoldsConfig, seed: int) -> Folds:
    """Split the groups of a manifest; raise DataError when a class has too few of them."""
    labels, subtypes = ([getattr(i, a) for i in manifest.images] for a in ("label", "subtype"))
    contents = group_contents(labels, manifest.groups(config.group), subtypes)
    parts = _official_parts(manifest, config)
    taken = {group for groups in parts.values() for group in groups}
    free = {group: content for group, content in contents.items() if group not in taken}
    rng = np.random.default_rng(seed)
    shares = _shares(config, parts)
    for name, groups in {**parts, **({"development": free} if shares else {})}.items():
        _require_classes(name, groups, contents, manifest.classes)
    parts |= assign(free, shares, rng, config.group)
    held_out = ["stack"] if config.protocol == "holdout" else [f"fold{i}" for i in range(config.k)]
    folds = []
    for name in held_out:
        development = [g for part in parts if part not in (name, "test") for g in parts[part]]
        inner = _inner({group: contents[group] for group in development}, config, rng)
        fold = name if config.protocol == "crossfit" else "holdout"
        names = (tuple(sorted(groups)) for groups in (inner["train"], inner["validation"], parts[name]))
        folds.append(Fold(fold, *names))
    test = tuple(sorted(parts["test"]))
    policy = config.model_dump(mode="json")
    return Folds(config.protocol, config.group, seed, manifest.digest, tuple(folds), test, policy)


def _inner(
    contents: Mapping[str, Contents], config: FoldsConfig, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Cut what trains a model into fit and validation.

    Beyond two classes, a class that one group alone carries is trained on, and is missing where the
    epoch is chosen; a test or held-out part without it would be refused.
    """
    carriers = Counter(label for content in contents.values() for label in content.images)
    single = {label for label, count in carriers.items() if count == 1}
    alone = [group for group, content in contents.items() if single & content.images.keys()]
    if len(carriers) - len(single) < 2:
        alone = []
    shares = {"train": 1 - config.validation, "validation": config.validation}
    rest = {group: content for group, content in contents.items() if group not in alone}
    inner = assign(rest, shares, rng, config.group)
    return {**inner, "train": inner["train"] + alone}


def _require_classes(
    part: str, groups: Iterable[str], contents: Mapping[str, Contents], classes: Sequence[str]
) -> None:
    """Raise DataError when an official part lacks a class: no score on it would mean anything."""
    present = {label for group in groups for label in contents[group].images}
    lacking = [label for label in classes if label not in present]
    if lacking:
        raise DataError(
            f"the {part} part has no image of {first_few(lacking)}. Was the list split without "
            "shuffling?",
            "set folds.test and folds.stack to shares instead of 'official'",
        )


def _shares(config: FoldsConfig, fixed: Mapping[str, object]) -> dict[str, float]:
    """Return the wanted size of every part that is not fixed; a fixed part takes none of the rest."""
    test = 0.0 if config.test == "official" else config.test
    if config.protocol == "crossfit":
        shares = {f"fold{i}": (1 - test) / config.k for i in range(config.k)}
    else:
        stack = 0.0 if config.stack == "official" else config.stack
        shares = {"train": 1 - test - stack, "stack": stack}
    return {name: share for name, share in {**shares, "test": test}.items() if name not in fixed}


def _official_parts(manifest: Manifest, config: FoldsConfig) -> dict[str, list[str]]:
    """Return the parts that the data set itself defines, where the config asks for them.

    Raise DataError when it has none, or when it has a group in two of them.
    """
    if config.test != "official":
        return {}
    homes: dict[str, set[str]] = defaultdict(set)
    for image, group in zip(manifest.images, manifest.groups(config.group), strict=True):
        homes[group].add(image.split)
    splits = set().union(*homes.values())
    wanted = {"test": "test"}
    if config.protocol == "holdout":
        wanted |= {"train": "train", "stack": "valid"} if config.stack == "official" else {}
    missing = sorted(set(wanted.values()) - splits)
    if missing or "" in splits:
        without = [image.id for image in manifest.images if not image.split]
        lacks = f"no image in {' and '.join(missing)}" if missing else ""
        lacks = f"{len(without)} images without a part ({first_few(without)})" if without else lacks
        raise DataError(
            f"'official' in folds uses the split of the data set, which has {lacks}",
            "set shares instead, or provide the split (breakhis: data.fold_list; csv: a column 'split'; "
            "folder: train/, val/, test/)",
        )
    both = sorted(group for group, sides in homes.items() if len(sides) > 1)
    # train and valid may share groups where both are for development
    apart = [g for g in both if "test" in homes[g] or config.stack == "official"]
    if apart:
        raise DataError(
            f"the official split has {len(apart)} of {len(homes)} {config.group}s in several parts, "
            f"e.g. {apart[0]} in {' and '.join(sorted(homes[apart[0]]))}",
            "set a share instead of 'official', or a smaller folds.group, whose results are labelled as "
            "leaking",
        )
    return {
        part: sorted(group for group, sides in homes.items() if split in sides)
        for part, split in wanted.items()
    }


def save_folds(folds: Folds, path: Path) -> None:
    """Publish the split, with its digest."""
    write_json(path, {"digest": folds.digest, **asdict(folds)})


def load_folds(path: Path, manifest: Manifest) -> Folds:
    """Reload a split verbatim; raise RunError when it was edited or is of other images."""
    try:
        content = read_json(path)
        stated = content.pop("digest")
        content["folds"] = tuple(
            Fold(f["name"], *(tuple(f[part]) for part in ("train", "validation", "held_out")))
            for f in content["folds"]
        )
        content["test"] = tuple(content["test"])
        folds = Folds(**content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} was edited and cannot be read ({error})", AGAIN) from None
    if folds.digest != stated:
        raise RunError(f"{path} was edited: its digest is {folds.digest}, expected {stated}", AGAIN)
    if folds.manifest_digest != manifest.digest:
        raise RunError(
            f"{path} belongs to manifest {folds.manifest_digest}, this run's is {manifest.digest}", AGAIN
        )
    return folds
