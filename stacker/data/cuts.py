"""Cuts of rows: whole groups, every class on each side, by the assignment of the run's own split.

So are cut the out-of-fold estimate of a meta-learner, the inner validation of learners that stop early,
and the shallow models of the audit: by case, or by what the run's split goes by.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from stacker.data.assignment import assign, group_contents
from stacker.errors import DataError


def cut(labels: np.ndarray, groups: np.ndarray, parts: int, seed: int) -> np.ndarray | None:
    """Return the part (N,) of every row, whole groups together and every class in every part.

    There are `parts` of them, or as many as the rarest class has groups. None where two are too many.
    """
    return _cut(labels, groups, (1.0,) * parts, seed)


def validation_rows(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray | None:
    """Return a mask (N,) of the rows that are kept from learning, to say when to stop.

    Without groups every row stands for itself. None where a class has too few groups for two sides.
    """
    if groups is None:
        groups = np.arange(len(labels))
    parts = _cut(labels, groups, (1 - share, share), seed)
    return None if parts is None else parts == 1


def _cut(
    labels: np.ndarray, groups: np.ndarray, shares: tuple[float, ...], seed: int
) -> np.ndarray | None:
    """Return a cut that was made before or is made now; only the order of the names decides it."""
    codes = (
        np.unique(list(map(str, names.tolist())), return_inverse=True)[1] for names in (labels, groups)
    )
    return _remembered(*(code.astype(np.int32).tobytes() for code in codes), shares, seed)


@lru_cache(maxsize=128)
def _remembered(labels: bytes, groups: bytes, shares: tuple[float, ...], seed: int) -> np.ndarray | None:
    """Return a cut, read-only: every entry of a comparison asks for the same ones."""
    names = [f"{code:09d}" for code in np.frombuffer(groups, np.int32)]
    contents = group_contents([f"{code:09d}" for code in np.frombuffer(labels, np.int32)], names)
    carriers = Counter(label for content in contents.values() for label in content.images)
    possible = min(len(shares), *carriers.values())
    if possible < 2:
        return None
    numbered = {str(number): share for number, share in enumerate(shares[:possible])}
    try:
        parts = assign(contents, numbered, np.random.default_rng(seed))
    except DataError:
        return None
    home = {group: int(part) for part, members in parts.items() for group in members}
    rows = np.array([home[name] for name in names], dtype=np.int16)
    rows.setflags(write=False)
    return rows
