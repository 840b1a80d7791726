"""What a model says once it is finished: calibrated, cut at a threshold, by image and by case.

On the development rows each part is finished by the others, so that what is reported saw nothing of its
case; on the test rows and on new images, by all of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from stacker.calibration import cross_finish, fit_finish
from stacker.predictions import Finish, Kind, Predictions, by_case, finished
from stacker.settings import StackConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutOfFold:
    """Raw probabilities (R, N, K) of rows by fits that saw nothing of their cases.

    There are R cuts into `parts` (R, N). `areas` are the AUC of single seeds, or of single cuts.
    """

    raw: np.ndarray
    parts: np.ndarray
    areas: tuple[float, ...] = ()


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


def conclude(
    config: StackConfig,
    development: OutOfFold | None,
    truth: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    test_truth: tuple[np.ndarray, np.ndarray],
) -> Says:
    """Return what a model says once it is finished, by image and by case.

    Takes its raw probabilities out of fold, and those of the test rows (N, K); `truth` is labels and
    cases. On the development rows each part is calibrated, and gets its threshold, by the others: what
    is reported saw nothing of its case. Cases are finished as images are, from their mean probability,
    but by Platt's sigmoid: their classes are not as frequent as those of images, which a temperature
    cannot mend, and a dozen cases that are told apart would be certain.
    """
    how = (config.calibration, config.threshold, config.sensitivity)
    by_sigmoid: Kind = "none" if config.calibration == "none" else "platt"
    how_of_cases = (by_sigmoid, config.threshold, config.sensitivity)
    finish, case_finish, reported = Finish(), None, None
    if development is not None:
        raw, parts = development.raw, development.parts
        plain = Predictions(*truth, raw.mean(axis=0), None, raw, parts)
        finish = fit_finish(*how, *_rows_of(plain))
        crossed, crossed_cases = cross_finish(*how, raw, truth[0], parts), None
        cases = by_case(plain)
        if cases is not None and cases.parts is not None and (cases.parts >= 0).all():
            case_finish = fit_finish(*how_of_cases, *_rows_of(cases))
            crossed_cases = cross_finish(*how_of_cases, cases.ranked[0], cases.labels, cases.parts)
        reported = finished(*truth, raw, parts, crossed, crossed_cases)
        if finish.calibrator.slopes and not any(finish.calibrator.slopes):
            log.warning("platt: its probabilities tell nothing out of fold, all images get the same one")
    of_cases = None if case_finish is None else case_finish.everywhere()
    parts_of_test = np.zeros((1, len(test)), dtype=np.int64)
    tested = finished(*test_truth, test[None], parts_of_test, finish.everywhere(), of_cases)
    areas = () if development is None else development.areas
    return Says(reported, tested, finish, case_finish, areas)


def _rows_of(found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw probabilities and labels of all cuts, one after the other."""
    raw, _ = found.ranked
    return raw.reshape(-1, raw.shape[2]), np.tile(found.labels, len(raw))
