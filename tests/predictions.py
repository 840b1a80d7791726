"""What the tests of scores share: predictions of all kinds, and Obuchowski's variance by definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from stacker.scores.predictions import Predictions


def two(share: np.ndarray) -> np.ndarray:
    """Return the probabilities of two classes from those of class 1, along a new last axis."""
    share = np.asarray(share, dtype=float)
    return np.stack([1 - share, share], axis=-1)


def random_predictions(classes: int, seed: int, images: int = 60) -> Predictions:
    """Return predictions with ties, better than chance, of twelve cases of one class each."""
    rng = np.random.default_rng(seed)
    cases = rng.integers(12, size=images)
    labels = cases % classes
    logits = rng.normal(size=(images, classes)).round(1)
    logits[np.arange(images), labels] += 0.7
    powers = np.exp(logits)
    return Predictions(labels, cases, powers / powers.sum(axis=1, keepdims=True))


def parted_predictions(
    classes: int, seed: int, cuts: int = 2, images: int = 60, by_case: bool = False
) -> Predictions:
    """Return the same with raw scores in eighths of an own scale for each of three parts a cut.

    The last part of the first cut has one class alone, unless parts hold whole cases.
    """
    p, rng = random_predictions(classes, seed, images), np.random.default_rng(seed + 1000)
    parts = (
        rng.integers(3, size=(cuts, 12))[:, p.cases] if by_case else rng.integers(3, size=(cuts, images))
    )
    if not by_case:
        parts[0, (parts[0] == 2) & (p.labels != 0)] = 0
    raw = rng.integers(0, 6, size=(cuts, images, classes)) / 8
    raw[:, np.arange(images), p.labels] += 1 / 8
    return replace(p, raw=raw + parts[..., None], parts=parts)


def predictions(labels: np.ndarray, share: np.ndarray, cases: np.ndarray | None = None) -> Predictions:
    """Return predictions from the probability of class 1; every image is a case unless told."""
    share = np.asarray(share, dtype=float)
    cases = np.arange(len(labels)) if cases is None else cases
    return Predictions(np.asarray(labels), cases, np.stack([1 - share, share], axis=1))


def clustered_pair(seed: int, cases: int = 30, mixed: bool = False) -> tuple[Predictions, Predictions]:
    """Return two models that share a case's difficulty; with ties, and cases of several sizes."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(cases), rng.integers(1, 9, cases))
    labels = rng.integers(2, size=len(of)) if mixed else of % 2
    shared = labels + rng.normal(size=cases)[of]
    shares = [
        stats.norm.cdf(shared + rng.normal(size=cases)[of] + rng.normal(size=len(of))).round(2)
        for _ in range(2)
    ]
    return predictions(labels, shares[0], of), predictions(labels, shares[1], of)


def brute_variance(first: Predictions, second: Predictions, cases: np.ndarray) -> float:
    """Return Obuchowski's variance of the difference, pair by pair and cluster by cluster."""
    labels = first.labels
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positives), len(negatives)
    wins = np.zeros((2, m, n))
    for t, share in enumerate((first.probabilities[:, 1], second.probabilities[:, 1])):
        for a, i in enumerate(positives):
            for b, j in enumerate(negatives):
                wins[t, a, b] = 1.0 if share[i] > share[j] else 0.5 if share[i] == share[j] else 0.0
    gap = wins[0] - wins[1]
    theta = gap.mean()
    of_positive, of_negative = gap.mean(axis=1), gap.mean(axis=0)
    clusters = np.unique(cases)
    x = np.array([(of_positive - theta)[cases[positives] == c].sum() for c in clusters])
    y = np.array([(of_negative - theta)[cases[negatives] == c].sum() for c in clusters])
    i10, i01, count = len(set(cases[positives])), len(set(cases[negatives])), len(clusters)
    s10 = i10 / ((i10 - 1) * m) * (x**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (y**2).sum()
    s11 = count / (count - 1) * (x * y).sum()
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))
