"""Scores, in plain numpy, for many weightings of the images at once.

Every score takes weights (R, N): one row of ones gives the score itself, and R rows of case counts give
R bootstrap replicates in the same pass (`bootstrap`). Most scores are functions of sums over images, so
that a replicate is a row of case counts times a small table of sums per case; the areas need the order
of the images too (`ranking`). `auc` compares images of one part, `auc_pooled` all images of a cut.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from stacker.scores.predictions import BINS, Predictions, Threshold, bin_of, stated
from stacker.scores.ranking import Rankings

Scores = dict[str, np.ndarray]
Wanted = Collection[str] | None
AREAS = ("auc", "auc_pooled", "average_precision")
CHUNK = 1_000_000  # weights held at once, replicates x images: few enough to stay near the processor


def scores(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, threshold: Threshold = None
) -> Scores:
    """Return every score for each row of weights; a score that is undefined is NaN."""
    rows = np.arange(len(labels))
    return weighted_scores(Predictions(labels, rows, probabilities, threshold), rows, weights)


def area_under_curve(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the ROC curve (mean of one against the rest beyond two classes)."""
    return area_within(Predictions(labels, np.arange(len(labels)), probabilities))


def area_within(found: Predictions) -> float:
    """Return the area under the ROC curve over pairs of images of one part."""
    rows = np.arange(len(found.labels))
    return float(weighted_scores(found, rows, np.ones((1, len(rows))), {"auc"})["auc"][0])


def weighted_scores(
    predictions: Predictions, unit: np.ndarray, weights: np.ndarray, wanted: Wanted = None
) -> Scores:
    """Return the scores for each row of weights (R, U), where image i has the weight of its unit[i]."""
    classes, units = predictions.probabilities.shape[1], weights.shape[1]
    sums = _sums(predictions, unit, units)
    asked = set(AREAS if wanted is None else wanted) & set(AREAS)
    exact = np.float32 if weights.dtype.kind in "ui" else np.float64  # counts are, in either
    rankings = rank(predictions, unit, asked, exact)
    pieces = []
    step = max(1, CHUNK // max(len(unit), units))
    for start in range(0, len(weights), step):
        some = weights[start : start + step].astype(np.float64)
        found = _from_sums(some @ sums, classes)
        for names, by_class in rankings.items():
            areas = np.array([ranking.areas(some) for ranking in by_class])
            area, precision = _mean_of_defined(areas.transpose(1, 2, 0))
            found |= {name: precision if name == "average_precision" else area for name in names}
        pieces.append({s: v for s, v in found.items() if wanted is None or s in wanted})
    return {score: np.concatenate([piece[score] for piece in pieces]) for score in pieces[0]}


def rank(
    predictions: Predictions, unit: np.ndarray, asked: Collection[str], dtype: type
) -> dict[tuple[str, ...], list[Rankings]]:
    """Return the rankings that the areas asked for are made of, class by class.

    Within parts, and of whole cuts; where a cut is one part, these are the same.
    """
    if not asked:
        return {}
    raw_RNK, parts_RN = predictions.ranked
    classes, cuts = raw_RNK.shape[2], len(raw_RNK)
    cut_M = np.repeat(np.arange(cuts), raw_RNK.shape[1])
    part_M = np.unique(np.stack([cut_M, parts_RN.ravel()]), axis=1, return_inverse=True)[1].ravel()

    def of(part: np.ndarray) -> list[Rankings]:
        return [
            Rankings(
                np.tile(predictions.labels == k, cuts),
                raw_RNK[..., k].ravel(),
                part,
                np.tile(unit, cuts),
                dtype,
            )
            for k in ([1] if classes == 2 else range(classes))
        ]

    within = ("auc", "average_precision")
    if len(np.unique(part_M)) == cuts:
        return {(*within, "auc_pooled"): of(part_M)}
    found = {within: of(part_M)} if set(within) & set(asked) else {}
    return found | ({("auc_pooled",): of(cut_M)} if "auc_pooled" in asked else {})


def _sums(predictions: Predictions, unit: np.ndarray, units: int) -> np.ndarray:
    """Return what most scores are made of, added up by unit: confusion, squares, gaps by bin."""
    classes = predictions.probabilities.shape[1]
    cell = (unit * classes + predictions.labels) * classes + predictions.predicted
    confusion = np.bincount(cell, minlength=units * classes**2).reshape(units, -1)
    errors = predictions.probabilities - np.eye(classes)[predictions.labels]
    squares = np.bincount(unit, (errors**2).sum(axis=1) / 2, units)
    confidence, came_true = stated(predictions)
    cell = unit * BINS + bin_of(confidence, BINS)
    gaps = np.bincount(cell, came_true - confidence, units * BINS).reshape(units, -1)
    return np.column_stack([confusion, squares, gaps])


def _from_sums(sums: np.ndarray, classes: int) -> Scores:
    confusion = sums[:, : classes**2].reshape(-1, classes, classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truly, guessed, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / truly
        others = total[:, None] - truly
        by_class = {
            "sensitivity": recall,
            "specificity": (others - guessed + hits) / others,
            "precision": hits / guessed,
            "f1": np.where(truly > 0, 2 * hits / (truly + guessed), np.nan),
        }
        return {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1) if classes == 2 else _mean_of_defined(recall),
            **{s: v[:, 1] if classes == 2 else _mean_of_defined(v) for s, v in by_class.items()},
            **{area: np.full(len(sums), np.nan) for area in AREAS},
            "brier": sums[:, -BINS - 1] / total,
            "ece": np.abs(sums[:, -BINS:]).sum(axis=1) / total,
        }


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis, leaving NaN out; NaN where nothing is defined."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)
    return mean


def recognition_rate(predictions: Predictions, case_weights: np.ndarray) -> np.ndarray:
    """Return the mean over cases of each case's image accuracy (Spanhol et al. 2016, eq. 1 and 2)."""
    _, position = np.unique(predictions.cases, return_inverse=True)
    right = predictions.predicted == predictions.labels
    rate = np.bincount(position, weights=right) / np.bincount(position)
    some = np.array_split(case_weights, -(-case_weights.size // CHUNK))
    return np.concatenate([weights @ rate / weights.sum(axis=1) for weights in some])
