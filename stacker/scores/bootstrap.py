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
from typing import Any

import numpy as np

from stacker.scores.influence import (
    LEVEL,
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
NEGLIGIBLE = 0.01  # a gain in AUC below which two models are as good as each other


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
    return _replicate(predictions, by_case(predictions), case_weights, wanted)


def _replicate(
    predictions: Predictions, whole: Predictions | None, case_weights: np.ndarray, wanted: Wanted
) -> dict[str, Scores]:
    """Return the scores of images, and of the same by `whole` case, where these have one label."""
    names, position = np.unique(predictions.cases, return_inverse=True)
    of_cases = {}
    if whole is not None:
        of_cases = weighted_scores(whole, np.arange(len(names)), case_weights, wanted)
    of_cases["recognition_rate"] = recognition_rate(predictions, case_weights)
    return {
        "image": weighted_scores(predictions, position, case_weights, wanted),
        "case": of_cases,
    }


def points(predictions: Predictions, wanted: Wanted = None) -> dict[str, dict[str, float]]:
    """Return the scores by unit, without draws."""
    found = replicate(predictions, np.ones((1, len(np.unique(predictions.cases)))), wanted)
    return {
        unit: {name: float(value[0]) for name, value in scores.items()} for unit, scores in found.items()
    }


@dataclass(frozen=True)
class Carriers:
    """How many cases have images of each class: what an interval rests on."""

    counts: tuple[int, ...]
    names: tuple[str, ...]
    unit: str

    def why_not(self, score: str) -> str | None:
        """Return why a score has no interval, if so: too few cases of a class that it depends on."""
        few = [k for k in self._of(score) if self.counts[k] < FEWEST]
        if not few:
            return None
        k = min(few, key=lambda each: self.counts[each])
        number = self.counts[k]
        return f"{number} {self.unit}{'' if number == 1 else 's'} of {self.names[k]}"

    def freedom(self, score: str) -> int:
        """Return the degrees of freedom of a score's error: the cases of its rarest class, less one."""
        return max(1, min(self.counts[k] for k in self._of(score)) - 1)

    def _of(self, score: str) -> list[int]:
        """Return the classes whose cases a score depends on."""
        one = {"sensitivity": [1], "specificity": [0]} if len(self.counts) == 2 else {}
        present = [k for k, count in enumerate(self.counts) if count]  # a subtype is of one class
        return one.get(score, present)


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
            f"95%, t-quantiles, errors from whole {self.unit}s ({self.replicates} bootstrap draws; AUC: "
            f"influence), none below {FEWEST} {self.unit}s of a class"
        )

    def evaluate(self, models: Mapping[str, Predictions]) -> dict[str, dict[str, Any]]:
        """Return {model: {unit: {score: value, "n": N, "interval": {...}, "withheld": {...}}}}."""
        drawn, result = _Draws(self), {}
        for name, found in models.items():
            scores, areas = drawn.evaluate(found)
            carriers = self.carriers(found)
            sizes = {"image": len(found.labels), "case": len(drawn.weights[0])}
            by_unit: dict[str, Any] = {
                unit: _with_intervals(of_unit, unit, sizes[unit], carriers, areas[unit])
                for unit, of_unit in scores.items()
            }
            constant = len(np.unique(found.predicted)) == 1
            result[name] = {**by_unit, "constant_prediction": constant}
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

    def carriers(self, found: Predictions) -> Carriers:
        """Return how many cases have images of each class."""
        classes = range(len(self.classes))
        counts = tuple(len(np.unique(found.cases[found.labels == k])) for k in classes)
        return Carriers(counts, self.classes, self.unit)

    def differences(
        self,
        models: Mapping[str, Predictions],
        pairs: Sequence[tuple[str, str]],
        scores: Sequence[str] = ("accuracy", "auc"),
        unit: str = "image",
    ) -> list[dict[str, Any]]:
        """Return the paired differences first - second of some scores by image or case."""
        rows, drawn = [], _Draws(self)
        for first, second in pairs:
            one, other = pair_of(models[first], models[second], unit)
            for score in scores:
                row = {"first": first, "second": second, "score": score, "unit": unit}
                rows.append(row | self._difference(drawn, one, other, score))
        return rows

    def over_best(
        self,
        models: Mapping[str, Predictions],
        bases: Mapping[str, tuple[Predictions, Predictions]],
        same_cases: bool,
        scores: Sequence[str] = ("accuracy", "auc"),
    ) -> list[dict[str, Any]]:
        """Return what models gain over the best of some base models, which is chosen anew in every draw.

        `bases` are what each says of the development images, by which it is chosen, and of the images
        that the models are judged by. Where these are other cases, they are drawn apart.
        """
        chosen_by = _Draws(self)
        judged_by = chosen_by if same_cases else _Draws(replace(self, seed=self.seed + 1))
        names = list(bases)
        merit = np.stack([chosen_by.of_images(bases[n][0], "auc") for n in names])
        best = np.argmax(np.where(np.isfinite(merit), merit, -1), axis=0)
        rows = []
        for name, model in models.items():
            pairs = [aligned(model, bases[base][1]) for base in names]
            carriers = self.carriers(model)
            for score in scores:
                gains = np.stack([_gain(judged_by, *pair, score) for pair in pairs])
                gain = gains[best, np.arange(len(best))]
                error = _error(gain, sum(carriers.counts))
                row = {"first": name, "second": names[best[0]], "score": score, "unit": "image"}
                freedom = carriers.freedom(score)
                rows.append(row | _summary(float(gain[0]), error, freedom, carriers.why_not(score)))
        return rows

    def _difference(
        self, drawn: _Draws, one: Predictions | None, other: Predictions | None, score: str
    ) -> dict[str, Any]:
        if one is None or other is None:  # such as a vote of cases with two labels
            return {"difference": None, "interval": None, "withheld": "cases of several classes"}
        carriers = self.carriers(one)
        if score == "auc":
            found = difference_of_areas(one, other)
            if found is None:
                return {"difference": None, "interval": None, "withheld": "not defined"}
            return _summary(found.area, found.error, found.freedom, carriers.why_not(score))
        gain = _gain(drawn, one, other, score)
        error = _error(gain, sum(carriers.counts))
        return _summary(float(gain[0]), error, carriers.freedom(score), carriers.why_not(score))


def _gain(drawn: _Draws, one: Predictions, other: Predictions, score: str) -> np.ndarray:
    """Return the difference of a score by image, and its replicates."""
    found: np.ndarray = drawn.of_images(one, score) - drawn.of_images(other, score)
    return found


def _summary(value: float, error: float, freedom: float, why: str | None) -> dict[str, Any]:
    """Return a difference with its interval, or with the reason why it has none."""
    if not error > 0:
        why = why or "nothing varies"
    bounds = None if why else around(value, error, quantile(freedom))
    found = {"difference": number(value), "interval": rounded(bounds), "withheld": why}
    return found | {"error": round(error, 6) if error > 0 else None}


def pair_of(
    first: Predictions, second: Predictions, unit: str
) -> tuple[Predictions | None, Predictions | None]:
    """Return two models' predictions by image or by case, ranked within the same parts."""
    if unit == "image":
        return aligned(first, second)
    one, other = by_case(first), by_case(second)
    return (None, None) if one is None or other is None else aligned(one, other)


class _Draws:
    """The draws for all models, made once as long as their cases are the same; the first row is ones."""

    def __init__(self, how: Resampling) -> None:
        self.how = how
        self.cases: np.ndarray | None = None

    def evaluate(
        self, predictions: Predictions
    ) -> tuple[dict[str, Scores], dict[str, Influence | None]]:
        """Return by unit the scores, first themselves, then their replicates, and what cases add."""
        self._number(predictions)
        numbered = replace(predictions, cases=self.numbers)
        whole, units = by_case(numbered), len(self.weights[0])
        areas = {
            "image": influence(predictions, self.numbers, units),
            "case": None if whole is None else influence(whole, np.arange(units), units),
        }
        return _replicate(numbered, whole, self.weights, None), areas

    def of_images(self, predictions: Predictions, score: str) -> np.ndarray:
        """Return one score by image: first itself, then its replicates."""
        self._number(predictions)
        return weighted_scores(predictions, self.numbers, self.weights, {score})[score]

    def _number(self, predictions: Predictions) -> None:
        """Give the cases numbers, which sort as their names do, and faster; draw them."""
        if self.cases is None or not np.array_equal(self.cases, predictions.cases):
            self.cases = predictions.cases
            _, self.numbers = np.unique(self.cases, return_inverse=True)
            drawn = draw_cases(self.numbers, self.how.replicates, self.how.seed)
            self.weights = np.concatenate([np.ones_like(drawn[:1]), drawn])


def _with_intervals(
    scores: Scores, unit: str, size: int, carriers: Carriers, area: Influence | None
) -> dict[str, Any]:
    """Return a model's scores with their intervals, or with the reasons why they have none."""
    found: dict[str, Any] = {score: number(values[0]) for score, values in scores.items()}
    intervals: dict[str, list[float] | None] = {}
    withheld: dict[str, str] = {}
    for score, values in scores.items():
        intervals[score] = None
        if not np.isfinite(values[0]):
            continue
        why = carriers.why_not(score)
        if (unit, score) == ("case", "ece"):
            why = "bins of few cases"  # it is mostly noise: no interval was found that covers
        if why is None:
            bounds, why = _interval(score, values, carriers, area)
            intervals[score] = rounded(bounds)
        if why is not None:
            withheld[score] = why
    return found | {"n": size, "interval": intervals, "withheld": withheld}


def _interval(
    score: str, values: np.ndarray, carriers: Carriers, area: Influence | None
) -> tuple[list[float] | None, str | None]:
    """Return a score's interval, or why there is none; the score itself comes before its replicates."""
    value = float(values[0])
    error, freedom = _error(values, sum(carriers.counts)), float(carriers.freedom(score))
    if score == "auc" and area is not None:
        error, freedom = area.error, area.freedom
    if not error > 0 or not 0 < value < 1:
        return None, "all cases alike"
    return on_log_odds(value, error, freedom, LEVEL), None


def _error(values: np.ndarray, cases: int) -> float:
    """Return the standard error of a score from its defined replicates; nought where hardly any is."""
    defined = values[1:][np.isfinite(values[1:])]
    if len(defined) < len(values) / 2:
        return 0.0
    found = float(defined.std(ddof=1) * np.sqrt(cases / max(1, cases - 1)))
    return found if found > 1e-12 else 0.0


def rounded(bounds: Sequence[float] | None) -> list[float] | None:
    """Return an interval as JSON can hold it."""
    return None if bounds is None else [round(float(bound), 4) for bound in bounds]


def number(value: float | None) -> float | None:
    """Return a score as JSON can hold it: NaN is null."""
    return round(float(value), 4) if value is not None and np.isfinite(value) else None
