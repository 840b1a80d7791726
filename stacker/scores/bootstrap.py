"""Scores with intervals, and paired differences, when images come in cases.

Whole cases are drawn, never single images: images of one case resemble each other, and an interval that
ignores it is too narrow. The same draws serve every model, which makes the interval of a
difference a paired one. The spread of the draws is the error; the interval itself is made with
t-quantiles on the scale of log-odds, because percentiles of few cases are too short
(`docs/statistics.md` has the simulation). The area under the ROC curve has an error that needs no
draws (`influence`). Below five cases of a class no interval is given, but the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from stacker.scores.influence import (
    Influence,
    around,
    difference_of_areas,
    influence,
    on_log_odds,
    quantile,
)
from stacker.scores.metrics import CHUNK, Scores, Wanted, recognition_rate, weighted_scores
from stacker.scores.predictions import Predictions, aligned, by_case

FEWEST = 5  # cases of a class, below which nobody can say how far the next ones will differ
ALIKE = "no variation between cases"
SEVERAL_CLASSES = "some cases have images of several classes"


def draw_cases(cases: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return how often each distinct case is drawn in each bootstrap replicate, (R, cases)."""
    count = len(np.unique(cases))
    rng, shares = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = np.empty((replicates, count), dtype=np.uint16)  # numpy draws int64: gigabytes at once
    step = max(1, CHUNK // count)
    for start in range(0, replicates, step):
        rows = drawn[start : start + step]
        rows[:] = rng.multinomial(count, shares, size=len(rows))
    return drawn


def replicate(
    predictions: Predictions, case_weights: np.ndarray, wanted: Wanted = None
) -> dict[str, Scores]:
    """Return the scores, or those that are wanted, by image and by case for each row of case weights."""
    names, position = np.unique(predictions.cases, return_inverse=True)
    of_cases = {}
    if (whole := by_case(predictions)) is not None:
        of_cases = weighted_scores(whole, np.arange(len(names)), case_weights, wanted)
    of_cases["recognition_rate"] = recognition_rate(predictions, case_weights)
    return {
        "image": weighted_scores(predictions, position, case_weights, wanted),
        "case": of_cases,
    }


def points(predictions: Predictions, wanted: Wanted = None) -> dict[str, dict[str, float]]:
    """Return the scores by unit, without draws."""
    by_unit = replicate(predictions, np.ones((1, len(np.unique(predictions.cases)))), wanted)
    return {
        unit: {s: float(value[0]) for s, value in scores.items()} for unit, scores in by_unit.items()
    }


@dataclass(frozen=True)
class Carriers:
    """How many cases have images of each class: what an interval rests on."""

    counts: tuple[int, ...]
    names: tuple[str, ...]
    unit: str

    def why_not(self, score: str) -> str | None:
        """Return why a score has no interval, if so: too few cases of a class that it depends on."""
        k = self._rarest(score)
        number = self.counts[k]
        if number >= FEWEST:
            return None
        plural = "" if number == 1 else "s"
        return f"{number} {self.unit}{plural} of {self.names[k]}, {FEWEST} are needed"

    def freedom(self, score: str) -> int:
        """Return the degrees of freedom of a score's error: the cases of its rarest class, less one."""
        return max(1, self.counts[self._rarest(score)] - 1)

    def _rarest(self, score: str) -> int:
        """Return the class of the fewest cases that a score depends on."""
        one = {"sensitivity": 1, "specificity": 0} if len(self.counts) == 2 else {}
        present = [k for k, count in enumerate(self.counts) if count]  # a subtype is of one class
        return one.get(score, min(present, key=lambda k: self.counts[k]))


@dataclass(frozen=True)
class Resampling:
    """How scores get their intervals: draws of whole units, and how classes and units are called."""

    replicates: int
    seed: int
    classes: tuple[str, ...]
    unit: str = "case"

    @property
    def description(self) -> str:
        """Say for people how intervals are made."""
        return (
            f"95 %, whole {self.unit}s resampled ({self.replicates} bootstrap draws; of AUC, influence "
            "functions)"
        )

    def carriers(self, predictions: Predictions) -> Carriers:
        """Return how many cases have images of each class."""
        cases, labels = predictions.cases, predictions.labels
        counts = (len(np.unique(cases[labels == k])) for k in range(len(self.classes)))
        return Carriers(tuple(counts), self.classes, self.unit)

    def evaluate(self, models: Mapping[str, Predictions]) -> dict[str, dict[str, Any]]:
        """Return {model: {unit: {score: value, "n": N, "interval": {...}, "withheld": {...}}}}."""
        draws, result = _Draws(self.replicates, self.seed), {}
        for name, predictions in models.items():
            numbers, weights = draws.of(predictions)
            numbered, units = replace(predictions, cases=numbers), np.arange(len(weights[0]))
            by_image, by_cases = replicate(numbered, weights).values()
            area, whole = influence(numbered, numbers, len(units)), by_case(numbered)
            of_cases = None if whole is None else influence(whole, units, len(units))
            carriers = self.carriers(predictions)
            result[name] = {
                "image": _with_intervals(by_image, "image", len(numbers), carriers, area),
                "case": _with_intervals(by_cases, "case", len(units), carriers, of_cases),
                "constant_prediction": len(np.unique(predictions.predicted)) == 1,
                "constant_case_prediction": (
                    None if whole is None else len(np.unique(whole.predicted)) == 1
                ),
            }
        return result

    def evaluate_subsets(
        self, models: Mapping[str, Predictions], subsets: Mapping[str, np.ndarray]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Return {subset: what `evaluate` says of its images}; a subset (N,) of none is left out."""
        return {
            subset: self.evaluate({n: p.at(mask) for n, p in models.items()})
            for subset, mask in subsets.items()
            if mask.any()
        }

    def differences(
        self,
        models: Mapping[str, Predictions],
        pairs: Sequence[tuple[str, str]],
        scores: Sequence[str] = ("accuracy", "auc"),
        unit: str = "image",
    ) -> list[dict[str, Any]]:
        """Return the paired differences first - second of some scores by image or case."""
        rows, draws = [], _Draws(self.replicates, self.seed)
        for first, second in pairs:
            one, other = models[first], models[second]
            voted = (one, other) if unit == "image" else (by_case(one), by_case(other))
            for score in scores:
                row = {"first": first, "second": second, "score": score, "unit": unit}
                rows.append(row | self._difference(draws, *voted, score))
        return rows

    def _difference(
        self, draws: _Draws, one: Predictions | None, other: Predictions | None, score: str
    ) -> dict[str, Any]:
        if one is None or other is None:  # such as a vote of cases with two labels
            return {"difference": None, "interval": None, "withheld": SEVERAL_CLASSES}
        carriers = self.carriers(one)
        if score == "auc":
            gain = difference_of_areas(one, other)
            if gain is None:
                return {"difference": None, "interval": None, "withheld": "not defined"}
            return _summary(gain.area, gain.error, gain.freedom, carriers.why_not(score))
        one, other = aligned(one, other)
        return _summary_of_draws(draws.score(one, score) - draws.score(other, score), carriers, score)

    def over_best(
        self,
        models: Mapping[str, Predictions],
        bases: Mapping[str, tuple[Predictions, Predictions]],
        same_cases: bool,
        scores: Sequence[str] = ("accuracy", "auc"),
    ) -> list[dict[str, Any]]:
        """Return what models gain over the best of some base models, chosen again in every draw.

        `bases` are what each says of the development images, by which it is chosen, and of the images
        that the models are judged by. Where these are other cases, they are drawn apart.
        """
        chosen_by = _Draws(self.replicates, self.seed)
        judged_by = chosen_by if same_cases else _Draws(self.replicates, self.seed + 1)
        merit = np.stack([chosen_by.score(base, "auc") for base, _ in bases.values()])
        best = np.argmax(np.where(np.isfinite(merit), merit, -1), axis=0)
        ask, rows = (
            lru_cache(maxsize=32)(judged_by.score),
            [],
        )  # in equal parts, `aligned` copies nothing
        for name, model in models.items():
            pairs = [aligned(model, base) for _, base in bases.values()]
            for score in scores:
                gains = np.stack([ask(one, score) - ask(other, score) for one, other in pairs])
                gain = gains[best, np.arange(len(best))]
                row = {"first": name, "second": list(bases)[best[0]], "score": score, "unit": "image"}
                rows.append(row | _summary_of_draws(gain, self.carriers(model), score))
        return rows


class _Draws:
    """Draws of cases, made once for all models of the same cases; the first row is ones."""

    def __init__(self, replicates: int, seed: int) -> None:
        self.replicates, self.seed = replicates, seed
        self.cases: np.ndarray | None = None

    def of(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """Return the cases as numbers, which sort as their names do and faster, and their weights."""
        if self.cases is None or not np.array_equal(self.cases, predictions.cases):
            self.cases = predictions.cases
            _, self.numbers = np.unique(self.cases, return_inverse=True)
            drawn = draw_cases(self.numbers, self.replicates, self.seed)
            self.weights = np.concatenate([np.ones_like(drawn[:1]), drawn])
        return self.numbers, self.weights

    def score(self, predictions: Predictions, score: str) -> np.ndarray:
        """Return one score by image: first itself, then its replicates."""
        return weighted_scores(predictions, *self.of(predictions), {score})[score]


def _summary_of_draws(gain: np.ndarray, carriers: Carriers, score: str) -> dict[str, Any]:
    """Return a difference with its interval from the difference itself and its replicates."""
    error, freedom = _error(gain, sum(carriers.counts)), carriers.freedom(score)
    return _summary(float(gain[0]), error, freedom, carriers.why_not(score))


def _summary(value: float, error: float, freedom: float, why: str | None) -> dict[str, Any]:
    """Return a difference with its interval, or with the reason why it has none."""
    if not error > 0:
        why = why or ALIKE
    bounds = None if why else rounded(around(value, error, quantile(freedom)))
    row = {"difference": number(value), "interval": bounds, "withheld": why}
    return row | {"error": round(error, 6) if error > 0 else None}


def _with_intervals(
    scores: Scores, unit: str, size: int, carriers: Carriers, area: Influence | None
) -> dict[str, Any]:
    """Return a model's scores with their intervals, or with the reasons why they have none."""
    intervals: dict[str, list[float] | None] = dict.fromkeys(scores)
    withheld: dict[str, str] = {}
    for score, values in scores.items():
        if not np.isfinite(values[0]):
            continue
        why = carriers.why_not(score)
        if (unit, score) == ("case", "ece"):
            why = "too few cases in each bin"  # it is mostly noise: no interval was found that covers
        value, error = float(values[0]), _error(values, sum(carriers.counts))
        freedom = carriers.freedom(score)
        if score == "auc" and area is not None:
            error, freedom = area.error, area.freedom
        if why is None and (not error > 0 or not 0 < value < 1):
            why = ALIKE
        if why is None:
            intervals[score] = rounded(on_log_odds(value, error, freedom))
        else:
            withheld[score] = why
    plain = {score: number(values[0]) for score, values in scores.items()}
    return plain | {"n": size, "interval": intervals, "withheld": withheld}


def _error(values: np.ndarray, cases: int) -> float:
    """Return the standard error of a score from its defined replicates; nought where hardly any is."""
    defined = values[1:][np.isfinite(values[1:])]
    if len(defined) < len(values) / 2:
        return 0.0
    error = float(defined.std(ddof=1) * np.sqrt(cases / max(1, cases - 1)))
    return error if error > 1e-12 else 0.0


def rounded(bounds: Sequence[float]) -> list[float]:
    """Return an interval as JSON can hold it."""
    return [round(float(bound), 4) for bound in bounds]


def number(value: float | None) -> float | None:
    """Return a score as JSON can hold it: NaN is null."""
    return round(float(value), 4) if value is not None and np.isfinite(value) else None
