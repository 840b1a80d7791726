"""Which group goes where: every part gets its share of each class's groups, subtypes and images.

The assignment is our own and not scikit-learn's StratifiedGroupKFold, whose shuffling was broken for
some releases (issues 32478 and 33085) and which lets a part come out without a class when cases are few.
It holds for data sets in which a case has one class (BreakHis) and for those in which it has several
(IDC and PatchCamelyon, which label patches).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stacker.errors import DataError
from stacker.manifest import Manifest

MOST_TRIES = 50
FULL_EFFORT = (
    20_000  # groups placed in all tries together; image-wise splits are balanced by their number
)


@dataclass(frozen=True)
class Contents:
    """What one group holds: its images by class, and its most frequent subtype."""

    images: Mapping[str, int]
    subtype: str

    @property
    def total(self) -> int:
        """Return the number of its images."""
        return sum(self.images.values())


def group_contents(manifest: Manifest, unit: str) -> dict[str, Contents]:
    """Return what each group holds: images by class, and its most frequent subtype."""
    images: dict[str, Counter[str]] = defaultdict(Counter)
    subtypes: dict[str, Counter[str]] = defaultdict(Counter)
    for image, group in zip(manifest.images, manifest.groups(unit), strict=True):
        images[group][image.label] += 1
        subtypes[group][image.subtype] += 1
    return {g: Contents(dict(images[g]), subtypes[g].most_common(1)[0][0]) for g in images}


def assign(
    contents: Mapping[str, Contents],
    shares: Mapping[str, float],
    rng: np.random.Generator,
    unit: str = "case",
) -> dict[str, list[str]]:
    """Place every group in one part, so that each part has its share of every class's groups and images.

    A group is filed under the rarest class that it holds. Each part gets its share of the groups so
    filed (largest remainder), and a group goes where its subtype is rarest, then where most images are
    missing. Of several random orders the one whose parts come nearest to their shares of images is
    taken. Raise DataError when a class is in fewer groups than there are parts, or in no order of those
    tried in every part.
    """
    if not shares:
        return {}
    carriers = Counter(label for content in contents.values() for label in content.images)
    for label, count in sorted(carriers.items()):
        if count < len(shares):
            raise DataError(
                f"'{label}' has {count} {unit}s, and {len(shares)} parts ({', '.join(shares)}) need one "
                f"each; lower folds.k, take folds.protocol=holdout, or add {unit}s"
            )
    best: dict[str, list[str]] = {}
    least = math.inf
    for _ in range(max(1, min(MOST_TRIES, FULL_EFFORT // len(contents)))):
        parts = _place(contents, shares, carriers, rng)
        cost = _imbalance(parts, contents, shares)
        if cost < least:
            best, least = parts, cost
    if not best:
        raise DataError(
            f"no split of these {len(contents)} {unit}s into {', '.join(shares)} was found that has "
            f"every class ({', '.join(sorted(carriers))}) in every part; lower folds.k or add {unit}s"
        )
    return best


def _place(
    contents: Mapping[str, Contents],
    shares: Mapping[str, float],
    carriers: Mapping[str, int],
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Make one assignment in a random order of equals."""
    filed: dict[str, list[str]] = defaultdict(list)
    for group in sorted(contents):
        filed[min(contents[group].images, key=lambda label: (carriers[label], label))].append(group)
    parts: dict[str, list[str]] = {name: [] for name in shares}
    present: dict[str, set[str]] = {name: set() for name in shares}
    whole = sum(shares.values())
    for label, groups in sorted(filed.items(), key=lambda item: (carriers[item[0]], item[0])):
        lacking = {name for name in shares if label not in present[name]}
        room = _quotas(len(groups), shares, lacking, rng)
        wanted = sum(contents[group].total for group in groups)
        missing = {name: wanted * share / whole for name, share in shares.items()}
        subtypes: dict[str, Counter[str]] = {name: Counter() for name in shares}
        rank = dict(zip(groups, rng.permutation(len(groups)), strict=True))
        order = sorted(groups, key=lambda g: (contents[g].subtype, -contents[g].total, rank[g]))
        for group in order:
            content = contents[group]
            target = min(
                (name for name in shares if room[name] > 0),
                key=lambda p: (subtypes[p][content.subtype] / shares[p], -missing[p] / shares[p]),
            )
            parts[target].append(group)
            present[target] |= content.images.keys()
            subtypes[target][content.subtype] += 1
            room[target] -= 1
            missing[target] -= content.total
    return parts


def _quotas(
    count: int, shares: Mapping[str, float], lacking: set[str], rng: np.random.Generator
) -> dict[str, int]:
    """Divide `count` groups by largest remainder; a part that lacks the class gets one if it can."""
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    least = {name: int(name in lacking and len(lacking) <= count) for name in shares}
    quotas = {name: max(least[name], int(value)) for name, value in exact.items()}
    tie = dict(zip(shares, rng.random(len(shares)), strict=True))
    while sum(quotas.values()) != count:
        step = 1 if sum(quotas.values()) < count else -1
        movable = [name for name in shares if step > 0 or quotas[name] > least[name]]
        quotas[max(movable, key=lambda name: (step * (exact[name] - quotas[name]), tie[name]))] += step
    return quotas


def _imbalance(
    parts: Mapping[str, list[str]], contents: Mapping[str, Contents], shares: Mapping[str, float]
) -> float:
    """Return how far the worst part is from its share of a class's images; infinite without a class."""
    totals: Counter[str] = Counter()
    for content in contents.values():
        totals.update(content.images)
    worst = 0.0
    for name, groups in parts.items():
        found: Counter[str] = Counter()
        for group in groups:
            found.update(contents[group].images)
        share = shares[name] / sum(shares.values())
        for label, total in totals.items():
            if not found[label]:
                return math.inf
            worst = max(worst, abs(found[label] / total - share) / share)
    return worst
