"""What a row weighs: of a rare class as much more as it is rarer, so that no class is drowned."""

from __future__ import annotations

import numpy as np

from stacker.errors import StackError


def count_classes(labels: np.ndarray) -> int:
    """Return how many classes the labels have; raise StackError when one between has no row."""
    counts = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
    if len(counts) < 2 or not counts.all():
        found = ", ".join(f"{count} of class {number}" for number, count in enumerate(counts)) or "none"
        raise StackError(
            f"a meta-learner needs rows of every class: found {found}, expected some of each of at "
            "least two; look at the split with 'stacker data audit', or take fewer folds"
        )
    return len(counts)


def class_weights(labels: np.ndarray, balance: bool) -> np.ndarray:
    """Return the weight (K,) of each class: all classes weigh the same in sum, or all rows do."""
    classes = count_classes(labels)
    if not balance:
        return np.ones(classes)
    weights: np.ndarray = len(labels) / (classes * np.bincount(labels))
    return weights
