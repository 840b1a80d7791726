"""What is left of a result once it is one of many.

The best of fifty entries is the luckiest of them. Its p-value comes from labels that were permuted
within folds, the same for all entries: how often would the best of all be as good? Its AUC is corrected
by making the choice again in every draw of cases, and looking at the cases that were not drawn
(Tsamardinos et al. 2018). Intervals of many differences are made to hold together (`influence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from stacker.scores.bootstrap import ALIKE, Carriers, Resampling, draw_cases, number, rounded
from stacker.scores.influence import (
    Influence,
    around,
    detectable,
    difference_of_areas,
    joint_quantile,
    quantile,
)
from stacker.scores.metrics import weighted_scores
from stacker.scores.predictions import Predictions

CHANCE, LEAST_LEAK, SURE = 0.5, 0.02, 0.9995
NEGLIGIBLE = 0.01  # a gain in AUC below which two models are as good as each other
COLUMNS = (
    *("auc_low", "auc_high", "auc_low_alone", "auc_high_alone"),
    *("auc_withheld", "auc_negligible", "auc_detectable"),
)


@dataclass(frozen=True)
class Gains:
    """Paired differences in AUC by image, and the quantile by which their intervals hold together."""

    of_pair: Mapping[tuple[str, str], Influence | None]
    carriers: Mapping[str, Carriers]
    quantile: float

    def row(self, pair: tuple[str, str]) -> dict[str, Any]:
        """Return a difference as columns; the interval is that of one among many."""
        gain, carriers = self.of_pair[pair], self.carriers[pair[0]]
        if gain is None:
            return row_of_gain(None, None, 1, self.quantile, carriers)
        return row_of_gain(gain.area, gain.error, gain.freedom, self.quantile, carriers)

    def row_of(self, first: str, gain: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same columns of a model's difference whose error was had by draws."""
        carriers = self.carriers[first]
        freedom = carriers.freedom("auc")
        return row_of_gain(gain["difference"], gain["error"], freedom, self.quantile, carriers)


def gains(how: Resampling, models: Mapping[str, Predictions], pairs: Sequence[tuple[str, str]]) -> Gains:
    """Return what the first of each pair gains over the second."""
    of_pair = {pair: difference_of_areas(models[pair[0]], models[pair[1]]) for pair in pairs}
    carriers = {first: how.carriers(models[first]) for first, _ in pairs}
    known = [gain for gain in of_pair.values() if gain is not None]
    return Gains(of_pair, carriers, joint_quantile(known))


def row_of_gain(
    value: float | None, error: float | None, freedom: float, joint: float, carriers: Carriers
) -> dict[str, Any]:
    """Return a gain in AUC with its intervals, alone and as one of many, and what follows from them.

    `auc_negligible` is whether it is shown to be below 0.01, `auc_detectable` the gain that these cases
    would have shown four times of five.
    """
    row: dict[str, Any] = {"auc_difference": number(value), **dict.fromkeys(COLUMNS)}
    why = carriers.why_not("auc")
    if value is None or error is None or not error > 0:
        return row | {"auc_withheld": why or ALIKE}
    if why is not None:
        return row | {"auc_withheld": why}
    alone = rounded(around(value, error, quantile(freedom)))
    together = rounded(around(value, error, max(joint, quantile(freedom))))
    row |= {"auc_low": together[0], "auc_high": together[1]}
    row |= {"auc_low_alone": alone[0], "auc_high_alone": alone[1]}
    row["auc_negligible"] = together[1] < NEGLIGIBLE
    row["auc_detectable"] = round(detectable(error, freedom), 4)
    return row


def null_rows(
    observed: Mapping[str, float], draws: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """Return a row per entry and control: the null, its p-value, and that of the best of all entries.

    `observed` are the entries' AUCs, `draws` those under each kind of control by entry. The permuted
    labels of a draw are the same for all entries, hence the largest of a draw is one of many, too.
    """
    rows = []
    for kind, by_entry in draws.items():
        known = {name: np.asarray(values, dtype=float) for name, values in by_entry.items()}
        counts = {len(values) for values in known.values()}
        largest = None
        if len(counts) == 1:
            every = np.stack(list(known.values()))  # where some entry has a value
            largest = np.nanmax(every[:, np.isfinite(every).any(axis=0)], axis=0)
        for name, values in known.items():
            row = {"control": kind, "model": name, "draws": len(values), "auc": observed.get(name)}
            some = values[np.isfinite(values)]
            if not len(some):
                continue
            low, high = np.quantile(some, [0.025, 0.975])
            row |= {"null_auc": number(some.mean()), "null_low": number(low), "null_high": number(high)}
            row["p"] = p_of(observed.get(name), some)
            row["p_of_many"] = None if largest is None else p_of(observed.get(name), largest)
            rows.append(row)
    return rows


def p_of(observed: float | None, null: np.ndarray) -> float | None:
    """Return how likely chance is to be as good: (1 + as good) / (1 + draws)."""
    if observed is None or not np.isfinite(observed):
        return None
    return round(float((1 + (null >= observed).sum()) / (1 + len(null))), 4)


def at_chance(name: str, part: str, values: Sequence[float]) -> dict[str, Any] | None:
    """Say what the draws of a control come to that has nothing to learn, and whether they are off.

    It is off whose mean lies away from a half, on either side, by more than a t-interval of 99.9 % and
    by more than 0.02: below chance, a learner says the opposite of something that it should not know.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return None
    error = known.std(ddof=1) / np.sqrt(len(known))
    limit = max(float(stats.t.ppf(SURE, len(known) - 1) * error), LEAST_LEAK)
    mean = float(known.mean())
    row = {"control": name, "part": part, "draws": len(known), "auc": round(mean, 4)}
    return row | {"limit": round(limit, 4), "leaks": bool(abs(mean - CHANCE) > limit)}


def choose(models: Mapping[str, Predictions], draws: int, seed: int) -> dict[str, Any] | None:
    """Return the entry of the highest AUC, and its AUC once the choice is made in every draw of cases.

    `chosen` is in which share of the draws it was chosen. None where there is nothing to choose from.
    """
    if len(models) < 2:
        return None
    cases = next(iter(models.values())).cases
    _, unit = np.unique(cases, return_inverse=True)
    drawn = draw_cases(unit, draws, seed)
    outside = (drawn == 0).astype(np.uint16)
    names = list(models)
    every, inside, left = (
        np.stack([weighted_scores(models[n], unit, weights, {"auc"})["auc"] for n in names])
        for weights in (np.ones_like(drawn[:1]), drawn, outside)
    )
    usable = np.isfinite(inside).all(axis=0)
    if not usable.any() or not np.isfinite(every).any():
        return None
    best = inside[:, usable].argmax(axis=0)
    kept = left[:, usable][best, np.arange(len(best))]
    first = int(np.nanargmax(every[:, 0]))
    return {
        "model": names[first],
        "auc": number(every[first, 0]),
        "auc_corrected": number(np.nanmean(kept)) if np.isfinite(kept).any() else None,
        "chosen": round(float((best == first).mean()), 3),
        "of": len(names),
    }
