"""Scores, in plain numpy, for many weightings of the images at once.

Every score takes weights (R, N): one row of ones gives the score itself, and R rows of case counts give
R bootstrap replicates in the same pass (`bootstrap`). Most scores are functions of sums over images, so
that a replicate is a row of case counts times a small table of sums per case.

The areas need the order of the images, too. `auc` compares images of one part, because two scores by
different fits are numbers on different scales, and `auc_pooled` all images of a cut. The ROC area counts
pairs of one part, all parts together (LeDell et al. 2015 weigh parts alike; by pairs, small parts do not
weigh more than they know), the average precision ranks every positive in its own part. A bootstrap asks
for the areas of the same order again and again: all that does not depend on the weights is worked out
once, and a draw costs two thin matrix products.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from stacker.scores.predictions import BINS, Predictions, bin_of, stated

Scores = dict[str, np.ndarray]
Wanted = Collection[str] | None
Parted: TypeAlias = "list[tuple[np.ndarray, Ranking]]"
AREAS = ("auc", "auc_pooled", "average_precision")
TABLE = 8_000_000  # numbers in a table of thresholds x units
FEW = 256  # units up to which such a table is faster than running sums over the images
CHUNK = 1_000_000  # weights held at once, replicates x images: few enough to stay near the processor


def scores(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> Scores:
    """Return every score for each row of weights; a score that is undefined is NaN."""
    rows = np.arange(len(labels))
    return weighted_scores(Predictions(labels, rows, probabilities), rows, weights)


def area_within(predictions: Predictions) -> float:
    """Return the area under the ROC curve over pairs of images of one part.

    Beyond two classes it is the mean of one against the rest.
    """
    rows = np.arange(len(predictions.labels))
    return float(weighted_scores(predictions, rows, np.ones((1, len(rows))), {"auc"})["auc"][0])


def weighted_scores(
    predictions: Predictions, unit: np.ndarray, weights: np.ndarray, wanted: Wanted = None
) -> Scores:
    """Return the scores for each row of weights (R, U), where image i has the weight of its unit[i]."""
    classes, units = predictions.probabilities.shape[1], weights.shape[1]
    sums = _sums(predictions, unit, units)
    asked = set(AREAS if wanted is None else wanted) & set(AREAS)
    exact = np.float32 if weights.dtype.kind in "ui" else np.float64  # counts are, in either
    rankings = _rankings(predictions, unit, asked, exact)
    pieces = []
    step = max(1, CHUNK // max(len(unit), units))
    for start in range(0, len(weights), step):
        some = weights[start : start + step].astype(np.float64)
        values = _from_sums(some @ sums, classes)
        for names, by_class in rankings.items():
            areas = np.array([_areas(ranking, some) for ranking in by_class])
            area, precision = _mean_of_defined(areas.transpose(1, 2, 0))
            values |= {name: precision if name == "average_precision" else area for name in names}
        pieces.append({s: v for s, v in values.items() if wanted is None or s in wanted})
    return {score: np.concatenate([piece[score] for piece in pieces]) for score in pieces[0]}


def _sums(predictions: Predictions, unit: np.ndarray, units: int) -> np.ndarray:
    """Return what most scores are made of, added up by unit: confusion, squares, gaps by bin."""
    classes = predictions.probabilities.shape[1]
    cell = (unit * classes + predictions.labels) * classes + predictions.predicted
    confusion = np.bincount(cell, minlength=units * classes**2).reshape(units, -1)
    errors = predictions.probabilities - np.eye(classes)[predictions.labels]
    squares = np.bincount(unit, (errors**2).sum(axis=1) / 2, units)
    confidence, came_true = stated(predictions)
    cell = unit * BINS + bin_of(confidence)
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


def _rankings(
    predictions: Predictions, unit: np.ndarray, asked: Collection[str], dtype: DTypeLike
) -> dict[tuple[str, ...], list[Parted]]:
    """Return the rankings that the areas asked for are made of, class by class.

    Within parts, and of whole cuts; where a cut is one part, these are the same.
    """
    if not asked:
        return {}
    raw_RNK, parts_RN = predictions.ranked
    classes, cuts = raw_RNK.shape[2], len(raw_RNK)
    unit_M, labels_M = np.tile(unit, cuts), np.tile(predictions.labels, cuts)
    cut_M = np.repeat(np.arange(cuts), raw_RNK.shape[1])
    part_M = np.unique(np.stack([cut_M, parts_RN.ravel()]), axis=1, return_inverse=True)[1].ravel()

    def of(part_M: np.ndarray) -> list[Parted]:
        targets = [1] if classes == 2 else range(classes)
        return [_parted(labels_M == k, raw_RNK[..., k].ravel(), part_M, unit_M, dtype) for k in targets]

    within = ("auc", "average_precision")
    if len(np.unique(part_M)) == cuts:
        return {(*within, "auc_pooled"): of(part_M)}
    rankings = {within: of(part_M)} if set(within) & set(asked) else {}
    return rankings | ({("auc_pooled",): of(cut_M)} if "auc_pooled" in asked else {})


def _parted(
    positive: np.ndarray, score: np.ndarray, part: np.ndarray, unit: np.ndarray, dtype: DTypeLike
) -> Parted:
    """Return a ranking of each part, with the units whose weights its images have, all (M,)."""
    order, parted = np.argsort(part, kind="stable"), []
    for rows in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        units, place = np.unique(unit[rows], return_inverse=True)
        parted.append((units, Ranking(positive[rows], score[rows], place, len(units), dtype)))
    return parted


def _areas(parted: Parted, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the area under the ROC curve and the average precision for weights (R, units)."""
    sums = [ranking.sums(weights[:, units]) for units, ranking in parted]
    wins, pairs, precision, positives = (
        np.sum(of_parts, axis=0) for of_parts in zip(*sums, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / pairs, precision / positives


class Ranking:
    """Images of one part, ordered by their score for one class.

    The ROC area is the chance that a positive outscores a negative, ties counting half. With few units
    it is a quadratic form in their weights: `wins[c, d]` counts how often the positives of unit c
    outscore the negatives of unit d. The average precision adds up the precision at each threshold that
    gains positives, in the measure in which it gains them.
    """

    def __init__(
        self, positive: np.ndarray, score: np.ndarray, unit: np.ndarray, units: int, dtype: DTypeLike
    ) -> None:
        order = np.argsort(-score, kind="stable")
        self.positive, self.unit = positive[order], unit[order]
        ordered = score[order]
        last_of_ties = np.r_[ordered[1:] != ordered[:-1], True]
        self.ends = np.flatnonzero(last_of_ties)
        self.few = units <= FEW and units * len(self.ends) <= TABLE
        if not self.few:
            return
        cell = (np.cumsum(last_of_ties) - last_of_ties) * units + self.unit
        gained, lost = (
            np.bincount(cell[side], minlength=len(self.ends) * units).reshape(-1, units).astype(dtype)
            for side in (self.positive, ~self.positive)
        )
        true, false = np.cumsum(gained, axis=0), np.cumsum(lost, axis=0)
        self.totals = np.stack([true[-1], false[-1]], axis=1).astype(np.float64)
        gains = gained.any(axis=1)
        self.true, self.both = true[gains], (true + false)[gains]
        self.wins = (gained[gains].T @ (false[-1] - false + lost / 2)[gains]).astype(np.float64)

    def sums(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return won pairs, pairs, summed precision and positives (R,) for weights (R, units).

        Parts are put together by adding these up.
        """
        if self.few:
            positives, negatives = (weights @ self.totals).T
            wins = np.einsum("ru,ru->r", weights @ self.wins, weights)
            columns = weights.T.astype(self.true.dtype)
            true, both = self.true @ columns, self.both @ columns
        else:
            true, both = self._running(weights)
            false = both - true
            positives, negatives = true[-1].copy(), false[-1]
            beaten = negatives - (false + _before(false)) / 2
            wins = np.einsum("tr,tr->r", true - _before(true), beaten)
        gained = true - _before(true)
        np.divide(true, both, out=true, where=both > 0)
        true *= gained
        # Among positives alone every ranking is precise, which says nothing of the model.
        told = negatives > 0
        precision = np.where(told, true.sum(axis=0, dtype=np.float64), 0)
        return wins, positives * negatives, precision, np.where(told, positives, 0)

    def _running(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of the positives, and of all, from the top down to each threshold."""
        weight = np.ascontiguousarray(weights.T)[self.unit]
        both = np.cumsum(weight, axis=0)[self.ends]
        weight[~self.positive] = 0
        return np.cumsum(weight, axis=0)[self.ends], both


def _before(running: np.ndarray) -> np.ndarray:
    """Return each running sum's predecessor, nought before the first."""
    shifted = np.zeros_like(running)
    shifted[1:] = running[:-1]
    return shifted
