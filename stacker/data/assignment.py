"""Which group goes where: every part gets its share of each class's groups, subtypes and images.

The assignment is our own and not scikit-learn's StratifiedGroupKFold, whose shuffling was broken for
some releases (issues 32478 and 33085) and which lets a part come out without a class when cases are few.
It holds for data sets in which a case has one class (BreakHis) and for those in which it has several
(IDC and PatchCamelyon, which label patches).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stacker.errors import DataError, first_few, plural

MOST_TRIES = 50
SWAPS = 5000
MANY = 2000  # groups that are balanced by their number alone
SUBTYPE_WEIGHT = 0.1  # of a subtype's share of groups against a class's share of images


@dataclass(frozen=True)
class Contents:
    """What one group holds: its images by class, and its most frequent subtype."""

    images: Mapping[str, int]
    subtype: str

    @property
    def total(self) -> int:
        """Return the number of its images."""
        return sum(self.images.values())


def group_contents(
    labels: Sequence[str], groups: Sequence[str], subtypes: Sequence[str] | None = None
) -> dict[str, Contents]:
    """Return what each group holds, from the labels, groups and subtypes of the images."""
    images: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group, subtype in zip(labels, groups, subtypes or [""] * len(labels), strict=True):
        images[group][label] += 1
        kinds[group][subtype] += 1
    return {g: Contents(dict(images[g]), kinds[g].most_common(1)[0][0]) for g in images}


def assign(
    contents: Mapping[str, Contents],
    shares: Mapping[str, float],
    rng: np.random.Generator,
    unit: str = "case",
) -> dict[str, list[str]]:
    """Place every group in one part, so that each part has its share of every class's groups and images.

    A group is filed under the rarest class that it holds. Each part gets its share of the groups so
    filed (largest remainder), and a group goes where its subtype is rarest, then where most images of
    its classes are missing; then groups are swapped as long as the shares of images come nearer. Raise
    DataError when a class is in fewer groups than there are parts, or cannot be brought into every part.
    """
    if not shares:
        return {}
    carriers = Counter(label for content in contents.values() for label in content.images)
    for label, count in sorted(carriers.items()):
        if count < len(shares):
            raise DataError(
                f"'{label}' has only {plural(count, unit)}, and each of {len(shares)} parts "
                f"({', '.join(shares)}) needs one",
                f"lower folds.k, set folds.protocol=holdout, leave the class out (data.classes) or add "
                f"{unit}s",
            )
    for _ in range(MOST_TRIES):
        parts = _place(contents, shares, carriers, rng)
        if _is_complete(parts, contents, carriers):
            swapped = _swap(parts, contents, shares, rng) if len(contents) < MANY else parts
            return swapped if _is_complete(swapped, contents, carriers) else parts
    raise DataError(
        f"found no split of these {len(contents)} {unit}s into {', '.join(shares)} with every class "
        f"({first_few(sorted(carriers))}) in every part",
        f"lower folds.k or add {unit}s",
    )


def _is_complete(
    parts: Mapping[str, list[str]], contents: Mapping[str, Contents], classes: Mapping[str, int]
) -> bool:
    """Say whether every part has every class."""
    return all(
        {label for group in groups for label in contents[group].images} == classes.keys()
        for groups in parts.values()
    )


def _place(
    contents: Mapping[str, Contents],
    shares: Mapping[str, float],
    carriers: Mapping[str, int],
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Make one assignment, the large groups of a subtype more or less before the small ones."""
    filed: dict[str, list[str]] = defaultdict(list)
    for group in sorted(contents):
        filed[min(contents[group].images, key=lambda label: (carriers[label], label))].append(group)
    parts: dict[str, list[str]] = {name: [] for name in shares}
    present: dict[str, set[str]] = {name: set() for name in shares}
    missing = _shares_of_images(contents, shares)
    for label, groups in sorted(filed.items(), key=lambda item: (carriers[item[0]], item[0])):
        lacking = {name for name in shares if label not in present[name]}
        room = _quotas(len(groups), shares, lacking, rng)
        subtypes: dict[str, Counter[str]] = {name: Counter() for name in shares}
        for group in _order(groups, contents, rng):
            content = contents[group]
            lack = {p: sum(missing[p][c] * n for c, n in content.images.items()) for p in shares}
            target = min(
                (name for name in shares if room[name] > 0),
                key=lambda p: (subtypes[p][content.subtype] / shares[p], -lack[p] / shares[p]),
            )
            parts[target].append(group)
            present[target] |= content.images.keys()
            subtypes[target][content.subtype] += 1
            room[target] -= 1
            for name, number in content.images.items():
                missing[target][name] -= number
    return parts


def _shares_of_images(
    contents: Mapping[str, Contents], shares: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return how many images of each class a part should get."""
    totals: Counter[str] = Counter()
    for content in contents.values():
        totals.update(content.images)
    whole = sum(shares.values())
    return {
        part: {label: total * share / whole for label, total in totals.items()}
        for part, share in shares.items()
    }


def _order(groups: list[str], contents: Mapping[str, Contents], rng: np.random.Generator) -> list[str]:
    """Return the groups by subtype, in random order of subtypes, the larger ones likely first."""
    subtypes = sorted({contents[group].subtype for group in groups})
    rank = dict(zip(subtypes, rng.permutation(len(subtypes)), strict=True))
    noise = dict(zip(groups, np.exp(rng.normal(0, 0.5, len(groups))), strict=True))
    return sorted(groups, key=lambda g: (rank[contents[g].subtype], -contents[g].total * noise[g], g))


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


def _swap(
    parts: Mapping[str, list[str]],
    contents: Mapping[str, Contents],
    shares: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, list[str]]:
    """Swap random groups of the same classes between parts where that evens out the shares.

    What a part holds of each class's images and each subtype's groups is divided by what it should
    hold: one everywhere would be perfect, and the sum of squared differences from one is lowered.
    """
    groups = sorted(contents)
    names = list(shares)
    share_P = np.array([shares[name] for name in names]) / sum(shares.values())
    amounts_GD, weight_D = _amounts([contents[group] for group in groups])
    home_G = np.empty(len(groups), dtype=int)
    place = {group: i for i, group in enumerate(groups)}
    for number, name in enumerate(names):
        home_G[[place[group] for group in parts[name]]] = number
    held_PD = np.stack([amounts_GD[home_G == p].sum(axis=0) for p in range(len(names))])
    held_PD /= share_P[:, None]
    kinds = [frozenset(contents[group].images) for group in groups]
    for first, second in rng.integers(len(groups), size=(SWAPS, 2)):
        source, target = home_G[first], home_G[second]
        if source == target or kinds[first] != kinds[second]:
            continue
        moved_D = amounts_GD[second] - amounts_GD[first]
        before = ((held_PD[[source, target]] - 1) ** 2 @ weight_D).sum()
        change_2D = np.stack([moved_D / share_P[source], -moved_D / share_P[target]])
        after = ((held_PD[[source, target]] + change_2D - 1) ** 2 @ weight_D).sum()
        if after < before - 1e-12:
            held_PD[[source, target]] += change_2D
            home_G[first], home_G[second] = target, source
    return {
        name: [g for g, p in zip(groups, home_G, strict=True) if p == i] for i, name in enumerate(names)
    }


def _amounts(contents: list[Contents]) -> tuple[np.ndarray, np.ndarray]:
    """Return each group's part of every class's images and every subtype's groups, and their weights."""
    labels = sorted({label for content in contents for label in content.images})
    subtypes = sorted({content.subtype for content in contents})
    images_GL = np.array([[content.images.get(label, 0) for label in labels] for content in contents])
    groups_GS = np.array([[content.subtype == subtype for subtype in subtypes] for content in contents])
    amounts_GD = np.concatenate(
        [images_GL / images_GL.sum(axis=0), groups_GS / groups_GS.sum(axis=0)], 1
    )
    return amounts_GD, np.repeat([1.0, SUBTYPE_WEIGHT], [len(labels), len(subtypes)])
