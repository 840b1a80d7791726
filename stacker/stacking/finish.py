"""What a model says once it is finished: calibrated, cut at a threshold, by image and by case.

Temperature scaling (Guo et al. 2017) makes all answers bolder or meeker at once; Platt's sigmoid (1999)
shifts them as well. A threshold is chosen by a rule, on calibrated probabilities, and not on what it is
judged by: on the development rows each part is finished by the others, so that what is reported saw
nothing of its case; on the test rows and on new images, by all of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from stacker.config.stacking import StackConfig
from stacker.scores.predictions import (
    Calibrator,
    Finish,
    Finishes,
    Kind,
    Predictions,
    by_case,
    finished,
    log_odds,
    log_of,
    mean_over_folds,
)
from stacker.stacking.learners.contract import fit_sigmoid

log = logging.getLogger(__name__)
Rule = Literal["none", "youden", "sensitivity"]
COLDEST, HOTTEST = 0.05, 20.0  # temperatures; where classes are separated, the best would be nought


def fit_calibrator(kind: Kind, probabilities: np.ndarray, labels: np.ndarray) -> Calibrator:
    """Return the calibrator that makes some labels (N,) likeliest.

    Images of one class alone cannot tell how sure a model should be: they leave it as it is.
    """
    if kind == "none":
        return Calibrator()
    if len(np.unique(labels)) < 2:
        log.warning(
            "calibration: %d images of one class alone, probabilities stay as they are", len(labels)
        )
        return Calibrator()
    if kind == "temperature":
        return Calibrator("temperature", temperature=_temperature(probabilities, labels))
    logits, weights = log_odds(probabilities), np.ones(len(labels))
    targets = [1] if logits.shape[1] == 1 else range(logits.shape[1])
    fitted = [
        fit_sigmoid(column, labels == k, weights) for k, column in zip(targets, logits.T, strict=True)
    ]
    slopes, intercepts = zip(*fitted, strict=True)
    return Calibrator("platt", slopes=slopes, intercepts=intercepts)


def _temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    logs, rows, ones = log_of(probabilities), np.arange(len(labels)), np.ones(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logs / np.exp(log_temperature), axis=1)
        # A dot product and a sum differ in the last bit, and the temperature is published to it.
        return float(-(ones @ scaled[rows, labels]) / len(labels))

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # Where all answers are equal, so are all temperatures.
    return float(np.exp(best.x)) if best.fun < loss(0.0) - 1e-12 else 1.0


def choose_threshold(
    rule: Rule, probabilities: np.ndarray, labels: np.ndarray, sensitivity: float = 0.95
) -> float:
    """Return from which probability (N,) of class 1 on class 1 is predicted.

    `youden` makes sensitivity + specificity largest; of several such thresholds it takes the one nearest
    to 0.5, and of two as near, the lower. `sensitivity` takes the highest threshold that reaches the
    wanted one. Thresholds lie midway between neighbouring probabilities, the lowest midway to nought.
    It is 0.5 by the rule `none`, where there is one class only, or where none is better than chance.
    """
    if rule == "none" or len(np.unique(labels)) < 2:
        return 0.5
    distinct, place = np.unique(probabilities.astype(np.float64), return_inverse=True)
    true, false = (
        np.cumsum(np.bincount(place, side, len(distinct))[::-1])[::-1]
        for side in (labels == 1, labels != 1)
    )
    below = np.r_[0.0, distinct[:-1]]
    midway = (below + distinct) / 2
    # Neighbours in floating point have no middle.
    thresholds = np.where(midway > below, midway, distinct)
    reached = true / true[0]
    if rule == "sensitivity":
        return float(thresholds[reached >= sensitivity - 1e-12].max())
    gains = reached - false / false[0]
    if gains.max() <= 1e-12:
        return 0.5
    best = thresholds[gains >= gains.max() - 1e-12]
    return float(best[np.argmin(np.round(np.abs(best - 0.5), 12))])


def fit_finish(
    kind: Kind, rule: Rule, sensitivity: float, probabilities: np.ndarray, labels: np.ndarray
) -> Finish:
    """Return calibration and threshold, the latter chosen on calibrated probabilities."""
    calibrator = fit_calibrator(kind, probabilities, labels)
    if rule == "none" or probabilities.shape[1] != 2:
        return Finish(calibrator)
    shares = calibrator.apply(probabilities)[:, 1]
    return Finish(calibrator, choose_threshold(rule, shares, labels, sensitivity))


def cross_finish(
    kind: Kind, rule: Rule, sensitivity: float, raw: np.ndarray, labels: np.ndarray, parts: np.ndarray
) -> Finishes:
    """Return a finish for each part of each cut (R, N), fitted on raw probabilities of the others."""
    return tuple(
        {
            int(part): fit_finish(
                kind, rule, sensitivity, raw_NK[parts_N != part], labels[parts_N != part]
            )
            for part in np.unique(parts_N)
        }
        for raw_NK, parts_N in zip(raw, parts, strict=True)
    )


@dataclass(frozen=True)
class Says:
    """What a model says of the development cases, out of fold, and of the test cases; and its finish.

    `development` is None where there are too few cases to cut, `case_finish` where cases have several
    labels. `areas` are the AUC of single seeds or cuts on the development cases.
    """

    development: Predictions | None
    test: Predictions
    finish: Finish
    case_finish: Finish | None
    areas: tuple[float, ...] = ()


def unfinished(truth: tuple[np.ndarray, np.ndarray], raw: np.ndarray, parts: np.ndarray) -> Predictions:
    """Return raw probabilities (R, N, K) of rows, by fits that saw nothing of their cases.

    There are R cuts into `parts` (R, N); `truth` is labels and cases.
    """
    return Predictions(*truth, raw.mean(axis=0), raw=raw, parts=parts)


def conclude(
    config: StackConfig,
    development: Predictions | None,
    test: Predictions,
    areas: tuple[float, ...] = (),
) -> Says:
    """Return what a model says once it is finished, from its raw probabilities out of fold and of tests.

    Cases are finished as images are, from their mean probability, but by Platt's sigmoid: their classes
    are not as frequent as those of images, which a temperature cannot fix, and a dozen cases that are
    told apart would be certain.
    """
    how = (config.calibration, config.threshold, config.sensitivity)
    kind_of_cases: Kind = "none" if config.calibration == "none" else "platt"
    how_of_cases = (kind_of_cases, *how[1:])
    finish, case_finish, reported = Finish(), None, None
    if development is not None:
        raw, parts = development.ranked
        finish = fit_finish(*how, *_rows_of(development))
        crossed, crossed_cases = cross_finish(*how, raw, development.labels, parts), None
        cases = by_case(development)
        if cases is not None and cases.parts is not None and (cases.parts >= 0).all():
            case_finish = fit_finish(*how_of_cases, *_rows_of(cases))
            crossed_cases = cross_finish(*how_of_cases, cases.ranked[0], cases.labels, cases.parts)
        reported = _finished(development, crossed, crossed_cases)
        if finish.calibrator.slopes and not any(finish.calibrator.slopes):
            log.warning("platt: its probabilities tell nothing out of fold, all images get the same one")
    of_cases = None if case_finish is None else ({0: case_finish},)
    tested = _finished(test, ({0: finish},), of_cases)
    return Says(reported, tested, finish, case_finish, areas)


def say_plainly(
    config: StackConfig,
    parts: np.ndarray | None,
    truth: tuple[np.ndarray, np.ndarray],
    development: np.ndarray,
    test_truth: tuple[np.ndarray, np.ndarray],
    tests: np.ndarray,
) -> Says:
    """Return what a model says that needs no fit: (N, K) out of fold, (folds, N, K) of test rows.

    It is finished and scored in the same `parts` (R, N) as a stack is.
    """
    plain = None
    if parts is not None:
        plain = unfinished(truth, np.repeat(development[None], len(parts), axis=0), parts)
    return conclude(config, plain, Predictions(*test_truth, mean_over_folds(tests)))


def _finished(said: Predictions, finish: Finishes, case_finish: Finishes | None) -> Predictions:
    return finished(said.labels, said.cases, *said.ranked, finish, case_finish)


def _rows_of(said: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw probabilities and labels of all cuts, one after the other."""
    raw, _ = said.ranked
    return raw.reshape(-1, raw.shape[2]), np.tile(said.labels, len(raw))
