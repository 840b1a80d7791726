"""Who is held out from whom: case-grouped, stratified, decided once and written down.

A split is a set of named parts of groups (cases, unless the config asks for slides or images), and a
list of folds. Under `crossfit` the parts are fold0 ... fold{k-1} and test, and each fold holds one part
out; under `holdout` the parts are train, stack and test, and the one fold holds `stack` out. Each fold
also names its inner validation groups: a slice of its own training part, used for early stopping and
the choice of the epoch, so that neither the held-out part nor the test set is ever consulted.

The assignment is our own and not scikit-learn's StratifiedGroupKFold, whose shuffling was broken for
some releases (issues 32478 and 33085) and which lets a fold come out without a class when cases are few.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stacker.config import FoldsConfig
from stacker.errors import DataError, RunError
from stacker.manifest import Manifest
from stacker.run import digest, read_json, write_json


@dataclass(frozen=True)
class Fold:
    """One base model's view of the groups: `fit` and `validation` train it, `held_out` never does."""

    name: str
    fit: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """The split of a run. `group` says what a name stands for: a case, a slide or an image."""

    protocol: str
    group: str
    seed: int
    manifest_digest: str
    folds: tuple[Fold, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a split in which a group is on two sides, whoever made it."""
        for fold in self.folds:
            seen: dict[str, str] = {}
            parts = {"fit": fold.fit, "validation": fold.validation, "held out": fold.held_out}
            for part, groups in {**parts, "test": self.test}.items():
                for group in groups:
                    if group in seen:
                        raise RunError(
                            f"{fold.name}: {self.group} {group} is in {seen[group]} and in {part}"
                        )
                    seen[group] = part

    @cached_property
    def digest(self) -> str:
        """Stand for the whole split."""
        return digest(asdict(self))

    @property
    def label(self) -> str:
        """Name the split for people; a split that lets a case straddle is called what it is."""
        leak = "" if self.group == "case" else ", leaks across cases"
        return f"{self.protocol} split by {self.group}{leak}"


def make_folds(manifest: Manifest, config: FoldsConfig, seed: int) -> Folds:
    """Split the groups of a manifest; raise DataError when a class has too few of them."""
    strata = _strata(manifest, config.group)
    sizes = Counter(manifest.groups(config.group))
    rest = 1 - config.test
    if config.protocol == "crossfit":
        held_out = [f"fold{i}" for i in range(config.k)]
        shares = dict.fromkeys(held_out, rest / config.k) | {"test": config.test}
    else:
        held_out = ["stack"]
        shares = {"train": rest - config.stack, "stack": config.stack, "test": config.test}
    rng = np.random.default_rng(seed)
    parts = assign(strata, sizes, shares, rng, config.group)
    folds = []
    for name in held_out:
        development = [g for part in shares if part not in (name, "test") for g in parts[part]]
        inner = assign(
            {group: strata[group] for group in development},
            sizes,
            {"fit": 1 - config.validation, "validation": config.validation},
            rng,
            config.group,
        )
        fold = name if config.protocol == "crossfit" else "holdout"
        names = (tuple(sorted(groups)) for groups in (inner["fit"], inner["validation"], parts[name]))
        folds.append(Fold(fold, *names))
    test = tuple(sorted(parts["test"]))
    return Folds(config.protocol, config.group, seed, manifest.digest, tuple(folds), test)


def assign(
    strata: Mapping[str, tuple[str, str]],
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    rng: np.random.Generator,
    unit: str = "case",
) -> dict[str, list[str]]:
    """Place every group in one part, class by class.

    Each part gets its share of a class's groups (largest remainder, at least one); among the parts
    with room left, a group goes where its subtype is rarest, then where most images are missing.
    Raise DataError when a class has fewer groups than there are parts.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for group in sorted(strata):
        by_label[strata[group][0]].append(group)
    parts: dict[str, list[str]] = {name: [] for name in shares}
    for label, groups in sorted(by_label.items()):
        if len(groups) < len(shares):
            raise DataError(
                f"'{label}' has {len(groups)} {unit}s, and {len(shares)} parts ({', '.join(shares)}) "
                f"need one each; lower folds.k, take folds.protocol=holdout, or add {unit}s"
            )
        room = _quotas(len(groups), shares)
        wanted = sum(sizes[group] for group in groups)
        missing = {name: wanted * share for name, share in shares.items()}
        rank = dict(zip(groups, rng.permutation(len(groups)), strict=True))
        subtypes: dict[str, Counter[str]] = {name: Counter() for name in shares}
        for group in sorted(groups, key=lambda g: (strata[g][1], -sizes[g], rank[g])):
            subtype = strata[group][1]
            open_parts = [name for name in shares if room[name] > 0]
            target = min(
                open_parts,
                key=lambda p: (subtypes[p][subtype] / shares[p], -missing[p] / shares[p]),
            )
            parts[target].append(group)
            subtypes[target][subtype] += 1
            room[target] -= 1
            missing[target] -= sizes[group]
    return parts


def _quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide `count` groups by largest remainder, leaving no part empty."""
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    quotas = {name: max(1, int(value)) for name, value in exact.items()}
    while sum(quotas.values()) != count:
        step = 1 if sum(quotas.values()) < count else -1
        movable = [name for name in shares if step > 0 or quotas[name] > 1]
        quotas[max(movable, key=lambda name: step * (exact[name] - quotas[name]))] += step
    return quotas


def _strata(manifest: Manifest, unit: str) -> dict[str, tuple[str, str]]:
    """Return each group's class (all of them, where a case has several) and most frequent subtype."""
    labels: dict[str, set[str]] = defaultdict(set)
    subtypes: dict[str, Counter[str]] = defaultdict(Counter)
    for image, group in zip(manifest.images, manifest.groups(unit), strict=True):
        labels[group].add(image.label)
        subtypes[group][image.subtype] += 1
    return {g: ("+".join(sorted(labels[g])), subtypes[g].most_common(1)[0][0]) for g in labels}


def save_folds(folds: Folds, path: Path) -> None:
    """Publish the split, with its digest."""
    write_json(path, {"digest": folds.digest, **asdict(folds)})


def load_folds(path: Path, manifest: Manifest) -> Folds:
    """Reload a split verbatim; raise RunError when it was edited or is of other images."""
    content = read_json(path)
    stated = content.pop("digest")
    content["folds"] = tuple(
        Fold(f["name"], *(tuple(f[part]) for part in ("fit", "validation", "held_out")))
        for f in content["folds"]
    )
    content["test"] = tuple(content["test"])
    folds = Folds(**content)
    if folds.digest != stated:
        raise RunError(f"{path} was edited: its digest is {folds.digest}, it states {stated}")
    if folds.manifest_digest != manifest.digest:
        raise RunError(
            f"{path} was made for manifest {folds.manifest_digest}, this run's is {manifest.digest}; "
            "start a new run"
        )
    return folds
