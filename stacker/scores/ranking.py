"""The two areas of a ranking, for many weightings of the images at once.

Images are compared within parts: two scores by different fits are numbers on different scales. The ROC
area counts pairs of one part, all parts together (LeDell et al. 2015 weigh parts alike; by pairs, small
parts do not weigh more than they know), the average precision ranks every positive in its own part.

A bootstrap of thousands of draws asks for the same two areas of the same order again and again: all that
does not depend on the weights is worked out once, and a draw costs two thin matrix products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TABLE = 8_000_000  # numbers in a table of thresholds x units
FEW = 256  # units up to which such a table is faster than running sums over the images


class Sums(NamedTuple):
    """What the areas are made of, for every draw (R,); parts are put together by adding them up."""

    wins: np.ndarray
    pairs: np.ndarray
    precision: np.ndarray
    positives: np.ndarray


class Rankings:
    """Images that are compared within parts: the areas under the two curves, for any weights.

    `unit` (M,) says whose weight each score has, `part` (M,) what it is compared with.
    """

    def __init__(
        self,
        positive: np.ndarray,
        score: np.ndarray,
        part: np.ndarray,
        unit: np.ndarray,
        dtype: Any = np.float64,
    ) -> None:
        self.parts = []
        order = np.argsort(part, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            units, place = np.unique(unit[mine], return_inverse=True)
            ranking = Ranking(positive[mine], score[mine], place, len(units), dtype)
            self.parts.append((units, ranking))

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the area under the ROC curve and the average precision for weights (R, units)."""
        every = [ranking.sums(weights[:, units]) for units, ranking in self.parts]
        wins, pairs, precision, positives = (np.sum(each, axis=0) for each in zip(*every, strict=True))
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
        self, positive: np.ndarray, score: np.ndarray, unit: np.ndarray, units: int, dtype: Any
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

    def sums(self, weights: np.ndarray) -> Sums:
        """Return won pairs, pairs, summed precision and positives for weights (R, units)."""
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
        return Sums(wins, positives * negatives, precision, np.where(told, positives, 0))

    def _running(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of the positives, and of all, from the top down to each threshold."""
        each = np.ascontiguousarray(weights.T)[self.unit]
        both = np.cumsum(each, axis=0)[self.ends]
        each[~self.positive] = 0
        return np.cumsum(each, axis=0)[self.ends], both


def _before(running: np.ndarray) -> np.ndarray:
    """Return each running sum's predecessor, nought before the first."""
    shifted = np.zeros_like(running)
    shifted[1:] = running[:-1]
    return shifted
