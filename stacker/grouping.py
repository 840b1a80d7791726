"""Splits of stage three's own rows: whole cases, every class on each side.

The out-of-fold estimate of a meta-learner and the inner validation of those that stop early both cut the
development rows; both go by case (or by what the run's split goes by), with the assignment that the
run's own split was made with.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import lru_cache

import numpy as np

from stacker.assignment import Contents, assign
from stacker.errors import DataError


def cut(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray | None:
    """Return the part (N,) of every row, whole groups together and every class in every part.

    There are `parts` of them, or as many as the rarest class has groups. None where two are too many.
    """
    return _cut(labels.astype(np.int64).tobytes(), _names(groups), (1.0,) * parts, seed)


def validation_rows(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray | None:
    """Return a mask (N,) of the rows that are kept from learning, to say when to stop.

    Without groups every row stands for itself. None where a class has too few groups for two sides.
    """
    if groups is None:
        groups = np.arange(len(labels))
    found = _cut(labels.astype(np.int64).tobytes(), _names(groups), (1 - share, share), seed)
    return None if found is None else found == 1


def _names(groups: np.ndarray) -> tuple[str, ...]:
    return tuple(str(group) for group in groups.tolist())


@lru_cache(maxsize=256)
def _cut(
    labels: bytes, groups: tuple[str, ...], shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    images: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in zip(np.frombuffer(labels, np.int64).tolist(), groups, strict=True):
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
    rows = np.array([home[group] for group in groups])
    rows.setflags(write=False)  # it is remembered
    return rows
