"""Splits of stage three's own rows: whole cases, every class on each side.

The out-of-fold estimate of a meta-learner and the inner validation of those that stop early both cut the
development rows; both go by case (or by what the run's split goes by), with the assignment that the
run's own split was made with.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from stacker.data.assignment import Contents, assign
from stacker.errors import DataError
from stacker.files import digest

MOST_CUTS = 256


def cut(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray | None:
    """Return the part (N,) of every row, whole groups together and every class in every part.

    There are `parts` of them, or as many as the rarest class has groups. None where two are too many.
    """
    return _remembered(labels, groups, (1.0,) * parts, seed)


def validation_rows(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray | None:
    """Return a mask (N,) of the rows that are kept from learning, to say when to stop.

    Without groups every row stands for itself. None where a class has too few groups for two sides.
    """
    if groups is None:
        groups = np.arange(len(labels))
    found = _remembered(labels, groups, (1 - share, share), seed)
    return None if found is None else found == 1


_cuts: dict[str, np.ndarray | None] = {}  # every entry of a comparison makes the same ones


def _remembered(
    labels: np.ndarray, groups: np.ndarray, shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    """Return a cut, read-only, that was made before or is made now."""
    names = [str(group) for group in groups.tolist()]
    key = digest([labels.tolist(), names, shares, seed])
    if key not in _cuts:
        while len(_cuts) >= MOST_CUTS:
            del _cuts[next(iter(_cuts))]
        _cuts[key] = _cut(labels.tolist(), names, shares, seed)
    return _cuts[key]


def _cut(
    labels: list[int], groups: list[str], shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    images: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        images[group][str(label)] += 1
    contents = {group: Contents(dict(found), "") for group, found in images.items()}
    carriers = Counter(label for found in images.values() for label in found)
    possible = min(len(shares), *carriers.values())
    if possible < 2:
        return None
    named = {str(number): share for number, share in enumerate(shares[:possible])}
    try:
        parts = assign(contents, named, np.random.default_rng(seed))
    except DataError:
        return None
    home = {group: int(part) for part, found in parts.items() for group in found}
    rows = np.array([home[group] for group in groups], dtype=np.int16)
    rows.setflags(write=False)
    return rows
